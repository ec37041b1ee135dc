//! The places of a service and what becomes of the tasks in them.

use super::restart::{self, Verdict};
use super::{Scene, is_lost};
use crate::loops::runner::Pass;
use crate::store::{State, holds_node};
use shoal_model::command::StoreAction;
use shoal_model::spec::OnPartition;
use shoal_model::{NodeId, NodeState, Service, ServiceMode, Task, TaskId, TaskState, Timestamp};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// A `stop` task may overrun its lease by this before its replacement starts.
const LEASE_MARGIN: Duration = Duration::from_secs(1);

/// Where one task of a service belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Place {
    /// A slot of a replicated service.
    Slot(u64),
    /// A node of a global one.
    Node(NodeId),
}

/// What is known of the nodes that can't be heard.
pub(crate) struct Silence<'a> {
    state: &'a State,
    down_for: &'a BTreeMap<NodeId, Duration>,
    /// From a node being declared down to its tasks being given up.
    grace: Duration,
    /// From a node being declared down to the certainty that its `stop` tasks are dead.
    fence: Duration,
    /// The same for a node that said good-bye: its lease may have been renewed just before.
    goodbye_fence: Duration,
}

/// What may be assumed of a task's node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hearing {
    /// It is heard of, or may be again soon: its word counts.
    Present,
    /// It is down, but the service gives it more time.
    Awaited(Duration),
    /// It is given up, but the task may still run for so long.
    Fenced(Duration),
    /// It is given up, and a replacement may start.
    Lost,
}

impl<'a> Silence<'a> {
    pub(crate) fn new(
        state: &'a State,
        service: &Service,
        down_for: &'a BTreeMap<NodeId, Duration>,
    ) -> Self {
        let defaults = shoal_model::ClusterSpec::default();
        let spec = state.cluster().map_or(&defaults, |cluster| &cluster.spec);
        let down_limit = Duration::from_millis(spec.down_limit_ms);
        let own_limit = service
            .spec
            .down_limit_ms
            .map_or(down_limit, Duration::from_millis);
        let lease = Duration::from_millis(spec.lease_ms) + LEASE_MARGIN;
        Self {
            state,
            down_for,
            grace: own_limit.saturating_sub(down_limit),
            // The node was last heard at least the down limit before it was declared down.
            fence: lease.saturating_sub(down_limit),
            goodbye_fence: lease,
        }
    }

    pub(crate) fn of(&self, task: &Task) -> Hearing {
        let Some(node_id) = task.node_id else {
            return Hearing::Present;
        };
        let Some(node) = self.state.node(node_id) else {
            return Hearing::Lost;
        };
        if !is_lost(node) {
            return Hearing::Present;
        }
        let down_for = self.down_for.get(&node_id).copied().unwrap_or_default();
        let goodbye = node.status.state == NodeState::Disconnected;
        let grace = if goodbye { Duration::ZERO } else { self.grace };
        if down_for < grace {
            return Hearing::Awaited(grace - down_for);
        }
        let fence = match (task.on_partition, goodbye) {
            (OnPartition::Keep, _) => Duration::ZERO,
            (OnPartition::Stop, false) => self.fence,
            (OnPartition::Stop, true) => self.goodbye_fence,
        };
        if down_for < fence {
            Hearing::Fenced(fence - down_for)
        } else {
            Hearing::Lost
        }
    }
}

/// The tasks of one place, oldest first.
#[derive(Debug, Clone, Default)]
pub(crate) struct PlaceTasks<'a> {
    pub(crate) tasks: Vec<&'a Arc<Task>>,
}

/// What a place is after its tasks were looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Occupancy {
    /// A task shall run here (or has ended and shall not be started again).
    Taken,
    /// It had a task and needs a new one, not started before that time.
    Vacant(Option<Timestamp>),
    /// It had a task that is still stopping; a new one must wait for its end.
    Leaving,
    /// It was scaled away, and its last task is still stopping.
    Closing,
    /// It was scaled away.
    Gone,
}

/// Sorts the tasks of a service into places.
pub(crate) fn places<'a>(scene: &Scene<'a>) -> BTreeMap<Place, PlaceTasks<'a>> {
    let mut places: BTreeMap<Place, PlaceTasks<'a>> = BTreeMap::new();
    for task in scene.state.tasks_by_service(scene.service.id) {
        let place = match (&scene.service.spec.mode, task.node_id) {
            (ServiceMode::Global, Some(node_id)) => Place::Node(node_id),
            (ServiceMode::Global, None) | (ServiceMode::Replicated { .. }, _) => {
                Place::Slot(task.slot)
            }
        };
        places.entry(place).or_default().tasks.push(task);
    }
    for place in places.values_mut() {
        place
            .tasks
            .sort_by_key(|task| (task.meta.created_at, task.spec_version, task.id));
    }
    places
}

pub(crate) const fn is_wanted(task: &Task) -> bool {
    matches!(task.desired, TaskState::Ready | TaskState::Running)
}

pub(crate) fn is_live(task: &Task) -> bool {
    is_wanted(task) && !task.status.state.is_terminal()
}

/// Compares the live tasks of a place: the greatest is furthest, the newest of these.
fn standing(task: &Task) -> (bool, TaskState, Timestamp, TaskId) {
    (
        is_serving(task),
        task.status.state,
        task.meta.created_at,
        task.id,
    )
}

/// In rotation: its place is served.
pub(crate) fn is_serving(task: &Task) -> bool {
    is_live(task) && task.status.state == TaskState::Running && task.status.ready
}

/// The task runs what the service says now: it was made from that version, or from an equal one before a rollback.
pub(crate) fn is_current(service: &Service, task: &Task) -> bool {
    task.spec_version >= service.spec_version
        || (*task.spec == service.spec.task && task.ports == service.ports)
}

pub(crate) fn end(task: &Task, desired: TaskState) -> StoreAction {
    StoreAction::SetDesired {
        task_id: task.id,
        desired,
    }
}

impl<'a> PlaceTasks<'a> {
    pub(crate) fn wanted(&self) -> impl DoubleEndedIterator<Item = &'a Arc<Task>> + '_ {
        self.tasks.iter().copied().filter(|task| is_wanted(task))
    }

    pub(crate) fn live(&self) -> impl DoubleEndedIterator<Item = &'a Arc<Task>> + '_ {
        self.tasks.iter().copied().filter(|task| is_live(task))
    }

    /// The task that stands for the place: the one that is furthest, the newest of these.
    pub(crate) fn best(&self) -> Option<&'a Arc<Task>> {
        self.live().max_by_key(|task| standing(task))
    }

    /// Ends what must end here, and says what the place is then.
    pub(crate) fn settle(&self, scene: &Scene<'_>, pass: &mut Pass) -> Occupancy {
        let mut ended = Vec::new();
        self.drop_doubles(scene, pass, &mut ended);
        let mut stays = false;
        let mut not_before = None;
        for task in self.wanted().filter(|task| !ended.contains(&task.id)) {
            if task.status.state.is_terminal() {
                let replaced = self.live().any(|other| !ended.contains(&other.id));
                match restart::judge(scene, self, task) {
                    Verdict::Stay if !replaced => stays = true,
                    Verdict::Stay => pass.actions.push(end(task, TaskState::Shutdown)),
                    Verdict::Replace(at) => {
                        pass.actions.push(end(task, TaskState::Shutdown));
                        not_before = not_before.max(at);
                    }
                }
                continue;
            }
            match self.hearing(scene, task) {
                Hearing::Present => stays = true,
                Hearing::Awaited(wait) => {
                    pass.wake_after(wait);
                    stays = true;
                }
                Hearing::Fenced(_) | Hearing::Lost => {
                    pass.actions.push(end(task, TaskState::Shutdown));
                }
            }
        }
        if stays {
            return Occupancy::Taken;
        }
        let removed = self
            .tasks
            .iter()
            .all(|task| task.desired == TaskState::Remove);
        match (removed, self.is_blocked(scene, pass)) {
            (true, true) => Occupancy::Closing,
            (true, false) => Occupancy::Gone,
            (false, true) => Occupancy::Leaving,
            (false, false) => Occupancy::Vacant(not_before),
        }
    }

    /// Tasks of a global service wait for their node: there is nowhere else to go.
    fn hearing(&self, scene: &Scene<'_>, task: &Task) -> Hearing {
        match scene.service.spec.mode {
            ServiceMode::Global => Hearing::Present,
            ServiceMode::Replicated { .. } => scene.silence.of(task),
        }
    }

    /// A task that is no longer wanted may still run, so that a new one would be the second.
    fn is_blocked(&self, scene: &Scene<'_>, pass: &mut Pass) -> bool {
        let mut blocked = false;
        for task in self.tasks.iter().filter(|task| holds_node(task)) {
            match scene.silence.of(task) {
                Hearing::Lost => {}
                Hearing::Present => blocked |= !is_wanted(task),
                Hearing::Awaited(wait) | Hearing::Fenced(wait) => {
                    pass.wake_after(wait);
                    blocked = true;
                }
            }
        }
        blocked
    }

    /// Of several live tasks one remains; while an update starts the new one first, the old one until the new serves.
    fn drop_doubles(&self, scene: &Scene<'_>, pass: &mut Pass, ended: &mut Vec<TaskId>) {
        let Some(best) = self.best() else {
            return;
        };
        let generation = |task: &Task| (is_current(scene.service, task), task.spec_version);
        let newest_generation = self.live().map(|task| generation(task)).max();
        let is_new = |task: &Task| Some(generation(task)) == newest_generation;
        let newest = self
            .live()
            .filter(|task| is_new(task))
            .max_by_key(|task| standing(task));
        let keeps_both = newest.is_some_and(|newest| !is_serving(newest));
        for task in self.live() {
            let is_newest = newest.is_some_and(|newest| newest.id == task.id);
            let is_old_one = keeps_both && task.id == best.id && !is_new(task);
            if !is_newest && !is_old_one {
                pass.actions.push(end(task, TaskState::Shutdown));
                ended.push(task.id);
            }
        }
    }
}
