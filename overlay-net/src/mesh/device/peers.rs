//! The peers of a device: nodes, their keys, and the addresses behind them.

use crate::netd::{DevicePeer, DevicePeerStatus, PeerUpdate};
use boringtun::noise::Tunn;
use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::x25519::{PublicKey, StaticSecret};
use ip_network::IpNetwork;
use ip_network_table::IpNetworkTable;
use ipnet::IpNet;
use shoal_model::NodeId;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Handshakes per second, of all peers together, beyond which cookies are asked for. Each is looked at twice.
const HANDSHAKES_PER_SECOND: u64 = 400;
/// A tunnel's number has so many bits on the wire; the rest counts its sessions.
const TUNNELS_MAX: usize = 1 << 24;

/// The node's own key.
pub(super) struct OwnKey {
    pub(super) secret: StaticSecret,
    pub(super) public: PublicKey,
    pub(super) limiter: Arc<RateLimiter>,
}

impl OwnKey {
    pub(super) fn new(private_key: [u8; 32]) -> Self {
        let secret = StaticSecret::from(private_key);
        let public = PublicKey::from(&secret);
        let limiter = Arc::new(RateLimiter::new(&public, HANDSHAKES_PER_SECOND));
        Self {
            secret,
            public,
            limiter,
        }
    }
}

/// The sessions with one key of a node.
pub(super) struct Tunnel {
    pub(super) tunn: Box<Tunn>,
    pub(super) key: [u8; 32],
    pub(super) group: usize,
}

/// A node: one or, while its key changes, two tunnels.
pub(super) struct Group {
    pub(super) node: NodeId,
    /// By `public_key`, by `next_key`.
    tunnels: [Option<usize>; 2],
    /// The one that packets are sent by.
    pub(super) active: usize,
    /// Where the node is.
    pub(super) endpoint: Option<SocketAddr>,
    /// Where the daemon said that it is.
    told: DevicePeer,
    /// The kernel may cut datagrams on the way there.
    pub(super) segmented: bool,
    pub(super) rx_bytes: u64,
    pub(super) tx_bytes: u64,
    /// When a handshake was begun last because there was no session.
    pub(super) tried: Option<Instant>,
}

impl Group {
    /// Both, the active one first.
    fn each(&self) -> impl Iterator<Item = usize> + use<> {
        let mut tunnels: Vec<usize> = self.tunnels.iter().flatten().copied().collect();
        tunnels.sort_by_key(|tunnel| *tunnel != self.active);
        tunnels.into_iter()
    }
}

/// All peers.
pub(super) struct Peers {
    groups: Vec<Option<Group>>,
    tunnels: Vec<Option<Tunnel>>,
    /// Numbers of tunnels that are gone, the longest gone first: a late packet for one must not meet its successor.
    free: VecDeque<usize>,
    by_node: BTreeMap<NodeId, usize>,
    by_key: HashMap<[u8; 32], usize>,
    allowed: IpNetworkTable<usize>,
}

impl Peers {
    pub(super) fn new() -> Self {
        Self {
            groups: Vec::new(),
            tunnels: Vec::new(),
            free: VecDeque::new(),
            by_node: BTreeMap::new(),
            by_key: HashMap::new(),
            allowed: IpNetworkTable::new(),
        }
    }

    /// The node behind which `address` is.
    pub(super) fn behind(&self, address: IpAddr) -> Option<usize> {
        self.allowed.longest_match(address).map(|(_, group)| *group)
    }

    pub(super) fn with_key(&self, key: &[u8; 32]) -> Option<usize> {
        self.by_key.get(key).copied()
    }

    pub(super) fn group(&mut self, group: usize) -> Option<&mut Group> {
        self.groups.get_mut(group)?.as_mut()
    }

    pub(super) fn tunnel(&mut self, tunnel: usize) -> Option<&mut Tunnel> {
        self.tunnels.get_mut(tunnel)?.as_mut()
    }

    /// A tunnel and its node.
    pub(super) fn both(&mut self, tunnel: usize) -> Option<(&mut Tunnel, &mut Group)> {
        let tunnel = self.tunnels.get_mut(tunnel)?.as_mut()?;
        let group = self.groups.get_mut(tunnel.group)?.as_mut()?;
        Some((tunnel, group))
    }

    /// The tunnel that packets to a node are sent by.
    pub(super) fn active(&mut self, group: usize) -> Option<(&mut Tunnel, &mut Group)> {
        let active = self.groups.get(group)?.as_ref()?.active;
        self.both(active)
    }

    /// The tunnels to a node, the active one first.
    pub(super) fn tunnels_of(&self, group: usize) -> impl Iterator<Item = usize> + use<> {
        let group = self.groups.get(group).and_then(Option::as_ref);
        group.map(Group::each).into_iter().flatten()
    }

    /// All tunnels, active ones and others.
    pub(super) fn tunnel_numbers(&self) -> Vec<usize> {
        let groups = self.groups.iter().flatten();
        groups.flat_map(Group::each).collect()
    }

    /// An authenticated packet came by this tunnel from `from`: the node is there. If it is by its next key, the node
    /// has begun to use that, and never goes back.
    pub(super) fn heard(&mut self, tunnel: usize, from: SocketAddr, bytes: usize) {
        if let Some((_, group)) = self.both(tunnel) {
            if group.tunnels[1] == Some(tunnel) {
                group.active = tunnel;
            }
            group.rx_bytes += bytes as u64;
            if group.endpoint != Some(from) {
                group.endpoint = Some(from);
                group.segmented = true;
            }
        }
    }

    /// Makes the change. Answers the nodes to which a handshake is to be begun.
    pub(super) fn update(&mut self, update: PeerUpdate, own: &OwnKey) -> Vec<usize> {
        let unwanted: Vec<NodeId> = if update.complete {
            let known = self.by_node.keys();
            known
                .filter(|node| !update.set.contains_key(node))
                .copied()
                .collect()
        } else {
            update.remove.into_iter().collect()
        };
        for node in unwanted {
            self.remove(node);
        }
        // A key that changes hands must be gone at its old place first.
        for (node, peer) in &update.set {
            self.drop_keys_of_others(*node, peer);
        }
        let mut fresh = Vec::new();
        for (node, peer) in update.set {
            let group = match self.by_node.get(&node) {
                Some(group) => *group,
                None => self.add_group(node, &peer),
            };
            if self.set(group, peer, own) {
                fresh.push(group);
            }
        }
        self.rebuild_allowed();
        fresh
    }

    fn remove(&mut self, node: NodeId) {
        let Some(group) = self.by_node.remove(&node) else {
            return;
        };
        if let Some(gone) = self.groups[group].take() {
            for tunnel in gone.each() {
                self.remove_tunnel(tunnel);
            }
        }
    }

    fn remove_tunnel(&mut self, tunnel: usize) {
        if let Some(gone) = self.tunnels[tunnel].take() {
            self.by_key.remove(&gone.key);
            self.free.push_back(tunnel);
        }
    }

    fn drop_keys_of_others(&mut self, node: NodeId, peer: &DevicePeer) {
        let own = self.by_node.get(&node).copied();
        for key in std::iter::once(&peer.public_key).chain(&peer.next_key) {
            let Some(tunnel) = self.by_key.get(key).copied() else {
                continue;
            };
            let holder = self.tunnels[tunnel].as_ref().map(|tunnel| tunnel.group);
            if holder != own
                && let Some(group) = holder.and_then(|group| self.groups[group].as_mut())
            {
                for place in &mut group.tunnels {
                    place.take_if(|place| *place == tunnel);
                }
                self.remove_tunnel(tunnel);
            }
        }
    }

    fn add_group(&mut self, node: NodeId, peer: &DevicePeer) -> usize {
        let group = Group {
            node,
            tunnels: [None, None],
            active: usize::MAX,
            endpoint: peer.endpoint,
            told: peer.clone(),
            segmented: true,
            rx_bytes: 0,
            tx_bytes: 0,
            tried: None,
        };
        let place = match self.groups.iter().position(Option::is_none) {
            Some(place) => place,
            None => {
                self.groups.push(None);
                self.groups.len() - 1
            }
        };
        self.groups[place] = Some(group);
        self.by_node.insert(node, place);
        place
    }

    /// Gives a node its keys and settings; answers whether it has a new tunnel to send by.
    fn set(&mut self, number: usize, peer: DevicePeer, own: &OwnKey) -> bool {
        let Some(group) = self.groups[number].as_ref() else {
            return false;
        };
        let before: Vec<usize> = group.each().collect();
        let changed_keepalive = group.told.keepalive_s != peer.keepalive_s;
        let keys = [Some(peer.public_key), peer.next_key];
        let mut fresh = false;
        let mut places = [None, None];
        for (place, key) in places.iter_mut().zip(keys) {
            let Some(key) = key else { continue };
            let present = before.iter().copied().find(|tunnel| {
                let tunnel = self.tunnels[*tunnel].as_ref();
                tunnel.is_some_and(|tunnel| tunnel.key == key)
            });
            *place = match present {
                Some(tunnel) if !changed_keepalive => Some(tunnel),
                _ => {
                    if let Some(tunnel) = present {
                        self.remove_tunnel(tunnel);
                    }
                    fresh = true;
                    self.add_tunnel(number, key, peer.keepalive_s, own)
                }
            };
        }
        for tunnel in before {
            if !places.contains(&Some(tunnel)) {
                self.remove_tunnel(tunnel);
            }
        }
        let Some(group) = self.groups[number].as_mut() else {
            return false;
        };
        group.tunnels = places;
        let known = places.contains(&Some(group.active));
        if !known {
            group.active = places[0].unwrap_or(usize::MAX);
        }
        if peer.endpoint.is_some() && peer.endpoint != group.told.endpoint {
            group.endpoint = peer.endpoint;
            group.segmented = true;
        }
        group.told = peer;
        fresh && !known
    }

    fn add_tunnel(
        &mut self,
        group: usize,
        key: [u8; 32],
        keepalive_s: Option<u16>,
        own: &OwnKey,
    ) -> Option<usize> {
        // A number is used again only after a while, unless there are very many.
        let place = match self.free.pop_front() {
            Some(place) => place,
            None if self.tunnels.len() < TUNNELS_MAX => {
                self.tunnels.push(None);
                self.tunnels.len() - 1
            }
            None => return None,
        };
        let tunn = Tunn::new(
            own.secret.clone(),
            PublicKey::from(key),
            None,
            keepalive_s,
            place as u32,
            Some(Arc::clone(&own.limiter)),
        );
        self.tunnels[place] = Some(Tunnel {
            tunn: Box::new(tunn),
            key,
            group,
        });
        self.by_key.insert(key, place);
        Some(place)
    }

    /// Uses another own key with all peers: there are no sessions any more.
    pub(super) fn set_own(&mut self, own: &OwnKey) {
        for tunnel in self.tunnels.iter_mut().flatten() {
            let limiter = Some(Arc::clone(&own.limiter));
            tunnel
                .tunn
                .set_static_private(own.secret.clone(), own.public, limiter);
        }
    }

    fn rebuild_allowed(&mut self) {
        let mut allowed = IpNetworkTable::new();
        for (number, group) in self.groups.iter().enumerate() {
            for network in group.iter().flat_map(|group| &group.told.allowed) {
                allowed.insert(to_network(*network), number);
            }
        }
        self.allowed = allowed;
    }

    pub(super) fn status(&self) -> BTreeMap<NodeId, DevicePeerStatus> {
        let groups = self.groups.iter().flatten();
        groups
            .map(|group| {
                let tunnel = self.tunnels.get(group.active).and_then(Option::as_ref);
                let age = tunnel.and_then(|tunnel| tunnel.tunn.stats().0);
                let status = DevicePeerStatus {
                    public_key: tunnel.map_or(group.told.public_key, |tunnel| tunnel.key),
                    endpoint: group.endpoint,
                    handshake_age_ms: age.map(millis),
                    rx_bytes: group.rx_bytes,
                    tx_bytes: group.tx_bytes,
                };
                (group.node, status)
            })
            .collect()
    }

    /// Nodes that are to be kept in touch with, and with which there is no session.
    pub(super) fn without_session(&self) -> Vec<usize> {
        let groups = self.groups.iter().enumerate();
        groups
            .filter_map(|(number, group)| {
                let group = group.as_ref()?;
                let tunnel = self.tunnels.get(group.active)?.as_ref()?;
                let wanted = group.told.keepalive_s.is_some() && group.endpoint.is_some();
                let none = tunnel.tunn.stats().0.is_none();
                (wanted && none).then_some(number)
            })
            .collect()
    }
}

fn millis(age: Duration) -> u64 {
    u64::try_from(age.as_millis()).unwrap_or(u64::MAX)
}

fn to_network(network: IpNet) -> IpNetwork {
    let network = network.trunc();
    IpNetwork::new_truncate(network.network(), network.prefix_len())
        .unwrap_or_else(|_| IpNetwork::from(network.network()))
}
