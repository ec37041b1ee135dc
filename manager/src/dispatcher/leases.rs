//! Which nodes may still hold a lease, for whoever waits for them.

use super::quorum::CONFIRMED_FOR;
use super::{Live, lock};
use crate::netfeed::Leases;
use crate::store::State;
use shoal_model::{ClusterSpec, Node, NodeId, NodeState};
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::time::Instant;

/// What the dispatcher has heard.
pub(super) struct LeaseBook(Arc<Mutex<Live>>);

impl LeaseBook {
    pub(super) fn new(live: Arc<Mutex<Live>>) -> Self {
        Self(live)
    }
}

impl Leases for LeaseBook {
    /// A lease ends at the latest its length after the node was last heard. A new leader has not heard anybody: it takes
    /// everybody for living for as long as a lease of its predecessor may last, but those that were given up before.
    fn live(&self, state: &State) -> BTreeSet<NodeId> {
        let lease_ms = state.cluster().map_or_else(
            || ClusterSpec::default().lease_ms,
            |cluster| cluster.spec.lease_ms,
        );
        let lease = Duration::from_millis(lease_ms);
        let now = Instant::now();
        let live = lock(&self.0);
        let is_live = |node: &&Arc<Node>| {
            let silence = live.liveness.silence(node.id, now);
            if live.liveness.was_heard(node.id) {
                silence < lease
            } else {
                // The manager that led before may have renewed leases for a while.
                may_have_lease(node) && silence < lease + CONFIRMED_FOR
            }
        };
        state.nodes().filter(is_live).map(|node| node.id).collect()
    }
}

fn may_have_lease(node: &Node) -> bool {
    match node.status.state {
        NodeState::Ready | NodeState::Unknown => node.description.is_some(),
        NodeState::Down | NodeState::Disconnected => false,
    }
}
