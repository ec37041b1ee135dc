//! The endpoints, one module per kind of object.

mod system;

use crate::error::ApiError;
use crate::server::Api;
use axum::Router;
use axum::extract::Request;

/// All endpoints, without the version prefix.
pub(crate) fn router(api: Api) -> Router {
    Router::new()
        .merge(system::routes())
        .fallback(unknown)
        .with_state(api)
}

async fn unknown(request: Request) -> ApiError {
    ApiError::not_found(format!(
        "page not found: {} {}",
        request.method(),
        request.uri().path()
    ))
}

/// The OCI's word for a machine as uname(2) names it.
pub(crate) fn oci_arch(machine: &str) -> &str {
    match machine {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "armv7l" => "arm",
        "i686" => "386",
        other => other,
    }
}
