//! Tokens, re-admission, and what a peer without a certificate gets.

use crate::fixture::{Cluster, DEADLINE, Manager, client};
use quinn::crypto::rustls::QuicClientConfig;
use rustls_pki_types::pem::PemObject;
use shoal_model::NodeRole;
use shoal_model::node::Availability;
use shoal_model::rpc::Method;
use shoal_transport::files::{FilesError, IdentityFiles};
use shoal_transport::join::{JoinError, readmit, renew};
use shoal_transport::rpc::TRANSPORT_VERSION;
use shoal_transport::{CallError, JoinToken, NodeKey, join};
use std::sync::Arc;

async fn try_join(
    manager: &Manager,
    token: &JoinToken,
) -> Result<shoal_transport::Identity, JoinError> {
    let key = NodeKey::generate().unwrap();
    let endpoint = client(None);
    let active = Availability::Active;
    join(&endpoint, manager.addr, token, &key, active, DEADLINE)
        .await
        .map(|(identity, _)| identity)
}

#[tokio::test]
async fn a_token_is_exchanged_for_a_certificate() {
    let manager = Manager::start();
    let identity = try_join(&manager, &manager.handler.token).await.unwrap();
    assert_eq!(identity.role(), NodeRole::Worker);
    assert_eq!(identity.cluster_id(), manager.cluster.id);
    let caller = client(Some(identity));
    crate::fixture::ask(&caller, manager.addr, Method::Leave)
        .await
        .unwrap();
}

#[tokio::test]
async fn a_wrong_secret_is_refused_with_the_reason() {
    let manager = Manager::start();
    let mut token = manager.handler.token.clone();
    token.secret = JoinToken::secret_from_bits(6);
    let err = try_join(&manager, &token).await.unwrap_err();
    assert!(
        matches!(err, JoinError::Call(CallError::Remote(_))),
        "{err}"
    );
    assert_eq!(err.to_string(), "the join token is not valid");
}

#[tokio::test]
async fn the_secret_is_not_sent_to_another_cluster() {
    let manager = Manager::start();
    let mut token = manager.handler.token.clone();
    token.root_digest = Cluster::new(2).authority.digest();
    let err = try_join(&manager, &token).await.unwrap_err();
    assert!(
        matches!(err, JoinError::Call(CallError::Transport(_))),
        "{err}"
    );
    assert!(manager.handler.join_requests.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_worker_can_not_pose_as_a_manager_to_a_joining_node() {
    let manager = Manager::start();
    let worker = manager.cluster.identity(30, NodeRole::Worker);
    let impostor = Manager::start_at(
        Arc::clone(&manager.cluster),
        worker,
        crate::fixture::loopback(),
    );
    let err = try_join(&impostor, &impostor.handler.token)
        .await
        .unwrap_err();
    assert!(
        matches!(err, JoinError::Call(CallError::Transport(_))),
        "{err}"
    );
    assert!(impostor.handler.join_requests.lock().unwrap().is_empty());
}

#[tokio::test]
async fn readmission_and_renewal_give_a_certificate_for_the_same_key() {
    let manager = Manager::start();
    let old = manager.cluster.identity(40, NodeRole::Worker);
    let readmitted = readmit(&client(None), manager.addr, &old, DEADLINE)
        .await
        .unwrap();
    assert_eq!(
        readmitted.peer().public_key_digest,
        old.peer().public_key_digest
    );
    let renewed = renew(&client(Some(old.clone())), manager.addr, &old, DEADLINE)
        .await
        .unwrap();
    assert_eq!(renewed.node_id(), old.node_id());
}

/// A peer with the right ALPN, that trusts anyone and shows nothing.
async fn anonymous_connection(manager: &Manager) -> (quinn::Endpoint, quinn::Connection) {
    let mut roots = rustls::RootCertStore::empty();
    roots
        .add(manager.cluster.root.certificate_der.clone().into())
        .unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = rustls::client::WebPkiServerVerifier::builder_with_provider(
        Arc::new(roots),
        Arc::clone(&provider),
    )
    .build()
    .unwrap();
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyName(verifier)))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"shoal/1".to_vec()];
    let config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(config).unwrap()));
    let endpoint = quinn::Endpoint::client(crate::fixture::loopback()).unwrap();
    let connection = endpoint
        .connect_with(config, manager.addr, "shoal")
        .unwrap()
        .await
        .unwrap();
    (endpoint, connection)
}

#[derive(Debug)]
struct AnyName(Arc<rustls::client::WebPkiServerVerifier>);

impl rustls::client::danger::ServerCertVerifier for AnyName {
    fn verify_server_cert(
        &self,
        _end_entity: &rustls_pki_types::CertificateDer<'_>,
        _intermediates: &[rustls_pki_types::CertificateDer<'_>],
        _server_name: &rustls_pki_types::ServerName<'_>,
        _ocsp_response: &[u8],
        _now: rustls_pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &rustls_pki_types::CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &rustls_pki_types::CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

#[tokio::test]
async fn a_peer_without_a_certificate_gets_nothing() {
    let manager = Manager::start();
    let session = Method::Session.number().to_le_bytes();
    let unknown = u16::MAX.to_le_bytes();
    for header in [
        [TRANSPORT_VERSION, session[0], session[1]],
        [TRANSPORT_VERSION, unknown[0], unknown[1]],
        [TRANSPORT_VERSION + 1, session[0], session[1]],
    ] {
        let (_endpoint, connection) = anonymous_connection(&manager).await;
        let (mut send, mut recv) = connection.open_bi().await.unwrap();
        send.write_all(&header).await.unwrap();
        let answer = recv.read_to_end(1024).await;
        assert!(answer.is_err(), "{answer:?}");
        match connection.closed().await {
            quinn::ConnectionError::ApplicationClosed(close) => {
                assert_eq!(close.error_code, quinn::VarInt::from_u32(0));
                assert!(close.reason.is_empty());
            }
            other => panic!("{other}"),
        }
    }
    assert_eq!(manager.served(), 0);
}

#[test]
fn identity_files_survive_a_restart_and_tell_of_damage() {
    let folder = tempfile::tempdir().unwrap();
    let files = IdentityFiles::new(folder.path().join("certs"));
    assert!(files.load().unwrap().is_none());
    let key = files.load_or_make_key().unwrap();
    let cluster = Cluster::new(1);
    let identity = cluster.identity_at(key.clone(), 50, NodeRole::Manager, crate::fixture::now());
    files.store(&identity).unwrap();
    let loaded = files.load().unwrap().unwrap();
    assert_eq!(loaded.peer(), identity.peer());
    assert_eq!(
        loaded.key().derive_secret("a"),
        key.derive_secret("a"),
        "secrets survive"
    );
    assert_ne!(key.derive_secret("a"), key.derive_secret("b"));

    let path = folder.path().join("certs/node.crt");
    let text = std::fs::read_to_string(&path).unwrap();
    assert_eq!(
        rustls_pki_types::CertificateDer::pem_slice_iter(text.as_bytes()).count(),
        2
    );
    std::fs::write(&path, &text[..text.len() / 2]).unwrap();
    let err = files.load().unwrap_err();
    assert!(matches!(err, FilesError::Damaged { .. }), "{err}");
    files.remove().unwrap();
    assert!(files.load().unwrap().is_none());
}
