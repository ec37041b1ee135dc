//! The incremental view: what is known of nodes, tasks and volumes, indexed for placement.

use crate::eligibility::{EligibilityCache, NodeBits};
use crate::node::{NodeEntry, PortHolder, Seat};
use crate::request::{TaskRequest, host_ports};
use shoal_model::spec::{Placement, Protocol};
use shoal_model::volume::SlotKey;
use shoal_model::{
    Node, NodeId, Resources, ServiceId, Task, TaskId, TaskState, Timestamp, Volume, VolumeId,
};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// Failures of a service on a node within [`FAILURE_WINDOW`] after which the node is tried last.
pub const FAILURES_MAX: usize = 5;

/// How long a failure counts.
pub const FAILURE_WINDOW: Duration = Duration::from_secs(300);

/// What a task takes from its node.
#[derive(Debug, Clone, PartialEq)]
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
/// Feeding the same objects in another order gives the same view. [`crate::schedule()`] also writes its placements into
/// it, so that the next call sees them before the store does; when a placement was refused by the store, feed the task
/// again, or start over from an empty view.
#[derive(Debug, Clone, Default)]
pub struct Cluster {
    nodes: Vec<NodeEntry>,
    index: BTreeMap<NodeId, u32>,
    free: Vec<u32>,
    /// How many nodes take tasks.
    ready: usize,
    /// Counts the changes that may make a node better than it was: an end of a task, a change of a node.
    epoch: u64,
    /// Tasks that shall run, per service and node.
    services: BTreeMap<ServiceId, BTreeMap<u32, u32>>,
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
        self.set_node(index, Some(node));
    }

    /// A node was removed from the cluster.
    pub fn remove_node(&mut self, id: NodeId) {
        let Some(&index) = self.index.get(&id) else {
            return;
        };
        self.set_node(index, None);
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
        // An unassigned task with a node is one of a global service; it takes its place when it is assigned.
        let assigned = task.occupies_node() && task.status.state >= TaskState::Assigned;
        let entry = task
            .node_id
            .filter(|_| assigned)
            .map(|node_id| self.entry_of(task, node_id));
        if self.tasks.get(&task.id) == entry.as_ref() {
            return;
        }
        self.remove_task(task.id);
        if let Some(mut entry) = entry {
            // The removal may have released the only thing that held the node's index.
            entry.node = task.node_id.map_or(entry.node, |id| self.node_index(id));
            self.insert_task(task.id, entry, &task.service_name);
        }
    }

    fn entry_of(&mut self, task: &Task, node_id: NodeId) -> TaskEntry {
        TaskEntry {
            node: self.node_index(node_id),
            service_id: task.service_id,
            reserved: task.spec.resources.reservations,
            ports: host_ports(task).collect(),
            wanted: task.desired <= TaskState::Running,
        }
    }

    /// A task was deleted.
    pub fn remove_task(&mut self, id: TaskId) {
        let Some(entry) = self.tasks.remove(&id) else {
            return;
        };
        self.epoch += 1;
        let node = &mut self.nodes[entry.node as usize];
        node.tasks -= 1;
        node.reserved.nano_cpus -= entry.reserved.nano_cpus;
        node.reserved.memory_bytes -= entry.reserved.memory_bytes;
        for port in &entry.ports {
            if let Some(holders) = node.ports.get_mut(port) {
                holders.retain(|holder| holder.task_id != id);
                if holders.is_empty() {
                    node.ports.remove(port);
                }
            }
        }
        if entry.wanted {
            self.uncount(entry.service_id, entry.node);
        }
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
    pub(crate) fn known_nodes(&self) -> impl Iterator<Item = (u32, &NodeEntry)> {
        self.index
            .values()
            .map(|&index| (index, self.node(index)))
            .filter(|(_, node)| node.node.is_some())
    }

    pub(crate) fn ready_nodes(&self) -> usize {
        self.ready
    }

    /// The tasks of a service that shall run, per node.
    pub(crate) fn service_use(&self, service_id: ServiceId) -> &BTreeMap<u32, u32> {
        static NOTHING: BTreeMap<u32, u32> = BTreeMap::new();
        self.services.get(&service_id).unwrap_or(&NOTHING)
    }

    /// What filters look at.
    pub(crate) fn seat(&self, service_id: ServiceId, index: u32) -> Seat<'_> {
        self.seat_with(self.service_use(service_id), index)
    }

    /// As [`Self::seat`], for many nodes of one service.
    pub(crate) fn seat_with(&self, service_use: &BTreeMap<u32, u32>, index: u32) -> Seat<'_> {
        Seat {
            node: self.node(index),
            service_tasks: service_use.get(&index).copied().unwrap_or(0),
        }
    }

    /// The seats of all nodes of the cluster, in id order.
    pub(crate) fn seats(&self, service_id: ServiceId) -> impl Iterator<Item = Seat<'_>> {
        let service_use = self.service_use(service_id);
        self.index
            .values()
            .map(|&index| self.seat_with(service_use, index))
            .filter(|seat| seat.node.node.is_some())
    }

    /// The least loaded of the nodes that satisfy `placement` and that `accept` takes; gives up after `looks_max`
    /// nodes. `eligible` are the bits of `placement`.
    pub(crate) fn least_loaded(
        &mut self,
        placement: &Placement,
        eligible: &NodeBits,
        looks_max: usize,
        accept: impl Fn(&Self, u32) -> bool,
    ) -> Option<u32> {
        let mut queue = std::mem::take(self.eligibility.queue(placement)?);
        if queue.epoch != self.epoch {
            let nodes = eligible
                .ones()
                .filter(|&index| self.node(index).takes_tasks());
            queue.nodes = nodes.map(|index| Reverse(self.load_key(index))).collect();
            queue.epoch = self.epoch;
        }
        let mut looked_at = Vec::new();
        let mut found = None;
        while looked_at.len() < looks_max
            && found.is_none()
            && let Some(Reverse(key)) = queue.nodes.pop()
        {
            let newest = self.load_key(key.2);
            if newest != key {
                queue.nodes.push(Reverse(newest));
                continue;
            }
            looked_at.push(Reverse(key));
            found = accept(self, key.2).then_some(key.2);
        }
        queue.nodes.extend(looked_at);
        if let Some(place) = self.eligibility.queue(placement) {
            *place = queue;
        }
        found
    }

    fn load_key(&self, index: u32) -> (u32, NodeId, u32) {
        let node = self.node(index);
        (node.tasks, node.id, index)
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
        let node = &mut self.nodes[entry.node as usize];
        node.tasks += 1;
        node.reserved.nano_cpus += entry.reserved.nano_cpus;
        node.reserved.memory_bytes += entry.reserved.memory_bytes;
        if !entry.ports.is_empty() {
            let name: Arc<str> = service_name.into();
            for port in &entry.ports {
                let holders = node.ports.entry(*port).or_default();
                holders.push(PortHolder {
                    task_id: id,
                    service_name: Arc::clone(&name),
                });
            }
        }
        if entry.wanted {
            let counts = self.services.entry(entry.service_id).or_default();
            *counts.entry(entry.node).or_default() += 1;
        }
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

    fn uncount(&mut self, service_id: ServiceId, node: u32) {
        let Some(counts) = self.services.get_mut(&service_id) else {
            return;
        };
        if let Some(count) = counts.get_mut(&node) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&node);
            }
        }
        if counts.is_empty() {
            self.services.remove(&service_id);
        }
    }

    fn set_node(&mut self, index: u32, node: Option<&Node>) {
        let entry = &mut self.nodes[index as usize];
        self.ready -= usize::from(entry.takes_tasks());
        entry.node = node.map(|node| Box::new(node.clone()));
        self.ready += usize::from(entry.takes_tasks());
        self.eligibility.node_changed(index, node);
        self.epoch += 1;
    }

    fn release_if_unused(&mut self, index: u32) {
        let entry = self.node(index);
        if entry.is_unused() {
            let id = entry.id;
            self.index.remove(&id);
            self.free.push(index);
        }
    }
}
