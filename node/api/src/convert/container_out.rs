//! Writes containers: the list and the inspection.

use super::common;
use super::network_out::endpoint_id;
use crate::time::{rfc3339, rfc3339_or_never, unix_seconds};
use serde_json::{Map, Value, json};
use shoal_engine::info::{Endpoint, ExecInfo, Health, MountPoint, MountPointKind, PublishedPort};
use shoal_engine::{
    ContainerConfig, ContainerInfo, ContainerState, ContainerStatus, HostConfig, NetworkMode,
    RestartPolicy,
};
use shoal_model::Timestamp;
use shoal_model::network::AttachmentWish;
use std::path::Path;

/// Writes one row of `GET /containers/json`.
pub(crate) fn summary(info: &ContainerInfo, now: Timestamp) -> Value {
    let mut command = info.path.clone();
    for arg in &info.args {
        command.push(' ');
        command.push_str(arg);
    }
    let mut out = json!({
        "Id": info.id.to_string(),
        "Names": [format!("/{}", info.name)],
        "Image": info.config.image,
        "ImageID": info.image_id,
        "Command": command,
        "Created": unix_seconds(info.created),
        "Ports": ports(info),
        "Labels": info.config.labels,
        "State": info.state.status.as_str(),
        "Status": info.status_text(now),
        "HostConfig": { "NetworkMode": info.network_mode.to_string() },
        "NetworkSettings": { "Networks": networks(info) },
        "Mounts": info.mounts.iter().map(mount_point).collect::<Value>(),
    });
    if let Some(health) = &info.state.health {
        out["Health"] =
            json!({ "Status": health.status.as_str(), "FailingStreak": health.failing_streak });
    }
    out
}

/// The published ports, and those that are only declared.
fn ports(info: &ContainerInfo) -> Value {
    let published = &info.network.ports;
    let mut out: Vec<Value> = published
        .iter()
        .map(|port| {
            json!({
                "IP": port.host_ip.to_string(),
                "PrivatePort": port.container.port,
                "PublicPort": port.host_port,
                "Type": port.container.protocol.as_str(),
            })
        })
        .collect();
    if info.state.status.is_running() {
        for port in &info.config.exposed_ports {
            if !published.iter().any(|known| known.container == *port) {
                out.push(json!({ "PrivatePort": port.port, "Type": port.protocol.as_str() }));
            }
        }
    }
    Value::Array(out)
}

/// Writes `GET /containers/{id}/json`.
pub(crate) fn inspect(info: &ContainerInfo) -> Value {
    json!({
        "Id": info.id.to_string(),
        "Created": rfc3339(info.created),
        "Path": info.path,
        "Args": info.args,
        "State": state(&info.state),
        "Image": info.image_id,
        "ResolvConfPath": info.resolv_conf_path,
        "HostnamePath": info.hostname_path,
        "HostsPath": info.hosts_path,
        "LogPath": info.log_path.as_deref().unwrap_or(Path::new("")),
        "Name": format!("/{}", info.name),
        "RestartCount": info.restart_count,
        "Driver": "overlay2",
        "Platform": "linux",
        "MountLabel": "",
        "ProcessLabel": "",
        "AppArmorProfile": "",
        "ExecIDs": if info.exec_ids.is_empty() { Value::Null } else { json!(info.exec_ids) },
        "HostConfig": host_config(&info.config.host, &info.network_mode),
        "GraphDriver": { "Name": "overlay2", "Data": { "UpperDir": info.upper_dir } },
        "Mounts": info.mounts.iter().map(mount_point).collect::<Value>(),
        "Config": config(&info.config),
        "NetworkSettings": network_settings(info),
    })
}

fn state(state: &ContainerState) -> Value {
    let mut out = json!({
        "Status": state.status.as_str(),
        "Running": state.status.is_running(),
        "Paused": state.status == ContainerStatus::Paused,
        "Restarting": state.status == ContainerStatus::Restarting,
        "OOMKilled": state.oom_killed,
        "Dead": state.status == ContainerStatus::Dead,
        "Pid": state.pid,
        "ExitCode": state.exit_code,
        "Error": state.error,
        "StartedAt": rfc3339_or_never(state.started_at),
        "FinishedAt": rfc3339_or_never(state.finished_at),
    });
    if let Some(health) = &state.health {
        out["Health"] = health_json(health);
    }
    out
}

fn health_json(health: &Health) -> Value {
    let log: Vec<Value> = health
        .log
        .iter()
        .map(|probe| {
            json!({
                "Start": rfc3339(probe.start),
                "End": rfc3339(probe.end),
                "ExitCode": probe.exit_code,
                "Output": probe.output,
            })
        })
        .collect();
    json!({ "Status": health.status.as_str(), "FailingStreak": health.failing_streak, "Log": log })
}

fn config(config: &ContainerConfig) -> Value {
    let set = |keys: Vec<String>| -> Value {
        if keys.is_empty() {
            Value::Null
        } else {
            keys.into_iter()
                .map(|key| (key, json!({})))
                .collect::<Map<_, _>>()
                .into()
        }
    };
    let mut out = json!({
        "Hostname": config.hostname,
        "Domainname": config.domainname,
        "User": config.user,
        "AttachStdin": config.attach_stdin,
        "AttachStdout": config.attach_stdout,
        "AttachStderr": config.attach_stderr,
        "Tty": config.tty,
        "OpenStdin": config.open_stdin,
        "StdinOnce": config.stdin_once,
        "Env": config.env,
        "Cmd": config.cmd,
        "Image": config.image,
        "Volumes": set(config.volumes.iter().cloned().collect()),
        "WorkingDir": config.working_dir,
        "Entrypoint": config.entrypoint,
        "OnBuild": null,
        "Labels": config.labels,
    });
    if !config.exposed_ports.is_empty() {
        out["ExposedPorts"] = set(config
            .exposed_ports
            .iter()
            .map(ToString::to_string)
            .collect());
    }
    if let Some(check) = &config.healthcheck {
        out["Healthcheck"] = common::healthcheck_json(check);
    }
    if !config.stop_signal.is_empty() {
        out["StopSignal"] = json!(config.stop_signal);
    }
    if let Some(seconds) = config.stop_timeout_s {
        out["StopTimeout"] = json!(seconds);
    }
    out
}

fn null_if_empty<T: serde::Serialize>(items: &[T]) -> Value {
    if items.is_empty() {
        Value::Null
    } else {
        json!(items)
    }
}

fn restart_policy(policy: RestartPolicy) -> Value {
    let (name, retries) = match policy {
        RestartPolicy::No => ("no", 0),
        RestartPolicy::Always => ("always", 0),
        RestartPolicy::UnlessStopped => ("unless-stopped", 0),
        RestartPolicy::OnFailure { retries_max } => ("on-failure", retries_max),
    };
    json!({ "Name": name, "MaximumRetryCount": retries })
}

fn host_config(host: &HostConfig, network_mode: &NetworkMode) -> Value {
    let limits = &host.resources;
    let mut out = json!({
        "Binds": null_if_empty(&host.binds),
        "ContainerIDFile": "",
        "LogConfig": { "Type": host.log.driver, "Config": host.log.options },
        "NetworkMode": network_mode.to_string(),
        "PortBindings": port_bindings(host),
        "RestartPolicy": restart_policy(host.restart_policy),
        "AutoRemove": host.auto_remove,
        "VolumeDriver": "",
        "VolumesFrom": null_if_empty(&host.volumes_from),
        "ConsoleSize": [0, 0],
        "CapAdd": null_if_empty(&host.cap_add),
        "CapDrop": null_if_empty(&host.cap_drop),
        "CgroupnsMode": host.cgroupns_mode.to_string(),
        "Dns": host.dns,
        "DnsOptions": host.dns_options,
        "DnsSearch": host.dns_search,
        "ExtraHosts": null_if_empty(&host.extra_hosts),
        "GroupAdd": null_if_empty(&host.group_add),
        "IpcMode": host.ipc_mode.to_string(),
        "Cgroup": "",
        "Links": null,
        "OomScoreAdj": host.oom_score_adj,
        "PidMode": namespace(&host.pid_mode),
        "Privileged": host.privileged,
        "PublishAllPorts": host.publish_all_ports,
        "ReadonlyRootfs": host.read_only_rootfs,
        "SecurityOpt": null_if_empty(&host.security_opt),
        "UTSMode": namespace(&host.uts_mode),
        "UsernsMode": "",
        "ShmSize": host.shm_size_bytes,
        "Runtime": "shoal",
        "Isolation": "",
        "CpuShares": limits.cpu_shares,
        "Memory": limits.memory_bytes,
        "NanoCpus": limits.nano_cpus,
        "CgroupParent": "",
        "BlkioWeight": 0,
        "BlkioWeightDevice": [],
        "BlkioDeviceReadBps": [],
        "BlkioDeviceWriteBps": [],
        "BlkioDeviceReadIOps": [],
        "BlkioDeviceWriteIOps": [],
        "CpuPeriod": limits.cpu_period,
        "CpuQuota": limits.cpu_quota,
        "CpuRealtimePeriod": 0,
        "CpuRealtimeRuntime": 0,
        "CpusetCpus": limits.cpuset_cpus,
        "CpusetMems": limits.cpuset_mems,
        "Devices": devices(host),
        "DeviceCgroupRules": null,
        "DeviceRequests": null,
        "MemoryReservation": limits.memory_reservation_bytes,
        "MemorySwap": limits.memory_swap_bytes,
        "MemorySwappiness": null,
        "OomKillDisable": host.oom_kill_disable,
        "PidsLimit": if limits.pids_limit == 0 { Value::Null } else { json!(limits.pids_limit) },
        "Ulimits": common::ulimits_json(&host.ulimits),
        "CpuCount": 0,
        "CpuPercent": 0,
        "IOMaximumIOps": 0,
        "IOMaximumBandwidth": 0,
    });
    put_optional(&mut out, host);
    out
}

/// The fields that Docker leaves out when they say nothing.
fn put_optional(out: &mut Value, host: &HostConfig) {
    if !host.mounts.is_empty() {
        out["Mounts"] = host.mounts.iter().map(common::mount_json).collect();
    }
    if !host.tmpfs.is_empty() {
        out["Tmpfs"] = json!(host.tmpfs);
    }
    if !host.sysctls.is_empty() {
        out["Sysctls"] = json!(host.sysctls);
    }
    if host.init {
        out["Init"] = json!(true);
    }
    if let Some(paths) = &host.masked_paths {
        out["MaskedPaths"] = json!(paths);
    }
    if let Some(paths) = &host.readonly_paths {
        out["ReadonlyPaths"] = json!(paths);
    }
}

/// Docker writes nothing for the default, but `private` for the IPC and cgroup namespaces.
fn namespace(mode: &shoal_engine::NamespaceMode) -> String {
    match mode {
        shoal_engine::NamespaceMode::Private => String::new(),
        other => other.to_string(),
    }
}

fn devices(host: &HostConfig) -> Value {
    host.devices
        .iter()
        .map(|device| {
            json!({
                "PathOnHost": device.host_path,
                "PathInContainer": device.container_path,
                "CgroupPermissions": device.permissions,
            })
        })
        .collect()
}

fn port_bindings(host: &HostConfig) -> Value {
    let write = |binding: &shoal_engine::PortBinding| {
        let ip = match binding.host_ip {
            ip if ip.is_unspecified() => String::new(),
            ip => ip.to_string(),
        };
        let port = match binding.host_ports {
            (0, _) => String::new(),
            (first, last) if first == last => first.to_string(),
            (first, last) => format!("{first}-{last}"),
        };
        json!({ "HostIp": ip, "HostPort": port })
    };
    host.port_bindings
        .iter()
        .map(|(port, bindings)| (port.to_string(), bindings.iter().map(write).collect()))
        .collect::<Map<_, _>>()
        .into()
}

fn mount_point(mount: &MountPoint) -> Value {
    let mut out = json!({
        "Type": mount.kind.as_str(),
        "Source": mount.source,
        "Destination": mount.target,
        "Mode": mount.mode,
        "RW": mount.writable,
        "Propagation": mount.propagation,
    });
    if mount.kind == MountPointKind::Volume {
        out["Name"] = json!(mount.name);
        out["Driver"] = json!("local");
    }
    out
}

fn network_settings(info: &ContainerInfo) -> Value {
    let mut ports = Map::new();
    for port in &info.config.exposed_ports {
        ports.insert(port.to_string(), Value::Null);
    }
    for port in &info.network.ports {
        let place = ports
            .entry(port.container.to_string())
            .or_insert(Value::Null);
        if place.is_null() {
            *place = json!([]);
        }
        if let Value::Array(bindings) = place {
            bindings.push(published(port));
        }
    }
    let first = info.network.endpoints.first();
    let text = |value: Option<String>| value.unwrap_or_default();
    json!({
        "Bridge": "",
        "SandboxID": info.network.sandbox.as_ref().map(|_| info.id.to_string()).unwrap_or_default(),
        "SandboxKey": info.network.sandbox.as_deref().unwrap_or(Path::new("")),
        "Ports": ports,
        "HairpinMode": false,
        "LinkLocalIPv6Address": "",
        "LinkLocalIPv6PrefixLen": 0,
        "SecondaryIPAddresses": null,
        "SecondaryIPv6Addresses": null,
        "EndpointID": "",
        "Gateway": text(first.and_then(|e| e.gateway).map(|a| a.to_string())),
        "GlobalIPv6Address": text(first.and_then(|e| e.ipv6).map(|a| a.to_string())),
        "GlobalIPv6PrefixLen": first.map_or(0, |e| e.ipv6_prefix_len),
        "IPAddress": text(first.and_then(|e| e.address).map(|a| a.to_string())),
        "IPPrefixLen": first.map_or(0, |e| e.prefix_len),
        "IPv6Gateway": text(first.and_then(|e| e.ipv6_gateway).map(|a| a.to_string())),
        "MacAddress": text(first.map(|e| e.mac.clone())),
        "Networks": networks(info),
    })
}

fn published(port: &PublishedPort) -> Value {
    json!({ "HostIp": port.host_ip.to_string(), "HostPort": port.host_port.to_string() })
}

/// The attachments; a container that does not run shows the networks that it will be in.
fn networks(info: &ContainerInfo) -> Value {
    let owner = info.id.to_string();
    if !info.network.endpoints.is_empty() {
        let write = |end: &Endpoint| (end.network.clone(), endpoint(&owner, end));
        return info
            .network
            .endpoints
            .iter()
            .map(write)
            .collect::<Map<_, _>>()
            .into();
    }
    match &info.network_mode {
        NetworkMode::Container(_) => json!({}),
        NetworkMode::Named(_) => {
            let wishes = info.config.networks.iter();
            wishes
                .map(|wish| (wish.network.clone(), wished(wish)))
                .collect::<Map<_, _>>()
                .into()
        }
        mode => {
            let empty = Endpoint {
                network: mode.to_string(),
                ..Endpoint::default()
            };
            json!({ mode.to_string(): endpoint(&owner, &empty) })
        }
    }
}

/// An attachment that the next start will ask for.
fn wished(wish: &AttachmentWish) -> Value {
    let to_be = Endpoint {
        network: wish.network.clone(),
        aliases: wish.aliases.clone(),
        ..Endpoint::default()
    };
    let mut out = endpoint("", &to_be);
    if let Some(address) = wish.ipv4 {
        out["IPAMConfig"] = json!({ "IPv4Address": address.to_string() });
    }
    out
}

/// Writes one attachment of `owner`.
fn endpoint(owner: &str, end: &Endpoint) -> Value {
    fn text<T: ToString>(address: Option<T>) -> String {
        address.map(|a| a.to_string()).unwrap_or_default()
    }
    let id = if end.address.is_some() {
        endpoint_id(owner, &end.network_id)
    } else {
        String::new()
    };
    json!({
        "IPAMConfig": null,
        "Links": null,
        "Aliases": if end.aliases.is_empty() { Value::Null } else { json!(end.aliases) },
        "MacAddress": end.mac,
        "DriverOpts": null,
        "GwPriority": 0,
        "NetworkID": end.network_id,
        "EndpointID": id,
        "Gateway": text(end.gateway),
        "IPAddress": text(end.address),
        "IPPrefixLen": end.prefix_len,
        "IPv6Gateway": text(end.ipv6_gateway),
        "GlobalIPv6Address": text(end.ipv6),
        "GlobalIPv6PrefixLen": end.ipv6_prefix_len,
        "DNSNames": null,
    })
}

/// Writes `GET /exec/{id}/json`.
pub(crate) fn exec(info: &ExecInfo) -> Value {
    let (entrypoint, arguments) = match info.config.cmd.split_first() {
        Some((first, rest)) => (first.as_str(), rest),
        None => ("", &[][..]),
    };
    json!({
        "ID": info.id,
        "Running": info.running,
        "ExitCode": info.exit_code,
        "ProcessConfig": {
            "tty": info.config.tty,
            "entrypoint": entrypoint,
            "arguments": arguments,
            "privileged": info.config.privileged,
            "user": info.config.user,
        },
        "OpenStdin": info.config.attach_stdin,
        "OpenStderr": info.config.attach_stderr,
        "OpenStdout": info.config.attach_stdout,
        "CanRemove": !info.running && info.exit_code.is_some(),
        "ContainerID": info.container_id.to_string(),
        "DetachKeys": "",
        "Pid": info.pid,
    })
}
