//! Hosts that are lost: how long until their tasks run elsewhere, and until the next write is acknowledged.

use crate::api::{Api, Sleepers, until};
use crate::hosts::{Hosts, IMAGE};
use crate::series::Series;
use anyhow::{Context as _, Result};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use std::time::{Duration, Instant};

/// Tasks of the service that loses some.
const REPLICAS: usize = 10;
/// How often a worker is lost.
const WORKER_TIMES: usize = 5;
/// How often a leader is lost.
const LEADER_TIMES: usize = 20;
/// How often a client tries to write while nobody leads. Tries overlap, so that none that hangs hides the next.
const WRITE_PERIOD: Duration = Duration::from_millis(20);
/// Longest wait for a write.
const WRITE_MAX: Duration = Duration::from_secs(60);

/// What happens to a host.
#[derive(Debug, Clone, Copy)]
enum Fault {
    Kill,
    Cut,
}

pub(crate) async fn measure(times: Option<usize>) -> Result<()> {
    let mut hosts = Hosts::start(3, 2).await?;
    let outcome = series(&mut hosts, times).await;
    hosts.finish(outcome).await
}

async fn series(hosts: &mut Hosts, times: Option<usize>) -> Result<()> {
    hosts.join().await?;
    println!("min / median / max");
    for fault in [Fault::Kill, Fault::Cut] {
        let mut took = Series::default();
        for _ in 0..times.unwrap_or(WORKER_TIMES) {
            took.push(lose_worker(hosts, fault).await?);
        }
        println!("worker, {fault:?}, to all {REPLICAS} tasks running elsewhere: {took}");
    }
    for fault in [Fault::Kill, Fault::Cut] {
        let mut took = Series::default();
        for number in 0..times.unwrap_or(LEADER_TIMES) {
            let name = format!("write-{fault:?}-{number}").to_lowercase();
            took.push(lose_leader(hosts, fault, &name).await?);
        }
        println!("leader, {fault:?}, to next acknowledged write: {took}");
    }
    Ok(())
}

async fn strike(hosts: &Hosts, name: &str, fault: Fault) -> Result<()> {
    match fault {
        Fault::Kill => hosts.host(name)?.strike()?,
        Fault::Cut => hosts.cluster.switch.set_cable(name, false).await?,
    }
    Ok(())
}

async fn heal(hosts: &mut Hosts, name: &str, fault: Fault) -> Result<()> {
    match fault {
        Fault::Kill => hosts.cluster.reboot(name).await?,
        Fault::Cut => hosts.cluster.switch.set_cable(name, true).await?,
    }
    hosts.wait_whole().await
}

async fn lose_worker(hosts: &mut Hosts, fault: Fault) -> Result<Duration> {
    let api = hosts.api("manager1")?;
    let nodes = api.nodes().await?;
    let lost = nodes.iter().find(|node| node.hostname == "worker1");
    let lost = lost.context("there is no worker1")?.id.clone();
    let service = Sleepers {
        name: "web",
        image: IMAGE,
        replicas: REPLICAS,
        constraints: &[],
    };
    api.create_service(&service).await?;
    until("all tasks run", async || {
        Ok((api.running("web").await?.len() == REPLICAS).then_some(()))
    })
    .await?;
    let start = Instant::now();
    strike(hosts, "worker1", fault).await?;
    until("all tasks run elsewhere", async || {
        let running = api.running("web").await?;
        let elsewhere = running.iter().filter(|node| **node != lost).count();
        Ok((elsewhere == REPLICAS).then_some(()))
    })
    .await?;
    let took = start.elapsed();
    heal(hosts, "worker1", fault).await?;
    api.remove_service("web").await?;
    for host in &hosts.cluster.state.hosts {
        let api = hosts.api(&host.name)?;
        until("no container is left", async || {
            Ok((api.containers().await? == 0).then_some(()))
        })
        .await?;
    }
    Ok(took)
}

async fn lose_leader(hosts: &mut Hosts, fault: Fault, write: &str) -> Result<Duration> {
    let leader = hosts.leader().await?;
    let survivors = ["manager1", "manager2", "manager3"];
    let survivors = survivors.into_iter().filter(|name| *name != leader);
    let survivors = survivors
        .map(|name| hosts.api(name))
        .collect::<Result<Vec<_>>>()?;
    let start = Instant::now();
    strike(hosts, &leader, fault).await?;
    let took = first_write(&survivors, write, start).await?;
    heal(hosts, &leader, fault).await?;
    Ok(took)
}

/// Tries writes through the survivors in turn until one is acknowledged.
async fn first_write(survivors: &[Api], name: &str, start: Instant) -> Result<Duration> {
    let mut tries = FuturesUnordered::new();
    let mut period = tokio::time::interval(WRITE_PERIOD);
    let mut number = 0_usize;
    let mut last = None;
    while start.elapsed() < WRITE_MAX {
        tokio::select! {
            _ = period.tick() => {
                let api = survivors[number % survivors.len()].clone();
                let name = format!("{name}-{number}");
                number += 1;
                tries.push(async move {
                    let service = Sleepers { name: &name, image: IMAGE, replicas: 0, constraints: &[] };
                    api.create_service(&service).await
                });
            }
            Some(outcome) = tries.next() => match outcome {
                Ok(()) => return Ok(start.elapsed()),
                Err(error) => last = Some(error),
            },
        }
    }
    Err(last.context("no write was answered")?)
}
