//! What is known of containers, volumes, networks and the engine itself.

use crate::config::{ContainerConfig, ContainerPort, NetworkMode};
use serde::{Deserialize, Serialize};
use shoal_model::{ContainerId, Labels, Timestamp};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::sync::Arc;

/// State of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ContainerStatus {
    /// Made, never started.
    Created,
    /// Runs.
    Running,
    /// Frozen.
    Paused,
    /// Ended; waits for its restart.
    Restarting,
    /// Is being removed.
    Removing,
    /// Ended.
    Exited,
    /// Its record could not be recovered or its removal failed; only a removal is possible.
    Dead,
}

impl ContainerStatus {
    /// The word in Docker's API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Restarting => "restarting",
            Self::Removing => "removing",
            Self::Exited => "exited",
            Self::Dead => "dead",
        }
    }

    /// Has a process.
    pub const fn is_running(self) -> bool {
        match self {
            Self::Running | Self::Paused => true,
            Self::Created | Self::Restarting | Self::Removing | Self::Exited | Self::Dead => false,
        }
    }
}

impl std::fmt::Display for ContainerStatus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

/// Health of a container with a health check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum HealthStatus {
    /// In its start period, no result yet.
    Starting,
    /// The last probe succeeded.
    Healthy,
    /// So many probes in a row failed.
    Unhealthy,
}

impl HealthStatus {
    /// The word in Docker's API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
        }
    }
}

/// One probe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthProbe {
    /// When it began.
    pub start: Timestamp,
    /// When it ended.
    pub end: Timestamp,
    /// Zero: healthy. -1: it could not be run or took too long.
    pub exit_code: i32,
    /// The beginning of its output.
    pub output: String,
}

/// Health and how it was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// Result.
    pub status: HealthStatus,
    /// Failed probes in a row.
    pub failing_streak: u64,
    /// The last probes, newest last, at most [`crate::HEALTH_PROBES_KEPT_MAX`].
    pub log: Vec<HealthProbe>,
}

/// The changing part of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerState {
    /// State.
    pub status: ContainerStatus,
    /// Process id on the host; zero when it does not run.
    pub pid: u32,
    /// Exit code of the last run; 128 + n for signal n.
    pub exit_code: i32,
    /// Why it could not be started; empty if nothing.
    pub error: String,
    /// The kernel killed it for memory in its last run.
    pub oom_killed: bool,
    /// Start of the last run.
    pub started_at: Option<Timestamp>,
    /// End of the last run.
    pub finished_at: Option<Timestamp>,
    /// Health, if it is checked.
    pub health: Option<Health>,
}

/// What a mount brings in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum MountPointKind {
    /// A path of the host.
    Bind,
    /// A volume.
    Volume,
    /// Memory.
    Tmpfs,
}

impl MountPointKind {
    /// The word in Docker's API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Bind => "bind",
            Self::Volume => "volume",
            Self::Tmpfs => "tmpfs",
        }
    }
}

/// A mount of a container as it was resolved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountPoint {
    /// What.
    pub kind: MountPointKind,
    /// Name of the volume; empty for other kinds.
    pub name: String,
    /// Path on the host; empty for tmpfs.
    pub source: String,
    /// Path in the container.
    pub target: String,
    /// Writable.
    pub writable: bool,
    /// Propagation of a bind: `rprivate`…
    pub propagation: String,
    /// The options as the user wrote them, or for tmpfs the mount options.
    pub mode: String,
    /// The volume is anonymous and belongs to this container.
    pub anonymous: bool,
    /// Fill an empty volume with the image's content.
    pub copy_up: bool,
    /// A missing source directory is made (the short form of a bind).
    pub create_source: bool,
}

/// A container's attachment to a network.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Endpoint {
    /// Name of the network.
    pub network: String,
    /// Id of the network.
    pub network_id: String,
    /// Address in the container; `None` for host and none.
    pub address: Option<Ipv4Addr>,
    /// Bits of the network's prefix.
    pub prefix_len: u8,
    /// Default gateway.
    pub gateway: Option<Ipv4Addr>,
    /// IPv6 address in the container, where the network has it.
    pub ipv6: Option<Ipv6Addr>,
    /// Bits of the network's IPv6 prefix.
    pub ipv6_prefix_len: u8,
    /// IPv6 gateway.
    pub ipv6_gateway: Option<Ipv6Addr>,
    /// `02:42:…`; empty for host and none.
    pub mac: String,
    /// Further names that it answers to in the network.
    pub aliases: Vec<String>,
}

/// A port that is published.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PublishedPort {
    /// In the container.
    pub container: ContainerPort,
    /// Host address.
    pub host_ip: IpAddr,
    /// Host port, chosen.
    pub host_port: u16,
}

/// The network side of a container.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct NetworkSettings {
    /// Attachments; empty when it does not run on a bridge.
    pub endpoints: Vec<Endpoint>,
    /// Its places in networks of the cluster, as the managers gave them out.
    pub overlay: Vec<shoal_model::network::Endpoint>,
    /// Published ports.
    pub ports: Vec<PublishedPort>,
    /// Where its network namespace is pinned.
    pub sandbox: Option<PathBuf>,
}

/// Everything about one container.
#[derive(Debug, Clone)]
pub struct ContainerInfo {
    /// Identity.
    pub id: ContainerId,
    /// Name without a leading slash.
    pub name: String,
    /// When it was made.
    pub created: Timestamp,
    /// Digest of the image's config, `sha256:…`.
    pub image_id: String,
    /// The user's settings, with the image's merged in.
    pub config: Arc<ContainerConfig>,
    /// The program.
    pub path: String,
    /// Its arguments.
    pub args: Vec<String>,
    /// The changing part.
    pub state: ContainerState,
    /// Restarts by policy since the last start by a user.
    pub restart_count: u32,
    /// Mounts.
    pub mounts: Arc<Vec<MountPoint>>,
    /// Network.
    pub network: NetworkSettings,
    /// Network mode with the other container's id resolved.
    pub network_mode: NetworkMode,
    /// The log file; `None` with log driver `none`.
    pub log_path: Option<PathBuf>,
    /// File behind /etc/hostname.
    pub hostname_path: PathBuf,
    /// File behind /etc/hosts.
    pub hosts_path: PathBuf,
    /// File behind /etc/resolv.conf.
    pub resolv_conf_path: PathBuf,
    /// Exec instances that run.
    pub exec_ids: Vec<ExecId>,
    /// Directory with the container's own writes.
    pub upper_dir: PathBuf,
}

impl ContainerInfo {
    /// The text of the `STATUS` column: `Up 5 minutes (healthy)`, `Exited (0) 3 seconds ago`.
    pub fn status_text(&self, now: Timestamp) -> String {
        crate::status_text::status_text(&self.state, now)
    }
}

/// An exec instance: 256 random bits as 64 hexadecimal digits.
pub type ExecId = String;

/// What is known of an exec instance.
#[derive(Debug, Clone)]
pub struct ExecInfo {
    /// Identity.
    pub id: ExecId,
    /// Its container.
    pub container_id: ContainerId,
    /// Runs now.
    pub running: bool,
    /// Once it has ended.
    pub exit_code: Option<i32>,
    /// Process id on the host; zero before the start.
    pub pid: u32,
    /// What was asked for.
    pub config: Arc<crate::requests::ExecConfig>,
}

/// A volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeInfo {
    /// Unique on this node.
    pub name: String,
    /// `local`.
    pub driver: String,
    /// Where the data is.
    pub mountpoint: PathBuf,
    /// When it was made.
    pub created: Timestamp,
    /// Set by the user.
    pub labels: Labels,
    /// Driver options.
    pub options: BTreeMap<String, String>,
    /// Made for one container without a name of its own.
    pub anonymous: bool,
    /// Containers that mount it.
    pub used_by: Vec<ContainerId>,
}

/// A network of this node.
#[derive(Debug, Clone)]
pub struct NetworkInfo {
    /// Identity: 64 hexadecimal digits.
    pub id: String,
    /// Name.
    pub name: String,
    /// `bridge`, `host`, `null`.
    pub driver: String,
    /// When it was made.
    pub created: Timestamp,
    /// Subnet in `a.b.c.d/n`; empty for host and none.
    pub subnet: String,
    /// Gateway; `None` for host and none.
    pub gateway: Option<Ipv4Addr>,
    /// Name of the bridge; empty for host and none.
    pub bridge: String,
    /// MTU of the bridge; zero for host and none.
    pub mtu: u32,
    /// Running containers in it: id, name, endpoint.
    pub containers: Vec<(ContainerId, String, Endpoint)>,
}

/// One sample of a container's use of resources. Absent controllers give zeros.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ContainerStats {
    /// When it was read.
    pub read: Timestamp,
    /// Nanoseconds of CPU time in all.
    pub cpu_total_ns: u64,
    /// Nanoseconds in user space.
    pub cpu_user_ns: u64,
    /// Nanoseconds in the kernel.
    pub cpu_system_ns: u64,
    /// Nanoseconds of CPU time of the whole host.
    pub host_cpu_total_ns: u64,
    /// CPUs of the host.
    pub online_cpus: u32,
    /// Throttled periods.
    pub throttled_periods: u64,
    /// Nanoseconds throttled.
    pub throttled_ns: u64,
    /// Bytes in use.
    pub memory_usage_bytes: u64,
    /// Bytes of inactive file cache, which Docker's CLI subtracts.
    pub memory_inactive_file_bytes: u64,
    /// Limit in bytes; the host's memory without one.
    pub memory_limit_bytes: u64,
    /// Processes and threads.
    pub pids: u64,
    /// Limit; zero: none.
    pub pids_limit: u64,
    /// Bytes read from block devices.
    pub block_read_bytes: u64,
    /// Bytes written to block devices.
    pub block_write_bytes: u64,
    /// Per interface: name and counters.
    pub networks: Vec<(String, InterfaceStats)>,
}

/// Counters of one interface in the container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct InterfaceStats {
    /// Received bytes.
    pub rx_bytes: u64,
    /// Received packets.
    pub rx_packets: u64,
    /// Receive errors.
    pub rx_errors: u64,
    /// Packets dropped on receive.
    pub rx_dropped: u64,
    /// Sent bytes.
    pub tx_bytes: u64,
    /// Sent packets.
    pub tx_packets: u64,
    /// Send errors.
    pub tx_errors: u64,
    /// Packets dropped on send.
    pub tx_dropped: u64,
}

/// The engine and its machine.
#[derive(Debug, Clone)]
pub struct EngineInfo {
    /// Containers in all.
    pub containers: usize,
    /// Containers that run.
    pub containers_running: usize,
    /// Containers that are paused.
    pub containers_paused: usize,
    /// Containers that have ended or were never started.
    pub containers_stopped: usize,
    /// Images.
    pub images: usize,
    /// Kernel release.
    pub kernel_version: String,
    /// `Debian GNU/Linux 12 (bookworm)`.
    pub operating_system: String,
    /// `12`.
    pub os_version: String,
    /// `x86_64`.
    pub architecture: String,
    /// CPUs that may be used.
    pub cpus: usize,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// 1 or 2 (1 for hybrid).
    pub cgroup_version: u8,
    /// Always `cgroupfs`: no service manager is asked.
    pub cgroup_driver: &'static str,
    /// Always `overlay2`: what Docker calls the same layout.
    pub storage_driver: &'static str,
    /// Default log driver.
    pub log_driver: String,
    /// Host name.
    pub hostname: String,
    /// Where the engine's data is.
    pub data_root: PathBuf,
    /// The kernel can limit memory.
    pub memory_limit: bool,
    /// The kernel can limit swap.
    pub swap_limit: bool,
    /// The kernel can limit CPU time.
    pub cpu_quota: bool,
    /// The kernel can limit processes.
    pub pids_limit: bool,
    /// Packets are forwarded.
    pub ipv4_forwarding: bool,
}
