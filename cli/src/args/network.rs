//! `shoal network …` and `shoal net …`

use super::{FormatArgs, ListArgs};
use clap::{Args, Subcommand};

#[derive(Debug, Subcommand)]
pub(crate) enum NetworkCommand {
    /// Create a network across the hosts of the cluster
    Create(Box<CreateArgs>),
    /// List networks
    #[command(visible_alias = "list")]
    Ls(ListArgs),
    /// Show networks in detail
    Inspect {
        #[command(flatten)]
        format: FormatArgs,
        /// With its services and their tasks
        #[arg(short, long)]
        verbose: bool,
        /// Names or ids
        #[arg(required = true, value_name = "NETWORK")]
        networks: Vec<String>,
    },
    /// Remove networks
    #[command(visible_alias = "remove")]
    Rm {
        /// No error for a network that is not there
        #[arg(short, long)]
        force: bool,
        /// Names or ids
        #[arg(required = true, value_name = "NETWORK")]
        networks: Vec<String>,
    },
    /// Remove all networks that nothing uses
    Prune {
        /// Do not ask
        #[arg(short, long)]
        force: bool,
        /// Only what fits: label=KEY[=VALUE], until=TIME
        #[arg(long = "filter")]
        filters: Vec<String>,
    },
}

#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    /// Driver; the only one for networks that users make is overlay
    #[arg(short, long, default_value = "overlay")]
    pub(crate) driver: String,
    /// Containers that no service owns may be attached (`run --network`)
    #[arg(long)]
    pub(crate) attachable: bool,
    /// No way out of the network
    #[arg(long)]
    pub(crate) internal: bool,
    /// Give IPv6 addresses too
    #[arg(short = '6', long)]
    pub(crate) ipv6: bool,
    /// Subnet: 10.5.0.0/24 (default: from the cluster's address pools)
    #[arg(long = "subnet", value_name = "SUBNET")]
    pub(crate) subnets: Vec<String>,
    /// Gateway of a subnet (default: its first address)
    #[arg(long = "gateway", value_name = "ADDRESS")]
    pub(crate) gateways: Vec<String>,
    /// Where addresses of a subnet are given out from: 10.5.0.128/25
    #[arg(long = "ip-range", value_name = "RANGE")]
    pub(crate) ip_ranges: Vec<String>,
    /// Label
    #[arg(long = "label")]
    pub(crate) labels: Vec<String>,
    /// Option of the driver: mtu=1400
    #[arg(short, long = "opt")]
    pub(crate) opts: Vec<String>,
    /// Name
    #[arg(value_name = "NETWORK")]
    pub(crate) name: String,
}

#[derive(Debug, Subcommand)]
pub(crate) enum NetCommand {
    /// Show the way from every node to every other; fails if one is bad
    Check {
        /// Show the answer as JSON
        #[arg(long)]
        json: bool,
    },
    /// Make new WireGuard keys on every node, or on one; no connection is lost
    RotateKeys {
        /// Name or id
        node: Option<String>,
    },
}
