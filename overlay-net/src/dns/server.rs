//! The resolver of this node's containers.

use super::message::{self, Outcome, Reply, Transport};
use super::options::DnsOptions;
use super::sockets;
use super::table::DnsUpdate;
use super::upstream::{HostResolvers, Upstreams};
use super::zone::Zone;
use super::{tcp, udp};
use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};
use shoal_model::{ContainerId, NetworkId};
use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// What a server needs to know of its host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DnsServerOptions {
    /// The host's resolver settings: /etc/resolv.conf. Read again when it changes.
    pub host_resolv_conf: PathBuf,
}

/// A container that gets a resolver.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsContainer {
    /// The container.
    pub id: ContainerId,
    /// Where its network namespace is pinned.
    pub netns: PathBuf,
    /// Its networks in the order in which names are looked up.
    pub networks: Vec<NetworkId>,
    /// Its resolver settings.
    pub options: DnsOptions,
}

/// Why a container has no resolver.
#[derive(Debug, thiserror::Error)]
pub enum DnsError {
    /// Its namespace can't be entered, or has no room for sockets.
    #[error(
        "failed to open the resolver of container `{container}` in network namespace `{netns}`"
    )]
    Open {
        /// The container.
        container: ContainerId,
        /// Its namespace.
        netns: PathBuf,
        /// The kernel's answer.
        #[source]
        err: io::Error,
    },
}

/// Questions by what became of them, since the server started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DnsCounters {
    /// Answered with addresses or a name.
    pub answered: u64,
    /// The name exists, but has no address of the wanted family.
    pub empty: u64,
    /// An address of ours that nobody has.
    pub unknown: u64,
    /// Asked outside, and answered from there.
    pub forwarded: u64,
    /// Asked outside, and nobody answered; or too many questions were open.
    pub failed: u64,
    /// Not for a container in internal networks only, or a kind of question that is not answered.
    pub refused: u64,
    /// Not understood; no answer was given.
    pub malformed: u64,
}

/// Questions of one container that may wait for servers outside at a time.
const FORWARDS_PER_CONTAINER_MAX: usize = 100;
/// Questions of all containers that may wait for servers outside at a time: each has a socket.
const FORWARDS_MAX: usize = 2_000;

/// What all containers' resolvers share.
#[derive(Debug)]
pub(super) struct Core {
    zone: RwLock<Zone>,
    host: HostResolvers,
    forwards: Semaphore,
    counts: Counts,
}

#[derive(Debug, Default)]
struct Counts {
    answered: AtomicU64,
    empty: AtomicU64,
    unknown: AtomicU64,
    forwarded: AtomicU64,
    failed: AtomicU64,
    refused: AtomicU64,
    malformed: AtomicU64,
}

/// One container that is served.
#[derive(Debug)]
pub(super) struct Served {
    pub(super) id: ContainerId,
    view: RwLock<Arc<View>>,
    forwards: Semaphore,
}

/// What may change while a container is served.
#[derive(Debug)]
struct View {
    container: DnsContainer,
    /// `None`: the host's.
    upstreams: Option<Upstreams>,
}

impl View {
    fn new(container: DnsContainer) -> Arc<Self> {
        let nameservers = &container.options.nameservers;
        let upstreams = Upstreams::of_container(nameservers, &container.netns);
        Arc::new(Self {
            container,
            upstreams,
        })
    }
}

impl Served {
    fn view(&self) -> Arc<View> {
        Arc::clone(&self.view.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Core {
    /// Decides about a packet, and counts the decision.
    pub(super) fn reply_to(&self, served: &Served, packet: &[u8], transport: Transport) -> Reply {
        let view = served.view();
        let zone = self.zone.read().unwrap_or_else(PoisonError::into_inner);
        let networks = &view.container.networks;
        let reply = message::reply_to(&zone, networks, packet, transport, &mut |addresses| {
            addresses.shuffle(&mut rand::rng());
        });
        let counter = match &reply {
            Reply::Answer(_, Outcome::Answered) => &self.counts.answered,
            Reply::Answer(_, Outcome::Empty) => &self.counts.empty,
            Reply::Answer(_, Outcome::Unknown) => &self.counts.unknown,
            Reply::Answer(_, Outcome::Refused) => &self.counts.refused,
            Reply::Nothing => &self.counts.malformed,
            Reply::Forward { .. } => return reply,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        reply
    }

    /// Asks servers outside; answers `failure` when none answers, or too many questions wait already. That bound also
    /// ends a circle of servers that ask each other.
    pub(super) async fn ask_outside(
        &self,
        served: &Served,
        question: &[u8],
        transport: Transport,
        failure: Vec<u8>,
    ) -> Vec<u8> {
        let permits = (served.forwards.try_acquire(), self.forwards.try_acquire());
        let answer = match permits {
            (Ok(_own), Ok(_all)) => {
                let view = served.view();
                match &view.upstreams {
                    Some(upstreams) => upstreams.ask(question, transport).await,
                    None => self.host.current().ask(question, transport).await,
                }
            }
            _ => None,
        };
        let counter = match answer {
            Some(_) => &self.counts.forwarded,
            None => &self.counts.failed,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        answer.unwrap_or(failure)
    }
}

/// A container's resolver at work; it ends when this is dropped.
#[derive(Debug)]
struct Running {
    served: Arc<Served>,
    /// Which namespace its sockets are in.
    namespace: (u64, u64),
    /// The loops at its two sockets. Dropping the set ends them.
    _loops: JoinSet<()>,
}

/// The place of one container: changes of it come one after the other.
type Slot = Arc<tokio::sync::Mutex<Option<Running>>>;

/// A running server. Cheap to clone.
#[derive(Debug, Clone)]
pub struct DnsServer {
    core: Arc<Core>,
    slots: Arc<Mutex<BTreeMap<ContainerId, Slot>>>,
}

impl DnsServer {
    /// A server without names and containers. Must be called within a tokio runtime.
    pub fn start(options: DnsServerOptions) -> Self {
        let core = Core {
            zone: RwLock::default(),
            host: HostResolvers::new(options.host_resolv_conf),
            forwards: Semaphore::new(FORWARDS_MAX),
            counts: Counts::default(),
        };
        Self {
            core: Arc::new(core),
            slots: Arc::default(),
        }
    }

    /// Changes what is answered, at once and as a whole.
    pub fn set_table(&self, update: DnsUpdate) {
        let mut zone = self
            .core
            .zone
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        zone.apply(update);
    }

    /// Gives a container its resolver, or changes networks and settings of the one that it has.
    ///
    /// # Errors
    /// When the namespace does not take it; the container has no resolver then.
    pub async fn open_container(&self, container: DnsContainer) -> Result<(), DnsError> {
        let slot = Arc::clone(self.slots().entry(container.id).or_default());
        let mut slot = slot.lock().await;
        let (id, netns) = (container.id, container.netns.clone());
        let opened = self.open(&mut slot, container).await;
        opened.map_err(|err| {
            *slot = None;
            DnsError::Open {
                container: id,
                netns,
                err,
            }
        })
    }

    async fn open(&self, slot: &mut Option<Running>, container: DnsContainer) -> io::Result<()> {
        let namespace = sockets::identity(&container.netns)?;
        if let Some(running) = slot
            && running.namespace == namespace
        {
            let mut view = running
                .served
                .view
                .write()
                .unwrap_or_else(PoisonError::into_inner);
            if view.container != container {
                *view = View::new(container);
            }
            return Ok(());
        }
        let (udp, tcp) = sockets::listen(container.netns.clone()).await?;
        let served = Arc::new(Served {
            id: container.id,
            view: RwLock::new(View::new(container)),
            forwards: Semaphore::new(FORWARDS_PER_CONTAINER_MAX),
        });
        let mut loops = JoinSet::new();
        loops.spawn(udp::serve(Arc::clone(&self.core), Arc::clone(&served), udp));
        loops.spawn(tcp::serve(Arc::clone(&self.core), Arc::clone(&served), tcp));
        *slot = Some(Running {
            served,
            namespace,
            _loops: loops,
        });
        Ok(())
    }

    /// Takes a container's resolver away; harmless if it has none. The rules in its namespace stay: they end with it.
    pub async fn close_container(&self, id: ContainerId) {
        let slot = self.slots().remove(&id);
        if let Some(slot) = slot {
            *slot.lock().await = None;
        }
    }

    /// The containers that have a resolver.
    pub async fn containers(&self) -> Vec<DnsContainer> {
        let slots: Vec<_> = self.slots().values().map(Arc::clone).collect();
        let mut containers = Vec::with_capacity(slots.len());
        for slot in slots {
            if let Some(running) = &*slot.lock().await {
                containers.push(running.served.view().container.clone());
            }
        }
        containers
    }

    /// What became of the questions so far.
    pub fn counters(&self) -> DnsCounters {
        let counts = &self.core.counts;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        DnsCounters {
            answered: read(&counts.answered),
            empty: read(&counts.empty),
            unknown: read(&counts.unknown),
            forwarded: read(&counts.forwarded),
            failed: read(&counts.failed),
            refused: read(&counts.refused),
            malformed: read(&counts.malformed),
        }
    }

    fn slots(&self) -> MutexGuard<'_, BTreeMap<ContainerId, Slot>> {
        // Each change of the map is one insertion or removal, so that it is whole even if a holder panicked.
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
