//! A cluster on the playground: hosts, daemons, joined.

use crate::host::{DaemonOptions, Host};
use crate::state::{State, cgroup_root};
use crate::switch::host_address;
use crate::{PlaygroundError, Switch};
use std::path::PathBuf;

/// What a cluster looks like.
#[derive(Debug, Clone)]
pub struct ClusterOptions {
    /// Where everything goes.
    pub dir: PathBuf,
    /// The `shoal` program.
    pub exe: PathBuf,
    /// Number of managers, from 1.
    pub managers: u8,
    /// Number of workers.
    pub workers: u8,
    /// End with the process that made it.
    pub tethered: bool,
    /// Further arguments for every daemon.
    pub daemon: DaemonOptions,
}

/// Hosts joined to one cluster.
pub struct Cluster {
    /// The hosts.
    pub state: State,
    /// What joins them.
    pub switch: Switch,
    options: ClusterOptions,
}

impl Cluster {
    /// Makes hosts and starts a daemon on each; none has joined anything yet.
    ///
    /// # Errors
    /// What failed first; what was made is removed again.
    pub async fn power_on(options: ClusterOptions) -> Result<Self, PlaygroundError> {
        let state = State::create(&options.dir)?;
        let switch = match Switch::create(&options.dir).await {
            Ok(switch) => switch,
            Err(error) => return Err(Self::abandon(state, error).await),
        };
        let mut cluster = Self {
            state,
            switch,
            options,
        };
        match cluster.make_hosts().await {
            Ok(()) => Ok(cluster),
            Err(error) => Err(Self::abandon(cluster.state, error).await),
        }
    }

    async fn abandon(mut state: State, error: PlaygroundError) -> PlaygroundError {
        // The first error is the one to tell; a second one in the clean-up would only hide it.
        drop(state.remove().await);
        error
    }

    async fn make_hosts(&mut self) -> Result<(), PlaygroundError> {
        let managers = (1..=self.options.managers).map(|number| format!("manager{number}"));
        let workers = (1..=self.options.workers).map(|number| format!("worker{number}"));
        for (name, number) in managers.chain(workers).zip(1..=u8::MAX) {
            self.add_host(&name, number).await?;
        }
        let daemon = self.options.daemon.clone();
        let starts = self
            .state
            .hosts
            .iter_mut()
            .map(|host| host.start_daemon(&daemon));
        futures_util::future::try_join_all(starts).await?;
        self.state.save()
    }

    /// Makes one more host and switches it on; it has no daemon yet.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn add_host(&mut self, name: &str, number: u8) -> Result<(), PlaygroundError> {
        let address = host_address(number);
        self.switch.plug_in(name, address).await?;
        let dir = self.options.dir.join("hosts").join(name);
        let cgroup_parent = format!("{}/{name}", cgroup_root(&self.options.dir));
        let netns = self.switch.host_netns(name);
        let host = Host::new(name, address, dir, &self.options.exe, netns, cgroup_parent);
        self.state.hosts.push(host);
        let tethered = self.options.tethered;
        let host = self.state.host_mut(name)?;
        host.power_on(tethered).await?;
        self.state.save()
    }

    /// Makes the first host the first manager and lets the others join.
    ///
    /// # Errors
    /// The first command that fails.
    pub async fn join_all(&self) -> Result<(), PlaygroundError> {
        let (first, others) = self
            .state
            .hosts
            .split_first()
            .ok_or_else(|| PlaygroundError::State("the playground has no host".to_owned()))?;
        first.shoal(["init"]).await?;
        let remote = first.address.to_string();
        for role in ["manager", "worker"] {
            let token = first.shoal(["join-token", "-q", role]).await?;
            for host in others.iter().filter(|host| host.name.starts_with(role)) {
                host.shoal(["join", "--token", token.trim(), &remote])
                    .await?;
            }
        }
        Ok(())
    }

    /// Switches a killed host on again, with its data and its daemon.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn reboot(&mut self, name: &str) -> Result<(), PlaygroundError> {
        let (tethered, daemon) = (self.options.tethered, self.options.daemon.clone());
        let host = self.state.host_mut(name)?;
        host.kill().await?;
        host.power_on(tethered).await?;
        host.start_daemon(&daemon).await?;
        self.state.save()
    }

    /// Starts the daemon of a host again.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn restart_daemon(&mut self, name: &str) -> Result<(), PlaygroundError> {
        let daemon = self.options.daemon.clone();
        self.state.host_mut(name)?.start_daemon(&daemon).await
    }

    /// The host of that name.
    ///
    /// # Errors
    /// Names the hosts that there are.
    pub fn host(&self, name: &str) -> Result<&Host, PlaygroundError> {
        self.state.host(name)
    }

    /// The host of that name.
    ///
    /// # Errors
    /// Names the hosts that there are.
    pub fn host_mut(&mut self, name: &str) -> Result<&mut Host, PlaygroundError> {
        self.state.host_mut(name)
    }

    /// Ends everything and removes every trace.
    ///
    /// # Errors
    /// The first failure; everything else is removed all the same.
    pub async fn remove(mut self) -> Result<(), PlaygroundError> {
        self.state.remove().await
    }
}
