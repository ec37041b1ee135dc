//! The part of the door that the daemon uses when the node becomes part of a cluster, and when it leaves it.

use crate::container::connect;
use crate::error::{Result, chain};
use crate::handle::EngineHandle;
use crate::network::Attacher;
use crate::network::overlay::Joined;
use crate::supervisor::All;
use shoal_overlay_net::{OverlayAttach, OverlayHandle};
use std::sync::Arc;

/// The networks of the cluster.
impl EngineHandle {
    /// The node has an overlay: what runs is made known to it, then containers may be attached.
    ///
    /// # Errors
    /// When the engine stops.
    pub async fn join_overlay(
        &self,
        overlay: OverlayHandle,
        attacher: Arc<dyn Attacher>,
    ) -> Result<()> {
        let env = &self.engine.env;
        let running = self.attached().await?;
        if let Err(err) = overlay.reconcile(&running).await {
            // What is left over does no harm; what is missing is said by the containers' owners.
            tracing::error!(
                err = chain(&err),
                "the networks of running containers could not be brought in order"
            );
        }
        env.overlay.set(Some(Joined {
            handle: overlay.clone(),
            attacher: Arc::clone(&attacher),
        }));
        // Whoever ended before the overlay was known to the engine has not left its networks.
        let still: Vec<_> = self.attached().await?;
        for gone in running
            .iter()
            .filter(|one| !still.iter().any(|other| other.container == one.container))
        {
            env.overlay.detach(gone.container, false).await;
        }
        let returns = Arc::clone(&env.overlay.returns).run(attacher);
        env.overlay.give_back_in(env.runtime.spawn(returns));
        Ok(())
    }

    /// The node is in a cluster and can't have its networks: containers that need one are refused with `reason`.
    pub fn refuse_overlay(&self, reason: String) {
        self.engine.env.overlay.refuse(reason);
    }

    /// The node has left its cluster. Containers run on without the cluster's networks.
    ///
    /// # Errors
    /// When the record of addresses to give back can't be written.
    pub async fn leave_overlay(&self) -> Result<()> {
        let overlay = &self.engine.env.overlay;
        overlay.set(None);
        overlay.stop_giving_back();
        overlay.returns.clear().await
    }

    /// The overlay, while the node has one.
    pub fn overlay(&self) -> Option<OverlayHandle> {
        self.engine.env.overlay.now().map(|joined| joined.handle)
    }

    /// Running containers that are in networks of the cluster.
    async fn attached(&self) -> Result<Vec<OverlayAttach>> {
        let env = &self.engine.env;
        let entries = self.engine.supervisor.send(All).await?;
        Ok(entries
            .iter()
            .filter_map(|entry| {
                let info = entry.info();
                connect::overlay_attach(env, info.id, &info.name, &info.config, &info.network)
            })
            .collect())
    }
}
