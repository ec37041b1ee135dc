//! Who serves the streams of this node's two ports.

use arc_swap::ArcSwapOption;
use async_trait::async_trait;
use shoal_manager::ManagerHandle;
use shoal_model::rpc::{ErrorCode, Method, RpcError};
use shoal_transport::{Peer, PeerIdentity, RpcHandler, RpcStream};
use std::sync::Arc;
use tokio::runtime::Handle;

/// The manager of this node, while it has that role.
pub(crate) type ManagerSlot = Arc<ArcSwapOption<ManagerHandle>>;

/// Serves the control port. Only Raft's own messages are worked on where they arrive, on the real-time thread;
/// everything else moves to the ordinary runtime.
pub(crate) struct ControlHandler {
    pub(crate) manager: ManagerSlot,
    pub(crate) ordinary: Handle,
}

#[async_trait]
impl RpcHandler for ControlHandler {
    async fn handle(&self, peer: Peer, method: Method, stream: RpcStream) {
        let Some(manager) = self.manager.load_full() else {
            return refuse(stream, "this node is not a manager").await;
        };
        match method {
            Method::RaftAppend
            | Method::RaftVote
            | Method::RaftPreVote
            | Method::RaftTransferLeader => manager.handle(peer, method, stream).await,
            Method::Join
            | Method::Readmit
            | Method::RenewCertificate
            | Method::Session
            | Method::Leave
            | Method::NetFeed
            | Method::Attach
            | Method::RaftSnapshot
            | Method::RaftJoin
            | Method::Control
            | Method::ControlWatch
            | Method::TaskLogs
            | Method::NetCheck => {
                let work = async move { manager.handle(peer, method, stream).await };
                if self.ordinary.spawn(work).await.is_err() {
                    tracing::debug!(?method, "a call ended with the runtime");
                }
            }
        }
    }

    fn admits(&self, identity: &PeerIdentity, method: Method) -> bool {
        self.manager
            .load()
            .as_ref()
            .is_none_or(|manager| manager.admits(identity, method))
    }
}

/// Tells the caller that it came to the wrong place.
pub(crate) async fn refuse(mut stream: RpcStream, why: &str) {
    let error = RpcError::new(ErrorCode::NotLeader, why);
    // A caller that is gone needs no answer.
    drop(stream.reply::<()>(&Err(error)).await);
}
