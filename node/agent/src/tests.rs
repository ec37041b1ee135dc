//! An agent with a fake runtime and a scripted manager, in paused time.

mod feed;

use crate::agent::{Agent, AgentClock, AgentHandle, AgentOptions};
use crate::disk::{AgentDisk, DiskError};
use crate::network::AgentNetwork;
use crate::runtime::{
    ContainerChange, ContainerPhase, Exit, Found, Health, Running, RuntimeError, TaskRuntime,
};
use async_trait::async_trait;
use shoal_model::node::NodeDescription;
use shoal_model::rpc::Method;
use shoal_model::session::{
    AssignmentChange, AssignmentsKind, AssignmentsMessage, ManagerMessage, NodeMessage,
};
use shoal_model::spec::OnPartition;
use shoal_model::{
    ContainerId, Meta, NodeId, ServiceId, SessionId, Task, TaskId, TaskSpec, TaskState, TaskStatus,
    Timestamp,
};
use shoal_transport::{Connector, Expect, RpcStream, TransportError};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

#[derive(Clone)]
struct Clock(Instant);

impl AgentClock for Clock {
    fn now(&self) -> Timestamp {
        Timestamp::from_unix(Duration::from_secs(1_000) + self.0.elapsed())
    }

    fn boottime_ns(&self) -> u64 {
        u64::try_from(self.0.elapsed().as_nanos()).unwrap()
    }
}

#[derive(Default)]
struct MemoryDisk(Mutex<Option<Vec<u8>>>);

#[async_trait]
impl AgentDisk for MemoryDisk {
    async fn load(&self) -> Result<Option<Vec<u8>>, DiskError> {
        Ok(self.0.lock().unwrap().clone())
    }

    async fn save(&self, bytes: Vec<u8>) -> Result<(), DiskError> {
        *self.0.lock().unwrap() = Some(bytes);
        Ok(())
    }
}

struct Container {
    task_id: TaskId,
    phase: ContainerPhase,
    deadline: Option<u64>,
}

/// Containers that run until a test ends them.
struct FakeRuntime {
    containers: watch::Sender<BTreeMap<ContainerId, Container>>,
    missing_volume: Mutex<bool>,
    stop_takes: Mutex<Duration>,
}

impl FakeRuntime {
    fn new() -> Self {
        Self {
            containers: watch::Sender::new(BTreeMap::new()),
            missing_volume: Mutex::new(false),
            stop_takes: Mutex::default(),
        }
    }

    fn crash(&self, task_id: TaskId, exit_code: i32) {
        self.containers.send_modify(|all| {
            for container in all.values_mut().filter(|one| one.task_id == task_id) {
                if let ContainerPhase::Running(_) = container.phase {
                    container.phase = ContainerPhase::Exited(exit(exit_code));
                }
            }
        });
    }

    fn running(&self) -> usize {
        let all = self.containers.borrow();
        let runs = |one: &&Container| matches!(one.phase, ContainerPhase::Running(_));
        all.values().filter(runs).count()
    }

    fn len(&self) -> usize {
        self.containers.borrow().len()
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

#[async_trait]
impl TaskRuntime for FakeRuntime {
    async fn prepare(
        &self,
        _task: &Task,
        _auth: Option<&shoal_model::cluster::Redacted<String>>,
    ) -> Result<(), RuntimeError> {
        if *self.missing_volume.lock().unwrap() {
            let reason = "volume `data` is missing".to_owned();
            return Err(RuntimeError::Rejected { reason });
        }
        Ok(())
    }

    async fn create(
        &self,
        task: &Task,
        _attempt: u32,
        deadline: Option<u64>,
    ) -> Result<ContainerId, RuntimeError> {
        let task_id = task.id;
        let mut id = [0; 32];
        self.containers.send_modify(|all| {
            let next = all.keys().last().map_or(0, |id| {
                u8::from_str_radix(&id.to_string()[..2], 16).unwrap() + 1
            });
            id[0] = next;
            let phase = ContainerPhase::Created;
            let container = Container {
                task_id,
                phase,
                deadline,
            };
            all.insert(ContainerId::from_bytes(id), container);
        });
        Ok(ContainerId::from_bytes(id))
    }

    async fn start(&self, id: ContainerId) -> Result<Running, RuntimeError> {
        let running = Running {
            pid: 7,
            ports: Vec::new(),
            health: Health::Unchecked,
        };
        self.containers.send_modify(|all| {
            all.get_mut(&id).unwrap().phase = ContainerPhase::Running(running.clone());
        });
        Ok(running)
    }

    async fn changed(
        &self,
        id: ContainerId,
        _known: Health,
    ) -> Result<ContainerChange, RuntimeError> {
        let mut containers = self.containers.subscribe();
        let all = containers
            .wait_for(|all| matches!(all[&id].phase, ContainerPhase::Exited(_)))
            .await
            .unwrap();
        match &all[&id].phase {
            ContainerPhase::Exited(exit) => Ok(ContainerChange::Exited(exit.clone())),
            other => panic!("{other:?}"),
        }
    }

    async fn stop(&self, id: ContainerId) -> Result<(), RuntimeError> {
        let takes = *self.stop_takes.lock().unwrap();
        tokio::time::sleep(takes).await;
        self.containers.send_modify(|all| {
            if let Some(container) = all.get_mut(&id) {
                container.phase = ContainerPhase::Exited(exit(143));
            }
        });
        Ok(())
    }

    async fn remove(&self, id: ContainerId) -> Result<(), RuntimeError> {
        self.containers.send_modify(|all| {
            all.remove(&id);
        });
        Ok(())
    }

    async fn renew(&self, id: ContainerId, deadline: u64) -> Result<(), RuntimeError> {
        self.containers.send_modify(|all| {
            all.get_mut(&id).unwrap().deadline = Some(deadline);
        });
        Ok(())
    }

    async fn found(&self) -> Result<Vec<Found>, RuntimeError> {
        let all = self.containers.borrow();
        let found = all.iter().map(|(id, container)| Found {
            container_id: *id,
            task_id: container.task_id,
            created: Timestamp::default(),
            phase: container.phase.clone(),
        });
        Ok(found.collect())
    }

    async fn volumes(&self) -> Result<Vec<String>, RuntimeError> {
        Ok(Vec::new())
    }
}

/// Hands the manager's end of each stream to the test.
struct Network {
    sessions: mpsc::Sender<RpcStream>,
    feeds: mpsc::Sender<RpcStream>,
}

#[async_trait]
impl Connector for Network {
    async fn open(
        &self,
        addr: SocketAddr,
        _expect: Expect,
        method: Method,
    ) -> Result<RpcStream, TransportError> {
        let streams = match method {
            Method::Session => &self.sessions,
            Method::NetFeed => &self.feeds,
            other => panic!("{other:?}"),
        };
        let (near, far) = tokio::io::duplex(1 << 20);
        let (read, write) = tokio::io::split(far);
        let served = RpcStream::new(Box::new(read), Box::new(write));
        let limit = Duration::ZERO;
        let refused = TransportError::TimedOut { addr, limit };
        streams.try_send(served).map_err(|_| refused)?;
        let (read, write) = tokio::io::split(near);
        Ok(RpcStream::new(Box::new(read), Box::new(write)))
    }
}

struct Fixture {
    agent: AgentHandle,
    runtime: Arc<FakeRuntime>,
    disk: Arc<MemoryDisk>,
    sessions: mpsc::Receiver<RpcStream>,
    feeds: mpsc::Receiver<RpcStream>,
}

async fn start(runtime: Arc<FakeRuntime>, disk: Arc<MemoryDisk>) -> Fixture {
    start_with(runtime, disk, None).await
}

async fn start_with(
    runtime: Arc<FakeRuntime>,
    disk: Arc<MemoryDisk>,
    network: Option<AgentNetwork>,
) -> Fixture {
    let (sender, sessions) = mpsc::channel(1);
    let (feed_sender, feeds) = mpsc::channel(1);
    let connector = Network {
        sessions: sender,
        feeds: feed_sender,
    };
    let agent = Agent::start(AgentOptions {
        connector: Arc::new(connector),
        seeds: vec!["10.0.0.1:2377".parse().unwrap()],
        disk: Arc::clone(&disk) as Arc<dyn AgentDisk>,
        runtime: Arc::clone(&runtime) as Arc<dyn TaskRuntime>,
        network,
        clock: Arc::new(Clock(Instant::now())),
        seed: 1,
        description: NodeDescription::default(),
    })
    .await
    .unwrap();
    Fixture {
        agent,
        runtime,
        disk,
        sessions,
        feeds,
    }
}

/// The manager's side of one session: answers everything, remembers statuses.
struct Manager {
    stream: RpcStream,
    statuses: BTreeMap<TaskId, TaskStatus>,
    sequence: u64,
    answers: bool,
}

impl Fixture {
    async fn new() -> Self {
        start(Arc::new(FakeRuntime::new()), Arc::default()).await
    }

    async fn session(&mut self, tasks: Vec<Task>) -> Manager {
        let mut stream = self.sessions.recv().await.unwrap();
        let hello: NodeMessage = stream.recv().await.unwrap().unwrap();
        assert!(matches!(hello, NodeMessage::Hello { .. }), "{hello:?}");
        let welcome = ManagerMessage::Welcome {
            session_id: SessionId::from_bits(1),
            heartbeat_period_ms: 500,
            lease_ms: 2_000,
        };
        stream.send(&welcome).await.unwrap();
        let mut manager = Manager {
            stream,
            statuses: BTreeMap::new(),
            sequence: 0,
            answers: true,
        };
        manager.assign(AssignmentsKind::Complete, tasks).await;
        manager
    }
}

impl Manager {
    async fn assign(&mut self, kind: AssignmentsKind, tasks: Vec<Task>) {
        let changes = tasks
            .into_iter()
            .map(|task| AssignmentChange::UpdateTask(Box::new(task)))
            .collect();
        self.change(kind, changes).await;
    }

    async fn change(&mut self, kind: AssignmentsKind, changes: Vec<AssignmentChange>) {
        self.sequence += 1;
        let message = AssignmentsMessage {
            kind,
            applies_to: self.sequence - 1,
            results_in: self.sequence,
            changes,
            more: false,
        };
        let message = ManagerMessage::Assignments(message);
        self.stream.send(&message).await.unwrap();
    }

    /// Serves until `done` holds.
    async fn until(&mut self, what: &str, done: impl Fn(&BTreeMap<TaskId, TaskStatus>) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !done(&self.statuses) {
            assert!(Instant::now() < deadline, "{what}: {:?}", self.statuses);
            let tick = Duration::from_millis(10);
            let message = tokio::time::timeout(tick, self.stream.recv()).await;
            match message.map(|message| message.unwrap().unwrap()) {
                Ok(NodeMessage::Heartbeat { sequence }) if self.answers => {
                    let ack = ManagerMessage::HeartbeatAck { sequence };
                    self.stream.send(&ack).await.unwrap();
                }
                Ok(NodeMessage::Statuses { batch, statuses }) => {
                    self.statuses.extend(statuses);
                    let ack = ManagerMessage::StatusesAck { batch };
                    self.stream.send(&ack).await.unwrap();
                }
                Ok(_) | Err(_) => {}
            }
        }
    }

    async fn until_state(&mut self, id: TaskId, state: TaskState) {
        self.until(state.as_str(), |all| {
            all.get(&id).is_some_and(|status| status.state == state)
        })
        .await;
    }
}

const ID: TaskId = TaskId::from_bits(1);

fn task() -> Task {
    Task {
        id: ID,
        meta: Meta::default(),
        service_id: ServiceId::from_bits(1),
        service_name: "web".to_owned(),
        slot: 1,
        node_id: Some(NodeId::from_bits(1)),
        spec: Arc::new(TaskSpec::default()),
        spec_version: 1,
        ports: Vec::new(),
        on_partition: OnPartition::Keep,
        desired: TaskState::Running,
        status: TaskStatus {
            state: TaskState::Assigned,
            ..TaskStatus::default()
        },
        volumes: Vec::new(),
        monitor_until: None,
        endpoints: Vec::new(),
        not_before: None,
    }
}

fn desired(desired: TaskState) -> Task {
    Task { desired, ..task() }
}

#[tokio::test(start_paused = true)]
async fn an_assigned_task_runs_stops_and_is_forgotten() {
    let mut fixture = Fixture::new().await;
    let mut manager = fixture.session(vec![task()]).await;
    manager.until_state(ID, TaskState::Running).await;
    assert!(manager.statuses[&ID].ready);
    assert_eq!(fixture.runtime.running(), 1);
    let change = AssignmentsKind::Incremental;
    manager
        .assign(change, vec![desired(TaskState::Shutdown)])
        .await;
    manager.until_state(ID, TaskState::Shutdown).await;
    assert_eq!((fixture.runtime.running(), fixture.runtime.len()), (0, 1));
    let gone = vec![AssignmentChange::RemoveTask(ID)];
    manager.change(change, gone).await;
    let runtime = Arc::clone(&fixture.runtime);
    manager.until("removed", |_| runtime.len() == 0).await;
    let agent = fixture.agent.clone();
    manager
        .until("forgotten", |_| agent.statuses().is_empty())
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_crash_is_repaired_here_and_an_exit_under_watch_is_a_failure() {
    let mut fixture = Fixture::new().await;
    let mut manager = fixture.session(vec![task()]).await;
    manager.until_state(ID, TaskState::Running).await;
    fixture.runtime.crash(ID, 1);
    manager
        .until("repaired", |all| all[&ID].restarts == 1 && all[&ID].ready)
        .await;
    assert_eq!(manager.statuses[&ID].state, TaskState::Running);
    assert_eq!(manager.statuses[&ID].exits[0].exit_code, 1);
    assert_eq!(fixture.runtime.running(), 1);

    let watched = Task {
        monitor_until: Some(Timestamp(i64::MAX)),
        endpoints: Vec::new(),
        ..task()
    };
    manager
        .assign(AssignmentsKind::Incremental, vec![watched])
        .await;
    manager.until("settled", |_| true).await;
    tokio::time::sleep(Duration::from_millis(10)).await;
    fixture.runtime.crash(ID, 1);
    manager.until_state(ID, TaskState::Failed).await;
    assert_eq!(fixture.runtime.running(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_crash_is_repaired_without_managers() {
    let mut fixture = Fixture::new().await;
    let mut manager = fixture.session(vec![task()]).await;
    manager.until_state(ID, TaskState::Running).await;
    drop(manager);
    fixture.runtime.crash(ID, 1);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(fixture.runtime.running(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_restarted_agent_keeps_its_tasks_and_removes_strangers_after_a_complete_set() {
    let mut fixture = Fixture::new().await;
    let mut manager = fixture.session(vec![task()]).await;
    manager.until_state(ID, TaskState::Running).await;
    fixture.agent.shutdown().await;
    let stranger = Task {
        id: TaskId::from_bits(9),
        ..task()
    };
    let id = fixture.runtime.create(&stranger, 0, None).await.unwrap();
    fixture.runtime.start(id).await.unwrap();

    let mut fixture = start(fixture.runtime, fixture.disk).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(fixture.runtime.running(), 2, "nothing is guessed");
    // The first stream waited for the test and timed out; take the newest.
    while fixture.sessions.try_recv().is_ok() {}
    let mut manager = fixture.session(vec![task()]).await;
    let runtime = Arc::clone(&fixture.runtime);
    manager
        .until("stranger removed", |_| runtime.len() == 1)
        .await;
    manager.until_state(ID, TaskState::Running).await;
    assert_eq!(manager.statuses[&ID].restarts, 0, "the container was found");
}

#[tokio::test(start_paused = true)]
async fn a_damaged_record_keeps_containers_until_the_complete_set_claims_them() {
    let mut fixture = Fixture::new().await;
    let mut manager = fixture.session(vec![task()]).await;
    manager.until_state(ID, TaskState::Running).await;
    fixture.agent.shutdown().await;
    *fixture.disk.0.lock().unwrap() = Some(b"\xff\xffgarbage".to_vec());

    let mut fixture = start(fixture.runtime, fixture.disk).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(fixture.runtime.running(), 1, "nothing is guessed");
    while fixture.sessions.try_recv().is_ok() {}
    let mut manager = fixture.session(vec![task()]).await;
    manager.until_state(ID, TaskState::Running).await;
    assert_eq!((fixture.runtime.running(), fixture.runtime.len()), (1, 1));
    assert_eq!(manager.statuses[&ID].restarts, 0, "the container was found");
}

#[tokio::test(start_paused = true)]
async fn a_missing_volume_rejects_the_task_with_the_reason() {
    let mut fixture = Fixture::new().await;
    *fixture.runtime.missing_volume.lock().unwrap() = true;
    let mut manager = fixture.session(vec![task()]).await;
    manager.until_state(ID, TaskState::Rejected).await;
    assert!(manager.statuses[&ID].err.contains("volume `data`"));
}

#[tokio::test(start_paused = true)]
async fn a_stop_task_waits_for_a_lease_and_its_deadline_is_renewed() {
    let mut fixture = Fixture::new().await;
    let fenced = Task {
        on_partition: OnPartition::Stop,
        ..task()
    };
    let mut manager = fixture.session(vec![fenced]).await;
    manager.until_state(ID, TaskState::Running).await;
    let runtime = Arc::clone(&fixture.runtime);
    let deadline = move || {
        let all = runtime.containers.borrow();
        all.values().next().and_then(|one| one.deadline)
    };
    let first = deadline().expect("a deadline from the start");
    manager.until("renewed", |_| deadline() > Some(first)).await;
}

#[tokio::test(start_paused = true)]
async fn unanswered_heartbeats_end_the_session_and_statuses_are_repeated() {
    let mut fixture = Fixture::new().await;
    let mut manager = fixture.session(vec![task()]).await;
    manager.until_state(ID, TaskState::Running).await;
    manager.answers = false;
    let mut next = fixture.session(vec![task()]).await;
    next.until_state(ID, TaskState::Running).await;
    drop(manager);
}
