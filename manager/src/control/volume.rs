//! Volumes of the cluster.

use super::answer::Answer;
use super::core::Core;
use super::error::Failure;
use crate::store::{State, holds_node};
use shoal_model::command::{ObjectKey, StoreAction};
use shoal_model::control::ControlResponse;
use shoal_model::volume::SlotKey;
use shoal_model::{NodeId, NodeState, TaskState, Volume, VolumeId};

impl Core {
    pub(super) fn list_volumes(&self, state: &State) -> Answer {
        let volumes = state.volumes().map(|volume| Volume::clone(volume));
        Answer::pages(volumes, ControlResponse::Volumes)
    }

    pub(super) async fn remove_volume(
        &self,
        state: &State,
        id: VolumeId,
        repeated: bool,
    ) -> Result<ControlResponse, Failure> {
        let Some(volume) = state.volume(id) else {
            if repeated {
                return Ok(ControlResponse::Done);
            }
            return Err(Failure::not_found("volume", id));
        };
        let user = state
            .tasks_by_node(volume.node_id)
            .find(|task| holds_node(task) && task.volumes.iter().any(|used| used.volume_id == id));
        if let Some(task) = user {
            return Err(Failure::precondition(format!(
                "volume `{}` is used by task `{}` of service `{}`: scale the service down or remove it first",
                volume.name,
                task.name(),
                task.service_name
            )));
        }
        let key = ObjectKey::Volume(id);
        let version = Some(volume.meta.version);
        self.propose(vec![StoreAction::Remove { key, version }])
            .await?;
        Ok(ControlResponse::Done)
    }

    pub(super) async fn rebind_volume(
        &self,
        state: &State,
        slot: SlotKey,
        name: &str,
        repeated: bool,
    ) -> Result<ControlResponse, Failure> {
        let service = state
            .service(slot.service_id)
            .ok_or_else(|| Failure::not_found("service", slot.service_id))?;
        let place = format!("{}.{}", service.spec.name, slot.slot);
        let Some(volume) = state
            .volumes_bound_to(slot)
            .find(|bound| bound.name == name)
        else {
            if repeated {
                return Ok(ControlResponse::Done);
            }
            return Err(Failure::precondition(format!(
                "slot `{place}` is not bound to a volume `{name}`: it takes the first node that fits"
            )));
        };
        if uses_it_now(state, slot, volume.id, volume.node_id) {
            return Err(Failure::precondition(format!(
                "slot `{place}` uses volume `{name}` on node `{}` now: drain that node or update the service's \
                 constraints first, so that its task can move",
                volume.node_id
            )));
        }
        self.propose(vec![StoreAction::UnbindVolume {
            volume_id: volume.id,
            slot,
        }])
        .await?;
        Ok(ControlResponse::Done)
    }
}

/// A task of the slot that is wanted runs with the volume, on a node that answers.
fn uses_it_now(state: &State, slot: SlotKey, volume: VolumeId, home: NodeId) -> bool {
    let home_answers = state
        .node(home)
        .is_some_and(|node| node.status.state == NodeState::Ready);
    home_answers
        && state.tasks_by_slot(slot).any(|task| {
            holds_node(task)
                && task.desired <= TaskState::Running
                && task.volumes.iter().any(|used| used.volume_id == volume)
        })
}
