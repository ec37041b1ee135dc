//! The overlay of one machine, which only remembers what it was told: bringing a state into force takes time, and fails
//! now and then.
//!
//! What is in force outlives the daemon, as rules in a kernel do. It does not outlive the machine.

use async_trait::async_trait;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use shoal_agent::{NetworkSink, SinkError};
use shoal_model::netstate::{EndpointId, NetState};
use shoal_model::{TaskId, Version};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Milliseconds until a state is in force.
const APPLY_MS: Range<u64> = 1..120;
/// One attempt in so many fails.
const APPLY_FAILS_ONE_IN: u64 = 20;

#[derive(Debug)]
struct Kernel {
    state: Arc<NetState>,
    /// The daemon lives and has a lease.
    live: bool,
    random: StdRng,
}

/// Clones share it.
#[derive(Debug, Clone)]
pub struct FakeOverlay(Arc<Mutex<Kernel>>);

impl FakeOverlay {
    /// An overlay without a state.
    pub fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(Kernel {
            state: Arc::default(),
            live: false,
            random: StdRng::seed_from_u64(seed),
        })))
    }

    fn lock(&self) -> MutexGuard<'_, Kernel> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is in force.
    pub fn state(&self) -> Arc<NetState> {
        Arc::clone(&self.lock().state)
    }

    /// New connections go to that task, and nothing says that they must not.
    pub fn sends_to(&self, task: TaskId) -> bool {
        let kernel = self.lock();
        let endpoint = kernel.state.endpoints.get(&EndpointId::Task(task));
        kernel.live && endpoint.is_some_and(|endpoint| endpoint.in_rotation)
    }

    /// The daemon does not live any more.
    pub fn daemon_gone(&self) {
        self.lock().live = false;
    }

    /// The machine lost its power.
    pub fn crash(&self) {
        let mut kernel = self.lock();
        kernel.live = false;
        kernel.state = Arc::default();
    }
}

#[async_trait]
impl NetworkSink for FakeOverlay {
    async fn apply(&self, state: Arc<NetState>) -> Result<Version, SinkError> {
        let (takes, fails) = {
            let random = &mut self.lock().random;
            let fails = random.random_range(0..APPLY_FAILS_ONE_IN) == 0;
            (random.random_range(APPLY_MS), fails)
        };
        tokio::time::sleep(Duration::from_millis(takes)).await;
        if fails {
            let reason = "the kernel is busy".to_owned();
            return Err(SinkError { reason });
        }
        let version = state.version;
        self.lock().state = state;
        Ok(version)
    }

    async fn confirmed(&self, _: Version) {}

    async fn lease(&self, live: bool) {
        self.lock().live = live;
    }

    async fn rotate_key(&self) -> Result<(), SinkError> {
        Ok(())
    }
}
