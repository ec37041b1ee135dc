//! A node that is part of a cluster: its ports, its agent, its manager while it has that role.

use super::chain;
use super::handler::{ControlHandler, ManagerSlot};
use super::overlay::{Addresses, OverlaySettings, Sink};
use super::record::NodeRecord;
use super::task_logs::LogsHandler;
use arc_swap::ArcSwapOption;
use shoal_agent::engine::{EngineRuntime, TASK_ID_LABEL};
use shoal_agent::{Agent, AgentClock, AgentHandle, AgentNetwork, AgentOptions, FileDisk};
use shoal_engine::{EngineHandle, ListFilter, RemoveOptions};
use shoal_manager::manager::{ManagerError, RandomIds, SystemClock, forget};
use shoal_manager::raft::{Placement, RaftRuntime, RealDisk, Timing};
use shoal_manager::{Manager, ManagerHandle, ManagerOptions, Start};
use shoal_model::control::RenewRequest;
use shoal_model::node::NodeDescription;
use shoal_model::rpc::{ErrorCode, RpcError};
use shoal_model::session::ManagerPeer;
use shoal_model::{NodeId, NodeRole};
use shoal_overlay_net::OverlayHandle;
use shoal_transport::endpoint::BindError;
use shoal_transport::files::IdentityFiles;
use shoal_transport::identity::IdentityError;
use shoal_transport::join::JoinError;
use shoal_transport::renewal::{self, RenewalContext, RenewalHandle};
use shoal_transport::{CallError, Endpoint, EndpointOptions, Identity, IdentityHandle, NodeKey};
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Longest time for one manager to answer a request for a certificate.
const RENEW_DEADLINE: Duration = Duration::from_secs(5);
/// How long a planned restart of the daemon may take before its tasks are replaced.
const PLANNED_RESTART_HOLD: Duration = Duration::from_secs(60);
/// Wait before a manager that did not start is tried again; it doubles with each failure.
const MANAGER_RETRY_MIN: Duration = Duration::from_secs(1);
/// Longest such wait.
const MANAGER_RETRY_MAX: Duration = Duration::from_secs(10);

/// Why the ports of a node could not be opened, or a part did not start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum JoinedError {
    #[error("failed to open the {port} port {addr}")]
    Port {
        port: &'static str,
        addr: SocketAddr,
        #[source]
        err: BindError,
    },
    #[error("failed to start the thread of the control port")]
    Thread(#[source] shoal_manager::raft::StartError),
    #[error("failed to start the thread of the bulk port")]
    BulkThread(#[source] std::io::Error),
    #[error("failed to start the manager")]
    Manager(#[source] Box<ManagerError>),
    #[error("failed to start the agent")]
    Agent(#[source] shoal_agent::agent::StartError),
}

impl From<ManagerError> for JoinedError {
    fn from(err: ManagerError) -> Self {
        Self::Manager(Box::new(err))
    }
}

/// One thread for the bulk port.
struct BulkRuntime {
    handle: tokio::runtime::Handle,
    runtime: Mutex<Option<tokio::runtime::Runtime>>,
}

impl BulkRuntime {
    fn start() -> std::io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("shoal-bulk")
            .enable_all()
            .build()?;
        Ok(Self {
            handle: runtime.handle().clone(),
            runtime: Mutex::new(Some(runtime)),
        })
    }

    fn stop(&self) {
        let runtime = self
            .runtime
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(runtime) = runtime {
            runtime.shutdown_background();
        }
    }
}

impl Drop for BulkRuntime {
    fn drop(&mut self) {
        // A runtime must not be dropped where others wait for their turn: it would wait for its threads.
        self.stop();
    }
}

/// The sockets of a node and the identity that they show.
pub(crate) struct Ports {
    pub(crate) identity: IdentityHandle,
    /// Raft, sessions, calls; on the real-time thread.
    pub(crate) control: Endpoint,
    /// Blobs, logs; on a thread of its own.
    pub(crate) bulk: Endpoint,
    /// For calls to others that are not Raft's: its connections live on the ordinary runtime.
    pub(crate) calls: Endpoint,
    thread: RaftRuntime,
    bulk_thread: BulkRuntime,
}

impl Ports {
    /// Binds the control port at `listen` and the bulk port one above it.
    pub(crate) fn open(
        listen: SocketAddr,
        key: &NodeKey,
        identity: Option<Identity>,
    ) -> Result<Self, JoinedError> {
        let identity = IdentityHandle::new(identity);
        let thread = RaftRuntime::start().map_err(JoinedError::Thread)?;
        let bulk_thread = BulkRuntime::start().map_err(JoinedError::BulkThread)?;
        let secret = |label| Some(key.derive_secret(label));
        let bind = |port: &'static str, addr: SocketAddr, options: EndpointOptions| {
            Endpoint::bind(addr, identity.clone(), options).map_err(|err| JoinedError::Port {
                port,
                addr,
                err,
            })
        };
        let control = {
            let _entered = thread.handle().enter();
            let reset_secret = secret("stateless reset, control");
            bind(
                "control",
                listen,
                EndpointOptions {
                    reset_secret,
                    ..EndpointOptions::control()
                },
            )?
        };
        let bulk = {
            let _entered = bulk_thread.handle.enter();
            let addr = SocketAddr::new(listen.ip(), listen.port().saturating_add(1));
            let reset_secret = secret("stateless reset, bulk");
            bind(
                "bulk",
                addr,
                EndpointOptions {
                    reset_secret,
                    ..EndpointOptions::bulk()
                },
            )?
        };
        let any = match listen {
            SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
            SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
        };
        let calls = bind("outgoing", any, EndpointOptions::control())?;
        Ok(Self {
            identity,
            control,
            bulk,
            calls,
            thread,
            bulk_thread,
        })
    }

    pub(crate) async fn close(&self) {
        tokio::join!(
            self.control.shutdown(),
            self.bulk.shutdown(),
            self.calls.shutdown()
        );
        self.bulk_thread.stop();
        let thread = self.thread.clone();
        let stopped = tokio::task::spawn_blocking(move || thread.stop());
        if stopped.await.is_err() {
            tracing::warn!("the thread of the control port did not end well");
        }
    }
}

/// What a node is started with.
pub(crate) struct JoinedOptions {
    pub(crate) data_root: PathBuf,
    pub(crate) record: NodeRecord,
    pub(crate) description: NodeDescription,
    pub(crate) files: IdentityFiles,
    pub(crate) engine: EngineHandle,
    pub(crate) overlay: OverlaySettings,
}

/// How a node comes to be part of its cluster.
pub(crate) enum Entry {
    /// It founds or joins it: what fails, fails the whole.
    New(Start),
    /// It was part of it before. It stays a node that runs its tasks when its manager does not start.
    Back(Vec<ManagerPeer>),
}

/// Why the manager that should run here does not.
pub(crate) type Trouble = Arc<ArcSwapOption<String>>;

/// A running node.
pub(crate) struct Joined {
    pub(crate) node_id: NodeId,
    pub(crate) ports: Arc<Ports>,
    pub(crate) manager: ManagerSlot,
    pub(crate) trouble: Trouble,
    pub(crate) agent: AgentHandle,
    pub(crate) advertise: SocketAddr,
    data_root: PathBuf,
    engine: EngineHandle,
    overlay: Option<OverlayHandle>,
    cancel: CancellationToken,
    tasks: TaskTracker,
}

impl Joined {
    /// Starts manager (if that is the role) and agent. `entry` says how a manager begins.
    pub(crate) async fn start(
        mut options: JoinedOptions,
        ports: Ports,
        identity: Identity,
        entry: Entry,
    ) -> Result<Self, JoinedError> {
        let ports = Arc::new(ports);
        let manager = ManagerSlot::new(ArcSwapOption::empty());
        let node_id = identity.node_id();
        let advertise = options.record.advertise;
        serve(&ports, &manager, &options.engine);
        let trouble = Trouble::default();
        if identity.role() == NodeRole::Manager {
            let (start, must_start) = match entry {
                Entry::New(start) => (start, true),
                Entry::Back(managers) => (Start::Join(managers), false),
            };
            match start_manager(&options.data_root, node_id, advertise, &ports, start).await {
                Ok(handle) => manager.store(Some(Arc::new(handle))),
                Err(err) if must_start => return Err(err.into()),
                // `follow_own_role` tries again and tells.
                Err(err) => trouble.store(Some(Arc::new(manager_trouble(&err)))),
            }
        }
        let addresses = Arc::new(Addresses::new(Arc::clone(&ports)));
        let settings = options.overlay.clone();
        let overlay = settings
            .start(
                node_id,
                advertise.ip(),
                &options.engine,
                Arc::clone(&addresses),
            )
            .await;
        settings
            .describe(&mut options.description, overlay.as_ref())
            .await;
        let agent_root = options.data_root.join("agent");
        let agent = Agent::start(AgentOptions {
            connector: Arc::new(ports.calls.clone()),
            seeds: options
                .record
                .managers
                .iter()
                .map(|peer| peer.addr)
                .collect(),
            disk: Arc::new(FileDisk::new(&agent_root)),
            runtime: Arc::new(EngineRuntime::new(options.engine.clone())),
            network: overlay.clone().map(|overlay| AgentNetwork {
                sink: Arc::new(Sink(overlay)),
                disk: Arc::new(FileDisk::hasty(&agent_root, "network")),
            }),
            clock: Arc::new(NodeClock),
            seed: rand::random(),
            description: options.description.clone(),
        })
        .await
        .map_err(JoinedError::Agent)?;
        addresses.set_agent(agent.clone());
        let joined = Self {
            node_id,
            ports,
            manager,
            trouble,
            agent,
            advertise,
            data_root: options.data_root.clone(),
            engine: options.engine.clone(),
            overlay,
            cancel: CancellationToken::new(),
            tasks: TaskTracker::new(),
        };
        joined.spawn_loops(options);
        Ok(joined)
    }

    fn spawn_loops(&self, options: JoinedOptions) {
        let renewal = RenewalHandle::new();
        let spawn = |work: std::pin::Pin<Box<dyn Future<Output = ()> + Send>>| {
            let cancel = self.cancel.clone();
            self.tasks.spawn(async move {
                cancel.run_until_cancelled(work).await;
            });
        };
        spawn(Box::pin(renew_certificate(
            self.ports.clone(),
            options.files.clone(),
            renewal.clone(),
            self.agent.clone(),
            self.manager.clone(),
        )));
        spawn(Box::pin(follow_wanted_role(
            self.agent.clone(),
            self.ports.identity.clone(),
            renewal,
        )));
        spawn(Box::pin(options.overlay.clone().follow(
            self.overlay.clone(),
            self.agent.clone(),
            options.description.clone(),
        )));
        spawn(Box::pin(follow_own_role(
            self.ports.clone(),
            self.manager.clone(),
            self.trouble.clone(),
            self.agent.clone(),
            options,
        )));
    }

    /// Ends the node for good: its tasks' containers go with it.
    pub(crate) async fn leave(&self) {
        self.stop(false).await;
        remove_tasks(&self.engine, &self.data_root).await;
        if let Err(err) = self.engine.leave_overlay().await {
            tracing::error!(err = %chain(&err), "the engine did not forget the networks of the cluster");
        }
        if let Some(overlay) = &self.overlay
            && let Err(err) = overlay.leave().await
        {
            tracing::error!(err = %chain(&err), "failed to remove the networks of the cluster from this machine");
        }
    }

    /// Ends manager and agent; containers run on. A planned restart is announced with a hold.
    pub(crate) async fn stop(&self, announce_hold: bool) {
        self.cancel.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        if announce_hold && !self.agent.announce_hold(PLANNED_RESTART_HOLD).await {
            tracing::debug!("no manager was told of the restart");
        }
        self.agent.shutdown().await;
        if let Some(manager) = self.manager.swap(None) {
            manager.shutdown().await;
        }
        self.ports.close().await;
    }
}

/// The clocks of this machine.
struct NodeClock;

impl AgentClock for NodeClock {
    fn now(&self) -> shoal_model::Timestamp {
        use shoal_manager::consensus::WallClock;
        SystemClock.now()
    }

    fn boottime_ns(&self) -> u64 {
        use nix::time::{ClockId, clock_gettime};
        let time = clock_gettime(ClockId::CLOCK_BOOTTIME);
        // CLOCK_BOOTTIME exists on every kernel that has namespaces; a lease that ends at zero is safe in any case.
        time.map_or(0, |time| {
            let nanoseconds = time.tv_sec() * 1_000_000_000 + time.tv_nsec();
            u64::try_from(nanoseconds).unwrap_or(0)
        })
    }
}

/// Removes the containers of every task, and the agent's memory of them: the node has left.
pub(crate) async fn remove_tasks(engine: &EngineHandle, data_root: &Path) {
    let filter = ListFilter {
        all: true,
        filters: BTreeMap::from([("label".to_owned(), vec![TASK_ID_LABEL.to_owned()])]),
        ..ListFilter::default()
    };
    let containers = match engine.list(filter).await {
        Ok(containers) => containers,
        Err(err) => {
            tracing::error!(err = %chain(&err), "failed to list the containers of tasks");
            Vec::new()
        }
    };
    for container in containers {
        let options = RemoveOptions {
            force: true,
            volumes: true,
        };
        if let Err(err) = engine.remove(&container.id.to_string(), options).await {
            tracing::error!(container_id = %container.id, err = %chain(&err), "failed to remove the container of a task");
        }
    }
    match std::fs::remove_dir_all(data_root.join("agent")) {
        Err(err) if err.kind() != std::io::ErrorKind::NotFound => {
            tracing::error!(err = %err, "failed to forget the assignments");
        }
        _ => {}
    }
}

/// Serves both ports.
fn serve(ports: &Ports, manager: &ManagerSlot, engine: &EngineHandle) {
    let ordinary = tokio::runtime::Handle::current();
    {
        let _entered = ports.thread.handle().enter();
        let handler = ControlHandler {
            manager: manager.clone(),
            ordinary: ordinary.clone(),
        };
        drop(ports.control.serve(Arc::new(handler)));
    }
    let _entered = ports.bulk_thread.handle.enter();
    drop(ports.bulk.serve(Arc::new(LogsHandler::new(engine.clone()))));
}

async fn start_manager(
    data_root: &Path,
    node_id: NodeId,
    advertise: SocketAddr,
    ports: &Ports,
    start: Start,
) -> Result<ManagerHandle, ManagerError> {
    Manager::start(ManagerOptions {
        data_dir: data_root.join("raft"),
        key_path: data_root.join("certs/raft.key"),
        node_id,
        advertise,
        start,
        timing: Timing::default(),
        placement: Placement::Threads(ports.thread.clone()),
        connector: Arc::new(ports.control.clone()),
        disk: Arc::new(RealDisk),
        clock: Arc::new(SystemClock),
        ids: Arc::new(RandomIds),
        seed: rand::random(),
    })
    .await
}

/// Why no manager gave a new certificate.
#[derive(Debug, thiserror::Error)]
enum RenewError {
    #[error("no manager is known")]
    NoManager,
    #[error(transparent)]
    Join(#[from] JoinError),
    #[error("no manager can be reached ({unreachable}), and this manager can't renew its own")]
    Own {
        unreachable: Box<RenewError>,
        #[source]
        err: RpcError,
    },
    #[error("failed to use the certificate that this manager made for itself")]
    Identity(#[from] IdentityError),
}

impl RenewError {
    /// A manager has decided; no other one would say anything else.
    fn is_refusal(&self) -> bool {
        matches!(self, Self::Join(JoinError::Call(CallError::Remote(error)))
            if error.code == ErrorCode::PermissionDenied)
    }
}

/// A certificate that this node's own manager makes of its own store.
fn renew_own(
    manager: &ManagerHandle,
    old: &Identity,
    unreachable: RenewError,
) -> Result<Identity, RenewError> {
    let request = RenewRequest {
        signing_request_der: old.key().signing_request()?,
    };
    let response = manager.renew_own(&request).map_err(|err| RenewError::Own {
        unreachable: Box::new(unreachable),
        err,
    })?;
    tracing::warn!(
        "no manager could be asked for a certificate: this one has made its own, as every manager may"
    );
    Ok(Identity::from_response(old.key().clone(), &response)?)
}

/// Renews the certificate in time, and when the role has changed. A node whose certificate has expired is re-admitted
/// by its key; where every manager's has, a manager makes its own.
async fn renew_certificate(
    ports: Arc<Ports>,
    files: IdentityFiles,
    handle: RenewalHandle,
    agent: AgentHandle,
    manager: ManagerSlot,
) {
    use shoal_manager::consensus::WallClock;
    let now = || SystemClock.now();
    let context = RenewalContext {
        identity: ports.identity.clone(),
        files,
        handle,
        now,
        random: || rand::random::<f64>(),
    };
    renewal::run(context, |old: Identity| {
        let (ports, managers) = (ports.clone(), agent.managers());
        let manager = manager.load_full();
        async move {
            let mut failure = RenewError::NoManager;
            let expired = old.is_expired(now());
            for peer in managers {
                let asked = if expired {
                    let calls = &ports.calls;
                    shoal_transport::join::readmit(calls, peer.addr, &old, RENEW_DEADLINE).await
                } else {
                    shoal_transport::join::renew(&ports.calls, peer.addr, &old, RENEW_DEADLINE)
                        .await
                };
                match asked {
                    Ok(new) => return Ok(new),
                    Err(err) => failure = err.into(),
                }
                if failure.is_refusal() {
                    return Err(failure);
                }
            }
            match manager.filter(|_| expired) {
                Some(manager) => renew_own(&manager, &old, failure),
                None => Err(failure),
            }
        }
    })
    .await;
}

/// Asks for a certificate with the role that the managers want this node to have.
async fn follow_wanted_role(agent: AgentHandle, identity: IdentityHandle, renewal: RenewalHandle) {
    let mut wanted = agent.wanted_role();
    loop {
        let role = *wanted.borrow_and_update();
        let own = identity.current().map(|identity| identity.role());
        if role.is_some() && role != own {
            renewal.renew_now();
        }
        if wanted.changed().await.is_err() {
            return;
        }
    }
}

/// The failure with what can be done about it.
fn manager_trouble(err: &ManagerError) -> String {
    format!(
        "{}; where other managers are left, `shoal node demote` and `shoal node promote` of this node there give it a \
         new log",
        chain(err)
    )
}

/// Starts and stops the manager as the role in the certificate says.
async fn follow_own_role(
    ports: Arc<Ports>,
    slot: ManagerSlot,
    trouble: Trouble,
    agent: AgentHandle,
    options: JoinedOptions,
) {
    let (data_root, advertise) = (options.data_root, options.record.advertise);
    let mut changes = ports.identity.subscribe();
    let mut retry = MANAGER_RETRY_MIN;
    loop {
        let identity = changes.borrow_and_update().clone();
        let role = identity.as_ref().map(Identity::role);
        let running = slot.load().is_some();
        let mut failed = false;
        match (role, running, identity) {
            (Some(NodeRole::Manager), false, Some(identity)) => {
                let mut managers = others(&agent.managers(), identity.node_id());
                if managers.is_empty() {
                    managers = others(&options.record.managers, identity.node_id());
                }
                let start = Start::Join(managers);
                let node_id = identity.node_id();
                match start_manager(&data_root, node_id, advertise, &ports, start).await {
                    Ok(handle) => {
                        tracing::info!(%node_id, "this node is a manager now");
                        slot.store(Some(Arc::new(handle)));
                        trouble.store(None);
                        retry = MANAGER_RETRY_MIN;
                    }
                    Err(err) => {
                        let text = manager_trouble(&err);
                        tracing::error!(err = %text, "the manager did not start; it is tried again");
                        trouble.store(Some(Arc::new(text)));
                        failed = true;
                    }
                }
            }
            // Also when no manager runs: a node that was demoted while its daemon was down, or whose log is damaged,
            // must not take up its old place when it is promoted again.
            (Some(NodeRole::Worker), _, _) => {
                stop_manager(&slot, &data_root).await;
                trouble.store(None);
            }
            _ => {}
        }
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(retry), if failed => {
                retry = (retry * 2).min(MANAGER_RETRY_MAX);
            }
            reason = has_no_room(&slot) => {
                tracing::error!(%reason, "the manager has stopped; it starts again once there is room on its disk");
                let text = format!("{reason}; it starts again once there is room");
                trouble.store(Some(Arc::new(text)));
                if let Some(manager) = slot.swap(None) {
                    manager.shutdown().await;
                }
            }
            () = has_another_place(&slot, &agent) => {
                tracing::warn!("this manager was demoted and promoted while it was away: it begins anew");
                stop_manager(&slot, &data_root).await;
            }
        }
    }
}

/// Ends the manager, if one runs, and forgets its place in Raft.
async fn stop_manager(slot: &ManagerSlot, data_root: &Path) {
    if let Some(manager) = slot.swap(None) {
        manager.shutdown().await;
        tracing::info!("the manager of this node has ended");
    }
    if let Err(err) = forget(&RealDisk, &data_root.join("raft")) {
        tracing::error!(err = %chain(&err), "failed to delete the Raft log of a former manager");
    }
}

/// Ends when this node's manager has stopped because its disk is full.
async fn has_no_room(slot: &ManagerSlot) -> String {
    match slot.load_full() {
        Some(manager) => manager.stopped_without_room().await,
        None => std::future::pending().await,
    }
}

/// Ends when the managers say that this one's place in Raft is not the one it runs with.
async fn has_another_place(slot: &ManagerSlot, agent: &AgentHandle) {
    let Some(manager) = slot.load_full() else {
        return std::future::pending().await;
    };
    manager.superseded(|| agent.managers()).await;
}

fn others(managers: &[ManagerPeer], own: NodeId) -> Vec<ManagerPeer> {
    managers
        .iter()
        .filter(|peer| peer.node_id != own)
        .cloned()
        .collect()
}
