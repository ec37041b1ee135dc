//! The seam "network": open a stream to a node, serve streams of others.

use crate::identity::PeerIdentity;
use crate::stream::{RpcStream, StreamError};
use async_trait::async_trait;
use serde::{Serialize, de::DeserializeOwned};
use shoal_model::rpc::{Access, Method, RpcError};
use shoal_model::{NodeId, NodeRole};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// First byte of every stream.
pub const TRANSPORT_VERSION: u8 = 1;

/// Bytes of a stream's header: version, method number.
pub const HEADER_BYTES: usize = 3;

/// Who must answer at an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Expect {
    /// A manager of the cluster.
    AnyManager,
    /// A node of the cluster.
    AnyNode,
    /// That node.
    Node(NodeId),
}

impl Expect {
    /// Whether `peer` is the one.
    pub fn admits(self, peer: &PeerIdentity) -> bool {
        match self {
            Self::AnyManager => peer.role == NodeRole::Manager,
            Self::AnyNode => true,
            Self::Node(node_id) => peer.node_id == node_id,
        }
    }
}

impl std::fmt::Display for Expect {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::AnyManager => f.write_str("a manager"),
            Self::AnyNode => f.write_str("a node of the cluster"),
            Self::Node(node_id) => write!(f, "node `{node_id}`"),
        }
    }
}

/// The other end of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Where the call comes from. Never an identity.
    pub addr: SocketAddr,
    /// What its certificate says; `None` only for open methods.
    pub identity: Option<PeerIdentity>,
}

impl Peer {
    /// Whether the one table lets this peer call `method`.
    pub fn may_call(&self, method: Method) -> bool {
        let role = self.identity.as_ref().map(|identity| identity.role);
        match method.access() {
            Access::Open => true,
            Access::Node => role.is_some(),
            Access::Manager => role == Some(NodeRole::Manager),
        }
    }
}

/// Why no stream could be opened. Cheap to clone: callers that wait for one connection share its failure.
#[derive(Debug, Clone, thiserror::Error)]
pub enum TransportError {
    /// This node has no certificate yet.
    #[error("this node has no certificate: it is not part of a cluster")]
    NoIdentity,
    /// The certificate or key of this node can't be used.
    #[error("failed to set up TLS")]
    Tls(#[source] rustls::Error),
    /// The address can't be dialled from this socket.
    #[error("failed to connect to {addr}")]
    Connect {
        /// The address.
        addr: SocketAddr,
        /// The cause.
        #[source]
        err: quinn::ConnectError,
    },
    /// Nobody answered, or one of both sides refused the other.
    #[error("failed to connect to {addr}")]
    Handshake {
        /// The address.
        addr: SocketAddr,
        /// The cause.
        #[source]
        err: quinn::ConnectionError,
    },
    /// Nobody answered in time.
    #[error("{addr} did not answer within {} ms", limit.as_millis())]
    TimedOut {
        /// The address.
        addr: SocketAddr,
        /// How long it was waited for.
        limit: Duration,
    },
    /// Somebody else answered.
    #[error("{addr} answers as {} `{}`, expected {expected}", found.role, found.node_id)]
    WrongPeer {
        /// The address.
        addr: SocketAddr,
        /// Who was expected.
        expected: Expect,
        /// Who answered.
        found: Box<PeerIdentity>,
    },
    /// The certificate at that address does not say who the peer is.
    #[error("the certificate of {addr} does not name a node")]
    UnreadablePeer {
        /// The address.
        addr: SocketAddr,
    },
    /// A connection below failed (other implementations of [`Connector`]).
    #[error("failed to connect to {addr}")]
    Io {
        /// The address.
        addr: SocketAddr,
        /// The cause.
        #[source]
        err: Arc<io::Error>,
    },
}

/// Opens streams to other nodes.
#[async_trait]
pub trait Connector: Send + Sync + 'static {
    /// Opens a stream for one call of `method`. The first frame must be sent before the peer learns of it.
    ///
    /// # Errors
    /// See [`TransportError`]; nothing has been executed then.
    async fn open(
        &self,
        addr: SocketAddr,
        expect: Expect,
        method: Method,
    ) -> Result<RpcStream, TransportError>;
}

/// Serves streams of other nodes.
#[async_trait]
pub trait RpcHandler: Send + Sync + 'static {
    /// Serves one call. The access table was checked already.
    async fn handle(&self, peer: Peer, method: Method, stream: RpcStream);

    /// A further check of a peer with a valid certificate: managers refuse nodes that were removed, and take their
    /// role from the store where that is newer than the certificate.
    fn admits(&self, _identity: &PeerIdentity, _method: Method) -> bool {
        true
    }
}

/// Why a unary call has no answer.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// No stream: nothing was executed.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// The stream broke: it is unknown whether the call was executed.
    #[error("the call to {addr} failed")]
    Stream {
        /// Whom.
        addr: SocketAddr,
        /// The cause.
        #[source]
        err: StreamError,
    },
    /// The peer answered with an error.
    #[error(transparent)]
    Remote(#[from] RpcError),
    /// It is unknown whether the call was executed.
    #[error("{addr} did not answer the call within {} ms", deadline.as_millis())]
    TimedOut {
        /// Whom.
        addr: SocketAddr,
        /// How long it was waited for.
        deadline: Duration,
    },
}

/// A unary call: one request, one `Result<Resp, RpcError>`.
///
/// # Errors
/// See [`CallError`].
pub async fn call<Req, Resp>(
    connector: &dyn Connector,
    addr: SocketAddr,
    expect: Expect,
    method: Method,
    request: &Req,
    deadline: Duration,
) -> Result<Resp, CallError>
where
    Req: Serialize + Sync,
    Resp: DeserializeOwned,
{
    let exchange = async {
        let stream = connector.open(addr, expect, method).await?;
        exchange(stream, addr, request).await
    };
    tokio::time::timeout(deadline, exchange)
        .await
        .map_err(|_| CallError::TimedOut { addr, deadline })?
}

pub(crate) async fn exchange<Req, Resp>(
    mut stream: RpcStream,
    addr: SocketAddr,
    request: &Req,
) -> Result<Resp, CallError>
where
    Req: Serialize + Sync,
    Resp: DeserializeOwned,
{
    let broken = |err| CallError::Stream { addr, err };
    stream.send(request).await.map_err(broken)?;
    stream.finish().await.map_err(broken)?;
    let answer: Option<Result<Resp, RpcError>> = stream.recv().await.map_err(broken)?;
    Ok(answer.ok_or(broken(StreamError::Truncated))??)
}
