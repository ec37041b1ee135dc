//! The node is part of the mesh, if the task needs an address in a network across hosts.

use super::{Filter, names};
use crate::node::{NodeEntry, Seat};

pub(super) struct NetworkFilter {
    needed: bool,
}

impl NetworkFilter {
    pub(super) const fn new(needed: bool) -> Self {
        Self { needed }
    }
}

impl Filter for NetworkFilter {
    fn name(&self) -> &'static str {
        "network"
    }

    fn admits(&self, seat: Seat<'_>) -> bool {
        !self.needed || seat.node.is_in_mesh()
    }

    fn explain(&self, refused: &[&NodeEntry]) -> (String, String) {
        let verb = if refused.len() == 1 { "is" } else { "are" };
        (
            format!(
                "{} {verb} not part of the network across hosts: no WireGuard key is known",
                names(refused.iter().copied())
            ),
            "see the log of the daemon there; a node that has just joined needs a moment"
                .to_owned(),
        )
    }
}
