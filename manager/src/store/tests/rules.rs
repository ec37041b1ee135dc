//! The rules of `apply`, one test each.

use super::fixture::{
    Log, NODE_NANO_CPUS, create, create_task, desire, node, report, service, task, with_cpus,
    with_port, with_volume,
};
use crate::store::check_invariants;
use shoal_model::command::{Object, ObjectKey, Rejection, StoreAction};
use shoal_model::volume::SlotKey;
use shoal_model::{
    Availability, Node, NodeId, NodeRole, Service, ServiceId, TaskId, TaskState, Version,
};
use std::sync::Arc;

const SLOT_1: SlotKey = SlotKey {
    service_id: ServiceId::from_bits(1),
    slot: 1,
};

#[test]
fn an_update_from_an_old_version_is_refused() {
    let mut log = Log::with_nodes();
    let mut stored = Service::clone(log.state.service_by_name("web").unwrap());
    stored.spec.labels.insert("a".to_owned(), "b".to_owned());
    log.ok(vec![StoreAction::Update(Object::Service(Box::new(
        stored.clone(),
    )))]);
    let refused = log.refused(vec![StoreAction::Update(Object::Service(Box::new(stored)))]);
    assert_eq!(
        refused,
        Rejection::Stale {
            key: ObjectKey::Service(ServiceId::from_bits(1)),
            expected: Version(1),
            found: Version(2)
        }
    );
}

#[test]
fn names_are_unique_and_free_again_once_the_holder_goes() {
    let mut log = Log::with_nodes();
    let second = || create(Object::Service(Box::new(service(2, "web"))));
    let refused = log.refused(vec![second()]);
    assert!(matches!(refused, Rejection::NameTaken { .. }), "{refused}");
    let mut leaving = Service::clone(log.state.service_by_name("web").unwrap());
    leaving.pending_delete = true;
    log.ok(vec![StoreAction::Update(Object::Service(Box::new(
        leaving,
    )))]);
    log.ok(vec![second()]);
    let key = ObjectKey::Service(ServiceId::from_bits(1));
    log.ok(vec![StoreAction::Remove { key, version: None }]);
    let holder = log.state.service_by_name("web").unwrap();
    assert_eq!(holder.id, ServiceId::from_bits(2));
    assert_eq!(check_invariants(&log.state), []);
}

#[test]
fn an_entry_is_applied_as_a_whole_or_not_at_all() {
    let mut log = Log::with_nodes();
    let missing = ObjectKey::Task(TaskId::from_bits(77));
    let refused = log.refused(vec![
        create_task(task(1, 1)),
        StoreAction::Remove {
            key: missing,
            version: None,
        },
    ]);
    assert_eq!(refused, Rejection::NotFound(missing));
}

#[test]
fn the_observed_state_only_moves_forward_and_an_end_is_final() {
    let mut log = Log::with_nodes();
    log.ok(vec![create_task(task(1, 1))]);
    log.ok(vec![report(1, TaskState::Running)]);
    assert_eq!(
        log.task(1).status.state,
        TaskState::Pending,
        "only Assign binds"
    );
    log.ok(vec![log.assign(1, 1)]);
    log.ok(vec![report(1, TaskState::Running)]);
    let changes = log.ok(vec![report(1, TaskState::Starting)]);
    assert_eq!(changes, []);
    log.ok(vec![report(1, TaskState::Failed)]);
    log.ok(vec![report(1, TaskState::Orphaned)]);
    log.ok(vec![report(1, TaskState::Running)]);
    assert_eq!(log.task(1).status.state, TaskState::Failed);
}

#[test]
fn a_report_of_the_same_state_brings_new_details() {
    let mut log = Log::with_nodes();
    log.ok(vec![create_task(task(1, 1))]);
    log.ok(vec![log.assign(1, 1)]);
    log.ok(vec![report(1, TaskState::Running)]);
    let mut status = log.task(1).status.clone();
    status.ready = true;
    status.restarts = 3;
    status.err = "x".repeat(10_000);
    log.ok(vec![StoreAction::SetTaskStatus {
        task_id: TaskId::from_bits(1),
        status: Box::new(status),
    }]);
    let stored = &log.task(1).status;
    assert!(stored.ready && stored.restarts == 3);
    assert_eq!(stored.err.len(), 4_096, "texts are bounded");
}

#[test]
fn the_desired_state_only_moves_forward() {
    let mut log = Log::with_nodes();
    log.ok(vec![
        create_task(task(1, 1)),
        desire(1, TaskState::Shutdown),
    ]);
    assert_eq!(log.ok(vec![desire(1, TaskState::Running)]), []);
    assert_eq!(log.task(1).desired, TaskState::Shutdown);
    log.refused(vec![desire(1, TaskState::Starting)]);
}

#[test]
fn a_plan_from_an_old_view_of_the_task_is_refused() {
    let mut log = Log::with_nodes();
    log.ok(vec![create_task(task(1, 1))]);
    let plan = log.assign(1, 1);
    let mut status = log.task(1).status.clone();
    status.message = "waits".to_owned();
    log.ok(vec![StoreAction::SetTaskStatus {
        task_id: TaskId::from_bits(1),
        status: Box::new(status),
    }]);
    assert!(matches!(log.refused(vec![plan]), Rejection::Stale { .. }));
}

#[test]
fn a_task_is_bound_once() {
    let mut log = Log::with_nodes();
    log.ok(vec![create_task(task(1, 1))]);
    log.ok(vec![log.assign(1, 1)]);
    log.refused(vec![log.assign(1, 2)]);
}

#[test]
fn a_node_that_takes_no_tasks_gets_none() {
    let mut log = Log::with_nodes();
    log.ok(vec![create_task(task(1, 1))]);
    let mut drained = Node::clone(log.state.node(NodeId::from_bits(1)).unwrap());
    drained.spec.availability = Availability::Drain;
    log.ok(vec![StoreAction::Update(Object::Node(Box::new(drained)))]);
    let refused = log.refused(vec![log.assign(1, 1)]);
    assert!(
        refused.to_string().contains("the node is ready and drain"),
        "{refused}"
    );
}

#[test]
fn a_host_port_and_reservations_are_given_once() {
    let mut log = Log::with_nodes();
    log.ok(vec![
        create_task(with_port(task(1, 1), 80)),
        create_task(with_port(task(2, 2), 80)),
        create_task(with_cpus(task(3, 3), NODE_NANO_CPUS)),
        create_task(with_cpus(task(4, 4), 1)),
    ]);
    log.ok(vec![log.assign(1, 1), log.assign(3, 2)]);
    let port = log.refused(vec![log.assign(2, 1)]);
    assert!(port.to_string().contains("port 80/tcp is used"), "{port}");
    let cpus = log.refused(vec![log.assign(4, 2)]);
    assert!(cpus.to_string().contains("reservations"), "{cpus}");
    log.ok(vec![
        report(1, TaskState::Failed),
        report(3, TaskState::Complete),
    ]);
    log.ok(vec![log.assign(2, 1), log.assign(4, 2)]);
    assert_eq!(check_invariants(&log.state), []);
}

#[test]
fn a_slot_stays_where_its_volume_is() {
    let mut log = Log::with_nodes();
    log.ok(vec![create_task(with_volume(task(1, 1), "data"))]);
    log.ok(vec![log.assign(1, 1)]);
    let first = log.task(1).volumes.clone();
    assert!(!first[0].must_exist);
    log.ok(vec![
        StoreAction::SetVolumesMaterialized {
            node_id: NodeId::from_bits(1),
            names: vec!["data".to_owned(), "unknown".to_owned()],
        },
        report(1, TaskState::Failed),
        create_task(with_volume(task(2, 1), "data")),
    ]);
    let refused = log.refused(vec![log.assign(2, 2)]);
    assert!(
        refused.to_string().contains("its volume `data` is on node"),
        "{refused}"
    );
    log.ok(vec![log.assign(2, 1)]);
    let second = log.task(2).volumes.clone();
    assert_eq!(second[0].volume_id, first[0].volume_id);
    assert!(second[0].must_exist, "never a silently empty volume");
    let volume_id = first[0].volume_id;
    let removal = StoreAction::Remove {
        key: ObjectKey::Volume(volume_id),
        version: None,
    };
    log.refused(vec![removal]);
    log.ok(vec![
        report(2, TaskState::Failed),
        create_task(with_volume(task(3, 1), "data")),
        StoreAction::UnbindVolume {
            volume_id,
            slot: SLOT_1,
        },
    ]);
    log.ok(vec![log.assign(3, 2)]);
    assert_eq!(
        log.state.home_of(SLOT_1, "data"),
        Some(NodeId::from_bits(2))
    );
    assert_eq!(check_invariants(&log.state), []);
}

#[test]
fn a_volume_that_was_planned_with_and_is_gone_refuses_the_plan() {
    let mut log = Log::with_nodes();
    log.ok(vec![create_task(with_volume(task(1, 1), "data"))]);
    let stored = log.task(1);
    let plan = StoreAction::Assign {
        task_id: stored.id,
        version: stored.meta.version,
        node_id: NodeId::from_bits(1),
        new_volumes: Vec::new(),
        endpoints: Vec::new(),
    };
    assert!(matches!(
        log.refused(vec![plan]),
        Rejection::DoesNotFit { .. }
    ));
}

#[test]
fn a_running_task_is_not_deleted_until_its_node_has_left() {
    let mut log = Log::with_nodes();
    log.ok(vec![create_task(task(1, 1))]);
    log.ok(vec![log.assign(1, 1), desire(1, TaskState::Remove)]);
    let key = ObjectKey::Task(TaskId::from_bits(1));
    let remove = || StoreAction::Remove { key, version: None };
    log.refused(vec![remove()]);
    assert_eq!(log.state.tasks_removable().count(), 0);
    let node = ObjectKey::Node(NodeId::from_bits(1));
    log.refused(vec![StoreAction::Remove {
        key: node,
        version: None,
    }]);
    log.ok(vec![
        report(1, TaskState::Orphaned),
        StoreAction::Remove {
            key: node,
            version: None,
        },
    ]);
    assert_eq!(log.state.tasks_removable().count(), 1);
    log.ok(vec![remove()]);
    assert_eq!(check_invariants(&log.state), []);
}

#[test]
fn a_service_goes_after_its_tasks_and_frees_its_volumes() {
    let mut log = Log::with_nodes();
    log.ok(vec![create_task(with_volume(task(1, 1), "data"))]);
    log.ok(vec![log.assign(1, 1)]);
    let key = ObjectKey::Service(ServiceId::from_bits(1));
    let remove = || StoreAction::Remove { key, version: None };
    log.refused(vec![remove()]);
    log.ok(vec![
        report(1, TaskState::Shutdown),
        StoreAction::Remove {
            key: ObjectKey::Task(TaskId::from_bits(1)),
            version: None,
        },
        remove(),
    ]);
    assert_eq!(log.state.volumes_bound_to(SLOT_1).count(), 0);
    assert_eq!(log.state.volumes().count(), 1, "the data stays");
}

#[test]
fn a_join_token_has_its_uses_and_no_more() {
    let mut log = Log::with_nodes();
    let join = StoreAction::UseJoinToken {
        role: NodeRole::Worker,
    };
    log.ok(vec![join.clone()]);
    log.ok(vec![join.clone()]);
    assert_eq!(log.refused(vec![join]), Rejection::TokenUsedUp);
    log.ok(vec![StoreAction::UseJoinToken {
        role: NodeRole::Manager,
    }]);
}

#[test]
fn raft_ids_belong_to_one_node_and_are_counted() {
    let mut log = Log::with_nodes();
    let placed = |node: u128| StoreAction::SetNodeRole {
        node_id: NodeId::from_bits(node),
        role: NodeRole::Manager,
        manager: Some(shoal_model::node::ManagerStatus {
            raft_id: shoal_model::RaftNodeId(7),
            addr: ([127, 0, 0, 1], 2377).into(),
        }),
    };
    log.ok(vec![placed(1)]);
    log.refused(vec![placed(2)]);
    assert_eq!(log.state.cluster().unwrap().last_raft_id, 7);
}

#[test]
fn a_node_can_not_change_its_key() {
    let mut log = Log::with_nodes();
    let mut other = Node::clone(log.state.node(NodeId::from_bits(1)).unwrap());
    other.public_key_digest = node(2).public_key_digest;
    log.refused(vec![StoreAction::Update(Object::Node(Box::new(other)))]);
}

#[test]
fn tasks_of_one_version_share_their_spec() {
    let mut log = Log::with_nodes();
    log.ok((1..=4)
        .map(|id| create_task(with_cpus(task(id, 1), 5)))
        .collect());
    let first = &log.task(1).spec;
    for id in 2..=4 {
        assert!(Arc::ptr_eq(first, &log.task(id).spec), "{id}");
    }
}

#[test]
fn a_spec_over_its_bound_is_refused() {
    let mut log = Log::with_nodes();
    let mut large = service(2, "large");
    large.spec.task.container.env = vec!["A=".to_owned() + &"x".repeat(2 << 20)];
    let refused = log.refused(vec![create(Object::Service(Box::new(large)))]);
    assert!(
        refused.to_string().contains("at most 1048576 are stored"),
        "{refused}"
    );
}
