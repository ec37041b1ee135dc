//! Gathers proposals: those that come while Raft's thread is busy travel as one entry.
//!
//! The first proposal of a group sends a carrier to Raft's thread; those that come before the carrier gets its turn go
//! with it. Nothing waits for company: on an idle thread every proposal is an entry of its own. Carriers do not wait for
//! each other, so that entries are pipelined.

use crate::consensus::ProposeError;
use bytes::Bytes;
use shoal_model::Version;
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::oneshot;

/// Most commands in one entry.
pub(crate) const COMMANDS_PER_ENTRY_MAX: usize = 256;

/// Bytes of commands at which an entry is full; one command may be larger.
const ENTRY_BYTES_TARGET: usize = 256 << 10;

/// A proposal that waits for its outcome.
pub(crate) struct Waiting {
    /// Feature level that it needs.
    pub(crate) level: u32,
    /// Encoded.
    pub(crate) command: Bytes,
    /// Who waits; a dropped sender means that the outcome will never be known.
    pub(crate) answer: oneshot::Sender<Result<Version, ProposeError>>,
}

#[derive(Default)]
struct Queue {
    waiting: Vec<Waiting>,
    /// A carrier is on its way and will take what waits.
    carrier_due: bool,
}

/// Proposals on their way to Raft's thread.
#[derive(Default)]
pub(crate) struct Intake(Mutex<Queue>);

impl Intake {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a proposal; `true`: the caller sends a carrier.
    pub(crate) fn add(&self, waiting: Waiting) -> bool {
        let mut queue = self.lock();
        queue.waiting.push(waiting);
        !std::mem::replace(&mut queue.carrier_due, true)
    }

    /// What goes into one entry, in the order of arrival, and whether more is left, for which the caller sends another
    /// carrier.
    pub(crate) fn take(&self) -> (Vec<Waiting>, bool) {
        let mut queue = self.lock();
        let mut bytes = 0;
        let fits = queue.waiting.iter().take_while(|waiting| {
            let first = bytes == 0;
            bytes += waiting.command.len();
            first || bytes <= ENTRY_BYTES_TARGET
        });
        let count = fits.take(COMMANDS_PER_ENTRY_MAX).count();
        let rest = queue.waiting.split_off(count);
        let batch = std::mem::replace(&mut queue.waiting, rest);
        queue.carrier_due = !queue.waiting.is_empty();
        (batch, queue.carrier_due)
    }

    /// Gives up everything that waits: whoever waits learns that the outcome is unknown.
    pub(crate) fn abandon(&self) {
        let mut queue = self.lock();
        queue.waiting.clear();
        queue.carrier_due = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiting(bytes: usize) -> Waiting {
        Waiting {
            level: 1,
            command: vec![0; bytes].into(),
            answer: oneshot::channel().0,
        }
    }

    #[test]
    fn one_carrier_takes_all_that_wait() {
        let intake = Intake::default();
        assert!(intake.add(waiting(10)));
        assert!(!intake.add(waiting(10)));
        let (batch, more) = intake.take();
        assert_eq!((batch.len(), more), (2, false));
        assert!(intake.add(waiting(10)));
    }

    #[test]
    fn an_entry_has_bounds_and_takes_one_large_command() {
        let intake = Intake::default();
        intake.add(waiting(ENTRY_BYTES_TARGET * 2));
        intake.add(waiting(1));
        let (batch, more) = intake.take();
        assert_eq!((batch.len(), more), (1, true));
        for _ in 0..COMMANDS_PER_ENTRY_MAX {
            assert!(!intake.add(waiting(1)));
        }
        let (batch, more) = intake.take();
        assert_eq!((batch.len(), more), (COMMANDS_PER_ENTRY_MAX, true));
        let (batch, more) = intake.take();
        assert_eq!((batch.len(), more), (1, false));
    }
}
