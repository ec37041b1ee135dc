//! Blocks of one network overlap nowhere, lie in its subnet, and hold no virtual address.

use crate::store::state::State;
use std::collections::BTreeMap;

pub(super) fn check(state: &State) -> Vec<String> {
    let mut broken = Vec::new();
    for network in state.networks() {
        let mut blocks: BTreeMap<u32, (u32, _)> = BTreeMap::new();
        for lease in state
            .leases()
            .filter(|lease| lease.network_id == network.id)
        {
            if lease.blocks.is_empty() {
                broken.push(format!("the lease of `{}` is empty", lease.node_id));
            }
            for block in &lease.blocks {
                if !network.subnets.ipv4.contains(block) {
                    broken.push(format!("{block} is not in network `{}`", network.id));
                }
                let ends = (block.network().to_bits(), block.broadcast().to_bits());
                if blocks.insert(ends.0, (ends.1, lease.node_id)).is_some() {
                    broken.push(format!(
                        "{block} of network `{}` is leased twice",
                        network.id
                    ));
                }
            }
        }
        let pairs = blocks.iter().zip(blocks.iter().skip(1));
        for ((_, (last, node)), (first, (_, other))) in pairs {
            if last >= first {
                broken.push(format!(
                    "blocks of `{node}` and `{other}` overlap in `{}`",
                    network.id
                ));
            }
        }
        let vips = state.services().flat_map(|service| &service.vips);
        for vip in vips.filter(|vip| vip.network_id == network.id) {
            let below = blocks.range(..=vip.ipv4.to_bits()).next_back();
            if below.is_some_and(|(_, (last, _))| *last >= vip.ipv4.to_bits()) {
                broken.push(format!("{} is leased and virtual", vip.ipv4));
            }
        }
    }
    let orphans = state
        .leases()
        .filter(|lease| state.network(lease.network_id).is_none());
    broken.extend(orphans.map(|lease| format!("a lease of network `{}`", lease.network_id)));
    broken
}
