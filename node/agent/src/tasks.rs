//! All tasks of this node: takes assignments, keeps one loop per task, knows what is on disk.

use crate::disk::{AgentDisk, AgentRecord, TaskRecord};
use crate::runtime::{Found, RuntimeError};
use crate::task::{Assignment, Driver, Shared, first_status};
use shoal_model::cluster::Redacted;
use shoal_model::session::{AssignmentChange, AssignmentsKind, AssignmentsMessage, ManagerPeer};
use shoal_model::{ContainerId, Task, TaskId};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{error, info, warn};

/// Wait before a container is removed again that could not be.
const DISCARD_RETRY: Duration = Duration::from_secs(2);

/// The message does not follow the last one: everything is needed again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an assignment message applies to {applies_to}, this node is at {at}")]
pub(crate) struct OutOfSync {
    applies_to: u64,
    at: u64,
}

/// Clones share it.
#[derive(Clone)]
pub(crate) struct Tasks(Arc<Inner>);

struct Inner {
    shared: Arc<Shared>,
    state: Mutex<State>,
    tracker: TaskTracker,
    cancel: CancellationToken,
}

#[derive(Default)]
struct State {
    tasks: BTreeMap<TaskId, watch::Sender<Assignment>>,
    /// Containers of tasks that no record names; kept until a complete set has come.
    unclaimed: BTreeMap<TaskId, Vec<Found>>,
    managers: Vec<ManagerPeer>,
    /// For the registries of tasks' images; in memory only.
    credentials: BTreeMap<TaskId, Redacted<String>>,
    sequence: u64,
    /// Tasks of a complete set of which more is to come.
    gathering: Option<BTreeSet<TaskId>>,
}

impl Tasks {
    pub(crate) fn new(shared: Arc<Shared>, cancel: CancellationToken) -> Self {
        Self(Arc::new(Inner {
            shared,
            state: Mutex::new(State::default()),
            tracker: TaskTracker::new(),
            cancel,
        }))
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.0.shared
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Goes on from what is on disk and what really runs.
    pub(crate) async fn resume(&self, record: AgentRecord) -> Result<(), RuntimeError> {
        let mut by_task: BTreeMap<TaskId, Vec<Found>> = BTreeMap::new();
        for found in self.0.shared.runtime.found().await? {
            by_task.entry(found.task_id).or_default().push(found);
        }
        let mut state = self.lock();
        state.managers = record.managers;
        for kept in record.tasks {
            let found = by_task.remove(&kept.task.id).unwrap_or_default();
            info!(task_id = %kept.task.id, containers = found.len(), "task resumed");
            let assignment = Assignment {
                task: Arc::new(kept.task),
                forgotten: kept.forgotten,
                registry_auth: None,
            };
            self.spawn(&mut state, assignment, Some(kept.status), found);
        }
        state.unclaimed = by_task;
        Ok(())
    }

    fn spawn(
        &self,
        state: &mut State,
        assignment: Assignment,
        status: Option<shoal_model::TaskStatus>,
        found: Vec<Found>,
    ) {
        let id = assignment.task.id;
        let shared = Arc::clone(&self.0.shared);
        let status = status.unwrap_or_else(|| first_status(&assignment.task, shared.clock.now()));
        let (sender, receiver) = watch::channel(assignment);
        state.tasks.insert(id, sender);
        let (driver, stale) = Driver::new(shared, receiver, status, found);
        for container_id in stale {
            self.discard(container_id);
        }
        let tasks = self.clone();
        let run = driver.run(move |id| tasks.may_forget(id));
        let cancel = self.0.cancel.clone();
        self.0
            .tracker
            .spawn(async move { cancel.run_until_cancelled(run).await });
    }

    /// The task has nothing left here. False if it was assigned anew meanwhile.
    fn may_forget(&self, id: TaskId) -> bool {
        let mut state = self.lock();
        let forgotten = state
            .tasks
            .get(&id)
            .is_none_or(|sender| sender.borrow().forgotten);
        if forgotten {
            state.tasks.remove(&id);
            state.credentials.remove(&id);
            self.0.shared.reports.forget(id);
            self.0.shared.dirty.notify_one();
        }
        forgotten
    }

    /// A new session begins: its first message is a complete set.
    pub(crate) fn begin_session(&self) {
        self.lock().gathering = None;
    }

    /// Takes a message. True: a complete set has ended with it.
    pub(crate) fn apply(&self, message: AssignmentsMessage) -> Result<bool, OutOfSync> {
        let mut state = self.lock();
        let AssignmentsMessage {
            kind,
            applies_to,
            results_in,
            changes,
            more,
        } = message;
        let continues = kind == AssignmentsKind::Incremental || state.gathering.is_some();
        if continues && applies_to != state.sequence {
            let at = state.sequence;
            return Err(OutOfSync { applies_to, at });
        }
        state.sequence = results_in;
        if kind == AssignmentsKind::Complete && state.gathering.is_none() {
            state.gathering = Some(BTreeSet::new());
        }
        for change in changes {
            match change {
                AssignmentChange::UpdateTask(task) => {
                    if let Some(gathering) = &mut state.gathering {
                        gathering.insert(task.id);
                    }
                    self.update(&mut state, *task);
                }
                AssignmentChange::RemoveTask(id) => forget(&state, id),
                AssignmentChange::RegistryAuth { task_id, auth } => {
                    state.credentials.insert(task_id, auth);
                }
            }
        }
        let completed = match state.gathering.take() {
            Some(wanted) if !more => {
                self.drop_others(&mut state, &wanted);
                true
            }
            gathering => {
                state.gathering = gathering;
                false
            }
        };
        drop(state);
        self.0.shared.dirty.notify_one();
        Ok(completed)
    }

    fn update(&self, state: &mut State, mut task: Task) {
        let id = task.id;
        // What was to stop stays so: a new leader may not know yet that its predecessor has said it.
        if let Some(sender) = state.tasks.get(&id) {
            task.desired = task.desired.max(sender.borrow().task.desired);
        }
        let assignment = Assignment {
            task: Arc::new(task),
            forgotten: false,
            registry_auth: state.credentials.get(&id).cloned(),
        };
        match state.tasks.get(&id) {
            Some(sender) => {
                sender.send_replace(assignment);
            }
            None => {
                let found = state.unclaimed.remove(&id).unwrap_or_default();
                self.spawn(state, assignment, None, found);
            }
        }
    }

    /// What a complete set does not name must go.
    fn drop_others(&self, state: &mut State, wanted: &BTreeSet<TaskId>) {
        let unwanted: Vec<_> = state
            .tasks
            .keys()
            .filter(|id| !wanted.contains(id))
            .copied()
            .collect();
        for id in unwanted {
            forget(state, id);
        }
        for (task_id, containers) in std::mem::take(&mut state.unclaimed) {
            for found in containers {
                warn!(%task_id, container_id = %found.container_id, "a container that nobody wants is removed");
                self.discard(found.container_id);
            }
        }
    }

    /// Stops and removes a container, again and again until it is gone.
    fn discard(&self, id: ContainerId) {
        let shared = Arc::clone(&self.0.shared);
        let cancel = self.0.cancel.clone();
        self.0.tracker.spawn(async move {
            let discard = async {
                loop {
                    let gone = async {
                        shared.runtime.stop(id).await?;
                        shared.runtime.remove(id).await
                    };
                    match gone.await {
                        Ok(()) => return,
                        Err(err) => {
                            warn!(container_id = %id, err = %err, "failed to remove a container")
                        }
                    }
                    tokio::time::sleep(DISCARD_RETRY).await;
                }
            };
            cancel.run_until_cancelled(discard).await
        });
    }

    pub(crate) fn managers(&self) -> Vec<ManagerPeer> {
        self.lock().managers.clone()
    }

    pub(crate) fn set_managers(&self, managers: Vec<ManagerPeer>) {
        self.lock().managers = managers;
        self.0.shared.dirty.notify_one();
    }

    /// Tries `leader` first from now on.
    pub(crate) fn prefer(&self, leader: &ManagerPeer) {
        let mut state = self.lock();
        let managers = &mut state.managers;
        if let Some(place) = managers.iter().position(|manager| manager == leader) {
            managers[..=place].rotate_right(1);
        }
    }

    /// Ids of the tasks that this node knows of.
    pub(crate) fn ids(&self) -> Vec<TaskId> {
        self.lock().tasks.keys().copied().collect()
    }

    fn record(&self) -> AgentRecord {
        let state = self.lock();
        let reports = &self.0.shared.reports;
        let tasks = state
            .tasks
            .iter()
            .map(|(id, sender)| {
                let assignment = sender.borrow().clone();
                TaskRecord {
                    status: reports
                        .get(*id)
                        .unwrap_or_else(|| assignment.task.status.clone()),
                    task: Task::clone(&assignment.task),
                    forgotten: assignment.forgotten,
                }
            })
            .collect();
        AgentRecord {
            tasks,
            managers: state.managers.clone(),
        }
    }

    /// Writes the record whenever something has changed, until cancelled; once more at the end.
    pub(crate) async fn keep_on_disk(&self, disk: Arc<dyn AgentDisk>) {
        loop {
            let ending = tokio::select! {
                () = self.0.shared.dirty.notified() => false,
                () = self.0.cancel.cancelled() => true,
            };
            if let Err(err) = self.record().save(&*disk).await {
                error!(
                    err = &err as &dyn std::error::Error,
                    "failed to keep the assignments on disk"
                );
            }
            if ending {
                return;
            }
        }
    }

    /// Waits until every task's loop has ended; containers live on.
    pub(crate) async fn ended(&self) {
        self.0.tracker.close();
        self.0.tracker.wait().await;
    }
}

fn forget(state: &State, id: TaskId) {
    if let Some(sender) = state.tasks.get(&id) {
        sender.send_modify(|assignment| assignment.forgotten = true);
    }
}
