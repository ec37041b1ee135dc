//! A service created until all its tasks run, and removed until no container is left.

use crate::api::{Api, Sleepers, until};
use crate::hosts::{Hosts, IMAGE};
use crate::series::Series;
use anyhow::{Context as _, Result};
use std::time::Instant;

const REPLICAS: [usize; 4] = [1, 10, 50, 100];

/// A cluster under measurement: the first node takes the requests.
struct Subject {
    nodes: Vec<Api>,
    image: String,
}

/// Medians are of so many runs after one that is not counted; twice as many for the quick ones.
const TIMES: usize = 5;

pub(crate) async fn measure(times: Option<usize>) -> Result<()> {
    let rival = rival()?;
    let hosts = Hosts::start(3, 2).await?;
    let outcome = series(&hosts, rival, times.unwrap_or(TIMES)).await;
    hosts.finish(outcome).await
}

fn rival() -> Result<Option<Subject>> {
    let Ok(sockets) = std::env::var("SHOAL_BENCH_SWARM") else {
        return Ok(None);
    };
    let image =
        std::env::var("SHOAL_BENCH_SWARM_IMAGE").context("SHOAL_BENCH_SWARM_IMAGE is missing")?;
    let nodes = sockets.split(',').map(Api::new).collect();
    Ok(Some(Subject { nodes, image }))
}

async fn series(hosts: &Hosts, rival: Option<Subject>, times: usize) -> Result<()> {
    hosts.join().await?;
    // Through the leader, as with the rival.
    let leader = hosts.leader().await?;
    let mut names: Vec<_> = hosts
        .cluster
        .state
        .hosts
        .iter()
        .map(|host| host.name.clone())
        .collect();
    names.sort_by_key(|name| *name != leader);
    let nodes = names
        .iter()
        .map(|name| hosts.api(name))
        .collect::<Result<_>>()?;
    let ours = Subject {
        nodes,
        image: IMAGE.to_owned(),
    };
    println!("min / median / max; 5 nodes; looked at every 20 ms");
    for replicas in REPLICAS {
        let times = if replicas <= 10 { times * 2 } else { times };
        let (created, removed) = ours.repeat(replicas, times).await?;
        let (mut rival_created, mut rival_removed) = (Series::default(), Series::default());
        if let Some(rival) = &rival {
            (rival_created, rival_removed) = rival.repeat(replicas, times.min(3)).await?;
        }
        println!(
            "{replicas:>4} create  shoal {created}{}",
            created.ratio(&rival_created)
        );
        println!(
            "{replicas:>4} remove  shoal {removed}{}",
            removed.ratio(&rival_removed)
        );
        if rival.is_some() {
            println!("{replicas:>4} create  swarm {rival_created}");
            println!("{replicas:>4} remove  swarm {rival_removed}");
        }
    }
    Ok(())
}

impl Subject {
    async fn repeat(&self, replicas: usize, times: usize) -> Result<(Series, Series)> {
        let (mut created, mut removed) = (Series::default(), Series::default());
        for number in 0..=times {
            let name = format!("b{replicas}-{number}");
            let start = Instant::now();
            self.create(&name, replicas).await?;
            let up = start.elapsed();
            let start = Instant::now();
            self.remove(&name).await?;
            // The first one warms up.
            if number > 0 {
                created.push(up);
                removed.push(start.elapsed());
            }
        }
        Ok((created, removed))
    }

    async fn create(&self, name: &str, replicas: usize) -> Result<()> {
        let api = &self.nodes[0];
        let service = Sleepers {
            name,
            image: &self.image,
            replicas,
            constraints: &[],
        };
        api.create_service(&service).await?;
        until("all tasks run", async || {
            Ok((api.running(name).await?.len() == replicas).then_some(()))
        })
        .await
    }

    async fn remove(&self, name: &str) -> Result<()> {
        self.nodes[0].remove_service(name).await?;
        until("no container is left", async || {
            for node in &self.nodes {
                if node.containers().await? > 0 {
                    return Ok(None);
                }
            }
            Ok(Some(()))
        })
        .await
    }
}
