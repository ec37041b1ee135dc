//! The next action of one task: a pure function of what is wanted and what is.

use crate::repair::Verdict;
use shoal_model::TaskState;

/// Where the task's newest container stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// There is none.
    Absent,
    /// Made, never started.
    Created,
    /// Has a process.
    Running,
    /// Ended by itself, and what follows from it is this.
    Exited(Verdict),
}

/// What the managers want.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// Everything ready, but not started.
    Ready,
    /// Running.
    Running,
    /// Stopped; the record and the ended container are kept.
    Shutdown,
    /// Stopped, and nothing of it kept.
    Gone,
    /// The record does not exist any more: as `Gone`, and forgotten here.
    Forgotten,
}

/// Everything that decides about the next action.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Situation {
    /// What this node has reported.
    pub observed: TaskState,
    /// What the managers want.
    pub wanted: Wanted,
    /// The container.
    pub phase: Phase,
    /// The start delay is over.
    pub may_start: bool,
    /// A `stop` task may run: the lease is alive. True for all others.
    pub has_lease: bool,
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Wait for a change.
    Wait,
    /// Wait until the start delay is over, or a change.
    Delay,
    /// Report that state.
    Report(TaskState),
    /// Get the image, check the volumes.
    Prepare,
    /// Make the container.
    Create,
    /// Start the container.
    Start,
    /// Follow the running container.
    Follow,
    /// Make room for a fresh container after the wait that the verdict names.
    Replace,
    /// Stop the container.
    Stop,
    /// Remove the container.
    Remove,
    /// Nothing is left: drop the task.
    Forget,
}

/// The next action.
pub fn next(situation: &Situation) -> Action {
    match situation.wanted {
        Wanted::Forgotten => clear_away(situation, Action::Forget),
        Wanted::Gone => clear_away(situation, end_report(situation)),
        Wanted::Shutdown => match situation.phase {
            Phase::Running => Action::Stop,
            Phase::Created => Action::Remove,
            Phase::Absent | Phase::Exited(_) => end_report(situation),
        },
        Wanted::Ready | Wanted::Running if situation.observed.is_terminal() => {
            // A task that has ended never runs again.
            match situation.phase {
                Phase::Running => Action::Stop,
                Phase::Absent | Phase::Created | Phase::Exited(_) => Action::Wait,
            }
        }
        Wanted::Ready | Wanted::Running => advance(situation),
    }
}

fn clear_away(situation: &Situation, then: Action) -> Action {
    match situation.phase {
        Phase::Running => Action::Stop,
        Phase::Created | Phase::Exited(_) => Action::Remove,
        Phase::Absent => then,
    }
}

fn end_report(situation: &Situation) -> Action {
    if situation.observed.is_terminal() {
        Action::Wait
    } else {
        Action::Report(TaskState::Shutdown)
    }
}

fn advance(situation: &Situation) -> Action {
    match situation.phase {
        Phase::Running if situation.observed < TaskState::Running => {
            Action::Report(TaskState::Running)
        }
        Phase::Running => Action::Follow,
        Phase::Exited(Verdict::End(state)) => Action::Report(state),
        Phase::Exited(Verdict::Restart(_)) if !situation.has_lease => Action::Wait,
        Phase::Exited(Verdict::Restart(_)) => Action::Replace,
        Phase::Absent | Phase::Created if situation.observed < TaskState::Accepted => {
            Action::Report(TaskState::Accepted)
        }
        Phase::Absent | Phase::Created if situation.observed < TaskState::Ready => Action::Prepare,
        Phase::Absent | Phase::Created if situation.wanted == Wanted::Ready => Action::Wait,
        Phase::Absent | Phase::Created if !situation.has_lease => Action::Wait,
        Phase::Absent | Phase::Created if !situation.may_start => Action::Delay,
        Phase::Absent => Action::Create,
        Phase::Created => Action::Start,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const RESTART: Phase = Phase::Exited(Verdict::Restart(Duration::ZERO));
    const FAILED: Phase = Phase::Exited(Verdict::End(TaskState::Failed));

    fn check(observed: TaskState, wanted: Wanted, phase: Phase, expected: Action) {
        let situation = Situation {
            observed,
            wanted,
            phase,
            may_start: true,
            has_lease: true,
        };
        assert_eq!(next(&situation), expected, "{situation:?}");
    }

    #[test]
    fn a_new_task_goes_up_step_by_step() {
        use TaskState as S;
        let wanted = Wanted::Running;
        check(
            S::Assigned,
            wanted,
            Phase::Absent,
            Action::Report(S::Accepted),
        );
        check(S::Accepted, wanted, Phase::Absent, Action::Prepare);
        check(S::Preparing, wanted, Phase::Absent, Action::Prepare);
        check(S::Ready, wanted, Phase::Absent, Action::Create);
        check(S::Starting, wanted, Phase::Absent, Action::Create);
        check(S::Starting, wanted, Phase::Created, Action::Start);
        check(
            S::Starting,
            wanted,
            Phase::Running,
            Action::Report(S::Running),
        );
        check(S::Running, wanted, Phase::Running, Action::Follow);
    }

    #[test]
    fn a_task_wanted_ready_waits_there() {
        check(TaskState::Ready, Wanted::Ready, Phase::Absent, Action::Wait);
        check(
            TaskState::Accepted,
            Wanted::Ready,
            Phase::Absent,
            Action::Prepare,
        );
    }

    #[test]
    fn an_exit_is_repaired_or_reported() {
        let running = TaskState::Running;
        check(running, Wanted::Running, RESTART, Action::Replace);
        check(running, Wanted::Running, Phase::Absent, Action::Create);
        check(
            running,
            Wanted::Running,
            FAILED,
            Action::Report(TaskState::Failed),
        );
    }

    #[test]
    fn an_ended_task_never_runs_again() {
        for ended in [TaskState::Failed, TaskState::Complete, TaskState::Orphaned] {
            check(ended, Wanted::Running, RESTART, Action::Wait);
            check(ended, Wanted::Running, Phase::Absent, Action::Wait);
            check(ended, Wanted::Running, Phase::Running, Action::Stop);
        }
    }

    #[test]
    fn a_shutdown_keeps_the_container_and_a_removal_does_not() {
        let running = TaskState::Running;
        let down = Action::Report(TaskState::Shutdown);
        check(running, Wanted::Shutdown, Phase::Running, Action::Stop);
        check(running, Wanted::Shutdown, RESTART, down);
        check(TaskState::Shutdown, Wanted::Shutdown, RESTART, Action::Wait);
        check(TaskState::Accepted, Wanted::Shutdown, Phase::Absent, down);
        check(running, Wanted::Gone, Phase::Running, Action::Stop);
        check(running, Wanted::Gone, FAILED, Action::Remove);
        check(running, Wanted::Gone, Phase::Absent, down);
        check(TaskState::Failed, Wanted::Gone, FAILED, Action::Remove);
        check(running, Wanted::Forgotten, Phase::Running, Action::Stop);
        check(running, Wanted::Forgotten, Phase::Absent, Action::Forget);
    }

    #[test]
    fn without_a_lease_nothing_starts_and_what_runs_is_followed() {
        for (phase, expected) in [
            (Phase::Absent, Action::Wait),
            (Phase::Created, Action::Wait),
            (RESTART, Action::Wait),
            (Phase::Running, Action::Follow),
        ] {
            let situation = Situation {
                observed: TaskState::Running,
                wanted: Wanted::Running,
                phase,
                may_start: true,
                has_lease: false,
            };
            assert_eq!(next(&situation), expected, "{situation:?}");
        }
    }

    #[test]
    fn a_start_delay_is_waited_for() {
        let situation = Situation {
            observed: TaskState::Ready,
            wanted: Wanted::Running,
            phase: Phase::Absent,
            may_start: false,
            has_lease: true,
        };
        assert_eq!(next(&situation), Action::Delay);
    }
}
