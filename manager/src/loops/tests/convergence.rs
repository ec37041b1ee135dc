//! Whatever happened: once it stops, every service has what it declares, and nothing else runs.

use super::world::{Host, World};
use proptest::prelude::*;
use shoal_model::network::NetworkAttachment;
use shoal_model::spec::{Mount, MountKind, OnPartition, UpdateOrder};
use shoal_model::{Availability, Labels, NodeId, ServiceMode, ServiceSpec, TaskState};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

const NODES: usize = 4;
const SERVICES: usize = 3;

#[derive(Debug, Clone)]
enum Event {
    Kill(usize),
    Cut(usize),
    Heal(usize),
    Drain(usize),
    Activate(usize),
    Stick(usize),
    Unstick(usize),
    Scale(usize, u64),
    Update(usize),
    Sicken(usize, bool),
    Cure(usize),
    Wait(u64),
    NewLeader,
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let node = 0..NODES;
    let service = 0..SERVICES;
    let one = prop_oneof![
        node.clone().prop_map(Event::Kill),
        node.clone().prop_map(Event::Cut),
        node.clone().prop_map(Event::Heal),
        node.clone().prop_map(Event::Drain),
        node.clone().prop_map(Event::Activate),
        node.clone().prop_map(Event::Stick),
        node.prop_map(Event::Unstick),
        (service.clone(), 0..7u64).prop_map(|(s, n)| Event::Scale(s, n)),
        service.clone().prop_map(Event::Update),
        (service.clone(), any::<bool>()).prop_map(|(s, failed)| Event::Sicken(s, failed)),
        service.prop_map(Event::Cure),
        (1..8_000u64).prop_map(Event::Wait),
        Just(Event::NewLeader),
    ];
    proptest::collection::vec(one, 1..25)
}

/// A plain one that starts first, one with a volume, a global one.
fn specs() -> [ServiceSpec; SERVICES] {
    let named = |name: &str, mode| ServiceSpec {
        name: name.to_owned(),
        mode,
        ..ServiceSpec::default()
    };
    let mut web = named("web", ServiceMode::Replicated { replicas: 3 });
    web.update.order = UpdateOrder::StartFirst;
    let mut db = named("db", ServiceMode::Replicated { replicas: 2 });
    db.on_partition = Some(OnPartition::Stop);
    db.task.container.mounts.push(Mount {
        kind: MountKind::Volume {
            name: "data".to_owned(),
            driver: String::new(),
            options: BTreeMap::new(),
            labels: Labels::new(),
            no_copy: false,
        },
        target: "/data".to_owned(),
        read_only: false,
    });
    [web, db, named("all", ServiceMode::Global)]
}

const NAMES: [&str; SERVICES] = ["web", "db", "all"];

fn happen(world: &mut World, event: &Event) {
    let id = |node: usize| NodeId::from_bits(node as u128 + 1);
    let name = |node: usize| format!("n{}", node + 1);
    let since = world.since();
    match *event {
        Event::Kill(n) if world.hosts[&id(n)] == Host::Up => world.power(id(n), Host::Dead(since)),
        Event::Cut(n) if world.hosts[&id(n)] == Host::Up => world.power(id(n), Host::Cut(since)),
        Event::Kill(_) | Event::Cut(_) => {}
        Event::Heal(n) => world.power(id(n), Host::Up),
        Event::Drain(n) => world.set_availability(&name(n), Availability::Drain),
        Event::Activate(n) => world.set_availability(&name(n), Availability::Active),
        Event::Stick(n) => drop(world.stuck.insert(id(n))),
        Event::Unstick(n) => drop(world.stuck.remove(&id(n))),
        Event::Scale(2, _) => {}
        Event::Scale(s, n) => world.scale(NAMES[s], n),
        Event::Update(s) => world.change_service(NAMES[s], |service| {
            service.spec.task.force_update += 1;
            service.spec_version += 1;
            service.update_status = None;
        }),
        Event::Sicken(s, failed) => {
            let state = if failed {
                TaskState::Failed
            } else {
                TaskState::Rejected
            };
            world.sick.insert(world.service(NAMES[s]).id, state);
        }
        Event::Cure(s) => drop(world.sick.remove(&world.service(NAMES[s]).id)),
        Event::Wait(ms) => world.wait(Duration::from_millis(ms)),
        Event::NewLeader => world.restart_loops(),
    }
    world.settle();
}

fn heal(world: &mut World) {
    world.sick.clear();
    world.stuck.clear();
    for node in 0..NODES {
        happen(world, &Event::Activate(node));
        happen(world, &Event::Heal(node));
    }
    // A paused update waits for its user, who comes now.
    for name in NAMES {
        world.change_service(name, |service| service.update_status = None);
    }
    world.wait(Duration::from_secs(200));
}

/// A world with the services, in a network with few addresses to spare if `networked`.
fn populated(networked: bool) -> World {
    let mut world = World::new();
    if networked {
        world.add_network("net", "10.1.0.0/27");
    }
    for node in 1..=NODES {
        let name = format!("n{node}");
        world.add_node(&name, &[]);
        if networked {
            world.describe_wireguard(&name);
        }
    }
    world.settle();
    for mut spec in specs() {
        if networked {
            spec.task.networks.push(NetworkAttachment {
                network_id: world.network("net"),
                aliases: Vec::new(),
            });
        }
        world.add_service(spec);
    }
    world
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
    #[test]
    fn after_the_faults_every_service_has_what_it_declares(
        events in events(),
        networked in any::<bool>(),
    ) {
        let mut world = populated(networked);
        world.settle();
        events.iter().for_each(|event| happen(&mut world, event));
        heal(&mut world);

        let mut expected = 0;
        for name in NAMES {
            let service = world.service(name);
            let running: Vec<_> = world
                .state
                .tasks_by_service(service.id)
                .filter(|task| task.desired <= TaskState::Running)
                .collect();
            for task in &running {
                prop_assert_eq!(task.status.state, TaskState::Running, "{}", world.show());
                prop_assert_eq!(task.spec_version, service.spec_version, "{}", world.show());
                prop_assert_eq!(task.endpoints.len(), usize::from(networked));
            }
            let places: BTreeSet<_> = running
                .iter()
                .map(|task| (task.slot, task.node_id.filter(|_| task.slot == 0)))
                .collect();
            let wanted = match service.spec.mode {
                ServiceMode::Replicated { replicas } => replicas as usize,
                ServiceMode::Global => NODES,
            };
            prop_assert_eq!(running.len(), wanted, "{}: {}", name, world.show());
            prop_assert_eq!(places.len(), wanted, "{}: {}", name, world.show());
            expected += wanted;
        }
        prop_assert_eq!(world.containers(), expected, "{}", world.show());
        // Nobody keeps addresses that nobody uses: each node runs at least its task of the global service.
        let leased = world.state.leases().flat_map(|lease| &lease.blocks);
        let idle = leased.filter(|block| {
            let network = world.network("net");
            world.state.endpoints_in(network, **block).next().is_none()
        });
        prop_assert_eq!(idle.count(), 0);
    }
}
