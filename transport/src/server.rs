//! The serving side: who may connect, who may call, and how much of it at a time.

use crate::identity::PeerIdentity;
use crate::rpc::{Peer, RpcHandler};
use crate::stream::{OPEN_FRAME_BYTES_MAX, Refused, RpcStream, StreamError, read_header};
use quinn::{Connection, Incoming, RecvStream, SendStream, VarInt};
use rustls_pki_types::CertificateDer;
use shoal_model::rpc::Method;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

/// Most incoming connections.
const CONNECTIONS_MAX: usize = 16_384;

/// Most connections of peers without a certificate.
const ANONYMOUS_CONNECTIONS_MAX: usize = 64;

/// From so many handshakes at a time on, a caller has to prove that it receives at its address.
const HANDSHAKES_WITHOUT_RETRY_MAX: usize = 256;

/// Most handshakes at a time.
const HANDSHAKES_MAX: usize = 2_048;

/// A handshake takes one round trip and about a millisecond of work.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// A peer without a certificate wants one certificate.
const ANONYMOUS_LIFE: Duration = Duration::from_secs(30);

/// Streams at a time of a peer without a certificate, before and after the handshake.
pub(crate) const ANONYMOUS_STREAMS_MAX: u32 = 2;

/// Bytes in flight from a peer before it has shown a certificate.
pub(crate) const ANONYMOUS_WINDOW_BYTES: u32 = 64 << 10;

/// A stream appears with its first bytes, and these are its header.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);

/// Sent to a peer with a certificate: its handshake is complete, calls are accepted.
pub(crate) const GREETING: &[u8] = &[1];

/// What a peer with a certificate may use.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PeerLimits {
    pub(crate) streams_max: u32,
    pub(crate) window_bytes: u32,
}

pub(crate) struct Server {
    handler: Arc<dyn RpcHandler>,
    limits: PeerLimits,
    tracker: TaskTracker,
    connections: AtomicUsize,
    handshakes: AtomicUsize,
    anonymous: Arc<Semaphore>,
}

struct Counted<'a>(&'a AtomicUsize);

impl<'a> Counted<'a> {
    fn new(counter: &'a AtomicUsize) -> Self {
        counter.fetch_add(1, Ordering::Relaxed);
        Self(counter)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Server {
    pub(crate) fn new(
        handler: Arc<dyn RpcHandler>,
        limits: PeerLimits,
        tracker: TaskTracker,
    ) -> Self {
        Self {
            handler,
            limits,
            tracker,
            connections: AtomicUsize::new(0),
            handshakes: AtomicUsize::new(0),
            anonymous: Arc::new(Semaphore::new(ANONYMOUS_CONNECTIONS_MAX)),
        }
    }

    /// Accepts connections until the endpoint is closed.
    pub(crate) async fn run(self: Arc<Self>, quic: quinn::Endpoint) {
        while let Some(incoming) = quic.accept().await {
            let handshakes = self.handshakes.load(Ordering::Relaxed);
            let connections = self.connections.load(Ordering::Relaxed);
            if handshakes >= HANDSHAKES_MAX || connections >= CONNECTIONS_MAX {
                // No answer: the caller's retransmission is its retry.
                incoming.ignore();
            } else if handshakes >= HANDSHAKES_WITHOUT_RETRY_MAX && incoming.may_retry() {
                if let Err(err) = incoming.retry() {
                    err.into_incoming().ignore();
                }
            } else {
                let server = Arc::clone(&self);
                self.tracker
                    .spawn(async move { server.connection(incoming).await });
            }
        }
    }

    async fn connection(self: Arc<Self>, incoming: Incoming) {
        let _counted = Counted::new(&self.connections);
        let addr = canonical(incoming.remote_address());
        let Some(connection) = self.handshake(incoming, addr).await else {
            return;
        };
        match peer_identity(&connection) {
            Ok(Some(identity)) => {
                if let Err(err) = self.greet(&connection).await {
                    debug!(%addr, err = &err as &dyn std::error::Error, "peer left during the handshake");
                    return;
                }
                self.streams(&connection, addr, Some(identity)).await;
            }
            Ok(None) => {
                let Ok(_permit) = Arc::clone(&self.anonymous).try_acquire_owned() else {
                    warn!(%addr, "too many peers without a certificate at a time; one was turned away");
                    close(&connection);
                    return;
                };
                let streams = self.streams(&connection, addr, None);
                if tokio::time::timeout(ANONYMOUS_LIFE, streams).await.is_err() {
                    debug!(%addr, "peer without a certificate stayed too long");
                }
                close(&connection);
            }
            Err(err) => {
                warn!(%addr, err = &err as &dyn std::error::Error, "peer has a certificate that names no node");
                close(&connection);
            }
        }
    }

    async fn handshake(&self, incoming: Incoming, addr: SocketAddr) -> Option<Connection> {
        let _counted = Counted::new(&self.handshakes);
        let connecting = match incoming.accept() {
            Ok(connecting) => connecting,
            Err(err) => {
                debug!(%addr, err = &err as &dyn std::error::Error, "connection attempt was malformed");
                return None;
            }
        };
        match tokio::time::timeout(HANDSHAKE_TIMEOUT, connecting).await {
            Ok(Ok(connection)) => Some(connection),
            Ok(Err(err)) => {
                debug!(%addr, err = &err as &dyn std::error::Error, "handshake failed");
                None
            }
            Err(_) => {
                debug!(%addr, "handshake took too long");
                None
            }
        }
    }

    /// Tells the peer that its certificate was accepted. A QUIC client takes its side of the handshake for complete
    /// before the server has seen the certificate, so without this its first call would find out.
    async fn greet(&self, connection: &Connection) -> Result<(), StreamError> {
        connection.set_receive_window(VarInt::from_u32(self.limits.window_bytes));
        connection.set_max_concurrent_bi_streams(VarInt::from_u32(self.limits.streams_max));
        let lost = |err: std::io::Error| StreamError::Lost(err);
        let mut greeting = connection
            .open_uni()
            .await
            .map_err(|err| lost(err.into()))?;
        greeting
            .write_all(GREETING)
            .await
            .map_err(|err| lost(err.into()))?;
        greeting.finish().map_err(|err| lost(err.into()))
    }

    async fn streams(
        self: &Arc<Self>,
        connection: &Connection,
        addr: SocketAddr,
        identity: Option<PeerIdentity>,
    ) {
        loop {
            let (send, recv) = match connection.accept_bi().await {
                Ok(stream) => stream,
                Err(err) => {
                    debug!(%addr, err = &err as &dyn std::error::Error, "connection ended");
                    return;
                }
            };
            let server = Arc::clone(self);
            let connection = connection.clone();
            let identity = identity.clone();
            self.tracker.spawn(async move {
                // A peer may have moved since it connected.
                let peer = Peer {
                    addr: canonical(connection.remote_address()),
                    identity,
                };
                server.stream(&connection, peer, send, recv).await;
            });
        }
    }

    async fn stream(
        &self,
        connection: &Connection,
        peer: Peer,
        mut send: SendStream,
        mut recv: RecvStream,
    ) {
        let header = tokio::time::timeout(HEADER_TIMEOUT, read_header(&mut recv)).await;
        let refused = match header {
            Ok(Ok(method)) if self.may_call(&peer, method) => {
                let anonymous = peer.identity.is_none();
                let mut stream = RpcStream::new(Box::new(recv), Box::new(send));
                if anonymous {
                    stream.set_frame_bytes_max(OPEN_FRAME_BYTES_MAX);
                }
                self.handler.handle(peer, method, stream).await;
                return;
            }
            Ok(Ok(_)) => Refused::Access,
            Ok(Err(StreamError::Refused(refused))) => refused,
            Ok(Err(_)) | Err(_) => {
                debug!(addr = %peer.addr, "stream without a header");
                return;
            }
        };
        match &peer.identity {
            Some(identity) => {
                warn!(addr = %peer.addr, node_id = %identity.node_id, reason = %refused, "call refused");
                refuse(&mut send, &mut recv, refused);
            }
            // Who has no certificate learns nothing, not even why.
            None => close(connection),
        }
    }

    fn may_call(&self, peer: &Peer, method: Method) -> bool {
        peer.may_call(method)
            && peer
                .identity
                .as_ref()
                .is_none_or(|identity| self.handler.admits(identity, method))
    }
}

fn refuse(send: &mut SendStream, recv: &mut RecvStream, refused: Refused) {
    let code = VarInt::from_u32(refused.code());
    // Both fail only when the peer has closed that direction already, and then it does not wait for the answer.
    if send.reset(code).is_err() || recv.stop(code).is_err() {
        debug!("peer gave up a refused call");
    }
}

fn close(connection: &Connection) {
    connection.close(VarInt::from_u32(0), &[]);
}

/// IPv4 callers of a dual-stack socket have mapped addresses.
fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

/// What the peer's certificate says; `None` without a certificate.
pub(crate) fn peer_identity(
    connection: &Connection,
) -> Result<Option<PeerIdentity>, crate::identity::IdentityError> {
    let Some(presented) = connection.peer_identity() else {
        return Ok(None);
    };
    let Ok(chain) = presented.downcast::<Vec<CertificateDer<'static>>>() else {
        return Ok(None);
    };
    match chain.first() {
        Some(certificate) => PeerIdentity::from_certificate(certificate).map(Some),
        None => Ok(None),
    }
}
