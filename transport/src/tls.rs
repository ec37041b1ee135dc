//! TLS settings: 1.3 only, ring, no resumption.
//!
//! A resumed session would skip the check of the peer's certificate, so tickets are neither given nor taken.

use crate::ca::sha256;
use crate::identity::Identity;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, verify_server_cert_signed_by_trust_anchor};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, ServerConfig,
    SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use std::sync::Arc;

/// The protocol's name in the handshake.
const ALPN: &[u8] = b"shoal/1";

/// The name that is sent in the handshake and checked by nobody: a node is named by its certificate.
pub(crate) const SERVER_NAME: &str = "shoal";

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// For a node that serves peers: certificates are asked for; who has none is told from who has one later.
pub(crate) fn server(identity: &Identity) -> Result<ServerConfig, Error> {
    let provider = provider();
    let roots = Arc::new(roots(identity.root_der())?);
    let verifier = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider))
        .allow_unauthenticated()
        .build()
        .map_err(|err| Error::General(err.to_string()))?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(identity.chain(), identity.key().to_rustls())?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Ok(config)
}

/// For a node of the cluster that calls another one.
pub(crate) fn client(identity: &Identity) -> Result<ClientConfig, Error> {
    let trust = Trust::Root(roots(identity.root_der())?);
    let config = client_builder(trust)?
        .with_client_auth_cert(identity.chain(), identity.key().to_rustls())?;
    Ok(finish_client(config))
}

/// For a caller without a certificate that knows the digest of the cluster's root.
pub(crate) fn anonymous_client(root_digest: [u8; 32]) -> Result<ClientConfig, Error> {
    let config = client_builder(Trust::Digest(root_digest))?.with_no_client_auth();
    Ok(finish_client(config))
}

fn client_builder(
    trust: Trust,
) -> Result<rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert>, Error> {
    let provider = provider();
    let verifier = NodeVerifier {
        trust,
        provider: Arc::clone(&provider),
    };
    Ok(ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier)))
}

fn finish_client(mut config: ClientConfig) -> ClientConfig {
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    config
}

fn roots(der: &[u8]) -> Result<RootCertStore, Error> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from(der.to_vec()))?;
    Ok(roots)
}

#[derive(Debug)]
enum Trust {
    Root(RootCertStore),
    /// The peer sends its root last in the chain; a root with this digest is trusted.
    Digest([u8; 32]),
}

/// Checks a serving node's certificate up to the cluster's root, as `rustls` does, but for the host name: identity
/// is never the address.
#[derive(Debug)]
struct NodeVerifier {
    trust: Trust,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for NodeVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let presented;
        let roots = match &self.trust {
            Trust::Root(roots) => roots,
            Trust::Digest(digest) => {
                let root = intermediates
                    .last()
                    .filter(|root| sha256(root) == *digest)
                    .ok_or(Error::InvalidCertificate(CertificateError::UnknownIssuer))?;
                presented = self::roots(root)?;
                &presented
            }
        };
        verify_server_cert_signed_by_trust_anchor(
            &ParsedCertificate::try_from(end_entity)?,
            roots,
            intermediates,
            now,
            self.provider.signature_verification_algorithms.all,
        )?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
