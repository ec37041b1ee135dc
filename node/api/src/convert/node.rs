//! Reads and writes machines of the cluster.

use super::common;
use crate::error::ApiResult;
use crate::fields::Fields;
use serde_json::{Value, json};
use shoal_model::control::NodeView;
use shoal_model::node::NodeDescription;
use shoal_model::{Availability, NodeRole, NodeSpec};

/// Words of `Availability`.
pub(crate) const AVAILABILITIES: [(&str, Availability); 3] = [
    ("active", Availability::Active),
    ("pause", Availability::Pause),
    ("drain", Availability::Drain),
];

/// Reads the body of a change of a node.
pub(crate) fn node_spec(mut body: Fields) -> ApiResult<NodeSpec> {
    let roles = [("worker", NodeRole::Worker), ("manager", NodeRole::Manager)];
    let Some(role) = body.word("Role", &roles)? else {
        return Err(body.error("Role", "expected worker or manager"));
    };
    let Some(availability) = body.word("Availability", &AVAILABILITIES)? else {
        return Err(body.error("Availability", "expected active, pause or drain"));
    };
    let spec = NodeSpec {
        name: body.string("Name")?,
        labels: body.labels("Labels")?,
        role,
        availability,
    };
    body.done()?;
    Ok(spec)
}

/// Writes a node.
pub(crate) fn node(view: &NodeView) -> Value {
    let node = &view.node;
    let mut out = json!({
        "ID": node.id.to_string(),
        "Spec": {
            "Labels": node.spec.labels,
            "Role": node.spec.role.as_str(),
            "Availability": node.spec.availability.as_str(),
        },
        "Description": node.description.as_ref().map(description).unwrap_or_else(|| json!({})),
        "Status": { "State": node.status.state.as_str(), "Addr": node.status.addr },
    });
    common::put_meta(&mut out, &node.meta);
    if !node.spec.name.is_empty() {
        out["Spec"]["Name"] = json!(node.spec.name);
    }
    if !node.status.message.is_empty() {
        out["Status"]["Message"] = json!(node.status.message);
    }
    if let Some(manager) = &node.manager {
        let reachability = if view.reachable {
            "reachable"
        } else {
            "unreachable"
        };
        out["ManagerStatus"] =
            json!({ "Reachability": reachability, "Addr": manager.addr.to_string() });
        if view.leader {
            out["ManagerStatus"]["Leader"] = json!(true);
        }
    }
    out
}

fn description(description: &NodeDescription) -> Value {
    // Swarm shows the kernel's name of the machine here, not the OCI's.
    let architecture = match description.architecture.as_str() {
        "amd64" => "x86_64",
        "arm64" => "aarch64",
        other => other,
    };
    let mut engine = json!({
        "EngineVersion": description.engine_version,
        "Plugins": [
            { "Type": "Log", "Name": "json-file" },
            { "Type": "Network", "Name": "bridge" },
            { "Type": "Network", "Name": "host" },
            { "Type": "Network", "Name": "null" },
            { "Type": "Volume", "Name": "local" },
        ],
    });
    if !description.engine_labels.is_empty() {
        engine["Labels"] = json!(description.engine_labels);
    }
    json!({
        "Hostname": description.hostname,
        "Platform": { "Architecture": architecture, "OS": description.os },
        "Resources": {
            "NanoCPUs": description.resources.nano_cpus,
            "MemoryBytes": description.resources.memory_bytes,
        },
        "Engine": engine,
        "TLSInfo": {},
    })
}
