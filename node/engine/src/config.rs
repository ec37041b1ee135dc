//! What a user asks a container to be. Docker's fields in the engine's own types; the API converts at its edge.

use serde::{Deserialize, Serialize};
use shoal_model::Labels;
use shoal_model::network::{AttachmentWish, Endpoint};
use shoal_model::spec::{Healthcheck, Mount, Protocol, Ulimit};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;

use crate::error::EngineError;

/// A port of a container: `80/tcp`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContainerPort {
    /// Number, never zero.
    pub port: u16,
    /// Protocol.
    pub protocol: Protocol,
}

impl fmt::Display for ContainerPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.port, self.protocol.as_str())
    }
}

impl FromStr for ContainerPort {
    type Err = EngineError;

    fn from_str(text: &str) -> Result<Self, EngineError> {
        let (number, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
        let protocol = match protocol {
            "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            other => {
                return Err(EngineError::unsupported(
                    format!("port `{text}`"),
                    format!("protocol `{other}`; use tcp or udp"),
                ));
            }
        };
        match number.parse() {
            Ok(port) if port > 0 => Ok(Self { port, protocol }),
            _ => Err(EngineError::invalid(
                format!("port `{text}`"),
                "expected a number from 1 to 65535, `/tcp` or `/udp`",
            )),
        }
    }
}

impl Serialize for ContainerPort {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ContainerPort {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

/// Where on the host a container's port is published.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PortBinding {
    /// Host address.
    pub host_ip: IpAddr,
    /// First and last host port that may be taken; `(0, 0)`: any free one.
    pub host_ports: (u16, u16),
}

impl Default for PortBinding {
    fn default() -> Self {
        Self {
            host_ip: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            host_ports: (0, 0),
        }
    }
}

/// Which network a container is in.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum NetworkMode {
    /// The default bridge.
    #[default]
    Bridge,
    /// The host's own.
    Host,
    /// Only a loopback interface.
    None,
    /// That of another container, by name or id.
    Container(String),
    /// An attachable network of the cluster, by name or id.
    Named(String),
}

impl NetworkMode {
    /// Reads Docker's text.
    pub fn parse(text: &str) -> Self {
        match text {
            "" | "default" | "bridge" => Self::Bridge,
            "host" => Self::Host,
            "none" => Self::None,
            other => match other.strip_prefix("container:") {
                Some(name) => Self::Container(name.to_owned()),
                None => Self::Named(other.to_owned()),
            },
        }
    }
}

impl fmt::Display for NetworkMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bridge => f.write_str("bridge"),
            Self::Host => f.write_str("host"),
            Self::None => f.write_str("none"),
            Self::Container(name) => write!(f, "container:{name}"),
            Self::Named(name) => f.write_str(name),
        }
    }
}

/// A namespace of the container: its own, the host's, or that of another container.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum NamespaceMode {
    /// Its own.
    #[default]
    Private,
    /// The host's.
    Host,
    /// That of another container, by name or id.
    Container(String),
}

impl NamespaceMode {
    /// Reads Docker's text; `field` names it in the error.
    pub fn parse(field: &str, text: &str) -> Result<Self, EngineError> {
        match text {
            "" | "private" | "shareable" => Ok(Self::Private),
            "host" => Ok(Self::Host),
            other => match other.strip_prefix("container:") {
                Some(name) if !name.is_empty() => Ok(Self::Container(name.to_owned())),
                _ => Err(EngineError::invalid(
                    field,
                    format!("`{other}`: expected private, host or container:NAME"),
                )),
            },
        }
    }
}

impl fmt::Display for NamespaceMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Private => f.write_str("private"),
            Self::Host => f.write_str("host"),
            Self::Container(name) => write!(f, "container:{name}"),
        }
    }
}

/// When an ended container is started again by the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum RestartPolicy {
    /// Never.
    #[default]
    No,
    /// Always, also after a start of the engine.
    Always,
    /// Always, unless the user stopped it.
    UnlessStopped,
    /// When the exit code is not zero.
    OnFailure {
        /// Most restarts; zero: no limit.
        retries_max: u32,
    },
}

/// How output is kept.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LogConfig {
    /// `json-file`, `none`, or empty for the engine's default.
    pub driver: String,
    /// `max-size`, `max-file`.
    pub options: BTreeMap<String, String>,
}

/// A device of the host that the container sees.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceMapping {
    /// On the host.
    pub host_path: String,
    /// In the container; empty: the same.
    pub container_path: String,
    /// `rwm` or a part of it.
    pub permissions: String,
}

/// Limits of a container. Zero means "no limit" unless said otherwise.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ResourceLimits {
    /// Bytes of memory.
    pub memory_bytes: i64,
    /// Bytes of memory and swap together; -1: unlimited; 0: twice the memory.
    pub memory_swap_bytes: i64,
    /// Soft limit.
    pub memory_reservation_bytes: i64,
    /// Billionths of one CPU.
    pub nano_cpus: i64,
    /// Relative weight; 1024 is one share.
    pub cpu_shares: i64,
    /// Microseconds of CPU time per period.
    pub cpu_quota: i64,
    /// Microseconds.
    pub cpu_period: i64,
    /// `0-2,4`.
    pub cpuset_cpus: String,
    /// `0-1`.
    pub cpuset_mems: String,
    /// Most processes and threads; -1 and 0: no limit.
    pub pids_limit: i64,
}

/// How the host runs a container.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct HostConfig {
    /// `SOURCE:TARGET[:OPTIONS]`; a source with a leading `/` is a path, otherwise the name of a volume.
    pub binds: Vec<String>,
    /// Mounts in the long form.
    pub mounts: Vec<Mount>,
    /// Target to options of memory file systems: `size=64m,mode=1777,ro`.
    pub tmpfs: BTreeMap<String, String>,
    /// `NAME[:ro|rw]` of containers whose mounts this one gets too.
    pub volumes_from: Vec<String>,
    /// Network.
    pub network_mode: NetworkMode,
    /// Published ports.
    pub port_bindings: BTreeMap<ContainerPort, Vec<PortBinding>>,
    /// Publish every exposed port on a free host port.
    pub publish_all_ports: bool,
    /// Restart policy.
    pub restart_policy: RestartPolicy,
    /// Remove the container and its anonymous volumes when it ends.
    pub auto_remove: bool,
    /// Every capability and device that the daemon has, no confinement.
    pub privileged: bool,
    /// Added capabilities, with or without `CAP_`, or `ALL`.
    pub cap_add: Vec<String>,
    /// Dropped capabilities.
    pub cap_drop: Vec<String>,
    /// `no-new-privileges[=true|false]`, `seccomp=unconfined`, `systempaths=unconfined`.
    pub security_opt: Vec<String>,
    /// Mount the root read-only.
    pub read_only_rootfs: bool,
    /// Name servers; empty: the host's.
    pub dns: Vec<String>,
    /// Search domains.
    pub dns_search: Vec<String>,
    /// Resolver options.
    pub dns_options: Vec<String>,
    /// `NAME:ADDRESS` for /etc/hosts; `host-gateway` stands for the bridge's own address.
    pub extra_hosts: Vec<String>,
    /// Process ids.
    pub pid_mode: NamespaceMode,
    /// System V and POSIX objects.
    pub ipc_mode: NamespaceMode,
    /// Host name: private or host.
    pub uts_mode: NamespaceMode,
    /// Cgroup view: private or host.
    pub cgroupns_mode: NamespaceMode,
    /// Limits.
    pub resources: ResourceLimits,
    /// -1000 to 1000.
    pub oom_score_adj: i32,
    /// Do not let the kernel kill processes when memory runs out (cgroup v1 only).
    pub oom_kill_disable: bool,
    /// Bytes of /dev/shm; zero: 64 MiB.
    pub shm_size_bytes: i64,
    /// Kernel settings of the container's namespaces.
    pub sysctls: BTreeMap<String, String>,
    /// Process limits.
    pub ulimits: Vec<Ulimit>,
    /// Devices.
    pub devices: Vec<DeviceMapping>,
    /// Further groups, by name or number.
    pub group_add: Vec<String>,
    /// Run an init as process 1 that reaps.
    pub init: bool,
    /// Log driver.
    pub log: LogConfig,
    /// Masked paths; `None`: the default ones.
    pub masked_paths: Option<Vec<String>>,
    /// Read-only paths; `None`: the default ones.
    pub readonly_paths: Option<Vec<String>>,
}

/// Until when a container may run without a renewal. The shim kills it at the deadline, daemon or no daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Fencing {
    /// Nanoseconds of CLOCK_BOOTTIME.
    pub deadline_boottime_ns: u64,
}

/// What a user asks for, and, in [`crate::ContainerInfo`], what came of it once the image's settings were merged in.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerConfig {
    /// Reference or id of the image.
    pub image: String,
    /// Host name; empty: the short id.
    pub hostname: String,
    /// Domain name.
    pub domainname: String,
    /// `user[:group]`; empty: the image's.
    pub user: String,
    /// The client attaches standard input (told back by inspect).
    pub attach_stdin: bool,
    /// The client attaches standard output.
    pub attach_stdout: bool,
    /// The client attaches standard error.
    pub attach_stderr: bool,
    /// A terminal.
    pub tty: bool,
    /// Keep standard input open.
    pub open_stdin: bool,
    /// Close standard input when the first attached client goes.
    pub stdin_once: bool,
    /// `KEY=value`; `KEY` alone removes it.
    pub env: Vec<String>,
    /// Command; `None`: the image's, unless the entrypoint is given.
    pub cmd: Option<Vec<String>>,
    /// Entrypoint; `None`: the image's. `Some([""])` removes it.
    pub entrypoint: Option<Vec<String>>,
    /// Working directory; empty: the image's.
    pub working_dir: String,
    /// Labels.
    pub labels: Labels,
    /// Targets of anonymous volumes.
    pub volumes: BTreeSet<String>,
    /// Ports that the image or the user declares.
    pub exposed_ports: BTreeSet<ContainerPort>,
    /// Health check; `None`: the image's.
    pub healthcheck: Option<Healthcheck>,
    /// Signal that asks it to stop; empty: the image's or SIGTERM.
    pub stop_signal: String,
    /// Seconds between the stop signal and SIGKILL; `None`: 10; -1: for ever.
    pub stop_timeout_s: Option<i64>,
    /// No network at all.
    pub network_disabled: bool,
    /// Its addresses in networks of the cluster, given out by the managers, for tasks. With any, the container is in
    /// these networks and not on the default bridge.
    pub endpoints: Vec<Endpoint>,
    /// The attachable networks that it wishes to be in, the one of the network mode first; addresses are asked for at
    /// each start.
    pub networks: Vec<AttachmentWish>,
    /// How the host runs it.
    pub host: HostConfig,
    /// Killed at a deadline that must be renewed; for tasks with `--on-partition stop`.
    pub fencing: Option<Fencing>,
}
