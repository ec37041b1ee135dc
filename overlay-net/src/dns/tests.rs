//! Names as tables: a network state in a few lines of text, a question, and the answer.

use super::message::{Outcome, Reply, Transport, reply_to};
use super::table::DnsTable;
use super::zone::Zone;
use crate::probe::Outlook;
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use proptest::prelude::*;
use shoal_model::netstate::{EndpointId, NetEndpoint, NetNetwork, NetService, NetState};
use shoal_model::network::{Endpoint, NetworkAttachment, ServiceVip, Subnets};
use shoal_model::spec::{EndpointMode, OnPartition};
use shoal_model::{ContainerId, NetworkId, NodeId, ServiceId, TaskId};
use std::collections::BTreeSet;
use std::str::FromStr;

/// Two networks, services of both modes, a global one, containers.
const STATE: &str = "
network backend 10.0.0.0/24 fd00:0:0:1::/64
network Front 10.0.1.0/24
network vault 10.0.2.0/24 internal
network ingress 10.0.3.0/24
service web backend vip=10.0.0.2 www
service db backend dnsrr
service empty backend vip=10.0.0.3
service gone backend dnsrr
service Mixed backend vip=10.0.0.4
service agent front dnsrr
service open ingress vip=10.0.3.2
task web 1 n1 10.0.0.10
task web 2 n2 10.0.0.11
task web 3 n3 10.0.0.12 out
task db 1 n1 10.0.0.20
task db 2 n2 10.0.0.21
task db 3 n3 10.0.0.22
task agent.node1 0 n1 10.0.1.5
task agent.node2 0 n2 10.0.1.6
container box n1 backend 10.0.0.30 toolbox
container pair n2 backend 10.0.0.31 web-debug
task open 1 n1 10.0.3.3
container keys n1 vault 10.0.2.7
";

fn node(text: &str) -> NodeId {
    NodeId::from_bits(text.trim_start_matches('n').parse().unwrap())
}

fn network_id(name: &str) -> NetworkId {
    let bits = name
        .to_lowercase()
        .bytes()
        .fold(7u128, |bits, byte| bits * 251 + u128::from(byte));
    NetworkId::from_bits(bits)
}

fn service_id(name: &str) -> ServiceId {
    ServiceId::from_bits(network_id(name).bits())
}

/// The state that `text` describes. Tasks are numbered from 1 in their order, containers too.
fn state(text: &str) -> NetState {
    let mut state = NetState::default();
    for (number, line) in text.lines().enumerate() {
        let words: Vec<_> = line.split_whitespace().collect();
        match words.as_slice() {
            [] => {}
            ["network", name, ipv4, rest @ ..] => add_network(&mut state, name, ipv4, rest),
            ["service", name, network, mode, aliases @ ..] => {
                add_service(&mut state, name, network, mode, aliases);
            }
            ["task", name, slot, on, ipv4, rest @ ..] => {
                let service = name.split('.').next().unwrap();
                let slot: u64 = slot.parse().unwrap();
                let name = if slot == 0 {
                    (*name).to_owned()
                } else {
                    format!("{name}.{slot}")
                };
                let network_id = state.services[&service_id(service)].networks[0].network_id;
                let endpoint = NetEndpoint {
                    id: EndpointId::Task(TaskId::from_bits(number as u128)),
                    node_id: node(on),
                    service: Some((service_id(service), slot)),
                    name,
                    endpoints: vec![end(&state, network_id, ipv4, &[])],
                    in_rotation: rest != ["out"],
                };
                state.endpoints.insert(endpoint.id, endpoint);
            }
            ["container", name, on, network, ipv4, aliases @ ..] => {
                let endpoint = NetEndpoint {
                    id: EndpointId::Container(ContainerId::from_bytes([number as u8; 32])),
                    node_id: node(on),
                    service: None,
                    name: (*name).to_owned(),
                    endpoints: vec![end(&state, network_id(network), ipv4, aliases)],
                    in_rotation: true,
                };
                state.endpoints.insert(endpoint.id, endpoint);
            }
            other => panic!("not understood: {other:?}"),
        }
    }
    state
}

fn add_network(state: &mut NetState, name: &str, ipv4: &str, rest: &[&str]) {
    let ipv4 = ipnet::Ipv4Net::from_str(ipv4).unwrap();
    let network = NetNetwork {
        id: network_id(name),
        name: name.to_owned(),
        subnets: Subnets {
            ipv4,
            gateway: ipv4.hosts().next().unwrap(),
            range: ipv4,
            ipv6: rest.iter().find_map(|word| word.parse().ok()),
            gateway_ipv6: None,
        },
        internal: rest.contains(&"internal"),
        ingress: name == "ingress",
        mtu: None,
    };
    state.networks.insert(network.id, network);
}

fn add_service(state: &mut NetState, name: &str, network: &str, mode: &str, aliases: &[&str]) {
    let network_id = network_id(network);
    let subnets = state.networks[&network_id].subnets;
    let vip = mode.strip_prefix("vip=").map(|ipv4| ServiceVip {
        network_id,
        ipv4: ipv4.parse().unwrap(),
        ipv6: subnets.ipv6_of(ipv4.parse().unwrap()),
    });
    let service = NetService {
        id: service_id(name),
        name: name.to_owned(),
        mode: match vip {
            Some(_) => EndpointMode::Vip,
            None => EndpointMode::DnsRoundRobin,
        },
        sticky_s: None,
        networks: vec![NetworkAttachment {
            network_id,
            aliases: aliases.iter().map(|alias| (*alias).to_owned()).collect(),
        }],
        vips: vip.into_iter().collect(),
        ports: Vec::new(),
        on_partition: OnPartition::Stop,
    };
    state.services.insert(service.id, service);
}

fn end(state: &NetState, network_id: NetworkId, ipv4: &str, aliases: &[&str]) -> Endpoint {
    let ipv4 = ipv4.parse().unwrap();
    Endpoint {
        network_id,
        ipv4,
        ipv6: state.networks[&network_id].subnets.ipv6_of(ipv4),
        aliases: aliases.iter().map(|alias| (*alias).to_owned()).collect(),
    }
}

/// How node n1 sees the state.
struct View<'v> {
    suspects: &'v [&'v str],
    leased: bool,
    /// The networks of the container that asks.
    networks: &'v [&'v str],
}

const BACKEND: View<'_> = View {
    suspects: &[],
    leased: true,
    networks: &["backend"],
};

impl View<'_> {
    fn zone(&self, state: &NetState) -> Zone {
        let suspects: BTreeSet<_> = self.suspects.iter().map(|name| node(name)).collect();
        let outlook = Outlook {
            node_id: node("n1"),
            suspects: &suspects,
            leased: self.leased,
        };
        let mut zone = Zone::default();
        zone.apply(DnsTable::of(state, &outlook).complete());
        zone
    }

    fn ask(&self, packet: &[u8], transport: Transport) -> Reply {
        let networks: Vec<_> = self.networks.iter().map(|name| network_id(name)).collect();
        let zone = self.zone(&state(STATE));
        reply_to(&zone, &networks, packet, transport, &mut |addresses| {
            addresses.sort()
        })
    }

    /// `question` is `NAME TYPE`. The answer: sorted addresses, a name, or a word for what there is instead.
    fn check(&self, question: &str, expected: &str) {
        let (name, kind) = question.split_once(' ').unwrap();
        let reply = self.ask(&packet(name, kind, None), Transport::Udp);
        assert_eq!(shown(&reply), expected, "{question}");
    }
}

fn packet(name: &str, kind: &str, payload: Option<u16>) -> Vec<u8> {
    let mut message = Message::new(4711, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    let name = Name::from_ascii(format!("{name}.")).unwrap();
    message.add_query(Query::query(name, RecordType::from_str(kind).unwrap()));
    if let Some(payload) = payload {
        let mut edns = Edns::new();
        edns.set_max_payload(payload).set_dnssec_ok(true);
        message.set_edns(edns);
    }
    message.to_vec().unwrap()
}

fn shown(reply: &Reply) -> String {
    let bytes = match reply {
        Reply::Answer(bytes, _) => bytes,
        Reply::Forward { .. } => return "outside".to_owned(),
        Reply::Nothing => return "silence".to_owned(),
    };
    let answer = Message::from_vec(bytes).unwrap();
    assert_eq!(answer.metadata.id, 4711);
    assert!(answer.metadata.recursion_available);
    if answer.metadata.response_code != ResponseCode::NoError {
        return format!("{:?}", answer.metadata.response_code);
    }
    if answer.answers.is_empty() {
        return "nothing".to_owned();
    }
    let words = answer.answers.iter().map(|record| {
        assert_eq!(record.ttl, 1);
        match &record.data {
            RData::A(address) => address.0.to_string(),
            RData::AAAA(address) => address.0.to_string(),
            RData::PTR(name) => name.0.to_ascii(),
            other => panic!("{other:?}"),
        }
    });
    words.collect::<Vec<_>>().join(" ")
}

#[test]
fn a_services_name_is_its_virtual_address_even_without_a_ready_task() {
    BACKEND.check("web A", "10.0.0.2");
    BACKEND.check("WeB A", "10.0.0.2");
    BACKEND.check("www A", "10.0.0.2");
    BACKEND.check("web AAAA", "fd00:0:0:1::2");
    BACKEND.check("empty A", "10.0.0.3");
    BACKEND.check("mixed A", "10.0.0.4");
}

#[test]
fn round_robin_and_tasks_names_are_the_tasks_in_rotation() {
    BACKEND.check("db A", "10.0.0.20 10.0.0.21 10.0.0.22");
    BACKEND.check("tasks.web A", "10.0.0.10 10.0.0.11");
    BACKEND.check("tasks.www A", "10.0.0.10 10.0.0.11");
    BACKEND.check("tasks.web AAAA", "fd00:0:0:1::a fd00:0:0:1::b");
    BACKEND.check("tasks.empty A", "nothing");
    BACKEND.check("gone A", "nothing");
}

#[test]
fn a_slots_names_are_its_task_ready_or_not() {
    BACKEND.check("3.web A", "10.0.0.12");
    BACKEND.check("web.3 A", "10.0.0.12");
    BACKEND.check("3.www A", "10.0.0.12");
    BACKEND.check("03.web A", "outside");
    BACKEND.check("4.web A", "outside");
    let id = TaskId::from_bits(12);
    BACKEND.check(&format!("web.1.{id} A"), "10.0.0.10");
    BACKEND.check(&format!("web.2.{id} A"), "outside");
    let front = View {
        networks: &["front"],
        ..BACKEND
    };
    front.check("agent.node1 A", "10.0.1.5");
    front.check("agent A", "10.0.1.5 10.0.1.6");
}

#[test]
fn containers_have_name_alias_and_short_id() {
    BACKEND.check("box A", "10.0.0.30");
    BACKEND.check("toolbox A", "10.0.0.30");
    let id = ContainerId::from_bytes([20; 32]);
    BACKEND.check(&format!("{} AAAA", id.short()), "fd00:0:0:1::1e");
    BACKEND.check("tasks.box A", "outside");
}

#[test]
fn a_name_with_its_networks_name_is_found_only_from_within() {
    BACKEND.check("web.backend A", "10.0.0.2");
    BACKEND.check("3.web.backend A", "10.0.0.12");
    BACKEND.check("agent.front A", "outside");
    BACKEND.check("agent A", "outside");
    let both = View {
        networks: &["front", "backend"],
        ..BACKEND
    };
    both.check("agent.front A", "10.0.1.5 10.0.1.6");
    both.check("web A", "10.0.0.2");
}

#[test]
fn a_name_without_an_address_of_the_family_exists_all_the_same() {
    let front = View {
        networks: &["front"],
        ..BACKEND
    };
    front.check("agent AAAA", "nothing");
    BACKEND.check("web MX", "nothing");
    BACKEND.check("web TXT", "nothing");
    BACKEND.check("web ANY", "10.0.0.2 fd00:0:0:1::2");
}

#[test]
fn addresses_have_names_and_unknown_ones_of_ours_are_asked_nowhere() {
    BACKEND.check("2.0.0.10.in-addr.arpa PTR", "web.backend.");
    BACKEND.check("12.0.0.10.in-addr.arpa PTR", "web.3.backend.");
    BACKEND.check("30.0.0.10.IN-ADDR.arpa PTR", "box.backend.");
    let ipv6 = "a.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.1.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa";
    BACKEND.check(&format!("{ipv6} PTR"), "web.1.backend.");
    BACKEND.check("99.0.0.10.in-addr.arpa PTR", "NXDomain");
    BACKEND.check("5.1.0.10.in-addr.arpa PTR", "outside");
    BACKEND.check("8.8.8.8.in-addr.arpa PTR", "outside");
    BACKEND.check("0.0.10.in-addr.arpa PTR", "outside");
    BACKEND.check("2.0.0.10.in-addr.arpa A", "nothing");
}

#[test]
fn internal_networks_learn_nothing_of_the_outside() {
    let vault = View {
        networks: &["vault"],
        ..BACKEND
    };
    vault.check("keys A", "10.0.2.7");
    vault.check("example.org A", "ServFail");
    let both = View {
        networks: &["vault", "backend"],
        ..BACKEND
    };
    both.check("example.org A", "outside");
    // A network that is not known yet: whether it is internal is not known either.
    let unknown = View {
        networks: &["elsewhere"],
        ..BACKEND
    };
    unknown.check("example.org A", "ServFail");
}

#[test]
fn the_network_of_published_ports_has_no_names() {
    let ingress = View {
        networks: &["ingress"],
        ..BACKEND
    };
    for question in ["open A", "tasks.open A", "1.open A", "example.org A"] {
        ingress.check(question, "outside");
    }
    ingress.check("3.3.0.10.in-addr.arpa PTR", "NXDomain");
}

#[test]
fn suspects_leave_the_rotation_but_never_more_than_half_of_it() {
    let one = View {
        suspects: &["n2"],
        ..BACKEND
    };
    one.check("db A", "10.0.0.20 10.0.0.22");
    one.check("tasks.web A", "10.0.0.10");
    one.check("2.db A", "10.0.0.21");
    one.check("pair A", "10.0.0.31");
    let two = View {
        suspects: &["n2", "n3"],
        ..BACKEND
    };
    two.check("db A", "10.0.0.20 10.0.0.22");
    // The node itself can't be gone from where it stands.
    let own = View {
        suspects: &["n1"],
        ..BACKEND
    };
    own.check("db A", "10.0.0.20 10.0.0.21 10.0.0.22");
}

#[test]
fn without_a_lease_only_own_tasks_are_sure_where_tasks_stop_in_a_partition() {
    let cut_off = View {
        leased: false,
        ..BACKEND
    };
    cut_off.check("db A", "10.0.0.20");
    cut_off.check("box A", "10.0.0.30");
    cut_off.check("pair A", "10.0.0.31");
}

#[test]
fn what_is_no_question_gets_no_answer_and_what_is_not_served_is_refused() {
    let ask = |bytes: &[u8]| shown_code(&BACKEND.ask(bytes, Transport::Udp));
    assert_eq!(ask(b"hello"), "silence");
    let good = packet("web", "A", None);
    assert_eq!(ask(&good[..good.len() - 3]), "silence");
    let mut response = good.clone();
    response[2] |= 0x80;
    assert_eq!(ask(&response), "silence");
    let mut two = good.clone();
    two[5] = 2;
    assert_eq!(ask(&two), "FormErr");
    let mut endless = good.clone();
    endless[4..12].fill(0xff);
    assert_eq!(ask(&endless), "FormErr");
    let mut update = good.clone();
    update[2] |= 5 << 3;
    assert_eq!(ask(&update), "NotImp");
    let mut chaos = good.clone();
    let end = chaos.len();
    chaos[end - 1] = 3;
    assert_eq!(ask(&chaos), "Refused");
    assert_eq!(ask(&packet("web", "AXFR", None)), "Refused");
    let mut newer = packet("web", "A", Some(1232));
    let version = newer.len() - 5;
    newer[version] = 1;
    // Number 16 has two names: this one in TSIG records.
    assert_eq!(ask(&newer), "BADSIG");
}

fn shown_code(reply: &Reply) -> String {
    match reply {
        Reply::Answer(bytes, Outcome::Refused) => {
            format!(
                "{:?}",
                Message::from_vec(bytes).unwrap().metadata.response_code
            )
        }
        other => shown(other),
    }
}

#[test]
fn an_answer_that_does_not_fit_is_cut_and_is_whole_by_tcp() {
    let mut text = "network backend 10.0.0.0/16\nservice many backend dnsrr\n".to_owned();
    for number in 0..200 {
        text.push_str(&format!("task many {} n1 10.0.1.{number}\n", number + 1));
    }
    let zone = BACKEND.zone(&state(&text));
    let ask = |payload, transport| {
        let packet = packet("many", "A", payload);
        let networks = [network_id("backend")];
        match reply_to(&zone, &networks, &packet, transport, &mut |_| {}) {
            Reply::Answer(bytes, _) => (bytes.len(), Message::from_vec(&bytes).unwrap()),
            other => panic!("{other:?}"),
        }
    };
    for (payload, limit) in [(None, 512), (Some(100), 512), (Some(1232), 1232)] {
        let (length, answer) = ask(payload, Transport::Udp);
        assert!(answer.metadata.truncation);
        assert!(
            length <= limit && length + 16 > limit,
            "{length} of {limit}"
        );
        assert_eq!(answer.edns.is_some(), payload.is_some());
        assert!(answer.edns.is_none_or(|edns| edns.flags().dnssec_ok));
    }
    let (_, whole) = ask(Some(4096), Transport::Udp);
    assert_eq!(
        (whole.metadata.truncation, whole.answers.len()),
        (false, 200)
    );
    let (_, whole) = ask(None, Transport::Tcp);
    assert_eq!(
        (whole.metadata.truncation, whole.answers.len()),
        (false, 200)
    );
}

/// A state made of `STATE` by leaving lines out.
fn part(keep: &[bool]) -> NetState {
    let mut all = state(STATE);
    let mut keep = keep.iter().copied().cycle();
    let mut kept = || keep.next().unwrap_or(true);
    all.networks.retain(|_, _| kept());
    all.services.retain(|_, _| kept());
    all.endpoints.retain(|_, _| kept());
    for endpoint in all.endpoints.values_mut() {
        endpoint.in_rotation = kept();
    }
    all
}

const QUESTIONS: [&str; 12] = [
    "web A",
    "www A",
    "db A",
    "tasks.web A",
    "3.web A",
    "box A",
    "toolbox AAAA",
    "agent A",
    "2.0.0.10.in-addr.arpa PTR",
    "10.0.0.10.in-addr.arpa PTR",
    "99.0.0.10.in-addr.arpa PTR",
    "example.org A",
];

proptest! {
    #[test]
    fn folding_differences_gives_the_full_table(
        steps in prop::collection::vec(prop::collection::vec(any::<bool>(), 1..40), 1..6),
        suspects in prop::collection::vec(1u128..4, 0..3),
    ) {
        let suspects: BTreeSet<_> = suspects.into_iter().map(NodeId::from_bits).collect();
        let outlook = Outlook { node_id: node("n1"), suspects: &suspects, leased: true };
        let mut last = DnsTable::default();
        let mut table = DnsTable::default();
        let mut zone = Zone::default();
        for keep in steps {
            let now = DnsTable::of(&part(&keep), &outlook);
            prop_assert!(now.changes_to(&now).is_empty());
            let update = super::DnsUpdate { complete: false, changes: last.changes_to(&now) };
            table.apply(update.clone());
            zone.apply(update);
            prop_assert_eq!(&table, &now);
            let mut fresh = Zone::default();
            fresh.apply(now.complete());
            let networks = ["backend", "front", "vault"].map(network_id);
            for question in QUESTIONS {
                let (name, kind) = question.split_once(' ').unwrap();
                let packet = packet(name, kind, None);
                let ask = |zone: &Zone| {
                    let sort = &mut |addresses: &mut [super::Addresses]| addresses.sort();
                    shown_code(&reply_to(zone, &networks, &packet, Transport::Udp, sort))
                };
                prop_assert_eq!(ask(&zone), ask(&fresh), "{}", question);
            }
            last = now;
        }
    }

    #[test]
    fn no_packet_makes_it_panic(packet in prop::collection::vec(any::<u8>(), 0..200)) {
        let _reply = BACKEND.ask(&packet, Transport::Udp);
    }

    #[test]
    fn no_change_of_a_good_packet_makes_it_panic(
        place in 0usize..60, byte in any::<u8>(), length in 0usize..60,
    ) {
        let mut packet = packet("3.web.backend", "A", Some(1232));
        let last = packet.len() - 1;
        packet[place.min(last)] = byte;
        packet.truncate(packet.len() - length.min(last));
        let _reply = BACKEND.ask(&packet, Transport::Tcp);
    }
}
