//! Hosts with the release build of the daemon.

use crate::api::{Api, until};
use crate::busybox::busybox_root;
use anyhow::{Context as _, Result, ensure};
use shoal_playground::{Cluster, ClusterOptions, DaemonOptions, Host};
use std::path::PathBuf;
use tempfile::TempDir;

/// The image that [`Hosts::start`] brings.
pub(crate) const IMAGE: &str = "busybox:latest";

/// The `shoal` program: `SHOAL_BIN`, or beside this program, where cargo puts it.
fn shoal_program() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("SHOAL_BIN") {
        return Ok(path.into());
    }
    let own = std::env::current_exe()?;
    let profile_dir = own
        .ancestors()
        .nth(2)
        .context("this program lies nowhere")?;
    let program = profile_dir.join("shoal");
    ensure!(
        program.exists(),
        "`{}` is not there: `cargo build --release --package shoal-cli`",
        program.display()
    );
    Ok(program)
}

/// Hosts with daemons and the image `busybox`.
pub(crate) struct Hosts {
    pub(crate) cluster: Cluster,
    _dir: TempDir,
}

impl Hosts {
    /// Switches hosts on; none has joined anything.
    pub(crate) async fn start(managers: u8, workers: u8) -> Result<Self> {
        ensure!(nix::unistd::geteuid().is_root(), "namespaces need root");
        let dir = tempfile::Builder::new().prefix("shoal-bench-").tempdir()?;
        let options = ClusterOptions {
            dir: dir.path().join("pg"),
            exe: shoal_program()?,
            managers,
            workers,
            tethered: true,
            daemon: DaemonOptions::default(),
        };
        let archive = dir.path().join("busybox.tar");
        std::fs::write(&archive, busybox_root())?;
        let hosts = Self {
            cluster: Cluster::power_on(options).await?,
            _dir: dir,
        };
        for host in &hosts.cluster.state.hosts {
            host.shoal(["import", &archive.display().to_string(), IMAGE])
                .await?;
        }
        Ok(hosts)
    }

    /// Makes one cluster of them.
    pub(crate) async fn join(&self) -> Result<()> {
        self.cluster.join_all().await?;
        self.wait_whole().await
    }

    /// Waits until all nodes are ready and all managers reachable.
    pub(crate) async fn wait_whole(&self) -> Result<()> {
        let count = self.cluster.state.hosts.len();
        let api = self.api("manager1")?;
        until("all nodes are ready", async || {
            let nodes = api.nodes().await?;
            let whole = nodes.iter().filter(|node| node.ready && node.reachable);
            Ok((whole.count() == count).then_some(()))
        })
        .await
    }

    pub(crate) fn host(&self, name: &str) -> Result<&Host> {
        Ok(self.cluster.host(name)?)
    }

    pub(crate) fn api(&self, name: &str) -> Result<Api> {
        Ok(Api::new(self.host(name)?.socket()))
    }

    /// The manager that leads.
    pub(crate) async fn leader(&self) -> Result<String> {
        let api = self.api("manager1")?;
        until("there is a leader", async || {
            let nodes = api.nodes().await?;
            let leader = nodes.into_iter().find(|node| node.leader);
            Ok(leader.map(|node| node.hostname))
        })
        .await
    }

    /// Removes everything; an error of the measurement counts more than one of the removal.
    pub(crate) async fn finish<T>(self, outcome: Result<T>) -> Result<T> {
        if outcome.is_err() {
            for host in &self.cluster.state.hosts {
                let log = std::fs::read_to_string(host.log_path()).unwrap_or_default();
                let tail: Vec<_> = log.lines().rev().take(20).collect();
                let tail = tail.into_iter().rev().collect::<Vec<_>>().join("\n");
                eprintln!("--- log of {}\n{tail}", host.name);
            }
        }
        let removed = self.cluster.remove().await;
        let value = outcome?;
        removed?;
        Ok(value)
    }
}
