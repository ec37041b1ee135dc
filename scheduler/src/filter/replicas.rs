//! The node has fewer tasks of the service than `--replicas-max-per-node`.

use super::{Filter, count};
use crate::node::{NodeEntry, Seat};

pub(super) struct ReplicasFilter {
    max_per_node: u64,
}

impl ReplicasFilter {
    pub(super) fn new(max_per_node: u64) -> Self {
        Self { max_per_node }
    }
}

impl Filter for ReplicasFilter {
    fn name(&self) -> &'static str {
        "max-replicas"
    }

    fn admits(&self, seat: Seat<'_>) -> bool {
        self.max_per_node == 0 || u64::from(seat.service_tasks) < self.max_per_node
    }

    fn explain(&self, refused: &[&NodeEntry]) -> (String, String) {
        (
            format!(
                "the limit of {} per node is reached on {}",
                self.max_per_node,
                count(refused.len())
            ),
            "raise --replicas-max-per-node, or add a node".to_owned(),
        )
    }
}
