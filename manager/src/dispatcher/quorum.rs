//! Confirms again and again that this manager still leads, before it renews any node's lease.
//!
//! A leader that was cut off from the others does not know at once that there is a new one. If it went on answering
//! heartbeats, the nodes on its side would keep `stop` tasks running that the new leader replaces. The new leader
//! starts after the last confirmation and waits for the down limit; leases that the old one renewed until
//! [`CONFIRMED_FOR`] after it have ended by then.

use super::{Term, lock};
use std::sync::Mutex;
use std::time::Duration;
use tokio::time::{Instant, MissedTickBehavior};
use tracing::debug;

/// Time between two confirmations.
const CONFIRM_PERIOD: Duration = Duration::from_millis(150);

/// Heartbeats are answered for so long after a confirmation: less than the difference between the smallest down limit
/// and the lease, which is a second.
pub(super) const CONFIRMED_FOR: Duration = Duration::from_millis(700);

/// When this manager was last known to lead.
#[derive(Debug, Default)]
pub(super) struct Quorum(Mutex<Option<Instant>>);

impl Quorum {
    /// Whether leases may be renewed now.
    pub(super) fn is_confirmed(&self) -> bool {
        lock(&self.0).is_some_and(|at| at.elapsed() < CONFIRMED_FOR)
    }
}

pub(super) async fn run(term: &Term) {
    let mut ticks = tokio::time::interval(CONFIRM_PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        // The moment before the question counts: the answer may have been on its way for long.
        let asked_at = Instant::now();
        match term.context.consensus.read_barrier().await {
            Ok(()) => *lock(&term.quorum.0) = Some(asked_at),
            Err(err) => debug!(err = %err, "leadership could not be confirmed"),
        }
    }
}
