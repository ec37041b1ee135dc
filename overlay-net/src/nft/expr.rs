//! Expressions of rules.

use super::batch::{Attrs, Element, SetDefinition, SetValue};
use super::rule::Family;

/// A field of the packet's meta data, `enum nft_meta_keys`.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Meta {
    /// `mark`.
    Mark = 3,
    /// `iifname`.
    InputName = 6,
    /// `oifname`.
    OutputName = 7,
    /// `iiftype`.
    InputType = 8,
    /// `nfproto`.
    Family = 15,
    /// `l4proto`.
    L4Proto = 16,
}

/// How a rule ends.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Verdict {
    Accept,
    Drop,
}

/// A set without a name, which belongs to one rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AnonymousSet {
    pub(super) definition: SetDefinition,
    pub(super) elements: Vec<Element>,
}

impl AnonymousSet {
    /// The kernel puts a number in place of `%d`.
    pub(super) const fn name(&self) -> &'static str {
        match self.definition.value {
            SetValue::None => "__set%d",
            SetValue::Verdict | SetValue::Data(..) => "__map%d",
        }
    }
}

/// One expression: its kernel name and its attributes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Expr {
    pub(super) name: &'static str,
    pub(super) data: Attrs,
    /// The set that it looks into, if that has no name.
    pub(super) set: Option<AnonymousSet>,
}

const CMP_EQ: u32 = 0;
const CMP_NEQ: u32 = 1;

impl Expr {
    fn new(name: &'static str, data: Attrs) -> Self {
        Self {
            name,
            data,
            set: None,
        }
    }

    pub(crate) fn meta(key: Meta, register: u32) -> Self {
        Self::new(
            "meta",
            Attrs::default().be32(1, register).be32(2, key as u32),
        )
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
        Self::new("payload", data)
    }

    fn compare(operator: u32, register: u32, value: &[u8]) -> Self {
        let data = Attrs::default()
            .be32(1, register)
            .be32(2, operator)
            .nested(3, &Attrs::default().bytes(1, value));
        Self::new("cmp", data)
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
        Self::new("bitwise", data)
    }

    /// Connection tracking state or status bits (32 bits, host order): `NFT_CT_STATE` 0, `NFT_CT_STATUS` 2.
    pub(super) fn conntrack(key: u32, register: u32) -> Self {
        Self::new("ct", Attrs::default().be32(1, register).be32(2, key))
    }

    /// Kind of the destination address: `RTN_LOCAL` is 2.
    pub(super) fn destination_kind(register: u32) -> Self {
        const RESULT_ADDRTYPE: u32 = 3;
        const FLAG_DADDR: u32 = 2;
        let data = Attrs::default()
            .be32(1, register)
            .be32(2, RESULT_ADDRTYPE)
            .be32(3, FLAG_DADDR);
        Self::new("fib", data)
    }

    /// `ct direction`: 0 original, 1 reply.
    pub(crate) fn direction(register: u32) -> Self {
        Self::conntrack(1, register)
    }

    /// Where the connection was first sent to, before NAT.
    pub(crate) fn original_destination(ipv4: bool, register: u32) -> Self {
        const DST_IP: u32 = 20;
        const DST_IP6: u32 = 22;
        const ORIGINAL: u8 = 0;
        let key = if ipv4 { DST_IP } else { DST_IP6 };
        let data = Attrs::default()
            .be32(1, register)
            .be32(2, key)
            .bytes(3, &[ORIGINAL]);
        Self::new("ct", data)
    }

    /// `ct mark`.
    pub(crate) fn connection_mark(register: u32) -> Self {
        Self::conntrack(3, register)
    }

    /// `ct mark set` from a register.
    pub(crate) fn set_connection_mark(register: u32) -> Self {
        const KEY_MARK: u32 = 3;
        Self::new("ct", Attrs::default().be32(2, KEY_MARK).be32(4, register))
    }

    /// `meta mark set` from a register.
    pub(crate) fn set_mark(register: u32) -> Self {
        let data = Attrs::default()
            .be32(2, Meta::Mark as u32)
            .be32(3, register);
        Self::new("meta", data)
    }

    /// The sender's hardware address, 6 bytes; only where `iiftype` is Ethernet.
    pub(crate) fn source_mac(register: u32) -> Self {
        Self::payload(0, 6, 6, register)
    }

    /// A random number below `modulus`.
    pub(crate) fn random(register: u32, modulus: u32) -> Self {
        const NFT_NG_RANDOM: u32 = 1;
        let data = Attrs::default()
            .be32(1, register)
            .be32(2, modulus)
            .be32(3, NFT_NG_RANDOM);
        Self::new("numgen", data)
    }

    /// The hash of `length` bytes from a register, below `modulus`.
    pub(crate) fn hash(source: u32, length: u32, modulus: u32, register: u32) -> Self {
        let data = Attrs::default()
            .be32(1, source)
            .be32(2, register)
            .be32(3, length)
            .be32(4, modulus)
            .be32(5, 0)
            .be32(7, 0);
        Self::new("hash", data)
    }

    /// Looks a key up in a set that belongs to the rule.
    pub(crate) fn lookup_in(
        definition: SetDefinition,
        elements: Vec<Element>,
        key_register: u32,
        value_register: Option<u32>,
    ) -> Self {
        let mut data = Attrs::default().be32(2, key_register);
        if let Some(register) = value_register {
            data = data.be32(3, register);
        }
        let set = Some(AnonymousSet {
            definition,
            elements,
        });
        Self {
            name: "lookup",
            data,
            set,
        }
    }

    /// The same, for keys that are not in the set.
    pub(crate) fn lookup_absent(
        definition: SetDefinition,
        elements: Vec<Element>,
        key_register: u32,
    ) -> Self {
        const NFT_LOOKUP_F_INV: u32 = 1;
        let mut expr = Self::lookup_in(definition, elements, key_register, None);
        expr.data = expr.data.be32(5, NFT_LOOKUP_F_INV);
        expr
    }

    /// A key that is not in a named set; any other ends the rule.
    pub(crate) fn absent(set: &str, key_register: u32) -> Self {
        const NFT_LOOKUP_F_INV: u32 = 1;
        let mut expr = Self::lookup(set, key_register, None);
        expr.data = expr.data.be32(5, NFT_LOOKUP_F_INV);
        expr
    }

    /// Looks a key up in a map of verdicts and does what it says.
    pub(crate) fn verdict_of(set: &str, key_register: u32) -> Self {
        const REG_VERDICT: u32 = 0;
        Self::lookup(set, key_register, Some(REG_VERDICT))
    }

    /// Puts a key and a value into a set that learns, or starts the element's time again.
    pub(crate) fn learn(set: &str, key_register: u32, value_register: u32) -> Self {
        const NFT_DYNSET_OP_UPDATE: u32 = 1;
        let data = Attrs::default()
            .text(1, set)
            .be32(3, NFT_DYNSET_OP_UPDATE)
            .be32(4, key_register)
            .be32(5, value_register);
        Self::new("dynset", data)
    }

    /// Takes a key out of a set that learns; harmless if it is not there.
    pub(crate) fn unlearn(set: &str, key_register: u32, value_register: u32) -> Self {
        const NFT_DYNSET_OP_DELETE: u32 = 2;
        let data = Attrs::default()
            .text(1, set)
            .be32(3, NFT_DYNSET_OP_DELETE)
            .be32(4, key_register)
            .be32(5, value_register);
        Self::new("dynset", data)
    }

    /// Changes the source or the destination address of a family, and the port if there is a register for it.
    pub(crate) fn nat(kind: Nat, family: Family, address_register: u32, port: Option<u32>) -> Self {
        const NF_NAT_RANGE_PROTO_SPECIFIED: u32 = 2;
        const NF_NAT_RANGE_MAP_IPS: u32 = 1;
        let mut data = Attrs::default()
            .be32(1, kind as u32)
            .be32(2, u32::from(family.number()))
            .be32(3, address_register);
        let mut flags = NF_NAT_RANGE_MAP_IPS;
        if let Some(register) = port {
            data = data.be32(5, register);
            flags |= NF_NAT_RANGE_PROTO_SPECIFIED;
        }
        Self::new("nat", data.be32(7, flags))
    }

    /// Counts in a named counter.
    pub(crate) fn counter(name: &str) -> Self {
        const NFT_OBJECT_COUNTER: u32 = 1;
        let data = Attrs::default().be32(1, NFT_OBJECT_COUNTER).text(2, name);
        Self::new("objref", data)
    }

    /// Loads a constant.
    pub(crate) fn load(register: u32, value: &[u8]) -> Self {
        let data = Attrs::default()
            .be32(1, register)
            .nested(2, &Attrs::default().bytes(1, value));
        Self::new("immediate", data)
    }

    /// Refuses with a TCP reset.
    pub(super) fn reset() -> Self {
        const NFT_REJECT_TCP_RST: u32 = 1;
        let data = Attrs::default().be32(1, NFT_REJECT_TCP_RST).bytes(2, &[0]);
        Self::new("reject", data)
    }

    /// Refuses with the ICMP error `port unreachable` of the packet's family.
    pub(super) fn unreachable() -> Self {
        const NFT_REJECT_ICMPX_UNREACH: u32 = 2;
        const PORT_UNREACH: u8 = 1;
        let data = Attrs::default()
            .be32(1, NFT_REJECT_ICMPX_UNREACH)
            .bytes(2, &[PORT_UNREACH]);
        Self::new("reject", data)
    }

    /// The largest TCP segment that the route of the packet takes, in network order.
    pub(super) fn route_segment(register: u32) -> [Self; 2] {
        const NFT_RT_TCPMSS: u32 = 3;
        const HTON: u32 = 1;
        let load = Attrs::default().be32(1, register).be32(2, NFT_RT_TCPMSS);
        let turn = Attrs::default()
            .be32(1, register)
            .be32(2, register)
            .be32(3, HTON)
            .be32(4, 2)
            .be32(5, 2);
        [Self::new("rt", load), Self::new("byteorder", turn)]
    }

    /// Lowers the TCP option `maxseg` to what a register has.
    pub(super) fn set_segment(register: u32) -> Self {
        const TCPOPT_MAXSEG: u8 = 2;
        const NFT_EXTHDR_OP_TCPOPT: u32 = 1;
        let data = Attrs::default()
            .bytes(2, &[TCPOPT_MAXSEG])
            .be32(3, 2)
            .be32(4, 2)
            .be32(6, NFT_EXTHDR_OP_TCPOPT)
            .be32(7, register);
        Self::new("exthdr", data)
    }

    /// Looks a key up in a set; in a map, with `value_register`, loads the value. No match ends the rule.
    pub(crate) fn lookup(set: &str, key_register: u32, value_register: Option<u32>) -> Self {
        let mut data = Attrs::default().text(1, set).be32(2, key_register);
        if let Some(register) = value_register {
            data = data.be32(3, register);
        }
        Self::new("lookup", data)
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
        Self::new("nat", data)
    }

    pub(crate) fn masquerade() -> Self {
        Self::new("masq", Attrs::default())
    }

    pub(super) fn lead(verdict: &Attrs) -> Self {
        let value = Attrs::default().nested(2, verdict);
        Self::new("immediate", Attrs::default().be32(1, 0).nested(2, &value))
    }

    pub(super) fn verdict(verdict: Verdict) -> Self {
        let code: u32 = match verdict {
            Verdict::Drop => 0,
            Verdict::Accept => 1,
        };
        let value = Attrs::default().nested(2, &Attrs::default().be32(1, code));
        let data = Attrs::default().be32(1, 0).nested(2, &value);
        Self::new("immediate", data)
    }
}

/// Which address NAT changes, `enum nft_nat_types`.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Nat {
    Source = 0,
    Destination = 1,
}
