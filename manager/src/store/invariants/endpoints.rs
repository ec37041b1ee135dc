//! What may run is where its network is: every address lies in a block that its node has leased, and in the network
//! that is meant; nobody has an address that is no host's.

use crate::store::networks::{held_endpoints, is_reserved};
use crate::store::state::State;
use shoal_model::NodeId;
use shoal_model::network::Endpoint;

pub(super) fn check(state: &State) -> Vec<String> {
    let mut broken = Vec::new();
    for task in state.tasks() {
        let held = held_endpoints(task);
        for endpoint in held {
            let found = fault(state, endpoint, task.node_id);
            broken.extend(found.map(|fault| format!("task `{}`: {fault}", task.id)));
        }
        let wanted = state.networks_of(task).unwrap_or_default();
        let networks = wanted.iter().map(|attachment| attachment.network_id);
        if !held.is_empty() && !networks.eq(held.iter().map(|endpoint| endpoint.network_id)) {
            broken.push(format!("task `{}` is not where its spec says", task.id));
        }
    }
    for attachment in state.attachments() {
        for endpoint in &attachment.endpoints {
            let found = fault(state, endpoint, Some(attachment.node_id));
            let id = attachment.container_id;
            broken.extend(found.map(|fault| format!("container `{id}`: {fault}")));
        }
    }
    broken
}

fn fault(state: &State, endpoint: &Endpoint, node_id: Option<NodeId>) -> Option<String> {
    let address = endpoint.ipv4;
    let Some(network) = state.network(endpoint.network_id) else {
        return Some(format!("{address} is in a network that is not there"));
    };
    if is_reserved(network, address) {
        return Some(format!("{address} is no host's"));
    }
    if network.subnets.ipv6_of(address) != endpoint.ipv6 {
        return Some(format!("{address} has another IPv6 address"));
    }
    let lease = node_id.and_then(|node_id| state.lease(network.id, node_id));
    let leased = lease.is_some_and(|lease| lease.blocks.iter().any(|it| it.contains(&address)));
    (!leased).then(|| format!("{address} is not leased to node {node_id:?}"))
}
