//! Volumes of this node.

use crate::convert::local_out;
use crate::error::ApiResult;
use crate::request::{JsonBody, Params};
use crate::server::Api;
use axum::extract::{Path, State};
use axum::response::IntoResponse;
use axum::routing::{get, post};
use axum::{Json, Router};
use http::StatusCode;
use serde_json::{Value, json};
use shoal_engine::VolumeCreate;

pub(super) fn routes() -> Router<Api> {
    Router::new()
        .route("/volumes", get(list))
        .route("/volumes/create", post(create))
        .route("/volumes/prune", post(prune))
        .route("/volumes/{name}", get(inspect).delete(remove))
}

async fn list(State(api): State<Api>, params: Params) -> ApiResult {
    let filters = params.filters(&["name", "label", "dangling", "driver"])?;
    let volumes = api.engine.volume_list(filters).await?;
    let volumes: Vec<Value> = volumes.iter().map(local_out::volume).collect();
    Ok(Json(json!({ "Volumes": volumes, "Warnings": null })).into_response())
}

async fn create(State(api): State<Api>, JsonBody(mut body): JsonBody) -> ApiResult {
    let request = VolumeCreate {
        name: body.string("Name")?,
        driver: body.string("Driver")?,
        options: body.labels("DriverOpts")?,
        labels: body.labels("Labels")?,
    };
    body.refuse(&[(
        "ClusterVolumeSpec",
        "volumes of storage plugins are not supported",
    )])?;
    body.done()?;
    let volume = api.engine.volume_create(request).await?;
    Ok((StatusCode::CREATED, Json(local_out::volume(&volume))).into_response())
}

async fn inspect(State(api): State<Api>, Path(name): Path<String>) -> ApiResult {
    let volume = api.engine.volume_inspect(&name).await?;
    Ok(Json(local_out::volume(&volume)).into_response())
}

async fn remove(State(api): State<Api>, Path(name): Path<String>, params: Params) -> ApiResult {
    api.engine
        .volume_remove(&name, params.flag("force"))
        .await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

async fn prune(State(api): State<Api>, params: Params) -> ApiResult {
    let filters = params.filters(&["label", "all"])?;
    let pruned = api.engine.volume_prune(filters).await?;
    let answer = json!({
        "VolumesDeleted": pruned.removed,
        "SpaceReclaimed": pruned.reclaimed_bytes,
    });
    Ok(Json(answer).into_response())
}
