//! Settings of the cluster and join tokens.

use super::core::{Core, no_cluster};
use super::error::Failure;
use super::validate;
use crate::store::State;
use shoal_model::cluster::{JoinSecret, Redacted};
use shoal_model::command::{Object, StoreAction};
use shoal_model::control::{ControlRequest, ControlResponse};
use shoal_model::{Cluster, TaskId};

impl Core {
    pub(super) async fn update_cluster(
        &self,
        state: &State,
        request: ControlRequest,
    ) -> Result<ControlResponse, Failure> {
        let ControlRequest::UpdateCluster {
            version,
            spec,
            rotate_worker_token,
            rotate_manager_token,
            token_expires_at,
            token_uses,
        } = request
        else {
            return Err(Failure::invalid("this is no update of the cluster"));
        };
        let stored = state.cluster().ok_or_else(no_cluster)?;
        if stored.meta.version != version {
            return Err(Failure::out_of_date("cluster", &stored.spec.name));
        }
        validate::cluster(&spec)?;
        if spec.mesh_pool != stored.spec.mesh_pool {
            return Err(Failure::invalid(format!(
                "`MeshPool`: {}: the nodes have their addresses in {}: it is set when the cluster is made",
                spec.mesh_pool, stored.spec.mesh_pool
            )));
        }
        let rotates = rotate_worker_token || rotate_manager_token;
        if !rotates && (token_expires_at.is_some() || token_uses.is_some()) {
            return Err(Failure::invalid(
                "an expiry or a number of uses is given, but no token is rotated: rotate the worker or the manager token",
            ));
        }
        if token_uses == Some(0) {
            return Err(Failure::invalid(
                "a token with 0 uses lets nobody join: give at least 1, or leave it out for no limit",
            ));
        }
        if token_expires_at.is_some_and(|end| end <= self.clock.now()) {
            return Err(Failure::invalid(
                "the expiry of the token lies in the past: give a later time",
            ));
        }
        let fresh = || JoinSecret {
            secret: self.new_secret(),
            expires_at: token_expires_at,
            uses_left: token_uses,
        };
        let mut cluster = Cluster::clone(stored);
        cluster.spec = *spec;
        if rotate_worker_token {
            cluster.worker_secret = fresh();
        }
        if rotate_manager_token {
            cluster.manager_secret = fresh();
        }
        self.propose(vec![StoreAction::Update(Object::Cluster(Box::new(
            cluster,
        )))])
        .await?;
        Ok(ControlResponse::Done)
    }

    /// 128 bits as 25 digits of base 36, the text form of every id.
    fn new_secret(&self) -> Redacted<String> {
        Redacted(TaskId::from_bits(self.ids.bits()).to_string())
    }
}
