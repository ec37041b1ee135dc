//! Laws that hold for every log: random entries, sensible and senseless ones.

use super::fixture::{
    Log, attachment, bytes, bytes_but_version, cluster, copy_through_snapshot, create, desire,
    endpoint, lease, network, node, report, service, status, task, with_cpus, with_network,
    with_port, with_volume,
};
use crate::store::{State, check_invariants};
use proptest::prelude::*;
use shoal_model::command::{Command, Object, ObjectKey, Outcome, StoreAction};
use shoal_model::network::{MeshAddress, ServiceVip};
use shoal_model::node::ManagerStatus;
use shoal_model::spec::{PortConfig, PublishMode};
use shoal_model::volume::SlotKey;
use shoal_model::{
    ContainerId, NetworkId, NodeId, NodeRole, NodeState, NodeStatus, RaftNodeId, ServiceId, TaskId,
    TaskState, Timestamp, Version, VolumeId,
};

/// An action before it is made concrete: small numbers, so that actions meet the same objects.
#[derive(Debug, Clone)]
struct Draft {
    kind: u8,
    a: u8,
    b: u8,
    stale: bool,
}

fn drafts() -> impl Strategy<Value = Vec<Vec<Draft>>> {
    let draft = (0..32_u8, 0..6_u8, 0..14_u8, prop::bool::weighted(0.1))
        .prop_map(|(kind, a, b, stale)| Draft { kind, a, b, stale });
    prop::collection::vec(prop::collection::vec(draft, 1..4), 1..80)
}

fn action(state: &State, draft: &Draft) -> StoreAction {
    let (a, b) = (u128::from(draft.a), u128::from(draft.b));
    let task_id = TaskId::from_bits(a);
    let node_id = NodeId::from_bits(b % 4);
    let task_state = TaskState::ALL[usize::from(draft.b)];
    match draft.kind {
        0 => create(Object::Cluster(Box::new(cluster()))),
        1 => create(Object::Node(Box::new(node(a % 4)))),
        2 => create(Object::Service(Box::new(service(
            a % 3,
            ["x", "y"][draft.b as usize % 2],
        )))),
        3..=5 => create(Object::Task(Box::new(new_task(draft)))),
        6..=9 => assign(state, draft),
        10 | 11 => report(a, task_state),
        12 => desire(a, task_state),
        13 => update(state, draft),
        14 => StoreAction::Remove {
            key: key(draft),
            version: draft.stale.then_some(Version(1)),
        },
        15 => StoreAction::SetNodeStatus {
            node_id,
            status: NodeStatus {
                state: if draft.stale {
                    NodeState::Down
                } else {
                    NodeState::Ready
                },
                ..NodeStatus::default()
            },
            description: None,
        },
        16 => StoreAction::SetNodeRole {
            node_id,
            role: NodeRole::Manager,
            manager: (a > 2).then(|| ManagerStatus {
                raft_id: RaftNodeId(u64::from(draft.a)),
                addr: ([127, 0, 0, 1], 1).into(),
            }),
        },
        17 => StoreAction::SetVolumesMaterialized {
            node_id,
            names: vec!["data".to_owned()],
        },
        18 => StoreAction::UnbindVolume {
            volume_id: state
                .volumes()
                .next()
                .map_or(VolumeId::MIN, |volume| volume.id),
            slot: SlotKey {
                service_id: ServiceId::from_bits(1),
                slot: u64::from(draft.a),
            },
        },
        19..=30 => network_action(state, draft),
        _ => StoreAction::SetTaskStatus {
            task_id,
            status: Box::new(status(TaskState::Orphaned)),
        },
    }
}

/// What concerns networks.
fn network_action(state: &State, draft: &Draft) -> StoreAction {
    let (a, b) = (u128::from(draft.a), u128::from(draft.b));
    let node_id = NodeId::from_bits(b % 4);
    match draft.kind {
        19 => create(Object::Network(Box::new(network(
            1 + a % 2,
            ["x", "y"][draft.b as usize % 2],
        )))),
        20 => lease_action(state, draft),
        21 | 22 => create(Object::Attachment(Box::new(attachment(
            draft.a,
            b % 4,
            &[(1, &address(draft))],
        )))),
        23..=25 => assign_networked(state, draft),
        26 => create(Object::Service(Box::new(service_with_vip(draft)))),
        27 => StoreAction::SetNodeMesh {
            node_id,
            mesh: MeshAddress {
                ipv4: [10, 255, 0, draft.a].into(),
                ipv6: u128::from(draft.a % 3).into(),
            },
        },
        _ => create(Object::Task(Box::new(with_network(
            task(a, b as u64 % 3),
            1,
        )))),
    }
}

/// One of a few addresses of network 1.
fn address(draft: &Draft) -> String {
    format!("10.1.0.{}", 2 + draft.a + 10 * (draft.b % 4))
}

/// Makes or changes a lease of network 1: small blocks that meet those of other nodes.
fn lease_action(state: &State, draft: &Draft) -> StoreAction {
    let blocks = [
        &["10.1.0.0/28"][..],
        &["10.1.0.0/29", "10.1.0.12/30"],
        &["10.1.0.8/29"],
        &["10.1.0.5/32", "10.1.0.16/28"],
        &["10.1.0.0/27"],
        &[],
    ][usize::from(draft.a)];
    let mut lease = lease(1, u128::from(draft.b % 4), blocks);
    match state.lease(lease.network_id, lease.node_id) {
        Some(stored) if !draft.stale => {
            lease.meta = stored.meta;
            StoreAction::Update(Object::Lease(Box::new(lease)))
        }
        Some(_) | None => create(Object::Lease(Box::new(lease))),
    }
}

fn assign_networked(state: &State, draft: &Draft) -> StoreAction {
    match assign(state, draft) {
        StoreAction::Assign {
            task_id,
            version,
            node_id,
            new_volumes,
            ..
        } => StoreAction::Assign {
            task_id,
            version,
            node_id,
            new_volumes,
            endpoints: vec![endpoint(1, &address(draft))],
        },
        other => other,
    }
}

fn service_with_vip(draft: &Draft) -> shoal_model::Service {
    let mut service = service(u128::from(draft.a % 3), ["x", "y"][draft.b as usize % 2]);
    let at = endpoint(1, &address(draft));
    service.vips.push(ServiceVip {
        network_id: at.network_id,
        ipv4: at.ipv4,
        ipv6: at.ipv6,
    });
    service.ports.push(PortConfig {
        target: 1,
        published: 80,
        mode: PublishMode::Ingress,
        ..PortConfig::default()
    });
    service
}

fn new_task(draft: &Draft) -> shoal_model::Task {
    let mut task = task(draft.a.into(), u64::from(draft.b % 3));
    if draft.b % 7 < 3 {
        task = with_network(task, 1);
    }
    if draft.b.is_multiple_of(2) {
        task = with_volume(task, "data");
    }
    if draft.b.is_multiple_of(3) {
        task = with_port(task, 80);
    }
    if draft.b.is_multiple_of(5) {
        task = with_cpus(task, 1_500_000_000);
    }
    if draft.stale {
        task.status = status(TaskState::Running);
    }
    task
}

fn assign(state: &State, draft: &Draft) -> StoreAction {
    let task_id = TaskId::from_bits(draft.a.into());
    let stored = state
        .task(task_id)
        .map_or(Version(0), |task| task.meta.version);
    let fresh = VolumeId::from_bits(u128::from(state.version().0) * 100 + u128::from(draft.a));
    StoreAction::Assign {
        task_id,
        version: if draft.stale { Version(1) } else { stored },
        node_id: NodeId::from_bits(u128::from(draft.b % 4)),
        new_volumes: vec![(fresh, "data".to_owned())],
        endpoints: Vec::new(),
    }
}

/// Writes an object back, sometimes from a version that was never there, sometimes with a state that goes back.
fn update(state: &State, draft: &Draft) -> StoreAction {
    let Some(entity) = state.get(key(draft)) else {
        return desire(draft.a.into(), TaskState::Remove);
    };
    let mut object = entity.to_object();
    match &mut object {
        Object::Task(task) if draft.stale => task.status = status(TaskState::New),
        Object::Service(service) => service.pending_delete |= draft.stale,
        Object::Node(node) => node.spec.name = format!("n{}", draft.b % 2),
        Object::Volume(volume) if draft.stale => volume.meta.version = Version(999),
        Object::Task(_)
        | Object::Volume(_)
        | Object::Cluster(_)
        | Object::Network(_)
        | Object::Lease(_)
        | Object::Attachment(_) => {}
    }
    StoreAction::Update(object)
}

fn key(draft: &Draft) -> ObjectKey {
    let a = u128::from(draft.a);
    match draft.b % 8 {
        0 => ObjectKey::Cluster,
        1 => ObjectKey::Node(NodeId::from_bits(a)),
        2 => ObjectKey::Service(ServiceId::from_bits(a % 3)),
        3 => ObjectKey::Task(TaskId::from_bits(a)),
        4 => ObjectKey::Network(NetworkId::from_bits(1 + a % 2)),
        5 => ObjectKey::Lease(NetworkId::from_bits(1), NodeId::from_bits(a % 4)),
        6 => ObjectKey::Attachment(ContainerId::from_bytes([draft.a; 32])),
        _ => ObjectKey::Volume(VolumeId::from_bits(a)),
    }
}

fn run(drafts: &[Vec<Draft>]) -> Log {
    let mut log = Log::with_network();
    for entry in drafts {
        let actions = entry
            .iter()
            .map(|draft| action(&log.state, draft))
            .collect();
        drop(log.apply(actions));
    }
    log
}

fn replay(start: State, entries: &[Command], first_index: u64) -> State {
    let mut state = start;
    for (index, entry) in (first_index..).zip(entries) {
        drop(state.apply(index, entry));
    }
    state
}

proptest! {
    #[test]
    fn no_log_breaks_an_invariant(drafts in drafts()) {
        let mut log = Log::with_network();
        for entry in &drafts {
            let actions = entry.iter().map(|draft| action(&log.state, draft)).collect();
            let before = log.state.clone();
            let (outcome, changes) = log.apply(actions);
            prop_assert_eq!(check_invariants(&log.state), []);
            if matches!(outcome, Outcome::Rejected(_)) {
                prop_assert_eq!(bytes_but_version(&log.state), bytes_but_version(&before));
            }
            for change in changes {
                prop_assert_eq!(&change.before, &before.get(change.key));
                prop_assert_eq!(&change.after, &log.state.get(change.key));
            }
        }
    }

    #[test]
    fn replicas_that_apply_one_log_hold_equal_bytes(drafts in drafts()) {
        let log = run(&drafts);
        let replica = replay(State::new(), &log.entries, 1);
        prop_assert_eq!(bytes(&replica), bytes(&log.state));
    }

    #[test]
    fn a_snapshot_and_the_tail_equal_the_whole_log(drafts in drafts(), cut in 0..100_usize) {
        let log = run(&drafts);
        let cut = cut.min(log.entries.len());
        let head = replay(State::new(), &log.entries[..cut], 1);
        let tail = replay(copy_through_snapshot(&head), &log.entries[cut..], cut as u64 + 1);
        prop_assert_eq!(bytes(&tail), bytes(&log.state));
        prop_assert_eq!(tail, log.state);
    }

    #[test]
    fn states_of_tasks_never_go_back(drafts in drafts()) {
        let log = run(&drafts);
        let mut state = State::new();
        for (index, entry) in (1..).zip(&log.entries) {
            let (_, changes) = state.apply(index, entry);
            for change in changes {
                // An entry may remove a task and make another one of the same id.
                let made = |action: &StoreAction| {
                    matches!(action, StoreAction::Create(object) if object.key() == change.key)
                };
                if entry.actions.iter().any(made) {
                    continue;
                }
                let task = |side: &Option<crate::store::Entity>| {
                    side.as_ref().and_then(|entity| entity.as_task().cloned())
                };
                if let (Some(before), Some(after)) = (task(&change.before), task(&change.after)) {
                    prop_assert!(before.desired <= after.desired);
                    prop_assert!(before.status.state <= after.status.state);
                    prop_assert!(before.node_id.is_none() || before.node_id == after.node_id);
                }
            }
        }
    }

    #[test]
    fn hostile_commands_do_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let mut framed = vec![shoal_model::codec::FORMAT_VERSION];
        framed.extend(bytes);
        if let Ok(actions) = shoal_model::codec::decode::<Vec<StoreAction>>(&framed) {
            let mut log = Log::with_network();
            drop(log.state.apply(9, &Command { time: Timestamp(0), actions }));
        }
    }
}
