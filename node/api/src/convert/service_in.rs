//! Reads the spec of a service.
//!
//! What [`super::service_out`] writes, this reads back to the same spec, so that a client may read, modify and write.

use super::common;
use super::network_in::{self, NamedNetwork};
use crate::error::ApiResult;
use crate::fields::Fields;
use shoal_model::resources::ResourceRequirements;
use shoal_model::spec::{
    DnsConfig, EndpointMode, EndpointSpec, FailureAction, Healthcheck, LogDriver, OnPartition,
    Placement, Platform, PortConfig, Protocol, PublishMode, RestartCondition, RestartPolicy,
    UpdateConfig, UpdateOrder,
};
use shoal_model::{
    ContainerSpec, Labels, NetworkId, Resources, ServiceMode, ServiceSpec, TaskSpec,
};

/// Label of a service that carries what Docker's spec has no field for: `stop` or `keep`.
pub(crate) const LABEL_ON_PARTITION: &str = "shoal.on-partition";
/// Label of a service or of the cluster with the silence after which tasks are replaced: `3s`.
pub(crate) const LABEL_DOWN_LIMIT: &str = "shoal.down-limit";
/// Label of a service with how long connections of one client go to one task: `30s`.
pub(crate) const LABEL_STICKY: &str = "shoal.sticky";
/// Begins the labels of a service about one published port: `shoal.publish.80:8080/tcp.addr`.
pub(crate) const LABEL_PUBLISH: &str = "shoal.publish.";
/// Ends the label with the nodes' addresses that a port is published on.
pub(crate) const PUBLISH_ADDR: &str = ".addr";
/// Ends the label with the clients that may connect to a port.
pub(crate) const PUBLISH_ALLOW: &str = ".allow";

const MS_PER_S: u64 = 1_000;

const NO_SECRETS: &str = "secrets and configs are not supported yet";

/// Words of `FailureAction`.
pub(crate) const FAILURE_ACTIONS: [(&str, FailureAction); 3] = [
    ("pause", FailureAction::Pause),
    ("continue", FailureAction::Continue),
    ("rollback", FailureAction::Rollback),
];
/// Words of `Order`.
pub(crate) const UPDATE_ORDERS: [(&str, UpdateOrder); 2] = [
    ("stop-first", UpdateOrder::StopFirst),
    ("start-first", UpdateOrder::StartFirst),
];
/// Words of `Condition`.
pub(crate) const RESTART_CONDITIONS: [(&str, RestartCondition); 3] = [
    ("none", RestartCondition::None),
    ("on-failure", RestartCondition::OnFailure),
    ("any", RestartCondition::Any),
];
/// Words of `EndpointSpec.Mode`.
pub(crate) const ENDPOINT_MODES: [(&str, EndpointMode); 2] = [
    ("vip", EndpointMode::Vip),
    ("dnsrr", EndpointMode::DnsRoundRobin),
];

/// A spec as it was read: which networks of the cluster it names is not known yet.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ReadSpec {
    spec: ServiceSpec,
    networks: Vec<NamedNetwork>,
}

impl ReadSpec {
    /// It names networks, so the cluster's are needed.
    pub(crate) fn names_networks(&self) -> bool {
        !self.networks.is_empty()
    }

    /// The spec with its networks found among those of the cluster.
    pub(crate) fn resolve(self, known: &[(NetworkId, String)]) -> ApiResult<ServiceSpec> {
        let mut spec = self.spec;
        spec.task.networks = network_in::resolve(&self.networks, known)?;
        Ok(spec)
    }
}

/// Reads the body of a service's creation or change.
pub(crate) fn service_spec(mut body: Fields) -> ApiResult<ReadSpec> {
    let mut labels = body.labels("Labels")?;
    let on_partition = take_on_partition(&body, &mut labels)?;
    let down_limit_ms = take_ms(&body, &mut labels, LABEL_DOWN_LIMIT)?;
    let mut endpoint = endpoint_spec(body.object_or_empty("EndpointSpec")?)?;
    endpoint.sticky_s = take_sticky(&body, &mut labels)?;
    take_publish(&body, &mut labels, &mut endpoint.ports)?;
    let (task, mut networks) = task_spec(body.object_or_empty("TaskTemplate")?)?;
    // The place where they stood before version 1.25.
    let old_place = network_in::named_networks(&mut body, "Networks")?;
    if networks.is_empty() {
        networks = old_place;
    }
    let spec = ServiceSpec {
        name: body.string("Name")?,
        labels,
        task,
        mode: mode(body.object_or_empty("Mode")?)?,
        update: update_config(body.object("UpdateConfig")?)?,
        rollback: update_config(body.object("RollbackConfig")?)?,
        endpoint,
        on_partition,
        down_limit_ms,
        // It comes in a header.
        registry_auth: None,
    };
    body.done()?;
    Ok(ReadSpec { spec, networks })
}

fn take_sticky(body: &Fields, labels: &mut Labels) -> ApiResult<Option<u32>> {
    let Some(ms) = take_ms(body, labels, LABEL_STICKY)? else {
        return Ok(None);
    };
    let whole = (ms % MS_PER_S == 0).then_some(ms / MS_PER_S);
    whole
        .and_then(|seconds| u32::try_from(seconds).ok())
        .map(Some)
        .ok_or_else(|| {
            let reason = "expected whole seconds, such as 30s or 10m";
            body.error(&format!("Labels.{LABEL_STICKY}"), reason)
        })
}

/// What a label about a port calls it.
pub(crate) fn port_key(port: &PortConfig) -> String {
    let protocol = port.protocol.as_str();
    format!("{}:{}/{protocol}", port.published, port.target)
}

/// Takes the addresses and clients of published ports out of the labels.
fn take_publish(body: &Fields, labels: &mut Labels, ports: &mut [PortConfig]) -> ApiResult<()> {
    let names: Vec<String> = labels
        .keys()
        .filter(|name| name.starts_with(LABEL_PUBLISH))
        .cloned()
        .collect();
    for name in names {
        let Some(text) = labels.remove(&name) else {
            continue;
        };
        let field = format!("Labels.{name}");
        let rest = name.strip_prefix(LABEL_PUBLISH).unwrap_or_default();
        let (key, is_addr) = match (
            rest.strip_suffix(PUBLISH_ADDR),
            rest.strip_suffix(PUBLISH_ALLOW),
        ) {
            (Some(key), _) => (key, true),
            (None, Some(key)) => (key, false),
            (None, None) => {
                let reason =
                    format!("expected the name to end in {PUBLISH_ADDR} or {PUBLISH_ALLOW}");
                return Err(body.error(&field, reason));
            }
        };
        let blocks = text
            .split(',')
            .map(|text| network_in::block(text.trim()))
            .collect::<Option<Vec<_>>>();
        let Some(blocks) = blocks else {
            let reason = format!("`{text}`: expected addresses or blocks such as 10.0.0.0/8");
            return Err(body.error(&field, reason));
        };
        let mut known = ports.iter_mut().filter(|port| port_key(port) == key);
        let Some(port) = known.next() else {
            let reason = "the service publishes no such port: remove the label";
            return Err(body.error(&field, reason));
        };
        if port.mode == PublishMode::Host {
            let reason = "addresses and clients are named for ports of mode `ingress` only";
            return Err(body.error(&field, reason));
        }
        if is_addr {
            port.addrs = blocks;
        } else {
            port.allow = blocks;
        }
    }
    Ok(())
}

fn take_on_partition(body: &Fields, labels: &mut Labels) -> ApiResult<Option<OnPartition>> {
    match labels.remove(LABEL_ON_PARTITION).as_deref() {
        None => Ok(None),
        Some("stop") => Ok(Some(OnPartition::Stop)),
        Some("keep") => Ok(Some(OnPartition::Keep)),
        Some(other) => Err(body.error(
            &format!("Labels.{LABEL_ON_PARTITION}"),
            format!("`{other}`: expected stop or keep"),
        )),
    }
}

/// Takes a span out of a label, in milliseconds.
pub(crate) fn take_ms(body: &Fields, labels: &mut Labels, name: &str) -> ApiResult<Option<u64>> {
    let Some(text) = labels.remove(name) else {
        return Ok(None);
    };
    crate::time::parse_go_duration(&text)
        .and_then(|span| u64::try_from(span.as_millis()).ok())
        .filter(|ms| *ms > 0)
        .map(Some)
        .ok_or_else(|| {
            let reason = format!("`{text}` is not a span such as 3s or 500ms");
            body.error(&format!("Labels.{name}"), reason)
        })
}

fn mode(mut fields: Fields) -> ApiResult<ServiceMode> {
    let replicated = fields.object("Replicated")?;
    let global = fields.object("Global")?;
    for name in ["ReplicatedJob", "GlobalJob"] {
        if fields.object(name)?.is_some() {
            return Err(fields.error(name, "jobs are not supported yet"));
        }
    }
    let mode = match (replicated, global) {
        (Some(_), Some(_)) => {
            return Err(fields.error("Global", "must specify only one service mode"));
        }
        (Some(mut inner), None) => {
            let replicas = inner.opt_int("Replicas")?.unwrap_or(1);
            inner.done()?;
            ServiceMode::Replicated { replicas }
        }
        (None, Some(inner)) => {
            inner.done()?;
            ServiceMode::Global
        }
        (None, None) => ServiceMode::default(),
    };
    fields.done()?;
    Ok(mode)
}

fn task_spec(mut fields: Fields) -> ApiResult<(TaskSpec, Vec<NamedNetwork>)> {
    let runtime = fields.string("Runtime")?;
    if !matches!(runtime.as_str(), "" | "container") {
        return Err(fields.error(
            "Runtime",
            format!("`{runtime}`: only containers are supported"),
        ));
    }
    let log_driver = match fields.object("LogDriver")? {
        None => None,
        Some(mut inner) => {
            let driver = LogDriver {
                name: inner.string("Name")?,
                options: inner.labels("Options")?,
            };
            inner.done()?;
            Some(driver)
        }
    };
    let spec = TaskSpec {
        container: container_spec(fields.object_or_empty("ContainerSpec")?)?,
        resources: resources(fields.object_or_empty("Resources")?)?,
        restart: restart(fields.object_or_empty("RestartPolicy")?)?,
        placement: placement(fields.object_or_empty("Placement")?)?,
        log_driver,
        force_update: fields.int("ForceUpdate")?,
        networks: Vec::new(),
    };
    let networks = network_in::named_networks(&mut fields, "Networks")?;
    fields.refuse(&[
        ("PluginSpec", "plugins are not supported"),
        (
            "NetworkAttachmentSpec",
            "containers are attached without a task: `run --network`",
        ),
    ])?;
    fields.done()?;
    Ok((spec, networks))
}

fn container_spec(mut fields: Fields) -> ApiResult<ContainerSpec> {
    let isolation = fields.string("Isolation")?;
    if !matches!(isolation.as_str(), "" | "default") {
        return Err(fields.error("Isolation", format!("`{isolation}` is for Windows")));
    }
    let no_new_privileges = privileges(fields.object_or_empty("Privileges")?)?;
    let spec = ContainerSpec {
        image: fields.string("Image")?,
        labels: fields.labels("Labels")?,
        command: fields.strings("Command")?,
        args: fields.strings("Args")?,
        hostname: fields.string("Hostname")?,
        env: fields.strings("Env")?,
        dir: fields.string("Dir")?,
        user: fields.string("User")?,
        groups: fields.strings("Groups")?,
        init: fields.opt_bool("Init")?,
        tty: fields.bool("TTY")?,
        open_stdin: fields.bool("OpenStdin")?,
        read_only: fields.bool("ReadOnly")?,
        mounts: common::mounts(&mut fields)?,
        stop_signal: fields.string("StopSignal")?,
        stop_grace_period_ns: fields.opt_int("StopGracePeriod")?,
        healthcheck: healthcheck(&mut fields)?,
        hosts: fields.strings("Hosts")?,
        dns: dns(fields.object_or_empty("DNSConfig")?)?,
        sysctls: fields.labels("Sysctls")?,
        cap_add: fields.strings("CapabilityAdd")?,
        cap_drop: fields.strings("CapabilityDrop")?,
        ulimits: common::ulimits(&mut fields)?,
        oom_score_adj: fields.int("OomScoreAdj")?,
        no_new_privileges,
    };
    if spec.image.is_empty() {
        return Err(fields.error("Image", "no image is given"));
    }
    fields.refuse(&[("Secrets", NO_SECRETS), ("Configs", NO_SECRETS)])?;
    fields.done()?;
    Ok(spec)
}

/// The field has two names, see [`super::service_out`]: a client that sends both must mean the same by them.
fn healthcheck(fields: &mut Fields) -> ApiResult<Option<Healthcheck>> {
    let first = common::healthcheck(fields, "Healthcheck")?;
    let second = common::healthcheck(fields, "HealthCheck")?;
    match (first, second) {
        (Some(first), Some(second)) if first != second => {
            Err(fields.error("Healthcheck", "contradicts `HealthCheck`"))
        }
        (first, second) => Ok(first.or(second)),
    }
}

fn privileges(mut fields: Fields) -> ApiResult<bool> {
    let no_new_privileges = fields.bool("NoNewPrivileges")?;
    if let Some(mut seccomp) = fields.object("Seccomp")? {
        let mode = seccomp.string("Mode")?;
        if !matches!(mode.as_str(), "" | "default") {
            return Err(seccomp.error("Mode", "only `default` is supported yet"));
        }
        seccomp.done()?;
    }
    if let Some(mut apparmor) = fields.object("AppArmor")? {
        let mode = apparmor.string("Mode")?;
        if !matches!(mode.as_str(), "" | "default") {
            return Err(apparmor.error("Mode", "only `default` is supported"));
        }
        apparmor.done()?;
    }
    fields.refuse(&[
        ("CredentialSpec", "it is for Windows"),
        ("SELinuxContext", "SELinux is not supported"),
    ])?;
    fields.done()?;
    Ok(no_new_privileges)
}

fn dns(mut fields: Fields) -> ApiResult<DnsConfig> {
    let config = DnsConfig {
        nameservers: fields.strings("Nameservers")?,
        search: fields.strings("Search")?,
        options: fields.strings("Options")?,
    };
    fields.done()?;
    Ok(config)
}

fn resources(mut fields: Fields) -> ApiResult<ResourceRequirements> {
    let mut limits = fields.object_or_empty("Limits")?;
    let mut reservations = fields.object_or_empty("Reservations")?;
    let amount = |inner: &mut Fields| -> ApiResult<Resources> {
        Ok(Resources {
            nano_cpus: inner.int("NanoCPUs")?,
            memory_bytes: inner.int("MemoryBytes")?,
        })
    };
    let requirements = ResourceRequirements {
        limits: amount(&mut limits)?,
        pids_limit: limits.int("Pids")?,
        reservations: amount(&mut reservations)?,
    };
    reservations.refuse(&[(
        "GenericResources",
        "generic resources are not supported yet",
    )])?;
    limits.done()?;
    reservations.done()?;
    fields.done()?;
    Ok(requirements)
}

fn restart(mut fields: Fields) -> ApiResult<RestartPolicy> {
    let policy = RestartPolicy {
        condition: fields
            .word("Condition", &RESTART_CONDITIONS)?
            .unwrap_or_default(),
        delay_ns: fields.opt_int("Delay")?,
        max_attempts: fields.opt_int("MaxAttempts")?,
        window_ns: fields.opt_int("Window")?,
    };
    fields.done()?;
    Ok(policy)
}

fn placement(mut fields: Fields) -> ApiResult<Placement> {
    let constraints = fields.strings("Constraints")?;
    let max_replicas_per_node = fields.int("MaxReplicas")?;
    let mut spread = Vec::new();
    for mut preference in fields.objects("Preferences")? {
        let mut inner = preference.object_or_empty("Spread")?;
        spread.push(inner.string("SpreadDescriptor")?);
        inner.done()?;
        preference.done()?;
    }
    let mut platforms = Vec::new();
    for mut platform in fields.objects("Platforms")? {
        platforms.push(Platform {
            os: platform.string("OS")?,
            architecture: platform.string("Architecture")?,
        });
        platform.done()?;
    }
    fields.done()?;
    Ok(Placement {
        constraints,
        spread,
        max_replicas_per_node,
        platforms,
    })
}

/// Reads `UpdateConfig` or `RollbackConfig`; an absent one is the default, an absent field in it is Go's zero.
fn update_config(fields: Option<Fields>) -> ApiResult<UpdateConfig> {
    let default = UpdateConfig::default();
    let Some(mut fields) = fields else {
        return Ok(default);
    };
    let monitor_ns: u64 = fields.int("Monitor")?;
    let config = UpdateConfig {
        parallelism: fields.int("Parallelism")?,
        delay_ns: fields.int("Delay")?,
        failure_action: fields
            .word("FailureAction", &FAILURE_ACTIONS)?
            .unwrap_or_default(),
        monitor_ns: if monitor_ns == 0 {
            default.monitor_ns
        } else {
            monitor_ns
        },
        max_failure_permille: max_failure_permille(&mut fields)?,
        order: fields.word("Order", &UPDATE_ORDERS)?.unwrap_or_default(),
    };
    fields.done()?;
    Ok(config)
}

fn max_failure_permille(fields: &mut Fields) -> ApiResult<u32> {
    let ratio = fields.opt_f64("MaxFailureRatio")?.unwrap_or(0.0);
    let permille = (ratio * 1000.0).round();
    let fits = (0.0..=1.0).contains(&ratio) && (ratio * 1000.0 - permille).abs() < 1e-3;
    if !fits {
        let reason = "expected a ratio from 0 to 1 with at most three decimals";
        return Err(fields.error("MaxFailureRatio", reason));
    }
    Ok(permille as u32)
}

fn endpoint_spec(mut fields: Fields) -> ApiResult<EndpointSpec> {
    let mode = fields.word("Mode", &ENDPOINT_MODES)?.unwrap_or_default();
    let ports = fields
        .objects("Ports")?
        .into_iter()
        .map(port)
        .collect::<ApiResult<_>>()?;
    fields.done()?;
    Ok(EndpointSpec {
        mode,
        ports,
        sticky_s: None,
    })
}

fn port(mut fields: Fields) -> ApiResult<PortConfig> {
    let protocols = [("tcp", Protocol::Tcp), ("udp", Protocol::Udp)];
    let modes = [
        ("ingress", PublishMode::Ingress),
        ("host", PublishMode::Host),
    ];
    let port = PortConfig {
        name: fields.string("Name")?,
        protocol: fields.word("Protocol", &protocols)?.unwrap_or_default(),
        target: fields.int("TargetPort")?,
        published: fields.int("PublishedPort")?,
        mode: fields
            .word("PublishMode", &modes)?
            .unwrap_or(PublishMode::Ingress),
        addrs: Vec::new(),
        allow: Vec::new(),
    };
    if port.target == 0 {
        return Err(fields.error("TargetPort", "expected a port from 1 to 65535"));
    }
    fields.done()?;
    Ok(port)
}
