//! A Raft id names one node, and was given out by the cluster.

use crate::store::state::State;
use std::collections::BTreeMap;

pub(super) fn check(state: &State) -> Vec<String> {
    let mut broken = Vec::new();
    let last = state.cluster().map(|cluster| cluster.last_raft_id);
    let mut holders = BTreeMap::new();
    for node in state.nodes() {
        let Some(manager) = &node.manager else {
            continue;
        };
        if let Some(other) = holders.insert(manager.raft_id, node.id) {
            broken.push(format!(
                "`{other}` and `{}` share {}",
                node.id, manager.raft_id
            ));
        }
        if last.is_some_and(|last| manager.raft_id.0 > last) {
            broken.push(format!("{} was not given out", manager.raft_id));
        }
    }
    broken
}
