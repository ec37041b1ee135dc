//! Addresses of one subnet: who has which.

use crate::error::{EngineError, Result};
use serde::{Deserialize, Serialize};
use shoal_model::ContainerId;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;

/// The subnets that Docker's bridges take by default, in order: 172.17.0.0/16 to 172.31.0.0/16, then 192.168.0.0/16
/// in pieces of /20.
pub(crate) fn default_pools() -> Vec<Subnet> {
    let large = (17..=31).map(|second| Subnet {
        network: Ipv4Addr::new(172, second, 0, 0),
        prefix_len: 16,
    });
    let small = (0..16).map(|third| Subnet {
        network: Ipv4Addr::new(192, 168, third * 16, 0),
        prefix_len: 20,
    });
    large.chain(small).collect()
}

/// A network and the length of its prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Subnet {
    pub(crate) network: Ipv4Addr,
    pub(crate) prefix_len: u8,
}

impl Subnet {
    /// Reads `a.b.c.d/n`; gives the address as written too.
    pub(crate) fn parse(text: &str) -> Result<(Self, Ipv4Addr)> {
        let refuse = || {
            EngineError::invalid(
                format!("subnet `{text}`"),
                "expected an IPv4 address and a prefix of 8 to 30, such as 10.1.0.0/16",
            )
        };
        let (address, prefix) = text.split_once('/').ok_or_else(refuse)?;
        let address: Ipv4Addr = address.parse().map_err(|_| refuse())?;
        let prefix_len: u8 = prefix.parse().map_err(|_| refuse())?;
        if !(8..=30).contains(&prefix_len) {
            return Err(refuse());
        }
        let mut subnet = Self {
            network: address,
            prefix_len,
        };
        subnet.network = Ipv4Addr::from_bits(address.to_bits() & subnet.mask());
        Ok((subnet, address))
    }

    fn mask(&self) -> u32 {
        u32::MAX
            .checked_shl(32 - u32::from(self.prefix_len))
            .unwrap_or(0)
    }

    fn last(&self) -> u32 {
        self.network.to_bits() | !self.mask()
    }

    /// The first address that a host can have.
    pub(crate) fn first_host(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.network.to_bits() + 1)
    }

    /// Whether two subnets share an address.
    pub(crate) fn overlaps(&self, other: &Self) -> bool {
        self.network.to_bits() <= other.last() && other.network.to_bits() <= self.last()
    }
}

impl std::fmt::Display for Subnet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.network, self.prefix_len)
    }
}

/// Who has which address of a subnet.
#[derive(Debug)]
pub(crate) struct Ipam {
    subnet: Subnet,
    gateway: Ipv4Addr,
    taken: BTreeMap<Ipv4Addr, ContainerId>,
    /// The last address given out. The next one comes after it, so that a freed address rests: neighbours forget it,
    /// and the namespace that had it is cleared away.
    last: Ipv4Addr,
}

impl Ipam {
    pub(crate) fn new(subnet: Subnet, gateway: Ipv4Addr) -> Self {
        Self {
            last: subnet.network,
            subnet,
            gateway,
            taken: BTreeMap::new(),
        }
    }

    /// The next free address after the last one, from the lowest again at the end.
    pub(crate) fn allocate(&mut self, holder: ContainerId) -> Result<Ipv4Addr> {
        let first = self.subnet.network.to_bits() + 1;
        let next = self.last.to_bits() + 1;
        let free = (next..self.subnet.last())
            .chain(first..next)
            .map(Ipv4Addr::from_bits)
            .find(|address| *address != self.gateway && !self.taken.contains_key(address));
        let address = free.ok_or_else(|| EngineError::Network {
            action: "allocate an address",
            reason: format!("no available IPv4 addresses on subnet {}", self.subnet),
        })?;
        self.taken.insert(address, holder);
        self.last = address;
        Ok(address)
    }

    /// Takes the address that a container had before the engine's restart.
    pub(crate) fn adopt(&mut self, address: Ipv4Addr, holder: ContainerId) {
        self.taken.insert(address, holder);
    }

    /// Gives the container's address back.
    pub(crate) fn release(&mut self, holder: ContainerId) {
        self.taken.retain(|_, known| *known != holder);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(byte: u8) -> ContainerId {
        ContainerId::from_bytes([byte; 32])
    }

    #[test]
    fn addresses_come_in_turn_and_come_back() {
        let (subnet, gateway) = Subnet::parse("10.0.0.1/29").unwrap();
        assert_eq!(subnet.to_string(), "10.0.0.0/29");
        let mut ipam = Ipam::new(subnet, gateway);
        let got: Vec<_> = (1..=5)
            .map(|n| ipam.allocate(id(n)).unwrap().octets()[3])
            .collect();
        assert_eq!(got, [2, 3, 4, 5, 6]);
        let text = ipam.allocate(id(9)).unwrap_err().to_string();
        assert!(text.contains("10.0.0.0/29"), "{text}");
        ipam.release(id(2));
        assert_eq!(ipam.allocate(id(9)).unwrap().octets()[3], 3);
    }

    #[test]
    fn subnets_overlap_when_one_contains_the_other() {
        let subnet = |text| Subnet::parse(text).unwrap().0;
        assert!(subnet("10.0.0.0/8").overlaps(&subnet("10.200.0.0/16")));
        assert!(!subnet("172.17.0.0/16").overlaps(&subnet("172.18.0.0/16")));
        for bad in ["10.0.0.0", "10.0.0.0/33", "x/8", "10.0.0.0/7"] {
            assert!(Subnet::parse(bad).is_err(), "{bad}");
        }
    }
}
