//! The command line: what can be typed. Meaning is given to it in `spec` and `commands`.
#![expect(
    rustdoc::broken_intra_doc_links,
    reason = "doc comments are the help that users see, and brackets mean that a word may be left out"
)]

pub(crate) mod cluster;
pub(crate) mod container;
pub(crate) mod daemon;
pub(crate) mod image;
pub(crate) mod network;
pub(crate) mod playground;
pub(crate) mod service;

use clap::{Args, Parser, Subcommand};

/// Turn Linux machines into a cluster that runs containers.
#[derive(Debug, Parser)]
#[command(
    name = "shoal",
    version,
    propagate_version = true,
    arg_required_else_help = true
)]
pub(crate) struct Cli {
    /// Address of the daemon: unix://PATH
    #[arg(
        short = 'H',
        long,
        global = true,
        env = "SHOAL_HOST",
        default_value = "unix:///run/shoal/shoal.sock"
    )]
    pub(crate) host: String,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Manage services
    #[command(visible_alias = "svc", subcommand)]
    Service(service::ServiceCommand),
    /// Manage nodes
    #[command(subcommand)]
    Node(cluster::NodeCommand),
    /// Make this machine the first manager of a new cluster
    Init(cluster::InitArgs),
    /// Join this machine to a cluster
    Join(cluster::JoinArgs),
    /// Show or rotate the tokens that let machines join
    JoinToken(cluster::JoinTokenArgs),
    /// Leave the cluster
    Leave(cluster::LeaveArgs),
    /// Manage volumes
    #[command(subcommand)]
    Volume(cluster::VolumeCommand),
    /// Manage networks
    #[command(subcommand)]
    Network(network::NetworkCommand),
    /// Look after the encrypted mesh between the nodes
    #[command(subcommand)]
    Net(network::NetCommand),
    /// Create and run a container
    Run(Box<container::RunArgs>),
    /// Create a container
    Create(Box<container::CreateArgs>),
    /// Start stopped containers
    Start(container::Names),
    /// List containers
    Ps(container::PsArgs),
    /// Show the log of a container
    Logs(container::LogsArgs),
    /// Run a command in a running container
    Exec(container::ExecArgs),
    /// Stop running containers
    Stop(container::StopArgs),
    /// Restart containers
    Restart(container::StopArgs),
    /// Send a signal to running containers
    Kill(container::KillArgs),
    /// Wait until containers stop and print their exit codes
    Wait(container::Names),
    /// Remove containers
    Rm(container::RmArgs),
    /// Show containers or images as JSON
    Inspect(container::InspectArgs),
    /// Remember credentials for a registry, after it has taken them
    Login(image::LoginArgs),
    /// Forget the credentials for a registry
    Logout(image::LogoutArgs),
    /// Download an image from a registry
    Pull(image::PullArgs),
    /// List images
    Images(image::ImagesArgs),
    /// Remove images
    Rmi(image::RmiArgs),
    /// Name an image
    Tag(image::TagArgs),
    /// Load images from a docker-archive or OCI archive
    Load(image::LoadArgs),
    /// Make an image of a root file system archive
    Import(image::ImportArgs),
    /// Show the versions of client and daemon
    Version(FormatArgs),
    /// Show what the daemon is and has
    Info(FormatArgs),
    /// Print a completion script for a shell
    Completion {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Run the daemon
    Daemon(Box<daemon::DaemonArgs>),
    /// A cluster of hosts on this one machine, to play with
    #[command(subcommand)]
    Playground(playground::PlaygroundCommand),
    /// The parent of one container
    #[command(hide = true)]
    Shim(daemon::ShimArgs),
    /// The data plane of one daemon
    #[command(hide = true)]
    Netd(daemon::NetdArgs),
}

/// How one object is shown.
#[derive(Debug, Args)]
pub(crate) struct FormatArgs {
    /// Format with a Go template, or `json`
    #[arg(short, long)]
    pub(crate) format: Option<String>,
}

/// How a list is shown.
#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    /// Format with a Go template, `table TEMPLATE` or `json`
    #[arg(long)]
    pub(crate) format: Option<String>,
    /// Show only what fits: KEY=VALUE
    #[arg(short, long = "filter")]
    pub(crate) filters: Vec<String>,
    /// Show only ids
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// Do not shorten
    #[arg(long)]
    pub(crate) no_trunc: bool,
}
