//! The rules inside a container's network namespace that bring questions to its resolver.
//!
//! The resolver listens on ports of its own at 127.0.0.11, and packets to port 53 there are sent on to them. Were it
//! bound to port 53 itself, a container that binds 0.0.0.0:53 would be refused.

use super::options::RESOLVER;
use crate::nft::{self, Batch, ChainHook, ChainKind, Expr, Meta, NftError, Rule};

/// Name of the table. It lives in the container's namespace, with nobody else's.
const TABLE: &str = "shoal-dns";
/// `NF_IP_PRI_NAT_DST`.
const PRIORITY: i32 = -100;
/// Where resolver libraries ask.
const DNS_PORT: u16 = 53;

/// Puts the rules into the network namespace of the calling thread, in place of those that were there.
pub(super) fn install(udp_port: u16, tcp_port: u16) -> Result<(), NftError> {
    let mut batch = Batch::new(nft::FAMILY_IPV4, TABLE);
    batch.add_table();
    batch.delete_table();
    batch.add_table();
    batch.add_chain("output", ChainKind::Nat, ChainHook::Output, PRIORITY);
    batch.add_rule("output", &rule(libc::IPPROTO_UDP as u8, udp_port));
    batch.add_rule("output", &rule(libc::IPPROTO_TCP as u8, tcp_port));
    nft::commit(TABLE, batch)
}

/// `ip daddr 127.0.0.11 meta l4proto PROTOCOL th dport 53 dnat to 127.0.0.11:PORT`.
fn rule(protocol: u8, port: u16) -> Rule {
    const DESTINATION_ADDRESS: u32 = 16;
    const DESTINATION_PORT: u32 = 2;
    Rule::default()
        .with(Expr::network_header(DESTINATION_ADDRESS, 4, nft::REG0))
        .with(Expr::equals(nft::REG0, &RESOLVER.octets()))
        .with(Expr::meta(Meta::L4Proto, nft::REG0))
        .with(Expr::equals(nft::REG0, &[protocol]))
        .with(Expr::transport_header(DESTINATION_PORT, 2, nft::REG0))
        .with(Expr::equals(nft::REG0, &DNS_PORT.to_be_bytes()))
        .with(Expr::load(nft::REG0, &RESOLVER.octets()))
        .with(Expr::load(nft::REG1, &port.to_be_bytes()))
        .with(Expr::destination_nat(nft::REG0, nft::REG1))
}
