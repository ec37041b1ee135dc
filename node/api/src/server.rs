//! The unix socket: binding, who may connect, the version prefix, the headers of every answer.

use crate::error::ApiError;
use crate::ops::ClusterOps;
use crate::peer;
use crate::routes;
use axum::Router;
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use http::{HeaderName, HeaderValue, StatusCode, Uri};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use shoal_engine::EngineHandle;
use std::convert::Infallible;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower_service::Service;

/// Newest version of Docker's API that is spoken.
pub const API_VERSION: &str = "1.51";
/// Oldest version of Docker's API that is spoken.
pub const API_VERSION_MIN: &str = "1.24";
/// Default permission bits of the socket.
pub const SOCKET_MODE_DEFAULT: u32 = 0o660;

const API_MINOR: u32 = 51;
const API_MINOR_MIN: u32 = 24;
/// Most connections at a time; further ones wait to be accepted.
const CONNECTIONS_MAX: usize = 4096;

/// What a server needs.
#[derive(Clone)]
pub struct ApiOptions {
    /// Path of the socket.
    pub socket: PathBuf,
    /// Its permission bits; [`SOCKET_MODE_DEFAULT`].
    pub mode: u32,
    /// Name of the group that may use it; `None`: only root (and the user that runs the daemon).
    pub group: Option<String>,
    /// The engine.
    pub engine: EngineHandle,
    /// The daemon.
    pub cluster: Arc<dyn ClusterOps>,
    /// Version of Shoal.
    pub version: String,
    /// The commit that it was built from.
    pub git_commit: String,
}

impl std::fmt::Debug for ApiOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ApiOptions")
            .field("socket", &self.socket)
            .field("mode", &self.mode)
            .field("group", &self.group)
            .finish_non_exhaustive()
    }
}

/// What every handler sees.
#[derive(Clone)]
pub(crate) struct Api {
    pub(crate) engine: EngineHandle,
    pub(crate) cluster: Arc<dyn ClusterOps>,
    pub(crate) version: Arc<str>,
    pub(crate) git_commit: Arc<str>,
    /// Ends streams that would otherwise outlive the server.
    pub(crate) stopping: CancellationToken,
}

/// Why a socket could not be bound.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Somebody answers there.
    #[error("another daemon serves `{0}`: stop it, or choose another --socket")]
    InUse(PathBuf),
    /// No such group.
    #[error(
        "the group `{0}` for the socket does not exist: create it with groupadd, or choose another --group"
    )]
    NoGroup(String),
    /// The kernel refused.
    #[error("failed to {action} `{path}`")]
    Socket {
        /// What was attempted.
        action: &'static str,
        /// The path.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        err: std::io::Error,
    },
}

/// A bound server.
pub struct ApiServer {
    listener: UnixListener,
    socket: PathBuf,
    inode: u64,
    gid: u32,
    api: Api,
}

impl std::fmt::Debug for ApiServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ApiServer")
            .field("socket", &self.socket)
            .finish_non_exhaustive()
    }
}

impl ApiServer {
    /// Binds the socket. It becomes visible under its name only with its final owner and permissions.
    pub async fn bind(options: ApiOptions) -> Result<Self, BindError> {
        let socket = options.socket;
        let failed = |action: &'static str| {
            let path = socket.clone();
            move |err| BindError::Socket { action, path, err }
        };
        if UnixStream::connect(&socket).await.is_ok() {
            return Err(BindError::InUse(socket));
        }
        if let Some(parent) = socket.parent() {
            std::fs::create_dir_all(parent).map_err(failed("create the directory of"))?;
        }
        let gid = match &options.group {
            None => None,
            Some(name) => {
                Some(peer::group_id(name).ok_or_else(|| BindError::NoGroup(name.clone()))?)
            }
        };
        let mut temporary = socket.clone().into_os_string();
        temporary.push(format!(".{}", std::process::id()));
        let temporary = PathBuf::from(temporary);
        if let Err(err) = std::fs::remove_file(&temporary)
            && err.kind() != std::io::ErrorKind::NotFound
        {
            return Err(failed("remove the old")(err));
        }
        let listener = UnixListener::bind(&temporary).map_err(failed("bind"))?;
        let inode = prepare(&temporary, &socket, options.mode, gid).map_err(failed("prepare"))?;
        Ok(Self {
            listener,
            inode,
            gid: gid.unwrap_or(0),
            socket,
            api: Api {
                engine: options.engine,
                cluster: options.cluster,
                version: options.version.into(),
                git_commit: options.git_commit.into(),
                stopping: CancellationToken::new(),
            },
        })
    }

    /// Serves until `stop` is cancelled; then ends the open streams and removes the socket.
    pub async fn serve(self, stop: CancellationToken) {
        let router = routes::router(self.api.clone());
        let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let tracker = TaskTracker::new();
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => break,
                accepted = accept(&self.listener, &connections) => accepted,
            };
            let Some((stream, permit)) = accepted else {
                break;
            };
            if let Err(reason) = peer::check(&stream, self.gid) {
                tracing::warn!(%reason, "refused a connection to the API socket");
                continue;
            }
            let (router, stopping) = (router.clone(), self.api.stopping.clone());
            tracker.spawn(async move {
                serve_connection(stream, router, stopping).await;
                drop(permit);
            });
        }
        self.api.stopping.cancel();
        tracker.close();
        tracker.wait().await;
        let ours = std::fs::symlink_metadata(&self.socket).is_ok_and(|m| m.ino() == self.inode);
        if ours && let Err(err) = std::fs::remove_file(&self.socket) {
            tracing::warn!(%err, path = %self.socket.display(), "failed to remove the API socket");
        }
    }
}

/// Gives the new socket its owner and permissions, then its name in one rename. Returns its inode.
fn prepare(
    temporary: &Path,
    socket: &Path,
    mode: u32,
    gid: Option<u32>,
) -> Result<u64, std::io::Error> {
    std::fs::set_permissions(temporary, std::fs::Permissions::from_mode(mode))?;
    if gid.is_some() {
        std::os::unix::fs::chown(temporary, None, gid)?;
    }
    let inode = std::fs::symlink_metadata(temporary)?.ino();
    std::fs::rename(temporary, socket)?;
    Ok(inode)
}

async fn accept(
    listener: &UnixListener,
    connections: &Arc<Semaphore>,
) -> Option<(UnixStream, tokio::sync::OwnedSemaphorePermit)> {
    let permit = Arc::clone(connections).acquire_owned().await.ok()?;
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return Some((stream, permit)),
            Err(err) => {
                // Out of descriptors, most likely: those that are open must end first.
                tracing::warn!(%err, "failed to accept a connection to the API socket");
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
        }
    }
}

async fn serve_connection(stream: UnixStream, router: Router, stopping: CancellationToken) {
    let service = service_fn(move |request| {
        let router = router.clone();
        async move { Ok::<_, Infallible>(answer(router, request).await) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .half_close(true)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = stopping.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(err) = result {
        tracing::debug!(%err, "a connection to the API socket ended with an error");
    }
}

async fn answer(mut router: Router, mut request: http::Request<Incoming>) -> Response {
    let mut response = match strip_version(request.uri()) {
        Ok(Some(uri)) => {
            *request.uri_mut() = uri;
            route(&mut router, request).await
        }
        Ok(None) => route(&mut router, request).await,
        Err(err) => err.into_response(),
    };
    let headers = response.headers_mut();
    for (name, value) in [
        ("api-version", API_VERSION),
        ("docker-experimental", "false"),
        ("ostype", "linux"),
        (
            "server",
            concat!("Shoal/", env!("CARGO_PKG_VERSION"), " (linux)"),
        ),
    ] {
        headers.insert(
            HeaderName::from_static(name),
            HeaderValue::from_static(value),
        );
    }
    response
}

async fn route(router: &mut Router, request: http::Request<Incoming>) -> Response {
    let request: Request = request.map(axum::body::Body::new);
    match router.call(request).await {
        Ok(response) => response,
        Err(never) => match never {},
    }
}

/// The URI without `/v1.xx`; `None` when it has no such prefix. Versions that are not spoken are refused.
fn strip_version(uri: &Uri) -> Result<Option<Uri>, ApiError> {
    let Some((version, rest)) = uri
        .path()
        .strip_prefix("/v")
        .and_then(|path| path.find('/').map(|end| path.split_at(end)))
    else {
        return Ok(None);
    };
    let Some((Ok(major), Ok(minor))) = version
        .split_once('.')
        .map(|(major, minor)| (major.parse::<u32>(), minor.parse::<u32>()))
    else {
        return Ok(None);
    };
    if (major, minor) < (1, API_MINOR_MIN) {
        return Err(ApiError::bad_request(format!(
            "client version {version} is too old. Minimum supported API version is {API_VERSION_MIN}, please upgrade \
             your client to a newer version"
        )));
    }
    if (major, minor) > (1, API_MINOR) {
        return Err(ApiError::bad_request(format!(
            "client version {version} is too new. Maximum supported API version is {API_VERSION}"
        )));
    }
    let rest = match uri.query() {
        Some(query) => format!("{rest}?{query}"),
        None => rest.to_owned(),
    };
    rest.parse()
        .map(Some)
        .map_err(|_| ApiError::new(StatusCode::BAD_REQUEST, "malformed path"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_prefix_is_stripped_and_checked() {
        let strip = |text: &'static str| strip_version(&Uri::from_static(text));
        assert_eq!(strip("/version").unwrap(), None);
        assert_eq!(strip("/volumes/x").unwrap(), None);
        assert_eq!(
            strip("/v1.41/containers/json?all=1").unwrap().unwrap(),
            "/containers/json?all=1"
        );
        for (uri, text) in [
            ("/v1.23/info", "too old"),
            ("/v1.52/info", "too new"),
            ("/v2.0/info", "too new"),
        ] {
            assert!(strip(uri).unwrap_err().message().contains(text), "{uri}");
        }
    }
}
