//! What is asked of the scheduler, and what it answers.

use shoal_model::spec::{Protocol, PublishMode};
use shoal_model::task::Refusal;
use shoal_model::volume::SlotKey;
use shoal_model::{NodeId, ServiceId, Task, TaskId, TaskSpec};
use std::cmp::Ordering;
use std::sync::Arc;

/// A task that waits for a node.
#[derive(Debug, Clone)]
pub struct TaskRequest {
    /// The task.
    pub task_id: TaskId,
    /// Its service.
    pub service_id: ServiceId,
    /// Name of the service, for the words of a refusal.
    pub service_name: String,
    /// Slot from 1; 0 for a task of a global service.
    pub slot: u64,
    /// Version of the service's task spec: tasks of one version are placed as one group.
    pub spec_version: u64,
    /// What it asks for.
    pub spec: Arc<TaskSpec>,
    /// Ports that it occupies on its node.
    pub host_ports: Vec<(Protocol, u16)>,
    /// It needs an address in a network across hosts.
    pub networked: bool,
    /// The node that an orchestrator has chosen already (global services).
    pub node_id: Option<NodeId>,
}

impl TaskRequest {
    /// Its slot, the key of volume bindings.
    pub fn slot_key(&self) -> SlotKey {
        SlotKey {
            service_id: self.service_id,
            slot: self.slot,
        }
    }

    /// The order in which requests are served: by service, version, slot, id. It makes the plan independent of the
    /// order of the input and puts the tasks of one group side by side.
    pub(crate) fn serving_order(&self, other: &Self) -> Ordering {
        let key = |r: &Self| (r.service_id, r.spec_version, r.slot, r.task_id);
        key(self).cmp(&key(other))
    }

    /// Any node that takes `self` takes `other` for the same reasons.
    pub(crate) fn same_group(&self, other: &Self) -> bool {
        self.service_id == other.service_id
            && self.spec_version == other.spec_version
            && self.node_id.is_none()
            && other.node_id.is_none()
            && self.networked == other.networked
            && self.host_ports == other.host_ports
            && (Arc::ptr_eq(&self.spec, &other.spec) || self.spec == other.spec)
    }
}

impl From<&Task> for TaskRequest {
    fn from(task: &Task) -> Self {
        Self {
            task_id: task.id,
            service_id: task.service_id,
            service_name: task.service_name.clone(),
            slot: task.slot,
            spec_version: task.spec_version,
            spec: Arc::clone(&task.spec),
            host_ports: host_ports(task).collect(),
            networked: task.needs_network(),
            node_id: task.node_id,
        }
    }
}

/// The host ports that a task occupies: the reported ones when its node has chosen numbers, else the declared ones.
pub(crate) fn host_ports(task: &Task) -> impl Iterator<Item = (Protocol, u16)> {
    let ports = if task.status.ports.is_empty() {
        &task.ports
    } else {
        &task.status.ports
    };
    ports
        .iter()
        .filter(|port| port.mode == PublishMode::Host && port.published != 0)
        .map(|port| (port.protocol, port.published))
}

/// What the scheduler decided.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Tasks that got a node.
    pub placements: Vec<(TaskId, NodeId)>,
    /// Tasks that no node takes, with the reasons, one per filter.
    pub unplaced: Vec<(TaskId, Vec<Refusal>)>,
}
