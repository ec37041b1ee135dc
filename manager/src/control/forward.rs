//! Where a request is executed: here, if this manager leads, else on the leader.

use super::answer::Answer;
use super::core::Core;
use super::error::{Effect, Failure, rpc_error};
use crate::consensus::{Consensus, IdSource, Leadership, WallClock};
use crate::netfeed::NetFeeds;
use crate::role_manager::role_now;
use crate::store::Store;
use shoal_model::control::{ControlRequest, ControlResponse};
use shoal_model::rpc::{ErrorCode, Method, RpcError};
use shoal_model::session::ManagerPeer;
use shoal_model::{Node, NodeId, NodeRole};
use shoal_transport::{Connector, Expect, RpcStream, StreamError};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, timeout, timeout_at};

/// How long a request waits for a leader before it fails.
pub const LEADER_WAIT_MAX: Duration = Duration::from_secs(5);

/// How long the leader may take for the first frame of an answer.
const ANSWER_WAIT_MAX: Duration = Duration::from_secs(20);

/// Between two attempts when nothing has been heard of a new leader.
const RETRY_PAUSE: Duration = Duration::from_millis(50);

/// The control API of this manager. Clones share it.
#[derive(Clone)]
pub struct ControlApi {
    pub(super) core: Core,
    connector: Arc<dyn Connector>,
}

impl std::fmt::Debug for ControlApi {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ControlApi").finish_non_exhaustive()
    }
}

impl ControlApi {
    /// Serves requests from `store`, writes through `consensus`, reaches the leader through `connector`.
    pub fn new(
        store: Store,
        consensus: Arc<dyn Consensus>,
        clock: Arc<dyn WallClock>,
        ids: Arc<dyn IdSource>,
        connector: Arc<dyn Connector>,
        netfeeds: NetFeeds,
    ) -> Self {
        Self {
            core: Core {
                store,
                consensus,
                clock,
                ids,
                netfeeds,
            },
            connector,
        }
    }

    /// Answers a request of the node `caller`. A change of leaders is waited out.
    ///
    /// # Errors
    /// With the whole chain of causes, in words for the user.
    pub async fn answer(
        &self,
        caller: NodeId,
        request: ControlRequest,
    ) -> Result<Answer, RpcError> {
        match request {
            // One hop: whoever does not lead says so, and the first manager goes on looking.
            ControlRequest::Forwarded {
                caller,
                request,
                repeated,
            } => self
                .execute_forwarded(caller, *request, repeated)
                .await
                .map_err(|failure| forwarded_error(&failure)),
            request => self.answer_own(caller, request).await,
        }
    }

    /// The manager that passes a request on may not know yet that its caller is no manager any more.
    async fn execute_forwarded(
        &self,
        caller: NodeId,
        request: ControlRequest,
        repeated: bool,
    ) -> Result<Answer, Failure> {
        let state = self.core.fresh_view().await?;
        let node = state.node(caller);
        let (may, what) = if is_of_any_node(&request) {
            (node.is_some(), "node")
        } else {
            let manages = |node: &Arc<Node>| role_now(node) == NodeRole::Manager;
            (node.is_some_and(manages), "manager")
        };
        if !may {
            let message = format!("node `{caller}` is no {what} of this cluster");
            return Err(Failure::new(ErrorCode::PermissionDenied, message));
        }
        self.core.execute(caller, request, repeated).await
    }

    async fn answer_own(
        &self,
        caller: NodeId,
        request: ControlRequest,
    ) -> Result<Answer, RpcError> {
        let deadline = Instant::now() + LEADER_WAIT_MAX;
        let mut leadership = self.core.consensus.leadership();
        let mut repeated = false;
        loop {
            let current = leadership.borrow_and_update().clone();
            let attempt = match current {
                Leadership::Leader { .. } => {
                    self.core.execute(caller, request.clone(), repeated).await
                }
                Leadership::Follower { leader: Some(peer) } => {
                    let forwarded = ControlRequest::Forwarded {
                        caller,
                        repeated,
                        request: Box::new(request.clone()),
                    };
                    self.forward(&peer, &forwarded, &mut leadership).await
                }
                Leadership::Follower { leader: None } => Err(no_leader()),
                Leadership::Stopped { reason } => {
                    let message = format!("the manager of this node has stopped: {reason}");
                    return Err(RpcError::new(ErrorCode::Unavailable, message));
                }
            };
            let failure = match attempt {
                Ok(answer) => return Ok(answer),
                Err(failure) => failure,
            };
            match failure.effect {
                Effect::None => return Err(failure.error),
                Effect::NoneYet => {}
                Effect::Unknown => repeated = true,
            }
            if Instant::now() >= deadline {
                return Err(final_error(failure.error));
            }
            wait_for_change(&mut leadership, deadline).await;
        }
    }

    async fn forward(
        &self,
        leader: &ManagerPeer,
        request: &ControlRequest,
        leadership: &mut watch::Receiver<Leadership>,
    ) -> Result<Answer, Failure> {
        let opened =
            self.connector
                .open(leader.addr, Expect::Node(leader.node_id), Method::Control);
        let mut stream = opened.await.map_err(|err| Failure {
            error: rpc_error(ErrorCode::Unavailable, &err),
            effect: Effect::NoneYet,
        })?;
        let first = async {
            stream.send(request).await?;
            stream.finish().await?;
            stream.recv::<Result<ControlResponse, RpcError>>().await
        };
        let deposed = leadership.wait_for(|now| !is_led_by(now, leader));
        let received = tokio::select! {
            received = timeout(ANSWER_WAIT_MAX, first) => received,
            _ = deposed => return Err(unknown("the leader changed while the request was under way")),
        };
        match received {
            Ok(Ok(Some(Ok(response)))) => Ok(remote(response, stream)),
            Ok(Ok(Some(Err(error)))) => Err(from_leader(error)),
            Ok(Ok(None)) => Err(lost(&StreamError::Truncated)),
            Ok(Err(err)) => Err(lost(&err)),
            Err(_) => Err(unknown("the leader did not answer in time")),
        }
    }
}

/// Requests that any node may make, about itself only ([`Method::Attach`]).
pub(super) const fn is_of_any_node(request: &ControlRequest) -> bool {
    matches!(
        request,
        ControlRequest::AttachContainer { .. } | ControlRequest::DetachContainer(_)
    )
}

fn remote(first: ControlResponse, stream: RpcStream) -> Answer {
    Answer::Remote {
        next: Some(first),
        stream,
    }
}

fn is_led_by(now: &Leadership, leader: &ManagerPeer) -> bool {
    match now {
        Leadership::Follower { leader: Some(peer) } => peer.node_id == leader.node_id,
        Leadership::Follower { leader: None }
        | Leadership::Leader { .. }
        | Leadership::Stopped { .. } => false,
    }
}

/// Prefix of an error whose effect the leader itself does not know; it travels in the text of `Unavailable`.
const UNKNOWN_PREFIX: &str = "the outcome of the change is unknown";

fn forwarded_error(failure: &Failure) -> RpcError {
    match failure.effect {
        Effect::None | Effect::Unknown => failure.error.clone(),
        Effect::NoneYet => RpcError::new(ErrorCode::NotLeader, failure.error.message.clone()),
    }
}

fn from_leader(error: RpcError) -> Failure {
    let effect = if error.code == ErrorCode::NotLeader {
        Effect::NoneYet
    } else if error.code == ErrorCode::Unavailable && error.message.starts_with(UNKNOWN_PREFIX) {
        Effect::Unknown
    } else {
        Effect::None
    };
    Failure { error, effect }
}

fn lost(err: &StreamError) -> Failure {
    Failure {
        error: rpc_error(ErrorCode::Unavailable, err),
        effect: Effect::Unknown,
    }
}

fn unknown(reason: &str) -> Failure {
    Failure {
        error: RpcError::new(
            ErrorCode::Unavailable,
            format!("{UNKNOWN_PREFIX}: {reason}"),
        ),
        effect: Effect::Unknown,
    }
}

fn no_leader() -> Failure {
    Failure {
        error: RpcError::new(
            ErrorCode::Unavailable,
            "the cluster has no leader: most managers must be up and reach each other",
        ),
        effect: Effect::NoneYet,
    }
}

/// The caller asked a manager that found no leader: that is no fault of the address that it asked.
fn final_error(error: RpcError) -> RpcError {
    match error.code {
        ErrorCode::NotLeader => RpcError::new(
            ErrorCode::Unavailable,
            format!(
                "no leader was found within {} s: {}",
                LEADER_WAIT_MAX.as_secs(),
                error.message
            ),
        ),
        ErrorCode::InvalidArgument
        | ErrorCode::NotFound
        | ErrorCode::AlreadyExists
        | ErrorCode::Conflict
        | ErrorCode::FailedPrecondition
        | ErrorCode::PermissionDenied
        | ErrorCode::ResourceExhausted
        | ErrorCode::Unavailable
        | ErrorCode::Internal => error,
    }
}

/// Waits until leadership changes, or a moment has passed.
async fn wait_for_change(leadership: &mut watch::Receiver<Leadership>, deadline: Instant) {
    let end = deadline.min(Instant::now() + RETRY_PAUSE);
    match timeout_at(end, leadership.changed()).await {
        Ok(Ok(())) | Err(_) => {}
        // The consensus is gone and will not change again: wait out the pause, the deadline ends it.
        Ok(Err(_)) => tokio::time::sleep_until(end).await,
    }
}
