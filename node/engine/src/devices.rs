//! The devices of a container: those that the user names, or all of the host's when it is privileged.

use crate::config::{ContainerConfig, DeviceMapping};
use crate::error::{EngineError, Result};
use oci_spec::runtime::{LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType};
use shoal_runtime::spec as base;
use std::fs::Metadata;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

/// Directories of /dev that a container has of its own, or that hold no devices.
const OWN_DIRECTORIES: [&str; 4] = ["pts", "shm", "fd", "mqueue"];
/// Devices that every container has already.
const OWN_DEVICES: [&str; 8] = [
    "null", "zero", "full", "random", "urandom", "tty", "console", "ptmx",
];
/// Directories below each other in /dev that are searched.
const DEPTH_MAX: usize = 8;

/// Nodes and rules of a container's devices. Blocks.
pub(crate) fn devices(
    config: &ContainerConfig,
) -> Result<(Vec<LinuxDevice>, Vec<LinuxDeviceCgroup>)> {
    let mut nodes = Vec::new();
    let mut rules = base::device_rules();
    if config.host.privileged {
        rules = vec![base::device_rule(
            true,
            LinuxDeviceType::A,
            None,
            None,
            "rwm",
        )];
        host_devices(Path::new("/dev"), 0, &mut nodes);
    }
    for mapping in &config.host.devices {
        let (node, access) = mapped(mapping)?;
        rules.push(base::device_rule(
            true,
            node.typ(),
            Some(node.major()),
            Some(node.minor()),
            access,
        ));
        nodes.retain(|known| known.path() != node.path());
        nodes.push(node);
    }
    Ok((nodes, rules))
}

/// Every device below `dir`. What can't be read, or vanishes meanwhile, is not there for the container either.
fn host_devices(dir: &Path, depth: usize, nodes: &mut Vec<LinuxDevice>) {
    let Ok(entries) = std::fs::read_dir(dir) else {
        return;
    };
    for entry in entries.flatten() {
        let (name, path) = (entry.file_name(), entry.path());
        let is_own = |own: &[&str]| depth == 0 && own.iter().any(|own| name == *own);
        // Links are not followed: their targets are found as well.
        let Ok(meta) = entry.metadata() else {
            continue;
        };
        if meta.is_dir() {
            if depth < DEPTH_MAX && !is_own(&OWN_DIRECTORIES) {
                host_devices(&path, depth + 1, nodes);
            }
        } else if !is_own(&OWN_DEVICES)
            && let Some(node) = node(&path, &meta)
        {
            nodes.push(node);
        }
    }
}

fn mapped(mapping: &DeviceMapping) -> Result<(LinuxDevice, &str)> {
    let refuse =
        |reason: String| EngineError::invalid(format!("device `{}`", mapping.host_path), reason);
    let meta = std::fs::metadata(&mapping.host_path).map_err(|err| refuse(err.to_string()))?;
    let path = if mapping.container_path.is_empty() {
        &mapping.host_path
    } else {
        &mapping.container_path
    };
    let node =
        node(Path::new(path), &meta).ok_or_else(|| refuse("not a device node".to_owned()))?;
    let access = if mapping.permissions.is_empty() {
        "rwm"
    } else {
        &mapping.permissions
    };
    if !access.chars().all(|c| matches!(c, 'r' | 'w' | 'm')) {
        return Err(refuse(format!(
            "invalid permissions `{access}`: expected a part of rwm"
        )));
    }
    Ok((node, access))
}

fn node(path: &Path, meta: &Metadata) -> Option<LinuxDevice> {
    let typ = match meta.file_type() {
        kind if kind.is_char_device() => LinuxDeviceType::C,
        kind if kind.is_block_device() => LinuxDeviceType::B,
        _ => return None,
    };
    let number = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    let mut node = LinuxDevice::default();
    node.set_path(path.to_owned())
        .set_typ(typ)
        .set_major(number(nix::sys::stat::major(meta.rdev())))
        .set_minor(number(nix::sys::stat::minor(meta.rdev())))
        .set_file_mode(Some(meta.mode() & 0o7777))
        .set_uid(Some(meta.uid()))
        .set_gid(Some(meta.gid()));
    Some(node)
}
