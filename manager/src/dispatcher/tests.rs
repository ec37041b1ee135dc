//! Sessions over in-memory streams, with an in-memory consensus and paused time.

mod gate;

use super::{Dispatcher, DispatcherContext};
use crate::consensus::{Consensus, IdSource, Leadership, Member, ProposeError, WallClock};
use crate::netfeed::NetFeeds;
use crate::store::Store;
use async_trait::async_trait;
use shoal_model::cluster::{JoinSecret, Redacted, RootCa};
use shoal_model::command::{Command, Object, Outcome, StoreAction};
use shoal_model::node::{NodeDescription, NodeState};
use shoal_model::session::{
    AssignmentChange, AssignmentsKind, AssignmentsMessage, ManagerMessage, NodeMessage,
};
use shoal_model::spec::OnPartition;
use shoal_model::{
    Cluster, ClusterId, ClusterSpec, Meta, Node, NodeId, NodeRole, NodeSpec, NodeStatus,
    RaftNodeId, Service, ServiceId, ServiceSpec, Task, TaskId, TaskSpec, TaskState, TaskStatus,
    Timestamp, Version,
};
use shoal_transport::{Peer, PeerIdentity, RpcStream};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

const NODE: NodeId = NodeId::from_bits(1);
const SERVICE: ServiceId = ServiceId::from_bits(1);

struct Memory {
    store: Store,
    index: Mutex<u64>,
    entries: AtomicUsize,
    has_quorum: AtomicBool,
    leadership: watch::Sender<Leadership>,
}

#[async_trait]
impl Consensus for Memory {
    async fn propose(&self, actions: Vec<StoreAction>) -> Result<Version, ProposeError> {
        // Long enough that reports of other sessions gather meanwhile.
        tokio::time::sleep(Duration::from_millis(1)).await;
        self.entries.fetch_add(1, Ordering::SeqCst);
        let mut index = self.index.lock().unwrap();
        *index += 1;
        let time = Timestamp(1);
        match self.store.apply(*index, &Command { time, actions }) {
            Outcome::Applied { version } => Ok(version),
            Outcome::Rejected(rejection) => Err(rejection.into()),
        }
    }

    async fn read_barrier(&self) -> Result<(), ProposeError> {
        if self.has_quorum.load(Ordering::SeqCst) {
            return Ok(());
        }
        let reason = "cut off".to_owned();
        Err(ProposeError::NoQuorum { reason })
    }

    fn leadership(&self) -> watch::Receiver<Leadership> {
        self.leadership.subscribe()
    }

    async fn add_member(
        &self,
        _raft_id: RaftNodeId,
        _node_id: NodeId,
        _addr: SocketAddr,
    ) -> Result<(), ProposeError> {
        Ok(())
    }

    async fn remove_member(&self, _raft_id: RaftNodeId) -> Result<(), ProposeError> {
        Ok(())
    }

    fn members(&self) -> Vec<Member> {
        Vec::new()
    }

    async fn transfer_leadership(&self, _to: Option<RaftNodeId>) -> Result<(), ProposeError> {
        Ok(())
    }
}

struct Fixed;

impl WallClock for Fixed {
    fn now(&self) -> Timestamp {
        Timestamp(1_000)
    }
}

struct Counter(AtomicU64);

impl IdSource for Counter {
    fn bits(&self) -> u128 {
        u128::from(self.0.fetch_add(1, Ordering::SeqCst))
    }
}

struct Fixture {
    consensus: Arc<Memory>,
    store: Store,
    dispatcher: Dispatcher,
    _running: tokio::task::JoinHandle<()>,
}

fn cluster() -> Cluster {
    let secret = |bits: u8| JoinSecret {
        secret: Redacted(format!("{bits:025}")),
        expires_at: None,
        uses_left: None,
    };
    Cluster {
        id: ClusterId::from_bits(1),
        meta: Meta::default(),
        spec: ClusterSpec::default(),
        root_ca: RootCa {
            certificate_der: Vec::new(),
            key_der: Redacted(Vec::new()),
        },
        worker_secret: secret(1),
        manager_secret: secret(2),
        last_raft_id: 0,
    }
}

fn node(id: NodeId) -> Node {
    Node {
        id,
        meta: Meta::default(),
        spec: NodeSpec::default(),
        description: None,
        status: NodeStatus::default(),
        role: NodeRole::Worker,
        manager: None,
        public_key_digest: [0; 32],
        hold_until: None,
        mesh: None,
    }
}

fn service() -> Service {
    let spec = ServiceSpec {
        name: "web".to_owned(),
        ..ServiceSpec::default()
    };
    Service {
        id: SERVICE,
        meta: Meta::default(),
        spec,
        previous_spec: None,
        vips: Vec::new(),
        ports: Vec::new(),
        spec_version: 1,
        update_status: None,
        pending_delete: false,
    }
}

fn task(bits: u128, node_id: NodeId) -> Task {
    Task {
        id: TaskId::from_bits(bits),
        meta: Meta::default(),
        service_id: SERVICE,
        service_name: "web".to_owned(),
        slot: u64::try_from(bits).unwrap(),
        node_id: Some(node_id),
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

impl Fixture {
    async fn new(nodes: u128) -> Self {
        let store = Store::new();
        let term = Leadership::Leader { term: 1 };
        let consensus = Arc::new(Memory {
            store: store.clone(),
            index: Mutex::new(0),
            entries: AtomicUsize::new(0),
            has_quorum: AtomicBool::new(true),
            leadership: watch::Sender::new(term),
        });
        let mut actions = vec![
            StoreAction::Create(Object::Cluster(Box::new(cluster()))),
            StoreAction::Create(Object::Service(Box::new(service()))),
        ];
        actions.extend((1..=nodes).map(|bits| {
            StoreAction::Create(Object::Node(Box::new(node(NodeId::from_bits(bits)))))
        }));
        consensus.propose(actions).await.unwrap();
        let dispatcher = Dispatcher::new(DispatcherContext {
            store: store.clone(),
            consensus: Arc::clone(&consensus) as Arc<dyn Consensus>,
            clock: Arc::new(Fixed),
            ids: Arc::new(Counter(AtomicU64::new(1))),
            netfeeds: NetFeeds::new(),
            cancel: CancellationToken::new(),
        });
        let running = dispatcher.clone();
        let running = tokio::spawn(async move { running.run().await });
        // The paused clock moves only once everything else waits.
        tokio::time::sleep(Duration::from_millis(1)).await;
        Self {
            consensus,
            store,
            dispatcher,
            _running: running,
        }
    }

    /// Makes tasks and binds them to their nodes, which are ready for the occasion, in one entry each.
    async fn create(&self, tasks: impl IntoIterator<Item = Task>) {
        let tasks: Vec<_> = tasks.into_iter().collect();
        let mut created = Vec::new();
        for task in &tasks {
            let node_id = task.node_id.unwrap();
            if !self.store.view().node(node_id).unwrap().takes_tasks() {
                let status = NodeStatus {
                    state: NodeState::Ready,
                    ..NodeStatus::default()
                };
                created.push(StoreAction::SetNodeStatus {
                    node_id,
                    status,
                    description: None,
                });
            }
            let mut pending = task.clone();
            pending.node_id = None;
            pending.status.state = TaskState::Pending;
            created.push(StoreAction::Create(Object::Task(Box::new(pending))));
        }
        let version = self.consensus.propose(created).await.unwrap();
        let assigned = tasks
            .iter()
            .map(|task| StoreAction::Assign {
                task_id: task.id,
                version,
                node_id: task.node_id.unwrap(),
                new_volumes: Vec::new(),
                endpoints: Vec::new(),
            })
            .collect();
        self.consensus.propose(assigned).await.unwrap();
    }

    fn connect(&self, node_id: NodeId) -> RpcStream {
        let dispatcher = self.dispatcher.clone();
        self.serve(node_id, |peer, stream| async move {
            dispatcher.handle(peer, stream).await;
        })
    }

    /// The node's end of a stream whose other end is served by `serve`.
    fn serve<F: Future<Output = ()> + Send + 'static>(
        &self,
        node_id: NodeId,
        serve: impl FnOnce(Peer, RpcStream) -> F,
    ) -> RpcStream {
        let (near, far) = tokio::io::duplex(1 << 20);
        let (read, write) = tokio::io::split(far);
        let served = RpcStream::new(Box::new(read), Box::new(write));
        let peer = Peer {
            addr: "10.0.0.1:2377".parse().unwrap(),
            identity: Some(PeerIdentity {
                node_id,
                role: NodeRole::Worker,
                cluster_id: ClusterId::from_bits(1),
                public_key_digest: [0; 32],
            }),
        };
        tokio::spawn(serve(peer, served));
        let (read, write) = tokio::io::split(near);
        RpcStream::new(Box::new(read), Box::new(write))
    }

    async fn session(&self, node_id: NodeId) -> (RpcStream, AssignmentsMessage) {
        let mut stream = self.connect(node_id);
        hello(&mut stream).await;
        let complete = loop {
            if let ManagerMessage::Assignments(message) = next(&mut stream).await {
                break message;
            }
        };
        (stream, complete)
    }

    fn node_state(&self, node_id: NodeId) -> NodeState {
        self.store.view().node(node_id).unwrap().status.state
    }

    async fn wait_for_state(&self, node_id: NodeId, wanted: NodeState) {
        let wait = async {
            while self.node_state(node_id) != wanted {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), wait)
            .await
            .unwrap_or_else(|_| panic!("still {:?}", self.node_state(node_id)));
    }
}

async fn hello(stream: &mut RpcStream) {
    let hello = NodeMessage::Hello {
        description: Box::new(NodeDescription::default()),
        volumes: Vec::new(),
    };
    stream.send(&hello).await.unwrap();
}

async fn next(stream: &mut RpcStream) -> ManagerMessage {
    tokio::time::timeout(Duration::from_secs(10), stream.recv())
        .await
        .expect("the dispatcher says nothing")
        .unwrap()
        .expect("the dispatcher ended the stream")
}

async fn heartbeat(stream: &mut RpcStream, sequence: u64) {
    stream
        .send(&NodeMessage::Heartbeat { sequence })
        .await
        .unwrap();
    while next(stream).await != (ManagerMessage::HeartbeatAck { sequence }) {}
}

async fn next_assignments(stream: &mut RpcStream) -> AssignmentsMessage {
    loop {
        if let ManagerMessage::Assignments(message) = next(stream).await {
            return message;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_session_starts_with_everything_and_goes_on_with_changes() {
    let fixture = Fixture::new(1).await;
    fixture
        .create((1..=1200).map(|bits| task(bits, NODE)))
        .await;
    let (mut stream, first) = fixture.session(NODE).await;
    assert_eq!((first.kind, first.more), (AssignmentsKind::Complete, true));
    let second = next_assignments(&mut stream).await;
    let third = next_assignments(&mut stream).await;
    assert!(second.more && !third.more);
    let all = [&first, &second, &third].map(|message| message.changes.len());
    assert_eq!(all.iter().sum::<usize>(), 1200);

    fixture
        .create((2001..=2100).map(|bits| task(bits, NODE)))
        .await;
    let change = next_assignments(&mut stream).await;
    assert_eq!(change.kind, AssignmentsKind::Incremental);
    assert_eq!(change.changes.len(), 100, "one entry is one message");
    assert_eq!(change.applies_to, third.results_in);
    assert_eq!(change.results_in, change.applies_to + 1);
}

#[tokio::test(start_paused = true)]
async fn desired_states_and_removals_are_told_and_statuses_are_not() {
    let fixture = Fixture::new(1).await;
    fixture.create([task(1, NODE)]).await;
    let (mut stream, _) = fixture.session(NODE).await;
    let id = TaskId::from_bits(1);
    let running = TaskStatus {
        state: TaskState::Running,
        ..TaskStatus::default()
    };
    let statuses = vec![(id, running)];
    stream
        .send(&NodeMessage::Statuses { batch: 7, statuses })
        .await
        .unwrap();
    while next(&mut stream).await != (ManagerMessage::StatusesAck { batch: 7 }) {}
    assert_eq!(
        fixture.store.view().task(id).unwrap().status.state,
        TaskState::Running,
        "acknowledged is stored"
    );
    let desired = TaskState::Shutdown;
    let shutdown = StoreAction::SetDesired {
        task_id: id,
        desired,
    };
    fixture.consensus.propose(vec![shutdown]).await.unwrap();
    let told = next_assignments(&mut stream).await;
    match told.changes.as_slice() {
        [AssignmentChange::UpdateTask(task)] => assert_eq!(task.desired, desired),
        other => panic!("{other:?}"),
    }
    let ended = TaskStatus {
        state: TaskState::Shutdown,
        ..TaskStatus::default()
    };
    let gone = vec![
        StoreAction::SetTaskStatus {
            task_id: id,
            status: Box::new(ended),
        },
        StoreAction::Remove {
            key: shoal_model::command::ObjectKey::Task(id),
            version: None,
        },
    ];
    fixture.consensus.propose(gone).await.unwrap();
    let told = next_assignments(&mut stream).await;
    assert_eq!(told.changes, [AssignmentChange::RemoveTask(id)]);
}

#[tokio::test(start_paused = true)]
async fn a_node_can_not_report_tasks_of_another() {
    let fixture = Fixture::new(2).await;
    fixture.create([task(1, NodeId::from_bits(2))]).await;
    let (mut stream, _) = fixture.session(NODE).await;
    let id = TaskId::from_bits(1);
    let failed = TaskStatus {
        state: TaskState::Failed,
        ..TaskStatus::default()
    };
    let statuses = vec![(id, failed)];
    stream
        .send(&NodeMessage::Statuses { batch: 1, statuses })
        .await
        .unwrap();
    while next(&mut stream).await != (ManagerMessage::StatusesAck { batch: 1 }) {}
    let stored = fixture.store.view().task(id).unwrap().status.state;
    assert_eq!(stored, TaskState::Assigned);
}

#[tokio::test(start_paused = true)]
async fn a_new_session_ends_the_old_one() {
    let fixture = Fixture::new(1).await;
    let (mut old, _) = fixture.session(NODE).await;
    let (mut new, _) = fixture.session(NODE).await;
    loop {
        if let ManagerMessage::Closed(reason) = next(&mut old).await {
            assert!(reason.contains("newer session"), "{reason}");
            break;
        }
    }
    heartbeat(&mut new, 1).await;
    assert_eq!(fixture.dispatcher.sessions_len(), 1);
}

#[tokio::test(start_paused = true)]
async fn silence_for_the_down_limit_makes_a_node_down_and_a_session_ready() {
    let fixture = Fixture::new(1).await;
    let (mut stream, _) = fixture.session(NODE).await;
    fixture.wait_for_state(NODE, NodeState::Ready).await;
    for sequence in 0..20 {
        heartbeat(&mut stream, sequence).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(fixture.node_state(NODE), NodeState::Ready);
    }
    drop(stream);
    let silent_since = tokio::time::Instant::now();
    fixture.wait_for_state(NODE, NodeState::Down).await;
    let after = silent_since.elapsed();
    assert!(
        (2400..2700).contains(&after.as_millis()),
        "half a second had passed since the last heartbeat; down after {after:?}"
    );
    let (_stream, _) = fixture.session(NODE).await;
    fixture.wait_for_state(NODE, NodeState::Ready).await;
}

#[tokio::test(start_paused = true)]
async fn a_held_node_is_not_declared_down() {
    let fixture = Fixture::new(1).await;
    let (mut stream, _) = fixture.session(NODE).await;
    fixture.wait_for_state(NODE, NodeState::Ready).await;
    stream
        .send(&NodeMessage::Hold {
            duration_ms: 60_000,
        })
        .await
        .unwrap();
    heartbeat(&mut stream, 1).await;
    drop(stream);
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(fixture.node_state(NODE), NodeState::Ready);
    let (_stream, _) = fixture.session(NODE).await;
    let wait = async {
        while fixture
            .store
            .view()
            .node(NODE)
            .unwrap()
            .hold_until
            .is_some()
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), wait)
        .await
        .expect("the hold ends with the next session");
}

#[tokio::test(start_paused = true)]
async fn goodbye_is_reported_at_once() {
    let fixture = Fixture::new(1).await;
    let (mut stream, _) = fixture.session(NODE).await;
    stream.send(&NodeMessage::Goodbye).await.unwrap();
    fixture.wait_for_state(NODE, NodeState::Disconnected).await;
}

#[tokio::test(start_paused = true)]
async fn a_new_leader_gives_a_full_limit_and_calls_the_silent_unknown_first() {
    let fixture = Fixture::new(1).await;
    let (stream, _) = fixture.session(NODE).await;
    fixture.wait_for_state(NODE, NodeState::Ready).await;
    drop(stream);
    tokio::time::sleep(Duration::from_millis(2500)).await;
    let leadership = &fixture.consensus.leadership;
    leadership.send_replace(Leadership::Follower { leader: None });
    tokio::time::sleep(Duration::from_millis(1)).await;
    leadership.send_replace(Leadership::Leader { term: 2 });
    let elected_at = tokio::time::Instant::now();
    fixture.wait_for_state(NODE, NodeState::Unknown).await;
    fixture.wait_for_state(NODE, NodeState::Down).await;
    assert!(elected_at.elapsed() >= Duration::from_secs(3));
}

#[tokio::test(start_paused = true)]
async fn a_follower_redirects_and_a_deposed_leader_ends_its_sessions() {
    let fixture = Fixture::new(1).await;
    let (mut stream, _) = fixture.session(NODE).await;
    let follower = Leadership::Follower { leader: None };
    fixture.consensus.leadership.send_replace(follower);
    loop {
        if let ManagerMessage::Closed(reason) = next(&mut stream).await {
            assert!(reason.contains("does not lead"), "{reason}");
            break;
        }
    }
    let mut redirected = fixture.connect(NODE);
    hello(&mut redirected).await;
    let first = next(&mut redirected).await;
    assert!(matches!(first, ManagerMessage::Managers(_)), "{first:?}");
}

#[tokio::test(start_paused = true)]
async fn a_leader_without_quorum_renews_no_lease() {
    let fixture = Fixture::new(1).await;
    let (mut stream, _) = fixture.session(NODE).await;
    heartbeat(&mut stream, 1).await;
    fixture.consensus.has_quorum.store(false, Ordering::SeqCst);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let question = NodeMessage::Heartbeat { sequence: 2 };
    stream.send(&question).await.unwrap();
    let answer = async {
        while next(&mut stream).await != (ManagerMessage::HeartbeatAck { sequence: 2 }) {}
    };
    let limit = Duration::from_secs(1);
    assert!(tokio::time::timeout(limit, answer).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_thousand_sessions_share_few_entries() {
    const NODES: u128 = 1000;
    let fixture = Fixture::new(NODES).await;
    let tasks = (1..=NODES).map(|bits| task(bits, NodeId::from_bits(bits)));
    fixture.create(tasks).await;
    let before = fixture.consensus.entries.load(Ordering::SeqCst);
    let mut streams = Vec::new();
    for bits in 1..=NODES {
        let (mut stream, _) = fixture.session(NodeId::from_bits(bits)).await;
        let status = TaskStatus {
            state: TaskState::Running,
            ..TaskStatus::default()
        };
        let statuses = vec![(TaskId::from_bits(bits), status)];
        let report = NodeMessage::Statuses { batch: 1, statuses };
        stream.send(&report).await.unwrap();
        streams.push(stream);
    }
    for stream in &mut streams {
        while next(stream).await != (ManagerMessage::StatusesAck { batch: 1 }) {}
    }
    let entries = fixture.consensus.entries.load(Ordering::SeqCst) - before;
    assert!(entries < 100, "{entries} entries for {NODES} nodes");
    let view = fixture.store.view();
    assert!(
        view.tasks()
            .all(|task| task.status.state == TaskState::Running)
    );
}
