//! Follows the state of Raft: who leads, who is a member, when a snapshot is due, whether all is over.

use super::Raft;
use super::log_store::LogStore;
use super::network::AddressBook;
use super::options::{LOG_BYTES_BEFORE_SNAPSHOT, SNAPSHOT_SPACING, Timing};
use super::stop::StopCause;
use super::types::TypeConfig;
use crate::consensus::Leadership;
use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::type_config::alias::WatchReceiverOf;
use openraft::{Instant as _, RaftMetrics, ServerState};
use shoal_model::session::ManagerPeer;
use shoal_model::{NodeId, RaftNodeId};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

/// How often the slow conditions (lease, log size) are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// How long ago a majority answered this leader; `None` if it does not lead or no majority ever did.
pub(crate) fn quorum_age(metrics: &RaftMetrics<TypeConfig>) -> Option<Duration> {
    let acked = metrics.last_quorum_acked?;
    Some(acked.elapsed())
}

/// A member as its peers address it.
pub(crate) fn peer_of(metrics: &RaftMetrics<TypeConfig>, id: RaftNodeId) -> Option<ManagerPeer> {
    let peer = metrics.membership_config.get_node(&id)?;
    Some(ManagerPeer {
        node_id: peer.node_id,
        addr: peer.addr,
    })
}

/// Whether this manager is the only voter, so that it is its own majority.
pub(crate) fn is_alone(metrics: &RaftMetrics<TypeConfig>) -> bool {
    metrics
        .membership_config
        .voter_ids()
        .all(|id| id == metrics.id)
}

/// The last snapshot that was asked for.
struct Asked {
    /// Last entry in it.
    index: u64,
    at: Instant,
}

/// The task that publishes [`Leadership`].
pub(crate) struct Watcher {
    pub(crate) raft: Raft,
    pub(crate) log: LogStore,
    pub(crate) node_id: NodeId,
    pub(crate) timing: Timing,
    pub(crate) book: AddressBook,
    pub(crate) stop: StopCause,
    pub(crate) snapshot_interval: Arc<AtomicU64>,
    pub(crate) leadership: watch::Sender<Leadership>,
    pub(crate) cancel: CancellationToken,
}

impl Watcher {
    /// Runs until Raft has stopped.
    pub(crate) async fn run(self) {
        let mut metrics = self.raft.metrics();
        let mut snapshot_asked = None;
        loop {
            let now = metrics.borrow_and_update().clone();
            self.book.update(
                now.membership_config
                    .nodes()
                    .map(|(id, peer)| (*id, peer.clone()))
                    .collect::<BTreeMap<_, _>>(),
            );
            if let Some(reason) = self.stopped(&now) {
                tracing::info!(reason, "this manager has left Raft");
                self.publish(Leadership::Stopped { reason });
                return;
            }
            let leadership = self.judge(&now);
            let settling = now.state == ServerState::Leader && !leadership.is_leader();
            self.publish(leadership);
            self.snapshot_if_due(&now, &mut snapshot_asked).await;
            let changed = async {
                if settling {
                    // Every applied entry counts while a new leader waits for its own first one.
                    return metrics.changed().await.is_ok();
                }
                self.role_changed(&mut metrics.clone(), &now).await
            };
            tokio::select! {
                alive = changed => if !alive {
                    self.stop.set("Raft has ended".to_owned());
                },
                () = sleep(LOOK_EVERY) => {}
                () = self.cancel.cancelled() => self.stop.set("it was shut down".to_owned()),
            }
        }
    }

    /// Waits until something else than the progress of the log has changed.
    async fn role_changed(
        &self,
        metrics: &mut WatchReceiverOf<TypeConfig, RaftMetrics<TypeConfig>>,
        seen: &RaftMetrics<TypeConfig>,
    ) -> bool {
        metrics
            .wait_until(|now| {
                now.state != seen.state
                    || now.current_leader != seen.current_leader
                    || now.vote != seen.vote
                    || now.running_state.is_err()
                    || now.membership_config != seen.membership_config
            })
            .await
            .is_ok()
    }

    fn stopped(&self, metrics: &RaftMetrics<TypeConfig>) -> Option<String> {
        if let Err(fatal) = &metrics.running_state {
            self.stop.set(fatal.to_string());
        }
        self.stop.get()
    }

    fn publish(&self, leadership: Leadership) {
        self.leadership.send_if_modified(|current| {
            if *current == leadership {
                return false;
            }
            tracing::info!(node_id = %self.node_id, from = ?current, to = ?leadership, "leadership changed");
            *current = leadership;
            true
        });
    }

    fn judge(&self, metrics: &RaftMetrics<TypeConfig>) -> Leadership {
        let follower = |leader| Leadership::Follower { leader };
        if metrics.state != ServerState::Leader {
            let leader = metrics.current_leader.filter(|id| *id != metrics.id);
            return follower(leader.and_then(|id| peer_of(metrics, id)));
        }
        // A leader that hears of no majority has probably been replaced where it can't see it.
        let lease = self.timing.election_max * 2;
        let has_quorum = is_alone(metrics) || quorum_age(metrics).is_some_and(|age| age < lease);
        // What was committed before this term is applied once an entry of this term is.
        let own_term_applied = metrics.last_applied.is_some_and(|id| {
            id.leader_id.term == metrics.current_term && id.leader_id.node_id == metrics.id
        });
        if has_quorum && own_term_applied {
            return Leadership::Leader {
                term: metrics.current_term,
            };
        }
        follower(None)
    }

    async fn snapshot_if_due(&self, metrics: &RaftMetrics<TypeConfig>, asked: &mut Option<Asked>) {
        let Some(applied) = metrics.last_applied.map(|id| id.index) else {
            return;
        };
        let covered = metrics
            .snapshot
            .map(|id| id.index)
            .max(asked.as_ref().map(|asked| asked.index))
            .unwrap_or(0);
        let entries = applied.saturating_sub(covered);
        let rested = asked
            .as_ref()
            .is_none_or(|asked| asked.at.elapsed() >= SNAPSHOT_SPACING);
        let due = (rested && entries >= self.snapshot_interval.load(Ordering::Relaxed))
            || (entries > 1_000 && self.log.command_bytes() >= LOG_BYTES_BEFORE_SNAPSHOT);
        if due {
            *asked = Some(Asked {
                index: applied,
                at: Instant::now(),
            });
            if let Err(err) = self.raft.trigger().snapshot().await {
                tracing::debug!(%err, "no snapshot: Raft has stopped");
            }
        }
    }
}
