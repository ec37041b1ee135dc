//! Tasks: one unit of a service, bound to one node.

use crate::network::Endpoint;
use crate::spec::{OnPartition, PortConfig, PublishMode};
use crate::{ContainerId, Meta, NodeId, ServiceId, TaskId, TaskSpec, Timestamp, VolumeId};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// States of a task in the order in which they are passed. The observed state never goes back.
///
/// Desired states are only `Ready`, `Running`, `Shutdown` and `Remove`.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
pub enum TaskState {
    /// Made by an orchestrator.
    #[default]
    New,
    /// Resources allocated; waits for a node.
    Pending,
    /// Bound to a node by the scheduler.
    Assigned,
    /// The agent has it.
    Accepted,
    /// Image and mounts are being made ready.
    Preparing,
    /// Could be started.
    Ready,
    /// The container is starting.
    Starting,
    /// The container runs.
    Running,
    /// Ended by itself with success.
    Complete,
    /// Ended because it was asked to.
    Shutdown,
    /// Ended by itself with an error.
    Failed,
    /// Never started: its node could not make it.
    Rejected,
    /// Desired only: stop, then delete the record.
    Remove,
    /// Its node has been unreachable for so long that its fate will not be known.
    Orphaned,
}

impl TaskState {
    /// All states in order.
    pub const ALL: [Self; 14] = [
        Self::New,
        Self::Pending,
        Self::Assigned,
        Self::Accepted,
        Self::Preparing,
        Self::Ready,
        Self::Starting,
        Self::Running,
        Self::Complete,
        Self::Shutdown,
        Self::Failed,
        Self::Rejected,
        Self::Remove,
        Self::Orphaned,
    ];

    /// The word in Docker's API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Pending => "pending",
            Self::Assigned => "assigned",
            Self::Accepted => "accepted",
            Self::Preparing => "preparing",
            Self::Ready => "ready",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Complete => "complete",
            Self::Shutdown => "shutdown",
            Self::Failed => "failed",
            Self::Rejected => "rejected",
            Self::Remove => "remove",
            Self::Orphaned => "orphaned",
        }
    }

    /// Nothing runs any more, for good.
    pub const fn is_terminal(self) -> bool {
        match self {
            Self::New
            | Self::Pending
            | Self::Assigned
            | Self::Accepted
            | Self::Preparing
            | Self::Ready
            | Self::Starting
            | Self::Running => false,
            Self::Complete
            | Self::Shutdown
            | Self::Failed
            | Self::Rejected
            | Self::Remove
            | Self::Orphaned => true,
        }
    }
}

impl std::fmt::Display for TaskState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

/// One end of a container of a task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitRecord {
    /// The container that ended.
    pub container_id: Option<ContainerId>,
    /// When.
    pub at: Timestamp,
    /// Exit code; 128 + n for signal n.
    pub exit_code: i32,
    /// Why, when more is known than the code: `out of memory`, `unhealthy`, a start error.
    pub reason: String,
}

/// The container of a task as its node reports it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerStatus {
    /// The container.
    pub container_id: ContainerId,
    /// Process id on the node; zero when it does not run.
    pub pid: u32,
    /// Exit code of the last run.
    pub exit_code: i32,
}

/// Why a node or a group of nodes can't take a task, in words that the user can act on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// The filter that refused: `ready`, `resources`, `constraint`…
    pub filter: String,
    /// What it says: `insufficient memory on 3 nodes`.
    pub reason: String,
    /// The change that would help: `free 200 MiB on node b, or lower --reserve-memory`.
    pub fix: String,
    /// How many nodes it refused.
    pub nodes: u32,
}

/// What is known of a task.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TaskStatus {
    /// Observed state.
    pub state: TaskState,
    /// When that state was reached, by the reporter's clock.
    pub at: Timestamp,
    /// What is being done: `started`, `pulling image`.
    pub message: String,
    /// What went wrong last; empty if nothing.
    pub err: String,
    /// In rotation: running and healthy.
    pub ready: bool,
    /// Local repairs so far.
    pub restarts: u32,
    /// The last ends, newest last, at most [`EXITS_KEPT_MAX`].
    pub exits: Vec<ExitRecord>,
    /// The container, once there is one.
    pub container: Option<ContainerStatus>,
    /// Host ports in use, with the numbers that were chosen.
    pub ports: Vec<PortConfig>,
    /// Why it has no node; empty once it has one.
    pub refusals: Vec<Refusal>,
}

/// Most exits that a status carries.
pub const EXITS_KEPT_MAX: usize = 5;

/// A volume that a task gets, with its home.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeAttachment {
    /// The object.
    pub volume_id: VolumeId,
    /// Its name on the node.
    pub name: String,
    /// It has existed before: if the node does not find it, the task is rejected.
    pub must_exist: bool,
}

/// A task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Task {
    /// Identity.
    pub id: TaskId,
    /// Version and times.
    pub meta: Meta,
    /// Its service.
    pub service_id: ServiceId,
    /// Name of the service when the task was made.
    pub service_name: String,
    /// Slot from 1; 0 for a global service.
    pub slot: u64,
    /// Its node: given by the scheduler, or by the orchestrator for a global service.
    pub node_id: Option<NodeId>,
    /// A copy of the service's task spec at creation; shared between the tasks of one version.
    pub spec: Arc<TaskSpec>,
    /// [`crate::Service::spec_version`] that it was made from.
    pub spec_version: u64,
    /// Ports that it publishes.
    pub ports: Vec<PortConfig>,
    /// What its node does without managers.
    pub on_partition: OnPartition,
    /// Where managers push it.
    pub desired: TaskState,
    /// What was observed.
    pub status: TaskStatus,
    /// Its named volumes, filled in with the node.
    pub volumes: Vec<VolumeAttachment>,
    /// Its addresses in networks across hosts, filled in with the node.
    pub endpoints: Vec<Endpoint>,
    /// No local repair before this time: the monitor window of an update is open.
    pub monitor_until: Option<Timestamp>,
    /// Not started before this time: the delay of the restart policy.
    pub not_before: Option<Timestamp>,
}

impl Task {
    /// The name of its container and in `service ps`: `web.3` or `web.<node id>`.
    pub fn name(&self) -> String {
        match (self.slot, self.node_id) {
            (0, Some(node_id)) => format!("{}.{node_id}", self.service_name),
            (slot, _) => format!("{}.{slot}", self.service_name),
        }
    }

    /// Needs an address in a network across hosts: it names some, or publishes a port on every node.
    pub fn needs_network(&self) -> bool {
        !self.spec.networks.is_empty()
            || self
                .ports
                .iter()
                .any(|port| port.mode == PublishMode::Ingress)
    }

    /// Occupies its node: assigned and not yet known to have ended.
    pub fn occupies_node(&self) -> bool {
        self.node_id.is_some() && !self.status.state.is_terminal()
    }
}
