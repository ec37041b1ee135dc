//! What must hold: at every instant, whenever a store changes, and in the end.

use crate::world::{MANAGERS, World, node_id};
use shoal_manager::netfeed;
use shoal_manager::store::{State, check_invariants};
use shoal_model::{ClusterSpec, NodeState, ServiceId, ServiceMode, Task, TaskId, TaskState};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// States that are kept to be compared with those of managers that come to the same version later.
const STATES_KEPT_MAX: usize = 300;

/// Longest time of one look at everything after the other.
const STEP_MAX: Duration = Duration::from_millis(10);

/// Remembers what it has seen, so that each state is looked at once.
#[derive(Debug, Default)]
pub struct Watch {
    container_changes: u64,
    /// Of each manager: which start of it, and the version of its store.
    versions: BTreeMap<u64, (u64, u64)>,
    states: BTreeMap<u64, Arc<State>>,
    /// Since when a task is to stop.
    unwanted: BTreeMap<TaskId, Duration>,
}

impl Watch {
    /// Looks at everything that has changed since the last call.
    pub fn look(&mut self, world: &World, now: Duration) {
        let changes = world.machines().map(|(_, one)| one.engine.changes()).sum();
        if changes != self.container_changes {
            self.container_changes = changes;
            fenced_slots_run_once(world);
        }
        for number in 1..=MANAGERS {
            self.look_at_store(world, number, now);
        }
        for (number, machine) in world.machines() {
            for task in machine.engine.take_stops() {
                self.drained_before_it_stops(world, number, task, now);
            }
        }
    }

    /// No task is told to stop while a node with a lease still sends it new connections, unless every lease of the time
    /// when it left rotation is over.
    fn drained_before_it_stops(&self, world: &World, node: u64, task: TaskId, now: Duration) {
        let Some(state) = world.newest() else {
            return;
        };
        // What nobody knows or has given up was lost together with its node.
        let Some(stored) = state
            .task(task)
            .filter(|one| !one.status.state.is_terminal())
        else {
            return;
        };
        let lease = ClusterSpec::default().lease_ms;
        let lease = Duration::from_millis(lease).saturating_sub(STEP_MAX);
        let drained = self
            .unwanted
            .get(&task)
            .is_some_and(|since| now.saturating_sub(*since) >= lease);
        let is_lost = state
            .node(node_id(node))
            .is_none_or(|node| node.status.state == NodeState::Down);
        if drained || is_lost {
            return;
        }
        for (number, machine) in world.machines() {
            if machine.overlay.sends_to(task) {
                let name = stored.name();
                let since = self.unwanted.get(&task);
                world.trace().violation(format!(
                    "`{name}` ({task}) on node{node} is told to stop at {now:?}, unwanted since {since:?}, while \
                     node{number} sends it connections"
                ));
            }
        }
    }

    fn note_unwanted(&mut self, state: &State, now: Duration) {
        for task in state
            .tasks()
            .filter(|task| task.desired > TaskState::Running)
        {
            self.unwanted.entry(task.id).or_insert(now);
        }
    }

    fn look_at_store(&mut self, world: &World, number: u64, now: Duration) {
        let Some((start, state)) = world.store(number) else {
            self.versions.remove(&number);
            return;
        };
        let version = state.version().0;
        let before = self.versions.insert(number, (start, version));
        if before == Some((start, version)) {
            return;
        }
        self.note_unwanted(&state, now);
        let trace = world.trace();
        trace.note(format_args!("node{number} is at version {version}"));
        if before.is_some_and(|(then, before)| then == start && before > version) {
            trace.violation(format!("the store of node{number} went back to {version}"));
        }
        if let Some(known) = self.states.get(&version) {
            if **known != *state {
                trace.violation(format!("two managers differ at version {version}"));
            }
            return;
        }
        for violation in check_invariants(&state) {
            trace.violation(format!("version {version}: {violation}"));
        }
        self.states.insert(version, state);
        while self.states.len() > STATES_KEPT_MAX {
            self.states.pop_first();
        }
    }
}

/// At no instant two containers of one slot run if the slot must stop on a partition.
fn fenced_slots_run_once(world: &World) {
    let mut running: BTreeMap<(ServiceId, u64), Vec<(u64, TaskId)>> = BTreeMap::new();
    for (number, machine) in world.machines() {
        for one in machine.engine.containers() {
            if one.fenced && one.slot > 0 && one.is_running() {
                let slot = running.entry((one.service_id, one.slot)).or_default();
                slot.push((number, one.task_id));
            }
        }
    }
    for ((service, slot), places) in running.iter().filter(|(_, places)| places.len() > 1) {
        let rule = format!("slot {slot} of service {service} runs {places:?} (node, task)");
        world.trace().violation(rule);
    }
}

/// What is not yet as it must be in the end; empty when everything is well.
pub fn unwell(world: &World) -> Vec<String> {
    let mut unwell = Vec::new();
    let states: Vec<_> = (1..=MANAGERS).filter_map(|id| world.state(id)).collect();
    let versions: BTreeSet<u64> = states.iter().map(|state| state.version().0).collect();
    if states.len() as u64 != MANAGERS || versions.len() != 1 {
        let running = states.len();
        unwell.push(format!(
            "{running} managers run, with versions {versions:?}"
        ));
    }
    if world.leader().is_none() {
        unwell.push("nobody leads".to_owned());
    }
    let Some(state) = states.last() else {
        return unwell;
    };
    for (number, _) in world.machines() {
        let node = state.node(node_id(number));
        if node.is_none_or(|node| node.status.state != NodeState::Ready) {
            unwell.push(format!("node{number} is not ready"));
        }
    }
    unwell.extend(outdated_networks(world, state));
    unwell.extend(lost_writes(world, state));
    for service in state.services() {
        let tasks: Vec<&Arc<Task>> = state.tasks_by_service(service.id).collect();
        let name = &service.spec.name;
        if service.pending_delete {
            unwell.push(format!("{name} is not removed yet: {}", describe(&tasks)));
        } else if !is_filled(&service.spec.mode, &tasks, world) {
            let mode = &service.spec.mode;
            unwell.push(format!("{name} should be {mode:?}: {}", describe(&tasks)));
        }
    }
    unwell.extend(strays(world, state));
    unwell
}

/// Nodes whose networks are not what the store says.
fn outdated_networks(world: &World, state: &State) -> Vec<String> {
    let mut outdated = Vec::new();
    for (number, machine) in world.machines() {
        let in_force = machine.overlay.state();
        let mut wanted = netfeed::view(state, node_id(number));
        // A node hears of a version only if something in it concerns it.
        wanted.version = in_force.version;
        if *in_force != wanted {
            outdated.push(format!(
                "the networks of node{number} are at version {} and not what they should be",
                in_force.version
            ));
        }
    }
    outdated
}

fn lost_writes(world: &World, state: &State) -> Vec<String> {
    let mut lost = Vec::new();
    for (id, register) in world.registers() {
        let service = state.service(id).filter(|one| !one.pending_delete);
        let value = service.map(|one| &one.spec);
        if !register.allows(value) {
            lost.push(format!(
                "service {id} is {value:?}, but the client knows {register:?}"
            ));
        }
    }
    lost
}

fn is_filled(mode: &ServiceMode, tasks: &[&Arc<Task>], world: &World) -> bool {
    let live = tasks
        .iter()
        .filter(|task| task.desired <= TaskState::Running);
    let mut places: Vec<(u64, Option<u128>)> = Vec::new();
    for task in live {
        if task.status.state != TaskState::Running || !runs(world, task) {
            return false;
        }
        let node = (task.slot == 0).then(|| task.node_id.map_or(0, |id| id.bits()));
        places.push((task.slot, node));
    }
    let wanted = match mode {
        ServiceMode::Replicated { replicas } => *replicas,
        ServiceMode::Global => world.machines().count() as u64,
    };
    let count = places.len() as u64;
    places.sort_unstable();
    places.dedup();
    count == wanted && places.len() as u64 == wanted
}

/// Whether the task's node really runs it, once.
fn runs(world: &World, task: &Task) -> bool {
    let Some(node_id) = task.node_id else {
        return false;
    };
    let Ok(number) = u64::try_from(node_id.bits()) else {
        return false;
    };
    let containers = world.machine(number).engine.containers();
    let running = containers.iter().filter(|one| one.is_running());
    running.filter(|one| one.task_id == task.id).count() == 1
}

/// Containers that run although nobody wants them.
fn strays(world: &World, state: &State) -> Vec<String> {
    let mut strays = Vec::new();
    for (number, machine) in world.machines() {
        for one in machine.engine.containers() {
            let task = state.task(one.task_id);
            let wanted = task.is_some_and(|task| {
                task.desired == TaskState::Running && task.node_id == Some(node_id(number))
            });
            if one.is_running() && !wanted {
                strays.push(format!(
                    "node{number} runs a container of {} that nobody wants",
                    one.task_id
                ));
            }
        }
    }
    strays
}

fn describe(tasks: &[&Arc<Task>]) -> String {
    let one = |task: &&Arc<Task>| {
        let node = task.node_id.map_or(0, |id| id.bits());
        let Task {
            slot,
            desired,
            status,
            ..
        } = &***task;
        let why = status.refusals.iter().map(|refusal| &refusal.reason);
        let why: Vec<&String> = why.chain(std::iter::once(&status.err)).collect();
        format!("{slot} on {node} {} of {desired} {why:?}", status.state)
    };
    let texts: Vec<String> = tasks.iter().map(one).collect();
    texts.join("; ")
}
