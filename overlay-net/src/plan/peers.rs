//! The peers of WireGuard.

use super::PlanInput;
use ipnet::IpNet;
use shoal_model::NodeId;
use shoal_model::netstate::NetNode;
use shoal_model::network::MeshAddress;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

/// A peer of WireGuard.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct PeerPlan {
    /// The node.
    pub node_id: NodeId,
    /// Its name.
    pub name: String,
    /// Its key.
    pub public_key: [u8; 32],
    /// The key that it will use next.
    pub next_key: Option<[u8; 32]>,
    /// Where it may be found, the likeliest first.
    pub endpoints: Vec<SocketAddr>,
    /// Its addresses in the mesh.
    pub mesh: MeshAddress,
    /// Its addresses in the mesh, and the blocks that it leases.
    pub allowed_ips: BTreeSet<IpNet>,
    /// It passes packets on between others.
    pub relay: bool,
}

/// The peers of a node.
pub(crate) fn peers(input: &PlanInput<'_>) -> BTreeMap<NodeId, PeerPlan> {
    let mut peers: BTreeMap<NodeId, PeerPlan> = input
        .others()
        .map(|node| (node.id, without_leases(node)))
        .collect();
    for lease in input.state.leases.values() {
        // A lease in a network that is not told to this node serves published ports only: its node is reached by its
        // address in the mesh.
        let network = input.state.networks.get(&lease.network_id);
        let (Some(peer), Some(network)) = (peers.get_mut(&lease.node_id), network) else {
            continue;
        };
        for block in &lease.blocks {
            peer.allowed_ips.insert(IpNet::V4(block.trunc()));
            let ipv6 = network.subnets.ipv6_block(*block);
            peer.allowed_ips
                .extend(ipv6.map(|block| IpNet::V6(block.trunc())));
        }
    }
    peers
}

fn without_leases(node: &NetNode) -> PeerPlan {
    PeerPlan {
        node_id: node.id,
        name: node.name.clone(),
        public_key: node.public_key,
        next_key: node.next_key,
        endpoints: node.addrs.clone(),
        mesh: node.mesh,
        allowed_ips: BTreeSet::from([
            IpNet::from(std::net::IpAddr::V4(node.mesh.ipv4)),
            IpNet::from(std::net::IpAddr::V6(node.mesh.ipv6)),
        ]),
        relay: node.relay,
    }
}
