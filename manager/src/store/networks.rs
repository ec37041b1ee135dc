//! The rules of networks, leases, attachments and addresses.
//!
//! An address of a network has one holder: a task or a container, within a block that its node has leased, or a service,
//! outside of all blocks. Whoever plans reads a view that may be old; here is where it is decided.

use super::apply::{Transaction, check_version, invalid, name_taken};
use super::change::Entity;
use super::tasks::holds_node;
use ipnet::Ipv4Net;
use shoal_model::command::{Object, ObjectKey, Rejection};
use shoal_model::netstate::EndpointId;
use shoal_model::network::{
    AddressLease, Attachment, Endpoint, INGRESS_NETWORK, MeshAddress, Network, ServiceVip,
};
use shoal_model::spec::{PortConfig, PublishMode};
use shoal_model::{Meta, NodeId, Service, Task};
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

impl Transaction<'_> {
    pub(super) fn create_in_network(
        &mut self,
        object: &Object,
        meta: Meta,
    ) -> Result<(), Rejection> {
        match object {
            Object::Network(network) => {
                self.check_network(network)?;
                let mut network = Network::clone(network);
                network.meta = meta;
                self.put(Entity::Network(Arc::new(network)));
            }
            Object::Lease(lease) => {
                self.check_lease(lease)?;
                let mut lease = AddressLease::clone(lease);
                lease.meta = meta;
                self.put(Entity::Lease(Arc::new(lease)));
            }
            Object::Attachment(attachment) => {
                self.check_attachment(attachment)?;
                let mut attachment = Attachment::clone(attachment);
                attachment.meta = meta;
                self.put(Entity::Attachment(Arc::new(attachment)));
            }
            Object::Cluster(_)
            | Object::Node(_)
            | Object::Service(_)
            | Object::Task(_)
            | Object::Volume(_) => {}
        }
        Ok(())
    }

    pub(super) fn update_in_network(
        &mut self,
        found: &Entity,
        object: &Object,
    ) -> Result<(), Rejection> {
        let key = object.key();
        match (found, object) {
            (Entity::Network(before), Object::Network(network)) => {
                check_version(key, network.meta.version, before.meta.version)?;
                if network.subnets != before.subnets {
                    return Err(invalid(key, "the subnets of a network can't change"));
                }
                self.check_network(network)?;
                let mut network = Network::clone(network);
                network.meta = self.meta(Some(&before.meta));
                self.put(Entity::Network(Arc::new(network)));
            }
            (Entity::Lease(before), Object::Lease(lease)) => {
                check_version(key, lease.meta.version, before.meta.version)?;
                self.check_lease(lease)?;
                self.check_given_back(before, lease)?;
                let mut lease = AddressLease::clone(lease);
                lease.meta = self.meta(Some(&before.meta));
                self.put(Entity::Lease(Arc::new(lease)));
            }
            (Entity::Attachment(before), Object::Attachment(attachment)) => {
                check_version(key, attachment.meta.version, before.meta.version)?;
                if attachment.node_id != before.node_id {
                    return Err(invalid(key, "a container stays on its node"));
                }
                self.check_attachment(attachment)?;
                let mut attachment = Attachment::clone(attachment);
                attachment.meta = self.meta(Some(&before.meta));
                self.put(Entity::Attachment(Arc::new(attachment)));
            }
            _ => return Err(Rejection::NotFound(key)),
        }
        Ok(())
    }

    fn check_network(&self, network: &Network) -> Result<(), Rejection> {
        let key = ObjectKey::Network(network.id);
        let name = &network.spec.name;
        if let Some(holder) = self.state.network_by_name(name)
            && holder.id != network.id
        {
            return Err(name_taken("network", name, holder.id));
        }
        if network.spec.ingress != (name == INGRESS_NETWORK) {
            return Err(invalid(
                key,
                "the network of published ports is named `ingress`, and no other is",
            ));
        }
        let ours = &network.subnets;
        if !ours.ipv4.contains(&ours.range) || !ours.ipv4.contains(&ours.gateway) {
            return Err(invalid(key, "its range and its gateway lie in its subnet"));
        }
        let overlaps = |theirs: &Network| {
            let theirs = &theirs.subnets;
            let ipv4 = theirs.ipv4.contains(&ours.ipv4) || ours.ipv4.contains(&theirs.ipv4);
            let ipv6 = ours.ipv6.zip(theirs.ipv6);
            ipv4 || ipv6
                .is_some_and(|(ours, theirs)| theirs.contains(&ours) || ours.contains(&theirs))
        };
        let mut others = self.state.networks().filter(|it| it.id != network.id);
        match others.find(|other| overlaps(other)) {
            Some(other) => Err(invalid(
                key,
                format!("its subnet overlaps that of network `{}`", other.spec.name),
            )),
            None => Ok(()),
        }
    }

    fn check_lease(&self, lease: &AddressLease) -> Result<(), Rejection> {
        let key = ObjectKey::Lease(lease.network_id, lease.node_id);
        let Some(network) = self.state.network(lease.network_id) else {
            return Err(Rejection::NotFound(ObjectKey::Network(lease.network_id)));
        };
        if self.state.node(lease.node_id).is_none() {
            return Err(Rejection::NotFound(ObjectKey::Node(lease.node_id)));
        }
        if lease.blocks.is_empty() {
            return Err(invalid(key, "a lease without a block is removed instead"));
        }
        let mut free_from = 0;
        for block in &lease.blocks {
            if *block != block.trunc() || !network.subnets.ipv4.contains(block) {
                return Err(invalid(
                    key,
                    format!("block {block} lies outside of the network's subnet"),
                ));
            }
            if u64::from(block.network().to_bits()) < free_from {
                return Err(invalid(key, format!("block {block} is in it twice")));
            }
            free_from = u64::from(block.broadcast().to_bits()) + 1;
            self.check_block(network, lease.node_id, *block)?;
        }
        Ok(())
    }

    /// Nobody else has an address of the block.
    fn check_block(
        &self,
        network: &Network,
        node_id: NodeId,
        block: Ipv4Net,
    ) -> Result<(), Rejection> {
        let key = ObjectKey::Lease(network.id, node_id);
        let around = self.state.block_of(network.id, block.network());
        let within = self
            .state
            .blocks_from(network.id, block.network())
            .take_while(|(other, _)| other.network() <= block.broadcast());
        let other = around.into_iter().chain(within);
        if let Some((other, holder)) = other.into_iter().find(|(_, holder)| *holder != node_id) {
            return Err(invalid(
                key,
                format!("block {block} overlaps {other} of node `{holder}`"),
            ));
        }
        match self.state.vips_in(network.id, block).next() {
            Some((address, service)) => Err(invalid(
                key,
                format!("{address} in block {block} belongs to service `{service}`"),
            )),
            None => Ok(()),
        }
    }

    /// What is not in the lease any more is not in use.
    fn check_given_back(
        &self,
        before: &AddressLease,
        after: &AddressLease,
    ) -> Result<(), Rejection> {
        for block in before.blocks.difference(&after.blocks) {
            self.check_unused(before, *block, |address| {
                after.blocks.iter().any(|kept| kept.contains(&address))
            })?;
        }
        Ok(())
    }

    fn check_unused(
        &self,
        lease: &AddressLease,
        block: Ipv4Net,
        kept: impl Fn(Ipv4Addr) -> bool,
    ) -> Result<(), Rejection> {
        let mut used = self.state.endpoints_in(lease.network_id, block);
        match used.find(|(address, _)| !kept(*address)) {
            Some((address, _)) => Err(invalid(
                ObjectKey::Lease(lease.network_id, lease.node_id),
                format!("address {address} is in use"),
            )),
            None => Ok(()),
        }
    }

    fn check_attachment(&self, attachment: &Attachment) -> Result<(), Rejection> {
        let id = attachment.container_id;
        let key = ObjectKey::Attachment(id);
        let mut networks = BTreeSet::new();
        for endpoint in &attachment.endpoints {
            let network = self.state.network(endpoint.network_id);
            if !network.is_some_and(|network| network.spec.attachable) {
                return Err(invalid(key, "its network is not attachable"));
            }
            if !networks.insert(endpoint.network_id) {
                return Err(invalid(key, "it is in one network twice"));
            }
            self.check_endpoint(endpoint, attachment.node_id, EndpointId::Container(id))
                .map_err(|reason| invalid(key, reason))?;
        }
        Ok(())
    }

    /// The endpoints that a task is assigned with are the ones that it needs.
    pub(super) fn check_endpoints(
        &self,
        task: &Task,
        node_id: NodeId,
        endpoints: &[Endpoint],
    ) -> Result<(), String> {
        if endpoints.is_empty() && !task.needs_network() {
            return Ok(());
        }
        let wanted = self
            .state
            .networks_of(task)
            .ok_or("the network of published ports is not there")?;
        let wanted = wanted.iter().map(|attachment| attachment.network_id);
        if !wanted.eq(endpoints.iter().map(|endpoint| endpoint.network_id)) {
            return Err("its endpoints are not in the networks of its spec".to_owned());
        }
        let holder = EndpointId::Task(task.id);
        endpoints
            .iter()
            .try_for_each(|endpoint| self.check_endpoint(endpoint, node_id, holder))
    }

    fn check_endpoint(
        &self,
        endpoint: &Endpoint,
        node_id: NodeId,
        holder: EndpointId,
    ) -> Result<(), String> {
        let (network_id, address) = (endpoint.network_id, endpoint.ipv4);
        let network = self
            .state
            .network(network_id)
            .ok_or_else(|| format!("network `{network_id}` has gone"))?;
        if is_reserved(network, address) {
            return Err(format!("address {address} is no host's"));
        }
        if endpoint.ipv6 != network.subnets.ipv6_of(address) {
            return Err(format!("{address} has another IPv6 address"));
        }
        if let Some(other) = self.state.endpoint_at(network_id, address)
            && other != holder
        {
            return Err(format!("address {address} is in use by {other:?}"));
        }
        match self.state.block_of(network_id, address) {
            Some((_, node)) if node == node_id => Ok(()),
            Some(_) | None => Err(format!("address {address} is not leased to the node")),
        }
    }

    /// The virtual addresses and published ports of a service are nobody else's.
    pub(super) fn check_service_addresses(&self, service: &Service) -> Result<(), Rejection> {
        let key = ObjectKey::Service(service.id);
        let mut networks = BTreeSet::new();
        for vip in &service.vips {
            if !networks.insert(vip.network_id) {
                return Err(invalid(key, "it has two virtual addresses in one network"));
            }
            self.check_vip(service, vip)
                .map_err(|reason| invalid(key, reason))?;
        }
        if service.pending_delete {
            return Ok(());
        }
        for attachment in &service.spec.task.networks {
            if self.state.network(attachment.network_id).is_none() {
                let key = ObjectKey::Network(attachment.network_id);
                return Err(Rejection::NotFound(key));
            }
        }
        for port in &service.ports {
            let mut others = self
                .state
                .port_publishers(port.protocol, port.published)
                .filter(|other| other.id != service.id);
            if let Some(other) =
                others.find(|other| other.ports.iter().any(|theirs| clash(port, theirs)))
            {
                return Err(Rejection::NameTaken {
                    kind: "published port of service".to_owned(),
                    name: format!("{}/{}", port.published, port.protocol.as_str()),
                    holder: other.spec.name.clone(),
                });
            }
        }
        Ok(())
    }

    fn check_vip(&self, service: &Service, vip: &ServiceVip) -> Result<(), String> {
        let (network_id, address) = (vip.network_id, vip.ipv4);
        match self.state.vip_at(network_id, address) {
            Some(holder) if holder == service.id => return Ok(()),
            Some(holder) => {
                return Err(format!(
                    "virtual address {address} belongs to service `{holder}`"
                ));
            }
            None => {}
        }
        let network = self
            .state
            .network(network_id)
            .ok_or_else(|| format!("network `{network_id}` has gone"))?;
        if is_reserved(network, address) || !network.subnets.ipv4.contains(&address) {
            return Err(format!("address {address} is no host's"));
        }
        if vip.ipv6 != network.subnets.ipv6_of(address) {
            return Err(format!("{address} has another IPv6 address"));
        }
        match self.state.block_of(network_id, address) {
            Some((_, node)) => Err(format!("address {address} is leased to node `{node}`")),
            None => Ok(()),
        }
    }

    pub(super) fn network_obstacle(&self, network: &Network) -> Option<&'static str> {
        if self.state.services_in(network.id).any(|service| {
            !service.pending_delete || service.vips.iter().any(|vip| vip.network_id == network.id)
        }) {
            return Some("services are in the network");
        }
        self.state
            .leases_in(network.id)
            .next()
            .map(|_| "nodes still have addresses in the network")
    }

    pub(super) fn lease_obstacle(&self, lease: &AddressLease) -> Option<&'static str> {
        lease
            .blocks
            .iter()
            .any(|block| self.check_unused(lease, *block, |_| false).is_err())
            .then_some("addresses of the lease are in use")
    }

    pub(super) fn set_node_mesh(
        &mut self,
        node_id: NodeId,
        mesh: MeshAddress,
    ) -> Result<(), Rejection> {
        for address in [IpAddr::from(mesh.ipv4), IpAddr::from(mesh.ipv6)] {
            if let Some(holder) = self.state.mesh_holder(address)
                && holder != node_id
            {
                return Err(invalid(
                    ObjectKey::Node(node_id),
                    format!("node `{holder}` has the address {address} in the mesh"),
                ));
            }
        }
        self.change_node(node_id, |node| {
            node.mesh.get_or_insert(mesh);
        });
        Ok(())
    }
}

/// Addresses of a network that no task, container or service gets: its own, its gateway's, the last one.
pub fn is_reserved(network: &Network, address: Ipv4Addr) -> bool {
    let subnets = &network.subnets;
    let of_gateway =
        subnets.gateway_ipv6.is_some() && subnets.ipv6_of(address) == subnets.gateway_ipv6;
    address == subnets.ipv4.network()
        || address == subnets.ipv4.broadcast()
        || address == subnets.gateway
        || of_gateway
}

/// Whether two services can't both publish these: a port on every node meets any other use of that port.
pub fn clash(ours: &PortConfig, theirs: &PortConfig) -> bool {
    let same_port = ours.published != 0
        && (ours.protocol, ours.published) == (theirs.protocol, theirs.published);
    let everywhere = ours.mode == PublishMode::Ingress || theirs.mode == PublishMode::Ingress;
    same_port && everywhere && share_address(ours, theirs)
}

/// Whether two ports are published on a common address.
pub fn share_address(ours: &PortConfig, theirs: &PortConfig) -> bool {
    ours.addrs.is_empty()
        || theirs.addrs.is_empty()
        || ours.addrs.iter().any(|ours| {
            theirs
                .addrs
                .iter()
                .any(|theirs| ours.contains(theirs) || theirs.contains(ours))
        })
}

/// The addresses that a task occupies.
pub(super) fn held_endpoints(task: &Task) -> &[Endpoint] {
    if holds_node(task) {
        &task.endpoints
    } else {
        &[]
    }
}
