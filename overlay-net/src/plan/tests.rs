//! Properties of plans.

use super::*;
use proptest::prelude::*;
use shoal_model::netstate::{EndpointId, NetEndpoint, NetLease, NetNetwork, NetRecord, NetService};
use shoal_model::network::{NetworkAttachment, ServiceVip, Subnets};
use shoal_model::spec::{EndpointMode, OnPartition, PortConfig, Protocol, PublishMode};
use shoal_model::{NetworkId, ServiceId, TaskId};
use std::net::{Ipv4Addr, SocketAddr};

fn node(number: u8) -> NetRecord {
    NetRecord::Node(NetNode {
        id: NodeId::from_bits(number.into()),
        name: format!("n{number}"),
        public_key: [number; 32],
        next_key: None,
        addrs: vec![SocketAddr::from(([192, 0, 2, number], 51820))],
        mesh: MeshAddress {
            ipv4: Ipv4Addr::new(10, 99, 0, number),
            ipv6: format!("fd99::{number:x}").parse().unwrap(),
        },
        relay: false,
    })
}

fn network(number: u8, internal: bool) -> NetRecord {
    NetRecord::Network(NetNetwork {
        id: NetworkId::from_bits(number.into()),
        name: format!("net{number}"),
        subnets: Subnets {
            ipv4: format!("10.0.{number}.0/24").parse().unwrap(),
            gateway: Ipv4Addr::new(10, 0, number, 1),
            range: format!("10.0.{number}.0/24").parse().unwrap(),
            ipv6: Some(format!("fd00:{number:x}::/64").parse().unwrap()),
            gateway_ipv6: Some(format!("fd00:{number:x}::1").parse().unwrap()),
        },
        internal,
        ingress: false,
        mtu: None,
    })
}

fn endpoint(network: u8, last: u8) -> Endpoint {
    Endpoint {
        network_id: NetworkId::from_bits(network.into()),
        ipv4: Ipv4Addr::new(10, 0, network, last),
        ipv6: Some(format!("fd00:{network:x}::{last:x}").parse().unwrap()),
        aliases: Vec::new(),
    }
}

fn service(number: u8, network: u8, sticky_s: Option<u32>) -> NetRecord {
    let network_id = NetworkId::from_bits(network.into());
    NetRecord::Service(NetService {
        id: ServiceId::from_bits(number.into()),
        name: format!("svc{number}"),
        mode: EndpointMode::Vip,
        sticky_s,
        networks: vec![NetworkAttachment {
            network_id,
            aliases: Vec::new(),
        }],
        vips: vec![ServiceVip {
            network_id,
            ipv4: Ipv4Addr::new(10, 0, network, 200 + number),
            ipv6: None,
        }],
        ports: vec![PortConfig {
            protocol: Protocol::Udp,
            target: 53,
            published: 5000 + u16::from(number),
            mode: PublishMode::Ingress,
            ..PortConfig::default()
        }],
        on_partition: OnPartition::Keep,
    })
}

fn task(number: u8, service: u8, node: u8, in_rotation: bool) -> NetRecord {
    NetRecord::Endpoint(NetEndpoint {
        id: EndpointId::Task(TaskId::from_bits(number.into())),
        node_id: NodeId::from_bits(node.into()),
        service: Some((ServiceId::from_bits(service.into()), number.into())),
        name: format!("svc{service}.{number}"),
        endpoints: vec![endpoint(1, number)],
        in_rotation,
    })
}

fn lease(network: u8, node: u8) -> NetRecord {
    NetRecord::Lease(NetLease {
        network_id: NetworkId::from_bits(network.into()),
        node_id: NodeId::from_bits(node.into()),
        blocks: [format!("10.0.{network}.{}/28", node * 16).parse().unwrap()].into(),
    })
}

fn records() -> impl Strategy<Value = Vec<NetRecord>> {
    let tasks = prop::collection::btree_map(10u8..60, (1u8..5, 1u8..6, any::<bool>()), 0..20);
    let sticky = prop::option::of(1u32..100);
    (tasks, sticky, 1u8..6).prop_map(|(tasks, sticky, nodes)| {
        let mut records = vec![network(1, false), network(2, true)];
        for number in 1..=nodes {
            records.extend([node(number), lease(1, number), lease(2, number)]);
        }
        records.extend((1..5).map(|number| service(number, 1, sticky)));
        let tasks = tasks.into_iter();
        records.extend(tasks.map(|(id, (service, node, ready))| task(id, service, node, ready)));
        records
    })
}

fn planned(records: &[NetRecord], suspects: &BTreeSet<NodeId>) -> Plan {
    let mut state = NetState::default();
    records.iter().cloned().for_each(|record| state.put(record));
    let attached = Attached::from([(
        ContainerId::from_bytes([7; 32]),
        vec![AttachedInterface {
            host_link: "sabcdefo1234567".to_owned(),
            endpoint: endpoint(1, 18),
        }],
    )]);
    plan(&PlanInput {
        tag: &InstanceTag::derive("tests"),
        state: &state,
        outlook: Outlook {
            node_id: NodeId::from_bits(1),
            suspects,
            leased: true,
        },
        attached: &attached,
        daemon_ports: &BTreeSet::from([2377]),
        mesh_mtu: MESH_MTU,
    })
}

proptest! {
    #[test]
    fn the_same_input_in_any_order_gives_the_same_plan(
        records in records(),
        suspect in 2u128..6,
        turn in 0usize..40,
    ) {
        let suspects = BTreeSet::from([NodeId::from_bits(suspect)]);
        let first = planned(&records, &suspects);
        let mut turned = records.clone();
        let places = turned.len();
        turned.rotate_left(turn % places);
        turned.reverse();
        prop_assert_eq!(&first, &planned(&turned, &suspects));
        let nothing = first.filter.changes_to(&first.filter, crate::nft::FAMILY_INET, "t");
        prop_assert!(nothing.is_some_and(|batch| batch.is_empty()));
        prop_assert!(first.fronts.forgotten_since(Some(&first.fronts)).is_empty());
    }

    #[test]
    fn no_set_names_a_chain_that_is_not_there(records in records()) {
        let plan = planned(&records, &BTreeSet::new());
        for (name, set) in &plan.filter.sets {
            for value in set.elements.values().flatten() {
                if let crate::nft::Value::Goto(chain) = value {
                    prop_assert!(plan.filter.chains.contains_key(chain), "{name} leads to {chain}");
                }
            }
        }
    }

    #[test]
    fn every_change_of_tasks_is_a_change_of_elements_and_chains(
        before in records(),
        after in records(),
    ) {
        let none = BTreeSet::new();
        let (before, after) = (planned(&before, &none), planned(&after, &none));
        // Only a service's stickiness makes a set another one.
        let changes = before.filter.changes_to(&after.filter, crate::nft::FAMILY_INET, "t");
        let same = before.filter.sets.iter().all(|(name, set)| {
            after.filter.sets.get(name).is_none_or(|now| now.definition == set.definition)
        });
        prop_assert_eq!(changes.is_some(), same);
    }
}
