//! The node's place in a cluster, as the API sees it: none, or one that it founded, joined or resumes.

use super::address::{self, AddressError};
use super::joined::{Entry, Joined, JoinedError, JoinedOptions, Ports, remove_tasks};
use super::overlay::OverlaySettings;
use super::record::{NodeRecord, RecordError};
use super::{chain, logs, task_logs};
use crate::args::daemon::DaemonArgs;
use async_trait::async_trait;
use futures_util::stream::BoxStream;
use shoal_api::{ClusterOps, ControlFrames, InitOptions, JoinOptions, LocalNode, LocalState};
use shoal_engine::EngineHandle;
use shoal_manager::manager::{FoundingRequest, RandomIds, SystemClock, forget, found};
use shoal_manager::raft::RealDisk;
use shoal_manager::{ManagerHandle, Start};
use shoal_model::command::FEATURE_LEVEL;
use shoal_model::control::{
    CertificateResponse, ControlRequest, LogLine, LogsRequest, WatchEvent, WatchRequest,
};
use shoal_model::node::NodeDescription;
use shoal_model::rpc::{ErrorCode, Method, RpcError};
use shoal_model::session::ManagerPeer;
use shoal_model::{Cluster, NodeId, NodeRole, Resources};
use shoal_overlay_net::PeerCheck;
use shoal_transport::files::{FilesError, IdentityFiles};
use shoal_transport::{CallError, Connector, Expect, Identity, JoinToken, NodeKey, ca, call, join};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Mutex, RwLock};

/// Longest time for a node to say what it knows of its ways to its peers.
const NET_CHECK_MAX: Duration = Duration::from_secs(3);

/// Port of the control channel when none is given.
const CONTROL_PORT: u16 = 2377;
/// Longest time for one manager to answer a join.
const JOIN_DEADLINE: Duration = Duration::from_secs(20);
/// Longest time for the managers to answer a leave.
const LEAVE_DEADLINE: Duration = Duration::from_secs(5);

/// What the daemon's command line says about membership.
pub(crate) struct MembershipOptions {
    data_root: PathBuf,
    listen: SocketAddr,
    advertise: Option<IpAddr>,
    hostname: String,
    engine_labels: Vec<String>,
    overlay: OverlaySettings,
}

impl MembershipOptions {
    pub(crate) fn new(args: &DaemonArgs) -> Result<Self, String> {
        let hostname = match &args.hostname {
            Some(hostname) => hostname.clone(),
            None => nix::unistd::gethostname()
                .map_err(|err| format!("failed to read the host name: {err}"))?
                .to_string_lossy()
                .into_owned(),
        };
        Ok(Self {
            data_root: args.data_root.clone(),
            listen: args.listen,
            advertise: args.advertise_addr,
            hostname,
            engine_labels: args.labels.clone(),
            overlay: OverlaySettings::new(args)?,
        })
    }
}

/// Why a membership operation failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MembershipError {
    #[error(transparent)]
    Address(#[from] AddressError),
    #[error(transparent)]
    Record(#[from] RecordError),
    #[error("failed to use the node's certificate")]
    Files(#[from] FilesError),
    #[error(transparent)]
    Joined(Box<JoinedError>),
    #[error("failed to found a cluster")]
    Found(#[from] shoal_manager::manager::FoundingError),
    #[error("failed to use the new certificate")]
    Identity(#[from] shoal_transport::identity::IdentityError),
    #[error("failed to delete the manager's log")]
    Forget(#[from] shoal_manager::manager::RecordError),
    #[error("invalid join token")]
    Token(#[from] shoal_transport::token::ParseTokenError),
    #[error("failed to join through any of the given managers; the last one: {addr}")]
    Join {
        addr: SocketAddr,
        #[source]
        err: Box<shoal_transport::join::JoinError>,
    },
    #[error("no address of a manager was given")]
    NoRemote,
}

impl MembershipError {
    /// What the user can do about it when it keeps a node from its cluster.
    fn way_back(&self) -> &'static str {
        match self {
            Self::Files(FilesError::Damaged { .. } | FilesError::Unusable { .. }) => {
                "; join the cluster again with `shoal join`: as long as `node.key` is good it is the same node"
            }
            _ => "",
        }
    }

    /// The kind that a caller of the API sees.
    fn code(&self) -> ErrorCode {
        use shoal_transport::join::JoinError;
        match self {
            Self::Address(_) | Self::Token(_) | Self::NoRemote | Self::Found(_) => {
                ErrorCode::InvalidArgument
            }
            Self::Join { err, .. } => match &**err {
                JoinError::Call(CallError::Remote(error)) => error.code,
                JoinError::Call(_) | JoinError::Identity(_) | JoinError::WrongRoot { .. } => {
                    ErrorCode::Unavailable
                }
            },
            Self::Record(_)
            | Self::Files(_)
            | Self::Joined(_)
            | Self::Identity(_)
            | Self::Forget(_) => ErrorCode::Internal,
        }
    }
}

impl From<JoinedError> for MembershipError {
    fn from(err: JoinedError) -> Self {
        Self::Joined(Box::new(err))
    }
}

impl From<MembershipError> for RpcError {
    fn from(error: MembershipError) -> Self {
        Self::new(error.code(), chain(&error))
    }
}

/// The node's place in a cluster.
pub(crate) struct Membership {
    options: MembershipOptions,
    engine: EngineHandle,
    files: IdentityFiles,
    /// The running node; read by every request.
    joined: RwLock<Option<Arc<Joined>>>,
    /// What requests see of it without waiting.
    local: std::sync::RwLock<LocalNode>,
    /// One init, join, leave or resume at a time.
    changing: Mutex<()>,
}

impl Membership {
    pub(crate) fn open(options: MembershipOptions, engine: EngineHandle) -> Self {
        let files = IdentityFiles::new(options.data_root.join("certs"));
        // One that can't be read is told when the node takes up its place: containers and API need none.
        let pending = !matches!(files.load(), Ok(None));
        let local = LocalNode {
            state: if pending {
                LocalState::Pending
            } else {
                LocalState::Inactive
            },
            engine_labels: options.engine_labels.clone(),
            ..LocalNode::default()
        };
        Self {
            options,
            engine,
            files,
            joined: RwLock::new(None),
            local: std::sync::RwLock::new(local),
            changing: Mutex::new(()),
        }
    }

    fn set_state(&self, state: LocalState) {
        let mut local = self
            .local
            .write()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        local.state = state;
    }

    /// Takes up the place that this node had before the daemon was restarted.
    pub(crate) async fn resume(&self) {
        let _changing = self.changing.lock().await;
        if let Err(error) = self.try_resume().await {
            let text = format!("{}{}", chain(&error), error.way_back());
            tracing::error!(err = %text, "failed to return to the cluster");
            self.set_state(LocalState::Error(text));
        }
    }

    async fn try_resume(&self) -> Result<(), MembershipError> {
        let Some(identity) = self.files.load()? else {
            return Ok(());
        };
        let record = match NodeRecord::load(&self.options.data_root) {
            Err(err) if err.is_damage() => Some(self.rebuild_record(&err)?),
            loaded => loaded?,
        };
        let Some(record) = record else {
            // The certificate is written first: a crash in between has joined nothing.
            self.files.remove()?;
            self.set_state(LocalState::Inactive);
            return Ok(());
        };
        let ports = Ports::open(record.listen, identity.key(), Some(identity.clone()))?;
        let others = record.managers.clone();
        self.start(record, ports, identity, Entry::Back(others))
            .await
    }

    /// The record of addresses out of the daemon's options: identity is never the address, so a wrong guess is told to
    /// the managers as a new address. The agent remembers the managers by itself.
    fn rebuild_record(&self, damage: &RecordError) -> Result<NodeRecord, MembershipError> {
        let (listen, advertise) = self.addresses("", "")?;
        tracing::error!(
            err = %chain(damage),
            %listen,
            %advertise,
            "the record of this node's addresses can't be used; it is made anew from the daemon's options"
        );
        let record = NodeRecord {
            version: NodeRecord::VERSION,
            listen,
            advertise,
            managers: Vec::new(),
        };
        record.save(&self.options.data_root)?;
        Ok(record)
    }

    async fn start(
        &self,
        record: NodeRecord,
        ports: Ports,
        identity: Identity,
        entry: Entry,
    ) -> Result<(), MembershipError> {
        let options = JoinedOptions {
            data_root: self.options.data_root.clone(),
            description: self.description(&record).await,
            files: self.files.clone(),
            engine: self.engine.clone(),
            overlay: self.options.overlay.clone(),
            record,
        };
        let joined = Joined::start(options, ports, identity.clone(), entry).await?;
        {
            let mut local = self
                .local
                .write()
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            *local = LocalNode {
                state: LocalState::Active,
                node_id: Some(identity.node_id()),
                cluster_id: Some(identity.cluster_id()),
                advertise_addr: Some(joined.advertise.ip()),
                engine_labels: self.options.engine_labels.clone(),
                ..LocalNode::default()
            };
        }
        *self.joined.write().await = Some(Arc::new(joined));
        Ok(())
    }

    async fn description(&self, record: &NodeRecord) -> NodeDescription {
        let (cpus, memory_bytes) = match self.engine.info().await {
            Ok(info) => (info.cpus, info.memory_bytes),
            Err(err) => {
                tracing::warn!(err = %chain(&err), "the engine does not say what the machine has");
                (1, 0)
            }
        };
        let labels = crate::spec::parse::pairs(&self.options.engine_labels);
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        let bulk_port = record.advertise.port().saturating_add(1);
        NodeDescription {
            hostname: self.options.hostname.clone(),
            os: std::env::consts::OS.to_owned(),
            architecture: architecture.to_owned(),
            resources: Resources {
                nano_cpus: i64::try_from(cpus)
                    .unwrap_or(1)
                    .saturating_mul(1_000_000_000),
                memory_bytes: i64::try_from(memory_bytes).unwrap_or(i64::MAX),
            },
            engine_version: env!("CARGO_PKG_VERSION").to_owned(),
            engine_labels: labels.into_iter().collect(),
            feature_level_max: FEATURE_LEVEL,
            control_addr: Some(record.advertise),
            bulk_addr: Some(SocketAddr::new(record.advertise.ip(), bulk_port)),
            wireguard: None,
            local_networks: Vec::new(),
        }
    }

    /// Listen and advertise addresses: the request's, else the daemon's, else the default route's.
    fn addresses(
        &self,
        listen: &str,
        advertise: &str,
    ) -> Result<(SocketAddr, SocketAddr), AddressError> {
        let listen = match listen {
            "" => self.options.listen,
            text => address::parse(text, CONTROL_PORT)?,
        };
        let advertise = match (advertise, self.options.advertise) {
            ("", Some(ip)) => SocketAddr::new(ip, listen.port()),
            ("", None) if !listen.ip().is_unspecified() => listen,
            ("", None) => SocketAddr::new(address::default_route()?, listen.port()),
            (text, _) => address::parse(text, listen.port())?,
        };
        Ok((listen, advertise))
    }

    async fn try_init(&self, options: InitOptions) -> Result<NodeId, MembershipError> {
        let (listen, advertise) = self.addresses(&options.listen_addr, &options.advertise_addr)?;
        let key = self.files.load_or_make_key()?;
        let request = FoundingRequest {
            signing_request_der: key.signing_request()?,
            advertise,
            availability: options.availability,
            spec: options.spec,
        };
        let founding = found(&request, &SystemClock, &RandomIds)?;
        let (identity, managers) = accept(&key, &founding.certificate)?;
        let ports = Ports::open(listen, &key, Some(identity.clone()))?;
        let node_id = identity.node_id();
        self.remember(&identity, listen, advertise, managers)?;
        let record = NodeRecord::load(&self.options.data_root)?;
        let started = match record {
            Some(record) => {
                let entry = Entry::New(Start::Found(founding.first));
                self.start(record, ports, identity, entry).await
            }
            None => Err(MembershipError::NoRemote),
        };
        match started {
            Ok(()) => Ok(node_id),
            Err(error) => {
                self.wipe()?;
                Err(error)
            }
        }
    }

    async fn try_join(&self, options: JoinOptions) -> Result<(), MembershipError> {
        let token: JoinToken = options.token.0.parse()?;
        let (listen, advertise) = self.addresses(&options.listen_addr, &options.advertise_addr)?;
        let key = self.files.load_or_make_key()?;
        let ports = Ports::open(listen, &key, None)?;
        let joined = self.ask_to_join(&ports, &token, &key, &options).await;
        let (identity, response) = match joined {
            Ok(joined) => joined,
            Err(error) => {
                ports.close().await;
                return Err(error);
            }
        };
        ports.identity.swap(Some(identity.clone()));
        self.remember(&identity, listen, advertise, response.managers.clone())?;
        let record = NodeRecord {
            version: NodeRecord::VERSION,
            listen,
            advertise,
            managers: response.managers.clone(),
        };
        let started = self
            .start(
                record,
                ports,
                identity,
                Entry::New(Start::Join(response.managers)),
            )
            .await;
        if started.is_err() {
            self.wipe()?;
        }
        started
    }

    async fn ask_to_join(
        &self,
        ports: &Ports,
        token: &JoinToken,
        key: &NodeKey,
        options: &JoinOptions,
    ) -> Result<(Identity, CertificateResponse), MembershipError> {
        let mut failure = MembershipError::NoRemote;
        for remote in &options.remote_addrs {
            for addr in address::look_up(remote, CONTROL_PORT).await? {
                let availability = options.availability;
                match join(&ports.calls, addr, token, key, availability, JOIN_DEADLINE).await {
                    Ok(joined) => return Ok(joined),
                    Err(err) => {
                        let err = Box::new(err);
                        failure = MembershipError::Join { addr, err };
                    }
                }
            }
        }
        Err(failure)
    }

    /// Certificate first, record second: only both together are a membership.
    fn remember(
        &self,
        identity: &Identity,
        listen: SocketAddr,
        advertise: SocketAddr,
        managers: Vec<ManagerPeer>,
    ) -> Result<(), MembershipError> {
        self.files.store(identity)?;
        let record = NodeRecord {
            version: NodeRecord::VERSION,
            listen,
            advertise,
            managers,
        };
        Ok(record.save(&self.options.data_root)?)
    }

    /// Forgets the membership: the record first, so that what remains is never taken for one.
    fn wipe(&self) -> Result<(), MembershipError> {
        NodeRecord::remove(&self.options.data_root)?;
        self.files.remove()?;
        forget(&RealDisk, &self.options.data_root.join("raft"))?;
        let mut local = self
            .local
            .write()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        *local = LocalNode {
            engine_labels: self.options.engine_labels.clone(),
            ..LocalNode::default()
        };
        Ok(())
    }

    async fn current(&self) -> Result<Arc<Joined>, RpcError> {
        let none = || RpcError::new(ErrorCode::Unavailable, "this node is not part of a cluster");
        self.joined.read().await.clone().ok_or_else(none)
    }

    async fn manager(&self) -> Result<(ManagerHandle, NodeId), RpcError> {
        let joined = self.current().await?;
        let manager = joined.manager.load_full();
        let manager = manager.ok_or_else(|| {
            let text = match joined.trouble.load().as_deref() {
                Some(trouble) => format!("the manager of this node does not run: {trouble}"),
                None => "this node is not a manager".to_owned(),
            };
            RpcError::new(ErrorCode::Unavailable, text)
        })?;
        Ok(((*manager).clone(), joined.node_id))
    }

    /// Forgets a place that could not be taken up. Nobody is told: there is nothing to tell it with.
    async fn leave_damaged(&self, force: bool, reason: &str) -> Result<(), RpcError> {
        if !force {
            let text = format!(
                "this node could not return to its cluster ({reason}): use --force to forget its place there"
            );
            return Err(RpcError::new(ErrorCode::FailedPrecondition, text));
        }
        remove_tasks(&self.engine, &self.options.data_root).await;
        Ok(self.wipe()?)
    }

    /// Stops the node's parts; its place in the cluster is kept.
    pub(crate) async fn shutdown(&self) {
        if let Some(joined) = self.joined.write().await.take() {
            joined.stop(true).await;
        }
    }
}

fn accept(
    key: &NodeKey,
    certificate: &CertificateResponse,
) -> Result<(Identity, Vec<ManagerPeer>), MembershipError> {
    let identity = Identity::from_response(key.clone(), certificate)?;
    Ok((identity, certificate.managers.clone()))
}

#[async_trait]
impl ClusterOps for Membership {
    fn local(&self) -> LocalNode {
        let mut local = self
            .local
            .read()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .clone();
        // A change of membership holds the lock for a moment; until it is done the old answer is right.
        if let Ok(joined) = self.joined.try_read()
            && let Some(joined) = joined.as_ref()
        {
            local.role = joined
                .ports
                .identity
                .current()
                .map(|i| i.role())
                .unwrap_or_default();
            local.control_available = joined.manager.load().is_some();
            local.manager_trouble = joined.trouble.load().as_deref().cloned();
            local.managers = joined.agent.managers();
        }
        local
    }

    async fn init(&self, options: InitOptions) -> Result<NodeId, RpcError> {
        let _changing = self.changing.lock().await;
        if options.force_new_cluster {
            let text = "ForceNewCluster is not supported yet";
            return Err(RpcError::new(ErrorCode::InvalidArgument, text));
        }
        if self.joined.read().await.is_some() {
            let text = "this node is already part of a cluster: leave it first with `shoal leave`";
            return Err(RpcError::new(ErrorCode::FailedPrecondition, text));
        }
        Ok(self.try_init(options).await?)
    }

    async fn join(&self, options: JoinOptions) -> Result<(), RpcError> {
        let _changing = self.changing.lock().await;
        if self.joined.read().await.is_some() {
            let text = "this node is already part of a cluster: leave it first with `shoal leave`";
            return Err(RpcError::new(ErrorCode::FailedPrecondition, text));
        }
        self.set_state(LocalState::Pending);
        let joined = self.try_join(options).await;
        if joined.is_err() {
            self.set_state(LocalState::Inactive);
        }
        Ok(joined?)
    }

    async fn leave(&self, force: bool) -> Result<(), RpcError> {
        let _changing = self.changing.lock().await;
        if let LocalState::Error(reason) = self.local().state {
            return self.leave_damaged(force, &reason).await;
        }
        let joined = self.current().await?;
        let is_manager = joined.manager.load().is_some();
        if is_manager && !force {
            let text = "this node is a manager: demote it first with `shoal node demote self`, or use --force, \
                        which costs the cluster a manager and, without a majority of the others, its quorum";
            return Err(RpcError::new(ErrorCode::FailedPrecondition, text));
        }
        // No heartbeat may follow the good-bye: the managers would take the node for living.
        joined.agent.say_goodbye().await;
        joined.agent.shutdown().await;
        tell_managers(&joined).await;
        *self.joined.write().await = None;
        joined.leave().await;
        Ok(self.wipe()?)
    }

    async fn control(&self, request: ControlRequest) -> Result<ControlFrames, RpcError> {
        let (manager, caller) = self.manager().await?;
        logs::control(manager, caller, request).await
    }

    async fn watch(
        &self,
        request: WatchRequest,
    ) -> Result<BoxStream<'static, Result<WatchEvent, RpcError>>, RpcError> {
        let (manager, caller) = self.manager().await?;
        logs::watch(manager, caller, request).await
    }

    async fn task_logs(
        &self,
        node_id: NodeId,
        addr: SocketAddr,
        request: LogsRequest,
    ) -> Result<BoxStream<'static, Result<LogLine, RpcError>>, RpcError> {
        let joined = self.current().await?;
        if node_id == joined.node_id {
            return task_logs::read(&self.engine, request).await;
        }
        let unreachable = |err: &dyn std::error::Error| {
            let text = format!("node `{node_id}` does not answer: {}", chain(err));
            RpcError::new(ErrorCode::Unavailable, text)
        };
        let expect = Expect::Node(node_id);
        let opened = joined
            .ports
            .calls
            .open(addr, expect, Method::TaskLogs)
            .await;
        let mut stream = opened.map_err(|err| unreachable(&err))?;
        stream
            .send(&request)
            .await
            .map_err(|err| unreachable(&err))?;
        Ok(logs::frames(stream))
    }

    async fn net_check(
        &self,
        node_id: NodeId,
        addr: SocketAddr,
    ) -> Result<Vec<PeerCheck>, RpcError> {
        let joined = self.current().await?;
        if node_id == joined.node_id {
            return task_logs::net_check(&self.engine).await;
        }
        let expect = Expect::Node(node_id);
        let asked = call(
            &joined.ports.calls,
            addr,
            expect,
            Method::NetCheck,
            &(),
            NET_CHECK_MAX,
        );
        asked.await.map_err(|err| match err {
            CallError::Remote(err) => err,
            err => {
                let text = format!("node `{node_id}` does not answer: {}", chain(&err));
                RpcError::new(ErrorCode::Unavailable, text)
            }
        })
    }

    fn join_token(&self, cluster: &Cluster, role: NodeRole) -> String {
        let secret = match role {
            NodeRole::Worker => &cluster.worker_secret,
            NodeRole::Manager => &cluster.manager_secret,
        };
        let root_digest = ca::sha256(&cluster.root_ca.certificate_der);
        JoinToken {
            root_digest,
            secret: secret.secret.clone(),
        }
        .to_string()
    }

    async fn metrics(&self) -> String {
        let joined = self.joined.read().await.clone();
        super::metrics::render(&self.engine, joined.as_deref()).await
    }

    async fn debug(&self) -> serde_json::Value {
        let local = self.local();
        serde_json::json!({
            "state": local.state.as_str(),
            "role": local.role.as_str(),
            "manager": local.control_available,
        })
    }
}

/// Says good-bye, so that nobody waits for this node. A cluster that can't be reached learns of it in its own time.
async fn tell_managers(joined: &Joined) {
    let managers = joined.agent.managers();
    for peer in managers {
        let left: Result<(), CallError> = call(
            &joined.ports.calls,
            peer.addr,
            Expect::AnyManager,
            Method::Leave,
            &(),
            LEAVE_DEADLINE,
        )
        .await;
        match left {
            Ok(()) => return,
            Err(err) => tracing::debug!(err = %chain(&err), "a manager did not take the good-bye"),
        }
    }
}
