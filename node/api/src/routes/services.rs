//! Services.

use crate::cluster::{self, ask, tell, unexpected};
use crate::convert::service_in;
use crate::convert::service_out::{self, ServiceDetail};
use crate::error::{ApiError, ApiResult};
use crate::fields::Fields;
use crate::request::{Filters, JsonBody, Params, labels_match, passes};
use crate::server::Api;
use axum::extract::{Path, State};
use axum::response::IntoResponse;
use axum::routing::{get, post};
use axum::{Json, Router};
use http::{HeaderMap, StatusCode};
use serde_json::{Value, json};
use shoal_engine::image::RegistryAuth;
use shoal_model::cluster::Redacted;
use shoal_model::control::{ControlRequest, ControlResponse, ServiceView};
use shoal_model::{ServiceId, ServiceMode, ServiceSpec};

/// Most bytes of the credentials of a service.
const REGISTRY_AUTH_BYTES_MAX: usize = 16 << 10;
/// Digits of the id in the name of a service that the user has not named.
const GENERATED_NAME_DIGITS: usize = 12;

pub(super) fn routes() -> Router<Api> {
    Router::new()
        .route("/services", get(list))
        .route("/services/create", post(create))
        .route("/services/{id}", get(inspect).delete(remove))
        .route("/services/{id}/update", post(update))
}

async fn list(State(api): State<Api>, params: Params) -> ApiResult {
    let filters = params.filters(&["id", "label", "mode", "name", "runtime"])?;
    let detail = ServiceDetail {
        status: params.flag("status"),
        defaults: false,
    };
    let services = cluster::services(&api).await?;
    let services: Vec<Value> = services
        .iter()
        .filter(|view| matches(view, &filters))
        .map(|view| service_out::service(view, detail))
        .collect();
    Ok(Json(services).into_response())
}

fn matches(view: &ServiceView, filters: &Filters) -> bool {
    let service = &view.service;
    let id = service.id.to_string();
    let mode = match service.spec.mode {
        ServiceMode::Replicated { .. } => "replicated",
        ServiceMode::Global => "global",
    };
    passes(filters, "id", |value| id.starts_with(value))
        && passes(filters, "name", |value| {
            service.spec.name.starts_with(value)
        })
        && passes(filters, "mode", |value| mode == value)
        && passes(filters, "runtime", |value| value == "container")
        && labels_match(&service.spec.labels, filters.get("label"))
}

async fn create(State(api): State<Api>, headers: HeaderMap, JsonBody(body): JsonBody) -> ApiResult {
    let registry_auth = registry_auth(&headers)?;
    cluster::require_manager(&api)?;
    let mut spec = Box::new(read_spec(&api, body).await?);
    spec.registry_auth = registry_auth;
    let id = ServiceId::from_bits(rand::random());
    if spec.name.is_empty() {
        spec.name = format!("service-{}", &id.to_string()[..GENERATED_NAME_DIGITS]);
    }
    match ask(&api, ControlRequest::CreateService { id, spec }).await? {
        ControlResponse::ServiceCreated(id) => {
            let answer = json!({ "ID": id.to_string(), "Warnings": null });
            Ok((StatusCode::CREATED, Json(answer)).into_response())
        }
        other => Err(unexpected(&other)),
    }
}

/// Reads a spec and finds the networks that it names.
async fn read_spec(api: &Api, body: Fields) -> ApiResult<ServiceSpec> {
    let read = service_in::service_spec(body)?;
    let known = if read.names_networks() {
        let views = cluster::networks(api).await?.into_iter();
        views
            .map(|view| (view.network.id, view.network.spec.name))
            .collect()
    } else {
        Vec::new()
    };
    read.resolve(&known)
}

/// The credentials that a client sends with a spec; none if they say nothing.
fn registry_auth(headers: &HeaderMap) -> ApiResult<Option<Redacted<String>>> {
    let Some(header) = headers.get("x-registry-auth") else {
        return Ok(None);
    };
    if header.len() > REGISTRY_AUTH_BYTES_MAX {
        let text = format!("X-Registry-Auth has more than {REGISTRY_AUTH_BYTES_MAX} bytes");
        return Err(ApiError::bad_request(text));
    }
    // What is no text is no base64 either.
    let header = header.to_str().unwrap_or("?");
    let read = RegistryAuth::from_header(header);
    let read = read.map_err(|err| ApiError::bad_request(err.to_string()))?;
    Ok(read.map(|_| Redacted(header.to_owned())))
}

async fn inspect(State(api): State<Api>, Path(id): Path<String>, params: Params) -> ApiResult {
    let detail = ServiceDetail {
        status: params.flag("status"),
        defaults: params.flag("insertDefaults"),
    };
    let view = cluster::service(&api, &id).await?;
    Ok(Json(service_out::service(&view, detail)).into_response())
}

async fn update(
    State(api): State<Api>,
    Path(id): Path<String>,
    params: Params,
    headers: HeaderMap,
    JsonBody(body): JsonBody,
) -> ApiResult {
    let registry_auth = registry_auth(&headers)?;
    let version = super::swarm::version(&params)?;
    let rollback = match params.get("rollback") {
        None => false,
        Some("previous") => true,
        Some(other) => {
            return Err(ApiError::field(
                "rollback",
                format!("`{other}`: expected previous"),
            ));
        }
    };
    let auth_from_previous = match params.get("registryAuthFrom") {
        None | Some("" | "spec") => false,
        Some("previous-spec") => true,
        Some(from) => {
            let reason = format!("`{from}`: expected spec or previous-spec");
            return Err(ApiError::field("registryAuthFrom", reason));
        }
    };
    cluster::require_manager(&api)?;
    let mut spec = Box::new(read_spec(&api, body).await?);
    let stored = cluster::service(&api, &id).await?.service;
    let id = stored.id;
    // A spec that was read and written back has none: they are never shown.
    let kept = match auth_from_previous {
        true => stored.previous_spec.as_deref(),
        false => Some(&stored.spec),
    };
    spec.registry_auth = registry_auth.or_else(|| kept.and_then(|kept| kept.registry_auth.clone()));
    let request = ControlRequest::UpdateService {
        id,
        version,
        spec,
        rollback,
    };
    tell(&api, request).await?;
    Ok(Json(json!({ "Warnings": null })).into_response())
}

async fn remove(State(api): State<Api>, Path(id): Path<String>) -> ApiResult {
    let id = cluster::service(&api, &id).await?.service.id;
    tell(&api, ControlRequest::RemoveService(id)).await?;
    Ok(StatusCode::OK.into_response())
}
