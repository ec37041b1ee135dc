//! Questions to the managers: who may ask, collecting pages, finding an object by what a user calls it.

use crate::error::{ApiError, ApiResult};
use crate::ops::LocalState;
use crate::server::Api;
use futures_util::TryStreamExt;
use shoal_model::control::{ControlRequest, ControlResponse, NetworkView, NodeView, ServiceView};
use shoal_model::rpc::{ErrorCode, RpcError};
use shoal_model::{Cluster, NetworkId, NodeId, ServiceId, Task, TaskId, Volume};
use std::fmt::Display;
use std::str::FromStr;

/// Refuses, in Docker's words, what only a manager can answer.
pub(crate) fn require_manager(api: &Api) -> ApiResult<()> {
    let local = api.cluster.local();
    if local.control_available {
        return Ok(());
    }
    let trouble = match (&local.state, &local.manager_trouble) {
        (LocalState::Error(reason), _) => Some(format!(
            "this node could not return to its cluster: {reason}"
        )),
        (_, Some(trouble)) => Some(format!("the manager of this node does not run: {trouble}")),
        _ => None,
    };
    if let Some(trouble) = trouble {
        return Err(ApiError::unavailable(trouble));
    }
    Err(ApiError::unavailable(match local.state {
        LocalState::Locked => {
            "Swarm is encrypted and needs to be unlocked before it can be used. Please use \"docker swarm unlock\" to \
             unlock it."
        }
        LocalState::Active | LocalState::Error(_) => {
            "This node is not a swarm manager. Worker nodes can't be used to view or modify cluster state. Please run \
             this command on a manager node or promote the current node to a manager."
        }
        LocalState::Inactive | LocalState::Pending => {
            "This node is not a swarm manager. Use \"docker swarm init\" or \"docker swarm join\" to connect this node \
             to swarm and try again."
        }
    }))
}

/// One request, one answer.
pub(crate) async fn ask(api: &Api, request: ControlRequest) -> ApiResult<ControlResponse> {
    require_manager(api)?;
    let mut frames = api.cluster.control(request).await?;
    match frames.try_next().await? {
        Some(response) => Ok(response),
        None => Err(ApiError::unavailable(
            "the managers ended the call without an answer",
        )),
    }
}

/// One request that is answered with "done".
pub(crate) async fn tell(api: &Api, request: ControlRequest) -> ApiResult<()> {
    match ask(api, request).await? {
        ControlResponse::Done => Ok(()),
        other => Err(unexpected(&other)),
    }
}

/// An answer of the wrong kind: the managers are of a version that does not fit.
pub(crate) fn unexpected(response: &ControlResponse) -> ApiError {
    tracing::error!(?response, "the managers gave an answer of the wrong kind");
    ApiError::internal("the managers gave an answer of the wrong kind")
}

async fn collect<T>(
    api: &Api,
    request: ControlRequest,
    page: impl Fn(ControlResponse) -> Result<Vec<T>, ControlResponse>,
) -> ApiResult<Vec<T>> {
    require_manager(api)?;
    let mut frames = api.cluster.control(request).await?;
    let mut out = Vec::new();
    while let Some(response) = frames.try_next().await? {
        match page(response) {
            Ok(items) => out.extend(items),
            Err(ControlResponse::End) => break,
            Err(other) => return Err(unexpected(&other)),
        }
    }
    Ok(out)
}

/// The cluster object.
pub(crate) async fn cluster(api: &Api) -> ApiResult<Cluster> {
    match ask(api, ControlRequest::GetCluster).await? {
        ControlResponse::Cluster(cluster) => Ok(*cluster),
        other => Err(unexpected(&other)),
    }
}

/// All nodes.
pub(crate) async fn nodes(api: &Api) -> ApiResult<Vec<NodeView>> {
    collect(api, ControlRequest::ListNodes, |response| match response {
        ControlResponse::Nodes(page) => Ok(page),
        other => Err(other),
    })
    .await
}

/// All services.
pub(crate) async fn services(api: &Api) -> ApiResult<Vec<ServiceView>> {
    collect(
        api,
        ControlRequest::ListServices,
        |response| match response {
            ControlResponse::Services(page) => Ok(page),
            other => Err(other),
        },
    )
    .await
}

/// Tasks of a service, of a node, or all.
pub(crate) async fn tasks(
    api: &Api,
    service_id: Option<ServiceId>,
    node_id: Option<NodeId>,
) -> ApiResult<Vec<Task>> {
    let request = ControlRequest::ListTasks {
        service_id,
        node_id,
    };
    collect(api, request, |response| match response {
        ControlResponse::Tasks(page) => Ok(page),
        other => Err(other),
    })
    .await
}

/// All volumes of the cluster.
pub(crate) async fn volumes(api: &Api) -> ApiResult<Vec<Volume>> {
    collect(
        api,
        ControlRequest::ListVolumes,
        |response| match response {
            ControlResponse::Volumes(page) => Ok(page),
            other => Err(other),
        },
    )
    .await
}

/// All networks of the cluster, without who is in them.
pub(crate) async fn networks(api: &Api) -> ApiResult<Vec<NetworkView>> {
    collect(
        api,
        ControlRequest::ListNetworks,
        |response| match response {
            ControlResponse::Networks(page) => Ok(page),
            other => Err(other),
        },
    )
    .await
}

/// A network of the cluster by id, name, or unique prefix of an id, with who is in it.
pub(crate) async fn network(api: &Api, text: &str) -> ApiResult<NetworkView> {
    if let Ok(id) = NetworkId::from_str(text) {
        match whole_network(api, id).await {
            Err(err) if err.status() == http::StatusCode::NOT_FOUND => {}
            other => return other,
        }
    }
    let found = find(
        "network",
        text,
        networks(api).await?,
        |view| view.network.id,
        |view| view.network.spec.name.clone(),
    )?;
    whole_network(api, found.network.id).await
}

async fn whole_network(api: &Api, id: NetworkId) -> ApiResult<NetworkView> {
    match ask(api, ControlRequest::GetNetwork(id)).await? {
        ControlResponse::Network(view) => Ok(*view),
        other => Err(unexpected(&other)),
    }
}

/// A service by id, name, or unique prefix of an id.
pub(crate) async fn service(api: &Api, text: &str) -> ApiResult<ServiceView> {
    if let Ok(id) = ServiceId::from_str(text) {
        match ask(api, ControlRequest::GetService(id)).await {
            Ok(ControlResponse::Service(view)) => return Ok(*view),
            Ok(other) => return Err(unexpected(&other)),
            Err(err) if err.status() == http::StatusCode::NOT_FOUND => {}
            Err(err) => return Err(err),
        }
    }
    find(
        "service",
        text,
        services(api).await?,
        |view| view.service.id,
        |view| view.service.spec.name.clone(),
    )
}

/// A node by id, name, unique prefix of an id, or `self`.
pub(crate) async fn node(api: &Api, text: &str) -> ApiResult<NodeView> {
    let id = match text {
        "self" => api.cluster.local().node_id,
        _ => NodeId::from_str(text).ok(),
    };
    if let Some(id) = id {
        match ask(api, ControlRequest::GetNode(id)).await {
            Ok(ControlResponse::Node(view)) => return Ok(*view),
            Ok(other) => return Err(unexpected(&other)),
            Err(err) if err.status() == http::StatusCode::NOT_FOUND => {}
            Err(err) => return Err(err),
        }
    }
    find(
        "node",
        text,
        nodes(api).await?,
        |view| view.node.id,
        |view| view.node.display_name(),
    )
}

/// A task by id or unique prefix of an id.
pub(crate) async fn task(api: &Api, text: &str) -> ApiResult<Task> {
    if let Ok(id) = TaskId::from_str(text) {
        return match ask(api, ControlRequest::GetTask(id)).await? {
            ControlResponse::Task(task) => Ok(*task),
            other => Err(unexpected(&other)),
        };
    }
    let tasks = tasks(api, None, None).await?;
    find("task", text, tasks, |task| task.id, Task::name)
}

/// A volume of the cluster by id, unique prefix of an id, or a name that only one node has.
pub(crate) async fn volume(api: &Api, text: &str) -> ApiResult<Volume> {
    let volumes = volumes(api).await?;
    find(
        "volume",
        text,
        volumes,
        |volume| volume.id,
        |volume| volume.name.clone(),
    )
}

/// Docker's order: the whole id, then the name, then a prefix of the id.
fn find<T, I: Display>(
    kind: &str,
    text: &str,
    objects: Vec<T>,
    id: impl Fn(&T) -> I,
    name: impl Fn(&T) -> String,
) -> ApiResult<T> {
    let is_id = |object: &T| id(object).to_string() == text;
    let is_name = |object: &T| name(object) == text;
    let is_prefix = |object: &T| id(object).to_string().starts_with(text);
    let rules: [&dyn Fn(&T) -> bool; 3] = [&is_id, &is_name, &is_prefix];
    let Some(rule) = rules
        .into_iter()
        .find(|rule| !text.is_empty() && objects.iter().any(rule))
    else {
        return Err(ApiError::not_found(format!("{kind} {text} not found")));
    };
    let mut matches = objects.into_iter().filter(|object| rule(object));
    match (matches.next(), matches.count()) {
        (Some(object), 0) => Ok(object),
        (_, more) => Err(ApiError::bad_request(format!(
            "{kind} {text} is ambiguous ({} matches found)",
            more + 1
        ))),
    }
}

/// Whether the managers can't be asked just now, so that an overview should go on without them.
pub(crate) fn no_answer(message: impl Into<String>) -> RpcError {
    RpcError::new(ErrorCode::Unavailable, message)
}
