//! Networks across hosts: what users declare, and what the managers give out.
//!
//! An overlay network is routed: every address is a /32 (and a /128) behind the host that has it. Nodes lease blocks
//! of IPv4 addresses; an IPv6 address follows from the IPv4 address of the same endpoint (see [`Subnets::ipv6_of`]),
//! so that one lease serves both families.

use crate::{ContainerId, Labels, Meta, NetworkId, NodeId};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Name of the built-in network that carries published ports.
pub const INGRESS_NETWORK: &str = "ingress";

/// Smallest MTU that a network may be given, in bytes: what IPv6 demands of a link (RFC 8200, section 5).
pub const MTU_MIN: u32 = 1_280;

/// Largest MTU that a network may be given, in bytes.
pub const MTU_MAX: u32 = 65_000;

/// What a user declares of a network.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct NetworkSpec {
    /// Unique in the cluster.
    pub name: String,
    /// Set by the user.
    pub labels: Labels,
    /// Containers that no service owns may be attached to it.
    pub attachable: bool,
    /// No way out of the network, and none in but by published ports.
    pub internal: bool,
    /// The built-in network of published ports.
    pub ingress: bool,
    /// Endpoints have IPv6 addresses too.
    pub ipv6: bool,
    /// MTU of its containers' interfaces in bytes; `None`: what the path allows.
    pub mtu: Option<u32>,
    /// Addresses that the user asks for; empty: from the cluster's pools.
    pub ipam: Vec<IpamConfig>,
    /// Driver options as the user wrote them, for `network inspect`.
    pub options: Labels,
}

/// Addresses that a user asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpamConfig {
    /// The subnet.
    pub subnet: IpNet,
    /// Its gateway; `None`: the first address.
    pub gateway: Option<IpAddr>,
    /// Where addresses are given out from; `None`: the whole subnet.
    pub ip_range: Option<IpNet>,
}

/// The subnets of a network as they were given out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subnets {
    /// IPv4.
    pub ipv4: Ipv4Net,
    /// What containers see as their router. No host has it; every host answers for it.
    pub gateway: Ipv4Addr,
    /// Where leases and virtual addresses are taken from; within `ipv4`.
    pub range: Ipv4Net,
    /// IPv6, at least as many host bits as IPv4 has.
    pub ipv6: Option<Ipv6Net>,
    /// The router of the IPv6 subnet.
    pub gateway_ipv6: Option<Ipv6Addr>,
}

impl Subnets {
    /// The IPv6 address of the endpoint that has `ipv4`: the same place within the subnet.
    pub fn ipv6_of(&self, ipv4: Ipv4Addr) -> Option<Ipv6Addr> {
        let subnet = self.ipv6?;
        let place = ipv4.to_bits().wrapping_sub(self.ipv4.network().to_bits());
        Some(Ipv6Addr::from_bits(
            subnet.network().to_bits() | u128::from(place),
        ))
    }

    /// The IPv6 block that belongs to an IPv4 block of the network.
    pub fn ipv6_block(&self, block: Ipv4Net) -> Option<Ipv6Net> {
        let first = self.ipv6_of(block.network())?;
        Ipv6Net::new(first, 96 + block.prefix_len()).ok()
    }
}

/// A network across hosts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// Identity.
    pub id: NetworkId,
    /// Version and times.
    pub meta: Meta,
    /// What the user wants.
    pub spec: NetworkSpec,
    /// What it got.
    pub subnets: Subnets,
}

/// The blocks of a network's addresses that one node may use. One object per (network, node); it exists as long as
/// the node has an endpoint in the network, and a while longer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressLease {
    /// The network.
    pub network_id: NetworkId,
    /// The node.
    pub node_id: NodeId,
    /// Version and times.
    pub meta: Meta,
    /// Disjoint blocks; a single address is a /32.
    pub blocks: BTreeSet<Ipv4Net>,
}

/// One end of a network: the addresses of a task or a container in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// The network.
    pub network_id: NetworkId,
    /// IPv4, within a lease of its node.
    pub ipv4: Ipv4Addr,
    /// IPv6, where the network has it.
    pub ipv6: Option<Ipv6Addr>,
    /// Further names that it answers to in this network.
    pub aliases: Vec<String>,
}

/// A network that tasks of a service are attached to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct NetworkAttachment {
    /// The network.
    pub network_id: NetworkId,
    /// Further names of the service in this network.
    pub aliases: Vec<String>,
}

/// The virtual address of a service in one network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ServiceVip {
    /// The network.
    pub network_id: NetworkId,
    /// IPv4.
    pub ipv4: Ipv4Addr,
    /// IPv6, where the network has it.
    pub ipv6: Option<Ipv6Addr>,
}

/// A container that no service owns, in one or more attachable networks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// The container.
    pub container_id: ContainerId,
    /// Version and times.
    pub meta: Meta,
    /// Where it is.
    pub node_id: NodeId,
    /// Its name, which the networks' names know.
    pub name: String,
    /// Its addresses, one per network.
    pub endpoints: Vec<Endpoint>,
}

/// What a container asks for in an attachable network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachmentWish {
    /// Name or id of the network.
    pub network: String,
    /// A fixed address; `None`: any.
    pub ipv4: Option<Ipv4Addr>,
    /// Further names.
    pub aliases: Vec<String>,
}

/// The WireGuard part of a node, as it says it itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WireGuardDescription {
    /// Curve25519 public key in use.
    pub public_key: [u8; 32],
    /// The key that will be in use once every node knows it.
    pub next_key: Option<[u8; 32]>,
    /// UDP port that it listens at.
    pub port: u16,
    /// `kernel` or `userspace`.
    pub backend: WireGuardBackend,
}

/// Who does the work of WireGuard on a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum WireGuardBackend {
    /// The kernel's device.
    Kernel,
    /// The device in `shoal netd`.
    Userspace,
}

impl WireGuardBackend {
    /// The word on the command line and in tables.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Userspace => "userspace",
        }
    }
}

/// The addresses of a node within the mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct MeshAddress {
    /// IPv4; its host part is the node's number in marks and hardware addresses.
    pub ipv4: Ipv4Addr,
    /// IPv6.
    pub ipv6: Ipv6Addr,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ipv6_address_has_the_place_of_its_ipv4_address() {
        let subnets = Subnets {
            ipv4: "10.0.5.0/24".parse().unwrap(),
            gateway: "10.0.5.1".parse().unwrap(),
            range: "10.0.5.0/24".parse().unwrap(),
            ipv6: Some("fd00:1:2:3::/64".parse().unwrap()),
            gateway_ipv6: Some("fd00:1:2:3::1".parse().unwrap()),
        };
        let address = subnets.ipv6_of("10.0.5.18".parse().unwrap());
        assert_eq!(address, Some("fd00:1:2:3::12".parse().unwrap()));
        let block = subnets.ipv6_block("10.0.5.16/28".parse().unwrap());
        assert_eq!(block, Some("fd00:1:2:3::10/124".parse().unwrap()));
    }
}
