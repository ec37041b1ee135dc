//! Where peers are looked for: pure decisions over what the device says of them.

use super::types::{MeshPeer, MeshPlan};
use crate::check::PeerPath;
use crate::netd::{DevicePeer, DeviceStatus, PeerUpdate};
use shoal_model::NodeId;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// How long a peer is given to answer at one place before the next one is tried.
pub(super) const CANDIDATE_PATIENCE: Duration = Duration::from_secs(5);
/// How long a peer may be silent everywhere before its packets take the way over another node.
pub(super) const RELAY_PATIENCE: Duration = Duration::from_secs(12);
/// A session older than this can't be used any more (REJECT_AFTER_TIME of WireGuard).
pub(super) const SESSION_LIFE: Duration = Duration::from_secs(180);
/// Seconds between packets that keep a path through a NAT open.
pub(super) const KEEPALIVE_S: u16 = 25;

/// What is remembered of a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Search {
    candidates: Vec<SocketAddr>,
    at: usize,
    /// When that place was begun with.
    since: Instant,
    /// When there was no session with the peer for the first time since there was one.
    silent_since: Option<Instant>,
    relay: Option<NodeId>,
}

/// The paths to all peers.
#[derive(Debug, Default)]
pub(super) struct Paths {
    searches: BTreeMap<NodeId, Search>,
}

impl Paths {
    /// Takes up a plan's peers; what is known of peers that stay is kept.
    pub(super) fn follow(&mut self, plan: &MeshPlan, now: Instant) {
        self.searches
            .retain(|node, _| plan.peers.contains_key(node));
        for (node, peer) in &plan.peers {
            let search = self.searches.entry(*node).or_insert_with(|| Search {
                candidates: Vec::new(),
                at: 0,
                since: now,
                silent_since: Some(now),
                relay: None,
            });
            if search.candidates != peer.endpoints {
                search.candidates.clone_from(&peer.endpoints);
                search.at = 0;
                search.since = now;
            }
        }
    }

    /// Looks at what the device says of the peers.
    pub(super) fn observe(&mut self, plan: &MeshPlan, status: &DeviceStatus, now: Instant) {
        let alive: BTreeSet<NodeId> = status
            .peers
            .iter()
            .filter(|(_, peer)| {
                let age = peer.handshake_age_ms.map(Duration::from_millis);
                age.is_some_and(|age| age < SESSION_LIFE)
            })
            .map(|(node, _)| *node)
            .collect();
        for (node, search) in &mut self.searches {
            if alive.contains(node) {
                search.silent_since = None;
                search.since = now;
                search.relay = None;
                continue;
            }
            let silent = *search.silent_since.get_or_insert(now);
            if now.duration_since(search.since) >= CANDIDATE_PATIENCE
                && !search.candidates.is_empty()
            {
                search.at = (search.at + 1) % search.candidates.len();
                search.since = now;
            }
            let lost = now.duration_since(silent) >= RELAY_PATIENCE;
            search.relay = if lost {
                relay_for(*node, plan, &alive)
            } else {
                None
            };
        }
    }

    /// How packets to a peer travel.
    pub(super) fn path(&self, node: NodeId) -> PeerPath {
        match self.searches.get(&node) {
            Some(Search {
                relay: Some(relay), ..
            }) => PeerPath::Relay(*relay),
            Some(search) if search.silent_since.is_none() => PeerPath::Direct,
            _ => PeerPath::None,
        }
    }

    /// What the device is to be told.
    pub(super) fn device_peers(&self, plan: &MeshPlan) -> BTreeMap<NodeId, DevicePeer> {
        let mut peers: BTreeMap<NodeId, DevicePeer> = plan
            .peers
            .iter()
            .map(|(node, peer)| (*node, self.device_peer(*node, peer)))
            .collect();
        for (node, search) in &self.searches {
            let Some(relay) = search.relay else { continue };
            let moved = match peers.get_mut(node) {
                Some(peer) => std::mem::take(&mut peer.allowed),
                None => continue,
            };
            if let Some(relay) = peers.get_mut(&relay) {
                relay.allowed.extend(moved);
            }
        }
        peers
    }

    fn device_peer(&self, node: NodeId, peer: &MeshPeer) -> DevicePeer {
        let search = self.searches.get(&node);
        DevicePeer {
            public_key: peer.public_key,
            next_key: peer.next_key,
            endpoint: search.and_then(|search| search.candidates.get(search.at).copied()),
            allowed: peer.allowed.clone(),
            keepalive_s: Some(KEEPALIVE_S),
        }
    }
}

/// The node over which two nodes reach each other. Both ends choose alike, as long as both reach the same relays: the
/// other end takes packets only from where it would send its own.
fn relay_for(peer: NodeId, plan: &MeshPlan, alive: &BTreeSet<NodeId>) -> Option<NodeId> {
    plan.peers
        .iter()
        .filter(|(node, candidate)| candidate.relay && **node != peer && alive.contains(node))
        .map(|(node, _)| *node)
        .min()
}

/// The difference between what a device was told and what it is to be told.
pub(super) fn difference(
    told: &BTreeMap<NodeId, DevicePeer>,
    wanted: &BTreeMap<NodeId, DevicePeer>,
) -> PeerUpdate {
    let set = wanted
        .iter()
        .filter(|(node, peer)| told.get(node) != Some(peer))
        .map(|(node, peer)| (*node, peer.clone()))
        .collect();
    let remove = told
        .keys()
        .filter(|node| !wanted.contains_key(node))
        .copied()
        .collect();
    PeerUpdate {
        complete: false,
        set,
        remove,
    }
}
