//! What one node must know of the networks: the stream of the leader's network state.
//!
//! The node opens a stream with [`NetFeedRequest::Hello`]. The leader answers with a complete [`NetUpdate`] of what
//! concerns the node, then with changes; the node says which version it has applied. From these answers the leader
//! knows when a change is in force everywhere.

use crate::network::{Endpoint, NetworkAttachment, ServiceVip, Subnets};
use crate::spec::{EndpointMode, OnPartition, PortConfig};
use crate::{ContainerId, NetworkId, NodeId, ServiceId, TaskId, Version};
use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

/// Most changes in one message; a larger update comes in several.
pub const NET_CHANGES_PER_MESSAGE_MAX: usize = 2_000;

/// From the node to the leader.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum NetFeedRequest {
    /// Opens the stream.
    Hello,
    /// The node's kernel and its names are as that version says.
    Applied {
        /// [`NetUpdate::version`].
        version: Version,
    },
}

/// From the leader to the node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum NetFeedMessage {
    /// A new state.
    Update(NetUpdate),
    /// Every node with a live lease has applied that version.
    Confirmed {
        /// The version.
        version: Version,
    },
    /// Make a new WireGuard key.
    RotateKey,
}

/// A change of a node's network state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetUpdate {
    /// It replaces everything known before.
    pub complete: bool,
    /// The store's version that the state has after the last message of the update.
    pub version: Version,
    /// What changes, at most [`NET_CHANGES_PER_MESSAGE_MAX`].
    pub changes: Vec<NetChange>,
    /// Further messages of the same update follow; nothing is applied before the last.
    pub more: bool,
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum NetChange {
    /// Adds or replaces.
    Put(NetRecord),
    /// Removes; an unknown key is ignored.
    Remove(NetKey),
}

/// What a container end belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum EndpointId {
    /// A task of a service.
    Task(TaskId),
    /// A container in an attachable network.
    Container(ContainerId),
}

/// The key of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum NetKey {
    /// A node.
    Node(NodeId),
    /// A network.
    Network(NetworkId),
    /// The blocks of a node in a network.
    Lease(NetworkId, NodeId),
    /// A service.
    Service(ServiceId),
    /// A task or a container.
    Endpoint(EndpointId),
}

/// A record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum NetRecord {
    /// A node.
    Node(NetNode),
    /// A network.
    Network(NetNetwork),
    /// The blocks of a node in a network.
    Lease(NetLease),
    /// A service.
    Service(NetService),
    /// A task or a container.
    Endpoint(NetEndpoint),
}

impl NetRecord {
    /// Its key.
    pub const fn key(&self) -> NetKey {
        match self {
            Self::Node(node) => NetKey::Node(node.id),
            Self::Network(network) => NetKey::Network(network.id),
            Self::Lease(lease) => NetKey::Lease(lease.network_id, lease.node_id),
            Self::Service(service) => NetKey::Service(service.id),
            Self::Endpoint(endpoint) => NetKey::Endpoint(endpoint.id),
        }
    }
}

/// A node of the mesh, the receiving node among them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetNode {
    /// The node.
    pub id: NodeId,
    /// For people.
    pub name: String,
    /// WireGuard key in use.
    pub public_key: [u8; 32],
    /// WireGuard key that will be in use next.
    pub next_key: Option<[u8; 32]>,
    /// Where its WireGuard listens, the likeliest first.
    pub addrs: Vec<SocketAddr>,
    /// Its addresses in the mesh.
    pub mesh: crate::network::MeshAddress,
    /// Passes packets on between nodes that can't reach each other: it is a manager.
    pub relay: bool,
}

/// A network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetNetwork {
    /// The network.
    pub id: NetworkId,
    /// Its name.
    pub name: String,
    /// Its addresses.
    pub subnets: Subnets,
    /// No way out.
    pub internal: bool,
    /// The network of published ports.
    pub ingress: bool,
    /// MTU in bytes, if the user has set one.
    pub mtu: Option<u32>,
}

/// The blocks of a node in a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetLease {
    /// The network.
    pub network_id: NetworkId,
    /// The node.
    pub node_id: NodeId,
    /// Disjoint blocks.
    pub blocks: BTreeSet<Ipv4Net>,
}

/// A service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetService {
    /// The service.
    pub id: ServiceId,
    /// Its name.
    pub name: String,
    /// What its name resolves to.
    pub mode: EndpointMode,
    /// Connections of one client go to one task for so long, in seconds; `None`: each on its own.
    pub sticky_s: Option<u32>,
    /// Its networks, with its further names there.
    pub networks: Vec<NetworkAttachment>,
    /// Its virtual addresses.
    pub vips: Vec<ServiceVip>,
    /// Ports published on every node, with their numbers.
    pub ports: Vec<PortConfig>,
    /// What a node does without managers.
    pub on_partition: OnPartition,
}

/// A task or a container in networks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetEndpoint {
    /// What it is.
    pub id: EndpointId,
    /// Where it runs.
    pub node_id: NodeId,
    /// Its service and its slot (0 for a global service); `None` for a container of its own.
    pub service: Option<(ServiceId, u64)>,
    /// `web.3`, or the container's name.
    pub name: String,
    /// Its addresses.
    pub endpoints: Vec<Endpoint>,
    /// It takes new connections: it runs, is healthy, and is to stay.
    pub in_rotation: bool,
}

/// All that a node knows of the networks.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct NetState {
    /// The store's version that it shows.
    pub version: Version,
    /// Nodes.
    pub nodes: BTreeMap<NodeId, NetNode>,
    /// Networks.
    pub networks: BTreeMap<NetworkId, NetNetwork>,
    /// Leases.
    pub leases: BTreeMap<(NetworkId, NodeId), NetLease>,
    /// Services.
    pub services: BTreeMap<ServiceId, NetService>,
    /// Endpoints.
    pub endpoints: BTreeMap<EndpointId, NetEndpoint>,
}

impl NetState {
    /// Adds or replaces a record.
    pub fn put(&mut self, record: NetRecord) {
        match record {
            NetRecord::Node(node) => {
                self.nodes.insert(node.id, node);
            }
            NetRecord::Network(network) => {
                self.networks.insert(network.id, network);
            }
            NetRecord::Lease(lease) => {
                self.leases.insert((lease.network_id, lease.node_id), lease);
            }
            NetRecord::Service(service) => {
                self.services.insert(service.id, service);
            }
            NetRecord::Endpoint(endpoint) => {
                self.endpoints.insert(endpoint.id, endpoint);
            }
        }
    }

    /// Removes a record; an unknown key is ignored.
    pub fn remove(&mut self, key: NetKey) {
        match key {
            NetKey::Node(id) => {
                self.nodes.remove(&id);
            }
            NetKey::Network(id) => {
                self.networks.remove(&id);
            }
            NetKey::Lease(network, node) => {
                self.leases.remove(&(network, node));
            }
            NetKey::Service(id) => {
                self.services.remove(&id);
            }
            NetKey::Endpoint(id) => {
                self.endpoints.remove(&id);
            }
        }
    }

    /// Takes one message of an update. The state is whole again once a message without `more` was taken.
    pub fn take(&mut self, update: NetUpdate, first_of_update: bool) {
        if update.complete && first_of_update {
            *self = Self::default();
        }
        for change in update.changes {
            match change {
                NetChange::Put(record) => self.put(record),
                NetChange::Remove(key) => self.remove(key),
            }
        }
        self.version = update.version;
    }

    /// All records, in the order of their keys.
    pub fn records(&self) -> impl Iterator<Item = NetRecord> + '_ {
        let nodes = self.nodes.values().cloned().map(NetRecord::Node);
        let networks = self.networks.values().cloned().map(NetRecord::Network);
        let leases = self.leases.values().cloned().map(NetRecord::Lease);
        let services = self.services.values().cloned().map(NetRecord::Service);
        let endpoints = self.endpoints.values().cloned().map(NetRecord::Endpoint);
        nodes
            .chain(networks)
            .chain(leases)
            .chain(services)
            .chain(endpoints)
    }
}
