//! Addresses of tasks, containers and services, and the blocks that nodes lease.

use super::scene::{NETWORK, Scene, attachment, network_spec, node_id};
use crate::allocator::{Addresses, AllocationError};
use crate::store::is_reserved;
use proptest::prelude::*;
use shoal_model::network::NetworkAttachment;
use shoal_model::spec::EndpointMode;
use shoal_model::{NetworkId, ServiceSpec};
use std::collections::BTreeSet;
use std::net::Ipv4Addr;

fn scene(subnet: &str, nodes: u128) -> Scene {
    let mut scene = Scene::new();
    for number in 1..=nodes {
        scene.add_node(number, &[]);
    }
    let spec = network_spec("backend", Some(subnet));
    scene.add_network(NETWORK, spec).unwrap();
    scene
}

fn in_network() -> ServiceSpec {
    let mut spec = ServiceSpec {
        name: "web".to_owned(),
        ..ServiceSpec::default()
    };
    spec.task.networks = vec![NetworkAttachment {
        network_id: NETWORK,
        aliases: Vec::new(),
    }];
    spec
}

#[test]
fn a_node_s_lease_starts_small_and_doubles() {
    let mut scene = scene("10.1.0.0/16", 2);
    for (containers, blocks) in [
        (1, &[28][..]),
        (14, &[28]),
        (15, &[28, 28]),
        (31, &[28, 28, 27]),
        (63, &[28, 28, 27, 26]),
    ] {
        while scene.state.attachments().count() < containers {
            let number = scene.state.attachments().count() as u64;
            scene.attach(number, 1, None).unwrap();
        }
        assert_eq!(scene.blocks(1), blocks, "{containers}");
    }
    scene.attach(1_000, 2, None).unwrap();
    assert_eq!(
        scene.blocks(2),
        [28],
        "the other node begins as the first did"
    );
}

#[test]
fn two_hundred_nodes_share_254_hosts() {
    let mut scene = scene("10.1.0.0/24", 200);
    for node in 1..=200 {
        scene.attach(node as u64, node, None).unwrap();
    }
    let leased = scene.state.leases_in(NETWORK).count();
    assert_eq!(leased, 200, "every node has a lease");
    // The rest goes to one node, whoever had leased it.
    for number in 201..=253 {
        scene.attach(number, 77, None).unwrap();
    }
    let refused = scene.attach(254, 3, None).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "network `backend` (10.1.0.0/24): all 253 addresses are in use or held back: 253 by tasks and containers on \
         200 nodes, 0 as virtual addresses of services, 0 in leases of nodes that have left; remove some, or make a \
         larger network"
    );
    let refused = scene.add_service(1, in_network()).unwrap_err();
    assert!(
        matches!(refused, AllocationError::Exhausted { .. }),
        "{refused}"
    );
    scene.detach(9);
    let free = scene.attach(254, 3, None).unwrap();
    assert!(scene.state.endpoint_at(NETWORK, free).is_some());
    scene.detach(10);
    let vip = scene.add_service(1, in_network()).unwrap().vips[0].ipv4;
    assert_eq!(scene.state.block_of(NETWORK, vip), None);
}

#[test]
fn many_nodes_get_their_addresses_in_few_passes() {
    let mut scene = scene("10.1.0.0/24", 200);
    let mut waiting: Vec<u64> = (1..=253).collect();
    let place = [NetworkAttachment {
        network_id: NETWORK,
        aliases: Vec::new(),
    }];
    let mut passes = 0;
    while !waiting.is_empty() {
        let mut addresses = Addresses::new(&scene.state);
        let mut made = Vec::new();
        waiting.retain(|&number| {
            let node = u128::from(number % 200) + 1;
            match addresses.endpoints(&place, node_id(node), number.into()) {
                Ok(endpoints) => {
                    made.push(attachment(number, node, endpoints));
                    false
                }
                Err(AllocationError::Moving { .. }) => true,
                Err(err) => panic!("{err}"),
            }
        });
        let mut actions = addresses.into_actions();
        actions.extend(made);
        scene.apply(actions);
        passes += 1;
        assert!(passes < 10, "{} wait", waiting.len());
    }
}

#[test]
fn virtual_addresses_come_from_the_top_and_need_no_lease() {
    let mut scene = scene("10.1.0.0/24", 1);
    scene.attach(1, 1, None).unwrap();
    let vip = |scene: &mut Scene, number: u128| {
        let mut spec = in_network();
        spec.name = format!("s{number}");
        scene.add_service(number, spec).unwrap().vips[0]
            .ipv4
            .to_string()
    };
    assert_eq!(vip(&mut scene, 1), "10.1.0.254");
    assert_eq!(vip(&mut scene, 2), "10.1.0.253");
    scene.remove_service(1);
    assert_eq!(vip(&mut scene, 3), "10.1.0.254");
    let mut by_name = in_network();
    by_name.endpoint.mode = EndpointMode::DnsRoundRobin;
    by_name.name = "dns".to_owned();
    assert!(scene.add_service(4, by_name).unwrap().vips.is_empty());
}

#[test]
fn a_fixed_address_is_honoured_or_refused_with_the_holder_s_name() {
    let mut scene = scene("10.1.0.0/24", 3);
    let address = |text: &str| Some(text.parse::<Ipv4Addr>().unwrap());
    scene.attach(1, 1, None).unwrap();
    scene.attach(2, 2, address("10.1.0.77")).unwrap();
    scene.add_service(1, in_network()).unwrap();
    let refused = |scene: &mut Scene, text: &str| {
        let refused = scene.attach(9, 3, address(text));
        refused.unwrap_err().to_string()
    };
    for (text, reason) in [
        ("10.1.0.77", "is in use by container `c2`"),
        ("10.1.0.254", "is in use by service `web`"),
        ("10.1.0.1", "its gateway's"),
        ("10.1.1.5", "not in the network's subnet 10.1.0.0/24"),
    ] {
        let told = refused(&mut scene, text);
        assert!(told.contains(reason), "{told}");
    }
    // Leased to node 1 and not used there.
    let used = scene
        .state
        .endpoints_in(NETWORK, "10.1.0.0/28".parse().unwrap());
    let used: BTreeSet<_> = used.map(|(address, _)| address).collect();
    let network = scene.state.network(NETWORK).unwrap();
    let unused = (0..16)
        .map(|host| Ipv4Addr::new(10, 1, 0, host))
        .find(|it| !used.contains(it) && !is_reserved(network, *it));
    scene.attach(3, 3, unused).unwrap();
    assert_eq!(scene.blocks(3), [32]);
    scene.attach(4, 3, unused).unwrap_err();
}

#[test]
fn a_node_that_has_left_keeps_its_blocks_until_its_lease_is_gone() {
    let mut scene = scene("10.1.0.0/28", 2);
    let first = scene.attach(1, 1, None).unwrap();
    scene.remove_node(1);
    let refused = scene.attach(2, 2, Some(first)).unwrap_err().to_string();
    assert!(refused.contains("a node that has left"), "{refused}");
    let mut given = 0;
    let refused = loop {
        match scene.attach(100 + given, 2, None) {
            Ok(address) => assert_ne!(address, first),
            Err(err) => break err,
        }
        given += 1;
    };
    match refused {
        AllocationError::Exhausted {
            resting, usable, ..
        } => {
            assert_eq!((resting, usable), (4, 13));
        }
        other => panic!("{other}"),
    }
    assert_eq!(
        given, 11,
        "four addresses rest, two of them were nobody's to have"
    );
}

#[test]
fn a_request_that_fails_gives_back_what_it_got() {
    let scene = scene("10.1.0.0/24", 1);
    let place = |id: NetworkId| NetworkAttachment {
        network_id: id,
        aliases: Vec::new(),
    };
    let places = [place(NETWORK), place(NetworkId::from_bits(99))];
    let mut addresses = Addresses::new(&scene.state);
    for seed in 0..1_000 {
        let refused = addresses.endpoints(&places, node_id(1), seed).unwrap_err();
        assert_eq!(
            refused,
            AllocationError::NoNetwork(NetworkId::from_bits(99))
        );
    }
    assert!(addresses.endpoints(&places[..1], node_id(1), 5).is_ok());
}

/// What happens to a network.
#[derive(Debug, Clone)]
enum Event {
    Attach { node: u128 },
    Fixed { node: u128, host: u8 },
    Detach { nth: usize },
    Service,
    EndService { nth: usize },
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        6 => (1..9_u128).prop_map(|node| Event::Attach { node }),
        1 => (1..9_u128, 0..32_u8).prop_map(|(node, host)| Event::Fixed { node, host }),
        3 => any::<usize>().prop_map(|nth| Event::Detach { nth }),
        1 => Just(Event::Service),
        1 => any::<usize>().prop_map(|nth| Event::EndService { nth }),
    ];
    prop::collection::vec(event, 1..120)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever is asked for in whatever order: nothing is given twice (the invariants look at every step), and as
    /// long as one address is free somebody gets it.
    #[test]
    fn nothing_is_given_twice_and_nothing_is_wasted(events in events()) {
        let mut scene = scene("10.1.0.0/27", 8);
        let usable = 32 - 3;
        let (mut containers, mut services) = (Vec::new(), Vec::new());
        for (number, event) in (1_u64..).zip(events) {
            let full = containers.len() + services.len() == usable;
            match event {
                Event::Attach { node } => match scene.attach(number, node, None) {
                    Ok(_) => containers.push(number),
                    Err(AllocationError::Exhausted { .. }) => prop_assert!(full),
                    Err(err) => panic!("{err}"),
                },
                Event::Fixed { node, host } => {
                    let address = Ipv4Addr::new(10, 1, 0, host);
                    let free = scene.state.endpoint_at(NETWORK, address).is_none()
                        && scene.state.vip_at(NETWORK, address).is_none()
                        && !is_reserved(scene.state.network(NETWORK).unwrap(), address);
                    let given = scene.attach(number, node, Some(address));
                    prop_assert_eq!(given.is_ok(), free);
                    if free {
                        containers.push(number);
                    }
                }
                Event::Detach { nth } if !containers.is_empty() => {
                    scene.detach(containers.swap_remove(nth % containers.len()));
                }
                Event::Service => {
                    let mut spec = in_network();
                    spec.name = format!("s{number}");
                    match scene.add_service(number.into(), spec) {
                        Ok(_) => services.push(number),
                        Err(AllocationError::Exhausted { .. }) => prop_assert!(full),
                        Err(err) => panic!("{err}"),
                    }
                }
                Event::EndService { nth } if !services.is_empty() => {
                    scene.remove_service(services.swap_remove(nth % services.len()).into());
                }
                Event::Detach { .. } | Event::EndService { .. } => {}
            }
        }
    }
}
