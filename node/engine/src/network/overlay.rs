//! The networks of the cluster: how a container gets its places in them, and gives them back.
//!
//! The engine knows no cluster. Addresses come with a task, or are asked for through an [`Attacher`]; links and rules
//! are made by the node's overlay. Both appear once the node is part of a cluster.

use crate::info::Endpoint as ShownEndpoint;
use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use shoal_model::ContainerId;
use shoal_model::network::{Attachment, AttachmentWish, Endpoint};
use shoal_model::rpc::RpcError;

/// Asks the managers for addresses of containers that no service owns.
#[async_trait]
pub trait Attacher: Send + Sync + 'static {
    /// Addresses in attachable networks. Asked again, the container gets the same ones.
    async fn attach(
        &self,
        container: ContainerId,
        name: &str,
        wishes: &[AttachmentWish],
    ) -> Result<Attachment, RpcError>;

    /// The container's interfaces are gone: its addresses are free. An unknown container is fine.
    async fn detach(&self, container: ContainerId) -> Result<(), RpcError>;
}

/// A container's places in networks of the cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct OverlayLease {
    /// As the managers gave them out.
    pub(crate) endpoints: Vec<Endpoint>,
    /// The same as users see them, in the same order.
    pub(crate) shown: Vec<ShownEndpoint>,
    /// They were asked for by this node, which has to give them back.
    pub(crate) asked: bool,
}
