//! The feed over a real store: what is told change by change is what is told at once.

mod world;

use super::term::{FeedTerm, Parcel};
use super::{Leases, view};
use crate::store::{State, Watcher};
use proptest::prelude::*;
use shoal_model::command::{ObjectKey, StoreAction};
use shoal_model::netstate::{EndpointId, NetState, NetUpdate};
use shoal_model::{NodeId, NodeState, ServiceId, TaskId, TaskState, Version};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use world::{World, container, lease, mesh, network, network_id, node, node_id, remove};

/// Nodes whose lease a test ends.
#[derive(Default)]
struct Live(Mutex<BTreeSet<NodeId>>);

impl Leases for Live {
    fn live(&self, _: &State) -> BTreeSet<NodeId> {
        self.0.lock().unwrap().clone()
    }
}

/// One node's end.
struct Follower {
    id: u64,
    state: NetState,
}

struct Scene {
    world: World,
    term: Arc<FeedTerm>,
    live: Arc<Live>,
    watcher: Watcher,
    followers: BTreeMap<u128, Follower>,
}

impl Scene {
    fn new(nodes: u128) -> Self {
        let world = World::new();
        let live = Arc::new(Live::default());
        live.0.lock().unwrap().extend((1..=nodes).map(node_id));
        let term = FeedTerm::new(
            world.store.clone(),
            Arc::clone(&live) as Arc<dyn Leases>,
            CancellationToken::new(),
        );
        let watcher = world.store.watch();
        let mut scene = Self {
            world,
            term: Arc::new(term),
            live,
            watcher,
            followers: BTreeMap::new(),
        };
        scene.world.ok((1..=nodes).map(node).collect());
        scene.world.ok((1..=nodes).map(mesh).collect());
        scene
    }

    fn open(&mut self, number: u128) {
        let (id, _) = self.term.open(node_id(number));
        let state = NetState::default();
        self.followers.insert(number, Follower { id, state });
    }

    fn follow(&mut self) {
        while let Some(item) = self.watcher.try_next() {
            self.term.take(item, &mut self.watcher);
        }
    }

    /// Takes what waits for a node, as it would come in messages; the version to acknowledge.
    fn receive(&mut self, number: u128) -> Option<Version> {
        let follower = self.followers.get_mut(&number).unwrap();
        let parcel: Parcel = self.term.parcel(node_id(number), follower.id).unwrap();
        let update = parcel.update?;
        let version = update.version;
        let mut first = true;
        for changes in update.changes.chunks(3) {
            let message = NetUpdate {
                complete: update.complete,
                version,
                changes: changes
                    .iter()
                    .map(super::term::Changed::to_change)
                    .collect(),
                more: true,
            };
            follower.state.take(message, first);
            first = false;
        }
        let last = NetUpdate {
            complete: update.complete,
            version,
            changes: Vec::new(),
            more: false,
        };
        follower.state.take(last, first);
        Some(version)
    }

    fn applied(&self, number: u128, version: Version) {
        let id = self.followers[&number].id;
        assert!(self.term.applied(node_id(number), id, version));
    }

    /// Receives and applies.
    fn settle(&mut self, number: u128) {
        self.follow();
        if let Some(version) = self.receive(number) {
            self.applied(number, version);
        }
    }

    /// As [`Self::settle`], for a node that may have been removed. False: its feed has ended.
    fn settle_if_open(&mut self, number: u128) -> bool {
        let id = self.followers.get(&number).map(|follower| follower.id);
        let open = id.is_some_and(|id| self.term.is_open(node_id(number), id));
        if !open {
            self.followers.remove(&number);
        } else if let Some(version) = self.receive(number) {
            self.applied(number, version);
        }
        open
    }

    fn told(&self, number: u128) -> &NetState {
        &self.followers[&number].state
    }

    fn wanted(&self, number: u128) -> NetState {
        view(&self.world.store.view(), node_id(number))
    }

    fn assert_told(&self, number: u128) {
        let mut wanted = self.wanted(number);
        wanted.version = self.told(number).version;
        assert_eq!(*self.told(number), wanted, "node {number}");
    }

    /// Two networks, a service with a task in each on nodes 1 and 2; node 3 is in none.
    fn with_two_networks() -> Self {
        let mut scene = Self::new(3);
        scene.world.ok(vec![network(2), network(3)]);
        scene.world.ok(vec![lease(2, 1), lease(3, 2)]);
        for (task, network, node) in [(1, 2, 1), (2, 3, 2)] {
            assert!(scene.world.add_service(task, &[network], false));
            assert!(scene.world.add_task(task, task, node));
            assert!(scene.world.report(task, TaskState::Running, true));
        }
        for number in 1..=3 {
            scene.open(number);
        }
        scene.follow();
        for number in 1..=3 {
            scene.settle(number);
        }
        scene
    }
}

fn task_key(number: u128) -> EndpointId {
    EndpointId::Task(TaskId::from_bits(number))
}

#[test]
fn a_node_is_told_of_its_own_networks_only() {
    let scene = Scene::with_two_networks();
    for number in 1..=3 {
        scene.assert_told(number);
    }
    let first = scene.told(1);
    assert_eq!(
        first.networks.keys().copied().collect::<Vec<_>>(),
        [network_id(2)]
    );
    assert_eq!(first.services.len(), 1);
    assert!(first.endpoints[&task_key(1)].in_rotation);
    assert_eq!(
        first.nodes.keys().copied().collect::<Vec<_>>(),
        [node_id(1)]
    );
    let third = scene.told(3);
    assert!(third.networks.is_empty() && third.endpoints.is_empty());
    assert_eq!(
        third.nodes.keys().copied().collect::<Vec<_>>(),
        [node_id(3)]
    );
}

#[test]
fn a_port_on_every_node_brings_its_tasks_their_nodes_and_leases_to_all() {
    let mut scene = Scene::with_two_networks();
    assert!(scene.world.toggle_ingress(1));
    for number in 1..=3 {
        scene.settle(number);
        scene.assert_told(number);
    }
    let third = scene.told(3);
    assert_eq!(third.services[&ServiceId::from_bits(1)].ports.len(), 1);
    assert!(third.endpoints.contains_key(&task_key(1)));
    assert!(third.nodes.contains_key(&node_id(1)));
    assert!(third.leases.contains_key(&(network_id(2), node_id(1))));
    assert!(!third.nodes.contains_key(&node_id(2)));
    assert!(scene.world.toggle_ingress(1));
    scene.settle(3);
    assert!(scene.told(3).endpoints.is_empty() && scene.told(3).leases.is_empty());
    scene.assert_told(3);
}

#[test]
fn a_lease_brings_a_node_into_a_network_and_its_end_takes_it_out() {
    let mut scene = Scene::with_two_networks();
    scene.world.ok(vec![lease(2, 3)]);
    scene.settle(3);
    scene.assert_told(3);
    assert!(scene.told(3).endpoints.contains_key(&task_key(1)));
    scene.settle(1);
    assert!(scene.told(1).nodes.contains_key(&node_id(3)));
    scene
        .world
        .ok(vec![remove(ObjectKey::Lease(network_id(2), node_id(3)))]);
    for number in [1, 3] {
        scene.settle(number);
        scene.assert_told(number);
    }
    assert!(!scene.told(1).nodes.contains_key(&node_id(3)));
    assert!(scene.told(3).networks.is_empty());
}

#[test]
fn a_task_leaves_rotation_when_it_is_to_go_and_when_its_node_is_lost() {
    let mut scene = Scene::with_two_networks();
    let turning = |scene: &mut Scene| {
        scene.settle(1);
        scene.assert_told(1);
        scene.told(1).endpoints[&task_key(1)].in_rotation
    };
    scene
        .world
        .ok(vec![world::set_state(1, NodeState::Down, 1)]);
    assert!(!turning(&mut scene));
    scene
        .world
        .ok(vec![world::set_state(1, NodeState::Ready, 1)]);
    assert!(turning(&mut scene));
    assert!(scene.world.report(1, TaskState::Running, false));
    assert!(!turning(&mut scene));
    assert!(scene.world.report(1, TaskState::Running, true));
    assert!(turning(&mut scene));
    assert!(scene.world.want(1, TaskState::Shutdown));
    assert!(!turning(&mut scene));
    assert!(scene.world.report(1, TaskState::Shutdown, false));
    scene.settle(1);
    assert!(
        scene.told(1).endpoints.is_empty(),
        "an ended task has no end in networks"
    );
}

#[test]
fn a_removed_services_name_is_free_while_its_tasks_stop() {
    let mut scene = Scene::with_two_networks();
    assert!(scene.world.retire_service(1));
    scene.settle(1);
    scene.assert_told(1);
    assert!(scene.told(1).services.is_empty());
    assert!(scene.told(1).endpoints.contains_key(&task_key(1)));
}

#[test]
fn a_version_is_confirmed_when_those_concerned_have_applied_it() {
    let mut scene = Scene::with_two_networks();
    assert!(scene.world.want(1, TaskState::Shutdown));
    let version = scene.world.store.view().version();
    assert!(
        scene.term.confirmed() < version,
        "it was not handed out yet"
    );
    scene.follow();
    assert_eq!(scene.term.missing(version), BTreeSet::from([node_id(1)]));
    let got = scene.receive(1).unwrap();
    assert!(scene.receive(2).is_none() && scene.receive(3).is_none());
    assert!(scene.term.confirmed() < version, "sent is not applied");
    scene.applied(1, got);
    assert_eq!(scene.term.confirmed(), version);
}

#[test]
fn a_node_without_a_lease_is_not_waited_for_and_one_that_reconnects_is() {
    let mut scene = Scene::with_two_networks();
    assert!(scene.world.want(1, TaskState::Shutdown));
    let version = scene.world.store.view().version();
    scene.follow();
    scene.live.0.lock().unwrap().remove(&node_id(1));
    assert_eq!(scene.term.confirmed(), version);
    scene.live.0.lock().unwrap().insert(node_id(1));
    assert!(scene.term.confirmed() < version);
    let id = scene.followers[&1].id;
    scene.open(1);
    assert!(
        scene.term.parcel(node_id(1), id).is_none(),
        "the old feed ends"
    );
    assert!(!scene.term.applied(node_id(1), id, version));
    assert!(scene.term.confirmed() < version);
    scene.settle(1);
    scene.assert_told(1);
    assert_eq!(scene.term.confirmed(), version);
    let id = scene.followers[&1].id;
    scene.term.close(node_id(1), id);
    assert_eq!(scene.term.missing(version), BTreeSet::from([node_id(1)]));
}

#[test]
fn a_removed_node_is_told_nothing_more_and_its_key_goes_everywhere() {
    let mut scene = Scene::with_two_networks();
    scene.world.ok(vec![lease(2, 3)]);
    for number in [1, 3] {
        scene.settle(number);
    }
    assert!(scene.told(1).nodes.contains_key(&node_id(3)));
    scene.world.ok(vec![
        remove(ObjectKey::Lease(network_id(2), node_id(3))),
        remove(ObjectKey::Node(node_id(3))),
    ]);
    scene.settle(1);
    assert!(!scene.told(1).nodes.contains_key(&node_id(3)));
    let id = scene.followers[&3].id;
    assert!(scene.term.parcel(node_id(3), id).is_none());
}

#[test]
fn changes_of_one_record_are_one() {
    let mut scene = Scene::with_two_networks();
    for key in 5..30 {
        scene
            .world
            .ok(vec![world::set_state(1, NodeState::Ready, key)]);
        scene.follow();
    }
    let parcel = scene
        .term
        .parcel(node_id(1), scene.followers[&1].id)
        .unwrap();
    let update = parcel.update.unwrap();
    assert!(!update.complete);
    assert_eq!(update.changes.len(), 1);
}

#[test]
fn a_resync_tells_everything_anew() {
    let mut scene = Scene::with_two_networks();
    scene.world.ok(vec![lease(3, 1)]);
    let state = State::clone(&scene.world.store.view());
    scene.world.store.install(state);
    for number in 1..=3 {
        scene.settle(number);
        scene.assert_told(number);
    }
}

#[tokio::test(start_paused = true)]
async fn waiting_ends_at_the_deadline_with_the_names_of_those_who_did_not_answer() {
    let mut scene = Scene::with_two_networks();
    assert!(scene.world.want(1, TaskState::Shutdown));
    let version = scene.world.store.view().version();
    scene.follow();
    let begun = Instant::now();
    let deadline = begun + Duration::from_secs(2);
    let failed = scene
        .term
        .wait_confirmed(version, deadline)
        .await
        .unwrap_err();
    assert_eq!(failed.nodes, BTreeSet::from([node_id(1)]));
    assert_eq!(begun.elapsed(), Duration::from_secs(2));
    let got = scene.receive(1).unwrap();
    let term = Arc::clone(&scene.term);
    let deadline = Instant::now() + Duration::from_secs(2);
    let waiting = tokio::spawn(async move { term.wait_confirmed(version, deadline).await });
    tokio::task::yield_now().await;
    scene.applied(1, got);
    assert_eq!(waiting.await.unwrap(), Ok(()));
}

/// One random change; what the store refuses changes nothing.
#[derive(Debug, Clone)]
enum Step {
    Service(u128, Vec<u128>, bool),
    ToggleIngress(u128),
    Retire(u128),
    RemoveService(u128),
    Task(u128, u128, u128),
    Report(u128, TaskState, bool),
    Want(u128, TaskState),
    RemoveTask(u128),
    NodeState(u128, NodeState, u128),
    RemoveNode(u128),
    Network(u128),
    RemoveNetwork(u128),
    Lease(u128, u128),
    RemoveLease(u128, u128),
    Attach(u128, u128, u128),
    Detach(u128),
    Open(u128),
    Close(u128),
    Receive(u128),
    Follow,
    Resync,
}

fn step() -> impl Strategy<Value = Step> {
    let node = 1..5_u128;
    let network = 1..4_u128;
    let service = 1..5_u128;
    let task = 1..12_u128;
    let states = prop_oneof![
        4 => Just(TaskState::Running),
        1 => Just(TaskState::Starting),
        1 => Just(TaskState::Failed),
        1 => Just(TaskState::Shutdown),
    ];
    prop_oneof![
        2 => (service.clone(), prop::collection::vec(network.clone(), 0..3), any::<bool>())
            .prop_map(|(id, networks, ingress)| {
                let networks: BTreeSet<u128> = networks.into_iter().filter(|id| *id != world::INGRESS).collect();
                Step::Service(id, networks.into_iter().collect(), ingress)
            }),
        2 => service.clone().prop_map(Step::ToggleIngress),
        1 => service.clone().prop_map(Step::Retire),
        1 => service.clone().prop_map(Step::RemoveService),
        6 => (task.clone(), service, node.clone()).prop_map(|(a, b, c)| Step::Task(a, b, c)),
        8 => (task.clone(), states, any::<bool>()).prop_map(|(a, b, c)| Step::Report(a, b, c)),
        2 => (task.clone(), prop_oneof![Just(TaskState::Shutdown), Just(TaskState::Remove)])
            .prop_map(|(a, b)| Step::Want(a, b)),
        1 => task.prop_map(Step::RemoveTask),
        3 => (node.clone(), prop_oneof![3 => Just(NodeState::Ready), 2 => Just(NodeState::Down)], 1..4_u128)
            .prop_map(|(a, b, c)| Step::NodeState(a, b, c)),
        1 => node.clone().prop_map(Step::RemoveNode),
        1 => network.clone().prop_map(Step::Network),
        1 => network.clone().prop_map(Step::RemoveNetwork),
        5 => (network.clone(), node.clone()).prop_map(|(a, b)| Step::Lease(a, b)),
        2 => (network.clone(), node.clone()).prop_map(|(a, b)| Step::RemoveLease(a, b)),
        2 => (1..4_u128, network, node.clone()).prop_map(|(a, b, c)| Step::Attach(a, b, c)),
        1 => (1..4_u128).prop_map(Step::Detach),
        1 => node.clone().prop_map(Step::Open),
        1 => node.clone().prop_map(Step::Close),
        6 => node.prop_map(Step::Receive),
        8 => Just(Step::Follow),
        1 => Just(Step::Resync),
    ]
}

impl Scene {
    /// False: the store did not take the change, and it has none to tell.
    fn take_step(&mut self, step: Step) -> bool {
        let world = &mut self.world;
        let mut entry = |action: StoreAction| world.apply(vec![action]);
        match step {
            Step::Service(id, networks, ingress) => world.add_service(id, &networks, ingress),
            Step::ToggleIngress(id) => world.toggle_ingress(id),
            Step::Retire(id) => world.retire_service(id),
            Step::RemoveService(id) => entry(remove(ObjectKey::Service(ServiceId::from_bits(id)))),
            Step::Task(id, service, node) => world.add_task(id, service, node),
            Step::Report(id, state, ready) => world.report(id, state, ready),
            Step::Want(id, desired) => world.want(id, desired),
            Step::RemoveTask(id) => entry(remove(ObjectKey::Task(TaskId::from_bits(id)))),
            Step::NodeState(id, state, key) => entry(world::set_state(id, state, key)),
            Step::RemoveNode(id) => entry(remove(ObjectKey::Node(node_id(id)))),
            Step::Network(id) => entry(network(id)),
            Step::RemoveNetwork(id) => entry(remove(ObjectKey::Network(network_id(id)))),
            Step::Lease(network, node) => entry(lease(network, node)),
            Step::RemoveLease(network, node) => {
                entry(remove(ObjectKey::Lease(network_id(network), node_id(node))))
            }
            Step::Attach(id, network, node) => entry(world::attachment(id, network, node)),
            Step::Detach(id) => entry(remove(ObjectKey::Attachment(container(id)))),
            Step::Open(number) => {
                self.open(number);
                true
            }
            Step::Close(number) => {
                if let Some(gone) = self.followers.remove(&number) {
                    self.term.close(node_id(number), gone.id);
                }
                true
            }
            Step::Receive(number) => {
                self.settle_if_open(number);
                true
            }
            Step::Follow => {
                self.follow();
                true
            }
            Step::Resync => {
                let state = State::clone(&self.world.store.view());
                self.world.store.install(state);
                true
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn what_is_told_change_by_change_is_what_is_told_at_once(
        steps in prop::collection::vec(step(), 1..120)
    ) {
        let mut scene = Scene::new(4);
        scene.world.ok((1..4).map(network).collect());
        for number in [1, 2] {
            scene.open(number);
        }
        for step in steps {
            scene.take_step(step);
        }
        scene.follow();
        let numbers: Vec<u128> = scene.followers.keys().copied().collect();
        for number in numbers {
            if !scene.settle_if_open(number) {
                continue;
            }
            let mut wanted = scene.wanted(number);
            wanted.version = scene.told(number).version;
            prop_assert_eq!(scene.told(number), &wanted);
        }
        let state = scene.world.store.view();
        scene.term.check_catalogue(&state);
        // Nodes without a feed never answer; all others have applied everything.
        let fed: BTreeSet<NodeId> = scene.followers.keys().map(|number| node_id(*number)).collect();
        *scene.live.0.lock().unwrap() = fed;
        let handed_out = scene.term.handed_out();
        prop_assert_eq!(scene.term.confirmed(), handed_out);
    }
}
