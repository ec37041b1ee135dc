//! The types that Raft is instantiated with.
//!
//! The payload of a normal entry is the command as bytes, encoded once by the proposer: the log, the wire and the
//! followers move it without looking inside, and `apply` alone decodes it.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use shoal_model::command::Outcome;
use shoal_model::{NodeId, RaftNodeId};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// The async runtime under Raft: tokio, with every random number drawn from a seed that spawned tasks inherit.
pub(crate) type Rt = openraft_rt::deterministic_rng::DeterministicRng<openraft::TokioRuntime>;

openraft::declare_raft_types!(
    /// Raft as Shoal uses it.
    pub(crate) TypeConfig:
        D = Proposal,
        R = Response,
        NodeId = RaftNodeId,
        Node = RaftPeer,
        AsyncRuntime = Rt,
);

pub(crate) type LogId = openraft::type_config::alias::LogIdOf<TypeConfig>;
pub(crate) type Vote = openraft::type_config::alias::VoteOf<TypeConfig>;
pub(crate) type Entry = openraft::type_config::alias::EntryOf<TypeConfig>;
pub(crate) type Payload = openraft::type_config::alias::PayloadOf<TypeConfig>;
pub(crate) type Membership = openraft::Membership<RaftNodeId, RaftPeer>;
pub(crate) type StoredMembership = openraft::type_config::alias::StoredMembershipOf<TypeConfig>;
pub(crate) type SnapshotMeta = openraft::type_config::alias::SnapshotMetaOf<TypeConfig>;
pub(crate) type LeaderId = openraft::type_config::alias::LeaderIdOf<TypeConfig>;

/// Commands on their way through the log, each of which is applied as a whole or not at all.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Proposal {
    /// Store feature level that a manager needs to apply them; readable without decoding the commands.
    pub(crate) level: u32,
    /// Encoded [`shoal_model::command::Command`]s, applied in order.
    pub(crate) commands: Vec<Bytes>,
}

impl Proposal {
    /// Bytes of all commands.
    pub(crate) fn len(&self) -> usize {
        self.commands.iter().map(Bytes::len).sum()
    }
}

impl fmt::Display for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} commands of {} bytes, level {}",
            self.commands.len(),
            self.len(),
            self.level
        )
    }
}

/// What applying an entry answers, one outcome per command; none for entries of Raft's own.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Response(pub(crate) Vec<Outcome>);

impl fmt::Display for Response {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

/// Who a member of Raft is and where it listens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RaftPeer {
    /// The node, which its certificate proves.
    pub(crate) node_id: NodeId,
    /// Its control port.
    pub(crate) addr: SocketAddr,
}

impl Default for RaftPeer {
    fn default() -> Self {
        Self {
            node_id: NodeId::default(),
            addr: SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0),
        }
    }
}
