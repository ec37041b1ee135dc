//! What the end of a container means: a fresh container on this node, or the end of the task.

use shoal_model::spec::{RestartCondition, RestartPolicy};
use shoal_model::{TaskState, Timestamp};
use std::collections::VecDeque;
use std::time::Duration;

/// First back-off; the first restart after a good run comes without one.
pub const BACK_OFF_FIRST: Duration = Duration::from_millis(100);

/// Longest back-off.
pub const BACK_OFF_MAX: Duration = Duration::from_secs(30);

/// A run of this length is a good one: back-off starts anew.
pub const GOOD_RUN: Duration = Duration::from_secs(10);

/// Most times of restarts that are remembered; more attempts than this within a window are not told apart.
pub const RESTARTS_REMEMBERED_MAX: usize = 1_000;

/// What follows from an exit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// A fresh container after that wait.
    Restart(Duration),
    /// The task ends in that state.
    End(TaskState),
}

/// Restarts of one task so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct History {
    /// When, newest last.
    restarts: VecDeque<Timestamp>,
    /// Bad runs in a row.
    bad_runs: u32,
}

/// One end of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct End {
    /// Exit code zero, and not for lack of health.
    pub success: bool,
    /// How long it ran.
    pub ran_for: Duration,
    /// Now.
    pub at: Timestamp,
    /// The monitor window of an update is open.
    pub monitored: bool,
    /// Killed because this node lost its lease: nobody's fault.
    pub fenced: bool,
}

impl History {
    /// Decides, without remembering.
    pub fn judge(&self, policy: &RestartPolicy, end: &End) -> Verdict {
        if end.fenced {
            return Verdict::Restart(Duration::ZERO);
        }
        let ended = Verdict::End(if end.success {
            TaskState::Complete
        } else {
            TaskState::Failed
        });
        let again = match policy.condition {
            RestartCondition::None => false,
            RestartCondition::OnFailure => !end.success,
            RestartCondition::Any => true,
        };
        if !again {
            return ended;
        }
        if end.monitored {
            // A service that should run on has ended: the update has failed.
            return Verdict::End(TaskState::Failed);
        }
        if self.is_spent(policy, end.at) {
            return ended;
        }
        let wait = match policy.delay_ns {
            Some(ns) => Duration::from_nanos(ns),
            None => self.back_off(end.ran_for),
        };
        Verdict::Restart(wait)
    }

    fn is_spent(&self, policy: &RestartPolicy, now: Timestamp) -> bool {
        let Some(attempts_max) = policy.max_attempts else {
            return false;
        };
        let window = policy.window_ns.filter(|&ns| ns > 0);
        let counted = self
            .restarts
            .iter()
            .filter(|&&at| window.is_none_or(|ns| now.since(at) < Duration::from_nanos(ns)))
            .count();
        u64::try_from(counted).unwrap_or(u64::MAX) >= attempts_max
    }

    fn back_off(&self, ran_for: Duration) -> Duration {
        if ran_for >= GOOD_RUN || self.bad_runs == 0 {
            return Duration::ZERO;
        }
        let factor = 1u32.checked_shl(self.bad_runs - 1).unwrap_or(u32::MAX);
        BACK_OFF_FIRST.saturating_mul(factor).min(BACK_OFF_MAX)
    }

    /// Remembers a restart after `end`.
    pub fn restarted(&mut self, end: &End) {
        if end.fenced {
            return;
        }
        self.bad_runs = if end.ran_for >= GOOD_RUN {
            1
        } else {
            self.bad_runs.saturating_add(1)
        };
        if self.restarts.len() >= RESTARTS_REMEMBERED_MAX {
            self.restarts.pop_front();
        }
        self.restarts.push_back(end.at);
    }

    /// A history of `count` restarts that happened at or before `at`, after a restart of the daemon.
    pub fn resumed(count: u32, at: Timestamp) -> Self {
        let kept = usize::try_from(count)
            .unwrap_or(RESTARTS_REMEMBERED_MAX)
            .min(RESTARTS_REMEMBERED_MAX);
        Self {
            restarts: std::iter::repeat_n(at, kept).collect(),
            bad_runs: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: i64 = 1_000_000_000;

    fn end(success: bool, at_s: i64) -> End {
        End {
            success,
            ran_for: Duration::from_secs(1),
            at: Timestamp(at_s * SECOND),
            monitored: false,
            fenced: false,
        }
    }

    fn policy(condition: RestartCondition) -> RestartPolicy {
        RestartPolicy {
            condition,
            ..RestartPolicy::default()
        }
    }

    fn check(condition: RestartCondition, success: bool, expected: Verdict) {
        let verdict = History::default().judge(&policy(condition), &end(success, 1));
        assert_eq!(verdict, expected, "{condition:?} success={success}");
    }

    #[test]
    fn conditions_decide_about_the_first_exit() {
        let restart = Verdict::Restart(Duration::ZERO);
        check(
            RestartCondition::None,
            true,
            Verdict::End(TaskState::Complete),
        );
        check(
            RestartCondition::None,
            false,
            Verdict::End(TaskState::Failed),
        );
        check(
            RestartCondition::OnFailure,
            true,
            Verdict::End(TaskState::Complete),
        );
        check(RestartCondition::OnFailure, false, restart);
        check(RestartCondition::Any, true, restart);
        check(RestartCondition::Any, false, restart);
    }

    #[test]
    fn back_off_doubles_to_its_bound_and_a_good_run_ends_it() {
        let mut history = History::default();
        let any = policy(RestartCondition::Any);
        let mut waits = Vec::new();
        for at in 0..12 {
            let end = end(false, at);
            match history.judge(&any, &end) {
                Verdict::Restart(wait) => waits.push(wait.as_millis()),
                Verdict::End(state) => panic!("{state}"),
            }
            history.restarted(&end);
        }
        assert_eq!(waits[..5], [0, 100, 200, 400, 800]);
        assert_eq!(waits[11], BACK_OFF_MAX.as_millis());
        let good = End {
            ran_for: GOOD_RUN,
            ..end(false, 100)
        };
        assert_eq!(history.judge(&any, &good), Verdict::Restart(Duration::ZERO));
    }

    #[test]
    fn explicit_settings_are_honoured() {
        let mut history = History::default();
        let policy = RestartPolicy {
            condition: RestartCondition::OnFailure,
            delay_ns: Some(3_000_000_000),
            max_attempts: Some(2),
            window_ns: Some(60_000_000_000),
        };
        for at in [0, 10] {
            let end = end(false, at);
            assert_eq!(
                history.judge(&policy, &end),
                Verdict::Restart(Duration::from_secs(3))
            );
            history.restarted(&end);
        }
        let spent = history.judge(&policy, &end(false, 20));
        assert_eq!(spent, Verdict::End(TaskState::Failed));
        let later = history.judge(&policy, &end(false, 65));
        assert_eq!(later, Verdict::Restart(Duration::from_secs(3)));
    }

    #[test]
    fn in_the_monitor_window_the_first_exit_is_the_end() {
        let monitored = End {
            monitored: true,
            ..end(true, 1)
        };
        let failed = Verdict::End(TaskState::Failed);
        let history = History::default();
        assert_eq!(
            history.judge(&policy(RestartCondition::Any), &monitored),
            failed
        );
        let complete = history.judge(&policy(RestartCondition::None), &monitored);
        assert_eq!(complete, Verdict::End(TaskState::Complete));
    }

    #[test]
    fn a_fenced_container_costs_no_attempt() {
        let policy = RestartPolicy {
            max_attempts: Some(0),
            ..RestartPolicy::default()
        };
        let fenced = End {
            fenced: true,
            ..end(false, 1)
        };
        let mut history = History::default();
        history.restarted(&fenced);
        assert_eq!(history, History::default());
        assert_eq!(
            history.judge(&policy, &fenced),
            Verdict::Restart(Duration::ZERO)
        );
    }
}
