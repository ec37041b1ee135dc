//! The overlay network of one node: the handle that the daemon holds.

mod worker;

use crate::apply::ApplyError;
use crate::check::PeerCheck;
use crate::dns::DnsOptions;
use crate::local::InstanceTag;
use crate::mesh::MeshError;
use crate::metrics::OverlayMetrics;
use crate::netd::NetdError;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use shoal_model::netstate::NetState;
use shoal_model::network::{Endpoint, WireGuardDescription};
use shoal_model::{ContainerId, NetworkId, NodeId, Version};
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use worker::Worker;

/// How long [`OverlayHandle::attach`] waits for a state that has the container's networks and addresses.
pub const ATTACH_WAIT: Duration = Duration::from_secs(5);

/// Which WireGuard a node uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum WireGuardChoice {
    /// The kernel's where it has one, else the userspace device.
    #[default]
    Auto,
    /// The kernel's, or none.
    Kernel,
    /// The userspace device.
    Userspace,
}

/// What the overlay of a node is started with.
#[derive(Debug, Clone)]
pub struct OverlayOptions {
    /// Marks its kernel objects.
    pub instance: InstanceTag,
    /// The node.
    pub node_id: NodeId,
    /// Where keys are kept.
    pub data_root: PathBuf,
    /// Where sockets are.
    pub run_root: PathBuf,
    /// The `shoal` binary, which is `shoal netd` too.
    pub exe: PathBuf,
    /// Which WireGuard.
    pub wireguard: WireGuardChoice,
    /// UDP port of WireGuard; 0: any.
    pub wireguard_port: u16,
    /// The address that other nodes reach this one at.
    pub advertise: IpAddr,
    /// UDP ports of the daemons of the cluster, which no container may reach at any node's address.
    pub daemon_ports: BTreeSet<u16>,
}

/// A container that is to be in overlay networks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OverlayAttach {
    /// The container.
    pub container: ContainerId,
    /// Its name.
    pub name: String,
    /// Its network namespace.
    pub netns: PathBuf,
    /// Its addresses, one per network; the first network without `internal` is its way out.
    pub endpoints: Vec<Endpoint>,
    /// Number of its first interface: `eth0`, unless interfaces of other networks come before.
    pub first_interface: u16,
    /// Resolver settings.
    pub dns: DnsOptions,
    /// MTU of its interfaces in bytes; `None`: the network's, or what the path allows.
    pub mtu: Option<u32>,
}

/// What [`OverlayHandle::attach`] made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OverlayAttached {
    /// Its interfaces, in the order of its endpoints.
    pub interfaces: Vec<OverlayInterface>,
    /// The content for its `/etc/resolv.conf`.
    pub resolv_conf: String,
}

/// An interface of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OverlayInterface {
    /// Its network.
    pub network_id: NetworkId,
    /// Name of the network.
    pub network: String,
    /// Its name inside, `eth0`.
    pub name: String,
    /// Name of the host's end.
    pub host_link: String,
    /// Hardware address inside.
    pub mac: [u8; 6],
    /// IPv4 address.
    pub ipv4: Ipv4Addr,
    /// IPv6 address.
    pub ipv6: Option<Ipv6Addr>,
    /// Bits of the prefix of the network's IPv4 subnet.
    pub prefix_len: u8,
    /// Bits of the prefix of the network's IPv6 subnet; 0 without one.
    pub ipv6_prefix_len: u8,
    /// Router.
    pub gateway: Ipv4Addr,
    /// IPv6 router.
    pub gateway_ipv6: Option<Ipv6Addr>,
    /// MTU in bytes.
    pub mtu: u32,
}

/// Why an operation of the overlay failed.
#[derive(Debug, thiserror::Error)]
pub enum OverlayError {
    /// Not to be had.
    #[error("the overlay network is not available: {reason}")]
    Unavailable {
        /// Why.
        reason: String,
    },
    /// No state with that network has arrived.
    #[error("network `{network_id}` is not known on this node after {} s", waited.as_secs())]
    NoNetwork {
        /// The network.
        network_id: NetworkId,
        /// How long was waited.
        waited: Duration,
    },
    /// No state has arrived in which this node may use the address.
    #[error("address {address} of network `{network_id}` is not leased to this node after {} s", waited.as_secs())]
    NoLease {
        /// The network.
        network_id: NetworkId,
        /// The address.
        address: IpNet,
        /// How long was waited.
        waited: Duration,
    },
    /// The kernel does not do as planned.
    #[error("failed to apply the overlay to the kernel")]
    Kernel(#[source] ApplyError),
    /// WireGuard.
    #[error("failed to make the mesh")]
    Mesh(#[source] MeshError),
    /// The process that holds resolvers and the userspace device.
    #[error("failed to set up names and the mesh's process")]
    Netd(#[source] NetdError),
    /// A state is not in force; it is tried again.
    #[error("version {version} of the networks is not in force: {reason}")]
    NotApplied {
        /// The version.
        version: Version,
        /// What failed, with its causes.
        reason: String,
    },
    /// The worker is gone: the daemon ends.
    #[error("the overlay's worker was stopped")]
    Stopped,
}

/// The overlay network of one node. Cheap to clone.
#[derive(Debug, Clone)]
pub struct OverlayHandle(Arc<Worker>);

impl OverlayHandle {
    /// Starts the overlay: its key and its `shoal netd` are there afterwards. Nothing else changes before the first
    /// state.
    ///
    /// # Errors
    /// When there is no WireGuard of the kind that is asked for, or netd does not start.
    pub async fn start(options: OverlayOptions) -> Result<Self, OverlayError> {
        Ok(Self(Worker::start(options).await?))
    }

    /// The node's WireGuard as its peers must know it.
    pub fn wireguard(&self) -> WireGuardDescription {
        self.0.mesh.description().borrow().clone()
    }

    /// The same, and every change of it.
    pub fn descriptions(&self) -> watch::Receiver<WireGuardDescription> {
        self.0.mesh.description()
    }

    /// Makes the kernel and the names be as `state` says; answers the version in force. When several states wait, only
    /// the newest is applied, and every caller gets its version.
    ///
    /// # Errors
    /// When a part could not be applied; it is tried again with the next state and after a while.
    pub async fn apply(&self, state: Arc<NetState>) -> Result<Version, OverlayError> {
        self.0.apply(state).await
    }

    /// Every node with a live lease has applied `version`.
    pub async fn confirmed(&self, version: Version) {
        self.0.mesh.confirmed(version).await;
    }

    /// The node has a lease with the managers, or lost it: then services that are to stop on a partition get no new
    /// connections to tasks of other nodes. A node counts as leased until it is told otherwise.
    pub async fn lease(&self, live: bool) {
        self.0.lease(live);
    }

    /// Puts a container into its networks; waits up to [`ATTACH_WAIT`] until the state knows them.
    ///
    /// # Errors
    /// When the networks or the leases are not known in time, or the kernel refuses; nothing is left then.
    pub async fn attach(&self, spec: &OverlayAttach) -> Result<OverlayAttached, OverlayError> {
        self.0.attach(spec).await
    }

    /// Takes a container out of all its networks; harmless if it is in none.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn detach(&self, container: ContainerId) -> Result<(), OverlayError> {
        self.0.detach(container).await
    }

    /// What runs, once after a start of the daemon: attachments of other containers are removed.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn reconcile(&self, running: &[OverlayAttach]) -> Result<(), OverlayError> {
        self.0.reconcile(running).await
    }

    /// Makes a new key: peers learn it first, and it is used once [`Self::confirmed`] says that all have.
    ///
    /// # Errors
    /// When the key can't be kept.
    pub async fn rotate_key(&self) -> Result<(), OverlayError> {
        self.0.mesh.rotate().await.map_err(OverlayError::Mesh)
    }

    /// The paths to the peers.
    pub async fn check(&self) -> Vec<PeerCheck> {
        self.0.check().await
    }

    /// Counters.
    pub async fn metrics(&self) -> OverlayMetrics {
        self.0.metrics().await
    }

    /// Removes everything from the kernel, and ends `shoal netd`: the node leaves its cluster.
    ///
    /// # Errors
    /// The first failure; the rest is removed all the same.
    pub async fn leave(&self) -> Result<(), OverlayError> {
        self.0.leave().await
    }
}
