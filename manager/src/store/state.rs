//! The objects with their indexes, and every way to read them.

use super::change::Entity;
use super::indexes::{Indexes, NodeUsage};
use imbl::OrdMap;
use shoal_model::command::ObjectKey;
use shoal_model::spec::Protocol;
use shoal_model::volume::SlotKey;
use shoal_model::{
    AddressLease, Attachment, Cluster, ContainerId, Network, NetworkId, Node, NodeId, Service,
    ServiceId, Task, TaskId, Version, Volume, VolumeId,
};
use std::sync::Arc;

/// A consistent view of everything that the cluster knows. Cloning it costs O(1).
#[derive(Debug, Clone, PartialEq, Default)]
pub struct State {
    pub(super) version: Version,
    pub(super) feature_level: u32,
    pub(super) cluster: Option<Arc<Cluster>>,
    pub(super) nodes: OrdMap<NodeId, Arc<Node>>,
    pub(super) services: OrdMap<ServiceId, Arc<Service>>,
    pub(super) tasks: OrdMap<TaskId, Arc<Task>>,
    pub(super) volumes: OrdMap<VolumeId, Arc<Volume>>,
    pub(super) networks: OrdMap<NetworkId, Arc<Network>>,
    pub(super) leases: OrdMap<(NetworkId, NodeId), Arc<AddressLease>>,
    pub(super) attachments: OrdMap<ContainerId, Arc<Attachment>>,
    pub(super) indexes: Indexes,
}

impl State {
    /// An empty state, before the first entry.
    pub fn new() -> Self {
        Self::default()
    }

    /// Index of the last entry that was applied.
    pub const fn version(&self) -> Version {
        self.version
    }

    /// The store feature level that the managers agreed on.
    pub fn feature_level(&self) -> u32 {
        // Level 1 is the first format: a store that was never raised has it.
        self.feature_level.max(1)
    }

    /// The cluster, once there is one.
    pub fn cluster(&self) -> Option<&Arc<Cluster>> {
        self.cluster.as_ref()
    }

    /// A node.
    pub fn node(&self, id: NodeId) -> Option<&Arc<Node>> {
        self.nodes.get(&id)
    }

    /// A service.
    pub fn service(&self, id: ServiceId) -> Option<&Arc<Service>> {
        self.services.get(&id)
    }

    /// A task.
    pub fn task(&self, id: TaskId) -> Option<&Arc<Task>> {
        self.tasks.get(&id)
    }

    /// A volume.
    pub fn volume(&self, id: VolumeId) -> Option<&Arc<Volume>> {
        self.volumes.get(&id)
    }

    /// Any object.
    pub fn get(&self, key: ObjectKey) -> Option<Entity> {
        match key {
            ObjectKey::Cluster => self.cluster.clone().map(Entity::Cluster),
            ObjectKey::Node(id) => self.node(id).cloned().map(Entity::Node),
            ObjectKey::Service(id) => self.service(id).cloned().map(Entity::Service),
            ObjectKey::Task(id) => self.task(id).cloned().map(Entity::Task),
            ObjectKey::Volume(id) => self.volume(id).cloned().map(Entity::Volume),
            ObjectKey::Network(id) => self.network(id).cloned().map(Entity::Network),
            ObjectKey::Lease(network, node) => {
                self.lease(network, node).cloned().map(Entity::Lease)
            }
            ObjectKey::Attachment(id) => self.attachment(id).cloned().map(Entity::Attachment),
        }
    }

    /// The network with that id.
    pub fn network(&self, id: NetworkId) -> Option<&Arc<Network>> {
        self.networks.get(&id)
    }

    /// The blocks of a node in a network.
    pub fn lease(&self, network: NetworkId, node: NodeId) -> Option<&Arc<AddressLease>> {
        self.leases.get(&(network, node))
    }

    /// The attachment of a container.
    pub fn attachment(&self, id: ContainerId) -> Option<&Arc<Attachment>> {
        self.attachments.get(&id)
    }

    /// All networks by id.
    pub fn networks(&self) -> impl DoubleEndedIterator<Item = &Arc<Network>> {
        self.networks.values()
    }

    /// All leases by network and node.
    pub fn leases(&self) -> impl DoubleEndedIterator<Item = &Arc<AddressLease>> {
        self.leases.values()
    }

    /// All attachments by container.
    pub fn attachments(&self) -> impl DoubleEndedIterator<Item = &Arc<Attachment>> {
        self.attachments.values()
    }

    /// All nodes by id.
    pub fn nodes(&self) -> impl DoubleEndedIterator<Item = &Arc<Node>> {
        self.nodes.values()
    }

    /// All services by id.
    pub fn services(&self) -> impl DoubleEndedIterator<Item = &Arc<Service>> {
        self.services.values()
    }

    /// All tasks by id.
    pub fn tasks(&self) -> impl DoubleEndedIterator<Item = &Arc<Task>> {
        self.tasks.values()
    }

    /// All volumes by id.
    pub fn volumes(&self) -> impl DoubleEndedIterator<Item = &Arc<Volume>> {
        self.volumes.values()
    }

    /// How many tasks there are.
    pub fn tasks_len(&self) -> usize {
        self.tasks.len()
    }

    /// The node with that given name.
    pub fn node_by_name(&self, name: &str) -> Option<&Arc<Node>> {
        self.node(*self.indexes.nodes_by_name.get(name)?)
    }

    /// The service with that name, unless it is being removed.
    pub fn service_by_name(&self, name: &str) -> Option<&Arc<Service>> {
        self.service(*self.indexes.services_by_name.get(name)?)
    }

    /// The tasks of a service, by slot and id.
    pub fn tasks_by_service(&self, id: ServiceId) -> impl Iterator<Item = &Arc<Task>> {
        self.indexes
            .tasks_by_slot
            .range((id, u64::MIN, TaskId::MIN)..=(id, u64::MAX, TaskId::MAX))
            .filter_map(|(_, _, task)| self.task(*task))
    }

    /// The tasks of one slot: the live one and its history.
    pub fn tasks_by_slot(&self, slot: SlotKey) -> impl Iterator<Item = &Arc<Task>> {
        let (id, number) = (slot.service_id, slot.slot);
        self.indexes
            .tasks_by_slot
            .range((id, number, TaskId::MIN)..=(id, number, TaskId::MAX))
            .filter_map(|(_, _, task)| self.task(*task))
    }

    /// The tasks that name a node, ended ones too.
    pub fn tasks_by_node(&self, id: NodeId) -> impl Iterator<Item = &Arc<Task>> {
        self.indexes
            .tasks_by_node
            .range((id, TaskId::MIN)..=(id, TaskId::MAX))
            .filter_map(|(_, task)| self.task(*task))
    }

    /// The tasks that the scheduler has to place.
    pub fn tasks_unassigned(&self) -> impl Iterator<Item = &Arc<Task>> {
        self.indexes
            .tasks_unassigned
            .iter()
            .filter_map(|task| self.task(*task))
    }

    /// The tasks that nobody wants and that run nowhere.
    pub fn tasks_removable(&self) -> impl Iterator<Item = &Arc<Task>> {
        self.indexes
            .tasks_removable
            .iter()
            .filter_map(|task| self.task(*task))
    }

    /// What is reserved on a node.
    pub fn usage(&self, id: NodeId) -> NodeUsage {
        self.indexes.usage.get(&id).copied().unwrap_or_default()
    }

    /// The task that occupies a host port.
    pub fn port_holder(&self, node: NodeId, protocol: Protocol, port: u16) -> Option<TaskId> {
        self.indexes
            .ports
            .range((node, protocol, port, TaskId::MIN)..=(node, protocol, port, TaskId::MAX))
            .map(|(_, _, _, task)| *task)
            .next()
    }

    /// The volume of that name on a node.
    pub fn volume_by_name(&self, node: NodeId, name: &str) -> Option<&Arc<Volume>> {
        let id = self.indexes.volumes_by_name.get(&(node, name.to_owned()))?;
        self.volume(*id)
    }

    /// The volumes on a node, by name.
    pub fn volumes_by_node(&self, node: NodeId) -> impl Iterator<Item = &Arc<Volume>> {
        self.indexes
            .volumes_by_name
            .range((node, String::new())..)
            .take_while(move |((holder, _), _)| *holder == node)
            .filter_map(|(_, id)| self.volume(*id))
    }

    /// The volumes that a slot is bound to.
    pub fn volumes_bound_to(&self, slot: SlotKey) -> impl Iterator<Item = &Arc<Volume>> {
        self.indexes
            .volumes_by_slot
            .range((slot, VolumeId::MIN)..=(slot, VolumeId::MAX))
            .filter_map(|(_, id)| self.volume(*id))
    }

    /// The node that a slot is bound to through the volume of that name.
    pub fn home_of(&self, slot: SlotKey, volume: &str) -> Option<NodeId> {
        self.volumes_bound_to(slot)
            .find(|bound| bound.name == volume)
            .map(|bound| bound.node_id)
    }

    /// Replaces (or adds) an object together with its place in the indexes. Names are checked by the caller.
    pub(super) fn put(&mut self, entity: Entity) -> Option<Entity> {
        match entity {
            Entity::Cluster(cluster) => self.cluster.replace(cluster).map(Entity::Cluster),
            Entity::Node(node) => {
                let before = self.nodes.insert(node.id, Arc::clone(&node));
                self.indexes.move_node(before.as_deref(), &node);
                before.map(Entity::Node)
            }
            Entity::Service(service) => {
                let before = self.services.insert(service.id, Arc::clone(&service));
                self.indexes.move_service(before.as_deref(), &service);
                before.map(Entity::Service)
            }
            Entity::Task(task) => {
                let before = self.tasks.insert(task.id, Arc::clone(&task));
                self.indexes.move_task(before.as_deref(), &task);
                before.map(Entity::Task)
            }
            Entity::Volume(volume) => {
                let before = self.volumes.insert(volume.id, Arc::clone(&volume));
                self.indexes.move_volume(before.as_deref(), &volume);
                before.map(Entity::Volume)
            }
            Entity::Network(network) => {
                let before = self.networks.insert(network.id, Arc::clone(&network));
                self.indexes.move_network(before.as_deref(), &network);
                before.map(Entity::Network)
            }
            Entity::Lease(lease) => {
                let key = (lease.network_id, lease.node_id);
                let before = self.leases.insert(key, Arc::clone(&lease));
                self.indexes.move_lease(before.as_deref(), &lease);
                before.map(Entity::Lease)
            }
            Entity::Attachment(attachment) => {
                let id = attachment.container_id;
                let before = self.attachments.insert(id, Arc::clone(&attachment));
                self.indexes.move_attachment(before.as_deref(), &attachment);
                before.map(Entity::Attachment)
            }
        }
    }

    /// Deletes an object together with its place in the indexes.
    pub(super) fn delete(&mut self, key: ObjectKey) -> Option<Entity> {
        match key {
            ObjectKey::Cluster => self.cluster.take().map(Entity::Cluster),
            ObjectKey::Node(id) => {
                let node = self.nodes.remove(&id)?;
                self.indexes.remove_node(&node);
                Some(Entity::Node(node))
            }
            ObjectKey::Service(id) => {
                let service = self.services.remove(&id)?;
                self.indexes.remove_service(&service);
                Some(Entity::Service(service))
            }
            ObjectKey::Task(id) => {
                let task = self.tasks.remove(&id)?;
                self.indexes.remove_task(&task);
                Some(Entity::Task(task))
            }
            ObjectKey::Volume(id) => {
                let volume = self.volumes.remove(&id)?;
                self.indexes.remove_volume(&volume);
                Some(Entity::Volume(volume))
            }
            ObjectKey::Network(id) => {
                let network = self.networks.remove(&id)?;
                self.indexes.remove_network(&network);
                Some(Entity::Network(network))
            }
            ObjectKey::Lease(network, node) => {
                let lease = self.leases.remove(&(network, node))?;
                self.indexes.remove_lease(&lease);
                Some(Entity::Lease(lease))
            }
            ObjectKey::Attachment(id) => {
                let attachment = self.attachments.remove(&id)?;
                self.indexes.remove_attachment(&attachment);
                Some(Entity::Attachment(attachment))
            }
        }
    }

    /// All objects in the order of snapshots: the cluster, nodes, services, tasks, volumes, networks, leases,
    /// attachments; each kind by id.
    pub fn entities(&self) -> impl Iterator<Item = Entity> {
        let cluster = self.cluster.iter().cloned().map(Entity::Cluster);
        cluster
            .chain(self.nodes.values().cloned().map(Entity::Node))
            .chain(self.services.values().cloned().map(Entity::Service))
            .chain(self.tasks.values().cloned().map(Entity::Task))
            .chain(self.volumes.values().cloned().map(Entity::Volume))
            .chain(self.networks.values().cloned().map(Entity::Network))
            .chain(self.leases.values().cloned().map(Entity::Lease))
            .chain(self.attachments.values().cloned().map(Entity::Attachment))
    }
}
