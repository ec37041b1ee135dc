//! nftables over netlink: just the messages and expressions that our rule sets are made of.
//!
//! Format: include/uapi/linux/netfilter/nf_tables.h. A [`Batch`] is one transaction: the kernel applies all of it or
//! nothing. The `nft` program is never run; tests use it as a witness.

mod batch;
mod expr;
mod model;
mod rule;
mod socket;

pub(crate) use batch::{
    Attrs, Batch, ChainHook, ChainKind, Element, SetDefinition, SetKind, SetValue, Value,
};
pub(crate) use expr::{Expr, Meta, Nat, Verdict};
pub(crate) use model::{BaseChain, ChainModel, Model, Range, SetChanges, SetModel};
pub(crate) use rule::{Family, IFNAME_BYTES, Rule, Side, interface};
pub use socket::NftError;
pub(crate) use socket::{attributes, commit, counters, request, table_exists};

/// `NFPROTO_IPV4`.
pub(crate) const FAMILY_IPV4: u8 = 2;
/// `NFPROTO_INET`: IPv4 and IPv6 in one table.
pub(crate) const FAMILY_INET: u8 = 1;

/// Registers of 4 bytes each, `NFT_REG32_00` and on. Concatenated keys occupy neighbours.
pub(crate) const REG0: u32 = 8;
pub(crate) const REG1: u32 = 9;
pub(crate) const REG2: u32 = 10;
/// Behind an IPv6 address in [`REG0`].
pub(crate) const REG4: u32 = 12;
/// Behind two IPv6 addresses in [`REG0`].
pub(crate) const REG8: u32 = 16;
