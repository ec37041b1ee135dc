//! Managers as they run in production, on loopback sockets and real files.

use super::{Founding, FoundingRequest, ManagerHandle, ManagerOptions, RandomIds, Start};
use super::{Manager, ManagerError, SystemClock, forget, found};
use crate::consensus::Leadership;
use crate::raft::{Placement, RealDisk, Timing};
use crate::store::check_invariants;
use shoal_model::command::StoreAction;
use shoal_model::control::{ControlRequest, ControlResponse, NodeView};
use shoal_model::network::{AttachmentWish, NetworkSpec, WireGuardBackend, WireGuardDescription};
use shoal_model::rpc::{ErrorCode, Method, RpcError};
use shoal_model::session::ManagerPeer;
use shoal_model::{
    Availability, Cluster, ClusterSpec, ContainerId, NetworkId, NodeDescription, NodeId, NodeRole,
    NodeState, NodeStatus, ServiceId, ServiceMode, ServiceSpec,
};
use shoal_transport::{
    Connector, Endpoint, EndpointOptions, Expect, Identity, IdentityHandle, JoinToken, NodeKey,
    RpcHandler, ca, join,
};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;

/// Everything here takes a second or two; a loaded machine may take long.
const WAIT_MAX: Duration = Duration::from_secs(60);
const CALL_MAX: Duration = Duration::from_secs(20);

struct Host {
    directory: TempDir,
    key: NodeKey,
    identity: IdentityHandle,
    endpoint: Endpoint,
    control_addr: SocketAddr,
    manager: Option<ManagerHandle>,
}

impl Host {
    fn new() -> Self {
        let identity = IdentityHandle::new(None);
        let endpoint = bind(SocketAddr::from(([127, 0, 0, 1], 0)), &identity);
        Self {
            directory: tempfile::tempdir().unwrap(),
            key: NodeKey::generate().unwrap(),
            control_addr: endpoint.local_addr(),
            endpoint,
            identity,
            manager: None,
        }
    }

    fn addr(&self) -> SocketAddr {
        self.control_addr
    }

    fn node_id(&self) -> NodeId {
        self.identity.current().unwrap().node_id()
    }

    fn manager(&self) -> &ManagerHandle {
        self.manager.as_ref().unwrap()
    }

    fn options(&self, start: Start) -> ManagerOptions {
        ManagerOptions {
            data_dir: self.directory.path().join("raft"),
            key_path: self.directory.path().join("raft.key"),
            node_id: self.node_id(),
            advertise: self.addr(),
            start,
            timing: Timing::default(),
            placement: Placement::Caller,
            connector: Arc::new(self.endpoint.clone()),
            disk: Arc::new(RealDisk),
            clock: Arc::new(SystemClock),
            ids: Arc::new(RandomIds),
            seed: u64::from(self.addr().port()),
        }
    }

    async fn start(&mut self, start: Start) {
        let manager = Manager::start(self.options(start)).await.unwrap();
        drop(self.endpoint.serve(Arc::new(manager.clone())));
        self.manager = Some(manager);
    }

    fn founding(&self) -> Founding {
        let request = FoundingRequest {
            signing_request_der: self.key.signing_request().unwrap(),
            advertise: self.addr(),
            availability: Availability::Active,
            spec: ClusterSpec::default(),
        };
        found(&request, &SystemClock, &RandomIds).unwrap()
    }

    async fn found(&mut self) {
        let founding = self.founding();
        let identity = Identity::from_response(self.key.clone(), &founding.certificate).unwrap();
        self.identity.swap(Some(identity));
        self.start(Start::Found(founding.first)).await;
    }

    async fn join(&mut self, first: &Self, role: NodeRole) -> Vec<ManagerPeer> {
        let cluster = first.cluster().await;
        let secret = match role {
            NodeRole::Worker => cluster.worker_secret.secret,
            NodeRole::Manager => cluster.manager_secret.secret,
        };
        let token = JoinToken {
            root_digest: ca::sha256(&cluster.root_ca.certificate_der),
            secret,
        };
        let (identity, response) = join(
            &self.endpoint,
            first.addr(),
            &token,
            &self.key,
            Availability::Active,
            CALL_MAX,
        )
        .await
        .unwrap();
        assert_eq!(identity.role(), role);
        self.identity.swap(Some(identity));
        response.managers
    }

    async fn ask(&self, request: ControlRequest) -> Result<Vec<ControlResponse>, ErrorCode> {
        let answer = self.manager().control().answer(self.node_id(), request);
        match answer.await {
            Ok(answer) => answer.collect().await.map_err(|err| err.code),
            Err(err) => Err(err.code),
        }
    }

    async fn cluster(&self) -> Cluster {
        match self
            .ask(ControlRequest::GetCluster)
            .await
            .unwrap()
            .remove(0)
        {
            ControlResponse::Cluster(cluster) => *cluster,
            other => panic!("{other:?}"),
        }
    }

    async fn node(&self, id: NodeId) -> NodeView {
        match self
            .ask(ControlRequest::GetNode(id))
            .await
            .unwrap()
            .remove(0)
        {
            ControlResponse::Node(view) => *view,
            other => panic!("{other:?}"),
        }
    }

    async fn set_role(&self, id: NodeId, role: NodeRole) -> Result<(), ErrorCode> {
        let node = self.node(id).await.node;
        let mut spec = node.spec.clone();
        spec.role = role;
        let request = ControlRequest::UpdateNode {
            id,
            version: node.meta.version,
            spec: Box::new(spec),
        };
        self.ask(request).await.map(|_| ())
    }

    fn voters(&self) -> Vec<NodeId> {
        let members = self.manager().consensus().members();
        let mut voters: Vec<_> = members
            .iter()
            .filter(|member| member.voter)
            .map(|member| member.node_id)
            .collect();
        voters.sort();
        voters
    }

    async fn stop(&mut self) {
        self.manager.take().unwrap().shutdown().await;
        self.endpoint.shutdown().await;
        // Lets go of the socket: the port is bound again by a restart.
        self.endpoint = bind(SocketAddr::from(([127, 0, 0, 1], 0)), &self.identity);
    }

    async fn rebind(&mut self) {
        let (addr, identity) = (self.control_addr, self.identity.clone());
        let mut bound = None;
        wait_for("the port is free again", || {
            bound = Endpoint::bind(addr, identity.clone(), EndpointOptions::control()).ok();
            bound.is_some()
        })
        .await;
        self.endpoint = bound.unwrap();
    }

    /// A new process on the same files and port.
    async fn restart(&mut self) {
        self.rebind().await;
        self.start(Start::Join(Vec::new())).await;
    }
}

fn bind(addr: SocketAddr, identity: &IdentityHandle) -> Endpoint {
    Endpoint::bind(addr, identity.clone(), EndpointOptions::control()).unwrap()
}

async fn wait_for(what: &str, mut holds: impl FnMut() -> bool) {
    let wait = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    assert!(tokio::time::timeout(WAIT_MAX, wait).await.is_ok(), "{what}");
}

async fn cluster_of_three() -> [Host; 3] {
    let mut hosts = [Host::new(), Host::new(), Host::new()];
    hosts[0].found().await;
    for index in 1..hosts.len() {
        let (before, rest) = hosts.split_at_mut(index);
        let managers = rest[0].join(&before[0], NodeRole::Manager).await;
        rest[0].start(Start::Join(managers)).await;
        wait_for("a promoted node votes", || {
            before[0].voters().len() == index + 1
        })
        .await;
    }
    wait_for("everybody knows the members", || {
        hosts.iter().all(|host| host.voters().len() == 3)
    })
    .await;
    hosts
}

fn service(name: &str) -> Box<ServiceSpec> {
    let mut spec = ServiceSpec {
        name: name.to_owned(),
        mode: ServiceMode::Replicated { replicas: 2 },
        ..ServiceSpec::default()
    };
    spec.task.container.image = "example/image".to_owned();
    Box::new(spec)
}

async fn create(host: &Host, number: u128) -> Result<(), ErrorCode> {
    let request = ControlRequest::CreateService {
        id: ServiceId::from_bits(number),
        spec: service(&format!("service-{number}")),
    };
    host.ask(request).await.map(|_| ())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn followers_pass_requests_on_and_the_leader_may_be_demoted() {
    let mut hosts = cluster_of_three().await;
    for (number, host) in (1..).zip(&hosts) {
        create(host, number).await.unwrap();
        // A repeated request is the same service; another one of that id is refused.
        create(host, number).await.unwrap();
        let request = ControlRequest::CreateService {
            id: ServiceId::from_bits(number),
            spec: service("other"),
        };
        assert_eq!(host.ask(request).await, Err(ErrorCode::AlreadyExists));
    }
    let demoted = hosts[0].node_id();
    hosts[1].set_role(demoted, NodeRole::Worker).await.unwrap();
    wait_for("the leader hands over and goes", || {
        hosts[1].voters().len() == 2 && hosts[2].voters().len() == 2
    })
    .await;
    wait_for("the store says so", || {
        let view = hosts[1].manager().store().view();
        view.node(demoted)
            .is_some_and(|node| node.manager.is_none())
    })
    .await;
    let old = hosts[0].identity.current().unwrap();
    let renewed = join::renew(&hosts[0].endpoint, hosts[1].addr(), &old, CALL_MAX)
        .await
        .unwrap();
    assert_eq!(renewed.role(), NodeRole::Worker);
    create(&hosts[2], 4).await.unwrap();
    let last = hosts[1].node_id();
    for host in &hosts[1..] {
        assert!(!host.manager().consensus().members().is_empty());
        assert_eq!(check_invariants(&host.manager().store().view()), []);
    }
    hosts[0].stop().await;
    // Two managers are left and both answer: one may go, the other may not.
    hosts[2].set_role(last, NodeRole::Worker).await.unwrap();
    wait_for("one manager is left", || hosts[2].voters().len() == 1).await;
    let own = hosts[2].node_id();
    let refused = hosts[2].set_role(own, NodeRole::Worker).await;
    assert_eq!(refused, Err(ErrorCode::FailedPrecondition));
    for host in &mut hosts[1..] {
        host.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_managers_come_back_from_disk() {
    let mut hosts = cluster_of_three().await;
    create(&hosts[1], 1).await.unwrap();
    for host in &mut hosts {
        host.stop().await;
    }
    for host in &mut hosts {
        host.restart().await;
    }
    let request = ControlRequest::GetService(ServiceId::from_bits(1));
    for host in &hosts {
        assert_eq!(host.ask(request.clone()).await.unwrap().len(), 1);
    }
    for host in &mut hosts {
        host.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_leader_is_a_pause_for_those_who_ask_others() {
    let mut hosts = cluster_of_three().await;
    let leader = hosts
        .iter()
        .position(|host| {
            let leadership = host.manager().consensus().leadership();
            let leads = matches!(*leadership.borrow(), Leadership::Leader { .. });
            leads
        })
        .unwrap();
    hosts[leader].stop().await;
    let others: Vec<_> = (0..3).filter(|index| *index != leader).collect();
    for (number, &index) in (1..).zip(&others) {
        create(&hosts[index], number).await.unwrap();
    }
    for index in others {
        hosts[index].stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_node_gets_no_new_certificate() {
    let mut first = Host::new();
    first.found().await;
    let mut worker = Host::new();
    worker.join(&first, NodeRole::Worker).await;
    let identity = worker.identity.current().unwrap();
    let renewed = join::renew(&worker.endpoint, first.addr(), &identity, CALL_MAX)
        .await
        .unwrap();
    assert_eq!(renewed.role(), NodeRole::Worker);
    let id = worker.node_id();
    assert!(
        first
            .manager()
            .admits(identity.peer(), shoal_model::rpc::Method::Session)
    );
    assert!(
        !first
            .manager()
            .admits(identity.peer(), shoal_model::rpc::Method::Control)
    );
    let remove = |force| ControlRequest::RemoveNode { id, force };
    assert_eq!(
        first.ask(remove(false)).await,
        Err(ErrorCode::FailedPrecondition)
    );
    first.ask(remove(true)).await.unwrap();
    assert!(
        !first
            .manager()
            .admits(identity.peer(), shoal_model::rpc::Method::Session)
    );
    let refused = join::renew(&worker.endpoint, first.addr(), &identity, CALL_MAX).await;
    let text = refused.unwrap_err().to_string();
    assert!(text.contains("it was removed"), "{text}");
    first.stop().await;
}

/// A call of [`Method::Attach`] from `caller` to `manager`.
async fn attach(
    caller: &Host,
    manager: &Host,
    request: &ControlRequest,
) -> Result<ControlResponse, RpcError> {
    let expect = Expect::Node(manager.node_id());
    let opened = caller.endpoint.open(manager.addr(), expect, Method::Attach);
    let mut stream = opened.await.unwrap();
    stream.send(request).await.unwrap();
    stream.finish().await.unwrap();
    stream.recv().await.unwrap().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_gets_addresses_for_its_containers_from_any_manager() {
    let mut hosts = cluster_of_three().await;
    let mut worker = Host::new();
    worker.join(&hosts[0], NodeRole::Worker).await;
    let node_id = worker.node_id();
    let described = StoreAction::SetNodeStatus {
        node_id,
        status: NodeStatus {
            state: NodeState::Ready,
            ..NodeStatus::default()
        },
        description: Some(Box::new(NodeDescription {
            wireguard: Some(WireGuardDescription {
                public_key: [1; 32],
                next_key: None,
                port: 51_820,
                backend: WireGuardBackend::Userspace,
            }),
            ..NodeDescription::default()
        })),
    };
    let consensus = hosts[0].manager().consensus();
    consensus.propose(vec![described]).await.unwrap();
    wait_for(
        "the node is part of the mesh, and ports can be published",
        || {
            let view = hosts[2].manager().store().view();
            let node = view.node(node_id);
            view.ingress_network().is_some() && node.is_some_and(|node| node.mesh.is_some())
        },
    )
    .await;
    let id = NetworkId::from_bits(1);
    let spec = Box::new(NetworkSpec {
        name: "backend".to_owned(),
        attachable: true,
        ..NetworkSpec::default()
    });
    let create = ControlRequest::CreateNetwork { id, spec };
    hosts[1].ask(create).await.unwrap();
    let container_id = ContainerId::from_bytes([5; 32]);
    let request = ControlRequest::AttachContainer {
        container_id,
        name: "shell".to_owned(),
        wishes: vec![AttachmentWish {
            network: "backend".to_owned(),
            ipv4: None,
            aliases: Vec::new(),
        }],
    };
    let mut answers = Vec::new();
    for host in &hosts {
        answers.push(attach(&worker, host, &request).await.unwrap());
    }
    match &answers[0] {
        ControlResponse::Attached(attachment) => assert_eq!(attachment.node_id, node_id),
        other => panic!("{other:?}"),
    }
    assert!(answers.iter().all(|answer| *answer == answers[0]));
    let refused = attach(&worker, &hosts[1], &ControlRequest::ListNodes).await;
    assert_eq!(refused.unwrap_err().code, ErrorCode::PermissionDenied);
    let detach = ControlRequest::DetachContainer(container_id);
    let answer = attach(&worker, &hosts[2], &detach).await;
    assert_eq!(answer, Ok(ControlResponse::Done));
    for host in &mut hosts {
        assert_eq!(check_invariants(&host.manager().store().view()), []);
        host.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_founding_in_one_directory_is_refused() {
    let mut host = Host::new();
    host.found().await;
    host.stop().await;
    let start = Start::Found(host.founding().first);
    let refused = Manager::start(host.options(start)).await;
    assert!(
        matches!(refused, Err(ManagerError::Occupied { .. })),
        "{refused:?}"
    );
    forget(&RealDisk, &host.directory.path().join("raft")).unwrap();
    host.rebind().await;
    host.found().await;
    host.stop().await;
}
