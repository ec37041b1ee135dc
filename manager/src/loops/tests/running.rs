//! The loops as they run: on tokio, over an in-memory consensus.

use crate::consensus::{Consensus, IdSource, Leadership, Member, ProposeError, WallClock};
use crate::loops::{LoopContext, run_while_leading};
use crate::store::{State, Store};
use async_trait::async_trait;
use shoal_model::command::{Command, Object, Outcome, StoreAction};
use shoal_model::{
    Meta, Node, NodeDescription, NodeId, NodeRole, NodeSpec, NodeState, NodeStatus, RaftNodeId,
    Resources, Service, ServiceId, ServiceMode, ServiceSpec, TaskState, Timestamp, Version,
};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Far beyond what the loops need, and far below the period of their full passes.
const DEADLINE: Duration = Duration::from_secs(10);

/// Most actions that this consensus takes at once, so that plans are split.
const PIECE_MAX: usize = 7;

/// One manager that agrees with itself.
struct Alone {
    store: Store,
    index: AtomicU64,
    leadership: watch::Sender<Leadership>,
}

impl Alone {
    fn commit(&self, actions: Vec<StoreAction>) -> Result<Version, ProposeError> {
        let index = self.index.fetch_add(1, Ordering::SeqCst) + 1;
        let time = Timestamp(0);
        match self.store.apply(index, &Command { time, actions }) {
            Outcome::Applied { version } => Ok(version),
            Outcome::Rejected(rejection) => Err(ProposeError::Rejected(rejection)),
        }
    }
}

#[async_trait]
impl Consensus for Alone {
    async fn propose(&self, actions: Vec<StoreAction>) -> Result<Version, ProposeError> {
        tokio::task::yield_now().await;
        if !self.leadership.borrow().is_leader() {
            return Err(ProposeError::NotLeader { leader: None });
        }
        if actions.len() > PIECE_MAX {
            return Err(ProposeError::TooLarge {
                bytes: actions.len(),
                bytes_max: PIECE_MAX,
            });
        }
        self.commit(actions)
    }

    async fn read_barrier(&self) -> Result<(), ProposeError> {
        Ok(())
    }

    fn leadership(&self) -> watch::Receiver<Leadership> {
        self.leadership.subscribe()
    }

    async fn add_member(
        &self,
        _: RaftNodeId,
        _: NodeId,
        _: SocketAddr,
    ) -> Result<(), ProposeError> {
        Err(ProposeError::NotLeader { leader: None })
    }

    async fn remove_member(&self, _: RaftNodeId) -> Result<(), ProposeError> {
        Err(ProposeError::NotLeader { leader: None })
    }

    fn members(&self) -> Vec<Member> {
        Vec::new()
    }

    async fn transfer_leadership(&self, _: Option<RaftNodeId>) -> Result<(), ProposeError> {
        Err(ProposeError::NotLeader { leader: None })
    }
}

struct Still;

impl WallClock for Still {
    fn now(&self) -> Timestamp {
        Timestamp(0)
    }
}

struct Counter(AtomicU64);

impl IdSource for Counter {
    fn bits(&self) -> u128 {
        u128::from(self.0.fetch_add(1, Ordering::SeqCst))
    }
}

fn node(id: u128) -> StoreAction {
    StoreAction::Create(Object::Node(Box::new(Node {
        id: NodeId::from_bits(id),
        meta: Meta::default(),
        spec: NodeSpec::default(),
        description: Some(NodeDescription {
            resources: Resources {
                nano_cpus: 1 << 40,
                memory_bytes: 1 << 40,
            },
            ..NodeDescription::default()
        }),
        status: NodeStatus {
            state: NodeState::Ready,
            ..NodeStatus::default()
        },
        role: NodeRole::Worker,
        manager: None,
        public_key_digest: [0; 32],
        hold_until: None,
        mesh: None,
    })))
}

fn service(replicas: u64) -> StoreAction {
    StoreAction::Create(Object::Service(Box::new(Service {
        id: ServiceId::from_bits(1),
        meta: Meta::default(),
        spec: ServiceSpec {
            name: "web".to_owned(),
            mode: ServiceMode::Replicated { replicas },
            ..ServiceSpec::default()
        },
        previous_spec: None,
        vips: Vec::new(),
        ports: Vec::new(),
        spec_version: 1,
        update_status: None,
        pending_delete: false,
    })))
}

fn assigned(state: &State) -> usize {
    let tasks = state.tasks();
    tasks
        .filter(|task| task.status.state == TaskState::Assigned)
        .count()
}

/// Waits until so many tasks have a node.
async fn until_assigned(store: &Store, count: usize) {
    let mut watcher = store.watch();
    let reached = async {
        while assigned(&store.view()) != count {
            watcher.next().await.unwrap();
        }
    };
    if tokio::time::timeout(DEADLINE, reached).await.is_err() {
        panic!("{} of {count} tasks have a node", assigned(&store.view()));
    }
}

/// Lets everything else run that can.
async fn idle() {
    for _ in 0..1_000 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn loops_act_while_leading_only() {
    let store = Store::new();
    let consensus = Arc::new(Alone {
        store: store.clone(),
        index: AtomicU64::new(0),
        leadership: watch::Sender::new(Leadership::Follower { leader: None }),
    });
    let cancel = CancellationToken::new();
    let loops = tokio::spawn(run_while_leading(LoopContext {
        store: store.clone(),
        consensus: Arc::clone(&consensus) as Arc<dyn Consensus>,
        clock: Arc::new(Still),
        ids: Arc::new(Counter(AtomicU64::new(100))),
        netfeeds: crate::netfeed::NetFeeds::new(),
        cancel: cancel.clone(),
    }));
    consensus.commit((1..=5).map(node).collect()).unwrap();
    consensus.commit(vec![service(100)]).unwrap();
    idle().await;
    assert_eq!(store.view().tasks_len(), 0, "a follower makes no tasks");

    consensus
        .leadership
        .send_replace(Leadership::Leader { term: 1 });
    until_assigned(&store, 100).await;

    let follower = Leadership::Follower { leader: None };
    consensus.leadership.send_replace(follower);
    idle().await;
    consensus
        .leadership
        .send_replace(Leadership::Leader { term: 2 });
    let mut scaled = Service::clone(store.view().service_by_name("web").unwrap());
    scaled.spec.mode = ServiceMode::Replicated { replicas: 120 };
    let scaled = StoreAction::Update(Object::Service(Box::new(scaled)));
    consensus.commit(vec![scaled]).unwrap();
    until_assigned(&store, 120).await;

    cancel.cancel();
    loops.await.unwrap();
}
