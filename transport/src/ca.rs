//! The certificate authority of a cluster: pure cryptography, no store, no clock.
//!
//! Keys are ECDSA P-256. A node certificate says who the node is: common name = node id, organisational unit = role,
//! organisation = cluster id. What a signing request asks for besides its key is ignored: the subject is the issuer's.

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SerialNumber,
};
use ring::digest::{SHA256, digest};
use ring::rand::{SecureRandom, SystemRandom};
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer, PrivatePkcs8KeyDer};
use shoal_model::cluster::{Redacted, RootCa};
use shoal_model::{ClusterId, NodeId, NodeRole, Timestamp};
use std::time::Duration;

/// How far before its issue a certificate is valid already, so that a node whose clock is a little late can use it.
pub const BACKDATE: Duration = Duration::from_secs(3600);

/// Life of a root certificate: 20 years.
pub const ROOT_VALIDITY: Duration = Duration::from_secs(20 * 365 * 24 * 3600);

/// Most bytes of a signing request. Ours have fewer than 300.
pub const SIGNING_REQUEST_BYTES_MAX: usize = 4096;

const SERIAL_BYTES: usize = 16;

/// Why a certificate could not be made.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// The operating system gives no random bytes.
    #[error("failed to draw random bytes")]
    Random,
    /// A key pair could not be made.
    #[error("failed to make a key pair")]
    MakeKey(#[source] rcgen::Error),
    /// The root certificate could not be made.
    #[error("failed to make the root certificate")]
    MakeRoot(#[source] rcgen::Error),
    /// The stored root certificate or key is damaged.
    #[error("failed to read the root certificate and its key")]
    ReadRoot(#[source] rcgen::Error),
    /// The request is too large to be one of ours.
    #[error(
        "the signing request has {bytes} bytes, and at most {SIGNING_REQUEST_BYTES_MAX} are allowed"
    )]
    RequestTooLarge {
        /// Its size.
        bytes: usize,
    },
    /// The request is malformed, or its signature is wrong.
    #[error("failed to read the signing request")]
    ReadRequest(#[source] rcgen::Error),
    /// The request's key is not ECDSA P-256.
    #[error("the key of the signing request is not an ECDSA P-256 key")]
    WrongKeyKind,
    /// The certificate could not be signed.
    #[error("failed to sign the certificate of node `{node_id}`")]
    Sign {
        /// Its subject.
        node_id: NodeId,
        /// The cause.
        #[source]
        err: rcgen::Error,
    },
}

/// SHA-256 of a DER encoding: names a root certificate in join tokens and a public key in node objects.
pub fn sha256(der: &[u8]) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes.copy_from_slice(digest(&SHA256, der).as_ref());
    bytes
}

/// Whom a certificate names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subject {
    /// Common name.
    pub node_id: NodeId,
    /// Organisational unit.
    pub role: NodeRole,
    /// Organisation.
    pub cluster_id: ClusterId,
}

/// A signing request whose signature has been verified: the caller has the private key.
#[derive(Debug)]
pub struct SigningRequest {
    public_key: rcgen::PublicKey,
    public_key_digest: [u8; 32],
}

impl SigningRequest {
    /// Reads a PKCS#10 request and verifies its signature.
    ///
    /// # Errors
    /// [`CaError::RequestTooLarge`], [`CaError::ReadRequest`], [`CaError::WrongKeyKind`].
    pub fn parse(der: &[u8]) -> Result<Self, CaError> {
        if der.len() > SIGNING_REQUEST_BYTES_MAX {
            return Err(CaError::RequestTooLarge { bytes: der.len() });
        }
        let request = CertificateSigningRequestDer::from(der);
        let parsed = rcgen::CertificateSigningRequestParams::from_der(&request)
            .map_err(CaError::ReadRequest)?;
        let public_key = parsed.public_key;
        if public_key.algorithm() != &rcgen::PKCS_ECDSA_P256_SHA256 {
            return Err(CaError::WrongKeyKind);
        }
        let public_key_digest = sha256(&public_key.subject_public_key_info());
        Ok(Self {
            public_key,
            public_key_digest,
        })
    }

    /// SHA-256 of the public key (SubjectPublicKeyInfo): what a node is.
    pub const fn public_key_digest(&self) -> [u8; 32] {
        self.public_key_digest
    }
}

/// A loaded certificate authority.
pub struct Authority {
    certificate_der: Vec<u8>,
    issuer: Issuer<'static, KeyPair>,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").finish_non_exhaustive()
    }
}

impl Authority {
    /// Makes the root certificate and key of a new cluster.
    ///
    /// # Errors
    /// [`CaError::Random`], [`CaError::MakeKey`], [`CaError::MakeRoot`].
    pub fn generate(cluster_id: ClusterId, now: Timestamp) -> Result<RootCa, CaError> {
        let key = KeyPair::generate().map_err(CaError::MakeKey)?;
        let mut params = params(now, ROOT_VALIDITY)?;
        params.distinguished_name = DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::CommonName, "shoal cluster root");
        params
            .distinguished_name
            .push(DnType::OrganizationName, cluster_id.to_string());
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key).map_err(CaError::MakeRoot)?;
        Ok(RootCa {
            certificate_der: certificate.der().to_vec(),
            key_der: Redacted(key.serialize_der()),
        })
    }

    /// Loads the authority that the store keeps.
    ///
    /// # Errors
    /// [`CaError::ReadRoot`].
    pub fn load(root: &RootCa) -> Result<Self, CaError> {
        let key_der = PrivatePkcs8KeyDer::from(root.key_der.0.as_slice());
        let key = KeyPair::from_pkcs8_der_and_sign_algo(&key_der, &rcgen::PKCS_ECDSA_P256_SHA256)
            .map_err(CaError::ReadRoot)?;
        let certificate = CertificateDer::from(root.certificate_der.clone());
        let issuer = Issuer::from_ca_cert_der(&certificate, key).map_err(CaError::ReadRoot)?;
        Ok(Self {
            certificate_der: root.certificate_der.clone(),
            issuer,
        })
    }

    /// DER of the root certificate.
    pub fn certificate_der(&self) -> &[u8] {
        &self.certificate_der
    }

    /// Digest of the root certificate, as join tokens carry it.
    pub fn digest(&self) -> [u8; 32] {
        sha256(&self.certificate_der)
    }

    /// Issues a certificate for `subject` with the key of `request`, valid from [`BACKDATE`] before `now` until
    /// `validity` after it.
    ///
    /// # Errors
    /// [`CaError::Random`], [`CaError::Sign`].
    pub fn issue(
        &self,
        subject: &Subject,
        request: &SigningRequest,
        now: Timestamp,
        validity: Duration,
    ) -> Result<Vec<u8>, CaError> {
        let mut params = params(now, validity)?;
        params.distinguished_name = DistinguishedName::new();
        let name = &mut params.distinguished_name;
        name.push(DnType::CommonName, subject.node_id.to_string());
        name.push(DnType::OrganizationalUnitName, subject.role.as_str());
        name.push(DnType::OrganizationName, subject.cluster_id.to_string());
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let certificate = params
            .signed_by(&request.public_key, &self.issuer)
            .map_err(|err| CaError::Sign {
                node_id: subject.node_id,
                err,
            })?;
        Ok(certificate.der().to_vec())
    }
}

fn params(now: Timestamp, validity: Duration) -> Result<CertificateParams, CaError> {
    let mut serial = [0; SERIAL_BYTES];
    SystemRandom::new()
        .fill(&mut serial)
        .map_err(|_| CaError::Random)?;
    // RFC 5280 §4.1.2.2: a serial number is positive.
    serial[0] = serial[0] & 0x7f | 0x01;
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let since_epoch = now.since(Timestamp(0));
    let mut params = CertificateParams::default();
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.not_before = epoch + since_epoch.saturating_sub(BACKDATE);
    params.not_after = epoch + since_epoch + validity;
    Ok(params)
}
