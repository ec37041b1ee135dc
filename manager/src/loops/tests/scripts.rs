//! Behaviour of the loops as scripts: one step a line, `= …` compares the wanted tasks.

use super::world::{Host, World};
use shoal_model::network::NetworkAttachment;
use shoal_model::spec::{
    FailureAction, Mount, MountKind, OnPartition, PortConfig, PublishMode, RestartCondition,
    UpdateOrder,
};
use shoal_model::{Availability, Labels, NodeState, ServiceMode, ServiceSpec, TaskState};
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Runs a script.
///
/// `node NAME [key=value]`, `drain|active|pause|kill|cut|heal|stuck|unstuck|bye|forget NODE`, `label NODE KEY VALUE`,
/// `service NAME REPLICAS|global [options]`, `scale NAME N`, `update NAME`, `delete NAME`, `sick NAME STATE`,
/// `well NAME`, `fail|reject|complete NAME.SLOT`, `rebind NAME SLOT`, `wait SECONDS`, `leader` (loops start over),
/// `mesh NODE` (it has a WireGuard key), `network NAME SUBNET`, `attach CONTAINER NODE NETWORK`, `detach CONTAINER`,
/// `unconfirmed|confirmed` (what every node has applied), `leases NETWORK LEASES`, `addresses NETWORK N`,
/// `= TASKS`, `refused NAME.SLOT TEXT`, `status NAME TEXT`, `containers N`.
pub(super) fn check(script: &str) {
    let mut world = World::new();
    for line in script
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
    {
        step(&mut world, line);
        world.settle();
    }
}

pub(super) fn step(world: &mut World, line: &str) {
    let words: Vec<&str> = line.split_whitespace().collect();
    let since = world.since();
    match words.as_slice() {
        ["node", name, labels @ ..] => {
            let labels: Vec<_> = labels.iter().filter_map(|l| l.split_once('=')).collect();
            world.add_node(name, &labels);
        }
        ["drain", name] => world.set_availability(name, Availability::Drain),
        ["active", name] => world.set_availability(name, Availability::Active),
        ["pause", name] => world.set_availability(name, Availability::Pause),
        ["kill", name] => world.power(world.node(name), Host::Dead(since)),
        ["cut", name] => world.power(world.node(name), Host::Cut(since)),
        ["heal", name] => world.power(world.node(name), Host::Up),
        ["bye", name] => world.set_node_state(world.node(name), NodeState::Disconnected),
        ["forget", name] => world.forget_node(name),
        ["stuck", name] => drop(world.stuck.insert(world.node(name))),
        ["unstuck", name] => drop(world.stuck.remove(&world.node(name))),
        ["label", name, key, value] => world.change_node(name, |node| {
            node.spec
                .labels
                .insert((*key).to_owned(), (*value).to_owned());
        }),
        ["service", name, mode, options @ ..] => {
            let mut spec = service(name, mode, options);
            spec.task.networks = networks(world, options);
            world.add_service(spec);
        }
        ["scale", name, replicas] => world.scale(name, replicas.parse().unwrap()),
        ["update", name] => world.change_service(name, |service| {
            service.previous_spec = Some(Box::new(service.spec.clone()));
            service.spec.task.force_update += 1;
            service.spec_version += 1;
            service.update_status = None;
        }),
        ["delete", name] => world.remove_service(name),
        ["sick", name, state] => {
            let state = if *state == "failed" {
                TaskState::Failed
            } else {
                TaskState::Rejected
            };
            world.sick.insert(world.service(name).id, state);
        }
        ["well", name] => drop(world.sick.remove(&world.service(name).id)),
        ["fail", task] => world.report_end(task, TaskState::Failed),
        ["reject", task] => world.report_end(task, TaskState::Rejected),
        ["complete", task] => world.report_end(task, TaskState::Complete),
        ["rebind", name, slot] => world.unbind(name, slot.parse().unwrap()),
        ["wait", seconds] => {
            world.wait(Duration::from_millis(
                (seconds.parse::<f64>().unwrap() * 1e3) as u64,
            ));
        }
        ["leader"] => world.restart_loops(),
        ["=", ..] => assert_eq!(world.show(), line[1..].trim(), "{line}"),
        ["containers", count] => assert_eq!(world.containers().to_string(), *count, "{line}"),
        ["refused", task, text @ ..] => refused(world, task, &text.join(" ")),
        ["status", name, text @ ..] => {
            let service = world.service(name);
            let status = service
                .update_status
                .as_ref()
                .map_or("", |s| s.message.as_str());
            assert_eq!(status, text.join(" "), "{line}");
        }
        words => assert!(network_step(world, words, line), "not a step: {line}"),
    }
}

/// A step that concerns networks; false: it does not.
fn network_step(world: &mut World, words: &[&str], line: &str) -> bool {
    match words {
        ["mesh", name] => world.describe_wireguard(name),
        ["network", name, subnet] => world.add_network(name, subnet),
        ["attach", container, node, network] => world.attach(container, node, network),
        ["detach", container] => world.detach(container),
        ["unconfirmed"] => world.confirmed.store(0, Ordering::Relaxed),
        ["confirmed"] => world.confirmed.store(u64::MAX, Ordering::Relaxed),
        ["leases", network, leases @ ..] => {
            assert_eq!(world.leases(network), leases.join(" "), "{line}");
        }
        ["addresses", network, count] => {
            let network = world.state.network_by_name(network).unwrap();
            let all = world.state.endpoints_in(network.id, network.subnets.ipv4);
            assert_eq!(all.count().to_string(), *count, "{line}");
        }
        _ => return false,
    }
    true
}

fn refused(world: &World, name: &str, text: &str) {
    let told: Vec<String> = world
        .state
        .tasks_unassigned()
        .filter(|task| format!("{}.{}", task.service_name, task.slot) == name)
        .flat_map(|task| task.status.refusals.clone())
        .map(|refusal| format!("{} -> {}", refusal.reason, refusal.fix))
        .collect();
    assert!(
        told.iter().any(|told| told.contains(text)),
        "{name}: {told:?}"
    );
}

fn networks(world: &World, options: &[&str]) -> Vec<NetworkAttachment> {
    let names = options.iter().filter_map(|it| it.strip_prefix("net="));
    let places = names.map(|name| NetworkAttachment {
        network_id: world.network(name),
        aliases: Vec::new(),
    });
    places.collect()
}

fn service(name: &str, mode: &str, options: &[&str]) -> ServiceSpec {
    let mut spec = ServiceSpec {
        name: name.to_owned(),
        mode: match mode {
            "global" => ServiceMode::Global,
            replicas => ServiceMode::Replicated {
                replicas: replicas.parse().unwrap(),
            },
        },
        ..ServiceSpec::default()
    };
    spec.update.monitor_ns = 0;
    let number = |text: &str| text.parse::<u64>().unwrap();
    for option in options {
        match option.split_once('=').unwrap_or((option, "")) {
            ("constraint", text) => spec.task.placement.constraints.push(text.to_owned()),
            ("volume", name) => spec.task.container.mounts.push(Mount {
                kind: MountKind::Volume {
                    name: name.to_owned(),
                    driver: String::new(),
                    options: BTreeMap::new(),
                    labels: Labels::new(),
                    no_copy: false,
                },
                target: "/data".to_owned(),
                read_only: false,
            }),
            ("port", port) => spec.endpoint.ports.push(PortConfig {
                target: 80,
                published: port.parse().unwrap(),
                ..PortConfig::default()
            }),
            ("publish", port) => spec.endpoint.ports.push(PortConfig {
                target: 80,
                published: port.parse().unwrap(),
                mode: PublishMode::Ingress,
                ..PortConfig::default()
            }),
            ("net", _) => {}
            ("restart", "none") => spec.task.restart.condition = RestartCondition::None,
            ("restart", "on-failure") => {
                spec.task.restart.condition = RestartCondition::OnFailure;
            }
            ("delay", seconds) => {
                spec.task.restart.delay_ns = Some(number(seconds) * 1_000_000_000);
            }
            ("attempts", count) => spec.task.restart.max_attempts = Some(number(count)),
            ("stop", _) => spec.on_partition = Some(OnPartition::Stop),
            ("down-limit", seconds) => spec.down_limit_ms = Some(number(seconds) * 1_000),
            ("start-first", _) => spec.update.order = UpdateOrder::StartFirst,
            ("parallel", count) => spec.update.parallelism = number(count),
            ("update-delay", seconds) => spec.update.delay_ns = number(seconds) * 1_000_000_000,
            ("monitor", seconds) => spec.update.monitor_ns = number(seconds) * 1_000_000_000,
            ("rollback", _) => spec.update.failure_action = FailureAction::Rollback,
            ("continue", _) => spec.update.failure_action = FailureAction::Continue,
            (other, _) => panic!("no option {other}"),
        }
    }
    spec
}

#[test]
fn replicas_spread_over_nodes_and_scale() {
    check(
        "node a
         node b
         service web 3
         = web.1@a web.2@b web.3@a
         scale web 5
         = web.1@a web.2@b web.3@a web.4@b web.5@a
         scale web 2
         = web.1@a web.2@b
         scale web 0
         =
         containers 0
         delete web",
    );
}

#[test]
fn scaling_down_takes_what_does_not_run_first() {
    check(
        "node a
         service web 2 port=80
         = web.1@a web.2@-
         refused web.2 host port 80/tcp is in use by `web`
         fail web.1
         scale web 1
         = web.1@a",
    );
}

#[test]
fn tasks_of_a_dead_host_move_and_its_return_changes_nothing() {
    check(
        "node a
         node b
         service web 2
         = web.1@a web.2@b
         kill b
         wait 2.5
         = web.1@a web.2@b
         wait 0.5
         = web.1@a web.2@a
         heal b
         = web.1@a web.2@a
         containers 2",
    );
}

#[test]
fn a_service_may_give_a_silent_node_more_time() {
    check(
        "node a
         node b
         service web 2 down-limit=10
         kill b
         wait 9
         = web.1@a web.2@b
         leader
         wait 8
         = web.1@a web.2@a",
    );
}

#[test]
fn a_node_that_says_goodbye_is_replaced_but_stop_tasks_wait_for_the_lease() {
    check(
        "node a
         node b
         service web 2
         service db 2 stop
         = db.1@a db.2@b web.1@a web.2@b
         cut b
         bye b
         = db.1@a web.1@a web.2@a
         wait 2.75
         = db.1@a web.1@a web.2@a
         wait 0.25
         = db.1@a db.2@a web.1@a web.2@a",
    );
}

#[test]
fn a_drained_node_loses_its_tasks_when_they_have_stopped() {
    check(
        "node a
         node b
         service web 2
         stuck b
         drain b
         = web.1@a
         unstuck b
         = web.1@a web.2@a
         active b
         = web.1@a web.2@a
         scale web 3
         = web.1@a web.2@a web.3@b",
    );
}

#[test]
fn a_task_leaves_a_node_whose_label_no_longer_fits() {
    check(
        "node a zone=east
         node b zone=west
         service web 1 constraint=node.labels.zone==east
         = web.1@a
         label b zone east
         = web.1@a
         label a zone north
         = web.1@b
         label b zone north
         = web.1@-
         refused web.1 `node.labels.zone == east` does not hold on `a`, `b`
         label a zone east
         = web.1@a",
    );
}

#[test]
fn failed_tasks_are_retried_with_growing_waits() {
    check(
        "node a
         service web 1
         sick web failed
         fail web.1
         = web.1@-
         well web
         wait 1
         = web.1@a
         service bad 1
         sick bad rejected
         reject bad.1
         = bad.1@- web.1@a
         wait 0.75
         = bad.1@- web.1@a
         well bad
         wait 60
         = bad.1@a web.1@a",
    );
}

#[test]
fn the_restart_policy_is_obeyed() {
    check(
        "node a
         service job 1 restart=none
         complete job.1
         = job.1@a:complete
         service once 1 restart=on-failure
         fail once.1
         = job.1@a:complete once.1@a
         complete once.1
         = job.1@a:complete once.1@a:complete
         service late 1 delay=5
         fail late.1
         wait 4.75
         = job.1@a:complete late.1@- once.1@a:complete
         wait 0.25
         = job.1@a:complete late.1@a once.1@a:complete
         service few 1 attempts=2
         fail few.1
         fail few.1
         wait 5",
    );
    check(
        "node a
         service few 1 attempts=1
         fail few.1
         = few.1@a
         fail few.1
         wait 100
         = few.1@a:failed",
    );
}

#[test]
fn a_global_service_follows_the_nodes() {
    check(
        "node a zone=east
         node b zone=west
         service all global constraint=node.labels.zone!=west
         = all.0@a
         node c zone=east
         = all.0@a all.0@c
         label b zone east
         = all.0@a all.0@b all.0@c
         pause b
         = all.0@a all.0@b all.0@c
         drain c
         = all.0@a all.0@b
         kill b
         wait 5
         = all.0@a all.0@b
         heal b
         active b
         active c
         fail all.0
         = all.0@a all.0@b all.0@c
         delete all
         =
         containers 0",
    );
}

#[test]
fn a_slot_waits_for_its_volume_until_it_is_told_otherwise() {
    check(
        "node a
         node b
         service db 2 volume=data
         = db.1@a db.2@b
         kill b
         wait 10
         = db.1@a db.2@-
         refused db.2 volume `data` of slot `db.2` is on node `b`
         refused db.2 shoal svc rebind-volume --slot 2 --volume data db
         heal b
         = db.1@a db.2@b
         kill b
         wait 10
         rebind db 2
         = db.1@a db.2@a",
    );
}

#[test]
fn a_slot_comes_back_to_its_volume_after_scaling() {
    check(
        "node a
         node b
         node c
         service db 3 volume=data
         = db.1@a db.2@b db.3@c
         scale db 1
         service web 4
         delete web
         scale db 3
         = db.1@a db.2@b db.3@c",
    );
}

#[test]
fn an_update_stops_first_one_at_a_time() {
    check(
        "node a
         node b
         service web 2 port=80
         stuck a
         stuck b
         update web
         = web.2@b
         status web update in progress
         unstuck a
         unstuck b
         = web.1@a/2 web.2@b/2
         status web update completed",
    );
}

#[test]
fn an_update_waits_between_batches_and_for_its_monitor() {
    check(
        "node a
         service web 3 update-delay=2 monitor=5 parallel=2
         update web
         = web.1@a/2 web.2@a/2 web.3@a
         wait 1.75
         = web.1@a/2 web.2@a/2 web.3@a
         wait 0.25
         = web.1@a/2 web.2@a/2 web.3@a/2
         status web update in progress
         wait 5
         status web update completed",
    );
}

#[test]
fn an_update_starts_first_when_told_to() {
    check(
        "node a
         node b
         service web 1 start-first
         = web.1@a
         stuck a
         update web
         = web.1@b/2
         containers 2
         unstuck a
         containers 1
         status web update completed",
    );
}

#[test]
fn a_failing_update_pauses_and_keeps_the_rest() {
    check(
        "node a
         service web 3
         sick web failed
         update web
         status web update paused: 1 task of the new version failed
         well web
         wait 60
         = web.1@a/2 web.2@a web.3@a",
    );
}

#[test]
fn a_failing_update_that_starts_first_loses_no_replica() {
    check(
        "node a
         service web 2 start-first
         sick web rejected
         update web
         = web.1@a web.2@a
         containers 2
         status web update paused: 1 task of the new version failed",
    );
}

#[test]
fn a_failing_update_rolls_back_when_told_to() {
    check(
        "node a
         service web 2 rollback start-first
         sick web failed
         update web
         = web.1@a web.2@a
         containers 2
         status web update completed",
    );
}

#[test]
fn a_removed_service_is_gone_when_its_last_task_has_stopped() {
    let mut world = World::new();
    for line in ["node a", "service web 2", "stuck a", "delete web"] {
        step(&mut world, line);
        world.settle();
    }
    assert_eq!(world.state.tasks_len(), 2);
    assert_eq!(world.state.services().count(), 1);
    step(&mut world, "unstuck a");
    world.settle();
    assert_eq!(world.state.tasks_len(), 0);
    assert_eq!(world.state.services().count(), 0);
}

#[test]
fn history_is_bounded() {
    let mut world = World::new();
    for line in ["node a", "service web 1 delay=0"] {
        step(&mut world, line);
        world.settle();
    }
    for _ in 0..12 {
        step(&mut world, "fail web.1");
        world.wait(Duration::from_secs(60));
    }
    assert_eq!(world.show(), "web.1@a");
    assert_eq!(world.state.tasks_len(), 1 + 5);
}

#[test]
fn tasks_of_a_node_that_never_comes_back_are_given_up_after_a_day() {
    let mut world = World::new();
    for line in [
        "node a",
        "node b",
        "service web 2",
        "kill b",
        "wait 5",
        "delete web",
    ] {
        step(&mut world, line);
        world.settle();
    }
    assert_eq!(world.state.tasks_len(), 1);
    for _ in 0..24 {
        world.skip(Duration::from_secs(3_600));
    }
    assert_eq!(world.state.tasks_len(), 0);
    assert_eq!(world.state.services().count(), 0);
}

#[test]
fn a_removed_node_frees_its_slots() {
    check(
        "node a
         node b
         service web 2
         forget b
         = web.1@a web.2@a",
    );
}
