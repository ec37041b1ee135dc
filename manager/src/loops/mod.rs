//! Control loops: each reads a view of the store, computes a change with a pure function, and proposes it.
//!
//! Loops run on the leader only and talk to each other only through the store. Each starts with a full pass, then
//! follows the watch queue, and starts over when it falls behind. A plan is never acted on blindly: `apply` refuses
//! what no longer fits, and the loop plans again from a newer view.
//!
//! * [`orchestrator`] makes tasks from services: slots, one task per node, restarts, updates.
//! * [`scheduler`] gives pending tasks their nodes, or the reasons why they have none.
//! * [`enforcer`] takes tasks off nodes that are drained or no longer satisfy the constraints.
//! * [`allocator`] gives out the mesh's addresses, and takes back addresses that nobody uses.
//! * [`reaper`] deletes what nobody needs any more.

pub mod allocator;
pub mod enforcer;
pub mod orchestrator;
pub mod reaper;
mod runner;
pub mod scheduler;
#[cfg(test)]
mod tests;

pub use runner::{Moment, Pass};

use crate::consensus::{Consensus, IdSource, WallClock};
use crate::netfeed::NetFeeds;
use crate::store::Store;
use std::sync::Arc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// What every loop needs.
#[derive(Clone)]
pub struct LoopContext {
    /// The store of this manager.
    pub store: Store,
    /// Where changes are proposed.
    pub consensus: Arc<dyn Consensus>,
    /// Wall-clock time.
    pub clock: Arc<dyn WallClock>,
    /// New ids.
    pub ids: Arc<dyn IdSource>,
    /// Which version of the networks is in force everywhere.
    pub netfeeds: NetFeeds,
    /// Ends the loops.
    pub cancel: CancellationToken,
}

/// Runs all loops until they are cancelled or this manager stops. The caller sees to it that this manager leads.
pub async fn run_all(context: LoopContext) {
    let mut loops = JoinSet::new();
    loops.spawn(runner::run(
        context.clone(),
        orchestrator::Orchestrator::default(),
    ));
    loops.spawn(runner::run(
        context.clone(),
        scheduler::SchedulerLoop::default(),
    ));
    loops.spawn(runner::run(context.clone(), enforcer::Enforcer::default()));
    loops.spawn(runner::run(context.clone(), reaper::Reaper::default()));
    let netfeeds = context.netfeeds.clone();
    let allocator = allocator::AllocatorLoop::new(move || netfeeds.confirmed());
    loops.spawn(runner::run(context.clone(), allocator));
    while let Some(ended) = loops.join_next().await {
        // A loop that panicked must not leave a leader that looks alive and does half of its work.
        if let Err(err) = ended
            && err.is_panic()
        {
            std::panic::resume_unwind(err.into_panic());
        }
    }
}

/// Runs all loops whenever this manager leads, until cancelled.
pub async fn run_while_leading(context: LoopContext) {
    let mut leadership = context.consensus.leadership();
    loop {
        let leads = leadership.borrow_and_update().is_leader();
        let term = context.cancel.child_token();
        let loops = async {
            if leads {
                let context = LoopContext {
                    cancel: term.clone(),
                    ..context.clone()
                };
                run_all(context).await;
            }
            term.cancelled().await;
        };
        tokio::pin!(loops);
        tokio::select! {
            () = &mut loops => return,
            changed = leadership.changed() => {
                term.cancel();
                loops.await;
                if changed.is_err() {
                    return;
                }
            }
        }
    }
}
