//! nftables over netlink: just the messages and expressions that our rule sets are made of.
//!
//! Format: include/uapi/linux/netfilter/nf_tables.h. A [`Batch`] is one transaction: the kernel applies all of it or
//! nothing. The `nft` program is never run; tests use it as a witness.

mod batch;
mod expr;
mod socket;

pub(crate) use batch::{Batch, ChainHook, ChainKind, SetKind};
pub(crate) use expr::{Expr, Meta, Rule, Verdict};
pub use socket::NftError;
pub(crate) use socket::commit;

/// `NFPROTO_IPV4`.
pub(crate) const FAMILY_IPV4: u8 = 2;

/// Registers of 4 bytes each, `NFT_REG32_00` and on. Concatenated keys occupy neighbours.
pub(crate) const REG0: u32 = 8;
pub(crate) const REG1: u32 = 9;
pub(crate) const REG2: u32 = 10;
