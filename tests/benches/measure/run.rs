//! Single containers, beside other engines; memory at rest.

use crate::hosts::{Hosts, IMAGE};
use crate::memory::{Memory, with_arguments};
use crate::series::Series;
use anyhow::{Context as _, Result, ensure};
use futures_util::StreamExt;
use std::process::Stdio;
use std::time::{Duration, Instant};
use tokio::process::Command;

/// Runs of each kind, after [`WARM_UP`] that are not counted.
const TIMES: usize = 20;
const WARM_UP: usize = 3;
/// Containers that are started together, and how many at a time.
const MANY: usize = 100;
const AT_A_TIME: usize = 8;
/// Time without work before memory at rest is looked at.
const REST: Duration = Duration::from_secs(5);

/// An engine's command line up to and without the subcommand, and its name of the image.
#[derive(Debug, Clone)]
struct Engine {
    name: &'static str,
    argv: Vec<String>,
    image: &'static str,
}

impl Engine {
    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.argv[0]);
        command
            .args(&self.argv[1..])
            .args(args)
            .stdin(Stdio::null());
        command
    }

    /// Runs one command: what it wrote and how long it took.
    async fn run(&self, args: &[&str]) -> Result<(String, Duration)> {
        let start = Instant::now();
        let output = self.command(args).output().await?;
        let took = start.elapsed();
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{} {args:?}: {said}", self.name);
        Ok((String::from_utf8_lossy(&output.stdout).into_owned(), took))
    }
}

pub(crate) async fn measure(times: Option<usize>) -> Result<()> {
    let hosts = Hosts::start(1, 1).await?;
    let outcome = series(&hosts, times.unwrap_or(TIMES)).await;
    hosts.finish(outcome).await
}

fn engines(hosts: &Hosts) -> Result<Vec<Engine>> {
    let shoal = hosts.host("worker1")?.client(["version"]);
    let shoal = shoal.as_std();
    let mut argv = vec![shoal.get_program().to_string_lossy().into_owned()];
    argv.extend(
        shoal
            .get_args()
            .map(|word| word.to_string_lossy().into_owned()),
    );
    argv.pop();
    let mut engines = vec![Engine {
        name: "shoal",
        argv,
        image: IMAGE,
    }];
    if let Ok(socket) = std::env::var("SHOAL_BENCH_DOCKER") {
        let argv = ["docker", "--host", &format!("unix://{socket}")].map(str::to_owned);
        engines.push(Engine {
            name: "docker",
            argv: argv.to_vec(),
            image: "busybox",
        });
    }
    if let Ok(line) = std::env::var("SHOAL_BENCH_PODMAN") {
        let argv = line.split_whitespace().map(str::to_owned).collect();
        engines.push(Engine {
            name: "podman",
            argv,
            image: "busybox",
        });
    }
    Ok(engines)
}

async fn series(hosts: &Hosts, times: usize) -> Result<()> {
    hosts.join().await?;
    tokio::time::sleep(REST).await;
    daemons(hosts, "at rest, just joined")?;
    let engines = engines(hosts)?;
    println!("min / median / max");
    for network in ["bridge", "none", "host"] {
        one_by_one(&engines, network, times).await?;
    }
    many(hosts, &engines).await?;
    tokio::time::sleep(REST).await;
    daemons(hosts, "at rest, after that")
}

/// `run --rm IMAGE true`, the engines in turn.
async fn one_by_one(engines: &[Engine], network: &str, times: usize) -> Result<()> {
    let mut series: Vec<_> = engines.iter().map(|_| Series::default()).collect();
    for number in 0..times + WARM_UP {
        for (engine, series) in engines.iter().zip(&mut series) {
            let args = ["run", "--rm", "--network", network, engine.image, "true"];
            let (_, took) = engine.run(&args).await?;
            if number >= WARM_UP {
                series.push(took);
            }
        }
    }
    for (engine, took) in engines.iter().zip(&series) {
        let name = engine.name;
        let ratio = if name == "shoal" {
            String::new()
        } else {
            series[0].ratio(took)
        };
        println!("run --rm --network {network}, {name}: {took}{ratio}");
    }
    Ok(())
}

/// `run -d` of many.
async fn many(hosts: &Hosts, engines: &[Engine]) -> Result<()> {
    for engine in engines {
        let (first, _) = engine
            .run(&["run", "-d", engine.image, "sleep", "1000"])
            .await?;
        if engine.name == "shoal" {
            tokio::time::sleep(REST).await;
            shims(hosts, "1 container")?;
        }
        let mut ids = vec![first.trim().to_owned()];
        let start = Instant::now();
        let starts = (0..MANY).map(|_| async {
            engine
                .run(&["run", "-d", engine.image, "sleep", "1000"])
                .await
        });
        let mut starts = futures_util::stream::iter(starts).buffer_unordered(AT_A_TIME);
        let mut each = Series::default();
        while let Some(outcome) = starts.next().await {
            let (id, took) = outcome?;
            ids.push(id.trim().to_owned());
            each.push(took);
        }
        let took = start.elapsed();
        let rate = MANY as f64 / took.as_secs_f64();
        let name = engine.name;
        println!(
            "{MANY} x run -d, {AT_A_TIME} at a time, {name}: {took:.2?}, {rate:.1}/s; each {each}"
        );
        if name == "shoal" {
            tokio::time::sleep(REST).await;
            shims(hosts, "101 containers")?;
            daemons(hosts, "101 containers on worker1")?;
        }
        let start = Instant::now();
        let args: Vec<_> = ["rm", "-f"]
            .into_iter()
            .chain(ids.iter().map(String::as_str))
            .collect();
        engine.run(&args).await?;
        println!("rm -f of {}, {name}: {:.2?}", ids.len(), start.elapsed());
    }
    Ok(())
}

fn daemons(hosts: &Hosts, when: &str) -> Result<()> {
    for name in ["manager1", "worker1"] {
        let pid = hosts
            .host(name)?
            .daemon_pid
            .context("the daemon has no process")?;
        println!("daemon of {name}, {when}: {}", Memory::of(pid)?);
    }
    Ok(())
}

/// The shims of worker1: the processes with a bundle below its folder.
fn shims(hosts: &Hosts, when: &str) -> Result<()> {
    let dir = hosts.host("worker1")?.dir.display().to_string();
    let pids = with_arguments(|words| {
        words.get(1) == Some(&"shim") && words.iter().any(|word| word.starts_with(&dir))
    });
    ensure!(!pids.is_empty(), "no shim was found");
    let memory = pids
        .iter()
        .map(|pid| Memory::of(*pid))
        .collect::<Result<Vec<_>>>()?;
    let count = memory.len() as u64;
    let mean = Memory {
        rss_kib: memory.iter().map(|one| one.rss_kib).sum::<u64>() / count,
        pss_kib: memory.iter().map(|one| one.pss_kib).sum::<u64>() / count,
    };
    println!("shim, {when}: mean of {count}: {mean}");
    Ok(())
}
