//! Agents without containers: everything of a node but its engine.

use crate::memory::Memory;
use anyhow::{Context as _, Result};
use async_trait::async_trait;
use futures_util::{StreamExt, TryStreamExt};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use shoal_agent::agent::SessionState;
use shoal_agent::disk::DiskError;
use shoal_agent::runtime::{ContainerChange, Exit, Found, Health, Running};
use shoal_agent::{
    Agent, AgentClock, AgentDisk, AgentHandle, AgentOptions, RuntimeError, TaskRuntime,
};
use shoal_model::{Availability, ContainerId, NodeDescription, Resources, Task, Timestamp};
use shoal_transport::{Endpoint, EndpointOptions, IdentityHandle, JoinToken, NodeKey, join};
use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::sync::watch;

/// Nodes that join at a time.
const JOINS_MAX: usize = 8;
/// Longest time for the answer to one join.
const JOIN_MAX: Duration = Duration::from_secs(20);

/// Starts as many agents as each line of the input says, and answers with a line once they have sessions. Ends with
/// the input.
pub(crate) async fn serve(args: &[String]) -> Result<()> {
    let [addr, token] = args else {
        anyhow::bail!("usage: fleet ADDR TOKEN");
    };
    let (addr, token) = (addr.parse()?, token.parse()?);
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    let mut agents = Vec::new();
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while let Some(line) = lines.next_line().await? {
        let wanted = line.trim().parse::<usize>()?;
        let new = futures_util::stream::iter(agents.len()..wanted)
            .map(|number| start(number, addr, &token))
            .buffer_unordered(JOINS_MAX);
        agents.extend(new.try_collect::<Vec<_>>().await?);
        for agent in &agents {
            let mut state = agent.session_state();
            state
                .wait_for(|state| matches!(state, SessionState::Open { .. }))
                .await?;
        }
        let own = i32::try_from(std::process::id())?;
        println!("all agents together: {}", Memory::of(own)?);
    }
    Ok(())
}

async fn start(number: usize, manager: SocketAddr, token: &JoinToken) -> Result<AgentHandle> {
    let key = NodeKey::generate()?;
    let identity = IdentityHandle::new(None);
    let any = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
    let endpoint = Endpoint::bind(any, identity.clone(), EndpointOptions::control())?;
    let joined = join(
        &endpoint,
        manager,
        token,
        &key,
        Availability::Active,
        JOIN_MAX,
    )
    .await;
    let (own, _) = joined.with_context(|| format!("agent {number} could not join"))?;
    identity.swap(Some(own));
    let options = AgentOptions {
        connector: Arc::new(endpoint),
        seeds: vec![manager],
        disk: Arc::new(Memo::default()),
        runtime: Arc::new(NoContainers::default()),
        network: None,
        clock: Arc::new(Clock(Instant::now())),
        seed: number as u64,
        description: NodeDescription {
            hostname: format!("agent{number}"),
            os: "linux".to_owned(),
            architecture: "amd64".to_owned(),
            resources: Resources {
                nano_cpus: 8_000_000_000,
                memory_bytes: 16 << 30,
            },
            ..NodeDescription::default()
        },
    };
    Ok(Agent::start(options).await?)
}

struct Clock(Instant);

impl AgentClock for Clock {
    fn now(&self) -> Timestamp {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        Timestamp::from_unix(since.unwrap_or_default())
    }

    fn boottime_ns(&self) -> u64 {
        u64::try_from(self.0.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

/// A disk that forgets: a thousand agents on one disk would measure that disk.
#[derive(Default)]
struct Memo(Mutex<Option<Vec<u8>>>);

#[async_trait]
impl AgentDisk for Memo {
    async fn load(&self) -> Result<Option<Vec<u8>>, DiskError> {
        Ok(self
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone())
    }

    async fn save(&self, bytes: Vec<u8>) -> Result<(), DiskError> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(bytes);
        Ok(())
    }
}

/// Containers that run at once until they are stopped.
struct NoContainers {
    made: Mutex<u64>,
    stopped: watch::Sender<BTreeSet<ContainerId>>,
}

impl Default for NoContainers {
    fn default() -> Self {
        Self {
            made: Mutex::new(0),
            stopped: watch::Sender::new(BTreeSet::new()),
        }
    }
}

#[async_trait]
impl TaskRuntime for NoContainers {
    async fn prepare(
        &self,
        _task: &Task,
        _auth: Option<&shoal_model::cluster::Redacted<String>>,
    ) -> Result<(), RuntimeError> {
        Ok(())
    }

    async fn create(
        &self,
        _task: &Task,
        _attempt: u32,
        _deadline: Option<u64>,
    ) -> Result<ContainerId, RuntimeError> {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        *made += 1;
        let mut id = [0; 32];
        id[..8].copy_from_slice(&made.to_be_bytes());
        Ok(ContainerId::from_bytes(id))
    }

    async fn start(&self, _id: ContainerId) -> Result<Running, RuntimeError> {
        Ok(Running {
            pid: 1,
            ports: Vec::new(),
            health: Health::Unchecked,
        })
    }

    async fn changed(
        &self,
        id: ContainerId,
        _known: Health,
    ) -> Result<ContainerChange, RuntimeError> {
        let mut stopped = self.stopped.subscribe();
        if stopped.wait_for(|all| all.contains(&id)).await.is_err() {
            std::future::pending::<()>().await;
        }
        Ok(ContainerChange::Exited(Exit {
            exit_code: 137,
            oom_killed: false,
            at: Timestamp::default(),
            reason: String::new(),
        }))
    }

    async fn stop(&self, id: ContainerId) -> Result<(), RuntimeError> {
        self.stopped.send_modify(|all| {
            all.insert(id);
        });
        Ok(())
    }

    async fn remove(&self, id: ContainerId) -> Result<(), RuntimeError> {
        self.stopped.send_modify(|all| {
            all.remove(&id);
        });
        Ok(())
    }

    async fn renew(&self, _id: ContainerId, _deadline: u64) -> Result<(), RuntimeError> {
        Ok(())
    }

    async fn found(&self) -> Result<Vec<Found>, RuntimeError> {
        Ok(Vec::new())
    }

    async fn volumes(&self) -> Result<Vec<String>, RuntimeError> {
        Ok(Vec::new())
    }
}
