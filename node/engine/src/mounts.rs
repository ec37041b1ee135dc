//! Reads mounts in all the forms in which users write them.

use crate::config::ContainerConfig;
use crate::error::{EngineError, Result};
use crate::info::{MountPoint, MountPointKind};
use shoal_model::Labels;
use shoal_model::spec::MountKind;
use std::collections::BTreeMap;

/// Most characters of a volume's name.
const VOLUME_NAME_CHARS_MAX: usize = 255;

/// Propagations of a bind, see mount(2).
const PROPAGATIONS: [&str; 6] = [
    "private", "rprivate", "shared", "rshared", "slave", "rslave",
];

/// A volume that a mount wants.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct VolumeWish {
    pub(crate) driver: String,
    pub(crate) options: BTreeMap<String, String>,
    pub(crate) labels: Labels,
}

/// A mount as wished: volumes have neither path nor, if anonymous, name yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MountWish {
    pub(crate) point: MountPoint,
    pub(crate) volume: VolumeWish,
}

/// All mounts of a merged configuration, parents before children. Later forms of one target win over the image's
/// volumes; two of the user's own on one target are refused.
pub(crate) fn wishes(config: &ContainerConfig) -> Result<Vec<MountWish>> {
    let mut found: BTreeMap<String, MountWish> = BTreeMap::new();
    let mut add = |wish: MountWish| -> Result<()> {
        let target = wish.point.target.clone();
        match found.insert(target.clone(), wish) {
            None => Ok(()),
            Some(_) => Err(EngineError::invalid(
                "mount",
                format!("duplicate mount point: {target}"),
            )),
        }
    };
    for text in &config.host.binds {
        add(parse_bind(text)?)?;
    }
    for mount in &config.host.mounts {
        add(from_mount(mount)?)?;
    }
    for (target, options) in &config.host.tmpfs {
        let mut point = point(MountPointKind::Tmpfs, target)?;
        point.writable = !options.split(',').any(|word| word == "ro");
        point.mode.clone_from(options);
        add(wish(point))?;
    }
    for target in &config.volumes {
        let mut point = point(MountPointKind::Volume, target)?;
        if !found.contains_key(&point.target) {
            point.anonymous = true;
            found.insert(point.target.clone(), wish(point));
        }
    }
    Ok(found.into_values().collect())
}

/// Checks the name of a volume.
pub(crate) fn check_volume_name(name: &str) -> Result<()> {
    let good = name.len() >= 2
        && name.len() <= VOLUME_NAME_CHARS_MAX
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'));
    if good {
        Ok(())
    } else {
        Err(EngineError::invalid(
            "volume name",
            format!(
                "\"{name}\" includes invalid characters for a local volume name, only \
                 \"[a-zA-Z0-9][a-zA-Z0-9_.-]\" are allowed. If you intended to pass a host directory, use absolute path"
            ),
        ))
    }
}

fn wish(point: MountPoint) -> MountWish {
    MountWish {
        point,
        volume: VolumeWish::default(),
    }
}

fn point(kind: MountPointKind, target: &str) -> Result<MountPoint> {
    Ok(MountPoint {
        kind,
        name: String::new(),
        source: String::new(),
        target: clean_target(target)?,
        writable: true,
        propagation: String::new(),
        mode: String::new(),
        anonymous: false,
        copy_up: kind == MountPointKind::Volume,
        create_source: false,
    })
}

/// An absolute path without `.`, `..` and double slashes, and not the root.
fn clean_target(target: &str) -> Result<String> {
    let refuse = |reason: &str| EngineError::invalid("mount path", format!("'{target}' {reason}"));
    if !target.starts_with('/') {
        return Err(refuse("mount path must be absolute"));
    }
    let mut parts: Vec<&str> = Vec::new();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    if parts.is_empty() {
        return Err(refuse("destination can't be '/'"));
    }
    Ok(format!("/{}", parts.join("/")))
}

fn parse_bind(text: &str) -> Result<MountWish> {
    let refuse = || EngineError::invalid("volume specification", format!("'{text}'"));
    let parts: Vec<&str> = text.split(':').collect();
    let (source, target, options) = match parts.as_slice() {
        [target] => ("", *target, ""),
        [source, target] => (*source, *target, ""),
        [source, target, options] => (*source, *target, *options),
        _ => return Err(refuse()),
    };
    if parts.len() > 1 && source.is_empty() {
        return Err(refuse());
    }
    let is_path = source.starts_with('/');
    let kind = if is_path {
        MountPointKind::Bind
    } else {
        MountPointKind::Volume
    };
    let mut point = point(kind, target)?;
    if is_path {
        source.clone_into(&mut point.source);
        "rprivate".clone_into(&mut point.propagation);
        point.create_source = true;
    } else if source.is_empty() {
        point.anonymous = true;
    } else {
        check_volume_name(source)?;
        source.clone_into(&mut point.name);
    }
    options.clone_into(&mut point.mode);
    for word in options.split(',').filter(|word| !word.is_empty()) {
        match word {
            "ro" => point.writable = false,
            "rw" => point.writable = true,
            "nocopy" if !is_path => point.copy_up = false,
            // Labels for SELinux, which this engine does not use, and hints for other systems: harmless.
            "z" | "Z" | "cached" | "delegated" | "consistent" => {}
            word if is_path && PROPAGATIONS.contains(&word) => {
                word.clone_into(&mut point.propagation)
            }
            word => {
                return Err(EngineError::invalid(
                    "volume specification",
                    format!("'{text}': invalid mode: {word}"),
                ));
            }
        }
    }
    Ok(wish(point))
}

fn from_mount(mount: &shoal_model::spec::Mount) -> Result<MountWish> {
    let writable = !mount.read_only;
    match &mount.kind {
        MountKind::Bind {
            source,
            propagation,
        } => {
            if !source.starts_with('/') {
                return Err(EngineError::invalid(
                    "mount config for type \"bind\"",
                    format!("invalid mount path: '{source}' must be absolute"),
                ));
            }
            let mut point = point(MountPointKind::Bind, &mount.target)?;
            point.source.clone_from(source);
            point.writable = writable;
            point.propagation = match propagation.as_str() {
                "" => "rprivate".to_owned(),
                known if PROPAGATIONS.contains(&known) => known.to_owned(),
                other => {
                    return Err(EngineError::invalid(
                        "mount config for type \"bind\"",
                        format!("invalid propagation mode: {other}"),
                    ));
                }
            };
            Ok(wish(point))
        }
        MountKind::Volume {
            name,
            driver,
            options,
            labels,
            no_copy,
        } => {
            let mut point = point(MountPointKind::Volume, &mount.target)?;
            point.writable = writable;
            point.copy_up = !no_copy;
            point.anonymous = name.is_empty();
            if !name.is_empty() {
                check_volume_name(name)?;
            }
            point.name.clone_from(name);
            let volume = VolumeWish {
                driver: driver.clone(),
                options: options.clone(),
                labels: labels.clone(),
            };
            Ok(MountWish { point, volume })
        }
        MountKind::Tmpfs { size_bytes, mode } => {
            let mut point = point(MountPointKind::Tmpfs, &mount.target)?;
            point.writable = writable;
            let mut words = Vec::new();
            if !writable {
                words.push("ro".to_owned());
            }
            if *size_bytes > 0 {
                words.push(format!("size={size_bytes}"));
            }
            if *mode != 0 {
                words.push(format!("mode={mode:o}"));
            }
            point.mode = words.join(",");
            Ok(wish(point))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(bind: &str, expected: &str) {
        let text = match parse_bind(bind) {
            Err(_) => "refused".to_owned(),
            Ok(MountWish { point, .. }) => format!(
                "{} {}{} -> {} {}",
                point.kind.as_str(),
                point.name,
                point.source,
                point.target,
                if point.writable { "rw" } else { "ro" }
            ),
        };
        assert_eq!(text, expected, "{bind}");
    }

    #[test]
    fn short_forms_are_read() {
        check("/src:/dst", "bind /src -> /dst rw");
        check("/src:/dst/../x//y:ro", "bind /src -> /x/y ro");
        check("data:/dst", "volume data -> /dst rw");
        check("/dst", "volume  -> /dst rw");
        check("data:/dst:nocopy,ro", "volume data -> /dst ro");
        for bad in [
            "",
            ":/x",
            "a:b:c:d",
            "data:dst",
            "/a:/",
            "./a:/x",
            "x:/y",
            "/a:/b:zap",
            "/a:/b:nocopy",
        ] {
            check(bad, "refused");
        }
    }

    #[test]
    fn parents_come_first_and_duplicates_are_refused() {
        let mut config = ContainerConfig::default();
        config.host.binds = vec!["/a:/data/sub".to_owned(), "vol:/data".to_owned()];
        config.volumes.insert("/data".to_owned());
        let targets: Vec<_> = wishes(&config)
            .unwrap()
            .into_iter()
            .map(|wish| wish.point.target)
            .collect();
        assert_eq!(targets, ["/data", "/data/sub"]);
        config.host.binds.push("/b:/data".to_owned());
        assert!(wishes(&config).is_err());
    }
}
