//! A slot has one home per volume name, and a task that holds a node finds all its volumes there.

use crate::store::state::State;
use crate::store::tasks::holds_node;
use std::collections::BTreeMap;

pub(super) fn check(state: &State) -> Vec<String> {
    let mut broken = Vec::new();
    let mut homes = BTreeMap::new();
    for volume in state.volumes() {
        for slot in &volume.bound_slots {
            if let Some(other) = homes.insert((*slot, volume.name.clone()), volume.id) {
                broken.push(format!(
                    "{slot:?} is bound to `{other}` and `{}`",
                    volume.id
                ));
            }
            if state.service(slot.service_id).is_none() {
                broken.push(format!(
                    "`{}` is bound to a service that is gone",
                    volume.id
                ));
            }
        }
    }
    for task in state.tasks().filter(|task| holds_node(task)) {
        for name in task.spec.named_volumes() {
            let attached = task.volumes.iter().find(|used| used.name == name);
            let home = attached
                .and_then(|used| state.volume(used.volume_id))
                .map(|volume| volume.node_id);
            if home.is_none() || home != task.node_id {
                broken.push(format!("task `{}` misses its volume `{name}`", task.id));
            }
        }
    }
    broken
}
