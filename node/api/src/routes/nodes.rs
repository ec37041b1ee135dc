//! Machines of the cluster.

use crate::cluster::{self, tell};
use crate::convert::node as convert;
use crate::error::ApiResult;
use crate::request::{Filters, JsonBody, Params, labels_match, passes};
use crate::server::Api;
use axum::extract::{Path, State};
use axum::response::IntoResponse;
use axum::routing::{get, post};
use axum::{Json, Router};
use http::StatusCode;
use serde_json::Value;
use shoal_model::Labels;
use shoal_model::control::{ControlRequest, NodeView};

pub(super) fn routes() -> Router<Api> {
    Router::new()
        .route("/nodes", get(list))
        .route("/nodes/{id}", get(inspect).delete(remove))
        .route("/nodes/{id}/update", post(update))
}

async fn list(State(api): State<Api>, params: Params) -> ApiResult {
    let filters = params.filters(&["id", "label", "membership", "name", "node.label", "role"])?;
    let nodes = cluster::nodes(&api).await?;
    let nodes: Vec<Value> = nodes
        .iter()
        .filter(|view| matches(view, &filters))
        .map(convert::node)
        .collect();
    Ok(Json(nodes).into_response())
}

fn matches(view: &NodeView, filters: &Filters) -> bool {
    let node = &view.node;
    let (id, name) = (node.id.to_string(), node.display_name());
    let none = Labels::new();
    let engine_labels = node
        .description
        .as_ref()
        .map_or(&none, |description| &description.engine_labels);
    passes(filters, "id", |value| id.starts_with(value))
        && passes(filters, "name", |value| name.starts_with(value))
        && passes(filters, "role", |value| node.spec.role.as_str() == value)
        && passes(filters, "membership", |value| value == "accepted")
        && labels_match(engine_labels, filters.get("label"))
        && labels_match(&node.spec.labels, filters.get("node.label"))
}

async fn inspect(State(api): State<Api>, Path(id): Path<String>) -> ApiResult {
    let view = cluster::node(&api, &id).await?;
    Ok(Json(convert::node(&view)).into_response())
}

async fn update(
    State(api): State<Api>,
    Path(id): Path<String>,
    params: Params,
    JsonBody(body): JsonBody,
) -> ApiResult {
    let version = super::swarm::version(&params)?;
    let spec = convert::node_spec(body)?;
    let id = cluster::node(&api, &id).await?.node.id;
    let spec = Box::new(spec);
    tell(&api, ControlRequest::UpdateNode { id, version, spec }).await?;
    Ok(StatusCode::OK.into_response())
}

async fn remove(State(api): State<Api>, Path(id): Path<String>, params: Params) -> ApiResult {
    let id = cluster::node(&api, &id).await?.node.id;
    let force = params.flag("force");
    tell(&api, ControlRequest::RemoveNode { id, force }).await?;
    Ok(StatusCode::OK.into_response())
}
