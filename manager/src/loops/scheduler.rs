//! Gives pending tasks their nodes, or the reasons why they have none.

use super::runner::{Moment, Pass, Reconciler};
use crate::consensus::IdSource;
use crate::store::{Change, Entity, State, holds_node};
use shoal_model::command::StoreAction;
use shoal_model::task::Refusal;
use shoal_model::{NodeId, Task, TaskId, TaskState, TaskStatus, Timestamp, VolumeId};
use shoal_scheduler::{Cluster, TaskRequest, schedule};
use std::collections::BTreeSet;
use std::time::Duration;

/// What a task without a node says.
const NO_NODE_MESSAGE: &str = "no suitable node";

/// The loop: a view of the cluster that follows the store.
#[derive(Debug, Default)]
pub struct SchedulerLoop {
    cluster: Cluster,
    /// Something changed that may give a waiting task a node.
    relevant: bool,
}

/// A fresh view of everything in `state`.
pub fn cluster_of(state: &State) -> Cluster {
    let mut cluster = Cluster::new();
    state.nodes().for_each(|node| cluster.upsert_node(node));
    state
        .volumes()
        .for_each(|volume| cluster.upsert_volume(volume));
    state.tasks().for_each(|task| cluster.upsert_task(task));
    cluster
}

/// Places what waits. `cluster` is the view of `state`, and holds the placements afterwards.
pub fn plan(state: &State, cluster: &mut Cluster, now: Timestamp, ids: &dyn IdSource) -> Pass {
    let mut pass = Pass::default();
    let mut requests = Vec::new();
    for task in state.tasks_unassigned() {
        match task.not_before.filter(|&at| at > now) {
            Some(at) => pass.wake_after(at.since(now)),
            None => requests.push(TaskRequest::from(&**task)),
        }
    }
    if requests.is_empty() {
        return pass;
    }
    let decided = schedule(cluster, &requests, now);
    let assigned = decided
        .placements
        .iter()
        .filter_map(|&(task_id, node_id)| assign(state, task_id, node_id, ids));
    let refused = decided
        .unplaced
        .into_iter()
        .filter_map(|(task_id, refusals)| refuse(state, task_id, refusals, now));
    pass.actions = assigned.chain(refused).collect();
    pass
}

fn assign(
    state: &State,
    task_id: TaskId,
    node_id: NodeId,
    ids: &dyn IdSource,
) -> Option<StoreAction> {
    let task = state.task(task_id)?;
    let names: BTreeSet<&str> = task.spec.named_volumes().collect();
    let new_volumes = names
        .into_iter()
        .filter(|name| state.volume_by_name(node_id, name).is_none())
        .map(|name| (VolumeId::from_bits(ids.bits()), name.to_owned()))
        .collect();
    Some(StoreAction::Assign {
        task_id,
        version: task.meta.version,
        node_id,
        new_volumes,
        endpoints: Vec::new(),
    })
}

/// Writes the reasons down, unless they stand there already.
fn refuse(
    state: &State,
    task_id: TaskId,
    refusals: Vec<Refusal>,
    now: Timestamp,
) -> Option<StoreAction> {
    let task = state.task(task_id)?;
    if task.status.refusals == refusals {
        return None;
    }
    let reasons = refusals.iter().map(|refusal| refusal.reason.as_str());
    let err = format!(
        "{NO_NODE_MESSAGE} ({})",
        reasons.collect::<Vec<_>>().join("; ")
    );
    let status = TaskStatus {
        state: TaskState::Pending,
        at: now,
        message: "pending task scheduling".to_owned(),
        err,
        refusals,
        ..TaskStatus::default()
    };
    Some(StoreAction::SetTaskStatus {
        task_id,
        status: Box::new(status),
    })
}

/// Whether the change of a task may give another one, or itself, a node.
fn task_matters(before: Option<&Task>, after: Option<&Task>) -> bool {
    let waits =
        |task: &Task| task.status.state < TaskState::Assigned && task.desired <= TaskState::Running;
    let freed = before.is_some_and(|before| {
        let wanted = |task: &Task| task.desired <= TaskState::Running;
        holds_node(before)
            && after.is_none_or(|after| !holds_node(after) || (wanted(before) && !wanted(after)))
    });
    let new = after.is_some_and(waits) && !before.is_some_and(waits);
    freed || new
}

impl Reconciler for SchedulerLoop {
    const NAME: &'static str = "scheduler";

    fn reset(&mut self, state: &State) {
        self.cluster = cluster_of(state);
        self.relevant = true;
    }

    fn note(&mut self, change: &Change, _: &State) {
        match (&change.before, &change.after) {
            (_, Some(Entity::Node(node))) => {
                self.cluster.upsert_node(node);
                self.relevant = true;
            }
            (Some(Entity::Node(node)), None) => {
                self.cluster.remove_node(node.id);
                self.relevant = true;
            }
            (before, Some(Entity::Task(task))) => {
                let before = before.as_ref().and_then(Entity::as_task);
                self.relevant |= task_matters(before.map(|task| &**task), Some(task));
                self.cluster.upsert_task(task);
            }
            (Some(Entity::Task(task)), None) => {
                self.relevant |= task_matters(Some(task), None);
                self.cluster.remove_task(task.id);
            }
            (_, Some(Entity::Volume(volume))) => {
                self.cluster.upsert_volume(volume);
                self.relevant = true;
            }
            (Some(Entity::Volume(volume)), None) => {
                self.cluster.remove_volume(volume.id);
                self.relevant = true;
            }
            (Some(Entity::Service(service)), None) => self.cluster.forget_service(service.id),
            (
                _,
                Some(
                    Entity::Service(_)
                    | Entity::Network(_)
                    | Entity::Lease(_)
                    | Entity::Attachment(_)
                    | Entity::Cluster(_),
                ),
            )
            | (
                Some(
                    Entity::Cluster(_)
                    | Entity::Network(_)
                    | Entity::Lease(_)
                    | Entity::Attachment(_),
                ),
                None,
            )
            | (None, None) => {}
        }
    }

    fn plan(&mut self, state: &State, now: Moment, ids: &dyn IdSource) -> Pass {
        // A wake-up without a change comes from the timer of a task whose delay has passed.
        let relevant = std::mem::take(&mut self.relevant);
        let due = |task: &Task| task.not_before.is_some_and(|at| at <= now.wall);
        if !relevant && !state.tasks_unassigned().any(|task| due(task)) {
            return delays(state, now.wall);
        }
        plan(state, &mut self.cluster, now.wall, ids)
    }
}

/// Only the wake-up of the next delayed task.
fn delays(state: &State, now: Timestamp) -> Pass {
    let mut pass = Pass::default();
    state
        .tasks_unassigned()
        .filter_map(|task| task.not_before)
        .filter(|&at| at > now)
        .for_each(|at| pass.wake_after(at.since(now).max(Duration::from_millis(1))));
    pass
}
