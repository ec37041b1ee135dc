//! Containers that only exist in memory: they take time to make, start and stop, and die at their deadline.
//!
//! A container outlives its daemon, as one under a shim does, and its deadline is enforced whether the daemon lives or
//! not. It does not outlive its machine.

use crate::Trace;
use async_trait::async_trait;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use shoal_agent::runtime::{ContainerChange, ContainerPhase, Exit, Found, Health, Running};
use shoal_agent::{RuntimeError, TaskRuntime};
use shoal_model::spec::OnPartition;
use shoal_model::{ContainerId, ServiceId, Task, TaskId, Timestamp};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;

/// Milliseconds until an image is there.
const PREPARE_MS: Range<u64> = 5..300;
/// Milliseconds of making or starting a container.
const START_MS: Range<u64> = 2..30;
/// Milliseconds that a program takes to end when asked to.
const STOP_MS: Range<u64> = 1..1_500;
/// One preparation in so many fails for a passing reason.
const PREPARE_FAILS_ONE_IN: u64 = 50;

/// A container.
#[derive(Debug, Clone)]
pub struct Container {
    /// Its task.
    pub task_id: TaskId,
    /// The task's service.
    pub service_id: ServiceId,
    /// The task's slot.
    pub slot: u64,
    /// Must not run without a lease.
    pub fenced: bool,
    /// Where it stands.
    pub phase: ContainerPhase,
    deadline: Option<u64>,
    created: Timestamp,
}

impl Container {
    /// Whether it has a process.
    pub fn is_running(&self) -> bool {
        matches!(self.phase, ContainerPhase::Running(_))
    }
}

#[derive(Debug, Default)]
struct State {
    containers: BTreeMap<ContainerId, Container>,
    volumes: BTreeSet<String>,
    made: u64,
    /// Tasks whose running container was told to stop since [`FakeEngine::take_stops`].
    stops: Vec<TaskId>,
    /// Counts starts and ends.
    changes: u64,
}

/// The engine of one machine. Clones share it.
#[derive(Debug, Clone)]
pub struct FakeEngine {
    node: u64,
    state: Arc<watch::Sender<State>>,
    random: Arc<Mutex<StdRng>>,
    trace: Trace,
}

impl FakeEngine {
    /// An engine without containers.
    pub fn new(node: u64, seed: u64, trace: Trace) -> Self {
        Self {
            node,
            state: Arc::new(watch::Sender::new(State::default())),
            random: Arc::new(Mutex::new(StdRng::seed_from_u64(seed))),
            trace,
        }
    }

    fn draw(&self, range: Range<u64>) -> u64 {
        let mut random = self.random.lock().unwrap_or_else(PoisonError::into_inner);
        random.random_range(range)
    }

    async fn spend(&self, range: Range<u64>) {
        tokio::time::sleep(Duration::from_millis(self.draw(range))).await;
    }

    /// All containers.
    pub fn containers(&self) -> Vec<Container> {
        self.state.borrow().containers.values().cloned().collect()
    }

    /// Counts how often a container has started or ended.
    pub fn changes(&self) -> u64 {
        self.state.borrow().changes
    }

    /// Tasks whose running container was told to stop since the last call.
    pub fn take_stops(&self) -> Vec<TaskId> {
        if self.state.borrow().stops.is_empty() {
            return Vec::new();
        }
        let mut stops = Vec::new();
        self.state.send_if_modified(|state| {
            stops = std::mem::take(&mut state.stops);
            // Nobody waits for this.
            false
        });
        stops
    }

    /// Kills what has passed its deadline.
    pub fn enforce_deadlines(&self, now_ns: u64) {
        let overdue =
            |one: &Container| one.is_running() && one.deadline.is_some_and(|at| at <= now_ns);
        self.end_all(overdue, 137, "fenced");
    }

    /// The machine lost its power.
    pub fn crash(&self) {
        self.end_all(Container::is_running, 137, "lost its machine");
    }

    /// The program of the `choice`th running container fails.
    pub fn fail_one(&self, choice: usize) {
        let running: Vec<ContainerId> = {
            let state = self.state.borrow();
            let all = state.containers.iter();
            all.filter(|(_, one)| one.is_running())
                .map(|(id, _)| *id)
                .collect()
        };
        if let Some(chosen) = running.get(choice % running.len().max(1)) {
            self.end(*chosen, 1, "failed");
        }
    }

    fn end_all(&self, which: impl Fn(&Container) -> bool, exit_code: i32, why: &str) {
        let ids: Vec<ContainerId> = {
            let state = self.state.borrow();
            let all = state.containers.iter();
            all.filter(|(_, one)| which(one))
                .map(|(id, _)| *id)
                .collect()
        };
        for id in ids {
            self.end(id, exit_code, why);
        }
    }

    fn end(&self, id: ContainerId, exit_code: i32, why: &str) {
        self.state.send_if_modified(|state| {
            let Some(one) = state.containers.get_mut(&id).filter(|one| one.is_running()) else {
                return false;
            };
            one.phase = ContainerPhase::Exited(exit(exit_code));
            state.changes += 1;
            let task = one.task_id;
            self.trace
                .note(format_args!("node{} container of {task} {why}", self.node));
            true
        });
    }

    fn get<T>(
        &self,
        id: ContainerId,
        read: impl FnOnce(&Container) -> T,
    ) -> Result<T, RuntimeError> {
        let state = self.state.borrow();
        state
            .containers
            .get(&id)
            .map(read)
            .ok_or_else(|| missing(id))
    }
}

fn missing(id: ContainerId) -> RuntimeError {
    RuntimeError::Unavailable {
        reason: format!("there is no container {id}"),
    }
}

fn exit(exit_code: i32) -> Exit {
    Exit {
        exit_code,
        oom_killed: false,
        at: Timestamp::default(),
        reason: String::new(),
    }
}

fn boottime_ns() -> u64 {
    let elapsed = turmoil::sim_elapsed().unwrap_or_default();
    u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX)
}

#[async_trait]
impl TaskRuntime for FakeEngine {
    async fn prepare(
        &self,
        task: &Task,
        _auth: Option<&shoal_model::cluster::Redacted<String>>,
    ) -> Result<(), RuntimeError> {
        self.spend(PREPARE_MS).await;
        if self.draw(0..PREPARE_FAILS_ONE_IN) == 0 {
            let reason = "the registry does not answer".to_owned();
            return Err(RuntimeError::Unavailable { reason });
        }
        let state = self.state.borrow();
        let lost = |name: &&String| !state.volumes.contains(*name);
        let wanted = task.volumes.iter().filter(|volume| volume.must_exist);
        match wanted.map(|volume| &volume.name).find(lost) {
            Some(name) => Err(RuntimeError::Rejected {
                reason: format!("volume `{name}` is missing"),
            }),
            None => Ok(()),
        }
    }

    async fn create(
        &self,
        task: &Task,
        _attempt: u32,
        deadline: Option<u64>,
    ) -> Result<ContainerId, RuntimeError> {
        self.spend(START_MS).await;
        let fenced = task.on_partition == OnPartition::Stop;
        if fenced && deadline.is_none() {
            let name = task.name();
            self.trace
                .violation(format!("`{name}` was made without a deadline"));
        }
        let mut id = [0; 32];
        self.state.send_modify(|state| {
            state.made += 1;
            id[..8].copy_from_slice(&self.node.to_be_bytes());
            id[8..16].copy_from_slice(&state.made.to_be_bytes());
            let volumes = task.volumes.iter().map(|volume| volume.name.clone());
            state.volumes.extend(volumes);
            let container = Container {
                task_id: task.id,
                service_id: task.service_id,
                slot: task.slot,
                fenced,
                phase: ContainerPhase::Created,
                deadline,
                // Only the order counts.
                created: Timestamp(i64::try_from(state.made).unwrap_or(i64::MAX)),
            };
            state
                .containers
                .insert(ContainerId::from_bytes(id), container);
        });
        Ok(ContainerId::from_bytes(id))
    }

    async fn start(&self, id: ContainerId) -> Result<Running, RuntimeError> {
        self.spend(START_MS).await;
        self.get(id, |_| ())?;
        let running = Running {
            pid: 7,
            ports: Vec::new(),
            health: Health::Unchecked,
        };
        self.state.send_modify(|state| {
            let Some(one) = state.containers.get_mut(&id) else {
                return;
            };
            // The shim looks at the deadline before it lets the program go.
            if one.deadline.is_some_and(|at| at <= boottime_ns()) {
                one.phase = ContainerPhase::Exited(exit(137));
                return;
            }
            one.phase = ContainerPhase::Running(running.clone());
            state.changes += 1;
            let task = one.task_id;
            self.trace
                .note(format_args!("node{} container of {task} runs", self.node));
        });
        Ok(running)
    }

    async fn changed(&self, id: ContainerId, _: Health) -> Result<ContainerChange, RuntimeError> {
        let mut follow = self.state.subscribe();
        let ended = |state: &State| {
            let phase = state.containers.get(&id).map(|one| &one.phase);
            !matches!(phase, Some(ContainerPhase::Running(_)))
        };
        if follow.wait_for(ended).await.is_err() {
            return Err(missing(id));
        }
        match self.get(id, |one| one.phase.clone())? {
            ContainerPhase::Exited(exit) => Ok(ContainerChange::Exited(exit)),
            ContainerPhase::Created | ContainerPhase::Running(_) => Err(missing(id)),
        }
    }

    async fn stop(&self, id: ContainerId) -> Result<(), RuntimeError> {
        if self.get(id, Container::is_running).unwrap_or(false) {
            let task_id = self.get(id, |one| one.task_id)?;
            self.state.send_if_modified(|state| {
                state.stops.push(task_id);
                false
            });
            self.spend(STOP_MS).await;
            self.end(id, 143, "stopped");
        }
        Ok(())
    }

    async fn remove(&self, id: ContainerId) -> Result<(), RuntimeError> {
        self.end(id, 137, "killed by its removal");
        self.state.send_modify(|state| {
            state.containers.remove(&id);
        });
        Ok(())
    }

    async fn renew(&self, id: ContainerId, deadline: u64) -> Result<(), RuntimeError> {
        self.get(id, |_| ())?;
        self.state.send_if_modified(|state| {
            if let Some(one) = state.containers.get_mut(&id) {
                one.deadline = Some(deadline);
            }
            // Nobody waits for a deadline.
            false
        });
        Ok(())
    }

    async fn found(&self) -> Result<Vec<Found>, RuntimeError> {
        let state = self.state.borrow();
        let found = state.containers.iter().map(|(id, one)| Found {
            container_id: *id,
            task_id: one.task_id,
            created: one.created,
            phase: one.phase.clone(),
        });
        Ok(found.collect())
    }

    async fn volumes(&self) -> Result<Vec<String>, RuntimeError> {
        Ok(self.state.borrow().volumes.iter().cloned().collect())
    }
}
