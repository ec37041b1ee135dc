//! The cluster's IPv6 prefix, and the nodes' addresses in the mesh.

use super::AllocationError;
use crate::store::State;
use ipnet::Ipv6Net;
use shoal_model::network::MeshAddress;
use shoal_model::{Cluster, ClusterId};
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Prefix length of what a cluster has, RFC 4193.
const CLUSTER_PREFIX_LEN: u8 = 48;

/// Prefix length of the mesh and of a network's subnet.
pub(super) const SUBNET_PREFIX_LEN: u8 = 64;

/// Bits between the cluster's prefix and the host part.
const SUBNET_BITS: u32 = 64;

/// Highest number of a node: marks of packets have sixteen bits for it.
const NODE_NUMBER_MAX: u32 = 65_534;

/// The unique local /48 of a cluster: `fd`, then 40 bits of a hash of its id.
pub fn cluster_prefix(id: ClusterId) -> Ipv6Net {
    let bits = id.bits();
    // The finalizer of splitmix64 over both halves: any bit of the id changes every bit of the prefix.
    let [high, low] = [(bits >> 64) as u64, bits as u64];
    let hash = mix(mix(high).wrapping_add(low)) >> 24;
    let first = (0xfd_u128 << 120) | (u128::from(hash) << 80);
    Ipv6Net::new_assert(Ipv6Addr::from_bits(first), CLUSTER_PREFIX_LEN)
}

const fn mix(mut value: u64) -> u64 {
    value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// The /64 with that number under the cluster's prefix; 0 is the mesh.
pub fn subnet(id: ClusterId, number: u16) -> Ipv6Net {
    let first = cluster_prefix(id).network().to_bits() | (u128::from(number) << SUBNET_BITS);
    Ipv6Net::new_assert(Ipv6Addr::from_bits(first), SUBNET_PREFIX_LEN)
}

/// The lowest free addresses in the mesh, none of those in `resting` and `given`.
///
/// # Errors
/// Every node number is in use.
pub fn next(
    state: &State,
    cluster: &Cluster,
    resting: &BTreeSet<Ipv4Addr>,
) -> Result<MeshAddress, AllocationError> {
    let pool = cluster.spec.mesh_pool;
    let hosts = pool.broadcast().to_bits() - pool.network().to_bits();
    let mesh = subnet(cluster.id, 0).network().to_bits();
    let free = (1..hosts.min(NODE_NUMBER_MAX + 1)).find_map(|number| {
        let address = MeshAddress {
            ipv4: Ipv4Addr::from_bits(pool.network().to_bits() + number),
            ipv6: Ipv6Addr::from_bits(mesh | u128::from(number)),
        };
        let held = |address: IpAddr| state.mesh_holder(address).is_some();
        let taken = held(address.ipv4.into()) || held(address.ipv6.into());
        (!taken && !resting.contains(&address.ipv4)).then_some(address)
    });
    free.ok_or_else(|| AllocationError::NoMeshAddress {
        pool,
        nodes: state.nodes().filter(|node| node.mesh.is_some()).count(),
    })
}
