//! Faults by seed, then healing: no acknowledged write is lost, every slot has one task, the managers agree.

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use shoal_chaos::{ENGINES, MANAGERS, World};
use shoal_manager::consensus::Leadership;
use shoal_manager::store::{State, check_invariants};
use shoal_model::{NodeId, ServiceMode, TaskState};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use turmoil::Sim;

/// Simulated time without a fault before the first one.
const QUIET: Duration = Duration::from_secs(3);
/// Faults before the healing.
const FAULTS: usize = 30;
/// Simulated time in which everything must be well again.
const HEALING: Duration = Duration::from_secs(60);

fn advance(sim: &mut Sim<'_>, time: Duration) {
    let end = sim.elapsed() + time;
    while sim.elapsed() < end {
        sim.step().unwrap();
    }
}

/// One fault; managers that are without power are in `off`.
fn fault(sim: &mut Sim<'_>, world: &World, random: &mut StdRng, off: &mut BTreeSet<u64>) {
    let id = random.random_range(1..=MANAGERS);
    let other = id % MANAGERS + 1;
    match random.random_range(0..8) {
        0 => sim.partition(World::host(id), World::host(other)),
        1 => {
            for other in (1..=MANAGERS).filter(|other| *other != id) {
                sim.partition(World::host(id), World::host(other));
            }
        }
        2 => repair(sim),
        3 => crash(sim, world, random, id, off),
        4 => start(sim, off),
        5 => world.disk(id).fail_next_sync(),
        6 => world
            .clock(id)
            .jump(random.random_range(-90_000_000_000..90_000_000_000)),
        _ => {
            let down = (1..=ENGINES).filter(|_| random.random_range(0..4) == 0);
            world.set_down(down.map(NodeId::from_bits).collect());
        }
    }
    // A manager whose log can't be synced stops; whoever watches it starts it again.
    for id in 1..=MANAGERS {
        if matches!(world.leadership(id), Some(Leadership::Stopped { .. })) {
            crash(sim, world, random, id, off);
        }
    }
}

fn crash(sim: &mut Sim<'_>, world: &World, random: &mut StdRng, id: u64, off: &mut BTreeSet<u64>) {
    if off.insert(id) {
        sim.crash(World::host(id));
        world.disk(id).crash(|| random.random());
    }
}

fn start(sim: &mut Sim<'_>, off: &mut BTreeSet<u64>) {
    for id in std::mem::take(off) {
        sim.bounce(World::host(id));
    }
}

fn repair(sim: &mut Sim<'_>) {
    for id in 1..=MANAGERS {
        sim.repair(World::host(id), World::host(id % MANAGERS + 1));
    }
}

/// What is not yet as it must be in the end.
fn unwell(world: &World) -> Vec<String> {
    let mut unwell = Vec::new();
    let states: Vec<_> = (1..=MANAGERS).filter_map(|id| world.state(id)).collect();
    let versions: BTreeSet<_> = states.iter().map(|state| state.version()).collect();
    if versions.len() != 1 {
        unwell.push(format!("the managers are at {versions:?}"));
    }
    for state in &states {
        for id in world.acknowledged() {
            if state.service(id).is_none() {
                unwell.push(format!("acknowledged service {id} is lost"));
            }
        }
        unwell.extend(check_invariants(state).iter().map(ToString::to_string));
        unwell.extend(unfilled(state));
    }
    unwell
}

fn unfilled(state: &State) -> Vec<String> {
    let mut wrong = Vec::new();
    for service in state.services() {
        let mut slots: BTreeMap<u64, usize> = BTreeMap::new();
        for task in state.tasks_by_service(service.id) {
            if task.desired <= TaskState::Running && task.status.state == TaskState::Running {
                *slots.entry(task.slot).or_default() += 1;
            }
        }
        let wanted = match service.spec.mode {
            ServiceMode::Replicated { replicas } => replicas,
            ServiceMode::Global => 0,
        };
        if slots.len() as u64 != wanted || slots.values().any(|count| *count != 1) {
            wrong.push(format!("{} runs {slots:?} of {wanted}", service.spec.name));
        }
    }
    wrong
}

fn simulate(seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    let world = World::new(seed);
    let mut sim = turmoil::Builder::new()
        .rng_seed(seed)
        .enable_random_order()
        .min_message_latency(Duration::from_millis(1))
        .max_message_latency(Duration::from_millis(5))
        .simulation_duration(Duration::from_secs(600))
        .build();
    for id in 1..=MANAGERS {
        let world = world.clone();
        sim.host(World::host(id), move || world.clone().run_manager(id));
    }
    advance(&mut sim, QUIET);
    let mut off = BTreeSet::new();
    for _ in 0..FAULTS {
        fault(&mut sim, &world, &mut random, &mut off);
        advance(
            &mut sim,
            Duration::from_millis(random.random_range(50..1_500)),
        );
    }
    repair(&mut sim);
    for id in 1..=MANAGERS {
        if matches!(world.leadership(id), Some(Leadership::Stopped { .. })) {
            crash(&mut sim, &world, &mut random, id, &mut off);
        }
    }
    start(&mut sim, &mut off);
    world.set_down(BTreeSet::new());
    let end = sim.elapsed() + HEALING;
    advance(&mut sim, Duration::from_secs(5));
    while !unwell(&world).is_empty() && sim.elapsed() < end {
        advance(&mut sim, Duration::from_millis(500));
    }
    let unwell = unwell(&world);
    assert!(unwell.is_empty(), "seed {seed}: {unwell:#?}");
    assert!(
        !world.acknowledged().is_empty(),
        "seed {seed}: nothing was written"
    );
}

#[test]
#[ignore = "a member that ends append streams at once is asked again without a pause, until the simulated ports run out"]
fn managers_lose_nothing_and_converge_after_faults() {
    // `SHOAL_SEED` repeats one run; otherwise a few fixed seeds.
    match std::env::var("SHOAL_SEED") {
        Ok(seed) => simulate(seed.parse().unwrap()),
        Err(_) => (1..=5).for_each(simulate),
    }
}
