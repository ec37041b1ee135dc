//! What the daemon and `shoal netd` say to each other.
//!
//! A frame is a length of four bytes (little endian) and a value of the one codec. [`Hello`] and [`Welcome`] open a
//! connection and stay as they are for good, so that any two versions understand that they do not understand each
//! other.

use crate::dns::{DnsContainer, DnsCounters, DnsUpdate};
use ipnet::IpNet;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use shoal_model::cluster::Redacted;
use shoal_model::codec::{self, CodecError};
use shoal_model::{ContainerId, NodeId};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Version of everything after the opening. A netd that speaks another one is replaced.
pub const PROTOCOL_VERSION: u16 = 1;

/// Most bytes of one frame.
pub(super) const FRAME_BYTES_MAX: usize = 32 << 20;

/// The daemon's first frame.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Hello {
    /// [`PROTOCOL_VERSION`] of the daemon.
    pub protocol: u16,
    /// Version of its binary.
    pub version: String,
}

/// The answer to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Welcome {
    /// [`PROTOCOL_VERSION`] of netd.
    pub protocol: u16,
    /// Version of its binary.
    pub version: String,
    /// Its process.
    pub pid: u32,
}

/// One request or its answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Frame<T> {
    /// Which request; an answer carries the number of its request.
    pub number: u64,
    /// What is said.
    pub body: T,
}

/// What the daemon asks for. Requests that configure are idempotent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum NetdRequest {
    /// The WireGuard device must be there, with these settings. Its peers stay.
    Device(DeviceSpec),
    /// Its peers.
    Peers(PeerUpdate),
    /// How it is.
    DeviceStatus,
    /// It must not be there.
    RemoveDevice,
    /// Names that are answered.
    DnsTable(DnsUpdate),
    /// A container gets a resolver, or another one.
    DnsOpen(DnsContainer),
    /// A container needs none any more.
    DnsClose(ContainerId),
    /// Containers that have a resolver.
    DnsContainers,
    /// What the resolvers counted.
    DnsCounters,
    /// Other nodes' probes are answered at that address, or nowhere.
    Responder(Option<Ipv4Addr>),
    /// The process ends, and takes the device with it.
    Stop,
}

/// What netd answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum NetdReply {
    /// It is so.
    Done,
    /// The device is there.
    Device(DeviceInfo),
    /// To [`NetdRequest::DeviceStatus`].
    Status(DeviceStatus),
    /// To [`NetdRequest::DnsContainers`].
    DnsContainers(Vec<DnsContainer>),
    /// To [`NetdRequest::DnsCounters`].
    DnsCounters(DnsCounters),
    /// It can't be so.
    Refused(Refusal),
}

/// Why netd did not do what it was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{reason}")]
pub struct Refusal {
    /// The whole chain of causes.
    pub reason: String,
    /// The kernel's error number, if it was the kernel.
    pub errno: Option<i32>,
}

/// A WireGuard device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceSpec {
    /// Name of the link.
    pub name: String,
    /// The node's private key.
    pub private_key: Redacted<[u8; 32]>,
    /// UDP port; 0: any.
    pub port: u16,
    /// MTU in bytes.
    pub mtu: u32,
}

/// What a device got.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceInfo {
    /// The UDP port that it listens at.
    pub port: u16,
}

/// A change of a device's peers.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PeerUpdate {
    /// Peers that are not in `set` are removed, with their sessions.
    pub complete: bool,
    /// Peers that are added or changed.
    pub set: BTreeMap<NodeId, DevicePeer>,
    /// Peers that are removed, with their sessions.
    pub remove: BTreeSet<NodeId>,
}

impl PeerUpdate {
    /// It changes nothing.
    pub fn is_empty(&self) -> bool {
        !self.complete && self.set.is_empty() && self.remove.is_empty()
    }
}

/// A peer of a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DevicePeer {
    /// The key that packets are sent by, until the peer itself uses the next one.
    pub public_key: [u8; 32],
    /// Packets by this one are taken too.
    pub next_key: Option<[u8; 32]>,
    /// Where it is looked for; a device that heard of the peer since then knows better. `None`: wait for it.
    pub endpoint: Option<SocketAddr>,
    /// Addresses behind it.
    pub allowed: BTreeSet<IpNet>,
    /// Seconds between packets that keep a path through a NAT open.
    pub keepalive_s: Option<u16>,
}

/// How a device is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DeviceStatus {
    /// Its peers.
    pub peers: BTreeMap<NodeId, DevicePeerStatus>,
    /// Packets that were dropped, by reason.
    pub drops: BTreeMap<String, u64>,
}

/// How a peer is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DevicePeerStatus {
    /// The key of the youngest session.
    pub public_key: [u8; 32],
    /// Where its packets came from last, or where it is looked for.
    pub endpoint: Option<SocketAddr>,
    /// Milliseconds since the last handshake.
    pub handshake_age_ms: Option<u64>,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
}

/// Why a frame could not be sent or received.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The connection broke.
    #[error("the connection broke")]
    Io(#[source] io::Error),
    /// The value is no frame.
    #[error("a frame of {bytes} bytes is larger than {FRAME_BYTES_MAX}")]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// The value is not understood.
    #[error("a frame is not understood")]
    Codec(#[source] CodecError),
}

/// The bytes of a frame.
///
/// # Errors
/// When it is too large.
pub(super) fn to_bytes<T: Serialize>(value: &T) -> Result<Vec<u8>, FrameError> {
    let mut bytes = vec![0; 4];
    codec::encode_into(value, &mut bytes).map_err(FrameError::Codec)?;
    let length = bytes.len() - 4;
    if length > FRAME_BYTES_MAX {
        return Err(FrameError::TooLarge { bytes: length });
    }
    bytes[..4].copy_from_slice(&(length as u32).to_le_bytes());
    Ok(bytes)
}

/// Sends one value.
///
/// # Errors
/// When the connection breaks.
pub(super) async fn send<T: Serialize>(
    to: &mut (impl AsyncWrite + Unpin),
    value: &T,
) -> Result<(), FrameError> {
    let bytes = to_bytes(value)?;
    to.write_all(&bytes).await.map_err(FrameError::Io)
}

/// Receives one value; `None` at the end of the connection. Not to be cancelled halfway.
///
/// # Errors
/// When the connection breaks, or the other side says what is not understood.
pub(super) async fn receive<T: DeserializeOwned>(
    from: &mut (impl AsyncRead + Unpin),
) -> Result<Option<T>, FrameError> {
    let mut length = [0; 4];
    match from.read_exact(&mut length).await {
        Ok(_) => {}
        Err(err) if err.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(err) => return Err(FrameError::Io(err)),
    }
    let bytes = u32::from_le_bytes(length) as usize;
    if bytes > FRAME_BYTES_MAX {
        return Err(FrameError::TooLarge { bytes });
    }
    let mut body = vec![0; bytes];
    from.read_exact(&mut body).await.map_err(FrameError::Io)?;
    codec::decode(&body).map(Some).map_err(FrameError::Codec)
}
