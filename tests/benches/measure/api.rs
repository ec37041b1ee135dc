//! Just enough of Docker's API to drive Shoal and its rival alike.

use anyhow::{Context as _, Result, bail};
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::net::UnixStream;

const VERSION: &str = "/v1.41";
/// How often a condition is looked at again, for Shoal and rival.
const POLL_PERIOD: Duration = Duration::from_millis(20);
/// Longest wait for a condition.
const WAIT_MAX: Duration = Duration::from_secs(180);

/// The API at one socket.
#[derive(Debug, Clone)]
pub(crate) struct Api {
    socket: PathBuf,
}

impl Api {
    pub(crate) fn new(socket: impl AsRef<Path>) -> Self {
        Self {
            socket: socket.as_ref().to_owned(),
        }
    }

    pub(crate) async fn get(&self, path: &str, filters: &Value) -> Result<Value> {
        let filters: String = filters
            .to_string()
            .bytes()
            .map(|byte| format!("%{byte:02X}"))
            .collect();
        self.call(
            Method::GET,
            &format!("{path}?all=1&filters={filters}"),
            &Value::Null,
        )
        .await
    }

    /// One request on a connection of its own.
    pub(crate) async fn call(&self, method: Method, path: &str, body: &Value) -> Result<Value> {
        let stream = UnixStream::connect(&self.socket).await;
        let stream =
            stream.with_context(|| format!("failed to connect to `{}`", self.socket.display()))?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let connection = tokio::spawn(connection);
        let body = match body {
            Value::Null => Bytes::new(),
            body => Bytes::from(body.to_string()),
        };
        let request = Request::builder()
            .method(method)
            .uri(format!("{VERSION}{path}"))
            .header(hyper::header::HOST, "bench")
            .header(hyper::header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))?;
        let response = sender.send_request(request).await?;
        let status = response.status();
        let bytes = response.into_body().collect().await?.to_bytes();
        connection.abort();
        if !status.is_success() {
            bail!("{path}: {status}: {}", String::from_utf8_lossy(&bytes));
        }
        Ok(serde_json::from_slice(&bytes).unwrap_or(Value::Null))
    }

    /// Declares a service of sleepers that stop at once.
    pub(crate) async fn create_service(&self, service: &Sleepers<'_>) -> Result<()> {
        let body = json!({
            "Name": service.name,
            "TaskTemplate": {
                "ContainerSpec": {
                    "Image": service.image,
                    "Args": ["sleep", "100000"],
                    "StopSignal": "SIGKILL",
                },
                "Placement": { "Constraints": service.constraints },
                "RestartPolicy": { "Condition": "any" },
            },
            "Mode": { "Replicated": { "Replicas": service.replicas } },
        });
        self.call(Method::POST, "/services/create", &body)
            .await
            .map(drop)
    }

    pub(crate) async fn remove_service(&self, name: &str) -> Result<()> {
        self.call(Method::DELETE, &format!("/services/{name}"), &Value::Null)
            .await
            .map(drop)
    }

    /// The tasks of a service that run and shall: the ids of their nodes.
    pub(crate) async fn running(&self, service: &str) -> Result<Vec<String>> {
        let filters = json!({ "service": [service], "desired-state": ["running"] });
        let tasks = self.get("/tasks", &filters).await?;
        let nodes = list(&tasks)
            .iter()
            .filter(|task| task["Status"]["State"] == "running")
            .filter_map(|task| task["NodeID"].as_str().map(str::to_owned));
        Ok(nodes.collect())
    }

    /// All nodes.
    pub(crate) async fn nodes(&self) -> Result<Vec<NodeRow>> {
        let nodes = self.get("/nodes", &json!({})).await?;
        let rows = list(&nodes).iter().map(|node| NodeRow {
            id: text(&node["ID"]),
            hostname: text(&node["Description"]["Hostname"]),
            ready: node["Status"]["State"] == "ready",
            leader: node["ManagerStatus"]["Leader"] == true,
            reachable: node["ManagerStatus"]["Reachability"]
                .as_str()
                .is_none_or(|word| word == "reachable"),
        });
        Ok(rows.collect())
    }

    /// How many containers there are, in whatever state.
    pub(crate) async fn containers(&self) -> Result<usize> {
        let containers = self.get("/containers/json", &json!({})).await?;
        Ok(list(&containers).len())
    }
}

/// What [`Api::create_service`] makes.
#[derive(Debug)]
pub(crate) struct Sleepers<'a> {
    pub(crate) name: &'a str,
    pub(crate) image: &'a str,
    pub(crate) replicas: usize,
    pub(crate) constraints: &'a [&'a str],
}

/// A node, as its cluster shows it.
#[derive(Debug)]
pub(crate) struct NodeRow {
    pub(crate) id: String,
    pub(crate) hostname: String,
    pub(crate) ready: bool,
    pub(crate) leader: bool,
    pub(crate) reachable: bool,
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// Looks at `condition` until it holds. What it says instead goes into the error.
pub(crate) async fn until<T>(
    what: &str,
    mut condition: impl AsyncFnMut() -> Result<Option<T>>,
) -> Result<T> {
    let start = Instant::now();
    loop {
        let last = match condition().await {
            Ok(Some(value)) => return Ok(value),
            Ok(None) => None,
            Err(error) => Some(error),
        };
        if start.elapsed() > WAIT_MAX {
            let cause = last.map_or(String::new(), |error| format!("{error:#}"));
            bail!("not within {WAIT_MAX:?}: {what} {cause}");
        }
        tokio::time::sleep(POLL_PERIOD).await;
    }
}
