//! The connection to the daemon: Docker's API through bollard, and our own prefix over the same socket.

use crate::error::{CliError, Result};
use bollard::{ClientVersion, Docker};
use futures_util::{Stream, StreamExt};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

/// Seconds until an answer must begin; streams may then last.
const ANSWER_SECONDS_MAX: u64 = 600;

/// The version of the Engine API that this client speaks.
const API_VERSION: ClientVersion = ClientVersion {
    major_version: 1,
    minor_version: 51,
};

/// Both doors of one daemon.
#[derive(Clone)]
pub(crate) struct Client {
    pub(crate) docker: Docker,
    socket: String,
}

impl Client {
    /// Prepares the connection to `host`, `unix://PATH`.
    pub(crate) fn new(host: &str) -> Result<Self> {
        let Some(socket) = host.strip_prefix("unix://") else {
            let text = format!("`{host}` is not an address of a daemon: expected unix://PATH");
            return Err(CliError::Usage(text));
        };
        let docker = Docker::connect_with_unix(socket, ANSWER_SECONDS_MAX, &API_VERSION);
        let docker = docker.map_err(|err| CliError::Connect {
            socket: host.to_owned(),
            cause: err.to_string(),
        })?;
        Ok(Self {
            docker,
            socket: socket.to_owned(),
        })
    }

    /// A request to our own prefix; answers the body of a success.
    pub(crate) async fn own<T: DeserializeOwned>(&self, method: Method, path: &str) -> Result<T> {
        let response = self.own_request(method, path).await?;
        let body = response.into_body().collect().await;
        let body = body
            .map_err(|err| CliError::Protocol(err.to_string()))?
            .to_bytes();
        let body: &[u8] = if body.is_empty() { b"null" } else { &body };
        serde_json::from_slice(body).map_err(|err| CliError::Protocol(err.to_string()))
    }

    /// A request to our own prefix, checked for success.
    pub(crate) async fn own_request(
        &self,
        method: Method,
        path: &str,
    ) -> Result<Response<Incoming>> {
        let path = format!("/shoal/v1{path}");
        self.request(method, &path, Bytes::new()).await
    }

    /// The answer to a request to Docker's API, with the fields that only we have.
    pub(crate) async fn docker_get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        let (major, minor) = (API_VERSION.major_version, API_VERSION.minor_version);
        let path = format!("/v{major}.{minor}{path}");
        let response = self.request(Method::GET, &path, Bytes::new()).await?;
        let body = response.into_body().collect().await;
        let body = body.map_err(|err| CliError::Protocol(err.to_string()))?;
        serde_json::from_slice(&body.to_bytes()).map_err(|err| CliError::Protocol(err.to_string()))
    }

    /// A request with a JSON body to Docker's API that bollard does not have.
    pub(crate) async fn docker_json(
        &self,
        method: Method,
        path: &str,
        body: &serde_json::Value,
    ) -> Result<()> {
        let (major, minor) = (API_VERSION.major_version, API_VERSION.minor_version);
        let body = Bytes::from(body.to_string());
        let path = format!("/v{major}.{minor}{path}");
        self.request(method, &path, body).await.map(drop)
    }

    /// The body of a request to Docker's API as it arrives.
    pub(crate) async fn docker_stream(
        &self,
        path: &str,
    ) -> Result<impl Stream<Item = Result<Bytes>> + Unpin + use<>> {
        let (major, minor) = (API_VERSION.major_version, API_VERSION.minor_version);
        let response = self
            .request(
                Method::GET,
                &format!("/v{major}.{minor}{path}"),
                Bytes::new(),
            )
            .await?;
        let body = response.into_body().into_data_stream();
        Ok(body.map(|chunk| chunk.map_err(|err| CliError::Protocol(err.to_string()))))
    }

    async fn request(&self, method: Method, path: &str, body: Bytes) -> Result<Response<Incoming>> {
        let stream = UnixStream::connect(&self.socket)
            .await
            .map_err(|err| CliError::Connect {
                socket: self.socket.clone(),
                cause: err.to_string(),
            })?;
        let protocol = |err: hyper::Error| CliError::Protocol(err.to_string());
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(protocol)?;
        // Ends with the sender or with the peer; its error reaches the request that is under way.
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(hyper::header::HOST, "shoal")
            .header(hyper::header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|err| CliError::Usage(err.to_string()))?;
        let response = sender.send_request(request).await.map_err(protocol)?;
        match response.status() {
            status if status.is_success() => Ok(response),
            status => Err(refused(status, response).await),
        }
    }
}

/// The error that a failed answer carries: `{"message": …}`, as everywhere in Docker's API.
async fn refused(status: StatusCode, response: Response<Incoming>) -> CliError {
    let body = match response.into_body().collect().await {
        Ok(body) => body.to_bytes(),
        Err(err) => return CliError::Protocol(err.to_string()),
    };
    let message = serde_json::from_slice::<serde_json::Value>(&body)
        .ok()
        .and_then(|value| value.get("message")?.as_str().map(str::to_owned))
        .unwrap_or_else(|| String::from_utf8_lossy(&body).into_owned());
    CliError::Daemon {
        status: status.as_u16(),
        message,
    }
}

/// Escapes a part of a path or of a query.
pub(crate) fn escaped(text: &str) -> String {
    text.bytes().fold(String::new(), |mut out, byte| {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
        out
    })
}
