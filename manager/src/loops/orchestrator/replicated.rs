//! Replicated services: as many taken slots as replicas.

use super::Scene;
use super::new_task::Maker;
use super::places::{Occupancy, Place, PlaceTasks, end, is_serving, places};
use crate::loops::runner::Pass;
use shoal_model::{NodeId, Task, TaskState, Timestamp};
use std::collections::{BTreeMap, BTreeSet};

/// Settles every slot, then takes slots away or fills them.
pub(super) fn plan(scene: &Scene<'_>, replicas: u64) -> Pass {
    let mut pass = Pass::default();
    let places = places(scene);
    let mut taken: BTreeMap<u64, &PlaceTasks<'_>> = BTreeMap::new();
    let mut holes = Holes::default();
    for (place, tasks) in &places {
        let slot = place.slot();
        match tasks.settle(scene, &mut pass) {
            Occupancy::Taken => {
                taken.insert(slot, tasks);
            }
            Occupancy::Vacant(not_before) => {
                holes.vacant.insert(slot, Start::At(not_before));
            }
            Occupancy::Leaving => {
                holes.vacant.insert(slot, Start::Blocked);
            }
            Occupancy::Closing => {
                holes.closing.insert(slot);
            }
            Occupancy::Gone => {}
        }
    }
    let count = taken.len() as u64;
    if count > replicas {
        shrink(&taken, count - replicas, &mut pass);
    } else {
        fill(scene, &taken, holes, replicas - count, &mut pass);
    }
    pass
}

/// Takes `surplus` slots away: first those that serve nobody, then from the nodes with most of them, then the highest.
fn shrink(taken: &BTreeMap<u64, &PlaceTasks<'_>>, surplus: u64, pass: &mut Pass) {
    let mut per_node: BTreeMap<Option<NodeId>, u64> = BTreeMap::new();
    let mut candidates: Vec<(bool, u64, u64)> = Vec::with_capacity(taken.len());
    for (&slot, place) in taken {
        let best = place.best();
        let node = per_node
            .entry(best.and_then(|task| task.node_id))
            .or_default();
        *node += 1;
        candidates.push((best.is_some_and(|task| is_serving(task)), *node, slot));
    }
    candidates.sort_by_key(|&(serving, nth, slot)| (serving, std::cmp::Reverse((nth, slot))));
    let surplus = usize::try_from(surplus).unwrap_or(usize::MAX);
    for (_, _, slot) in candidates.into_iter().take(surplus) {
        let tasks = taken.get(&slot).map_or(&[][..], |place| &place.tasks);
        let unmarked = |task: &&&std::sync::Arc<Task>| task.desired < TaskState::Remove;
        let ends = tasks.iter().filter(unmarked);
        pass.actions
            .extend(ends.map(|task| end(task, TaskState::Remove)));
    }
}

/// Whether a slot can have a new task.
#[derive(Debug, Clone, Copy)]
enum Start {
    /// Yes, but the task waits for that time.
    At(Option<Timestamp>),
    /// Not while its last task is still stopping.
    Blocked,
}

/// Slots without a task.
#[derive(Debug, Default)]
struct Holes {
    /// They lost their task and want a new one.
    vacant: BTreeMap<u64, Start>,
    /// They were scaled away, and something may still run there.
    closing: BTreeSet<u64>,
}

/// Fills `missing` slots: those that lost their task first, for their volumes; then the lowest free numbers.
fn fill(
    scene: &Scene<'_>,
    taken: &BTreeMap<u64, &PlaceTasks<'_>>,
    holes: Holes,
    missing: u64,
    pass: &mut Pass,
) {
    if missing == 0 {
        return;
    }
    let maker = Maker::new(scene);
    let Holes { vacant, closing } = holes;
    let known: BTreeSet<u64> = taken.keys().chain(vacant.keys()).copied().collect();
    let free = (1..).filter(|slot| !known.contains(slot)).map(|slot| {
        let blocked = closing.contains(&slot);
        (
            slot,
            if blocked {
                Start::Blocked
            } else {
                Start::At(None)
            },
        )
    });
    let missing = usize::try_from(missing).unwrap_or(usize::MAX);
    for (slot, start) in vacant.into_iter().chain(free).take(missing) {
        // A slot whose old task still stops is waited for; no other slot takes its place.
        if let Start::At(not_before) = start {
            pass.actions
                .push(maker.create(Place::Slot(slot), not_before));
        }
    }
}
