//! Commands on containers.

use super::{FormatArgs, ListArgs};
use clap::{Args, ValueEnum};

/// Health check flags of containers and services.
#[derive(Debug, Default, Args)]
pub(crate) struct HealthFlags {
    /// Command that tests the health
    #[arg(long)]
    pub(crate) health_cmd: Option<String>,
    /// Time between two tests
    #[arg(long)]
    pub(crate) health_interval: Option<String>,
    /// Longest time of a test
    #[arg(long)]
    pub(crate) health_timeout: Option<String>,
    /// Failures in a row that make it unhealthy
    #[arg(long)]
    pub(crate) health_retries: Option<i64>,
    /// Time after the start in which failures do not count
    #[arg(long)]
    pub(crate) health_start_period: Option<String>,
    /// Time between two tests in the start period
    #[arg(long)]
    pub(crate) health_start_interval: Option<String>,
    /// No health check, whatever the image says
    #[arg(long)]
    pub(crate) no_healthcheck: bool,
}

/// What `run` and `create` have in common.
#[derive(Debug, Args)]
pub(crate) struct ContainerFlags {
    /// Name of the container
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Remove the container when it ends
    #[arg(long)]
    pub(crate) rm: bool,
    /// Keep standard input open
    #[arg(short, long)]
    pub(crate) interactive: bool,
    /// Allocate a pseudo-terminal
    #[arg(short, long)]
    pub(crate) tty: bool,
    /// Environment variable: KEY=VALUE
    #[arg(short, long)]
    pub(crate) env: Vec<String>,
    /// File with environment variables
    #[arg(long)]
    pub(crate) env_file: Vec<String>,
    /// Label
    #[arg(short, long = "label")]
    pub(crate) labels: Vec<String>,
    /// Publish a port: [[IP:]HOSTPORT:]PORT[/PROTOCOL]
    #[arg(short, long = "publish")]
    pub(crate) ports: Vec<String>,
    /// Bind mount or volume: SOURCE:TARGET[:ro]
    #[arg(short, long = "volume")]
    pub(crate) volumes: Vec<String>,
    /// Mount: type=volume,source=NAME,target=PATH
    #[arg(long = "mount")]
    pub(crate) mounts: Vec<String>,
    /// Memory file system: PATH[:OPTIONS]
    #[arg(long)]
    pub(crate) tmpfs: Vec<String>,
    /// Network: bridge, host, none, container:NAME, or networks of the cluster: NETWORK or
    /// name=NETWORK[,alias=NAME][,ip=ADDRESS]
    #[arg(long = "network", visible_alias = "net", value_name = "NETWORK")]
    pub(crate) networks: Vec<String>,
    /// IPv4 address in the first network
    #[arg(long)]
    pub(crate) ip: Option<String>,
    /// Further name in the first network
    #[arg(long = "network-alias", visible_alias = "net-alias")]
    pub(crate) network_aliases: Vec<String>,
    /// Host name
    #[arg(long)]
    pub(crate) hostname: Option<String>,
    /// Line for /etc/hosts: HOST:IP
    #[arg(long = "add-host")]
    pub(crate) hosts: Vec<String>,
    /// Name server
    #[arg(long)]
    pub(crate) dns: Vec<String>,
    /// Search domain
    #[arg(long)]
    pub(crate) dns_search: Vec<String>,
    /// Resolver option
    #[arg(long)]
    pub(crate) dns_option: Vec<String>,
    /// User and optionally group
    #[arg(short, long)]
    pub(crate) user: Option<String>,
    /// Further group of the user
    #[arg(long)]
    pub(crate) group_add: Vec<String>,
    /// Working directory in the container
    #[arg(short, long)]
    pub(crate) workdir: Option<String>,
    /// Overwrite the entrypoint of the image
    #[arg(long)]
    pub(crate) entrypoint: Option<String>,
    /// Restart policy: no, on-failure[:N], always, unless-stopped
    #[arg(long, default_value = "no")]
    pub(crate) restart: String,
    /// Mount the root file system read-only
    #[arg(long)]
    pub(crate) read_only: bool,
    /// Run an init in the container that reaps processes
    #[arg(long)]
    pub(crate) init: bool,
    /// Give it every capability that the daemon has, and all devices
    #[arg(long)]
    pub(crate) privileged: bool,
    /// Add a capability
    #[arg(long)]
    pub(crate) cap_add: Vec<String>,
    /// Drop a capability
    #[arg(long)]
    pub(crate) cap_drop: Vec<String>,
    /// Security option: no-new-privileges, seccomp=unconfined
    #[arg(long)]
    pub(crate) security_opt: Vec<String>,
    /// Memory limit
    #[arg(short, long)]
    pub(crate) memory: Option<String>,
    /// Memory and swap limit (-1: no limit on swap)
    #[arg(long, allow_hyphen_values = true)]
    pub(crate) memory_swap: Option<String>,
    /// Memory kept when the machine is short
    #[arg(long)]
    pub(crate) memory_reservation: Option<String>,
    /// Number of CPUs
    #[arg(long)]
    pub(crate) cpus: Option<String>,
    /// Relative weight of CPU time
    #[arg(long)]
    pub(crate) cpu_shares: Option<i64>,
    /// CPUs to run on: 0-3 or 0,1
    #[arg(long)]
    pub(crate) cpuset_cpus: Option<String>,
    /// Most processes (-1: no limit)
    #[arg(long, allow_hyphen_values = true)]
    pub(crate) pids_limit: Option<i64>,
    /// Process limit: NAME=SOFT[:HARD]
    #[arg(long = "ulimit")]
    pub(crate) ulimits: Vec<String>,
    /// Kernel setting: KEY=VALUE
    #[arg(long = "sysctl")]
    pub(crate) sysctls: Vec<String>,
    /// Device of the host: PATH[:PATH[:rwm]]
    #[arg(long = "device")]
    pub(crate) devices: Vec<String>,
    /// Size of /dev/shm
    #[arg(long)]
    pub(crate) shm_size: Option<String>,
    /// Preference of the kernel's out-of-memory killer (-1000 to 1000)
    #[arg(long, allow_hyphen_values = true)]
    pub(crate) oom_score_adj: Option<i64>,
    /// Signal that stops the container
    #[arg(long)]
    pub(crate) stop_signal: Option<String>,
    /// Seconds between the stop signal and SIGKILL
    #[arg(long)]
    pub(crate) stop_timeout: Option<i64>,
    #[command(flatten)]
    pub(crate) health: HealthFlags,
    /// Log driver: json-file or none
    #[arg(long)]
    pub(crate) log_driver: Option<String>,
    /// Option of the log driver
    #[arg(long = "log-opt")]
    pub(crate) log_opts: Vec<String>,
    /// When to pull the image
    #[arg(long, default_value = "missing")]
    pub(crate) pull: PullPolicy,
    /// Name of the image
    pub(crate) image: String,
    /// Command and arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) command: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum PullPolicy {
    /// Before every run
    Always,
    /// When the image is not here
    Missing,
    /// Not at all
    Never,
}

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// Run in the background and print the container's id
    #[arg(short, long)]
    pub(crate) detach: bool,
    /// Keys that detach: ctrl-p,ctrl-q
    #[arg(long)]
    pub(crate) detach_keys: Option<String>,
    /// Write the container's id to this file
    #[arg(long)]
    pub(crate) cidfile: Option<std::path::PathBuf>,
    #[command(flatten)]
    pub(crate) container: ContainerFlags,
}

#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    #[command(flatten)]
    pub(crate) container: ContainerFlags,
}

#[derive(Debug, Args)]
pub(crate) struct Names {
    /// Names or ids
    #[arg(required = true, value_name = "CONTAINER")]
    pub(crate) names: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct PsArgs {
    #[command(flatten)]
    pub(crate) list: ListArgs,
    /// Stopped containers too
    #[arg(short, long)]
    pub(crate) all: bool,
    /// Only the last created N containers
    #[arg(short = 'n', long, allow_hyphen_values = true)]
    pub(crate) last: Option<i32>,
    /// Show sizes
    #[arg(short, long)]
    pub(crate) size: bool,
}

/// Which lines of a log.
#[derive(Debug, Args)]
pub(crate) struct LogFlags {
    /// Go on as lines arrive
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Show when lines were written
    #[arg(short, long)]
    pub(crate) timestamps: bool,
    /// Only lines after a time (2026-01-02T13:23:37Z) or so long ago (42m)
    #[arg(long)]
    pub(crate) since: Option<String>,
    /// Only the last N lines
    #[arg(short = 'n', long, default_value = "all")]
    pub(crate) tail: String,
}

#[derive(Debug, Args)]
pub(crate) struct LogsArgs {
    #[command(flatten)]
    pub(crate) logs: LogFlags,
    /// Only lines before a time or so long ago
    #[arg(long)]
    pub(crate) until: Option<String>,
    /// Name or id
    pub(crate) container: String,
}

#[derive(Debug, Args)]
pub(crate) struct ExecArgs {
    /// Run in the background
    #[arg(short, long)]
    pub(crate) detach: bool,
    /// Keep standard input open
    #[arg(short, long)]
    pub(crate) interactive: bool,
    /// Allocate a pseudo-terminal
    #[arg(short, long)]
    pub(crate) tty: bool,
    /// Environment variable
    #[arg(short, long)]
    pub(crate) env: Vec<String>,
    /// User and optionally group
    #[arg(short, long)]
    pub(crate) user: Option<String>,
    /// Working directory
    #[arg(short, long)]
    pub(crate) workdir: Option<String>,
    /// All capabilities that the daemon has
    #[arg(long)]
    pub(crate) privileged: bool,
    /// Name or id
    pub(crate) container: String,
    /// Command and arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) command: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct StopArgs {
    /// Seconds until SIGKILL (-1: never)
    #[arg(short, long, visible_alias = "timeout", allow_hyphen_values = true)]
    pub(crate) time: Option<i32>,
    /// Signal instead of the container's stop signal
    #[arg(short, long)]
    pub(crate) signal: Option<String>,
    /// Names or ids
    #[arg(required = true, value_name = "CONTAINER")]
    pub(crate) names: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct KillArgs {
    /// Signal
    #[arg(short, long, default_value = "KILL")]
    pub(crate) signal: String,
    /// Names or ids
    #[arg(required = true, value_name = "CONTAINER")]
    pub(crate) names: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct RmArgs {
    /// Running containers too
    #[arg(short, long)]
    pub(crate) force: bool,
    /// Anonymous volumes too
    #[arg(short, long)]
    pub(crate) volumes: bool,
    /// Names or ids
    #[arg(required = true, value_name = "CONTAINER")]
    pub(crate) names: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    #[command(flatten)]
    pub(crate) format: FormatArgs,
    /// Kind of object: container, image, volume, node, service, task
    #[arg(long = "type")]
    pub(crate) kind: Option<String>,
    /// Names or ids
    #[arg(required = true, value_name = "NAME")]
    pub(crate) names: Vec<String>,
}
