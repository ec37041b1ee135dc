//! Finding everything again after an engine has ended, in order or not.

use super::actor::ContainerParts;
use super::create::VOLUME_NOTES;
use super::record::{ContainerDir, ContainerRecord, Phase, StateRecord};
use super::{lifecycle, restart};
use crate::config::NetworkMode;
use crate::disk::{self, Durability};
use crate::env::Env;
use crate::error::{EngineError, Result, chain};
use crate::info::Endpoint;
use crate::network::Lease;
use serde::{Deserialize, Serialize};
use shoal_model::ContainerId;
use shoal_runtime::Existing;
use shoal_runtime::{Exit, ShimHandle};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Failed recoveries in a row after which a container's directory is put aside.
const RECOVERY_ATTEMPTS_MAX: u32 = 3;
/// Exit code of a container whose shim was lost, as Docker has it for lost ones.
const EXIT_LOST: i32 = 255;

/// What was found of one container.
pub(crate) struct Found {
    pub(crate) parts: ContainerParts,
    /// The restart policy wants it started.
    pub(crate) start: bool,
}

/// Attempts that did not come to an end, by directory name.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Attempts(BTreeMap<String, Attempt>);

#[derive(Debug, Default, Clone, Serialize, Deserialize)]
struct Attempt {
    count: u32,
    reason: String,
}

/// Recovers every container, then clears away what was half made or half removed.
pub(crate) async fn recover(env: &Arc<Env>) -> Result<Vec<Found>> {
    let book = env.options.data_root.join("recovery.json");
    let mut attempts = disk::read_record::<Attempts>(&book)
        .unwrap_or_default()
        .unwrap_or_default();
    let mut found = Vec::new();
    let mut gone = attempts.0.clone();
    for (name, path) in directories(&env.containers_dir)? {
        if name.starts_with('.') {
            continue;
        }
        gone.remove(&name);
        let attempt = attempts.0.entry(name.clone()).or_default();
        attempt.count += 1;
        if attempt.count > RECOVERY_ATTEMPTS_MAX {
            let reason = std::mem::take(&mut attempt.reason);
            let first_try = attempt.count == RECOVERY_ATTEMPTS_MAX + 1;
            disk::write_record(&book, &attempts, Durability::Cached)?;
            if first_try {
                // Nobody could stop it any more. Once only: the daemon may have ended three times just here.
                end_shim(&path.join("bundle")).await;
            }
            quarantine(&env.options.data_root, &name, &path, &reason)?;
            attempts.0.remove(&name);
            disk::write_record(&book, &attempts, Durability::Cached)?;
            continue;
        }
        // Before the attempt: an abort in the middle of it must count.
        disk::write_record(&book, &attempts, Durability::Cached)?;
        match recover_one(env, &name, path).await {
            Ok(one) => {
                attempts.0.remove(&name);
                found.extend(one);
            }
            Err(err) => {
                let reason = chain(&err);
                tracing::error!(
                    container_id = name,
                    err = reason,
                    "a container could not be recovered"
                );
                if let Some(attempt) = attempts.0.get_mut(&name) {
                    attempt.reason = reason;
                }
            }
        }
    }
    // Only now is it known which volumes other containers use.
    for (name, path) in directories(&env.containers_dir)? {
        if name.starts_with('.') {
            clear_half_made(env, &name, &path).await?;
        }
    }
    for name in gone.keys() {
        attempts.0.remove(name);
    }
    disk::write_record(&book, &attempts, Durability::Cached)?;
    Ok(found)
}

fn directories(containers: &Path) -> Result<Vec<(String, PathBuf)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(containers).map_err(EngineError::disk("read", containers))? {
        let entry = entry.map_err(EngineError::disk("read", containers))?;
        found.push((
            entry.file_name().to_string_lossy().into_owned(),
            entry.path(),
        ));
    }
    found.sort();
    Ok(found)
}

/// A directory whose creation or removal was cut short. No shim can run in one that was never visible; one that was
/// being removed may have lost its engine before its shim.
async fn clear_half_made(env: &Env, name: &str, path: &Path) -> Result<()> {
    end_shim(&path.join("bundle")).await;
    let mut volumes: Vec<String> = Vec::new();
    if name.starts_with(".new-")
        && let Ok(notes) = std::fs::read_dir(path.join(VOLUME_NOTES))
    {
        let names = notes.flatten().map(|note| note.file_name());
        volumes.extend(names.map(|name| name.to_string_lossy().into_owned()));
    }
    if name.starts_with(lifecycle::REMOVING_WITH_VOLUMES) {
        let record_path = ContainerDir::at(path.to_owned()).record_path();
        match disk::read_record::<ContainerRecord>(&record_path) {
            Ok(Some(record)) => volumes = record.anonymous_volumes(),
            // It was cut short after its volumes were gone.
            Ok(None) => {}
            Err(err) => tracing::warn!(
                err = chain(&err),
                "a half-removed container's record can't be read"
            ),
        }
    }
    remove_volumes(env, name, volumes).await?;
    disk::remove_dir_all(path)
}

async fn remove_volumes(env: &Env, container: &str, names: Vec<String>) -> Result<()> {
    for name in names {
        match env.volumes.send(crate::volume::RemoveVolume(name)).await? {
            Ok(()) | Err(EngineError::Conflict { .. } | EngineError::NoSuch { .. }) => {}
            Err(err) => tracing::warn!(
                container_id = container,
                err = chain(&err),
                "an anonymous volume was not removed"
            ),
        }
    }
    Ok(())
}

async fn end_shim(bundle: &Path) {
    match ShimHandle::attach_existing(bundle).await {
        Ok(Existing::Alive(shim)) => {
            if let Err(err) = shim.delete(true).await {
                tracing::warn!(bundle = %bundle.display(), err = chain(&err), "a left-over shim did not end");
            }
        }
        Ok(Existing::Exited(_) | Existing::Lost | Existing::Absent) => {}
        Err(err) => {
            tracing::warn!(bundle = %bundle.display(), err = chain(&err), "a left-over bundle can't be read")
        }
    }
}

/// Puts a directory that can't be recovered where nothing touches it, with the reason beside.
fn quarantine(data_root: &Path, name: &str, path: &Path, reason: &str) -> Result<()> {
    let dir = data_root.join("quarantine");
    disk::create_dir_all(&dir, 0o700)?;
    let target = dir.join(name);
    disk::remove_dir_all(&target)?;
    std::fs::rename(path, &target).map_err(EngineError::disk("put aside", path))?;
    let reason = if reason.is_empty() {
        "the daemon ended three times while it recovered this container"
    } else {
        reason
    };
    disk::write_file(
        &dir.join(format!("{name}.reason")),
        reason.as_bytes(),
        0o600,
        Durability::Synced,
    )?;
    tracing::error!(container_id = name, reason, quarantine = %target.display(), "a container was put aside");
    Ok(())
}

async fn recover_one(env: &Arc<Env>, name: &str, path: PathBuf) -> Result<Option<Found>> {
    let id: ContainerId = name.parse().map_err(|_| EngineError::Record {
        path: path.clone(),
        reason: "its name is not a container id".to_owned(),
    })?;
    let dir = ContainerDir::at(path);
    let record: ContainerRecord =
        disk::read_record(&dir.record_path())?.ok_or_else(|| EngineError::Record {
            path: dir.record_path(),
            reason: "it is missing".to_owned(),
        })?;
    let mut state = read_state(&dir, id);
    let existing = ShimHandle::attach_existing(&dir.bundle())
        .await
        .map_err(|err| super::start::runtime_error("find the shim of", id)(&err))?;
    let before = state.phase;
    let shim = settle(env, id, existing, &mut state).await;
    if shim.is_none()
        && asks_for_addresses(&record)
        && !matches!(before, Phase::Created | Phase::Exited)
    {
        env.overlay.returns.add(id).await?;
    }
    if shim.is_none() && record.config.host.auto_remove {
        return hide(env, &record, &dir).map(|()| None);
    }
    dir.write_state(&state, record.durability())?;
    let used = crate::volume::UseVolumes {
        container: id,
        names: record.volume_names(),
    };
    if let Err(err) = env.volumes.send(used).await? {
        tracing::warn!(
            container_id = name,
            err = chain(&err),
            "a volume of a container is gone"
        );
    }
    let start = shim.is_none() && restart::wanted_at_boot(record.restart_policy(), &state);
    let image = env.image(&record.image_id);
    let lease = match &image {
        Ok(image) => env.images.lease(image, name).ok(),
        Err(_) => None,
    };
    if lease.is_none() {
        tracing::warn!(
            container_id = name,
            image = record.image_id,
            "the image of a container is gone"
        );
    }
    let parts = ContainerParts {
        env: Arc::clone(env),
        dir,
        record: Arc::new(record),
        state,
        shim,
        lease,
    };
    Ok(Some(Found { parts, start }))
}

/// Each start of it asks the managers for addresses.
fn asks_for_addresses(record: &ContainerRecord) -> bool {
    matches!(record.network_mode, NetworkMode::Named(_))
}

/// A state that can't be read is that of a container that was never started: whatever runs of it is ended.
fn read_state(dir: &ContainerDir, id: ContainerId) -> StateRecord {
    match disk::read_record(&dir.state_path()) {
        Ok(state) => state.unwrap_or_default(),
        Err(err) => {
            tracing::error!(container_id = %id, err = chain(&err), "a container's state can't be read; it counts as ended");
            StateRecord::default()
        }
    }
}

/// Matches what the record says with what became of the shim. Gives the shim of a container that goes on running.
async fn settle(
    env: &Arc<Env>,
    id: ContainerId,
    existing: Existing,
    state: &mut StateRecord,
) -> Option<ShimHandle> {
    let was_running = matches!(state.phase, Phase::Running | Phase::Paused);
    match existing {
        Existing::Alive(shim) if was_running => {
            // It may have ended meanwhile: then its exit is collected as after any run.
            tracing::info!(container_id = %id, "container found running");
            return Some(shim);
        }
        // A start that nobody was told of: undo it.
        Existing::Alive(shim) => {
            let lease = std::mem::take(&mut state.lease);
            lifecycle::finish_teardown(env, id, Some(shim), lease).await;
            never_started(state);
        }
        Existing::Exited(exit) if was_running => ended(state, Some(exit)),
        Existing::Lost | Existing::Absent if was_running => ended(state, None),
        Existing::Exited(_) | Existing::Lost | Existing::Absent => never_started(state),
    }
    state.lease = Lease::default();
    None
}

fn never_started(state: &mut StateRecord) {
    if state.phase == Phase::Starting {
        state.phase = if state.started_at.is_some() {
            Phase::Exited
        } else {
            Phase::Created
        };
    }
}

fn ended(state: &mut StateRecord, exit: Option<Exit>) {
    state.phase = Phase::Exited;
    state.exit_code = exit.map_or(EXIT_LOST, |exit| exit.code);
    state.oom_killed = exit.is_some_and(|exit| exit.oom_killed);
    state.finished_at = Some(exit.map_or_else(crate::clock::now, |exit| exit.at));
}

/// A container that should have been removed at its end: cleared with the half-removed ones.
fn hide(env: &Env, record: &ContainerRecord, dir: &ContainerDir) -> Result<()> {
    let name = format!("{}{}", lifecycle::REMOVING_WITH_VOLUMES, record.id);
    std::fs::rename(dir.path(), env.containers_dir.join(name))
        .map_err(EngineError::disk("remove", dir.path()))
}

/// Addresses that records say are in use. Those of containers that turn out not to run are released afterwards.
pub(crate) fn held_addresses(containers: &Path) -> Vec<(ContainerId, std::net::Ipv4Addr)> {
    let all = endpoints(containers).into_iter();
    all.filter_map(|(id, endpoint)| Some((id, endpoint.address?)))
        .collect()
}

/// The places on the default bridge that containers' records name.
pub(crate) fn endpoints(containers: &Path) -> Vec<(ContainerId, Endpoint)> {
    let Ok(entries) = std::fs::read_dir(containers) else {
        return Vec::new();
    };
    let held = |path: PathBuf| -> Option<(ContainerId, Endpoint)> {
        let id = path.file_name()?.to_str()?.parse().ok()?;
        let state: StateRecord = disk::read_record(&ContainerDir::at(path).state_path()).ok()??;
        Some((id, state.lease.endpoint?))
    };
    entries
        .flatten()
        .filter_map(|entry| held(entry.path()))
        .collect()
}
