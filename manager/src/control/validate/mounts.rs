//! Mounts.

use super::{Invalid, ensure, labels, list_bound, names, no_nul};
use shoal_model::spec::{Mount, MountKind};
use std::collections::BTreeSet;
use std::path::{Component, Path};

const PROPAGATIONS: [&str; 7] = [
    "", "private", "rprivate", "shared", "rshared", "slave", "rslave",
];

/// Permission bits.
const MODE_MAX: u32 = 0o7777;

pub(super) fn mounts(mounts: &[Mount]) -> Result<(), Invalid> {
    list_bound("TaskTemplate.ContainerSpec.Mounts", mounts)?;
    let mut targets = BTreeSet::new();
    for (index, mount) in mounts.iter().enumerate() {
        let field = format!("TaskTemplate.ContainerSpec.Mounts[{index}]");
        let target = format!("{field}.Target");
        absolute(&target, &mount.target)?;
        let path = normal(&mount.target);
        ensure(path != "/", &target, || {
            "`/` is the container's root: mount below it".to_owned()
        })?;
        ensure(targets.insert(path), &target, || {
            format!(
                "`{}` is mounted twice: give each mount its own target",
                mount.target
            )
        })?;
        kind(&field, &mount.kind)?;
    }
    Ok(())
}

fn kind(field: &str, kind: &MountKind) -> Result<(), Invalid> {
    match kind {
        MountKind::Bind {
            source,
            propagation,
        } => {
            absolute(&format!("{field}.Source"), source)?;
            let known = PROPAGATIONS.contains(&propagation.as_str());
            ensure(known, &format!("{field}.BindOptions.Propagation"), || {
                let shown = propagation.escape_debug();
                format!("`{shown}` is unknown: use {}", PROPAGATIONS[1..].join(", "))
            })
        }
        MountKind::Volume {
            name,
            driver,
            labels: set,
            ..
        } => {
            if !name.is_empty() {
                names::volume_name(&format!("{field}.Source"), name)?;
            }
            let known = matches!(driver.as_str(), "" | "local");
            ensure(
                known,
                &format!("{field}.VolumeOptions.DriverConfig.Name"),
                || format!("`{}` is not supported: use `local`", driver.escape_debug()),
            )?;
            labels(&format!("{field}.VolumeOptions.Labels"), set)
        }
        MountKind::Tmpfs { size_bytes, mode } => {
            ensure(
                *size_bytes >= 0,
                &format!("{field}.TmpfsOptions.SizeBytes"),
                || format!("{size_bytes}: give a positive number, or 0 for no limit"),
            )?;
            ensure(
                *mode <= MODE_MAX,
                &format!("{field}.TmpfsOptions.Mode"),
                || format!("{mode:o}: permission bits are at most {MODE_MAX:o} (octal)"),
            )
        }
    }
}

fn absolute(field: &str, path: &str) -> Result<(), Invalid> {
    no_nul(field, path)?;
    let climbs = Path::new(path)
        .components()
        .any(|part| part == Component::ParentDir);
    ensure(path.starts_with('/') && !climbs, field, || {
        format!(
            "`{}` is not an absolute path without `..`: begin it with `/`",
            path.escape_debug()
        )
    })
}

fn normal(path: &str) -> String {
    let parts: Vec<_> = path
        .split('/')
        .filter(|part| !part.is_empty() && *part != ".")
        .collect();
    format!("/{}", parts.join("/"))
}
