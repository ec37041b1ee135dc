//! Starting and steering the agent.

use crate::disk::{AgentDisk, AgentRecord, DiskError};
use crate::lease::Lease;
use crate::netfeed::{self, FeedLoop};
use crate::network::AgentNetwork;
use crate::reports::Reports;
use crate::runtime::{RuntimeError, TaskRuntime};
use crate::session::SessionLoop;
use crate::task::Shared;
use crate::tasks::Tasks;
use shoal_model::node::NodeDescription;
use shoal_model::session::{ManagerPeer, NodeMessage};
use shoal_model::{NodeRole, TaskId, TaskStatus, Timestamp};
use shoal_transport::Connector;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, Semaphore, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Containers that are made or started at a time. More only make each other slower, and a heartbeat must find a CPU.
pub const STARTS_MAX: usize = 8;

/// Announcements that may wait for a session.
const ANNOUNCEMENTS_MAX: usize = 4;

/// How long an announcement may take: without a manager there is nobody to tell.
const ANNOUNCEMENT_TIMEOUT: Duration = Duration::from_secs(1);

/// The clocks that the agent needs beside tokio's. Simulation injects its own.
pub trait AgentClock: Send + Sync + 'static {
    /// The wall clock.
    fn now(&self) -> Timestamp;

    /// Nanoseconds of CLOCK_BOOTTIME.
    fn boottime_ns(&self) -> u64;
}

/// What the agent needs.
pub struct AgentOptions {
    /// The network.
    pub connector: Arc<dyn Connector>,
    /// Managers to try before any is known from disk: those that the join named, or this node itself.
    pub seeds: Vec<SocketAddr>,
    /// Where assignments are kept.
    pub disk: Arc<dyn AgentDisk>,
    /// The containers.
    pub runtime: Arc<dyn TaskRuntime>,
    /// The node's part in networks across hosts; `None`: it has none.
    pub network: Option<AgentNetwork>,
    /// Clocks.
    pub clock: Arc<dyn AgentClock>,
    /// Of the jitter.
    pub seed: u64,
    /// What this node says of itself.
    pub description: NodeDescription,
}

/// Why the agent could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The assignments on disk can't be read.
    #[error("failed to read the assignments of this node")]
    Disk(#[from] DiskError),
    /// The containers can't be listed.
    #[error("failed to find the containers of this node's tasks")]
    Runtime(#[from] RuntimeError),
}

/// Whether managers are reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionState {
    /// No session: the leader is being looked for.
    Searching,
    /// There is one.
    Open {
        /// With whom.
        addr: SocketAddr,
    },
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Announcement {
    Hold(Duration),
    Goodbye,
}

impl Announcement {
    pub(crate) fn message(self) -> NodeMessage {
        match self {
            Self::Hold(duration) => NodeMessage::Hold {
                duration_ms: u64::try_from(duration.as_millis()).unwrap_or(u64::MAX),
            },
            Self::Goodbye => NodeMessage::Goodbye,
        }
    }
}

/// Starts agents.
#[derive(Debug)]
pub struct Agent;

/// A running agent. Clones steer the same one.
#[derive(Clone)]
pub struct AgentHandle {
    tasks: Tasks,
    description: Arc<watch::Sender<NodeDescription>>,
    announcements: mpsc::Sender<(Announcement, oneshot::Sender<()>)>,
    role: watch::Receiver<Option<NodeRole>>,
    state: watch::Receiver<SessionState>,
    cancel: CancellationToken,
    tracker: TaskTracker,
}

impl std::fmt::Debug for AgentHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AgentHandle")
            .field("session", &*self.state.borrow())
            .finish_non_exhaustive()
    }
}

impl Agent {
    /// Goes on from what is on disk and what really runs, and looks for the leader.
    ///
    /// # Errors
    /// See [`StartError`].
    pub async fn start(options: AgentOptions) -> Result<AgentHandle, StartError> {
        let record = AgentRecord::load(&*options.disk).await?;
        if let Some(network) = &options.network {
            netfeed::restore(network).await;
        }
        let cancel = CancellationToken::new();
        let shared = Arc::new(Shared {
            runtime: options.runtime,
            clock: options.clock,
            lease: Lease::default(),
            reports: Reports::default(),
            starts: Semaphore::new(STARTS_MAX),
            dirty: Notify::new(),
        });
        let tasks = Tasks::new(shared, cancel.clone());
        tasks.resume(record).await?;
        let (description, described) = watch::channel(options.description);
        let (announcements, announced) = mpsc::channel(ANNOUNCEMENTS_MAX);
        let (role, wanted_role) = watch::channel(None);
        let (state, session_state) = watch::channel(SessionState::Searching);
        let tracker = TaskTracker::new();
        if let Some(network) = options.network {
            let shared = tasks.shared();
            let (lease, clock) = (shared.lease.clone(), Arc::clone(&shared.clock));
            let lease = netfeed::follow_lease(lease, clock, Arc::clone(&network.sink));
            let feed = FeedLoop {
                connector: Arc::clone(&options.connector),
                network,
                session: session_state.clone(),
            };
            let running = cancel.clone();
            tracker.spawn(async move { running.run_until_cancelled(lease).await });
            let running = cancel.clone();
            tracker.spawn(async move { running.run_until_cancelled(feed.run()).await });
        }
        let session = SessionLoop {
            connector: options.connector,
            tasks: tasks.clone(),
            seeds: options.seeds,
            description: described,
            announcements: announced,
            role,
            state,
            seed: options.seed,
        };
        let running = cancel.clone();
        tracker.spawn(async move { running.run_until_cancelled(session.run()).await });
        let keeper = tasks.clone();
        let disk = options.disk;
        tracker.spawn(async move { keeper.keep_on_disk(disk).await });
        Ok(AgentHandle {
            tasks,
            description: Arc::new(description),
            announcements,
            role: wanted_role,
            state: session_state,
            cancel,
            tracker,
        })
    }
}

impl AgentHandle {
    /// Tells the managers that this daemon restarts and is back within `duration`. False: nobody could be told.
    pub async fn announce_hold(&self, duration: Duration) -> bool {
        self.announce(Announcement::Hold(duration)).await
    }

    /// Tells the managers that this node goes away for now. False: nobody could be told.
    pub async fn say_goodbye(&self) -> bool {
        self.announce(Announcement::Goodbye).await
    }

    async fn announce(&self, announcement: Announcement) -> bool {
        let (done, told) = oneshot::channel();
        let tell = async {
            self.announcements.send((announcement, done)).await.is_ok() && told.await.is_ok()
        };
        tokio::time::timeout(ANNOUNCEMENT_TIMEOUT, tell)
            .await
            .unwrap_or(false)
    }

    /// Tells the managers what this node is now.
    pub fn describe(&self, description: NodeDescription) {
        self.description.send_replace(description);
    }

    /// The role that the managers want this node to have; `None` until they say.
    pub fn wanted_role(&self) -> watch::Receiver<Option<NodeRole>> {
        self.role.clone()
    }

    /// Whether managers are reached.
    pub fn session_state(&self) -> watch::Receiver<SessionState> {
        self.state.clone()
    }

    /// The managers, the last leader first.
    pub fn managers(&self) -> Vec<ManagerPeer> {
        self.tasks.managers()
    }

    /// The tasks that this node knows of, with what it has observed.
    pub fn statuses(&self) -> Vec<(TaskId, TaskStatus)> {
        let reports = &self.tasks.shared().reports;
        let ids = self.tasks.ids().into_iter();
        ids.filter_map(|id| reports.get(id).map(|status| (id, status)))
            .collect()
    }

    /// Until when tasks that must stop on a partition may run, in nanoseconds of CLOCK_BOOTTIME.
    pub fn lease_deadline(&self) -> Option<u64> {
        self.tasks.shared().lease.deadline()
    }

    /// Ends the agent. The containers live on, and the next agent finds them.
    pub async fn shutdown(&self) {
        self.cancel.cancel();
        self.tasks.ended().await;
        self.tracker.close();
        self.tracker.wait().await;
    }
}
