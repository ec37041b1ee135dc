//! A state with nodes and networks, changed by entries only.

use crate::allocator::{Addresses, AllocationError, subnets};
use crate::store::{State, check_invariants};
use shoal_model::command::{Command, Object, ObjectKey, Outcome, StoreAction};
use shoal_model::network::{Attachment, IpamConfig, MeshAddress, NetworkAttachment, NetworkSpec};
use shoal_model::{
    Cluster, ClusterSpec, ContainerId, Meta, Network, NetworkId, Node, NodeDescription, NodeId,
    NodeRole, NodeSpec, NodeState, NodeStatus, Service, ServiceId, ServiceSpec, Timestamp,
};
use std::net::{Ipv4Addr, Ipv6Addr};

pub(super) struct Scene {
    pub(super) state: State,
}

pub(super) const NETWORK: NetworkId = NetworkId::from_bits(7);

pub(super) fn node_id(number: u128) -> NodeId {
    NodeId::from_bits(number)
}

pub(super) fn container(number: u64) -> ContainerId {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&number.to_be_bytes());
    ContainerId::from_bytes(bytes)
}

/// A network with that subnet, for containers too.
pub(super) fn network_spec(name: &str, subnet: Option<&str>) -> NetworkSpec {
    let ipam = subnet.map(|subnet| IpamConfig {
        subnet: subnet.parse().unwrap(),
        gateway: None,
        ip_range: None,
    });
    NetworkSpec {
        name: name.to_owned(),
        attachable: true,
        ipam: ipam.into_iter().collect(),
        ..NetworkSpec::default()
    }
}

impl Scene {
    pub(super) fn new() -> Self {
        Self::with_spec(ClusterSpec::default())
    }

    pub(super) fn with_spec(spec: ClusterSpec) -> Self {
        let mut scene = Self {
            state: State::new(),
        };
        scene.apply(vec![StoreAction::Create(Object::Cluster(Box::new(
            crate::testing::cluster(spec),
        )))]);
        scene
    }

    /// Applies one entry, which must be allowed, and checks what must always hold.
    pub(super) fn apply(&mut self, actions: Vec<StoreAction>) {
        let index = self.state.version().0 + 1;
        let time = Timestamp(1);
        let (outcome, _) = self.state.apply(index, &Command { time, actions });
        assert!(matches!(outcome, Outcome::Applied { .. }), "{outcome:?}");
        assert_eq!(check_invariants(&self.state), []);
    }

    pub(super) fn cluster(&self) -> &Cluster {
        self.state.cluster().unwrap()
    }

    pub(super) fn add_node(&mut self, number: u128, local: &[&str]) {
        let ipv4 = Ipv4Addr::from_bits(0x0aff_0000 + u32::try_from(number).unwrap());
        let node = Node {
            id: node_id(number),
            meta: Meta::default(),
            spec: NodeSpec {
                name: format!("n{number}"),
                ..NodeSpec::default()
            },
            description: Some(NodeDescription {
                local_networks: local.iter().map(|net| net.parse().unwrap()).collect(),
                ..NodeDescription::default()
            }),
            status: NodeStatus {
                state: NodeState::Ready,
                ..NodeStatus::default()
            },
            role: NodeRole::Worker,
            manager: None,
            public_key_digest: [0; 32],
            mesh: Some(MeshAddress {
                ipv4,
                ipv6: Ipv6Addr::from_bits(number + 1),
            }),
            hold_until: None,
        };
        self.apply(vec![StoreAction::Create(Object::Node(Box::new(node)))]);
    }

    pub(super) fn remove_node(&mut self, number: u128) {
        let attachments: Vec<_> = self
            .state
            .attachments_of(node_id(number))
            .map(|it| ObjectKey::Attachment(it.container_id))
            .collect();
        let keys = attachments.into_iter();
        let keys = keys.chain([ObjectKey::Node(node_id(number))]);
        let actions = keys.map(|key| StoreAction::Remove { key, version: None });
        self.apply(actions.collect());
    }

    pub(super) fn add_network(
        &mut self,
        id: NetworkId,
        spec: NetworkSpec,
    ) -> Result<&Network, AllocationError> {
        let subnets = subnets::choose(&self.state, self.cluster(), &spec)?;
        let network = Network {
            id,
            meta: Meta::default(),
            spec,
            subnets,
        };
        self.apply(vec![StoreAction::Create(Object::Network(Box::new(
            network,
        )))]);
        Ok(self.state.network(id).unwrap())
    }

    /// Gives a container an address, that one if it is given.
    pub(super) fn attach(
        &mut self,
        number: u64,
        node: u128,
        fixed: Option<Ipv4Addr>,
    ) -> Result<Ipv4Addr, AllocationError> {
        let place = NetworkAttachment {
            network_id: NETWORK,
            aliases: Vec::new(),
        };
        let mut addresses = Addresses::new(&self.state);
        let endpoint = match fixed {
            Some(address) => addresses.fixed(&place, node_id(node), address)?,
            None => addresses
                .endpoints(std::slice::from_ref(&place), node_id(node), number.into())?
                .remove(0),
        };
        let mut actions = addresses.into_actions();
        let ipv4 = endpoint.ipv4;
        actions.push(attachment(number, node, vec![endpoint]));
        self.apply(actions);
        Ok(ipv4)
    }

    pub(super) fn detach(&mut self, number: u64) {
        let key = ObjectKey::Attachment(container(number));
        self.apply(vec![StoreAction::Remove { key, version: None }]);
    }

    /// Makes a service with what `fill` gives it.
    pub(super) fn add_service(
        &mut self,
        number: u128,
        spec: ServiceSpec,
    ) -> Result<&Service, AllocationError> {
        let mut service = Service {
            id: ServiceId::from_bits(number),
            meta: Meta::default(),
            spec,
            previous_spec: None,
            spec_version: 1,
            update_status: None,
            vips: Vec::new(),
            ports: Vec::new(),
            pending_delete: false,
        };
        let mut actions = crate::allocator::service::fill(&self.state, &mut service)?;
        actions.push(StoreAction::Create(Object::Service(Box::new(service))));
        self.apply(actions);
        Ok(self.state.service(ServiceId::from_bits(number)).unwrap())
    }

    pub(super) fn remove_service(&mut self, number: u128) {
        let key = ObjectKey::Service(ServiceId::from_bits(number));
        self.apply(vec![StoreAction::Remove { key, version: None }]);
    }

    /// Prefix lengths of the blocks of a node, in the order of their addresses.
    pub(super) fn blocks(&self, node: u128) -> Vec<u8> {
        let lease = self.state.lease(NETWORK, node_id(node));
        let blocks = lease.iter().flat_map(|lease| &lease.blocks);
        blocks.map(|block| block.prefix_len()).collect()
    }
}

pub(super) fn attachment(
    number: u64,
    node: u128,
    endpoints: Vec<shoal_model::network::Endpoint>,
) -> StoreAction {
    StoreAction::Create(Object::Attachment(Box::new(Attachment {
        container_id: container(number),
        meta: Meta::default(),
        node_id: node_id(node),
        name: format!("c{number}"),
        endpoints,
    })))
}
