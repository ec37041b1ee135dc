//! Deletes what nobody needs any more: old tasks, removed tasks that have ended, services whose last task is gone.
//!
//! A record is deleted only when nothing of it can still run: its node has reported the end, or has left the cluster,
//! or has been silent for [`ORPHAN_AFTER`].

use super::runner::{Moment, Pass, Reconciler};
use crate::consensus::IdSource;
use crate::store::{Change, Entity, State, holds_node};
use shoal_model::command::{ObjectKey, StoreAction};
use shoal_model::{NodeId, NodeState, Service, ServiceId, Task, TaskState, TaskStatus, Timestamp};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// Silence of a node after which the fate of its tasks is given up.
pub const ORPHAN_AFTER: Duration = Duration::from_secs(24 * 3600);

/// Most ended tasks per slot that are kept for counting restarts, whatever `max_attempts` says.
const ATTEMPTS_KEPT_MAX: u64 = 100;

/// The loop.
#[derive(Debug, Default)]
pub struct Reaper {
    services: BTreeSet<ServiceId>,
    nodes: BTreeSet<NodeId>,
    /// Tasks of nodes that are no longer known.
    everything: bool,
}

/// Cleans up one service: its removal, and the history of its slots.
pub fn plan_service(state: &State, service: &Service) -> Vec<StoreAction> {
    let mut actions = Vec::new();
    let mut history: BTreeMap<(u64, Option<NodeId>), Vec<&Arc<Task>>> = BTreeMap::new();
    let mut left = 0usize;
    for task in state.tasks_by_service(service.id) {
        let unwanted = service.pending_delete || task.desired == TaskState::Remove;
        // One that never got a node has no history to tell once it is not wanted.
        let never_ran = task.status.state < TaskState::Assigned;
        let ended = task.desired > TaskState::Running && !holds_node(task);
        if (unwanted || (ended && never_ran)) && !holds_node(task) {
            actions.push(remove(task));
            continue;
        }
        left += 1;
        if unwanted && task.desired < TaskState::Remove {
            actions.push(StoreAction::SetDesired {
                task_id: task.id,
                desired: TaskState::Remove,
            });
        } else if ended {
            let node = task.node_id.filter(|_| task.slot == 0);
            history.entry((task.slot, node)).or_default().push(task);
        }
    }
    let kept = history_max(state, service);
    for mut tasks in history.into_values() {
        tasks.sort_by_key(|task| std::cmp::Reverse((task.meta.created_at, task.id)));
        actions.extend(tasks.into_iter().skip(kept).map(|task| remove(task)));
    }
    if service.pending_delete && left == 0 {
        actions.push(StoreAction::Remove {
            key: ObjectKey::Service(service.id),
            version: None,
        });
    }
    actions
}

/// Gives up on the tasks of a node that is gone for good, and forgets them when nobody wants them.
pub fn plan_node(state: &State, node_id: NodeId, now: Timestamp) -> Pass {
    let mut pass = Pass::default();
    let lost = match state.node(node_id) {
        None => true,
        Some(node) => match node.status.state {
            NodeState::Down | NodeState::Disconnected => {
                let silent = now.since(node.meta.updated_at);
                if silent < ORPHAN_AFTER {
                    pass.wake_after(ORPHAN_AFTER - silent);
                }
                silent >= ORPHAN_AFTER
            }
            NodeState::Ready | NodeState::Unknown => false,
        },
    };
    if !lost {
        return pass;
    }
    pass.actions = state
        .tasks_by_node(node_id)
        .filter(|task| holds_node(task))
        .map(|task| StoreAction::SetTaskStatus {
            task_id: task.id,
            status: Box::new(TaskStatus {
                state: TaskState::Orphaned,
                at: now,
                message: "its node has gone and its fate will not be known".to_owned(),
                ready: false,
                ..task.status.clone()
            }),
        })
        .collect();
    if state.node(node_id).is_none() {
        let dataless = state
            .volumes_by_node(node_id)
            .filter(|volume| volume.bound_slots.is_empty());
        pass.actions
            .extend(dataless.map(|volume| StoreAction::Remove {
                key: ObjectKey::Volume(volume.id),
                version: Some(volume.meta.version),
            }));
    }
    pass
}

fn remove(task: &Task) -> StoreAction {
    StoreAction::Remove {
        key: ObjectKey::Task(task.id),
        version: Some(task.meta.version),
    }
}

/// How many ended tasks a slot keeps: what the cluster says, and as many as are needed to count restarts.
fn history_max(state: &State, service: &Service) -> usize {
    let configured = state
        .cluster()
        .map_or(0, |cluster| cluster.spec.task_history_max);
    let attempts = service.spec.task.restart.max_attempts.unwrap_or(0);
    let kept = configured.max(attempts.min(ATTEMPTS_KEPT_MAX));
    usize::try_from(kept).unwrap_or(usize::MAX)
}

impl Reconciler for Reaper {
    const NAME: &'static str = "reaper";

    fn reset(&mut self, state: &State) {
        self.services = state.services().map(|service| service.id).collect();
        self.nodes = state.nodes().map(|node| node.id).collect();
        self.everything = true;
    }

    fn note(&mut self, change: &Change, _: &State) {
        match change.newest() {
            Some(Entity::Service(service)) => {
                self.services.insert(service.id);
            }
            Some(Entity::Task(task)) => {
                self.services.insert(task.service_id);
            }
            Some(Entity::Node(node)) => {
                self.nodes.insert(node.id);
            }
            Some(Entity::Cluster(_)) => self.everything = true,
            Some(
                Entity::Volume(_) | Entity::Network(_) | Entity::Lease(_) | Entity::Attachment(_),
            )
            | None => {}
        }
    }

    fn plan(&mut self, state: &State, now: Moment, _: &dyn IdSource) -> Pass {
        if std::mem::take(&mut self.everything) {
            self.services = state.services().map(|service| service.id).collect();
            self.nodes
                .extend(state.tasks().filter_map(|task| task.node_id));
            self.nodes
                .extend(state.volumes().map(|volume| volume.node_id));
        }
        let mut pass = Pass::default();
        for id in std::mem::take(&mut self.services) {
            if let Some(service) = state.service(id) {
                pass.actions.extend(plan_service(state, service));
            }
        }
        for id in std::mem::take(&mut self.nodes) {
            let node = plan_node(state, id, now.wall);
            pass.actions.extend(node.actions);
            if let Some(wait) = node.wake_after {
                // The node must be looked at again then, though nothing will have changed.
                pass.wake_after(wait);
                self.nodes.insert(id);
            }
        }
        pass
    }
}
