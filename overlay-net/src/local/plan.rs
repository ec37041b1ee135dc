//! What there should be: plain data.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

/// Marks the kernel objects of one daemon: six lower-case letters or digits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceTag(String);

impl InstanceTag {
    /// Characters of a tag: with a prefix of two and a suffix of seven it fits `IFNAMSIZ` (15 characters).
    pub const LEN: usize = 6;

    /// Derives a tag from any text that names the instance for good, such as its data root.
    pub fn derive(name: &str) -> Self {
        let mut hash = fnv(name.as_bytes());
        let tag = (0..Self::LEN).map(|_| take_digit(&mut hash)).collect();
        Self(tag)
    }

    /// The tag as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Prefix of every link of this instance.
    pub(crate) fn link_prefix(&self) -> String {
        format!("s{}", self.0)
    }

    /// Prefixes of the bridges and of the links on them.
    pub(crate) fn local_prefixes(&self) -> [String; 2] {
        [format!("s{}-", self.0), format!("s{}v", self.0)]
    }

    /// The host's end of a container's interface in the overlay.
    pub(crate) fn overlay_link_name(&self, container: &str, interface: &str) -> String {
        let mut hash = fnv(format!("{container}/{interface}").as_bytes());
        let digits: String = (0..7).map(|_| take_digit(&mut hash)).collect();
        format!("s{}o{digits}", self.0)
    }

    pub(crate) fn bridge_name(&self, short: &str) -> String {
        let short: String = short.chars().take(7).collect();
        format!("s{}-{short}", self.0)
    }

    pub(crate) fn veth_name(&self, container: &str, interface: &str) -> String {
        let mut hash = fnv(format!("{container}/{interface}").as_bytes());
        let digits: String = (0..7).map(|_| take_digit(&mut hash)).collect();
        format!("s{}v{digits}", self.0)
    }

    pub(crate) fn table_name(&self) -> String {
        format!("shoal-{}", self.0)
    }
}

/// FNV-1a, 64 bits: stable between versions, unlike the standard library's hasher.
fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

fn take_digit(hash: &mut u64) -> char {
    const DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";
    let digit = DIGITS[(*hash % 36) as usize];
    *hash /= 36;
    char::from(digit)
}

/// TCP or UDP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Transport {
    /// IP protocol number.
    pub(crate) const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// A bridge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BridgeSpec {
    /// From [`super::LocalNet::bridge_name`].
    pub name: String,
    /// First address of the subnet.
    pub network: Ipv4Addr,
    /// Prefix length of the subnet.
    pub prefix_len: u8,
    /// The host's address on it.
    pub gateway: Ipv4Addr,
    /// MTU in bytes.
    pub mtu: u32,
    /// No way out of the machine.
    pub internal: bool,
    /// Hide the containers behind the host's address when they leave the bridge.
    pub masquerade: bool,
}

impl BridgeSpec {
    pub(crate) fn mask(&self) -> Ipv4Addr {
        let bits = u32::MAX
            .checked_shl(32 - u32::from(self.prefix_len))
            .unwrap_or(0);
        Ipv4Addr::from_bits(bits)
    }
}

/// An interface of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttachSpec {
    /// The container's id: names the host's end of the pair.
    pub container: String,
    /// Name inside, `eth0`.
    pub interface: String,
    /// Name of the bridge.
    pub bridge: String,
    /// Address inside.
    pub address: Ipv4Addr,
    /// Prefix length of the subnet.
    pub prefix_len: u8,
    /// Default route; none for an internal network.
    pub gateway: Option<Ipv4Addr>,
    /// Hardware address; `None`: `02:42:` and the address, as in Docker.
    pub mac: Option<[u8; 6]>,
    /// MTU in bytes.
    pub mtu: u32,
}

/// What [`super::LocalNet::attach`] made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attachment {
    /// The host's end of the pair; keep it for [`super::LocalNet::reconcile`].
    pub host_link: String,
    /// Hardware address inside.
    pub mac: [u8; 6],
}

/// A published port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortPublish {
    /// The container's id.
    pub container: String,
    /// TCP or UDP.
    pub transport: Transport,
    /// Address of the host; unspecified: all.
    pub host_ip: IpAddr,
    /// Port of the host; 0: any free one.
    pub host_port: u16,
    /// The container's address.
    pub container_ip: Ipv4Addr,
    /// The container's port.
    pub container_port: u16,
}

/// Everything that should be in force.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LocalPlan {
    /// Bridges.
    pub bridges: Vec<BridgeSpec>,
    /// Published ports, with their numbers chosen.
    pub ports: Vec<PortPublish>,
}
