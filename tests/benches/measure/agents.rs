//! Many agents with containers that are none, each with a key and sockets of its own, against one manager.

use crate::api::{Api, Sleepers, until};
use crate::hosts::{Hosts, IMAGE};
use crate::memory::{Memory, cpu_time};
use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use std::process::Stdio;
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout};

/// Agents that run the first thousand tasks.
const AGENTS_FEW: usize = 100;
/// Agents in the end.
const AGENTS_ALL: usize = 1_000;
/// Tasks at a time.
const TASKS: usize = 1_000;
/// Over how long the use of the CPU is looked at.
const WINDOW: Duration = Duration::from_secs(1);
/// So much more of one core than before the work still counts as idle.
const IDLE_SHARE: f64 = 0.05;
/// Time for the use of the CPU to settle.
const REST: Duration = Duration::from_secs(5);

pub(crate) async fn measure() -> Result<()> {
    // The second host's daemon does nothing: the agents live there.
    let hosts = Hosts::start(1, 1).await?;
    let outcome = series(&hosts).await;
    hosts.finish(outcome).await
}

async fn series(hosts: &Hosts) -> Result<()> {
    let manager = hosts.host("manager1")?;
    manager.shoal(["init"]).await?;
    let token = manager.shoal(["join-token", "-q", "worker"]).await?;
    let addr = format!("{}:2377", manager.address);
    let pid = manager.daemon_pid.context("the daemon has no process")?;
    let api = hosts.api("manager1")?;
    tokio::time::sleep(REST).await;
    println!("manager alone: {}", Memory::of(pid)?);

    let mut fleet = Fleet::start(hosts, &addr, token.trim())?;
    fleet.grow(AGENTS_FEW).await?;
    load(&api, pid, AGENTS_FEW, TASKS).await?;
    let before = Memory::of(pid)?;
    fleet.grow(AGENTS_ALL).await?;
    tokio::time::sleep(REST).await;
    let after = Memory::of(pid)?;
    println!("manager with {AGENTS_ALL} agents: {after}");
    per_one("agent", before, after, AGENTS_ALL - AGENTS_FEW);
    load(&api, pid, AGENTS_ALL, TASKS).await?;
    load(&api, pid, AGENTS_ALL, 10 * TASKS).await?;
    fleet.end().await
}

fn per_one(what: &str, before: Memory, after: Memory, count: usize) {
    let grown = after.rss_kib.saturating_sub(before.rss_kib) as f64;
    println!("  that is {:.1} KiB per {what}", grown / count as f64);
}

/// One service: until it runs, until the manager is idle again, until it is gone.
async fn load(api: &Api, pid: i32, agents: usize, tasks: usize) -> Result<()> {
    let calm = cpu_share(pid, REST).await?;
    let before = Memory::of(pid)?;
    let (start, cpu) = (Instant::now(), cpu_time(pid)?);
    let constraints = ["node.role==worker"];
    let service = Sleepers {
        name: "many",
        image: IMAGE,
        replicas: tasks,
        constraints: &constraints,
    };
    api.create_service(&service).await?;
    wait_count(api, tasks).await?;
    let (took, used) = (start.elapsed(), cpu_time(pid)?.saturating_sub(cpu));
    println!(
        "{tasks} tasks on {agents} agents, all running: {took:.2?}; manager used {used:.2?} of CPU"
    );
    let idle = Instant::now();
    while cpu_share(pid, WINDOW).await? > calm + IDLE_SHARE {}
    let percent = calm * 100.0;
    println!(
        "  manager idle again ({percent:.1} % of a core) within {:.2?}",
        idle.elapsed()
    );
    let after = Memory::of(pid)?;
    println!("  manager: {after}");
    per_one("task", before, after, tasks);
    let start = Instant::now();
    api.remove_service("many").await?;
    until("no task is left", async || {
        let tasks = api.get("/tasks", &json!({})).await?;
        Ok(tasks.as_array().is_some_and(Vec::is_empty).then_some(()))
    })
    .await?;
    println!("  removed: {:.2?}", start.elapsed());
    Ok(())
}

/// The service's own count, since a list of thousands of tasks every few milliseconds would be the larger load.
async fn wait_count(api: &Api, wanted: usize) -> Result<()> {
    until("all tasks run", async || {
        let services = api
            .call(hyper::Method::GET, "/services?status=true", &json!(null))
            .await?;
        let running = services[0]["ServiceStatus"]["RunningTasks"].as_u64();
        Ok((running == Some(wanted as u64)).then_some(()))
    })
    .await
}

/// How much of one core a process uses during a while.
async fn cpu_share(pid: i32, during: Duration) -> Result<f64> {
    let (start, before) = (Instant::now(), cpu_time(pid)?);
    tokio::time::sleep(during).await;
    let used = cpu_time(pid)?.saturating_sub(before);
    Ok(used.as_secs_f64() / start.elapsed().as_secs_f64())
}

/// This program once more, inside of a host, with the agents.
struct Fleet {
    child: Child,
    stdin: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Fleet {
    fn start(hosts: &Hosts, addr: &str, token: &str) -> Result<Self> {
        let own = std::env::current_exe()?.display().to_string();
        let argv = [own.as_str(), "fleet", addr, token];
        let mut command = hosts.host("worker1")?.command(argv);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        Ok(Self {
            stdin: child.stdin.take().context("no input")?,
            lines: BufReader::new(child.stdout.take().context("no output")?).lines(),
            child,
        })
    }

    /// Waits until so many agents have a session.
    async fn grow(&mut self, count: usize) -> Result<()> {
        let start = Instant::now();
        self.stdin
            .write_all(format!("{count}\n").as_bytes())
            .await?;
        let line = self
            .lines
            .next_line()
            .await?
            .context("the agents have ended")?;
        println!(
            "{count} agents joined and have sessions: {:.2?}; {line}",
            start.elapsed()
        );
        Ok(())
    }

    async fn end(mut self) -> Result<()> {
        drop(self.stdin);
        let status = self.child.wait().await?;
        ensure!(status.success(), "the agents ended with {status}");
        Ok(())
    }
}
