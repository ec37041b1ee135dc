//! Statuses on their way to the managers: repeated until acknowledged, only the newest of each task.

use shoal_model::session::STATUSES_PER_MESSAGE_MAX;
use shoal_model::{TaskId, TaskStatus};
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

#[derive(Debug, Default)]
pub(crate) struct Reports {
    state: Mutex<State>,
    wake: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// Counts changes, so that an acknowledgement of an older status does not clear a newer one.
    generation: u64,
    statuses: BTreeMap<TaskId, Entry>,
}

#[derive(Debug)]
struct Entry {
    status: TaskStatus,
    generation: u64,
    acknowledged: bool,
}

/// A batch to send, and what to call when it is acknowledged.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) statuses: Vec<(TaskId, TaskStatus)>,
    generation: u64,
}

impl Reports {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn set(&self, id: TaskId, status: TaskStatus) {
        let mut state = self.lock();
        state.generation += 1;
        let generation = state.generation;
        let entry = Entry {
            status,
            generation,
            acknowledged: false,
        };
        state.statuses.insert(id, entry);
        drop(state);
        self.wake.notify_one();
    }

    pub(crate) fn get(&self, id: TaskId) -> Option<TaskStatus> {
        self.lock()
            .statuses
            .get(&id)
            .map(|entry| entry.status.clone())
    }

    pub(crate) fn forget(&self, id: TaskId) {
        self.lock().statuses.remove(&id);
    }

    /// A new session: the new leader may not have what the old one acknowledged to nobody.
    pub(crate) fn repeat_all(&self) {
        for entry in self.lock().statuses.values_mut() {
            entry.acknowledged = false;
        }
        self.wake.notify_one();
    }

    /// Waits for something new. Cancel-safe.
    pub(crate) async fn filled(&self) {
        self.wake.notified().await;
    }

    /// What is not acknowledged, as much as one message takes.
    pub(crate) fn batch(&self) -> Option<Batch> {
        let state = self.lock();
        let statuses: Vec<_> = state
            .statuses
            .iter()
            .filter(|(_, entry)| !entry.acknowledged)
            .take(STATUSES_PER_MESSAGE_MAX)
            .map(|(id, entry)| (*id, entry.status.clone()))
            .collect();
        (!statuses.is_empty()).then_some(Batch {
            statuses,
            generation: state.generation,
        })
    }

    pub(crate) fn acknowledge(&self, batch: &Batch) {
        let mut state = self.lock();
        for (id, _) in &batch.statuses {
            if let Some(entry) = state.statuses.get_mut(id)
                && entry.generation <= batch.generation
            {
                entry.acknowledged = true;
            }
        }
        drop(state);
        self.wake.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shoal_model::TaskState;

    fn status(state: TaskState) -> TaskStatus {
        TaskStatus {
            state,
            ..TaskStatus::default()
        }
    }

    #[test]
    fn a_status_is_repeated_until_it_is_acknowledged() {
        let reports = Reports::default();
        let id = TaskId::from_bits(1);
        reports.set(id, status(TaskState::Accepted));
        let first = reports.batch().unwrap();
        assert!(reports.batch().is_some(), "still due");
        reports.set(id, status(TaskState::Running));
        reports.acknowledge(&first);
        let second = reports.batch().unwrap();
        assert_eq!(second.statuses[0].1.state, TaskState::Running);
        reports.acknowledge(&second);
        assert!(reports.batch().is_none());
        reports.repeat_all();
        assert!(reports.batch().is_some());
    }
}
