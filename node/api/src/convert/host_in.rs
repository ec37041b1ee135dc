//! Reads `HostConfig`.

use super::common;
use crate::error::ApiResult;
use crate::fields::Fields;
use shoal_engine::{
    ContainerPort, DeviceMapping, HostConfig, LogConfig, NamespaceMode, NetworkMode, PortBinding,
    ResourceLimits, RestartPolicy,
};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;

/// Reads what is known of `HostConfig`; the caller refuses the rest.
pub(crate) fn host_config(fields: &mut Fields) -> ApiResult<HostConfig> {
    let mut policy = fields.object_or_empty("RestartPolicy")?;
    let name = policy.string("Name")?;
    let restart_policy = restart_policy(&name, &mut policy)?;
    policy.done()?;
    let config = HostConfig {
        binds: fields.strings("Binds")?,
        mounts: common::mounts(fields)?,
        tmpfs: fields.labels("Tmpfs")?,
        volumes_from: fields.strings("VolumesFrom")?,
        network_mode: NetworkMode::parse(&fields.string("NetworkMode")?),
        port_bindings: port_bindings(fields)?,
        publish_all_ports: fields.bool("PublishAllPorts")?,
        restart_policy,
        auto_remove: fields.bool("AutoRemove")?,
        privileged: fields.bool("Privileged")?,
        cap_add: fields.strings("CapAdd")?,
        cap_drop: fields.strings("CapDrop")?,
        security_opt: fields.strings("SecurityOpt")?,
        read_only_rootfs: fields.bool("ReadonlyRootfs")?,
        dns: fields.strings("Dns")?,
        dns_search: fields.strings("DnsSearch")?,
        dns_options: fields.strings("DnsOptions")?,
        extra_hosts: fields.strings("ExtraHosts")?,
        pid_mode: namespace(fields, "PidMode")?,
        ipc_mode: namespace(fields, "IpcMode")?,
        uts_mode: namespace(fields, "UTSMode")?,
        cgroupns_mode: namespace(fields, "CgroupnsMode")?,
        resources: resources(fields)?,
        oom_score_adj: fields.int("OomScoreAdj")?,
        oom_kill_disable: fields.bool("OomKillDisable")?,
        shm_size_bytes: fields.int("ShmSize")?,
        sysctls: fields.labels("Sysctls")?,
        ulimits: common::ulimits(fields)?,
        devices: devices(fields)?,
        group_add: fields.strings("GroupAdd")?,
        init: fields.bool("Init")?,
        log: log_config(fields)?,
        masked_paths: fields.opt_strings("MaskedPaths")?,
        readonly_paths: fields.opt_strings("ReadonlyPaths")?,
    };
    refuse_the_rest(fields)?;
    Ok(config)
}

fn refuse_the_rest(fields: &mut Fields) -> ApiResult<()> {
    let volume_driver = fields.string("VolumeDriver")?;
    if !matches!(volume_driver.as_str(), "" | "local") {
        let reason = format!("`{volume_driver}`: only `local` is supported");
        return Err(fields.error("VolumeDriver", reason));
    }
    let isolation = fields.string("Isolation")?;
    if !matches!(isolation.as_str(), "" | "default") {
        return Err(fields.error("Isolation", format!("`{isolation}` is for Windows")));
    }
    let runtime = fields.string("Runtime")?;
    if !matches!(runtime.as_str(), "" | "shoal") {
        return Err(fields.error(
            "Runtime",
            format!("unknown or invalid runtime name: {runtime}"),
        ));
    }
    fields.refuse(&[
        ("Links", "links are not done yet"),
        ("Cgroup", "sharing a cgroup is not done"),
        ("UsernsMode", "user namespaces are not done yet"),
        ("StorageOpt", "quotas are not done"),
        ("Annotations", "annotations are not done yet"),
    ])?;
    // Notes of the client to itself, and the size of a terminal, which the client sets again once it is attached.
    fields.ignore(&["ContainerIDFile", "ConsoleSize"]);
    Ok(())
}

fn namespace(fields: &mut Fields, name: &str) -> ApiResult<NamespaceMode> {
    let text = fields.string(name)?;
    Ok(NamespaceMode::parse(&fields.path_of(name), &text)?)
}

pub(crate) fn restart_policy(name: &str, fields: &mut Fields) -> ApiResult<RestartPolicy> {
    let retries_max = fields.int("MaximumRetryCount")?;
    let policy = match name {
        "" | "no" => RestartPolicy::No,
        "always" => RestartPolicy::Always,
        "unless-stopped" => RestartPolicy::UnlessStopped,
        "on-failure" => return Ok(RestartPolicy::OnFailure { retries_max }),
        other => {
            let reason =
                format!("`{other}`: expected one of no, always, unless-stopped, on-failure");
            return Err(fields.error("Name", reason));
        }
    };
    if retries_max != 0 {
        return Err(fields.error("MaximumRetryCount", "can only be used with `on-failure`"));
    }
    Ok(policy)
}

fn port_bindings(fields: &mut Fields) -> ApiResult<BTreeMap<ContainerPort, Vec<PortBinding>>> {
    let Some(ports) = fields.object("PortBindings")? else {
        return Ok(BTreeMap::new());
    };
    ports
        .take_lists()?
        .into_iter()
        .map(|(port, bindings)| {
            let port = ContainerPort::from_str(&port)?;
            let mut bindings: Vec<PortBinding> = bindings
                .into_iter()
                .map(port_binding)
                .collect::<ApiResult<_>>()?;
            if bindings.is_empty() {
                bindings.push(PortBinding::default());
            }
            Ok((port, bindings))
        })
        .collect()
}

fn port_binding(mut fields: Fields) -> ApiResult<PortBinding> {
    let host_ip = match fields.string("HostIp")?.as_str() {
        "" => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        text => text
            .parse()
            .map_err(|_| fields.error("HostIp", format!("`{text}` is not an address")))?,
    };
    let text = fields.string("HostPort")?;
    let (first, last) = text.split_once('-').unwrap_or((&text, &text));
    let parse = |text: &str| match text {
        "" => Some(0u16),
        text => text.parse().ok(),
    };
    let host_ports = match (parse(first), parse(last)) {
        (Some(first), Some(last)) if first <= last => (first, last),
        _ => return Err(fields.error("HostPort", format!("`{text}` is not a port or a range"))),
    };
    fields.done()?;
    Ok(PortBinding {
        host_ip,
        host_ports,
    })
}

fn devices(fields: &mut Fields) -> ApiResult<Vec<DeviceMapping>> {
    let read = |mut device: Fields| {
        let mapping = DeviceMapping {
            host_path: device.string("PathOnHost")?,
            container_path: device.string("PathInContainer")?,
            permissions: device.string("CgroupPermissions")?,
        };
        device.done()?;
        Ok(mapping)
    };
    fields.objects("Devices")?.into_iter().map(read).collect()
}

fn log_config(fields: &mut Fields) -> ApiResult<LogConfig> {
    let mut log = fields.object_or_empty("LogConfig")?;
    let config = LogConfig {
        driver: log.string("Type")?,
        options: log.labels("Config")?,
    };
    log.done()?;
    Ok(config)
}

/// Reads the limits, which stand flat in `HostConfig` and in the body of an update.
pub(crate) fn resources(fields: &mut Fields) -> ApiResult<ResourceLimits> {
    let limits = ResourceLimits {
        memory_bytes: fields.int("Memory")?,
        memory_swap_bytes: fields.int("MemorySwap")?,
        memory_reservation_bytes: fields.int("MemoryReservation")?,
        nano_cpus: fields.int("NanoCpus")?,
        cpu_shares: fields.int("CpuShares")?,
        cpu_quota: fields.int("CpuQuota")?,
        cpu_period: fields.int("CpuPeriod")?,
        cpuset_cpus: fields.string("CpusetCpus")?,
        cpuset_mems: fields.string("CpusetMems")?,
        pids_limit: fields.int("PidsLimit")?,
    };
    let swappiness = fields.opt_int::<i64>("MemorySwappiness")?.unwrap_or(-1);
    if swappiness != -1 {
        return Err(fields.error("MemorySwappiness", "not supported: leave it at -1"));
    }
    fields.refuse(&[
        (
            "CgroupParent",
            "containers live under the daemon's own cgroup",
        ),
        ("BlkioWeight", "limits of block devices are not done yet"),
        (
            "BlkioWeightDevice",
            "limits of block devices are not done yet",
        ),
        (
            "BlkioDeviceReadBps",
            "limits of block devices are not done yet",
        ),
        (
            "BlkioDeviceWriteBps",
            "limits of block devices are not done yet",
        ),
        (
            "BlkioDeviceReadIOps",
            "limits of block devices are not done yet",
        ),
        (
            "BlkioDeviceWriteIOps",
            "limits of block devices are not done yet",
        ),
        ("CpuRealtimePeriod", "real-time scheduling is not done"),
        ("CpuRealtimeRuntime", "real-time scheduling is not done"),
        ("DeviceCgroupRules", "device rules are not done yet"),
        ("DeviceRequests", "there are no device drivers"),
        ("KernelMemory", "the kernel has dropped it"),
        ("KernelMemoryTCP", "the kernel has dropped it"),
        ("CpuCount", "it is for Windows"),
        ("CpuPercent", "it is for Windows"),
        ("IOMaximumIOps", "it is for Windows"),
        ("IOMaximumBandwidth", "it is for Windows"),
    ])?;
    Ok(limits)
}
