//! Names are unique: services, nodes and networks in the cluster, volumes on their node.

use crate::store::state::State;
use std::collections::BTreeMap;

pub(super) fn check(state: &State) -> Vec<String> {
    let services = state
        .services()
        .filter(|service| !service.pending_delete)
        .map(|service| ("service", service.spec.name.clone()));
    let nodes = state
        .nodes()
        .filter(|node| !node.spec.name.is_empty())
        .map(|node| ("node", node.spec.name.clone()));
    let volumes = state
        .volumes()
        .map(|volume| ("volume", format!("{} on {}", volume.name, volume.node_id)));
    let networks = state
        .networks()
        .map(|network| ("network", network.spec.name.clone()));
    let mut seen: BTreeMap<_, u32> = BTreeMap::new();
    for name in services.chain(nodes).chain(volumes).chain(networks) {
        *seen.entry(name).or_default() += 1;
    }
    seen.into_iter()
        .filter(|(_, count)| *count > 1)
        .map(|((kind, name), count)| format!("{count} objects are {kind} `{name}`"))
        .collect()
}
