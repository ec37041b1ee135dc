//! Expressions of rules.

use super::batch::Attrs;

/// A field of the packet's meta data, `enum nft_meta_keys`.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Meta {
    /// `iifname`.
    InputName = 6,
    /// `oifname`.
    OutputName = 7,
    /// `l4proto`.
    L4Proto = 16,
}

/// How a rule ends.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Verdict {
    Accept,
    Drop,
}

/// One expression: its kernel name and its attributes.
pub(crate) struct Expr {
    name: &'static str,
    data: Attrs,
}

const CMP_EQ: u32 = 0;
const CMP_NEQ: u32 = 1;

/// Length of interface names in nftables: `IFNAMSIZ`.
const IFNAME_BYTES: usize = 16;

impl Expr {
    pub(crate) fn meta(key: Meta, register: u32) -> Self {
        Self {
            name: "meta",
            data: Attrs::default().be32(1, register).be32(2, key as u32),
        }
    }

    /// Bytes of the network header.
    pub(crate) fn network_header(offset: u32, length: u32, register: u32) -> Self {
        Self::payload(1, offset, length, register)
    }

    /// Bytes of the transport header.
    pub(crate) fn transport_header(offset: u32, length: u32, register: u32) -> Self {
        Self::payload(2, offset, length, register)
    }

    fn payload(base: u32, offset: u32, length: u32, register: u32) -> Self {
        let data = Attrs::default()
            .be32(1, register)
            .be32(2, base)
            .be32(3, offset)
            .be32(4, length);
        Self {
            name: "payload",
            data,
        }
    }

    fn compare(operator: u32, register: u32, value: &[u8]) -> Self {
        let data = Attrs::default()
            .be32(1, register)
            .be32(2, operator)
            .nested(3, &Attrs::default().bytes(1, value));
        Self { name: "cmp", data }
    }

    pub(crate) fn equals(register: u32, value: &[u8]) -> Self {
        Self::compare(CMP_EQ, register, value)
    }

    pub(crate) fn differs(register: u32, value: &[u8]) -> Self {
        Self::compare(CMP_NEQ, register, value)
    }

    /// Keeps the bits of `mask`.
    pub(crate) fn mask(register: u32, mask: &[u8]) -> Self {
        let length = u32::try_from(mask.len()).unwrap_or(u32::MAX);
        let data = Attrs::default()
            .be32(1, register)
            .be32(2, register)
            .be32(3, length)
            .nested(4, &Attrs::default().bytes(1, mask))
            .nested(5, &Attrs::default().bytes(1, &vec![0; mask.len()]));
        Self {
            name: "bitwise",
            data,
        }
    }

    /// Connection tracking state or status bits (32 bits, host order): `NFT_CT_STATE` 0, `NFT_CT_STATUS` 2.
    fn conntrack(key: u32, register: u32) -> Self {
        Self {
            name: "ct",
            data: Attrs::default().be32(1, register).be32(2, key),
        }
    }

    /// Kind of the destination address: `RTN_LOCAL` is 2.
    fn destination_kind(register: u32) -> Self {
        const RESULT_ADDRTYPE: u32 = 3;
        const FLAG_DADDR: u32 = 2;
        let data = Attrs::default()
            .be32(1, register)
            .be32(2, RESULT_ADDRTYPE)
            .be32(3, FLAG_DADDR);
        Self { name: "fib", data }
    }

    /// Looks a key up in a set; in a map, with `value_register`, loads the value. No match ends the rule.
    pub(crate) fn lookup(set: &str, key_register: u32, value_register: Option<u32>) -> Self {
        let mut data = Attrs::default().text(1, set).be32(2, key_register);
        if let Some(register) = value_register {
            data = data.be32(3, register);
        }
        Self {
            name: "lookup",
            data,
        }
    }

    /// Changes the destination to the address and the port in two registers.
    pub(crate) fn destination_nat(address_register: u32, port_register: u32) -> Self {
        const NAT_DNAT: u32 = 1;
        const NF_NAT_RANGE_PROTO_SPECIFIED: u32 = 2;
        const NF_NAT_RANGE_MAP_IPS: u32 = 1;
        let data = Attrs::default()
            .be32(1, NAT_DNAT)
            .be32(2, u32::from(super::FAMILY_IPV4))
            .be32(3, address_register)
            .be32(5, port_register)
            .be32(7, NF_NAT_RANGE_MAP_IPS | NF_NAT_RANGE_PROTO_SPECIFIED);
        Self { name: "nat", data }
    }

    /// Loads a constant.
    pub(crate) fn load(register: u32, value: &[u8]) -> Self {
        let data = Attrs::default()
            .be32(1, register)
            .nested(2, &Attrs::default().bytes(1, value));
        Self {
            name: "immediate",
            data,
        }
    }

    pub(crate) fn masquerade() -> Self {
        Self {
            name: "masq",
            data: Attrs::default(),
        }
    }

    fn verdict(verdict: Verdict) -> Self {
        let code: u32 = match verdict {
            Verdict::Drop => 0,
            Verdict::Accept => 1,
        };
        let value = Attrs::default().nested(2, &Attrs::default().be32(1, code));
        let data = Attrs::default().be32(1, 0).nested(2, &value);
        Self {
            name: "immediate",
            data,
        }
    }
}

/// A rule: expressions from left to right, with the idioms that our chains use.
#[derive(Default)]
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

    pub(crate) fn masquerade(self) -> Self {
        self.with(Expr::masquerade())
    }

    pub(crate) fn ends(self, verdict: Verdict) -> Self {
        self.with(Expr::verdict(verdict))
    }

    pub(super) fn attributes(&self) -> Attrs {
        self.0.iter().fold(Attrs::default(), |list, expr| {
            list.nested(
                1,
                &Attrs::default().text(1, expr.name).nested(2, &expr.data),
            )
        })
    }
}

fn interface(name: &str) -> [u8; IFNAME_BYTES] {
    let mut bytes = [0; IFNAME_BYTES];
    let length = name.len().min(IFNAME_BYTES - 1);
    bytes[..length].copy_from_slice(&name.as_bytes()[..length]);
    bytes
}
