//! Objects for tests, and a state that is changed by entries only.

use crate::store::snapshot::{self, Importer};
use crate::store::{Change, State};
use shoal_model::cluster::{JoinSecret, Redacted, RootCa};
use shoal_model::command::{Command, Object, Outcome, Rejection, StoreAction};
use shoal_model::network::{
    AddressLease, Attachment, Endpoint, NetworkAttachment, NetworkSpec, Subnets,
};
use shoal_model::spec::{Mount, MountKind, OnPartition, PortConfig, PublishMode};
use shoal_model::{
    Availability, Cluster, ClusterId, ClusterSpec, ContainerId, Meta, Network, NetworkId, Node,
    NodeDescription, NodeId, NodeRole, NodeSpec, NodeState, NodeStatus, Resources, Service,
    ServiceId, ServiceSpec, Task, TaskId, TaskSpec, TaskState, TaskStatus, Timestamp,
};
use std::collections::BTreeMap;
use std::sync::Arc;

/// CPU of every node: two.
pub(super) const NODE_NANO_CPUS: i64 = 2_000_000_000;

/// A state and the log that made it.
#[derive(Default)]
pub(super) struct Log {
    pub(super) state: State,
    pub(super) entries: Vec<Command>,
}

impl Log {
    pub(super) fn apply(&mut self, actions: Vec<StoreAction>) -> (Outcome, Vec<Change>) {
        let index = self.entries.len() as u64 + 1;
        let time = Timestamp(1_000_000_000 * i64::try_from(index).unwrap());
        let command = Command { time, actions };
        let result = self.state.apply(index, &command);
        self.entries.push(command);
        result
    }

    pub(super) fn ok(&mut self, actions: Vec<StoreAction>) -> Vec<Change> {
        match self.apply(actions) {
            (Outcome::Applied { .. }, changes) => changes,
            (Outcome::Rejected(rejection), _) => panic!("{rejection}"),
        }
    }

    pub(super) fn refused(&mut self, actions: Vec<StoreAction>) -> Rejection {
        let before = bytes_but_version(&self.state);
        match self.apply(actions) {
            (Outcome::Rejected(rejection), changes) => {
                assert_eq!(changes, []);
                assert_eq!(bytes_but_version(&self.state), before, "an entry is atomic");
                rejection
            }
            (Outcome::Applied { .. }, changes) => panic!("applied: {changes:?}"),
        }
    }

    /// A cluster, a service 1 and nodes 1 and 2 that take tasks.
    pub(super) fn with_nodes() -> Self {
        let mut log = Self::default();
        log.ok(vec![
            create(Object::Cluster(Box::new(cluster()))),
            create(Object::Node(Box::new(node(1)))),
            create(Object::Node(Box::new(node(2)))),
            create(Object::Service(Box::new(service(1, "web")))),
        ]);
        log
    }

    /// As [`Self::with_nodes`], and network 1, of which nodes 1 and 2 have leased some.
    pub(super) fn with_network() -> Self {
        let mut log = Self::with_nodes();
        log.ok(vec![
            create(Object::Network(Box::new(network(1, "backend")))),
            create(Object::Lease(Box::new(lease(1, 1, &["10.1.0.0/28"])))),
            create(Object::Lease(Box::new(lease(1, 2, &["10.1.0.16/28"])))),
        ]);
        log
    }

    pub(super) fn task(&self, id: u128) -> &Task {
        self.state.task(TaskId::from_bits(id)).unwrap()
    }

    /// Assigns a task with addresses in networks.
    pub(super) fn assign_at(&self, task: u128, node: u128, at: &[(u128, &str)]) -> StoreAction {
        let endpoints = at
            .iter()
            .map(|(network, address)| endpoint(*network, address));
        match self.assign(task, node) {
            StoreAction::Assign {
                task_id,
                version,
                node_id,
                new_volumes,
                ..
            } => StoreAction::Assign {
                task_id,
                version,
                node_id,
                new_volumes,
                endpoints: endpoints.collect(),
            },
            other => other,
        }
    }

    /// Assigns a task from its newest version, with ids for every volume that it could need.
    pub(super) fn assign(&self, task: u128, node: u128) -> StoreAction {
        let stored = self.task(task);
        let new_volumes = stored
            .spec
            .named_volumes()
            .zip(1_u128..)
            .map(|(name, number)| {
                let bits = task * 1_000 + node * 100 + number;
                (shoal_model::VolumeId::from_bits(bits), name.to_owned())
            })
            .collect();
        StoreAction::Assign {
            task_id: stored.id,
            version: stored.meta.version,
            node_id: NodeId::from_bits(node),
            new_volumes,
            endpoints: Vec::new(),
        }
    }
}

pub(super) fn bytes(state: &State) -> Vec<u8> {
    snapshot::export(state).flat_map(Result::unwrap).collect()
}

pub(super) fn bytes_but_version(state: &State) -> Vec<u8> {
    snapshot::export(state)
        .skip(1)
        .flat_map(Result::unwrap)
        .collect()
}

pub(super) fn copy_through_snapshot(state: &State) -> State {
    let mut importer = Importer::new();
    for page in snapshot::export(state) {
        importer.push(&page.unwrap()).unwrap();
    }
    importer.finish().unwrap()
}

pub(super) fn create(object: Object) -> StoreAction {
    StoreAction::Create(object)
}

pub(super) fn cluster() -> Cluster {
    let secret = |text: &str| JoinSecret {
        secret: Redacted(text.to_owned()),
        expires_at: None,
        uses_left: Some(2),
    };
    Cluster {
        id: ClusterId::from_bits(9),
        meta: Meta::default(),
        spec: ClusterSpec::default(),
        root_ca: RootCa {
            certificate_der: vec![1, 2, 3],
            key_der: Redacted(vec![4, 5, 6]),
        },
        worker_secret: secret("worker"),
        manager_secret: secret("manager"),
        last_raft_id: 1,
    }
}

pub(super) fn node(id: u128) -> Node {
    Node {
        id: NodeId::from_bits(id),
        meta: Meta::default(),
        spec: NodeSpec {
            availability: Availability::Active,
            ..NodeSpec::default()
        },
        description: Some(NodeDescription {
            hostname: format!("host-{id}"),
            resources: Resources {
                nano_cpus: NODE_NANO_CPUS,
                memory_bytes: 1 << 30,
            },
            ..NodeDescription::default()
        }),
        status: NodeStatus {
            state: NodeState::Ready,
            ..NodeStatus::default()
        },
        role: NodeRole::Worker,
        manager: None,
        public_key_digest: [u8::try_from(id % 256).unwrap(); 32],
        hold_until: None,
        mesh: None,
    }
}

pub(super) fn service(id: u128, name: &str) -> Service {
    Service {
        id: ServiceId::from_bits(id),
        meta: Meta::default(),
        spec: ServiceSpec {
            name: name.to_owned(),
            ..ServiceSpec::default()
        },
        previous_spec: None,
        vips: Vec::new(),
        ports: Vec::new(),
        spec_version: 1,
        update_status: None,
        pending_delete: false,
    }
}

/// A pending task of service 1.
pub(super) fn task(id: u128, slot: u64) -> Task {
    Task {
        id: TaskId::from_bits(id),
        meta: Meta::default(),
        service_id: ServiceId::from_bits(1),
        service_name: "web".to_owned(),
        slot,
        node_id: None,
        spec: Arc::new(TaskSpec::default()),
        spec_version: 1,
        ports: Vec::new(),
        on_partition: OnPartition::Keep,
        desired: TaskState::Running,
        status: status(TaskState::Pending),
        volumes: Vec::new(),
        monitor_until: None,
        endpoints: Vec::new(),
        not_before: None,
    }
}

pub(super) fn status(state: TaskState) -> TaskStatus {
    TaskStatus {
        state,
        ..TaskStatus::default()
    }
}

pub(super) fn with_volume(mut task: Task, name: &str) -> Task {
    let mut spec = TaskSpec::clone(&task.spec);
    spec.container.mounts.push(Mount {
        kind: MountKind::Volume {
            name: name.to_owned(),
            driver: String::new(),
            options: BTreeMap::new(),
            labels: BTreeMap::new(),
            no_copy: false,
        },
        target: format!("/{name}"),
        read_only: false,
    });
    task.spec = Arc::new(spec);
    task
}

pub(super) fn with_port(mut task: Task, published: u16) -> Task {
    task.ports.push(PortConfig {
        target: 80,
        published,
        mode: PublishMode::Host,
        ..PortConfig::default()
    });
    task
}

pub(super) fn with_cpus(mut task: Task, nano_cpus: i64) -> Task {
    let mut spec = TaskSpec::clone(&task.spec);
    spec.resources.reservations.nano_cpus = nano_cpus;
    task.spec = Arc::new(spec);
    task
}

pub(super) fn create_task(task: Task) -> StoreAction {
    create(Object::Task(Box::new(task)))
}

pub(super) fn report(id: u128, state: TaskState) -> StoreAction {
    StoreAction::SetTaskStatus {
        task_id: TaskId::from_bits(id),
        status: Box::new(status(state)),
    }
}

pub(super) fn desire(id: u128, desired: TaskState) -> StoreAction {
    StoreAction::SetDesired {
        task_id: TaskId::from_bits(id),
        desired,
    }
}

/// An attachable network `10.<id>.0.0/24` with IPv6.
pub(super) fn network(id: u128, name: &str) -> Network {
    Network {
        id: NetworkId::from_bits(id),
        meta: Meta::default(),
        spec: NetworkSpec {
            name: name.to_owned(),
            attachable: true,
            ipv6: true,
            ingress: name == "ingress",
            ..NetworkSpec::default()
        },
        subnets: Subnets {
            ipv4: format!("10.{id}.0.0/24").parse().unwrap(),
            gateway: format!("10.{id}.0.1").parse().unwrap(),
            range: format!("10.{id}.0.0/24").parse().unwrap(),
            ipv6: Some(format!("fd00:{id}::/64").parse().unwrap()),
            gateway_ipv6: Some(format!("fd00:{id}::1").parse().unwrap()),
        },
    }
}

pub(super) fn lease(network: u128, node: u128, blocks: &[&str]) -> AddressLease {
    AddressLease {
        network_id: NetworkId::from_bits(network),
        node_id: NodeId::from_bits(node),
        meta: Meta::default(),
        blocks: blocks.iter().map(|block| block.parse().unwrap()).collect(),
    }
}

/// An endpoint of a network of [`network`].
pub(super) fn endpoint(id: u128, address: &str) -> Endpoint {
    let ipv4 = address.parse().unwrap();
    Endpoint {
        network_id: NetworkId::from_bits(id),
        ipv4,
        ipv6: network(id, "").subnets.ipv6_of(ipv4),
        aliases: Vec::new(),
    }
}

pub(super) fn attachment(id: u8, node: u128, at: &[(u128, &str)]) -> Attachment {
    let endpoints = at
        .iter()
        .map(|(network, address)| endpoint(*network, address));
    Attachment {
        container_id: ContainerId::from_bytes([id; 32]),
        meta: Meta::default(),
        node_id: NodeId::from_bits(node),
        name: format!("c{id}"),
        endpoints: endpoints.collect(),
    }
}

pub(super) fn with_network(mut task: Task, network: u128) -> Task {
    let mut spec = TaskSpec::clone(&task.spec);
    spec.networks.push(NetworkAttachment {
        network_id: NetworkId::from_bits(network),
        aliases: Vec::new(),
    });
    task.spec = Arc::new(spec);
    task
}
