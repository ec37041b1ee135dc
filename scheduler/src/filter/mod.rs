//! Filters: each says of a node whether it can take the task, and of the nodes that it refused why, and what helps.

mod constraints;
mod network;
mod platform;
mod ports;
mod ready;
mod replicas;
mod resources;
mod volume;

use crate::cluster::Cluster;
use crate::node::{NodeEntry, Seat};
use crate::request::TaskRequest;
use constraints::ConstraintFilter;
use network::NetworkFilter;
use platform::PlatformFilter;
pub use platform::platform_matches;
use ports::PortFilter;
use ready::ReadyFilter;
use replicas::ReplicasFilter;
use resources::ResourceFilter;
use shoal_model::task::Refusal;
use volume::VolumeFilter;

/// Names that a refusal lists before it says "and n more".
const NAMES_MAX: usize = 3;

/// One reason for which a node can't take a task.
pub(crate) trait Filter {
    /// Its name in [`Refusal::filter`].
    fn name(&self) -> &'static str;
    /// Whether the node may take the task.
    fn admits(&self, seat: Seat<'_>) -> bool;
    /// Reason and fix for the nodes that it refused; never called with none.
    fn explain(&self, refused: &[&NodeEntry]) -> (String, String);
}

/// The filters of one request, in the order in which they are asked.
pub(crate) struct Filters<'a> {
    ready: ReadyFilter,
    network: NetworkFilter,
    platform: PlatformFilter<'a>,
    constraints: ConstraintFilter<'a>,
    volume: VolumeFilter<'a>,
    resources: ResourceFilter,
    ports: PortFilter<'a>,
    replicas: ReplicasFilter,
}

impl<'a> Filters<'a> {
    pub(crate) fn new(cluster: &Cluster, request: &'a TaskRequest) -> Self {
        let placement = &request.spec.placement;
        Self {
            ready: ReadyFilter,
            network: NetworkFilter::new(request.networked),
            platform: PlatformFilter::new(&placement.platforms),
            constraints: ConstraintFilter::new(&placement.constraints),
            volume: VolumeFilter::new(cluster, request),
            resources: ResourceFilter::new(request.spec.resources.reservations),
            ports: PortFilter::new(&request.host_ports),
            replicas: ReplicasFilter::new(placement.max_replicas_per_node),
        }
    }

    /// The filters whose answer changes with what runs on the node. The others are answered by the eligibility bits,
    /// the set of nodes that take tasks, and the home of the slot.
    pub(crate) fn room(&self, seat: Seat<'_>) -> bool {
        self.network.admits(seat)
            && self.resources.admits(seat)
            && self.ports.admits(seat)
            && self.replicas.admits(seat)
    }

    fn all(&self) -> [&dyn Filter; 8] {
        [
            &self.ready,
            &self.platform,
            &self.constraints,
            &self.volume,
            &self.network,
            &self.resources,
            &self.ports,
            &self.replicas,
        ]
    }

    pub(crate) fn admits(&self, seat: Seat<'_>) -> bool {
        self.all().iter().all(|filter| filter.admits(seat))
    }

    /// Whether the properties of the node alone (not its load, not its state) allow the task.
    pub(crate) fn eligible(&self, seat: Seat<'_>) -> bool {
        self.platform.admits(seat) && self.constraints.admits(seat)
    }

    /// Every filter that refuses this one node.
    pub(crate) fn refusals_of(&self, seat: Seat<'_>) -> Vec<Refusal> {
        self.all()
            .iter()
            .filter(|filter| !filter.admits(seat))
            .map(|filter| refusal(*filter, &[seat.node]))
            .collect()
    }

    /// One refusal per filter over all nodes; a node counts for the first filter that refuses it.
    pub(crate) fn aggregate<'n>(&self, seats: impl Iterator<Item = Seat<'n>>) -> Vec<Refusal> {
        let filters = self.all();
        let mut refused: [Vec<&NodeEntry>; 8] = Default::default();
        let mut any = false;
        for seat in seats {
            any = true;
            if let Some(first) = filters.iter().position(|filter| !filter.admits(seat)) {
                refused[first].push(seat.node);
            }
        }
        if !any {
            return vec![Refusal {
                filter: self.ready.name().to_owned(),
                reason: "the cluster has no nodes".to_owned(),
                fix: "add one: `shoal join`".to_owned(),
                nodes: 0,
            }];
        }
        filters
            .iter()
            .zip(&mut refused)
            .filter(|(_, nodes)| !nodes.is_empty())
            .map(|(filter, nodes)| {
                nodes.sort_by_key(|node| node.id);
                refusal(*filter, nodes)
            })
            .collect()
    }
}

fn refusal(filter: &dyn Filter, nodes: &[&NodeEntry]) -> Refusal {
    let (reason, fix) = filter.explain(nodes);
    Refusal {
        filter: filter.name().to_owned(),
        reason,
        fix,
        nodes: u32::try_from(nodes.len()).unwrap_or(u32::MAX),
    }
}

/// `1 node`, `3 nodes`.
fn count(nodes: usize) -> String {
    match nodes {
        1 => "1 node".to_owned(),
        n => format!("{n} nodes"),
    }
}

/// `` `a`, `b`, `c` and 4 more ``.
fn names<'n>(nodes: impl Iterator<Item = &'n NodeEntry>) -> String {
    let mut rest = 0;
    let mut shown: Vec<String> = Vec::new();
    for node in nodes {
        if shown.len() < NAMES_MAX {
            shown.push(format!("`{}`", node.name()));
        } else {
            rest += 1;
        }
    }
    let shown = shown.join(", ");
    match rest {
        0 => shown,
        n => format!("{shown} and {n} more"),
    }
}
