//! What the leader knows of the nodes' networks beside the store.

use super::answer::Answer;
use super::core::Core;
use super::error::Failure;
use crate::store::State;
use shoal_model::NodeId;
use shoal_model::control::ControlResponse;
use shoal_model::rpc::ErrorCode;

impl Core {
    pub(super) fn network_check(&self, state: &State) -> Result<Answer, Failure> {
        let nodes = self.netfeeds.nodes(state).ok_or_else(starting)?;
        Ok(Answer::pages(
            nodes.into_iter(),
            ControlResponse::NetworkCheck,
        ))
    }

    /// Nodes make their keys themselves; one that can't be told now does it by its own schedule.
    pub(super) fn rotate_network_keys(
        &self,
        state: &State,
        node_id: Option<NodeId>,
    ) -> Result<ControlResponse, Failure> {
        if let Some(node_id) = node_id
            && state.node(node_id).is_none()
        {
            let message = format!("node `{node_id}` not found");
            return Err(Failure::new(ErrorCode::NotFound, message));
        }
        let told = self.netfeeds.rotate_keys(node_id).ok_or_else(starting)?;
        if told.is_empty() {
            let message = match node_id {
                Some(node_id) => format!(
                    "node `{node_id}` has no network feed: it is not connected, or has no overlay"
                ),
                None => "no node has a network feed now: none is connected, or none has an overlay"
                    .to_owned(),
            };
            return Err(Failure::new(ErrorCode::FailedPrecondition, message));
        }
        Ok(ControlResponse::Done)
    }
}

fn starting() -> Failure {
    Failure::new(
        ErrorCode::Unavailable,
        "this manager has just become the leader, and does not serve networks yet",
    )
}
