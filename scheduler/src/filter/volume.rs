//! The slot's volumes are where the task would run.

use super::{Filter, names};
use crate::cluster::Cluster;
use crate::node::{NodeEntry, Seat};
use crate::request::TaskRequest;
use shoal_model::NodeId;

pub(super) struct VolumeFilter<'a> {
    request: &'a TaskRequest,
    /// The mounted volumes that the slot is bound to, with their homes.
    homes: Vec<(String, NodeId, String)>,
}

impl<'a> VolumeFilter<'a> {
    pub(super) fn new(cluster: &Cluster, request: &'a TaskRequest) -> Self {
        let homes = cluster
            .homes_of(request)
            .map(|(name, node_id)| (name.to_owned(), node_id, cluster.node_name(node_id)))
            .collect();
        Self { request, homes }
    }
}

impl Filter for VolumeFilter<'_> {
    fn name(&self) -> &'static str {
        "volume"
    }

    fn admits(&self, seat: Seat<'_>) -> bool {
        let node = seat.node;
        self.homes.iter().all(|&(_, home, _)| home == node.id)
    }

    fn explain(&self, refused: &[&NodeEntry]) -> (String, String) {
        let slot = format!("{}.{}", self.request.service_name, self.request.slot);
        let places = self
            .homes
            .iter()
            .map(|(name, _, node)| format!("volume `{name}` of slot `{slot}` is on node `{node}`"))
            .collect::<Vec<_>>()
            .join(", ");
        let volume = self.homes.first().map_or("", |(name, _, _)| name.as_str());
        let node = self.homes.first().map_or("", |(_, _, node)| node.as_str());
        (
            format!("{places}, not on {}", names(refused.iter().copied())),
            format!(
                "make node `{node}` able to run the task again, or give the slot a fresh, empty volume: \
                 `shoal svc rebind-volume --slot {} --volume {volume} {}`",
                self.request.slot, self.request.service_name
            ),
        )
    }
}
