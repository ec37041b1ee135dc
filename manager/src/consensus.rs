//! The seam between manager logic and Raft: propose facts, wait for linearizable reads, follow leadership, change members.
//!
//! [`crate::raft::RaftHandle`] is the real implementation. Nothing here knows which Raft library stands behind it, and
//! nothing here asks the machine for the time or for randomness: both are injected.

use async_trait::async_trait;
use shoal_model::command::{Rejection, StoreAction};
use shoal_model::session::ManagerPeer;
use shoal_model::{NodeId, RaftNodeId, Timestamp, Version};
use std::net::SocketAddr;
use tokio::sync::watch;

/// Wall-clock time for display, history and expiry. Simulation injects its own.
pub trait WallClock: Send + Sync + 'static {
    /// The time now.
    fn now(&self) -> Timestamp;
}

/// Where new ids come from. Simulation injects a seeded one.
pub trait IdSource: Send + Sync + 'static {
    /// 128 fresh bits.
    fn bits(&self) -> u128;
}

/// Who leads, as this manager knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Leadership {
    /// This manager leads, and its store holds everything committed before its term.
    Leader {
        /// The Raft term, which fences everything started in it.
        term: u64,
    },
    /// Another manager leads, or nobody known does.
    Follower {
        /// The leader, if one is known.
        leader: Option<ManagerPeer>,
    },
    /// This manager has left its role for good: it was shut down, removed, or met an error it can't go on from.
    Stopped {
        /// Why, in words for the user.
        reason: String,
    },
}

impl Leadership {
    /// Whether this manager leads.
    pub const fn is_leader(&self) -> bool {
        matches!(self, Self::Leader { .. })
    }
}

/// A manager in Raft's membership.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Raft's own id.
    pub raft_id: RaftNodeId,
    /// The node.
    pub node_id: NodeId,
    /// Its control port.
    pub addr: SocketAddr,
    /// Counts for quorum; otherwise it only receives the log.
    pub voter: bool,
    /// It is the leader, as this manager knows it.
    pub leader: bool,
    /// Answers the leader. Only the leader knows; elsewhere it says what is known of oneself and the leader.
    pub reachable: bool,
}

/// Why a proposal, a barrier or a membership change had no known effect.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// The entry was committed, and every manager refused it in the same way.
    #[error(transparent)]
    Rejected(#[from] Rejection),
    /// Another manager leads; ask it. Nothing was written.
    #[error("this manager does not lead{}", leader_text(.leader))]
    NotLeader {
        /// The leader, if one is known.
        leader: Option<ManagerPeer>,
    },
    /// This manager can't reach enough of the others. Nothing was written.
    #[error("no quorum: {reason}")]
    NoQuorum {
        /// Which managers answer and which do not.
        reason: String,
    },
    /// The entry is larger than the log takes. Nothing was written.
    #[error("the change has {bytes} bytes, and one entry may have at most {bytes_max}")]
    TooLarge {
        /// Encoded size.
        bytes: usize,
        /// The bound.
        bytes_max: usize,
    },
    /// More actions than one entry takes. Nothing was written.
    #[error("the change has {actions} actions, and one entry may have at most {actions_max}")]
    TooManyActions {
        /// How many.
        actions: usize,
        /// The bound.
        actions_max: usize,
    },
    /// The entry needs a store feature level that the cluster has not reached. Nothing was written.
    #[error(
        "the change needs store feature level {needed}, and the managers of this cluster agreed on {agreed}"
    )]
    FeatureLevel {
        /// What the entry needs.
        needed: u32,
        /// What the cluster has.
        agreed: u32,
    },
    /// The membership can't change like this: the reason says what to do. Nothing was written.
    #[error("{reason}")]
    Membership {
        /// In words for the user.
        reason: String,
    },
    /// This manager has stopped. Nothing was written.
    #[error("this manager has stopped: {reason}")]
    Shutdown {
        /// Why it stopped.
        reason: String,
    },
    /// The entry went out, and whether it will be committed can't be known here: read before trying again.
    #[error("the outcome of the change is unknown: {reason}")]
    Unknown {
        /// What happened meanwhile.
        reason: String,
    },
}

impl ProposeError {
    /// The same call may succeed later, or on another manager. [`Self::Unknown`] is not among them: it may have
    /// succeeded already.
    pub const fn is_retryable(&self) -> bool {
        match self {
            Self::NotLeader { .. } | Self::NoQuorum { .. } => true,
            Self::Rejected(_)
            | Self::TooLarge { .. }
            | Self::TooManyActions { .. }
            | Self::FeatureLevel { .. }
            | Self::Membership { .. }
            | Self::Shutdown { .. }
            | Self::Unknown { .. } => false,
        }
    }
}

fn leader_text(leader: &Option<ManagerPeer>) -> String {
    match leader {
        Some(peer) => format!("; node `{}` at {} does", peer.node_id, peer.addr),
        None => ", and no leader is known".to_owned(),
    }
}

/// Agreement between managers.
#[async_trait]
pub trait Consensus: Send + Sync + 'static {
    /// Commits `actions` as one entry, stamped with the injected wall clock, and answers once it is applied here.
    ///
    /// # Errors
    /// See [`ProposeError`]; all but [`ProposeError::Unknown`] mean that nothing changed.
    async fn propose(&self, actions: Vec<StoreAction>) -> Result<Version, ProposeError>;

    /// Waits until the store here holds every write that was acknowledged anywhere before the call.
    ///
    /// # Errors
    /// [`ProposeError::NotLeader`], [`ProposeError::NoQuorum`] or [`ProposeError::Shutdown`].
    async fn read_barrier(&self) -> Result<(), ProposeError>;

    /// Follows who leads. The first value is there at once.
    fn leadership(&self) -> watch::Receiver<Leadership>;

    /// Makes a node a member: first it catches up without a vote, then it votes. A member that is known with another
    /// address gets the new one.
    ///
    /// # Errors
    /// [`ProposeError::Membership`] when it can't be reached or an id is used by another node; the rest as `propose`.
    async fn add_member(
        &self,
        raft_id: RaftNodeId,
        node_id: NodeId,
        addr: SocketAddr,
    ) -> Result<(), ProposeError>;

    /// Takes a member out. Refused when those who would remain have no quorum of reachable managers.
    ///
    /// # Errors
    /// [`ProposeError::Membership`] with the reason; the rest as `propose`.
    async fn remove_member(&self, raft_id: RaftNodeId) -> Result<(), ProposeError>;

    /// All members, in order of their Raft ids.
    fn members(&self) -> Vec<Member>;

    /// Hands leadership to `to`, or to the member that is furthest along, and waits until this manager leads no more.
    ///
    /// # Errors
    /// [`ProposeError::Membership`] when there is nobody to hand it to; [`ProposeError::NotLeader`].
    async fn transfer_leadership(&self, to: Option<RaftNodeId>) -> Result<(), ProposeError>;
}
