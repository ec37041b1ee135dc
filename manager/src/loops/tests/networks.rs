//! Networks, as scripts: addresses come with nodes, go with proof, and are given back.

use super::scripts::{check, step};
use super::world::World;
use crate::allocator;
use shoal_model::command::{Object, StoreAction};
use shoal_model::{Service, TaskState};
use std::sync::atomic::Ordering;
use std::time::Duration;

#[test]
fn tasks_in_networks_wait_for_a_node_that_is_part_of_the_mesh() {
    check(
        "node a
         network backend 10.1.0.0/24
         service web 2 net=backend
         service plain 1
         = plain.1@a web.1@- web.2@-
         refused web.1 `a` is not part of the network across hosts
         node b
         mesh b
         = plain.1@a web.1@b web.2@b
         addresses backend 2
         leases backend b:28",
    );
}

#[test]
fn a_published_port_gives_tasks_an_address_in_the_built_in_network() {
    check(
        "node a
         service web 2 publish=80
         = web.1@- web.2@-
         mesh a
         = web.1@a web.2@a
         addresses ingress 2
         leader
         node b
         mesh b
         addresses ingress 2
         network backend 10.1.0.0/24
         service api 1 publish=81 net=backend
         addresses ingress 2
         addresses backend 1",
    );
}

#[test]
fn global_services_get_an_address_on_every_node() {
    check(
        "node a
         node b
         mesh a
         mesh b
         network backend 10.1.0.0/24
         service agent global net=backend
         = agent.0@a agent.0@b
         leases backend a:28 b:28
         node c
         refused agent.0 `c` is not part of the network
         mesh c
         = agent.0@a agent.0@b agent.0@c
         addresses backend 3",
    );
}

#[test]
fn a_full_network_is_a_reason_with_numbers_and_waits_for_a_free_address() {
    check(
        "node a
         node b
         mesh a
         mesh b
         network small 10.1.0.0/29
         service web 3 net=small
         service db 2 net=small
         = db.1@- db.2@- web.1@a web.2@b web.3@a
         refused db.1 network `small` (10.1.0.0/29): all 5 addresses are in use
         refused db.2 3 by tasks and containers on 2 nodes, 2 as virtual addresses of services
         scale web 2
         = db.1@a db.2@- web.1@a web.2@b
         delete web
         = db.1@a db.2@b",
    );
}

#[test]
fn an_address_is_free_only_after_the_proof_of_the_end() {
    check(
        "node a
         mesh a
         network small 10.1.0.0/29
         service web 3 net=small
         stuck a
         scale web 0
         addresses small 3
         service db 1 net=small publish=80
         = db.1@-
         unstuck a
         = db.1@a
         addresses small 1",
    );
}

#[test]
fn a_lost_node_s_addresses_are_not_given_to_the_replacements() {
    check(
        "node a
         node b
         mesh a
         mesh b
         network backend 10.1.0.0/24
         service web 2 net=backend
         cut a
         wait 10
         = web.1@b web.2@b
         addresses backend 3
         heal a
         addresses backend 2",
    );
}

#[test]
fn leases_are_given_back_when_nobody_has_used_them_for_a_minute() {
    check(
        "node a
         mesh a
         network backend 10.1.0.0/16
         service web 40 net=backend
         leases backend a:28,28,27
         scale web 1
         wait 59
         leases backend a:28,28,27
         scale web 40
         wait 30
         scale web 1
         wait 59
         leases backend a:28,28,27
         wait 2
         addresses backend 1
         scale web 0
         wait 61
         leases backend
         service other 1 net=backend
         leases backend a:28",
    );
}

#[test]
fn a_container_s_lease_goes_a_minute_after_it() {
    check(
        "node a
         mesh a
         network backend 10.1.0.0/16
         attach c1 a backend
         wait 100
         leases backend a:28
         detach c1
         wait 59
         leases backend a:28
         leader
         wait 59
         leases backend a:28
         wait 2
         leases backend",
    );
}

#[test]
fn what_a_removed_node_had_comes_back_once_nobody_sends_there_any_more() {
    check(
        "node a
         node b
         mesh a
         mesh b
         network backend 10.1.0.0/24
         attach c1 a backend
         service web 2 net=backend
         leases backend a:28 b:28
         unconfirmed
         forget a
         addresses backend 2
         leases backend ?:28 b:28
         wait 2
         leases backend ?:28 b:28
         confirmed
         wait 1
         leases backend b:28",
    );
}

#[test]
fn silence_about_a_removed_node_is_waited_out() {
    check(
        "node a
         node b
         mesh a
         mesh b
         network backend 10.1.0.0/24
         attach c1 a backend
         unconfirmed
         forget a
         wait 2
         leases backend ?:28
         wait 2
         leases backend",
    );
}

#[test]
fn a_mesh_address_rests_with_its_node_until_everybody_knows() {
    let mut world = World::new();
    let mesh = |world: &World, name: &str| {
        let node = world.state.node(world.node(name)).unwrap();
        node.mesh.map(|mesh| mesh.ipv4.to_string())
    };
    world.add_node("a", &[]);
    world.settle();
    assert_eq!(mesh(&world, "a"), None);
    world.describe_wireguard("a");
    world.settle();
    assert_eq!(mesh(&world, "a").as_deref(), Some("10.255.0.1"));
    world.confirmed.store(0, Ordering::Relaxed);
    world.forget_node("a");
    for (name, expected) in [("b", "10.255.0.2"), ("c", "10.255.0.3")] {
        world.add_node(name, &[]);
        world.describe_wireguard(name);
        world.settle();
        assert_eq!(mesh(&world, name).as_deref(), Some(expected));
    }
    world.wait(Duration::from_secs(4));
    world.add_node("d", &[]);
    world.describe_wireguard("d");
    world.settle();
    assert_eq!(mesh(&world, "d").as_deref(), Some("10.255.0.1"));
}

#[test]
fn a_rollback_brings_back_the_networks_and_what_the_service_had_there() {
    let mut world = World::new();
    for line in [
        "node a",
        "mesh a",
        "network old 10.1.0.0/24",
        "network new 10.2.0.0/24",
        "service web 1 net=old publish=0 rollback",
    ] {
        step(&mut world, line);
        world.settle();
    }
    let before = Service::clone(&world.service("web"));
    let mut updated = before.clone();
    updated.previous_spec = Some(Box::new(before.spec.clone()));
    updated.spec.task.networks[0].network_id = world.network("new");
    updated.spec.endpoint.ports.clear();
    updated.spec_version += 1;
    let mut actions = allocator::service::fill(&world.state, &mut updated).unwrap();
    assert_ne!(updated.vips, before.vips);
    actions.push(StoreAction::Update(Object::Service(Box::new(updated))));
    world.sick.insert(before.id, TaskState::Failed);
    world.apply(actions);
    world.settle();
    world.sick.clear();
    world.wait(Duration::from_secs(60));
    let after = world.service("web");
    assert_eq!((&after.vips, &after.ports), (&before.vips, &before.ports));
    let task = world.state.tasks_by_service(before.id);
    let task = task.max_by_key(|task| task.spec_version).unwrap();
    assert_eq!(task.endpoints[0].network_id, world.network("old"));
    assert_eq!(task.status.state, TaskState::Running);
}
