//! Time and ids from the simulation.

use shoal_agent::AgentClock;
use shoal_manager::consensus::{IdSource, WallClock};
use shoal_model::Timestamp;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

/// What wall clocks show when the simulation begins, since the epoch: far enough from zero to jump back.
const BEGIN: Duration = Duration::from_secs(1_800_000_000);

/// The clocks of one machine: a wall clock that jumps when told to, and one that never does.
#[derive(Debug, Clone, Default)]
pub struct SimulatedClock {
    offset_ns: Arc<AtomicI64>,
}

impl SimulatedClock {
    /// Moves the wall clock by so many nanoseconds, forward or back.
    pub fn jump(&self, ns: i64) {
        self.offset_ns.fetch_add(ns, Ordering::SeqCst);
    }

    /// Makes the wall clock right again.
    pub fn set_right(&self) {
        self.offset_ns.store(0, Ordering::SeqCst);
    }

    fn wall(&self) -> Timestamp {
        let right = Timestamp::from_unix(BEGIN + elapsed());
        Timestamp(
            right
                .0
                .saturating_add(self.offset_ns.load(Ordering::SeqCst)),
        )
    }
}

fn elapsed() -> Duration {
    turmoil::sim_elapsed().unwrap_or_default()
}

impl WallClock for SimulatedClock {
    fn now(&self) -> Timestamp {
        self.wall()
    }
}

impl AgentClock for SimulatedClock {
    fn now(&self) -> Timestamp {
        self.wall()
    }

    fn boottime_ns(&self) -> u64 {
        u64::try_from(elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

/// Ids that follow from a seed.
#[derive(Debug)]
pub struct SeededIds {
    seed: u64,
    drawn: AtomicU64,
}

impl SeededIds {
    /// A source of its own for every manager and every start of it.
    pub const fn new(seed: u64) -> Self {
        Self {
            seed,
            drawn: AtomicU64::new(0),
        }
    }
}

impl IdSource for SeededIds {
    fn bits(&self) -> u128 {
        let drawn = self.drawn.fetch_add(1, Ordering::SeqCst);
        // The upper half names the source, the lower half counts: unique by construction.
        u128::from(self.seed) << 64 | u128::from(drawn)
    }
}
