//! Puts what sessions report into the store, in as few entries as possible: while one entry is being written,
//! everything that arrives waits for the next one.

use super::DispatcherContext;
use super::outbox::Outbox;
use crate::consensus::ProposeError;
use shoal_model::command::{ACTIONS_PER_COMMAND_MAX, StoreAction};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tracing::{debug, warn};

/// Reports that may wait; a node repeats what is dropped beyond this.
const REPORTS_WAITING_MAX: usize = 8_192;

/// Wait before an entry is proposed again that could not be.
const RETRY_PERIOD: Duration = Duration::from_millis(100);

/// Something to be written.
pub(super) struct Report {
    pub(super) actions: Vec<StoreAction>,
    /// Who is told, with the number of the batch, once it is in the store.
    pub(super) ack: Option<(Arc<Outbox>, u64)>,
}

/// The way in.
#[derive(Clone)]
pub(super) struct Writer(mpsc::Sender<Report>);

/// The loop's side.
pub(super) struct Queue(mpsc::Receiver<Report>);

impl Writer {
    pub(super) fn new() -> (Self, Queue) {
        let (sender, receiver) = mpsc::channel(REPORTS_WAITING_MAX);
        (Self(sender), Queue(receiver))
    }

    /// Queues without waiting: a session must go on answering heartbeats. False: the queue is full.
    pub(super) fn report(&self, report: Report) -> bool {
        match self.0.try_send(report) {
            Ok(()) => true,
            Err(err) => {
                warn!(err = %err, "a report was dropped; its node repeats it");
                false
            }
        }
    }
}

impl Queue {
    pub(super) async fn run(mut self, context: &DispatcherContext) {
        while let Some(first) = self.0.recv().await {
            let mut actions = Vec::new();
            let mut acks = Vec::new();
            let mut next = Some(first);
            while let Some(mut report) = next {
                actions.append(&mut report.actions);
                acks.extend(report.ack);
                next = if actions.len() < ACTIONS_PER_COMMAND_MAX {
                    self.0.try_recv().ok()
                } else {
                    None
                };
            }
            if !write(context, &actions).await {
                return;
            }
            for (outbox, batch) in acks {
                outbox.ack(batch);
            }
        }
    }
}

/// Writes all of `actions`; false once this manager does not lead any more.
async fn write(context: &DispatcherContext, actions: &[StoreAction]) -> bool {
    let mut rest = actions;
    let mut piece_max = ACTIONS_PER_COMMAND_MAX;
    while !rest.is_empty() {
        let piece = &rest[..rest.len().min(piece_max)];
        match context.consensus.propose(piece.to_vec()).await {
            Ok(_) => {
                rest = &rest[piece.len()..];
                piece_max = ACTIONS_PER_COMMAND_MAX;
            }
            Err(ProposeError::NotLeader { .. } | ProposeError::Shutdown { .. }) => return false,
            Err(
                ProposeError::Rejected(_)
                | ProposeError::TooLarge { .. }
                | ProposeError::TooManyActions { .. },
            ) if piece.len() > 1 => piece_max = piece.len() / 2,
            Err(
                err @ (ProposeError::Rejected(_)
                | ProposeError::TooLarge { .. }
                | ProposeError::TooManyActions { .. }
                | ProposeError::FeatureLevel { .. }
                | ProposeError::Membership { .. }),
            ) => {
                // A report that nobody can apply must not hold up the others.
                warn!(err = %err, "a report was refused");
                rest = &rest[piece.len()..];
            }
            // Every report may be repeated: it says what was observed.
            Err(err @ (ProposeError::NoQuorum { .. } | ProposeError::Unknown { .. })) => {
                debug!(err = %err, "reports wait");
                tokio::time::sleep(RETRY_PERIOD).await;
            }
        }
    }
    true
}
