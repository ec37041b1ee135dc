//! Published ports, and what a service keeps over updates.

use super::scene::{NETWORK, Scene, network_spec};
use crate::allocator::service::fill;
use shoal_model::network::NetworkAttachment;
use shoal_model::spec::{PortConfig, Protocol, PublishMode};
use shoal_model::{NetworkId, Service, ServiceId, ServiceSpec};

/// `80`, `80/udp`, `host:80`, `80@10.0.0.0/8`; `0` leaves the choice to the allocator. The target is 1.
fn port(text: &str) -> PortConfig {
    let (mode, rest) = match text.strip_prefix("host:") {
        Some(rest) => (PublishMode::Host, rest),
        None => (PublishMode::Ingress, text),
    };
    let (rest, addrs) = rest.split_once('@').unwrap_or((rest, ""));
    let (number, protocol) = rest.split_once('/').unwrap_or((rest, "tcp"));
    PortConfig {
        target: 1,
        published: number.parse().unwrap(),
        mode,
        protocol: if protocol == "udp" {
            Protocol::Udp
        } else {
            Protocol::Tcp
        },
        addrs: addrs
            .split_terminator(',')
            .map(|net| net.parse().unwrap())
            .collect(),
        ..PortConfig::default()
    }
}

fn spec(name: &str, ports: &[&str]) -> ServiceSpec {
    let mut spec = ServiceSpec {
        name: name.to_owned(),
        ..ServiceSpec::default()
    };
    spec.endpoint.ports = ports.iter().map(|text| port(text)).collect();
    spec
}

fn numbers(service: &Service) -> Vec<u16> {
    service.ports.iter().map(|port| port.published).collect()
}

/// A service with `ports` is refused beside one with `held`, by name; or not, if `expected` is empty.
fn check(held: &str, ports: &str, expected: &str) {
    let mut scene = Scene::new();
    scene.add_service(1, spec("first", &[held])).unwrap();
    let told = match scene.add_service(2, spec("second", &[ports])) {
        Ok(_) => String::new(),
        Err(err) => err.to_string(),
    };
    assert_eq!(
        told.is_empty(),
        expected.is_empty(),
        "{held} {ports}: {told}"
    );
    assert!(told.contains(expected), "{told}");
}

#[test]
fn a_port_on_every_node_has_one_service() {
    check(
        "80",
        "80",
        "port 80/tcp is published by service `first` on every node",
    );
    check("80", "81", "");
    check("80", "80/udp", "");
    check(
        "host:80",
        "80",
        "80/tcp is published by service `first` on the nodes of its tasks",
    );
    check(
        "80",
        "host:80",
        "80/tcp is published by service `first` on every node",
    );
    check("host:80", "host:80", "");
    check("80@10.0.0.0/8", "80@192.168.0.0/16", "");
    check("80@10.0.0.0/8", "80@10.7.0.0/16", "80/tcp is published");
    check("80@10.0.0.0/8", "80", "80/tcp is published");
}

#[test]
fn ports_without_a_number_get_the_lowest_free_one_and_keep_it() {
    let mut scene = Scene::new();
    scene.add_service(1, spec("held", &["30001"])).unwrap();
    let service = scene
        .add_service(2, spec("web", &["0", "0/udp", "0", "host:0"]))
        .unwrap();
    assert_eq!(numbers(service), [30_000, 30_000, 30_002, 0]);
    let mut service = service.clone();
    // Another order, one more, and a number asked for that it had by chance.
    service.spec.endpoint.ports = ["0", "30000/udp", "0/udp", "0"].map(port).to_vec();
    fill(&scene.state, &mut service).unwrap();
    assert_eq!(numbers(&service), [30_000, 30_000, 30_001, 30_002]);
}

#[test]
fn virtual_addresses_are_kept_over_updates() {
    let other = NetworkId::from_bits(8);
    let mut scene = Scene::new();
    scene.add_network(NETWORK, network_spec("a", None)).unwrap();
    scene.add_network(other, network_spec("b", None)).unwrap();
    let place = |network_id| NetworkAttachment {
        network_id,
        aliases: Vec::new(),
    };
    let mut wanted = spec("web", &[]);
    wanted.task.networks = vec![place(other)];
    let mut service = scene.add_service(1, wanted).unwrap().clone();
    let first = service.vips.clone();
    service.spec.task.networks = vec![place(NETWORK), place(other)];
    fill(&scene.state, &mut service).unwrap();
    assert_eq!(service.vips.len(), 2);
    assert!(service.vips.contains(&first[0]));
    service.spec.task.networks = vec![place(NETWORK)];
    fill(&scene.state, &mut service).unwrap();
    assert_eq!(service.vips.len(), 1);
    assert_eq!(service.vips[0].network_id, NETWORK);
}

#[test]
fn a_service_that_is_being_removed_has_given_its_ports_free() {
    let mut scene = Scene::new();
    let mut leaving = scene.add_service(1, spec("old", &["80"])).unwrap().clone();
    leaving.pending_delete = true;
    let object = shoal_model::command::Object::Service(Box::new(leaving));
    scene.apply(vec![shoal_model::command::StoreAction::Update(object)]);
    let service = scene.add_service(2, spec("new", &["80"])).unwrap();
    assert_eq!(service.id, ServiceId::from_bits(2));
}
