//! Changes of Raft's membership, and of who leads.
//!
//! Members come one by one: first as a learner that only receives the log, then as a voter. Both steps are Raft
//! entries, and a change of voters goes through a joint majority of the old and the new ones.

use super::handle::RaftHandle;
use super::leadership;
use super::types::{RaftPeer, TypeConfig};
use crate::consensus::{Consensus, Leadership, Member, ProposeError};
use async_trait::async_trait;
use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::{ChangeMembers, RaftMetrics, ServerState};
use shoal_model::command::StoreAction;
use shoal_model::{NodeId, RaftNodeId, Version};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::timeout;

/// Longest wait for a new member to catch up.
const CATCH_UP_MAX: Duration = Duration::from_secs(60);
/// Longest wait for another member to take over leadership.
const TRANSFER_MAX: Duration = Duration::from_secs(2);

#[async_trait]
impl Consensus for RaftHandle {
    async fn propose(&self, actions: Vec<StoreAction>) -> Result<Version, ProposeError> {
        self.propose_actions(actions).await
    }

    async fn read_barrier(&self) -> Result<(), ProposeError> {
        self.barrier().await
    }

    fn leadership(&self) -> watch::Receiver<Leadership> {
        self.leadership_watch()
    }

    async fn add_member(
        &self,
        raft_id: RaftNodeId,
        node_id: NodeId,
        addr: SocketAddr,
    ) -> Result<(), ProposeError> {
        let _one_at_a_time = self.inner.changing_members.lock().await;
        let peer = RaftPeer { node_id, addr };
        let metrics = self.metrics();
        if let Some(known) = metrics.membership_config.get_node(&raft_id) {
            if known.node_id != node_id {
                return Err(ProposeError::Membership {
                    reason: format!("Raft id {raft_id} belongs to node `{}`", known.node_id),
                });
            }
            if *known != peer {
                let moved = ChangeMembers::SetNodes(BTreeMap::from([(raft_id, peer.clone())]));
                self.change(moved).await?;
            }
        }
        if self
            .metrics()
            .membership_config
            .voter_ids()
            .any(|id| id == raft_id)
        {
            return Ok(());
        }
        self.add_learner(raft_id, peer).await?;
        self.change(ChangeMembers::AddVoterIds(BTreeSet::from([raft_id])))
            .await
    }

    async fn remove_member(&self, raft_id: RaftNodeId) -> Result<(), ProposeError> {
        let _one_at_a_time = self.inner.changing_members.lock().await;
        let metrics = self.metrics();
        if metrics.membership_config.get_node(&raft_id).is_none() {
            return Ok(());
        }
        let is_voter = metrics
            .membership_config
            .voter_ids()
            .any(|id| id == raft_id);
        if !is_voter {
            return self
                .change(ChangeMembers::RemoveNodes(BTreeSet::from([raft_id])))
                .await;
        }
        self.refuse_loss_of_quorum(&metrics, raft_id)?;
        self.change(ChangeMembers::RemoveVoters(BTreeSet::from([raft_id])))
            .await
    }

    fn members(&self) -> Vec<Member> {
        let metrics = self.metrics();
        let voters: BTreeSet<RaftNodeId> = metrics.membership_config.voter_ids().collect();
        let members = metrics.membership_config.nodes().map(|(id, peer)| Member {
            raft_id: *id,
            node_id: peer.node_id,
            addr: peer.addr,
            voter: voters.contains(id),
            leader: metrics.current_leader == Some(*id),
            reachable: self.is_reachable(&metrics, *id),
        });
        let mut members: Vec<Member> = members.collect();
        members.sort_by_key(|member| member.raft_id);
        members
    }

    async fn transfer_leadership(&self, to: Option<RaftNodeId>) -> Result<(), ProposeError> {
        self.hand_over(to).await
    }
}

impl RaftHandle {
    async fn add_learner(&self, raft_id: RaftNodeId, peer: RaftPeer) -> Result<(), ProposeError> {
        let catch_up = self.write(|| self.inner.raft.add_learner(raft_id, peer.clone(), true));
        match timeout(CATCH_UP_MAX, catch_up).await {
            Ok(added) => added.map(drop),
            Err(_) => Err(ProposeError::Membership {
                reason: format!(
                    "node `{}` at {} did not catch up with the log within {} s: is its control port reachable from the managers?",
                    peer.node_id,
                    peer.addr,
                    CATCH_UP_MAX.as_secs()
                ),
            }),
        }
    }

    async fn change(
        &self,
        members: ChangeMembers<RaftNodeId, RaftPeer>,
    ) -> Result<(), ProposeError> {
        self.write(|| self.inner.raft.change_membership(members.clone(), false))
            .await
            .map(drop)
    }

    fn refuse_loss_of_quorum(
        &self,
        metrics: &RaftMetrics<TypeConfig>,
        leaving: RaftNodeId,
    ) -> Result<(), ProposeError> {
        if metrics.state != ServerState::Leader {
            // Raft itself refuses, and names the leader.
            return Ok(());
        }
        let rest: BTreeSet<RaftNodeId> = metrics
            .membership_config
            .voter_ids()
            .filter(|id| *id != leaving)
            .collect();
        let reachable = rest
            .iter()
            .filter(|id| self.is_reachable(metrics, **id))
            .count();
        let needed = rest.len() / 2 + 1;
        if rest.is_empty() {
            return Err(ProposeError::Membership {
                reason: "it is the last manager: promote another node first".to_owned(),
            });
        }
        if reachable >= needed {
            return Ok(());
        }
        Err(ProposeError::Membership {
            reason: format!(
                "without it {} managers would remain, of which {reachable} answer and {needed} are needed: {}",
                rest.len(),
                self.quorum_reason(metrics)
            ),
        })
    }

    /// Hands leadership to a member and waits until this one does not lead any more.
    pub(crate) async fn hand_over(&self, to: Option<RaftNodeId>) -> Result<(), ProposeError> {
        let metrics = self.metrics();
        if metrics.state != ServerState::Leader {
            let leader = metrics
                .current_leader
                .and_then(|id| leadership::peer_of(&metrics, id));
            return Err(ProposeError::NotLeader { leader });
        }
        let Some(to) = to.or_else(|| self.furthest(&metrics)) else {
            return Err(ProposeError::Membership {
                reason: "no other manager answers that could take over leadership".to_owned(),
            });
        };
        if to == metrics.id {
            return Ok(());
        }
        self.inner
            .raft
            .trigger()
            .transfer_leader(to)
            .await
            .map_err(|_| self.shut_down())?;
        let mut watched = self.inner.raft.metrics();
        let handed = watched.wait_until(|now| {
            now.state != ServerState::Leader && now.current_leader.is_some_and(|id| id != now.id)
        });
        match timeout(TRANSFER_MAX, handed).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(self.shut_down()),
            Err(_) => Err(ProposeError::Membership {
                reason: format!(
                    "member {to} did not take over within {} s",
                    TRANSFER_MAX.as_secs()
                ),
            }),
        }
    }

    /// The reachable voter whose log is furthest along.
    fn furthest(&self, metrics: &RaftMetrics<TypeConfig>) -> Option<RaftNodeId> {
        let replication = metrics.replication.as_ref()?;
        metrics
            .membership_config
            .voter_ids()
            .filter(|id| *id != metrics.id && self.is_reachable(metrics, *id))
            .max_by_key(|id| {
                let matching = replication.get(id).and_then(|matching| *matching);
                (matching.map(|log_id| log_id.index), std::cmp::Reverse(*id))
            })
    }
}
