//! The forms that log records, snapshots and Raft's messages have on disk and on the wire.
//!
//! They are this crate's own, apart from the Raft library's types, so that an update of the library can't change a
//! format. All of them go through [`shoal_model::codec`].

use super::types::{
    Entry, LeaderId, LogId, Membership, Payload, Proposal, RaftPeer, SnapshotMeta,
    StoredMembership, Vote,
};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use shoal_model::{NodeId, RaftNodeId};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

/// A log id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct WireLogId {
    term: u64,
    leader: RaftNodeId,
    index: u64,
}

impl From<&LogId> for WireLogId {
    fn from(id: &LogId) -> Self {
        Self {
            term: id.leader_id.term,
            leader: id.leader_id.node_id,
            index: id.index,
        }
    }
}

impl From<WireLogId> for LogId {
    fn from(id: WireLogId) -> Self {
        LogId {
            leader_id: LeaderId {
                term: id.term,
                node_id: id.leader,
            },
            index: id.index,
        }
    }
}

/// An optional log id, the other way.
pub(crate) fn log_id_to_wire(id: Option<&LogId>) -> Option<WireLogId> {
    id.map(WireLogId::from)
}

/// An optional log id, back.
pub(crate) fn log_id_from_wire(id: Option<WireLogId>) -> Option<LogId> {
    id.map(LogId::from)
}

/// A vote.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct WireVote {
    term: u64,
    candidate: RaftNodeId,
    committed: bool,
}

impl From<&Vote> for WireVote {
    fn from(vote: &Vote) -> Self {
        Self {
            term: vote.leader_id.term,
            candidate: vote.leader_id.node_id,
            committed: vote.committed,
        }
    }
}

impl From<WireVote> for Vote {
    fn from(vote: WireVote) -> Self {
        Vote {
            leader_id: LeaderId {
                term: vote.term,
                node_id: vote.candidate,
            },
            committed: vote.committed,
        }
    }
}

/// A membership: one set of voters, or two while it changes, and where every member listens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct WireMembership {
    voters: Vec<BTreeSet<RaftNodeId>>,
    members: BTreeMap<RaftNodeId, (NodeId, SocketAddr)>,
}

impl From<&Membership> for WireMembership {
    fn from(membership: &Membership) -> Self {
        Self {
            voters: membership.get_joint_config().clone(),
            members: membership
                .nodes()
                .map(|(id, peer)| (*id, (peer.node_id, peer.addr)))
                .collect(),
        }
    }
}

/// A membership whose voters are not all members.
#[derive(Debug, thiserror::Error)]
#[error("a membership names voters that are not members")]
pub(crate) struct InvalidMembership;

impl TryFrom<WireMembership> for Membership {
    type Error = InvalidMembership;

    fn try_from(membership: WireMembership) -> Result<Self, InvalidMembership> {
        let members: BTreeMap<RaftNodeId, RaftPeer> = membership
            .members
            .into_iter()
            .map(|(id, (node_id, addr))| (id, RaftPeer { node_id, addr }))
            .collect();
        Membership::new(membership.voters, members).map_err(|_| InvalidMembership)
    }
}

/// What an entry carries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum WirePayload {
    /// Nothing: a new leader's first entry.
    Blank,
    /// A command.
    Command {
        /// Feature level.
        level: u32,
        /// Encoded.
        bytes: Bytes,
    },
    /// A change of members.
    Membership(WireMembership),
    /// Several commands.
    Commands {
        /// Feature level.
        level: u32,
        /// Each encoded, in order.
        commands: Vec<Bytes>,
    },
}

/// An entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct WireEntry {
    id: WireLogId,
    payload: WirePayload,
}

impl WireEntry {
    /// Its log id.
    pub(crate) fn log_id(&self) -> LogId {
        self.id.into()
    }
}

impl From<&Entry> for WireEntry {
    fn from(entry: &Entry) -> Self {
        let payload = match &entry.payload {
            Payload::Blank => WirePayload::Blank,
            Payload::Normal(proposal) => match proposal.commands.as_slice() {
                [command] => WirePayload::Command {
                    level: proposal.level,
                    bytes: command.clone(),
                },
                commands => WirePayload::Commands {
                    level: proposal.level,
                    commands: commands.to_vec(),
                },
            },
            Payload::Membership(membership) => WirePayload::Membership(membership.into()),
        };
        Self {
            id: (&entry.log_id).into(),
            payload,
        }
    }
}

impl WireEntry {
    /// The entry.
    pub(crate) fn into_entry(self) -> Result<Entry, InvalidMembership> {
        let entry = self;
        let payload = match entry.payload {
            WirePayload::Blank => Payload::Blank,
            WirePayload::Command { level, bytes } => Payload::Normal(Proposal {
                level,
                commands: vec![bytes],
            }),
            WirePayload::Commands { level, commands } => {
                Payload::Normal(Proposal { level, commands })
            }
            WirePayload::Membership(membership) => Payload::Membership(membership.try_into()?),
        };
        Ok(Entry {
            log_id: entry.id.into(),
            payload,
        })
    }
}

/// One step of the log's history on disk. New kinds are appended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Record {
    /// Everything that earlier segments said of these; the first record of a segment.
    State {
        /// Last vote.
        vote: Option<WireVote>,
        /// Last entry known to be committed.
        committed: Option<WireLogId>,
        /// Last entry that was dropped behind a snapshot.
        purged: Option<WireLogId>,
        /// Last entry of the log.
        last: Option<WireLogId>,
    },
    /// A new vote.
    Vote(WireVote),
    /// A new last committed entry.
    Committed(Option<WireLogId>),
    /// An entry, right after the last one.
    Entry(WireEntry),
    /// Entries after this one never happened.
    TruncateAfter(Option<WireLogId>),
    /// Entries up to this one are in a snapshot.
    Purge(WireLogId),
}

/// What a snapshot stands for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct WireSnapshotMeta {
    last: Option<WireLogId>,
    membership_at: Option<WireLogId>,
    membership: WireMembership,
}

impl From<&SnapshotMeta> for WireSnapshotMeta {
    fn from(meta: &SnapshotMeta) -> Self {
        Self {
            last: log_id_to_wire(meta.last_log_id.as_ref()),
            membership_at: log_id_to_wire(meta.last_membership.log_id().as_ref()),
            membership: meta.last_membership.membership().into(),
        }
    }
}

impl TryFrom<WireSnapshotMeta> for SnapshotMeta {
    type Error = InvalidMembership;

    fn try_from(meta: WireSnapshotMeta) -> Result<Self, InvalidMembership> {
        Ok(SnapshotMeta {
            last_log_id: log_id_from_wire(meta.last),
            last_membership: StoredMembership::new(
                log_id_from_wire(meta.membership_at),
                meta.membership.try_into()?,
            ),
        })
    }
}

/// First message of every Raft stream: a manager that was removed and joined again has another Raft id, and must not
/// take what was meant for the old one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Hello {
    /// Sender.
    pub(crate) from: RaftNodeId,
    /// Receiver.
    pub(crate) to: RaftNodeId,
}

/// Entries of the leader.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct AppendRequest {
    pub(crate) vote: WireVote,
    pub(crate) prev: Option<WireLogId>,
    pub(crate) entries: Vec<WireEntry>,
    pub(crate) committed: Option<WireLogId>,
}

/// Answer to each [`AppendRequest`], in order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum AppendReply {
    /// The log holds everything up to here, on disk.
    Matching(Option<WireLogId>),
    /// The log has another entry there, or none.
    Conflict(WireLogId),
    /// There is a newer leader or candidate.
    HigherVote(WireVote),
    /// This manager can't go on.
    Stopped(String),
}

/// Asks for a vote, or whether one would be given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct VoteRequest {
    pub(crate) vote: WireVote,
    pub(crate) last: Option<WireLogId>,
    pub(crate) transfer: bool,
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct VoteReply {
    pub(crate) vote: WireVote,
    pub(crate) granted: bool,
    pub(crate) last: Option<WireLogId>,
}

/// The leader steps aside for `to`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TransferRequest {
    pub(crate) from_leader: WireVote,
    pub(crate) to: RaftNodeId,
    pub(crate) last: Option<WireLogId>,
}

/// The answer: why not, if not.
pub(crate) type TransferReply = Result<(), String>;

/// A snapshot on its way: head, pages, end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum SnapshotMessage {
    /// First.
    Head {
        /// The leader's vote.
        vote: WireVote,
        /// What it stands for.
        meta: WireSnapshotMeta,
    },
    /// A piece of the state.
    Page(Bytes),
    /// Last: all pages were sent.
    End {
        /// How many pages there were.
        pages: u64,
    },
}

/// The receiver's vote once the snapshot is installed, or why it is not.
pub(crate) type SnapshotReply = Result<WireVote, String>;
