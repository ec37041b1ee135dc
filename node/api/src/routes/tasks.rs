//! Tasks, and the logs of tasks and services.

use crate::cluster;
use crate::convert::task_out;
use crate::error::{ApiError, ApiResult};
use crate::request::{Filters, Params, passes};
use crate::server::Api;
use crate::stream::{frame, output_type, streaming};
use axum::extract::{Path, State};
use axum::response::IntoResponse;
use axum::routing::get;
use axum::{Json, Router};
use bytes::Bytes;
use futures_util::stream::{self, BoxStream};
use futures_util::{StreamExt, future};
use serde_json::Value;
use shoal_engine::StdStream;
use shoal_model::control::{LogLine, LogsRequest, NodeView};
use shoal_model::network::Network;
use shoal_model::rpc::RpcError;
use shoal_model::{Labels, NetworkId, NodeId, ServiceId, Task, TaskId};
use std::collections::{BTreeMap, BTreeSet};

pub(super) fn routes() -> Router<Api> {
    Router::new()
        .route("/tasks", get(list))
        .route("/tasks/{id}", get(inspect))
        .route("/tasks/{id}/logs", get(task_logs))
        .route("/services/{id}/logs", get(service_logs))
}

async fn list(State(api): State<Api>, params: Params) -> ApiResult {
    let filters = params.filters(&[
        "id",
        "label",
        "name",
        "node",
        "service",
        "desired-state",
        "runtime",
        "_up-to-date",
    ])?;
    let services = named_services(&api, &filters).await?;
    let nodes = named_nodes(&api, &filters).await?;
    let only = |ids: &Option<BTreeSet<ServiceId>>| match ids {
        Some(ids) if ids.len() == 1 => ids.first().copied(),
        _ => None,
    };
    let tasks = cluster::tasks(&api, only(&services), None).await?;
    let networks = networks_of(&api, &tasks).await?;
    let tasks: Vec<Value> = tasks
        .iter()
        .filter(|task| {
            services
                .as_ref()
                .is_none_or(|ids| ids.contains(&task.service_id))
        })
        .filter(|task| {
            nodes
                .as_ref()
                .is_none_or(|ids| task.node_id.is_some_and(|id| ids.contains(&id)))
        })
        .filter(|task| matches(task, &filters))
        .map(|task| task_out::task(task, &networks))
        .collect();
    Ok(Json(tasks).into_response())
}

/// The networks of the cluster, if one of the tasks is in any.
async fn networks_of(api: &Api, tasks: &[Task]) -> ApiResult<BTreeMap<NetworkId, Network>> {
    if tasks.iter().all(|task| task.endpoints.is_empty()) {
        return Ok(BTreeMap::new());
    }
    let networks = cluster::networks(api).await?.into_iter();
    Ok(networks
        .map(|view| (view.network.id, view.network))
        .collect())
}

/// The services that the filter names by id or name; `None` without the filter.
async fn named_services(api: &Api, filters: &Filters) -> ApiResult<Option<BTreeSet<ServiceId>>> {
    let Some(values) = filters.get("service").filter(|values| !values.is_empty()) else {
        return Ok(None);
    };
    let mut ids = BTreeSet::new();
    for value in values {
        ids.insert(cluster::service(api, value).await?.service.id);
    }
    Ok(Some(ids))
}

/// The same for nodes.
async fn named_nodes(api: &Api, filters: &Filters) -> ApiResult<Option<BTreeSet<NodeId>>> {
    let Some(values) = filters.get("node").filter(|values| !values.is_empty()) else {
        return Ok(None);
    };
    let mut ids = BTreeSet::new();
    for value in values {
        ids.insert(cluster::node(api, value).await?.node.id);
    }
    Ok(Some(ids))
}

fn matches(task: &Task, filters: &Filters) -> bool {
    let (id, name) = (task.id.to_string(), task.name());
    // Docker has three words for what is wanted; `accepted` there is our `ready`.
    let desired = |value: &str| match value {
        "running" | "shutdown" | "ready" | "remove" => task.desired.as_str() == value,
        "accepted" => task.desired.as_str() == "ready",
        _ => false,
    };
    passes(filters, "id", |value| id.starts_with(value))
        && passes(filters, "name", |value| name.starts_with(value))
        && passes(filters, "desired-state", desired)
        && passes(filters, "runtime", |value| value == "container")
        && filters.get("label").is_none_or(Vec::is_empty)
}

async fn inspect(State(api): State<Api>, Path(id): Path<String>) -> ApiResult {
    let task = cluster::task(&api, &id).await?;
    let networks = networks_of(&api, std::slice::from_ref(&task)).await?;
    Ok(Json(task_out::task(&task, &networks)).into_response())
}

async fn task_logs(State(api): State<Api>, Path(id): Path<String>, params: Params) -> ApiResult {
    let task = cluster::task(&api, &id).await?;
    if task.node_id.is_none() {
        let name = task.name();
        return Err(ApiError::bad_request(format!(
            "task {name} has no node yet, so it has no log"
        )));
    }
    logs(&api, vec![task], &params).await
}

async fn service_logs(State(api): State<Api>, Path(id): Path<String>, params: Params) -> ApiResult {
    let service = cluster::service(&api, &id).await?.service;
    let tasks = cluster::tasks(&api, Some(service.id), None).await?;
    logs(&api, tasks, &params).await
}

/// How lines are shown.
#[derive(Clone, Copy)]
struct LineFormat {
    tty: bool,
    timestamps: bool,
    details: bool,
}

async fn logs(api: &Api, tasks: Vec<Task>, params: &Params) -> ApiResult {
    let options = super::container_io::log_options(params)?;
    let format = LineFormat {
        tty: tasks.iter().any(|task| task.spec.container.tty),
        timestamps: params.flag("timestamps"),
        details: params.flag("details"),
    };
    let request = LogsRequest {
        task_ids: Vec::new(),
        follow: options.follow,
        stdout: options.stdout,
        stderr: options.stderr,
        since: options.since,
        until: options.until,
        tail: options.tail.map(|lines| lines as u64),
    };
    let nodes = cluster::nodes(api).await?;
    let mut by_node: BTreeMap<NodeId, Vec<Task>> = BTreeMap::new();
    for task in tasks {
        if let Some(node_id) = task.node_id {
            by_node.entry(node_id).or_default().push(task);
        }
    }
    let asked = by_node.into_iter().map(|(node_id, tasks)| {
        let node = nodes.iter().find(|view| view.node.id == node_id);
        node_logs(api, node_id, node, tasks, request.clone(), format)
    });
    let streams = future::join_all(asked).await;
    Ok(streaming(
        api,
        output_type(format.tty),
        stream::select_all(streams),
    ))
}

/// The lines of one node; a node that can't be asked gives one line that says so.
async fn node_logs(
    api: &Api,
    node_id: NodeId,
    node: Option<&NodeView>,
    tasks: Vec<Task>,
    mut request: LogsRequest,
    format: LineFormat,
) -> BoxStream<'static, Bytes> {
    request.task_ids = tasks.iter().map(|task| task.id).collect();
    let services: BTreeMap<TaskId, ServiceId> = tasks
        .iter()
        .map(|task| (task.id, task.service_id))
        .collect();
    let addr = node
        .and_then(|view| view.node.description.as_ref())
        .and_then(|description| description.bulk_addr);
    let lines = match addr {
        Some(addr) => api.cluster.task_logs(node_id, addr, request).await,
        None => Err(cluster::no_answer("its address is not known")),
    };
    let about = move |task_id: TaskId| {
        let service = services
            .get(&task_id)
            .map(ToString::to_string)
            .unwrap_or_default();
        attributes(node_id, &service, task_id)
    };
    let first = tasks.first().map(|task| task.id).unwrap_or_default();
    match lines {
        Ok(lines) => lines
            .map(move |line| match line {
                Ok(line) => line_bytes(format, &about(line.task_id), &line),
                Err(err) => failure_bytes(format, &about(first), node_id, &err),
            })
            .boxed(),
        Err(err) => {
            let bytes = failure_bytes(format, &about(first), node_id, &err);
            stream::once(future::ready(bytes)).boxed()
        }
    }
}

/// What `--details` shows, and what clients name the line's task by.
fn attributes(node_id: NodeId, service_id: &str, task_id: TaskId) -> String {
    format!(
        "com.docker.swarm.node.id={node_id},com.docker.swarm.service.id={service_id},com.docker.swarm.task.id={task_id}"
    )
}

fn line_bytes(format: LineFormat, attributes: &str, line: &LogLine) -> Bytes {
    let mut head = String::new();
    if format.timestamps {
        head.push_str(&crate::time::rfc3339(line.at));
        head.push(' ');
    }
    if format.details {
        head.push_str(attributes);
        push_attributes(&mut head, &line.attributes);
        head.push(' ');
    }
    let stream = if line.stderr {
        StdStream::Stderr
    } else {
        StdStream::Stdout
    };
    frame(format.tty, stream, &[head.as_bytes(), &line.data])
}

fn push_attributes(head: &mut String, attributes: &Labels) {
    for (key, value) in attributes {
        head.push_str(&format!(",{key}={value}"));
    }
}

fn failure_bytes(format: LineFormat, attributes: &str, node_id: NodeId, err: &RpcError) -> Bytes {
    let line = LogLine {
        task_id: TaskId::default(),
        at: crate::time::now(),
        stderr: true,
        data: format!("error from node {node_id}: {}\n", err.message).into_bytes(),
        attributes: Labels::new(),
    };
    line_bytes(format, attributes, &line)
}
