//! Whether a task that has ended gets a successor, and when.
//!
//! A crashed container is restarted by its own node. A task that reports an end is beyond that: its node has used up
//! the budget, or never could start it. What is decided here is whether another task, perhaps on another node, is
//! worth trying.

use super::Scene;
use super::places::{Place, PlaceTasks, is_wanted};
use shoal_model::spec::RestartCondition;
use shoal_model::{Task, TaskState, Timestamp};
use std::time::Duration;

/// First wait before a place that keeps failing is tried again; it doubles each time.
const BACK_OFF_FIRST: Duration = Duration::from_secs(1);

/// Longest such wait.
const BACK_OFF_MAX: Duration = Duration::from_secs(60);

/// What becomes of an ended task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It was the last one of its place.
    Stay,
    /// It gets a successor, not before that time.
    Replace(Option<Timestamp>),
}

/// Decides about `task`, which ended without being asked to.
pub(crate) fn judge(scene: &Scene<'_>, place: &PlaceTasks<'_>, task: &Task) -> Verdict {
    let policy = &task.spec.restart;
    let again = match (task.status.state, policy.condition) {
        // Not the task's fault: its node is gone.
        (TaskState::Orphaned, _) => return Verdict::Replace(None),
        (_, RestartCondition::None) => false,
        (TaskState::Complete | TaskState::Shutdown, RestartCondition::OnFailure) => false,
        (_, RestartCondition::OnFailure | RestartCondition::Any) => true,
    };
    if !again || is_spent(scene, place, task) {
        return Verdict::Stay;
    }
    let wait = policy
        .delay_ns
        .map_or(Duration::ZERO, Duration::from_nanos)
        .max(back_off(place, task));
    Verdict::Replace((!wait.is_zero()).then(|| scene.now.wall.plus(wait)))
}

/// The explicit number of attempts within the window is used up, counting local repairs and replacements.
fn is_spent(scene: &Scene<'_>, place: &PlaceTasks<'_>, task: &Task) -> bool {
    let policy = &task.spec.restart;
    let Some(max_attempts) = policy.max_attempts else {
        return false;
    };
    let window = policy
        .window_ns
        .filter(|&ns| ns != 0)
        .map(Duration::from_nanos);
    let counts = |at: Timestamp| window.is_none_or(|window| scene.now.wall.since(at) < window);
    let attempts: u64 = ended_alike(place, task)
        .filter(|other| counts(other.status.at))
        .map(|other| u64::from(other.status.restarts) + u64::from(other.id != task.id))
        .sum();
    attempts >= max_attempts
}

/// Doubles with each task of the place and version that ended badly in a row; a first failure is retried at once, a
/// first rejection after a moment, since nothing will have changed.
fn back_off(place: &PlaceTasks<'_>, task: &Task) -> Duration {
    if !ended_badly(task) {
        return Duration::ZERO;
    }
    let in_a_row = place
        .tasks
        .iter()
        .rev()
        .filter(|other| other.spec_version == task.spec_version && has_ended(other))
        .take_while(|other| ended_badly(other))
        .count();
    let rejected = task.status.state == TaskState::Rejected;
    let step = in_a_row.saturating_sub(if rejected { 1 } else { 2 });
    if in_a_row < 2 && !rejected {
        return Duration::ZERO;
    }
    let factor = 1u32.checked_shl(u32::try_from(step).unwrap_or(u32::MAX));
    BACK_OFF_FIRST
        .saturating_mul(factor.unwrap_or(u32::MAX))
        .min(BACK_OFF_MAX)
}

/// The tasks of the place and version that ended by themselves.
fn ended_alike<'p>(
    place: &'p PlaceTasks<'_>,
    task: &'p Task,
) -> impl Iterator<Item = &'p Task> + 'p {
    place
        .tasks
        .iter()
        .map(|other| &***other)
        .filter(|other| other.spec_version == task.spec_version)
        .filter(|other| {
            ended_badly(other) || other.status.state == TaskState::Complete || other.id == task.id
        })
}

fn has_ended(task: &Task) -> bool {
    task.status.state.is_terminal() && (ended_badly(task) || is_wanted(task))
}

pub(crate) const fn ended_badly(task: &Task) -> bool {
    matches!(task.status.state, TaskState::Failed | TaskState::Rejected)
}

impl Place {
    /// The slot number that tasks of this place carry.
    pub(crate) const fn slot(self) -> u64 {
        match self {
            Self::Slot(slot) => slot,
            Self::Node(_) => 0,
        }
    }
}
