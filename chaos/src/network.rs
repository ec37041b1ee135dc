//! Streams between managers over turmoil's TCP.

use async_trait::async_trait;
use shoal_manager::raft::RaftHandle;
use shoal_model::rpc::Method;
use shoal_model::{ClusterId, NodeId, NodeRole};
use shoal_transport::{Connector, Expect, Peer, PeerIdentity, RpcStream, TransportError};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use turmoil::net::{TcpListener, TcpStream};

/// Where every manager listens.
pub const CONTROL_PORT: u16 = 2377;

/// Longest wait for a connection.
const CONNECT_LIMIT: Duration = Duration::from_secs(1);

/// Opens streams over simulated TCP.
#[derive(Debug, Clone, Copy, Default)]
pub struct SimulatedLink;

#[async_trait]
impl Connector for SimulatedLink {
    async fn open(
        &self,
        addr: SocketAddr,
        _: Expect,
        method: Method,
    ) -> Result<RpcStream, TransportError> {
        let stream = match tokio::time::timeout(CONNECT_LIMIT, TcpStream::connect(addr)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(err)) => {
                return Err(TransportError::Io {
                    addr,
                    err: Arc::new(err),
                });
            }
            Err(_) => {
                return Err(TransportError::TimedOut {
                    addr,
                    limit: CONNECT_LIMIT,
                });
            }
        };
        let (read, write) = stream.into_split();
        Ok(RpcStream::caller(Box::new(read), Box::new(write), method))
    }
}

/// Serves Raft's streams on this host until it crashes.
///
/// # Errors
/// The socket can't be bound.
pub async fn serve(raft: RaftHandle) -> io::Result<()> {
    let any = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    let listener = TcpListener::bind((any, CONTROL_PORT)).await?;
    loop {
        let (stream, addr) = listener.accept().await?;
        let raft = raft.clone();
        tokio::spawn(async move {
            let (read, write) = stream.into_split();
            // Raft never asks who the peer is: the transport's access table has done so in production.
            let peer = Peer {
                addr,
                identity: Some(PeerIdentity {
                    node_id: NodeId::MIN,
                    role: NodeRole::Manager,
                    cluster_id: ClusterId::MIN,
                    public_key_digest: [0; 32],
                }),
            };
            if let Ok((method, stream)) = RpcStream::accept(Box::new(read), Box::new(write)).await {
                raft.handle_rpc(peer, method, stream).await;
            }
        });
    }
}
