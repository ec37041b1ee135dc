//! Raft writes per second of three managers, beside three etcd members, by one load generator on one disk.
//!
//! ```text
//! cargo bench -p shoal-manager --bench raft_writes -- writes [SECONDS]      ours and etcd at 1, 64 and 1,000 clients
//! cargo bench -p shoal-manager --bench raft_writes -- reads [SECONDS]       the same with linearizable reads
//! cargo bench -p shoal-manager --bench raft_writes -- failover [TIMES]      leader killed to next acknowledged write
//! cargo bench -p shoal-manager --bench raft_writes -- cut [TIMES]           leader cut off, under `unshare --net`
//! cargo bench -p shoal-manager --bench raft_writes -- busy [SECONDS]        leader changes under 8 spinning threads
//! ```
//! Data goes to `SHOAL_BENCH_DIR`, or to a temporary directory.

mod etcd;
mod load;
mod managers;

use anyhow::{Context as _, bail};
use managers::Managers;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// As in the product.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Clients in each run.
const CLIENTS: [u32; 3] = [1, 64, 1_000];
/// Threads that keep the cores busy.
const SPINNERS: usize = 8;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut args = std::env::args()
        .skip(1)
        .filter(|arg| !arg.starts_with("--"));
    let mode = args.next().unwrap_or_else(|| "writes".to_owned());
    let number = args.next();
    if mode == "serve" {
        let id = number.context("an id is missing")?.parse()?;
        return managers::serve(id, args.next().context("a directory is missing")?.into()).await;
    }
    let number = number.map(|number| number.parse::<u64>()).transpose()?;
    let parent = std::env::var_os("SHOAL_BENCH_DIR").unwrap_or_else(|| std::env::temp_dir().into());
    let directory = tempfile::tempdir_in(parent)?;
    match mode.as_str() {
        "writes" => writes(directory.path(), Duration::from_secs(number.unwrap_or(5))).await,
        "reads" => reads(directory.path(), Duration::from_secs(number.unwrap_or(5))).await,
        "failover" => failover(directory.path(), number.unwrap_or(50), Fault::Kill).await,
        "cut" => failover(directory.path(), number.unwrap_or(50), Fault::Cut).await,
        "busy" => busy(directory.path(), Duration::from_secs(number.unwrap_or(600))).await,
        other => bail!("`{other}` is not one of writes, reads, failover, cut, busy"),
    }
}

async fn writes(directory: &Path, time: Duration) -> anyhow::Result<()> {
    let mut ours = Vec::new();
    {
        let mut managers = Managers::start(directory).await?;
        managers.client.find_leader().await?;
        println!(
            "shoal  memory before load, KiB: {:?}",
            managers.memory_kib()
        );
        for clients in CLIENTS {
            let sessions = managers.client.sessions(clients).await?;
            let write = move |client, value| {
                let sessions = sessions.clone();
                async move { sessions.write(client, value).await }
            };
            let measured = load::run(clients, time, &managers.pids(), write).await?;
            println!("shoal  {measured}");
            ours.push(measured.rate());
        }
        println!("shoal  memory after load, KiB: {:?}", managers.memory_kib());
    }
    let etcd = etcd::start(directory)?;
    for (clients, ours) in CLIENTS.into_iter().zip(ours) {
        let client = etcd::Client::connect(clients).await?;
        let write = move |number, value| {
            let client = client.clone();
            async move { client.put(number, value).await }
        };
        let measured = load::run(clients, time, &etcd.pids(), write).await?;
        println!(
            "etcd   {measured}  shoal is {:.1} x",
            ours / measured.rate()
        );
    }
    println!("etcd   memory after load, KiB: {:?}", etcd.memory_kib());
    Ok(())
}

async fn reads(directory: &Path, time: Duration) -> anyhow::Result<()> {
    let mut ours = Vec::new();
    {
        let mut managers = Managers::start(directory).await?;
        managers.client.find_leader().await?;
        for clients in CLIENTS {
            let sessions = managers.client.sessions(clients).await?;
            let read = move |client, _| {
                let sessions = sessions.clone();
                async move { sessions.read(client).await }
            };
            let measured = load::run(clients, time, &managers.pids(), read).await?;
            println!("shoal reads  {measured}");
            ours.push(measured.rate());
        }
    }
    let etcd = etcd::start(directory)?;
    for (clients, ours) in CLIENTS.into_iter().zip(ours) {
        let client = etcd::Client::connect(clients).await?;
        for key in 0..load::KEYS {
            client.put(key, "x".repeat(load::VALUE_BYTES)).await?;
        }
        let read = move |number, _| {
            let client = client.clone();
            async move { client.get(number).await }
        };
        let measured = load::run(clients, time, &etcd.pids(), read).await?;
        println!(
            "etcd  reads  {measured}  shoal is {:.1} x",
            ours / measured.rate()
        );
    }
    Ok(())
}

/// What happens to the leader.
#[derive(Debug, Clone, Copy)]
enum Fault {
    Kill,
    Cut,
}

async fn failover(directory: &Path, times: u64, fault: Fault) -> anyhow::Result<()> {
    let mut managers = Managers::start(directory).await?;
    let mut took = Vec::new();
    for _ in 0..times {
        took.push(match fault {
            Fault::Kill => managers.kill_leader().await?,
            Fault::Cut => managers.cut_leader().await?,
        });
    }
    took.sort_unstable();
    let median = took[took.len() / 2];
    println!(
        "{fault:?} of the leader to next acknowledged write, {times} times: best {:?}, median {median:?}, worst {:?}",
        took[0],
        took[took.len() - 1]
    );
    Ok(())
}

async fn busy(directory: &Path, time: Duration) -> anyhow::Result<()> {
    let mut managers = Managers::start(directory).await?;
    let (leader, term) = managers.client.find_leader().await?;
    let stop = Arc::new(AtomicBool::new(false));
    for _ in 0..SPINNERS {
        let stop = Arc::clone(&stop);
        std::thread::spawn(move || while !stop.load(Ordering::Relaxed) {});
    }
    let started = Instant::now();
    let mut changes = 0;
    let mut seen = (leader, term);
    while started.elapsed() < time {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let now = managers.client.find_leader().await?;
        if now != seen {
            changes += 1;
            println!("after {:?}: from {seen:?} to {now:?}", started.elapsed());
            seen = now;
        }
    }
    stop.store(true, Ordering::Relaxed);
    println!("{changes} leader changes in {time:?} under {SPINNERS} spinning threads");
    Ok(())
}
