//! Gives out what belongs to no request: the network of published ports, the nodes' addresses in the mesh; and takes
//! back what nobody uses: blocks of addresses, attachments and leases of nodes that have left.
//!
//! Addresses of tasks come with their nodes, from the scheduler loop; those of services and containers when they are
//! asked for.

use super::runner::{Moment, Pass, Reconciler};
use crate::allocator::{AllocationError, mesh, subnets};
use crate::consensus::IdSource;
use crate::store::{Change, Entity, State, holds_node};
use ipnet::Ipv4Net;
use shoal_model::command::{Object, ObjectKey, StoreAction};
use shoal_model::network::{Endpoint, INGRESS_NETWORK, NetworkSpec};
use shoal_model::{AddressLease, Cluster, Meta, Network, NetworkId, Node, NodeId, Task, Version};
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::Duration;

/// How long nobody has used a block before its node loses it.
pub const LEASE_REST: Duration = Duration::from_secs(60);

/// Between two looks at what the nodes have confirmed, while something waits for it.
const CONFIRMATION_PERIOD: Duration = Duration::from_millis(250);

/// The newest version of the networks that is in force on every node.
type Confirmed = Box<dyn Fn() -> Version + Send>;

/// The loop.
pub struct AllocatorLoop {
    confirmed: Confirmed,
    /// The network of published ports may be missing.
    ingress: bool,
    /// Nodes that may lack an address in the mesh.
    nodes: BTreeSet<NodeId>,
    /// Leases in which something changed.
    leases: BTreeSet<(NetworkId, NodeId)>,
    /// Since when nobody uses a block, by the loop's own clock.
    idle: BTreeMap<(NetworkId, NodeId, Ipv4Net), Duration>,
    /// When the first of them has rested.
    due: Option<Duration>,
    /// Nodes that have left, until nobody sends anything to them any more.
    gone: BTreeMap<NodeId, Gone>,
}

/// A node that has left.
#[derive(Debug, Clone, Copy)]
struct Gone {
    /// The store's version in which it was missed.
    version: Version,
    /// When that was, by the loop's own clock, once the loop has looked.
    since: Option<Duration>,
    /// Its address in the mesh.
    mesh: Option<Ipv4Addr>,
}

impl std::fmt::Debug for AllocatorLoop {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AllocatorLoop")
            .field("idle", &self.idle.len())
            .field("gone", &self.gone)
            .finish_non_exhaustive()
    }
}

impl AllocatorLoop {
    /// `confirmed` says which version of the networks is in force on every node.
    pub fn new(confirmed: impl Fn() -> Version + Send + 'static) -> Self {
        Self {
            confirmed: Box::new(confirmed),
            ingress: true,
            nodes: BTreeSet::new(),
            leases: BTreeSet::new(),
            idle: BTreeMap::new(),
            due: None,
            gone: BTreeMap::new(),
        }
    }

    fn note_ends(&mut self, node_id: NodeId, endpoints: &[Endpoint]) {
        let leases = endpoints.iter().map(|it| (it.network_id, node_id));
        self.leases.extend(leases);
    }

    fn note_task(&mut self, before: Option<&Task>, after: Option<&Task>) {
        let holds = |task: Option<&Task>| task.is_some_and(holds_node);
        let Some(task) = after.or(before).filter(|task| !task.endpoints.is_empty()) else {
            return;
        };
        if holds(before) != holds(after)
            && let Some(node_id) = task.node_id
        {
            self.note_ends(node_id, &task.endpoints);
        }
    }

    fn node_left(&mut self, id: NodeId, mesh: Option<Ipv4Addr>, state: &State) {
        self.gone.entry(id).or_insert(Gone {
            version: state.version(),
            since: None,
            mesh,
        });
    }

    /// Addresses in the mesh, each given out once.
    fn plan_mesh(&mut self, state: &State, cluster: &Cluster, pass: &mut Pass) {
        let mut resting: BTreeSet<Ipv4Addr> =
            self.gone.values().filter_map(|gone| gone.mesh).collect();
        for id in std::mem::take(&mut self.nodes) {
            let Some(node) = state.node(id).filter(|node| wants_mesh(node)) else {
                continue;
            };
            // With every address in use, the node is looked at again with the next full pass.
            if let Ok(mesh) = mesh::next(state, cluster, &resting) {
                resting.insert(mesh.ipv4);
                let node_id = node.id;
                pass.actions
                    .push(StoreAction::SetNodeMesh { node_id, mesh });
            }
        }
    }

    /// What is left of nodes that are gone: containers at once, addresses once nobody sends there any more.
    fn plan_gone(&mut self, state: &State, cluster: &Cluster, now: Duration, pass: &mut Pass) {
        if self.gone.is_empty() {
            return;
        }
        let confirmed = (self.confirmed)();
        let limit = Duration::from_millis(cluster.spec.down_limit_ms);
        let mut settled = Vec::new();
        for (&id, gone) in &mut self.gone {
            let since = *gone.since.get_or_insert(now);
            let attachments = state.attachments_of(id);
            pass.actions
                .extend(attachments.map(|it| StoreAction::Remove {
                    key: ObjectKey::Attachment(it.container_id),
                    version: None,
                }));
            if confirmed < gone.version && now.saturating_sub(since) < limit {
                pass.wake_after(CONFIRMATION_PERIOD);
                continue;
            }
            settled.push(id);
            pass.actions
                .extend(state.leases_of(id).map(|it| remove(it)));
        }
        for id in settled {
            self.gone.remove(&id);
        }
    }

    /// Blocks that nobody has used for a while.
    fn plan_idle(&mut self, state: &State, now: Duration, pass: &mut Pass) {
        if self.due.is_some_and(|due| due <= now) {
            let rested = |since: &Duration| *since + LEASE_REST <= now;
            let keys = self.idle.iter().filter(|(_, since)| rested(since));
            self.leases
                .extend(keys.map(|((network, node, _), _)| (*network, *node)));
        }
        for (network, node) in std::mem::take(&mut self.leases) {
            let first = (network, node, Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0));
            let last = (network, node, Ipv4Net::new_assert(Ipv4Addr::BROADCAST, 32));
            let known: Vec<_> = self.idle.range(first..=last).map(|(key, _)| *key).collect();
            let lease = state
                .lease(network, node)
                .filter(|_| state.node(node).is_some());
            for key in known {
                if !lease.is_some_and(|lease| lease.blocks.contains(&key.2)) {
                    self.idle.remove(&key);
                }
            }
            let Some(lease) = lease else { continue };
            let mut kept = BTreeSet::new();
            for block in &lease.blocks {
                let key = (network, node, *block);
                if state.endpoints_in(network, *block).next().is_some() {
                    self.idle.remove(&key);
                    kept.insert(*block);
                } else if *self.idle.entry(key).or_insert(now) + LEASE_REST > now {
                    kept.insert(*block);
                }
            }
            if kept.is_empty() {
                pass.actions.push(remove(lease));
            } else if kept.len() < lease.blocks.len() {
                let mut lease = AddressLease::clone(lease);
                lease.blocks = kept;
                let object = Object::Lease(Box::new(lease));
                pass.actions.push(StoreAction::Update(object));
            }
        }
        self.due = self.idle.values().min().map(|since| *since + LEASE_REST);
        if let Some(due) = self.due {
            pass.wake_after(due.saturating_sub(now));
        }
    }
}

fn remove(lease: &AddressLease) -> StoreAction {
    StoreAction::Remove {
        key: ObjectKey::Lease(lease.network_id, lease.node_id),
        version: Some(lease.meta.version),
    }
}

/// It has a key, and no address yet.
fn wants_mesh(node: &Node) -> bool {
    let described = node.description.as_ref();
    node.mesh.is_none() && described.is_some_and(|it| it.wireguard.is_some())
}

/// The network of published ports, made once the first node says which networks its machine has already.
fn make_ingress(
    state: &State,
    cluster: &Cluster,
    ids: &dyn IdSource,
) -> Option<Result<StoreAction, AllocationError>> {
    let described = |node: &Node| {
        let description = node.description.as_ref();
        description.is_some_and(|it| it.wireguard.is_some())
    };
    if state.ingress_network().is_some() || !state.nodes().any(|node| described(node)) {
        return None;
    }
    let spec = NetworkSpec {
        name: INGRESS_NETWORK.to_owned(),
        ingress: true,
        ipv6: true,
        ..NetworkSpec::default()
    };
    let made = subnets::choose(state, cluster, &spec).map(|subnets| {
        StoreAction::Create(Object::Network(Box::new(Network {
            id: NetworkId::from_bits(ids.bits()),
            meta: Meta::default(),
            spec,
            subnets,
        })))
    });
    Some(made)
}

impl Reconciler for AllocatorLoop {
    const NAME: &'static str = "allocator";

    fn reset(&mut self, state: &State) {
        self.ingress = true;
        self.nodes = state.nodes().map(|node| node.id).collect();
        let leases = state.leases();
        self.leases = leases.map(|it| (it.network_id, it.node_id)).collect();
        let idle = self.idle.keys().map(|(network, node, _)| (*network, *node));
        self.leases.extend(idle);
        let holders = state.leases().map(|lease| lease.node_id);
        let attached = state.attachments().map(|attachment| attachment.node_id);
        let missing: BTreeSet<NodeId> = holders
            .chain(attached)
            .filter(|id| state.node(*id).is_none())
            .collect();
        for id in missing {
            self.node_left(id, None, state);
        }
    }

    fn note(&mut self, change: &Change, state: &State) {
        match (&change.before, &change.after) {
            (_, Some(Entity::Node(node))) => {
                self.nodes.insert(node.id);
                self.ingress = true;
            }
            (Some(Entity::Node(node)), None) => {
                self.node_left(node.id, node.mesh.map(|mesh| mesh.ipv4), state);
            }
            (before, Some(Entity::Task(task))) => {
                let before = before.as_ref().and_then(Entity::as_task);
                self.note_task(before.map(|task| &**task), Some(task));
            }
            (Some(Entity::Task(task)), None) => self.note_task(Some(task), None),
            (before, Some(Entity::Attachment(attachment))) => {
                if let Some(Entity::Attachment(before)) = before {
                    self.note_ends(before.node_id, &before.endpoints);
                }
                self.note_ends(attachment.node_id, &attachment.endpoints);
            }
            (Some(Entity::Attachment(attachment)), None) => {
                self.note_ends(attachment.node_id, &attachment.endpoints);
            }
            (_, Some(Entity::Lease(lease))) | (Some(Entity::Lease(lease)), None) => {
                self.leases.insert((lease.network_id, lease.node_id));
            }
            (_, Some(Entity::Cluster(_) | Entity::Network(_)))
            | (Some(Entity::Network(_)), None) => self.ingress = true,
            (_, Some(Entity::Service(_) | Entity::Volume(_)))
            | (Some(Entity::Cluster(_) | Entity::Service(_) | Entity::Volume(_)), None)
            | (None, None) => {}
        }
    }

    fn plan(&mut self, state: &State, now: Moment, ids: &dyn IdSource) -> Pass {
        let mut pass = Pass::default();
        let Some(cluster) = state.cluster() else {
            return pass;
        };
        if std::mem::take(&mut self.ingress) {
            match make_ingress(state, cluster, ids) {
                Some(Ok(action)) => pass.actions.push(action),
                Some(Err(err)) => {
                    tracing::warn!(err = %err, "the network of published ports can't be made");
                }
                None => {}
            }
        }
        self.plan_mesh(state, cluster, &mut pass);
        self.plan_gone(state, cluster, now.elapsed, &mut pass);
        self.plan_idle(state, now.elapsed, &mut pass);
        pass
    }
}
