//! Streams over turmoil's TCP. Who a peer is follows from its host, as in production from its certificate.

use crate::world::{client_identity, identity_of};
use async_trait::async_trait;
use shoal_model::rpc::Method;
use shoal_transport::{
    Connector, Expect, Peer, PeerIdentity, RpcHandler, RpcStream, TransportError,
};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;
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
        expect: Expect,
        method: Method,
    ) -> Result<RpcStream, TransportError> {
        let failed = |err| TransportError::Io {
            addr,
            err: Arc::new(err),
        };
        let found = peer_at(addr.ip()).ok_or(TransportError::UnreadablePeer { addr })?;
        if !expect.admits(&found) {
            return Err(TransportError::WrongPeer {
                addr,
                expected: expect,
                found: Box::new(found),
            });
        }
        let stream = tokio::time::timeout(CONNECT_LIMIT, TcpStream::connect(addr))
            .await
            .map_err(|_| TransportError::TimedOut {
                addr,
                limit: CONNECT_LIMIT,
            })?
            .map_err(failed)?;
        let (read, write) = stream.into_split();
        Ok(RpcStream::caller(Box::new(read), Box::new(write), method))
    }
}

fn peer_at(ip: IpAddr) -> Option<PeerIdentity> {
    let host = turmoil::reverse_lookup(ip)?;
    match host.strip_prefix("node") {
        Some(number) => number.parse().ok().map(identity_of),
        None => Some(client_identity()),
    }
}

/// Serves the streams of this host until it crashes or the future is dropped.
///
/// # Errors
/// The socket can't be bound.
pub async fn serve(handler: Arc<dyn RpcHandler>) -> io::Result<()> {
    let any = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    let listener = TcpListener::bind((any, CONTROL_PORT)).await?;
    let mut streams = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            accepted = listener.accept() => {
                let (stream, addr) = accepted?;
                streams.spawn(serve_stream(Arc::clone(&handler), stream, addr));
            }
            Some(_) = streams.join_next() => {}
        }
    }
}

async fn serve_stream(handler: Arc<dyn RpcHandler>, stream: TcpStream, addr: SocketAddr) {
    let (read, write) = stream.into_split();
    let Ok((method, stream)) = RpcStream::accept(Box::new(read), Box::new(write)).await else {
        return;
    };
    let Some(identity) = peer_at(addr.ip()) else {
        return;
    };
    let admitted = handler.admits(&identity, method);
    let peer = Peer {
        addr,
        identity: Some(identity),
    };
    if admitted && peer.may_call(method) {
        handler.handle(peer, method, stream).await;
    }
}
