//! `shoal service …`

use super::ListArgs;
use clap::{Args, Subcommand, ValueEnum};

#[derive(Debug, Subcommand)]
pub(crate) enum ServiceCommand {
    /// Create a service
    Create(Box<CreateArgs>),
    /// List services
    #[command(visible_alias = "list")]
    Ls(ListArgs),
    /// List the tasks of services
    Ps(PsArgs),
    /// Show services in detail
    Inspect(InspectArgs),
    /// Change the number of replicas
    Scale(ScaleArgs),
    /// Change a service
    Update(Box<UpdateArgs>),
    /// Return to the spec before the last update
    Rollback(RollbackArgs),
    /// Remove services
    #[command(visible_alias = "remove")]
    Rm {
        /// Names or ids
        #[arg(required = true, value_name = "SERVICE")]
        services: Vec<String>,
    },
    /// Show the logs of a service or a task
    Logs(LogsArgs),
    /// Say why tasks are not where they should be, and what would help
    Explain {
        /// Name or id
        service: String,
        /// Show the answer as JSON
        #[arg(long)]
        json: bool,
    },
    /// Give a slot a fresh volume instead of the one it is bound to
    RebindVolume {
        /// Name or id of the service
        service: String,
        /// Number of the slot
        #[arg(long)]
        slot: u64,
        /// Name of the volume
        #[arg(long)]
        volume: String,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Mode {
    /// A fixed number of replicas
    Replicated,
    /// One task on every node that fits
    Global,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum EndpointMode {
    /// A virtual address
    Vip,
    /// The addresses of the tasks
    Dnsrr,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum OnPartition {
    /// Kill the tasks of a cut-off node when its lease ends
    Stop,
    /// Let them run on
    Keep,
}

/// What `create` and `update` have in common.
#[derive(Debug, Default, Args)]
pub(crate) struct SpecFlags {
    /// Number of tasks
    #[arg(long)]
    pub(crate) replicas: Option<u64>,
    /// Overwrite the entrypoint of the image
    #[arg(long)]
    pub(crate) entrypoint: Option<String>,
    /// Working directory in the container
    #[arg(short, long)]
    pub(crate) workdir: Option<String>,
    /// User and optionally group: NAME|UID[:GROUP|GID]
    #[arg(short, long)]
    pub(crate) user: Option<String>,
    /// Host name of the container
    #[arg(long)]
    pub(crate) hostname: Option<String>,
    /// Allocate a pseudo-terminal
    #[arg(short, long, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub(crate) tty: Option<bool>,
    /// Run an init in the container that reaps processes
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub(crate) init: Option<bool>,
    /// Mount the root file system read-only
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub(crate) read_only: Option<bool>,
    /// Signal that stops the container
    #[arg(long)]
    pub(crate) stop_signal: Option<String>,
    /// Time between the stop signal and SIGKILL (default 10s)
    #[arg(long)]
    pub(crate) stop_grace_period: Option<String>,
    /// Most CPUs that a task may use
    #[arg(long)]
    pub(crate) limit_cpu: Option<String>,
    /// Most memory that a task may use
    #[arg(long)]
    pub(crate) limit_memory: Option<String>,
    /// Most processes of a task (0: no limit)
    #[arg(long)]
    pub(crate) limit_pids: Option<i64>,
    /// CPUs kept free for a task
    #[arg(long)]
    pub(crate) reserve_cpu: Option<String>,
    /// Memory kept free for a task
    #[arg(long)]
    pub(crate) reserve_memory: Option<String>,
    /// Most tasks on one node (0: no limit)
    #[arg(long)]
    pub(crate) replicas_max_per_node: Option<i64>,
    /// When to restart: none, on-failure, any
    #[arg(long)]
    pub(crate) restart_condition: Option<String>,
    /// Time before a restart
    #[arg(long)]
    pub(crate) restart_delay: Option<String>,
    /// Most restarts within the window
    #[arg(long)]
    pub(crate) restart_max_attempts: Option<i64>,
    /// Time in which restarts are counted
    #[arg(long)]
    pub(crate) restart_window: Option<String>,
    /// Tasks updated at a time (0: all)
    #[arg(long)]
    pub(crate) update_parallelism: Option<i64>,
    /// Time between two updates
    #[arg(long)]
    pub(crate) update_delay: Option<String>,
    /// Time that a new task is watched for failure
    #[arg(long)]
    pub(crate) update_monitor: Option<String>,
    /// When a new task fails: pause, continue, rollback
    #[arg(long)]
    pub(crate) update_failure_action: Option<String>,
    /// Part of the tasks that may fail
    #[arg(long)]
    pub(crate) update_max_failure_ratio: Option<f64>,
    /// stop-first or start-first
    #[arg(long)]
    pub(crate) update_order: Option<String>,
    #[command(flatten)]
    pub(crate) health: super::container::HealthFlags,
    /// Log driver: json-file or none
    #[arg(long)]
    pub(crate) log_driver: Option<String>,
    /// Option of the log driver: max-size=10m
    #[arg(long = "log-opt")]
    pub(crate) log_opts: Vec<String>,
    /// Preference of the kernel's out-of-memory killer (-1000 to 1000)
    #[arg(long, allow_hyphen_values = true)]
    pub(crate) oom_score_adj: Option<i64>,
    /// What a node does with the tasks when it loses the managers
    #[arg(long)]
    pub(crate) on_partition: Option<OnPartition>,
    /// Silence of a node after which its tasks are replaced (default: the cluster's, 3s)
    #[arg(long)]
    pub(crate) down_limit: Option<String>,
    /// What the service's name resolves to: vip (one virtual address) or dnsrr (the tasks' addresses)
    #[arg(long)]
    pub(crate) endpoint_mode: Option<EndpointMode>,
    /// Send the connections of one client to one task until it has been silent for so long: 10m (0: do not)
    #[arg(long, value_name = "DURATION")]
    pub(crate) sticky: Option<String>,
    /// Send this user's credentials for the image's registry to the nodes
    #[arg(long)]
    pub(crate) with_registry_auth: bool,
    /// Return at once instead of waiting for the tasks
    #[arg(short, long, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub(crate) detach: Option<bool>,
    /// No progress display
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    /// Name of the service
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Replicated or global
    #[arg(long, default_value = "replicated")]
    pub(crate) mode: Mode,
    #[command(flatten)]
    pub(crate) flags: SpecFlags,
    /// Environment variable: KEY=VALUE
    #[arg(short, long)]
    pub(crate) env: Vec<String>,
    /// File with environment variables
    #[arg(long)]
    pub(crate) env_file: Vec<String>,
    /// Label of the service
    #[arg(short, long = "label")]
    pub(crate) labels: Vec<String>,
    /// Label of the containers
    #[arg(long = "container-label")]
    pub(crate) container_labels: Vec<String>,
    /// Where tasks may run: node.labels.zone==a
    #[arg(long = "constraint")]
    pub(crate) constraints: Vec<String>,
    /// Spread over: spread=node.labels.zone
    #[arg(long = "placement-pref")]
    pub(crate) placement_prefs: Vec<String>,
    /// Mount: type=volume,source=NAME,target=PATH
    #[arg(long = "mount")]
    pub(crate) mounts: Vec<String>,
    /// Network: NETWORK or name=NETWORK[,alias=NAME]; published ports lead to the first
    #[arg(long = "network", value_name = "NETWORK")]
    pub(crate) networks: Vec<String>,
    /// Published port: 8080:80[/udp] or published=8080,target=80[,protocol=udp][,mode=ingress|host][,addr=CIDR][,allow=CIDR]
    #[arg(short, long = "publish", value_name = "PORT")]
    pub(crate) ports: Vec<String>,
    /// Line for /etc/hosts: HOST:IP
    #[arg(long = "host-entry", visible_alias = "add-host")]
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
    /// Kernel setting: KEY=VALUE
    #[arg(long = "sysctl")]
    pub(crate) sysctls: Vec<String>,
    /// Process limit: NAME=SOFT[:HARD]
    #[arg(long = "ulimit")]
    pub(crate) ulimits: Vec<String>,
    /// Add a capability
    #[arg(long)]
    pub(crate) cap_add: Vec<String>,
    /// Drop a capability
    #[arg(long)]
    pub(crate) cap_drop: Vec<String>,
    /// Further group of the user
    #[arg(long = "group")]
    pub(crate) groups: Vec<String>,
    /// Name of the image
    pub(crate) image: String,
    /// Command and arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) command: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct UpdateArgs {
    #[command(flatten)]
    pub(crate) flags: SpecFlags,
    /// New image
    #[arg(long)]
    pub(crate) image: Option<String>,
    /// New command line, in one word
    #[arg(long)]
    pub(crate) args: Option<String>,
    /// Replace all tasks even if nothing changed
    #[arg(long)]
    pub(crate) force: bool,
    /// Return to the previous spec
    #[arg(long)]
    pub(crate) rollback: bool,
    /// Add or change an environment variable
    #[arg(long)]
    pub(crate) env_add: Vec<String>,
    /// Remove an environment variable
    #[arg(long)]
    pub(crate) env_rm: Vec<String>,
    /// Add or change a label
    #[arg(long)]
    pub(crate) label_add: Vec<String>,
    /// Remove a label
    #[arg(long)]
    pub(crate) label_rm: Vec<String>,
    /// Add or change a label of the containers
    #[arg(long)]
    pub(crate) container_label_add: Vec<String>,
    /// Remove a label of the containers
    #[arg(long)]
    pub(crate) container_label_rm: Vec<String>,
    /// Add a constraint
    #[arg(long)]
    pub(crate) constraint_add: Vec<String>,
    /// Remove a constraint
    #[arg(long)]
    pub(crate) constraint_rm: Vec<String>,
    /// Add a placement preference
    #[arg(long)]
    pub(crate) placement_pref_add: Vec<String>,
    /// Remove a placement preference
    #[arg(long)]
    pub(crate) placement_pref_rm: Vec<String>,
    /// Add or change a mount
    #[arg(long)]
    pub(crate) mount_add: Vec<String>,
    /// Remove the mount with this target
    #[arg(long)]
    pub(crate) mount_rm: Vec<String>,
    /// Add a network, or change its aliases
    #[arg(long, value_name = "NETWORK")]
    pub(crate) network_add: Vec<String>,
    /// Remove a network
    #[arg(long, value_name = "NETWORK")]
    pub(crate) network_rm: Vec<String>,
    /// Add or change a published port
    #[arg(long)]
    pub(crate) publish_add: Vec<String>,
    /// Remove the published port with this target
    #[arg(long)]
    pub(crate) publish_rm: Vec<String>,
    /// Name or id
    pub(crate) service: String,
}

#[derive(Debug, Args)]
pub(crate) struct PsArgs {
    #[command(flatten)]
    pub(crate) list: ListArgs,
    /// Do not map ids to names
    #[arg(long)]
    pub(crate) no_resolve: bool,
    /// Names or ids
    #[arg(required = true, value_name = "SERVICE")]
    pub(crate) services: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    #[command(flatten)]
    pub(crate) format: super::FormatArgs,
    /// Show it for people
    #[arg(long, conflicts_with = "format")]
    pub(crate) pretty: bool,
    /// Names or ids
    #[arg(required = true, value_name = "SERVICE")]
    pub(crate) services: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct ScaleArgs {
    /// Return at once instead of waiting for the tasks
    #[arg(short, long)]
    pub(crate) detach: bool,
    /// SERVICE=REPLICAS
    #[arg(required = true, value_name = "SERVICE=REPLICAS")]
    pub(crate) scales: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct RollbackArgs {
    /// Return at once instead of waiting for the tasks
    #[arg(short, long)]
    pub(crate) detach: bool,
    /// No progress display
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// Name or id
    pub(crate) service: String,
}

#[derive(Debug, Args)]
pub(crate) struct LogsArgs {
    #[command(flatten)]
    pub(crate) logs: super::container::LogFlags,
    /// Do not say which task wrote a line
    #[arg(long)]
    pub(crate) raw: bool,
    /// Do not shorten ids
    #[arg(long)]
    pub(crate) no_trunc: bool,
    /// Do not map ids to names
    #[arg(long)]
    pub(crate) no_resolve: bool,
    /// Name or id of a service or a task
    pub(crate) service: String,
}
