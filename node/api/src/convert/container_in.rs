//! Reads what a client asks a container to be.

use super::common;
use super::host_in::host_config;
use super::network_in;
use crate::error::ApiResult;
use crate::fields::Fields;
use shoal_engine::{ContainerConfig, ContainerUpdate, ExecConfig, NetworkMode, TerminalSize};
use shoal_model::network::AttachmentWish;
use std::str::FromStr;

/// Reads the body of `POST /containers/create`.
pub(crate) fn container_config(mut body: Fields) -> ApiResult<ContainerConfig> {
    let mut host = body.object_or_empty("HostConfig")?;
    let host_config = host_config(&mut host)?;
    host.done()?;
    let networks = networking(&mut body, &host_config.network_mode)?;
    let config = ContainerConfig {
        image: body.string("Image")?,
        hostname: body.string("Hostname")?,
        domainname: body.string("Domainname")?,
        user: body.string("User")?,
        attach_stdin: body.bool("AttachStdin")?,
        attach_stdout: body.bool("AttachStdout")?,
        attach_stderr: body.bool("AttachStderr")?,
        tty: body.bool("Tty")?,
        open_stdin: body.bool("OpenStdin")?,
        stdin_once: body.bool("StdinOnce")?,
        env: body.strings("Env")?,
        cmd: not_empty(body.command("Cmd")?),
        entrypoint: not_empty(body.command("Entrypoint")?),
        working_dir: body.string("WorkingDir")?,
        labels: body.labels("Labels")?,
        volumes: body.set("Volumes")?.into_iter().collect(),
        exposed_ports: body
            .set("ExposedPorts")?
            .iter()
            .map(|port| shoal_engine::ContainerPort::from_str(port))
            .collect::<Result<_, _>>()?,
        healthcheck: common::healthcheck(&mut body, "Healthcheck")?,
        stop_signal: body.string("StopSignal")?,
        stop_timeout_s: body.opt_int("StopTimeout")?,
        network_disabled: body.bool("NetworkDisabled")?,
        endpoints: Vec::new(),
        networks,
        host: host_config,
        fencing: None,
    };
    if config.image.is_empty() {
        return Err(body.error("Image", "no image is given"));
    }
    body.refuse(&[
        ("ArgsEscaped", "it is for Windows"),
        ("OnBuild", "it belongs to images"),
        ("Shell", "it belongs to images"),
        ("MacAddress", "fixed hardware addresses are not done yet"),
        ("Platform", "use the query parameter `platform`"),
    ])?;
    body.done()?;
    Ok(config)
}

/// Docker reads an empty list as "the image's own".
fn not_empty(command: Option<Vec<String>>) -> Option<Vec<String>> {
    command.filter(|words| !words.is_empty())
}

/// The networks of a new container: with a network of the cluster, that one and any others; otherwise only the one of
/// the network mode, without settings of its own.
fn networking(body: &mut Fields, mode: &NetworkMode) -> ApiResult<Vec<AttachmentWish>> {
    let mut config = body.object_or_empty("NetworkingConfig")?;
    let mut wishes = Vec::new();
    if let NetworkMode::Named(name) = mode {
        wishes.push(AttachmentWish {
            network: name.clone(),
            ipv4: None,
            aliases: Vec::new(),
        });
    }
    for (name, mut endpoint) in config.objects_by_name("EndpointsConfig")? {
        let own = NetworkMode::parse(&name) == *mode;
        match (mode, own) {
            (NetworkMode::Named(_), true) => {
                wishes[0] = network_in::attachment_wish(&name, &mut endpoint)?;
            }
            (NetworkMode::Named(_), false) if !network_in::BUILTIN.contains(&name.as_str()) => {
                wishes.push(network_in::attachment_wish(&name, &mut endpoint)?);
            }
            (_, true) => no_wishes(&mut endpoint)?,
            (_, false) => {
                let reason = "a container is in the network of its network mode only, or in several of the cluster";
                return Err(config.error(&format!("EndpointsConfig.{name}"), reason));
            }
        }
        endpoint.refuse(&[
            ("Links", "links are not done yet"),
            ("MacAddress", "fixed hardware addresses are not done yet"),
        ])?;
        // What a client copied from an inspection: results, not wishes.
        endpoint.ignore(&[
            "NetworkID",
            "EndpointID",
            "Gateway",
            "IPAddress",
            "IPPrefixLen",
            "IPv6Gateway",
            "GlobalIPv6Address",
            "GlobalIPv6PrefixLen",
            "DNSNames",
        ]);
        endpoint.done()?;
    }
    config.done()?;
    Ok(wishes)
}

/// The engine's own networks take no wishes.
fn no_wishes(endpoint: &mut Fields) -> ApiResult<()> {
    endpoint.refuse(&[
        (
            "IPAMConfig",
            "user specified IP address is supported on user defined networks only",
        ),
        (
            "Aliases",
            "network-scoped aliases are only supported for user-defined networks",
        ),
        ("DriverOpts", "the bridge has none"),
        ("GwPriority", "there is one gateway"),
    ])
}

/// Reads the body of `POST /containers/{id}/exec`.
pub(crate) fn exec_config(mut body: Fields) -> ApiResult<ExecConfig> {
    let config = ExecConfig {
        cmd: body.command("Cmd")?.unwrap_or_default(),
        user: body.string("User")?,
        working_dir: body.string("WorkingDir")?,
        env: body.strings("Env")?,
        tty: body.bool("Tty")?,
        attach_stdin: body.bool("AttachStdin")?,
        attach_stdout: body.bool("AttachStdout")?,
        attach_stderr: body.bool("AttachStderr")?,
        privileged: body.bool("Privileged")?,
        console_size: console_size(&mut body)?,
    };
    if config.cmd.is_empty() {
        return Err(body.error("Cmd", "no exec command specified"));
    }
    // `Detach` is repeated at the start; the keys are read by the daemon's default only, see `attach`.
    body.ignore(&["Detach", "DetachKeys", "Container"]);
    body.done()?;
    Ok(config)
}

/// Reads `ConsoleSize`: `[height, width]`.
pub(crate) fn console_size(body: &mut Fields) -> ApiResult<Option<TerminalSize>> {
    let sizes: Vec<u16> = body.ints("ConsoleSize")?;
    match sizes.as_slice() {
        [] | [0, 0] => Ok(None),
        [height, width] => Ok(Some(TerminalSize {
            width: *width,
            height: *height,
        })),
        _ => Err(body.error("ConsoleSize", "expected [height, width]")),
    }
}

/// Reads the body of `POST /containers/{id}/update`.
pub(crate) fn container_update(mut body: Fields) -> ApiResult<ContainerUpdate> {
    let restart_policy = match body.object("RestartPolicy")? {
        None => None,
        Some(mut policy) => {
            let name = policy.string("Name")?;
            let read = super::host_in::restart_policy(&name, &mut policy)?;
            policy.done()?;
            (!name.is_empty()).then_some(read)
        }
    };
    let resources = super::host_in::resources(&mut body)?;
    body.done()?;
    let changes_limits = resources != shoal_engine::ResourceLimits::default();
    Ok(ContainerUpdate {
        resources: changes_limits.then_some(resources),
        restart_policy,
    })
}
