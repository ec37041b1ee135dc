//! The client side of the registry protocol: which address, which protocol, what to try again, and what an error means.

use crate::content::DOCUMENT_BYTES_MAX;
use crate::digest::{Digest, Hasher};
use crate::manifest::{DOCKER_INDEX, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST};
use crate::reference::Reference;
use crate::store::ImageStoreOptions;
use bytes::Bytes;
use futures_util::StreamExt;
use oci_client::client::{
    BlobResponse, Certificate, CertificateEncoding, ClientConfig, ClientProtocol, SizedStream,
};
use oci_client::errors::{OciDistributionError, OciErrorCode};
use oci_client::secrets::RegistryAuth as OciAuth;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;
use tokio::sync::mpsc;

/// How often a broken transfer is taken up again, or a busy registry asked again.
pub const RETRIES_MAX: u32 = 5;
const RETRY_DELAY_FIRST_MS: u64 = 200;
const RETRY_DELAY_MAX_MS: u64 = 5_000;
/// After this many bytes a transfer has its retries back.
const RETRY_RESET_BYTES: u64 = 1 << 20;
const CONNECT_TIMEOUT_S: u64 = 10;
const READ_TIMEOUT_S: u64 = 60;
/// How long a registry that does not speak TLS may take to show that it speaks HTTP.
const PLAIN_PROBE_S: u64 = 3;

/// Credentials for one registry.
#[derive(Clone, PartialEq, Eq)]
pub enum RegistryAuth {
    /// User name and password, for basic and for token authentication.
    Basic {
        /// The user.
        username: String,
        /// The password or access token.
        password: String,
    },
    /// A bearer token that the registry itself accepts.
    Bearer(String),
}

/// Why credentials can't be used.
#[derive(Debug, thiserror::Error)]
#[error("invalid X-Registry-Auth: {0}")]
pub struct AuthHeaderError(&'static str);

impl RegistryAuth {
    /// Reads Docker's header `X-Registry-Auth`: base64 of JSON. Empty credentials are none.
    ///
    /// # Errors
    /// It is malformed, or of a kind that is not supported.
    pub fn from_header(header: &str) -> Result<Option<Self>, AuthHeaderError> {
        use base64::Engine as _;
        use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
        #[derive(Default, serde::Deserialize)]
        #[serde(default)]
        struct Header {
            username: Option<String>,
            password: Option<String>,
            identitytoken: Option<String>,
            registrytoken: Option<String>,
        }
        if header.is_empty() {
            return Ok(None);
        }
        let config =
            GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
        // Docker's client uses the URL-safe alphabet, bollard the other one.
        let bytes = GeneralPurpose::new(&base64::alphabet::URL_SAFE, config)
            .decode(header)
            .or_else(|_| GeneralPurpose::new(&base64::alphabet::STANDARD, config).decode(header))
            .map_err(|_| AuthHeaderError("it is not base64"))?;
        let fields: Option<Header> = serde_json::from_slice(&bytes)
            .map_err(|_| AuthHeaderError("it holds no JSON object"))?;
        let fields = fields.unwrap_or_default();
        let given = |field: Option<String>| field.filter(|text| !text.is_empty());
        if let Some(token) = given(fields.registrytoken) {
            return Ok(Some(Self::Bearer(token)));
        }
        if given(fields.identitytoken).is_some() {
            let text = "identity tokens are not supported: log in with a password";
            return Err(AuthHeaderError(text));
        }
        match (given(fields.username), given(fields.password)) {
            (None, None) => Ok(None),
            (username, password) => Ok(Some(Self::Basic {
                username: username.unwrap_or_default(),
                password: password.unwrap_or_default(),
            })),
        }
    }
}

impl std::fmt::Debug for RegistryAuth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Basic { .. } => "Basic([redacted])",
            Self::Bearer(_) => "Bearer([redacted])",
        })
    }
}

/// Why a registry did not give what was asked for.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// It does not know the image.
    #[error("manifest for {reference} not found: manifest unknown")]
    UnknownImage {
        /// As asked.
        reference: String,
    },
    /// It wants other credentials, or hides what does not exist.
    #[error(
        "pull access denied for {repository}, repository does not exist or may require 'docker login': {message}"
    )]
    Denied {
        /// The repository.
        repository: String,
        /// The registry's own words.
        message: String,
    },
    /// Nobody answers.
    #[error("failed to reach the registry `{registry}`")]
    Unreachable {
        /// The registry.
        registry: String,
        /// Why.
        #[source]
        err: Box<OciDistributionError>,
    },
    /// Somebody answers, but not in TLS.
    #[error(
        "failed to reach the registry `{registry}` by https, but it answers by http: if that is meant, start the daemon with \
         `--insecure-registry {registry}`"
    )]
    PlainHttp {
        /// The registry.
        registry: String,
        /// What https came to.
        #[source]
        err: Box<OciDistributionError>,
    },
    /// A blob of the image is not there.
    #[error("registry `{registry}` does not have the blob {digest}")]
    UnknownBlob {
        /// The registry.
        registry: String,
        /// The blob.
        digest: Digest,
    },
    /// What came is not what was asked for.
    #[error("registry `{registry}` sent something else than {expected}")]
    WrongDigest {
        /// The registry.
        registry: String,
        /// What was asked for.
        expected: String,
    },
    /// A document is larger than any honest one.
    #[error(
        "registry `{registry}` has a document {digest} of {size} bytes, more than the limit of {DOCUMENT_BYTES_MAX}"
    )]
    TooLarge {
        /// The registry.
        registry: String,
        /// The document.
        digest: Digest,
        /// Its size.
        size: u64,
    },
    /// The transfer broke again and again.
    #[error("transfer from the registry `{registry}` broke off {RETRIES_MAX} times")]
    Broken {
        /// The registry.
        registry: String,
        /// The last reason.
        #[source]
        err: io::Error,
    },
    /// Any other answer.
    #[error("the registry `{registry}` refused the request")]
    Refused {
        /// The registry.
        registry: String,
        /// Its answer.
        #[source]
        err: Box<OciDistributionError>,
    },
    /// A certificate authority of ours can't be read.
    #[error("failed to read the certificates in `{}`", path.display())]
    Certificates {
        /// The directory or file.
        path: PathBuf,
        /// Why.
        #[source]
        err: io::Error,
    },
    /// Whoever wanted the bytes has stopped reading.
    #[error("the transfer was stopped")]
    Stopped,
}

/// One repository in one registry, with a connection pool.
pub(crate) struct Registry {
    client: oci_client::Client,
    auth: OciAuth,
    /// `host[:port]`.
    host: String,
    reference: Reference,
}

/// A manifest or index as the registry has it.
pub(crate) struct Fetched {
    pub(crate) bytes: Bytes,
    pub(crate) digest: Digest,
}

impl Registry {
    /// Finds out how the registry wants to be spoken to, and fetches the document that `reference` names. Plain HTTP is only tried
    /// with loopback addresses and registries that were declared insecure.
    pub(crate) async fn connect(
        options: &ImageStoreOptions,
        reference: &Reference,
        auth: Option<RegistryAuth>,
    ) -> Result<(Self, Fetched), RegistryError> {
        install_tls_provider();
        let auth = auth.map_or(OciAuth::Anonymous, OciAuth::from);
        let mut hosts: Vec<&str> = Vec::new();
        if reference.registry() == "docker.io" {
            hosts.extend(options.mirrors.iter().map(String::as_str));
        }
        hosts.push(reference.registry());
        let last = hosts.len() - 1;
        for host in &hosts[..last] {
            // Credentials are for the registry itself, not for its mirrors.
            match Self::connect_host(options, host, reference, &OciAuth::Anonymous).await {
                Ok(found) => return Ok(found),
                Err(err) => {
                    tracing::warn!(mirror = %host, %err, "mirror could not serve the image")
                }
            }
        }
        Self::connect_host(options, hosts[last], reference, &auth).await
    }

    /// Whether the registry of `reference` takes these credentials; the image itself need not exist.
    pub(crate) async fn check_credentials(
        options: &ImageStoreOptions,
        reference: &Reference,
        auth: RegistryAuth,
    ) -> Result<(), RegistryError> {
        install_tls_provider();
        let host = reference.registry();
        let mut failure = RegistryError::Stopped;
        for protocol in protocols(options, host) {
            let registry = Self::open(options, host, protocol, reference, &auth.clone().into())?;
            match registry.check().await {
                Err(err @ RegistryError::Unreachable { .. }) => failure = err,
                checked => return checked,
            }
        }
        Err(failure)
    }

    /// A token server answers for itself; with basic authentication only a request tells.
    async fn check(&self) -> Result<(), RegistryError> {
        let (host, path) = (self.host.clone(), self.reference.path().to_owned());
        let target = oci_client::Reference::with_tag(host, path, "none".to_owned());
        let pull = oci_client::RegistryOperation::Pull;
        match self.client.auth(&target, &self.auth, pull).await {
            Ok(Some(_)) => return Ok(()),
            Ok(None) => {}
            Err(err) => return Err(self.explain(err, "credentials")),
        }
        match self.manifest(None, Some("none")).await {
            Ok(_) | Err(RegistryError::UnknownImage { .. }) => Ok(()),
            Err(err) => Err(err),
        }
    }

    fn open(
        options: &ImageStoreOptions,
        host: &str,
        protocol: ClientProtocol,
        reference: &Reference,
        auth: &OciAuth,
    ) -> Result<Self, RegistryError> {
        let config = ClientConfig {
            protocol,
            accept_invalid_certificates: is_insecure(options, host),
            extra_root_certificates: certificates(options, host)?,
            connect_timeout: Some(Duration::from_secs(CONNECT_TIMEOUT_S)),
            read_timeout: Some(Duration::from_secs(READ_TIMEOUT_S)),
            user_agent: concat!("shoal/", env!("CARGO_PKG_VERSION")),
            ..ClientConfig::default()
        };
        let client = oci_client::Client::try_from(config);
        let client = client.map_err(|err| unreachable(host, err))?;
        Ok(Self {
            client,
            auth: auth.clone(),
            host: host.to_owned(),
            reference: reference.clone(),
        })
    }

    async fn connect_host(
        options: &ImageStoreOptions,
        host: &str,
        reference: &Reference,
        auth: &OciAuth,
    ) -> Result<(Self, Fetched), RegistryError> {
        let insecure = is_insecure(options, host);
        let mut first_error = None;
        for protocol in protocols(options, host) {
            let registry = Self::open(options, host, protocol, reference, auth)?;
            match registry.manifest(reference.digest(), reference.tag()).await {
                Ok(fetched) => return Ok((registry, fetched)),
                Err(err @ RegistryError::Unreachable { .. }) => {
                    first_error = first_error.or(Some(err));
                }
                Err(err) => return Err(err),
            }
        }
        let error = first_error.unwrap_or(RegistryError::Stopped);
        match error {
            RegistryError::Unreachable { registry, err }
                if !insecure && answers_in_plain_http(&registry).await =>
            {
                Err(RegistryError::PlainHttp { registry, err })
            }
            error => Err(error),
        }
    }

    /// Fetches a manifest or an index, by digest if there is one.
    pub(crate) async fn manifest(
        &self,
        digest: Option<&Digest>,
        tag: Option<&str>,
    ) -> Result<Fetched, RegistryError> {
        let (host, path) = (self.host.clone(), self.reference.path().to_owned());
        let target = match digest {
            Some(digest) => oci_client::Reference::with_digest(host, path, digest.to_string()),
            None => oci_client::Reference::with_tag(host, path, tag.unwrap_or("latest").to_owned()),
        };
        let accept = [OCI_INDEX, DOCKER_INDEX, OCI_MANIFEST, DOCKER_MANIFEST];
        let mut attempt = 0;
        let (bytes, _) = loop {
            match self
                .client
                .pull_manifest_raw(&target, &self.auth, &accept)
                .await
            {
                Ok(found) => break found,
                Err(err) if is_busy(&err) && attempt < RETRIES_MAX => {
                    attempt += 1;
                    tokio::time::sleep(delay(attempt)).await;
                }
                Err(err) => return Err(self.explain(err, &target.to_string())),
            }
        };
        let mut hasher: Hasher = match digest {
            Some(digest) => digest.algorithm().hasher(),
            None => crate::Algorithm::Sha256.hasher(),
        };
        hasher.update(&bytes);
        let found = hasher.finish();
        match digest {
            Some(digest) if *digest != found => Err(RegistryError::WrongDigest {
                registry: self.host.clone(),
                expected: digest.to_string(),
            }),
            _ => Ok(Fetched {
                bytes,
                digest: found,
            }),
        }
    }

    /// Fetches a small blob into memory and checks its digest.
    pub(crate) async fn document(
        &self,
        digest: &Digest,
        size: u64,
    ) -> Result<Vec<u8>, RegistryError> {
        if size > DOCUMENT_BYTES_MAX {
            return Err(RegistryError::TooLarge {
                registry: self.host.clone(),
                digest: digest.clone(),
                size,
            });
        }
        let (sender, mut receiver) = mpsc::channel::<Result<Bytes, io::Error>>(4);
        let collect = async {
            let mut bytes = Vec::new();
            while let Some(Ok(chunk)) = receiver.recv().await {
                bytes.extend_from_slice(&chunk);
                if bytes.len() as u64 > size {
                    break;
                }
            }
            drop(receiver);
            bytes
        };
        let (fetched, bytes) = tokio::join!(self.blob(digest, size, sender, |_| {}), collect);
        let mut hasher = digest.algorithm().hasher();
        hasher.update(&bytes);
        let found = hasher.finish();
        match fetched {
            Ok(()) | Err(RegistryError::Stopped) if found != *digest => {
                Err(RegistryError::WrongDigest {
                    registry: self.host.clone(),
                    expected: digest.to_string(),
                })
            }
            Ok(()) | Err(RegistryError::Stopped) => Ok(bytes),
            Err(err) => Err(err),
        }
    }

    /// Sends the bytes of a blob; a transfer that breaks is taken up where it stopped. The receiver checks the digest.
    pub(crate) async fn blob(
        &self,
        digest: &Digest,
        total: u64,
        sender: mpsc::Sender<Result<Bytes, io::Error>>,
        on_retry: impl Fn(u32),
    ) -> Result<(), RegistryError> {
        let mut offset = 0;
        let mut attempt = 0;
        let mut reset_at = RETRY_RESET_BYTES;
        loop {
            let failure = match self.open_blob(digest, offset).await? {
                Ok((stream, skip)) => pump(stream, skip, &mut offset, &sender).await?,
                Err(failure) => Some(failure),
            };
            if offset >= total {
                return Ok(());
            }
            if offset >= reset_at {
                (attempt, reset_at) = (0, offset + RETRY_RESET_BYTES);
            }
            attempt += 1;
            if attempt > RETRIES_MAX {
                let err = failure.unwrap_or_else(|| io::ErrorKind::UnexpectedEof.into());
                let told = sender
                    .send(Err(io::Error::new(err.kind(), "transfer broke off")))
                    .await;
                drop(told);
                return Err(RegistryError::Broken {
                    registry: self.host.clone(),
                    err,
                });
            }
            on_retry(attempt);
            tokio::time::sleep(delay(attempt)).await;
        }
    }

    /// The stream from `offset`, and how many bytes of it are old; the inner error is worth a retry.
    async fn open_blob(
        &self,
        digest: &Digest,
        offset: u64,
    ) -> Result<Result<(SizedStream, u64), io::Error>, RegistryError> {
        let (host, path) = (self.host.clone(), self.reference.path().to_owned());
        let text = digest.to_string();
        let target = oci_client::Reference::with_digest(host, path, text.clone());
        self.client
            .store_auth_if_needed(target.resolve_registry(), &self.auth)
            .await;
        let opened = self
            .client
            .pull_blob_stream_partial(&target, text.as_str(), offset, None)
            .await;
        match opened {
            Ok(BlobResponse::Partial(stream)) => Ok(Ok((stream, 0))),
            Ok(BlobResponse::Full(stream)) => Ok(Ok((stream, offset))),
            Err(err) if is_busy(&err) || is_connection(&err) => Ok(Err(io::Error::other(err))),
            Err(err) if is_missing(&err) => Err(RegistryError::UnknownBlob {
                registry: self.host.clone(),
                digest: digest.clone(),
            }),
            Err(err) => Err(self.explain(err, &text)),
        }
    }

    fn explain(&self, err: OciDistributionError, wanted: &str) -> RegistryError {
        let registry = self.host.clone();
        if is_missing(&err) {
            return RegistryError::UnknownImage {
                reference: self.reference.familiar(),
            };
        }
        if is_connection(&err) {
            return unreachable(&registry, err);
        }
        let denied = |message: String| RegistryError::Denied {
            repository: self.reference.familiar_name(),
            message,
        };
        match err {
            OciDistributionError::UnauthorizedError { .. } => {
                denied("authentication required".to_owned())
            }
            OciDistributionError::AuthenticationFailure(reason) => denied(reason),
            OciDistributionError::ServerError {
                code: 401 | 403,
                message,
                ..
            } => denied(message),
            OciDistributionError::RegistryError { envelope, .. }
                if envelope.errors.iter().any(|e| {
                    matches!(e.code, OciErrorCode::Unauthorized | OciErrorCode::Denied)
                }) =>
            {
                denied(envelope.to_string())
            }
            OciDistributionError::DigestError(_) => RegistryError::WrongDigest {
                registry,
                expected: wanted.to_owned(),
            },
            err => RegistryError::Refused {
                registry,
                err: Box::new(err),
            },
        }
    }
}

/// Forwards a stream; returns why it ended early, if it did.
async fn pump(
    mut stream: SizedStream,
    mut skip: u64,
    offset: &mut u64,
    sender: &mpsc::Sender<Result<Bytes, io::Error>>,
) -> Result<Option<io::Error>, RegistryError> {
    while let Some(chunk) = stream.next().await {
        let mut chunk = match chunk {
            Ok(chunk) => chunk,
            Err(err) => return Ok(Some(err)),
        };
        if skip > 0 {
            let old = usize::try_from(skip).unwrap_or(usize::MAX).min(chunk.len());
            bytes::Buf::advance(&mut chunk, old);
            skip -= old as u64;
        }
        if chunk.is_empty() {
            continue;
        }
        *offset += chunk.len() as u64;
        sender
            .send(Ok(chunk))
            .await
            .map_err(|_| RegistryError::Stopped)?;
    }
    Ok(None)
}

impl From<RegistryAuth> for OciAuth {
    fn from(auth: RegistryAuth) -> Self {
        match auth {
            RegistryAuth::Basic { username, password } => Self::Basic(username, password),
            RegistryAuth::Bearer(token) => Self::Bearer(token),
        }
    }
}

fn install_tls_provider() {
    if rustls::crypto::CryptoProvider::get_default().is_none()
        && rustls::crypto::ring::default_provider()
            .install_default()
            .is_err()
    {
        tracing::debug!("another thread has installed the TLS provider");
    }
}

fn is_insecure(options: &ImageStoreOptions, host: &str) -> bool {
    options.insecure_registries.iter().any(|r| r == host) || is_loopback(host)
}

/// How a registry may be spoken to, in the order in which it is tried.
fn protocols(options: &ImageStoreOptions, host: &str) -> Vec<ClientProtocol> {
    let mut protocols = vec![ClientProtocol::Https];
    if is_insecure(options, host) {
        protocols.push(ClientProtocol::Http);
    }
    protocols
}

/// Whether somebody there speaks HTTP without TLS. No name, no credentials and nothing else is told.
async fn answers_in_plain_http(host: &str) -> bool {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let ask = async {
        let named = host.rsplit(':').next();
        let has_port = named.is_some_and(|port| port.parse::<u16>().is_ok());
        let address = match has_port {
            true => host.to_owned(),
            false => format!("{host}:80"),
        };
        let mut stream = tokio::net::TcpStream::connect(address).await?;
        let request = format!("GET /v2/ HTTP/1.0\r\nHost: {host}\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut start = [0; 5];
        stream.read_exact(&mut start).await?;
        io::Result::Ok(&start == b"HTTP/")
    };
    let limit = Duration::from_secs(PLAIN_PROBE_S);
    matches!(tokio::time::timeout(limit, ask).await, Ok(Ok(true)))
}

fn unreachable(registry: &str, err: OciDistributionError) -> RegistryError {
    RegistryError::Unreachable {
        registry: registry.to_owned(),
        err: Box::new(err),
    }
}

fn delay(attempt: u32) -> Duration {
    let factor = 1_u64 << attempt.saturating_sub(1).min(10);
    Duration::from_millis((RETRY_DELAY_FIRST_MS * factor).min(RETRY_DELAY_MAX_MS))
}

/// The registry is there, but not now.
fn is_busy(err: &OciDistributionError) -> bool {
    match err {
        OciDistributionError::ServerError { code, .. } => *code == 429 || *code >= 500,
        OciDistributionError::RegistryError { envelope, .. } => envelope
            .errors
            .iter()
            .any(|e| e.code == OciErrorCode::Toomanyrequests),
        _ => false,
    }
}

fn is_connection(err: &OciDistributionError) -> bool {
    matches!(
        err,
        OciDistributionError::RequestError(_) | OciDistributionError::IoError(_)
    )
}

fn is_missing(err: &OciDistributionError) -> bool {
    match err {
        OciDistributionError::ImageManifestNotFoundError(_) => true,
        OciDistributionError::ServerError { code, .. } => *code == 404,
        OciDistributionError::RegistryError { envelope, .. } => envelope.errors.iter().any(|e| {
            matches!(
                e.code,
                OciErrorCode::ManifestUnknown
                    | OciErrorCode::NameUnknown
                    | OciErrorCode::NotFound
                    | OciErrorCode::BlobUnknown
            )
        }),
        _ => false,
    }
}

/// Whether `host[:port]` is this machine.
fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(v6) => v6.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    name == "localhost" || name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

fn certificates(
    options: &ImageStoreOptions,
    host: &str,
) -> Result<Vec<Certificate>, RegistryError> {
    let Some(dir) = options.certs_dir.as_ref().map(|dir| dir.join(host)) else {
        return Ok(Vec::new());
    };
    let fail = |path: &std::path::Path, err| RegistryError::Certificates {
        path: path.to_owned(),
        err,
    };
    let entries = match std::fs::read_dir(&dir) {
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(|err| fail(&dir, err))?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(|err| fail(&dir, err))?.path();
        if path.extension().is_some_and(|e| e == "crt") {
            let data = std::fs::read(&path).map_err(|err| fail(&path, err))?;
            found.push(Certificate {
                encoding: CertificateEncoding::Pem,
                data,
            });
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::is_loopback;

    #[test]
    fn only_this_machine_is_loopback() {
        for host in [
            "localhost",
            "localhost:5000",
            "127.0.0.1:5000",
            "127.9.9.9",
            "[::1]:5000",
        ] {
            assert!(is_loopback(host), "{host}");
        }
        for host in [
            "localhost.evil.com",
            "10.0.0.1:5000",
            "docker.io",
            "[fe80::1]:5",
            "127.0.0.1.nip.io",
        ] {
            assert!(!is_loopback(host), "{host}");
        }
    }
}
