//! Which tasks a node must know of, and when it must hear of a change.

use crate::store::{Change, Entity, State};
use shoal_model::command::ObjectKey;
use shoal_model::session::{
    AssignmentChange, AssignmentsKind, AssignmentsMessage, CHANGES_PER_MESSAGE_MAX, ManagerPeer,
};
use shoal_model::{Node, NodeId, NodeRole, Task, TaskId, TaskSpec, TaskState, codec};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Bytes of changes after which a message is full, far below what a frame may have.
const MESSAGE_BYTES_FULL: usize = 4 << 20;

/// What a task weighs beside its spec.
const TASK_BYTES_ABOUT: usize = 2 << 10;

/// Whether `node_id` must know `task`: it is bound to the node. Ended tasks are among them, as long as their record
/// is kept: so long the node keeps their containers and logs.
pub fn belongs(task: &Task, node_id: NodeId) -> bool {
    task.node_id == Some(node_id) && task.status.state >= TaskState::Assigned
}

/// The node that has to hear of a change, if the change concerns what a node is told.
///
/// A node is the source of its tasks' statuses, so a new status alone is not told, unless it ended the task.
pub fn node_concerned(change: &Change) -> Option<(NodeId, TaskId)> {
    let ObjectKey::Task(id) = change.key else {
        return None;
    };
    let task = |entity: &Option<Entity>| entity.as_ref().and_then(Entity::as_task).cloned();
    let (before, after) = (task(&change.before), task(&change.after));
    let node_id = after.as_ref().or(before.as_ref())?.node_id?;
    let told = |task: &Option<Arc<Task>>| task.as_ref().is_some_and(|task| belongs(task, node_id));
    let differs = match (told(&before), told(&after)) {
        (false, false) => false,
        (true, false) | (false, true) => true,
        (true, true) => match (&before, &after) {
            (Some(before), Some(after)) => !same_for_node(before, after),
            _ => true,
        },
    };
    differs.then_some((node_id, id))
}

fn same_for_node(before: &Task, after: &Task) -> bool {
    before.desired == after.desired
        && before.volumes == after.volumes
        && before.ports == after.ports
        && before.monitor_until == after.monitor_until
        && before.not_before == after.not_before
        && before.on_partition == after.on_partition
        && before.status.state.is_terminal() == after.status.state.is_terminal()
        && Arc::ptr_eq(&before.spec, &after.spec)
}

/// Whether a task must not hear yet that it is to go.
pub type Holds<'a> = &'a dyn Fn(&Task) -> bool;

/// The task as its node is told it: one that is held is to run. Credentials go before it as long as it may need its
/// image.
fn told(state: &State, task: &Task, holds: Holds<'_>) -> impl Iterator<Item = AssignmentChange> {
    let service = state.service(task.service_id);
    let auth = service.and_then(|service| service.spec.registry_auth.clone());
    let auth = auth.filter(|_| !task.status.state.is_terminal());
    let task_id = task.id;
    let auth = auth.map(|auth| AssignmentChange::RegistryAuth { task_id, auth });
    auth.into_iter().chain([told_task(task, holds)])
}

fn told_task(task: &Task, holds: Holds<'_>) -> AssignmentChange {
    let mut told = Task::clone(task);
    if holds(task) {
        told.desired = TaskState::Running;
    }
    AssignmentChange::UpdateTask(Box::new(told))
}

/// What the node is told of a task now.
fn changes_of(
    state: &State,
    node_id: NodeId,
    id: TaskId,
    holds: Holds<'_>,
) -> Vec<AssignmentChange> {
    match state.task(id) {
        Some(task) if belongs(task, node_id) => told(state, task, holds).collect(),
        Some(_) | None => vec![AssignmentChange::RemoveTask(id)],
    }
}

/// All that the node must know, in messages that follow each other from `sequence` on.
pub fn complete(
    state: &State,
    node_id: NodeId,
    sequence: u64,
    holds: Holds<'_>,
) -> Vec<AssignmentsMessage> {
    let changes = state
        .tasks_by_node(node_id)
        .filter(|task| belongs(task, node_id))
        .flat_map(|task| told(state, task, holds));
    messages(AssignmentsKind::Complete, changes, sequence)
}

/// What the node must know anew of `tasks`.
pub fn incremental(
    state: &State,
    node_id: NodeId,
    tasks: impl IntoIterator<Item = TaskId>,
    sequence: u64,
    holds: Holds<'_>,
) -> Vec<AssignmentsMessage> {
    let changes = tasks
        .into_iter()
        .flat_map(|id| changes_of(state, node_id, id, holds));
    messages(AssignmentsKind::Incremental, changes, sequence)
}

fn messages(
    kind: AssignmentsKind,
    changes: impl Iterator<Item = AssignmentChange>,
    mut sequence: u64,
) -> Vec<AssignmentsMessage> {
    let mut weights = Weights::default();
    let mut pieces = vec![Vec::new()];
    let mut bytes = 0;
    for change in changes {
        let weight = weights.of(&change);
        let full = |piece: &Vec<_>| {
            piece.len() >= CHANGES_PER_MESSAGE_MAX
                || !piece.is_empty() && bytes + weight > MESSAGE_BYTES_FULL
        };
        if pieces.last().is_none_or(full) {
            pieces.push(Vec::new());
            bytes = 0;
        }
        bytes += weight;
        if let Some(piece) = pieces.last_mut() {
            piece.push(change);
        }
    }
    let last = pieces.len() - 1;
    pieces
        .into_iter()
        .enumerate()
        .map(|(place, changes)| {
            sequence += 1;
            AssignmentsMessage {
                kind,
                applies_to: sequence - 1,
                results_in: sequence,
                changes,
                more: place != last,
            }
        })
        .collect()
}

/// Encoded sizes, each spec measured once: the tasks of a service share it.
#[derive(Default)]
struct Weights(BTreeMap<*const TaskSpec, usize>);

impl Weights {
    fn of(&mut self, change: &AssignmentChange) -> usize {
        match change {
            AssignmentChange::UpdateTask(task) => {
                let spec = self.0.entry(Arc::as_ptr(&task.spec)).or_insert_with(|| {
                    codec::encode(&*task.spec).map_or(MESSAGE_BYTES_FULL, |bytes| bytes.len())
                });
                *spec + TASK_BYTES_ABOUT
            }
            AssignmentChange::RemoveTask(_) => size_of::<TaskId>(),
            AssignmentChange::RegistryAuth { auth, .. } => size_of::<TaskId>() + auth.0.len(),
        }
    }
}

/// The managers that a node may ask, in order of their ids.
pub fn managers(state: &State) -> Vec<ManagerPeer> {
    state
        .nodes()
        .filter_map(|node| {
            let manager = node.manager.as_ref()?;
            Some(ManagerPeer {
                node_id: node.id,
                addr: manager.addr,
            })
        })
        .collect()
}

/// The role that a node should have now: a manager that is demoted stays one until it has left Raft.
pub fn wanted_role(node: &Node) -> NodeRole {
    if node.manager.is_some() {
        NodeRole::Manager
    } else {
        node.spec.role
    }
}
