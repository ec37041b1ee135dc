//! A certificate authority, nodes, and a handler that answers.

use async_trait::async_trait;
use shoal_model::cluster::RootCa;
use shoal_model::control::{CertificateResponse, JoinRequest, RenewRequest};
use shoal_model::rpc::{ErrorCode, Method, RpcError};
use shoal_model::{ClusterId, NodeId, NodeRole, Timestamp};
use shoal_transport::ca::{Authority, SigningRequest, Subject};
use shoal_transport::token::{JoinToken, secrets_match};
use shoal_transport::{
    CallError, Endpoint, EndpointOptions, Expect, Identity, IdentityHandle, NodeKey, Peer,
    PeerIdentity, RpcHandler, RpcStream, call,
};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

pub(crate) const DEADLINE: Duration = Duration::from_secs(5);
pub(crate) const LIFE: Duration = Duration::from_secs(24 * 3600);

pub(crate) fn now() -> Timestamp {
    let since = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap();
    Timestamp::from_unix(since)
}

pub(crate) struct Cluster {
    pub(crate) id: ClusterId,
    pub(crate) root: RootCa,
    pub(crate) authority: Authority,
}

impl Cluster {
    pub(crate) fn new(bits: u128) -> Self {
        let id = ClusterId::from_bits(bits);
        let root = Authority::generate(id, now()).unwrap();
        let authority = Authority::load(&root).unwrap();
        Self {
            id,
            root,
            authority,
        }
    }

    pub(crate) fn identity(&self, bits: u128, role: NodeRole) -> Identity {
        self.identity_at(NodeKey::generate().unwrap(), bits, role, now())
    }

    pub(crate) fn identity_at(
        &self,
        key: NodeKey,
        bits: u128,
        role: NodeRole,
        at: Timestamp,
    ) -> Identity {
        let subject = Subject {
            node_id: NodeId::from_bits(bits),
            role,
            cluster_id: self.id,
        };
        let request = SigningRequest::parse(&key.signing_request().unwrap()).unwrap();
        let der = self.authority.issue(&subject, &request, at, LIFE).unwrap();
        Identity::new(key, der, self.root.certificate_der.clone()).unwrap()
    }
}

/// Answers every call with its number, holds `Session` streams open as an echo, and issues certificates.
pub(crate) struct Handler {
    cluster: Arc<Cluster>,
    pub(crate) token: JoinToken,
    pub(crate) served: AtomicUsize,
    pub(crate) join_requests: Mutex<Vec<JoinRequest>>,
    /// As a manager does for a node that was demoted or removed.
    pub(crate) refuse_all: AtomicBool,
}

impl Handler {
    fn issue(&self, der: &[u8], bits: u128) -> Result<CertificateResponse, RpcError> {
        let request = SigningRequest::parse(der)
            .map_err(|err| RpcError::new(ErrorCode::InvalidArgument, err.to_string()))?;
        let subject = Subject {
            node_id: NodeId::from_bits(bits),
            role: NodeRole::Worker,
            cluster_id: self.cluster.id,
        };
        Ok(CertificateResponse {
            node_id: subject.node_id,
            role: subject.role,
            certificate_der: self
                .cluster
                .authority
                .issue(&subject, &request, now(), LIFE)
                .unwrap(),
            root_der: self.cluster.root.certificate_der.clone(),
            managers: Vec::new(),
        })
    }

    async fn join(&self, stream: &mut RpcStream) -> Result<CertificateResponse, RpcError> {
        let request: JoinRequest = stream.recv().await.unwrap().unwrap();
        self.join_requests.lock().unwrap().push(request.clone());
        if !secrets_match(&request.secret, &self.token.secret) {
            let message = "the join token is not valid";
            return Err(RpcError::new(ErrorCode::PermissionDenied, message));
        }
        self.issue(&request.signing_request_der, 77)
    }
}

#[async_trait]
impl RpcHandler for Handler {
    async fn handle(&self, peer: Peer, method: Method, mut stream: RpcStream) {
        self.served.fetch_add(1, Ordering::SeqCst);
        match method {
            Method::Join => {
                let answer = self.join(&mut stream).await;
                stream.reply(&answer).await.unwrap();
            }
            Method::Readmit | Method::RenewCertificate => {
                let request: RenewRequest = stream.recv().await.unwrap().unwrap();
                let bits = peer.identity.map_or(88, |identity| identity.node_id.bits());
                let answer = self.issue(&request.signing_request_der, bits);
                stream.reply(&answer).await.unwrap();
            }
            Method::Session => {
                while let Ok(Some(text)) = stream.recv::<String>().await {
                    if stream.send(&text).await.is_err() {
                        return;
                    }
                }
            }
            _ => {
                let Ok(Some(question)) = stream.recv::<u64>().await else {
                    return;
                };
                let answer: Result<u64, RpcError> = Ok(question + u64::from(method.number()));
                // The caller may have given up.
                drop(stream.reply(&answer).await);
            }
        }
    }

    fn admits(&self, _identity: &PeerIdentity, _method: Method) -> bool {
        !self.refuse_all.load(Ordering::SeqCst)
    }
}

pub(crate) struct Manager {
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) handler: Arc<Handler>,
    pub(crate) endpoint: Endpoint,
    pub(crate) addr: SocketAddr,
    pub(crate) identity: Identity,
}

pub(crate) fn loopback() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

impl Manager {
    pub(crate) fn start() -> Self {
        let cluster = Arc::new(Cluster::new(1));
        let identity = cluster.identity(10, NodeRole::Manager);
        Self::start_at(cluster, identity, loopback())
    }

    pub(crate) fn start_at(cluster: Arc<Cluster>, identity: Identity, addr: SocketAddr) -> Self {
        let handler = Arc::new(Handler {
            token: JoinToken {
                root_digest: cluster.authority.digest(),
                secret: JoinToken::secret_from_bits(5),
            },
            cluster: Arc::clone(&cluster),
            served: AtomicUsize::new(0),
            join_requests: Mutex::new(Vec::new()),
            refuse_all: AtomicBool::new(false),
        });
        let handle = IdentityHandle::new(Some(identity.clone()));
        let endpoint = Endpoint::bind(addr, handle, EndpointOptions::control()).unwrap();
        drop(endpoint.serve(Arc::clone(&handler) as Arc<dyn RpcHandler>));
        Self {
            cluster,
            handler,
            addr: endpoint.local_addr(),
            endpoint,
            identity,
        }
    }

    pub(crate) fn served(&self) -> usize {
        self.handler.served.load(Ordering::SeqCst)
    }
}

pub(crate) fn client(identity: Option<Identity>) -> Endpoint {
    let handle = IdentityHandle::new(identity);
    Endpoint::bind(loopback(), handle, EndpointOptions::control()).unwrap()
}

pub(crate) async fn ask(
    client: &Endpoint,
    addr: SocketAddr,
    method: Method,
) -> Result<u64, CallError> {
    call(client, addr, Expect::AnyManager, method, &1000u64, DEADLINE).await
}
