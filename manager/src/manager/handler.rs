//! Routes the streams of the control port.

use super::ManagerHandle;
use async_trait::async_trait;
use shoal_model::NodeRole;
use shoal_model::rpc::{Access, ErrorCode, Method, RpcError};
use shoal_transport::{Peer, PeerIdentity, RpcHandler, RpcStream, StreamError};

#[async_trait]
impl RpcHandler for ManagerHandle {
    async fn handle(&self, peer: Peer, method: Method, stream: RpcStream) {
        let addr = peer.addr;
        // A broken stream concerns its caller only, who knows.
        if let Err(err) = self.route(peer, method, stream).await {
            tracing::debug!(%addr, ?method, err = &err as &dyn std::error::Error, "a call ended early");
        }
    }

    /// Refuses nodes that were removed or demoted, though their certificates are still good.
    ///
    /// Raft's own messages are judged by Raft: a member that lags behind may not know its new leader yet, and must hear
    /// from it to learn. For the rest, a follower that does not know a node lets the leader decide.
    fn admits(&self, identity: &PeerIdentity, method: Method) -> bool {
        match method {
            Method::RaftAppend
            | Method::RaftVote
            | Method::RaftSnapshot
            | Method::RaftTransferLeader
            | Method::RaftPreVote
            // These prove the key, and answer a removed node with words.
            | Method::Join
            | Method::Readmit
            | Method::RenewCertificate => return true,
            Method::Session
            | Method::Leave
            | Method::NetFeed
            | Method::Attach
            | Method::RaftJoin
            | Method::Control
            | Method::ControlWatch
            | Method::TaskLogs
            | Method::NetCheck => {}
        }
        let leads = self.parts.core.consensus.leadership().borrow().is_leader();
        let view = self.store().view();
        match (view.node(identity.node_id), method.access()) {
            (None, _) => !leads,
            (Some(node), _) if node.public_key_digest != identity.public_key_digest => false,
            (Some(node), Access::Manager) => {
                node.role == NodeRole::Manager || node.spec.role == NodeRole::Manager
            }
            (Some(_), Access::Open | Access::Node) => true,
        }
    }
}

impl ManagerHandle {
    async fn route(
        &self,
        peer: Peer,
        method: Method,
        mut stream: RpcStream,
    ) -> Result<(), StreamError> {
        let parts = &self.parts;
        let caller = peer.identity.as_ref().map(|identity| identity.node_id);
        match (method, caller) {
            (Method::Join, _) => parts.ca.serve_join(&peer, stream).await,
            (Method::Readmit | Method::RenewCertificate, _) => {
                parts.ca.serve_renewal(&peer, stream).await
            }
            (
                Method::RaftAppend
                | Method::RaftVote
                | Method::RaftSnapshot
                | Method::RaftTransferLeader
                | Method::RaftPreVote,
                _,
            ) => {
                parts.raft.handle_rpc(peer, method, stream).await;
                Ok(())
            }
            (Method::Session, _) => {
                parts.dispatcher.handle(peer, stream).await;
                Ok(())
            }
            (Method::Leave, Some(caller)) => parts.control.serve_leave(caller, stream).await,
            (Method::RaftJoin, Some(caller)) => parts.roles.serve_raft_join(caller, stream).await,
            (Method::Control, Some(caller)) => parts.control.serve(caller, stream).await,
            (Method::ControlWatch, Some(_)) => parts.control.serve_watch(stream).await,
            (Method::Attach, Some(caller)) => parts.control.serve_attach(caller, stream).await,
            (Method::NetFeed, _) => {
                parts.core.netfeeds.handle(peer, stream).await;
                Ok(())
            }
            (Method::TaskLogs | Method::NetCheck, _) => {
                let error = RpcError::new(
                    ErrorCode::InvalidArgument,
                    "logs are served by the node that runs the task, not by its managers",
                );
                stream.reply::<()>(&Err(error)).await
            }
            // The access table lets nobody without a certificate come here.
            (
                Method::Leave
                | Method::Attach
                | Method::RaftJoin
                | Method::Control
                | Method::ControlWatch,
                None,
            ) => {
                let error = RpcError::new(ErrorCode::PermissionDenied, "a certificate is needed");
                stream.reply::<()>(&Err(error)).await
            }
        }
    }
}
