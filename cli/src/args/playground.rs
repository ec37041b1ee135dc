//! `shoal playground …`

use clap::{Args, Subcommand};
use std::ffi::OsString;
use std::path::PathBuf;

/// Where the playground is.
#[derive(Debug, Args)]
pub(crate) struct Place {
    /// Directory of the playground
    #[arg(long, default_value = "/var/tmp/shoal-playground")]
    pub(crate) dir: PathBuf,
}

#[derive(Debug, Subcommand)]
pub(crate) enum PlaygroundCommand {
    /// Show and verify the main job: a cluster, a service, a killed worker, a killed leader
    Demo(Place),
    /// Start a cluster and leave it up
    Up {
        #[command(flatten)]
        place: Place,
        /// Number of managers
        #[arg(long, default_value_t = 3)]
        managers: u8,
        /// Number of workers
        #[arg(long, default_value_t = 2)]
        workers: u8,
    },
    /// Run a command on a host; `shoal` commands there reach its daemon
    Exec {
        #[command(flatten)]
        place: Place,
        /// Name of the host: manager1, worker1
        name: String,
        /// Command and arguments
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<OsString>,
    },
    /// SIGKILL a host and all that runs on it
    Kill {
        #[command(flatten)]
        place: Place,
        /// Name of the host
        name: String,
    },
    /// Switch a killed host on again
    Start {
        #[command(flatten)]
        place: Place,
        /// Name of the host
        name: String,
    },
    /// Pull the network cable of a host
    Cut {
        #[command(flatten)]
        place: Place,
        /// Name of the host
        name: String,
    },
    /// Plug the network cable of a host in again
    Heal {
        #[command(flatten)]
        place: Place,
        /// Name of the host
        name: String,
    },
    /// End the hosts and remove everything
    Down(Place),
    /// Become a host
    #[command(hide = true)]
    HostInit {
        #[arg(long)]
        netns: PathBuf,
        #[arg(long)]
        hostname: String,
        #[arg(long)]
        tethered: bool,
    },
    /// Enter a host
    #[command(hide = true)]
    Enter {
        #[arg(long)]
        init_pid: i32,
        #[arg(long)]
        detach: bool,
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<OsString>,
    },
    /// The demo's client: asks the demo's web server, and prints each answer
    #[command(hide = true)]
    Fetch {
        #[arg(long, default_value_t = 1)]
        times: u32,
        /// HOST:PORT
        address: String,
    },
    /// The demo's web server
    #[command(hide = true)]
    Web {
        #[arg(long, default_value_t = 8080)]
        port: u16,
    },
}
