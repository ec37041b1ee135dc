//! Why a manager has left its role for good, told once by whoever knew it first.

use std::sync::{Arc, Mutex, PoisonError};

/// The first reason wins: what follows it are consequences.
#[derive(Debug, Clone, Default)]
pub(crate) struct StopCause(Arc<Mutex<Option<String>>>);

impl StopCause {
    /// Tells the reason.
    pub(crate) fn set(&self, reason: String) {
        let mut cause = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        cause.get_or_insert(reason);
    }

    /// The reason, if there is one.
    pub(crate) fn get(&self) -> Option<String> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}
