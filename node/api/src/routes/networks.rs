//! Networks: the engine's own, and those of the cluster.

use crate::cluster::{self, ask, tell, unexpected};
use crate::convert::network_out::{self, Around};
use crate::convert::{local_out, network_in};
use crate::error::{ApiError, ApiResult};
use crate::request::{Filters, JsonBody, Params, labels_match, passes};
use crate::server::Api;
use axum::extract::{Path, State};
use axum::response::IntoResponse;
use axum::routing::{get, post};
use axum::{Json, Router};
use http::StatusCode;
use serde_json::{Value, json};
use shoal_model::NetworkId;
use shoal_model::control::{ControlRequest, ControlResponse, NetworkView};
use std::collections::BTreeMap;
use std::time::Duration;

/// Longest time that a list waits for the managers before it shows this node's own networks only.
const MANAGERS_TIMEOUT: Duration = Duration::from_secs(2);

const FILTERS: [&str; 7] = ["name", "id", "driver", "type", "scope", "label", "dangling"];

pub(super) fn routes() -> Router<Api> {
    Router::new()
        .route("/networks", get(list))
        .route("/networks/create", post(create))
        .route("/networks/prune", post(prune))
        .route("/networks/{id}", get(inspect).delete(remove))
        .route("/networks/{id}/connect", post(no_change))
        .route("/networks/{id}/disconnect", post(no_change))
}

async fn list(State(api): State<Api>, params: Params) -> ApiResult {
    let filters = params.filters(&FILTERS)?;
    let dangling = flag(&filters, "dangling")?;
    let local = api.engine.network_list(BTreeMap::new()).await?;
    let mut rows: Vec<Value> = Vec::new();
    // The engine's own are never left over.
    if dangling != Some(true) {
        rows.extend(local.iter().map(local_out::network));
    }
    for view in of_cluster(&api).await {
        if dangling.is_none_or(|wanted| wanted == is_unused(&view)) {
            rows.push(network_out::summary(&view.network));
        }
    }
    rows.retain(|row| matches(row, &filters));
    Ok(Json(rows).into_response())
}

/// The networks of the cluster as far as the managers answer in time.
async fn of_cluster(api: &Api) -> Vec<NetworkView> {
    if !api.cluster.local().control_available {
        return Vec::new();
    }
    match tokio::time::timeout(MANAGERS_TIMEOUT, cluster::networks(api)).await {
        Ok(Ok(views)) => views,
        Ok(Err(err)) => {
            tracing::warn!(err = err.message(), "the cluster's networks are not listed");
            Vec::new()
        }
        Err(_) => {
            tracing::warn!("the cluster's networks are not listed: the managers do not answer");
            Vec::new()
        }
    }
}

fn flag(filters: &Filters, key: &str) -> ApiResult<Option<bool>> {
    let Some(value) = filters.get(key).and_then(|values| values.first()) else {
        return Ok(None);
    };
    match value.as_str() {
        "true" | "1" => Ok(Some(true)),
        "false" | "0" => Ok(Some(false)),
        other => Err(ApiError::bad_request(format!(
            "invalid filter '{key}={other}'"
        ))),
    }
}

fn is_unused(view: &NetworkView) -> bool {
    !view.network.spec.ingress && view.services.is_empty() && view.endpoints.is_empty()
}

fn matches(row: &Value, filters: &Filters) -> bool {
    let text = |field: &str| row[field].as_str().unwrap_or_default();
    let kind = if network_in::BUILTIN.contains(&text("Name")) {
        "builtin"
    } else {
        "custom"
    };
    let labels: BTreeMap<String, String> =
        serde_json::from_value(row["Labels"].clone()).unwrap_or_default();
    passes(filters, "name", |value| text("Name").contains(value))
        && passes(filters, "id", |value| text("Id").starts_with(value))
        && passes(filters, "driver", |value| text("Driver") == value)
        && passes(filters, "scope", |value| text("Scope") == value)
        && passes(filters, "type", |value| kind == value)
        && labels_match(&labels, filters.get("label"))
}

async fn inspect(State(api): State<Api>, Path(id): Path<String>, params: Params) -> ApiResult {
    let wanted = |scope: &str| params.get("scope").is_none_or(|asked| asked == scope);
    if wanted("local")
        && let Ok(network) = api.engine.network_inspect(&id).await
    {
        return Ok(Json(local_out::network(&network)).into_response());
    }
    if !wanted("swarm") || !api.cluster.local().control_available {
        return Err(not_found(&id));
    }
    let view = cluster::network(&api, &id).await?;
    let network_id = view.network.id.to_string();
    let nodes = cluster::nodes(&api).await?;
    let verbose = params.flag("verbose");
    let mut around = Around {
        containers: api.engine.containers_in(&network_id).await?,
        nodes: &nodes,
        ports: BTreeMap::new(),
        verbose,
    };
    if verbose {
        let services = cluster::services(&api).await?.into_iter();
        around.ports = services
            .map(|view| (view.service.id, view.service.ports))
            .collect();
    }
    Ok(Json(network_out::inspect(&view, &around)).into_response())
}

fn not_found(name: &str) -> ApiError {
    ApiError::not_found(format!("network {name} not found"))
}

async fn create(State(api): State<Api>, JsonBody(body): JsonBody) -> ApiResult {
    let spec = Box::new(network_in::network_spec(body)?);
    cluster::require_manager(&api)?;
    let id = NetworkId::from_bits(rand::random());
    match ask(&api, ControlRequest::CreateNetwork { id, spec }).await? {
        ControlResponse::NetworkCreated(id) => {
            let answer = json!({ "Id": id.to_string(), "Warning": "" });
            Ok((StatusCode::CREATED, Json(answer)).into_response())
        }
        other => Err(unexpected(&other)),
    }
}

async fn remove(State(api): State<Api>, Path(id): Path<String>) -> ApiResult {
    if let Ok(network) = api.engine.network_inspect(&id).await {
        return Err(ApiError::new(
            StatusCode::FORBIDDEN,
            format!(
                "{} is a pre-defined network and cannot be removed",
                network.name
            ),
        ));
    }
    if !api.cluster.local().control_available {
        return Err(not_found(&id));
    }
    let id = cluster::network(&api, &id).await?.network.id;
    tell(&api, ControlRequest::RemoveNetwork(id)).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// Removes the networks of the cluster that nothing uses.
async fn prune(State(api): State<Api>, params: Params) -> ApiResult {
    let filters = params.filters(&["label", "label!", "until"])?;
    let until = match filters.get("until").and_then(|values| values.first()) {
        Some(text) => crate::time::parse_time("until", text, crate::time::now())?,
        None => None,
    };
    if !api.cluster.local().control_available {
        return Ok(Json(json!({ "NetworksDeleted": null })).into_response());
    }
    let mut removed = Vec::new();
    for view in cluster::networks(&api).await? {
        let network = &view.network;
        let kept = filters.get("label!").is_some_and(|wanted| {
            !wanted.is_empty() && labels_match(&network.spec.labels, Some(wanted))
        });
        let wanted = is_unused(&view)
            && !kept
            && labels_match(&network.spec.labels, filters.get("label"))
            && until.is_none_or(|until| network.meta.created_at <= until);
        if !wanted {
            continue;
        }
        match tell(&api, ControlRequest::RemoveNetwork(network.id)).await {
            Ok(()) => removed.push(network.spec.name.clone()),
            // Taken into use, or removed, by somebody else meanwhile.
            Err(err) if err.status().is_client_error() => {}
            Err(err) => return Err(err),
        }
    }
    Ok(Json(json!({ "NetworksDeleted": removed })).into_response())
}

async fn no_change() -> ApiError {
    ApiError::not_implemented(
        "a container's networks can't change while it exists: name them when it is created (`run --network`, several \
         times for several)",
    )
}
