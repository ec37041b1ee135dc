//! The network feed with a sink that does what a test says, in paused time.

use super::{FakeRuntime, Fixture, ID, Manager, MemoryDisk, desired, start_with, task};
use crate::disk::AgentDisk;
use crate::network::{AgentNetwork, NetworkSink, SinkError, keep};
use async_trait::async_trait;
use shoal_model::netstate::{
    NetChange, NetFeedMessage, NetFeedRequest, NetKey, NetNetwork, NetRecord, NetState, NetUpdate,
};
use shoal_model::network::Subnets;
use shoal_model::session::AssignmentsKind;
use shoal_model::{NetworkId, TaskState, Version};
use shoal_transport::RpcStream;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// What the sink was told, and what it does.
#[derive(Default)]
struct FakeSink {
    states: Mutex<Vec<Arc<NetState>>>,
    confirmed: Mutex<Vec<Version>>,
    leases: watch::Sender<Vec<bool>>,
    rotations: Mutex<u32>,
    /// Attempts that fail before one succeeds.
    failures: Mutex<u32>,
    takes: Mutex<Duration>,
}

impl FakeSink {
    fn versions(&self) -> Vec<u64> {
        let states = self.states.lock().unwrap();
        states.iter().map(|state| state.version.0).collect()
    }

    fn last(&self) -> Arc<NetState> {
        Arc::clone(self.states.lock().unwrap().last().unwrap())
    }
}

#[async_trait]
impl NetworkSink for FakeSink {
    async fn apply(&self, state: Arc<NetState>) -> Result<Version, SinkError> {
        let takes = *self.takes.lock().unwrap();
        tokio::time::sleep(takes).await;
        {
            let mut failures = self.failures.lock().unwrap();
            if *failures > 0 {
                *failures -= 1;
                let reason = "the kernel is busy".to_owned();
                return Err(SinkError { reason });
            }
        }
        let version = state.version;
        self.states.lock().unwrap().push(state);
        Ok(version)
    }

    async fn confirmed(&self, version: Version) {
        self.confirmed.lock().unwrap().push(version);
    }

    async fn lease(&self, live: bool) {
        self.leases.send_modify(|told| told.push(live));
    }

    async fn rotate_key(&self) -> Result<(), SinkError> {
        *self.rotations.lock().unwrap() += 1;
        Ok(())
    }
}

struct Scene {
    fixture: Fixture,
    sink: Arc<FakeSink>,
    disk: Arc<MemoryDisk>,
}

impl Scene {
    async fn new() -> Self {
        Self::with(Arc::default(), Arc::default()).await
    }

    async fn with(sink: Arc<FakeSink>, disk: Arc<MemoryDisk>) -> Self {
        let network = AgentNetwork {
            sink: Arc::clone(&sink) as Arc<dyn NetworkSink>,
            disk: Arc::clone(&disk) as Arc<dyn AgentDisk>,
        };
        let runtime = Arc::new(FakeRuntime::new());
        let fixture = start_with(runtime, Arc::default(), Some(network)).await;
        Self {
            fixture,
            sink,
            disk,
        }
    }

    /// The leader's end of the feed, after the session has begun.
    async fn feed(&mut self) -> (Manager, RpcStream) {
        let manager = self.fixture.session(Vec::new()).await;
        let feed = self.feed_again().await;
        (manager, feed)
    }

    async fn feed_again(&mut self) -> RpcStream {
        let limit = Duration::from_secs(10);
        let mut feed = tokio::time::timeout(limit, self.fixture.feeds.recv())
            .await
            .expect("a feed is opened")
            .unwrap();
        let hello: NetFeedRequest = feed.recv().await.unwrap().unwrap();
        assert_eq!(hello, NetFeedRequest::Hello);
        feed
    }
}

fn network(number: u128) -> NetChange {
    let subnet = "10.0.0.0/24".parse().unwrap();
    NetChange::Put(NetRecord::Network(NetNetwork {
        id: NetworkId::from_bits(number),
        name: format!("net{number}"),
        subnets: Subnets {
            ipv4: subnet,
            gateway: "10.0.0.1".parse().unwrap(),
            range: subnet,
            ipv6: None,
            gateway_ipv6: None,
        },
        internal: false,
        ingress: false,
        mtu: None,
    }))
}

fn removal(number: u128) -> NetChange {
    NetChange::Remove(NetKey::Network(NetworkId::from_bits(number)))
}

async fn send(
    feed: &mut RpcStream,
    (complete, more): (bool, bool),
    version: u64,
    changes: Vec<NetChange>,
) {
    let update = NetUpdate {
        complete,
        version: Version(version),
        changes,
        more,
    };
    feed.send(&NetFeedMessage::Update(update)).await.unwrap();
}

const COMPLETE: (bool, bool) = (true, false);
const CHANGE: (bool, bool) = (false, false);

async fn applied(feed: &mut RpcStream) -> u64 {
    let limit = Duration::from_secs(20);
    let answer = tokio::time::timeout(limit, feed.recv()).await;
    match answer.expect("nothing is applied").unwrap().unwrap() {
        NetFeedRequest::Applied { version } => version.0,
        NetFeedRequest::Hello => panic!("a second hello"),
    }
}

fn networks(state: &NetState) -> Vec<u128> {
    state.networks.keys().map(|id| id.bits()).collect()
}

#[tokio::test(start_paused = true)]
async fn a_state_is_applied_kept_and_acknowledged() {
    let mut scene = Scene::new().await;
    let (_manager, mut feed) = scene.feed().await;
    send(&mut feed, COMPLETE, 5, vec![network(1), network(2)]).await;
    assert_eq!(applied(&mut feed).await, 5);
    send(&mut feed, CHANGE, 8, vec![removal(1), network(3)]).await;
    assert_eq!(applied(&mut feed).await, 8);
    assert_eq!(networks(&scene.sink.last()), [2, 3]);
    let confirmed = NetFeedMessage::Confirmed {
        version: Version(8),
    };
    feed.send(&confirmed).await.unwrap();
    feed.send(&NetFeedMessage::RotateKey).await.unwrap();
    send(&mut feed, CHANGE, 9, Vec::new()).await;
    assert_eq!(applied(&mut feed).await, 9);
    assert_eq!(*scene.sink.confirmed.lock().unwrap(), [Version(8)]);
    assert_eq!(*scene.sink.rotations.lock().unwrap(), 1);
    scene.fixture.agent.shutdown().await;

    let sink = Arc::new(FakeSink::default());
    let again = Scene::with(Arc::clone(&sink), scene.disk).await;
    assert_eq!(
        sink.versions(),
        [9],
        "the last state is in force before any manager is found"
    );
    assert_eq!(networks(&sink.last()), [2, 3]);
    drop(again);
}

#[tokio::test(start_paused = true)]
async fn an_update_in_parts_is_applied_once_it_is_whole() {
    let mut scene = Scene::new().await;
    let (_manager, mut feed) = scene.feed().await;
    send(&mut feed, (true, true), 5, vec![network(1)]).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(scene.sink.versions(), [0; 0]);
    send(&mut feed, (true, false), 5, vec![network(2)]).await;
    assert_eq!(applied(&mut feed).await, 5);
    assert_eq!(networks(&scene.sink.last()), [1, 2]);
    send(&mut feed, (true, true), 6, vec![network(3)]).await;
    send(&mut feed, (true, false), 6, vec![network(4)]).await;
    assert_eq!(applied(&mut feed).await, 6);
    assert_eq!(
        networks(&scene.sink.last()),
        [3, 4],
        "a complete update replaces everything"
    );
}

#[tokio::test(start_paused = true)]
async fn what_comes_while_one_state_is_applied_is_applied_together() {
    let mut scene = Scene::new().await;
    let (_manager, mut feed) = scene.feed().await;
    *scene.sink.takes.lock().unwrap() = Duration::from_millis(100);
    send(&mut feed, COMPLETE, 1, Vec::new()).await;
    tokio::time::sleep(Duration::from_millis(10)).await;
    for version in 2..50 {
        send(
            &mut feed,
            CHANGE,
            version,
            vec![network(u128::from(version))],
        )
        .await;
    }
    assert_eq!(applied(&mut feed).await, 1);
    assert_eq!(applied(&mut feed).await, 49);
    assert_eq!(scene.sink.versions(), [1, 49]);
    assert_eq!(scene.sink.last().networks.len(), 48);
}

#[tokio::test(start_paused = true)]
async fn a_failure_is_retried_and_nothing_is_acknowledged_before() {
    let mut scene = Scene::new().await;
    let (_manager, mut feed) = scene.feed().await;
    *scene.sink.failures.lock().unwrap() = 3;
    let begun = Instant::now();
    send(&mut feed, COMPLETE, 5, vec![network(1)]).await;
    assert_eq!(applied(&mut feed).await, 5);
    let took = begun.elapsed();
    let expected = Duration::from_millis(100 + 200 + 400);
    assert!(took >= expected && took < expected * 2, "{took:?}");

    // A newer state is tried at once: what was missing may be in it.
    *scene.sink.failures.lock().unwrap() = 1;
    send(&mut feed, CHANGE, 6, Vec::new()).await;
    tokio::time::sleep(Duration::from_millis(1)).await;
    let begun = Instant::now();
    send(&mut feed, CHANGE, 7, Vec::new()).await;
    assert_eq!(applied(&mut feed).await, 7);
    assert!(begun.elapsed() < Duration::from_millis(50));
}

#[tokio::test(start_paused = true)]
async fn a_broken_feed_is_opened_again_and_begins_anew() {
    let mut scene = Scene::new().await;
    let (_manager, mut feed) = scene.feed().await;
    send(&mut feed, COMPLETE, 5, vec![network(1)]).await;
    assert_eq!(applied(&mut feed).await, 5);
    send(&mut feed, (true, true), 6, vec![network(2)]).await;
    drop(feed);
    let mut feed = scene.feed_again().await;
    assert_eq!(
        networks(&scene.sink.last()),
        [1],
        "half of an update is nothing"
    );
    send(&mut feed, COMPLETE, 7, vec![network(3)]).await;
    assert_eq!(applied(&mut feed).await, 7);
    assert_eq!(networks(&scene.sink.last()), [3]);

    send(&mut feed, CHANGE, 8, Vec::new()).await;
    assert_eq!(applied(&mut feed).await, 8);
    drop(feed);
    let mut feed = scene.feed_again().await;
    send(&mut feed, CHANGE, 9, Vec::new()).await;
    let ended = feed.recv::<NetFeedRequest>().await;
    assert!(
        !matches!(ended, Ok(Some(_))),
        "a feed begins with everything: {ended:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_damaged_state_is_none() {
    let disk = Arc::new(MemoryDisk::default());
    let state = NetState {
        version: Version(3),
        ..NetState::default()
    };
    keep(&state, &*disk).await.unwrap();
    if let Some(byte) = disk
        .0
        .lock()
        .unwrap()
        .as_mut()
        .and_then(|bytes| bytes.last_mut())
    {
        *byte ^= 1;
    }
    let mut scene = Scene::with(Arc::default(), disk).await;
    assert_eq!(scene.sink.versions(), [0; 0]);
    let (_manager, mut feed) = scene.feed().await;
    send(&mut feed, COMPLETE, 5, Vec::new()).await;
    assert_eq!(applied(&mut feed).await, 5);
}

#[tokio::test(start_paused = true)]
async fn the_overlay_hears_of_the_lease_and_of_its_end() {
    let mut scene = Scene::new().await;
    let (mut manager, _feed) = scene.feed().await;
    let mut leases = scene.sink.leases.subscribe();
    let sink = Arc::clone(&scene.sink);
    manager
        .until("a lease", |_| !sink.leases.borrow().is_empty())
        .await;
    assert_eq!(*scene.sink.leases.borrow(), [true]);
    let lost_at = Instant::now();
    drop(manager);
    let told = leases.wait_for(|told| told.len() == 2);
    let told = tokio::time::timeout(Duration::from_secs(10), told).await;
    assert_eq!(*told.unwrap().unwrap(), [true, false]);
    let after = lost_at.elapsed();
    assert!(after <= Duration::from_secs(2), "{after:?}");
    let (mut manager, _feed) = scene.feed().await;
    manager
        .until("a new lease", |_| sink.leases.borrow().len() == 3)
        .await;
    assert_eq!(*scene.sink.leases.borrow(), [true, false, true]);
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_finds_no_manager_says_that_it_has_no_lease() {
    let scene = Scene::new().await;
    let mut leases = scene.sink.leases.subscribe();
    let begun = Instant::now();
    let told = leases.wait_for(|told| !told.is_empty());
    let told = tokio::time::timeout(Duration::from_secs(10), told).await;
    assert_eq!(*told.unwrap().unwrap(), [false]);
    assert_eq!(begun.elapsed().as_secs(), 2, "a restart is given time");
}

#[tokio::test(start_paused = true)]
async fn a_task_that_stops_is_not_restarted_by_a_leader_that_does_not_know() {
    let mut fixture = Fixture::new().await;
    *fixture.runtime.stop_takes.lock().unwrap() = Duration::from_secs(5);
    let mut manager = fixture.session(vec![task()]).await;
    manager.until_state(ID, TaskState::Running).await;
    let change = AssignmentsKind::Incremental;
    manager
        .assign(change, vec![desired(TaskState::Shutdown)])
        .await;
    manager.until("stopping", |all| !all[&ID].ready).await;
    assert_eq!(manager.statuses[&ID].state, TaskState::Running);
    drop(manager);
    let mut manager = fixture.session(vec![task()]).await;
    manager.until_state(ID, TaskState::Shutdown).await;
    assert_eq!((fixture.runtime.running(), fixture.runtime.len()), (0, 1));
}
