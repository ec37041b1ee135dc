//! A node with a manager's certificate asks for its place in Raft.

use super::RoleManager;
use crate::control::Failure;
use crate::store::State;
use shoal_model::command::{Object, StoreAction};
use shoal_model::control::{RaftJoinRequest, RaftJoinResponse};
use shoal_model::node::ManagerStatus;
use shoal_model::rpc::{ErrorCode, RpcError};
use shoal_model::{Cluster, Node, NodeId, NodeRole, RaftNodeId};
use shoal_transport::{RpcStream, StreamError};

impl RoleManager {
    /// Serves [`shoal_model::rpc::Method::RaftJoin`] of the node `caller`.
    ///
    /// # Errors
    /// The stream broke; the caller is gone.
    pub async fn serve_raft_join(
        &self,
        caller: NodeId,
        mut stream: RpcStream,
    ) -> Result<(), StreamError> {
        let Some(request) = stream.recv::<RaftJoinRequest>().await? else {
            return Ok(());
        };
        stream.reply(&self.raft_join(caller, &request).await).await
    }

    /// Gives `caller` its place in Raft: the id that it keeps until it is demoted. The membership follows as soon as
    /// the node answers there. Only the leader can; others answer [`ErrorCode::NotLeader`].
    ///
    /// # Errors
    /// The caller is not meant to be a manager, or the change could not be written.
    pub async fn raft_join(
        &self,
        caller: NodeId,
        request: &RaftJoinRequest,
    ) -> Result<RaftJoinResponse, RpcError> {
        self.place(caller, request)
            .await
            .map_err(|failure| failure.error)
    }

    async fn place(
        &self,
        caller: NodeId,
        request: &RaftJoinRequest,
    ) -> Result<RaftJoinResponse, Failure> {
        let state = self.core.fresh_view().await?;
        let node = state
            .node(caller)
            .ok_or_else(|| Failure::not_found("node", caller))?;
        if node.spec.role != NodeRole::Manager {
            return Err(Failure::new(
                ErrorCode::PermissionDenied,
                format!(
                    "node `{}` is meant to be a worker: promote it first",
                    node.display_name()
                ),
            ));
        }
        let addr = request.addr;
        if addr.ip().is_unspecified() || addr.port() == 0 {
            return Err(Failure::invalid(format!(
                "`{addr}` is no address that other managers can reach: start the node with `--advertise`"
            )));
        }
        let raft_id = match &node.manager {
            Some(known) if known.addr == addr => return Ok(response(&state, known.raft_id)),
            Some(known) => {
                self.core
                    .propose(vec![placed(node, known.raft_id, request)])
                    .await?;
                known.raft_id
            }
            None => self.give_id(&state, node, request).await?,
        };
        Ok(response(&self.core.store.view(), raft_id))
    }

    async fn give_id(
        &self,
        state: &State,
        node: &Node,
        request: &RaftJoinRequest,
    ) -> Result<RaftNodeId, Failure> {
        let stored = state
            .cluster()
            .ok_or_else(|| Failure::new(ErrorCode::Unavailable, "the cluster is still starting"))?;
        let mut cluster = Cluster::clone(stored);
        cluster.last_raft_id += 1;
        let raft_id = RaftNodeId(cluster.last_raft_id);
        // The cluster's version makes the id unique: of two who ask at once, one asks again.
        let actions = vec![
            StoreAction::Update(Object::Cluster(Box::new(cluster))),
            placed(node, raft_id, request),
        ];
        self.core.propose(actions).await?;
        Ok(raft_id)
    }
}

fn placed(node: &Node, raft_id: RaftNodeId, request: &RaftJoinRequest) -> StoreAction {
    StoreAction::SetNodeRole {
        node_id: node.id,
        role: NodeRole::Manager,
        manager: Some(ManagerStatus {
            raft_id,
            addr: request.addr,
        }),
    }
}

fn response(state: &State, raft_id: RaftNodeId) -> RaftJoinResponse {
    let members = state
        .nodes()
        .filter_map(|node| {
            let manager = node.manager.as_ref()?;
            Some((manager.raft_id, node.id, manager.addr))
        })
        .collect();
    RaftJoinResponse { raft_id, members }
}
