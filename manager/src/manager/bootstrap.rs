//! The first entries of a new cluster: its object with authority and tokens, and its first manager.

use crate::ca_server::new_node;
use crate::consensus::{IdSource, WallClock};
use crate::control::validate::{self, Invalid};
use shoal_model::cluster::{JoinSecret, Redacted};
use shoal_model::command::{Object, StoreAction};
use shoal_model::control::CertificateResponse;
use shoal_model::node::ManagerStatus;
use shoal_model::session::ManagerPeer;
use shoal_model::{
    Availability, Cluster, ClusterId, ClusterSpec, Meta, NodeId, NodeRole, RaftNodeId, TaskId,
};
use shoal_transport::ca::{Authority, CaError, SigningRequest, Subject};
use std::net::SocketAddr;
use std::time::Duration;

/// Raft's id of the first manager.
pub(super) const FIRST_RAFT_ID: RaftNodeId = RaftNodeId(1);

/// What a cluster is founded with.
#[derive(Debug, Clone)]
pub struct FoundingRequest {
    /// PKCS#10 DER of the first node's key.
    pub signing_request_der: Vec<u8>,
    /// Where others will reach its control port.
    pub advertise: SocketAddr,
    /// Whether it takes tasks.
    pub availability: Availability,
    /// Settings.
    pub spec: ClusterSpec,
}

/// A new cluster, not written anywhere yet.
#[derive(Debug, Clone)]
pub struct Founding {
    /// The first node's certificate.
    pub certificate: CertificateResponse,
    /// The first entries, for [`super::Start::Found`].
    pub first: Vec<Vec<StoreAction>>,
}

/// Why a cluster could not be made.
#[derive(Debug, thiserror::Error)]
pub enum FoundingError {
    /// A setting is wrong.
    #[error(transparent)]
    Setting(#[from] Invalid),
    /// Nobody could reach the manager.
    #[error("`{addr}` is no address that other nodes can reach: give one with `--advertise`")]
    Address {
        /// What was given.
        addr: SocketAddr,
    },
    /// A key or certificate could not be made.
    #[error("failed to make the certificate authority of the cluster")]
    Authority(#[from] CaError),
}

/// Makes a cluster: its authority, its tokens, its first node and that node's certificate.
///
/// # Errors
/// See [`FoundingError`].
pub fn found(
    request: &FoundingRequest,
    clock: &dyn WallClock,
    ids: &dyn IdSource,
) -> Result<Founding, FoundingError> {
    validate::cluster(&request.spec)?;
    let addr = request.advertise;
    if addr.ip().is_unspecified() || addr.port() == 0 {
        return Err(FoundingError::Address { addr });
    }
    let now = clock.now();
    let signing_request = SigningRequest::parse(&request.signing_request_der)?;
    let cluster_id = ClusterId::from_bits(ids.bits());
    let node_id = NodeId::from_bits(ids.bits());
    let root_ca = Authority::generate(cluster_id, now)?;
    let subject = Subject {
        node_id,
        role: NodeRole::Manager,
        cluster_id,
    };
    let life = Duration::from_secs(request.spec.node_cert_expiry_s);
    let certificate_der =
        Authority::load(&root_ca)?.issue(&subject, &signing_request, now, life)?;
    let mut node = new_node(
        node_id,
        signing_request.public_key_digest(),
        NodeRole::Manager,
        request.availability,
    );
    node.manager = Some(ManagerStatus {
        raft_id: FIRST_RAFT_ID,
        addr,
    });
    let certificate = CertificateResponse {
        node_id,
        role: NodeRole::Manager,
        certificate_der,
        root_der: root_ca.certificate_der.clone(),
        managers: vec![ManagerPeer { node_id, addr }],
    };
    let cluster = Cluster {
        id: cluster_id,
        meta: Meta::default(),
        spec: request.spec.clone(),
        root_ca,
        worker_secret: new_secret(ids),
        manager_secret: new_secret(ids),
        last_raft_id: FIRST_RAFT_ID.0,
    };
    let first = vec![vec![
        StoreAction::Create(Object::Cluster(Box::new(cluster))),
        StoreAction::Create(Object::Node(Box::new(node))),
    ]];
    Ok(Founding { certificate, first })
}

fn new_secret(ids: &dyn IdSource) -> JoinSecret {
    JoinSecret {
        // 128 bits as 25 digits of base 36, the text form of every id.
        secret: Redacted(TaskId::from_bits(ids.bits()).to_string()),
        expires_at: None,
        uses_left: None,
    }
}
