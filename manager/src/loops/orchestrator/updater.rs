//! Rolls a changed spec out: replaces the tasks of older versions, a few places at a time.
//!
//! Stop-first ends the old task; its place is then vacant and gets a new one when the old has stopped. Start-first
//! makes the new task beside the old one, which ends when the new one serves. A place with a volume is always
//! stop-first: its data has one user at a time.

use super::Scene;
use super::new_task::Maker;
use super::places::{Place, PlaceTasks, end, is_current, is_live, is_serving, is_wanted, places};
use super::restart::{Verdict, ended_badly, judge};
use crate::allocator::{self, AllocationError};
use crate::loops::runner::Pass;
use crate::store::holds_node;
use shoal_model::command::{Object, StoreAction};
use shoal_model::service::{UpdateState, UpdateStatus};
use shoal_model::spec::{FailureAction, UpdateConfig, UpdateOrder};
use shoal_model::{Service, ServiceSpec, Task, TaskState};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// How far the places of a service are.
struct Progress<'p, 'a> {
    /// Places that run an older version only, in the order in which they are replaced.
    outdated: Vec<(Place, &'p PlaceTasks<'a>)>,
    /// Places between the old and the new task, or whose new task does not run yet.
    moving: u64,
    /// Places in which a task of the newest version ended badly since the update began.
    failed: u64,
    /// All places.
    total: u64,
    /// The newest tasks that stand for their place.
    fresh: Vec<&'a Arc<Task>>,
}

/// Takes the next step of the update of a settled service, if there is one to take.
pub(super) fn plan(scene: &Scene<'_>, pass: &mut Pass) {
    let service = scene.service;
    let places = places(scene);
    let progress = Progress::of(service, &places);
    let state = service.update_status.as_ref().map(|update| update.state);
    match state {
        Some(UpdateState::Paused) => {}
        Some(UpdateState::Updating) => advance(scene, &progress, pass),
        None | Some(UpdateState::Completed) if !progress.outdated.is_empty() => {
            let status = UpdateStatus {
                state: UpdateState::Updating,
                started_at: scene.now.wall,
                completed_at: None,
                message: "update in progress".to_owned(),
            };
            pass.actions.push(with_status(service, status));
        }
        None | Some(UpdateState::Completed) => {}
    }
}

impl<'p, 'a> Progress<'p, 'a> {
    fn of(service: &Service, places: &'p BTreeMap<Place, PlaceTasks<'a>>) -> Self {
        let mut progress = Self {
            outdated: Vec::new(),
            moving: 0,
            failed: 0,
            total: 0,
            fresh: Vec::new(),
        };
        let started_at = service.update_status.as_ref().map(|s| s.started_at);
        for (place, tasks) in places {
            let newest = |task: &Task| is_current(service, task);
            let failed = |task: &Task| {
                ended_badly(task)
                    && task.spec_version >= service.spec_version
                    && started_at.is_none_or(|start| task.meta.created_at >= start)
            };
            let removed = tasks.tasks.iter().all(|t| t.desired == TaskState::Remove);
            if removed {
                continue;
            }
            progress.total += 1;
            progress.failed += u64::from(tasks.tasks.iter().any(|task| failed(task)));
            let fresh = tasks.wanted().rev().find(|task| newest(task));
            match fresh {
                Some(task) => {
                    let runs = task.status.state == TaskState::Running || !is_live(task);
                    let old_remains = tasks.live().any(|task| !newest(task));
                    progress.moving += u64::from(!runs || old_remains);
                    progress.fresh.push(task);
                }
                None if tasks.wanted().next().is_some() => progress.outdated.push((*place, tasks)),
                None => {
                    let leaving = tasks.tasks.iter().any(|task| holds_node(task));
                    progress.moving += u64::from(leaving);
                }
            }
        }
        let serves = |tasks: &PlaceTasks<'_>| tasks.best().is_some_and(|task| is_serving(task));
        progress
            .outdated
            .sort_by_key(|&(place, tasks)| (serves(tasks), place));
        progress
    }
}

fn advance(scene: &Scene<'_>, progress: &Progress<'_, '_>, pass: &mut Pass) {
    let service = scene.service;
    let config = &service.spec.update;
    let tolerated = progress.total * u64::from(config.max_failure_permille) / 1_000;
    if progress.failed > tolerated && config.failure_action != FailureAction::Continue {
        pass.actions.extend(fail(scene, progress.failed));
        return;
    }
    if progress.outdated.is_empty() {
        if progress.moving == 0 && monitored(scene, progress, pass) {
            let status = service.update_status.clone().map(|status| UpdateStatus {
                state: UpdateState::Completed,
                completed_at: Some(scene.now.wall),
                message: "update completed".to_owned(),
                ..status
            });
            let done = status.map(|status| with_status(service, status));
            pass.actions.extend(done);
        }
        return;
    }
    if let Some(wait) = pause_between(scene, progress, config) {
        pass.wake_after(wait);
        return;
    }
    let at_once = match config.parallelism {
        0 => u64::MAX,
        n => n,
    };
    let room = usize::try_from(at_once.saturating_sub(progress.moving)).unwrap_or(usize::MAX);
    for &(place, tasks) in progress.outdated.iter().take(room) {
        replace(scene, place, tasks, pass);
    }
}

fn replace(scene: &Scene<'_>, place: Place, tasks: &PlaceTasks<'_>, pass: &mut Pass) {
    let has_volume = scene.service.spec.task.named_volumes().next().is_some()
        || tasks.wanted().any(|task| !task.volumes.is_empty());
    let serving = tasks.live().any(|task| holds_node(task));
    let start_first = scene.service.spec.update.order == UpdateOrder::StartFirst;
    if start_first && serving && !has_volume {
        let failed = tasks
            .tasks
            .iter()
            .rev()
            .find(|task| task.spec_version == scene.service.spec_version && ended_badly(task));
        let not_before = match failed.map(|task| judge(scene, tasks, task)) {
            Some(Verdict::Replace(at)) => at,
            Some(Verdict::Stay) | None => None,
        };
        pass.actions
            .push(Maker::new(scene).create(place, not_before));
        return;
    }
    let wanted = tasks.wanted().filter(|task| is_wanted(task));
    pass.actions
        .extend(wanted.map(|task| end(task, TaskState::Shutdown)));
}

/// The rest of the delay after the last batch.
fn pause_between(
    scene: &Scene<'_>,
    progress: &Progress<'_, '_>,
    config: &UpdateConfig,
) -> Option<Duration> {
    let delay = Duration::from_nanos(config.delay_ns);
    let last = progress
        .fresh
        .iter()
        .map(|task| task.meta.updated_at)
        .max()?;
    let passed = scene.now.wall.since(last);
    (passed < delay).then(|| delay - passed)
}

/// Every new task has outlived its monitor window.
fn monitored(scene: &Scene<'_>, progress: &Progress<'_, '_>, pass: &mut Pass) -> bool {
    let ends = progress.fresh.iter().filter_map(|task| task.monitor_until);
    match ends.max().filter(|&end| end > scene.now.wall) {
        Some(end) => {
            pass.wake_after(end.since(scene.now.wall));
            false
        }
        None => true,
    }
}

fn fail(scene: &Scene<'_>, failed: u64) -> Vec<StoreAction> {
    let service = scene.service;
    let why = match failed {
        1 => "1 task of the new version failed".to_owned(),
        n => format!("{n} tasks of the new version failed"),
    };
    let started_at = service
        .update_status
        .as_ref()
        .map_or(scene.now.wall, |status| status.started_at);
    let paused = |message: String| {
        let status = UpdateStatus {
            state: UpdateState::Paused,
            started_at,
            completed_at: None,
            message,
        };
        vec![with_status(service, status)]
    };
    let rolls_back = service.spec.update.failure_action == FailureAction::Rollback;
    match &service.previous_spec {
        Some(previous) if rolls_back => rolled_back(scene, previous, &why)
            .unwrap_or_else(|err| paused(format!("update paused: {why}, and no rollback: {err}"))),
        Some(_) | None => paused(format!("update paused: {why}")),
    }
}

/// The service with its previous spec, and with the addresses and ports that it asks for.
fn rolled_back(
    scene: &Scene<'_>,
    previous: &ServiceSpec,
    why: &str,
) -> Result<Vec<StoreAction>, AllocationError> {
    let mut service = scene.service.clone();
    service.spec = ServiceSpec::clone(previous);
    let mut actions = allocator::service::fill(scene.state, &mut service)?;
    // A rollback that fails is not rolled back again.
    service.previous_spec = None;
    service.spec_version += 1;
    service.update_status = Some(UpdateStatus {
        state: UpdateState::Updating,
        started_at: scene.now.wall,
        completed_at: None,
        message: format!("rolling back: {why}"),
    });
    actions.push(StoreAction::Update(Object::Service(Box::new(service))));
    Ok(actions)
}

fn with_status(service: &Service, status: UpdateStatus) -> StoreAction {
    let mut service = service.clone();
    service.update_status = Some(status);
    StoreAction::Update(Object::Service(Box::new(service)))
}
