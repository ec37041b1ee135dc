//! Containers: their life.

use crate::convert::{container_in, container_out};
use crate::error::{ApiError, ApiResult};
use crate::request::{Filters, JsonBody, Params};
use crate::server::Api;
use crate::stream::json_lines;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use futures_util::{FutureExt, stream};
use http::StatusCode;
use serde_json::{Value, json};
use shoal_engine::{ListFilter, RemoveOptions, TerminalSize, WaitCondition};
use std::path::PathBuf;
use std::time::Duration;

const LIST_FILTERS: &[&str] = &[
    "ancestor", "before", "expose", "exited", "health", "id", "is-task", "label", "name",
    "network", "publish", "since", "status", "volume",
];

pub(super) fn routes() -> Router<Api> {
    Router::new()
        .route("/containers/json", get(list))
        .route("/containers/create", post(create))
        .route("/containers/prune", post(prune))
        .route("/containers/{id}", delete(remove))
        .route("/containers/{id}/json", get(inspect))
        .route("/containers/{id}/start", post(start))
        .route("/containers/{id}/stop", post(stop))
        .route("/containers/{id}/restart", post(restart))
        .route("/containers/{id}/kill", post(kill))
        .route("/containers/{id}/pause", post(pause))
        .route("/containers/{id}/unpause", post(unpause))
        .route("/containers/{id}/rename", post(rename))
        .route("/containers/{id}/wait", post(wait))
        .route("/containers/{id}/resize", post(resize))
        .route("/containers/{id}/update", post(update))
}

async fn list(State(api): State<Api>, params: Params) -> ApiResult {
    let filter = ListFilter {
        all: params.flag("all"),
        limit: params
            .number::<i64>("limit")?
            .map_or(0, |limit| usize::try_from(limit).unwrap_or(0)),
        filters: params.filters(LIST_FILTERS)?,
    };
    let with_size = params.flag("size");
    let now = crate::time::now();
    let mut out = Vec::new();
    for info in api.engine.list(filter).await? {
        let mut row = container_out::summary(&info, now);
        if with_size {
            put_size(&mut row, info.upper_dir.clone()).await?;
        }
        out.push(row);
    }
    Ok(Json(out).into_response())
}

/// Adds what the container has written itself.
async fn put_size(out: &mut Value, upper_dir: PathBuf) -> ApiResult<()> {
    let size = tokio::task::spawn_blocking(move || tree_bytes(upper_dir))
        .await
        .map_err(|err| ApiError::internal(format!("failed to measure a container: {err}")))?;
    out["SizeRw"] = json!(size);
    out["SizeRootFs"] = json!(size);
    Ok(())
}

/// Bytes of all files below a directory. What vanishes meanwhile does not count.
fn tree_bytes(root: PathBuf) -> u64 {
    let mut total = 0;
    let mut directories = vec![root];
    while let Some(directory) = directories.pop() {
        let Ok(entries) = std::fs::read_dir(&directory) else {
            continue;
        };
        for entry in entries.flatten() {
            match entry.metadata() {
                Ok(metadata) if metadata.is_dir() => directories.push(entry.path()),
                Ok(metadata) => total += metadata.len(),
                Err(_) => {}
            }
        }
    }
    total
}

async fn create(State(api): State<Api>, params: Params, JsonBody(body): JsonBody) -> ApiResult {
    let config = container_in::container_config(body)?;
    check_platform(&api, params.get("platform")).await?;
    let name = params
        .get("name")
        .map(|name| name.trim_start_matches('/').to_owned());
    let created = api.engine.create(name, config).await?;
    let answer = json!({ "Id": created.id.to_string(), "Warnings": created.warnings });
    Ok((StatusCode::CREATED, Json(answer)).into_response())
}

/// Images of other platforms can't run here.
async fn check_platform(api: &Api, wanted: Option<&str>) -> ApiResult<()> {
    let Some(wanted) = wanted else {
        return Ok(());
    };
    let info = api.engine.info().await?;
    let native = format!("linux/{}", super::oci_arch(&info.architecture));
    if wanted == native || wanted == "linux" {
        return Ok(());
    }
    Err(ApiError::field(
        "platform",
        format!("`{wanted}`: this node is {native}"),
    ))
}

async fn inspect(State(api): State<Api>, Path(id): Path<String>, params: Params) -> ApiResult {
    let info = api.engine.inspect(&id).await?;
    let mut out = container_out::inspect(&info);
    if params.flag("size") {
        put_size(&mut out, info.upper_dir.clone()).await?;
    }
    Ok(Json(out).into_response())
}

async fn start(State(api): State<Api>, Path(id): Path<String>, params: Params) -> ApiResult {
    for name in ["checkpoint", "checkpoint-dir"] {
        if params.get(name).is_some() {
            return Err(ApiError::not_implemented("checkpoints are not supported"));
        }
    }
    api.engine.start_container(&id).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// The grace in `t`: negative is "for ever".
fn grace(params: &Params) -> ApiResult<Option<Duration>> {
    let seconds = params.number::<i64>("t")?;
    Ok(seconds.map(|seconds| u64::try_from(seconds).map_or(Duration::MAX, Duration::from_secs)))
}

async fn stop(State(api): State<Api>, Path(id): Path<String>, params: Params) -> ApiResult {
    api.engine
        .stop(&id, grace(&params)?, params.get("signal"))
        .await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

async fn restart(State(api): State<Api>, Path(id): Path<String>, params: Params) -> ApiResult {
    api.engine
        .restart(&id, grace(&params)?, params.get("signal"))
        .await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

async fn kill(State(api): State<Api>, Path(id): Path<String>, params: Params) -> ApiResult {
    api.engine
        .kill(&id, params.get("signal").unwrap_or("KILL"))
        .await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

async fn pause(State(api): State<Api>, Path(id): Path<String>) -> ApiResult {
    api.engine.pause(&id).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

async fn unpause(State(api): State<Api>, Path(id): Path<String>) -> ApiResult {
    api.engine.unpause(&id).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

async fn rename(State(api): State<Api>, Path(id): Path<String>, params: Params) -> ApiResult {
    let Some(name) = params.get("name") else {
        return Err(ApiError::bad_request(
            "Neither old nor new names may be empty",
        ));
    };
    api.engine.rename(&id, name.trim_start_matches('/')).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

async fn wait(State(api): State<Api>, Path(id): Path<String>, params: Params) -> ApiResult {
    let condition = match params.get("condition") {
        None | Some("not-running") => WaitCondition::NotRunning,
        Some("next-exit") => WaitCondition::NextExit,
        Some("removed") => WaitCondition::Removed,
        Some(other) => {
            return Err(ApiError::bad_request(format!(
                "invalid condition: \"{other}\""
            )));
        }
    };
    // Registered before the headers go out: a client starts the container once it has seen them.
    let end = api.engine.wait_begin(&id, condition).await?;
    let line = end.map(|result| {
        let mut out = json!({ "StatusCode": result.exit_code });
        if !result.error.is_empty() {
            out["Error"] = json!({ "Message": result.error });
        }
        Ok(out)
    });
    Ok(json_lines(&api, stream::once(line)))
}

async fn remove(State(api): State<Api>, Path(id): Path<String>, params: Params) -> ApiResult {
    if params.flag("link") {
        return Err(ApiError::not_implemented("links are not supported"));
    }
    let options = RemoveOptions {
        force: params.flag("force"),
        volumes: params.flag("v"),
    };
    api.engine.remove(&id, options).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// Reads `h` and `w`.
pub(super) fn terminal_size(params: &Params) -> ApiResult<TerminalSize> {
    match (params.number("w")?, params.number("h")?) {
        (Some(width), Some(height)) => Ok(TerminalSize { width, height }),
        _ => Err(ApiError::bad_request("the size needs both `h` and `w`")),
    }
}

async fn resize(State(api): State<Api>, Path(id): Path<String>, params: Params) -> ApiResult {
    api.engine.resize(&id, terminal_size(&params)?).await?;
    Ok(StatusCode::OK.into_response())
}

async fn update(
    State(api): State<Api>,
    Path(id): Path<String>,
    JsonBody(body): JsonBody,
) -> ApiResult {
    let update = container_in::container_update(body)?;
    let warnings = api.engine.update(&id, update).await?;
    Ok(Json(json!({ "Warnings": warnings })).into_response())
}

async fn prune(State(api): State<Api>, params: Params) -> ApiResult {
    let filters: Filters = params.filters(&["label", "label!", "until"])?;
    if filters.contains_key("label!") {
        return Err(ApiError::not_implemented(
            "filter `label!` is not supported yet",
        ));
    }
    let pruned = api.engine.prune_containers(filters).await?;
    let answer = json!({
        "ContainersDeleted": pruned.removed,
        "SpaceReclaimed": pruned.reclaimed_bytes,
    });
    let response: Response = Json(answer).into_response();
    Ok(response)
}
