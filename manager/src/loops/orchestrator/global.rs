//! Global services: one task on every node that fits.

use super::Scene;
use super::new_task::Maker;
use super::places::{Occupancy, Place, end, places};
use crate::loops::enforcer::placement_admits;
use crate::loops::runner::Pass;
use shoal_model::{Node, TaskState};

/// Settles the task of every node, and gives one to each node that fits and has none.
pub(super) fn plan(scene: &Scene<'_>) -> Pass {
    let mut pass = Pass::default();
    let placement = &scene.service.spec.task.placement;
    let places = places(scene);
    let mut vacant = Vec::new();
    for (place, tasks) in &places {
        let node = match place {
            Place::Node(id) => scene.state.node(*id),
            Place::Slot(_) => None,
        };
        if !node.is_some_and(|node| placement_admits(node, placement)) {
            let ends = tasks.wanted().map(|task| end(task, TaskState::Shutdown));
            pass.actions.extend(ends);
            continue;
        }
        match tasks.settle(scene, &mut pass) {
            Occupancy::Vacant(not_before) => vacant.push((*place, not_before)),
            Occupancy::Gone => vacant.push((*place, None)),
            Occupancy::Taken | Occupancy::Leaving | Occupancy::Closing => {}
        }
    }
    let takes = |node: &Node| node.takes_tasks() && placement_admits(node, placement);
    let new = scene
        .state
        .nodes()
        .map(|node| (Place::Node(node.id), node))
        .filter(|(place, node)| !places.contains_key(place) && takes(node))
        .map(|(place, _)| (place, None));
    let maker = Maker::new(scene);
    let refill = vacant.into_iter().filter(|(place, _)| match place {
        Place::Node(id) => scene.state.node(*id).is_some_and(|node| takes(node)),
        Place::Slot(_) => false,
    });
    for (place, not_before) in refill.chain(new) {
        pass.actions.push(maker.create(place, not_before));
    }
    pass
}
