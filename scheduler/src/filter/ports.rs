//! The host ports of the task are free on the node.

use super::{Filter, count, names};
use crate::node::{NodeEntry, Seat};
use shoal_model::spec::Protocol;
use std::collections::BTreeSet;

pub(super) struct PortFilter<'a> {
    ports: &'a [(Protocol, u16)],
}

impl<'a> PortFilter<'a> {
    pub(super) fn new(ports: &'a [(Protocol, u16)]) -> Self {
        Self { ports }
    }
}

impl Filter for PortFilter<'_> {
    fn name(&self) -> &'static str {
        "host-port"
    }

    fn admits(&self, seat: Seat<'_>) -> bool {
        let node = seat.node;
        self.ports.iter().all(|port| !node.ports.contains_key(port))
    }

    fn explain(&self, refused: &[&NodeEntry]) -> (String, String) {
        let mut ports = BTreeSet::new();
        let mut holders = BTreeSet::new();
        for port in self.ports {
            for held in refused.iter().filter_map(|node| node.ports.get(port)) {
                ports.insert(format!("{}/{}", port.1, port.0.as_str()));
                holders.extend(
                    held.iter()
                        .map(|holder| format!("`{}`", holder.service_name)),
                );
            }
        }
        let join = |set: BTreeSet<String>| set.into_iter().collect::<Vec<_>>().join(", ");
        (
            format!(
                "host port {} is in use by {} on {} ({})",
                join(ports),
                join(holders),
                count(refused.len()),
                names(refused.iter().copied())
            ),
            "publish another port, run fewer replicas than nodes, or add a node".to_owned(),
        )
    }
}
