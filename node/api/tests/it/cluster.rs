//! A stand-in for the managers: it keeps services and nodes in memory and checks versions as they do. The managers can't
//! be here themselves: nothing below the daemon sees them.

use async_trait::async_trait;
use futures_util::stream::{self, BoxStream, StreamExt};
use ipnet::{IpNet, Ipv4Net};
use shoal_api::{ClusterOps, ControlFrames, InitOptions, JoinOptions, LocalNode, LocalState};
use shoal_model::cluster::{JoinSecret, Redacted, RootCa};
use shoal_model::control::{
    ControlRequest, ControlResponse, LogLine, LogsRequest, NetworkView, NodeView, ServiceView,
    WatchEvent, WatchRequest,
};
use shoal_model::network::{Network, NetworkSpec, Subnets};
use shoal_model::node::{ManagerStatus, NodeDescription};
use shoal_model::rpc::{ErrorCode, RpcError};
use shoal_model::{
    Availability, Cluster, ClusterId, ClusterSpec, Meta, NetworkId, Node, NodeId, NodeRole,
    NodeSpec, NodeState, NodeStatus, RaftNodeId, Service, ServiceId, Timestamp, Version,
};
use shoal_overlay_net::PeerCheck;
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Mutex, PoisonError};

const NODE: NodeId = NodeId::from_bits(7);

#[derive(Default)]
struct State {
    version: u64,
    cluster: Option<Cluster>,
    node: Option<Node>,
    services: BTreeMap<ServiceId, Service>,
    networks: BTreeMap<NetworkId, Network>,
}

/// One node that may become a cluster.
#[derive(Default)]
pub(crate) struct FakeCluster {
    state: Mutex<State>,
    /// It has a cluster, but the manager is elsewhere.
    pub(crate) is_worker: bool,
}

fn error(code: ErrorCode, message: &str) -> RpcError {
    RpcError::new(code, message)
}

fn meta(version: u64) -> Meta {
    Meta {
        version: Version(version),
        created_at: Timestamp(1_700_000_000_000_000_000),
        updated_at: Timestamp(1_700_000_000_000_000_000),
    }
}

impl State {
    fn next(&mut self) -> Meta {
        self.version += 1;
        meta(self.version)
    }

    fn init(&mut self, spec: ClusterSpec, availability: Availability) {
        let secret = |text: &str| JoinSecret {
            secret: Redacted(text.to_owned()),
            expires_at: None,
            uses_left: None,
        };
        self.cluster = Some(Cluster {
            id: ClusterId::from_bits(1),
            meta: self.next(),
            spec,
            root_ca: RootCa {
                certificate_der: vec![1, 2, 3],
                key_der: Redacted(Vec::new()),
            },
            worker_secret: secret("w1"),
            manager_secret: secret("m1"),
            last_raft_id: 1,
        });
        self.node = Some(Node {
            id: NODE,
            meta: self.next(),
            spec: NodeSpec {
                role: NodeRole::Manager,
                availability,
                ..NodeSpec::default()
            },
            description: Some(NodeDescription {
                hostname: "host-a".to_owned(),
                os: "linux".to_owned(),
                architecture: "amd64".to_owned(),
                ..NodeDescription::default()
            }),
            status: NodeStatus {
                state: NodeState::Ready,
                ..NodeStatus::default()
            },
            role: NodeRole::Manager,
            manager: Some(ManagerStatus {
                raft_id: RaftNodeId(1),
                addr: ([127, 0, 0, 1], 2377).into(),
            }),
            public_key_digest: [0; 32],
            hold_until: None,
            mesh: None,
        });
    }

    fn check(found: Version, sent: Version) -> Result<(), RpcError> {
        if found == sent {
            return Ok(());
        }
        Err(error(ErrorCode::Conflict, "update out of sequence"))
    }

    fn create_network(
        &mut self,
        id: NetworkId,
        spec: NetworkSpec,
    ) -> Result<ControlResponse, RpcError> {
        if self
            .networks
            .values()
            .any(|known| known.spec.name == spec.name)
        {
            let text = format!("network with name {} already exists", spec.name);
            return Err(error(ErrorCode::AlreadyExists, &text));
        }
        let number = u8::try_from(self.networks.len()).unwrap();
        let ipv4 = match spec.ipam.first().map(|config| config.subnet) {
            Some(IpNet::V4(subnet)) => subnet,
            _ => Ipv4Net::new([10, 0, number, 0].into(), 24).unwrap(),
        };
        let gateway = Ipv4Addr::from_bits(ipv4.network().to_bits() + 1);
        let network = Network {
            id,
            meta: self.next(),
            spec,
            subnets: Subnets {
                ipv4,
                gateway,
                range: ipv4,
                ipv6: None,
                gateway_ipv6: None,
            },
        };
        self.networks.insert(id, network);
        Ok(ControlResponse::NetworkCreated(id))
    }

    fn network_view(&self, network: &Network) -> NetworkView {
        let in_it = |service: &&Service| {
            let networks = &service.spec.task.networks;
            networks.iter().any(|n| n.network_id == network.id)
        };
        let services = self.services.values().filter(in_it);
        NetworkView {
            network: network.clone(),
            leases: Vec::new(),
            services: services
                .map(|service| (service.id, service.spec.name.clone(), None))
                .collect(),
            endpoints: Vec::new(),
        }
    }

    fn node_view(&self) -> Result<NodeView, RpcError> {
        let node = self.node.clone();
        let node = node.ok_or_else(|| error(ErrorCode::NotFound, "no node"))?;
        Ok(NodeView {
            node,
            leader: true,
            reachable: true,
        })
    }

    #[expect(clippy::too_many_lines, reason = "one flat match over the requests")]
    fn answer(&mut self, request: ControlRequest) -> Result<Vec<ControlResponse>, RpcError> {
        let view = |service: &Service| ServiceView {
            service: service.clone(),
            running_tasks: 0,
            desired_tasks: 1,
        };
        let none = || error(ErrorCode::NotFound, "no such object");
        Ok(vec![match request {
            ControlRequest::GetCluster => {
                ControlResponse::Cluster(Box::new(self.cluster.clone().ok_or_else(none)?))
            }
            ControlRequest::UpdateCluster {
                version,
                spec,
                rotate_worker_token,
                ..
            } => {
                let meta = self.next();
                let cluster = self.cluster.as_mut().ok_or_else(none)?;
                Self::check(cluster.meta.version, version)?;
                cluster.meta = meta;
                cluster.spec = *spec;
                if rotate_worker_token {
                    cluster.worker_secret.secret.0.push('+');
                }
                ControlResponse::Done
            }
            ControlRequest::ListNodes => ControlResponse::Nodes(vec![self.node_view()?]),
            ControlRequest::GetNode(id) if id == NODE => {
                ControlResponse::Node(Box::new(self.node_view()?))
            }
            ControlRequest::UpdateNode { version, spec, .. } => {
                let meta = self.next();
                let node = self.node.as_mut().ok_or_else(none)?;
                Self::check(node.meta.version, version)?;
                node.meta = meta;
                node.spec = *spec;
                ControlResponse::Done
            }
            ControlRequest::ListServices => {
                ControlResponse::Services(self.services.values().map(view).collect())
            }
            ControlRequest::GetService(id) => {
                let service = self.services.get(&id).ok_or_else(none)?;
                ControlResponse::Service(Box::new(view(service)))
            }
            ControlRequest::CreateService { id, spec } => {
                let service = Service {
                    id,
                    meta: self.next(),
                    spec: *spec,
                    previous_spec: None,
                    vips: Vec::new(),
                    ports: Vec::new(),
                    spec_version: 1,
                    update_status: None,
                    pending_delete: false,
                };
                self.services.insert(id, service);
                ControlResponse::ServiceCreated(id)
            }
            ControlRequest::UpdateService {
                id,
                version,
                spec,
                rollback,
            } => {
                let meta = self.next();
                let service = self.services.get_mut(&id).ok_or_else(none)?;
                Self::check(service.meta.version, version)?;
                let spec = match (rollback, service.previous_spec.take()) {
                    (false, _) => spec,
                    (true, Some(previous)) => previous,
                    (true, None) => return Err(none()),
                };
                service.meta = meta;
                service.previous_spec = Some(Box::new(std::mem::replace(&mut service.spec, *spec)));
                ControlResponse::Done
            }
            ControlRequest::RemoveService(id) => {
                self.services.remove(&id).ok_or_else(none)?;
                ControlResponse::Done
            }
            ControlRequest::ListNetworks => ControlResponse::Networks(
                self.networks
                    .values()
                    .map(|n| self.network_view(n))
                    .collect(),
            ),
            ControlRequest::GetNetwork(id) => {
                let network = self.networks.get(&id).ok_or_else(none)?;
                ControlResponse::Network(Box::new(self.network_view(network)))
            }
            ControlRequest::CreateNetwork { id, spec } => self.create_network(id, *spec)?,
            ControlRequest::RemoveNetwork(id) => {
                let network = self.networks.get(&id).ok_or_else(none)?;
                if !self.network_view(network).services.is_empty() {
                    return Err(error(ErrorCode::FailedPrecondition, "network is in use"));
                }
                self.networks.remove(&id);
                ControlResponse::Done
            }
            ControlRequest::ListTasks { .. } => ControlResponse::Tasks(Vec::new()),
            ControlRequest::ListVolumes => ControlResponse::Volumes(Vec::new()),
            _ => return Err(none()),
        }])
    }
}

impl FakeCluster {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The spec of the only service.
    pub(crate) fn service(&self, name: &str) -> Service {
        let state = self.lock();
        let found = state.services.values().find(|s| s.spec.name == name);
        found
            .cloned()
            .unwrap_or_else(|| panic!("no service {name}"))
    }

    /// The network of that name.
    pub(crate) fn network(&self, name: &str) -> Network {
        let state = self.lock();
        let found = state.networks.values().find(|n| n.spec.name == name);
        found
            .cloned()
            .unwrap_or_else(|| panic!("no network {name}"))
    }

    pub(crate) fn change_service(&self, name: &str, change: impl FnOnce(&mut Service)) {
        let mut state = self.lock();
        let found = state.services.values_mut().find(|s| s.spec.name == name);
        change(found.unwrap_or_else(|| panic!("no service {name}")));
    }

    pub(crate) fn node(&self) -> Node {
        self.lock().node.clone().expect("the cluster was made")
    }
}

#[async_trait]
impl ClusterOps for FakeCluster {
    fn local(&self) -> LocalNode {
        if self.is_worker {
            return LocalNode {
                state: LocalState::Active,
                ..LocalNode::default()
            };
        }
        match &self.lock().cluster {
            None => LocalNode::default(),
            Some(cluster) => LocalNode {
                state: LocalState::Active,
                node_id: Some(NODE),
                cluster_id: Some(cluster.id),
                role: NodeRole::Manager,
                control_available: true,
                ..LocalNode::default()
            },
        }
    }

    async fn init(&self, options: InitOptions) -> Result<NodeId, RpcError> {
        self.lock().init(options.spec, options.availability);
        Ok(NODE)
    }

    async fn join(&self, _: JoinOptions) -> Result<(), RpcError> {
        Err(error(ErrorCode::PermissionDenied, "invalid join token"))
    }

    async fn leave(&self, _: bool) -> Result<(), RpcError> {
        *self.lock() = State::default();
        Ok(())
    }

    async fn control(&self, request: ControlRequest) -> Result<ControlFrames, RpcError> {
        let frames = self.lock().answer(request)?;
        Ok(stream::iter(frames).map(Ok).boxed())
    }

    async fn watch(
        &self,
        _: WatchRequest,
    ) -> Result<BoxStream<'static, Result<WatchEvent, RpcError>>, RpcError> {
        let version = Version(self.lock().version);
        let event = Ok(WatchEvent::Changed { version });
        Ok(stream::iter([event]).chain(stream::pending()).boxed())
    }

    async fn task_logs(
        &self,
        _: NodeId,
        _: SocketAddr,
        _: LogsRequest,
    ) -> Result<BoxStream<'static, Result<LogLine, RpcError>>, RpcError> {
        Err(error(ErrorCode::Unavailable, "not reachable"))
    }

    async fn net_check(&self, _: NodeId, _: SocketAddr) -> Result<Vec<PeerCheck>, RpcError> {
        Err(error(ErrorCode::Unavailable, "not reachable"))
    }

    fn join_token(&self, cluster: &Cluster, role: NodeRole) -> String {
        match role {
            NodeRole::Worker => cluster.worker_secret.secret.0.clone(),
            NodeRole::Manager => cluster.manager_secret.secret.0.clone(),
        }
    }

    async fn metrics(&self) -> String {
        "shoal_test 1\n".to_owned()
    }

    async fn debug(&self) -> serde_json::Value {
        serde_json::json!({})
    }
}
