//! A host port of a node belongs to one task.

use crate::store::state::State;
use crate::store::tasks::{holds_node, host_ports};
use std::collections::BTreeMap;

pub(super) fn check(state: &State) -> Vec<String> {
    let mut holders: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for task in state.tasks().filter(|task| holds_node(task)) {
        for (protocol, port) in host_ports(task) {
            let place = (task.node_id, protocol.as_str(), port);
            let tasks = holders.entry(place).or_default();
            if !tasks.contains(&task.id) {
                tasks.push(task.id);
            }
        }
    }
    holders
        .into_iter()
        .filter(|(_, tasks)| tasks.len() > 1)
        .map(|((node, protocol, port), tasks)| {
            format!("port {port}/{protocol} of {node:?} has {tasks:?}")
        })
        .collect()
}
