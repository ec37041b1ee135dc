//! Rules: rows of expressions.

use super::batch::{Attrs, verdict_goto};
use super::expr::{AnonymousSet, Expr, Meta, Verdict};
use ipnet::IpNet;
use std::net::IpAddr;

/// Length of interface names in nftables: `IFNAMSIZ`.
pub(crate) const IFNAME_BYTES: usize = 16;

/// Which address of a packet a rule looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Source,
    Destination,
}

/// IPv4 or IPv6, as rules see them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
}

impl Family {
    pub(crate) const BOTH: [Self; 2] = [Self::V4, Self::V6];

    /// `NFPROTO_IPV4` or `NFPROTO_IPV6`.
    pub(crate) const fn number(self) -> u8 {
        match self {
            Self::V4 => 2,
            Self::V6 => 10,
        }
    }

    pub(crate) const fn address_bytes(self) -> u32 {
        match self {
            Self::V4 => 4,
            Self::V6 => 16,
        }
    }

    /// What the names of sets of this family end with.
    pub(crate) const fn suffix(self) -> &'static str {
        match self {
            Self::V4 => "4",
            Self::V6 => "6",
        }
    }

    pub(crate) const fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    pub(crate) const fn of_net(net: &IpNet) -> Self {
        match net {
            IpNet::V4(_) => Self::V4,
            IpNet::V6(_) => Self::V6,
        }
    }

    const fn offset(self, side: Side) -> u32 {
        match (self, side) {
            (Self::V4, Side::Source) => 12,
            (Self::V4, Side::Destination) => 16,
            (Self::V6, Side::Source) => 8,
            (Self::V6, Side::Destination) => 24,
        }
    }
}

/// A rule: expressions from left to right, with the idioms that our chains use.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Rule(Vec<Expr>);

impl Rule {
    pub(crate) fn with(mut self, expr: Expr) -> Self {
        self.0.push(expr);
        self
    }

    pub(crate) fn input_is(self, name: &str) -> Self {
        self.with(Expr::meta(Meta::InputName, super::REG0))
            .with(Expr::equals(super::REG0, &interface(name)))
    }

    pub(crate) fn input_is_not(self, name: &str) -> Self {
        self.with(Expr::meta(Meta::InputName, super::REG0))
            .with(Expr::differs(super::REG0, &interface(name)))
    }

    pub(crate) fn output_is(self, name: &str) -> Self {
        self.with(Expr::meta(Meta::OutputName, super::REG0))
            .with(Expr::equals(super::REG0, &interface(name)))
    }

    pub(crate) fn output_is_not(self, name: &str) -> Self {
        self.with(Expr::meta(Meta::OutputName, super::REG0))
            .with(Expr::differs(super::REG0, &interface(name)))
    }

    /// `ct state established,related`.
    pub(crate) fn established(self) -> Self {
        const ESTABLISHED_RELATED: u32 = 1 << 1 | 1 << 2;
        self.with(Expr::conntrack(0, super::REG0))
            .with(Expr::mask(super::REG0, &ESTABLISHED_RELATED.to_ne_bytes()))
            .with(Expr::differs(super::REG0, &[0; 4]))
    }

    /// `ct status dnat`, or its contrary.
    pub(crate) fn destination_was_changed(self, changed: bool) -> Self {
        const IPS_DST_NAT: u32 = 1 << 5;
        let rule = self
            .with(Expr::conntrack(2, super::REG0))
            .with(Expr::mask(super::REG0, &IPS_DST_NAT.to_ne_bytes()));
        if changed {
            rule.with(Expr::differs(super::REG0, &[0; 4]))
        } else {
            rule.with(Expr::equals(super::REG0, &[0; 4]))
        }
    }

    /// `fib daddr type local`.
    pub(crate) fn destination_is_local(self) -> Self {
        const RTN_LOCAL: u32 = 2;
        self.with(Expr::destination_kind(super::REG0))
            .with(Expr::equals(super::REG0, &RTN_LOCAL.to_ne_bytes()))
    }

    /// `ip saddr NET/LEN`.
    pub(crate) fn source_in(self, network: std::net::Ipv4Addr, mask: std::net::Ipv4Addr) -> Self {
        self.address_in(12, network, mask)
    }

    /// `ip daddr NET/LEN`.
    pub(crate) fn destination_in(
        self,
        network: std::net::Ipv4Addr,
        mask: std::net::Ipv4Addr,
    ) -> Self {
        self.address_in(16, network, mask)
    }

    fn address_in(
        self,
        offset: u32,
        network: std::net::Ipv4Addr,
        mask: std::net::Ipv4Addr,
    ) -> Self {
        self.with(Expr::network_header(offset, 4, super::REG0))
            .with(Expr::mask(super::REG0, &mask.octets()))
            .with(Expr::equals(super::REG0, &network.octets()))
    }

    /// `meta nfproto`.
    pub(crate) fn family(self, family: Family) -> Self {
        self.with(Expr::meta(Meta::Family, super::REG0))
            .with(Expr::equals(super::REG0, &[family.number()]))
    }

    /// Loads an address of the packet; only after [`Rule::family`].
    pub(crate) fn address(self, family: Family, side: Side, register: u32) -> Self {
        let offset = family.offset(side);
        self.with(Expr::network_header(
            offset,
            family.address_bytes(),
            register,
        ))
    }

    /// The interface that it comes in by has a name that starts with `prefix`, or has not.
    pub(crate) fn input_starts(self, prefix: &str, so: bool) -> Self {
        self.with(Expr::meta(Meta::InputName, super::REG0))
            .with(starts(prefix, so))
    }

    /// The interface that it leaves by has a name that starts with `prefix`, or has not.
    pub(crate) fn output_starts(self, prefix: &str, so: bool) -> Self {
        self.with(Expr::meta(Meta::OutputName, super::REG0))
            .with(starts(prefix, so))
    }

    /// `ct state new`.
    pub(crate) fn new_connection(self) -> Self {
        const NEW: u32 = 1 << 3;
        self.with(Expr::conntrack(0, super::REG0))
            .with(Expr::mask(super::REG0, &NEW.to_ne_bytes()))
            .with(Expr::differs(super::REG0, &[0; 4]))
    }

    /// `ct direction reply`, or original.
    pub(crate) fn reply(self, reply: bool) -> Self {
        self.with(Expr::direction(super::REG0))
            .with(Expr::equals(super::REG0, &[u8::from(reply)]))
    }

    /// `ct mark & MASK == VALUE`.
    pub(crate) fn connection_mark(self, mask: u32, value: u32) -> Self {
        self.with(Expr::connection_mark(super::REG0))
            .with(Expr::mask(super::REG0, &mask.to_ne_bytes()))
            .with(Expr::equals(super::REG0, &value.to_ne_bytes()))
    }

    /// `meta l4proto`.
    pub(crate) fn protocol(self, number: u8) -> Self {
        self.with(Expr::meta(Meta::L4Proto, super::REG0))
            .with(Expr::equals(super::REG0, &[number]))
    }

    /// The packet's address is in the network.
    pub(crate) fn address_within(self, side: Side, net: IpNet) -> Self {
        let family = Family::of_net(&net);
        let (network, mask) = match net {
            IpNet::V4(net) => (
                net.network().octets().to_vec(),
                net.netmask().octets().to_vec(),
            ),
            IpNet::V6(net) => (
                net.network().octets().to_vec(),
                net.netmask().octets().to_vec(),
            ),
        };
        self.family(family)
            .address(family, side, super::REG0)
            .with(Expr::mask(super::REG0, &mask))
            .with(Expr::equals(super::REG0, &network))
    }

    /// The packet's address is in a named set.
    pub(crate) fn address_in_set(self, family: Family, side: Side, set: &str) -> Self {
        self.family(family)
            .address(family, side, super::REG0)
            .with(Expr::lookup(set, super::REG0, None))
    }

    /// `tcp flags syn / syn,rst tcp option maxseg size set rt mtu`.
    pub(crate) fn clamp_segment(self) -> Self {
        const SYN: u8 = 2;
        const RST: u8 = 4;
        const FLAGS: u32 = 13;
        let [load, turn] = Expr::route_segment(super::REG0);
        self.protocol(6)
            .with(Expr::transport_header(FLAGS, 1, super::REG0))
            .with(Expr::mask(super::REG0, &[SYN | RST]))
            .with(Expr::equals(super::REG0, &[SYN]))
            .with(load)
            .with(turn)
            .with(Expr::set_segment(super::REG0))
    }

    pub(crate) fn count(self, counter: &str) -> Self {
        self.with(Expr::counter(counter))
    }

    pub(crate) fn goes_to(self, chain: &str) -> Self {
        self.with(Expr::lead(&verdict_goto(chain)))
    }

    /// Refuses TCP connections with a reset.
    pub(crate) fn resets(self) -> Self {
        self.protocol(6).with(Expr::reset())
    }

    /// Refuses with `port unreachable`.
    pub(crate) fn refuses(self) -> Self {
        self.with(Expr::unreachable())
    }

    pub(super) fn anonymous_sets(&self) -> impl Iterator<Item = &AnonymousSet> {
        self.0.iter().filter_map(|expr| expr.set.as_ref())
    }

    pub(crate) fn masquerade(self) -> Self {
        self.with(Expr::masquerade())
    }

    pub(crate) fn ends(self, verdict: Verdict) -> Self {
        self.with(Expr::verdict(verdict))
    }

    /// With the ids of its anonymous sets, in their order.
    pub(super) fn attributes(&self, set_ids: &[u32]) -> Attrs {
        let mut ids = set_ids.iter();
        self.0.iter().fold(Attrs::default(), |list, expr| {
            let data = match (&expr.set, ids.len()) {
                (Some(set), 1..) => {
                    let id = ids.next().copied().unwrap_or_default();
                    &expr.data.clone().text(1, set.name()).be32(4, id)
                }
                _ => &expr.data,
            };
            list.nested(1, &Attrs::default().text(1, expr.name).nested(2, data))
        })
    }
}

/// Compares the beginning of an interface's name.
fn starts(prefix: &str, so: bool) -> Expr {
    if so {
        Expr::equals(super::REG0, prefix.as_bytes())
    } else {
        Expr::differs(super::REG0, prefix.as_bytes())
    }
}

/// The name of an interface as keys of sets have it.
pub(crate) fn interface(name: &str) -> [u8; IFNAME_BYTES] {
    let mut bytes = [0; IFNAME_BYTES];
    let length = name.len().min(IFNAME_BYTES - 1);
    bytes[..length].copy_from_slice(&name.as_bytes()[..length]);
    bytes
}
