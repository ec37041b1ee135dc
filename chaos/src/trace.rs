//! What happened, as one number: two runs from one seed must have the same.

use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

#[derive(Debug, Default)]
struct State {
    now: Duration,
    hasher: DefaultHasher,
    events: u64,
    printed: bool,
    violations: Vec<String>,
}

/// Collects events and violations. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Trace(Arc<Mutex<State>>);

impl Trace {
    /// A trace that also prints each event on standard error.
    pub fn printed() -> Self {
        let trace = Self::default();
        trace.lock().printed = true;
        trace
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The simulated time of what is noted from now on.
    pub fn set_now(&self, now: Duration) {
        self.lock().now = now;
    }

    /// The simulated time.
    pub fn now(&self) -> Duration {
        self.lock().now
    }

    /// Something happened.
    pub fn note(&self, event: fmt::Arguments<'_>) {
        let text = event.to_string();
        let mut state = self.lock();
        let now = state.now;
        if state.printed {
            eprintln!("{:>10.3} {text}", now.as_secs_f64());
        }
        (now, text).hash(&mut state.hasher);
        state.events += 1;
    }

    /// A rule was broken.
    pub fn violation(&self, rule: String) {
        self.note(format_args!("VIOLATION {rule}"));
        let mut state = self.lock();
        let at = state.now.as_secs_f64();
        state.violations.push(format!("at {at:.3} s: {rule}"));
    }

    /// Rules that were broken so far.
    pub fn violations(&self) -> Vec<String> {
        self.lock().violations.clone()
    }

    /// Everything so far, in one number.
    pub fn hash(&self) -> u64 {
        self.lock().hasher.finish()
    }

    /// How much was noted.
    pub fn events(&self) -> u64 {
        self.lock().events
    }
}
