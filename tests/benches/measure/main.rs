//! What a user waits for, measured on hosts made of namespaces, beside a rival where one is there.
//!
//! ```text
//! cargo xtask bench cluster [TIMES]     a service created and removed: 3 managers, 2 workers
//! cargo xtask bench failover [TIMES]    hosts killed and cut off
//! cargo xtask bench run [TIMES]         single containers, and memory at rest
//! cargo xtask bench agents              1,000 agents with containers that are none, one manager
//! ```
//! Rivals are started by whoever measures, and named by the environment:
//!
//! * `SHOAL_BENCH_SWARM`: sockets of the nodes of a Docker Swarm, with commas between; the first one is a manager's.
//!   `SHOAL_BENCH_SWARM_IMAGE`: id of an image with `sleep` that all of them have.
//! * `SHOAL_BENCH_DOCKER`: socket of a dockerd that has the image `busybox`.
//! * `SHOAL_BENCH_PODMAN`: command line up to and without `run`; it has the image `busybox`.
//!
//! Needs root. Everything that it makes is removed, also when it fails.

mod agents;
mod api;
#[path = "../../it/busybox.rs"]
#[expect(
    clippy::unwrap_used,
    reason = "shared with the tests; writes to memory only"
)]
mod busybox;
mod cluster;
mod failover;
mod fleet;
mod hosts;
mod memory;
mod run;
mod series;

use anyhow::{Context as _, Result, bail};

#[tokio::main]
async fn main() -> Result<()> {
    let mut words = std::env::args().skip(1);
    let name = words
        .next()
        .context("which measurement? cluster, failover, run or agents")?;
    let rest: Vec<_> = words.collect();
    if name == "fleet" {
        return fleet::serve(&rest).await;
    }
    let times = rest.first().map(|word| word.parse()).transpose();
    let times = times.context("the number of times is no number")?;
    println!(
        "load before: {}",
        std::fs::read_to_string("/proc/loadavg")?.trim()
    );
    match name.as_str() {
        "cluster" => cluster::measure(times).await?,
        "failover" => failover::measure(times).await?,
        "run" => run::measure(times).await?,
        "agents" => agents::measure().await?,
        other => bail!("`{other}` is not one of cluster, failover, run, agents"),
    }
    println!(
        "load after: {}",
        std::fs::read_to_string("/proc/loadavg")?.trim()
    );
    Ok(())
}
