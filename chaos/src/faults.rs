//! What goes wrong, by seed.

use crate::world::{CLIENT, MANAGERS, NODES, World, host};
use rand::RngExt as _;
use rand::rngs::StdRng;
use std::collections::BTreeSet;
use turmoil::Sim;

/// Farthest jump of a wall clock.
const JUMP_MAX_NS: i64 = 90_000_000_000;

/// Faults that are there now.
pub(crate) struct Faults {
    world: World,
    random: StdRng,
    /// Nodes whose daemon does not run.
    off: BTreeSet<u64>,
    /// Nodes whose daemon ends in order to be started again.
    restarting: BTreeSet<u64>,
}

impl Faults {
    pub(crate) fn new(world: World, random: StdRng) -> Self {
        Self {
            world,
            random,
            off: BTreeSet::new(),
            restarting: BTreeSet::new(),
        }
    }

    pub(crate) fn random(&mut self) -> &mut StdRng {
        &mut self.random
    }

    /// One more fault, or the end of some.
    pub(crate) fn inject(&mut self, sim: &mut Sim<'_>) {
        let manager = self.random.random_range(1..=MANAGERS);
        let node = self.random.random_range(1..=NODES);
        self.finish_restarts(sim);
        match self.random.random_range(0..15) {
            0 => self.cut(sim, manager, [manager % MANAGERS + 1]),
            1 => self.cut(sim, manager, 1..=MANAGERS),
            2 | 3 => self.cut(sim, node, 1..=MANAGERS),
            4 | 5 => self.repair(sim),
            6 => self.lose_power(sim, manager),
            7 => self.lose_power(sim, node),
            8 => self.kill_daemon(sim, node),
            9 | 10 => self.start_all(sim),
            11 => {
                self.note(format_args!("node{manager} fails its next sync"));
                self.world.machine(manager).disk.fail_next_sync();
            }
            12 => {
                let ns = self.random.random_range(-JUMP_MAX_NS..JUMP_MAX_NS);
                self.note(format_args!("the clock of node{node} jumps by {ns} ns"));
                self.world.machine(node).clock.jump(ns);
            }
            13 => self.restart(node),
            _ => {
                let choice = self.random.random_range(0..100);
                self.world.machine(node).engine.fail_one(choice);
            }
        }
    }

    /// All faults end.
    pub(crate) fn heal(&mut self, sim: &mut Sim<'_>) {
        self.repair(sim);
        self.finish_restarts(sim);
        for (_, machine) in self.world.machines() {
            machine.disk.heal();
            machine.clock.set_right();
        }
        self.start_all(sim);
    }

    fn note(&self, event: std::fmt::Arguments<'_>) {
        self.world.trace().note(format_args!("FAULT {event}"));
    }

    /// A machine that reaches managers only over these links reaches them no more.
    fn cut(&self, sim: &mut Sim<'_>, node: u64, from: impl IntoIterator<Item = u64>) {
        for other in from {
            if other != node {
                self.note(format_args!("node{node} and node{other} are cut"));
                sim.partition(host(node), host(other));
            }
        }
    }

    fn repair(&self, sim: &mut Sim<'_>) {
        self.note(format_args!("all links are repaired"));
        for node in 1..=NODES {
            sim.repair(host(node), CLIENT);
            for other in 1..node {
                sim.repair(host(node), host(other));
            }
        }
    }

    /// Containers live on.
    fn kill_daemon(&mut self, sim: &mut Sim<'_>, node: u64) {
        if self.off.insert(node) {
            self.note(format_args!("the daemon of node{node} is killed"));
            sim.crash(host(node));
            self.world.machine(node).overlay.daemon_gone();
            self.world.forget_manager(node);
        }
    }

    /// A planned restart: the daemon announces it and ends, and is there again after the next pause.
    fn restart(&mut self, node: u64) {
        if !self.off.contains(&node) && self.restarting.insert(node) {
            self.note(format_args!("node{node} is told to restart"));
            self.world.machine(node).restart.notify_waiters();
        }
    }

    fn finish_restarts(&mut self, sim: &mut Sim<'_>) {
        for node in std::mem::take(&mut self.restarting) {
            // Otherwise it has crashed meanwhile, and is started with the others.
            if !self.off.contains(&node) {
                self.kill_daemon(sim, node);
                self.off.remove(&node);
                sim.bounce(host(node));
            }
        }
    }

    /// Everything on the machine is gone, and what was not synced.
    fn lose_power(&mut self, sim: &mut Sim<'_>, node: u64) {
        self.kill_daemon(sim, node);
        self.note(format_args!("node{node} loses its power"));
        let machine = self.world.machine(node);
        machine.disk.crash(|| self.random.random());
        machine.engine.crash();
        machine.overlay.crash();
    }

    fn start_all(&mut self, sim: &mut Sim<'_>) {
        for node in std::mem::take(&mut self.off) {
            sim.bounce(host(node));
        }
    }
}
