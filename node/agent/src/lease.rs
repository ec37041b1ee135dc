//! Until when tasks that must stop on a partition may run.
//!
//! A lease starts when the heartbeat's question was sent, not when its answer came: that is the latest moment at which
//! the manager can have heard this node for sure. It is counted in CLOCK_BOOTTIME, which goes on while the machine
//! sleeps, and the shim of each such container kills it at the deadline, also when this process is dead or frozen.

use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// The newest deadline. Clones share it.
#[derive(Debug, Clone)]
pub struct Lease(Arc<watch::Sender<Option<u64>>>);

impl Default for Lease {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(None)))
    }
}

impl Lease {
    /// A heartbeat that was sent at `asked_at_ns` has been answered.
    pub fn renew(&self, asked_at_ns: u64, lease: Duration) {
        let lease_ns = u64::try_from(lease.as_nanos()).unwrap_or(u64::MAX);
        let deadline = asked_at_ns.saturating_add(lease_ns);
        // Answers may overtake each other; a deadline never moves back.
        self.0.send_if_modified(|held| {
            let later = held.is_none_or(|held| deadline > held);
            if later {
                *held = Some(deadline);
            }
            later
        });
    }

    /// The deadline, if there was a lease since the start.
    pub fn deadline(&self) -> Option<u64> {
        *self.0.borrow()
    }

    /// Whether it holds at `now_ns`.
    pub fn is_alive(&self, now_ns: u64) -> bool {
        self.deadline().is_some_and(|deadline| now_ns < deadline)
    }

    /// Follows renewals.
    pub fn subscribe(&self) -> watch::Receiver<Option<u64>> {
        self.0.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_counts_from_the_question_and_never_moves_back() {
        let lease = Lease::default();
        assert!(!lease.is_alive(0));
        lease.renew(1_000, Duration::from_nanos(500));
        lease.renew(400, Duration::from_nanos(500));
        assert_eq!(lease.deadline(), Some(1_500));
        assert!(lease.is_alive(1_499));
        assert!(!lease.is_alive(1_500));
    }
}
