//! Properties of placement over generated clusters, and the words of refusals.

#![expect(clippy::unwrap_used, reason = "a test may fail")]

use proptest::prelude::*;
use shoal_model::spec::{PortConfig, Protocol, PublishMode, TaskSpec};
use shoal_model::volume::SlotKey;
use shoal_model::{
    Availability, Labels, Meta, Node, NodeDescription, NodeId, NodeRole, NodeSpec, NodeState,
    NodeStatus, Resources, ServiceId, Task, TaskId, TaskState, TaskStatus, Timestamp, Volume,
    VolumeId,
};
use shoal_scheduler::{Cluster, FAILURES_MAX, TaskRequest, constraint, explain, fits, schedule};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

const NOW: Timestamp = Timestamp(1_000_000_000_000);

#[derive(Debug, Clone)]
struct World {
    nodes: Vec<Node>,
    tasks: Vec<Task>,
}

fn node(id: u128, zone: u8, memory: i64, availability: Availability, state: NodeState) -> Node {
    Node {
        id: NodeId::from_bits(id),
        meta: Meta::default(),
        spec: NodeSpec {
            name: format!("n{id}"),
            labels: Labels::from([("zone".to_owned(), format!("z{zone}"))]),
            availability,
            ..NodeSpec::default()
        },
        description: Some(NodeDescription {
            hostname: format!("host{id}"),
            os: "linux".to_owned(),
            architecture: "amd64".to_owned(),
            resources: Resources {
                nano_cpus: 4_000_000_000,
                memory_bytes: memory,
            },
            ..NodeDescription::default()
        }),
        status: NodeStatus {
            state,
            ..NodeStatus::default()
        },
        role: NodeRole::Worker,
        manager: None,
        public_key_digest: [0; 32],
        hold_until: None,
        mesh: None,
    }
}

fn ready(id: u128) -> Node {
    node(id, 0, 1 << 30, Availability::Active, NodeState::Ready)
}

fn task(id: u128, service: u128, slot: u64, spec: &Arc<TaskSpec>) -> Task {
    Task {
        id: TaskId::from_bits(id),
        meta: Meta::default(),
        service_id: ServiceId::from_bits(service),
        service_name: format!("s{service}"),
        slot,
        node_id: None,
        spec: Arc::clone(spec),
        spec_version: 1,
        ports: Vec::new(),
        on_partition: shoal_model::spec::OnPartition::Keep,
        desired: TaskState::Running,
        status: TaskStatus {
            state: TaskState::Pending,
            ..TaskStatus::default()
        },
        volumes: Vec::new(),
        monitor_until: None,
        endpoints: Vec::new(),
        not_before: None,
    }
}

fn with_port(mut task: Task, port: u16) -> Task {
    task.ports = vec![PortConfig {
        protocol: Protocol::Tcp,
        target: 80,
        published: port,
        mode: PublishMode::Host,
        ..PortConfig::default()
    }];
    task
}

fn nodes() -> impl Strategy<Value = Vec<Node>> {
    let one = (0..4u8, 1..8i64, 0..10u8, 0..10u8);
    proptest::collection::vec(one, 1..40).prop_map(|all| {
        all.into_iter()
            .zip(1u128..)
            .map(|((zone, memory, availability, state), id)| {
                let availability = match availability {
                    0 => Availability::Drain,
                    1 => Availability::Pause,
                    _ => Availability::Active,
                };
                let state = if state == 0 {
                    NodeState::Down
                } else {
                    NodeState::Ready
                };
                node(id, zone, memory << 20, availability, state)
            })
            .collect()
    })
}

fn services() -> impl Strategy<Value = Vec<(TaskSpec, u16, usize)>> {
    let one = (0..4u8, 0..3i64, 0..4u64, 0..4u16, 1..12usize);
    let one = one.prop_map(|(zone, memory, max_per_node, port, count)| {
        let mut spec = TaskSpec::default();
        match zone {
            0 => spec.placement.constraints = vec!["node.labels.zone==z0".to_owned()],
            1 => spec.placement.constraints = vec!["node.labels.zone != z1".to_owned()],
            _ => {}
        }
        spec.resources.reservations.memory_bytes = memory << 20;
        spec.placement.max_replicas_per_node = max_per_node;
        (spec, if port == 1 { 8_000 } else { 0 }, count)
    });
    proptest::collection::vec(one, 1..5)
}

/// Some tasks run already, the others wait.
fn worlds() -> impl Strategy<Value = World> {
    (
        nodes(),
        services(),
        proptest::collection::vec(0..200usize, 0..30),
    )
        .prop_map(|(nodes, services, assigned)| {
            let mut tasks = Vec::new();
            for (number, (spec, port, count)) in (1u128..).zip(services) {
                let spec = Arc::new(spec);
                for slot in 1..=count {
                    let id = number * 1_000 + slot as u128;
                    let mut task = task(id, number, slot as u64, &spec);
                    if port != 0 {
                        task = with_port(task, port);
                    }
                    tasks.push(task);
                }
            }
            for (position, choice) in assigned.into_iter().enumerate() {
                if let Some(task) = tasks.get_mut(position * 3) {
                    task.node_id = Some(nodes[choice % nodes.len()].id);
                    task.status.state = TaskState::Running;
                }
            }
            World { nodes, tasks }
        })
}

fn view(world: &World) -> Cluster {
    let mut cluster = Cluster::new();
    world
        .nodes
        .iter()
        .for_each(|node| cluster.upsert_node(node));
    world
        .tasks
        .iter()
        .for_each(|task| cluster.upsert_task(task));
    cluster
}

fn waiting(world: &World) -> Vec<TaskRequest> {
    world
        .tasks
        .iter()
        .filter(|task| task.node_id.is_none())
        .map(TaskRequest::from)
        .collect()
}

/// What a node has left, counted from the objects and not from the view.
struct Use {
    memory: i64,
    tasks: u32,
    per_service: BTreeMap<ServiceId, u32>,
    ports: BTreeSet<u16>,
}

fn used(node: &Node, tasks: &[Task]) -> Use {
    let here = || tasks.iter().filter(|task| task.node_id == Some(node.id));
    let mut per_service = BTreeMap::new();
    here().for_each(|task| *per_service.entry(task.service_id).or_default() += 1);
    Use {
        memory: here()
            .map(|t| t.spec.resources.reservations.memory_bytes)
            .sum(),
        tasks: here().count() as u32,
        per_service,
        ports: here()
            .flat_map(|t| t.ports.iter().map(|p| p.published))
            .collect(),
    }
}

fn allowed(node: &Node, task: &Task, used: &Use) -> bool {
    let placement = &task.spec.placement;
    let memory = task.spec.resources.reservations.memory_bytes;
    let capacity = node.description.as_ref().unwrap().resources.memory_bytes;
    let here = used.per_service.get(&task.service_id).copied().unwrap_or(0);
    node.takes_tasks()
        && constraint::parse(&placement.constraints)
            .unwrap()
            .iter()
            .all(|constraint| constraint.matches(node))
        && (memory == 0 || used.memory + memory <= capacity)
        && (placement.max_replicas_per_node == 0
            || u64::from(here) < placement.max_replicas_per_node)
        && task
            .ports
            .iter()
            .all(|port| !used.ports.contains(&port.published))
}

/// The rule of placement written down naively: each task in order goes to the best of all nodes that allow it.
fn naive(world: &World) -> Vec<(TaskId, NodeId)> {
    let mut tasks = world.tasks.clone();
    let mut placements = Vec::new();
    for position in 0..tasks.len() {
        if tasks[position].node_id.is_some() {
            continue;
        }
        let best = world
            .nodes
            .iter()
            .filter_map(|node| {
                let used = used(node, &tasks);
                let task = &tasks[position];
                let here = used.per_service.get(&task.service_id).copied().unwrap_or(0);
                allowed(node, task, &used).then_some((here, used.tasks, node.id))
            })
            .min();
        if let Some((_, _, node_id)) = best {
            tasks[position].node_id = Some(node_id);
            placements.push((tasks[position].id, node_id));
        }
    }
    placements
}

proptest! {
    #[test]
    fn the_plan_is_the_naive_one(world in worlds()) {
        let plan = schedule(&mut view(&world), &waiting(&world), NOW);
        prop_assert_eq!(plan.placements, naive(&world));
    }

    #[test]
    fn placing_twice_changes_nothing(world in worlds()) {
        let mut cluster = view(&world);
        let requests = waiting(&world);
        let first = schedule(&mut cluster, &requests, NOW);
        let second = schedule(&mut cluster, &requests, NOW);
        prop_assert!(second.placements.is_empty());
        prop_assert_eq!(second.unplaced, first.unplaced);
    }

    #[test]
    fn order_of_the_input_does_not_matter(world in worlds(), seed in any::<u64>()) {
        let mut shuffled = world.clone();
        let key = |id: u128| (id as u64 ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        shuffled.nodes.sort_by_key(|node| key(node.id.bits()));
        shuffled.tasks.sort_by_key(|task| key(task.id.bits()));
        let plan = schedule(&mut view(&world), &waiting(&world), NOW);
        let other = schedule(&mut view(&shuffled), &waiting(&shuffled), NOW);
        prop_assert_eq!(plan, other);
    }

    #[test]
    fn an_incremental_view_is_the_full_one(world in worlds()) {
        // Everything comes late, twice, and partly goes: the view must end where a fresh one starts.
        let mut cluster = Cluster::new();
        world.tasks.iter().for_each(|task| cluster.upsert_task(task));
        world.nodes.iter().for_each(|node| {
            let mut drained = node.clone();
            drained.spec.availability = Availability::Drain;
            cluster.upsert_node(&drained);
            cluster.upsert_node(node);
        });
        schedule(&mut cluster, &waiting(&world), NOW);
        world.tasks.iter().for_each(|task| cluster.remove_task(task.id));
        world.nodes.iter().for_each(|node| cluster.remove_node(node.id));
        world.nodes.iter().rev().for_each(|node| cluster.upsert_node(node));
        world.tasks.iter().for_each(|task| cluster.upsert_task(task));
        prop_assert_eq!(
            schedule(&mut cluster, &waiting(&world), NOW),
            schedule(&mut view(&world), &waiting(&world), NOW)
        );
    }

    #[test]
    fn every_unplaced_task_is_refused_everywhere_with_words(world in worlds()) {
        let mut cluster = view(&world);
        let requests = waiting(&world);
        let plan = schedule(&mut cluster, &requests, NOW);
        for (task_id, refusals) in &plan.unplaced {
            let request = requests.iter().find(|r| r.task_id == *task_id).unwrap();
            prop_assert!(!refusals.is_empty());
            prop_assert_eq!(refusals.iter().map(|r| r.nodes as usize).sum::<usize>(), world.nodes.len());
            for refusal in refusals {
                prop_assert!(!refusal.reason.is_empty() && !refusal.fix.is_empty(), "{:?}", refusal);
            }
            for node in &world.nodes {
                prop_assert!(fits(&cluster, node.id, request).is_err());
            }
        }
    }

    #[test]
    fn branches_of_a_spread_differ_by_at_most_one(zones in proptest::collection::vec(1..6usize, 1..6), count in 1..40usize) {
        let mut cluster = Cluster::new();
        let mut zone_of = BTreeMap::new();
        let mut id = 0;
        for (zone, &size) in zones.iter().enumerate() {
            for _ in 0..size {
                id += 1;
                cluster.upsert_node(&node(id, zone as u8, 1 << 30, Availability::Active, NodeState::Ready));
                zone_of.insert(NodeId::from_bits(id), zone);
            }
        }
        let mut spec = TaskSpec::default();
        spec.placement.spread = vec!["node.labels.zone".to_owned()];
        let spec = Arc::new(spec);
        let requests: Vec<_> = (1..=count)
            .map(|slot| TaskRequest::from(&task(slot as u128, 1, slot as u64, &spec)))
            .collect();
        let plan = schedule(&mut cluster, &requests, NOW);
        prop_assert_eq!(plan.placements.len(), count);
        let mut per_zone = vec![0usize; zones.len()];
        plan.placements.iter().for_each(|(_, node_id)| per_zone[zone_of[node_id]] += 1);
        let least = per_zone.iter().min().unwrap();
        let most = per_zone.iter().max().unwrap();
        prop_assert!(most - least <= 1, "{:?}", per_zone);
    }
}

/// Places one task and returns its node, or the reasons and fixes.
fn place(cluster: &mut Cluster, task: &Task) -> Result<u128, String> {
    let plan = schedule(cluster, &[TaskRequest::from(task)], NOW);
    match plan.placements.first() {
        Some((_, node_id)) => Ok(node_id.bits()),
        None => Err(plan.unplaced[0]
            .1
            .iter()
            .map(|r| format!("{} x{}: {} -> {}", r.filter, r.nodes, r.reason, r.fix))
            .collect::<Vec<_>>()
            .join(" | ")),
    }
}

fn cluster_of(nodes: &[Node]) -> Cluster {
    let mut cluster = Cluster::new();
    nodes.iter().for_each(|node| cluster.upsert_node(node));
    cluster
}

#[test]
fn refusals_name_the_object_and_the_way_out() {
    let mut drained = ready(2);
    drained.spec.availability = Availability::Drain;
    let mut cluster = cluster_of(&[ready(1), drained]);
    let mut spec = TaskSpec::default();
    spec.resources.reservations.memory_bytes = (1 << 30) + (200 << 20);
    assert_eq!(
        place(&mut cluster, &task(1, 1, 1, &Arc::new(spec))).unwrap_err(),
        "ready x1: `n2` is drained -> run `shoal node update --availability active n2`, or add a node | \
         resources x1: not enough free memory on 1 node: 1224 MiB needed -> \
         free 200 MiB on `n1`, or lower --reserve-memory"
    );
    let mut spec = TaskSpec::default();
    spec.placement.constraints = vec!["node.labels.disk==ssd".to_owned()];
    let refused = place(&mut cluster, &task(2, 2, 1, &Arc::new(spec))).unwrap_err();
    assert!(
        refused.contains(
            "constraint x1: `node.labels.disk == ssd` does not hold on `n1` -> \
             run `shoal node update --label-add disk=ssd n1`, or remove the constraint"
        ),
        "{refused}"
    );
    let spec = Arc::new(TaskSpec::default());
    let holder = with_port(task(3, 3, 1, &spec), 80);
    assert_eq!(place(&mut cluster, &holder), Ok(1));
    let refused = place(&mut cluster, &with_port(task(4, 4, 1, &spec), 80)).unwrap_err();
    assert!(
        refused.contains("host-port x1: host port 80/tcp is in use by `s3` on 1 node (`n1`)"),
        "{refused}"
    );
}

#[test]
fn an_empty_cluster_says_so() {
    let spec = Arc::new(TaskSpec::default());
    let refused = place(&mut Cluster::new(), &task(1, 1, 1, &spec)).unwrap_err();
    assert_eq!(
        refused,
        "ready x0: the cluster has no nodes -> add one: `shoal join`"
    );
}

fn mounting(name: &str) -> Arc<TaskSpec> {
    let mut spec = TaskSpec::default();
    spec.container.mounts.push(shoal_model::spec::Mount {
        kind: shoal_model::spec::MountKind::Volume {
            name: name.to_owned(),
            driver: String::new(),
            options: BTreeMap::new(),
            labels: Labels::new(),
            no_copy: false,
        },
        target: "/data".to_owned(),
        read_only: false,
    });
    Arc::new(spec)
}

fn volume(id: u128, name: &str, node: u128, slots: &[(u128, u64)]) -> Volume {
    Volume {
        id: VolumeId::from_bits(id),
        meta: Meta::default(),
        name: name.to_owned(),
        node_id: NodeId::from_bits(node),
        driver: "local".to_owned(),
        labels: Labels::new(),
        options: Labels::new(),
        bound_slots: slots
            .iter()
            .map(|&(service, slot)| SlotKey {
                service_id: ServiceId::from_bits(service),
                slot,
            })
            .collect(),
        materialized: true,
    }
}

#[test]
fn a_slot_runs_only_where_its_volume_is() {
    let spec = mounting("data");
    let mut cluster = cluster_of(&[ready(1), ready(2), ready(3)]);
    cluster.upsert_volume(&volume(9, "data", 3, &[(1, 1)]));
    assert_eq!(place(&mut cluster, &task(1, 1, 1, &spec)), Ok(3));
    // The second slot is free to go where the least is; it is bound from then on.
    assert_eq!(place(&mut cluster, &task(2, 1, 2, &spec)), Ok(1));
    cluster.remove_task(TaskId::from_bits(2));
    let mut down = ready(1);
    down.status.state = NodeState::Down;
    cluster.upsert_node(&down);
    let refused = place(&mut cluster, &task(3, 1, 2, &spec)).unwrap_err();
    assert!(refused.starts_with("ready x1: `n1` is down"), "{refused}");
    assert!(
        refused.contains("volume `data` of slot `s1.2` is on node `n1`, not on `n2`, `n3`"),
        "{refused}"
    );
    assert!(
        refused.contains("`shoal svc rebind-volume --slot 2 --volume data s1`"),
        "{refused}"
    );
    // Freed from its volume, the slot may go on.
    cluster.upsert_volume(&volume(8, "data", 1, &[(1, 2)]));
    cluster.upsert_volume(&volume(8, "data", 1, &[]));
    assert_eq!(place(&mut cluster, &task(3, 1, 2, &spec)), Ok(2));
}

#[test]
fn data_without_a_claimant_is_found_again() {
    let spec = mounting("data");
    let mut cluster = cluster_of(&[ready(1), ready(2), ready(3)]);
    cluster.upsert_volume(&volume(9, "data", 3, &[]));
    assert_eq!(place(&mut cluster, &task(1, 1, 1, &spec)), Ok(3));
    assert_eq!(place(&mut cluster, &task(2, 1, 2, &spec)), Ok(1));
}

#[test]
fn a_node_that_keeps_failing_comes_last_until_the_window_passes() {
    let spec = Arc::new(TaskSpec::default());
    let mut cluster = cluster_of(&[ready(1), ready(2)]);
    for failure in 0..FAILURES_MAX {
        let mut failed = task(100 + failure as u128, 1, 1, &spec);
        failed.node_id = Some(NodeId::from_bits(1));
        failed.status.state = TaskState::Failed;
        failed.status.at = Timestamp(NOW.0 - 1_000 - failure as i64);
        cluster.upsert_task(&failed);
    }
    let later = Timestamp(NOW.0 + 301_000_000_000);
    let request = TaskRequest::from(&task(1, 1, 1, &spec));
    let node_at =
        |now| schedule(&mut cluster.clone(), std::slice::from_ref(&request), now).placements[0].1;
    assert_eq!(node_at(NOW).bits(), 2);
    assert_eq!(node_at(later).bits(), 1);
    // Another service is not concerned.
    assert_eq!(place(&mut cluster.clone(), &task(2, 2, 1, &spec)), Ok(1));
}

#[test]
fn a_preset_node_is_the_only_one_asked() {
    let spec = Arc::new(TaskSpec::default());
    let mut cluster = cluster_of(&[ready(1), ready(2)]);
    let mut global = task(1, 1, 0, &spec);
    global.node_id = Some(NodeId::from_bits(2));
    assert_eq!(place(&mut cluster, &global), Ok(2));
    let mut paused = ready(2);
    paused.spec.availability = Availability::Pause;
    cluster.upsert_node(&paused);
    global.id = TaskId::from_bits(2);
    let refused = place(&mut cluster, &global).unwrap_err();
    assert!(refused.starts_with("ready x1: `n2` is paused"), "{refused}");
    let told = explain(&cluster, &TaskRequest::from(&global));
    assert_eq!(told.len(), 1);
    assert_eq!(told[0].node_name, "n2");
}

#[test]
fn a_task_that_needs_an_address_runs_only_on_nodes_of_the_mesh() {
    let mut cluster = Cluster::new();
    let mut meshed = ready(2);
    meshed.mesh = Some(shoal_model::network::MeshAddress {
        ipv4: [10, 255, 0, 2].into(),
        ipv6: 2.into(),
    });
    cluster.upsert_node(&ready(1));
    let mut published = task(1, 1, 1, &Arc::new(TaskSpec::default()));
    published.ports.push(PortConfig {
        target: 80,
        published: 80,
        mode: PublishMode::Ingress,
        ..PortConfig::default()
    });
    let plain = task(2, 2, 1, &Arc::new(TaskSpec::default()));
    let requests = [TaskRequest::from(&published), TaskRequest::from(&plain)];
    let plan = schedule(&mut cluster, &requests, NOW);
    assert_eq!(
        plan.placements,
        [(TaskId::from_bits(2), NodeId::from_bits(1))]
    );
    let (_, refusals) = &plan.unplaced[0];
    assert_eq!(refusals[0].filter, "network");
    assert!(
        refusals[0]
            .reason
            .starts_with("`n1` is not part of the network across hosts"),
        "{refusals:?}"
    );
    cluster.upsert_node(&meshed);
    let plan = schedule(&mut cluster, &requests[..1], NOW);
    assert_eq!(
        plan.placements,
        [(TaskId::from_bits(1), NodeId::from_bits(2))]
    );
}
