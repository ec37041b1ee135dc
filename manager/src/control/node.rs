//! Nodes: list, labels, availability, role, removal.

use super::answer::Answer;
use super::core::Core;
use super::error::Failure;
use super::forward::ControlApi;
use super::{quorum, validate};
use crate::consensus::Member;
use crate::role_manager::role_now;
use crate::store::State;
use shoal_model::command::{ACTIONS_PER_COMMAND_MAX, Object, ObjectKey, StoreAction};
use shoal_model::control::{ControlResponse, NodeView};
use shoal_model::rpc::RpcError;
use shoal_model::{
    Node, NodeId, NodeRole, NodeSpec, NodeState, NodeStatus, TaskState, TaskStatus, Timestamp,
    Version,
};
use shoal_transport::{RpcStream, StreamError};

impl Core {
    pub(super) fn list_nodes(&self, state: &State) -> Answer {
        let members = self.consensus.members();
        let views = state.nodes().map(|node| view(node, &members));
        Answer::pages(views, ControlResponse::Nodes)
    }

    pub(super) fn get_node(&self, state: &State, id: NodeId) -> Result<ControlResponse, Failure> {
        let node = state
            .node(id)
            .ok_or_else(|| Failure::not_found("node", id))?;
        let view = view(node, &self.consensus.members());
        Ok(ControlResponse::Node(Box::new(view)))
    }

    pub(super) async fn update_node(
        &self,
        state: &State,
        id: NodeId,
        version: Version,
        spec: NodeSpec,
        repeated: bool,
    ) -> Result<ControlResponse, Failure> {
        let stored = state
            .node(id)
            .ok_or_else(|| Failure::not_found("node", id))?;
        if repeated && stored.spec == spec {
            return Ok(ControlResponse::Done);
        }
        if stored.meta.version != version {
            return Err(Failure::out_of_date("node", &stored.display_name()));
        }
        validate::node(&spec)?;
        let demoted = stored.spec.role == NodeRole::Manager && spec.role == NodeRole::Worker;
        if demoted && let Some(reason) = quorum::loss(&self.consensus.members(), id) {
            let name = stored.display_name();
            return Err(Failure::precondition(format!(
                "can't demote node `{name}`: {reason}"
            )));
        }
        if demoted && wanted_managers(state) == 1 {
            return Err(Failure::precondition(format!(
                "can't demote node `{}`: no other node is meant to be a manager; promote one first",
                stored.display_name()
            )));
        }
        let mut node = Node::clone(stored);
        node.spec = spec;
        self.propose(vec![StoreAction::Update(Object::Node(Box::new(node)))])
            .await?;
        Ok(ControlResponse::Done)
    }

    pub(super) async fn remove_node(
        &self,
        state: &State,
        id: NodeId,
        force: bool,
        repeated: bool,
    ) -> Result<ControlResponse, Failure> {
        let Some(node) = state.node(id) else {
            if repeated {
                return Ok(ControlResponse::Done);
            }
            return Err(Failure::not_found("node", id));
        };
        let name = node.display_name();
        let in_raft = self.consensus.members().iter().any(|m| m.node_id == id);
        if node.manager.is_some() || node.spec.role == NodeRole::Manager || in_raft {
            return Err(Failure::precondition(format!(
                "node `{name}` is a manager: demote it first (`shoal node demote {name}`)"
            )));
        }
        let up = matches!(node.status.state, NodeState::Ready | NodeState::Unknown);
        if up && !force {
            return Err(Failure::precondition(format!(
                "node `{name}` is {} and not down: let it leave first, or remove it with `--force`",
                node.status.state.as_str()
            )));
        }
        let mut actions = orphan_tasks(state, id, self.clock.now(), "the node was removed");
        // The last entry holds the removal: tasks that were bound meanwhile refuse it, and the user asks again.
        let key = ObjectKey::Node(id);
        let removal = StoreAction::Remove { key, version: None };
        let surplus = actions.len().saturating_sub(ACTIONS_PER_COMMAND_MAX - 1);
        let last = actions.split_off(surplus);
        self.propose_chunks(actions).await?;
        self.propose(last.into_iter().chain([removal]).collect())
            .await?;
        Ok(ControlResponse::Done)
    }
}

impl ControlApi {
    /// The node `id` leaves for good: its tasks are replaced, and its object waits to be removed by the user.
    ///
    /// # Errors
    /// It is a manager, it is unknown, or the change could not be written.
    pub async fn leave(&self, id: NodeId) -> Result<(), RpcError> {
        self.core.leave(id).await.map_err(|failure| failure.error)
    }

    /// Serves [`shoal_model::rpc::Method::Leave`] of the node `caller`; the request is an empty frame.
    ///
    /// # Errors
    /// The stream broke; the caller is gone.
    pub async fn serve_leave(
        &self,
        caller: NodeId,
        mut stream: RpcStream,
    ) -> Result<(), StreamError> {
        if stream.recv::<()>().await?.is_none() {
            return Ok(());
        }
        stream.reply(&self.leave(caller).await).await
    }
}

impl Core {
    async fn leave(&self, id: NodeId) -> Result<(), Failure> {
        let state = self.fresh_view().await?;
        let node = state
            .node(id)
            .ok_or_else(|| Failure::not_found("node", id))?;
        let name = node.display_name();
        if role_now(node) == NodeRole::Manager {
            return Err(Failure::precondition(format!(
                "node `{name}` is a manager: demote it first (`shoal node demote {name}`), or leave with `--force`"
            )));
        }
        let mut actions = orphan_tasks(&state, id, self.clock.now(), "the node left the cluster");
        actions.push(StoreAction::SetNodeStatus {
            node_id: id,
            status: NodeStatus {
                state: NodeState::Down,
                message: "left the cluster".to_owned(),
                ..node.status.clone()
            },
            description: None,
        });
        self.propose_chunks(actions).await
    }
}

/// Nodes that the user wants to be managers.
fn wanted_managers(state: &State) -> usize {
    state
        .nodes()
        .filter(|node| node.spec.role == NodeRole::Manager)
        .count()
}

/// Gives up every task of a node whose fate will not be known: it is replaced, and what it held is free.
fn orphan_tasks(state: &State, node_id: NodeId, now: Timestamp, reason: &str) -> Vec<StoreAction> {
    let live = state
        .tasks_by_node(node_id)
        .filter(|task| !task.status.state.is_terminal());
    live.flat_map(|task| {
        let status = TaskStatus {
            state: TaskState::Orphaned,
            at: now,
            message: reason.to_owned(),
            ready: false,
            ..task.status.clone()
        };
        [
            StoreAction::SetTaskStatus {
                task_id: task.id,
                status: Box::new(status),
            },
            StoreAction::SetDesired {
                task_id: task.id,
                desired: TaskState::Shutdown,
            },
        ]
    })
    .collect()
}

fn view(node: &Node, members: &[Member]) -> NodeView {
    let member = members.iter().find(|member| member.node_id == node.id);
    NodeView {
        node: node.clone(),
        leader: member.is_some_and(|member| member.leader),
        reachable: member.is_some_and(|member| member.reachable),
    }
}
