//! What a session still has to send. Bounded by the node's own tasks: changes of one task are one entry.

use super::lock;
use shoal_model::TaskId;
use std::collections::BTreeSet;
use std::sync::Mutex;
use tokio::sync::Notify;

/// Filled by the router, the writer and newer sessions; emptied by the session.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    pending: Mutex<Pending>,
    wake: Notify,
}

/// What is to be sent. Contents are read from the newest view when they are sent.
#[derive(Debug, Default)]
pub(super) struct Pending {
    /// Tasks to tell anew.
    pub(super) tasks: BTreeSet<TaskId>,
    /// Everything must be told anew.
    pub(super) complete: bool,
    /// The list of managers has changed.
    pub(super) managers: bool,
    /// The role may have changed.
    pub(super) role: bool,
    /// Batches of statuses that are in the store.
    pub(super) acks: Vec<u64>,
    /// The session is over.
    pub(super) closed: Option<String>,
}

impl Outbox {
    /// Adds without waking the session; [`Self::wake`] must follow.
    pub(super) fn task_quietly(&self, id: TaskId) {
        lock(&self.pending).tasks.insert(id);
    }

    pub(super) fn wake(&self) {
        self.wake.notify_one();
    }

    pub(super) fn complete(&self) {
        self.update(|pending| pending.complete = true);
    }

    pub(super) fn managers(&self) {
        self.update(|pending| pending.managers = true);
    }

    pub(super) fn role(&self) {
        self.update(|pending| pending.role = true);
    }

    pub(super) fn ack(&self, batch: u64) {
        self.update(|pending| pending.acks.push(batch));
    }

    pub(super) fn close(&self, reason: String) {
        self.update(|pending| pending.closed = Some(reason));
    }

    fn update(&self, change: impl FnOnce(&mut Pending)) {
        change(&mut lock(&self.pending));
        self.wake.notify_one();
    }

    /// Waits until there is something. Cancel-safe.
    pub(super) async fn filled(&self) {
        self.wake.notified().await;
    }

    pub(super) fn take(&self) -> Pending {
        std::mem::take(&mut lock(&self.pending))
    }
}
