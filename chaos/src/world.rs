//! What outlives a crash, and what is known of the cluster from outside.

use crate::{FakeEngine, FakeOverlay, MemoryDisk, RecordDisk, Register, SimulatedClock, Trace};
use shoal_manager::consensus::Leadership;
use shoal_manager::store::{State, Store};
use shoal_model::{ClusterId, NodeId, NodeRole, ServiceId};
use shoal_transport::PeerIdentity;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

/// Nodes 1 to this one are managers, too.
pub const MANAGERS: u64 = 3;

/// Nodes, each with an agent and an engine.
pub const NODES: u64 = 10;

/// Name of the host that the client runs on.
pub(crate) const CLIENT: &str = "client";

/// What one machine keeps.
#[derive(Debug, Clone)]
pub struct Machine {
    /// Disk of the manager.
    pub disk: MemoryDisk,
    /// Disk of the agent.
    pub record: RecordDisk,
    /// Disk of the agent for the state of the networks.
    pub network_record: RecordDisk,
    /// Clocks.
    pub clock: SimulatedClock,
    /// Containers.
    pub engine: FakeEngine,
    /// Networks.
    pub overlay: FakeOverlay,
    /// Tells the daemon to announce a restart and to end.
    pub restart: Arc<Notify>,
}

#[derive(Debug, Default)]
struct Known {
    starts: u64,
    founded: bool,
    paused: bool,
    /// Stores of running managers, each with the number of the start that made it.
    stores: BTreeMap<u64, (u64, Store)>,
    leaders: BTreeMap<u64, Leadership>,
    registers: BTreeMap<ServiceId, Register>,
}

/// Clones share it.
#[derive(Debug, Clone)]
pub struct World {
    seed: u64,
    trace: Trace,
    machines: Arc<BTreeMap<u64, Machine>>,
    known: Arc<Mutex<Known>>,
}

/// The identity of a node's certificate.
pub(crate) fn identity_of(number: u64) -> PeerIdentity {
    PeerIdentity {
        node_id: node_id(number),
        role: match number <= MANAGERS {
            true => NodeRole::Manager,
            false => NodeRole::Worker,
        },
        cluster_id: ClusterId::from_bits(1),
        public_key_digest: digest(number),
    }
}

/// The client asks as the API of a manager's node does.
pub(crate) fn client_identity() -> PeerIdentity {
    identity_of(1)
}

/// The id of a node.
pub(crate) fn node_id(number: u64) -> NodeId {
    NodeId::from_bits(u128::from(number))
}

/// The digest of a node's key.
pub(crate) fn digest(number: u64) -> [u8; 32] {
    [u8::try_from(number).unwrap_or(u8::MAX); 32]
}

/// Name of a node's host.
pub(crate) fn host(number: u64) -> String {
    format!("node{number}")
}

impl World {
    /// A world in which everything follows from `seed`.
    pub fn new(seed: u64, trace: Trace) -> Self {
        let machine = |number: u64| Machine {
            disk: MemoryDisk::default(),
            record: RecordDisk::default(),
            network_record: RecordDisk::default(),
            clock: SimulatedClock::default(),
            engine: FakeEngine::new(number, seed ^ (number << 32), trace.clone()),
            overlay: FakeOverlay::new(seed ^ (number << 48)),
            restart: Arc::default(),
        };
        Self {
            seed,
            machines: Arc::new(
                (1..=NODES)
                    .map(|number| (number, machine(number)))
                    .collect(),
            ),
            trace,
            known: Arc::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What happened so far.
    pub fn trace(&self) -> &Trace {
        &self.trace
    }

    /// A machine.
    pub fn machine(&self, number: u64) -> &Machine {
        &self.machines[&number]
    }

    /// All machines by number.
    pub fn machines(&self) -> impl Iterator<Item = (u64, &Machine)> {
        self.machines
            .iter()
            .map(|(number, machine)| (*number, machine))
    }

    /// A seed of its own for every start of anything.
    pub(crate) fn fresh_seed(&self) -> u64 {
        let mut known = self.lock();
        known.starts += 1;
        self.seed.wrapping_mul(1_000_003).wrapping_add(known.starts)
    }

    /// Whether the cluster was founded.
    pub(crate) fn is_founded(&self) -> bool {
        self.lock().founded
    }

    pub(crate) fn set_founded(&self) {
        self.lock().founded = true;
    }

    /// The client writes no more.
    pub fn pause_client(&self) {
        self.lock().paused = true;
    }

    pub(crate) fn is_client_paused(&self) -> bool {
        self.lock().paused
    }

    pub(crate) fn set_store(&self, number: u64, store: Store) {
        let mut known = self.lock();
        known.starts += 1;
        let start = known.starts;
        known.stores.insert(number, (start, store));
    }

    /// A manager's process is gone.
    pub fn forget_manager(&self, number: u64) {
        let mut known = self.lock();
        known.stores.remove(&number);
        known.leaders.remove(&number);
    }

    pub(crate) fn set_leadership(&self, number: u64, leadership: Leadership) {
        self.trace
            .note(format_args!("node{number} is {leadership:?}"));
        self.lock().leaders.insert(number, leadership);
    }

    /// What a running manager's store holds now.
    pub fn state(&self, number: u64) -> Option<Arc<State>> {
        self.store(number).map(|(_, state)| state)
    }

    /// The same, with a number that changes when the manager is started again.
    pub fn store(&self, number: u64) -> Option<(u64, Arc<State>)> {
        let known = self.lock();
        let (start, store) = known.stores.get(&number)?;
        Some((*start, store.view()))
    }

    /// The manager that believes to lead in the highest term.
    pub fn leader(&self) -> Option<u64> {
        let known = self.lock();
        let leading = known.leaders.iter().filter_map(|(number, now)| match now {
            Leadership::Leader { term } => Some((*term, *number)),
            Leadership::Follower { .. } | Leadership::Stopped { .. } => None,
        });
        leading.max().map(|(_, number)| number)
    }

    /// The newest state of all running managers.
    pub fn newest(&self) -> Option<Arc<State>> {
        let states = (1..=MANAGERS).filter_map(|number| self.state(number));
        states.max_by_key(|state| state.version())
    }

    /// What the client knows of each service.
    pub fn registers(&self) -> BTreeMap<ServiceId, Register> {
        self.lock().registers.clone()
    }

    pub(crate) fn with_registers<T>(
        &self,
        act: impl FnOnce(&mut BTreeMap<ServiceId, Register>) -> T,
    ) -> T {
        act(&mut self.lock().registers)
    }
}
