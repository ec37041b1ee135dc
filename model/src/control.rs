//! The control API: what a manager answers to the Docker API of the nodes and to other managers.
//!
//! One stream per request: the client sends one [`ControlRequest`], the server answers with frames
//! `Result<ControlResponse, RpcError>`. Lists come as several `…s` frames, each with at most [`PAGE_ITEMS_MAX`]
//! items, closed by [`ControlResponse::End`]; every other answer is one frame. Reads are linearizable. A manager that
//! does not lead passes the request on to the leader with the caller's identity.

use crate::netstate::NetEndpoint;
use crate::network::{
    AddressLease, Attachment, AttachmentWish, MeshAddress, Network, NetworkSpec, ServiceVip,
    WireGuardDescription,
};
use crate::node::NodeSpec;
use crate::task::Refusal;
use crate::volume::SlotKey;
use crate::{
    Cluster, ClusterSpec, ContainerId, Labels, NetworkId, Node, NodeId, NodeRole, Service,
    ServiceId, ServiceSpec, Task, TaskId, Timestamp, Version, Volume, VolumeId,
};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;

/// Most items in one frame of a list.
pub const PAGE_ITEMS_MAX: usize = 500;

/// A request to the managers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ControlRequest {
    /// The cluster object; keys and secrets are in it, so only managers may ask.
    GetCluster,
    /// Change settings, rotate tokens.
    UpdateCluster {
        /// Version that the change was made from.
        version: Version,
        /// New settings.
        spec: Box<ClusterSpec>,
        /// Make a new worker token.
        rotate_worker_token: bool,
        /// Make a new manager token.
        rotate_manager_token: bool,
        /// Expiry of tokens that are rotated.
        token_expires_at: Option<Timestamp>,
        /// Uses of tokens that are rotated.
        token_uses: Option<u64>,
    },
    /// All nodes, with the leader named.
    ListNodes,
    /// One node.
    GetNode(NodeId),
    /// Labels, availability, role.
    UpdateNode {
        /// The node.
        id: NodeId,
        /// Version that the change was made from.
        version: Version,
        /// New spec.
        spec: Box<NodeSpec>,
    },
    /// Forget a node that is down (`force`: that is not).
    RemoveNode {
        /// The node.
        id: NodeId,
        /// Also when it is up.
        force: bool,
    },
    /// All services.
    ListServices,
    /// One service.
    GetService(ServiceId),
    /// Make a service.
    CreateService {
        /// Its id, made by the caller so that a repeated request makes one service.
        id: ServiceId,
        /// The spec.
        spec: Box<ServiceSpec>,
    },
    /// Change a service.
    UpdateService {
        /// The service.
        id: ServiceId,
        /// Version that the change was made from.
        version: Version,
        /// The new spec; ignored for a rollback.
        spec: Box<ServiceSpec>,
        /// Return to the previous spec instead.
        rollback: bool,
    },
    /// Remove a service and its tasks.
    RemoveService(ServiceId),
    /// Tasks, of one service or of one node or all.
    ListTasks {
        /// Only of this service.
        service_id: Option<ServiceId>,
        /// Only on this node.
        node_id: Option<NodeId>,
    },
    /// One task.
    GetTask(TaskId),
    /// Why tasks of a service are not where the user wants them.
    ExplainService(ServiceId),
    /// All volumes of the cluster.
    ListVolumes,
    /// Forget a volume that no task uses.
    RemoveVolume {
        /// The volume.
        id: VolumeId,
    },
    /// Give a slot a fresh volume instead of the bound one, whose data stays where it is.
    RebindVolume {
        /// The slot.
        slot: SlotKey,
        /// Name of the volume.
        name: String,
    },
    /// All networks across hosts.
    ListNetworks,
    /// One network.
    GetNetwork(NetworkId),
    /// Make a network.
    CreateNetwork {
        /// Its id, made by the caller so that a repeated request makes one network.
        id: NetworkId,
        /// The spec.
        spec: Box<NetworkSpec>,
    },
    /// Remove a network that nothing uses.
    RemoveNetwork(NetworkId),
    /// Give a container of the calling node addresses in attachable networks. Asked again, it gets the same ones.
    AttachContainer {
        /// The container.
        container_id: ContainerId,
        /// Its name.
        name: String,
        /// The networks.
        wishes: Vec<AttachmentWish>,
    },
    /// The container of the calling node has left all of its networks: its interfaces are gone.
    DetachContainer(ContainerId),
    /// What every node says of the mesh: answered from the leader's memory.
    NetworkCheck,
    /// Every node makes a new WireGuard key now, or one node does.
    RotateNetworkKeys {
        /// Only this one.
        node_id: Option<NodeId>,
    },
    /// Passed on to the leader by another manager. Whoever gets it and does not lead answers
    /// [`crate::rpc::ErrorCode::NotLeader`]: a request makes one hop.
    Forwarded {
        /// The node that asked.
        caller: NodeId,
        /// An earlier attempt may have taken effect already.
        repeated: bool,
        /// What it asked for.
        request: Box<ControlRequest>,
    },
}

/// An answer of the managers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ControlResponse {
    /// Done.
    Done,
    /// End of a list.
    End,
    /// The cluster.
    Cluster(Box<Cluster>),
    /// One node.
    Node(Box<NodeView>),
    /// Part of a list of nodes.
    Nodes(Vec<NodeView>),
    /// One service.
    Service(Box<ServiceView>),
    /// Part of a list of services.
    Services(Vec<ServiceView>),
    /// The service was made.
    ServiceCreated(ServiceId),
    /// One task.
    Task(Box<Task>),
    /// Part of a list of tasks.
    Tasks(Vec<Task>),
    /// Why.
    Explanation(Box<Explanation>),
    /// Part of a list of volumes.
    Volumes(Vec<Volume>),
    /// One network.
    Network(Box<NetworkView>),
    /// Part of a list of networks.
    Networks(Vec<NetworkView>),
    /// The network was made.
    NetworkCreated(NetworkId),
    /// The container's addresses.
    Attached(Box<Attachment>),
    /// What the leader knows of each node's networks.
    NetworkCheck(Vec<NodeNetworkView>),
}

/// A network with who is in it. In lists only the object is filled in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkView {
    /// The object.
    pub network: Network,
    /// Blocks by node.
    pub leases: Vec<AddressLease>,
    /// Services with their virtual addresses in it.
    pub services: Vec<(ServiceId, String, Option<ServiceVip>)>,
    /// Tasks and containers in it.
    pub endpoints: Vec<NetEndpoint>,
}

/// What the leader knows of one node's networks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeNetworkView {
    /// The node.
    pub node_id: NodeId,
    /// Its name.
    pub name: String,
    /// Its addresses in the mesh.
    pub mesh: Option<MeshAddress>,
    /// What it says of its WireGuard.
    pub wireguard: Option<WireGuardDescription>,
    /// The version that it has applied last; `None`: it has no feed.
    pub applied: Option<Version>,
    /// The version that it should have applied.
    pub wanted: Version,
}

/// A node with what only the leader knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeView {
    /// The object.
    pub node: Node,
    /// It leads.
    pub leader: bool,
    /// The leader hears from it in Raft.
    pub reachable: bool,
}

/// A service with the numbers that `service ls` shows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceView {
    /// The object.
    pub service: Service,
    /// Tasks that run.
    pub running_tasks: u64,
    /// Tasks that should.
    pub desired_tasks: u64,
}

/// Why a service is as it is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Explanation {
    /// In one line.
    pub summary: String,
    /// Task by task; only those that are not where they should be.
    pub tasks: Vec<TaskExplanation>,
}

/// Why a task is as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskExplanation {
    /// The task.
    pub task_id: TaskId,
    /// `web.3`.
    pub name: String,
    /// State and desired state in words.
    pub state: String,
    /// What it waits for or what failed.
    pub reason: String,
    /// What the user can do.
    pub fix: String,
    /// Node by node, for a task without a node.
    pub nodes: Vec<NodeRefusal>,
}

/// Why one node can't take a task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRefusal {
    /// The node.
    pub node_id: NodeId,
    /// Its name.
    pub node_name: String,
    /// What refused it.
    pub refusals: Vec<Refusal>,
}

/// Asks a manager to watch: frames of `Result<WatchEvent, RpcError>` follow until either side ends the stream.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct WatchRequest {
    /// Only this service and its tasks.
    pub service_id: Option<ServiceId>,
}

/// A change of the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum WatchEvent {
    /// Something that the request asked for has changed: read again. Several changes may be one event.
    Changed {
        /// The store's version.
        version: Version,
    },
}

/// Asks to join the cluster: the caller has no certificate yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinRequest {
    /// Secret half of the token.
    pub secret: crate::cluster::Redacted<String>,
    /// PKCS#10 DER, signed with the node's key.
    pub signing_request_der: Vec<u8>,
    /// What the node wants to be at first (`--availability`).
    pub availability: crate::node::Availability,
}

/// A certificate for the caller.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateResponse {
    /// The node's id.
    pub node_id: NodeId,
    /// The role in the certificate.
    pub role: NodeRole,
    /// DER of the certificate.
    pub certificate_der: Vec<u8>,
    /// DER of the root.
    pub root_der: Vec<u8>,
    /// Managers to talk to.
    pub managers: Vec<crate::session::ManagerPeer>,
}

/// Asks for a new certificate with the key of the old one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RenewRequest {
    /// PKCS#10 DER, signed with the node's key.
    pub signing_request_der: Vec<u8>,
}

/// Asks to become a member of Raft.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RaftJoinRequest {
    /// Where peers reach the new manager's control port.
    pub addr: SocketAddr,
}

/// The new member's place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RaftJoinResponse {
    /// Raft's id for it.
    pub raft_id: crate::RaftNodeId,
    /// The members.
    pub members: Vec<(crate::RaftNodeId, NodeId, SocketAddr)>,
}

/// Asks a node for the log of a task's container.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LogsRequest {
    /// The tasks; empty: none.
    pub task_ids: Vec<TaskId>,
    /// Go on as lines arrive.
    pub follow: bool,
    /// Lines of standard output.
    pub stdout: bool,
    /// Lines of standard error.
    pub stderr: bool,
    /// Not before this time.
    pub since: Option<Timestamp>,
    /// Not after this time.
    pub until: Option<Timestamp>,
    /// Only the last so many lines of each task.
    pub tail: Option<u64>,
}

/// A line of a log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLine {
    /// Its task.
    pub task_id: TaskId,
    /// When it was written.
    pub at: Timestamp,
    /// From standard error.
    pub stderr: bool,
    /// The line with its line feed.
    pub data: Vec<u8>,
    /// Attributes, for `--details`.
    pub attributes: Labels,
}
