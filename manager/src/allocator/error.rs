//! Why something could not be given out.

use ipnet::{IpNet, Ipv4Net};
use shoal_model::NetworkId;
use shoal_model::rpc::ErrorCode;
use std::net::Ipv4Addr;

/// Why something could not be given out, in words that the user can act on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AllocationError {
    /// A field of the request can't be met.
    #[error("`{field}`: {problem}")]
    Invalid {
        /// The field as Docker's API names it.
        field: String,
        /// The value, what is wrong with it, and what would be right.
        problem: String,
    },
    /// The subnet meets addresses that are in use.
    #[error("subnet {subnet} overlaps {other} of {holder}: choose another, or leave it out")]
    Overlap {
        /// What was asked for.
        subnet: IpNet,
        /// What it meets.
        other: IpNet,
        /// Whose that is: a network, a node, the mesh.
        holder: String,
    },
    /// No subnet is left in the pools.
    #[error(
        "the address pools of the cluster ({pools}) have no free subnet of /{prefix_len}: {networks} networks exist; \
         remove one, give `--subnet`, or add a pool"
    )]
    NoSubnet {
        /// The pools.
        pools: String,
        /// How long the prefix of a subnet is.
        prefix_len: u8,
        /// Networks that exist.
        networks: usize,
    },
    /// No IPv6 subnet is left under the cluster's prefix.
    #[error(
        "the IPv6 prefix of the cluster ({prefix}) has no free subnet: give one with `--subnet`"
    )]
    NoIpv6Subnet {
        /// The prefix.
        prefix: IpNet,
    },
    /// There is no such network.
    #[error("network `{0}` does not exist")]
    NoNetwork(NetworkId),
    /// The network of published ports is not there yet.
    #[error(
        "the built-in network `ingress` is not there yet: it is made when the first node has its WireGuard key"
    )]
    NoIngress,
    /// Every address is in use.
    #[error(
        "network `{network}` ({range}): all {usable} addresses are in use or held back: {endpoints} by tasks and \
         containers on {nodes} nodes, {vips} as virtual addresses of services, {resting} in leases of nodes that have \
         left; remove some, or make a larger network"
    )]
    Exhausted {
        /// Its name.
        network: String,
        /// Where addresses are given out from.
        range: Ipv4Net,
        /// Addresses in the range that anybody can have.
        usable: u64,
        /// Of tasks and containers.
        endpoints: u64,
        /// Nodes that have leases.
        nodes: usize,
        /// Of services.
        vips: u64,
        /// In leases of nodes that were removed.
        resting: u64,
    },
    /// The address that was asked for is not free.
    #[error(
        "address {address} of network `{network}` is in use by {holder}: choose another, or leave it out"
    )]
    AddressTaken {
        /// The network.
        network: String,
        /// The address.
        address: Ipv4Addr,
        /// Whose it is.
        holder: String,
    },
    /// The address that was asked for can't be anybody's.
    #[error("address {address} can't be given out in network `{network}`: {problem}")]
    BadAddress {
        /// The network.
        network: String,
        /// The address.
        address: Ipv4Addr,
        /// Why.
        problem: String,
    },
    /// Addresses have to change nodes first: the same request succeeds once what was decided so far is in the store.
    #[error("addresses of network `{network}` are moving between nodes: try again")]
    Moving {
        /// The network.
        network: String,
    },
    /// Another service publishes the port.
    #[error(
        "`EndpointSpec.Ports`: port {port}/{protocol} is published by service `{holder}`{how}: choose another, or \
         publish on other addresses (`addr=`)"
    )]
    PortTaken {
        /// The port.
        port: u16,
        /// Its protocol.
        protocol: &'static str,
        /// The other service.
        holder: String,
        /// How it publishes it.
        how: &'static str,
    },
    /// No port is left for those that leave the choice to us.
    #[error(
        "`EndpointSpec.Ports`: all ports from {first} to {last} are published: give a number with `published=`"
    )]
    NoPort {
        /// The first port of the range.
        first: u16,
        /// The last.
        last: u16,
    },
    /// Every address of the mesh is in use.
    #[error("all addresses of the mesh ({pool}) are in use by {nodes} nodes")]
    NoMeshAddress {
        /// The pool.
        pool: Ipv4Net,
        /// Nodes that have one.
        nodes: usize,
    },
}

impl AllocationError {
    /// The kind of answer that it makes.
    pub const fn code(&self) -> ErrorCode {
        match self {
            Self::Invalid { .. } | Self::BadAddress { .. } => ErrorCode::InvalidArgument,
            Self::NoNetwork(_) => ErrorCode::NotFound,
            Self::Overlap { .. } | Self::AddressTaken { .. } | Self::PortTaken { .. } => {
                ErrorCode::AlreadyExists
            }
            Self::NoSubnet { .. }
            | Self::NoIpv6Subnet { .. }
            | Self::Exhausted { .. }
            | Self::NoPort { .. }
            | Self::NoMeshAddress { .. } => ErrorCode::ResourceExhausted,
            Self::NoIngress | Self::Moving { .. } => ErrorCode::Unavailable,
        }
    }

    pub(super) fn invalid(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Invalid {
            field: field.into(),
            problem: problem.into(),
        }
    }
}
