//! Words of flags: sizes, durations, key=value pairs, mounts, ports.

use crate::error::{CliError, Result};
use bollard::models::{
    EndpointPortConfig, EndpointPortConfigProtocolEnum, EndpointPortConfigPublishModeEnum, Mount,
    MountBindOptions, MountBindOptionsPropagationEnum, MountTmpfsOptions, MountType,
    MountVolumeOptions, MountVolumeOptionsDriverConfig, ResourcesUlimits,
};
use std::collections::HashMap;

/// A flag's argument that can't be understood.
pub(crate) fn invalid(flag: &str, value: &str, expected: &str) -> CliError {
    CliError::Usage(format!(
        "invalid argument \"{value}\" for \"{flag}\": {expected}"
    ))
}

/// `64m`, `1.5g`, `1GiB`, `1000`: bytes, binary units.
pub(crate) fn bytes(flag: &str, text: &str) -> Result<i64> {
    let error = || invalid(flag, text, "expected a size such as 64m or 1g");
    let lower = text.trim().to_ascii_lowercase();
    let digits_end = lower
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(lower.len());
    let (number, unit) = lower.split_at(digits_end);
    let shift = match unit.trim().trim_end_matches('b').trim_end_matches('i') {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        _ => return Err(error()),
    };
    let number: f64 = number.parse().map_err(|_| error())?;
    let value = number * f64::from(1u32 << (shift / 2)) * f64::from(1u32 << (shift - shift / 2));
    if value.is_finite() && value < i64::MAX as f64 {
        Ok(value as i64)
    } else {
        Err(error())
    }
}

/// `1.5` CPUs in billionths.
pub(crate) fn nano_cpus(flag: &str, text: &str) -> Result<i64> {
    let error = || invalid(flag, text, "expected a number of CPUs such as 0.5");
    let cpus: f64 = text.parse().map_err(|_| error())?;
    if cpus < 0.0 || !cpus.is_finite() || cpus > 1e6 {
        return Err(error());
    }
    Ok((cpus * 1e9).round() as i64)
}

/// Go's durations: `300ms`, `1m30s`, `2h`; nanoseconds.
pub(crate) fn duration(flag: &str, text: &str) -> Result<i64> {
    let error = || {
        invalid(
            flag,
            text,
            "expected a duration such as 300ms, 10s or 1m30s",
        )
    };
    if text == "0" {
        return Ok(0);
    }
    let mut rest = text;
    let mut total = 0f64;
    while !rest.is_empty() {
        let digits = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .ok_or_else(error)?;
        let number: f64 = rest[..digits].parse().map_err(|_| error())?;
        rest = &rest[digits..];
        let unit_end = rest
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(rest.len());
        let unit = match &rest[..unit_end] {
            "ns" => 1.0,
            "us" | "µs" => 1e3,
            "ms" => 1e6,
            "s" => 1e9,
            "m" => 60e9,
            "h" => 3600e9,
            _ => return Err(error()),
        };
        total += number * unit;
        rest = &rest[unit_end..];
    }
    if text.is_empty() || total > i64::MAX as f64 {
        Err(error())
    } else {
        Ok(total as i64)
    }
}

/// `key=value`; a bare key has an empty value.
pub(crate) fn pairs(texts: &[String]) -> HashMap<String, String> {
    let split = |text: &String| match text.split_once('=') {
        Some((key, value)) => (key.to_owned(), value.to_owned()),
        None => (text.clone(), String::new()),
    };
    texts.iter().map(split).collect()
}

/// `KEY=value`, or `KEY` for the value in our own environment; files have a variable per line.
pub(crate) fn environment(variables: &[String], files: &[String]) -> Result<Vec<String>> {
    let mut all = Vec::new();
    for file in files {
        let text = std::fs::read_to_string(file)
            .map_err(CliError::io(format!("read the environment file `{file}`")))?;
        let lines = text.lines().map(str::trim_start);
        all.extend(
            lines
                .filter(|l| !l.is_empty() && !l.starts_with('#'))
                .map(str::to_owned),
        );
    }
    all.extend(variables.iter().cloned());
    Ok(all
        .into_iter()
        .filter_map(|variable| match variable.contains('=') {
            true => Some(variable),
            false => std::env::var(&variable)
                .ok()
                .map(|value| format!("{variable}={value}")),
        })
        .collect())
}

/// `nofile=1024:2048`
pub(crate) fn ulimit(text: &str) -> Result<ResourcesUlimits> {
    let error = || invalid("--ulimit", text, "expected NAME=SOFT[:HARD]");
    let (name, limits) = text.split_once('=').ok_or_else(error)?;
    let (soft, hard) = limits.split_once(':').unwrap_or((limits, limits));
    Ok(ResourcesUlimits {
        name: Some(name.to_owned()),
        soft: Some(soft.parse().map_err(|_| error())?),
        hard: Some(hard.parse().map_err(|_| error())?),
    })
}

fn is_true(flag: &str, value: &str) -> Result<bool> {
    match value {
        "" | "true" | "1" => Ok(true),
        "false" | "0" => Ok(false),
        other => Err(invalid(flag, other, "expected true or false")),
    }
}

/// `type=volume,source=data,target=/data,readonly`
pub(crate) fn mount(text: &str) -> Result<Mount> {
    const FLAG: &str = "--mount";
    let mut mount = Mount {
        typ: Some(MountType::VOLUME),
        ..Mount::default()
    };
    let mut volume = MountVolumeOptions::default();
    let mut driver = MountVolumeOptionsDriverConfig::default();
    let mut tmpfs = MountTmpfsOptions::default();
    let mut bind = MountBindOptions::default();
    for field in text.split(',') {
        let (key, value) = field.split_once('=').unwrap_or((field, ""));
        match key.to_ascii_lowercase().as_str() {
            "type" => {
                mount.typ = Some(match value {
                    "bind" => MountType::BIND,
                    "volume" => MountType::VOLUME,
                    "tmpfs" => MountType::TMPFS,
                    other => return Err(invalid(FLAG, other, "the type is bind, volume or tmpfs")),
                });
            }
            "source" | "src" => mount.source = Some(value.to_owned()),
            "target" | "dst" | "destination" => mount.target = Some(value.to_owned()),
            "readonly" | "ro" => mount.read_only = Some(is_true(FLAG, value)?),
            "volume-nocopy" => volume.no_copy = Some(is_true(FLAG, value)?),
            "volume-driver" => driver.name = Some(value.to_owned()),
            "volume-opt" => {
                driver
                    .options
                    .get_or_insert_default()
                    .extend(pairs(&[value.to_owned()]));
            }
            "volume-label" => {
                volume
                    .labels
                    .get_or_insert_default()
                    .extend(pairs(&[value.to_owned()]));
            }
            "tmpfs-size" => tmpfs.size_bytes = Some(bytes(FLAG, value)?),
            "tmpfs-mode" => {
                let mode = i64::from_str_radix(value, 8);
                tmpfs.mode = Some(mode.map_err(|_| invalid(FLAG, value, "the mode is octal"))?);
            }
            "bind-propagation" => {
                let known: std::result::Result<MountBindOptionsPropagationEnum, _> = value.parse();
                bind.propagation =
                    Some(known.map_err(|_| invalid(FLAG, value, "unknown propagation"))?);
            }
            other => return Err(invalid(FLAG, text, &format!("unknown field `{other}`"))),
        }
    }
    if mount.target.as_deref().unwrap_or_default().is_empty() {
        return Err(invalid(FLAG, text, "target is required"));
    }
    if driver != MountVolumeOptionsDriverConfig::default() {
        volume.driver_config = Some(driver);
    }
    let some = |is_default: bool| !is_default;
    mount.volume_options = some(volume == MountVolumeOptions::default()).then_some(volume);
    mount.tmpfs_options = some(tmpfs == MountTmpfsOptions::default()).then_some(tmpfs);
    mount.bind_options = some(bind == MountBindOptions::default()).then_some(bind);
    Ok(mount)
}

/// A published port of a service, with what Docker's API has no field for.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ServicePort {
    pub(crate) port: EndpointPortConfig,
    /// Addresses of the nodes that it is published on.
    pub(crate) addrs: Vec<String>,
    /// Clients that may connect.
    pub(crate) allow: Vec<String>,
}

/// `published=8080,target=80,protocol=tcp,mode=host,addr=10.0.0.0/8,allow=10.0.0.0/8`, or `8080:80/tcp`.
pub(crate) fn service_port(text: &str) -> Result<ServicePort> {
    const FLAG: &str = "--publish";
    let number = |value: &str| -> Result<i64> {
        let port: u16 = value
            .parse()
            .map_err(|_| invalid(FLAG, text, "a port is 1 to 65535"))?;
        Ok(i64::from(port))
    };
    let mut port = EndpointPortConfig {
        protocol: Some(EndpointPortConfigProtocolEnum::TCP),
        publish_mode: Some(EndpointPortConfigPublishModeEnum::INGRESS),
        ..EndpointPortConfig::default()
    };
    let (mut addrs, mut allow) = (Vec::new(), Vec::new());
    let protocol = |value: &str| match value {
        "tcp" => Ok(Some(EndpointPortConfigProtocolEnum::TCP)),
        "udp" => Ok(Some(EndpointPortConfigProtocolEnum::UDP)),
        _ => Err(invalid(FLAG, text, "the protocol is tcp or udp")),
    };
    if !text.contains('=') {
        let (ports, transport) = text.split_once('/').unwrap_or((text, "tcp"));
        port.protocol = protocol(transport)?;
        let (published, target) = match ports.split_once(':') {
            Some((published, target)) => (Some(number(published)?), number(target)?),
            None => (None, number(ports)?),
        };
        port.published_port = published;
        port.target_port = Some(target);
        return Ok(ServicePort { port, addrs, allow });
    }
    for field in text.split(',') {
        let (key, value) = field.split_once('=').unwrap_or((field, ""));
        match key {
            "published" => port.published_port = Some(number(value)?),
            "target" => port.target_port = Some(number(value)?),
            "protocol" => port.protocol = protocol(value)?,
            "addr" => addrs.push(block(FLAG, value)?),
            "allow" => allow.push(block(FLAG, value)?),
            "mode" => {
                port.publish_mode = Some(match value {
                    "host" => EndpointPortConfigPublishModeEnum::HOST,
                    "ingress" => EndpointPortConfigPublishModeEnum::INGRESS,
                    _ => return Err(invalid(FLAG, text, "the mode is host or ingress")),
                });
            }
            other => return Err(invalid(FLAG, text, &format!("unknown field `{other}`"))),
        }
    }
    if port.target_port.is_none() {
        return Err(invalid(FLAG, text, "target is required"));
    }
    Ok(ServicePort { port, addrs, allow })
}

/// An address, or a block of addresses in `ADDRESS/LENGTH`.
fn block(flag: &str, text: &str) -> Result<String> {
    let (address, length) = match text.split_once('/') {
        Some((address, length)) => (address, Some(length)),
        None => (text, None),
    };
    let bits = match address.parse::<std::net::IpAddr>() {
        Ok(std::net::IpAddr::V4(_)) => Some(32),
        Ok(std::net::IpAddr::V6(_)) => Some(128),
        Err(_) => None,
    };
    let fits = |most: u8| length.is_none_or(|text| text.parse().is_ok_and(|n: u8| n <= most));
    if bits.is_some_and(fits) {
        Ok(text.to_owned())
    } else {
        Err(invalid(
            flag,
            text,
            "expected an address or a block such as 10.0.0.0/8",
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_durations() {
        assert_eq!(bytes("-m", "64m").unwrap(), 64 << 20);
        assert_eq!(bytes("-m", "1.5GiB").unwrap(), 3 << 29);
        assert_eq!(duration("--delay", "1m30s").unwrap(), 90_000_000_000);
        assert_eq!(duration("--delay", "300ms").unwrap(), 300_000_000);
        for wrong in ["", "10", "s", "10x"] {
            assert!(duration("--delay", wrong).is_err(), "{wrong}");
        }
        assert!(bytes("-m", "12q").is_err());
    }

    #[test]
    fn ports_in_both_forms() {
        let port = service_port("mode=host,target=8080,published=80")
            .unwrap()
            .port;
        assert_eq!(
            (port.target_port, port.published_port),
            (Some(8080), Some(80))
        );
        let port = service_port("80:8080/udp").unwrap().port;
        assert_eq!(port.protocol, Some(EndpointPortConfigProtocolEnum::UDP));
        assert_eq!(
            port.publish_mode,
            Some(EndpointPortConfigPublishModeEnum::INGRESS)
        );
        let long = service_port("published=80,target=80,addr=10.0.0.0/8,allow=::1,addr=fd00::/8");
        let long = long.unwrap();
        assert_eq!(long.addrs, ["10.0.0.0/8", "fd00::/8"]);
        assert_eq!(long.allow, ["::1"]);
        for wrong in ["10.0.0.0/33", "x", "10.0.0.0/x"] {
            let text = format!("target=80,addr={wrong}");
            assert!(service_port(&text).is_err(), "{wrong}");
        }
        let error = service_port("published=80").unwrap_err();
        assert!(error.to_string().contains("target is required"));
    }

    #[test]
    fn mounts_need_a_target() {
        assert!(mount("type=volume,source=data").is_err());
        let parsed = mount("type=tmpfs,target=/t,tmpfs-size=1m").unwrap();
        assert_eq!(parsed.tmpfs_options.unwrap().size_bytes, Some(1 << 20));
    }
}
