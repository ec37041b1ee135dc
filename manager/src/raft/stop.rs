//! Why a manager has left its role for good, told once by whoever knew it first.

use std::sync::{Arc, Mutex, PoisonError};

/// The first reason wins: what follows it are consequences.
#[derive(Debug, Clone, Default)]
pub(crate) struct StopCause(Arc<Mutex<Option<Cause>>>);

#[derive(Debug)]
struct Cause {
    reason: String,
    /// The file system was full, and nothing worse is known: a manager can start again once there is room.
    no_room: bool,
}

impl StopCause {
    /// Tells the reason.
    pub(crate) fn set(&self, reason: String) {
        self.insert(reason, false);
    }

    /// Tells that `err` was met while the files were written.
    pub(crate) fn set_failed_write(&self, what: &str, err: &std::io::Error) {
        use std::io::ErrorKind;
        let no_room = matches!(
            err.kind(),
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded
        );
        self.insert(format!("{what} can't be written: {err}"), no_room);
    }

    fn insert(&self, reason: String, no_room: bool) {
        let mut cause = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        cause.get_or_insert(Cause { reason, no_room });
    }

    /// Whether there was no room, and nothing worse.
    pub(crate) fn is_no_room(&self) -> bool {
        let cause = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        cause.as_ref().is_some_and(|cause| cause.no_room)
    }

    /// The reason, if there is one.
    pub(crate) fn get(&self) -> Option<String> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .as_ref()
            .map(|cause| cause.reason.clone())
    }
}
