//! The incremental view: what is known of nodes, tasks and volumes, indexed for placement.

use crate::eligibility::{EligibilityCache, NodeBits};
use crate::node::NodeEntry;
use crate::request::{TaskRequest, host_ports};
use shoal_model::spec::{Placement, Protocol};
use shoal_model::volume::SlotKey;
use shoal_model::{
    Node, NodeId, Resources, ServiceId, Task, TaskId, TaskState, Timestamp, Volume, VolumeId,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// Failures of a service on a node within [`FAILURE_WINDOW`] after which the node is tried last.
pub const FAILURES_MAX: usize = 5;

/// How long a failure counts.
pub const FAILURE_WINDOW: Duration = Duration::from_secs(300);

/// What a task takes from its node.
#[derive(Debug, Clone)]
struct TaskEntry {
    node: u32,
    service_id: ServiceId,
    reserved: Resources,
    ports: Box<[(Protocol, u16)]>,
    /// It shall run, and so counts for the spread and for the replica limit.
    wanted: bool,
}

#[derive(Debug, Clone)]
struct VolumeEntry {
    name: String,
    node_id: NodeId,
    slots: BTreeSet<SlotKey>,
}

/// A view of the cluster, fed with the objects of the store one by one.
///
/// Feeding the same objects in another order gives the same view. [`crate::schedule`] also writes its placements into
/// it, so that the next call sees them before the store does; when a placement was refused by the store, feed the task
/// again, or start over from an empty view.
#[derive(Debug, Clone, Default)]
pub struct Cluster {
    nodes: Vec<NodeEntry>,
    index: BTreeMap<NodeId, u32>,
    free: Vec<u32>,
    /// The nodes that take tasks, least loaded first.
    order: BTreeSet<(u32, NodeId, u32)>,
    tasks: BTreeMap<TaskId, TaskEntry>,
    volumes: BTreeMap<VolumeId, VolumeEntry>,
    homes: BTreeMap<SlotKey, BTreeMap<String, NodeId>>,
    /// Volumes that no slot is bound to, by name: data that waits for its service to come back.
    unclaimed: BTreeSet<(String, NodeId)>,
    failures: BTreeMap<(ServiceId, NodeId), Vec<Timestamp>>,
    eligibility: EligibilityCache,
}

impl Cluster {
    /// An empty cluster.
    pub fn new() -> Self {
        Self::default()
    }

    /// A node appeared or changed.
    pub fn upsert_node(&mut self, node: &Node) {
        let index = self.node_index(node.id);
        self.unlist(index);
        self.nodes[index as usize].node = Some(Box::new(node.clone()));
        self.eligibility.node_changed(index, Some(node));
        self.list(index);
    }

    /// A node was removed from the cluster.
    pub fn remove_node(&mut self, id: NodeId) {
        let Some(&index) = self.index.get(&id) else {
            return;
        };
        self.unlist(index);
        self.nodes[index as usize].node = None;
        self.eligibility.node_changed(index, None);
        self.failures.retain(|&(_, node_id), _| node_id != id);
        self.release_if_unused(index);
    }

    /// A task appeared or changed.
    pub fn upsert_task(&mut self, task: &Task) {
        if matches!(task.status.state, TaskState::Failed | TaskState::Rejected)
            && let Some(node_id) = task.node_id
        {
            self.record_failure(task.service_id, node_id, task.status.at);
        }
        self.remove_task(task.id);
        // An unassigned task with a node is one of a global service; it takes its place when it is assigned.
        if let Some(node_id) = task.node_id
            && task.occupies_node()
            && task.status.state >= TaskState::Assigned
        {
            let node = self.node_index(node_id);
            let entry = TaskEntry {
                node,
                service_id: task.service_id,
                reserved: task.spec.resources.reservations,
                ports: host_ports(task).collect(),
                wanted: task.desired <= TaskState::Running,
            };
            self.insert_task(task.id, entry, &task.service_name);
        }
    }

    /// A task was deleted.
    pub fn remove_task(&mut self, id: TaskId) {
        let Some(entry) = self.tasks.remove(&id) else {
            return;
        };
        self.unlist(entry.node);
        let node = &mut self.nodes[entry.node as usize];
        node.tasks -= 1;
        node.reserved.nano_cpus -= entry.reserved.nano_cpus;
        node.reserved.memory_bytes -= entry.reserved.memory_bytes;
        for port in &entry.ports {
            if let Some(holders) = node.ports.get_mut(port) {
                holders.retain(|(holder, _)| *holder != id);
                if holders.is_empty() {
                    node.ports.remove(port);
                }
            }
        }
        if entry.wanted
            && let Some(count) = node.by_service.get_mut(&entry.service_id)
        {
            *count -= 1;
            if *count == 0 {
                node.by_service.remove(&entry.service_id);
            }
        }
        self.list(entry.node);
        self.release_if_unused(entry.node);
    }

    /// A volume appeared or changed.
    pub fn upsert_volume(&mut self, volume: &Volume) {
        self.remove_volume(volume.id);
        for slot in &volume.bound_slots {
            self.homes
                .entry(*slot)
                .or_default()
                .insert(volume.name.clone(), volume.node_id);
        }
        if volume.bound_slots.is_empty() {
            self.unclaimed.insert((volume.name.clone(), volume.node_id));
        }
        let entry = VolumeEntry {
            name: volume.name.clone(),
            node_id: volume.node_id,
            slots: volume.bound_slots.clone(),
        };
        self.volumes.insert(volume.id, entry);
    }

    /// A volume was forgotten.
    pub fn remove_volume(&mut self, id: VolumeId) {
        let Some(entry) = self.volumes.remove(&id) else {
            return;
        };
        for slot in &entry.slots {
            if let Some(homes) = self.homes.get_mut(slot)
                && homes.get(&entry.name) == Some(&entry.node_id)
            {
                homes.remove(&entry.name);
                if homes.is_empty() {
                    self.homes.remove(slot);
                }
            }
        }
        self.unclaimed.remove(&(entry.name, entry.node_id));
    }

    /// A service is gone: its failures are forgotten.
    pub fn forget_service(&mut self, id: ServiceId) {
        let keys: Vec<_> = self.failure_range(id).map(|(&key, _)| key).collect();
        for key in keys {
            self.failures.remove(&key);
        }
    }

    /// Tasks that occupy a node.
    pub fn placed_tasks(&self) -> usize {
        self.tasks.len()
    }

    /// Whether the task has a node in this view.
    pub fn is_placed(&self, id: TaskId) -> bool {
        self.tasks.contains_key(&id)
    }

    pub(crate) fn node(&self, index: u32) -> &NodeEntry {
        &self.nodes[index as usize]
    }

    pub(crate) fn node_by_id(&self, id: NodeId) -> Option<(u32, &NodeEntry)> {
        let index = *self.index.get(&id)?;
        Some((index, self.node(index)))
    }

    pub(crate) fn node_name(&self, id: NodeId) -> String {
        self.node_by_id(id)
            .map_or_else(|| id.to_string(), |(_, node)| node.name())
    }

    /// The nodes of the cluster in id order.
    pub(crate) fn known_nodes(&self) -> impl Iterator<Item = &NodeEntry> {
        self.index
            .values()
            .map(|&index| self.node(index))
            .filter(|node| node.node.is_some())
    }

    /// The nodes that take tasks, least loaded first, ties by id.
    pub(crate) fn by_load(&self) -> impl Iterator<Item = u32> + '_ {
        self.order.iter().map(|&(_, _, index)| index)
    }

    pub(crate) fn ready_nodes(&self) -> usize {
        self.order.len()
    }

    pub(crate) fn eligible(&mut self, placement: &Placement) -> NodeBits {
        let nodes = self
            .index
            .values()
            .filter_map(|&index| Some((index, self.nodes[index as usize].node.as_deref()?)));
        self.eligibility.bits(placement, nodes)
    }

    /// The mounted volumes that the request's slot is bound to, with their homes.
    pub(crate) fn homes_of(&self, request: &TaskRequest) -> impl Iterator<Item = (&str, NodeId)> {
        let homes = self.homes.get(&request.slot_key());
        request
            .spec
            .named_volumes()
            .filter_map(move |name| homes?.get_key_value(name))
            .map(|(name, node_id)| (name.as_str(), *node_id))
    }

    /// Nodes that hold a volume which the request mounts and no slot has claimed.
    pub(crate) fn unclaimed_nodes(&self, request: &TaskRequest) -> BTreeSet<NodeId> {
        if request.slot == 0 {
            return BTreeSet::new();
        }
        request
            .spec
            .named_volumes()
            .flat_map(|name| {
                let lowest = (name.to_owned(), NodeId::MIN);
                let highest = (name.to_owned(), NodeId::MAX);
                self.unclaimed.range(lowest..=highest)
            })
            .map(|&(_, node_id)| node_id)
            .collect()
    }

    /// Nodes on which the service failed too often lately.
    pub(crate) fn failing_nodes(&self, service_id: ServiceId, now: Timestamp) -> BTreeSet<NodeId> {
        self.failure_range(service_id)
            .filter(|(_, times)| {
                let recent = |at: &&Timestamp| now.since(**at) < FAILURE_WINDOW;
                times.iter().filter(recent).count() >= FAILURES_MAX
            })
            .map(|(&(_, node_id), _)| node_id)
            .collect()
    }

    /// Gives the request a node.
    pub(crate) fn place(&mut self, request: &TaskRequest, node: u32) {
        let node_id = self.node(node).id;
        if request.slot != 0 {
            for name in request.spec.named_volumes() {
                self.unclaimed.remove(&(name.to_owned(), node_id));
                self.homes
                    .entry(request.slot_key())
                    .or_default()
                    .insert(name.to_owned(), node_id);
            }
        }
        let entry = TaskEntry {
            node,
            service_id: request.service_id,
            reserved: request.spec.resources.reservations,
            ports: request.host_ports.as_slice().into(),
            wanted: true,
        };
        self.insert_task(request.task_id, entry, &request.service_name);
    }

    fn insert_task(&mut self, id: TaskId, entry: TaskEntry, service_name: &str) {
        self.unlist(entry.node);
        let node = &mut self.nodes[entry.node as usize];
        node.tasks += 1;
        node.reserved.nano_cpus += entry.reserved.nano_cpus;
        node.reserved.memory_bytes += entry.reserved.memory_bytes;
        if !entry.ports.is_empty() {
            let name: Arc<str> = service_name.into();
            for port in &entry.ports {
                let holders = node.ports.entry(*port).or_default();
                holders.push((id, Arc::clone(&name)));
            }
        }
        if entry.wanted {
            *node.by_service.entry(entry.service_id).or_default() += 1;
        }
        self.list(entry.node);
        self.tasks.insert(id, entry);
    }

    /// Keeps the newest [`FAILURES_MAX`] in order of time; one reported twice counts once.
    fn record_failure(&mut self, service_id: ServiceId, node_id: NodeId, at: Timestamp) {
        let times = self.failures.entry((service_id, node_id)).or_default();
        if let Err(position) = times.binary_search(&at) {
            times.insert(position, at);
            if times.len() > FAILURES_MAX {
                times.remove(0);
            }
        }
    }

    fn failure_range(
        &self,
        service_id: ServiceId,
    ) -> impl Iterator<Item = (&(ServiceId, NodeId), &Vec<Timestamp>)> {
        self.failures
            .range((service_id, NodeId::MIN)..=(service_id, NodeId::MAX))
    }

    fn node_index(&mut self, id: NodeId) -> u32 {
        if let Some(&index) = self.index.get(&id) {
            return index;
        }
        let entry = NodeEntry::new(id);
        let index = match self.free.pop() {
            Some(index) => {
                self.nodes[index as usize] = entry;
                index
            }
            None => {
                self.nodes.push(entry);
                u32::try_from(self.nodes.len() - 1).unwrap_or(u32::MAX)
            }
        };
        self.index.insert(id, index);
        index
    }

    fn release_if_unused(&mut self, index: u32) {
        let entry = self.node(index);
        if entry.is_unused() {
            let id = entry.id;
            self.index.remove(&id);
            self.free.push(index);
        }
    }

    fn unlist(&mut self, index: u32) {
        let entry = self.node(index);
        let key = (entry.tasks, entry.id, index);
        self.order.remove(&key);
    }

    fn list(&mut self, index: u32) {
        let entry = self.node(index);
        if entry.takes_tasks() {
            self.order.insert((entry.tasks, entry.id, index));
        }
    }
}
