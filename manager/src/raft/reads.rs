//! Linearizable reads: readers that come at the same time share one round of questions to the other members.
//!
//! Every round is a real one (Raft's read index). A leader's lease would save it, but can't be trusted here: a member
//! that restarts within the lease has forgotten what it promised the leader and may vote for another one, and a
//! virtual machine that was paused wakes up with a clock that says its lease is still good. Sharing makes rounds as
//! cheap as a lease for many readers at a time, and assumes nothing about clocks.

use crate::consensus::ProposeError;
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::Mutex;

/// Counts rounds, so that a reader can tell whether one began after it came.
#[derive(Debug, Default)]
pub(crate) struct ReadRounds {
    /// Rounds that were begun.
    begun: AtomicU64,
    /// The last round that was finished. Held while a round is under way.
    finished: Mutex<Finished>,
}

#[derive(Debug)]
struct Finished {
    number: u64,
    result: Result<(), ProposeError>,
}

impl Default for Finished {
    fn default() -> Self {
        Self {
            number: 0,
            result: Ok(()),
        }
    }
}

impl ReadRounds {
    /// Returns the result of a round that began after this call, one that somebody else ran or one of its own. A round
    /// that is under way already proves nothing: a write may have been acknowledged elsewhere since it began.
    pub(crate) async fn share<F>(&self, round: impl FnOnce() -> F) -> Result<(), ProposeError>
    where
        F: Future<Output = Result<(), ProposeError>>,
    {
        let begun_before = self.begun.load(Ordering::SeqCst);
        let mut finished = self.finished.lock().await;
        if finished.number > begun_before {
            return finished.result.clone();
        }
        let number = self.begun.fetch_add(1, Ordering::SeqCst) + 1;
        let result = round().await;
        *finished = Finished {
            number,
            result: result.clone(),
        };
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt as _;
    use futures_util::future::join_all;
    use std::sync::Arc;
    use tokio::sync::Semaphore;

    /// Rounds that end when the test lets them.
    #[derive(Clone)]
    struct Rounds {
        shared: Arc<ReadRounds>,
        gate: Arc<Semaphore>,
        ran: Arc<AtomicU64>,
    }

    impl Rounds {
        fn new() -> Self {
            Self {
                shared: Arc::default(),
                gate: Arc::new(Semaphore::new(0)),
                ran: Arc::default(),
            }
        }

        async fn read(&self) -> Result<(), ProposeError> {
            let round = || async {
                self.gate.acquire().await.unwrap().forget();
                match self.ran.fetch_add(1, Ordering::SeqCst) {
                    0 => Ok(()),
                    _ => Err(ProposeError::NoQuorum {
                        reason: "test".to_owned(),
                    }),
                }
            };
            self.shared.share(round).await
        }
    }

    #[tokio::test]
    async fn readers_share_the_round_that_begins_after_they_came_and_never_an_older_one() {
        let rounds = Rounds::new();
        let mut first = Box::pin(rounds.read());
        assert!(first.as_mut().now_or_never().is_none());
        // The first round is under way when these come.
        let mut later = Box::pin(join_all((0..10).map(|_| rounds.read())));
        assert!(later.as_mut().now_or_never().is_none());
        rounds.gate.add_permits(1);
        assert!(first.await.is_ok());
        assert!(later.as_mut().now_or_never().is_none());
        rounds.gate.add_permits(1);
        let results = later.await;
        assert!(results.iter().all(Result::is_err), "{results:?}");
        assert_eq!(rounds.ran.load(Ordering::SeqCst), 2);
    }

    #[tokio::test]
    async fn a_reader_that_gives_up_its_round_leaves_it_to_the_next() {
        let rounds = Rounds::new();
        let mut first = Box::pin(rounds.read());
        assert!(first.as_mut().now_or_never().is_none());
        let mut second = Box::pin(rounds.read());
        assert!(second.as_mut().now_or_never().is_none());
        drop(first);
        rounds.gate.add_permits(1);
        assert!(second.await.is_ok());
    }
}
