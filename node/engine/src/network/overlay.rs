//! The networks of the cluster: how a container gets its places in them, and gives them back.
//!
//! The engine knows no cluster. Addresses come with a task, or are asked for through an [`Attacher`]; links and rules
//! are made by the node's overlay. Both appear once the node is part of a cluster.

use super::give_back::Returns;
use crate::error::{EngineError, ErrorKind, Result, chain};
use crate::info::Endpoint as ShownEndpoint;
use crate::options::EngineOptions;
use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use shoal_model::ContainerId;
use shoal_model::network::{Attachment, AttachmentWish, Endpoint};
use shoal_model::rpc::{ErrorCode, RpcError};
use shoal_overlay_net::{OverlayAttach, OverlayError, OverlayHandle, OverlayInterface};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinHandle};

/// How long a start waits for the overlay of a node that is part of a cluster.
const OVERLAY_WAIT: Duration = Duration::from_secs(15);

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

/// What a node has once it is part of a cluster.
#[derive(Clone)]
pub(crate) struct Joined {
    pub(crate) handle: OverlayHandle,
    pub(crate) attacher: Arc<dyn Attacher>,
}

#[derive(Clone)]
enum Slot {
    /// The node is in no cluster.
    Absent,
    /// The node is in a cluster whose networks are not there yet.
    Expected,
    /// The node is in a cluster, and can't have its networks.
    Refused(String),
    Ready(Joined),
}

/// The cluster's networks as the engine has them.
pub(crate) struct Overlay {
    slot: watch::Sender<Slot>,
    pub(crate) returns: Arc<Returns>,
    giving_back: Mutex<Option<AbortHandle>>,
}

impl Overlay {
    /// Reads which addresses are still to be given back.
    pub(crate) fn open(options: &EngineOptions) -> Result<Self> {
        let slot = if options.overlay_expected {
            Slot::Expected
        } else {
            Slot::Absent
        };
        Ok(Self {
            slot: watch::Sender::new(slot),
            returns: Arc::new(Returns::open(&options.data_root.join("networks"))?),
            giving_back: Mutex::new(None),
        })
    }

    /// The loop that gives addresses back, in place of an earlier one.
    pub(crate) fn give_back_in(&self, task: JoinHandle<()>) {
        let abort = Some(task.abort_handle());
        let old = std::mem::replace(&mut *self.lock_giving_back(), abort);
        old.inspect(AbortHandle::abort);
    }

    /// Ends that loop.
    pub(crate) fn stop_giving_back(&self) {
        self.lock_giving_back().take().inspect(AbortHandle::abort);
    }

    fn lock_giving_back(&self) -> MutexGuard<'_, Option<AbortHandle>> {
        // One replacement at a time: it is whole even if a holder panicked.
        self.giving_back
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// The overlay is there.
    pub(crate) fn set(&self, joined: Option<Joined>) {
        self.slot
            .send_replace(joined.map_or(Slot::Absent, Slot::Ready));
    }

    /// There will be none, for that reason.
    pub(crate) fn refuse(&self, reason: String) {
        self.slot.send_replace(Slot::Refused(reason));
    }

    /// The overlay, if it is there now.
    pub(crate) fn now(&self) -> Option<Joined> {
        match &*self.slot.borrow() {
            Slot::Ready(joined) => Some(joined.clone()),
            Slot::Absent | Slot::Expected | Slot::Refused(_) => None,
        }
    }

    /// The node is in no cluster and on no way into one.
    pub(crate) fn is_absent(&self) -> bool {
        matches!(&*self.slot.borrow(), Slot::Absent)
    }

    /// The overlay; waits for it while the node comes back into its cluster.
    pub(crate) async fn ready(&self) -> Result<Joined> {
        let mut slots = self.slot.subscribe();
        let settled = slots.wait_for(|slot| !matches!(slot, Slot::Expected));
        match tokio::time::timeout(OVERLAY_WAIT, settled).await {
            Ok(Ok(slot)) => match &*slot {
                Slot::Ready(joined) => Ok(joined.clone()),
                Slot::Refused(reason) => Err(EngineError::OverlayRefused {
                    reason: reason.clone(),
                }),
                Slot::Absent | Slot::Expected => Err(EngineError::NoOverlay {
                    reason: "it is in no cluster",
                }),
            },
            Ok(Err(_)) => Err(EngineError::ShuttingDown),
            Err(_) => Err(EngineError::NoOverlay {
                reason: "it has not come back into its cluster yet; try again",
            }),
        }
    }

    /// Asks the managers for the container's addresses.
    pub(crate) async fn ask(
        &self,
        joined: &Joined,
        container: ContainerId,
        name: &str,
        wishes: &[AttachmentWish],
    ) -> Result<Vec<Endpoint>> {
        self.returns.cancel(container).await?;
        match joined.attacher.attach(container, name, wishes).await {
            Ok(attachment) => Ok(attachment.endpoints),
            Err(err) => Err(attach_error(wishes, err)),
        }
    }

    /// Takes the container out of its networks, and sees to it that addresses that were asked for are given back.
    pub(crate) async fn detach(&self, container: ContainerId, asked: bool) {
        if let Some(joined) = self.now()
            && let Err(err) = joined.handle.detach(container).await
        {
            // Its interfaces go with its namespace; the rest is found at the next start of the daemon.
            tracing::warn!(container_id = %container, err = chain(&err), "a container did not leave its networks in order");
        }
        if asked && let Err(err) = self.returns.add(container).await {
            tracing::error!(container_id = %container, err = chain(&err), "addresses to give back were not recorded");
        }
    }
}

/// Connects a container's namespace to its networks.
pub(crate) async fn attach(joined: &Joined, spec: &OverlayAttach) -> Result<Vec<OverlayInterface>> {
    match joined.handle.attach(spec).await {
        Ok(attached) => Ok(attached.interfaces),
        Err(err) => Err(overlay_error(&err)),
    }
}

fn overlay_error(err: &OverlayError) -> EngineError {
    EngineError::Network {
        action: "attach the container to its networks",
        reason: chain(err),
    }
}

fn attach_error(wishes: &[AttachmentWish], err: RpcError) -> EngineError {
    let names: Vec<&str> = wishes.iter().map(|wish| wish.network.as_str()).collect();
    let kind = match err.code {
        ErrorCode::NotFound => ErrorKind::NotFound,
        ErrorCode::InvalidArgument => ErrorKind::InvalidArgument,
        ErrorCode::PermissionDenied | ErrorCode::FailedPrecondition => ErrorKind::Forbidden,
        ErrorCode::AlreadyExists | ErrorCode::Conflict | ErrorCode::ResourceExhausted => {
            ErrorKind::Conflict
        }
        ErrorCode::Unavailable | ErrorCode::NotLeader => ErrorKind::Unavailable,
        ErrorCode::Internal => ErrorKind::Internal,
    };
    EngineError::Attach {
        name: names.join(", "),
        kind,
        reason: err.message,
    }
}

/// A place in a network as users see it.
pub(crate) fn shown(endpoint: &Endpoint, interface: &OverlayInterface) -> ShownEndpoint {
    let mac: Vec<_> = interface
        .mac
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    ShownEndpoint {
        network: interface.network.clone(),
        network_id: endpoint.network_id.to_string(),
        address: Some(endpoint.ipv4),
        prefix_len: interface.prefix_len,
        gateway: Some(interface.gateway),
        ipv6: endpoint.ipv6,
        ipv6_prefix_len: interface.ipv6_prefix_len,
        ipv6_gateway: interface.gateway_ipv6,
        mac: mac.join(":"),
        aliases: endpoint.aliases.clone(),
    }
}
