//! Follows the store and tells the sessions concerned; the work per change does not grow with the number of nodes.

use super::assignments::{managers, node_concerned, wanted_role};
use super::outbox::Outbox;
use super::{Term, gate, lock};
use crate::store::{Change, ChangeBatch, Entity, WatchItem, Watcher};
use shoal_model::command::ObjectKey;
use shoal_model::session::ManagerPeer;
use shoal_model::{ClusterSpec, Node, NodeId};
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::time::Instant;

pub(super) async fn run(term: &Term, mut watcher: Watcher) {
    let state = term.context.store.view();
    term.gate.look_at_all(&state, Instant::now());
    let mut known = managers(&state);
    while let Some(item) = watcher.next().await {
        match item {
            WatchItem::Changes(batch) => route(term, &batch, &mut known),
            WatchItem::Resync => resync(term, &mut known),
        }
    }
}

fn route(term: &Term, batch: &ChangeBatch, known: &mut Vec<ManagerPeer>) {
    let mut filled: BTreeMap<NodeId, Arc<Outbox>> = BTreeMap::new();
    let (state, now) = (term.context.store.view(), Instant::now());
    let mut drained = Vec::new();
    let mut live = lock(&term.live);
    for change in &batch.changes {
        match change.key {
            ObjectKey::Task(_) => {
                let task = change.newest().and_then(Entity::as_task);
                if let Some(task_id) = term.gate.observe(&state, change, now)
                    && let Some(node_id) = task.and_then(|task| task.node_id)
                {
                    drained.push((node_id, task_id));
                }
                // It is told once the gate opens.
                let held = task.is_some_and(|task| term.gate.holds(&state, task));
                if !held
                    && let Some((node_id, task_id)) = node_concerned(change)
                    && let Some(session) = live.sessions.get(&node_id)
                {
                    session.outbox.task_quietly(task_id);
                    filled
                        .entry(node_id)
                        .or_insert_with(|| Arc::clone(&session.outbox));
                }
            }
            ObjectKey::Node(node_id) => {
                let (before, after) = (node(&change.before), node(&change.after));
                if after.is_none() {
                    live.liveness.forget(node_id);
                }
                if let Some(session) = live.sessions.get(&node_id) {
                    tell_node(&session.outbox, before, after);
                }
                if before.map(|node| &node.manager) != after.map(|node| &node.manager) {
                    let now = managers(&term.context.store.view());
                    if now != *known {
                        *known = now;
                        live.sessions.values().for_each(|s| s.outbox.managers());
                    }
                }
            }
            ObjectKey::Cluster => {
                if timing_changed(change) {
                    let reason = "the settings of the cluster have changed";
                    let sessions = live.sessions.values();
                    sessions.for_each(|session| session.outbox.close(reason.to_owned()));
                }
            }
            ObjectKey::Service(_)
            | ObjectKey::Volume(_)
            | ObjectKey::Network(_)
            | ObjectKey::Lease(..)
            | ObjectKey::Attachment(_) => {}
        }
    }
    drop(live);
    // One entry is one message: an outbox is woken once, after all of its tasks are in.
    filled.values().for_each(|outbox| outbox.wake());
    gate::tell(term, &drained);
}

fn tell_node(outbox: &Outbox, before: Option<&Node>, after: Option<&Node>) {
    match after {
        None => outbox.close("the node was removed from the cluster".to_owned()),
        Some(after) => {
            let role_before = before.map(|before| (wanted_role(before), before.role));
            if role_before != Some((wanted_role(after), after.role)) {
                outbox.role();
            }
        }
    }
}

fn node(entity: &Option<Entity>) -> Option<&Node> {
    match entity {
        Some(Entity::Node(node)) => Some(node),
        Some(
            Entity::Cluster(_)
            | Entity::Service(_)
            | Entity::Task(_)
            | Entity::Volume(_)
            | Entity::Network(_)
            | Entity::Lease(_)
            | Entity::Attachment(_),
        )
        | None => None,
    }
}

fn timing_changed(change: &Change) -> bool {
    let timing = |entity: &Option<Entity>| match entity {
        Some(Entity::Cluster(cluster)) => {
            let ClusterSpec {
                heartbeat_period_ms,
                lease_ms,
                ..
            } = cluster.spec;
            Some((heartbeat_period_ms, lease_ms))
        }
        _ => None,
    };
    timing(&change.before) != timing(&change.after)
}

fn resync(term: &Term, known: &mut Vec<ManagerPeer>) {
    let state = term.context.store.view();
    term.gate.look_at_all(&state, Instant::now());
    *known = managers(&state);
    for session in lock(&term.live).sessions.values() {
        session.outbox.complete();
        session.outbox.managers();
        session.outbox.role();
    }
}
