//! The certificate authority of the cluster: joining, re-admission, renewal.
//!
//! Certificates are issued by the leader, after everything that they rest on is committed: the use of the token, the
//! node object, its role. Any other manager passes a request on, once. A node is its key: re-admission and renewal find
//! the node by the key that signed the request, and a node that was removed gets nothing.

#[cfg(test)]
mod tests;

use crate::consensus::Leadership;
use crate::control::{Core, Effect, Failure, rpc_error};
use crate::role_manager::role_now;
use crate::store::State;
use serde::{Serialize, de::DeserializeOwned};
use shoal_model::cluster::{JoinSecret, Redacted};
use shoal_model::command::{Object, StoreAction};
use shoal_model::control::{CertificateResponse, JoinRequest, RenewRequest};
use shoal_model::rpc::{ErrorCode, Method, RpcError};
use shoal_model::session::ManagerPeer;
use shoal_model::{
    Availability, Cluster, Meta, Node, NodeId, NodeRole, NodeSpec, NodeStatus, Timestamp,
};
use shoal_transport::ca::{Authority, CaError, SigningRequest, Subject};
use shoal_transport::token::secrets_match;
use shoal_transport::{CallError, Connector, Expect, Peer, RpcStream, StreamError, call};
use std::sync::Arc;
use std::time::Duration;

/// How long the leader may take for a certificate that another manager passes on the request for.
const FORWARD_DEADLINE: Duration = Duration::from_secs(10);

/// Issues certificates.
#[derive(Clone)]
pub struct CaServer {
    core: Core,
    connector: Arc<dyn Connector>,
}

impl std::fmt::Debug for CaServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CaServer").finish_non_exhaustive()
    }
}

impl CaServer {
    pub(crate) fn new(core: Core, connector: Arc<dyn Connector>) -> Self {
        Self { core, connector }
    }

    /// Serves [`Method::Join`].
    ///
    /// # Errors
    /// The stream broke; the caller is gone.
    pub async fn serve_join(&self, peer: &Peer, mut stream: RpcStream) -> Result<(), StreamError> {
        let Some(request) = stream.recv::<JoinRequest>().await? else {
            return Ok(());
        };
        let answer = match self.next_hop(peer) {
            Hop::Here => self.join(&request).await.map_err(|failure| failure.error),
            Hop::Leader(leader) => self.pass_on(&leader, Method::Join, &request).await,
            Hop::Nowhere(error) => Err(error),
        };
        stream.reply(&answer).await
    }

    /// Serves [`Method::Readmit`] and [`Method::RenewCertificate`]: both prove the key, and the key is the node.
    ///
    /// # Errors
    /// The stream broke; the caller is gone.
    pub async fn serve_renewal(
        &self,
        peer: &Peer,
        mut stream: RpcStream,
    ) -> Result<(), StreamError> {
        let Some(request) = stream.recv::<RenewRequest>().await? else {
            return Ok(());
        };
        let answer = match self.next_hop(peer) {
            Hop::Here => self.renew(&request).await.map_err(|failure| failure.error),
            Hop::Leader(leader) => self.pass_on(&leader, Method::Readmit, &request).await,
            Hop::Nowhere(error) => Err(error),
        };
        stream.reply(&answer).await
    }

    /// Where a request of `peer` is executed. What comes from another manager was passed on already: it makes no
    /// second hop. A manager's own renewal looks the same, and is passed on if this manager does not lead.
    fn next_hop(&self, peer: &Peer) -> Hop {
        let current = self.core.consensus.leadership().borrow().clone();
        match current {
            Leadership::Leader { .. } => Hop::Here,
            Leadership::Follower {
                leader: Some(leader),
            } => {
                let from_leader = peer
                    .identity
                    .as_ref()
                    .is_some_and(|caller| caller.node_id == leader.node_id);
                if from_leader {
                    return Hop::Nowhere(not_leader("the leader changes at this moment"));
                }
                Hop::Leader(leader)
            }
            Leadership::Follower { leader: None } => {
                Hop::Nowhere(not_leader("the cluster has no leader now"))
            }
            Leadership::Stopped { reason } => Hop::Nowhere(RpcError::new(
                ErrorCode::Unavailable,
                format!("the manager of this node has stopped: {reason}"),
            )),
        }
    }

    async fn pass_on<Req, Resp>(
        &self,
        leader: &ManagerPeer,
        method: Method,
        request: &Req,
    ) -> Result<Resp, RpcError>
    where
        Req: Serialize + Sync,
        Resp: DeserializeOwned,
    {
        let expect = Expect::Node(leader.node_id);
        let answer = call(
            &*self.connector,
            leader.addr,
            expect,
            method,
            request,
            FORWARD_DEADLINE,
        );
        answer.await.map_err(|err| match err {
            CallError::Remote(error) => error,
            CallError::Transport(_) | CallError::Stream { .. } | CallError::TimedOut { .. } => {
                rpc_error(ErrorCode::Unavailable, &err)
            }
        })
    }

    /// Exchanges a token for a node object and its first certificate.
    pub(crate) async fn join(&self, request: &JoinRequest) -> Result<CertificateResponse, Failure> {
        let state = self.core.fresh_view().await?;
        let signing_request = parse_request(&request.signing_request_der)?;
        let cluster = cluster_of(&state)?;
        let role = role_of_secret(cluster, &request.secret, self.core.clock.now())?;
        let authority = load_authority(cluster)?;
        let digest = signing_request.public_key_digest();
        let (node_id, role) = match node_of_key(&state, digest) {
            // The answer to an earlier attempt was lost: the same key is the same node.
            Some(known) => (known.id, role_now(known)),
            None => (
                self.create_node(digest, role, request.availability).await?,
                role,
            ),
        };
        let subject = Subject {
            node_id,
            role,
            cluster_id: cluster.id,
        };
        self.issue(&state, &authority, &subject, &signing_request)
    }

    async fn create_node(
        &self,
        public_key_digest: [u8; 32],
        role: NodeRole,
        availability: Availability,
    ) -> Result<NodeId, Failure> {
        let id = NodeId::from_bits(self.core.ids.bits());
        let node = new_node(id, public_key_digest, role, availability);
        let actions = vec![
            StoreAction::UseJoinToken { role },
            StoreAction::Create(Object::Node(Box::new(node))),
        ];
        self.core.propose(actions).await.map_err(|failure| {
            if failure.effect == Effect::Unknown {
                let message = format!("{}: join again, the key is kept", failure.error.message);
                return Failure::new(ErrorCode::Unavailable, message);
            }
            failure
        })?;
        tracing::info!(node_id = %id, %role, "node joined");
        Ok(id)
    }

    /// A new certificate for the node whose key signed the request, with the role that it should have now.
    pub(crate) async fn renew(
        &self,
        request: &RenewRequest,
    ) -> Result<CertificateResponse, Failure> {
        let state = self.core.fresh_view().await?;
        let signing_request = parse_request(&request.signing_request_der)?;
        let cluster = cluster_of(&state)?;
        let node = node_of_key(&state, signing_request.public_key_digest()).ok_or_else(|| {
            Failure::new(
                ErrorCode::PermissionDenied,
                "this node is not in the cluster (any more): it was removed. Leave with `shoal leave --force` and join again",
            )
        })?;
        let role = role_now(node);
        let authority = load_authority(cluster)?;
        if node.role != role {
            // The store knows of the role before the certificate leaves.
            self.core
                .propose(vec![StoreAction::SetNodeRole {
                    node_id: node.id,
                    role,
                    manager: node.manager.clone(),
                }])
                .await?;
        }
        let subject = Subject {
            node_id: node.id,
            role,
            cluster_id: cluster.id,
        };
        self.issue(&state, &authority, &subject, &signing_request)
    }

    /// A new certificate for this manager out of its own store, for when its old one has expired and no manager can be
    /// asked: a cluster that was switched off for longer than certificates live has no manager with a good one.
    ///
    /// It gives nobody a right that they lack: whoever has this store has the authority's key.
    ///
    /// # Errors
    /// The store does not know the key as a manager's, or holds no cluster yet.
    pub(crate) fn renew_own(&self, request: &RenewRequest) -> Result<CertificateResponse, Failure> {
        let state = self.core.store.view();
        let signing_request = parse_request(&request.signing_request_der)?;
        let cluster = cluster_of(&state)?;
        let own = node_of_key(&state, signing_request.public_key_digest())
            .filter(|node| node.role == NodeRole::Manager && node.manager.is_some());
        let own = own.ok_or_else(|| {
            let text = "this node's own store does not know it as a manager";
            Failure::new(ErrorCode::PermissionDenied, text)
        })?;
        let subject = Subject {
            node_id: own.id,
            role: NodeRole::Manager,
            cluster_id: cluster.id,
        };
        let authority = load_authority(cluster)?;
        self.issue(&state, &authority, &subject, &signing_request)
    }

    fn issue(
        &self,
        state: &State,
        authority: &Authority,
        subject: &Subject,
        request: &SigningRequest,
    ) -> Result<CertificateResponse, Failure> {
        let cluster = cluster_of(state)?;
        let validity = Duration::from_secs(cluster.spec.node_cert_expiry_s);
        let certificate_der = authority
            .issue(subject, request, self.core.clock.now(), validity)
            .map_err(|err| internal(&err))?;
        Ok(CertificateResponse {
            node_id: subject.node_id,
            role: subject.role,
            certificate_der,
            root_der: cluster.root_ca.certificate_der.clone(),
            managers: manager_peers(state),
        })
    }
}

enum Hop {
    Here,
    Leader(ManagerPeer),
    Nowhere(RpcError),
}

fn not_leader(reason: &str) -> RpcError {
    RpcError::new(ErrorCode::NotLeader, format!("{reason}: try again"))
}

/// A node as it is at first.
pub(crate) fn new_node(
    id: NodeId,
    public_key_digest: [u8; 32],
    role: NodeRole,
    availability: Availability,
) -> Node {
    Node {
        id,
        meta: Meta::default(),
        spec: NodeSpec {
            role,
            availability,
            ..NodeSpec::default()
        },
        description: None,
        status: NodeStatus::default(),
        role,
        manager: None,
        public_key_digest,
        hold_until: None,
        mesh: None,
    }
}

/// The managers that are members of Raft, for nodes to talk to.
pub(crate) fn manager_peers(state: &State) -> Vec<ManagerPeer> {
    state
        .nodes()
        .filter_map(|node| {
            node.manager.as_ref().map(|manager| ManagerPeer {
                node_id: node.id,
                addr: manager.addr,
            })
        })
        .collect()
}

fn node_of_key(state: &State, digest: [u8; 32]) -> Option<&Arc<Node>> {
    state.nodes().find(|node| node.public_key_digest == digest)
}

fn cluster_of(state: &State) -> Result<&Arc<Cluster>, Failure> {
    state.cluster().ok_or_else(|| {
        Failure::new(
            ErrorCode::Unavailable,
            "the cluster is still starting: try again",
        )
    })
}

fn parse_request(der: &[u8]) -> Result<SigningRequest, Failure> {
    SigningRequest::parse(der)
        .map_err(|err| Failure::from(rpc_error(ErrorCode::InvalidArgument, &err)))
}

fn load_authority(cluster: &Cluster) -> Result<Authority, Failure> {
    Authority::load(&cluster.root_ca).map_err(|err| internal(&err))
}

fn internal(err: &CaError) -> Failure {
    rpc_error(ErrorCode::Internal, err).into()
}

/// Which token it is. Both are compared in full, so that the time tells nothing.
fn role_of_secret(
    cluster: &Cluster,
    secret: &Redacted<String>,
    now: Timestamp,
) -> Result<NodeRole, Failure> {
    let is_worker = secrets_match(secret, &cluster.worker_secret.secret);
    let is_manager = secrets_match(secret, &cluster.manager_secret.secret);
    let (role, stored) = match (is_manager, is_worker) {
        (true, _) => (NodeRole::Manager, &cluster.manager_secret),
        (false, true) => (NodeRole::Worker, &cluster.worker_secret),
        (false, false) => {
            return Err(refused(
                "it is not a token of this cluster, or it was rotated",
                "`shoal join-token worker` (or `manager`)",
            ));
        }
    };
    check_usable(stored, now, role)?;
    Ok(role)
}

fn check_usable(secret: &JoinSecret, now: Timestamp, role: NodeRole) -> Result<(), Failure> {
    let way_out = format!("`shoal join-token --rotate {role}`");
    if secret.expires_at.is_some_and(|end| now > end) {
        return Err(refused("it has expired", &way_out));
    }
    if secret.uses_left == Some(0) {
        return Err(refused("it is used up", &way_out));
    }
    Ok(())
}

fn refused(reason: &str, way_out: &str) -> Failure {
    Failure::new(
        ErrorCode::PermissionDenied,
        format!("the join token was refused: {reason}. Get a new one on a manager with {way_out}"),
    )
}
