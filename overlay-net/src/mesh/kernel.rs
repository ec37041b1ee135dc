//! The kernel's WireGuard device, through generic netlink.

use super::genetlink::{self, Attributes, GenetlinkError, Parsed};
use crate::netd::{DevicePeer, DevicePeerStatus, DeviceSpec, DeviceStatus, PeerUpdate};
use futures_util::TryStreamExt;
use ipnet::IpNet;
use rtnetlink::{LinkMessageBuilder, LinkUnspec, LinkWireguard};
use shoal_model::NodeId;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The generic netlink family.
const FAMILY: &str = "wireguard";
/// Most bytes of peers in one message: nested attributes have lengths of 16 bits.
const PEERS_BYTES_MAX: usize = 30_000;
/// Most addresses of a peer in one message.
const ALLOWED_PER_MESSAGE_MAX: usize = 500;

// From linux/wireguard.h.
const CMD_GET_DEVICE: u8 = 0;
const CMD_SET_DEVICE: u8 = 1;
const DEVICE_IFNAME: u16 = 2;
const DEVICE_PRIVATE_KEY: u16 = 3;
const DEVICE_FLAGS: u16 = 5;
const DEVICE_LISTEN_PORT: u16 = 6;
const DEVICE_PEERS: u16 = 8;
const DEVICE_F_REPLACE_PEERS: u32 = 1;
const PEER_PUBLIC_KEY: u16 = 1;
const PEER_FLAGS: u16 = 3;
const PEER_ENDPOINT: u16 = 4;
const PEER_KEEPALIVE: u16 = 5;
const PEER_LAST_HANDSHAKE: u16 = 6;
const PEER_RX_BYTES: u16 = 7;
const PEER_TX_BYTES: u16 = 8;
const PEER_ALLOWEDIPS: u16 = 9;
const PEER_F_REMOVE_ME: u32 = 1;
const PEER_F_REPLACE_ALLOWEDIPS: u32 = 2;
const ALLOWEDIP_FAMILY: u16 = 1;
const ALLOWEDIP_ADDRESS: u16 = 2;
const ALLOWEDIP_PREFIX: u16 = 3;

/// Why the kernel did not do it.
#[derive(Debug, thiserror::Error)]
pub(super) enum KernelError {
    #[error("failed to {action} link `{name}`")]
    Link {
        action: &'static str,
        name: String,
        #[source]
        err: rtnetlink::Error,
    },
    #[error("failed to open a netlink socket")]
    Socket(#[source] io::Error),
    #[error("WireGuard refused")]
    Refused(#[source] GenetlinkError),
    #[error("the worker thread was stopped")]
    Stopped,
}

impl KernelError {
    fn errno(&self) -> Option<i32> {
        match self {
            Self::Link { err, .. } => match err {
                rtnetlink::Error::NetlinkError(message) => message.code.map(|code| -code.get()),
                _ => None,
            },
            Self::Socket(err) => err.raw_os_error(),
            Self::Refused(err) => err.errno(),
            Self::Stopped => None,
        }
    }

    /// The kernel has no WireGuard.
    pub(super) fn is_absent(&self) -> bool {
        self.errno() == Some(libc::EOPNOTSUPP)
    }

    pub(super) fn is_address_in_use(&self) -> bool {
        self.errno() == Some(libc::EADDRINUSE)
    }
}

/// One key of a peer, as the kernel knows peers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct KeyPeer {
    endpoint: Option<SocketAddr>,
    keepalive_s: u16,
    allowed: BTreeSet<IpNet>,
}

/// The device.
#[derive(Debug)]
pub(super) struct KernelDevice {
    name: String,
    told: BTreeMap<NodeId, DevicePeer>,
    /// Nodes that use their next key already.
    moved: BTreeSet<NodeId>,
}

/// What one message says of a peer.
enum Change {
    Remove,
    Set {
        peer: KeyPeer,
        /// The endpoint is news to the kernel; if not, it knows better by now.
        endpoint: bool,
    },
}

impl KernelDevice {
    /// Whether there is a link of that name that is not the kernel's WireGuard: the userspace device's.
    pub(super) async fn is_of_another_kind(name: &str) -> Result<bool, KernelError> {
        let netlink = crate::local::connect().map_err(KernelError::Socket)?;
        let found = crate::local::links::index_of(&netlink, name).await;
        let there = matches!(found, Ok(Some(_)));
        Ok(there && genetlink_call(name.to_owned(), read_device).await.is_err())
    }

    /// Makes the link if it is not there. `is_absent` of the error says that there is no WireGuard.
    pub(super) async fn open(name: &str) -> Result<Self, KernelError> {
        let failed = |err| KernelError::Link {
            action: "create",
            name: name.to_owned(),
            err,
        };
        let netlink = crate::local::connect().map_err(KernelError::Socket)?;
        let message = LinkMessageBuilder::<LinkWireguard>::new(name).build();
        match netlink.link().add(message).execute().await {
            Ok(()) => {}
            Err(err) if errno_of(&err) == Some(libc::EEXIST) => {
                // A TUN device of that name is left from a time with the other backend.
                if genetlink_call(name.to_owned(), read_device).await.is_err() {
                    delete_link(&netlink, name).await?;
                    let message = LinkMessageBuilder::<LinkWireguard>::new(name).build();
                    netlink
                        .link()
                        .add(message)
                        .execute()
                        .await
                        .map_err(failed)?;
                }
            }
            Err(err) => return Err(failed(err)),
        }
        Ok(Self {
            name: name.to_owned(),
            told: BTreeMap::new(),
            moved: BTreeSet::new(),
        })
    }

    pub(super) async fn make(&mut self, spec: DeviceSpec) -> Result<u16, KernelError> {
        let failed = |err| KernelError::Link {
            action: "set up",
            name: spec.name.clone(),
            err,
        };
        // After a removal it is made anew.
        Self::open(&self.name).await?;
        let (name, key, port) = (self.name.clone(), spec.private_key.clone(), spec.port);
        genetlink_call(name, move |name| {
            let mut attributes = Attributes::new();
            attributes.text(DEVICE_IFNAME, name);
            attributes.bytes(DEVICE_PRIVATE_KEY, &key.0);
            if port != 0 {
                attributes.bytes(DEVICE_LISTEN_PORT, &port.to_ne_bytes());
            }
            genetlink::change(FAMILY, CMD_SET_DEVICE, attributes)
        })
        .await?;
        let netlink = crate::local::connect().map_err(KernelError::Socket)?;
        let found = netlink.link().get().match_name(spec.name.clone()).execute();
        let links = found.try_collect::<Vec<_>>().await.map_err(failed)?;
        let index = links.first().map_or(0, |link| link.header.index);
        let up = LinkUnspec::new_with_index(index).mtu(spec.mtu).up().build();
        netlink.link().set(up).execute().await.map_err(failed)?;
        Ok(self.read().await?.port)
    }

    pub(super) async fn set_peers(&mut self, update: PeerUpdate) -> Result<(), KernelError> {
        let mut wanted = if update.complete {
            BTreeMap::new()
        } else {
            self.told.clone()
        };
        for node in &update.remove {
            wanted.remove(node);
        }
        wanted.extend(update.set);
        // A next key that became the key in use needs no mark any more.
        let told = &self.told;
        self.moved.retain(|node| {
            let keys = |peer: &DevicePeer| (peer.public_key, peer.next_key);
            wanted.get(node).map(keys) == told.get(node).map(keys)
        });
        let before = if update.complete {
            BTreeMap::new()
        } else {
            by_key(&self.told, &self.moved)
        };
        let after = by_key(&wanted, &self.moved);
        self.write(&before, after, update.complete).await?;
        self.told = wanted;
        Ok(())
    }

    async fn write(
        &self,
        before: &BTreeMap<[u8; 32], KeyPeer>,
        after: BTreeMap<[u8; 32], KeyPeer>,
        replace: bool,
    ) -> Result<(), KernelError> {
        let mut changes: Vec<([u8; 32], Change)> = before
            .keys()
            .filter(|key| !after.contains_key(*key))
            .map(|key| (*key, Change::Remove))
            .collect();
        for (key, peer) in after {
            let known = before.get(&key);
            if known != Some(&peer) {
                let endpoint = known.is_none_or(|known| known.endpoint != peer.endpoint);
                changes.push((key, Change::Set { peer, endpoint }));
            }
        }
        if changes.is_empty() && !replace {
            return Ok(());
        }
        genetlink_call(self.name.clone(), move |name| {
            write_peers(name, &changes, replace)
        })
        .await
    }

    pub(super) async fn status(&mut self) -> Result<DeviceStatus, KernelError> {
        let read = self.read().await?;
        self.follow_keys(&read.peers).await?;
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let peers = self.told.iter().map(|(node, peer)| {
            let next = peer.next_key.filter(|_| self.moved.contains(node));
            let key = next.unwrap_or(peer.public_key);
            let Some(found) = read.peers.get(&key) else {
                return (*node, DevicePeerStatus::default());
            };
            let age = found.handshake.map(|at| now.saturating_sub(at).as_millis());
            let status = DevicePeerStatus {
                public_key: key,
                endpoint: found.endpoint,
                handshake_age_ms: age.map(|age| u64::try_from(age).unwrap_or(u64::MAX)),
                rx_bytes: found.rx_bytes,
                tx_bytes: found.tx_bytes,
            };
            (*node, status)
        });
        Ok(DeviceStatus {
            peers: peers.collect(),
            drops: BTreeMap::new(),
        })
    }

    /// Gives the addresses of a node to its next key once there was a handshake by it.
    async fn follow_keys(
        &mut self,
        read: &BTreeMap<[u8; 32], ReadPeer>,
    ) -> Result<(), KernelError> {
        let before = self.moved.clone();
        for (node, peer) in &self.told {
            let next = peer.next_key.and_then(|key| read.get(&key));
            if next.is_some_and(|next| next.handshake.is_some()) {
                self.moved.insert(*node);
            }
        }
        if self.moved == before {
            return Ok(());
        }
        let old = by_key(&self.told, &before);
        let new = by_key(&self.told, &self.moved);
        self.write(&old, new, false).await
    }

    async fn read(&self) -> Result<ReadDevice, KernelError> {
        genetlink_call(self.name.clone(), read_device).await
    }

    pub(super) async fn remove(&mut self) -> Result<(), KernelError> {
        self.told.clear();
        self.moved.clear();
        let netlink = crate::local::connect().map_err(KernelError::Socket)?;
        delete_link(&netlink, &self.name).await
    }
}

/// The peers as the kernel sees them: one per key, addresses at the key in use.
fn by_key(
    peers: &BTreeMap<NodeId, DevicePeer>,
    moved: &BTreeSet<NodeId>,
) -> BTreeMap<[u8; 32], KeyPeer> {
    let mut keys = BTreeMap::new();
    for (node, peer) in peers {
        let active = peer.next_key.filter(|_| moved.contains(node));
        let active = active.unwrap_or(peer.public_key);
        for key in std::iter::once(peer.public_key).chain(peer.next_key) {
            let in_use = key == active;
            let entry = KeyPeer {
                endpoint: peer.endpoint,
                // By both: when both ends change their keys at the same time, neither is answered by the old one.
                keepalive_s: peer.keepalive_s.unwrap_or(0),
                allowed: if in_use {
                    peer.allowed.clone()
                } else {
                    BTreeSet::new()
                },
            };
            keys.insert(key, entry);
        }
    }
    keys
}

fn errno_of(err: &rtnetlink::Error) -> Option<i32> {
    match err {
        rtnetlink::Error::NetlinkError(message) => message.code.map(|code| -code.get()),
        _ => None,
    }
}

async fn delete_link(netlink: &rtnetlink::Handle, name: &str) -> Result<(), KernelError> {
    let failed = |err| KernelError::Link {
        action: "remove",
        name: name.to_owned(),
        err,
    };
    let mut found = netlink.link().get().match_name(name.to_owned()).execute();
    let link = match found.try_next().await {
        Ok(Some(link)) => link,
        Ok(None) => return Ok(()),
        Err(err) if errno_of(&err) == Some(libc::ENODEV) => return Ok(()),
        Err(err) => return Err(failed(err)),
    };
    netlink
        .link()
        .del(link.header.index)
        .execute()
        .await
        .map_err(failed)
}

/// Runs a conversation with the kernel on a thread that may block.
async fn genetlink_call<T: Send + 'static>(
    name: String,
    work: impl FnOnce(&str) -> Result<T, GenetlinkError> + Send + 'static,
) -> Result<T, KernelError> {
    match tokio::task::spawn_blocking(move || work(&name)).await {
        Ok(result) => result.map_err(KernelError::Refused),
        Err(_) => Err(KernelError::Stopped),
    }
}

fn write_peers(
    name: &str,
    changes: &[([u8; 32], Change)],
    mut replace: bool,
) -> Result<(), GenetlinkError> {
    let mut entries = changes
        .iter()
        .flat_map(|(key, change)| entries_of(key, change))
        .peekable();
    loop {
        let mut peers = Attributes::new();
        while let Some(entry) = entries.next_if(|entry| peers.len() + entry.len() < PEERS_BYTES_MAX)
        {
            peers.nested(0, entry);
        }
        let mut attributes = Attributes::new();
        attributes.text(DEVICE_IFNAME, name);
        if std::mem::take(&mut replace) {
            attributes.bytes(DEVICE_FLAGS, &DEVICE_F_REPLACE_PEERS.to_ne_bytes());
        }
        attributes.nested(DEVICE_PEERS, peers);
        genetlink::change(FAMILY, CMD_SET_DEVICE, attributes)?;
        if entries.peek().is_none() {
            return Ok(());
        }
    }
}

/// A change of one peer as entries, several if it has very many addresses.
fn entries_of(key: &[u8; 32], change: &Change) -> Vec<Attributes> {
    let entry = |flags: u32| {
        let mut entry = Attributes::new();
        entry.bytes(PEER_PUBLIC_KEY, key);
        entry.bytes(PEER_FLAGS, &flags.to_ne_bytes());
        entry
    };
    let (peer, endpoint) = match change {
        Change::Remove => return vec![entry(PEER_F_REMOVE_ME)],
        Change::Set { peer, endpoint } => (peer, peer.endpoint.filter(|_| *endpoint)),
    };
    let mut first = entry(PEER_F_REPLACE_ALLOWEDIPS);
    if let Some(endpoint) = endpoint {
        first.bytes(PEER_ENDPOINT, &genetlink::sockaddr_bytes(endpoint));
    }
    first.bytes(PEER_KEEPALIVE, &peer.keepalive_s.to_ne_bytes());
    let allowed: Vec<IpNet> = peer.allowed.iter().copied().collect();
    let mut entries = vec![first];
    for (index, part) in allowed.chunks(ALLOWED_PER_MESSAGE_MAX).enumerate() {
        let mut list = Attributes::new();
        for network in part {
            list.nested(0, allowed_entry(*network));
        }
        if index > 0 {
            entries.push(entry(0));
        }
        if let Some(last) = entries.last_mut() {
            last.nested(PEER_ALLOWEDIPS, list);
        }
    }
    entries
}

fn allowed_entry(network: IpNet) -> Attributes {
    let mut entry = Attributes::new();
    let (family, address) = match network.network() {
        IpAddr::V4(address) => (libc::AF_INET, address.octets().to_vec()),
        IpAddr::V6(address) => (libc::AF_INET6, address.octets().to_vec()),
    };
    entry.bytes(ALLOWEDIP_FAMILY, &(family as u16).to_ne_bytes());
    entry.bytes(ALLOWEDIP_ADDRESS, &address);
    entry.bytes(ALLOWEDIP_PREFIX, &[network.prefix_len()]);
    entry
}

#[derive(Debug, Default)]
struct ReadDevice {
    port: u16,
    peers: BTreeMap<[u8; 32], ReadPeer>,
}

#[derive(Debug, Default)]
struct ReadPeer {
    endpoint: Option<SocketAddr>,
    /// Time since the epoch.
    handshake: Option<Duration>,
    rx_bytes: u64,
    tx_bytes: u64,
}

fn read_device(name: &str) -> Result<ReadDevice, GenetlinkError> {
    let mut attributes = Attributes::new();
    attributes.text(DEVICE_IFNAME, name);
    let mut device = ReadDevice::default();
    genetlink::dump(FAMILY, CMD_GET_DEVICE, attributes, |message| {
        for (kind, value) in message {
            match kind {
                DEVICE_LISTEN_PORT => device.port = number(value) as u16,
                DEVICE_PEERS => {
                    for (_, peer) in Parsed::new(value) {
                        read_peer(&mut device, peer);
                    }
                }
                _ => {}
            }
        }
    })?;
    Ok(device)
}

fn read_peer(device: &mut ReadDevice, attributes: &[u8]) {
    let mut key = None;
    let mut peer = ReadPeer::default();
    for (kind, value) in Parsed::new(attributes) {
        match kind {
            PEER_PUBLIC_KEY => key = value.try_into().ok(),
            PEER_ENDPOINT => peer.endpoint = genetlink::sockaddr_of(value),
            PEER_LAST_HANDSHAKE if value.len() >= 16 => {
                let at = Duration::new(number(&value[..8]), number(&value[8..12]) as u32);
                peer.handshake = (!at.is_zero()).then_some(at);
            }
            PEER_RX_BYTES => peer.rx_bytes = number(value),
            PEER_TX_BYTES => peer.tx_bytes = number(value),
            _ => {}
        }
    }
    // A peer with very many addresses comes in several parts; only the first says more than its key.
    if let Some(key) = key {
        device.peers.entry(key).or_insert(peer);
    }
}

/// A number of up to eight bytes in the machine's byte order.
fn number(bytes: &[u8]) -> u64 {
    match bytes.len() {
        2 => u64::from(u16::from_ne_bytes([bytes[0], bytes[1]])),
        4 => u64::from(u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])),
        8 => bytes.try_into().map_or(0, u64::from_ne_bytes),
        _ => 0,
    }
}
