//! The encrypted mesh between nodes: one WireGuard device per node.
//!
//! [`Mesh`] makes the node's keys and its device, in the kernel where that has WireGuard, else in `shoal netd`. It is
//! told the whole mesh of each version of the network state, and tells the device what differs. Addresses and routes
//! on the device are not its business, and it invents no peer.

mod backend;
pub(crate) mod device;
mod genetlink;
mod kernel;
mod keys;
mod paths;
mod types;
mod worker;

pub use keys::KeyError;
pub use types::{MESH_MTU, MeshOptions, MeshPeer, MeshPeerStatus, MeshPlan, OwnKeys, device_name};

use crate::netd::NetdError;
use shoal_model::Version;
use shoal_model::network::WireGuardDescription;
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot, watch};
use worker::{Message, Worker};

/// Messages that may wait for the mesh's worker.
const MESSAGES_MAX: usize = 64;

/// Why the mesh is not as it is to be.
#[derive(Debug, thiserror::Error)]
pub enum MeshError {
    /// The node's keys.
    #[error("failed to keep the node's WireGuard keys")]
    Keys(#[from] KeyError),
    /// The userspace device.
    #[error("failed to {action} the userspace WireGuard device")]
    Userspace {
        /// `make`, `configure`, `read`, `remove`.
        action: &'static str,
        /// Why.
        #[source]
        err: NetdError,
    },
    /// The kernel's device.
    #[error("failed to {action} the kernel's WireGuard device")]
    Kernel {
        /// `make`, `configure`, `read`, `remove`.
        action: &'static str,
        /// Why.
        #[source]
        err: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Only the kernel's was wanted.
    #[error("this kernel has no WireGuard; `--wireguard auto` or `userspace` works without")]
    NotInKernel,
    /// The daemon ends.
    #[error("the mesh was stopped")]
    Stopped,
}

impl MeshError {
    fn kernel(action: &'static str) -> impl FnOnce(kernel::KernelError) -> Self {
        move |err| Self::Kernel {
            action,
            err: Box::new(err),
        }
    }

    /// Somebody has the port.
    fn is_address_in_use(&self) -> bool {
        match self {
            Self::Userspace {
                err: NetdError::Refused(refusal),
                ..
            } => refusal.errno == Some(libc::EADDRINUSE),
            Self::Kernel { err, .. } => err
                .downcast_ref::<kernel::KernelError>()
                .is_some_and(kernel::KernelError::is_address_in_use),
            _ => false,
        }
    }
}

/// The mesh of one node. Cheap to clone; the device stays when the last clone is gone.
#[derive(Debug, Clone)]
pub struct Mesh {
    messages: mpsc::Sender<Message>,
    description: watch::Receiver<WireGuardDescription>,
    made: watch::Receiver<u64>,
    device: Arc<str>,
}

impl Mesh {
    /// Makes or reads the key, and makes the device or takes up the one that is there. It is up afterwards, with the
    /// peers that it had.
    ///
    /// # Errors
    /// When keys or device can't be had.
    pub async fn start(options: MeshOptions) -> Result<Self, MeshError> {
        let device = device_name(&options.instance);
        let (worker, description, made) = Worker::start(options).await?;
        let (messages, queue) = mpsc::channel(MESSAGES_MAX);
        tokio::spawn(worker.run(queue));
        Ok(Self {
            messages,
            description,
            made,
            device: device.into(),
        })
    }

    /// Name of the device.
    pub fn device(&self) -> &str {
        &self.device
    }

    /// The node's WireGuard as its peers must know it, and every change of it.
    pub fn description(&self) -> watch::Receiver<WireGuardDescription> {
        self.description.clone()
    }

    /// A number that grows whenever the device may have been made anew, and then has neither addresses nor routes.
    pub fn device_made(&self) -> watch::Receiver<u64> {
        self.made.clone()
    }

    /// Makes the device's peers be as `plan` says; it is so when this returns.
    ///
    /// # Errors
    /// When the device refuses. It is tried again every second.
    pub async fn set_plan(&self, plan: MeshPlan) -> Result<(), MeshError> {
        self.ask(|answer| Message::Plan(plan, answer)).await?
    }

    /// Every node with a live lease has applied `version`: a key that it announced may be used.
    pub async fn confirmed(&self, version: Version) {
        if self
            .messages
            .send(Message::Confirmed(version))
            .await
            .is_err()
        {
            tracing::debug!("the mesh was stopped");
        }
    }

    /// Makes a new key and announces it; it is used once every node knows it.
    ///
    /// # Errors
    /// When it can't be kept.
    pub async fn rotate(&self) -> Result<(), MeshError> {
        self.ask(Message::Rotate).await?
    }

    /// How the peers are.
    ///
    /// # Errors
    /// When the device does not say.
    pub async fn peers(&self) -> Result<Vec<MeshPeerStatus>, MeshError> {
        self.ask(Message::Peers).await?
    }

    /// Packets that the device dropped, by reason. The kernel's device does not count.
    ///
    /// # Errors
    /// When the device does not say.
    pub async fn drops(&self) -> Result<BTreeMap<String, u64>, MeshError> {
        self.ask(Message::Drops).await?
    }

    /// Removes the device. The key stays.
    ///
    /// # Errors
    /// When the device refuses.
    pub async fn leave(&self) -> Result<(), MeshError> {
        self.ask(Message::Leave).await?
    }

    async fn ask<T>(
        &self,
        message: impl FnOnce(oneshot::Sender<T>) -> Message,
    ) -> Result<T, MeshError> {
        let (answer, answered) = oneshot::channel();
        let sent = self.messages.send(message(answer)).await;
        sent.map_err(|_| MeshError::Stopped)?;
        answered.await.map_err(|_| MeshError::Stopped)
    }
}
