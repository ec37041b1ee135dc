//! Writes services.

use super::common;
use super::service_in::{
    ENDPOINT_MODES, FAILURE_ACTIONS, LABEL_DOWN_LIMIT, LABEL_ON_PARTITION, LABEL_PUBLISH,
    LABEL_STICKY, PUBLISH_ADDR, PUBLISH_ALLOW, RESTART_CONDITIONS, UPDATE_ORDERS, port_key,
};
use crate::time::rfc3339;
use serde_json::{Value, json};
use shoal_model::control::ServiceView;
use shoal_model::network::{NetworkAttachment, ServiceVip};
use shoal_model::service::UpdateStatus;
use shoal_model::spec::{
    OnPartition, Placement, PortConfig, PublishMode, RestartPolicy, UpdateConfig,
};
use shoal_model::{ContainerSpec, Labels, Resources, ServiceMode, ServiceSpec, TaskSpec};

/// What a client may ask for besides the object.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct ServiceDetail {
    /// The numbers of tasks (`status=true`).
    pub(crate) status: bool,
    /// Defaults in place of absent fields (`insertDefaults=true`).
    pub(crate) defaults: bool,
}

/// Grace before SIGKILL when the spec names none, in nanoseconds.
const STOP_GRACE_DEFAULT_NS: u64 = 10_000_000_000;

/// Writes a service.
pub(crate) fn service(view: &ServiceView, detail: ServiceDetail) -> Value {
    let service = &view.service;
    let mut spec = service_spec(&service.spec);
    if detail.defaults && service.spec.task.container.stop_grace_period_ns.is_none() {
        spec["TaskTemplate"]["ContainerSpec"]["StopGracePeriod"] = json!(STOP_GRACE_DEFAULT_NS);
    }
    let mut endpoint = json!({ "Spec": spec["EndpointSpec"] });
    // Those of the object have the numbers that were chosen.
    let published = if service.ports.is_empty() {
        &service.spec.endpoint.ports
    } else {
        &service.ports
    };
    if !published.is_empty() {
        endpoint["Ports"] = ports(published);
    }
    if !service.vips.is_empty() {
        endpoint["VirtualIPs"] = service.vips.iter().flat_map(virtual_ips).collect();
    }
    let mut out = json!({ "ID": service.id.to_string(), "Spec": spec, "Endpoint": endpoint });
    common::put_meta(&mut out, &service.meta);
    if let Some(previous) = &service.previous_spec {
        out["PreviousSpec"] = service_spec(previous);
    }
    if let Some(status) = &service.update_status {
        out["UpdateStatus"] = update_status(status);
    }
    if detail.status {
        out["ServiceStatus"] = json!({
            "RunningTasks": view.running_tasks,
            "DesiredTasks": view.desired_tasks,
            "CompletedTasks": 0,
        });
    }
    out
}

/// A virtual address has no neighbours: every one is a block of its own.
fn virtual_ips(vip: &ServiceVip) -> Vec<Value> {
    let id = vip.network_id.to_string();
    let mut out = vec![json!({ "NetworkID": id, "Addr": format!("{}/32", vip.ipv4) })];
    if let Some(ipv6) = vip.ipv6 {
        out.push(json!({ "NetworkID": id, "Addr": format!("{ipv6}/128") }));
    }
    out
}

fn update_status(status: &UpdateStatus) -> Value {
    let mut out = json!({
        "State": status.state.as_str(),
        "StartedAt": rfc3339(status.started_at),
        "Message": status.message,
    });
    if let Some(at) = status.completed_at {
        out["CompletedAt"] = json!(rfc3339(at));
    }
    out
}

/// Writes the spec of a service. Each field that the user set is there, so that it survives read-modify-write.
pub(crate) fn service_spec(spec: &ServiceSpec) -> Value {
    let mode = match spec.mode {
        ServiceMode::Replicated { replicas } => json!({ "Replicated": { "Replicas": replicas } }),
        ServiceMode::Global => json!({ "Global": {} }),
    };
    let mut endpoint = json!({ "Mode": word(&ENDPOINT_MODES, spec.endpoint.mode) });
    if !spec.endpoint.ports.is_empty() {
        endpoint["Ports"] = ports(&spec.endpoint.ports);
    }
    json!({
        "Name": spec.name,
        "Labels": service_labels(spec),
        "TaskTemplate": task_spec(&spec.task),
        "Mode": mode,
        "UpdateConfig": update_config(&spec.update),
        "RollbackConfig": update_config(&spec.rollback),
        "EndpointSpec": endpoint,
    })
}

fn service_labels(spec: &ServiceSpec) -> Labels {
    let mut labels = spec.labels.clone();
    if let Some(on_partition) = spec.on_partition {
        let text = match on_partition {
            OnPartition::Stop => "stop",
            OnPartition::Keep => "keep",
        };
        labels.insert(LABEL_ON_PARTITION.to_owned(), text.to_owned());
    }
    if let Some(ms) = spec.down_limit_ms {
        labels.insert(LABEL_DOWN_LIMIT.to_owned(), format!("{ms}ms"));
    }
    if let Some(seconds) = spec.endpoint.sticky_s {
        labels.insert(LABEL_STICKY.to_owned(), format!("{seconds}s"));
    }
    for port in &spec.endpoint.ports {
        let key = port_key(port);
        for (blocks, end) in [(&port.addrs, PUBLISH_ADDR), (&port.allow, PUBLISH_ALLOW)] {
            if !blocks.is_empty() {
                let blocks: Vec<String> = blocks.iter().map(ToString::to_string).collect();
                labels.insert(format!("{LABEL_PUBLISH}{key}{end}"), blocks.join(","));
            }
        }
    }
    labels
}

fn word<T: PartialEq>(words: &[(&'static str, T)], value: T) -> &'static str {
    words
        .iter()
        .find(|(_, known)| *known == value)
        .map_or("", |(word, _)| word)
}

/// Writes `TaskTemplate`, which is also the `Spec` of a task.
pub(crate) fn task_spec(spec: &TaskSpec) -> Value {
    let mut out = json!({
        "ContainerSpec": container_spec(&spec.container),
        "Resources": {
            "Limits": amount(&spec.resources.limits),
            "Reservations": amount(&spec.resources.reservations),
        },
        "RestartPolicy": restart(&spec.restart),
        "Placement": placement(&spec.placement),
        "ForceUpdate": spec.force_update,
        "Runtime": "container",
    });
    if spec.resources.pids_limit != 0 {
        out["Resources"]["Limits"]["Pids"] = json!(spec.resources.pids_limit);
    }
    if !spec.networks.is_empty() {
        out["Networks"] = spec.networks.iter().map(network).collect();
    }
    if let Some(driver) = &spec.log_driver {
        out["LogDriver"] = json!({ "Name": driver.name, "Options": driver.options });
    }
    out
}

fn network(attachment: &NetworkAttachment) -> Value {
    let mut out = json!({ "Target": attachment.network_id.to_string() });
    if !attachment.aliases.is_empty() {
        out["Aliases"] = json!(attachment.aliases);
    }
    out
}

fn amount(resources: &Resources) -> Value {
    let mut out = json!({});
    if resources.nano_cpus != 0 {
        out["NanoCPUs"] = json!(resources.nano_cpus);
    }
    if resources.memory_bytes != 0 {
        out["MemoryBytes"] = json!(resources.memory_bytes);
    }
    out
}

fn restart(policy: &RestartPolicy) -> Value {
    let mut out = json!({ "Condition": word(&RESTART_CONDITIONS, policy.condition) });
    for (name, value) in [
        ("Delay", policy.delay_ns),
        ("MaxAttempts", policy.max_attempts),
        ("Window", policy.window_ns),
    ] {
        if let Some(value) = value {
            out[name] = json!(value);
        }
    }
    out
}

fn placement(placement: &Placement) -> Value {
    let mut out = json!({});
    if !placement.constraints.is_empty() {
        out["Constraints"] = json!(placement.constraints);
    }
    if !placement.spread.is_empty() {
        let write = |label: &String| json!({ "Spread": { "SpreadDescriptor": label } });
        out["Preferences"] = placement.spread.iter().map(write).collect();
    }
    if placement.max_replicas_per_node != 0 {
        out["MaxReplicas"] = json!(placement.max_replicas_per_node);
    }
    if !placement.platforms.is_empty() {
        out["Platforms"] = placement
            .platforms
            .iter()
            .map(|p| json!({ "Architecture": p.architecture, "OS": p.os }))
            .collect();
    }
    out
}

fn container_spec(spec: &ContainerSpec) -> Value {
    let mut out = json!({ "Image": spec.image, "Isolation": "default" });
    let mut put = |name: &str, value: Value, is_set: bool| {
        if is_set {
            out[name] = value;
        }
    };
    for (name, list) in [
        ("Command", &spec.command),
        ("Args", &spec.args),
        ("Env", &spec.env),
        ("Groups", &spec.groups),
        ("Hosts", &spec.hosts),
        ("CapabilityAdd", &spec.cap_add),
        ("CapabilityDrop", &spec.cap_drop),
    ] {
        put(name, json!(list), !list.is_empty());
    }
    for (name, text) in [
        ("Hostname", &spec.hostname),
        ("Dir", &spec.dir),
        ("User", &spec.user),
        ("StopSignal", &spec.stop_signal),
    ] {
        put(name, json!(text), !text.is_empty());
    }
    for (name, on) in [
        ("TTY", spec.tty),
        ("OpenStdin", spec.open_stdin),
        ("ReadOnly", spec.read_only),
    ] {
        put(name, json!(true), on);
    }
    put("Labels", json!(spec.labels), !spec.labels.is_empty());
    put("Sysctls", json!(spec.sysctls), !spec.sysctls.is_empty());
    put("Init", json!(spec.init), spec.init.is_some());
    let grace = spec.stop_grace_period_ns;
    put("StopGracePeriod", json!(grace), grace.is_some());
    put(
        "OomScoreAdj",
        json!(spec.oom_score_adj),
        spec.oom_score_adj != 0,
    );
    put(
        "Mounts",
        spec.mounts.iter().map(common::mount_json).collect(),
        !spec.mounts.is_empty(),
    );
    put(
        "Ulimits",
        common::ulimits_json(&spec.ulimits),
        !spec.ulimits.is_empty(),
    );
    put(
        "Privileges",
        json!({ "NoNewPrivileges": true }),
        spec.no_new_privileges,
    );
    if let Some(check) = &spec.healthcheck {
        // Docker's daemon writes the first name, its published schema has the second: clients read the one or the other.
        put("Healthcheck", common::healthcheck_json(check), true);
        put("HealthCheck", common::healthcheck_json(check), true);
    }
    put("DNSConfig", dns(spec), true);
    out
}

fn dns(spec: &ContainerSpec) -> Value {
    let mut out = json!({});
    for (name, list) in [
        ("Nameservers", &spec.dns.nameservers),
        ("Search", &spec.dns.search),
        ("Options", &spec.dns.options),
    ] {
        if !list.is_empty() {
            out[name] = json!(list);
        }
    }
    out
}

fn update_config(config: &UpdateConfig) -> Value {
    let mut out = json!({
        "Parallelism": config.parallelism,
        "FailureAction": word(&FAILURE_ACTIONS, config.failure_action),
        "Monitor": config.monitor_ns,
        "MaxFailureRatio": f64::from(config.max_failure_permille) / 1000.0,
        "Order": word(&UPDATE_ORDERS, config.order),
    });
    if config.delay_ns != 0 {
        out["Delay"] = json!(config.delay_ns);
    }
    out
}

/// Writes ports.
pub(crate) fn ports(ports: &[PortConfig]) -> Value {
    ports
        .iter()
        .map(|port| {
            let mode = match port.mode {
                PublishMode::Ingress => "ingress",
                PublishMode::Host => "host",
            };
            let mut out = json!({
                "Protocol": port.protocol.as_str(),
                "TargetPort": port.target,
                "PublishMode": mode,
            });
            if port.published != 0 {
                out["PublishedPort"] = json!(port.published);
            }
            if !port.name.is_empty() {
                out["Name"] = json!(port.name);
            }
            out
        })
        .collect()
}
