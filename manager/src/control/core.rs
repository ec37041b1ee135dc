//! Executes requests on the leader.

use super::answer::Answer;
use super::error::Failure;
use super::network::AttachRequest;
use crate::consensus::{Consensus, IdSource, ProposeError, WallClock};
use crate::netfeed::NetFeeds;
use crate::store::{State, Store};
use shoal_model::NodeId;
use shoal_model::command::{ACTIONS_PER_COMMAND_MAX, StoreAction};
use shoal_model::control::{ControlRequest, ControlResponse};
use shoal_model::rpc::ErrorCode;
use std::sync::Arc;

/// Decisions about addresses in a row that others were faster than.
const ALLOCATIONS_MAX: u32 = 20;

/// What requests are executed with.
#[derive(Clone)]
pub(crate) struct Core {
    pub(crate) store: Store,
    pub(crate) consensus: Arc<dyn Consensus>,
    pub(crate) clock: Arc<dyn WallClock>,
    pub(crate) ids: Arc<dyn IdSource>,
    pub(crate) netfeeds: NetFeeds,
}

impl Core {
    /// Executes a request of the node `caller`. `repeated`: an earlier attempt of the same request may have taken effect,
    /// so that finding its effect is success.
    #[expect(clippy::too_many_lines, reason = "one flat table of requests")]
    pub(super) async fn execute(
        &self,
        caller: NodeId,
        request: ControlRequest,
        repeated: bool,
    ) -> Result<Answer, Failure> {
        let state = self.fresh_view().await?;
        let one = |response| Ok(Answer::one(response));
        match request {
            ControlRequest::GetCluster => one(self.get_cluster(&state)?),
            ControlRequest::UpdateCluster { .. } => {
                one(self.update_cluster(&state, request).await?)
            }
            ControlRequest::ListNodes => Ok(self.list_nodes(&state)),
            ControlRequest::GetNode(id) => one(self.get_node(&state, id)?),
            ControlRequest::UpdateNode { id, version, spec } => one(self
                .update_node(&state, id, version, *spec, repeated)
                .await?),
            ControlRequest::RemoveNode { id, force } => {
                one(self.remove_node(&state, id, force, repeated).await?)
            }
            ControlRequest::ListServices => Ok(self.list_services(&state)),
            ControlRequest::GetService(id) => one(self.get_service(&state, id)?),
            ControlRequest::CreateService { id, spec } => {
                one(self.create_service(&state, id, *spec).await?)
            }
            ControlRequest::UpdateService {
                id,
                version,
                spec,
                rollback,
            } => {
                let wanted = (!rollback).then_some(*spec);
                one(self
                    .update_service(&state, id, version, wanted, repeated)
                    .await?)
            }
            ControlRequest::RemoveService(id) => {
                one(self.remove_service(&state, id, repeated).await?)
            }
            ControlRequest::ListTasks {
                service_id,
                node_id,
            } => Ok(self.list_tasks(&state, service_id, node_id)),
            ControlRequest::GetTask(id) => one(self.get_task(&state, id)?),
            ControlRequest::ExplainService(id) => one(self.explain_service(&state, id)?),
            ControlRequest::ListVolumes => Ok(self.list_volumes(&state)),
            ControlRequest::RemoveVolume { id } => {
                one(self.remove_volume(&state, id, repeated).await?)
            }
            ControlRequest::RebindVolume { slot, name } => {
                one(self.rebind_volume(&state, slot, &name, repeated).await?)
            }
            ControlRequest::ListNetworks => Ok(self.list_networks(&state)),
            ControlRequest::GetNetwork(id) => one(self.get_network(&state, id)?),
            ControlRequest::CreateNetwork { id, spec } => {
                one(self.create_network(&state, id, *spec).await?)
            }
            ControlRequest::RemoveNetwork(id) => {
                one(self.remove_network(&state, id, repeated).await?)
            }
            ControlRequest::AttachContainer {
                container_id,
                name,
                wishes,
            } => {
                let wish = AttachRequest {
                    node_id: caller,
                    container_id,
                    name,
                    wishes,
                };
                one(self.attach_container(&state, &wish).await?)
            }
            ControlRequest::DetachContainer(id) => {
                one(self.detach_container(&state, caller, id).await?)
            }
            ControlRequest::NetworkCheck => self.network_check(&state),
            ControlRequest::RotateNetworkKeys { node_id } => {
                one(self.rotate_network_keys(&state, node_id)?)
            }
            ControlRequest::Forwarded { .. } => Err(Failure::invalid(
                "a forwarded request inside a forwarded request is not allowed",
            )),
        }
    }

    /// A view that holds every write that was acknowledged before the call.
    pub(crate) async fn fresh_view(&self) -> Result<Arc<State>, Failure> {
        self.consensus.read_barrier().await?;
        Ok(self.store.view())
    }

    pub(crate) async fn propose(&self, actions: Vec<StoreAction>) -> Result<(), Failure> {
        self.consensus.propose(actions).await?;
        Ok(())
    }

    /// Commits what `decide` makes of a view. When somebody else was faster, it decides again from a newer one.
    pub(super) async fn propose_decided<T: Send>(
        &self,
        state: &State,
        decide: impl Fn(&State) -> Result<(Vec<StoreAction>, T), Failure> + Send + Sync,
    ) -> Result<T, Failure> {
        let mut newer: Option<Arc<State>> = None;
        let mut decisions = 1;
        loop {
            let (actions, answer) = decide(newer.as_deref().unwrap_or(state))?;
            if actions.is_empty() {
                return Ok(answer);
            }
            match self.consensus.propose(actions).await {
                Ok(_) => return Ok(answer),
                Err(ProposeError::Rejected(_)) if decisions < ALLOCATIONS_MAX => {
                    decisions += 1;
                    newer = Some(self.fresh_view().await?);
                }
                Err(err) => return Err(err.into()),
            }
        }
    }

    /// Commits the row of actions in as many entries as it needs, in order.
    pub(crate) async fn propose_chunks(&self, actions: Vec<StoreAction>) -> Result<(), Failure> {
        for chunk in actions.chunks(ACTIONS_PER_COMMAND_MAX) {
            self.propose(chunk.to_vec()).await?;
        }
        Ok(())
    }

    fn get_cluster(&self, state: &State) -> Result<ControlResponse, Failure> {
        let cluster = state.cluster().ok_or_else(no_cluster)?;
        Ok(ControlResponse::Cluster(Box::new((**cluster).clone())))
    }
}

pub(super) fn no_cluster() -> Failure {
    Failure::new(
        ErrorCode::Unavailable,
        "the cluster has no settings yet: its first manager is still starting",
    )
}
