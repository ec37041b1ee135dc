//! The drain gate: a task that others may send new connections to is told to stop only once none of them does.
//!
//! A task that is to go leaves rotation with the entry that says so. Its own node hears of it when every node with a
//! live lease has applied that version of the networks, or when the leases of those that have not are over: a node
//! without a lease refuses by itself what it can't confirm. Names live on in clients for their time to live, so a task
//! that is found by name alone waits that much longer.
//!
//! What is held follows from the store, so that a new leader holds the same tasks, and starts waiting over.

use super::quorum::CONFIRMED_FOR;
use super::{Term, lock};
use crate::netfeed::{is_lost, is_reachable};
use crate::store::{Change, Entity, State};
use shoal_model::command::ObjectKey;
use shoal_model::spec::EndpointMode;
use shoal_model::{ClusterSpec, NodeId, Task, TaskId, TaskState, Version};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;
use tracing::{debug, warn};

/// How long a client may use a name's answer.
const NAME_TTL: Duration = Duration::from_secs(1);

/// While tasks are held, this often is looked whether leases have ended.
const LEASES_PERIOD: Duration = Duration::from_millis(50);

/// Tasks that are not told yet that they must go.
#[derive(Debug)]
pub(super) struct Gate {
    inner: Mutex<Inner>,
    wake: Notify,
    /// No other manager renews a lease from then on: one that led before may do so for a while.
    alone_from: Instant,
}

#[derive(Debug, Default)]
struct Inner {
    held: BTreeMap<TaskId, Held>,
    /// Those that were held for long enough, until they have stopped.
    released: BTreeSet<TaskId>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Held {
    node_id: NodeId,
    /// The networks' version in which it takes no new connections.
    version: Version,
    /// Every lease of now is over then.
    until: Instant,
    /// It is found by name alone.
    by_name: bool,
    /// Nobody asks for it any more; answers that were given before may be used until then.
    rests_until: Option<Instant>,
}

/// Whether others may still send new connections to a task that is to go. One that is not ready counts too: it was
/// taken out of rotation before, and not every node may have heard of that.
fn drains(state: &State, task: &Task) -> bool {
    task.desired > TaskState::Running
        && is_reachable(task)
        && task.status.state == TaskState::Running
        && task.node_id.is_some_and(|node_id| !is_lost(state, node_id))
}

fn found_by_name(state: &State, task: &Task) -> bool {
    !task.endpoints.is_empty()
        && state
            .service(task.service_id)
            .is_some_and(|service| service.spec.endpoint.mode == EndpointMode::DnsRoundRobin)
}

fn lease(state: &State) -> Duration {
    let lease_ms = state.cluster().map_or_else(
        || ClusterSpec::default().lease_ms,
        |cluster| cluster.spec.lease_ms,
    );
    Duration::from_millis(lease_ms)
}

/// What a look at the gate has found.
#[derive(Debug, Default, PartialEq, Eq)]
struct Opened {
    /// Tasks that are told now, with their nodes.
    tasks: Vec<(NodeId, TaskId)>,
    /// Versions that were not confirmed in time.
    overdue: BTreeSet<Version>,
}

impl Gate {
    /// A gate of a manager that leads from `now` on.
    pub(super) fn new(now: Instant) -> Self {
        Self {
            inner: Mutex::default(),
            wake: Notify::new(),
            alone_from: now + CONFIRMED_FOR,
        }
    }

    /// Whether `task` must not hear yet that it is to go.
    pub(super) fn holds(&self, state: &State, task: &Task) -> bool {
        drains(state, task) && !lock(&self.inner).released.contains(&task.id)
    }

    /// Holds every task that `state` wants gone and that may still get connections.
    pub(super) fn look_at_all(&self, state: &State, now: Instant) {
        for task in state.tasks().filter(|task| drains(state, task)) {
            self.hold(state, task, now);
        }
    }

    /// Takes note of a change; a task that needs no waiting any more is given back to be told.
    pub(super) fn observe(&self, state: &State, change: &Change, now: Instant) -> Option<TaskId> {
        let ObjectKey::Task(id) = change.key else {
            return None;
        };
        let after = change.after.as_ref().and_then(Entity::as_task);
        match after {
            Some(task) if drains(state, task) => {
                self.hold(state, task, now);
                None
            }
            _ => {
                let mut inner = lock(&self.inner);
                if after.is_none_or(|task| task.status.state.is_terminal()) {
                    inner.released.remove(&id);
                }
                inner.held.remove(&id).map(|_| id)
            }
        }
    }

    fn hold(&self, state: &State, task: &Task, now: Instant) {
        let Some(node_id) = task.node_id else {
            return;
        };
        let mut inner = lock(&self.inner);
        if inner.released.contains(&task.id) || inner.held.contains_key(&task.id) {
            return;
        }
        let held = Held {
            node_id,
            version: task.meta.version,
            until: now.max(self.alone_from) + lease(state),
            by_name: found_by_name(state, task),
            rests_until: None,
        };
        inner.held.insert(task.id, held);
        drop(inner);
        self.wake.notify_one();
    }

    fn is_empty(&self) -> bool {
        lock(&self.inner).held.is_empty()
    }

    /// Lets go what has waited for long enough.
    fn open(&self, confirmed: Version, now: Instant) -> Opened {
        let mut inner = lock(&self.inner);
        let mut opened = Opened::default();
        for (id, held) in &mut inner.held {
            let is_confirmed = held.version <= confirmed;
            if held.rests_until.is_none() && (is_confirmed || now >= held.until) {
                if !is_confirmed {
                    opened.overdue.insert(held.version);
                }
                let rest = if held.by_name {
                    NAME_TTL
                } else {
                    Duration::ZERO
                };
                held.rests_until = Some(now + rest);
            }
            if held.rests_until.is_some_and(|until| now >= until) {
                opened.tasks.push((held.node_id, *id));
            }
        }
        for (_, id) in &opened.tasks {
            inner.held.remove(id);
            inner.released.insert(*id);
        }
        opened
    }

    /// When a held task is let go whatever happens, or may be.
    fn next(&self) -> Option<Instant> {
        let inner = lock(&self.inner);
        let times = inner
            .held
            .values()
            .map(|held| held.rests_until.unwrap_or(held.until));
        times.min()
    }
}

pub(super) async fn run(term: &Term) {
    let mut progress = term.feeds.progress();
    loop {
        progress.borrow_and_update();
        if !term.gate.is_empty() {
            let opened = term.gate.open(term.feeds.confirmed(), Instant::now());
            for version in &opened.overdue {
                let nodes = term.feeds.missing(*version);
                warn!(%version, ?nodes, "tasks are stopped although nodes did not say that they send nothing to them");
            }
            tell(term, &opened.tasks);
        }
        let next = term.gate.next();
        let deadline = async {
            match next {
                Some(at) => {
                    tokio::time::sleep_until(at.min(Instant::now() + LEASES_PERIOD)).await;
                }
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = term.gate.wake.notified() => {}
            () = deadline => {}
            changed = progress.changed(), if next.is_some() => if changed.is_err() {
                return;
            },
        }
    }
}

/// Has the sessions tell what the store says of `tasks`.
pub(super) fn tell(term: &Term, tasks: &[(NodeId, TaskId)]) {
    let live = lock(&term.live);
    let mut filled = BTreeMap::new();
    for (node_id, task_id) in tasks {
        debug!(%node_id, %task_id, "task has drained");
        if let Some(session) = live.sessions.get(node_id) {
            session.outbox.task_quietly(*task_id);
            filled.insert(*node_id, std::sync::Arc::clone(&session.outbox));
        }
    }
    drop(live);
    filled.values().for_each(|outbox| outbox.wake());
}
