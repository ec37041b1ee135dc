//! Takes tasks off nodes that no longer take them: drained ones, and those that no longer satisfy the constraints.
//!
//! It only ends tasks; the orchestrator makes their replacements. Tasks of nodes that can't be heard are not its
//! business: a drain reaches them when they come back.

use super::runner::{Moment, Pass, Reconciler};
use crate::consensus::IdSource;
use crate::store::{Change, Entity, State};
use shoal_model::command::StoreAction;
use shoal_model::{Availability, Node, NodeId, Task, TaskState};
use shoal_scheduler::{constraint, platform_matches};
use std::collections::BTreeSet;

/// The loop.
#[derive(Debug, Default)]
pub struct Enforcer {
    dirty: BTreeSet<NodeId>,
}

/// Whether `node` may go on running a task with this placement, whatever its load.
pub fn node_admits(node: &Node, task: &Task) -> bool {
    placement_admits(node, &task.spec.placement)
}

/// Whether the availability, the platform and the labels of `node` allow tasks with this placement to stay.
pub(crate) fn placement_admits(node: &Node, placement: &shoal_model::spec::Placement) -> bool {
    node.spec.availability != Availability::Drain
        && platform_matches(&placement.platforms, node)
        && constraint::parse(&placement.constraints)
            .is_ok_and(|all| all.iter().all(|constraint| constraint.matches(node)))
}

/// Ends the tasks that the node must not have any more.
pub fn plan(state: &State, node_id: NodeId) -> Vec<StoreAction> {
    let Some(node) = state.node(node_id) else {
        return Vec::new();
    };
    state
        .tasks_by_node(node_id)
        .filter(|task| {
            task.desired <= TaskState::Running && task.status.state >= TaskState::Assigned
        })
        .filter(|task| !task.status.state.is_terminal() && !node_admits(node, task))
        .map(|task| StoreAction::SetDesired {
            task_id: task.id,
            desired: TaskState::Shutdown,
        })
        .collect()
}

impl Reconciler for Enforcer {
    const NAME: &'static str = "constraint enforcer";

    fn reset(&mut self, state: &State) {
        self.dirty = state.nodes().map(|node| node.id).collect();
    }

    fn note(&mut self, change: &Change, _: &State) {
        match &change.after {
            Some(Entity::Node(node)) => {
                self.dirty.insert(node.id);
            }
            // Bound to the node between its change and the last pass.
            Some(Entity::Task(task)) if task.status.state == TaskState::Assigned => {
                self.dirty.extend(task.node_id);
            }
            Some(
                Entity::Task(_)
                | Entity::Service(_)
                | Entity::Volume(_)
                | Entity::Cluster(_)
                | Entity::Network(_)
                | Entity::Lease(_)
                | Entity::Attachment(_),
            )
            | None => {}
        }
    }

    fn plan(&mut self, state: &State, _: Moment, _: &dyn IdSource) -> Pass {
        let dirty = std::mem::take(&mut self.dirty);
        Pass {
            actions: dirty.into_iter().flat_map(|id| plan(state, id)).collect(),
            wake_after: None,
        }
    }
}
