//! Support for tests: a consensus of one in memory, a clock and ids that repeat. Not in the release binary: it needs the
//! feature `testing`, which only dev-dependencies turn on.

use crate::consensus::{Consensus, IdSource, Leadership, Member, ProposeError, WallClock};
use crate::store::Store;
use async_trait::async_trait;
use shoal_model::cluster::{JoinSecret, Redacted, RootCa};
use shoal_model::command::{ACTIONS_PER_COMMAND_MAX, Command, Outcome, StoreAction};
use shoal_model::{Cluster, ClusterId, ClusterSpec, Meta, NodeId, RaftNodeId, Timestamp, Version};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;

/// A cluster with these settings, without authority and secrets.
pub fn cluster(spec: ClusterSpec) -> Cluster {
    let secret = || JoinSecret {
        secret: Redacted(String::new()),
        expires_at: None,
        uses_left: None,
    };
    Cluster {
        id: ClusterId::from_bits(42),
        meta: Meta::default(),
        spec,
        root_ca: RootCa {
            certificate_der: Vec::new(),
            key_der: Redacted(Vec::new()),
        },
        worker_secret: secret(),
        manager_secret: secret(),
        last_raft_id: 0,
    }
}

/// A clock that stands still until it is moved.
#[derive(Debug, Default)]
pub struct ManualClock(AtomicI64);

impl ManualClock {
    /// Starts at `now`.
    pub const fn new(now: Timestamp) -> Self {
        Self(AtomicI64::new(now.0))
    }

    /// Moves on.
    pub fn advance(&self, by: Duration) {
        let next = self.now().plus(by);
        self.0.store(next.0, Ordering::Relaxed);
    }
}

impl WallClock for ManualClock {
    fn now(&self) -> Timestamp {
        Timestamp(self.0.load(Ordering::Relaxed))
    }
}

/// Ids that count up.
#[derive(Debug, Default)]
pub struct CountingIds(AtomicU64);

impl CountingIds {
    /// The first id is one more than `last`.
    pub const fn after(last: u64) -> Self {
        Self(AtomicU64::new(last))
    }
}

impl IdSource for CountingIds {
    fn bits(&self) -> u128 {
        u128::from(self.0.fetch_add(1, Ordering::Relaxed)) + 1
    }
}

/// A consensus of one member in memory: what is proposed is applied at once. Failures are given in advance.
pub struct LocalConsensus {
    store: Store,
    clock: Arc<dyn WallClock>,
    index: Mutex<u64>,
    leadership: watch::Sender<Leadership>,
    members: Mutex<Vec<Member>>,
    failures: Mutex<VecDeque<(ProposeError, Applied)>>,
}

/// Whether a proposal that fails takes effect nevertheless.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Applied {
    /// It does, and only the answer is lost.
    Yes,
    /// It does not.
    No,
}

impl LocalConsensus {
    /// Leads over `store` in term 1, without members.
    pub fn new(store: Store, clock: Arc<dyn WallClock>) -> Self {
        let index = store.view().version().0;
        Self {
            store,
            clock,
            index: Mutex::new(index),
            leadership: watch::Sender::new(Leadership::Leader { term: 1 }),
            members: Mutex::new(Vec::new()),
            failures: Mutex::new(VecDeque::new()),
        }
    }

    /// Changes who leads.
    pub fn set_leadership(&self, leadership: Leadership) {
        self.leadership.send_replace(leadership);
    }

    /// Changes the membership.
    pub fn set_members(&self, members: Vec<Member>) {
        *lock(&self.members) = members;
    }

    /// The next proposal that has no failure yet fails with `error`.
    pub fn fail_next(&self, error: ProposeError, applied: Applied) {
        lock(&self.failures).push_back((error, applied));
    }

    fn check_leader(&self) -> Result<(), ProposeError> {
        match &*self.leadership.borrow() {
            Leadership::Leader { .. } => Ok(()),
            Leadership::Follower { leader } => Err(ProposeError::NotLeader {
                leader: leader.clone(),
            }),
            Leadership::Stopped { reason } => Err(ProposeError::Shutdown {
                reason: reason.clone(),
            }),
        }
    }

    fn apply(&self, actions: Vec<StoreAction>) -> Result<Version, ProposeError> {
        let mut index = lock(&self.index);
        *index += 1;
        let command = Command {
            time: self.clock.now(),
            actions,
        };
        match self.store.apply(*index, &command) {
            Outcome::Applied { version } => Ok(version),
            Outcome::Rejected(rejection) => Err(rejection.into()),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[async_trait]
impl Consensus for LocalConsensus {
    async fn propose(&self, actions: Vec<StoreAction>) -> Result<Version, ProposeError> {
        self.check_leader()?;
        if actions.len() > ACTIONS_PER_COMMAND_MAX {
            return Err(ProposeError::TooManyActions {
                actions: actions.len(),
                actions_max: ACTIONS_PER_COMMAND_MAX,
            });
        }
        let failure = lock(&self.failures).pop_front();
        match failure {
            Some((error, Applied::No)) => Err(error),
            Some((error, Applied::Yes)) => {
                self.apply(actions)?;
                Err(error)
            }
            None => self.apply(actions),
        }
    }

    async fn read_barrier(&self) -> Result<(), ProposeError> {
        self.check_leader()
    }

    fn leadership(&self) -> watch::Receiver<Leadership> {
        self.leadership.subscribe()
    }

    async fn add_member(
        &self,
        raft_id: RaftNodeId,
        node_id: NodeId,
        addr: SocketAddr,
    ) -> Result<(), ProposeError> {
        self.check_leader()?;
        let mut members = lock(&self.members);
        members.retain(|member| member.raft_id != raft_id);
        members.push(Member {
            raft_id,
            node_id,
            addr,
            voter: true,
            leader: false,
            reachable: true,
        });
        members.sort_by_key(|member| member.raft_id);
        Ok(())
    }

    async fn remove_member(&self, raft_id: RaftNodeId) -> Result<(), ProposeError> {
        self.check_leader()?;
        lock(&self.members).retain(|member| member.raft_id != raft_id);
        Ok(())
    }

    fn members(&self) -> Vec<Member> {
        lock(&self.members).clone()
    }

    async fn transfer_leadership(&self, to: Option<RaftNodeId>) -> Result<(), ProposeError> {
        self.check_leader()?;
        let mut members = lock(&self.members);
        let next = members
            .iter()
            .find(|member| !member.leader && to.is_none_or(|wanted| wanted == member.raft_id))
            .map(|member| member.raft_id)
            .ok_or_else(|| ProposeError::Membership {
                reason: "there is nobody to hand leadership to".to_owned(),
            })?;
        for member in members.iter_mut() {
            member.leader = member.raft_id == next;
        }
        self.set_leadership(Leadership::Follower { leader: None });
        Ok(())
    }
}
