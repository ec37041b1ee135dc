//! What the API needs from the daemon around it: the node's place in a cluster, and a way to the managers.

use async_trait::async_trait;
use futures_util::stream::BoxStream;
use shoal_model::control::{
    ControlRequest, ControlResponse, LogLine, LogsRequest, WatchEvent, WatchRequest,
};
use shoal_model::rpc::RpcError;
use shoal_model::session::ManagerPeer;
use shoal_model::{Availability, Cluster, ClusterId, ClusterSpec, NodeId, NodeRole};
use shoal_overlay_net::PeerCheck;
use std::net::{IpAddr, SocketAddr};

/// Frames of an answer of the managers: one frame, or the pages of a list without the closing `End`.
pub type ControlFrames = BoxStream<'static, Result<ControlResponse, RpcError>>;

/// Whether this node is part of a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum LocalState {
    /// No cluster.
    #[default]
    Inactive,
    /// A join is under way.
    Pending,
    /// Part of a cluster.
    Active,
    /// Part of a cluster, but something is wrong.
    Error(String),
    /// The unlock key is needed.
    Locked,
}

impl LocalState {
    /// The word in Docker's API.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Inactive => "inactive",
            Self::Pending => "pending",
            Self::Active => "active",
            Self::Error(_) => "error",
            Self::Locked => "locked",
        }
    }
}

/// This node's place in a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LocalNode {
    /// Whether it has one.
    pub state: LocalState,
    /// Its id there.
    pub node_id: Option<NodeId>,
    /// The cluster.
    pub cluster_id: Option<ClusterId>,
    /// Its role.
    pub role: NodeRole,
    /// The manager runs in this daemon, so that control requests can be answered.
    pub control_available: bool,
    /// It should run a manager, and this is why it does not.
    pub manager_trouble: Option<String>,
    /// The address that others use for it.
    pub advertise_addr: Option<IpAddr>,
    /// The managers that it knows.
    pub managers: Vec<ManagerPeer>,
    /// Labels of the engine, set on the daemon's command line.
    pub engine_labels: Vec<String>,
}

/// `swarm init`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct InitOptions {
    /// `IP[:PORT]` or `INTERFACE[:PORT]`; empty: the daemon's own setting.
    pub listen_addr: String,
    /// The same for the address that others use; empty: chosen by the daemon.
    pub advertise_addr: String,
    /// Start a new cluster of one manager from the state of a lost quorum.
    pub force_new_cluster: bool,
    /// Settings of the cluster.
    pub spec: ClusterSpec,
    /// What this node is at first.
    pub availability: Availability,
}

/// `swarm join`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinOptions {
    /// `IP[:PORT]` or `INTERFACE[:PORT]`; empty: the daemon's own setting.
    pub listen_addr: String,
    /// The same for the address that others use; empty: chosen by the daemon.
    pub advertise_addr: String,
    /// `HOST:PORT` of managers.
    pub remote_addrs: Vec<String>,
    /// The join token.
    pub token: shoal_model::cluster::Redacted<String>,
    /// What this node is at first.
    pub availability: Availability,
}

/// The daemon as the API sees it. One implementation wires the real thing; tests stand in for a cluster with another.
#[async_trait]
pub trait ClusterOps: Send + Sync + 'static {
    /// Where this node stands now. Called on many requests: it must be cheap.
    fn local(&self) -> LocalNode;

    /// Makes a cluster of this node. The API has checked that the node is in none.
    async fn init(&self, options: InitOptions) -> Result<NodeId, RpcError>;

    /// Joins a cluster. The API has checked that the node is in none.
    async fn join(&self, options: JoinOptions) -> Result<(), RpcError>;

    /// Leaves the cluster; a manager only with `force`.
    async fn leave(&self, force: bool) -> Result<(), RpcError>;

    /// Asks the managers. The stream ends after the answer; the closing `End` of a list is not part of it.
    async fn control(&self, request: ControlRequest) -> Result<ControlFrames, RpcError>;

    /// Watches the managers' store.
    async fn watch(
        &self,
        request: WatchRequest,
    ) -> Result<BoxStream<'static, Result<WatchEvent, RpcError>>, RpcError>;

    /// Asks the node at `addr` (its bulk port) for logs of tasks that it runs.
    async fn task_logs(
        &self,
        node_id: NodeId,
        addr: SocketAddr,
        request: LogsRequest,
    ) -> Result<BoxStream<'static, Result<LogLine, RpcError>>, RpcError>;

    /// Asks the node at `addr` (its bulk port) for its ways to its peers.
    async fn net_check(
        &self,
        node_id: NodeId,
        addr: SocketAddr,
    ) -> Result<Vec<PeerCheck>, RpcError>;

    /// The text of a join token: digest of the cluster's root certificate and the role's secret.
    fn join_token(&self, cluster: &Cluster, role: NodeRole) -> String;

    /// The daemon's numbers for monitoring, in the Prometheus text format.
    async fn metrics(&self) -> String;

    /// State of the daemon's actors and loops for `GET /shoal/v1/debug/actors`.
    async fn debug(&self) -> serde_json::Value;
}
