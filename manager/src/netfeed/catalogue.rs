//! Everything that any node is told, with whom each record concerns, kept up to date change by change.
//!
//! A record belongs to topics, a node follows topics; a node is told the records of the topics that it follows. One
//! changed object makes few records be looked at again, however many nodes and services there are:
//!
//! * A node follows itself, each network that it has a lease in, and what carries published ports.
//! * A network, its leases, the services and endpoints in it, and the nodes that have a lease in it belong to the
//!   network's topic.
//! * A service with ports on every node, its endpoints, and the nodes and leases behind them belong to all nodes; and
//!   the nodes behind them know all nodes.

use super::records::{has_ingress, record};
use crate::store::{Change, Entity, State};
use shoal_model::command::ObjectKey;
use shoal_model::netstate::{EndpointId, NetEndpoint, NetKey, NetRecord, NetState};
use shoal_model::{NetworkId, Node, NodeId, NodeState, Service, ServiceId};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// What a record belongs to and a node follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Topic {
    /// That node alone.
    Node(NodeId),
    /// All nodes in a network.
    Network(NetworkId),
    /// All nodes: ports that are published on every one of them.
    Ingress,
    /// Nodes that have tasks behind such ports: any node may send them its clients, so they know every node.
    Entrances,
}

/// A record with its topics.
#[derive(Debug, Clone, PartialEq)]
struct Published {
    record: Arc<NetRecord>,
    topics: BTreeSet<Topic>,
}

/// A changed record.
#[derive(Debug, Clone, PartialEq)]
pub struct Difference {
    /// Which.
    pub key: NetKey,
    /// What it is now; `None`: it is gone.
    pub record: Option<Arc<NetRecord>>,
    /// Whom it concerned before.
    pub before: BTreeSet<Topic>,
    /// Whom it concerns now.
    pub after: BTreeSet<Topic>,
}

/// What a set of changes comes to.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Differences {
    /// Changed records by key.
    pub records: Vec<Difference>,
    /// Nodes that follow other topics than before.
    pub followers: BTreeSet<NodeId>,
}

/// All records.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Catalogue {
    records: BTreeMap<NetKey, Published>,
    by_topic: BTreeMap<Topic, BTreeSet<NetKey>>,
    /// Networks in which a node has a lease.
    leased: BTreeMap<NodeId, BTreeSet<NetworkId>>,
    /// How many endpoints behind published ports are on a node, and with an address in which network.
    ingress_nodes: BTreeMap<NodeId, usize>,
    ingress_leases: BTreeMap<(NetworkId, NodeId), usize>,
}

impl Catalogue {
    /// Everything that `state` has to tell.
    pub fn of(state: &State) -> Self {
        let mut catalogue = Self::default();
        let mut dirty = BTreeSet::new();
        dirty.extend(state.nodes().map(|node| NetKey::Node(node.id)));
        dirty.extend(state.networks().map(|network| NetKey::Network(network.id)));
        dirty.extend(
            state
                .leases()
                .map(|lease| NetKey::Lease(lease.network_id, lease.node_id)),
        );
        dirty.extend(state.services().map(|service| NetKey::Service(service.id)));
        let tasks = state.tasks().filter(|task| !task.endpoints.is_empty());
        dirty.extend(tasks.map(|task| NetKey::Endpoint(EndpointId::Task(task.id))));
        dirty.extend(
            state
                .attachments()
                .map(|one| NetKey::Endpoint(EndpointId::Container(one.container_id))),
        );
        catalogue.update(state, dirty);
        catalogue
    }

    /// The topics that a node follows.
    pub fn topics(&self, node_id: NodeId) -> BTreeSet<Topic> {
        let networks = self.leased.get(&node_id).into_iter().flatten();
        networks
            .map(|id| Topic::Network(*id))
            .chain([Topic::Node(node_id), Topic::Ingress])
            .chain(
                self.ingress_nodes
                    .contains_key(&node_id)
                    .then_some(Topic::Entrances),
            )
            .collect()
    }

    /// The records that a node is told, in order of their keys.
    pub fn records(&self, node_id: NodeId) -> Vec<Arc<NetRecord>> {
        let keys: BTreeSet<NetKey> = self
            .topics(node_id)
            .iter()
            .filter_map(|topic| self.by_topic.get(topic))
            .flatten()
            .copied()
            .collect();
        keys.iter()
            .filter_map(|key| self.records.get(key))
            .map(|published| Arc::clone(&published.record))
            .collect()
    }

    /// Brings the records of `dirty`, and those that depend on them, to what `state` says.
    pub fn update(&mut self, state: &State, mut dirty: BTreeSet<NetKey>) -> Differences {
        let mut differences = Differences::default();
        // Endpoints decide which nodes and leases stand behind published ports, leases decide whom a node concerns:
        // so each kind comes after those that it follows from.
        for rank in 0..=2 {
            let now: Vec<NetKey> = dirty
                .iter()
                .filter(|key| rank_of(**key) == rank)
                .copied()
                .collect();
            for key in now {
                self.refresh(state, key, &mut dirty, &mut differences);
            }
        }
        differences.records.sort_by_key(|difference| difference.key);
        differences
    }

    fn refresh(
        &mut self,
        state: &State,
        key: NetKey,
        dirty: &mut BTreeSet<NetKey>,
        differences: &mut Differences,
    ) {
        let record = record(state, key);
        let topics = match &record {
            Some(record) => self.topics_of(state, record),
            None => BTreeSet::new(),
        };
        let before = self.records.get(&key);
        let same = match (&record, before) {
            (Some(record), Some(before)) => *before.record == *record && before.topics == topics,
            (None, None) => true,
            (Some(_), None) | (None, Some(_)) => false,
        };
        if same {
            return;
        }
        let record = record.map(Arc::new);
        let before = self.replace(
            key,
            record.as_ref().map(|record| Published {
                record: Arc::clone(record),
                topics: topics.clone(),
            }),
        );
        self.follow(
            key,
            before.as_ref(),
            record.as_deref(),
            &topics,
            dirty,
            differences,
        );
        differences.records.push(Difference {
            key,
            record,
            before: before.map(|before| before.topics).unwrap_or_default(),
            after: topics,
        });
    }

    fn topics_of(&self, state: &State, record: &NetRecord) -> BTreeSet<Topic> {
        let ingress = |yes: bool| yes.then_some(Topic::Ingress);
        match record {
            NetRecord::Node(node) => {
                let networks = self.leased.get(&node.id).into_iter().flatten();
                networks
                    .map(|id| Topic::Network(*id))
                    .chain([Topic::Node(node.id), Topic::Entrances])
                    .chain(ingress(self.ingress_nodes.contains_key(&node.id)))
                    .collect()
            }
            NetRecord::Network(network) => BTreeSet::from([Topic::Network(network.id)]),
            NetRecord::Lease(lease) => {
                let place = (lease.network_id, lease.node_id);
                std::iter::once(Topic::Network(lease.network_id))
                    .chain(ingress(self.ingress_leases.contains_key(&place)))
                    .collect()
            }
            NetRecord::Service(service) => service
                .networks
                .iter()
                .map(|network| Topic::Network(network.network_id))
                .chain(
                    service
                        .vips
                        .iter()
                        .map(|vip| Topic::Network(vip.network_id)),
                )
                .chain(ingress(!service.ports.is_empty()))
                .collect(),
            NetRecord::Endpoint(endpoint) => {
                let behind_ports = endpoint
                    .service
                    .and_then(|(id, _)| state.service(id))
                    .is_some_and(|service| has_ingress(service));
                networks_of(endpoint)
                    .map(Topic::Network)
                    .chain(ingress(behind_ports))
                    .collect()
            }
        }
    }

    /// Puts the new record in its places, and gives the old one.
    fn replace(&mut self, key: NetKey, new: Option<Published>) -> Option<Published> {
        let added = new
            .as_ref()
            .map(|new| new.topics.clone())
            .unwrap_or_default();
        let old = match new {
            Some(new) => self.records.insert(key, new),
            None => self.records.remove(&key),
        };
        for topic in old.iter().flat_map(|old| old.topics.difference(&added)) {
            if let Some(keys) = self.by_topic.get_mut(topic) {
                keys.remove(&key);
                if keys.is_empty() {
                    self.by_topic.remove(topic);
                }
            }
        }
        for topic in added {
            self.by_topic.entry(topic).or_default().insert(key);
        }
        old
    }

    /// What else must be looked at since this record has changed.
    fn follow(
        &mut self,
        key: NetKey,
        before: Option<&Published>,
        after: Option<&NetRecord>,
        topics: &BTreeSet<Topic>,
        dirty: &mut BTreeSet<NetKey>,
        differences: &mut Differences,
    ) {
        match key {
            NetKey::Lease(network, node) => {
                if before.is_some() != after.is_some() {
                    let leased = self.leased.entry(node).or_default();
                    if after.is_some() {
                        leased.insert(network);
                    } else {
                        leased.remove(&network);
                    }
                    if leased.is_empty() {
                        self.leased.remove(&node);
                    }
                    dirty.insert(NetKey::Node(node));
                    differences.followers.insert(node);
                }
            }
            NetKey::Endpoint(_) => {
                let was = before.map(|before| (&*before.record, &before.topics));
                for (record, topics, more) in was
                    .map(|(record, topics)| (record, topics, false))
                    .into_iter()
                    .chain(after.map(|record| (record, topics, true)))
                {
                    if let NetRecord::Endpoint(endpoint) = record
                        && topics.contains(&Topic::Ingress)
                    {
                        self.count_ingress(endpoint, more, dirty, differences);
                    }
                }
            }
            NetKey::Node(_) | NetKey::Network(_) | NetKey::Service(_) => {}
        }
    }

    fn count_ingress(
        &mut self,
        endpoint: &NetEndpoint,
        more: bool,
        dirty: &mut BTreeSet<NetKey>,
        differences: &mut Differences,
    ) {
        let node = endpoint.node_id;
        let was_behind = self.ingress_nodes.contains_key(&node);
        count(&mut self.ingress_nodes, node, more);
        if was_behind != self.ingress_nodes.contains_key(&node) {
            differences.followers.insert(node);
        }
        dirty.insert(NetKey::Node(node));
        for network in networks_of(endpoint) {
            count(&mut self.ingress_leases, (network, node), more);
            dirty.insert(NetKey::Lease(network, node));
        }
    }
}

/// Records of a rank depend on records of lower ranks only.
const fn rank_of(key: NetKey) -> u8 {
    match key {
        NetKey::Network(_) | NetKey::Service(_) | NetKey::Endpoint(_) => 0,
        NetKey::Lease(..) => 1,
        NetKey::Node(_) => 2,
    }
}

fn count<K: Ord>(counts: &mut BTreeMap<K, usize>, key: K, more: bool) {
    let held = counts.remove(&key).unwrap_or(0);
    let held = if more {
        held + 1
    } else {
        held.saturating_sub(1)
    };
    if held > 0 {
        counts.insert(key, held);
    }
}

fn networks_of(endpoint: &NetEndpoint) -> impl Iterator<Item = NetworkId> + '_ {
    endpoint.endpoints.iter().map(|end| end.network_id)
}

/// The records that a change of the store concerns at first hand. `state` is the store with the change.
pub fn dirty(state: &State, change: &Change, dirty: &mut BTreeSet<NetKey>) {
    match change.key {
        ObjectKey::Cluster | ObjectKey::Volume(_) => {}
        ObjectKey::Node(id) => {
            dirty.insert(NetKey::Node(id));
            if is_lost(&change.before) != is_lost(&change.after) {
                dirty_node(state, id, dirty);
            }
        }
        ObjectKey::Service(id) => {
            dirty.insert(NetKey::Service(id));
            if serves_ports(&change.before) != serves_ports(&change.after) {
                dirty_tasks(state, id, dirty);
            }
        }
        ObjectKey::Task(id) => {
            let concerns = |entity: &Option<Entity>| {
                let task = entity.as_ref().and_then(Entity::as_task);
                task.is_some_and(|task| !task.endpoints.is_empty())
            };
            if concerns(&change.before) || concerns(&change.after) {
                dirty.insert(NetKey::Endpoint(EndpointId::Task(id)));
            }
        }
        ObjectKey::Network(id) => {
            dirty.insert(NetKey::Network(id));
        }
        ObjectKey::Lease(network, node) => {
            dirty.insert(NetKey::Lease(network, node));
        }
        ObjectKey::Attachment(id) => {
            dirty.insert(NetKey::Endpoint(EndpointId::Container(id)));
        }
    }
}

/// Everything on a node goes out of rotation with it, and comes back with it.
fn dirty_node(state: &State, id: NodeId, dirty: &mut BTreeSet<NetKey>) {
    let tasks = state.tasks_by_node(id);
    let with_ends = tasks.filter(|task| !task.endpoints.is_empty());
    dirty.extend(with_ends.map(|task| NetKey::Endpoint(EndpointId::Task(task.id))));
    let attachments = state.attachments().filter(|one| one.node_id == id);
    dirty.extend(attachments.map(|one| NetKey::Endpoint(EndpointId::Container(one.container_id))));
}

fn dirty_tasks(state: &State, id: ServiceId, dirty: &mut BTreeSet<NetKey>) {
    let tasks = state.tasks_by_service(id);
    let with_ends = tasks.filter(|task| !task.endpoints.is_empty());
    dirty.extend(with_ends.map(|task| NetKey::Endpoint(EndpointId::Task(task.id))));
}

fn is_lost(entity: &Option<Entity>) -> bool {
    let lost = |node: &Node| node.status.state == NodeState::Down;
    match entity {
        Some(Entity::Node(node)) => lost(node),
        _ => true,
    }
}

fn serves_ports(entity: &Option<Entity>) -> bool {
    let serves = |service: &Service| has_ingress(service);
    match entity {
        Some(Entity::Service(service)) => serves(service),
        _ => false,
    }
}

/// All that a node is told of `state`.
pub fn view(state: &State, node_id: NodeId) -> NetState {
    let mut net = NetState {
        version: state.version(),
        ..NetState::default()
    };
    for record in Catalogue::of(state).records(node_id) {
        net.put(NetRecord::clone(&record));
    }
    net
}
