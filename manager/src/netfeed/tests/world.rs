//! A store with nodes, networks, services and tasks in it, changed entry by entry.

use crate::store::Store;
use shoal_model::command::{Command, Object, ObjectKey, Outcome, StoreAction};
use shoal_model::network::{
    AddressLease, Attachment, Endpoint, INGRESS_NETWORK, MeshAddress, Network, NetworkAttachment,
    NetworkSpec, Subnets, WireGuardBackend, WireGuardDescription,
};
use shoal_model::node::NodeDescription;
use shoal_model::spec::{EndpointSpec, OnPartition, PortConfig, Protocol, PublishMode};
use shoal_model::{
    ContainerId, Meta, NetworkId, Node, NodeId, NodeSpec, NodeState, NodeStatus, Service,
    ServiceId, ServiceSpec, Task, TaskId, TaskSpec, TaskState, TaskStatus, Timestamp, Version,
};
use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::Arc;

pub(super) const INGRESS: u128 = 1;

pub(super) fn node_id(number: u128) -> NodeId {
    NodeId::from_bits(number)
}

pub(super) fn network_id(number: u128) -> NetworkId {
    NetworkId::from_bits(number)
}

fn small(number: u128) -> u8 {
    u8::try_from(number).unwrap()
}

fn address(network: u128, node: u128, place: u128) -> Ipv4Addr {
    Ipv4Addr::new(10, small(network), small(node), small(place))
}

pub(super) struct World {
    pub(super) store: Store,
    index: u64,
}

impl World {
    pub(super) fn new() -> Self {
        Self {
            store: Store::new(),
            index: 0,
        }
    }

    /// False: the entry was refused, and nothing has changed.
    pub(super) fn apply(&mut self, actions: Vec<StoreAction>) -> bool {
        self.index += 1;
        let time = Timestamp(1);
        match self.store.apply(self.index, &Command { time, actions }) {
            Outcome::Applied { .. } => true,
            Outcome::Rejected(_) => false,
        }
    }

    /// An entry that must be taken.
    pub(super) fn ok(&mut self, actions: Vec<StoreAction>) -> Version {
        self.index += 1;
        let time = Timestamp(1);
        match self.store.apply(self.index, &Command { time, actions }) {
            Outcome::Applied { version } => version,
            Outcome::Rejected(rejection) => panic!("{rejection}"),
        }
    }

    pub(super) fn add_service(&mut self, number: u128, networks: &[u128], ingress: bool) -> bool {
        let service = service(number, networks, ingress);
        self.apply(vec![create(Object::Service(Box::new(service)))])
    }

    pub(super) fn toggle_ingress(&mut self, number: u128) -> bool {
        let view = self.store.view();
        let Some(service) = view.service(ServiceId::from_bits(number)) else {
            return false;
        };
        let mut service = Service::clone(service);
        let ports = match service.ports.is_empty() {
            true => vec![port(number)],
            false => Vec::new(),
        };
        service.ports.clone_from(&ports);
        service.spec.endpoint.ports = ports;
        self.apply(vec![StoreAction::Update(Object::Service(Box::new(
            service,
        )))])
    }

    pub(super) fn retire_service(&mut self, number: u128) -> bool {
        let view = self.store.view();
        let Some(service) = view.service(ServiceId::from_bits(number)) else {
            return false;
        };
        let mut service = Service::clone(service);
        service.pending_delete = true;
        self.apply(vec![StoreAction::Update(Object::Service(Box::new(
            service,
        )))])
    }

    /// Makes a task of the service and assigns it, with the addresses that it needs.
    pub(super) fn add_task(&mut self, number: u128, service: u128, node: u128) -> bool {
        let view = self.store.view();
        let Some(service) = view.service(ServiceId::from_bits(service)) else {
            return false;
        };
        let task = task(number, service);
        let mut networks: Vec<NetworkId> = task
            .spec
            .networks
            .iter()
            .map(|network| network.network_id)
            .collect();
        if networks.is_empty() && task.needs_network() {
            networks.push(network_id(INGRESS));
        }
        if !self.apply(vec![create(Object::Task(Box::new(task)))]) {
            return false;
        }
        let endpoints = networks.into_iter().map(|network| Endpoint {
            network_id: network,
            ipv4: address(network.bits(), node, 2 + number),
            ipv6: None,
            aliases: Vec::new(),
        });
        let assign = StoreAction::Assign {
            task_id: TaskId::from_bits(number),
            version: Version(self.index),
            node_id: node_id(node),
            new_volumes: Vec::new(),
            endpoints: endpoints.collect(),
        };
        self.apply(vec![assign])
    }

    pub(super) fn report(&mut self, number: u128, state: TaskState, ready: bool) -> bool {
        let status = TaskStatus {
            state,
            ready,
            ..TaskStatus::default()
        };
        self.apply(vec![StoreAction::SetTaskStatus {
            task_id: TaskId::from_bits(number),
            status: Box::new(status),
        }])
    }

    pub(super) fn want(&mut self, number: u128, desired: TaskState) -> bool {
        self.apply(vec![StoreAction::SetDesired {
            task_id: TaskId::from_bits(number),
            desired,
        }])
    }
}

pub(super) fn create(object: Object) -> StoreAction {
    StoreAction::Create(object)
}

pub(super) fn remove(key: ObjectKey) -> StoreAction {
    StoreAction::Remove { key, version: None }
}

pub(super) fn node(number: u128) -> StoreAction {
    create(Object::Node(Box::new(Node {
        id: node_id(number),
        meta: Meta::default(),
        spec: NodeSpec::default(),
        description: Some(description(number, number)),
        status: NodeStatus {
            state: NodeState::Ready,
            ..NodeStatus::default()
        },
        role: shoal_model::NodeRole::Worker,
        manager: None,
        public_key_digest: [small(number); 32],
        hold_until: None,
        mesh: None,
    })))
}

fn description(number: u128, key: u128) -> NodeDescription {
    NodeDescription {
        control_addr: Some(std::net::SocketAddr::from((
            [192, 0, 2, small(number)],
            2377,
        ))),
        wireguard: Some(WireGuardDescription {
            public_key: [small(key); 32],
            next_key: None,
            port: 51820,
            backend: WireGuardBackend::Userspace,
        }),
        ..NodeDescription::default()
    }
}

pub(super) fn set_state(number: u128, state: NodeState, key: u128) -> StoreAction {
    StoreAction::SetNodeStatus {
        node_id: node_id(number),
        status: NodeStatus {
            state,
            ..NodeStatus::default()
        },
        description: Some(Box::new(description(number, key))),
    }
}

pub(super) fn mesh(number: u128) -> StoreAction {
    StoreAction::SetNodeMesh {
        node_id: node_id(number),
        mesh: MeshAddress {
            ipv4: Ipv4Addr::new(100, 64, 0, small(number)),
            ipv6: format!("fd00::{number}").parse().unwrap(),
        },
    }
}

pub(super) fn network(number: u128) -> StoreAction {
    let subnet = format!("10.{number}.0.0/16").parse().unwrap();
    create(Object::Network(Box::new(Network {
        id: network_id(number),
        meta: Meta::default(),
        spec: NetworkSpec {
            name: match number {
                INGRESS => INGRESS_NETWORK.to_owned(),
                _ => format!("net{number}"),
            },
            attachable: true,
            ingress: number == INGRESS,
            ..NetworkSpec::default()
        },
        subnets: Subnets {
            ipv4: subnet,
            gateway: Ipv4Addr::new(10, small(number), 0, 1),
            range: subnet,
            ipv6: None,
            gateway_ipv6: None,
        },
    })))
}

pub(super) fn lease(network: u128, node: u128) -> StoreAction {
    let block = format!("10.{network}.{node}.0/24").parse().unwrap();
    create(Object::Lease(Box::new(AddressLease {
        network_id: network_id(network),
        node_id: node_id(node),
        meta: Meta::default(),
        blocks: BTreeSet::from([block]),
    })))
}

pub(super) fn container(number: u128) -> ContainerId {
    ContainerId::from_bytes([small(number); 32])
}

pub(super) fn attachment(number: u128, network: u128, node: u128) -> StoreAction {
    create(Object::Attachment(Box::new(Attachment {
        container_id: container(number),
        meta: Meta::default(),
        node_id: node_id(node),
        name: format!("container{number}"),
        endpoints: vec![Endpoint {
            network_id: network_id(network),
            ipv4: address(network, node, 100 + number),
            ipv6: None,
            aliases: Vec::new(),
        }],
    })))
}

fn port(number: u128) -> PortConfig {
    PortConfig {
        name: String::new(),
        protocol: Protocol::Tcp,
        target: 80,
        published: 8_000 + u16::from(small(number)),
        mode: PublishMode::Ingress,
        addrs: Vec::new(),
        allow: Vec::new(),
    }
}

fn service(number: u128, networks: &[u128], ingress: bool) -> Service {
    let ports: Vec<PortConfig> = ingress.then(|| port(number)).into_iter().collect();
    let attached = networks.iter().map(|network| NetworkAttachment {
        network_id: network_id(*network),
        aliases: Vec::new(),
    });
    Service {
        id: ServiceId::from_bits(number),
        meta: Meta::default(),
        spec: ServiceSpec {
            name: format!("service{number}"),
            task: TaskSpec {
                networks: attached.collect(),
                ..TaskSpec::default()
            },
            endpoint: EndpointSpec {
                ports: ports.clone(),
                ..EndpointSpec::default()
            },
            ..ServiceSpec::default()
        },
        previous_spec: None,
        spec_version: 1,
        update_status: None,
        vips: Vec::new(),
        ports,
        pending_delete: false,
    }
}

fn task(number: u128, service: &Service) -> Task {
    Task {
        id: TaskId::from_bits(number),
        meta: Meta::default(),
        service_id: service.id,
        service_name: service.spec.name.clone(),
        slot: u64::try_from(number).unwrap(),
        node_id: None,
        spec: Arc::new(service.spec.task.clone()),
        spec_version: service.spec_version,
        ports: service.ports.clone(),
        on_partition: OnPartition::Keep,
        desired: TaskState::Running,
        status: TaskStatus {
            state: TaskState::Pending,
            ..TaskStatus::default()
        },
        volumes: Vec::new(),
        endpoints: Vec::new(),
        monitor_until: None,
        not_before: None,
    }
}
