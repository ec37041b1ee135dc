//! The cluster itself: its making, joining, leaving, settings, tokens.

use crate::cluster::{self, require_manager, tell};
use crate::convert::cluster as convert;
use crate::convert::node::AVAILABILITIES;
use crate::error::{ApiError, ApiResult};
use crate::fields::Fields;
use crate::ops::{InitOptions, JoinOptions, LocalState};
use crate::request::{JsonBody, Params};
use crate::server::Api;
use axum::extract::State;
use axum::response::IntoResponse;
use axum::routing::{get, post};
use axum::{Json, Router};
use http::StatusCode;
use shoal_model::cluster::Redacted;
use shoal_model::control::ControlRequest;
use shoal_model::{ClusterSpec, NodeRole, Version};

/// The port that Docker keeps for the data path; ours is WireGuard's.
const DATA_PATH_PORT_DOCKER: u32 = 4789;

pub(super) fn routes() -> Router<Api> {
    Router::new()
        .route("/swarm", get(inspect))
        .route("/swarm/init", post(init))
        .route("/swarm/join", post(join))
        .route("/swarm/leave", post(leave))
        .route("/swarm/update", post(update))
        .route("/swarm/unlockkey", get(no_autolock))
        .route("/swarm/unlock", post(no_autolock))
}

async fn no_autolock() -> ApiError {
    ApiError::not_implemented(
        "autolock is not supported yet: the managers' keys are not wrapped by an unlock key",
    )
}

async fn inspect(State(api): State<Api>) -> ApiResult {
    let cluster = cluster::cluster(&api).await?;
    let worker = api.cluster.join_token(&cluster, NodeRole::Worker);
    let manager = api.cluster.join_token(&cluster, NodeRole::Manager);
    Ok(Json(convert::swarm(&cluster, &worker, &manager)).into_response())
}

fn require_no_cluster(api: &Api) -> ApiResult<()> {
    match api.cluster.local().state {
        LocalState::Inactive => Ok(()),
        LocalState::Pending => Err(ApiError::unavailable(
            "This node is joining a swarm already: wait, or leave with \"docker swarm leave --force\".",
        )),
        LocalState::Error(reason) => Err(ApiError::unavailable(format!(
            "This node could not return to its swarm ({reason}). Join that swarm again, or use \"docker swarm leave \
             --force\" to forget it."
        ))),
        LocalState::Active | LocalState::Locked => Err(ApiError::unavailable(
            "This node is already part of a swarm. Use \"docker swarm leave\" to leave this swarm and join another \
                 one.",
        )),
    }
}

/// Refuses a data path of its own: traffic between containers goes through WireGuard on the advertised address.
fn refuse_data_path(body: &mut Fields) -> ApiResult<()> {
    body.refuse(&[(
        "DataPathAddr",
        "traffic of containers uses the advertised address",
    )])?;
    let port: u32 = body.int("DataPathPort")?;
    if !matches!(port, 0 | DATA_PATH_PORT_DOCKER) {
        return Err(body.error(
            "DataPathPort",
            "not supported: set the WireGuard port of the daemon",
        ));
    }
    Ok(())
}

async fn init(State(api): State<Api>, JsonBody(mut body): JsonBody) -> ApiResult {
    refuse_data_path(&mut body)?;
    let mut base = ClusterSpec::default();
    convert::address_pools(&mut body, &mut base)?;
    body.refuse(&[("AutoLockManagers", "autolock is not supported yet")])?;
    let spec = body.object_or_empty("Spec")?;
    let options = InitOptions {
        listen_addr: body.string("ListenAddr")?,
        advertise_addr: body.string("AdvertiseAddr")?,
        force_new_cluster: body.bool("ForceNewCluster")?,
        spec: convert::cluster_spec(spec, &base)?,
        availability: body
            .word("Availability", &AVAILABILITIES)?
            .unwrap_or_default(),
    };
    body.done()?;
    if !options.force_new_cluster {
        require_no_cluster(&api)?;
    }
    let node_id = api.cluster.init(options).await?;
    Ok(Json(node_id.to_string()).into_response())
}

async fn join(State(api): State<Api>, JsonBody(mut body): JsonBody) -> ApiResult {
    refuse_data_path(&mut body)?;
    let options = JoinOptions {
        listen_addr: body.string("ListenAddr")?,
        advertise_addr: body.string("AdvertiseAddr")?,
        remote_addrs: body.strings("RemoteAddrs")?,
        token: Redacted(body.string("JoinToken")?),
        availability: body
            .word("Availability", &AVAILABILITIES)?
            .unwrap_or_default(),
    };
    if options.remote_addrs.is_empty() {
        return Err(body.error("RemoteAddrs", "at least one address of a manager is needed"));
    }
    if options.token.0.is_empty() {
        return Err(body.error("JoinToken", "a join token is needed"));
    }
    body.done()?;
    // A node that could not return joins again: with the same key it is the same node.
    if !matches!(api.cluster.local().state, LocalState::Error(_)) {
        require_no_cluster(&api)?;
    }
    api.cluster.join(options).await?;
    Ok(StatusCode::OK.into_response())
}

async fn leave(State(api): State<Api>, params: Params) -> ApiResult {
    if api.cluster.local().state == LocalState::Inactive {
        return Err(ApiError::unavailable("This node is not part of a swarm"));
    }
    api.cluster.leave(params.flag("force")).await?;
    Ok(StatusCode::OK.into_response())
}

/// The version that a change was made from.
pub(super) fn version(params: &Params) -> ApiResult<Version> {
    match params.number("version")? {
        Some(version) => Ok(Version(version)),
        None => Err(ApiError::bad_request(
            "invalid version: a version number is needed",
        )),
    }
}

async fn update(State(api): State<Api>, params: Params, JsonBody(body): JsonBody) -> ApiResult {
    if params.flag("rotateManagerUnlockKey") {
        return Err(no_autolock().await);
    }
    require_manager(&api)?;
    let current = cluster::cluster(&api).await?;
    let request = ControlRequest::UpdateCluster {
        version: version(&params)?,
        spec: Box::new(convert::cluster_spec(body, &current.spec)?),
        rotate_worker_token: params.flag("rotateWorkerToken"),
        rotate_manager_token: params.flag("rotateManagerToken"),
        token_expires_at: None,
        token_uses: None,
    };
    tell(&api, request).await?;
    Ok(StatusCode::OK.into_response())
}
