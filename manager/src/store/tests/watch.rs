//! The queue of changes.

use super::fixture::{cluster, create};
use crate::store::handle::WATCH_BATCHES_MAX;
use crate::store::{ChangeKind, State, Store, WatchItem};
use shoal_model::command::{Command, Object, StoreAction};
use shoal_model::{NodeId, NodeStatus, Timestamp, Version};

fn command(actions: Vec<StoreAction>) -> Command {
    Command {
        time: Timestamp(1),
        actions,
    }
}

#[test]
fn a_watcher_sees_what_an_entry_changed() {
    let store = Store::new();
    let mut watcher = store.watch();
    store.apply(
        5,
        &command(vec![create(Object::Cluster(Box::new(cluster())))]),
    );
    let Some(WatchItem::Changes(batch)) = watcher.try_next() else {
        panic!("no changes");
    };
    assert_eq!(batch.version, Version(5));
    assert_eq!(batch.changes.len(), 1);
    assert_eq!(batch.changes[0].kind(), ChangeKind::Created);
    assert_eq!(store.view().version(), Version(5));
    assert!(watcher.try_next().is_none());
}

#[test]
fn an_entry_without_effect_moves_the_version_and_wakes_nobody() {
    let store = Store::new();
    let mut watcher = store.watch();
    store.apply(
        1,
        &command(vec![StoreAction::SetNodeStatus {
            node_id: NodeId::from_bits(1),
            status: NodeStatus::default(),
            description: None,
        }]),
    );
    assert_eq!(store.view().version(), Version(1));
    assert!(watcher.try_next().is_none());
}

#[test]
fn a_watcher_that_lags_and_one_that_meets_a_snapshot_resync() {
    let store = Store::new();
    let mut watcher = store.watch();
    store.install(State::new());
    assert!(matches!(watcher.try_next(), Some(WatchItem::Resync)));
    for index in 1..=(WATCH_BATCHES_MAX as u64 + 8) {
        let role = shoal_model::NodeRole::Worker;
        let actions = if index == 1 {
            let mut endless = cluster();
            endless.worker_secret.uses_left = Some(u64::MAX);
            vec![create(Object::Cluster(Box::new(endless)))]
        } else {
            vec![StoreAction::UseJoinToken { role }]
        };
        store.apply(index, &command(actions));
    }
    assert!(matches!(watcher.try_next(), Some(WatchItem::Resync)));
    assert!(matches!(watcher.try_next(), Some(WatchItem::Changes(_))));
}
