//! One manager: Raft, store, control API, certificate authority, loops and dispatcher, wired together.
//!
//! [`Manager::start`] founds a cluster, takes a place in one, or goes on where the last process stopped. The daemon
//! hands every stream of the control port to the [`ManagerHandle`]. Loops run while this manager leads and end, joined,
//! when it does not.

mod bootstrap;
mod handler;
mod member;
mod place;
mod system;
#[cfg(test)]
mod tests;

pub use bootstrap::{Founding, FoundingError, FoundingRequest, found};
pub use member::{RecordError, forget};
pub use place::JoinPlaceError;
pub use system::{RandomIds, SystemClock};

use crate::ca_server::CaServer;
use crate::consensus::{Consensus, IdSource, Leadership, ProposeError, WallClock};
use crate::control::{ControlApi, Core};
use crate::dispatcher::{Dispatcher, DispatcherContext};
use crate::loops::{self, LoopContext};
use crate::netfeed::NetFeeds;
use crate::raft::{
    Disk, KeyError, Placement, RaftHandle, RaftKey, RaftOptions, StartError, Timing,
};
use crate::role_manager::RoleManager;
use crate::store::Store;
use member::MemberRecord;
use shoal_model::command::StoreAction;
use shoal_model::control::{CertificateResponse, RenewRequest};
use shoal_model::rpc::RpcError;
use shoal_model::session::ManagerPeer;
use shoal_model::{ClusterSpec, NodeId, RaftNodeId};
use shoal_transport::Connector;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How long a shutdown waits for loops and sessions to end.
const SHUTDOWN_WAIT_MAX: Duration = Duration::from_secs(5);

/// What a manager is started with.
pub struct ManagerOptions {
    /// Own directory: log, snapshots, the record of the place in Raft.
    pub data_dir: PathBuf,
    /// File of the key that encrypts them.
    pub key_path: PathBuf,
    /// Own node.
    pub node_id: NodeId,
    /// Where others reach this node's control port.
    pub advertise: SocketAddr,
    /// How to begin.
    pub start: Start,
    /// Raft's times.
    pub timing: Timing,
    /// Where Raft runs.
    pub placement: Placement,
    /// Seam: streams to other nodes.
    pub connector: Arc<dyn Connector>,
    /// Seam: files.
    pub disk: Arc<dyn Disk>,
    /// Seam: wall-clock time.
    pub clock: Arc<dyn WallClock>,
    /// Seam: ids and secrets.
    pub ids: Arc<dyn IdSource>,
    /// Seam: decides election timeouts.
    pub seed: u64,
}

/// How a manager begins.
#[derive(Debug)]
pub enum Start {
    /// The first manager of a new cluster, with the entries of [`Founding::first`].
    Found(Vec<Vec<StoreAction>>),
    /// A manager of a cluster that is there: with the place that it has from before, else with one that it asks these
    /// managers for.
    Join(Vec<ManagerPeer>),
}

/// Why a manager did not start.
#[derive(Debug, thiserror::Error)]
pub enum ManagerError {
    /// The record of the place in Raft can't be used.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// There is a cluster in the directory already.
    #[error("`{path}` holds a manager of a cluster already: leave that cluster first")]
    Occupied {
        /// The directory.
        path: PathBuf,
    },
    /// The key of the log can't be used.
    #[error("failed to load the key of the Raft log")]
    Key(#[source] KeyError),
    /// Raft did not start.
    #[error("failed to start Raft")]
    Raft(#[source] StartError),
    /// The first entries could not be committed.
    #[error("failed to found the cluster")]
    Found(#[source] ProposeError),
    /// No manager gave this node a place.
    #[error("failed to get a place among the managers")]
    Place(#[from] JoinPlaceError),
}

/// Starts managers.
#[derive(Debug)]
pub struct Manager;

impl Manager {
    /// Starts a manager. Returns as soon as it serves; it may not know a leader yet.
    ///
    /// # Errors
    /// See [`ManagerError`]; nothing runs then.
    pub async fn start(options: ManagerOptions) -> Result<ManagerHandle, ManagerError> {
        let record = MemberRecord::load(&*options.disk, &options.data_dir)?;
        let raft_id = match (&options.start, record) {
            (Start::Found(_), Some(_)) => {
                return Err(ManagerError::Occupied {
                    path: options.data_dir,
                });
            }
            (Start::Found(_), None) => {
                // What an interrupted attempt has left is no cluster.
                forget(&*options.disk, &options.data_dir)?;
                bootstrap::FIRST_RAFT_ID
            }
            (Start::Join(_), Some(record)) => record.raft_id,
            (Start::Join(managers), None) => {
                let raft_id = place::ask(
                    &*options.connector,
                    managers,
                    options.advertise,
                    place::PLACE_WAIT_MAX,
                )
                .await?;
                MemberRecord { raft_id }.save(&*options.disk, &options.data_dir)?;
                raft_id
            }
        };
        let store = Store::new();
        let raft = start_raft(&options, raft_id, &store).await?;
        if let Start::Found(first) = options.start {
            if let Err(err) = raft.bootstrap(first).await {
                raft.shutdown().await;
                return Err(ManagerError::Found(err));
            }
            // The record is written last: what crashes before it has founded nothing.
            MemberRecord { raft_id }.save(&*options.disk, &options.data_dir)?;
        }
        let core = Core {
            store,
            consensus: Arc::new(raft.clone()),
            clock: options.clock,
            ids: options.ids,
            netfeeds: NetFeeds::new(),
        };
        let handle = ManagerHandle::new(
            raft,
            raft_id,
            core,
            options.connector,
            (options.node_id, options.advertise),
        );
        handle.spawn_loops();
        Ok(handle)
    }
}

async fn start_raft(
    options: &ManagerOptions,
    raft_id: RaftNodeId,
    store: &Store,
) -> Result<RaftHandle, ManagerError> {
    let key =
        RaftKey::load_or_create(&*options.disk, &options.key_path).map_err(ManagerError::Key)?;
    RaftHandle::start(RaftOptions {
        // Ids are never used twice: neither is a log.
        data_dir: options.data_dir.join(member::log_dir_name(raft_id)),
        raft_id,
        node_id: options.node_id,
        advertise: options.advertise,
        key,
        timing: options.timing,
        snapshot_interval_entries: ClusterSpec::default().snapshot_interval_entries,
        connector: Arc::clone(&options.connector),
        disk: Arc::clone(&options.disk),
        store: store.clone(),
        clock: Arc::clone(&options.clock),
        seed: options.seed,
        placement: options.placement.clone(),
    })
    .await
    .map_err(ManagerError::Raft)
}

/// A running manager. Clones are the same one.
#[derive(Clone)]
pub struct ManagerHandle {
    parts: Arc<Parts>,
}

struct Parts {
    raft: RaftHandle,
    raft_id: RaftNodeId,
    core: Core,
    control: ControlApi,
    ca: CaServer,
    roles: RoleManager,
    dispatcher: Dispatcher,
    connector: Arc<dyn Connector>,
    node_id: NodeId,
    advertise: SocketAddr,
    cancel: CancellationToken,
    tasks: TaskTracker,
}

impl std::fmt::Debug for ManagerHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ManagerHandle")
            .field("node_id", &self.parts.node_id)
            .finish_non_exhaustive()
    }
}

impl ManagerHandle {
    fn new(
        raft: RaftHandle,
        raft_id: RaftNodeId,
        core: Core,
        connector: Arc<dyn Connector>,
        (node_id, advertise): (NodeId, SocketAddr),
    ) -> Self {
        let cancel = CancellationToken::new();
        let control = ControlApi::new(
            core.store.clone(),
            Arc::clone(&core.consensus),
            Arc::clone(&core.clock),
            Arc::clone(&core.ids),
            Arc::clone(&connector),
            core.netfeeds.clone(),
        );
        let dispatcher = Dispatcher::new(DispatcherContext {
            store: core.store.clone(),
            consensus: Arc::clone(&core.consensus),
            clock: Arc::clone(&core.clock),
            ids: Arc::clone(&core.ids),
            netfeeds: core.netfeeds.clone(),
            cancel: cancel.clone(),
        });
        Self {
            parts: Arc::new(Parts {
                raft,
                raft_id,
                control,
                dispatcher,
                ca: CaServer::new(core.clone(), Arc::clone(&connector)),
                roles: RoleManager::new(core.clone(), node_id),
                core,
                connector,
                node_id,
                advertise,
                cancel,
                tasks: TaskTracker::new(),
            }),
        }
    }

    /// The control API, for callers in this process.
    pub fn control(&self) -> &ControlApi {
        &self.parts.control
    }

    /// The store of this manager.
    pub fn store(&self) -> &Store {
        &self.parts.core.store
    }

    /// Raft, for leadership and members.
    pub fn consensus(&self) -> &Arc<dyn Consensus> {
        &self.parts.core.consensus
    }

    /// Waits until this manager has stopped because its disk is full, and says so. It can be started again: what it
    /// could not write it has not acknowledged, and it finds what it wrote. After any other failure of the disk nothing
    /// is known about what is on it, and a manager stays stopped.
    pub async fn stopped_without_room(&self) -> String {
        let mut leadership = self.parts.core.consensus.leadership();
        let stopped = leadership.wait_for(|now| matches!(now, Leadership::Stopped { .. }));
        let reason = stopped.await.ok().and_then(|now| match &*now {
            Leadership::Stopped { reason } => Some(reason.clone()),
            Leadership::Leader { .. } | Leadership::Follower { .. } => None,
        });
        match reason {
            Some(reason) if self.parts.raft.stopped_without_room() => reason,
            _ => std::future::pending().await,
        }
    }

    /// The other managers, as the store knows them.
    pub fn managers(&self) -> Vec<ManagerPeer> {
        crate::ca_server::manager_peers(&self.store().view())
    }

    /// A new certificate for this manager out of its own store: for when its old one has expired and no manager can be
    /// asked for another one.
    ///
    /// # Errors
    /// The store does not know the key as a manager's, or holds no cluster yet.
    pub fn renew_own(&self, request: &RenewRequest) -> Result<CertificateResponse, RpcError> {
        let renewed = self.parts.ca.renew_own(request);
        renewed.map_err(|failure| failure.error)
    }

    /// Hands leadership over if this manager leads, ends every loop and session, and closes the log.
    pub async fn shutdown(&self) {
        let parts = &self.parts;
        parts.cancel.cancel();
        parts.tasks.close();
        if tokio::time::timeout(SHUTDOWN_WAIT_MAX, parts.tasks.wait())
            .await
            .is_err()
        {
            tracing::warn!("manager loops did not end in time");
        }
        parts.raft.shutdown().await;
    }

    fn spawn_loops(&self) {
        let parts = &self.parts;
        let context = LoopContext {
            store: parts.core.store.clone(),
            consensus: Arc::clone(&parts.core.consensus),
            clock: Arc::clone(&parts.core.clock),
            ids: Arc::clone(&parts.core.ids),
            netfeeds: parts.core.netfeeds.clone(),
            cancel: parts.cancel.clone(),
        };
        parts.tasks.spawn(loops::run_while_leading(context));
        let dispatcher = parts.dispatcher.clone();
        parts.tasks.spawn(async move { dispatcher.run().await });
        let roles = parts.roles.clone();
        let cancel = parts.cancel.clone();
        parts.tasks.spawn(async move { roles.run(cancel).await });
        // The tasks hold the parts, and end when the parts are told to.
        let handle = self.clone();
        parts
            .tasks
            .spawn(async move { handle.follow_settings().await });
        let handle = self.clone();
        parts.tasks.spawn(async move { handle.announce().await });
    }

    /// Keeps Raft's snapshot interval at what the cluster's settings say.
    async fn follow_settings(&self) {
        let mut watcher = self.store().watch();
        loop {
            if let Some(cluster) = self.store().view().cluster() {
                let entries = cluster.spec.snapshot_interval_entries;
                self.parts.raft.set_snapshot_interval(entries);
            }
            tokio::select! {
                item = watcher.next() => if item.is_none() { return },
                () = self.parts.cancel.cancelled() => return,
            }
        }
    }
}
