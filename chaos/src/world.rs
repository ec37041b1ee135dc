//! What the simulated hosts do, and what is known of them from outside.

use crate::{CONTROL_PORT, MemoryDisk, SeededIds, SimulatedClock, SimulatedLink, serve};
use shoal_manager::consensus::{Consensus, Leadership};
use shoal_manager::loops::{LoopContext, run_while_leading};
use shoal_manager::raft::{Placement, RaftHandle, RaftKey, RaftOptions, Timing};
use shoal_manager::store::{State, Store, holds_node};
use shoal_model::command::{Object, StoreAction};
use shoal_model::{
    Meta, Node, NodeDescription, NodeId, NodeRole, NodeSpec, NodeState, NodeStatus, RaftNodeId,
    Resources, Service, ServiceId, ServiceMode, ServiceSpec, TaskState, TaskStatus,
};
use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Managers in the simulation.
pub const MANAGERS: u64 = 3;

/// Engines in the simulation.
pub const ENGINES: u128 = 10;

/// How often the leader looks at what its engines do.
const ENGINE_PERIOD: Duration = Duration::from_millis(50);

/// How often a client writes.
const WRITE_PERIOD: Duration = Duration::from_millis(150);

/// Services that the client declares at most.
const SERVICES_MAX: u128 = 25;

#[derive(Debug, Default)]
struct Known {
    stores: BTreeMap<u64, Store>,
    leaders: BTreeMap<u64, Leadership>,
    starts: u64,
    acknowledged: BTreeSet<ServiceId>,
    attempted: u128,
    down: BTreeSet<NodeId>,
}

/// Everything that outlives a crash of a host. Clones share it.
#[derive(Debug, Clone)]
pub struct World {
    seed: u64,
    known: Arc<Mutex<Known>>,
    disks: BTreeMap<u64, MemoryDisk>,
    clocks: BTreeMap<u64, SimulatedClock>,
}

impl World {
    /// A world in which everything follows from `seed`.
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            known: Arc::default(),
            disks: (1..=MANAGERS)
                .map(|id| (id, MemoryDisk::default()))
                .collect(),
            clocks: (1..=MANAGERS)
                .map(|id| (id, SimulatedClock::default()))
                .collect(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The disk of a manager.
    pub fn disk(&self, id: u64) -> &MemoryDisk {
        &self.disks[&id]
    }

    /// The wall clock of a manager.
    pub fn clock(&self, id: u64) -> &SimulatedClock {
        &self.clocks[&id]
    }

    /// Name of a manager's host.
    pub fn host(id: u64) -> String {
        format!("manager{id}")
    }

    /// Engines that are silent from now on.
    pub fn set_down(&self, engines: BTreeSet<NodeId>) {
        self.lock().down = engines;
    }

    /// Services whose creation was acknowledged.
    pub fn acknowledged(&self) -> BTreeSet<ServiceId> {
        self.lock().acknowledged.clone()
    }

    /// What a manager's store holds now.
    pub fn state(&self, id: u64) -> Option<Arc<State>> {
        self.lock().stores.get(&id).map(Store::view)
    }

    /// What a manager last knew of who leads.
    pub fn leadership(&self, id: u64) -> Option<Leadership> {
        self.lock().leaders.get(&id).cloned()
    }

    /// Runs one manager until its host crashes.
    ///
    /// # Errors
    /// It could not start.
    pub async fn run_manager(self, id: u64) -> Result<(), Box<dyn Error>> {
        let store = Store::new();
        let start = {
            let mut known = self.lock();
            known.starts += 1;
            known.stores.insert(id, store.clone());
            known.starts
        };
        let seed = self.seed.wrapping_mul(1_000).wrapping_add(start);
        let raft = RaftHandle::start(RaftOptions {
            data_dir: PathBuf::from("/raft"),
            raft_id: RaftNodeId(id),
            node_id: NodeId::from_bits(1_000 + u128::from(id)),
            advertise: addr(id),
            key: RaftKey::from_bytes([7; 32]),
            timing: Timing::default(),
            snapshot_interval_entries: 200,
            connector: Arc::new(SimulatedLink),
            disk: Arc::new(self.disk(id).clone()),
            store: store.clone(),
            clock: Arc::new(self.clock(id).clone()),
            seed,
            placement: Placement::Caller,
        })
        .await?;
        let consensus: Arc<dyn Consensus> = Arc::new(raft.clone());
        let context = LoopContext {
            store,
            consensus: Arc::clone(&consensus),
            clock: Arc::new(self.clock(id).clone()),
            ids: Arc::new(SeededIds::new(seed)),
            cancel: CancellationToken::new(),
        };
        tokio::spawn(run_while_leading(context.clone()));
        tokio::spawn(self.clone().follow_leadership(id, Arc::clone(&consensus)));
        tokio::spawn(self.clone().run_engines(context.clone()));
        tokio::spawn(self.clone().run_client(context));
        if id == 1 {
            tokio::spawn(found(raft.clone()));
        }
        serve(raft).await?;
        Ok(())
    }

    async fn follow_leadership(self, id: u64, consensus: Arc<dyn Consensus>) {
        let mut leadership = consensus.leadership();
        loop {
            let now = leadership.borrow_and_update().clone();
            self.lock().leaders.insert(id, now);
            if leadership.changed().await.is_err() {
                return;
            }
        }
    }

    /// Stands for the dispatcher and its agents: what engines that are up would report.
    async fn run_engines(self, context: LoopContext) {
        loop {
            tokio::time::sleep(ENGINE_PERIOD).await;
            if !context.consensus.leadership().borrow().is_leader() {
                continue;
            }
            let down = self.lock().down.clone();
            let actions = reports(&context, &down);
            if !actions.is_empty() {
                // What was not taken is reported again.
                drop(context.consensus.propose(actions).await);
            }
        }
    }

    /// Declares services one after the other, and remembers which were acknowledged.
    async fn run_client(self, context: LoopContext) {
        loop {
            tokio::time::sleep(WRITE_PERIOD).await;
            let ready = context.store.view().nodes().count() as u128 == ENGINES;
            if !ready || !context.consensus.leadership().borrow().is_leader() {
                continue;
            }
            let number = {
                let mut known = self.lock();
                if known.attempted >= SERVICES_MAX {
                    return;
                }
                known.attempted += 1;
                known.attempted
            };
            let service = service(number);
            let id = service.id;
            let create = StoreAction::Create(Object::Service(Box::new(service)));
            if context.consensus.propose(vec![create]).await.is_ok() {
                self.lock().acknowledged.insert(id);
            }
        }
    }
}

/// Founds the cluster unless that was done, and takes the other managers in.
async fn found(raft: RaftHandle) {
    if !raft.is_initialized().await.unwrap_or(true) {
        let nodes = (1..=ENGINES).map(engine).collect();
        drop(raft.bootstrap(vec![nodes]).await);
    }
    let missing = |raft: &RaftHandle| {
        let voters = raft.members().into_iter().filter(|member| member.voter);
        let present: BTreeSet<u64> = voters.map(|member| member.raft_id.0).collect();
        (1..=MANAGERS).find(|id| !present.contains(id))
    };
    while let Some(id) = missing(&raft) {
        let node_id = NodeId::from_bits(1_000 + u128::from(id));
        drop(raft.add_member(RaftNodeId(id), node_id, addr(id)).await);
        tokio::time::sleep(ENGINE_PERIOD).await;
    }
}

fn addr(id: u64) -> SocketAddr {
    SocketAddr::new(turmoil::lookup(World::host(id)), CONTROL_PORT)
}

fn reports(context: &LoopContext, down: &BTreeSet<NodeId>) -> Vec<StoreAction> {
    let state = context.store.view();
    let mut actions = Vec::new();
    for node in state.nodes() {
        let wanted = match down.contains(&node.id) {
            true => NodeState::Down,
            false => NodeState::Ready,
        };
        if node.status.state != wanted {
            actions.push(StoreAction::SetNodeStatus {
                node_id: node.id,
                status: NodeStatus {
                    state: wanted,
                    ..NodeStatus::default()
                },
                description: None,
            });
        }
    }
    for task in state.tasks().filter(|task| holds_node(task)) {
        let next = match task.desired > TaskState::Running {
            true => TaskState::Shutdown,
            false => TaskState::Running,
        };
        let silent = task.node_id.is_none_or(|id| down.contains(&id));
        if !silent && task.status.state != next {
            actions.push(StoreAction::SetTaskStatus {
                task_id: task.id,
                status: Box::new(TaskStatus {
                    state: next,
                    at: context.clock.now(),
                    ready: next == TaskState::Running,
                    ..task.status.clone()
                }),
            });
        }
    }
    actions
}

fn engine(number: u128) -> StoreAction {
    StoreAction::Create(Object::Node(Box::new(Node {
        id: NodeId::from_bits(number),
        meta: Meta::default(),
        spec: NodeSpec::default(),
        description: Some(NodeDescription {
            hostname: format!("engine{number}"),
            os: "linux".to_owned(),
            architecture: "amd64".to_owned(),
            resources: Resources {
                nano_cpus: 8_000_000_000,
                memory_bytes: 1 << 34,
            },
            ..NodeDescription::default()
        }),
        status: NodeStatus::default(),
        role: NodeRole::Worker,
        manager: None,
        public_key_digest: [0; 32],
        hold_until: None,
    })))
}

fn service(number: u128) -> Service {
    Service {
        id: ServiceId::from_bits(number),
        meta: Meta::default(),
        spec: ServiceSpec {
            name: format!("service{number}"),
            mode: ServiceMode::Replicated {
                replicas: 1 + u64::try_from(number % 4).unwrap_or(0),
            },
            ..ServiceSpec::default()
        },
        previous_spec: None,
        spec_version: 1,
        update_status: None,
        pending_delete: false,
    }
}
