//! A world of one state, the real reconcilers, and hosts whose containers are followed as they really are.

use crate::allocator;
use crate::allocator::Addresses;
use crate::consensus::IdSource;
use crate::loops::allocator::AllocatorLoop;
use crate::loops::enforcer::Enforcer;
use crate::loops::orchestrator::Orchestrator;
use crate::loops::reaper::Reaper;
use crate::loops::runner::{Moment, Reconciler};
use crate::loops::scheduler::SchedulerLoop;
use crate::store::{State, check_invariants, holds_node};
use shoal_model::command::{Command, Object, ObjectKey, Outcome, StoreAction};
use shoal_model::network::{
    Attachment, IpamConfig, NetworkAttachment, NetworkSpec, WireGuardBackend, WireGuardDescription,
};
use shoal_model::spec::OnPartition;
use shoal_model::{
    Availability, ClusterSpec, ContainerId, Meta, Network, NetworkId, Node, NodeDescription,
    NodeId, NodeRole, NodeSpec, NodeState, NodeStatus, Resources, Service, ServiceId, ServiceMode,
    ServiceSpec, Task, TaskId, TaskState, TaskStatus, Timestamp, Version,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

const LEASE: Duration = Duration::from_secs(2);
const DOWN_LIMIT: Duration = Duration::from_secs(3);
/// Rounds in which everything must come to rest.
const ROUNDS_MAX: usize = 500;

#[derive(Default)]
struct Ids(AtomicU64);

impl IdSource for Ids {
    fn bits(&self) -> u128 {
        u128::from(self.0.fetch_add(1, Ordering::Relaxed)) + 1_000
    }
}

fn new_allocator(confirmed: &Arc<AtomicU64>) -> AllocatorLoop {
    let confirmed = Arc::clone(confirmed);
    AllocatorLoop::new(move || Version(confirmed.load(Ordering::Relaxed)))
}

/// How a host is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Host {
    Up,
    /// It runs, but nobody hears it since that time.
    Cut(Duration),
    /// Power off.
    Dead(Duration),
}

pub(super) struct World {
    pub(super) state: State,
    now: Duration,
    ids: Ids,
    orchestrator: Orchestrator,
    scheduler: SchedulerLoop,
    enforcer: Enforcer,
    reaper: Reaper,
    allocator: AllocatorLoop,
    /// The version of the networks that is in force everywhere.
    pub(super) confirmed: Arc<AtomicU64>,
    pub(super) hosts: BTreeMap<NodeId, Host>,
    /// Containers that really run, with their hosts.
    containers: BTreeMap<TaskId, NodeId>,
    /// Services whose tasks end like this as soon as they start.
    pub(super) sick: BTreeMap<ServiceId, TaskState>,
    /// Hosts whose containers do not stop.
    pub(super) stuck: BTreeSet<NodeId>,
}

impl World {
    pub(super) fn new() -> Self {
        let cluster = crate::testing::cluster(ClusterSpec::default());
        let confirmed = Arc::new(AtomicU64::new(u64::MAX));
        let mut world = Self {
            state: State::new(),
            allocator: new_allocator(&confirmed),
            confirmed,
            now: Duration::from_secs(1_000),
            ids: Ids::default(),
            orchestrator: Orchestrator::default(),
            scheduler: SchedulerLoop::default(),
            enforcer: Enforcer::default(),
            reaper: Reaper::default(),
            hosts: BTreeMap::new(),
            containers: BTreeMap::new(),
            sick: BTreeMap::new(),
            stuck: BTreeSet::new(),
        };
        world.apply(vec![StoreAction::Create(Object::Cluster(Box::new(
            cluster,
        )))]);
        world
    }

    pub(super) fn wall(&self) -> Timestamp {
        Timestamp::from_unix(self.now)
    }

    /// Applies one entry, tells every loop, and checks what must always hold.
    pub(super) fn apply(&mut self, actions: Vec<StoreAction>) {
        let command = Command {
            time: self.wall(),
            actions,
        };
        let index = self.state.version().0 + 1;
        let (outcome, changes) = self.state.apply(index, &command);
        assert!(
            matches!(outcome, Outcome::Applied { .. }),
            "{outcome:?} for {:?}",
            command.actions
        );
        for change in &changes {
            self.orchestrator.note(change, &self.state);
            self.scheduler.note(change, &self.state);
            self.enforcer.note(change, &self.state);
            self.reaper.note(change, &self.state);
            self.allocator.note(change, &self.state);
        }
        assert_eq!(check_invariants(&self.state), []);
        self.check_reality();
    }

    /// As after a change of the leader: every loop knows nothing and starts with a full pass.
    pub(super) fn restart_loops(&mut self) {
        self.orchestrator = Orchestrator::default();
        self.scheduler = SchedulerLoop::default();
        self.allocator = new_allocator(&self.confirmed);
        self.allocator.reset(&self.state);
        self.orchestrator.reset(&self.state);
        self.scheduler.reset(&self.state);
        self.enforcer.reset(&self.state);
        self.reaper.reset(&self.state);
    }

    /// Lets loops and agents act until nothing changes.
    pub(super) fn settle(&mut self) {
        for _ in 0..ROUNDS_MAX {
            let moment = Moment {
                wall: self.wall(),
                elapsed: self.now,
            };
            let before = self.state.version();
            let plan = self.orchestrator.plan(&self.state, moment, &self.ids);
            self.propose(plan.actions);
            let plan = self.scheduler.plan(&self.state, moment, &self.ids);
            self.propose(plan.actions);
            let plan = self.allocator.plan(&self.state, moment, &self.ids);
            self.propose(plan.actions);
            let plan = self.enforcer.plan(&self.state, moment, &self.ids);
            self.propose(plan.actions);
            let plan = self.reaper.plan(&self.state, moment, &self.ids);
            self.propose(plan.actions);
            let reports = self.agents();
            self.propose(reports);
            if self.state.version() == before {
                return;
            }
        }
        panic!("the loops do not come to rest: {}", self.show());
    }

    fn propose(&mut self, actions: Vec<StoreAction>) {
        if !actions.is_empty() {
            self.apply(actions);
        }
    }

    /// What the hosts that are heard do and say.
    fn agents(&mut self) -> Vec<StoreAction> {
        let mut reports = Vec::new();
        for task in self.state.tasks().filter(|task| holds_node(task)) {
            let Some(node_id) = task.node_id else {
                continue;
            };
            if self.hosts.get(&node_id) != Some(&Host::Up) {
                continue;
            }
            let runs = self.containers.contains_key(&task.id);
            let next = match (task.desired > TaskState::Running, task.status.state) {
                (true, _) if runs && self.stuck.contains(&node_id) => continue,
                (true, _) => TaskState::Shutdown,
                (false, TaskState::Running) if !runs => TaskState::Failed,
                (false, TaskState::Running) => continue,
                (false, _) => self
                    .sick
                    .get(&task.service_id)
                    .copied()
                    .unwrap_or(TaskState::Running),
            };
            if next == TaskState::Running {
                self.containers.insert(task.id, node_id);
            } else {
                self.containers.remove(&task.id);
            }
            reports.push(self.report(task, next));
        }
        let state = &self.state;
        let hosts = &self.hosts;
        // A host stops what it was not told to run.
        self.containers.retain(|task_id, node_id| {
            hosts.get(node_id) != Some(&Host::Up) || state.task(*task_id).is_some()
        });
        reports
    }

    fn report(&self, task: &Task, state: TaskState) -> StoreAction {
        StoreAction::SetTaskStatus {
            task_id: task.id,
            status: Box::new(TaskStatus {
                state,
                at: self.wall(),
                ready: state == TaskState::Running,
                ..task.status.clone()
            }),
        }
    }

    /// The live task of that name ends by itself.
    pub(super) fn report_end(&mut self, name: &str, state: TaskState) {
        let task = self
            .state
            .tasks()
            .find(|task| self.name(task) == name && holds_node(task))
            .unwrap_or_else(|| panic!("no task {name}: {}", self.show()))
            .clone();
        self.containers.remove(&task.id);
        let report = self.report(&task, state);
        self.apply(vec![report]);
    }

    /// Lets time pass in small steps; leases end and silent nodes are declared down on the way.
    pub(super) fn wait(&mut self, time: Duration) {
        let step = Duration::from_millis(250);
        let end = self.now + time;
        while self.now < end {
            self.now = end.min(self.now + step);
            let mut silent = Vec::new();
            for (node_id, host) in &self.hosts {
                let (Host::Cut(since) | Host::Dead(since)) = *host else {
                    continue;
                };
                let state = &self.state;
                if self.now >= since + LEASE {
                    self.containers.retain(|task_id, on| {
                        let stops = state
                            .task(*task_id)
                            .is_none_or(|task| task.on_partition == OnPartition::Stop);
                        on != node_id || !stops
                    });
                }
                let ready = state
                    .node(*node_id)
                    .is_some_and(|node| node.status.state == NodeState::Ready);
                if ready && self.now >= since + DOWN_LIMIT {
                    silent.push(*node_id);
                }
            }
            for node_id in silent {
                self.set_node_state(node_id, NodeState::Down);
            }
            self.settle();
        }
    }

    /// Lets much time pass at once.
    pub(super) fn skip(&mut self, time: Duration) {
        self.now += time;
        self.settle();
    }

    pub(super) fn set_node_state(&mut self, node_id: NodeId, state: NodeState) {
        let status = NodeStatus {
            state,
            ..NodeStatus::default()
        };
        self.apply(vec![StoreAction::SetNodeStatus {
            node_id,
            status,
            description: None,
        }]);
    }

    pub(super) fn power(&mut self, node_id: NodeId, host: Host) {
        self.hosts.insert(node_id, host);
        if matches!(host, Host::Dead(_)) {
            self.containers.retain(|_, on| *on != node_id);
        }
        if host == Host::Up {
            self.set_node_state(node_id, NodeState::Ready);
        }
    }

    pub(super) fn since(&self) -> Duration {
        self.now
    }

    /// A slot of a `stop` service never really runs twice, and no service twice on hosts that are heard.
    fn check_reality(&self) {
        let mut running: BTreeMap<(ServiceId, u64), Vec<TaskId>> = BTreeMap::new();
        for task_id in self.containers.keys() {
            if let Some(task) = self.state.task(*task_id)
                && task.slot != 0
                && task.on_partition == OnPartition::Stop
            {
                let slot = (task.service_id, task.slot);
                running.entry(slot).or_default().push(*task_id);
            }
        }
        for (slot, tasks) in running {
            assert!(
                tasks.len() < 2,
                "slot {slot:?} runs twice: {tasks:?}: {}",
                self.show()
            );
        }
    }

    pub(super) fn add_node(&mut self, name: &str, labels: &[(&str, &str)]) -> NodeId {
        let id = NodeId::from_bits(self.hosts.len() as u128 + 1);
        let node = Node {
            id,
            meta: Meta::default(),
            spec: NodeSpec {
                name: name.to_owned(),
                labels: labels
                    .iter()
                    .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                    .collect(),
                ..NodeSpec::default()
            },
            description: Some(NodeDescription {
                hostname: name.to_owned(),
                os: "linux".to_owned(),
                architecture: "amd64".to_owned(),
                resources: Resources {
                    nano_cpus: 8_000_000_000,
                    memory_bytes: 1 << 34,
                },
                ..NodeDescription::default()
            }),
            status: NodeStatus {
                state: NodeState::Ready,
                ..NodeStatus::default()
            },
            role: NodeRole::Worker,
            manager: None,
            public_key_digest: [0; 32],
            hold_until: None,
            mesh: None,
        };
        self.hosts.insert(id, Host::Up);
        self.apply(vec![StoreAction::Create(Object::Node(Box::new(node)))]);
        id
    }

    pub(super) fn node(&self, name: &str) -> NodeId {
        self.state
            .node_by_name(name)
            .unwrap_or_else(|| panic!("no node {name}"))
            .id
    }

    pub(super) fn change_node(&mut self, name: &str, change: impl FnOnce(&mut Node)) {
        let mut node = Node::clone(self.state.node(self.node(name)).unwrap());
        change(&mut node);
        self.apply(vec![StoreAction::Update(Object::Node(Box::new(node)))]);
    }

    pub(super) fn set_availability(&mut self, name: &str, availability: Availability) {
        self.change_node(name, |node| node.spec.availability = availability);
    }

    pub(super) fn add_service(&mut self, spec: ServiceSpec) {
        let mut service = Service {
            id: ServiceId::from_bits(self.ids.bits()),
            meta: Meta::default(),
            spec,
            previous_spec: None,
            vips: Vec::new(),
            ports: Vec::new(),
            spec_version: 1,
            update_status: None,
            pending_delete: false,
        };
        let mut actions = allocator::service::fill(&self.state, &mut service).unwrap();
        actions.push(StoreAction::Create(Object::Service(Box::new(service))));
        self.apply(actions);
    }

    pub(super) fn add_network(&mut self, name: &str, subnet: &str) {
        let spec = NetworkSpec {
            name: name.to_owned(),
            attachable: true,
            ipam: vec![IpamConfig {
                subnet: subnet.parse().unwrap(),
                gateway: None,
                ip_range: None,
            }],
            ..NetworkSpec::default()
        };
        let cluster = self.state.cluster().unwrap();
        let network = Network {
            id: NetworkId::from_bits(self.ids.bits()),
            meta: Meta::default(),
            subnets: allocator::subnets::choose(&self.state, cluster, &spec).unwrap(),
            spec,
        };
        self.apply(vec![StoreAction::Create(Object::Network(Box::new(
            network,
        )))]);
    }

    pub(super) fn network(&self, name: &str) -> NetworkId {
        self.state
            .network_by_name(name)
            .unwrap_or_else(|| panic!("no network {name}"))
            .id
    }

    /// The node has a WireGuard key.
    pub(super) fn describe_wireguard(&mut self, name: &str) {
        self.change_node(name, |node| {
            if let Some(description) = &mut node.description {
                description.wireguard = Some(WireGuardDescription {
                    public_key: [1; 32],
                    next_key: None,
                    port: 51_820,
                    backend: WireGuardBackend::Userspace,
                });
            }
        });
    }

    /// A container on a node takes an address of a network.
    pub(super) fn attach(&mut self, name: &str, node: &str, network: &str) {
        let node_id = self.node(node);
        let places = [NetworkAttachment {
            network_id: self.network(network),
            aliases: Vec::new(),
        }];
        let mut addresses = Addresses::new(&self.state);
        let endpoints = addresses.endpoints(&places, node_id, 0).unwrap();
        let mut actions = addresses.into_actions();
        let mut bytes = [0; 32];
        bytes[..16].copy_from_slice(&self.ids.bits().to_be_bytes());
        actions.push(StoreAction::Create(Object::Attachment(Box::new(
            Attachment {
                container_id: ContainerId::from_bytes(bytes),
                meta: Meta::default(),
                node_id,
                name: name.to_owned(),
                endpoints,
            },
        ))));
        self.apply(actions);
    }

    pub(super) fn detach(&mut self, name: &str) {
        let found = self.state.attachments().find(|it| it.name == name);
        let key = ObjectKey::Attachment(found.unwrap().container_id);
        self.apply(vec![StoreAction::Remove { key, version: None }]);
    }

    /// Leases of a network: `a:28 b:28,30`, with `?` for a node that has left.
    pub(super) fn leases(&self, network: &str) -> String {
        let leases = self.state.leases_in(self.network(network)).map(|lease| {
            let node = self.state.node(lease.node_id);
            let node = node.map_or("?".to_owned(), |node| node.display_name());
            let blocks = lease
                .blocks
                .iter()
                .map(|block| block.prefix_len().to_string());
            format!("{node}:{}", blocks.collect::<Vec<_>>().join(","))
        });
        leases.collect::<Vec<_>>().join(" ")
    }

    pub(super) fn service(&self, name: &str) -> Arc<Service> {
        Arc::clone(
            self.state
                .service_by_name(name)
                .unwrap_or_else(|| panic!("no service {name}")),
        )
    }

    pub(super) fn change_service(&mut self, name: &str, change: impl FnOnce(&mut Service)) {
        let mut service = Service::clone(&self.service(name));
        change(&mut service);
        self.apply(vec![StoreAction::Update(Object::Service(Box::new(
            service,
        )))]);
    }

    pub(super) fn remove_service(&mut self, name: &str) {
        self.change_service(name, |service| service.pending_delete = true);
    }

    pub(super) fn scale(&mut self, name: &str, replicas: u64) {
        self.change_service(name, |service| {
            service.spec.mode = ServiceMode::Replicated { replicas };
        });
    }

    pub(super) fn unbind(&mut self, name: &str, slot: u64) {
        let slot = shoal_model::volume::SlotKey {
            service_id: self.service(name).id,
            slot,
        };
        let bound = self.state.volumes_bound_to(slot);
        let actions = bound
            .map(|volume| StoreAction::UnbindVolume {
                volume_id: volume.id,
                slot,
            })
            .collect();
        self.apply(actions);
    }

    pub(super) fn forget_node(&mut self, name: &str) {
        let node_id = self.node(name);
        let orphaned: Vec<StoreAction> = self
            .state
            .tasks_by_node(node_id)
            .filter(|task| holds_node(task))
            .map(|task| self.report(task, TaskState::Orphaned))
            .collect();
        let remove = StoreAction::Remove {
            key: ObjectKey::Node(node_id),
            version: None,
        };
        self.containers.retain(|_, on| *on != node_id);
        self.apply(orphaned.into_iter().chain([remove]).collect());
    }

    fn name(&self, task: &Task) -> String {
        format!("{}.{}", task.service_name, task.slot)
    }

    /// The tasks that are wanted, by name: `web.1@a`, `web.2@-` without a node; its state if it does not run.
    pub(super) fn show(&self) -> String {
        let mut shown: Vec<String> = self
            .state
            .tasks()
            .filter(|task| task.desired <= TaskState::Running)
            .map(|task| {
                let node = task.node_id.and_then(|id| self.state.node(id));
                let node = node.map_or("-".to_owned(), |node| node.display_name());
                let version = match task.spec_version {
                    1 => String::new(),
                    n => format!("/{n}"),
                };
                let state = match task.status.state {
                    TaskState::Running | TaskState::Pending => String::new(),
                    other => format!(":{other}"),
                };
                format!("{}@{node}{state}{version}", self.name(task))
            })
            .collect();
        shown.sort();
        shown.join(" ")
    }

    /// Containers that really run.
    pub(super) fn containers(&self) -> usize {
        self.containers.len()
    }
}
