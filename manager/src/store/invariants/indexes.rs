//! Indexes follow from the objects alone.

use crate::store::state::State;

pub(super) fn check(state: &State) -> Vec<String> {
    let mut rebuilt = State::new();
    for entity in state.entities() {
        rebuilt.put(entity);
    }
    if rebuilt.indexes == state.indexes {
        return Vec::new();
    }
    vec![format!(
        "stored {:?}, from the objects {:?}",
        state.indexes, rebuilt.indexes
    )]
}
