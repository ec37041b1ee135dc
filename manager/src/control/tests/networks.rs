//! Networks of the control API, and what services and containers get in them.

use super::{ID, World, spec};
use crate::consensus::{Consensus, ProposeError};
use crate::store::check_invariants;
use crate::testing::Applied;
use shoal_model::command::{Command, Object, ObjectKey, Outcome, Rejection, StoreAction};
use shoal_model::control::{ControlRequest, ControlResponse, NetworkView};
use shoal_model::network::{
    Attachment, AttachmentWish, IpamConfig, MeshAddress, NetworkAttachment, NetworkSpec,
};
use shoal_model::rpc::{ErrorCode, RpcError};
use shoal_model::spec::{PortConfig, PublishMode};
use shoal_model::task::Refusal;
use shoal_model::{
    ClusterSpec, ContainerId, Meta, NetworkId, Node, NodeDescription, NodeId, NodeRole, NodeSpec,
    NodeState, NodeStatus, ServiceId, ServiceSpec, TaskId, TaskState, TaskStatus, Timestamp,
};

const BACKEND: NetworkId = NetworkId::from_bits(100);
const CONTAINER: ContainerId = ContainerId::from_bytes([7; 32]);
const MANAGER: NodeId = NodeId::from_bits(1);
const WORKER: NodeId = NodeId::from_bits(2);

/// What is wrong, as the user reads it.
#[track_caller]
fn refused<T: std::fmt::Debug>(answer: Result<T, RpcError>, code: ErrorCode, text: &str) {
    let error = answer.unwrap_err();
    assert_eq!(error.code, code, "{error}");
    assert!(error.message.contains(text), "{error}");
}

fn network(name: &str, subnet: &str) -> NetworkSpec {
    NetworkSpec {
        name: name.to_owned(),
        attachable: true,
        ipam: vec![IpamConfig {
            subnet: subnet.parse().unwrap(),
            gateway: None,
            ip_range: None,
        }],
        ..NetworkSpec::default()
    }
}

fn in_network(name: &str, network_id: NetworkId) -> ServiceSpec {
    let mut spec = spec(name);
    spec.task.networks.push(NetworkAttachment {
        network_id,
        aliases: Vec::new(),
    });
    spec
}

fn wish(network: &str, ipv4: Option<&str>) -> AttachmentWish {
    AttachmentWish {
        network: network.to_owned(),
        ipv4: ipv4.map(|text| text.parse().unwrap()),
        aliases: Vec::new(),
    }
}

fn node(id: NodeId, role: NodeRole) -> Node {
    Node {
        id,
        meta: Meta::default(),
        spec: NodeSpec {
            name: format!("n{}", id.bits()),
            role,
            ..NodeSpec::default()
        },
        description: Some(NodeDescription::default()),
        status: NodeStatus {
            state: NodeState::Ready,
            ..NodeStatus::default()
        },
        role,
        manager: None,
        public_key_digest: [0; 32],
        mesh: None,
        hold_until: None,
    }
}

impl World {
    fn apply(&self, actions: Vec<StoreAction>) {
        let index = self.store.view().version().0 + 1;
        let time = Timestamp(2);
        let outcome = self.store.apply(index, &Command { time, actions });
        assert!(matches!(outcome, Outcome::Applied { .. }), "{outcome:?}");
        assert_eq!(check_invariants(&self.store.view()), []);
    }

    /// A cluster with a manager 1 and a worker 2, both in the mesh, and the network `backend`.
    async fn with_network() -> Self {
        let world = Self::new();
        let nodes = [(MANAGER, NodeRole::Manager), (WORKER, NodeRole::Worker)];
        let mut actions = vec![StoreAction::Create(Object::Cluster(Box::new(
            crate::testing::cluster(ClusterSpec::default()),
        )))];
        for (number, (id, role)) in (1_u8..).zip(nodes) {
            actions.push(StoreAction::Create(Object::Node(Box::new(node(id, role)))));
            actions.push(StoreAction::SetNodeMesh {
                node_id: id,
                mesh: MeshAddress {
                    ipv4: [10, 255, 0, number].into(),
                    ipv6: u128::from(number).into(),
                },
            });
        }
        world.applied_by_consensus(actions).await;
        let created = world
            .create_network(BACKEND, network("backend", "10.1.0.0/24"))
            .await;
        assert_eq!(created, Ok(vec![ControlResponse::NetworkCreated(BACKEND)]));
        world
    }

    async fn applied_by_consensus(&self, actions: Vec<StoreAction>) {
        self.consensus.propose(actions).await.unwrap();
        assert_eq!(check_invariants(&self.store.view()), []);
    }

    async fn create_network(
        &self,
        id: NetworkId,
        spec: NetworkSpec,
    ) -> Result<Vec<ControlResponse>, RpcError> {
        let spec = Box::new(spec);
        self.ask(ControlRequest::CreateNetwork { id, spec }).await
    }

    async fn network(&self) -> NetworkView {
        let answer = self.ask(ControlRequest::GetNetwork(BACKEND)).await;
        match answer.unwrap().remove(0) {
            ControlResponse::Network(view) => *view,
            other => panic!("{other:?}"),
        }
    }

    async fn attach(
        &self,
        caller: NodeId,
        container_id: ContainerId,
        wishes: &[AttachmentWish],
    ) -> Result<Attachment, RpcError> {
        let request = ControlRequest::AttachContainer {
            container_id,
            name: "shell".to_owned(),
            wishes: wishes.to_vec(),
        };
        let answer = self.api.answer(caller, request).await?.collect().await?;
        assert_eq!(check_invariants(&self.store.view()), []);
        match answer.into_iter().next() {
            Some(ControlResponse::Attached(attachment)) => Ok(*attachment),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn networks_are_made_once_listed_and_removed() {
    let world = World::with_network().await;
    let again = world
        .create_network(BACKEND, network("backend", "10.1.0.0/24"))
        .await;
    assert_eq!(again, Ok(vec![ControlResponse::NetworkCreated(BACKEND)]));
    let other = NetworkId::from_bits(101);
    for (name, subnet, code, text) in [
        (
            "backend",
            "10.2.0.0/24",
            ErrorCode::AlreadyExists,
            "network with name backend already exists",
        ),
        (
            "b",
            "10.1.0.0/16",
            ErrorCode::AlreadyExists,
            "overlaps 10.1.0.0/24 of network `backend`",
        ),
        (
            "host",
            "10.2.0.0/24",
            ErrorCode::InvalidArgument,
            "`host` is the name of a built-in network",
        ),
        (
            "b",
            "10.2.0.0/30",
            ErrorCode::InvalidArgument,
            "prefixes from /8 to /29",
        ),
    ] {
        refused(
            world.create_network(other, network(name, subnet)).await,
            code,
            text,
        );
    }
    let listed = world.ask(ControlRequest::ListNetworks).await.unwrap();
    assert!(
        matches!(&listed[0], ControlResponse::Networks(all) if all.len() == 1),
        "{listed:?}"
    );
    // A lease that nobody uses does not keep it.
    world
        .attach(WORKER, CONTAINER, &[wish("backend", None)])
        .await
        .unwrap();
    let remove = || ControlRequest::RemoveNetwork(BACKEND);
    refused(
        world.ask(remove()).await,
        ErrorCode::FailedPrecondition,
        "network `backend` is in use by container `shell`",
    );
    world
        .api
        .answer(WORKER, ControlRequest::DetachContainer(CONTAINER))
        .await
        .unwrap();
    assert_eq!(world.network().await.leases.len(), 1);
    assert_eq!(world.ask(remove()).await, Ok(vec![ControlResponse::Done]));
    refused(
        world.ask(remove()).await,
        ErrorCode::NotFound,
        "does not exist",
    );
    assert_eq!(check_invariants(&world.store.view()), []);
}

#[tokio::test]
async fn services_get_a_virtual_address_and_ports_and_keep_them() {
    let world = World::with_network().await;
    let unknown = in_network("web", NetworkId::from_bits(9));
    refused(
        world.create(unknown).await,
        ErrorCode::NotFound,
        "`TaskTemplate.Networks[0].Target`: network",
    );
    let mut web = in_network("web", BACKEND);
    web.endpoint.ports.push(PortConfig {
        target: 80,
        mode: PublishMode::Ingress,
        ..PortConfig::default()
    });
    world.create(web.clone()).await.unwrap();
    let first = world.service().await.service;
    assert_eq!(first.vips[0].ipv4.to_string(), "10.1.0.254");
    assert_eq!(first.ports[0].published, 30_000);
    web.task.force_update = 1;
    web.endpoint.ports.push(PortConfig {
        target: 81,
        published: 8_081,
        mode: PublishMode::Ingress,
        ..PortConfig::default()
    });
    world.update(web.clone(), false).await.unwrap();
    let second = world.service().await.service;
    assert_eq!(second.vips, first.vips);
    assert_eq!(second.ports[0], first.ports[0]);
    let mut other = spec("other");
    other.endpoint.ports.push(web.endpoint.ports[1].clone());
    let request = ControlRequest::CreateService {
        id: ServiceId::from_bits(2),
        spec: Box::new(other),
    };
    refused(
        world.ask(request).await,
        ErrorCode::AlreadyExists,
        "port 8081/tcp is published by service `web` on every node",
    );
    let view = world.network().await;
    assert_eq!(view.services, [(ID, "web".to_owned(), Some(first.vips[0]))]);
    refused(
        world.ask(ControlRequest::RemoveNetwork(BACKEND)).await,
        ErrorCode::FailedPrecondition,
        "network `backend` is in use by service `web`",
    );
}

#[tokio::test]
async fn the_network_of_published_ports_is_nobody_s_to_name_or_remove() {
    let world = World::with_network().await;
    let id = NetworkId::from_bits(5);
    let mut ingress = shoal_model::Network {
        id,
        meta: Meta::default(),
        spec: network("ingress", "10.9.0.0/24"),
        subnets: world.network().await.network.subnets,
    };
    ingress.spec.ingress = true;
    ingress.subnets.ipv4 = "10.9.0.0/24".parse().unwrap();
    ingress.subnets.range = ingress.subnets.ipv4;
    ingress.subnets.gateway = "10.9.0.1".parse().unwrap();
    let create = StoreAction::Create(Object::Network(Box::new(ingress)));
    world.applied_by_consensus(vec![create]).await;
    refused(
        world.create(in_network("web", id)).await,
        ErrorCode::InvalidArgument,
        "carries published ports only",
    );
    refused(
        world.ask(ControlRequest::RemoveNetwork(id)).await,
        ErrorCode::FailedPrecondition,
        "is built in",
    );
}

#[tokio::test]
async fn a_container_gets_its_addresses_once_and_gives_them_back() {
    let world = World::with_network().await;
    let first = world
        .attach(WORKER, CONTAINER, &[wish("backend", None)])
        .await
        .unwrap();
    assert_eq!(first.node_id, WORKER);
    let by_id = BACKEND.to_string();
    for name in ["backend", by_id.as_str(), &by_id[..25]] {
        let again = world.attach(WORKER, CONTAINER, &[wish(name, None)]).await;
        assert_eq!(again.unwrap(), first);
    }
    let fixed = ContainerId::from_bytes([8; 32]);
    let taken = first.endpoints[0].ipv4.to_string();
    refused(
        world
            .attach(WORKER, fixed, &[wish("backend", Some(&taken))])
            .await,
        ErrorCode::AlreadyExists,
        "is in use by container `shell`",
    );
    let given = world
        .attach(WORKER, fixed, &[wish("backend", Some("10.1.0.200"))])
        .await
        .unwrap();
    assert_eq!(given.endpoints[0].ipv4.to_string(), "10.1.0.200");
    refused(
        world.attach(MANAGER, fixed, &[wish("backend", None)]).await,
        ErrorCode::PermissionDenied,
        "belongs to node",
    );
    let detach = |caller: NodeId| {
        world
            .api
            .answer(caller, ControlRequest::DetachContainer(fixed))
    };
    refused(
        detach(MANAGER).await,
        ErrorCode::PermissionDenied,
        "belongs to node",
    );
    for _ in 0..2 {
        detach(WORKER).await.unwrap();
    }
    assert_eq!(world.store.view().attachment(fixed), None);
}

#[tokio::test]
async fn a_container_changes_its_networks() {
    let world = World::with_network().await;
    let other = NetworkId::from_bits(101);
    world
        .create_network(other, network("other", "10.2.0.0/24"))
        .await
        .unwrap();
    let first = world
        .attach(WORKER, CONTAINER, &[wish("backend", None)])
        .await
        .unwrap();
    let both = [wish("other", None), wish("backend", None)];
    let second = world.attach(WORKER, CONTAINER, &both).await.unwrap();
    assert_eq!(second.endpoints[1], first.endpoints[0]);
    let third = world.attach(WORKER, CONTAINER, &both[..1]).await.unwrap();
    assert_eq!(third.endpoints, second.endpoints[..1]);
    let twice = [wish("other", None), wish("other", None)];
    refused(
        world.attach(WORKER, CONTAINER, &twice).await,
        ErrorCode::InvalidArgument,
        "asked for twice",
    );
}

#[tokio::test]
async fn what_can_t_be_attached_is_refused_with_the_reason() {
    let world = World::with_network().await;
    let mut services_only = network("services-only", "10.2.0.0/24");
    services_only.attachable = false;
    world
        .create_network(NetworkId::from_bits(101), services_only)
        .await
        .unwrap();
    for (name, code, text) in [
        (
            "nothing",
            ErrorCode::NotFound,
            "network `nothing` does not exist",
        ),
        (
            "services-only",
            ErrorCode::FailedPrecondition,
            "is not attachable",
        ),
    ] {
        refused(
            world.attach(WORKER, CONTAINER, &[wish(name, None)]).await,
            code,
            text,
        );
    }
    let outside = NodeId::from_bits(3);
    let bare = StoreAction::Create(Object::Node(Box::new(node(outside, NodeRole::Worker))));
    world.applied_by_consensus(vec![bare]).await;
    refused(
        world
            .attach(outside, CONTAINER, &[wish("backend", None)])
            .await,
        ErrorCode::Unavailable,
        "node `n3` has no address in the mesh yet",
    );
}

#[tokio::test]
async fn whoever_was_slower_decides_again() {
    let world = World::with_network().await;
    let stale = Rejection::Stale {
        key: ObjectKey::Lease(BACKEND, WORKER),
        expected: shoal_model::Version(1),
        found: shoal_model::Version(2),
    };
    for _ in 0..3 {
        let failure = ProposeError::Rejected(stale.clone());
        world.consensus.fail_next(failure, Applied::No);
    }
    let attached = world
        .attach(WORKER, CONTAINER, &[wish("backend", None)])
        .await;
    assert!(attached.is_ok(), "{attached:?}");
}

#[tokio::test]
async fn a_worker_may_ask_through_another_manager_for_its_own_containers_only() {
    let world = World::with_network().await;
    let forwarded = |request: ControlRequest| ControlRequest::Forwarded {
        caller: WORKER,
        repeated: false,
        request: Box::new(request),
    };
    let attach = ControlRequest::AttachContainer {
        container_id: CONTAINER,
        name: "shell".to_owned(),
        wishes: vec![wish("backend", None)],
    };
    let answer = world.api.answer(MANAGER, forwarded(attach)).await.unwrap();
    let answer = answer.collect().await.unwrap();
    match &answer[0] {
        ControlResponse::Attached(attachment) => assert_eq!(attachment.node_id, WORKER),
        other => panic!("{other:?}"),
    }
    refused(
        world
            .api
            .answer(MANAGER, forwarded(ControlRequest::ListNetworks))
            .await,
        ErrorCode::PermissionDenied,
        "is no manager",
    );
}

#[tokio::test]
async fn explain_says_that_the_network_is_full_though_a_node_fits() {
    let world = World::with_network().await;
    world.create(in_network("web", BACKEND)).await.unwrap();
    world.make_tasks(1);
    let status = TaskStatus {
        state: TaskState::Pending,
        refusals: vec![Refusal {
            filter: "network".to_owned(),
            reason: "network `backend` (10.1.0.0/24): all 253 addresses are in use".to_owned(),
            fix: "make a larger one".to_owned(),
            nodes: 0,
        }],
        ..TaskStatus::default()
    };
    world.apply(vec![StoreAction::SetTaskStatus {
        task_id: TaskId::from_bits(1),
        status: Box::new(status),
    }]);
    let answer = world.ask(ControlRequest::ExplainService(ID)).await.unwrap();
    match &answer[0] {
        ControlResponse::Explanation(explanation) => {
            let task = &explanation.tasks[0];
            assert!(task.reason.contains("all 253 addresses"), "{task:?}");
            assert_eq!(task.fix, "make a larger one");
        }
        other => panic!("{other:?}"),
    }
}
