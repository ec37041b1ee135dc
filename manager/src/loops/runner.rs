//! The thin part of a loop: wait, plan, propose.

use super::LoopContext;
use crate::consensus::{IdSource, ProposeError};
use crate::store::{Change, State, WatchItem, Watcher};
use shoal_model::Timestamp;
use shoal_model::command::{ACTIONS_PER_COMMAND_MAX, StoreAction};
use std::time::Duration;
use tokio::time::Instant;
use tracing::{debug, warn};

/// A full pass is made at least so often, in case a change was misjudged as irrelevant.
const FULL_PASS_PERIOD: Duration = Duration::from_secs(30);

/// Wait after a proposal that could not be made (no leader, no quorum) before the next try.
const RETRY_PERIOD: Duration = Duration::from_millis(100);

/// Refusals of whole batches in a row after which actions are proposed one by one, so that one bad action does not
/// hold up the others.
const REFUSED_BATCHES_MAX: u32 = 3;

/// The time of a pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// The wall clock: compared with what is stored.
    pub wall: Timestamp,
    /// Since the loop started, by a clock that never jumps: for waits that protect data.
    pub elapsed: Duration,
}

/// What one pass decided.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pass {
    /// Changes to propose, in order.
    pub actions: Vec<StoreAction>,
    /// Plan again after so long even if nothing changes.
    pub wake_after: Option<Duration>,
}

impl Pass {
    /// Plans again after `wait`, or earlier if that was asked for already.
    pub(crate) fn wake_after(&mut self, wait: Duration) {
        self.wake_after = Some(self.wake_after.map_or(wait, |earlier| earlier.min(wait)));
    }
}

/// A loop without its I/O.
pub(crate) trait Reconciler: Send + 'static {
    /// For logs.
    const NAME: &'static str;

    /// Changes were missed, or none were seen yet: everything must be looked at.
    fn reset(&mut self, state: &State);

    /// One object changed; `state` is at least as new.
    fn note(&mut self, change: &Change, state: &State);

    /// Decides about what was noted since the last pass.
    fn plan(&mut self, state: &State, now: Moment, ids: &dyn IdSource) -> Pass;
}

/// Runs `reconciler` until it is cancelled or this manager stops.
pub(crate) async fn run<R: Reconciler>(context: LoopContext, mut reconciler: R) {
    let cancel = context.cancel.clone();
    tokio::select! {
        () = cancel.cancelled() => {}
        () = follow(&context, &mut reconciler) => {}
    }
    debug!(name = R::NAME, "control loop ended");
}

async fn follow<R: Reconciler>(context: &LoopContext, reconciler: &mut R) {
    let started = Instant::now();
    let mut watcher = context.store.watch();
    reconciler.reset(&context.store.view());
    let mut refused_batches = 0;
    let mut full_pass_at = started + FULL_PASS_PERIOD;
    loop {
        let state = context.store.view();
        let now = Moment {
            wall: context.clock.now(),
            elapsed: started.elapsed(),
        };
        let pass = reconciler.plan(&state, now, &*context.ids);
        let one_by_one = refused_batches >= REFUSED_BATCHES_MAX;
        match propose(context, pass.actions, one_by_one).await {
            Ok(()) => refused_batches = 0,
            Err(ProposeError::Shutdown { .. }) => return,
            Err(ProposeError::Rejected(rejection)) => {
                debug!(name = R::NAME, err = %rejection, "plan was refused");
                refused_batches += 1;
                reconciler.reset(&context.store.view());
                if !one_by_one {
                    continue;
                }
                tokio::time::sleep(RETRY_PERIOD).await;
            }
            Err(err) => {
                debug!(name = R::NAME, err = %err, "plan could not be proposed");
                tokio::time::sleep(RETRY_PERIOD).await;
                reconciler.reset(&context.store.view());
                continue;
            }
        }
        let timer = pass
            .wake_after
            .map_or(full_pass_at, |wait| full_pass_at.min(Instant::now() + wait));
        if !wait(context, &mut watcher, reconciler, timer).await {
            return;
        }
        if Instant::now() >= full_pass_at {
            reconciler.reset(&context.store.view());
            full_pass_at = Instant::now() + FULL_PASS_PERIOD;
        }
    }
}

/// Waits for a change or for `timer`, and takes everything that is in the queue. False: the store is gone.
async fn wait<R: Reconciler>(
    context: &LoopContext,
    watcher: &mut Watcher,
    reconciler: &mut R,
    timer: Instant,
) -> bool {
    let first = tokio::select! {
        item = watcher.next() => match item {
            Some(item) => Some(item),
            None => return false,
        },
        () = tokio::time::sleep_until(timer) => None,
    };
    let mut next = first;
    while let Some(item) = next {
        let state = context.store.view();
        match item {
            WatchItem::Resync => reconciler.reset(&state),
            WatchItem::Changes(batch) => {
                for change in &batch.changes {
                    reconciler.note(change, &state);
                }
            }
        }
        next = watcher.try_next();
    }
    true
}

/// Proposes in pieces that one entry takes.
async fn propose(
    context: &LoopContext,
    actions: Vec<StoreAction>,
    one_by_one: bool,
) -> Result<(), ProposeError> {
    let mut rest = actions.as_slice();
    let mut piece_max = if one_by_one {
        1
    } else {
        ACTIONS_PER_COMMAND_MAX
    };
    let mut refused = None;
    while !rest.is_empty() {
        let piece = piece_max.min(rest.len());
        match context.consensus.propose(rest[..piece].to_vec()).await {
            Ok(_) => rest = &rest[piece..],
            Err(ProposeError::TooLarge { .. }) if piece > 1 => piece_max = piece / 2,
            Err(err @ (ProposeError::Rejected(_) | ProposeError::TooLarge { .. }))
                if one_by_one =>
            {
                warn!(err = %err, "an action was refused");
                refused = Some(err);
                rest = &rest[piece..];
            }
            Err(err) => return Err(err),
        }
    }
    refused.map_or(Ok(()), Err)
}
