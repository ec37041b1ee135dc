//! The demo's second service: in a network across hosts, with a port that every host answers.

use crate::demo::{IMAGE, STEP_MAX};
use crate::host::{Host, wait_until_async};
use crate::{Cluster, PlaygroundError};
use std::collections::BTreeSet;
use std::net::Ipv4Addr;

/// Replicas of the service: fewer than hosts, so that some hosts answer for others.
const REPLICAS: usize = 3;
/// The published port.
const PORT: u16 = 8080;
/// Requests to each host.
const REQUESTS: usize = 12;
/// Name of the network.
const NETWORK: &str = "backend";
/// The host that clients are on.
const CLIENT: &str = "worker2";
/// Name of the service.
const SERVICE: &str = "shop";

/// One answer of the demo's web server.
struct Answer {
    container: String,
    client: String,
}

/// Makes the network and the service, and asks every host for an answer.
pub(crate) async fn publish(cluster: &Cluster) -> Result<((), String), PlaygroundError> {
    let first = cluster.host("manager1")?;
    first
        .shoal([
            "network",
            "create",
            "--driver",
            "overlay",
            "--attachable",
            NETWORK,
        ])
        .await?;
    let (replicas, port) = (REPLICAS.to_string(), format!("{PORT}:{PORT}"));
    first
        .shoal([
            "svc",
            "create",
            "--quiet",
            "--name",
            SERVICE,
            "--network",
            NETWORK,
            "--publish",
            &port,
            "--replicas",
            &replicas,
            // It is the client: what a host sends to a task of its own by way of another host gets that one's address.
            "--constraint",
            &format!("node.hostname!={CLIENT}"),
            IMAGE,
        ])
        .await?;
    ask_every_host(cluster).await
}

/// Asks every living host for answers, as a client that is on [`CLIENT`]: all requests succeed, all replicas
/// answer, and they see the client's own address.
pub(crate) async fn ask_every_host(cluster: &Cluster) -> Result<((), String), PlaygroundError> {
    let client = cluster.host(CLIENT)?;
    let hosts: Vec<_> = cluster
        .state
        .hosts
        .iter()
        .filter(|host| host.init_pid.is_some())
        .collect();
    let mut containers = BTreeSet::new();
    for host in &hosts {
        for answer in ask(client, host.address).await? {
            let own = host.name == client.name;
            if !own && answer.client != client.address.to_string() {
                return Err(PlaygroundError::State(format!(
                    "a task saw {} instead of the client's address {} through {}",
                    answer.client, client.address, host.name
                )));
            }
            containers.insert(answer.container);
        }
    }
    if containers.len() != REPLICAS {
        return Err(PlaygroundError::State(format!(
            "{} of {REPLICAS} replicas answered: {containers:?}",
            containers.len()
        )));
    }
    let note = format!(
        "{} requests through {} hosts, all {REPLICAS} replicas answer and see the client's address",
        hosts.len() * REQUESTS,
        hosts.len()
    );
    Ok(((), note))
}

/// The first answer may have to wait for the new table to arrive at that host; from then on every request succeeds.
async fn ask(client: &Host, address: Ipv4Addr) -> Result<Vec<Answer>, PlaygroundError> {
    let url = format!("{address}:{PORT}");
    wait_until_async(&format!("{url} answers"), STEP_MAX, async || {
        match fetch(client, &url, 1).await {
            Ok(answers) => Ok(Ok(answers)),
            Err(error @ PlaygroundError::Command { .. }) => Ok(Err(error.to_string())),
            Err(error) => Err(error),
        }
    })
    .await?;
    fetch(client, &url, REQUESTS).await
}

async fn fetch(client: &Host, to: &str, times: usize) -> Result<Vec<Answer>, PlaygroundError> {
    let times = times.to_string();
    let program = client.exe.display().to_string();
    let shown = client
        .run([&program, "playground", "fetch", "--times", &times, to])
        .await?;
    shown
        .lines()
        .map(|line| {
            let (container, client) = line.split_once(" serves ").ok_or_else(|| {
                PlaygroundError::State(format!("`{line}` is not an answer of the demo's server"))
            })?;
            let address = client
                .rsplit_once(':')
                .map_or(client, |(address, _)| address);
            Ok(Answer {
                container: container.to_owned(),
                client: address.to_owned(),
            })
        })
        .collect()
}

/// Asks the service by its name from a container in the network.
pub(crate) async fn ask_by_name(
    cluster: &Cluster,
    on: &str,
) -> Result<((), String), PlaygroundError> {
    let name = format!("{SERVICE}:{PORT}");
    let times = REQUESTS.to_string();
    let shown = cluster
        .host(on)?
        .shoal([
            "run",
            "--rm",
            "--network",
            NETWORK,
            "--entrypoint",
            "/shoal",
            IMAGE,
            "playground",
            "fetch",
            "--times",
            &times,
            &name,
        ])
        .await?;
    let answers = shown
        .lines()
        .filter(|line| line.contains(" serves "))
        .count();
    if answers != REQUESTS {
        return Err(PlaygroundError::State(format!(
            "{answers} of {REQUESTS} requests to {name} were answered"
        )));
    }
    Ok(((), format!("{answers} requests to {name} answered")))
}

/// Removes the service: the port is closed on every host that is left. The network stays, for as long as tasks on dead
/// hosts are not known to have ended.
pub(crate) async fn remove(cluster: &Cluster, on: &str) -> Result<((), String), PlaygroundError> {
    cluster.host(on)?.shoal(["svc", "rm", SERVICE]).await?;
    let client = cluster.host(CLIENT)?;
    let mut closed = 0;
    for host in cluster
        .state
        .hosts
        .iter()
        .filter(|host| host.init_pid.is_some())
    {
        let url = format!("{}:{PORT}", host.address);
        wait_until_async(&format!("{url} is closed"), STEP_MAX, async || match fetch(
            client, &url, 1,
        )
        .await
        {
            Ok(_) => Ok(Err("it answers".to_owned())),
            Err(PlaygroundError::Command { .. }) => Ok(Ok(())),
            Err(error) => Err(error),
        })
        .await?;
        closed += 1;
    }
    Ok(((), format!("port {PORT} is closed on {closed} hosts")))
}
