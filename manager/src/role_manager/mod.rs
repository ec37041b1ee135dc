//! Moves nodes between worker and manager, in an order that never loses quorum.
//!
//! Promotion: the user's wish is in the node's spec; the node learns it on its session and renews its certificate; with
//! the new role it asks for a place in Raft ([`RoleManager::raft_join`]); the leader makes it a learner, then a voter.
//! Demotion: out of Raft first (a leader hands over before), then the worker's certificate. Every pass reads the store
//! and the membership again and does the next step for each node: nothing is remembered between passes.

mod join;
#[cfg(test)]
mod tests;

use crate::consensus::{Leadership, Member, ProposeError};
use crate::control::{Core, quorum_loss};
use crate::store::{Entity, State, WatchItem};
use shoal_model::command::{FEATURE_LEVEL, StoreAction};
use shoal_model::node::ManagerStatus;
use shoal_model::{Node, NodeId, NodeRole, RaftNodeId};
use std::net::SocketAddr;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

/// A step that failed is tried again after this time, even when nothing changes.
const RETRY_PERIOD: Duration = Duration::from_millis(500);

/// The role that a node should have at this moment: a manager stays one until it is out of Raft.
pub fn role_now(node: &Node) -> NodeRole {
    match (node.spec.role, &node.manager) {
        (NodeRole::Manager, _) | (NodeRole::Worker, Some(_)) => NodeRole::Manager,
        (NodeRole::Worker, None) => NodeRole::Worker,
    }
}

/// Runs on every manager, acts on the leader.
#[derive(Clone)]
pub struct RoleManager {
    core: Core,
    node_id: NodeId,
}

impl std::fmt::Debug for RoleManager {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RoleManager")
            .field("node_id", &self.node_id)
            .finish_non_exhaustive()
    }
}

/// One change of Raft's membership or of what the store says of it.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    /// Make it a voter, or give a voter its new address.
    Add {
        raft_id: RaftNodeId,
        node_id: NodeId,
        addr: SocketAddr,
    },
    /// This manager leads and has to go: somebody else must lead first.
    HandOver,
    /// Take it out of Raft.
    Remove {
        raft_id: RaftNodeId,
        node_id: NodeId,
    },
    /// It is out: the store says so, and it may have a worker's certificate.
    Forget { node_id: NodeId, role: NodeRole },
    /// It has to go, but those who would remain have no quorum.
    Wait { node_id: NodeId, reason: String },
    /// Every manager reads this level.
    Raise(u32),
}

impl RoleManager {
    pub(crate) fn new(core: Core, node_id: NodeId) -> Self {
        Self { core, node_id }
    }

    /// Acts while this manager leads, until cancelled.
    pub async fn run(&self, cancel: CancellationToken) {
        let mut leadership = self.core.consensus.leadership();
        while !cancel.is_cancelled() {
            let leads = leadership.borrow_and_update().is_leader();
            if leads {
                tokio::select! {
                    () = self.lead() => {}
                    () = lost(&mut leadership) => {}
                    () = cancel.cancelled() => return,
                }
            } else {
                tokio::select! {
                    changed = leadership.changed() => if changed.is_err() { return },
                    () = cancel.cancelled() => return,
                }
            }
        }
    }

    async fn lead(&self) {
        let mut watcher = self.core.store.watch();
        loop {
            let failed = self.pass().await;
            let mut due = false;
            while !due {
                tokio::select! {
                    item = watcher.next() => match item {
                        Some(item) => due = concerns_nodes(&item),
                        None => return,
                    },
                    () = tokio::time::sleep(RETRY_PERIOD), if failed || self.is_unfinished() => due = true,
                }
            }
        }
    }

    fn is_unfinished(&self) -> bool {
        !self.steps().is_empty()
    }

    fn steps(&self) -> Vec<Step> {
        let members = self.core.consensus.members();
        steps(&self.core.store.view(), &members, self.node_id)
    }

    /// Takes the next steps; true if one failed.
    async fn pass(&self) -> bool {
        let mut failed = false;
        for step in self.steps() {
            if let Err(err) = self.take(&step).await {
                debug!(
                    ?step,
                    err = &err as &dyn std::error::Error,
                    "membership step failed, it is tried again"
                );
                failed = true;
            }
        }
        failed
    }

    async fn take(&self, step: &Step) -> Result<(), ProposeError> {
        let consensus = &self.core.consensus;
        match step {
            Step::Add {
                raft_id,
                node_id,
                addr,
            } => {
                consensus.add_member(*raft_id, *node_id, *addr).await?;
                info!(%node_id, %raft_id, "manager is a voter");
            }
            Step::HandOver => {
                consensus.transfer_leadership(None).await?;
                info!("leadership handed over before this node is demoted");
            }
            Step::Remove { raft_id, node_id } => {
                consensus.remove_member(*raft_id).await?;
                info!(%node_id, %raft_id, "manager is out of Raft");
            }
            Step::Forget { node_id, role } => {
                let action = StoreAction::SetNodeRole {
                    node_id: *node_id,
                    role: *role,
                    manager: None,
                };
                consensus.propose(vec![action]).await?;
            }
            Step::Wait { node_id, reason } => {
                warn!(%node_id, reason, "demotion waits");
            }
            Step::Raise(level) => {
                consensus
                    .propose(vec![StoreAction::RaiseFeatureLevel(*level)])
                    .await?;
                info!(level, "store feature level raised");
            }
        }
        Ok(())
    }
}

async fn lost(leadership: &mut tokio::sync::watch::Receiver<Leadership>) {
    // A closed channel means that the consensus is gone: leadership is lost as well.
    drop(leadership.wait_for(|now| !now.is_leader()).await);
}

fn concerns_nodes(item: &WatchItem) -> bool {
    match item {
        WatchItem::Resync => true,
        WatchItem::Changes(batch) => batch
            .changes
            .iter()
            .any(|change| matches!(change.newest(), Some(Entity::Node(_)))),
    }
}

/// What to do next, from the store and the membership alone. One removal at a time: the next is judged from the
/// membership that it leaves.
fn steps(state: &State, members: &[Member], own: NodeId) -> Vec<Step> {
    let mut steps: Vec<_> = state
        .nodes()
        .filter_map(|node| joining_step(node, members))
        .collect();
    steps.extend(leaving_step(state, members, own));
    steps.extend(raise_step(state));
    steps
}

fn joining_step(node: &Node, members: &[Member]) -> Option<Step> {
    if node.spec.role != NodeRole::Manager {
        return None;
    }
    let ManagerStatus { raft_id, addr } = node.manager.clone()?;
    let known = members.iter().find(|member| member.raft_id == raft_id);
    if known.is_some_and(|member| member.voter && member.addr == addr) {
        return None;
    }
    Some(Step::Add {
        raft_id,
        node_id: node.id,
        addr,
    })
}

fn leaving_step(state: &State, members: &[Member], own: NodeId) -> Option<Step> {
    let wanted = |id: NodeId| {
        state
            .node(id)
            .is_some_and(|node| node.spec.role == NodeRole::Manager)
    };
    if let Some(member) = members.iter().find(|member| !wanted(member.node_id)) {
        let node_id = member.node_id;
        if let Some(reason) = quorum_loss(members, node_id) {
            return Some(Step::Wait { node_id, reason });
        }
        if node_id == own {
            return Some(Step::HandOver);
        }
        let raft_id = member.raft_id;
        return Some(Step::Remove { raft_id, node_id });
    }
    state
        .nodes()
        .find(|node| node.spec.role == NodeRole::Worker && node.manager.is_some())
        .map(|node| Step::Forget {
            node_id: node.id,
            role: node.role,
        })
}

fn raise_step(state: &State) -> Option<Step> {
    let managers = state.nodes().filter(|node| node.manager.is_some());
    let agreed = managers
        .map(|node| {
            let description = node.description.as_ref();
            description.map_or(0, |known| known.feature_level_max)
        })
        .min()?
        .min(FEATURE_LEVEL);
    (agreed > state.feature_level()).then_some(Step::Raise(agreed))
}
