//! Who a node is: its key, its certificate, and what can be read from a peer's certificate.

use crate::ca::{BACKDATE, sha256};
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PublicKeyData};
use ring::hmac;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use shoal_model::control::CertificateResponse;
use shoal_model::{ClusterId, NodeId, NodeRole, Timestamp};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use x509_parser::prelude::{FromDer, X509Certificate};

/// Why a key or a certificate can't be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A key pair could not be made.
    #[error("failed to make the node's key")]
    MakeKey(#[source] rcgen::Error),
    /// The key is damaged, or not ECDSA P-256.
    #[error("failed to read the node's key")]
    ReadKey(#[source] rcgen::Error),
    /// The signing request could not be signed.
    #[error("failed to make a signing request")]
    MakeRequest(#[source] rcgen::Error),
    /// The certificate is not X.509.
    #[error("failed to read a certificate: {reason}")]
    ReadCertificate {
        /// What the parser says.
        reason: String,
    },
    /// A field of the subject is missing or malformed.
    #[error("the certificate names no valid {field}")]
    Subject {
        /// `node id`, `role` or `cluster id`.
        field: &'static str,
    },
    /// The certificate is for another key.
    #[error("the certificate of node `{node_id}` is for another key than this node's")]
    KeyMismatch {
        /// Whom the certificate names.
        node_id: NodeId,
    },
    /// The certificate was issued by another root.
    #[error("the certificate of node `{node_id}` is not signed by the cluster's root")]
    NotSigned {
        /// Whom the certificate names.
        node_id: NodeId,
    },
}

/// A node's private key, ECDSA P-256. A node is its key: it is made once, and every certificate is for it.
#[derive(Clone)]
pub struct NodeKey(Arc<NodeKeyInner>);

struct NodeKeyInner {
    pair: KeyPair,
    pkcs8_der: Vec<u8>,
    public_key_digest: [u8; 32],
}

impl std::fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("NodeKey([redacted])")
    }
}

impl NodeKey {
    /// Makes a key.
    ///
    /// # Errors
    /// [`IdentityError::MakeKey`].
    pub fn generate() -> Result<Self, IdentityError> {
        let pair = KeyPair::generate().map_err(IdentityError::MakeKey)?;
        let pkcs8_der = pair.serialize_der();
        Ok(Self::from_parts(pair, pkcs8_der))
    }

    /// Reads a key from PKCS#8 DER.
    ///
    /// # Errors
    /// [`IdentityError::ReadKey`].
    pub fn from_pkcs8_der(der: &[u8]) -> Result<Self, IdentityError> {
        let pair = KeyPair::from_pkcs8_der_and_sign_algo(
            &PrivatePkcs8KeyDer::from(der),
            &rcgen::PKCS_ECDSA_P256_SHA256,
        )
        .map_err(IdentityError::ReadKey)?;
        Ok(Self::from_parts(pair, der.to_vec()))
    }

    fn from_parts(pair: KeyPair, pkcs8_der: Vec<u8>) -> Self {
        let public_key_digest = sha256(&pair.subject_public_key_info());
        Self(Arc::new(NodeKeyInner {
            pair,
            pkcs8_der,
            public_key_digest,
        }))
    }

    /// PKCS#8 DER of the private key. Must not leave the machine.
    pub fn pkcs8_der(&self) -> &[u8] {
        &self.0.pkcs8_der
    }

    /// SHA-256 of the public key (SubjectPublicKeyInfo).
    pub fn public_key_digest(&self) -> [u8; 32] {
        self.0.public_key_digest
    }

    /// A PKCS#10 request that proves possession of the key. Its subject is empty: the authority fills it in.
    ///
    /// # Errors
    /// [`IdentityError::MakeRequest`].
    pub fn signing_request(&self) -> Result<Vec<u8>, IdentityError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let request = params
            .serialize_request(&self.0.pair)
            .map_err(IdentityError::MakeRequest)?;
        Ok(request.der().to_vec())
    }

    /// A secret of this node for one purpose. The same key and label give the same secret in every process.
    pub fn derive_secret(&self, label: &str) -> [u8; 32] {
        let key = hmac::Key::new(hmac::HMAC_SHA256, self.pkcs8_der());
        let mut secret = [0; 32];
        secret.copy_from_slice(hmac::sign(&key, label.as_bytes()).as_ref());
        secret
    }

    pub(crate) fn to_rustls(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.pkcs8_der().to_vec()).into()
    }
}

/// What a certificate says of its holder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerIdentity {
    /// The node.
    pub node_id: NodeId,
    /// The role that it had when the certificate was issued.
    pub role: NodeRole,
    /// The cluster.
    pub cluster_id: ClusterId,
    /// SHA-256 of its public key: what node objects carry.
    pub public_key_digest: [u8; 32],
}

struct Parsed {
    identity: PeerIdentity,
    not_before: Timestamp,
    not_after: Timestamp,
}

fn parse(der: &[u8]) -> Result<(Parsed, X509Certificate<'_>), IdentityError> {
    let (_, certificate) =
        X509Certificate::from_der(der).map_err(|err| IdentityError::ReadCertificate {
            reason: err.to_string(),
        })?;
    let subject = certificate.subject();
    let validity = certificate.validity();
    let seconds =
        |at: i64| Timestamp::from_unix(Duration::from_secs(u64::try_from(at).unwrap_or(0)));
    let node_id = field(subject.iter_common_name(), "node id")?;
    let role = match text(subject.iter_organizational_unit()) {
        Some("worker") => NodeRole::Worker,
        Some("manager") => NodeRole::Manager,
        _ => return Err(IdentityError::Subject { field: "role" }),
    };
    let cluster_id = field(subject.iter_organization(), "cluster id")?;
    let parsed = Parsed {
        identity: PeerIdentity {
            node_id,
            role,
            cluster_id,
            public_key_digest: sha256(certificate.public_key().raw),
        },
        not_before: seconds(validity.not_before.timestamp()),
        not_after: seconds(validity.not_after.timestamp()),
    };
    Ok((parsed, certificate))
}

type Attribute<'a> = x509_parser::x509::AttributeTypeAndValue<'a>;

fn text<'a>(mut attributes: impl Iterator<Item = &'a Attribute<'a>>) -> Option<&'a str> {
    attributes.next().and_then(|first| first.as_str().ok())
}

fn field<'a, T: std::str::FromStr>(
    attributes: impl Iterator<Item = &'a Attribute<'a>>,
    field: &'static str,
) -> Result<T, IdentityError> {
    text(attributes)
        .and_then(|text| text.parse().ok())
        .ok_or(IdentityError::Subject { field })
}

impl PeerIdentity {
    /// Reads a certificate that was verified against the root already.
    ///
    /// # Errors
    /// [`IdentityError::ReadCertificate`], [`IdentityError::Subject`].
    pub fn from_certificate(der: &[u8]) -> Result<Self, IdentityError> {
        Ok(parse(der)?.0.identity)
    }
}

/// A node's key with the certificate that the cluster gave it. Cheap to clone.
#[derive(Clone)]
pub struct Identity(Arc<IdentityInner>);

struct IdentityInner {
    key: NodeKey,
    certificate_der: Vec<u8>,
    root_der: Vec<u8>,
    peer: PeerIdentity,
    not_before: Timestamp,
    not_after: Timestamp,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity")
            .field("peer", &self.0.peer)
            .field("not_after", &self.0.not_after)
            .finish_non_exhaustive()
    }
}

impl Identity {
    /// Puts together key, certificate and root. An expired certificate is accepted: it can still ask for re-admission.
    ///
    /// # Errors
    /// Every [`IdentityError`] about certificates.
    pub fn new(
        key: NodeKey,
        certificate_der: Vec<u8>,
        root_der: Vec<u8>,
    ) -> Result<Self, IdentityError> {
        let (parsed, certificate) = parse(&certificate_der)?;
        let node_id = parsed.identity.node_id;
        if parsed.identity.public_key_digest != key.public_key_digest() {
            return Err(IdentityError::KeyMismatch { node_id });
        }
        let (_, root) =
            X509Certificate::from_der(&root_der).map_err(|err| IdentityError::ReadCertificate {
                reason: err.to_string(),
            })?;
        certificate
            .verify_signature(Some(root.public_key()))
            .map_err(|_| IdentityError::NotSigned { node_id })?;
        Ok(Self(Arc::new(IdentityInner {
            peer: parsed.identity,
            not_before: parsed.not_before,
            not_after: parsed.not_after,
            key,
            certificate_der,
            root_der,
        })))
    }

    /// Puts together this node's key and what a manager answered.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn from_response(
        key: NodeKey,
        response: &CertificateResponse,
    ) -> Result<Self, IdentityError> {
        Self::new(
            key,
            response.certificate_der.clone(),
            response.root_der.clone(),
        )
    }

    /// The key.
    pub fn key(&self) -> &NodeKey {
        &self.0.key
    }

    /// What the certificate says.
    pub fn peer(&self) -> &PeerIdentity {
        &self.0.peer
    }

    /// The node's id.
    pub fn node_id(&self) -> NodeId {
        self.0.peer.node_id
    }

    /// The role in the certificate.
    pub fn role(&self) -> NodeRole {
        self.0.peer.role
    }

    /// The cluster.
    pub fn cluster_id(&self) -> ClusterId {
        self.0.peer.cluster_id
    }

    /// DER of the certificate.
    pub fn certificate_der(&self) -> &[u8] {
        &self.0.certificate_der
    }

    /// DER of the cluster's root certificate.
    pub fn root_der(&self) -> &[u8] {
        &self.0.root_der
    }

    /// SHA-256 of the root certificate, as join tokens carry it.
    pub fn root_digest(&self) -> [u8; 32] {
        sha256(self.root_der())
    }

    /// When the certificate ends.
    pub fn not_after(&self) -> Timestamp {
        self.0.not_after
    }

    /// When it was issued.
    pub fn issued_at(&self) -> Timestamp {
        self.0.not_before.plus(BACKDATE)
    }

    /// No peer accepts the certificate any more.
    pub fn is_expired(&self, now: Timestamp) -> bool {
        now > self.0.not_after
    }

    /// The very same identity, not only an equal one.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    pub(crate) fn chain(&self) -> Vec<CertificateDer<'static>> {
        vec![
            CertificateDer::from(self.0.certificate_der.clone()),
            CertificateDer::from(self.0.root_der.clone()),
        ]
    }
}

/// The identity of a running node, which changes when the node joins and when its certificate is renewed.
#[derive(Debug, Clone)]
pub struct IdentityHandle(Arc<watch::Sender<Option<Identity>>>);

impl IdentityHandle {
    /// Starts with `identity`; `None` for a node that is in no cluster.
    pub fn new(identity: Option<Identity>) -> Self {
        Self(Arc::new(watch::Sender::new(identity)))
    }

    /// The identity now.
    pub fn current(&self) -> Option<Identity> {
        self.0.borrow().clone()
    }

    /// New connections use `identity` from now on; open streams live on with the connection that they have.
    pub fn swap(&self, identity: Option<Identity>) {
        self.0.send_replace(identity);
    }

    /// Follows changes.
    pub fn subscribe(&self) -> watch::Receiver<Option<Identity>> {
        self.0.subscribe()
    }
}
