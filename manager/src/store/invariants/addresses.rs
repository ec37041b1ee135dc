//! An address of a network has one holder among tasks, containers and services; one of the mesh has one node.

use crate::store::networks::held_endpoints;
use crate::store::state::State;
use std::collections::BTreeMap;
use std::net::IpAddr;

pub(super) fn check(state: &State) -> Vec<String> {
    let tasks = state.tasks().flat_map(|task| {
        let addresses = held_endpoints(task).iter();
        addresses.map(|it| (it.network_id, it.ipv4, format!("task `{}`", task.id)))
    });
    let containers = state.attachments().flat_map(|attachment| {
        let addresses = attachment.endpoints.iter();
        let id = attachment.container_id;
        addresses.map(move |it| (it.network_id, it.ipv4, format!("container `{id}`")))
    });
    let services = state.services().flat_map(|service| {
        let addresses = service.vips.iter();
        addresses.map(|it| (it.network_id, it.ipv4, format!("service `{}`", service.id)))
    });
    let mut holders: BTreeMap<_, Vec<String>> = BTreeMap::new();
    for (network, address, holder) in tasks.chain(containers).chain(services) {
        holders.entry((network, address)).or_default().push(holder);
    }
    let twice = holders
        .into_iter()
        .filter(|(_, holders)| holders.len() > 1)
        .map(|((network, address), holders)| {
            format!(
                "{address} of network `{network}` belongs to {}",
                holders.join(", ")
            )
        });
    let mut broken: Vec<String> = twice.collect();
    let mut mesh: BTreeMap<IpAddr, _> = BTreeMap::new();
    for node in state.nodes() {
        let Some(own) = node.mesh else { continue };
        for address in [IpAddr::from(own.ipv4), IpAddr::from(own.ipv6)] {
            if let Some(other) = mesh.insert(address, node.id) {
                let node = node.id;
                broken.push(format!(
                    "{address} of the mesh belongs to `{other}` and `{node}`"
                ));
            }
        }
    }
    broken
}
