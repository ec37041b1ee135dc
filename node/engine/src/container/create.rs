//! Making a container: everything that is wrong with a request is found here, and nothing half-made stays.

use super::actor::{ContainerParts, container_event};
use super::record::{ContainerDir, ContainerRecord, StateRecord};
use super::start;
use crate::config::{ContainerConfig, HostConfig, NamespaceMode, NetworkMode, RestartPolicy};
use crate::disk::{self, Durability, blocking};
use crate::env::Env;
use crate::error::{EngineError, ErrorKind, Result, chain};
use crate::info::{MountPoint, MountPointKind};
use crate::mounts::{self, MountWish};
use crate::rootfs::Layers;
use crate::volume::{EnsureVolume, RemoveVolume, UnuseVolumes, UseVolumes};
use crate::{etc_files, merge, oci};
use shoal_image::Image;
use shoal_model::ContainerId;
use std::path::Path;
use std::sync::Arc;

/// A container that is on disk and not yet known to the supervisor.
pub(crate) struct Made {
    pub(crate) parts: ContainerParts,
    pub(crate) warnings: Vec<String>,
}

/// Makes a container under a name that the supervisor has reserved for it.
pub(crate) async fn create(
    env: &Arc<Env>,
    id: ContainerId,
    name: String,
    mut config: ContainerConfig,
) -> Result<Made> {
    let image = find_image(env, &config.image)?;
    merge::merge(&mut config, &image)?;
    let command = merge::command(&config)?;
    check(env, &config)?;
    let network_mode = resolve_network(env, &config.host.network_mode).await?;
    let wishes = mounts::wishes(&config)?;
    for wish in &wishes {
        if wish.point.kind == MountPointKind::Bind {
            start::check_source(&wish.point)?;
        }
    }
    let lease = env
        .images
        .lease(&image, &id.to_string())
        .map_err(|err| EngineError::Image {
            kind: ErrorKind::Conflict,
            message: chain(&err),
        })?;
    let inherited = inherited_mounts(env, &config, &wishes).await?;
    let mut made_volumes = Vec::new();
    let made = async {
        let mut points = volumes(env, id, wishes, &mut made_volumes).await?;
        points.extend(inherited);
        points.sort_by(|a, b| a.target.cmp(&b.target));
        let names = points.iter().filter(|point| !point.name.is_empty());
        let names = names.map(|point| point.name.clone()).collect();
        env.volumes
            .send(UseVolumes {
                container: id,
                names,
            })
            .await??;
        copy_up(env, &image, &points).await?;
        let record = ContainerRecord {
            id,
            name,
            created: crate::clock::now(),
            image_id: image.id.to_string(),
            config: Arc::new(config),
            path: command.path,
            args: command.args,
            mounts: Arc::new(points),
            network_mode,
        };
        write(env, record).await
    }
    .await;
    match made {
        Ok((dir, record)) => {
            let warnings = warnings(&record.config);
            env.publish(container_event(&record, "create")).await;
            Ok(Made {
                parts: ContainerParts {
                    env: Arc::clone(env),
                    dir,
                    record: Arc::new(record),
                    state: StateRecord::default(),
                    shim: None,
                    lease: Some(lease),
                },
                warnings,
            })
        }
        Err(err) => {
            undo(env, id, made_volumes).await;
            Err(err)
        }
    }
}

/// Removes the volumes of a container that came to nothing.
async fn undo(env: &Env, id: ContainerId, made_volumes: Vec<String>) {
    let hidden = hidden_dir(&env.containers_dir, id);
    let undone = async {
        env.volumes.send(UnuseVolumes(id)).await?;
        for name in made_volumes {
            match env.volumes.send(RemoveVolume(name)).await? {
                // Somebody else has taken a fresh named volume into use meanwhile.
                Ok(()) | Err(EngineError::Conflict { .. }) => {}
                Err(err) => return Err(err),
            }
        }
        blocking("volume notes", move || disk::remove_dir_all(&hidden)).await
    }
    .await;
    if let Err(err) = undone {
        tracing::warn!(container_id = %id, err = chain(&err), "volumes of a failed creation are still there");
    }
}

fn find_image(env: &Env, name: &str) -> Result<Image> {
    if name.is_empty() {
        return Err(EngineError::invalid("image", "no image specified"));
    }
    env.images
        .resolve(name)
        .map_err(|err| crate::images::resolve_error(name, err))
}

/// Writes the directory under a hidden name and makes it visible by one rename.
async fn write(env: &Arc<Env>, record: ContainerRecord) -> Result<(ContainerDir, ContainerRecord)> {
    let containers = env.containers_dir.clone();
    blocking("container directory", move || {
        let hidden = hidden_dir(&containers, record.id);
        let dir = ContainerDir::new(&containers, &record.id);
        let made = ContainerDir::at(hidden.clone())
            .populate(&record)
            .and_then(|()| {
                std::fs::rename(&hidden, dir.path())
                    .map_err(EngineError::disk("create", dir.path()))?;
                match record.durability() {
                    Durability::Synced => disk::sync_dir(&containers),
                    Durability::Cached => Ok(()),
                }
            });
        if let Err(err) = made {
            disk::remove_dir_all(&hidden)?;
            return Err(err);
        }
        Ok((dir, record))
    })
    .await
}

fn check(env: &Env, config: &ContainerConfig) -> Result<()> {
    let host = &config.host;
    oci::check(config)?;
    super::logs::check(&env.options, &host.log)?;
    if !config.stop_signal.is_empty() {
        crate::signal::parse(&config.stop_signal)?;
    }
    if host.auto_remove && host.restart_policy != RestartPolicy::No {
        return Err(EngineError::invalid(
            "restart policy",
            "can't create 'AutoRemove' container with restart policy",
        ));
    }
    if !config.working_dir.is_empty() && !config.working_dir.starts_with('/') {
        return Err(EngineError::invalid(
            "working directory",
            format!(
                "the working directory '{}' is invalid, it needs to be an absolute path",
                config.working_dir
            ),
        ));
    }
    for entry in &host.extra_hosts {
        if etc_files::split_extra_host(entry).is_none() {
            return Err(EngineError::invalid(
                "extra host",
                format!("bad format for add-host: \"{entry}\""),
            ));
        }
    }
    for address in &host.dns {
        if address.parse::<std::net::IpAddr>().is_err() {
            return Err(EngineError::invalid(
                "dns",
                format!("{address} is not an ip address"),
            ));
        }
    }
    for (field, mode) in [("uts", &host.uts_mode), ("cgroupns", &host.cgroupns_mode)] {
        if matches!(mode, NamespaceMode::Container(_)) {
            return Err(EngineError::invalid(
                format!("{field} mode"),
                "it can be private or host",
            ));
        }
    }
    check_conflicts(config)
}

/// Only sysctls of a namespace that is not the host's: every other one would change the whole machine.
fn check_sysctl(key: &str, host: &HostConfig) -> Result<()> {
    const OF_IPC: &[&str] = &[
        "kernel.msgmax",
        "kernel.msgmnb",
        "kernel.msgmni",
        "kernel.sem",
        "kernel.shmall",
        "kernel.shmmax",
        "kernel.shmmni",
        "kernel.shm_rmid_forced",
    ];
    let refused = |why: &str| Err(EngineError::invalid("sysctl", format!("`{key}` {why}")));
    // As sysctl(8): when a slash comes first, slashes separate and dots are part of names.
    let dotted = match key.find(['.', '/']) {
        Some(at) if key.as_bytes()[at] == b'/' => key.replace('/', "."),
        _ => key.to_owned(),
    };
    if dotted.split('.').any(str::is_empty) || key.contains("..") {
        return refused("is not a key");
    }
    if dotted.starts_with("net.") {
        return match host.network_mode {
            NetworkMode::Host => refused("is not allowed in the host's network namespace"),
            _ => Ok(()),
        };
    }
    if OF_IPC.contains(&dotted.as_str()) || dotted.starts_with("fs.mqueue.") {
        return match host.ipc_mode {
            NamespaceMode::Host => refused("is not allowed in the host's IPC namespace"),
            NamespaceMode::Private | NamespaceMode::Container(_) => Ok(()),
        };
    }
    refused("is not of a namespace: it would change the whole host")
}

/// Settings that exclude each other.
fn check_conflicts(config: &ContainerConfig) -> Result<()> {
    let host = &config.host;
    if host.uts_mode == NamespaceMode::Host && !config.hostname.is_empty() {
        return Err(EngineError::invalid(
            "hostname",
            "conflicting options: hostname and the UTS mode",
        ));
    }
    if matches!(host.network_mode, NetworkMode::Container(_)) && !host.port_bindings.is_empty() {
        return Err(EngineError::invalid(
            "port bindings",
            "conflicting options: port publishing and the container type network mode",
        ));
    }
    for key in host.sysctls.keys() {
        check_sysctl(key, host)?;
    }
    for name in config
        .env
        .iter()
        .map(|entry| entry.split('=').next().unwrap_or(""))
    {
        if name.is_empty() {
            return Err(EngineError::invalid(
                "environment variable",
                "its name is empty",
            ));
        }
    }
    Ok(())
}

async fn resolve_network(env: &Env, mode: &NetworkMode) -> Result<NetworkMode> {
    match mode {
        NetworkMode::Container(name) => {
            let entry = crate::supervisor::resolve(env, name).await?;
            Ok(NetworkMode::Container(entry.id.to_string()))
        }
        NetworkMode::Named(name) if env.overlay.is_absent() => {
            Err(EngineError::NoNetwork { name: name.clone() })
        }
        other => Ok(other.clone()),
    }
}

/// The mounts of `--volumes-from` containers at targets that are still free.
async fn inherited_mounts(
    env: &Env,
    config: &ContainerConfig,
    wishes: &[MountWish],
) -> Result<Vec<MountPoint>> {
    let mut inherited: Vec<MountPoint> = Vec::new();
    for text in &config.host.volumes_from {
        let (name, mode) = text.split_once(':').unwrap_or((text, "rw"));
        if !matches!(mode, "ro" | "rw" | "z" | "Z") {
            return Err(EngineError::invalid(
                "volumes-from",
                format!("'{text}': invalid mode: {mode}"),
            ));
        }
        let entry = crate::supervisor::resolve(env, name).await?;
        for point in entry.info().mounts.iter() {
            let taken = wishes.iter().any(|wish| wish.point.target == point.target)
                || inherited.iter().any(|known| known.target == point.target);
            if taken || point.kind == MountPointKind::Tmpfs {
                continue;
            }
            let mut point = point.clone();
            point.writable &= mode != "ro";
            // It belongs to the container that it comes from.
            point.anonymous = false;
            inherited.push(point);
        }
    }
    Ok(inherited)
}

/// Gives every volume its directory; `made` names the ones that did not exist before.
async fn volumes(
    env: &Env,
    id: ContainerId,
    wishes: Vec<MountWish>,
    made: &mut Vec<String>,
) -> Result<Vec<MountPoint>> {
    let mut points = Vec::with_capacity(wishes.len());
    for MountWish { mut point, volume } in wishes {
        if point.kind == MountPointKind::Volume {
            if point.anonymous {
                point.name = crate::clock::hex_id();
                note_volume(env, id, &point.name).await?;
            }
            let name = point.name.clone();
            let anonymous = point.anonymous;
            let before = crate::clock::now();
            let info = env
                .volumes
                .send(EnsureVolume {
                    name,
                    anonymous,
                    wish: volume,
                })
                .await??;
            if info.created >= before {
                made.push(info.name.clone());
            }
            tracing::debug!(container_id = %id, volume = info.name, "volume found or made");
            point.source = info.mountpoint.to_string_lossy().into_owned();
            point.name = info.name;
        }
        points.push(point);
    }
    Ok(points)
}

/// Notes an anonymous volume before it is made: should the engine die before the container is visible, the next one
/// removes it with the container's hidden directory.
async fn note_volume(env: &Env, id: ContainerId, name: &str) -> Result<()> {
    let path = hidden_dir(&env.containers_dir, id)
        .join(VOLUME_NOTES)
        .join(name);
    blocking("volume note", move || {
        let dir = path.parent().unwrap_or(Path::new("/"));
        disk::create_dir_all(dir, 0o700)?;
        std::fs::write(&path, []).map_err(EngineError::disk("write", &path))
    })
    .await
}

/// The directory in a hidden container directory whose files are named as its anonymous volumes.
pub(crate) const VOLUME_NOTES: &str = "volumes";

fn hidden_dir(containers: &Path, id: ContainerId) -> std::path::PathBuf {
    containers.join(format!(".new-{id}"))
}

/// Fills volumes that are empty with what the image has at their targets.
async fn copy_up(env: &Arc<Env>, image: &Image, points: &[MountPoint]) -> Result<()> {
    let wanted: Vec<MountPoint> = points
        .iter()
        .filter(|point| point.kind == MountPointKind::Volume && point.copy_up)
        .cloned()
        .collect();
    if wanted.is_empty() {
        return Ok(());
    }
    let lower = env.lower(image).await?;
    blocking("volume copy-up", move || {
        let mut root = None;
        for point in &wanted {
            if !is_empty(Path::new(&point.source))? {
                continue;
            }
            let root = match &mut root {
                Some(root) => root,
                empty => empty.insert(crate::rootfs::Root::mount(&Layers {
                    lower: lower.clone(),
                    upper: None,
                })?),
            };
            crate::copy::copy_up(root, Path::new(&point.target), Path::new(&point.source))?;
        }
        Ok(())
    })
    .await
}

fn is_empty(path: &Path) -> Result<bool> {
    let mut entries = std::fs::read_dir(path).map_err(EngineError::disk("read", path))?;
    Ok(entries.next().is_none())
}

fn warnings(config: &ContainerConfig) -> Vec<String> {
    let mut warnings = Vec::new();
    if config.host.network_mode == NetworkMode::Host && !config.host.port_bindings.is_empty() {
        warnings.push("Published ports are discarded when using host network mode".to_owned());
    }
    if config.host.oom_kill_disable && config.host.resources.memory_bytes == 0 {
        warnings.push(
            "OOM killer is disabled for the container, but no memory limit is set, this can result in the system \
             running out of resources."
                .to_owned(),
        );
    }
    warnings
}
