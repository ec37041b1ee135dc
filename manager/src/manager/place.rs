//! Asks the leader for a place in Raft, and tells it when this manager's address has changed.

use super::ManagerHandle;
use crate::consensus::Leadership;
use shoal_model::RaftNodeId;
use shoal_model::control::{RaftJoinRequest, RaftJoinResponse};
use shoal_model::rpc::Method;
use shoal_model::session::ManagerPeer;
use shoal_transport::{CallError, Connector, Expect, call};
use std::net::SocketAddr;
use std::time::Duration;
use tokio::time::Instant;

/// How long a new manager asks for its place.
pub(super) const PLACE_WAIT_MAX: Duration = Duration::from_secs(30);

/// How long one manager may take to answer.
const ASK_DEADLINE: Duration = Duration::from_secs(5);

/// Before each question whether a manager's place is still its own.
const PLACE_CHECK_PAUSE: Duration = Duration::from_secs(2);

/// Between two rounds over all managers.
const ROUND_PAUSE: Duration = Duration::from_millis(200);

/// Why nobody gave this node a place.
#[derive(Debug, thiserror::Error)]
pub enum JoinPlaceError {
    /// There is nobody to ask.
    #[error("no manager is known to ask for a place in Raft")]
    NobodyKnown,
    /// One that could decide refused.
    #[error("the manager at {addr} refused")]
    Refused {
        /// Who.
        addr: SocketAddr,
        /// Why.
        #[source]
        err: CallError,
    },
    /// Nobody could decide in time.
    #[error("no manager gave this node a place within {} s; the last asked was {addr}", PLACE_WAIT_MAX.as_secs())]
    TimedOut {
        /// The last one.
        addr: SocketAddr,
        /// What it answered.
        #[source]
        err: CallError,
    },
}

/// Asks one manager after the other until the leader answers.
pub(super) async fn ask(
    connector: &dyn Connector,
    managers: &[ManagerPeer],
    advertise: SocketAddr,
    wait_max: Duration,
) -> Result<RaftNodeId, JoinPlaceError> {
    let deadline = Instant::now() + wait_max;
    let request = RaftJoinRequest { addr: advertise };
    let mut last = JoinPlaceError::NobodyKnown;
    loop {
        for peer in managers {
            let expect = Expect::Node(peer.node_id);
            let addr = peer.addr;
            let answer: Result<RaftJoinResponse, _> = call(
                connector,
                addr,
                expect,
                Method::RaftJoin,
                &request,
                ASK_DEADLINE,
            )
            .await;
            match answer {
                Ok(response) => return Ok(response.raft_id),
                Err(err) if is_final(&err) => return Err(JoinPlaceError::Refused { addr, err }),
                Err(err) => last = JoinPlaceError::TimedOut { addr, err },
            }
        }
        if managers.is_empty() || Instant::now() >= deadline {
            return Err(last);
        }
        tokio::time::sleep(ROUND_PAUSE).await;
    }
}

/// A conflict with another node that joins at the same time, and a manager that does not lead, are no final answers.
fn is_final(err: &CallError) -> bool {
    use shoal_model::rpc::ErrorCode;
    match err {
        CallError::Remote(error) => match error.code {
            ErrorCode::InvalidArgument | ErrorCode::PermissionDenied => true,
            ErrorCode::NotFound
            | ErrorCode::AlreadyExists
            | ErrorCode::Conflict
            | ErrorCode::FailedPrecondition
            | ErrorCode::ResourceExhausted
            | ErrorCode::Unavailable
            | ErrorCode::NotLeader
            | ErrorCode::Internal => false,
        },
        CallError::Transport(_) | CallError::Stream { .. } | CallError::TimedOut { .. } => false,
    }
}

impl ManagerHandle {
    /// Ends once the cluster says that this node has another place in Raft than this manager runs with: the node was
    /// demoted and promoted again while it was away, and its old place is nobody's. Nobody ever talks to such a manager,
    /// and what it remembers of a leader is old, so it asks until it was answered once.
    pub async fn superseded(&self, managers: impl Fn() -> Vec<ManagerPeer>) {
        let parts = &self.parts;
        let addr = parts.advertise;
        loop {
            tokio::time::sleep(PLACE_CHECK_PAUSE).await;
            if parts.core.consensus.leadership().borrow().is_leader() {
                return std::future::pending().await;
            }
            let others: Vec<_> = managers()
                .into_iter()
                .filter(|peer| peer.node_id != parts.node_id)
                .collect();
            match ask(&*parts.connector, &others, addr, Duration::ZERO).await {
                Ok(place) if place != parts.raft_id => return,
                Ok(_) => return std::future::pending().await,
                Err(err) => {
                    let err = err.to_string();
                    tracing::debug!(err, "nobody could tell this manager's place in Raft");
                }
            }
        }
    }

    /// Tells the leader this manager's address, if the store has another one.
    pub(super) async fn announce(&self) {
        let parts = &self.parts;
        let mut leadership = parts.core.consensus.leadership();
        let known = leadership.wait_for(|now| match now {
            Leadership::Leader { .. } | Leadership::Follower { leader: Some(_) } => true,
            Leadership::Follower { leader: None } | Leadership::Stopped { .. } => false,
        });
        tokio::select! {
            known = known => if known.is_err() { return },
            () = parts.cancel.cancelled() => return,
        }
        while !parts.cancel.is_cancelled() && self.address_is_outdated() {
            if self.tell_address().await {
                return;
            }
            tokio::select! {
                () = tokio::time::sleep(ROUND_PAUSE) => {}
                () = parts.cancel.cancelled() => {}
            }
        }
    }

    fn address_is_outdated(&self) -> bool {
        let view = self.store().view();
        let stored = view
            .node(self.parts.node_id)
            .and_then(|node| node.manager.as_ref());
        stored.is_some_and(|manager| manager.addr != self.parts.advertise)
    }

    async fn tell_address(&self) -> bool {
        let parts = &self.parts;
        let addr = parts.advertise;
        let leader = match &*parts.core.consensus.leadership().borrow() {
            Leadership::Leader { .. } => None,
            Leadership::Follower { leader: Some(peer) } => Some(peer.clone()),
            Leadership::Follower { leader: None } | Leadership::Stopped { .. } => return false,
        };
        let told = match leader {
            Some(leader) => ask(&*parts.connector, &[leader], addr, Duration::ZERO)
                .await
                .map_err(|err| err.to_string()),
            None => parts
                .roles
                .raft_join(parts.node_id, &RaftJoinRequest { addr })
                .await
                .map(|response| response.raft_id)
                .map_err(|err| err.to_string()),
        };
        match told {
            Ok(_) => {
                tracing::info!(%addr, "the managers know this manager's new address");
                true
            }
            Err(err) => {
                tracing::debug!(%addr, err, "failed to tell the new address, it is tried again");
                false
            }
        }
    }
}
