//! Tasks have a desired state that managers may write, never observe `remove`, and have a node once they are assigned.

use crate::store::state::State;
use crate::store::tasks::{holds_node, is_desired_state};
use shoal_model::TaskState;

pub(super) fn check(state: &State) -> Vec<String> {
    let mut broken = Vec::new();
    for task in state.tasks() {
        if !is_desired_state(task.desired) {
            broken.push(format!("task `{}` desires {}", task.id, task.desired));
        }
        if task.status.state == TaskState::Remove {
            broken.push(format!("task `{}` was observed as removed", task.id));
        }
        let bound = (TaskState::Assigned..=TaskState::Running).contains(&task.status.state);
        if bound && !holds_node(task) {
            broken.push(format!(
                "task `{}` is {} nowhere",
                task.id, task.status.state
            ));
        }
    }
    broken
}
