//! Makes tasks from services, so that each place of a service (a slot, or a node of a global service) has one task.
//!
//! One loop decides everything about the tasks of a service, because two that both see a hole would fill it twice. The
//! decision has stages, each a pure function: what becomes of the tasks that a place has (`places`, `restart`), which
//! places there must be (`replicated`, `global`), and which are out of date (`updater`).

mod global;
mod new_task;
mod places;
mod replicated;
mod restart;
mod updater;

use super::runner::{Moment, Pass, Reconciler};
use crate::consensus::IdSource;
use crate::store::{Change, Entity, State};
use places::Silence;
use shoal_model::{Node, NodeId, NodeState, Service, ServiceId, ServiceMode};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// The loop.
#[derive(Debug, Default)]
pub struct Orchestrator {
    dirty: BTreeSet<ServiceId>,
    /// When each node that is down was first seen so, by the loop's own clock.
    down_since: BTreeMap<NodeId, Duration>,
    /// When services must be looked at again.
    alarms: BTreeMap<ServiceId, Duration>,
}

/// Everything that a decision about a service may look at.
pub(crate) struct Scene<'a> {
    pub(crate) state: &'a State,
    pub(crate) service: &'a Service,
    pub(crate) now: Moment,
    pub(crate) ids: &'a dyn IdSource,
    pub(crate) silence: Silence<'a>,
}

/// Decides about one service. `down_for` says how long each node that is down has been known to be.
pub fn plan_service(
    state: &State,
    service: &Service,
    now: Moment,
    down_for: &BTreeMap<NodeId, Duration>,
    ids: &dyn IdSource,
) -> Pass {
    if service.pending_delete {
        // The reaper takes the tasks away.
        return Pass::default();
    }
    let scene = Scene {
        state,
        service,
        now,
        ids,
        silence: Silence::new(state, service, down_for),
    };
    let mut pass = match service.spec.mode {
        ServiceMode::Replicated { replicas } => replicated::plan(&scene, replicas),
        ServiceMode::Global => global::plan(&scene),
    };
    // An update goes on from a settled state only: what was decided above shows in the next pass.
    if pass.actions.is_empty() {
        updater::plan(&scene, &mut pass);
    }
    pass
}

fn is_lost(node: &Node) -> bool {
    matches!(node.status.state, NodeState::Down | NodeState::Disconnected)
}

impl Orchestrator {
    fn node_changed(&mut self, before: Option<&Node>, after: Option<&Node>, state: &State) {
        let seen = |node: &Node| {
            (
                node.status.state,
                node.spec.availability,
                node.spec.labels.clone(),
                node.role,
                node.description.clone(),
                node.status.addr.clone(),
            )
        };
        let same = match (before, after) {
            (Some(before), Some(after)) => seen(before) == seen(after),
            (None, _) | (_, None) => false,
        };
        let Some(node) = after.or(before) else {
            return;
        };
        if same {
            return;
        }
        let here = state.tasks_by_node(node.id).map(|task| task.service_id);
        self.dirty.extend(here);
        let global = state
            .services()
            .filter(|service| service.spec.mode == ServiceMode::Global);
        self.dirty.extend(global.map(|service| service.id));
    }

    fn watch_silence(&mut self, state: &State, now: Duration) -> BTreeMap<NodeId, Duration> {
        let down: BTreeSet<NodeId> = state
            .nodes()
            .filter(|node| is_lost(node))
            .map(|node| node.id)
            .collect();
        self.down_since.retain(|id, _| down.contains(id));
        for id in down {
            self.down_since.entry(id).or_insert(now);
        }
        let passed = |(id, since): (&NodeId, &Duration)| (*id, now.saturating_sub(*since));
        self.down_since.iter().map(passed).collect()
    }
}

impl Reconciler for Orchestrator {
    const NAME: &'static str = "orchestrator";

    fn reset(&mut self, state: &State) {
        self.dirty = state.services().map(|service| service.id).collect();
    }

    fn note(&mut self, change: &Change, state: &State) {
        match (&change.before, &change.after) {
            (_, Some(Entity::Service(service))) => {
                self.dirty.insert(service.id);
            }
            (_, Some(Entity::Task(task))) | (Some(Entity::Task(task)), None) => {
                self.dirty.insert(task.service_id);
            }
            (before, Some(Entity::Node(node))) => {
                let before = match before {
                    Some(Entity::Node(before)) => Some(&**before),
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
                };
                self.node_changed(before, Some(node), state);
            }
            (Some(Entity::Node(node)), None) => self.node_changed(Some(node), None, state),
            (
                _,
                Some(
                    Entity::Cluster(_)
                    | Entity::Volume(_)
                    | Entity::Network(_)
                    | Entity::Lease(_)
                    | Entity::Attachment(_),
                ),
            )
            | (
                Some(
                    Entity::Cluster(_)
                    | Entity::Volume(_)
                    | Entity::Service(_)
                    | Entity::Network(_)
                    | Entity::Lease(_)
                    | Entity::Attachment(_),
                ),
                None,
            )
            | (None, None) => {}
        }
    }

    fn plan(&mut self, state: &State, now: Moment, ids: &dyn IdSource) -> Pass {
        let down_for = self.watch_silence(state, now.elapsed);
        let mut dirty = std::mem::take(&mut self.dirty);
        let due = |at: &Duration| *at <= now.elapsed;
        dirty.extend(
            self.alarms
                .iter()
                .filter(|(_, at)| due(at))
                .map(|(id, _)| *id),
        );
        let mut pass = Pass::default();
        for id in dirty {
            self.alarms.remove(&id);
            let Some(service) = state.service(id) else {
                continue;
            };
            let own = plan_service(state, service, now, &down_for, ids);
            pass.actions.extend(own.actions);
            if let Some(wait) = own.wake_after {
                self.alarms.insert(id, now.elapsed.saturating_add(wait));
            }
        }
        if let Some(next) = self.alarms.values().min() {
            pass.wake_after(next.saturating_sub(now.elapsed));
        }
        pass
    }
}
