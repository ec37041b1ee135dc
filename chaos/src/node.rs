//! What runs on a simulated machine: the agent, and the manager where the node has that role.

use crate::founding::{addr, description, first_entries, managers};
use crate::network::serve;
use crate::world::{MANAGERS, World, node_id};
use crate::{SeededIds, SimulatedLink, disk};
use shoal_agent::{Agent, AgentHandle, AgentNetwork, AgentOptions};
use shoal_manager::consensus::Leadership;
use shoal_manager::manager::ManagerError;
use shoal_manager::raft::{Placement, Timing};
use shoal_manager::{Manager, ManagerHandle, ManagerOptions, Start};
use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Wait before a manager that has stopped is started again.
const RESTART_PAUSE: Duration = Duration::from_millis(500);

/// What a planned restart announces.
const HOLD: Duration = Duration::from_secs(60);

/// Runs the daemon of a node until its host crashes.
///
/// # Errors
/// Nothing ends it.
pub(crate) async fn run(world: World, number: u64) -> Result<(), Box<dyn Error>> {
    world.trace().note(format_args!("node{number} starts"));
    if number <= MANAGERS {
        tokio::spawn(keep_manager(world.clone(), number));
    }
    if let Some(agent) = start_agent(&world, number).await {
        world.machine(number).restart.notified().await;
        let told = agent.announce_hold(HOLD).await;
        agent.shutdown().await;
        world.machine(number).overlay.daemon_gone();
        world.trace().note(format_args!(
            "node{number} is about to restart, told: {told}"
        ));
    }
    std::future::pending().await
}

async fn start_agent(world: &World, number: u64) -> Option<AgentHandle> {
    let machine = world.machine(number);
    let started = Agent::start(AgentOptions {
        connector: Arc::new(SimulatedLink),
        seeds: (1..=MANAGERS).map(addr).collect(),
        disk: Arc::new(machine.record.clone()),
        runtime: Arc::new(machine.engine.clone()),
        network: Some(AgentNetwork {
            sink: Arc::new(machine.overlay.clone()),
            disk: Arc::new(machine.network_record.clone()),
        }),
        clock: Arc::new(machine.clock.clone()),
        seed: world.fresh_seed(),
        description: description(number),
    })
    .await;
    match started {
        Ok(agent) => Some(agent),
        Err(err) => {
            let err = chain(&err);
            let rule = format!("the agent of node{number} did not start: {err}");
            world.trace().violation(rule);
            None
        }
    }
}

/// Starts the manager, and starts it again when it has stopped, as whoever watches a daemon does.
async fn keep_manager(world: World, number: u64) {
    loop {
        match start_manager(&world, number).await {
            Ok(manager) => {
                world.set_store(number, manager.store().clone());
                let serving = tokio::spawn(serve(Arc::new(manager.clone())));
                follow(&world, number, &manager).await;
                serving.abort();
                drop(serving.await);
                manager.shutdown().await;
                world.forget_manager(number);
            }
            Err(err) => {
                let err = chain(&err);
                world.trace().note(format_args!(
                    "node{number} did not start its manager: {err}"
                ));
                // With the disk as it should be and the others away, only waiting for a place can fail.
                if !err.contains(disk::INJECTED) && world.is_founded() {
                    let rule = format!("the manager of node{number} did not start: {err}");
                    world.trace().violation(rule);
                }
            }
        }
        tokio::time::sleep(RESTART_PAUSE).await;
    }
}

async fn start_manager(world: &World, number: u64) -> Result<ManagerHandle, ManagerError> {
    let machine = world.machine(number);
    let founds = number == 1 && !world.is_founded();
    let seed = world.fresh_seed();
    let manager = Manager::start(ManagerOptions {
        data_dir: PathBuf::from("/raft"),
        key_path: PathBuf::from("/key/raft"),
        node_id: node_id(number),
        advertise: addr(number),
        start: match founds {
            true => Start::Found(first_entries()),
            false => Start::Join(managers()),
        },
        timing: Timing::default(),
        placement: Placement::Caller,
        connector: Arc::new(SimulatedLink),
        disk: Arc::new(machine.disk.clone()),
        clock: Arc::new(machine.clock.clone()),
        ids: Arc::new(SeededIds::new(seed)),
        seed,
    })
    .await?;
    if founds {
        world.set_founded();
    }
    Ok(manager)
}

/// Tells the world who leads until this manager has stopped.
async fn follow(world: &World, number: u64, manager: &ManagerHandle) {
    let mut leadership = manager.consensus().leadership();
    loop {
        let now = leadership.borrow_and_update().clone();
        let stopped = matches!(now, Leadership::Stopped { .. });
        world.set_leadership(number, now);
        if stopped || leadership.changed().await.is_err() {
            return;
        }
    }
}

fn chain(err: &dyn Error) -> String {
    let mut text = err.to_string();
    let mut source = err.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
