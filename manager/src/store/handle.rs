//! The newest state, shared: views for readers, a bounded queue of changes for watchers.

use super::change::Change;
use super::state::State;
use arc_swap::ArcSwap;
use shoal_model::Version;
use shoal_model::command::{Command, Outcome};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::broadcast;

/// Most batches that a watcher may be behind before it must resync.
pub const WATCH_BATCHES_MAX: usize = 1_024;

/// What one entry changed.
#[derive(Debug)]
pub struct ChangeBatch {
    /// Index of the entry.
    pub version: Version,
    /// The objects, each once, by key.
    pub changes: Vec<Change>,
}

/// What a watcher sees next.
#[derive(Debug, Clone)]
pub enum WatchItem {
    /// One entry took effect.
    Changes(Arc<ChangeBatch>),
    /// Changes were missed: take a view and do a full pass.
    Resync,
}

/// The store of this manager. Clones share it.
#[derive(Debug, Clone)]
pub struct Store {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    newest: ArcSwap<State>,
    /// Held while an entry is applied: there is one writer at a time.
    writer: Mutex<()>,
    watchers: broadcast::Sender<WatchItem>,
}

impl Default for Store {
    fn default() -> Self {
        Self::new()
    }
}

impl Store {
    /// An empty store.
    pub fn new() -> Self {
        Self {
            shared: Arc::new(Shared {
                newest: ArcSwap::from_pointee(State::new()),
                writer: Mutex::new(()),
                watchers: broadcast::channel(WATCH_BATCHES_MAX).0,
            }),
        }
    }

    /// The newest applied state.
    pub fn view(&self) -> Arc<State> {
        self.shared.newest.load_full()
    }

    /// Follows changes from now on. Take a [`Store::view`] after this call: together they miss nothing.
    pub fn watch(&self) -> Watcher {
        Watcher {
            receiver: self.shared.watchers.subscribe(),
        }
    }

    /// Applies one entry. Only Raft calls this, and the in-memory consensus of tests.
    pub fn apply(&self, index: u64, command: &Command) -> Outcome {
        let mut batch = self.batch();
        let (outcome, changes) = batch.state.apply(index, command);
        batch.note(index, changes);
        batch.publish();
        outcome
    }

    /// Begins to apply entries in a row. Readers see none of them before [`Batch::publish`], and then all: an answer to
    /// who proposed one must wait until then.
    pub fn batch(&self) -> Batch<'_> {
        let writer = self.lock();
        Batch {
            store: self,
            state: State::clone(&self.shared.newest.load()),
            changed: Vec::new(),
            _writer: writer,
        }
    }

    /// Replaces everything with the content of a snapshot; watchers resync.
    pub fn install(&self, state: State) {
        let _writer = self.lock();
        self.shared.newest.store(Arc::new(state));
        self.publish(WatchItem::Resync);
    }

    fn publish(&self, item: WatchItem) {
        // Nobody watching is not an error.
        drop(self.shared.watchers.send(item));
    }

    fn lock(&self) -> MutexGuard<'_, ()> {
        // The guarded value is empty: a panic elsewhere can't have left it half changed.
        self.shared
            .writer
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// Entries that are being applied; dropped without [`Batch::publish`] they never were.
pub struct Batch<'a> {
    store: &'a Store,
    state: State,
    changed: Vec<ChangeBatch>,
    _writer: MutexGuard<'a, ()>,
}

impl Batch<'_> {
    /// Applies the next entry.
    pub fn apply(&mut self, index: u64, commands: &[Command]) -> Vec<Outcome> {
        let mut outcomes = Vec::with_capacity(commands.len());
        let mut changed = Vec::new();
        for command in commands {
            let (outcome, changes) = self.state.apply(index, command);
            outcomes.push(outcome);
            changed.extend(changes);
        }
        self.note(index, changed);
        outcomes
    }

    /// All changes of one entry are one batch: who has seen its version has seen all of it.
    fn note(&mut self, index: u64, changes: Vec<Change>) {
        if !changes.is_empty() {
            self.changed.push(ChangeBatch {
                version: Version(index),
                changes,
            });
        }
    }

    /// Shows the new state to readers, and the changes to watchers.
    pub fn publish(self) {
        self.store.shared.newest.store(Arc::new(self.state));
        for batch in self.changed {
            self.store.publish(WatchItem::Changes(Arc::new(batch)));
        }
    }
}

/// A place in the queue of changes.
#[derive(Debug)]
pub struct Watcher {
    receiver: broadcast::Receiver<WatchItem>,
}

impl Watcher {
    /// The next item; `None` once the store is gone.
    pub async fn next(&mut self) -> Option<WatchItem> {
        match self.receiver.recv().await {
            Ok(item) => Some(item),
            Err(broadcast::error::RecvError::Lagged(_)) => Some(WatchItem::Resync),
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }

    /// The next item if there is one already.
    pub fn try_next(&mut self) -> Option<WatchItem> {
        match self.receiver.try_recv() {
            Ok(item) => Some(item),
            Err(broadcast::error::TryRecvError::Lagged(_)) => Some(WatchItem::Resync),
            Err(broadcast::error::TryRecvError::Empty | broadcast::error::TryRecvError::Closed) => {
                None
            }
        }
    }
}
