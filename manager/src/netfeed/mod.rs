//! The network feed: tells each node what it must know of the networks, and knows when a change is in force everywhere.
//!
//! It works on the leader only and keeps nothing durable: which version each node has applied lives in memory and dies
//! with the term. A node whose lease is over is not waited for: it refuses by itself what it can't confirm.
//!
//! * `records`: what nodes are told of stored objects, pure.
//! * [`catalogue`]: all records with whom they concern, kept up to date change by change, pure.
//! * `rotation`: when nodes make new keys, pure.
//! * `term`: the feeds of one leadership, and what they have applied.
//! * `stream`: one node's feed.

pub mod catalogue;
mod records;
mod rotation;
mod stream;
mod term;

#[cfg(test)]
mod tests;

pub use catalogue::view;
pub(crate) use records::is_lost;
pub(crate) use records::record;
pub use records::{in_rotation, is_reachable};
pub(crate) use term::FeedTerm;

use crate::store::{State, Store};
use shoal_model::control::NodeNetworkView;
use shoal_model::rpc::{ErrorCode, RpcError};
use shoal_model::{NodeId, Version};
use shoal_transport::{Peer, RpcStream};
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::debug;

/// Which nodes have a live lease.
pub(crate) trait Leases: Send + Sync {
    /// The nodes that may still act on what they were told before.
    fn live(&self, state: &State) -> BTreeSet<NodeId>;
}

/// A version was not applied everywhere in time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("version {version} of the networks is not in force on every node: {} of them did not answer", nodes.len())]
pub struct NotConfirmed {
    /// The version.
    pub version: Version,
    /// The nodes that have a live lease and have not applied it.
    pub nodes: BTreeSet<NodeId>,
}

/// The feeds of this manager, while it leads. Clones share it.
#[derive(Clone, Default)]
pub struct NetFeeds(Arc<Mutex<Option<Arc<FeedTerm>>>>);

impl std::fmt::Debug for NetFeeds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NetFeeds").finish_non_exhaustive()
    }
}

impl NetFeeds {
    /// Serves nobody until this manager leads.
    pub fn new() -> Self {
        Self::default()
    }

    fn term(&self) -> Option<Arc<FeedTerm>> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// This manager leads from now on.
    pub(crate) fn begin(
        &self,
        store: Store,
        leases: Arc<dyn Leases>,
        cancel: CancellationToken,
    ) -> Arc<FeedTerm> {
        let term = Arc::new(FeedTerm::new(store, leases, cancel));
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&term));
        term
    }

    /// This manager leads no more.
    pub(crate) fn end(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Serves one [`shoal_model::rpc::Method::NetFeed`] stream until it ends.
    pub async fn handle(&self, peer: Peer, mut stream: RpcStream) {
        match (self.term(), peer.identity) {
            (Some(term), Some(identity)) => stream::run(term, identity.node_id, stream).await,
            (None, _) | (_, None) => {
                let error = RpcError::new(ErrorCode::NotLeader, "this manager does not lead");
                if let Err(err) = stream.reply::<()>(&Err(error)).await {
                    debug!(
                        err = &err as &dyn std::error::Error,
                        "a node left before it was redirected"
                    );
                }
            }
        }
    }

    /// The newest version that every node with a live lease has applied; zero while this manager does not lead.
    pub fn confirmed(&self) -> Version {
        self.term().map_or(Version(0), |term| term.confirmed())
    }

    /// Waits until every node with a live lease has applied `version`, the version of an entry that changed something.
    ///
    /// # Errors
    /// `deadline` has passed, with the nodes that were waited for; or this manager leads no more, with none.
    pub async fn wait_confirmed(
        &self,
        version: Version,
        deadline: Instant,
    ) -> Result<(), NotConfirmed> {
        match self.term() {
            Some(term) => term.wait_confirmed(version, deadline).await,
            None => Err(NotConfirmed {
                version,
                nodes: BTreeSet::new(),
            }),
        }
    }

    /// What every node says; `None` while this manager does not lead.
    pub fn nodes(&self, state: &State) -> Option<Vec<NodeNetworkView>> {
        self.term().map(|term| term.nodes(state))
    }

    /// Tells `node_id`, or every node, to make a new WireGuard key; the nodes that were told. `None` while this manager
    /// does not lead.
    pub fn rotate_keys(&self, node_id: Option<NodeId>) -> Option<BTreeSet<NodeId>> {
        self.term().map(|term| term.rotate_keys(node_id))
    }
}
