//! What Docker's API has no words for: `/shoal/v1/…`. Bodies are the model's own types as JSON.

use crate::cluster::{self, ask, tell, unexpected};
use crate::error::{ApiError, ApiResult};
use crate::request::Params;
use crate::server::Api;
use crate::stream::json_lines;
use axum::extract::{Path, State};
use axum::response::IntoResponse;
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use futures_util::{StreamExt, future};
use http::StatusCode;
use serde_json::json;
use shoal_model::NodeRole;
use shoal_model::control::{ControlRequest, ControlResponse, WatchEvent, WatchRequest};
use shoal_model::volume::SlotKey;
use std::time::Duration;

pub(super) fn routes() -> Router<Api> {
    Router::new()
        .route("/shoal/v1/services/{id}/explain", get(explain))
        .route("/shoal/v1/services/{id}/rebind-volume", post(rebind_volume))
        .route("/shoal/v1/volumes", get(volumes))
        .route("/shoal/v1/volumes/{id}", delete(remove_volume))
        .route("/shoal/v1/tokens/rotate", post(rotate_token))
        .route("/shoal/v1/watch", get(watch))
        .route("/shoal/v1/net/check", get(net_check))
        .route("/shoal/v1/net/rotate-keys", post(rotate_keys))
        .route("/shoal/v1/debug/actors", get(debug))
}

async fn explain(State(api): State<Api>, Path(id): Path<String>) -> ApiResult {
    let id = cluster::service(&api, &id).await?.service.id;
    match ask(&api, ControlRequest::ExplainService(id)).await? {
        ControlResponse::Explanation(explanation) => Ok(Json(explanation).into_response()),
        other => Err(unexpected(&other)),
    }
}

async fn rebind_volume(
    State(api): State<Api>,
    Path(id): Path<String>,
    params: Params,
) -> ApiResult {
    let Some(name) = params.get("name") else {
        return Err(ApiError::bad_request(
            "`name` is needed: the name of the volume",
        ));
    };
    let Some(slot) = params.number("slot")? else {
        return Err(ApiError::bad_request(
            "`slot` is needed: the number of the slot",
        ));
    };
    let service_id = cluster::service(&api, &id).await?.service.id;
    let request = ControlRequest::RebindVolume {
        slot: SlotKey { service_id, slot },
        name: name.to_owned(),
    };
    tell(&api, request).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

async fn volumes(State(api): State<Api>) -> ApiResult {
    Ok(Json(cluster::volumes(&api).await?).into_response())
}

async fn remove_volume(State(api): State<Api>, Path(id): Path<String>) -> ApiResult {
    let id = cluster::volume(&api, &id).await?.id;
    tell(&api, ControlRequest::RemoveVolume { id }).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// A new token of one role (`role`), with an expiry (`expires_s`: in so many seconds) or a number of uses (`uses`) if wanted.
async fn rotate_token(State(api): State<Api>, params: Params) -> ApiResult {
    let role = match params.get("role") {
        Some("worker") => NodeRole::Worker,
        Some("manager") => NodeRole::Manager,
        _ => return Err(ApiError::field("role", "expected worker or manager")),
    };
    let expires_at = params
        .number::<u64>("expires_s")?
        .map(|seconds| crate::time::now().plus(Duration::from_secs(seconds)));
    let current = cluster::cluster(&api).await?;
    let request = ControlRequest::UpdateCluster {
        version: current.meta.version,
        spec: Box::new(current.spec),
        rotate_worker_token: role == NodeRole::Worker,
        rotate_manager_token: role == NodeRole::Manager,
        token_expires_at: expires_at,
        token_uses: params.number("uses")?,
    };
    tell(&api, request).await?;
    let changed = cluster::cluster(&api).await?;
    let token = api.cluster.join_token(&changed, role);
    Ok(Json(json!({ "Token": token })).into_response())
}

/// One line `{"Version": N}` per change of the managers' store, the first at once.
async fn watch(State(api): State<Api>, params: Params) -> ApiResult {
    cluster::require_manager(&api)?;
    let service_id = match params.get("service") {
        Some(text) => Some(cluster::service(&api, text).await?.service.id),
        None => None,
    };
    let events = api.cluster.watch(WatchRequest { service_id }).await?;
    let lines = events.map(|event| match event {
        Ok(WatchEvent::Changed { version }) => Ok(json!({ "Version": version })),
        Err(err) => Err(err.into()),
    });
    Ok(json_lines(&api, lines))
}

/// What the leader knows of every node's networks, and what every node says of its ways to its peers.
async fn net_check(State(api): State<Api>) -> ApiResult {
    let known = match ask(&api, ControlRequest::NetworkCheck).await? {
        ControlResponse::NetworkCheck(known) => known,
        other => return Err(unexpected(&other)),
    };
    let nodes = cluster::nodes(&api).await?;
    let asked = nodes.iter().map(async |view| {
        let id = view.node.id;
        let description = view.node.description.as_ref();
        let answer = match description.and_then(|description| description.bulk_addr) {
            Some(addr) => api.cluster.net_check(id, addr).await,
            None => Err(cluster::no_answer("its address is not known")),
        };
        let (peers, error) = match answer {
            Ok(peers) => (peers, None),
            Err(err) => (Vec::new(), Some(err.message)),
        };
        json!({
            "NodeID": id,
            "Name": view.node.display_name(),
            "State": view.node.status.state.as_str(),
            "Peers": peers,
            "Error": error,
        })
    });
    let checks = future::join_all(asked).await;
    Ok(Json(json!({ "Nodes": known, "Checks": checks })).into_response())
}

/// New WireGuard keys on every node, or on the one that `node` names.
async fn rotate_keys(State(api): State<Api>, params: Params) -> ApiResult {
    let node_id = match params.get("node") {
        Some(text) => Some(cluster::node(&api, text).await?.node.id),
        None => None,
    };
    tell(&api, ControlRequest::RotateNetworkKeys { node_id }).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

async fn debug(State(api): State<Api>) -> ApiResult {
    Ok(Json(api.cluster.debug().await).into_response())
}
