//! The drain gate: sessions and feeds over in-memory streams, with an in-memory consensus and paused time.

use super::{Fixture, NODE, heartbeat, next};
use crate::consensus::{Consensus, Leadership};
use shoal_model::command::{Object, StoreAction};
use shoal_model::netstate::{NetFeedMessage, NetFeedRequest};
use shoal_model::network::{
    AddressLease, Endpoint, Network, NetworkAttachment, NetworkSpec, Subnets, WireGuardBackend,
    WireGuardDescription,
};
use shoal_model::node::{NodeDescription, NodeState};
use shoal_model::session::{AssignmentChange, ManagerMessage, NodeMessage};
use shoal_model::spec::EndpointMode;
use shoal_model::{
    Meta, NetworkId, NodeId, NodeStatus, Service, ServiceId, ServiceSpec, Task, TaskId, TaskSpec,
    TaskState, TaskStatus, Version,
};
use shoal_transport::RpcStream;
use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

const OTHER: NodeId = NodeId::from_bits(2);
const NETWORK: NetworkId = NetworkId::from_bits(1);
const WEB: ServiceId = ServiceId::from_bits(7);
const TASK: TaskId = TaskId::from_bits(70);

/// A network, a service in it whose only task runs on [`NODE`] and is ready, and two nodes with leases.
struct Scene {
    fixture: Fixture,
    /// The session of [`NODE`], which has been told of the task.
    session: RpcStream,
    /// The session of [`OTHER`], which sends heartbeats.
    other: RpcStream,
    sequence: u64,
}

fn service(mode: EndpointMode) -> Service {
    let mut spec = ServiceSpec {
        name: "db".to_owned(),
        task: task_spec(),
        ..ServiceSpec::default()
    };
    spec.endpoint.mode = mode;
    Service {
        id: WEB,
        meta: Meta::default(),
        spec,
        previous_spec: None,
        spec_version: 1,
        update_status: None,
        vips: Vec::new(),
        ports: Vec::new(),
        pending_delete: false,
    }
}

fn task_spec() -> TaskSpec {
    TaskSpec {
        networks: vec![NetworkAttachment {
            network_id: NETWORK,
            aliases: Vec::new(),
        }],
        ..TaskSpec::default()
    }
}

fn network() -> Network {
    let subnet = "10.0.1.0/24".parse().unwrap();
    Network {
        id: NETWORK,
        meta: Meta::default(),
        spec: NetworkSpec {
            name: "backend".to_owned(),
            ..NetworkSpec::default()
        },
        subnets: Subnets {
            ipv4: subnet,
            gateway: Ipv4Addr::new(10, 0, 1, 1),
            range: subnet,
            ipv6: None,
            gateway_ipv6: None,
        },
    }
}

fn lease(node_id: NodeId, block: &str) -> StoreAction {
    StoreAction::Create(Object::Lease(Box::new(AddressLease {
        network_id: NETWORK,
        node_id,
        meta: Meta::default(),
        blocks: BTreeSet::from([block.parse().unwrap()]),
    })))
}

fn description(node_id: NodeId) -> NodeDescription {
    NodeDescription {
        wireguard: Some(WireGuardDescription {
            public_key: [u8::try_from(node_id.bits()).unwrap(); 32],
            next_key: None,
            port: 51820,
            backend: WireGuardBackend::Userspace,
        }),
        ..NodeDescription::default()
    }
}

async fn hello(stream: &mut RpcStream, node_id: NodeId) {
    let hello = NodeMessage::Hello {
        description: Box::new(description(node_id)),
        volumes: Vec::new(),
    };
    stream.send(&hello).await.unwrap();
}

impl Fixture {
    async fn propose(&self, actions: Vec<StoreAction>) -> Version {
        self.consensus.propose(actions).await.unwrap()
    }

    fn connect_feed(&self, node_id: NodeId) -> RpcStream {
        let netfeeds = self.dispatcher.0.context.netfeeds.clone();
        self.serve(node_id, |peer, stream| async move {
            netfeeds.handle(peer, stream).await;
        })
    }
}

impl Scene {
    async fn new(mode: EndpointMode) -> Self {
        Self::with(mode, TaskState::Running).await
    }

    /// With a task in that state.
    async fn with(mode: EndpointMode, state: TaskState) -> Self {
        let fixture = Fixture::new(2).await;
        fixture
            .propose(vec![
                StoreAction::Create(Object::Network(Box::new(network()))),
                lease(NODE, "10.0.1.16/28"),
                lease(OTHER, "10.0.1.32/28"),
                StoreAction::Create(Object::Service(Box::new(service(mode)))),
            ])
            .await;
        let ready = |node_id| StoreAction::SetNodeStatus {
            node_id,
            status: NodeStatus {
                state: NodeState::Ready,
                ..NodeStatus::default()
            },
            description: Some(Box::new(description(node_id))),
        };
        let pending = Task {
            id: TASK,
            service_id: WEB,
            service_name: "db".to_owned(),
            node_id: None,
            spec: Arc::new(task_spec()),
            status: TaskStatus {
                state: TaskState::Pending,
                ..TaskStatus::default()
            },
            ..super::task(70, NODE)
        };
        let create = StoreAction::Create(Object::Task(Box::new(pending)));
        let version = fixture
            .propose(vec![ready(NODE), ready(OTHER), create])
            .await;
        let assign = StoreAction::Assign {
            task_id: TASK,
            version,
            node_id: NODE,
            new_volumes: Vec::new(),
            endpoints: vec![Endpoint {
                network_id: NETWORK,
                ipv4: Ipv4Addr::new(10, 0, 1, 18),
                ipv6: None,
                aliases: Vec::new(),
            }],
        };
        fixture.propose(vec![assign, report(state, true)]).await;
        let (session, other) = open(&fixture).await;
        Self {
            fixture,
            session,
            other,
            sequence: 0,
        }
    }

    async fn feed(&self, node_id: NodeId) -> Feed {
        let mut stream = self.fixture.connect_feed(node_id);
        stream.send(&NetFeedRequest::Hello).await.unwrap();
        let mut feed = Feed {
            stream,
            version: Version(0),
            in_rotation: false,
        };
        feed.update().await;
        feed.applied().await;
        feed
    }

    async fn want(&self, desired: TaskState) {
        let task_id = TASK;
        let action = StoreAction::SetDesired { task_id, desired };
        self.fixture.propose(vec![action]).await;
    }

    /// What the node is told to do with the task next, within `time`; both nodes live meanwhile.
    async fn told_within(&mut self, time: Duration) -> Option<TaskState> {
        let end = Instant::now() + time;
        while Instant::now() < end {
            self.sequence += 1;
            for stream in [&mut self.session, &mut self.other] {
                let beat = NodeMessage::Heartbeat {
                    sequence: self.sequence,
                };
                stream.send(&beat).await.unwrap();
            }
            let pause = Duration::from_millis(100).min(end - Instant::now());
            let pause = tokio::time::sleep(pause);
            tokio::pin!(pause);
            loop {
                tokio::select! {
                    () = &mut pause => break,
                    message = next(&mut self.session) => {
                        if let Some(desired) = desired_of(&message) {
                            return Some(desired);
                        }
                    }
                }
            }
        }
        None
    }
}

async fn open(fixture: &Fixture) -> (RpcStream, RpcStream) {
    let mut streams = Vec::new();
    for node_id in [NODE, OTHER] {
        let mut stream = fixture.connect(node_id);
        hello(&mut stream, node_id).await;
        while !matches!(next(&mut stream).await, ManagerMessage::Assignments(_)) {}
        heartbeat(&mut stream, 1_000).await;
        streams.push(stream);
    }
    let other = streams.pop().unwrap();
    (streams.pop().unwrap(), other)
}

fn report(state: TaskState, ready: bool) -> StoreAction {
    StoreAction::SetTaskStatus {
        task_id: TASK,
        status: Box::new(TaskStatus {
            state,
            ready,
            ..TaskStatus::default()
        }),
    }
}

fn desired_of(message: &ManagerMessage) -> Option<TaskState> {
    let ManagerMessage::Assignments(assignments) = message else {
        return None;
    };
    assignments.changes.iter().find_map(|change| match change {
        AssignmentChange::UpdateTask(task) if task.id == TASK => Some(task.desired),
        AssignmentChange::UpdateTask(_)
        | AssignmentChange::RemoveTask(_)
        | AssignmentChange::RegistryAuth { .. } => None,
    })
}

/// A node's end of its feed.
struct Feed {
    stream: RpcStream,
    version: Version,
    in_rotation: bool,
}

impl Feed {
    /// Takes the next update.
    async fn update(&mut self) {
        loop {
            let message = self.stream.recv::<NetFeedMessage>().await.unwrap().unwrap();
            let NetFeedMessage::Update(update) = message else {
                continue;
            };
            let mut state = shoal_model::netstate::NetState::default();
            self.version = update.version;
            state.take(update, true);
            if let Some(endpoint) = state.endpoints.values().next() {
                self.in_rotation = endpoint.in_rotation;
            }
            return;
        }
    }

    async fn applied(&mut self) {
        let version = self.version;
        let answer = NetFeedRequest::Applied { version };
        self.stream.send(&answer).await.unwrap();
    }
}

const LONG: Duration = Duration::from_secs(10);
const SOON: Duration = Duration::from_millis(100);
const LEASE: Duration = Duration::from_secs(2);

#[tokio::test(start_paused = true)]
async fn a_task_is_told_to_stop_once_every_node_has_taken_it_out() {
    let mut scene = Scene::new(EndpointMode::Vip).await;
    let mut near = scene.feed(NODE).await;
    let mut far = scene.feed(OTHER).await;
    assert!(near.in_rotation && far.in_rotation);
    scene.want(TaskState::Shutdown).await;
    for feed in [&mut near, &mut far] {
        feed.update().await;
        assert!(!feed.in_rotation);
    }
    near.applied().await;
    assert_eq!(scene.told_within(Duration::from_secs(1)).await, None);
    far.applied().await;
    assert_eq!(scene.told_within(SOON).await, Some(TaskState::Shutdown));
}

#[tokio::test(start_paused = true)]
async fn a_removal_is_held_too_and_the_wait_ends_with_the_leases() {
    let mut scene = Scene::new(EndpointMode::Vip).await;
    let _near = scene.feed(NODE).await;
    // Within the first moments of a term leases of the leader before count too.
    assert_eq!(scene.told_within(Duration::from_secs(1)).await, None);
    let begun = Instant::now();
    scene.want(TaskState::Remove).await;
    assert_eq!(scene.told_within(LONG).await, Some(TaskState::Remove));
    let waited = begun.elapsed();
    assert!(
        waited >= LEASE && waited < LEASE + Duration::from_millis(200),
        "{waited:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_for_a_node_whose_lease_is_over() {
    let mut scene = Scene::new(EndpointMode::Vip).await;
    let mut near = scene.feed(NODE).await;
    let (_, gone) = tokio::io::duplex(1);
    let (read, write) = tokio::io::split(gone);
    // The other node falls silent.
    let stream = RpcStream::new(Box::new(read), Box::new(write));
    let mut silent = std::mem::replace(&mut scene.other, stream);
    let begun = Instant::now();
    while begun.elapsed() < LEASE + SOON {
        heartbeat(&mut scene.session, 1).await;
        tokio::time::sleep(SOON).await;
    }
    scene.want(TaskState::Shutdown).await;
    near.update().await;
    near.applied().await;
    let told = async {
        loop {
            if let Some(desired) = desired_of(&next(&mut scene.session).await) {
                return desired;
            }
        }
    };
    let told = tokio::time::timeout(SOON, told).await.unwrap();
    assert_eq!(told, TaskState::Shutdown);
    silent.finish().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_is_found_by_name_alone_waits_as_long_as_an_answer_lives() {
    let mut scene = Scene::new(EndpointMode::DnsRoundRobin).await;
    let mut feeds = [scene.feed(NODE).await, scene.feed(OTHER).await];
    scene.want(TaskState::Shutdown).await;
    for feed in &mut feeds {
        feed.update().await;
        feed.applied().await;
    }
    let begun = Instant::now();
    assert_eq!(scene.told_within(LONG).await, Some(TaskState::Shutdown));
    let waited = begun.elapsed();
    let ttl = Duration::from_secs(1);
    assert!(waited >= ttl && waited < ttl + SOON, "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn a_task_that_never_ran_is_told_at_once() {
    let mut scene = Scene::with(EndpointMode::Vip, TaskState::Starting).await;
    let _feeds = (scene.feed(NODE).await, scene.feed(OTHER).await);
    scene.want(TaskState::Shutdown).await;
    assert_eq!(scene.told_within(SOON).await, Some(TaskState::Shutdown));
}

#[tokio::test(start_paused = true)]
async fn a_task_that_was_ready_a_moment_ago_is_held() {
    let mut scene = Scene::new(EndpointMode::Vip).await;
    let mut feeds = [scene.feed(NODE).await, scene.feed(OTHER).await];
    scene
        .fixture
        .propose(vec![report(TaskState::Running, false)])
        .await;
    scene.want(TaskState::Shutdown).await;
    assert_eq!(scene.told_within(Duration::from_secs(1)).await, None);
    for feed in &mut feeds {
        feed.update().await;
        assert!(!feed.in_rotation);
        feed.applied().await;
    }
    assert_eq!(scene.told_within(SOON).await, Some(TaskState::Shutdown));
}

#[tokio::test(start_paused = true)]
async fn nothing_on_a_lost_node_is_held() {
    let scene = Scene::new(EndpointMode::Vip).await;
    scene.want(TaskState::Shutdown).await;
    let dispatcher = &scene.fixture.dispatcher;
    let term = crate::dispatcher::lock(&dispatcher.0.term).clone().unwrap();
    let state = scene.fixture.store.view();
    assert!(term.gate.holds(&state, state.task(TASK).unwrap()));
    let status = NodeStatus {
        state: NodeState::Down,
        ..NodeStatus::default()
    };
    let lost = StoreAction::SetNodeStatus {
        node_id: NODE,
        status,
        description: None,
    };
    scene.fixture.propose(vec![lost]).await;
    let state = scene.fixture.store.view();
    assert!(!term.gate.holds(&state, state.task(TASK).unwrap()));
}

#[tokio::test(start_paused = true)]
async fn a_held_task_that_ends_is_held_no_more() {
    let mut scene = Scene::new(EndpointMode::Vip).await;
    let _feeds = (scene.feed(NODE).await, scene.feed(OTHER).await);
    scene.want(TaskState::Shutdown).await;
    assert_eq!(scene.told_within(SOON).await, None);
    let ended = report(TaskState::Failed, false);
    scene.fixture.propose(vec![ended]).await;
    assert_eq!(scene.told_within(SOON).await, Some(TaskState::Shutdown));
}

#[tokio::test(start_paused = true)]
async fn a_session_that_begins_meanwhile_is_told_that_the_task_runs() {
    let mut scene = Scene::new(EndpointMode::Vip).await;
    let mut feeds = [scene.feed(NODE).await, scene.feed(OTHER).await];
    scene.want(TaskState::Shutdown).await;
    let mut session = scene.fixture.connect(NODE);
    hello(&mut session, NODE).await;
    let told = loop {
        if let Some(desired) = desired_of(&next(&mut session).await) {
            break desired;
        }
    };
    assert_eq!(told, TaskState::Running);
    scene.session = session;
    for feed in &mut feeds {
        feed.update().await;
        feed.applied().await;
    }
    assert_eq!(scene.told_within(SOON).await, Some(TaskState::Shutdown));
}

#[tokio::test(start_paused = true)]
async fn a_new_leader_starts_the_wait_over() {
    let mut scene = Scene::new(EndpointMode::Vip).await;
    let feeds = (scene.feed(NODE).await, scene.feed(OTHER).await);
    scene.want(TaskState::Shutdown).await;
    assert_eq!(scene.told_within(Duration::from_secs(1)).await, None);
    drop(feeds);
    let leadership = &scene.fixture.consensus.leadership;
    leadership.send_replace(Leadership::Follower { leader: None });
    tokio::time::sleep(Duration::from_millis(1)).await;
    leadership.send_replace(Leadership::Leader { term: 2 });
    tokio::time::sleep(Duration::from_millis(1)).await;
    let begun = Instant::now();
    let mut session = scene.fixture.connect(NODE);
    hello(&mut session, NODE).await;
    let told = loop {
        if let Some(desired) = desired_of(&next(&mut session).await) {
            break desired;
        }
    };
    assert_eq!(told, TaskState::Running, "what was held is held again");
    scene.session = session;
    scene.other = scene.fixture.connect(OTHER);
    hello(&mut scene.other, OTHER).await;
    assert_eq!(scene.told_within(LONG).await, Some(TaskState::Shutdown));
    let waited = begun.elapsed();
    // The leader before may have gone on renewing leases for 700 ms.
    let whole = LEASE + Duration::from_millis(700);
    assert!(waited >= whole - SOON, "a whole wait again, not {waited:?}");
    assert!(waited < whole + SOON, "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn the_leader_says_what_each_node_has_applied_and_tells_them_to_make_new_keys() {
    let scene = Scene::new(EndpointMode::Vip).await;
    let mut near = scene.feed(NODE).await;
    tokio::time::sleep(SOON).await;
    let netfeeds = scene.fixture.dispatcher.0.context.netfeeds.clone();
    let applied = || {
        let nodes = netfeeds.nodes(&scene.fixture.store.view()).unwrap();
        nodes
            .iter()
            .map(|node| (node.node_id, node.applied, node.wanted))
            .collect::<Vec<_>>()
    };
    let wanted = scene.fixture.store.view().version();
    assert_eq!(
        applied(),
        [(NODE, Some(wanted), wanted), (OTHER, None, wanted)]
    );
    let before = near.version;
    scene.want(TaskState::Shutdown).await;
    near.update().await;
    let wanted = scene.fixture.store.view().version();
    assert_eq!(applied()[0], (NODE, Some(before), wanted));
    near.applied().await;
    tokio::time::sleep(SOON).await;
    assert_eq!(applied()[0], (NODE, Some(wanted), wanted));

    assert_eq!(netfeeds.rotate_keys(Some(OTHER)), Some(BTreeSet::new()));
    assert_eq!(netfeeds.rotate_keys(None), Some(BTreeSet::from([NODE])));
    let told =
        async { while near.stream.recv().await.unwrap() != Some(NetFeedMessage::RotateKey) {} };
    tokio::time::timeout(SOON, told).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_node_hears_once_that_everybody_has_its_update() {
    let scene = Scene::new(EndpointMode::Vip).await;
    let mut near = scene.feed(NODE).await;
    let mut far = scene.feed(OTHER).await;
    scene.want(TaskState::Shutdown).await;
    near.update().await;
    far.update().await;
    near.applied().await;
    let version = near.version;
    let confirmed = async {
        loop {
            let message = near.stream.recv::<NetFeedMessage>().await.unwrap();
            if let Some(NetFeedMessage::Confirmed { version: confirmed }) = message
                && confirmed >= version
            {
                return;
            }
        }
    };
    tokio::pin!(confirmed);
    let early = tokio::time::timeout(SOON, &mut confirmed).await;
    assert!(early.is_err(), "the other node has not applied it");
    far.applied().await;
    tokio::time::timeout(SOON, confirmed).await.unwrap();
}
