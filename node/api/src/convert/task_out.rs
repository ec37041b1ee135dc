//! Writes tasks.

use super::common;
use super::network_out;
use super::service_out;
use crate::time::{rfc3339, rfc3339_or_never};
use serde_json::{Value, json};
use shoal_model::network::Network;
use shoal_model::{NetworkId, Task, TaskState, TaskStatus};
use std::collections::BTreeMap;

/// Writes a task, with the networks that it is in. What Docker has no field for stands under `Shoal`.
pub(crate) fn task(task: &Task, networks: &BTreeMap<NetworkId, Network>) -> Value {
    let mut out = json!({
        "ID": task.id.to_string(),
        "Name": task.name(),
        "Labels": {},
        "Spec": service_out::task_spec(&task.spec),
        "ServiceID": task.service_id.to_string(),
        "Status": status(&task.status),
        "DesiredState": task.desired.as_str(),
        "Shoal": {
            "Ready": task.status.ready,
            "Restarts": task.status.restarts,
            "Exits": exits(&task.status),
        },
    });
    common::put_meta(&mut out, &task.meta);
    if task.slot != 0 {
        out["Slot"] = json!(task.slot);
    }
    if let Some(node_id) = task.node_id {
        out["NodeID"] = json!(node_id.to_string());
    }
    if !task.endpoints.is_empty() {
        out["NetworksAttachments"] = network_out::attachments(&task.endpoints, networks);
    }
    out
}

fn status(status: &TaskStatus) -> Value {
    let mut out = json!({
        "Timestamp": rfc3339(status.at),
        "State": shown_state(status).as_str(),
        "Message": status.message,
        "PortStatus": {},
    });
    let err = error_text(status);
    if !err.is_empty() {
        out["Err"] = json!(err);
    }
    if let Some(container) = &status.container {
        out["ContainerStatus"] = json!({
            "ContainerID": container.container_id.to_string(),
            "PID": container.pid,
            "ExitCode": container.exit_code,
        });
    }
    if !status.ports.is_empty() {
        out["PortStatus"] = json!({ "Ports": service_out::ports(&status.ports) });
    }
    out
}

/// Docker shows a task with a health check as starting until it is healthy, and so do we whenever it is not ready.
fn shown_state(status: &TaskStatus) -> TaskState {
    match (status.state, status.ready) {
        (TaskState::Running, false) => TaskState::Starting,
        (state, _) => state,
    }
}

/// What went wrong; for a task without a node, what every node said.
fn error_text(status: &TaskStatus) -> String {
    if !status.err.is_empty() || status.refusals.is_empty() {
        return status.err.clone();
    }
    let reasons: Vec<&str> = status.refusals.iter().map(|r| r.reason.as_str()).collect();
    format!("no suitable node ({})", reasons.join("; "))
}

fn exits(status: &TaskStatus) -> Value {
    status
        .exits
        .iter()
        .map(|exit| {
            json!({
                "ContainerID": exit.container_id.map(|id| id.to_string()).unwrap_or_default(),
                "At": rfc3339_or_never(Some(exit.at)),
                "ExitCode": exit.exit_code,
                "Reason": exit.reason,
            })
        })
        .collect()
}
