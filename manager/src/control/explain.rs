//! `svc explain`: why tasks are not where the user wants them, and what would help.

use super::core::Core;
use super::error::Failure;
use crate::loops::scheduler::NETWORK_FILTER;
use crate::store::State;
use shoal_model::control::{ControlResponse, Explanation, TaskExplanation};
use shoal_model::{NodeState, Service, ServiceId, ServiceMode, Task, TaskState};
use shoal_scheduler::TaskRequest;
use std::collections::BTreeMap;

/// Most tasks that one answer explains; the summary counts them all.
const TASKS_EXPLAINED_MAX: usize = 50;

impl Core {
    pub(super) fn explain_service(
        &self,
        state: &State,
        id: ServiceId,
    ) -> Result<ControlResponse, Failure> {
        let service = state
            .service(id)
            .ok_or_else(|| Failure::not_found("service", id))?;
        Ok(ControlResponse::Explanation(Box::new(explain(
            state, service,
        ))))
    }
}

fn explain(state: &State, service: &Service) -> Explanation {
    let misplaced: Vec<_> = newest_of_slots(state, service)
        .into_iter()
        .filter(|task| !is_fine(task))
        .collect();
    let placement = misplaced
        .iter()
        .any(|task| task.status.state < TaskState::Assigned)
        .then(|| scheduler_view(state));
    let tasks = misplaced
        .iter()
        .take(TASKS_EXPLAINED_MAX)
        .map(|task| explain_task(state, task, placement.as_ref()))
        .collect();
    Explanation {
        summary: summary(state, service, misplaced.len()),
        tasks,
    }
}

fn summary(state: &State, service: &Service, misplaced: usize) -> String {
    let name = &service.spec.name;
    let running = state
        .tasks_by_service(service.id)
        .filter(|task| task.desired == TaskState::Running)
        .filter(|task| task.status.state == TaskState::Running)
        .count();
    let wanted = match service.spec.mode {
        ServiceMode::Replicated { replicas } => format!("{running} of {replicas} tasks run"),
        ServiceMode::Global => format!("{running} tasks run, one per node that fits"),
    };
    let state = if service.pending_delete {
        ": the service is being removed and waits until its tasks have stopped".to_owned()
    } else if misplaced > TASKS_EXPLAINED_MAX {
        format!(
            "; {misplaced} are not where they should be, the first {TASKS_EXPLAINED_MAX} are explained"
        )
    } else if misplaced > 0 {
        format!("; {misplaced} are not where they should be")
    } else {
        String::new()
    };
    format!("service `{name}`: {wanted}{state}")
}

/// The task of each slot that counts: the newest one that is wanted, else the newest one.
fn newest_of_slots<'a>(state: &'a State, service: &Service) -> Vec<&'a Task> {
    let mut slots: BTreeMap<_, &Task> = BTreeMap::new();
    for task in state.tasks_by_service(service.id) {
        let place = (task.slot, (task.slot == 0).then_some(task.node_id));
        let rank = |task: &Task| {
            let wanted = task.desired <= TaskState::Running;
            (wanted, task.meta.created_at, task.id)
        };
        let newest = slots.entry(place).or_insert(task);
        if rank(task) > rank(newest) {
            *newest = task;
        }
    }
    slots.into_values().collect()
}

/// Runs as wanted, or has ended as wanted.
fn is_fine(task: &Task) -> bool {
    let runs = task.status.state == TaskState::Running && task.status.ready;
    let ended = task.status.state == TaskState::Complete;
    let unwanted = task.desired > TaskState::Running && task.status.state.is_terminal();
    runs || ended || unwanted
}

fn scheduler_view(state: &State) -> shoal_scheduler::Cluster {
    let mut view = shoal_scheduler::Cluster::new();
    for node in state.nodes() {
        view.upsert_node(node);
    }
    for volume in state.volumes() {
        view.upsert_volume(volume);
    }
    for task in state.tasks() {
        view.upsert_task(task);
    }
    view
}

fn explain_task(
    state: &State,
    task: &Task,
    placement: Option<&shoal_scheduler::Cluster>,
) -> TaskExplanation {
    let mut explanation = TaskExplanation {
        task_id: task.id,
        name: task.name(),
        state: format!("{}, wanted: {}", task.status.state, task.desired),
        reason: reason(task),
        fix: String::new(),
        nodes: Vec::new(),
    };
    if task.status.state < TaskState::Assigned {
        if let Some(placement) = placement {
            explanation.nodes = shoal_scheduler::explain(placement, &TaskRequest::from(task));
        }
        explain_waiting(state, task, &mut explanation);
    } else if let Some(text) = unreachable_node(state, task) {
        explanation.reason = text;
        explanation.fix = "bring the node back; the task is replaced elsewhere once the down limit has passed, unless \
                           its volume keeps it there"
            .to_owned();
    } else if !task.status.err.is_empty() {
        // A task that never ran has no log to look into.
        explanation.fix = match task.status.state {
            TaskState::Assigned
            | TaskState::Accepted
            | TaskState::Preparing
            | TaskState::Rejected => {
                "correct the service with `shoal svc update`, or bring about on the node what is missing; it is tried \
                 again by itself"
            }
            _ => "see `shoal svc logs` and correct the service with `shoal svc update`",
        }
        .to_owned();
    }
    explanation
}

fn reason(task: &Task) -> String {
    let status = &task.status;
    if !status.err.is_empty() {
        return status.err.clone();
    }
    if let Some(exit) = status.exits.last() {
        let reason = if exit.reason.is_empty() {
            String::new()
        } else {
            format!(": {}", exit.reason)
        };
        return format!(
            "its container ended with exit code {}{reason} ({} restarts)",
            exit.exit_code, status.restarts
        );
    }
    if status.state == TaskState::Running && !status.ready {
        return "it runs and is not ready yet: its health check has not passed".to_owned();
    }
    status.message.clone()
}

/// A task without a node: no node takes it, or it has only just been made.
fn explain_waiting(state: &State, task: &Task, explanation: &mut TaskExplanation) {
    let fitting = explanation
        .nodes
        .iter()
        .any(|node| node.refusals.is_empty());
    let mut refusals: Vec<_> = task.status.refusals.iter().collect();
    // What keeps most nodes away comes first; of equals what was asked last, which is nearer to the service's own wishes
    // than whether a node is ready.
    refusals.reverse();
    refusals.sort_by_key(|refusal| std::cmp::Reverse(refusal.nodes));
    let no_address = task
        .status
        .refusals
        .iter()
        .find(|it| it.filter == NETWORK_FILTER);
    if let Some(refusal) = no_address.filter(|_| fitting) {
        // A node fits, and the network has no address for the task there or anywhere else.
        explanation.reason.clone_from(&refusal.reason);
        explanation.fix.clone_from(&refusal.fix);
    } else if let Some(refusal) = refusals.first().filter(|_| !fitting) {
        let all = refusals.iter().map(|r| r.reason.as_str());
        explanation.reason = all.collect::<Vec<_>>().join("; ");
        explanation.fix.clone_from(&refusal.fix);
    } else if explanation.nodes.is_empty() {
        explanation.reason = "there is no node that it could run on".to_owned();
        explanation.fix = "let a node join (`shoal join-token worker`)".to_owned();
    } else if let Some(failed) = failed_before(state, task).filter(|_| fitting) {
        explanation.reason = format!(
            "the task before it failed{}: {}; it is tried again, with a growing delay",
            on_node(state, failed),
            failed.status.err
        );
        explanation.fix =
            "correct the service with `shoal svc update`, or bring about what is missing"
                .to_owned();
    } else if fitting {
        explanation.reason = "it waits for the scheduler; a node fits".to_owned();
    } else if let Some(refusal) = explanation.nodes.iter().find_map(|n| n.refusals.first()) {
        explanation.reason = format!("no node takes it: {}", refusal.reason);
        explanation.fix.clone_from(&refusal.fix);
    }
}

/// The last task in the same place, if it failed with a reason.
fn failed_before<'a>(state: &'a State, task: &Task) -> Option<&'a Task> {
    let place = |task: &Task| (task.slot, (task.slot == 0).then_some(task.node_id));
    state
        .tasks_by_service(task.service_id)
        .filter(|other| other.id != task.id && place(other) == place(task))
        .max_by_key(|other| (other.meta.created_at, other.id))
        .filter(|other| matches!(other.status.state, TaskState::Failed | TaskState::Rejected))
        .filter(|other| !other.status.err.is_empty())
        .map(|other| &**other)
}

fn on_node(state: &State, task: &Task) -> String {
    let node = task.node_id.and_then(|id| state.node(id));
    node.map_or_else(String::new, |node| format!(" on `{}`", node.display_name()))
}

fn unreachable_node(state: &State, task: &Task) -> Option<String> {
    let node = state.node(task.node_id?)?;
    match node.status.state {
        NodeState::Ready => None,
        NodeState::Unknown | NodeState::Down | NodeState::Disconnected => Some(format!(
            "its node `{}` is {}: {}",
            node.display_name(),
            node.status.state.as_str(),
            node.status.message
        )),
    }
}
