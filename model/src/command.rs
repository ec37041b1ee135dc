//! Raft entries: facts, computed by the leader, with the time and the ids inside.

use crate::network::{AddressLease, Attachment, Endpoint, MeshAddress, Network};
use crate::node::{ManagerStatus, NodeDescription, NodeStatus};
use crate::volume::SlotKey;
use crate::{
    Cluster, ContainerId, NetworkId, Node, NodeId, NodeRole, Service, ServiceId, Task, TaskId,
    TaskState, TaskStatus, Timestamp, Version, Volume, VolumeId,
};
use serde::{Deserialize, Serialize};

/// Newest store feature level that this binary reads and may propose.
pub const FEATURE_LEVEL: u32 = 1;

/// Most actions in one entry; a loop with more proposes several entries.
pub const ACTIONS_PER_COMMAND_MAX: usize = 2_000;

/// One Raft entry: applied as a whole or not at all.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command {
    /// The leader's wall clock when it proposed.
    pub time: Timestamp,
    /// What changes, in order.
    pub actions: Vec<StoreAction>,
}

/// An object of any kind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Object {
    /// The cluster.
    Cluster(Box<Cluster>),
    /// A node.
    Node(Box<Node>),
    /// A service.
    Service(Box<Service>),
    /// A task.
    Task(Box<Task>),
    /// A volume.
    Volume(Box<Volume>),
    /// A network.
    Network(Box<Network>),
    /// The blocks of a node in a network.
    Lease(Box<AddressLease>),
    /// A container in attachable networks.
    Attachment(Box<Attachment>),
}

/// The key of an object of any kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ObjectKey {
    /// The cluster.
    Cluster,
    /// A node.
    Node(NodeId),
    /// A service.
    Service(ServiceId),
    /// A task.
    Task(TaskId),
    /// A volume.
    Volume(VolumeId),
    /// A network.
    Network(NetworkId),
    /// The blocks of a node in a network.
    Lease(NetworkId, NodeId),
    /// A container in attachable networks.
    Attachment(ContainerId),
}

impl Object {
    /// Its key.
    pub fn key(&self) -> ObjectKey {
        match self {
            Self::Cluster(_) => ObjectKey::Cluster,
            Self::Node(node) => ObjectKey::Node(node.id),
            Self::Service(service) => ObjectKey::Service(service.id),
            Self::Task(task) => ObjectKey::Task(task.id),
            Self::Volume(volume) => ObjectKey::Volume(volume.id),
            Self::Network(network) => ObjectKey::Network(network.id),
            Self::Lease(lease) => ObjectKey::Lease(lease.network_id, lease.node_id),
            Self::Attachment(attachment) => ObjectKey::Attachment(attachment.container_id),
        }
    }
}

/// A change of the store. New kinds are appended; their feature level is [`StoreAction::feature_level`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum StoreAction {
    /// Makes an object; refused if its key or name is taken.
    Create(Object),
    /// Replaces an object; `meta.version` inside is the version that it was computed from, and any other in the
    /// store refuses the entry as stale.
    Update(Object),
    /// Deletes an object; with a version, only that one.
    Remove {
        /// Which.
        key: ObjectKey,
        /// The version that the decision was made on.
        version: Option<Version>,
    },
    /// Binds a task to a node. Refused when the task has changed, or the node no longer takes tasks.
    Assign {
        /// The task, PENDING.
        task_id: TaskId,
        /// Version of the task that the plan was computed from.
        version: Version,
        /// The node.
        node_id: NodeId,
        /// Ids for volumes that do not exist yet on that node, by name.
        new_volumes: Vec<(VolumeId, String)>,
        /// Its addresses, each within a lease of the node. Refused when one is in use.
        endpoints: Vec<Endpoint>,
    },
    /// Moves the desired state of a task forward; a move back is ignored.
    SetDesired {
        /// The task.
        task_id: TaskId,
        /// The new desired state.
        desired: TaskState,
    },
    /// What an agent reported. An older state than the stored one, and an unknown task, are ignored.
    SetTaskStatus {
        /// The task.
        task_id: TaskId,
        /// The report.
        status: Box<TaskStatus>,
    },
    /// Liveness of a node; an unknown node is ignored.
    SetNodeStatus {
        /// The node.
        node_id: NodeId,
        /// What was observed.
        status: NodeStatus,
        /// What it said of itself, if it is new.
        description: Option<Box<NodeDescription>>,
    },
    /// A node's certificate was issued with this role, or it entered or left Raft.
    SetNodeRole {
        /// The node.
        node_id: NodeId,
        /// The role that it now has.
        role: NodeRole,
        /// Its membership in Raft.
        manager: Option<ManagerStatus>,
    },
    /// The node announced a restart.
    SetNodeHold {
        /// The node.
        node_id: NodeId,
        /// Until when it is not declared down; `None` ends the hold.
        until: Option<Timestamp>,
    },
    /// The node reports which volumes it has.
    SetVolumesMaterialized {
        /// The node.
        node_id: NodeId,
        /// Names.
        names: Vec<String>,
    },
    /// Frees slots from their volume (an explicit command of the user).
    UnbindVolume {
        /// The volume.
        volume_id: VolumeId,
        /// The slot.
        slot: SlotKey,
    },
    /// One use of a join token.
    UseJoinToken {
        /// Which of the two.
        role: NodeRole,
    },
    /// The node's addresses in the mesh; ignored when it has some, or is unknown.
    SetNodeMesh {
        /// The node.
        node_id: NodeId,
        /// The addresses. Refused when another node has one of them.
        mesh: MeshAddress,
    },
    /// Every manager reads this level: leaders may now propose it.
    RaiseFeatureLevel(u32),
}

impl StoreAction {
    /// The store feature level that a manager needs to apply it.
    pub const fn feature_level(&self) -> u32 {
        1
    }
}

/// What `apply` answers: the same on every manager.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// Every action took effect.
    Applied {
        /// The version that changed objects now have.
        version: Version,
    },
    /// Nothing took effect.
    Rejected(Rejection),
}

/// Why an entry had no effect.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Rejection {
    /// The object is newer than what the change was computed from.
    #[error("`{key:?}` has changed: its version is {found}, the update was made from {expected}")]
    Stale {
        /// The object.
        key: ObjectKey,
        /// What the change was computed from.
        expected: Version,
        /// What the store has.
        found: Version,
    },
    /// No such object.
    #[error("`{0:?}` does not exist")]
    NotFound(ObjectKey),
    /// The key is taken.
    #[error("`{0:?}` exists already")]
    Exists(ObjectKey),
    /// The name is taken.
    #[error("the name `{name}` is in use by {kind} `{holder}`")]
    NameTaken {
        /// `service`, `node`, `volume`.
        kind: String,
        /// The name.
        name: String,
        /// Id of the holder.
        holder: String,
    },
    /// The placement no longer fits.
    #[error("task `{task_id}` does not fit node `{node_id}` any more: {reason}")]
    DoesNotFit {
        /// The task.
        task_id: TaskId,
        /// The node.
        node_id: NodeId,
        /// What changed.
        reason: String,
    },
    /// The join token expired or was used up in the meantime.
    #[error("the join token is used up")]
    TokenUsedUp,
    /// The change contradicts a rule of the store: a state that goes back, an object that is in use, a value over its
    /// bound.
    #[error("`{key:?}` can't be changed like this: {reason}")]
    Invalid {
        /// The object.
        key: ObjectKey,
        /// The rule.
        reason: String,
    },
}
