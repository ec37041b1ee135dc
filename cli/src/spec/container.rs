//! From the flags of `run` and `create` to a container's settings.

use super::{network, parse, service};
use crate::args::container::ContainerFlags;
use crate::error::{CliError, Result};
use bollard::models::{
    ContainerCreateBody, DeviceMapping, HostConfig, HostConfigLogConfig, NetworkingConfig,
    PortBinding, RestartPolicy, RestartPolicyNameEnum,
};
use std::collections::HashMap;

/// How the terminal of the client is connected.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Attach {
    pub(crate) stdin: bool,
    pub(crate) output: bool,
}

fn some_unless_empty<T>(list: Vec<T>) -> Option<Vec<T>> {
    (!list.is_empty()).then_some(list)
}

fn usage(text: String) -> CliError {
    CliError::Usage(text)
}

/// The body of the create request.
pub(crate) fn body(flags: &ContainerFlags, attach: Attach) -> Result<ContainerCreateBody> {
    let (exposed, bindings) = ports(&flags.ports)?;
    let (binds, anonymous) = volumes(&flags.volumes)?;
    let networks =
        network::of_container(&flags.networks, flags.ip.as_deref(), &flags.network_aliases)?;
    let mut healthcheck = None;
    service::health(&mut healthcheck, &flags.health)?;
    Ok(ContainerCreateBody {
        hostname: flags.hostname.clone(),
        user: flags.user.clone(),
        attach_stdin: Some(attach.stdin),
        attach_stdout: Some(attach.output),
        attach_stderr: Some(attach.output),
        exposed_ports: some_unless_empty(exposed),
        tty: Some(flags.tty),
        open_stdin: Some(flags.interactive),
        stdin_once: Some(flags.interactive && attach.stdin),
        env: some_unless_empty(parse::environment(&flags.env, &flags.env_file)?),
        cmd: some_unless_empty(flags.command.clone()),
        healthcheck,
        image: Some(flags.image.clone()),
        volumes: some_unless_empty(anonymous),
        working_dir: flags.workdir.clone(),
        entrypoint: flags.entrypoint.clone().map(|entrypoint| vec![entrypoint]),
        labels: (!flags.labels.is_empty()).then(|| parse::pairs(&flags.labels)),
        stop_signal: flags.stop_signal.clone(),
        stop_timeout: flags.stop_timeout,
        host_config: Some(HostConfig {
            binds: some_unless_empty(binds),
            network_mode: Some(networks.mode),
            port_bindings: (!bindings.is_empty()).then_some(bindings),
            ..host_config(flags)?
        }),
        networking_config: (!networks.endpoints.is_empty()).then(|| NetworkingConfig {
            endpoints_config: Some(networks.endpoints.into_iter().collect()),
        }),
        ..ContainerCreateBody::default()
    })
}

fn host_config(flags: &ContainerFlags) -> Result<HostConfig> {
    let bytes = |flag, text: &Option<String>| match text.as_deref() {
        Some("-1") => Ok(Some(-1)),
        Some(text) => parse::bytes(flag, text).map(Some),
        None => Ok(None),
    };
    let list = |list: &Vec<String>| some_unless_empty(list.clone());
    let log_config = HostConfigLogConfig {
        typ: flags.log_driver.clone(),
        config: (!flags.log_opts.is_empty()).then(|| parse::pairs(&flags.log_opts)),
    };
    Ok(HostConfig {
        auto_remove: flags.rm.then_some(true),
        restart_policy: Some(restart_policy(&flags.restart)?),
        readonly_rootfs: flags.read_only.then_some(true),
        init: flags.init.then_some(true),
        privileged: flags.privileged.then_some(true),
        cap_add: list(&flags.cap_add),
        cap_drop: list(&flags.cap_drop),
        security_opt: list(&flags.security_opt),
        memory: bytes("--memory", &flags.memory)?,
        memory_swap: bytes("--memory-swap", &flags.memory_swap)?,
        memory_reservation: bytes("--memory-reservation", &flags.memory_reservation)?,
        nano_cpus: flags
            .cpus
            .as_deref()
            .map(|n| parse::nano_cpus("--cpus", n))
            .transpose()?,
        cpu_shares: flags.cpu_shares,
        cpuset_cpus: flags.cpuset_cpus.clone(),
        pids_limit: flags.pids_limit,
        ulimits: some_unless_empty(
            flags
                .ulimits
                .iter()
                .map(|limit| parse::ulimit(limit))
                .collect::<Result<_>>()?,
        ),
        sysctls: (!flags.sysctls.is_empty()).then(|| parse::pairs(&flags.sysctls)),
        devices: some_unless_empty(flags.devices.iter().map(|text| device(text)).collect()),
        shm_size: bytes("--shm-size", &flags.shm_size)?,
        oom_score_adj: flags.oom_score_adj,
        dns: list(&flags.dns),
        dns_search: list(&flags.dns_search),
        dns_options: list(&flags.dns_option),
        extra_hosts: list(&flags.hosts),
        group_add: list(&flags.group_add),
        mounts: some_unless_empty(
            flags
                .mounts
                .iter()
                .map(|mount| parse::mount(mount))
                .collect::<Result<_>>()?,
        ),
        tmpfs: (!flags.tmpfs.is_empty()).then(|| tmpfs(&flags.tmpfs)),
        log_config: (log_config != HostConfigLogConfig::default()).then_some(log_config),
        ..HostConfig::default()
    })
}

fn tmpfs(texts: &[String]) -> HashMap<String, String> {
    let split = |text: &String| {
        let (path, options) = text.split_once(':').unwrap_or((text, ""));
        (path.to_owned(), options.to_owned())
    };
    texts.iter().map(split).collect()
}

fn device(text: &str) -> DeviceMapping {
    let mut parts = text.split(':');
    let on_host = parts.next().unwrap_or_default().to_owned();
    let second = parts.next();
    let is_mode =
        |part: &&str| !part.starts_with('/') && part.bytes().all(|byte| b"rwm".contains(&byte));
    let (inside, mode) = match (second, parts.next()) {
        (Some(mode), None) if is_mode(&mode) => (None, Some(mode)),
        (inside, mode) => (inside, mode),
    };
    DeviceMapping {
        path_in_container: Some(inside.map_or_else(|| on_host.clone(), str::to_owned)),
        path_on_host: Some(on_host),
        cgroup_permissions: Some(mode.unwrap_or("rwm").to_owned()),
    }
}

fn restart_policy(text: &str) -> Result<RestartPolicy> {
    let (name, count) = text.split_once(':').unwrap_or((text, ""));
    let error = || {
        let expected = "expected no, on-failure[:N], always or unless-stopped";
        usage(format!("invalid restart policy \"{text}\": {expected}"))
    };
    let name = match name {
        "" | "no" => RestartPolicyNameEnum::NO,
        "on-failure" => RestartPolicyNameEnum::ON_FAILURE,
        "always" => RestartPolicyNameEnum::ALWAYS,
        "unless-stopped" => RestartPolicyNameEnum::UNLESS_STOPPED,
        _ => return Err(error()),
    };
    let maximum = match count {
        "" => None,
        count => Some(count.parse().map_err(|_| error())?),
    };
    Ok(RestartPolicy {
        name: Some(name),
        maximum_retry_count: maximum,
    })
}

type Bindings = HashMap<String, Option<Vec<PortBinding>>>;

/// `[[IP:]HOSTPORT:]PORT[/PROTOCOL]`, ports may be ranges of equal length.
fn ports(texts: &[String]) -> Result<(Vec<String>, Bindings)> {
    let mut exposed = Vec::new();
    let mut bindings = Bindings::new();
    for text in texts {
        let error = || usage(format!("invalid published port \"{text}\""));
        let (numbers, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
        if !["tcp", "udp"].contains(&protocol) {
            return Err(error());
        }
        let (rest, inside) = match numbers.rsplit_once(':') {
            Some((rest, inside)) => (Some(rest), inside),
            None => (None, numbers),
        };
        let (address, outside) = match rest.map(|rest| rest.rsplit_once(':').unwrap_or(("", rest)))
        {
            Some((address, outside)) => (address.trim_matches(['[', ']']), outside),
            None => ("", ""),
        };
        let inside = range(inside).ok_or_else(error)?;
        let outside = match outside {
            "" => vec![None; inside.len()],
            outside => range(outside)
                .ok_or_else(error)?
                .into_iter()
                .map(Some)
                .collect(),
        };
        if inside.len() != outside.len() {
            return Err(usage(format!(
                "invalid ranges in published port \"{text}\""
            )));
        }
        for (inside, outside) in inside.into_iter().zip(outside) {
            let key = format!("{inside}/{protocol}");
            exposed.push(key.clone());
            bindings
                .entry(key)
                .or_default()
                .get_or_insert_default()
                .push(PortBinding {
                    host_ip: Some(address.to_owned()),
                    host_port: Some(outside.map(|port| port.to_string()).unwrap_or_default()),
                });
        }
    }
    Ok((exposed, bindings))
}

fn range(text: &str) -> Option<Vec<u16>> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (first.parse().ok()?, last.parse().ok()?);
    (first > 0 && first <= last).then(|| (first..=last).collect())
}

/// `SOURCE:TARGET[:OPTIONS]` goes to the binds, a bare path is an anonymous volume.
fn volumes(texts: &[String]) -> Result<(Vec<String>, Vec<String>)> {
    let mut binds = Vec::new();
    let mut anonymous = Vec::new();
    for text in texts {
        match text.split_once(':') {
            None if text.starts_with('/') => anonymous.push(text.clone()),
            None => {
                return Err(usage(format!(
                    "invalid volume \"{text}\": the path is absolute"
                )));
            }
            // A relative source is a path only when it says so, as in docker.
            Some((source, rest)) if source.starts_with('.') || source.starts_with('~') => {
                let path = std::path::absolute(source)
                    .map_err(CliError::io(format!("resolve the path `{source}`")))?;
                binds.push(format!("{}:{rest}", path.display()));
            }
            Some(_) => binds.push(text.clone()),
        }
    }
    Ok((binds, anonymous))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_in_every_form() {
        let texts = ["80", "8080:80", "127.0.0.1:53:53/udp", "9000-9001:90-91"];
        let (exposed, bindings) = ports(&texts.map(str::to_owned)).unwrap();
        assert_eq!(exposed, ["80/tcp", "80/tcp", "53/udp", "90/tcp", "91/tcp"]);
        let dns = bindings["53/udp"].as_ref().unwrap();
        assert_eq!(dns[0].host_ip.as_deref(), Some("127.0.0.1"));
        for wrong in ["", "x", "80/sctp", "1-2:3", "70000"] {
            assert!(ports(&[wrong.to_owned()]).is_err(), "{wrong}");
        }
    }

    #[test]
    fn devices_and_restart_policies() {
        let mapping = device("/dev/fuse:rw");
        assert_eq!(mapping.cgroup_permissions.as_deref(), Some("rw"));
        assert_eq!(mapping.path_in_container.as_deref(), Some("/dev/fuse"));
        assert_eq!(
            restart_policy("on-failure:3").unwrap().maximum_retry_count,
            Some(3)
        );
        assert!(restart_policy("sometimes").is_err());
    }
}
