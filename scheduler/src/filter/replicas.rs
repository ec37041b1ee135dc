//! The node has fewer tasks of the service than `--replicas-max-per-node`.

use super::{Filter, count};
use crate::node::NodeEntry;
use shoal_model::ServiceId;

pub(super) struct ReplicasFilter {
    service_id: ServiceId,
    max_per_node: u64,
}

impl ReplicasFilter {
    pub(super) fn new(service_id: ServiceId, max_per_node: u64) -> Self {
        Self {
            service_id,
            max_per_node,
        }
    }
}

impl Filter for ReplicasFilter {
    fn name(&self) -> &'static str {
        "max-replicas"
    }

    fn admits(&self, node: &NodeEntry) -> bool {
        self.max_per_node == 0 || u64::from(node.service_tasks(self.service_id)) < self.max_per_node
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
