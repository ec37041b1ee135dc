//! When an ended container is started again, and after how long: Docker's rules.

use super::record::StateRecord;
use crate::config::RestartPolicy;
use std::time::Duration;

/// Pause before the first restart.
const BACKOFF_MIN: Duration = Duration::from_millis(100);
/// Longest pause.
const BACKOFF_MAX: Duration = Duration::from_secs(60);
/// A run of this length makes the next pause the shortest again.
const RUN_RESETS_BACKOFF: Duration = Duration::from_secs(10);

/// The pauses of one container.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Backoff(Option<Duration>);

impl Backoff {
    /// The pause after a run of that length.
    pub(crate) fn after(&mut self, run: Duration) -> Duration {
        let pause = match self.0 {
            Some(last) if run < RUN_RESETS_BACKOFF => (last * 2).min(BACKOFF_MAX),
            Some(_) | None => BACKOFF_MIN,
        };
        self.0 = Some(pause);
        pause
    }
}

/// Whether a container that has ended by itself is started again.
pub(crate) fn wanted(policy: RestartPolicy, exit_code: i32, restarts: u32) -> bool {
    match policy {
        RestartPolicy::No => false,
        RestartPolicy::Always | RestartPolicy::UnlessStopped => true,
        RestartPolicy::OnFailure { retries_max } => {
            exit_code != 0 && (retries_max == 0 || restarts < retries_max)
        }
    }
}

/// Whether a container that does not run is started when the engine starts: whether it ended while no engine was
/// there, or waited for its restart, makes no difference, and one that never ran is not started. `always` overrides
/// the user's stop, as in Docker.
pub(crate) fn wanted_at_boot(policy: RestartPolicy, state: &StateRecord) -> bool {
    let allowed = match policy {
        RestartPolicy::UnlessStopped | RestartPolicy::OnFailure { .. } => !state.stopped_by_user,
        RestartPolicy::No | RestartPolicy::Always => true,
    };
    state.started_at.is_some() && allowed && wanted(policy, state.exit_code, state.restart_count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_to_a_minute_and_a_long_run_resets_them() {
        let mut backoff = Backoff::default();
        let short = Duration::from_secs(1);
        let pauses: Vec<_> = (0..12).map(|_| backoff.after(short).as_millis()).collect();
        assert_eq!(pauses[..4], [100, 200, 400, 800]);
        assert_eq!(pauses[11], 60_000);
        assert_eq!(backoff.after(RUN_RESETS_BACKOFF).as_millis(), 100);
    }

    #[test]
    fn policies_decide_by_code_and_count() {
        let failure = |retries_max| RestartPolicy::OnFailure { retries_max };
        for (policy, code, restarts, expected) in [
            (RestartPolicy::No, 1, 0, false),
            (RestartPolicy::Always, 0, 99, true),
            (RestartPolicy::UnlessStopped, 0, 99, true),
            (failure(0), 0, 0, false),
            (failure(0), 1, 99, true),
            (failure(2), 1, 1, true),
            (failure(2), 1, 2, false),
        ] {
            assert_eq!(
                wanted(policy, code, restarts),
                expected,
                "{policy:?} {code} {restarts}"
            );
        }
    }

    #[test]
    fn a_start_of_the_engine_respects_the_users_stop() {
        use RestartPolicy::{Always, No, OnFailure, UnlessStopped};
        let failure = OnFailure { retries_max: 2 };
        for (policy, ran, stopped, exit_code, restart_count, expected) in [
            (Always, true, true, 137, 0, true),
            (Always, true, false, 0, 9, true),
            (Always, false, false, 0, 0, false),
            (UnlessStopped, true, true, 137, 0, false),
            (UnlessStopped, true, false, 0, 9, true),
            (failure, true, false, 1, 1, true),
            (failure, true, false, 0, 1, false),
            (failure, true, false, 1, 2, false),
            (failure, true, true, 143, 0, false),
            (No, true, false, 1, 0, false),
        ] {
            let state = StateRecord {
                started_at: ran.then(Default::default),
                stopped_by_user: stopped,
                exit_code,
                restart_count,
                ..StateRecord::default()
            };
            assert_eq!(
                wanted_at_boot(policy, &state),
                expected,
                "{policy:?} {state:?}"
            );
        }
    }
}
