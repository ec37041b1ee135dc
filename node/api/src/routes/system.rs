//! The daemon itself: ping, version, information, events.

use crate::cluster;
use crate::convert::{self, local_out};
use crate::error::{ApiError, ApiResult};
use crate::request::{JsonBody, Params};
use crate::server::{API_VERSION, API_VERSION_MIN, Api};
use crate::stream::json_lines;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use futures_util::StreamExt;
use http::{StatusCode, header};
use serde_json::json;
use shoal_engine::EventFilter;
use shoal_engine::event::EVENT_FILTER_KEYS;
use shoal_engine::image::RegistryAuth;
use std::time::Duration;

pub(super) fn routes() -> Router<Api> {
    Router::new()
        .route("/_ping", get(ping))
        .route("/version", get(version))
        .route("/info", get(info))
        .route("/events", get(events))
        .route("/metrics", get(metrics))
        .route("/auth", post(login))
}

async fn metrics(State(api): State<Api>) -> Response {
    crate::metrics::answer(api.cluster.as_ref()).await
}

async fn ping(State(api): State<Api>) -> Response {
    let local = api.cluster.local();
    let swarm = if local.control_available {
        "active/manager".to_owned()
    } else if local.state == crate::LocalState::Active {
        "active/worker".to_owned()
    } else {
        local.state.as_str().to_owned()
    };
    (
        [
            (
                header::CACHE_CONTROL,
                "no-cache, no-store, must-revalidate".to_owned(),
            ),
            (header::PRAGMA, "no-cache".to_owned()),
            (header::CONTENT_TYPE, "text/plain; charset=utf-8".to_owned()),
            (
                header::HeaderName::from_static("builder-version"),
                "1".to_owned(),
            ),
            (header::HeaderName::from_static("swarm"), swarm),
        ],
        "OK",
    )
        .into_response()
}

async fn version(State(api): State<Api>) -> ApiResult {
    let info = api.engine.info().await?;
    let arch = crate::routes::oci_arch(&info.architecture);
    Ok(Json(json!({
        "Platform": { "Name": "Shoal" },
        "Components": [{
            "Name": "Engine",
            "Version": &*api.version,
            "Details": {
                "ApiVersion": API_VERSION,
                "MinAPIVersion": API_VERSION_MIN,
                "Arch": arch,
                "GitCommit": &*api.git_commit,
                "KernelVersion": info.kernel_version,
                "Os": "linux",
                "Experimental": "false",
            },
        }],
        "Version": &*api.version,
        "ApiVersion": API_VERSION,
        "MinAPIVersion": API_VERSION_MIN,
        "GitCommit": &*api.git_commit,
        "GoVersion": "",
        "Os": "linux",
        "Arch": arch,
        "KernelVersion": info.kernel_version,
        "BuildTime": "",
    }))
    .into_response())
}

/// Longest time that an overview waits for the managers.
const OVERVIEW_TIMEOUT: Duration = Duration::from_secs(2);

async fn info(State(api): State<Api>) -> ApiResult {
    let engine = api.engine.info().await?;
    let local = api.cluster.local();
    let now = crate::time::now();
    let mut out = local_out::info(&engine, &local, &api.version, now);
    if local.control_available {
        let swarm = &mut out["Swarm"];
        match tokio::time::timeout(OVERVIEW_TIMEOUT, overview(&api)).await {
            Ok(Ok((nodes, managers, cluster))) => {
                swarm["Nodes"] = json!(nodes);
                swarm["Managers"] = json!(managers);
                swarm["Cluster"] = cluster;
            }
            Ok(Err(err)) => swarm["Error"] = json!(err.message()),
            Err(_) => swarm["Error"] = json!("the managers do not answer: is there a quorum?"),
        }
    }
    Ok(Json(out).into_response())
}

/// Number of nodes, number of managers, the cluster without its secrets.
async fn overview(api: &Api) -> ApiResult<(usize, usize, serde_json::Value)> {
    let nodes = cluster::nodes(api).await?;
    let managers = nodes
        .iter()
        .filter(|view| view.node.manager.is_some())
        .count();
    let cluster = cluster::cluster(api).await?;
    Ok((nodes.len(), managers, convert::cluster::info(&cluster)))
}

async fn events(State(api): State<Api>, params: Params) -> ApiResult {
    let filter = EventFilter {
        since: params.time("since")?,
        until: params.time("until")?,
        filters: params.filters(&EVENT_FILTER_KEYS)?,
    };
    let events = api.engine.events(filter).await?;
    let lines = events.map(|event| match event {
        Ok(event) => Ok(local_out::event(&event)),
        Err(err) => Err(err.into()),
    });
    Ok(json_lines(&api, lines))
}

/// Asks the registry that the body names whether it takes the body's credentials.
async fn login(State(api): State<Api>, JsonBody(mut body): JsonBody) -> ApiResult {
    let (username, password) = (body.string("username")?, body.string("password")?);
    let server = body.string("serveraddress")?;
    body.refuse(&[
        ("identitytoken", "log in with a password"),
        ("registrytoken", "log in with a password"),
    ])?;
    // Older clients say the same once more, and an address of mail.
    for ignored in ["auth", "email"] {
        drop(body.string(ignored)?);
    }
    body.done()?;
    let auth = RegistryAuth::Basic { username, password };
    let registry = registry_host(&server);
    match api.engine.registry_login(registry, auth).await? {
        None => {
            Ok(Json(json!({ "Status": "Login Succeeded", "IdentityToken": "" })).into_response())
        }
        Some(reason) => Err(ApiError::new(
            StatusCode::UNAUTHORIZED,
            format!("login to `{registry}`: unauthorized: {reason}"),
        )),
    }
}

/// `host[:port]` of what a client calls the server: Docker's own one has many names.
fn registry_host(server: &str) -> &str {
    let bare = server.split_once("://").map_or(server, |(_, rest)| rest);
    match bare.split('/').next().unwrap_or_default() {
        "" | "index.docker.io" | "registry-1.docker.io" => "docker.io",
        host => host,
    }
}
