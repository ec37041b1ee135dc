//! What the mesh is told, and what it tells.

use crate::check::PeerPath;
use crate::local::InstanceTag;
use crate::netd::Netd;
use crate::overlay::WireGuardChoice;
use ipnet::IpNet;
use shoal_model::network::MeshAddress;
use shoal_model::{NodeId, Version};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// MTU inside the mesh over a path of 1,500 bytes: WireGuard over IPv6 takes 80 of them.
pub const MESH_MTU: u32 = 1_420;

/// What a mesh is started with.
#[derive(Debug, Clone)]
pub struct MeshOptions {
    /// Marks the device: see [`device_name`].
    pub instance: InstanceTag,
    /// Where certificates and keys are; the mesh keeps `wireguard.key` there.
    pub certs_dir: PathBuf,
    /// Which WireGuard.
    pub choice: WireGuardChoice,
    /// UDP port; 0: any, the same one after a restart if it is still free.
    pub port: u16,
    /// MTU of the device in bytes.
    pub mtu: u32,
    /// The process that holds the userspace device.
    pub netd: Netd,
}

/// Name of an instance's WireGuard device.
pub fn device_name(instance: &InstanceTag) -> String {
    format!("{}w", instance.link_prefix())
}

/// The whole mesh as one version of the network state says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MeshPlan {
    /// The version of the state that it was made of.
    pub version: Version,
    /// The node itself, as the managers tell it to its peers; `None`: they do not know it yet.
    pub own: Option<OwnKeys>,
    /// Its peers.
    pub peers: BTreeMap<NodeId, MeshPeer>,
}

/// A node's keys as its peers know them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OwnKeys {
    /// In use.
    pub public_key: [u8; 32],
    /// In use next.
    pub next_key: Option<[u8; 32]>,
}

/// A peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MeshPeer {
    /// Key in use.
    pub public_key: [u8; 32],
    /// Key that will be in use next; packets by it are taken too.
    pub next_key: Option<[u8; 32]>,
    /// Where it may be, the likeliest first.
    pub endpoints: Vec<SocketAddr>,
    /// Its own addresses in the mesh.
    pub mesh: MeshAddress,
    /// All addresses that are behind it: its own and those of its leases.
    pub allowed: BTreeSet<IpNet>,
    /// It passes packets on between nodes that can't reach each other.
    pub relay: bool,
}

/// What is known of a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MeshPeerStatus {
    /// The peer.
    pub node_id: NodeId,
    /// How packets travel.
    pub path: PeerPath,
    /// Where its packets came from last, or where it is looked for.
    pub endpoint: Option<SocketAddr>,
    /// Age of the last handshake.
    pub handshake_age: Option<Duration>,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
}
