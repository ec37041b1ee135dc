//! Secondary indexes, derived from the objects alone.

use super::tasks::{holds_node, host_ports, is_removable, is_unassigned};
use imbl::{OrdMap, OrdSet};
use shoal_model::netstate::EndpointId;
use shoal_model::network::Endpoint;
use shoal_model::spec::Protocol;
use shoal_model::volume::SlotKey;
use shoal_model::{
    AddressLease, Attachment, ContainerId, Network, NetworkId, Node, NodeId, Resources, Service,
    ServiceId, Task, TaskId, Volume, VolumeId,
};
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

/// What the tasks that hold a node add up to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NodeUsage {
    /// Tasks.
    pub tasks: u64,
    nano_cpus: i128,
    memory_bytes: i128,
}

impl NodeUsage {
    /// The sum of reservations, saturating.
    pub fn reserved(&self) -> Resources {
        Resources {
            nano_cpus: saturate(self.nano_cpus),
            memory_bytes: saturate(self.memory_bytes),
        }
    }

    /// Whether `more` fits beside what is reserved on a machine that has `total`. What is not asked for always fits.
    pub fn leaves_room(&self, total: Resources, more: Resources) -> bool {
        let fits = |used: i128, more: i64, total: i64| {
            more <= 0 || used + i128::from(more) <= i128::from(total)
        };
        fits(self.nano_cpus, more.nano_cpus, total.nano_cpus)
            && fits(self.memory_bytes, more.memory_bytes, total.memory_bytes)
    }

    fn add(&mut self, task: &Task) {
        let reserved = task.spec.resources.reservations;
        self.tasks = self.tasks.saturating_add(1);
        self.nano_cpus += i128::from(reserved.nano_cpus);
        self.memory_bytes += i128::from(reserved.memory_bytes);
    }

    fn subtract(&mut self, task: &Task) {
        let reserved = task.spec.resources.reservations;
        self.tasks = self.tasks.saturating_sub(1);
        self.nano_cpus -= i128::from(reserved.nano_cpus);
        self.memory_bytes -= i128::from(reserved.memory_bytes);
    }
}

fn saturate(value: i128) -> i64 {
    i64::try_from(value).unwrap_or(if value < 0 { i64::MIN } else { i64::MAX })
}

/// All indexes. Equal to [`Indexes::default`] fed with every object, which an invariant checks.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Indexes {
    pub(super) nodes_by_name: OrdMap<String, NodeId>,
    pub(super) services_by_name: OrdMap<String, ServiceId>,
    pub(super) tasks_by_slot: OrdSet<(ServiceId, u64, TaskId)>,
    pub(super) tasks_by_node: OrdSet<(NodeId, TaskId)>,
    pub(super) tasks_unassigned: OrdSet<TaskId>,
    pub(super) tasks_removable: OrdSet<TaskId>,
    pub(super) ports: OrdSet<(NodeId, Protocol, u16, TaskId)>,
    pub(super) usage: OrdMap<NodeId, NodeUsage>,
    pub(super) volumes_by_name: OrdMap<(NodeId, String), VolumeId>,
    pub(super) volumes_by_slot: OrdSet<(SlotKey, VolumeId)>,
    pub(super) networks_by_name: OrdMap<String, NetworkId>,
    /// Services that name a network or have a virtual address in it.
    pub(super) services_by_network: OrdSet<(NetworkId, ServiceId)>,
    /// Ports that services publish, on every node or on those of their tasks.
    pub(super) published: OrdSet<(Protocol, u16, ServiceId)>,
    /// Addresses of tasks and containers that may still run.
    pub(super) endpoints: OrdMap<(NetworkId, Ipv4Addr), EndpointId>,
    pub(super) vips: OrdMap<(NetworkId, Ipv4Addr), ServiceId>,
    /// Leased blocks by their first address: prefix length and holder.
    pub(super) blocks: OrdMap<(NetworkId, Ipv4Addr), (u8, NodeId)>,
    pub(super) leases_by_node: OrdSet<(NodeId, NetworkId)>,
    pub(super) attachments_by_node: OrdSet<(NodeId, ContainerId)>,
    pub(super) mesh: OrdMap<IpAddr, NodeId>,
}

impl Indexes {
    /// Takes note of a changed node.
    pub(super) fn move_node(&mut self, before: Option<&Node>, node: &Node) {
        if let Some(before) = before {
            if before.spec.name == node.spec.name && before.mesh == node.mesh {
                return;
            }
            self.remove_node(before);
        }
        self.add_node(node);
    }

    /// Takes note of a changed service.
    pub(super) fn move_service(&mut self, before: Option<&Service>, service: &Service) {
        if let Some(before) = before {
            let same_name = before.spec.name == service.spec.name;
            let same_net = before.spec.task.networks == service.spec.task.networks
                && before.vips == service.vips
                && before.ports == service.ports;
            if before.pending_delete == service.pending_delete && same_name && same_net {
                return;
            }
            self.remove_service(before);
        }
        self.add_service(service);
    }

    /// Takes note of a changed task.
    pub(super) fn move_task(&mut self, before: Option<&Task>, task: &Task) {
        if let Some(before) = before {
            let place = |task: &Task| {
                (
                    (task.service_id, task.slot, task.node_id),
                    (is_unassigned(task), is_removable(task), holds_node(task)),
                    task.spec.resources.reservations,
                )
            };
            let same_ports = host_ports(before).eq(host_ports(task));
            if place(before) == place(task) && same_ports && before.endpoints == task.endpoints {
                return;
            }
            self.remove_task(before);
        }
        self.add_task(task);
    }

    /// Takes note of a changed volume.
    pub(super) fn move_volume(&mut self, before: Option<&Volume>, volume: &Volume) {
        if let Some(before) = before {
            let same_name = (before.node_id, &before.name) == (volume.node_id, &volume.name);
            if same_name && before.bound_slots == volume.bound_slots {
                return;
            }
            self.remove_volume(before);
        }
        self.add_volume(volume);
    }

    pub(super) fn add_node(&mut self, node: &Node) {
        if !node.spec.name.is_empty() {
            self.nodes_by_name.insert(node.spec.name.clone(), node.id);
        }
        if let Some(mesh) = node.mesh {
            self.mesh.insert(mesh.ipv4.into(), node.id);
            self.mesh.insert(mesh.ipv6.into(), node.id);
        }
    }

    pub(super) fn remove_node(&mut self, node: &Node) {
        if !node.spec.name.is_empty() {
            self.nodes_by_name.remove(&node.spec.name);
        }
        if let Some(mesh) = node.mesh {
            self.mesh.remove(&IpAddr::from(mesh.ipv4));
            self.mesh.remove(&IpAddr::from(mesh.ipv6));
        }
    }

    /// A service that is being removed has given its name and its ports free: a new one may have them while the tasks
    /// still stop. Its virtual addresses stay its own until then.
    pub(super) fn add_service(&mut self, service: &Service) {
        for network_id in networks_of(service) {
            self.services_by_network.insert((network_id, service.id));
        }
        for vip in &service.vips {
            self.vips.insert((vip.network_id, vip.ipv4), service.id);
        }
        if service.pending_delete {
            return;
        }
        self.services_by_name
            .insert(service.spec.name.clone(), service.id);
        for port in service.ports.iter().filter(|port| port.published != 0) {
            self.published
                .insert((port.protocol, port.published, service.id));
        }
    }

    pub(super) fn remove_service(&mut self, service: &Service) {
        for network_id in networks_of(service) {
            self.services_by_network.remove(&(network_id, service.id));
        }
        for vip in &service.vips {
            self.vips.remove(&(vip.network_id, vip.ipv4));
        }
        if service.pending_delete {
            return;
        }
        self.services_by_name.remove(&service.spec.name);
        for port in &service.ports {
            self.published
                .remove(&(port.protocol, port.published, service.id));
        }
    }

    pub(super) fn add_task(&mut self, task: &Task) {
        self.tasks_by_slot
            .insert((task.service_id, task.slot, task.id));
        if is_unassigned(task) {
            self.tasks_unassigned.insert(task.id);
        }
        if is_removable(task) {
            self.tasks_removable.insert(task.id);
        }
        let Some(node_id) = task.node_id else { return };
        self.tasks_by_node.insert((node_id, task.id));
        if holds_node(task) {
            for (protocol, port) in host_ports(task) {
                self.ports.insert((node_id, protocol, port, task.id));
            }
            self.usage.entry(node_id).or_default().add(task);
            self.add_endpoints(&task.endpoints, EndpointId::Task(task.id));
        }
    }

    pub(super) fn remove_task(&mut self, task: &Task) {
        self.tasks_by_slot
            .remove(&(task.service_id, task.slot, task.id));
        self.tasks_unassigned.remove(&task.id);
        self.tasks_removable.remove(&task.id);
        let Some(node_id) = task.node_id else { return };
        self.tasks_by_node.remove(&(node_id, task.id));
        if holds_node(task) {
            for (protocol, port) in host_ports(task) {
                self.ports.remove(&(node_id, protocol, port, task.id));
            }
            self.remove_endpoints(&task.endpoints);
            let mut usage = self.usage.get(&node_id).copied().unwrap_or_default();
            usage.subtract(task);
            if usage == NodeUsage::default() {
                self.usage.remove(&node_id);
            } else {
                self.usage.insert(node_id, usage);
            }
        }
    }

    pub(super) fn add_volume(&mut self, volume: &Volume) {
        self.volumes_by_name
            .insert((volume.node_id, volume.name.clone()), volume.id);
        for slot in &volume.bound_slots {
            self.volumes_by_slot.insert((*slot, volume.id));
        }
    }

    pub(super) fn remove_volume(&mut self, volume: &Volume) {
        self.volumes_by_name
            .remove(&(volume.node_id, volume.name.clone()));
        for slot in &volume.bound_slots {
            self.volumes_by_slot.remove(&(*slot, volume.id));
        }
    }

    fn add_endpoints(&mut self, endpoints: &[Endpoint], holder: EndpointId) {
        for endpoint in endpoints {
            self.endpoints
                .insert((endpoint.network_id, endpoint.ipv4), holder);
        }
    }

    fn remove_endpoints(&mut self, endpoints: &[Endpoint]) {
        for endpoint in endpoints {
            self.endpoints.remove(&(endpoint.network_id, endpoint.ipv4));
        }
    }

    /// Takes note of a changed network.
    pub(super) fn move_network(&mut self, before: Option<&Network>, network: &Network) {
        if let Some(before) = before {
            self.remove_network(before);
        }
        self.networks_by_name
            .insert(network.spec.name.clone(), network.id);
    }

    pub(super) fn remove_network(&mut self, network: &Network) {
        self.networks_by_name.remove(&network.spec.name);
    }

    /// Takes note of a changed lease.
    pub(super) fn move_lease(&mut self, before: Option<&AddressLease>, lease: &AddressLease) {
        if let Some(before) = before {
            self.remove_lease(before);
        }
        self.leases_by_node
            .insert((lease.node_id, lease.network_id));
        for block in &lease.blocks {
            let value = (block.prefix_len(), lease.node_id);
            self.blocks
                .insert((lease.network_id, block.network()), value);
        }
    }

    pub(super) fn remove_lease(&mut self, lease: &AddressLease) {
        self.leases_by_node
            .remove(&(lease.node_id, lease.network_id));
        for block in &lease.blocks {
            self.blocks.remove(&(lease.network_id, block.network()));
        }
    }

    /// Takes note of a changed attachment.
    pub(super) fn move_attachment(&mut self, before: Option<&Attachment>, after: &Attachment) {
        if let Some(before) = before {
            self.remove_attachment(before);
        }
        self.attachments_by_node
            .insert((after.node_id, after.container_id));
        self.add_endpoints(&after.endpoints, EndpointId::Container(after.container_id));
    }

    pub(super) fn remove_attachment(&mut self, attachment: &Attachment) {
        self.attachments_by_node
            .remove(&(attachment.node_id, attachment.container_id));
        self.remove_endpoints(&attachment.endpoints);
    }
}

/// The networks that a service names or has a virtual address in.
fn networks_of(service: &Service) -> BTreeSet<NetworkId> {
    let named = service.spec.task.networks.iter().map(|it| it.network_id);
    named
        .chain(service.vips.iter().map(|vip| vip.network_id))
        .collect()
}
