//! What users declare: services and the tasks they are made of. Specs are written by users and never edited by us.
//!
//! Field by field these follow Docker's `ServiceSpec` (Engine API 1.51); durations are in nanoseconds, as there.

use crate::Labels;
use crate::cluster::Redacted;
use crate::network::NetworkAttachment;
use crate::resources::ResourceRequirements;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A service as the user declares it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ServiceSpec {
    /// Unique in the cluster.
    pub name: String,
    /// Labels of the service (not of its containers).
    pub labels: Labels,
    /// What each task runs.
    pub task: TaskSpec,
    /// How many tasks, and where.
    pub mode: ServiceMode,
    /// How a change is rolled out.
    pub update: UpdateConfig,
    /// How a rollback is rolled out.
    pub rollback: UpdateConfig,
    /// Published ports.
    pub endpoint: EndpointSpec,
    /// What a node does with the tasks when it loses the managers. `None`: `stop` for tasks with a cluster volume,
    /// else `keep`.
    pub on_partition: Option<OnPartition>,
    /// Silence of a node after which this service's tasks are replaced, in milliseconds; `None`: the cluster's.
    pub down_limit_ms: Option<u64>,
    /// Credentials for the registry of the image, as clients send them (`X-Registry-Auth`). They travel to the nodes of
    /// the service's tasks, are kept on no disk but encrypted in Raft's, and are never shown.
    pub registry_auth: Option<Redacted<String>>,
}

/// How many tasks a service has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ServiceMode {
    /// A fixed number of slots.
    Replicated {
        /// Wanted number of running tasks.
        replicas: u64,
    },
    /// One task on every node that fits.
    Global,
}

impl Default for ServiceMode {
    fn default() -> Self {
        Self::Replicated { replicas: 1 }
    }
}

/// What becomes of tasks on a node that is cut off from the managers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum OnPartition {
    /// Killed when the lease ends, so that a slot never runs twice.
    Stop,
    /// Run on; a replacement may run beside it until the partition heals.
    Keep,
}

/// What one task runs, and under which conditions.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TaskSpec {
    /// The container.
    pub container: ContainerSpec,
    /// Limits and reservations.
    pub resources: ResourceRequirements,
    /// When and how often an ended container is started again.
    pub restart: RestartPolicy,
    /// Where it may run.
    pub placement: Placement,
    /// Log driver and options; `None`: the node's default (`json-file`).
    pub log_driver: Option<LogDriver>,
    /// Raised by `--force`: a new number replaces every task.
    pub force_update: u64,
    /// Networks across hosts that its container is in; empty: the node's default bridge.
    pub networks: Vec<NetworkAttachment>,
}

/// A container of a task.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ContainerSpec {
    /// Image reference, possibly with a digest.
    pub image: String,
    /// Labels of the container.
    pub labels: Labels,
    /// Replaces the image's entrypoint when not empty.
    pub command: Vec<String>,
    /// Replaces the image's command when not empty.
    pub args: Vec<String>,
    /// Host name; empty: the container's short id.
    pub hostname: String,
    /// `KEY=value`, added to the image's.
    pub env: Vec<String>,
    /// Working directory; empty: the image's.
    pub dir: String,
    /// `user[:group]`; empty: the image's.
    pub user: String,
    /// Further groups.
    pub groups: Vec<String>,
    /// Run an init as process 1 that reaps.
    pub init: Option<bool>,
    /// Give it a terminal.
    pub tty: bool,
    /// Keep standard input open.
    pub open_stdin: bool,
    /// Mount the root read-only.
    pub read_only: bool,
    /// Mounts.
    pub mounts: Vec<Mount>,
    /// Signal that asks it to stop, `SIGTERM` when empty and the image says none.
    pub stop_signal: String,
    /// Nanoseconds between the stop signal and SIGKILL; `None`: 10 s.
    pub stop_grace_period_ns: Option<u64>,
    /// Health check; `None`: the image's.
    pub healthcheck: Option<Healthcheck>,
    /// Lines for /etc/hosts, `IP name…`, as Docker's API has them.
    pub hosts: Vec<String>,
    /// Resolver settings.
    pub dns: DnsConfig,
    /// Kernel settings of its namespaces.
    pub sysctls: BTreeMap<String, String>,
    /// Added capabilities, `CAP_…` or `ALL`.
    pub cap_add: Vec<String>,
    /// Dropped capabilities.
    pub cap_drop: Vec<String>,
    /// Process limits.
    pub ulimits: Vec<Ulimit>,
    /// -1000 to 1000.
    pub oom_score_adj: i64,
    /// `no_new_privs`.
    pub no_new_privileges: bool,
}

/// A process limit, see setrlimit(2).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ulimit {
    /// `nofile`, `nproc`…
    pub name: String,
    /// Soft limit; -1: unlimited.
    pub soft: i64,
    /// Hard limit; -1: unlimited.
    pub hard: i64,
}

/// Resolver settings of a container.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DnsConfig {
    /// Addresses of name servers.
    pub nameservers: Vec<String>,
    /// Search domains.
    pub search: Vec<String>,
    /// Lines of `options`.
    pub options: Vec<String>,
}

/// A mount of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// What is mounted.
    pub kind: MountKind,
    /// Absolute path in the container.
    pub target: String,
    /// Not writable.
    pub read_only: bool,
}

/// What a mount brings in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum MountKind {
    /// A path of the host.
    Bind {
        /// Absolute path on the host.
        source: String,
        /// Mount propagation: `private`, `rprivate`, `shared`, `rshared`, `slave`, `rslave`; empty: `rprivate`.
        propagation: String,
    },
    /// A named volume, or an anonymous one when the name is empty.
    Volume {
        /// Name; empty: anonymous.
        name: String,
        /// Driver; empty: `local`.
        driver: String,
        /// Driver options.
        options: BTreeMap<String, String>,
        /// Labels of the volume when it is made.
        labels: Labels,
        /// Do not copy the image's content into an empty volume.
        no_copy: bool,
    },
    /// Memory.
    Tmpfs {
        /// Bytes; zero: no limit.
        size_bytes: i64,
        /// Permission bits; zero: 1777 octal.
        mode: u32,
    },
}

/// How a container's health is tested. Durations in nanoseconds; zero means the default.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Healthcheck {
    /// `["NONE"]`, `["CMD", …]`, `["CMD-SHELL", line]`; empty: inherit.
    pub test: Vec<String>,
    /// Between two probes; default 30 s.
    pub interval_ns: u64,
    /// Of one probe; default 30 s.
    pub timeout_ns: u64,
    /// Failures in a row that make it unhealthy; default 3.
    pub retries: u64,
    /// Failures do not count so long after the start.
    pub start_period_ns: u64,
    /// Between two probes in the start period; default 5 s.
    pub start_interval_ns: u64,
}

/// When an ended container is started again.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
pub enum RestartCondition {
    /// Never.
    None,
    /// When the exit code is not zero, or it is unhealthy.
    OnFailure,
    /// Always.
    #[default]
    Any,
}

/// Restart settings of a task. An absent field is not "zero": it leaves the choice to local repair (at once, with
/// back-off, without limit).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RestartPolicy {
    /// When.
    pub condition: RestartCondition,
    /// Nanoseconds before each restart.
    pub delay_ns: Option<u64>,
    /// Most restarts within the window.
    pub max_attempts: Option<u64>,
    /// Nanoseconds; zero or absent: since ever.
    pub window_ns: Option<u64>,
}

/// Where a task may run.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Placement {
    /// `node.labels.zone == a`, all must hold.
    pub constraints: Vec<String>,
    /// Label paths to spread over, outermost first: `node.labels.zone`.
    pub spread: Vec<String>,
    /// Most tasks of the service on one node; zero: no limit.
    pub max_replicas_per_node: u64,
    /// Platforms that the image runs on; empty: any.
    pub platforms: Vec<Platform>,
}

/// An operating system and an architecture; an empty field matches any.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Platform {
    /// `linux`.
    pub os: String,
    /// `amd64`, `arm64`.
    pub architecture: String,
}

/// Log driver and options.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LogDriver {
    /// `json-file` or `none`.
    pub name: String,
    /// `max-size`, `max-file`.
    pub options: BTreeMap<String, String>,
}

/// Whether the old task or the new one goes first.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
pub enum UpdateOrder {
    /// Stop, then start.
    #[default]
    StopFirst,
    /// Start, then stop.
    StartFirst,
}

/// What an update does when a new task fails.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
pub enum FailureAction {
    /// Stop and wait for the user.
    #[default]
    Pause,
    /// Go on.
    Continue,
    /// Return to the previous spec.
    Rollback,
}

/// How a change is rolled out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpdateConfig {
    /// Slots at a time; zero: all.
    pub parallelism: u64,
    /// Nanoseconds between two batches.
    pub delay_ns: u64,
    /// What to do when a new task fails.
    pub failure_action: FailureAction,
    /// Nanoseconds that a new task is watched for failure.
    pub monitor_ns: u64,
    /// Thousandths of the tasks that may fail.
    pub max_failure_permille: u32,
    /// Which goes first.
    pub order: UpdateOrder,
}

impl Default for UpdateConfig {
    fn default() -> Self {
        Self {
            parallelism: 1,
            delay_ns: 0,
            failure_action: FailureAction::Pause,
            monitor_ns: 5_000_000_000,
            max_failure_permille: 0,
            order: UpdateOrder::StopFirst,
        }
    }
}

/// Transport protocol of a port.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
pub enum Protocol {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    /// The word in Docker's API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// How a port is published.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
pub enum PublishMode {
    /// On every node.
    Ingress,
    /// On the task's own node.
    #[default]
    Host,
}

/// A published port.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct PortConfig {
    /// Name, optional.
    pub name: String,
    /// Protocol.
    pub protocol: Protocol,
    /// Port in the container.
    pub target: u16,
    /// Port on the host; zero: a free one.
    pub published: u16,
    /// How.
    pub mode: PublishMode,
    /// Addresses of the nodes that it is published on; empty: all of them.
    pub addrs: Vec<IpNet>,
    /// Clients that may connect; empty: all of them.
    pub allow: Vec<IpNet>,
}

/// How clients find the tasks.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct EndpointSpec {
    /// Resolution mode.
    pub mode: EndpointMode,
    /// Published ports.
    pub ports: Vec<PortConfig>,
    /// Connections of one client go to one task until it has been silent for so long, in seconds; `None`: each
    /// connection goes to any task.
    pub sticky_s: Option<u32>,
}

/// What a service's name resolves to.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
pub enum EndpointMode {
    /// A virtual address.
    #[default]
    Vip,
    /// The tasks' addresses.
    DnsRoundRobin,
}

impl TaskSpec {
    /// Names of the named volumes that it mounts, in order of appearance.
    pub fn named_volumes(&self) -> impl Iterator<Item = &str> {
        self.container
            .mounts
            .iter()
            .filter_map(|mount| match &mount.kind {
                MountKind::Volume { name, .. } if !name.is_empty() => Some(name.as_str()),
                MountKind::Volume { .. } | MountKind::Bind { .. } | MountKind::Tmpfs { .. } => None,
            })
    }
}

impl ServiceSpec {
    /// The effective answer to "what on a partition": `stop` when a task has a named volume, unless the user says.
    pub fn effective_on_partition(&self) -> OnPartition {
        self.on_partition
            .unwrap_or(if self.task.named_volumes().next().is_some() {
                OnPartition::Stop
            } else {
                OnPartition::Keep
            })
    }

    /// The host ports that each task occupies on its node.
    pub fn host_ports(&self) -> impl Iterator<Item = (Protocol, u16)> {
        self.endpoint
            .ports
            .iter()
            .filter(|port| port.mode == PublishMode::Host && port.published != 0)
            .map(|port| (port.protocol, port.published))
    }
}
