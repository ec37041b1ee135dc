//! One run from one seed: quiet, faults, healing, and the verdict.

use crate::checks::{Watch, unwell};
use crate::faults::Faults;
use crate::world::{CLIENT, NODES, World, host};
use crate::{Trace, client, node};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use std::time::Duration;
use turmoil::Sim;

/// Simulated time without a fault before the first one.
const QUIET: Duration = Duration::from_secs(5);
/// Faults before the healing.
const FAULTS: usize = 40;
/// Milliseconds between two faults.
const BETWEEN_FAULTS_MS: std::ops::Range<u64> = 50..2_000;
/// Simulated time in which everything must be well again after the healing.
const HEALING: Duration = Duration::from_secs(60);
/// How long it must then stay well.
const CALM: Duration = Duration::from_secs(5);
/// Messages that may wait in a simulated socket.
const SOCKET_MESSAGES: usize = 1 << 14;
/// Simulated time of one step: what arrives meanwhile is delivered with the next one.
const STEP: Duration = Duration::from_millis(5);
/// Longest simulated time of a run.
const DURATION: Duration = Duration::from_secs(600);

/// A run that went well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Summary {
    /// Everything that happened, in one number.
    pub trace_hash: u64,
    /// How much that was.
    pub events: u64,
    /// Simulated time.
    pub elapsed: Duration,
    /// Simulated time from the healing until all was well.
    pub healed_within: Duration,
}

/// A run that did not.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("seed {seed}: {what:#?}")]
pub struct Failure {
    /// Repeats it.
    pub seed: u64,
    /// Rules that were broken, or what did not become well.
    pub what: Vec<String>,
}

struct Run<'s> {
    seed: u64,
    sim: Sim<'s>,
    world: World,
    watch: Watch,
}

impl Run<'_> {
    fn fail<T>(&self, what: Vec<String>) -> Result<T, Failure> {
        let seed = self.seed;
        Err(Failure { seed, what })
    }

    /// Steps for `time`, and looks at everything after each step.
    fn advance(&mut self, time: Duration) -> Result<(), Failure> {
        let end = self.sim.elapsed() + time;
        while self.sim.elapsed() < end {
            if let Err(err) = self.sim.step() {
                return self.fail(vec![err.to_string()]);
            }
            let now = self.sim.elapsed();
            self.world.trace().set_now(now);
            let now_ns = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
            for (_, machine) in self.world.machines() {
                machine.engine.enforce_deadlines(now_ns);
            }
            self.watch.look(&self.world, now);
            let violations = self.world.trace().violations();
            if !violations.is_empty() {
                return self.fail(violations);
            }
        }
        Ok(())
    }

    /// Steps until all is well.
    fn converge(&mut self) -> Result<Duration, Failure> {
        let healed = self.sim.elapsed();
        loop {
            self.advance(Duration::from_millis(100))?;
            let took = self.sim.elapsed() - healed;
            let unwell = unwell(&self.world);
            if unwell.is_empty() {
                return Ok(took);
            }
            if took > HEALING {
                return self.fail(unwell);
            }
        }
    }
}

/// Runs one seed. `trace` collects what happens.
///
/// # Errors
/// A rule was broken, or the cluster did not become well after the faults.
pub fn simulate(seed: u64, trace: Trace) -> Result<Summary, Failure> {
    let world = World::new(seed, trace);
    let mut sim = turmoil::Builder::new()
        .rng_seed(seed)
        .enable_random_order()
        .tick_duration(STEP)
        .min_message_latency(Duration::from_millis(1))
        .max_message_latency(Duration::from_millis(10))
        .tcp_capacity(SOCKET_MESSAGES)
        .simulation_duration(DURATION)
        .build();
    for number in 1..=NODES {
        let world = world.clone();
        sim.host(host(number), move || node::run(world.clone(), number));
    }
    let user = world.clone();
    sim.host(CLIENT, move || client::run(user.clone()));
    let mut faults = Faults::new(world.clone(), StdRng::seed_from_u64(seed));
    let mut run = Run {
        seed,
        sim,
        world: world.clone(),
        watch: Watch::default(),
    };
    run.advance(QUIET)?;
    for _ in 0..FAULTS {
        faults.inject(&mut run.sim);
        let pause = faults.random().random_range(BETWEEN_FAULTS_MS);
        run.advance(Duration::from_millis(pause))?;
    }
    world.trace().note(format_args!("all faults end"));
    world.pause_client();
    faults.heal(&mut run.sim);
    let healed_within = run.converge()?;
    run.advance(CALM)?;
    let again = unwell(&world);
    if !again.is_empty() {
        return run.fail(again);
    }
    if world.registers().is_empty() {
        return run.fail(vec!["nothing was written".to_owned()]);
    }
    Ok(Summary {
        trace_hash: world.trace().hash(),
        events: world.trace().events(),
        elapsed: run.sim.elapsed(),
        healed_within,
    })
}
