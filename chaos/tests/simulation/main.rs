//! Runs of the simulation: each seed in a process of its own, so that nothing of one run reaches another.
//!
//! `SHOAL_SEED=7 cargo test -p shoal-chaos --test simulation one_seed -- --nocapture` repeats one run, with
//! `SHOAL_TRACE=1` event by event, with `SHOAL_LOG=debug` and the logs of everything. `SHOAL_SEEDS=1..500` runs many;
//! by default no further seed is begun when [`BUDGET`] is spent. How many runs that are depends on the machine; nothing
//! within a run does.

#![expect(clippy::unwrap_used, reason = "a test ends at what it did not expect")]

mod entropy;

use shoal_chaos::{Summary, Trace, simulate};
use std::ops::Range;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

/// What a run by default covers.
const SEEDS: Range<u64> = 1..9;

/// Real time after which no further seed is begun by default.
const BUDGET: Duration = Duration::from_secs(20);

/// Runs at a time.
const PROCESSES: usize = 2;

/// The seed that is run twice.
const SEED_TWICE: u64 = 3;

fn chosen_seed() -> Option<u64> {
    let text = std::env::var("SHOAL_SEED").ok()?;
    Some(text.parse().expect("SHOAL_SEED is a number"))
}

/// The seeds to run, and for how long.
fn seeds() -> (Range<u64>, Duration) {
    let Ok(text) = std::env::var("SHOAL_SEEDS") else {
        return (SEEDS, BUDGET);
    };
    let (first, end) = text.split_once("..").expect("SHOAL_SEEDS is `first..end`");
    (first.parse().unwrap()..end.parse().unwrap(), Duration::MAX)
}

/// Runs seeds one after the other; those that failed.
fn work(seeds: &Mutex<Range<u64>>, begun: Instant, budget: Duration) -> Vec<u64> {
    let mut failed = Vec::new();
    while begun.elapsed() < budget {
        let next = seeds.lock().unwrap().next();
        let Some(seed) = next else { break };
        match finish(seed, spawn(seed)) {
            Ok(line) => println!("{line}"),
            Err(text) => {
                println!("{text}");
                failed.push(seed);
            }
        }
    }
    failed
}

/// On a thread of its own: what a thread draws for the order of its hash maps it draws once.
fn run(seed: u64) -> Summary {
    let trace = match std::env::var_os("SHOAL_TRACE") {
        Some(_) => Trace::printed(),
        None => Trace::default(),
    };
    if let Ok(filter) = std::env::var("SHOAL_LOG") {
        tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(std::io::stderr)
            .without_time()
            .init();
    }
    let simulation = thread::spawn(move || simulate(seed, trace));
    simulation
        .join()
        .unwrap()
        .unwrap_or_else(|failure| panic!("{failure}"))
}

#[test]
fn one_seed() {
    let seed = chosen_seed().unwrap_or(SEEDS.start);
    let summary = run(seed);
    println!("seed {seed}: {summary:?}");
}

fn spawn(seed: u64) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "one_seed", "--nocapture"])
        .env("SHOAL_SEED", seed.to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// What the run of a seed said: the line with its summary, or everything.
fn finish(seed: u64, child: Child) -> Result<String, String> {
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = text
        .lines()
        .find(|line| line.starts_with(&format!("seed {seed}: ")));
    match line {
        Some(line) if output.status.success() => Ok(line.to_owned()),
        _ => Err(text + &String::from_utf8_lossy(&output.stderr)),
    }
}

#[test]
fn nothing_is_lost_and_everything_converges_after_faults() {
    if chosen_seed().is_some() {
        return;
    }
    let (seeds, budget) = seeds();
    let (seeds, begun) = (Mutex::new(seeds), Instant::now());
    let failures: Vec<u64> = thread::scope(|scope| {
        let workers: Vec<_> = (0..PROCESSES)
            .map(|_| scope.spawn(|| work(&seeds, begun, budget)))
            .collect();
        let failed = workers.into_iter().map(|worker| worker.join().unwrap());
        failed.flatten().collect()
    });
    assert!(
        failures.is_empty(),
        "seeds {failures:?} failed; SHOAL_SEED=<seed> repeats one"
    );
}

#[test]
fn one_seed_twice_is_the_same_run() {
    if chosen_seed().is_some() {
        return;
    }
    let (first, second) = (spawn(SEED_TWICE), spawn(SEED_TWICE));
    let first = finish(SEED_TWICE, first).unwrap();
    let second = finish(SEED_TWICE, second).unwrap();
    assert_eq!(first, second);
}
