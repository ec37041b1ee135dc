//! Virtual addresses and published ports: which connection goes to which task.
//!
//! A service has a chain for each network with a virtual address, and one for each published port. Its rules pick a
//! backend per connection, at random or by the client's address, in a map that belongs to the rule; so a change of
//! backends replaces one chain and touches nothing else. A chain without backends refuses at once.

use super::PlanInput;
use super::filter::{Chains, Sets, key_of_port};
use super::marks::{self, OUTGOING, PUBLISHED};
use crate::nft::{
    Element, Expr, Family, Meta, Nat, REG0, REG4, REG8, Rule, SetDefinition, SetValue, Side, Value,
    Verdict,
};
use crate::probe::Outlook;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use shoal_model::netstate::{NetEndpoint, NetService, NetState};
use shoal_model::network::Endpoint;
use shoal_model::spec::{PortConfig, Protocol, PublishMode};
use shoal_model::{NetworkId, ServiceId};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// Clients that a service with sticky connections remembers at most, per chain and family.
const STICKY_CLIENTS_MAX: u32 = 65_536;

const TYPE_INTEGER: (u32, u32) = (4, 4);

/// Members of each service, in the order of their ids.
pub(super) type Members<'a> = BTreeMap<ServiceId, Vec<&'a NetEndpoint>>;

/// Adds everything about services.
pub(super) fn add_services(input: &PlanInput<'_>, sets: &mut Sets, chains: &mut Chains) {
    let members = members(input.state);
    let none = Vec::new();
    let mut published: BTreeMap<(Protocol, u16), Vec<Published<'_>>> = BTreeMap::new();
    for service in input.state.services.values() {
        let all = members.get(&service.id).unwrap_or(&none);
        let rotation = input
            .outlook
            .rotation(service.on_partition, all.iter().copied());
        add_vips(input.state, service, &rotation, sets, chains);
        for port in ingress_ports(service) {
            let chain = format!(
                "pub-{}-{}-{}",
                service.id,
                port.protocol.as_str(),
                port.published
            );
            add_port(input, service, port, &rotation, (&chain, sets, chains));
            let key = (port.protocol, port.published);
            published
                .entry(key)
                .or_default()
                .push(Published { port, chain });
        }
    }
    for ((protocol, port), services) in published {
        lead_to_services(protocol, port, &services, sets, chains);
    }
}

/// A port of a service, and the chain that picks its backend.
struct Published<'a> {
    port: &'a PortConfig,
    chain: String,
}

fn ingress_ports(service: &NetService) -> impl Iterator<Item = &PortConfig> {
    service
        .ports
        .iter()
        .filter(|port| port.mode == PublishMode::Ingress && port.published != 0)
}

pub(super) fn members(state: &NetState) -> Members<'_> {
    let mut members = Members::new();
    for endpoint in state.endpoints.values() {
        if let Some((service, _)) = endpoint.service {
            members.entry(service).or_default().push(endpoint);
        }
    }
    members
}

/// The address of a task that published ports lead to: that in the service's first network, or its only one.
pub(super) fn ingress_endpoint<'a>(
    service: &NetService,
    member: &'a NetEndpoint,
) -> Option<&'a Endpoint> {
    match service.networks.first() {
        Some(first) => endpoint_in(member, first.network_id),
        None => member.endpoints.first(),
    }
}

fn endpoint_in(member: &NetEndpoint, network: NetworkId) -> Option<&Endpoint> {
    member
        .endpoints
        .iter()
        .find(|endpoint| endpoint.network_id == network)
}

fn addresses(endpoint: &Endpoint) -> impl Iterator<Item = IpAddr> + use<> {
    std::iter::once(IpAddr::V4(endpoint.ipv4)).chain(endpoint.ipv6.map(IpAddr::V6))
}

fn add_vips(
    state: &NetState,
    service: &NetService,
    rotation: &[&NetEndpoint],
    sets: &mut Sets,
    chains: &mut Chains,
) {
    for vip in &service.vips {
        if !state.networks.contains_key(&vip.network_id) {
            continue;
        }
        let chain = format!("svc-{}-{}", service.id, vip.network_id);
        let backends = Backends {
            addresses: rotation
                .iter()
                .filter_map(|member| endpoint_in(member, vip.network_id))
                .flat_map(addresses)
                .collect(),
            port: None,
            sticky_s: service.sticky_s,
        };
        backends.add_chain(&chain, Vec::new(), sets, chains);
        let vips = std::iter::once(IpAddr::V4(vip.ipv4)).chain(vip.ipv6.map(IpAddr::V6));
        for vip in vips {
            sets.lead("vip", vip, &chain);
        }
    }
}

fn add_port(
    input: &PlanInput<'_>,
    service: &NetService,
    port: &PortConfig,
    rotation: &[&NetEndpoint],
    (chain, sets, chains): (&str, &mut Sets, &mut Chains),
) {
    let mut rules: Vec<Rule> = Vec::new();
    if !port.allow.is_empty() {
        for family in Family::BOTH {
            let nets = of_family(&port.allow, family);
            let rule = Rule::default().family(family);
            let rule = if nets.is_empty() {
                rule
            } else {
                rule.address(family, Side::Source, REG0)
                    .with(Expr::lookup_absent(ranges(family), nets, REG0))
            };
            rules.push(rule.count("not_allowed").ends(Verdict::Drop));
        }
    }
    let marks = marks_of(input, service, rotation);
    let backends = Backends {
        addresses: marks.keys().copied().collect(),
        port: Some(PublishedAs {
            port: port.target,
            marks,
        }),
        sticky_s: service.sticky_s,
    };
    backends.add_chain(chain, rules, sets, chains);
}

/// What marks the connections to each backend of a published port: whether it is here, or on which other node.
fn marks_of(
    input: &PlanInput<'_>,
    service: &NetService,
    rotation: &[&NetEndpoint],
) -> BTreeMap<IpAddr, u32> {
    let Outlook { node_id, .. } = input.outlook;
    let mut found = BTreeMap::new();
    for member in rotation {
        let node = input.state.nodes.get(&member.node_id);
        let mark = match node {
            _ if member.node_id == node_id => PUBLISHED,
            Some(node) => OUTGOING | marks::number(&node.mesh),
            // No way there is known yet.
            None => continue,
        };
        let endpoint = ingress_endpoint(service, member);
        let addresses = endpoint.into_iter().flat_map(addresses);
        found.extend(addresses.map(|address| (address, mark)));
    }
    found
}

/// From the port to the services' chains: to the only one at once, else by the address that the client came to.
fn lead_to_services(
    protocol: Protocol,
    port: u16,
    services: &[Published<'_>],
    sets: &mut Sets,
    chains: &mut Chains,
) {
    let key = key_of_port(protocol, port);
    if let [only] = services
        && only.port.addrs.is_empty()
    {
        sets.lead_key("published", key, &only.chain);
        return;
    }
    let name = format!("port-{}-{port}", protocol.as_str());
    let rules = services.iter().flat_map(|service| {
        let everywhere = service.port.addrs.is_empty();
        Family::BOTH.into_iter().filter_map(move |family| {
            let nets = of_family(&service.port.addrs, family);
            let rule = Rule::default().family(family);
            let rule = match (everywhere, nets.is_empty()) {
                (true, _) => rule,
                (false, true) => return None,
                (false, false) => rule
                    .address(family, Side::Destination, REG0)
                    .with(Expr::lookup_in(ranges(family), nets, REG0, None)),
            };
            Some(rule.goes_to(&service.chain))
        })
    });
    chains.add(&name, rules.collect());
    sets.lead_key("published", key, &name);
}

/// A set of ranges that belongs to one rule.
fn ranges(family: Family) -> SetDefinition {
    SetDefinition::of(family.key()).ranges()
}

/// The networks of a family as elements of a set of ranges. What overlaps or touches becomes one.
fn of_family(nets: &[IpNet], family: Family) -> Vec<Element> {
    let nets: Vec<IpNet> = match family {
        Family::V4 => {
            let nets = nets.iter().filter_map(|net| match net {
                IpNet::V4(net) => Some(net.trunc()),
                IpNet::V6(_) => None,
            });
            let nets: Vec<Ipv4Net> = nets.collect();
            Ipv4Net::aggregate(&nets)
                .into_iter()
                .map(IpNet::V4)
                .collect()
        }
        Family::V6 => {
            let nets = nets.iter().filter_map(|net| match net {
                IpNet::V4(_) => None,
                IpNet::V6(net) => Some(net.trunc()),
            });
            let nets: Vec<Ipv6Net> = nets.collect();
            Ipv6Net::aggregate(&nets)
                .into_iter()
                .map(IpNet::V6)
                .collect()
        }
    };
    nets.iter()
        .map(|net| {
            let range = super::filter::range_of(*net);
            Element {
                key: range.key,
                end: range.end,
                value: None,
            }
        })
        .collect()
}

/// Where new connections of a chain go.
struct Backends {
    addresses: Vec<IpAddr>,
    /// `None`: at the port that the client asked for, without a mark.
    port: Option<PublishedAs>,
    sticky_s: Option<u32>,
}

/// What a published port adds.
struct PublishedAs {
    /// The port of the backends.
    port: u16,
    /// Mark of the connections to each.
    marks: BTreeMap<IpAddr, u32>,
}

/// Behind all that a rule of a chain needs of registers.
const REG_MARK: u32 = 17;

impl Backends {
    fn add_chain(&self, name: &str, mut rules: Vec<Rule>, sets: &mut Sets, chains: &mut Chains) {
        for family in Family::BOTH {
            let elements = self.elements(family);
            if elements.is_empty() {
                continue;
            }
            match self.sticky_s {
                Some(seconds) if seconds > 0 => {
                    let memory = format!("stick{}-{name}", family.suffix());
                    let definition = SetDefinition {
                        learns_for_ms: Some(u64::from(seconds) * 1_000),
                        size_max: Some(STICKY_CLIENTS_MAX),
                        ..SetDefinition::of(family.key()).to(family.value())
                    };
                    sets.define(&memory, definition);
                    rules.extend(self.sticky(family, elements, &memory));
                }
                _ => rules.push(self.at_random(family, elements)),
            }
        }
        rules.push(Rule::default().protocol(6).count("refused").resets());
        rules.push(Rule::default().count("refused").refuses());
        chains.add(name, rules);
    }

    /// From numbers to addresses.
    fn elements(&self, family: Family) -> Vec<Element> {
        let addresses = self.addresses.iter();
        addresses
            .filter(|address| Family::of(**address) == family)
            .zip(0u32..)
            .map(|(address, number)| Element {
                key: number.to_ne_bytes().to_vec(),
                end: None,
                value: Some(Value::Data(super::filter::octets(*address))),
            })
            .collect()
    }

    fn at_random(&self, family: Family, elements: Vec<Element>) -> Rule {
        let pick = SetDefinition::of(TYPE_INTEGER).to(family.value());
        let rule = Rule::default()
            .family(family)
            .with(Expr::random(REG0, modulus(&elements)))
            .with(Expr::lookup_in(pick, elements, REG0, Some(REG0)));
        self.change_destination(rule, family, REG0, REG4)
    }

    /// A client goes where it went before, if that is still a backend; else to where its address leads, which is the
    /// same on every node; and that is remembered. Clients beyond what can be remembered go by their address.
    fn sticky(&self, family: Family, elements: Vec<Element>, memory: &str) -> [Rule; 3] {
        let client = || {
            Rule::default()
                .family(family)
                .address(family, Side::Source, REG0)
        };
        let valid = elements
            .iter()
            .filter_map(|element| match &element.value {
                Some(Value::Data(address)) => Some(Element {
                    key: address.clone(),
                    end: None,
                    value: None,
                }),
                Some(Value::Goto(_)) | None => None,
            })
            .collect();
        let known = client()
            .with(Expr::lookup(memory, REG0, Some(REG4)))
            .with(Expr::lookup_in(
                SetDefinition::of(family.key()),
                valid,
                REG4,
                None,
            ))
            .with(Expr::learn(memory, REG0, REG4));
        let by_address = || {
            let pick = SetDefinition::of(TYPE_INTEGER).to(family.value());
            let (bytes, modulus) = (family.address_bytes(), modulus(&elements));
            client()
                .with(Expr::hash(REG0, bytes, modulus, REG4))
                .with(Expr::lookup_in(pick, elements.clone(), REG4, Some(REG4)))
        };
        // Learning does not change what was learned before.
        let new = by_address()
            .with(Expr::unlearn(memory, REG0, REG4))
            .with(Expr::learn(memory, REG0, REG4));
        [known, new, by_address()].map(|rule| self.change_destination(rule, family, REG4, REG8))
    }

    fn change_destination(&self, rule: Rule, family: Family, address: u32, port: u32) -> Rule {
        let Some(published) = &self.port else {
            return rule.with(Expr::nat(Nat::Destination, family, address, None));
        };
        let marks = published.marks.iter();
        let marks = marks
            .filter(|(address, _)| Family::of(**address) == family)
            .map(|(address, mark)| Element {
                key: super::filter::octets(*address),
                end: None,
                value: Some(Value::Data(mark.to_ne_bytes().to_vec())),
            })
            .collect();
        let definition = SetDefinition::of(family.key()).to(SetValue::Data(19, 4));
        rule.with(Expr::lookup_in(definition, marks, address, Some(REG_MARK)))
            .with(Expr::set_connection_mark(REG_MARK))
            .with(Expr::set_mark(REG_MARK))
            .with(Expr::load(port, &published.port.to_be_bytes()))
            .with(Expr::nat(Nat::Destination, family, address, Some(port)))
    }
}

fn modulus(elements: &[Element]) -> u32 {
    u32::try_from(elements.len()).unwrap_or(u32::MAX)
}

/// `ip daddr vmap @vip4` for packets of containers.
pub(super) fn to_vip(family: Family, container_prefix: &str) -> Rule {
    Rule::default()
        .input_starts(container_prefix, true)
        .family(family)
        .address(family, Side::Destination, REG0)
        .with(Expr::verdict_of(&format!("vip{}", family.suffix()), REG0))
}

/// Published ports at the node's own addresses.
pub(super) fn to_published() -> Rule {
    const DESTINATION_PORT: u32 = 2;
    Rule::default()
        .destination_is_local()
        .with(Expr::meta(Meta::L4Proto, REG0))
        .with(Expr::transport_header(
            DESTINATION_PORT,
            2,
            crate::nft::REG1,
        ))
        .with(Expr::verdict_of("published", REG0))
}

impl Family {
    /// Type and length of an address as a key.
    pub(super) const fn key(self) -> (u32, u32) {
        match self {
            Self::V4 => (7, 4),
            Self::V6 => (8, 16),
        }
    }

    /// The same as a value.
    pub(super) const fn value(self) -> SetValue {
        let (kind, bytes) = self.key();
        SetValue::Data(kind, bytes)
    }
}
