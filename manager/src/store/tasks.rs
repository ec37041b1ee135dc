//! Rules about the states of a task.

use shoal_model::spec::{Protocol, PublishMode};
use shoal_model::{Task, TaskState, TaskStatus};

/// The task counts against its node: bound to it, and not known to have ended. A global task that only waits for its
/// node holds nothing yet.
pub fn holds_node(task: &Task) -> bool {
    task.node_id.is_some()
        && task.status.state >= TaskState::Assigned
        && !task.status.state.is_terminal()
}

/// Waits for the scheduler.
pub(super) fn is_unassigned(task: &Task) -> bool {
    task.status.state < TaskState::Assigned && task.desired <= TaskState::Running
}

/// May be deleted at once: nobody wants it, and it runs nowhere.
pub(super) fn is_removable(task: &Task) -> bool {
    task.desired == TaskState::Remove && !holds_node(task)
}

/// Desired states that managers may write.
pub(super) const fn is_desired_state(state: TaskState) -> bool {
    matches!(
        state,
        TaskState::Ready | TaskState::Running | TaskState::Shutdown | TaskState::Remove
    )
}

/// Whether `next` is a step forward from the desired state `now`.
pub fn forwards_desired(now: TaskState, next: TaskState) -> bool {
    is_desired_state(next) && next > now
}

/// The fixed host ports that the task occupies on its node.
pub(super) fn host_ports(task: &Task) -> impl Iterator<Item = (Protocol, u16)> {
    task.ports
        .iter()
        .filter(|port| port.mode == PublishMode::Host && port.published != 0)
        .map(|port| (port.protocol, port.published))
}

/// Whether a report replaces the stored status. The observed state only moves forward; a terminal state is final, so
/// that what was freed once stays free; `remove` is never observed. A report of the same state brings new details.
pub(super) fn accepts_report(stored: &TaskStatus, report: &TaskStatus) -> bool {
    if report.state == TaskState::Remove {
        return false;
    }
    if stored.state.is_terminal() {
        return report.state == stored.state && report != stored;
    }
    report.state >= stored.state && report != stored
}
