//! The daemon itself: ping, version, information, events.

use crate::error::ApiResult;
use crate::server::{API_VERSION, API_VERSION_MIN, Api};
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use http::header;
use serde_json::json;

pub(super) fn routes() -> Router<Api> {
    Router::new()
        .route("/_ping", get(ping))
        .route("/version", get(version))
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
