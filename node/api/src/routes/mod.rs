//! The endpoints, one module per kind of object.

mod archive;
mod container_io;
mod containers;
mod images;
mod networks;
mod nodes;
mod services;
mod shoal;
mod swarm;
mod system;
mod tasks;
mod volumes;

use crate::error::ApiError;
use crate::server::Api;
use axum::Router;
use axum::extract::Request;

/// All endpoints, without the version prefix.
pub(crate) fn router(api: Api) -> Router {
    Router::new()
        .merge(archive::routes())
        .merge(container_io::routes())
        .merge(containers::routes())
        .merge(images::routes())
        .merge(networks::routes())
        .merge(nodes::routes())
        .merge(services::routes())
        .merge(shoal::routes())
        .merge(swarm::routes())
        .merge(system::routes())
        .merge(tasks::routes())
        .merge(volumes::routes())
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
