//! Numbers for monitoring: `GET /metrics`, on the API's socket and, where the operator wants it, at a TCP address.
//!
//! At the TCP address nothing else is served, and nobody is asked who they are.

use crate::ops::ClusterOps;
use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::{StatusCode, header};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use shoal_overlay_net::metrics::CONTENT_TYPE;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower_service::Service;

/// Most connections at a time; further ones wait to be accepted.
const CONNECTIONS_MAX: usize = 32;
/// How long a client may take to ask, and to ask again on the same connection.
const REQUEST_MAX: Duration = Duration::from_secs(90);
/// Pause after a failed accept: out of descriptors, most likely.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// The answer to `GET /metrics`.
pub(crate) async fn answer(cluster: &dyn ClusterOps) -> Response {
    let text = cluster.metrics().await;
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response()
}

/// Why the metrics are not served.
#[derive(Debug, thiserror::Error)]
#[error("failed to serve metrics at `{addr}`")]
pub struct MetricsBindError {
    addr: SocketAddr,
    #[source]
    err: io::Error,
}

/// A bound server of metrics.
pub struct MetricsServer {
    listener: TcpListener,
    addr: SocketAddr,
    cluster: Arc<dyn ClusterOps>,
}

impl std::fmt::Debug for MetricsServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MetricsServer")
            .field("addr", &self.addr)
            .finish_non_exhaustive()
    }
}

impl MetricsServer {
    /// Binds the address.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub async fn bind(
        addr: SocketAddr,
        cluster: Arc<dyn ClusterOps>,
    ) -> Result<Self, MetricsBindError> {
        let failed = |err| MetricsBindError { addr, err };
        let listener = TcpListener::bind(addr).await.map_err(failed)?;
        let addr = listener.local_addr().map_err(failed)?;
        Ok(Self {
            listener,
            addr,
            cluster,
        })
    }

    /// Where it answers.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Serves until `stop` is cancelled.
    pub async fn serve(self, stop: CancellationToken) {
        let router = Router::new()
            .route("/metrics", get(metrics))
            .fallback(nothing_else)
            .with_state(self.cluster);
        let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let tracker = TaskTracker::new();
        loop {
            let accepted = async {
                let permit = Arc::clone(&connections).acquire_owned().await;
                (self.listener.accept().await, permit)
            };
            let (accepted, permit) = tokio::select! {
                () = stop.cancelled() => break,
                accepted = accepted => accepted,
            };
            match accepted {
                Ok((stream, _)) => {
                    let (router, stop) = (router.clone(), stop.clone());
                    tracker.spawn(async move {
                        stop.run_until_cancelled(converse(stream, router)).await;
                        drop(permit);
                    });
                }
                Err(err) => {
                    tracing::warn!(%err, "failed to accept a connection to the metrics address");
                    tokio::time::sleep(ACCEPT_RETRY).await;
                }
            }
        }
        tracker.close();
        tracker.wait().await;
    }
}

async fn converse(stream: TcpStream, router: Router) {
    let service = service_fn(move |request: http::Request<hyper::body::Incoming>| {
        let mut router = router.clone();
        async move {
            let answered: Result<Response, Infallible> =
                router.call(request.map(axum::body::Body::new)).await;
            answered
        }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(REQUEST_MAX)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(err) = connection.await {
        tracing::debug!(%err, "a connection to the metrics address ended with an error");
    }
}

async fn metrics(State(cluster): State<Arc<dyn ClusterOps>>) -> Response {
    answer(cluster.as_ref()).await
}

async fn nothing_else() -> (StatusCode, &'static str) {
    (StatusCode::NOT_FOUND, "only /metrics is served here\n")
}
