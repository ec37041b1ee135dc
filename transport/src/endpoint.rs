//! QUIC on one UDP socket: serves calls and makes them.
//!
//! How a lost peer is noticed: a restarted daemon answers packets of its former connections with a stateless reset,
//! whose key derives from the node's key, so calls fail at once and the next one dials anew. A host that is cut off
//! says nothing: callers have deadlines ([`crate::call`]); after [`EndpointOptions::silence_max`] without a packet
//! (a living peer answers keep-alives more often than that) the next call dials a new connection, which fails after
//! [`EndpointOptions::dial_timeout`]; and streams that wait for the peer end after [`EndpointOptions::idle_timeout`].

use crate::identity::{Identity, IdentityHandle};
use crate::pool::{Link, Pool};
use crate::rpc::{Connector, Expect, RpcHandler, TransportError};
use crate::server::{
    ANONYMOUS_STREAMS_MAX, ANONYMOUS_WINDOW_BYTES, GREETING, PeerLimits, Server, peer_identity,
};
use crate::stream::RpcStream;
use crate::tls;
use async_trait::async_trait;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{
    ClientConfig, ConnectionError, ConnectionId, ConnectionIdGenerator, EndpointConfig,
    IdleTimeout, ReadExactError, ServerConfig, TokioRuntime, TransportConfig, VarInt,
};
use ring::hmac;
use ring::rand::{SecureRandom, SystemRandom};
use shoal_model::NodeRole;
use shoal_model::rpc::{Access, Method};
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::error;

/// Round-trip time that is assumed before the first measurement; the first retransmission comes after three of them.
const INITIAL_RTT: Duration = Duration::from_millis(100);

/// Bytes sent before the first acknowledgement of a connection: a burst that default socket buffers hold.
const INITIAL_CONGESTION_WINDOW_BYTES: u64 = 64 << 10;

/// Largest packets that are tried, for networks with jumbo frames and for the loopback interface: 9000 bytes less the
/// heads of IPv6 and UDP.
const PACKET_BYTES_MAX: u16 = 8_952;

/// A peer acknowledges every so many packets at once, and fewer ones within [`ACK_DELAY_MAX`]. Answers carry
/// acknowledgements along, so that most packets that hold nothing else are saved.
const PACKETS_PER_ACK: u32 = 10;

/// Longest wait for an answer that carries an acknowledgement; what TCP does as well.
const ACK_DELAY_MAX: Duration = Duration::from_millis(20);

/// How long [`Endpoint::shutdown`] waits for peers to learn of it.
const SHUTDOWN_LIMIT: Duration = Duration::from_millis(500);

/// How an endpoint behaves. Start from [`Self::control`] or [`Self::bulk`].
#[derive(Debug, Clone)]
pub struct EndpointOptions {
    /// A connection on which nothing is heard for so long is closed.
    pub idle_timeout: Duration,
    /// A packet is sent at least so often.
    pub keep_alive: Duration,
    /// A connection on which nothing is heard for so long gets no further calls.
    pub silence_max: Duration,
    /// Longest time for a new connection.
    pub dial_timeout: Duration,
    /// Most calls at a time of one peer.
    pub streams_max: u32,
    /// Most bytes in flight on one stream.
    pub stream_window_bytes: u32,
    /// Most bytes in flight from one peer.
    pub window_bytes: u32,
    /// Makes stateless resets recognisable after a restart: [`crate::NodeKey::derive_secret`] with a label of this
    /// endpoint. Without it the secret derives from the identity at the start, else it is random.
    pub reset_secret: Option<[u8; 32]>,
}

impl EndpointOptions {
    /// For Raft, sessions and calls: small messages, quick to notice a dead peer.
    pub fn control() -> Self {
        Self {
            idle_timeout: Duration::from_secs(2),
            keep_alive: Duration::from_millis(400),
            silence_max: Duration::from_secs(1),
            dial_timeout: Duration::from_secs(1),
            streams_max: 4096,
            stream_window_bytes: 4 << 20,
            window_bytes: 64 << 20,
            reset_secret: None,
        }
    }

    /// For blobs, logs and volumes: few streams with much in flight.
    pub fn bulk() -> Self {
        Self {
            idle_timeout: Duration::from_secs(10),
            keep_alive: Duration::from_secs(2),
            silence_max: Duration::from_secs(5),
            dial_timeout: Duration::from_secs(3),
            streams_max: 256,
            stream_window_bytes: 8 << 20,
            window_bytes: 64 << 20,
            reset_secret: None,
        }
    }
}

/// Why an endpoint could not be made.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The address is taken, or not of this host.
    #[error("failed to bind UDP {addr}")]
    Bind {
        /// The address.
        addr: SocketAddr,
        /// The cause.
        #[source]
        err: io::Error,
    },
    /// An option is out of its range.
    #[error("endpoint option `{option}` is out of range")]
    Option {
        /// Its name.
        option: &'static str,
    },
    /// The operating system gives no random bytes.
    #[error("failed to draw random bytes")]
    Random,
    /// The identity can't be used for TLS.
    #[error("failed to set up TLS")]
    Tls(#[source] rustls::Error),
}

/// A UDP socket that serves calls of other nodes and makes calls to them. Cheap to clone.
#[derive(Clone)]
pub struct Endpoint(Arc<Inner>);

struct Inner {
    quic: quinn::Endpoint,
    local_addr: SocketAddr,
    identity: IdentityHandle,
    options: EndpointOptions,
    transport: Arc<TransportConfig>,
    /// Client settings for the identity beside it.
    client: Mutex<Option<(Identity, ClientConfig)>>,
    pool: Pool,
    tracker: TaskTracker,
    cancel: CancellationToken,
}

impl std::fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Endpoint")
            .field("local_addr", &self.0.local_addr)
            .finish_non_exhaustive()
    }
}

/// A call of an open method, and who answers it.
pub(crate) struct AnonymousCall {
    pub(crate) stream: RpcStream,
}

impl Endpoint {
    /// Binds `addr`. Must be called inside a tokio runtime, which then drives this endpoint. Without an identity
    /// every incoming packet is dropped until [`IdentityHandle::swap`] brings one.
    ///
    /// # Errors
    /// See [`BindError`].
    pub fn bind(
        addr: SocketAddr,
        identity: IdentityHandle,
        options: EndpointOptions,
    ) -> Result<Self, BindError> {
        let transport = Arc::new(transport_config(&options)?);
        let current = identity.current();
        let secret = match (options.reset_secret, &current) {
            (Some(secret), _) => secret,
            (None, Some(identity)) => identity
                .key()
                .derive_secret(&format!("stateless reset, port {}", addr.port())),
            (None, None) => random_secret()?,
        };
        let server = match &current {
            Some(identity) => Some(server_config(identity, &transport).map_err(BindError::Tls)?),
            None => None,
        };
        let bind = |err| BindError::Bind { addr, err };
        let socket = UdpSocket::bind(addr).map_err(bind)?;
        let quic = quinn::Endpoint::new(
            endpoint_config(&secret)?,
            server,
            socket,
            Arc::new(TokioRuntime),
        )
        .map_err(bind)?;
        let local_addr = quic.local_addr().map_err(bind)?;
        let endpoint = Self(Arc::new(Inner {
            quic,
            local_addr,
            identity,
            options,
            transport,
            client: Mutex::new(None),
            pool: Pool::default(),
            tracker: TaskTracker::new(),
            cancel: CancellationToken::new(),
        }));
        endpoint.follow_identity(current);
        Ok(endpoint)
    }

    /// Presents each new identity to the peers that connect from then on.
    fn follow_identity(&self, presented: Option<Identity>) {
        let mut changes = self.0.identity.subscribe();
        let quic = self.0.quic.clone();
        let transport = Arc::clone(&self.0.transport);
        let cancel = self.0.cancel.clone();
        let mut presented = presented;
        self.0
            .tracker
            .spawn(cancel.run_until_cancelled_owned(async move {
                loop {
                    let wanted = changes.borrow_and_update().clone();
                    let same = match (&wanted, &presented) {
                        (Some(wanted), Some(presented)) => wanted.is_same(presented),
                        (None, None) => true,
                        (Some(_), None) | (None, Some(_)) => false,
                    };
                    if !same {
                        match wanted
                            .as_ref()
                            .map(|new| server_config(new, &transport))
                            .transpose()
                        {
                            Ok(config) => quic.set_server_config(config),
                            Err(err) => error!(
                                err = &err as &dyn std::error::Error,
                                "failed to present the new certificate"
                            ),
                        }
                        presented = wanted;
                    }
                    if changes.changed().await.is_err() {
                        return;
                    }
                }
            }));
    }

    /// Serves calls with `handler` until [`Self::shutdown`].
    pub fn serve(&self, handler: Arc<dyn RpcHandler>) -> JoinHandle<()> {
        let limits = PeerLimits {
            streams_max: self.0.options.streams_max,
            window_bytes: self.0.options.window_bytes,
        };
        let server = Arc::new(Server::new(handler, limits, self.0.tracker.clone()));
        self.0.tracker.spawn(server.run(self.0.quic.clone()))
    }

    /// The bound address.
    pub fn local_addr(&self) -> SocketAddr {
        self.0.local_addr
    }

    /// The identity that this endpoint shows.
    pub fn identity(&self) -> &IdentityHandle {
        &self.0.identity
    }

    /// Closes every connection, tells the peers, and waits a moment until they know.
    pub async fn shutdown(&self) {
        self.0.cancel.cancel();
        self.0.quic.close(VarInt::from_u32(0), &[]);
        self.0.tracker.close();
        let gone = async {
            self.0.quic.wait_idle().await;
            self.0.tracker.wait().await;
        };
        if tokio::time::timeout(SHUTDOWN_LIMIT, gone).await.is_err() {
            tracing::debug!("calls or peers outlived the shutdown limit");
        }
    }

    /// Opens a stream for an open method without showing a certificate. The peer's root must have `root_digest`.
    pub(crate) async fn open_anonymous(
        &self,
        addr: SocketAddr,
        root_digest: [u8; 32],
        method: Method,
    ) -> Result<AnonymousCall, TransportError> {
        debug_assert_eq!(method.access(), Access::Open);
        let config = tls::anonymous_client(root_digest)
            .and_then(|config| self.client_config(config))
            .map_err(TransportError::Tls)?;
        let connection = self.connect(addr, config, false).await?;
        let peer = read_peer(&connection, addr)?;
        if peer.role != NodeRole::Manager {
            return Err(TransportError::WrongPeer {
                addr,
                expected: Expect::AnyManager,
                found: Box::new(peer),
            });
        }
        let (send, recv) = connection
            .open_bi()
            .await
            .map_err(|err| TransportError::Handshake { addr, err })?;
        Ok(AnonymousCall {
            stream: RpcStream::caller(Box::new(recv), Box::new(send), method),
        })
    }

    async fn dial(&self, addr: SocketAddr, identity: &Identity) -> Result<Link, TransportError> {
        let config = self
            .client_config_for(identity)
            .map_err(TransportError::Tls)?;
        let connection = self.connect(addr, config, true).await?;
        let peer = read_peer(&connection, addr)?;
        Ok(Link {
            connection,
            peer,
            shown: identity.clone(),
        })
    }

    async fn connect(
        &self,
        addr: SocketAddr,
        config: ClientConfig,
        greeted: bool,
    ) -> Result<quinn::Connection, TransportError> {
        let connecting = self
            .0
            .quic
            .connect_with(config, addr, tls::SERVER_NAME)
            .map_err(|err| TransportError::Connect { addr, err })?;
        let limit = self.0.options.dial_timeout;
        let established = async {
            let connection = connecting.await?;
            if greeted {
                await_greeting(&connection).await?;
            }
            Ok(connection)
        };
        tokio::time::timeout(limit, established)
            .await
            .map_err(|_| TransportError::TimedOut { addr, limit })?
            .map_err(|err| TransportError::Handshake { addr, err })
    }

    fn client_config_for(&self, identity: &Identity) -> Result<ClientConfig, rustls::Error> {
        let mut cached = self.0.client.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((shown, config)) = &*cached
            && shown.is_same(identity)
        {
            return Ok(config.clone());
        }
        let config = self.client_config(tls::client(identity)?)?;
        *cached = Some((identity.clone(), config.clone()));
        Ok(config)
    }

    fn client_config(&self, config: rustls::ClientConfig) -> Result<ClientConfig, rustls::Error> {
        let crypto = QuicClientConfig::try_from(config)
            .map_err(|err| rustls::Error::General(err.to_string()))?;
        let mut config = ClientConfig::new(Arc::new(crypto));
        config.transport_config(Arc::clone(&self.0.transport));
        Ok(config)
    }
}

#[async_trait]
impl Connector for Endpoint {
    async fn open(
        &self,
        addr: SocketAddr,
        expect: Expect,
        method: Method,
    ) -> Result<RpcStream, TransportError> {
        let mut last = None;
        // A connection may have died since its last use; that shows when a stream is opened, before anything is sent.
        for _attempt in 0..2 {
            let identity = self
                .0
                .identity
                .current()
                .ok_or(TransportError::NoIdentity)?;
            let silence_max = self.0.options.silence_max;
            let link = self
                .0
                .pool
                .link(addr, &identity, silence_max, || self.dial(addr, &identity))
                .await?;
            if !expect.admits(&link.peer) {
                return Err(TransportError::WrongPeer {
                    addr,
                    expected: expect,
                    found: Box::new(link.peer),
                });
            }
            match link.connection.open_bi().await {
                Ok((send, recv)) => {
                    return Ok(RpcStream::caller(Box::new(recv), Box::new(send), method));
                }
                Err(err) => {
                    self.0.pool.forget(addr, &link);
                    last = Some(TransportError::Handshake { addr, err });
                }
            }
        }
        Err(last.unwrap_or(TransportError::NoIdentity))
    }
}

async fn await_greeting(connection: &quinn::Connection) -> Result<(), ConnectionError> {
    let mut greeting = connection.accept_uni().await?;
    let mut bytes = [0; GREETING.len()];
    match greeting.read_exact(&mut bytes).await {
        Ok(()) => Ok(()),
        Err(ReadExactError::ReadError(quinn::ReadError::ConnectionLost(err))) => Err(err),
        Err(_) => Err(connection
            .close_reason()
            .unwrap_or(ConnectionError::LocallyClosed)),
    }
}

fn read_peer(
    connection: &quinn::Connection,
    addr: SocketAddr,
) -> Result<crate::PeerIdentity, TransportError> {
    peer_identity(connection)
        .ok()
        .flatten()
        .ok_or(TransportError::UnreadablePeer { addr })
}

fn random_secret() -> Result<[u8; 32], BindError> {
    let mut secret = [0; 32];
    SystemRandom::new()
        .fill(&mut secret)
        .map_err(|_| BindError::Random)?;
    Ok(secret)
}

/// Bytes of a connection id.
const CONNECTION_ID_BYTES: usize = 8;

/// Gives out random connection ids. quinn's own generator takes ids of a former process for foreign ones and stays
/// silent; a restarted daemon has to answer them with a stateless reset.
#[derive(Debug)]
struct RandomIds;

impl ConnectionIdGenerator for RandomIds {
    fn generate_cid(&mut self) -> ConnectionId {
        ConnectionId::new(&rand::random::<[u8; CONNECTION_ID_BYTES]>())
    }

    fn cid_len(&self) -> usize {
        CONNECTION_ID_BYTES
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

fn endpoint_config(secret: &[u8; 32]) -> Result<EndpointConfig, BindError> {
    let reset_key = hmac::Key::new(hmac::HMAC_SHA256, secret);
    let mut config = EndpointConfig::new(Arc::new(reset_key));
    config.cid_generator(|| Box::new(RandomIds));
    config
        .max_udp_payload_size(PACKET_BYTES_MAX)
        .map_err(|_| BindError::Option {
            option: "packet size",
        })?;
    Ok(config)
}

fn server_config(
    identity: &Identity,
    transport: &Arc<TransportConfig>,
) -> Result<ServerConfig, rustls::Error> {
    let crypto = QuicServerConfig::try_from(tls::server(identity)?)
        .map_err(|err| rustls::Error::General(err.to_string()))?;
    let mut config = ServerConfig::with_crypto(Arc::new(crypto));
    config.transport_config(Arc::clone(transport));
    Ok(config)
}

fn transport_config(options: &EndpointOptions) -> Result<TransportConfig, BindError> {
    let idle = IdleTimeout::try_from(options.idle_timeout).map_err(|_| BindError::Option {
        option: "idle_timeout",
    })?;
    let mut congestion = quinn::congestion::CubicConfig::default();
    congestion.initial_window(INITIAL_CONGESTION_WINDOW_BYTES);
    let mut discovery = quinn::MtuDiscoveryConfig::default();
    discovery.upper_bound(PACKET_BYTES_MAX);
    let mut acks = quinn::AckFrequencyConfig::default();
    acks.ack_eliciting_threshold(VarInt::from_u32(PACKETS_PER_ACK))
        .max_ack_delay(Some(ACK_DELAY_MAX));
    let mut config = TransportConfig::default();
    config
        .mtu_discovery_config(Some(discovery))
        .ack_frequency_config(Some(acks))
        .max_idle_timeout(Some(idle))
        .keep_alive_interval(Some(options.keep_alive))
        .initial_rtt(INITIAL_RTT)
        // Raised for peers with a certificate.
        .max_concurrent_bidi_streams(VarInt::from_u32(ANONYMOUS_STREAMS_MAX))
        .receive_window(VarInt::from_u32(ANONYMOUS_WINDOW_BYTES))
        // The greeting.
        .max_concurrent_uni_streams(VarInt::from_u32(1))
        .stream_receive_window(VarInt::from_u32(options.stream_window_bytes))
        .datagram_receive_buffer_size(None)
        .congestion_controller_factory(Arc::new(congestion));
    Ok(config)
}
