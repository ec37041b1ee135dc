//! Commands on nodes, membership and volumes.

use super::{FormatArgs, ListArgs};
use clap::{Args, Subcommand, ValueEnum};

#[derive(Debug, Subcommand)]
pub(crate) enum NodeCommand {
    /// List nodes
    #[command(visible_alias = "list")]
    Ls(ListArgs),
    /// Show nodes in detail
    Inspect {
        #[command(flatten)]
        format: FormatArgs,
        /// Show it for people
        #[arg(long, conflicts_with = "format")]
        pretty: bool,
        /// Names or ids; `self` for this one
        #[arg(required = true, value_name = "NODE")]
        nodes: Vec<String>,
    },
    /// List the tasks on nodes
    Ps {
        #[command(flatten)]
        list: ListArgs,
        /// Names or ids; this one when absent
        nodes: Vec<String>,
    },
    /// Make workers managers
    Promote {
        /// Names or ids
        #[arg(required = true, value_name = "NODE")]
        nodes: Vec<String>,
    },
    /// Make managers workers
    Demote {
        /// Names or ids
        #[arg(required = true, value_name = "NODE")]
        nodes: Vec<String>,
    },
    /// Remove nodes from the cluster
    #[command(visible_alias = "remove")]
    Rm {
        /// Also nodes that are up
        #[arg(short, long)]
        force: bool,
        /// Names or ids
        #[arg(required = true, value_name = "NODE")]
        nodes: Vec<String>,
    },
    /// Change a node
    Update(NodeUpdateArgs),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Availability {
    /// Takes tasks
    Active,
    /// Keeps its tasks, takes no new ones
    Pause,
    /// Its tasks are moved away
    Drain,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Role {
    /// Runs tasks
    Worker,
    /// Runs the cluster
    Manager,
}

#[derive(Debug, Args)]
pub(crate) struct NodeUpdateArgs {
    /// Whether it takes tasks
    #[arg(long)]
    pub(crate) availability: Option<Availability>,
    /// Its role
    #[arg(long)]
    pub(crate) role: Option<Role>,
    /// Add or change a label
    #[arg(long)]
    pub(crate) label_add: Vec<String>,
    /// Remove a label
    #[arg(long)]
    pub(crate) label_rm: Vec<String>,
    /// Name or id
    pub(crate) node: String,
}

#[derive(Debug, Args)]
pub(crate) struct InitArgs {
    /// Address that other machines reach this one at
    #[arg(long)]
    pub(crate) advertise_addr: Option<String>,
    /// Address to listen on
    #[arg(long)]
    pub(crate) listen_addr: Option<String>,
    /// Where subnets of networks are taken from (default 10.0.0.0/8)
    #[arg(long = "default-addr-pool", value_name = "BLOCK")]
    pub(crate) address_pools: Vec<String>,
    /// Prefix length of the subnets that networks get (default 24)
    #[arg(long = "default-addr-pool-mask-length", value_name = "LENGTH")]
    pub(crate) subnet_length: Option<u8>,
    /// Where the nodes' own addresses in the mesh are taken from (default 10.255.0.0/16)
    #[arg(long, value_name = "BLOCK")]
    pub(crate) mesh_pool: Option<String>,
    /// Time after which a node changes its WireGuard key (default 168h)
    #[arg(long, value_name = "DURATION")]
    pub(crate) key_rotation: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct JoinArgs {
    /// The token, from `shoal join-token`
    #[arg(long)]
    pub(crate) token: String,
    /// Address that other machines reach this one at
    #[arg(long)]
    pub(crate) advertise_addr: Option<String>,
    /// Address to listen on
    #[arg(long)]
    pub(crate) listen_addr: Option<String>,
    /// Address of a manager: HOST[:PORT]
    pub(crate) remote: String,
}

#[derive(Debug, Args)]
pub(crate) struct JoinTokenArgs {
    /// Make a new token; the old one is refused from then on
    #[arg(long)]
    pub(crate) rotate: bool,
    /// Life of the new token: 24h
    #[arg(long, requires = "rotate")]
    pub(crate) expires: Option<String>,
    /// Machines that may join with the new token
    #[arg(long, requires = "rotate")]
    pub(crate) uses: Option<u64>,
    /// Show only the token
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// For which role
    pub(crate) role: Role,
}

#[derive(Debug, Args)]
pub(crate) struct LeaveArgs {
    /// Also as a manager, even if the cluster loses its quorum
    #[arg(short, long)]
    pub(crate) force: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum VolumeCommand {
    /// Create a volume on this machine
    Create {
        /// Driver
        #[arg(short, long, default_value = "local")]
        driver: String,
        /// Option of the driver
        #[arg(short, long = "opt")]
        opts: Vec<String>,
        /// Label
        #[arg(long = "label")]
        labels: Vec<String>,
        /// Name; a random one when absent
        name: Option<String>,
    },
    /// List volumes
    #[command(visible_alias = "list")]
    Ls {
        #[command(flatten)]
        list: ListArgs,
        /// Those of the whole cluster, with the node that each is on
        #[arg(long)]
        cluster: bool,
    },
    /// Show volumes in detail
    Inspect {
        #[command(flatten)]
        format: FormatArgs,
        /// Names
        #[arg(required = true, value_name = "VOLUME")]
        volumes: Vec<String>,
    },
    /// Remove volumes
    #[command(visible_alias = "remove")]
    Rm {
        /// No error for a volume that is not there
        #[arg(short, long)]
        force: bool,
        /// Names
        #[arg(required = true, value_name = "VOLUME")]
        volumes: Vec<String>,
    },
}
