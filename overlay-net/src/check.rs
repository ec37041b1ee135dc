//! What one node can say of its way to another: the rows of `shoal net check`.

use serde::{Deserialize, Serialize};
use shoal_model::NodeId;
use std::fmt;
use std::net::SocketAddr;

/// How packets reach a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum PeerPath {
    /// From node to node.
    Direct,
    /// Passed on by another node.
    Relay(NodeId),
    /// Not at all: there was no handshake yet.
    None,
}

impl fmt::Display for PeerPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Direct => f.pad("direct"),
            Self::Relay(node) => f.pad(&format!("relay {node}")),
            Self::None => f.pad("none"),
        }
    }
}

/// One node's way to one peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerCheck {
    /// The peer.
    pub node_id: NodeId,
    /// Its name.
    pub name: String,
    /// How packets get there.
    pub path: PeerPath,
    /// Where WireGuard sends to.
    pub endpoint: Option<SocketAddr>,
    /// Time since the last handshake, in milliseconds; `None`: never.
    pub handshake_age_ms: Option<u64>,
    /// Round trip of the last probe that was answered, in microseconds.
    pub rtt_last_us: Option<u64>,
    /// Median round trip of the latest probes, in microseconds.
    pub rtt_p50_us: Option<u64>,
    /// MTU towards the peer, in bytes.
    pub mtu: u32,
    /// Bytes received from it, decrypted.
    pub rx_bytes: u64,
    /// Bytes sent to it.
    pub tx_bytes: u64,
    /// Probes sent to it since the daemon started.
    pub probes_sent: u64,
    /// Probes that it answered.
    pub probes_answered: u64,
    /// It does not answer: its tasks get no new connections from this node.
    pub suspect: bool,
}
