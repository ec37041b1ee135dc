//! A task belongs to a service that is there, and what it holds is on a node that is there.

use crate::store::state::State;
use crate::store::tasks::holds_node;

pub(super) fn check(state: &State) -> Vec<String> {
    let mut broken = Vec::new();
    for task in state.tasks() {
        if state.service(task.service_id).is_none() {
            broken.push(format!("task `{}` has no service", task.id));
        }
        let node = task.node_id.and_then(|id| state.node(id));
        if holds_node(task) && node.is_none() {
            broken.push(format!("task `{}` holds a node that has left", task.id));
        }
    }
    broken
}
