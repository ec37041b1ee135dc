//! The rules of networks, leases, addresses and published ports, one test each.

use super::fixture::{
    Log, attachment, create, create_task, endpoint, lease, network, node, report, service, task,
    with_network,
};
use crate::store::check_invariants;
use shoal_model::command::{Object, ObjectKey, Rejection, StoreAction};
use shoal_model::netstate::EndpointId;
use shoal_model::network::{AddressLease, Attachment, MeshAddress, NetworkAttachment, ServiceVip};
use shoal_model::spec::{PortConfig, PublishMode};
use shoal_model::{
    ContainerId, Network, NetworkId, NodeId, Service, ServiceId, TaskId, TaskState, Version,
};

const BACKEND: NetworkId = NetworkId::from_bits(1);

fn create_network(network: Network) -> StoreAction {
    create(Object::Network(Box::new(network)))
}

fn create_lease(lease: AddressLease) -> StoreAction {
    create(Object::Lease(Box::new(lease)))
}

fn attach(attachment: Attachment) -> StoreAction {
    create(Object::Attachment(Box::new(attachment)))
}

fn remove(key: ObjectKey) -> StoreAction {
    StoreAction::Remove { key, version: None }
}

/// The lease as it is stored, with other blocks.
fn change_lease(log: &Log, node: u128, blocks: &[&str]) -> StoreAction {
    let stored = log.state.lease(BACKEND, NodeId::from_bits(node)).unwrap();
    let mut changed = lease(1, node, blocks);
    changed.meta = stored.meta;
    StoreAction::Update(Object::Lease(Box::new(changed)))
}

fn with_vip(mut service: Service, address: &str) -> Service {
    let endpoint = endpoint(1, address);
    service.vips.push(ServiceVip {
        network_id: BACKEND,
        ipv4: endpoint.ipv4,
        ipv6: endpoint.ipv6,
    });
    service.spec.task.networks.push(NetworkAttachment {
        network_id: BACKEND,
        aliases: Vec::new(),
    });
    service
}

fn refused(log: &mut Log, action: StoreAction, reason: &str) {
    let refused = log.refused(vec![action]).to_string();
    assert!(refused.contains(reason), "{refused} / {reason}");
}

#[test]
fn networks_have_names_and_subnets_of_their_own() {
    let mut log = Log::with_network();
    let named = |name: &str| create_network(network(2, name));
    refused(
        &mut log,
        named("backend"),
        "the name `backend` is in use by network",
    );
    let mut other = network(2, "other");
    other.subnets.ipv4 = "10.0.0.0/8".parse().unwrap();
    refused(
        &mut log,
        create_network(other),
        "overlaps that of network `backend`",
    );
    let mut other = network(2, "other");
    other.subnets.ipv6 = Some("fd00:1::/80".parse().unwrap());
    refused(&mut log, create_network(other), "overlaps");
    let mut other = network(2, "other");
    other.spec.ingress = true;
    refused(&mut log, create_network(other), "named `ingress`");
    let mut changed = network(1, "backend");
    changed.meta.version = Version(2);
    changed.subnets.gateway = "10.1.0.9".parse().unwrap();
    let update = StoreAction::Update(Object::Network(Box::new(changed)));
    refused(&mut log, update, "can't change");
    log.ok(vec![named("other")]);
    assert_eq!(
        log.state.network_by_name("other").unwrap().id,
        NetworkId::from_bits(2)
    );
}

#[test]
fn blocks_of_two_nodes_never_overlap() {
    let mut log = Log::with_network();
    log.ok(vec![create(Object::Node(Box::new(node(3))))]);
    for (blocks, reason) in [
        (&["10.1.0.0/27"][..], "overlaps 10.1.0.0/28"),
        (&["10.1.0.4/32"], "overlaps 10.1.0.0/28"),
        (&["10.1.0.0/24"], "overlaps"),
        (&["10.2.0.0/28"], "outside of the network's subnet"),
        (&["10.1.0.33/28"], "outside"),
        (&["10.1.0.32/28", "10.1.0.40/32"], "is in it twice"),
        (&[], "without a block"),
    ] {
        refused(&mut log, create_lease(lease(1, 3, blocks)), reason);
    }
    let unknown = log.refused(vec![create_lease(lease(1, 9, &["10.1.0.32/28"]))]);
    assert_eq!(
        unknown,
        Rejection::NotFound(ObjectKey::Node(NodeId::from_bits(9)))
    );
    log.ok(vec![create_lease(lease(
        1,
        3,
        &["10.1.0.32/30", "10.1.0.40/32"],
    ))]);
    assert_eq!(check_invariants(&log.state), []);
}

#[test]
fn an_address_has_one_holder_on_the_node_that_leased_it() {
    let mut log = Log::with_network();
    log.ok((1..=3)
        .map(|id| create_task(with_network(task(id, id as u64), 1)))
        .collect());
    for (node, at, reason) in [
        (1, &[][..], "not in the networks of its spec"),
        (1, &[(1, "10.1.0.16")], "is not leased to the node"),
        (1, &[(1, "10.1.0.40")], "is not leased to the node"),
        (1, &[(1, "10.1.0.1")], "is no host's"),
        (
            1,
            &[(1, "10.1.0.2"), (1, "10.1.0.3")],
            "not in the networks",
        ),
    ] {
        let plan = log.assign_at(1, node, at);
        refused(&mut log, plan, reason);
    }
    log.ok(vec![log.assign_at(1, 1, &[(1, "10.1.0.2")])]);
    let again = log.assign_at(2, 1, &[(1, "10.1.0.2")]);
    refused(&mut log, again, "address 10.1.0.2 is in use by");
    let address = "10.1.0.2".parse().unwrap();
    let holder = EndpointId::Task(TaskId::from_bits(1));
    assert_eq!(log.state.endpoint_at(BACKEND, address), Some(holder));
    refused(
        &mut log,
        attach(attachment(1, 1, &[(1, "10.1.0.2")])),
        "is in use by",
    );
    log.ok(vec![attach(attachment(1, 1, &[(1, "10.1.0.3")]))]);
    // It is free once the node has proved the end.
    log.ok(vec![report(1, TaskState::Running)]);
    let again = log.assign_at(2, 1, &[(1, "10.1.0.2")]);
    refused(&mut log, again, "is in use by");
    log.ok(vec![report(1, TaskState::Shutdown)]);
    log.ok(vec![log.assign_at(2, 1, &[(1, "10.1.0.2")])]);
    assert_eq!(check_invariants(&log.state), []);
}

#[test]
fn what_is_in_use_is_not_given_back() {
    let mut log = Log::with_network();
    log.ok(vec![attach(attachment(1, 1, &[(1, "10.1.0.5")]))]);
    let without = change_lease(&log, 1, &["10.1.0.0/30", "10.1.0.8/29"]);
    refused(&mut log, without, "address 10.1.0.5 is in use");
    let lease_key = ObjectKey::Lease(BACKEND, NodeId::from_bits(1));
    refused(&mut log, remove(lease_key), "are in use");
    let split = change_lease(&log, 1, &["10.1.0.5/32", "10.1.0.8/29"]);
    log.ok(vec![split]);
    let stale = lease(1, 1, &["10.1.0.0/28"]);
    let stale = StoreAction::Update(Object::Lease(Box::new(stale)));
    assert!(matches!(log.refused(vec![stale]), Rejection::Stale { .. }));
    let container = ObjectKey::Attachment(ContainerId::from_bytes([1; 32]));
    log.ok(vec![remove(container), remove(lease_key)]);
    assert_eq!(log.state.leases_of(NodeId::from_bits(1)).count(), 0);
    assert_eq!(check_invariants(&log.state), []);
}

#[test]
fn containers_are_attached_to_attachable_networks_and_stay_on_their_node() {
    let mut log = Log::with_network();
    let mut services_only = network(2, "services-only");
    services_only.spec.attachable = false;
    log.ok(vec![
        create_network(services_only),
        create_lease(lease(2, 1, &["10.2.0.0/28"])),
    ]);
    refused(
        &mut log,
        attach(attachment(1, 1, &[(2, "10.2.0.5")])),
        "not attachable",
    );
    refused(
        &mut log,
        attach(attachment(1, 1, &[(1, "10.1.0.5"), (1, "10.1.0.6")])),
        "twice",
    );
    log.ok(vec![attach(attachment(1, 1, &[(1, "10.1.0.5")]))]);
    let mut moved = attachment(1, 2, &[(1, "10.1.0.20")]);
    moved.meta = log.state.attachment(moved.container_id).unwrap().meta;
    let moved = StoreAction::Update(Object::Attachment(Box::new(moved)));
    refused(&mut log, moved, "stays on its node");
    assert_eq!(log.state.attachments_of(NodeId::from_bits(1)).count(), 1);
}

#[test]
fn virtual_addresses_are_nobody_else_s_and_not_leased() {
    let mut log = Log::with_network();
    let make = |id: u128, address: &str| {
        let name = format!("s{id}");
        create(Object::Service(Box::new(with_vip(
            service(id, &name),
            address,
        ))))
    };
    refused(&mut log, make(2, "10.1.0.5"), "is leased to node");
    refused(&mut log, make(2, "10.1.0.255"), "is no host's");
    log.ok(vec![make(2, "10.1.0.254")]);
    refused(&mut log, make(3, "10.1.0.254"), "belongs to service");
    let over = change_lease(&log, 1, &["10.1.0.0/28", "10.1.0.240/28"]);
    refused(&mut log, over, "belongs to service");
    let holder = log.state.vip_at(BACKEND, "10.1.0.254".parse().unwrap());
    assert_eq!(holder, Some(ServiceId::from_bits(2)));
    // It stays the service's until the service has gone.
    let mut leaving = Service::clone(log.state.service(ServiceId::from_bits(2)).unwrap());
    leaving.pending_delete = true;
    log.ok(vec![StoreAction::Update(Object::Service(Box::new(
        leaving,
    )))]);
    refused(&mut log, make(3, "10.1.0.254"), "belongs to service");
    log.ok(vec![remove(ObjectKey::Service(ServiceId::from_bits(2)))]);
    log.ok(vec![make(3, "10.1.0.254")]);
    assert_eq!(check_invariants(&log.state), []);
}

#[test]
fn a_network_in_use_is_not_removed() {
    let mut log = Log::with_nodes();
    log.ok(vec![create_network(network(1, "backend"))]);
    let key = ObjectKey::Network(BACKEND);
    log.ok(vec![create(Object::Service(Box::new(with_vip(
        service(2, "db"),
        "10.1.0.254",
    ))))]);
    refused(&mut log, remove(key), "services are in the network");
    log.ok(vec![
        remove(ObjectKey::Service(ServiceId::from_bits(2))),
        create_lease(lease(1, 1, &["10.1.0.0/28"])),
    ]);
    refused(&mut log, remove(key), "nodes still have addresses");
    let lease_key = ObjectKey::Lease(BACKEND, NodeId::from_bits(1));
    log.ok(vec![remove(lease_key), remove(key)]);
    assert_eq!(log.state.networks().count(), 0);
    let gone = with_vip(service(2, "db"), "10.1.0.254");
    let gone = log.refused(vec![create(Object::Service(Box::new(gone)))]);
    assert!(gone.to_string().contains("has gone"), "{gone}");
}

#[test]
fn a_port_on_every_node_belongs_to_one_service() {
    let mut log = Log::with_nodes();
    let make = |id: u128, mode: PublishMode| {
        let mut service = service(id, &format!("s{id}"));
        service.ports.push(PortConfig {
            target: 1,
            published: 80,
            mode,
            ..PortConfig::default()
        });
        create(Object::Service(Box::new(service)))
    };
    log.ok(vec![make(2, PublishMode::Ingress)]);
    for mode in [PublishMode::Ingress, PublishMode::Host] {
        refused(
            &mut log,
            make(3, mode),
            "the name `80/tcp` is in use by published port of service `s2`",
        );
    }
    let mut leaving = Service::clone(log.state.service(ServiceId::from_bits(2)).unwrap());
    leaving.pending_delete = true;
    log.ok(vec![StoreAction::Update(Object::Service(Box::new(
        leaving,
    )))]);
    log.ok(vec![make(3, PublishMode::Host), make(4, PublishMode::Host)]);
    assert_eq!(check_invariants(&log.state), []);
}

#[test]
fn an_address_of_the_mesh_belongs_to_one_node_for_good() {
    let mut log = Log::with_nodes();
    let mesh = |number: u8| MeshAddress {
        ipv4: [10, 255, 0, number].into(),
        ipv6: u128::from(number).into(),
    };
    let give = |node: u128, number: u8| StoreAction::SetNodeMesh {
        node_id: NodeId::from_bits(node),
        mesh: mesh(number),
    };
    log.ok(vec![give(1, 1)]);
    refused(
        &mut log,
        give(2, 1),
        "has the address 10.255.0.1 in the mesh",
    );
    assert_eq!(log.ok(vec![give(1, 9)]), [], "it keeps the one that it has");
    assert_eq!(log.ok(vec![give(77, 5)]), [], "an unknown node is ignored");
    let holder = log.state.mesh_holder([10, 255, 0, 1].into());
    assert_eq!(holder, Some(NodeId::from_bits(1)));
    log.ok(vec![remove(ObjectKey::Node(NodeId::from_bits(1)))]);
    log.ok(vec![give(2, 1)]);
    assert_eq!(check_invariants(&log.state), []);
}
