//! The client side of joining, re-admission and renewal.

use crate::endpoint::Endpoint;
use crate::identity::{Identity, IdentityError, NodeKey};
use crate::rpc::{CallError, Connector, Expect, call, exchange};
use crate::token::JoinToken;
use serde::Serialize;
use shoal_model::control::{CertificateResponse, JoinRequest, RenewRequest};
use shoal_model::node::Availability;
use shoal_model::rpc::Method;
use std::net::SocketAddr;
use std::time::Duration;

/// Why a node got no certificate.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The manager could not be asked, or refused.
    #[error(transparent)]
    Call(#[from] CallError),
    /// The signing request could not be made, or the answer can't be used.
    #[error("the certificate can't be used")]
    Identity(#[from] IdentityError),
    /// The answer names another root than the token, or than before.
    #[error("the manager at {addr} answered with a certificate of another cluster")]
    WrongRoot {
        /// Who answered.
        addr: SocketAddr,
    },
}

/// Exchanges a join token for a certificate.
///
/// The manager's certificate is verified against the root whose digest the token carries before the secret is sent.
///
/// # Errors
/// See [`JoinError`]. A remote error says what is wrong with the token.
pub async fn join(
    endpoint: &Endpoint,
    addr: SocketAddr,
    token: &JoinToken,
    key: &NodeKey,
    availability: Availability,
    deadline: Duration,
) -> Result<(Identity, CertificateResponse), JoinError> {
    let request = JoinRequest {
        secret: token.secret.clone(),
        signing_request_der: key.signing_request()?,
        availability,
    };
    let response = ask_anonymously(
        endpoint,
        addr,
        token.root_digest,
        (Method::Join, &request),
        deadline,
    )
    .await?;
    let identity = accept(addr, key, token.root_digest, &response)?;
    Ok((identity, response))
}

/// Asks for a new certificate for a node whose old one has expired; the key proves who it is.
///
/// # Errors
/// See [`JoinError`].
pub async fn readmit(
    endpoint: &Endpoint,
    addr: SocketAddr,
    old: &Identity,
    deadline: Duration,
) -> Result<Identity, JoinError> {
    let request = RenewRequest {
        signing_request_der: old.key().signing_request()?,
    };
    let digest = old.root_digest();
    let response = ask_anonymously(
        endpoint,
        addr,
        digest,
        (Method::Readmit, &request),
        deadline,
    )
    .await?;
    accept(addr, old.key(), digest, &response)
}

/// Asks for a new certificate while the old one is good.
///
/// # Errors
/// See [`JoinError`].
pub async fn renew(
    connector: &dyn Connector,
    addr: SocketAddr,
    old: &Identity,
    deadline: Duration,
) -> Result<Identity, JoinError> {
    let request = RenewRequest {
        signing_request_der: old.key().signing_request()?,
    };
    let response = call(
        connector,
        addr,
        Expect::AnyManager,
        Method::RenewCertificate,
        &request,
        deadline,
    )
    .await?;
    accept(addr, old.key(), old.root_digest(), &response)
}

async fn ask_anonymously<Req: Serialize + Sync>(
    endpoint: &Endpoint,
    addr: SocketAddr,
    root_digest: [u8; 32],
    (method, request): (Method, &Req),
    deadline: Duration,
) -> Result<CertificateResponse, CallError> {
    let ask = async {
        let call = endpoint.open_anonymous(addr, root_digest, method).await?;
        exchange(call.stream, addr, request).await
    };
    tokio::time::timeout(deadline, ask)
        .await
        .map_err(|_| CallError::TimedOut { addr, deadline })?
}

fn accept(
    addr: SocketAddr,
    key: &NodeKey,
    root_digest: [u8; 32],
    response: &CertificateResponse,
) -> Result<Identity, JoinError> {
    let identity = Identity::from_response(key.clone(), response)?;
    if identity.root_digest() != root_digest {
        return Err(JoinError::WrongRoot { addr });
    }
    Ok(identity)
}
