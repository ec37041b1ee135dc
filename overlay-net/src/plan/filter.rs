//! The packet filter: pure, from the state to a whole table.
//!
//! Chains are few and static, but for one per network and those of services ([`super::balance`]); containers, nodes
//! and backends are elements of sets. Every rule that drops counts in a named counter first: the counter's name is the
//! reason that users see.

use super::marks::{
    INCOMING, INCOMING_TO_OUTGOING, KIND_MASK, OUTGOING, PUBLISHED_MASK, TUNNEL_PORT,
};
use super::{AttachedInterface, LinkNames, PlanInput, balance, marks, tunnel_mac};
use crate::nft::{
    BaseChain, ChainHook, ChainKind, ChainModel, Expr, Family, IFNAME_BYTES, Meta, Model, Nat,
    REG0, REG1, REG4, Range, Rule, SetDefinition, SetModel, SetValue, Side, Value, Verdict,
    interface,
};
use ipnet::IpNet;
use shoal_model::netstate::{NetNetwork, NetState};
use shoal_model::network::MeshAddress;
use shoal_model::spec::Protocol;
use std::collections::BTreeMap;
use std::net::IpAddr;

/// Why packets are dropped or refused: the names of the counters.
pub(crate) const STATIC_COUNTERS: [&str; 11] = [
    "daemon_port",
    "foreign_source",
    "internal",
    "isolation",
    "loopback",
    "mesh_address",
    "not_allowed",
    "refused",
    "spoofed",
    "tunnel",
    "unpublished",
];

const TYPE_ETHER: u32 = 9;
const TYPE_PROTO: u32 = 12;
const TYPE_SERVICE: u32 = 13;
const TYPE_MARK: (u32, u32) = (19, 4);
const TYPE_IFNAME: u32 = 41;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;

/// A key of several fields, each filling registers of four bytes.
const fn joined(first: (u32, u32), second: (u32, u32)) -> (u32, u32) {
    (
        first.0 << 6 | second.0,
        first.1.next_multiple_of(4) + second.1.next_multiple_of(4),
    )
}

/// The sets of the table in the making.
pub(super) struct Sets(BTreeMap<String, SetModel>);

/// The chains of the table in the making.
pub(super) struct Chains(BTreeMap<String, ChainModel>);

impl Sets {
    pub(super) fn define(&mut self, name: &str, definition: SetDefinition) {
        self.0.insert(name.to_owned(), SetModel::new(definition));
    }

    fn put(&mut self, name: &str, range: Range, value: Option<Value>) {
        if let Some(set) = self.0.get_mut(name) {
            set.elements.insert(range, value);
        }
    }

    /// An address in the set or map of its family.
    fn put_address(&mut self, name: &str, address: IpAddr, value: Option<Value>) {
        let name = format!("{name}{}", Family::of(address).suffix());
        self.put(&name, Range::one(octets(address)), value);
    }

    fn put_net(&mut self, name: &str, net: IpNet, value: Option<Value>) {
        let name = format!("{name}{}", Family::of_net(&net).suffix());
        self.put(&name, range_of(net), value);
    }

    pub(super) fn lead(&mut self, name: &str, address: IpAddr, chain: &str) {
        self.put_address(name, address, Some(Value::Goto(chain.to_owned())));
    }

    pub(super) fn lead_key(&mut self, name: &str, key: Vec<u8>, chain: &str) {
        self.put(name, Range::one(key), Some(Value::Goto(chain.to_owned())));
    }
}

impl Chains {
    pub(super) fn add(&mut self, name: &str, rules: Vec<Rule>) {
        self.0
            .insert(name.to_owned(), ChainModel { base: None, rules });
    }

    fn base(&mut self, name: &str, at: (ChainKind, ChainHook, i32), rules: Vec<Rule>) {
        let (kind, hook, priority) = at;
        let base = Some(BaseChain {
            kind,
            hook,
            priority,
        });
        self.0.insert(name.to_owned(), ChainModel { base, rules });
    }
}

pub(super) fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// From the first address of a network to before the first behind it.
pub(super) fn range_of(net: IpNet) -> Range {
    let key = octets(net.network());
    let end = match net.broadcast() {
        IpAddr::V4(last) => last
            .to_bits()
            .checked_add(1)
            .map(|next| next.to_be_bytes().to_vec()),
        IpAddr::V6(last) => last
            .to_bits()
            .checked_add(1)
            .map(|next| next.to_be_bytes().to_vec()),
    };
    Range { key, end }
}

/// Protocol and port as a key.
pub(super) fn key_of_port(protocol: Protocol, port: u16) -> Vec<u8> {
    let number = match protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => UDP,
    };
    let [high, low] = port.to_be_bytes();
    vec![number, 0, 0, 0, high, low, 0, 0]
}

pub(super) fn filter(input: &PlanInput<'_>, names: &LinkNames) -> Model {
    let mut sets = Sets(BTreeMap::new());
    let mut chains = Chains(BTreeMap::new());
    define_sets(&mut sets);
    add_guard(names, &mut chains);
    add_nat(input, names, &mut chains);
    add_marks(names, &mut chains);
    add_forward(names, &mut chains);
    add_input(names, &mut chains);
    for network in input.state.networks.values() {
        add_network(network, names, &mut sets, &mut chains);
    }
    add_nodes(input, &mut sets);
    for interface in input.interfaces() {
        for (set, range, value) in endpoint_elements(interface, input.state) {
            sets.put(&set, range, value);
        }
    }
    balance::add_services(input, &mut sets, &mut chains);
    Model {
        counters: STATIC_COUNTERS.map(str::to_owned).into(),
        sets: sets.0,
        chains: chains.0,
    }
}

fn define_sets(sets: &mut Sets) {
    let verdict = SetValue::Verdict;
    let mark = SetValue::Data(TYPE_MARK.0, TYPE_MARK.1);
    let port = (TYPE_SERVICE, 2);
    let device = (TYPE_IFNAME, IFNAME_BYTES as u32);
    for family in Family::BOTH {
        let address = family.key();
        let mut define = |name: &str, definition| {
            sets.define(&format!("{name}{}", family.suffix()), definition);
        };
        define("own", SetDefinition::of(joined(device, address)));
        define("local", SetDefinition::of(address));
        define("subnets", SetDefinition::of(address).ranges());
        define("from", SetDefinition::of(address).to(verdict).ranges());
        define("outside", SetDefinition::of(address).ranges());
        define("mesh", SetDefinition::of(address));
        define("guarded", SetDefinition::of(joined(address, port)));
        define("vip", SetDefinition::of(address).to(verdict));
        let pair = joined(address, address);
        define("hairpin", SetDefinition::of(pair).to(family.value()));
        define("returning", SetDefinition::of(joined(address, TYPE_MARK)));
    }
    let published = joined((TYPE_PROTO, 1), port);
    sets.define("published", SetDefinition::of(published).to(verdict));
    sets.define("tunnel_ends", SetDefinition::of((TYPE_ETHER, 6)).to(mark));
}

/// What an interface of a container adds to sets: its right to send, and the way back to itself.
pub(crate) fn endpoint_elements(
    at: &AttachedInterface,
    state: &NetState,
) -> Vec<(String, Range, Option<Value>)> {
    let endpoint = &at.endpoint;
    let subnets = state
        .networks
        .get(&endpoint.network_id)
        .map(|network| network.subnets);
    let ipv4 = (
        IpAddr::V4(endpoint.ipv4),
        subnets.map(|subnets| IpAddr::V4(subnets.gateway)),
    );
    let ipv6 = endpoint.ipv6.map(|address| {
        let gateway = subnets.and_then(|subnets| subnets.gateway_ipv6);
        (IpAddr::V6(address), gateway.map(IpAddr::V6))
    });
    let mut elements = Vec::new();
    for (address, gateway) in std::iter::once(ipv4).chain(ipv6) {
        let suffix = Family::of(address).suffix();
        let bytes = octets(address);
        let own = [interface(&at.host_link).to_vec(), bytes.clone()].concat();
        elements.push((format!("own{suffix}"), Range::one(own), None));
        elements.push((format!("local{suffix}"), Range::one(bytes.clone()), None));
        if let Some(gateway) = gateway {
            let pair = [bytes.clone(), bytes].concat();
            let value = Some(Value::Data(octets(gateway)));
            elements.push((format!("hairpin{suffix}"), Range::one(pair), value));
        }
    }
    elements
}

/// Before connection tracking: nobody sends from an address that is not his.
fn add_guard(names: &LinkNames, chains: &mut Chains) {
    const RAW: i32 = -300;
    let mut guard = vec![
        Rule::default()
            .input_starts(&names.container_prefix, true)
            .goes_to("from_container"),
    ];
    for device in [names.mesh.as_str(), names.tunnel.as_str(), "lo"] {
        guard.push(Rule::default().input_is(device).ends(Verdict::Accept));
    }
    for family in Family::BOTH {
        for set in ["subnets", "mesh"] {
            let set = format!("{set}{}", family.suffix());
            let foreign = Rule::default().address_in_set(family, Side::Source, &set);
            guard.push(foreign.count("foreign_source").ends(Verdict::Drop));
        }
    }
    let at = (ChainKind::Filter, ChainHook::Prerouting, RAW);
    chains.base("guard", at, guard);
    chains.add("from_container", from_container());
}

fn from_container() -> Vec<Rule> {
    let own = |family: Family| {
        Rule::default()
            .family(family)
            .with(Expr::meta(Meta::InputName, REG0))
            .address(family, Side::Source, REG4)
            .with(Expr::lookup(&format!("own{}", family.suffix()), REG0, None))
            .ends(Verdict::Accept)
    };
    // `route_localnet` is on for containers' devices, so the host's own loopback services need this wall.
    let loopback = Rule::default().address_within(Side::Destination, net("127.0.0.0/8"));
    // What an IPv6 host says of itself when an interface comes up is no attempt to be somebody else.
    let silent = |source| {
        Rule::default()
            .address_within(Side::Source, net(source))
            .protocol(ICMPV6)
            .ends(Verdict::Drop)
    };
    vec![
        loopback.count("loopback").ends(Verdict::Drop),
        own(Family::V4),
        own(Family::V6),
        silent("::/128"),
        silent("fe80::/10"),
        Rule::default().count("spoofed").ends(Verdict::Drop),
    ]
}

fn net(text: &str) -> IpNet {
    text.parse().expect("a constant network is well formed")
}

fn add_nat(input: &PlanInput<'_>, names: &LinkNames, chains: &mut Chains) {
    const DNAT: i32 = -100;
    const SNAT: i32 = 100;
    let [v4, v6] = Family::BOTH.map(|family| balance::to_vip(family, &names.container_prefix));
    let at = (ChainKind::Nat, ChainHook::Prerouting, DNAT);
    chains.base("balance", at, vec![v4, v6, balance::to_published()]);
    let at = (ChainKind::Nat, ChainHook::Output, DNAT);
    chains.base("balance_local", at, vec![balance::to_published()]);
    let at = (ChainKind::Nat, ChainHook::Postrouting, SNAT);
    let mesh = input.own_node().map(|node| node.mesh);
    chains.base("source", at, source_rules(names, mesh));
}

/// The only connections whose source is changed: those that could not be answered otherwise, and those that leave the
/// cluster.
fn source_rules(names: &LinkNames, mesh: Option<MeshAddress>) -> Vec<Rule> {
    let mut rules = Vec::new();
    for family in Family::BOTH {
        // A container that reached itself by a virtual address or a published port would not take its own address for
        // that of a client.
        let second = match family {
            Family::V4 => REG1,
            Family::V6 => REG4,
        };
        let hairpin = Rule::default()
            .family(family)
            .address(family, Side::Source, REG0)
            .address(family, Side::Destination, second)
            .with(Expr::lookup(
                &format!("hairpin{}", family.suffix()),
                REG0,
                Some(REG0),
            ))
            .with(Expr::nat(Nat::Source, family, REG0, None));
        rules.push(hairpin);
    }
    if let Some(mesh) = mesh {
        let to_mesh = |rule: Rule, family: Family| {
            let own = match family {
                Family::V4 => mesh.ipv4.octets().to_vec(),
                Family::V6 => mesh.ipv6.octets().to_vec(),
            };
            rule.with(Expr::load(REG0, &own))
                .with(Expr::nat(Nat::Source, family, REG0, None))
        };
        // Nothing but the host itself could answer 127.0.0.1.
        for device in [&names.container_prefix, &names.tunnel] {
            let rule = Rule::default()
                .output_starts(device, true)
                .address_within(Side::Source, net("127.0.0.0/8"));
            rules.push(to_mesh(rule, Family::V4));
        }
        // The backend's node takes answers to its own addresses for its own, before it looks at marks.
        for family in Family::BOTH {
            let mark = match family {
                Family::V4 => REG1,
                Family::V6 => REG4,
            };
            let rule = Rule::default()
                .output_is(&names.tunnel)
                .family(family)
                .address(family, Side::Source, REG0)
                .with(Expr::connection_mark(mark))
                .with(Expr::lookup(
                    &format!("returning{}", family.suffix()),
                    REG0,
                    None,
                ));
            rules.push(to_mesh(rule, family));
        }
    }
    for family in Family::BOTH {
        let outside = format!("outside{}", family.suffix());
        let leaving = Rule::default()
            .input_starts(&names.container_prefix, true)
            .output_starts(&names.prefix, false)
            .address_in_set(family, Side::Source, &outside);
        rules.push(leaving.masquerade());
    }
    rules
}

/// Which way the packets of connections to published ports take; that of the first is marked with its backend.
fn add_marks(names: &LinkNames, chains: &mut Chains) {
    const BEFORE_DNAT: i32 = -150;
    const AFTER_SNAT: i32 = 200;
    const ETHERNET: u16 = 1;
    let incoming = Rule::default()
        .input_is(&names.tunnel)
        .new_connection()
        .with(Expr::meta(Meta::InputType, REG0))
        .with(Expr::equals(REG0, &ETHERNET.to_ne_bytes()))
        .with(Expr::source_mac(REG0))
        .with(Expr::lookup("tunnel_ends", REG0, Some(REG0)))
        .with(Expr::set_connection_mark(REG0));
    let mut prerouting = vec![incoming];
    prerouting.extend(outgoing_marks());
    let at = (ChainKind::Filter, ChainHook::Prerouting, BEFORE_DNAT);
    chains.base("mark", at, prerouting);
    let at = (ChainKind::Route, ChainHook::Output, BEFORE_DNAT);
    chains.base("mark_local", at, outgoing_marks());
    // The mark would send the tunnel's own packet into the tunnel again.
    let unmark = Rule::default()
        .output_is(&names.tunnel)
        .with(Expr::load(REG0, &[0; 4]))
        .with(Expr::set_mark(REG0));
    let at = (ChainKind::Filter, ChainHook::Postrouting, AFTER_SNAT);
    chains.base("unmark", at, vec![unmark]);
}

/// The packets that follow the first take its way. They are marked before NAT, which looks for a way when it changes a
/// packet of the host itself, and finds none for a client at 127.0.0.1 but the marked one.
fn outgoing_marks() -> Vec<Rule> {
    let onwards = Rule::default()
        .reply(false)
        .connection_mark(KIND_MASK, OUTGOING)
        .with(Expr::connection_mark(REG0))
        .with(Expr::set_mark(REG0));
    let back = Rule::default()
        .reply(true)
        .connection_mark(KIND_MASK, INCOMING)
        .with(Expr::connection_mark(REG0))
        .with(Expr::mask(REG0, &INCOMING_TO_OUTGOING.to_ne_bytes()))
        .with(Expr::set_mark(REG0));
    vec![onwards, back]
}

/// UDP ports of daemons at the addresses of nodes.
fn guarded(family: Family, device: &str) -> Rule {
    const DESTINATION_PORT: u32 = 2;
    let second = match family {
        Family::V4 => REG1,
        Family::V6 => REG4,
    };
    Rule::default()
        .input_starts(device, true)
        .protocol(UDP)
        .family(family)
        .address(family, Side::Destination, REG0)
        .with(Expr::transport_header(DESTINATION_PORT, 2, second))
        .with(Expr::lookup(
            &format!("guarded{}", family.suffix()),
            REG0,
            None,
        ))
        .count("daemon_port")
        .ends(Verdict::Drop)
}

fn add_forward(names: &LinkNames, chains: &mut Chains) {
    let set = |name: &str, family: Family| format!("{name}{}", family.suffix());
    let mut rules = vec![
        Rule::default()
            .output_starts(&names.prefix, true)
            .clamp_segment(),
        Rule::default().established().ends(Verdict::Accept),
    ];
    // What comes by the tunnel is for a container here, or it is a mistake.
    for family in Family::BOTH {
        let here = Rule::default().input_is(&names.tunnel);
        let local = set("local", family);
        let here = here.address_in_set(family, Side::Destination, &local);
        rules.push(here.ends(Verdict::Accept));
    }
    let astray = Rule::default().input_is(&names.tunnel);
    rules.push(astray.count("tunnel").ends(Verdict::Drop));
    for family in Family::BOTH {
        rules.push(guarded(family, &names.container_prefix));
    }
    for family in Family::BOTH {
        let by_network = Rule::default()
            .family(family)
            .address(family, Side::Source, REG0)
            .with(Expr::verdict_of(&set("from", family), REG0));
        rules.push(by_network);
    }
    rules.push(
        Rule::default()
            .connection_mark(PUBLISHED_MASK, OUTGOING & PUBLISHED_MASK)
            .ends(Verdict::Accept),
    );
    for family in Family::BOTH {
        let subnets = set("subnets", family);
        let into = || Rule::default().address_in_set(family, Side::Destination, &subnets);
        // By a port that the node itself publishes.
        let published = into().destination_was_changed(true);
        rules.push(published.ends(Verdict::Accept));
        rules.push(into().count("unpublished").ends(Verdict::Drop));
    }
    let at = (ChainKind::Filter, ChainHook::Forward, 0);
    chains.base("forward", at, rules);
}

fn add_input(names: &LinkNames, chains: &mut Chains) {
    let set = |name: &str, family: Family| format!("{name}{}", family.suffix());
    let containers = || Rule::default().input_starts(&names.container_prefix, true);
    let mut rules = vec![Rule::default().established().ends(Verdict::Accept)];
    for family in Family::BOTH {
        rules.push(guarded(family, &names.container_prefix));
        let mesh = set("mesh", family);
        let to_mesh = containers().address_in_set(family, Side::Destination, &mesh);
        rules.push(to_mesh.count("mesh_address").ends(Verdict::Drop));
        // Containers of other nodes have no business with this one.
        let subnets = set("subnets", family);
        let strangers = Rule::default().input_is(&names.mesh);
        let strangers = strangers.address_in_set(family, Side::Source, &subnets);
        rules.push(strangers.count("mesh_address").ends(Verdict::Drop));
        // A node's address in the mesh is behind the mesh's device; who asks for it on another link is outside, be it a
        // container of a node that has no part in the mesh.
        let around = Rule::default()
            .input_is_not(&names.mesh)
            .input_is_not("lo")
            .address_in_set(family, Side::Destination, &mesh);
        rules.push(around.count("mesh_address").ends(Verdict::Drop));
        let outside = set("outside", family);
        let free = containers().address_in_set(family, Side::Source, &outside);
        rules.push(free.ends(Verdict::Accept));
    }
    rules.push(containers().count("internal").ends(Verdict::Drop));
    let astray = Rule::default().input_is(&names.tunnel);
    rules.push(astray.count("tunnel").ends(Verdict::Drop));
    // The tunnel's port is open on every address of the host; only the mesh may use it.
    let forged = Rule::default()
        .input_is_not(&names.mesh)
        .protocol(UDP)
        .with(Expr::transport_header(2, 2, REG0))
        .with(Expr::equals(REG0, &TUNNEL_PORT.to_be_bytes()));
    rules.push(forged.count("tunnel").ends(Verdict::Drop));
    let at = (ChainKind::Filter, ChainHook::Input, 0);
    chains.base("input", at, rules);
}

/// What comes from a network's addresses goes where its chain says.
fn add_network(network: &NetNetwork, names: &LinkNames, sets: &mut Sets, chains: &mut Chains) {
    let chain = format!("net-{}", network.id);
    let subnets =
        std::iter::once(IpNet::V4(network.subnets.ipv4)).chain(network.subnets.ipv6.map(IpNet::V6));
    let mut rules = Vec::new();
    for subnet in subnets {
        sets.put_net("subnets", subnet, None);
        sets.put_net("from", subnet, Some(Value::Goto(chain.clone())));
        if !network.internal {
            sets.put_net("outside", subnet, None);
        }
        let own = Rule::default().address_within(Side::Destination, subnet);
        rules.push(own.ends(Verdict::Accept));
    }
    if network.internal {
        rules.push(Rule::default().count("internal").ends(Verdict::Drop));
    } else {
        rules.extend(beyond_network(names));
    }
    chains.add(&chain, rules);
}

/// Beyond its own network a container reaches published ports and the world, by its own node.
fn beyond_network(names: &LinkNames) -> Vec<Rule> {
    let mut rules = vec![
        Rule::default()
            .input_starts(&names.container_prefix, false)
            .count("isolation")
            .ends(Verdict::Drop),
    ];
    for family in Family::BOTH {
        let subnets = format!("subnets{}", family.suffix());
        let mesh = format!("mesh{}", family.suffix());
        // NAT that did not begin at one of the networks' own addresses began at a published port.
        let published = Rule::default()
            .destination_was_changed(true)
            .family(family)
            .with(Expr::original_destination(family == Family::V4, REG0))
            .with(Expr::absent(&subnets, REG0));
        rules.push(published.ends(Verdict::Accept));
        for (set, reason) in [(subnets, "isolation"), (mesh, "mesh_address")] {
            let other = Rule::default().address_in_set(family, Side::Destination, &set);
            rules.push(other.count(reason).ends(Verdict::Drop));
        }
    }
    rules.push(Rule::default().ends(Verdict::Accept));
    rules
}

fn add_nodes(input: &PlanInput<'_>, sets: &mut Sets) {
    for node in input.state.nodes.values() {
        sets.put_address("mesh", IpAddr::V4(node.mesh.ipv4), None);
        sets.put_address("mesh", IpAddr::V6(node.mesh.ipv6), None);
        for at in &node.addrs {
            let ports = input.daemon_ports.iter().copied().chain([at.port()]);
            for port in ports {
                let [high, low] = port.to_be_bytes();
                let address = at.ip().to_canonical();
                let key = [octets(address), vec![high, low, 0, 0]].concat();
                let set = format!("guarded{}", Family::of(address).suffix());
                sets.put(&set, Range::one(key), None);
            }
        }
    }
    for node in input.others() {
        let number = marks::number(&node.mesh);
        let value = Value::Data((INCOMING | number).to_ne_bytes().to_vec());
        let mac = tunnel_mac(&node.mesh).to_vec();
        sets.put("tunnel_ends", Range::one(mac), Some(value));
        for at in &node.addrs {
            let address = at.ip().to_canonical();
            let mark = (OUTGOING | number).to_ne_bytes();
            let key = [octets(address), mark.to_vec()].concat();
            let set = format!("returning{}", Family::of(address).suffix());
            sets.put(&set, Range::one(key), None);
        }
    }
}
