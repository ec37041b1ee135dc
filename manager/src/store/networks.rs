//! The rules of networks, leases and attachments.

use super::apply::{Transaction, check_version, invalid};
use super::change::Entity;
use shoal_model::command::{Object, ObjectKey, Rejection};
use shoal_model::network::{AddressLease, Attachment, MeshAddress, Network};
use shoal_model::{Meta, NodeId};
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
                let mut lease = AddressLease::clone(lease);
                lease.meta = self.meta(Some(&before.meta));
                self.put(Entity::Lease(Arc::new(lease)));
            }
            (Entity::Attachment(before), Object::Attachment(attachment)) => {
                check_version(key, attachment.meta.version, before.meta.version)?;
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
        let others = || self.state.networks().filter(|other| other.id != network.id);
        if let Some(holder) = others().find(|other| other.spec.name == network.spec.name) {
            return Err(Rejection::NameTaken {
                kind: "network".to_owned(),
                name: network.spec.name.clone(),
                holder: holder.id.to_string(),
            });
        }
        let ours = network.subnets.ipv4;
        let overlapping = others().find(|other| {
            let theirs = other.subnets.ipv4;
            theirs.contains(&ours) || ours.contains(&theirs)
        });
        match overlapping {
            Some(_) => Err(invalid(
                key,
                "its subnet overlaps the subnet of another network",
            )),
            None => Ok(()),
        }
    }

    fn check_lease(&self, lease: &AddressLease) -> Result<(), Rejection> {
        let key = ObjectKey::Lease(lease.network_id, lease.node_id);
        let Some(network) = self.state.network(lease.network_id) else {
            return Err(Rejection::NotFound(ObjectKey::Network(lease.network_id)));
        };
        if lease
            .blocks
            .iter()
            .any(|block| !network.subnets.range.contains(block))
        {
            return Err(invalid(key, "a block lies outside of the network's range"));
        }
        Ok(())
    }

    pub(super) fn network_obstacle(&self, network: &Network) -> Option<&'static str> {
        self.state
            .leases()
            .any(|lease| lease.network_id == network.id)
            .then_some("nodes still have addresses in the network")
    }

    pub(super) fn lease_obstacle(&self, lease: &AddressLease) -> Option<&'static str> {
        let of_task = self
            .state
            .tasks_by_node(lease.node_id)
            .filter(|task| !task.status.state.is_terminal())
            .flat_map(|task| task.endpoints.iter())
            .any(|endpoint| endpoint.network_id == lease.network_id);
        let of_container = self
            .state
            .attachments()
            .filter(|attachment| attachment.node_id == lease.node_id)
            .flat_map(|attachment| attachment.endpoints.iter())
            .any(|endpoint| endpoint.network_id == lease.network_id);
        (of_task || of_container).then_some("addresses of the lease are in use")
    }

    pub(super) fn set_node_mesh(
        &mut self,
        node_id: NodeId,
        mesh: MeshAddress,
    ) -> Result<(), Rejection> {
        let key = ObjectKey::Node(node_id);
        let taken = |other: MeshAddress| other.ipv4 == mesh.ipv4 || other.ipv6 == mesh.ipv6;
        let holder = self
            .state
            .nodes()
            .find(|node| node.id != node_id && node.mesh.is_some_and(taken));
        if holder.is_some() {
            return Err(invalid(key, "another node has the address in the mesh"));
        }
        self.change_node(node_id, |node| {
            node.mesh.get_or_insert(mesh);
        });
        Ok(())
    }
}
