//! The packet filter of an instance: pure, from a plan to a transaction.
//!
//! One table per instance. Chains and per-bridge rules change only with bridges; published ports are elements of two
//! maps, so that publishing a port is one small message however many there are.
//!
//! An accept here does not overrule a drop in somebody else's table: base chains of all tables are consulted.

use super::{BridgeSpec, InstanceTag, LocalPlan, PortPublish};
use crate::nft::{
    Batch, ChainHook, ChainKind, Expr, FAMILY_IPV4, Meta, REG0, REG1, REG2, Rule, SetKind, Verdict,
};
use std::net::{IpAddr, Ipv4Addr};

/// Ports published on every address: protocol . port → address . port.
const PORTS_ANY: &str = "ports";
/// Ports published on one address: address . protocol . port → address . port.
const PORTS_ADDRESS: &str = "ports_on_address";

const TYPE_IPV4: u32 = 7;
const TYPE_PROTO: u32 = 12;
const TYPE_SERVICE: u32 = 13;

/// A concatenation as nft's user space numbers it: six bits a field.
const fn concat(fields: &[u32]) -> u32 {
    let mut number = 0;
    let mut at = 0;
    while at < fields.len() {
        number = number << 6 | fields[at];
        at += 1;
    }
    number
}

/// Replaces the whole table in one transaction: no packet ever meets half of it.
pub(super) fn replace_table(tag: &InstanceTag, plan: &LocalPlan) -> Batch {
    let mut batch = Batch::new(FAMILY_IPV4, &tag.table_name());
    batch.add_table();
    batch.delete_table();
    batch.add_table();
    add_maps(&mut batch);
    add_chains(&mut batch);
    for bridge in &plan.bridges {
        add_bridge(&mut batch, bridge);
    }
    insert_ports(&mut batch, &plan.ports);
    batch
}

pub(super) fn remove_table(tag: &InstanceTag) -> Batch {
    let mut batch = Batch::new(FAMILY_IPV4, &tag.table_name());
    batch.add_table();
    batch.delete_table();
    batch
}

pub(super) fn add_ports(tag: &InstanceTag, ports: &[PortPublish]) -> Batch {
    let mut batch = Batch::new(FAMILY_IPV4, &tag.table_name());
    insert_ports(&mut batch, ports);
    batch
}

pub(super) fn remove_ports(tag: &InstanceTag, ports: &[PortPublish]) -> Batch {
    let mut batch = Batch::new(FAMILY_IPV4, &tag.table_name());
    let keys = |any: bool| -> Vec<Vec<u8>> {
        ports
            .iter()
            .filter(|port| is_any(port) == any)
            .map(key)
            .collect()
    };
    batch.delete_elements(PORTS_ANY, &keys(true));
    batch.delete_elements(PORTS_ADDRESS, &keys(false));
    batch
}

fn is_any(port: &PortPublish) -> bool {
    port.host_ip.is_unspecified()
}

/// Each field of a concatenation fills a register of four bytes.
fn key(port: &PortPublish) -> Vec<u8> {
    let mut key = Vec::with_capacity(12);
    if let (false, IpAddr::V4(address)) = (is_any(port), port.host_ip) {
        key.extend(address.octets());
    }
    key.extend([port.transport.number(), 0, 0, 0]);
    key.extend(port.host_port.to_be_bytes());
    key.extend([0, 0]);
    key
}

fn value(port: &PortPublish) -> Vec<u8> {
    let mut value = port.container_ip.octets().to_vec();
    value.extend(port.container_port.to_be_bytes());
    value.extend([0, 0]);
    value
}

fn insert_ports(batch: &mut Batch, ports: &[PortPublish]) {
    let elements = |any: bool| -> Vec<_> {
        ports
            .iter()
            .filter(|port| is_any(port) == any)
            .map(|port| (key(port), Some(value(port))))
            .collect()
    };
    batch.add_elements(PORTS_ANY, &elements(true));
    batch.add_elements(PORTS_ADDRESS, &elements(false));
}

fn add_maps(batch: &mut Batch) {
    let value = Some((concat(&[TYPE_IPV4, TYPE_SERVICE]), 8));
    let key_type = concat(&[TYPE_PROTO, TYPE_SERVICE]);
    batch.add_set(
        PORTS_ANY,
        SetKind {
            key_type,
            key_bytes: 8,
            value,
        },
    );
    let key_type = concat(&[TYPE_IPV4, TYPE_PROTO, TYPE_SERVICE]);
    batch.add_set(
        PORTS_ADDRESS,
        SetKind {
            key_type,
            key_bytes: 12,
            value,
        },
    );
}

/// The ports of the packet that is for this host, changed to a container's.
fn publish_rules(batch: &mut Batch, chain: &str) {
    const DESTINATION_ADDRESS: u32 = 16;
    const DESTINATION_PORT: u32 = 2;
    let on_address = Rule::default()
        .destination_is_local()
        .with(Expr::network_header(DESTINATION_ADDRESS, 4, REG0))
        .with(Expr::meta(Meta::L4Proto, REG1))
        .with(Expr::transport_header(DESTINATION_PORT, 2, REG2))
        .with(Expr::lookup(PORTS_ADDRESS, REG0, Some(REG0)))
        .with(Expr::destination_nat(REG0, REG1));
    batch.add_rule(chain, &on_address);
    let on_any = Rule::default()
        .destination_is_local()
        .with(Expr::meta(Meta::L4Proto, REG0))
        .with(Expr::transport_header(DESTINATION_PORT, 2, REG1))
        .with(Expr::lookup(PORTS_ANY, REG0, Some(REG0)))
        .with(Expr::destination_nat(REG0, REG1));
    batch.add_rule(chain, &on_any);
}

fn add_chains(batch: &mut Batch) {
    const RAW: i32 = -300;
    const DNAT: i32 = -100;
    const FILTER: i32 = 0;
    const SNAT: i32 = 100;
    batch.add_chain("guard", ChainKind::Filter, ChainHook::Prerouting, RAW);
    batch.add_chain("publish", ChainKind::Nat, ChainHook::Prerouting, DNAT);
    batch.add_chain("publish_local", ChainKind::Nat, ChainHook::Output, DNAT);
    batch.add_chain("forward", ChainKind::Filter, ChainHook::Forward, FILTER);
    batch.add_chain("hide", ChainKind::Nat, ChainHook::Postrouting, SNAT);
    publish_rules(batch, "publish");
    publish_rules(batch, "publish_local");
    batch.add_rule(
        "forward",
        &Rule::default().established().ends(Verdict::Accept),
    );
}

fn add_bridge(batch: &mut Batch, bridge: &BridgeSpec) {
    let name = bridge.name.as_str();
    let (network, mask) = (bridge.network, bridge.mask());
    let loopback = (Ipv4Addr::new(127, 0, 0, 0), Ipv4Addr::new(255, 0, 0, 0));
    // route_localnet is on for the bridge, so the host's own loopback services need this wall.
    let to_loopback = Rule::default()
        .input_is(name)
        .destination_in(loopback.0, loopback.1);
    batch.add_rule("guard", &to_loopback.ends(Verdict::Drop));
    // Only published ports are reachable from beyond the bridge, other bridges included.
    let from_beyond = Rule::default()
        .output_is(name)
        .input_is_not(name)
        .destination_was_changed(false);
    batch.add_rule("forward", &from_beyond.ends(Verdict::Drop));
    if bridge.internal {
        let to_beyond = Rule::default().input_is(name).output_is_not(name);
        batch.add_rule("forward", &to_beyond.ends(Verdict::Drop));
    }
    if bridge.masquerade {
        let leaving = Rule::default().source_in(network, mask).output_is_not(name);
        batch.add_rule("hide", &leaving.masquerade());
    }
    // A container that reaches a neighbour through the host's published port must get its answers through the host
    // as well; and nothing on the bridge could answer 127.0.0.1.
    let hairpin = Rule::default()
        .output_is(name)
        .source_in(network, mask)
        .destination_was_changed(true);
    batch.add_rule("hide", &hairpin.masquerade());
    let from_loopback = Rule::default()
        .output_is(name)
        .source_in(loopback.0, loopback.1);
    batch.add_rule("hide", &from_loopback.masquerade());
}
