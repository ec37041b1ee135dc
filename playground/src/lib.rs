//! Hosts as namespaces on one machine: behind `shoal playground`, the multi-host tests and chaos.
//!
//! A host is a network namespace (which outlives it, as a machine's place in the rack does), and a process tree with
//! its own mount, process, UTS and IPC namespaces under a small init. *Host killed* is SIGKILL to that init: the
//! kernel then kills all it ran, at once. *Cable cut* is the host's port on the switch set down: no FIN, no RST.
//! The switch is a bridge in a namespace of its own without an uplink, so that no traffic can leave the machine.

mod cgroups;
mod check;
mod cluster;
mod demo;
mod enter;
mod host;
mod image;
mod shop;
mod state;
mod switch;

pub use check::{MissingFeature, check_machine};
pub use cluster::{Cluster, ClusterOptions};
pub use demo::{DemoError, demo};
pub use enter::{EnterArgs, HostInitArgs, enter_main, host_init_main};
pub use host::{DaemonOptions, Host};
pub use image::write_demo_image;
pub use state::State;
pub use switch::Switch;

use std::io;
use std::path::PathBuf;

/// Why something on the playground failed.
#[derive(Debug, thiserror::Error)]
pub enum PlaygroundError {
    /// The network between the hosts.
    #[error("failed to {action}")]
    Network {
        /// What was attempted.
        action: String,
        /// The cause.
        #[source]
        err: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A file of the playground.
    #[error("failed to {action} `{path}`")]
    File {
        /// What was attempted.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        err: io::Error,
    },
    /// A process.
    #[error("failed to {action} on host `{host}`")]
    Process {
        /// What was attempted.
        action: String,
        /// The host.
        host: String,
        /// The cause.
        #[source]
        err: io::Error,
    },
    /// A command ended with an error.
    #[error("`{command}` on host `{host}` ended with code {code}: {stderr}")]
    Command {
        /// The command line.
        command: String,
        /// The host.
        host: String,
        /// Its exit code; 128 + n for signal n.
        code: i32,
        /// What it said.
        stderr: String,
    },
    /// Something did not happen in time.
    #[error("{what} did not happen within {seconds} s; last seen: {last}")]
    TimedOut {
        /// What was waited for.
        what: String,
        /// How long.
        seconds: u64,
        /// What was seen instead.
        last: String,
    },
    /// No such host.
    #[error("there is no host `{name}`; there are {known}")]
    NoHost {
        /// What was asked for.
        name: String,
        /// The hosts.
        known: String,
    },
    /// There is no playground, or there is one already.
    #[error("{0}")]
    State(String),
}
