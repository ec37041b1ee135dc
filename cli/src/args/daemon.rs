//! `shoal daemon` and the processes that it starts.

use clap::{Args, ValueEnum};
use shoal_overlay_net::WireGuardChoice;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

#[derive(Debug, Args)]
pub(crate) struct DaemonArgs {
    /// Where everything lasting is
    #[arg(long, default_value = "/var/lib/shoal")]
    pub(crate) data_root: PathBuf,
    /// Where everything is that a reboot forgets
    #[arg(long, default_value = "/run/shoal")]
    pub(crate) run_root: PathBuf,
    /// The socket of the API
    #[arg(long, default_value = "/run/shoal/shoal.sock")]
    pub(crate) socket: PathBuf,
    /// Group that may use the socket, by name or number
    #[arg(long)]
    pub(crate) group: Option<String>,
    /// Address and port of the control channel (UDP); bulk transfers use the next port
    #[arg(long, default_value = "0.0.0.0:2377")]
    pub(crate) listen: SocketAddr,
    /// Address that other machines reach this one at; default: that of the default route
    #[arg(long)]
    pub(crate) advertise_addr: Option<IpAddr>,
    /// Who encrypts what goes to other machines
    #[arg(long, value_enum, default_value_t)]
    pub(crate) wireguard: WireGuardArg,
    /// UDP port of WireGuard; 0: any
    #[arg(long, default_value_t = 51820)]
    pub(crate) wireguard_port: u16,
    /// Host name that the cluster shows; default: the machine's
    #[arg(long)]
    pub(crate) hostname: Option<String>,
    /// Parent of the containers' cgroups
    #[arg(long, default_value = "/shoal")]
    pub(crate) cgroup_parent: String,
    /// Registry that may be spoken to without TLS: HOST[:PORT]
    #[arg(long = "insecure-registry")]
    pub(crate) insecure_registries: Vec<String>,
    /// Label of this engine: KEY=VALUE, seen by constraints as engine.labels.KEY
    #[arg(long = "label")]
    pub(crate) labels: Vec<String>,
    /// Default option of the log driver: max-size=10m
    #[arg(long = "log-opt")]
    pub(crate) log_opts: Vec<String>,
    /// Serve metrics (Prometheus text format) by plain HTTP at IP:PORT, path /metrics; default: only on the socket
    #[arg(long, value_name = "IP:PORT")]
    pub(crate) metrics_addr: Option<SocketAddr>,
    /// How much to log: error, warn, info, debug, trace, or a filter
    #[arg(long, env = "SHOAL_LOG", default_value = "info")]
    pub(crate) log: String,
    /// Log as JSON
    #[arg(long)]
    pub(crate) log_json: bool,
}

/// Where WireGuard runs.
#[derive(Debug, Clone, Copy, Default, ValueEnum)]
pub(crate) enum WireGuardArg {
    /// The kernel's where it has one, else the userspace device
    #[default]
    Auto,
    /// The kernel's
    Kernel,
    /// The userspace device
    Userspace,
}

impl From<WireGuardArg> for WireGuardChoice {
    fn from(arg: WireGuardArg) -> Self {
        match arg {
            WireGuardArg::Auto => Self::Auto,
            WireGuardArg::Kernel => Self::Kernel,
            WireGuardArg::Userspace => Self::Userspace,
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct ShimArgs {
    /// The bundle of the container
    #[arg(long)]
    pub(crate) bundle: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct NetdArgs {
    /// Where its control socket is
    #[arg(long)]
    pub(crate) run_root: PathBuf,
    /// How much to log: error, warn, info, debug, trace, or a filter
    #[arg(long, default_value = "info")]
    pub(crate) log: String,
}
