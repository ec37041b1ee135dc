//! Writes what belongs to this node alone: volumes, networks, statistics, events, facts.

use super::network_out::endpoint_id;
use crate::ops::LocalNode;
use crate::time::rfc3339;
use serde_json::{Map, Value, json};
use shoal_engine::info::{ContainerStats, InterfaceStats, NetworkInfo, VolumeInfo};
use shoal_engine::{EngineInfo, Event};
use shoal_model::Timestamp;

/// Writes a volume.
pub(crate) fn volume(info: &VolumeInfo) -> Value {
    let options = if info.options.is_empty() {
        Value::Null
    } else {
        json!(info.options)
    };
    let labels = if info.labels.is_empty() {
        Value::Null
    } else {
        json!(info.labels)
    };
    json!({
        "Name": info.name,
        "Driver": info.driver,
        "Mountpoint": info.mountpoint,
        "CreatedAt": rfc3339(info.created),
        "Labels": labels,
        "Options": options,
        "Scope": "local",
    })
}

/// Writes a network.
pub(crate) fn network(info: &NetworkInfo) -> Value {
    let config = if info.subnet.is_empty() {
        json!([])
    } else {
        let gateway = info.gateway.map(|a| a.to_string()).unwrap_or_default();
        json!([{ "Subnet": info.subnet, "Gateway": gateway }])
    };
    let mut options = Map::new();
    if !info.bridge.is_empty() {
        options.insert("com.docker.network.bridge.name".into(), json!(info.bridge));
        options.insert(
            "com.docker.network.driver.mtu".into(),
            json!(info.mtu.to_string()),
        );
    }
    let containers: Map<String, Value> = info
        .containers
        .iter()
        .map(|(id, name, end)| {
            let address = end.address.map(|a| format!("{a}/{}", end.prefix_len));
            let value = json!({
                "Name": name,
                "EndpointID": endpoint_id(&id.to_string(), &end.network_id),
                "MacAddress": end.mac,
                "IPv4Address": address.unwrap_or_default(),
                "IPv6Address": "",
            });
            (id.to_string(), value)
        })
        .collect();
    json!({
        "Name": info.name,
        "Id": info.id,
        "Created": rfc3339(info.created),
        "Scope": "local",
        "Driver": info.driver,
        "EnableIPv4": !info.subnet.is_empty(),
        "EnableIPv6": false,
        "IPAM": { "Driver": "default", "Options": null, "Config": config },
        "Internal": false,
        "Attachable": false,
        "Ingress": false,
        "ConfigFrom": { "Network": "" },
        "ConfigOnly": false,
        "Containers": containers,
        "Options": options,
        "Labels": {},
    })
}

/// Writes an event as one object; the caller adds the line end.
pub(crate) fn event(event: &Event) -> Value {
    let mut out = json!({
        "Type": event.kind.as_str(),
        "Action": event.action,
        "Actor": { "ID": event.actor_id, "Attributes": event.attributes },
        "scope": "local",
        "time": crate::time::unix_seconds(event.time),
        "timeNano": event.time.0,
    });
    // The fields of API versions before 1.22, which old clients still read for these two kinds.
    match event.kind {
        shoal_engine::EventType::Container => {
            out["status"] = json!(event.action);
            out["id"] = json!(event.actor_id);
            out["from"] = json!(event.attributes.get("image").cloned().unwrap_or_default());
        }
        shoal_engine::EventType::Image => {
            out["status"] = json!(event.action);
            out["id"] = json!(event.actor_id);
        }
        shoal_engine::EventType::Volume
        | shoal_engine::EventType::Network
        | shoal_engine::EventType::Daemon => {}
    }
    out
}

/// Writes one sample with the one before it, which the client takes rates from.
pub(crate) fn stats(
    id: &str,
    name: &str,
    sample: &ContainerStats,
    before: Option<&ContainerStats>,
) -> Value {
    let networks: Map<String, Value> = sample
        .networks
        .iter()
        .map(|(name, counters)| (name.clone(), interface(counters)))
        .collect();
    let block = |op: &str, value: u64| json!({"major": 0, "minor": 0, "op": op, "value": value});
    let zero = ContainerStats::default();
    let mut out = json!({
        "id": id,
        "name": format!("/{name}"),
        "read": rfc3339(sample.read),
        "preread": crate::time::rfc3339_or_never(before.map(|b| b.read)),
        "num_procs": 0,
        "pids_stats": { "current": sample.pids, "limit": sample.pids_limit },
        "cpu_stats": cpu(sample),
        "precpu_stats": cpu(before.unwrap_or(&zero)),
        "memory_stats": {
            "usage": sample.memory_usage_bytes,
            "limit": sample.memory_limit_bytes,
            // Version 1 of cgroups has the first name, version 2 the second; clients subtract whichever is there.
            "stats": {
                "total_inactive_file": sample.memory_inactive_file_bytes,
                "inactive_file": sample.memory_inactive_file_bytes,
            },
        },
        "blkio_stats": {
            "io_service_bytes_recursive": [
                block("read", sample.block_read_bytes),
                block("write", sample.block_write_bytes),
            ],
            "io_serviced_recursive": null,
            "io_queue_recursive": null,
            "io_service_time_recursive": null,
            "io_wait_time_recursive": null,
            "io_merged_recursive": null,
            "io_time_recursive": null,
            "sectors_recursive": null,
        },
        "storage_stats": {},
    });
    if !networks.is_empty() {
        out["networks"] = networks.into();
    }
    out
}

fn cpu(sample: &ContainerStats) -> Value {
    json!({
        "cpu_usage": {
            "total_usage": sample.cpu_total_ns,
            "usage_in_kernelmode": sample.cpu_system_ns,
            "usage_in_usermode": sample.cpu_user_ns,
        },
        "system_cpu_usage": sample.host_cpu_total_ns,
        "online_cpus": sample.online_cpus,
        "throttling_data": {
            "periods": 0,
            "throttled_periods": sample.throttled_periods,
            "throttled_time": sample.throttled_ns,
        },
    })
}

fn interface(counters: &InterfaceStats) -> Value {
    json!({
        "rx_bytes": counters.rx_bytes,
        "rx_packets": counters.rx_packets,
        "rx_errors": counters.rx_errors,
        "rx_dropped": counters.rx_dropped,
        "tx_bytes": counters.tx_bytes,
        "tx_packets": counters.tx_packets,
        "tx_errors": counters.tx_errors,
        "tx_dropped": counters.tx_dropped,
    })
}

/// Writes `GET /info` but for the cluster's counts, which the caller adds when this node is a manager.
pub(crate) fn info(info: &EngineInfo, local: &LocalNode, version: &str, now: Timestamp) -> Value {
    json!({
        "ID": local.node_id.map(|id| id.to_string()).unwrap_or_else(|| info.hostname.clone()),
        "Containers": info.containers,
        "ContainersRunning": info.containers_running,
        "ContainersPaused": info.containers_paused,
        "ContainersStopped": info.containers_stopped,
        "Images": info.images,
        "Driver": info.storage_driver,
        "DriverStatus": [["Backing", "overlayfs"]],
        "Plugins": {
            "Volume": ["local"],
            "Network": ["bridge", "host", "null", "overlay"],
            "Authorization": null,
            "Log": ["json-file", "none"],
        },
        "MemoryLimit": info.memory_limit,
        "SwapLimit": info.swap_limit,
        "CpuCfsPeriod": info.cpu_quota,
        "CpuCfsQuota": info.cpu_quota,
        "CPUShares": info.cpu_quota,
        "CPUSet": true,
        "PidsLimit": info.pids_limit,
        "IPv4Forwarding": info.ipv4_forwarding,
        "BridgeNfIptables": true,
        "BridgeNfIp6tables": true,
        "Debug": false,
        "NFd": 0,
        "NGoroutines": 0,
        "NEventsListener": 0,
        "OomKillDisable": info.cgroup_version == 1,
        "SystemTime": rfc3339(now),
        "LoggingDriver": info.log_driver,
        "CgroupDriver": info.cgroup_driver,
        "CgroupVersion": info.cgroup_version.to_string(),
        "KernelVersion": info.kernel_version,
        "OperatingSystem": info.operating_system,
        "OSVersion": info.os_version,
        "OSType": "linux",
        "Architecture": info.architecture,
        "IndexServerAddress": "https://index.docker.io/v1/",
        "RegistryConfig": {
            "InsecureRegistryCIDRs": ["127.0.0.0/8"],
            "IndexConfigs": {},
            "Mirrors": null,
        },
        "NCPU": info.cpus,
        "MemTotal": info.memory_bytes,
        "GenericResources": null,
        "DockerRootDir": info.data_root,
        "HttpProxy": "",
        "HttpsProxy": "",
        "NoProxy": "",
        "Name": info.hostname,
        "Labels": local.engine_labels,
        "ExperimentalBuild": false,
        "ServerVersion": version,
        "Runtimes": { "shoal": { "path": "shoal shim" } },
        "DefaultRuntime": "shoal",
        "Swarm": swarm(local),
        "LiveRestoreEnabled": true,
        "Isolation": "",
        "InitBinary": "shoal",
        "ContainerdCommit": { "ID": "" },
        "RuncCommit": { "ID": "" },
        "InitCommit": { "ID": "" },
        "SecurityOptions": ["name=seccomp,profile=builtin"],
        "Warnings": null,
    })
}

fn swarm(local: &LocalNode) -> Value {
    let managers: Vec<Value> = local
        .managers
        .iter()
        .map(|peer| json!({ "NodeID": peer.node_id.to_string(), "Addr": peer.addr.to_string() }))
        .collect();
    let error = match &local.state {
        crate::LocalState::Error(text) => text.as_str(),
        _ => local.manager_trouble.as_deref().unwrap_or_default(),
    };
    json!({
        "NodeID": local.node_id.map(|id| id.to_string()).unwrap_or_default(),
        "NodeAddr": local.advertise_addr.map(|a| a.to_string()).unwrap_or_default(),
        "LocalNodeState": local.state.as_str(),
        "ControlAvailable": local.control_available,
        "Error": error,
        "RemoteManagers": if managers.is_empty() { Value::Null } else { json!(managers) },
    })
}
