//! Gives pending tasks their nodes, or the reasons why they have none.

use super::runner::{Moment, Pass, Reconciler};
use crate::allocator::{Addresses, AllocationError};
use crate::consensus::IdSource;
use crate::store::{Change, Entity, State, holds_node};
use shoal_model::command::StoreAction;
use shoal_model::network::Endpoint;
use shoal_model::task::Refusal;
use shoal_model::{NodeId, Task, TaskId, TaskState, TaskStatus, Timestamp, VolumeId};
use shoal_scheduler::{Cluster, TaskRequest, schedule};
use std::collections::BTreeSet;
use std::time::Duration;

/// Name of the refusals of tasks that get no address.
pub(crate) const NETWORK_FILTER: &str = "network";

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

/// What was decided.
#[derive(Debug, Default)]
pub struct Placed {
    /// What to propose.
    pub pass: Pass,
    /// Tasks wait for addresses that change their nodes with this pass: plan again once it is made.
    pub again: bool,
}

/// Places what waits. `cluster` is the view of `state`, and holds the placements afterwards.
pub fn plan(state: &State, cluster: &mut Cluster, now: Timestamp, ids: &dyn IdSource) -> Placed {
    let mut placed = Placed::default();
    let pass = &mut placed.pass;
    let mut requests = Vec::new();
    for task in state.tasks_unassigned() {
        match task.not_before.filter(|&at| at > now) {
            Some(at) => pass.wake_after(at.since(now)),
            None => requests.push(TaskRequest::from(&**task)),
        }
    }
    if requests.is_empty() {
        return placed;
    }
    let decided = schedule(cluster, &requests, now);
    let mut addresses = Addresses::new(state);
    let mut assigned = Vec::with_capacity(decided.placements.len());
    let mut unplaced = decided.unplaced;
    for (task_id, node_id) in decided.placements {
        let Some(task) = state.task(task_id) else {
            continue;
        };
        match endpoints(state, &mut addresses, task, node_id) {
            Ok(endpoints) => assigned.push(assign(state, task, node_id, endpoints, ids)),
            Err(err) => {
                // The placement is taken back: the view shows the task as the store has it.
                cluster.upsert_task(task);
                if matches!(err, AllocationError::Moving { .. }) {
                    placed.again = true;
                } else {
                    unplaced.push((task_id, vec![no_address(&err)]));
                }
            }
        }
    }
    let refused = unplaced
        .into_iter()
        .filter_map(|(task_id, refusals)| refuse(state, task_id, refusals, now));
    // Leases come first: an entry that holds an assignment, or one before it, holds its lease.
    pass.actions = addresses.into_actions();
    pass.actions.extend(assigned);
    pass.actions.extend(refused);
    placed
}

/// The addresses that the task needs on its node.
fn endpoints(
    state: &State,
    addresses: &mut Addresses<'_>,
    task: &Task,
    node_id: NodeId,
) -> Result<Vec<Endpoint>, AllocationError> {
    if !task.needs_network() {
        return Ok(Vec::new());
    }
    let networks = state.networks_of(task).ok_or(AllocationError::NoIngress)?;
    addresses.endpoints(&networks, node_id, task.id.bits())
}

fn no_address(err: &AllocationError) -> Refusal {
    let fix = match err {
        AllocationError::Exhausted { .. } => {
            "remove tasks or containers of the network, or make a larger one and update the service to it"
        }
        AllocationError::NoNetwork(_) => "update the service to a network that exists",
        AllocationError::NoIngress
        | AllocationError::Moving { .. }
        | AllocationError::Invalid { .. }
        | AllocationError::Overlap { .. }
        | AllocationError::NoSubnet { .. }
        | AllocationError::NoIpv6Subnet { .. }
        | AllocationError::AddressTaken { .. }
        | AllocationError::BadAddress { .. }
        | AllocationError::PortTaken { .. }
        | AllocationError::NoPort { .. }
        | AllocationError::NoMeshAddress { .. } => "wait, or see the log of the leading manager",
    };
    Refusal {
        filter: NETWORK_FILTER.to_owned(),
        reason: err.to_string(),
        fix: fix.to_owned(),
        nodes: 0,
    }
}

fn assign(
    state: &State,
    task: &Task,
    node_id: NodeId,
    endpoints: Vec<Endpoint>,
    ids: &dyn IdSource,
) -> StoreAction {
    let names: BTreeSet<&str> = task.spec.named_volumes().collect();
    let new_volumes = names
        .into_iter()
        .filter(|name| state.volume_by_name(node_id, name).is_none())
        .map(|name| (VolumeId::from_bits(ids.bits()), name.to_owned()))
        .collect();
    StoreAction::Assign {
        task_id: task.id,
        version: task.meta.version,
        node_id,
        new_volumes,
        endpoints,
    }
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
            (Some(Entity::Service(service)), None) => {
                self.cluster.forget_service(service.id);
                // Its virtual addresses are free.
                self.relevant |= !service.vips.is_empty();
            }
            // Addresses that a task waits for may be there now.
            (_, Some(Entity::Network(_)))
            | (Some(Entity::Network(_) | Entity::Lease(_) | Entity::Attachment(_)), None) => {
                self.relevant = true;
            }
            (
                _,
                Some(
                    Entity::Service(_)
                    | Entity::Lease(_)
                    | Entity::Attachment(_)
                    | Entity::Cluster(_),
                ),
            )
            | (Some(Entity::Cluster(_)), None)
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
        let placed = plan(state, &mut self.cluster, now.wall, ids);
        let mut pass = placed.pass;
        if placed.again {
            self.relevant = true;
            pass.wake_after(Duration::ZERO);
        }
        pass
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
