//! The stages of placement, in order: sort, group, then for each group pin or spread.

use crate::cluster::Cluster;
use crate::eligibility::NodeBits;
use crate::filter::Filters;
use crate::node::{NodeEntry, Seat};
use crate::request::{Plan, TaskRequest};
use crate::spread::{Rank, Ranking};
use shoal_model::control::NodeRefusal;
use shoal_model::task::Refusal;
use shoal_model::{NodeId, TaskId, Timestamp};
use std::collections::BTreeSet;

/// Nodes that the short walk looks at per task before the group is ranked as a whole.
const WALK_NODES_MAX: usize = 64;

/// A group is ranked as a whole when it has more than one task per so many nodes.
const NODES_PER_WALKED_TASK: usize = 16;

/// Finds a node for every request that has none in `cluster` yet, and writes the placements into `cluster`.
///
/// The result does not depend on the order of `requests`. A request that is placed already is passed over.
pub fn schedule(cluster: &mut Cluster, requests: &[TaskRequest], now: Timestamp) -> Plan {
    let mut waiting: Vec<&TaskRequest> = requests
        .iter()
        .filter(|request| !cluster.is_placed(request.task_id))
        .collect();
    waiting.sort_unstable_by(|a, b| a.serving_order(b));
    waiting.dedup_by_key(|request| request.task_id);
    let mut plan = Plan::default();
    let mut left: Vec<&[&TaskRequest]> = Vec::new();
    let mut freed = Vec::new();
    for group in waiting.chunk_by(|a, b| a.same_group(b)) {
        place_group(cluster, group, now, &mut plan.placements);
        if group
            .iter()
            .any(|request| !cluster.is_placed(request.task_id))
        {
            left.push(group);
        }
    }
    // The reasons are those that hold when everything else has its place.
    for group in left {
        freed.clear();
        freed.extend(group.iter().filter(|r| !cluster.is_placed(r.task_id)));
        plan.unplaced.extend(refuse_group(cluster, &freed));
    }
    plan
}

/// Whether `node` could take the request now.
///
/// # Errors
/// The first refusal; an unknown node refuses as not ready.
pub fn fits(cluster: &Cluster, node_id: NodeId, request: &TaskRequest) -> Result<(), Refusal> {
    let unknown = NodeEntry::new(node_id);
    let seat = seat_of(cluster, node_id, request, &unknown);
    let refusals = Filters::new(cluster, request).refusals_of(seat);
    refusals.into_iter().next().map_or(Ok(()), Err)
}

/// Whether the platform and the labels of `node` allow the request, whatever its load and state.
pub fn eligible(cluster: &Cluster, node_id: NodeId, request: &TaskRequest) -> bool {
    cluster
        .node_by_id(node_id)
        .map(|(index, _)| cluster.seat(request.service_id, index))
        .is_some_and(|seat| Filters::new(cluster, request).eligible(seat))
}

/// Every node of the cluster with everything that keeps it from taking the request; a node that could take it has no
/// refusals.
pub fn explain(cluster: &Cluster, request: &TaskRequest) -> Vec<NodeRefusal> {
    let filters = Filters::new(cluster, request);
    cluster
        .seats(request.service_id)
        .filter(|seat| request.node_id.is_none_or(|wanted| wanted == seat.node.id))
        .map(|seat| NodeRefusal {
            node_id: seat.node.id,
            node_name: seat.node.name(),
            refusals: filters.refusals_of(seat),
        })
        .collect()
}

/// The seat of a node that may not be known.
fn seat_of<'a>(
    cluster: &'a Cluster,
    node_id: NodeId,
    request: &TaskRequest,
    unknown: &'a NodeEntry,
) -> Seat<'a> {
    match cluster.node_by_id(node_id) {
        Some((index, _)) => cluster.seat(request.service_id, index),
        None => Seat {
            node: unknown,
            service_tasks: 0,
        },
    }
}

fn place_group(
    cluster: &mut Cluster,
    group: &[&TaskRequest],
    now: Timestamp,
    placements: &mut Vec<(TaskId, NodeId)>,
) {
    let mut free: Vec<&TaskRequest> = Vec::with_capacity(group.len());
    for request in group {
        match pinned_to(cluster, request) {
            Some(node_id) => place_pinned(cluster, request, node_id, placements),
            None => free.push(request),
        }
    }
    let Some(&first) = free.first() else {
        return;
    };
    let data = cluster.unclaimed_nodes(first);
    let scope = Scope {
        eligible: cluster.eligible(&first.spec.placement),
        failing: cluster.failing_nodes(first.service_id, now),
        prefers_data: !data.is_empty(),
        data,
    };
    let walked = walk(cluster, &free, &scope, placements);
    rank(cluster, &free[walked..], scope, placements);
}

/// The only node on which the request may run: its orchestrator says so, or its data is there.
fn pinned_to(cluster: &Cluster, request: &TaskRequest) -> Option<NodeId> {
    let home = || cluster.homes_of(request).next().map(|(_, node_id)| node_id);
    request.node_id.or_else(home)
}

fn place_pinned(
    cluster: &mut Cluster,
    request: &TaskRequest,
    node_id: NodeId,
    placements: &mut Vec<(TaskId, NodeId)>,
) {
    let filters = Filters::new(cluster, request);
    if let Some((index, _)) = cluster.node_by_id(node_id)
        && filters.admits(cluster.seat(request.service_id, index))
    {
        cluster.place(request, index);
        placements.push((request.task_id, node_id));
    }
}

/// The reasons for the tasks of a group that got no node.
fn refuse_group(cluster: &Cluster, group: &[&TaskRequest]) -> Vec<(TaskId, Vec<Refusal>)> {
    let mut shared: Option<Vec<Refusal>> = None;
    group
        .iter()
        .map(|request| {
            let refusals = match pinned_to(cluster, request) {
                Some(node_id) => refuse_pinned(cluster, request, node_id),
                None => shared
                    .get_or_insert_with(|| {
                        Filters::new(cluster, request).aggregate(cluster.seats(request.service_id))
                    })
                    .clone(),
            };
            (request.task_id, refusals)
        })
        .collect()
}

fn refuse_pinned(cluster: &Cluster, request: &TaskRequest, node_id: NodeId) -> Vec<Refusal> {
    let filters = Filters::new(cluster, request);
    let unknown = NodeEntry::new(node_id);
    let mut refusals = filters.refusals_of(seat_of(cluster, node_id, request, &unknown));
    if request.node_id.is_none() {
        // The node that has the data is what the user must look at, so its refusals stand first.
        let others = filters.aggregate(cluster.seats(request.service_id));
        refusals.retain(|refusal| refusal.filter != "volume");
        refusals.extend(others.into_iter().filter(|r| r.filter == "volume"));
    }
    refusals
}

/// What is the same for every task of a group.
struct Scope {
    eligible: NodeBits,
    failing: BTreeSet<NodeId>,
    /// Nodes with a volume of the wanted name that no slot has claimed.
    data: BTreeSet<NodeId>,
    /// There were such nodes at the start.
    prefers_data: bool,
}

/// Places tasks of a small group without a look at every node. Returns how many it placed.
///
/// The least loaded node without a task of the service is the best by [`Rank`], and in a large cluster it is among
/// the first of the nodes in order of load. Where it is not, ranking takes over.
fn walk(
    cluster: &mut Cluster,
    group: &[&TaskRequest],
    scope: &Scope,
    placements: &mut Vec<(TaskId, NodeId)>,
) -> usize {
    let Some(first) = group.first() else {
        return 0;
    };
    let small = group.len() * NODES_PER_WALKED_TASK <= cluster.ready_nodes();
    if !small || !first.spec.placement.spread.is_empty() || scope.prefers_data {
        return 0;
    }
    let filters = Filters::new(cluster, first);
    for (placed, request) in group.iter().enumerate() {
        let accept = |cluster: &Cluster, index: u32| {
            let seat = cluster.seat(request.service_id, index);
            seat.service_tasks == 0 && !scope.failing.contains(&seat.node.id) && filters.room(seat)
        };
        let placement = &first.spec.placement;
        let best = cluster.least_loaded(placement, &scope.eligible, WALK_NODES_MAX, accept);
        let Some(index) = best else {
            return placed;
        };
        placements.push((request.task_id, cluster.node(index).id));
        cluster.place(request, index);
    }
    group.len()
}

/// Places tasks of a group on the ranked nodes until none fits.
fn rank(
    cluster: &mut Cluster,
    group: &[&TaskRequest],
    mut scope: Scope,
    placements: &mut Vec<(TaskId, NodeId)>,
) {
    let Some(&first) = group.first() else {
        return;
    };
    let filters = Filters::new(cluster, first);
    let mut ranking = ranked(cluster, first, &filters, &scope);
    for request in group {
        let Some(best) = ranking.next() else {
            return;
        };
        placements.push((request.task_id, best.node_id));
        cluster.place(request, best.index);
        scope.data.remove(&best.node_id);
        let seat = cluster.seat(first.service_id, best.index);
        let fits = filters.room(seat);
        ranking.took(fits.then(|| scope.rank(seat, best.index)));
    }
}

/// Ranks every node that can take the request.
fn ranked(
    cluster: &Cluster,
    request: &TaskRequest,
    filters: &Filters<'_>,
    scope: &Scope,
) -> Ranking {
    let mut ranking = Ranking::new(&request.spec.placement.spread);
    let service_use = cluster.service_use(request.service_id);
    let candidate = |index: u32| {
        let seat = cluster.seat_with(service_use, index);
        (seat.node.takes_tasks() && filters.room(seat)).then(|| scope.rank(seat, index))
    };
    if ranking.is_flat() {
        for index in scope.eligible.ones() {
            if let (Some(node), Some(rank)) = (&cluster.node(index).node, candidate(index)) {
                ranking.add(node, 0, Some(rank));
            }
        }
    } else {
        // Tasks on nodes that take no more weigh in their branches too.
        for (index, entry) in cluster.known_nodes() {
            if let Some(node) = &entry.node {
                let rank = scope.eligible.contains(index).then(|| candidate(index));
                let tasks = cluster.seat_with(service_use, index).service_tasks;
                ranking.add(node, tasks, rank.flatten());
            }
        }
    }
    ranking.open();
    ranking
}

impl Scope {
    fn rank(&self, seat: Seat<'_>, index: u32) -> Rank {
        Rank {
            failing: self.failing.contains(&seat.node.id),
            without_data: self.prefers_data && !self.data.contains(&seat.node.id),
            service_tasks: seat.service_tasks,
            tasks: seat.node.tasks,
            node_id: seat.node.id,
            index,
        }
    }
}
