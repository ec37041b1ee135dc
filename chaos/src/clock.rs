//! Time and ids from the simulation.

use shoal_manager::consensus::{IdSource, WallClock};
use shoal_model::Timestamp;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

/// A wall clock that follows simulated time, and jumps when told to.
#[derive(Debug, Clone, Default)]
pub struct SimulatedClock {
    offset_ns: Arc<AtomicI64>,
}

impl SimulatedClock {
    /// Moves the clock by so many nanoseconds, forward or back.
    pub fn jump(&self, ns: i64) {
        self.offset_ns.fetch_add(ns, Ordering::SeqCst);
    }
}

impl WallClock for SimulatedClock {
    fn now(&self) -> Timestamp {
        let elapsed = turmoil::sim_elapsed().unwrap_or_default();
        let offset = self.offset_ns.load(Ordering::SeqCst);
        Timestamp(Timestamp::from_unix(elapsed).0.saturating_add(offset))
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
