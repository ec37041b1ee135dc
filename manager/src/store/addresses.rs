//! Reading what is known of networks: who has an address, a block, a port.

use super::state::State;
use ipnet::Ipv4Net;
use shoal_model::netstate::EndpointId;
use shoal_model::network::{INGRESS_NETWORK, NetworkAttachment};
use shoal_model::spec::Protocol;
use shoal_model::{
    AddressLease, Attachment, ContainerId, Network, NetworkId, NodeId, Service, ServiceId, Task,
};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

impl State {
    /// The network with that name.
    pub fn network_by_name(&self, name: &str) -> Option<&Arc<Network>> {
        self.network(*self.indexes.networks_by_name.get(name)?)
    }

    /// The built-in network of published ports, once there is one.
    pub fn ingress_network(&self) -> Option<&Arc<Network>> {
        self.network_by_name(INGRESS_NETWORK)
    }

    /// The services that name a network or have a virtual address in it, those that are being removed too.
    pub fn services_in(&self, network: NetworkId) -> impl Iterator<Item = &Arc<Service>> {
        self.indexes
            .services_by_network
            .range((network, ServiceId::MIN)..=(network, ServiceId::MAX))
            .filter_map(|(_, id)| self.service(*id))
    }

    /// The services that publish a port, on every node or on those of their tasks.
    pub fn port_publishers(
        &self,
        protocol: Protocol,
        port: u16,
    ) -> impl Iterator<Item = &Arc<Service>> {
        self.indexes
            .published
            .range((protocol, port, ServiceId::MIN)..=(protocol, port, ServiceId::MAX))
            .filter_map(|(_, _, id)| self.service(*id))
    }

    /// The leases of a network, by node.
    pub fn leases_in(&self, network: NetworkId) -> impl Iterator<Item = &Arc<AddressLease>> {
        self.leases
            .range((network, NodeId::MIN)..=(network, NodeId::MAX))
            .map(|(_, lease)| lease)
    }

    /// The leases of a node, by network.
    pub fn leases_of(&self, node: NodeId) -> impl Iterator<Item = &Arc<AddressLease>> {
        self.indexes
            .leases_by_node
            .range((node, NetworkId::MIN)..=(node, NetworkId::MAX))
            .filter_map(|&(node, network)| self.lease(network, node))
    }

    /// The containers of a node in attachable networks.
    pub fn attachments_of(&self, node: NodeId) -> impl Iterator<Item = &Arc<Attachment>> {
        let first = (node, ContainerId::from_bytes([0; 32]));
        let last = (node, ContainerId::from_bytes([u8::MAX; 32]));
        self.indexes
            .attachments_by_node
            .range(first..=last)
            .filter_map(|(_, container)| self.attachment(*container))
    }

    /// The leased blocks of a network, lowest first.
    pub fn blocks_in(&self, network: NetworkId) -> impl Iterator<Item = (Ipv4Net, NodeId)> {
        self.blocks_from(network, Ipv4Addr::UNSPECIFIED)
    }

    /// The leased blocks of a network that begin at `first` or after it.
    pub(super) fn blocks_from(
        &self,
        network: NetworkId,
        first: Ipv4Addr,
    ) -> impl Iterator<Item = (Ipv4Net, NodeId)> {
        self.indexes
            .blocks
            .range((network, first)..=(network, Ipv4Addr::BROADCAST))
            .filter_map(|((_, first), (prefix, node))| {
                Some((Ipv4Net::new(*first, *prefix).ok()?, *node))
            })
    }

    /// The leased block that holds an address.
    pub fn block_of(&self, network: NetworkId, address: Ipv4Addr) -> Option<(Ipv4Net, NodeId)> {
        let (key, (prefix, node)) = self.indexes.blocks.get_prev(&(network, address))?;
        let block = Ipv4Net::new(key.1, *prefix).ok()?;
        (key.0 == network && block.contains(&address)).then_some((block, *node))
    }

    /// The task or container that has an address.
    pub fn endpoint_at(&self, network: NetworkId, address: Ipv4Addr) -> Option<EndpointId> {
        self.indexes.endpoints.get(&(network, address)).copied()
    }

    /// The addresses of tasks and containers within a block.
    pub fn endpoints_in(
        &self,
        network: NetworkId,
        block: Ipv4Net,
    ) -> impl Iterator<Item = (Ipv4Addr, EndpointId)> {
        self.indexes
            .endpoints
            .range((network, block.network())..=(network, block.broadcast()))
            .map(|((_, address), holder)| (*address, *holder))
    }

    /// The service that has a virtual address.
    pub fn vip_at(&self, network: NetworkId, address: Ipv4Addr) -> Option<ServiceId> {
        self.indexes.vips.get(&(network, address)).copied()
    }

    /// The virtual addresses within a block.
    pub fn vips_in(
        &self,
        network: NetworkId,
        block: Ipv4Net,
    ) -> impl Iterator<Item = (Ipv4Addr, ServiceId)> {
        self.indexes
            .vips
            .range((network, block.network())..=(network, block.broadcast()))
            .map(|((_, address), service)| (*address, *service))
    }

    /// The node that has an address in the mesh.
    pub fn mesh_holder(&self, address: IpAddr) -> Option<NodeId> {
        self.indexes.mesh.get(&address).copied()
    }

    /// The networks that a task must have an address in; `None`: the built-in network of published ports is needed and
    /// not there yet.
    pub fn networks_of(&self, task: &Task) -> Option<Vec<NetworkAttachment>> {
        if !task.needs_network() {
            return Some(Vec::new());
        }
        if !task.spec.networks.is_empty() {
            return Some(task.spec.networks.clone());
        }
        let network_id = self.ingress_network()?.id;
        Some(vec![NetworkAttachment {
            network_id,
            aliases: Vec::new(),
        }])
    }
}
