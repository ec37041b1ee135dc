//! Remote calls: the methods, who may call them, and how they fail.

use serde::{Deserialize, Serialize};

/// A method. Numbers are part of the wire format and never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[repr(u16)]
pub enum Method {
    /// Exchange a join token and a signing request for a certificate.
    Join = 1,
    /// Exchange a signing request, proved by the old (possibly expired) key, for a new certificate.
    Readmit = 2,
    /// A new certificate over a connection that has a valid one.
    RenewCertificate = 10,
    /// The dispatcher session ([`crate::session`]).
    Session = 11,
    /// The node leaves the cluster for good.
    Leave = 12,
    /// The network state of the node ([`crate::netstate`]).
    NetFeed = 13,
    /// Addresses for containers of the calling node.
    Attach = 14,
    /// Raft: append entries.
    RaftAppend = 20,
    /// Raft: vote.
    RaftVote = 21,
    /// Raft: a snapshot, streamed.
    RaftSnapshot = 22,
    /// Raft: transfer of leadership.
    RaftTransferLeader = 23,
    /// Raft: would you vote for me?
    RaftPreVote = 24,
    /// A manager asks to become a member of Raft.
    RaftJoin = 25,
    /// A request of the control API ([`crate::control`]).
    Control = 40,
    /// A stream of store events of the control API.
    ControlWatch = 41,
    /// Logs of one container, from the node that runs it.
    TaskLogs = 60,
    /// What the node can say of its ways to its peers.
    NetCheck = 61,
}

/// Who may call a method.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Access {
    /// Also a peer without a certificate.
    Open,
    /// Any node of the cluster.
    Node,
    /// Managers.
    Manager,
}

impl Method {
    /// All methods.
    pub const ALL: [Self; 17] = [
        Self::Join,
        Self::Readmit,
        Self::RenewCertificate,
        Self::Session,
        Self::Leave,
        Self::NetFeed,
        Self::Attach,
        Self::RaftAppend,
        Self::RaftVote,
        Self::RaftSnapshot,
        Self::RaftTransferLeader,
        Self::RaftPreVote,
        Self::RaftJoin,
        Self::Control,
        Self::ControlWatch,
        Self::TaskLogs,
        Self::NetCheck,
    ];

    /// The one table of who may call what.
    pub const fn access(self) -> Access {
        match self {
            Self::Join | Self::Readmit => Access::Open,
            Self::RenewCertificate | Self::Session | Self::Leave | Self::NetFeed | Self::Attach => {
                Access::Node
            }
            Self::RaftAppend
            | Self::RaftVote
            | Self::RaftSnapshot
            | Self::RaftTransferLeader
            | Self::RaftPreVote
            | Self::RaftJoin
            | Self::Control
            | Self::ControlWatch
            | Self::TaskLogs
            | Self::NetCheck => Access::Manager,
        }
    }

    /// The number on the wire.
    pub const fn number(self) -> u16 {
        self as u16
    }

    /// The method with that number.
    pub fn from_number(number: u16) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|method| method.number() == number)
    }
}

/// Kind of a failed call; one `match` per boundary maps it to a status or an exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ErrorCode {
    /// The request is wrong; the same request will fail again.
    InvalidArgument,
    /// No such object.
    NotFound,
    /// The name or id is taken.
    AlreadyExists,
    /// The object changed meanwhile: read again and retry.
    Conflict,
    /// Not allowed now: for example a demotion that would lose quorum.
    FailedPrecondition,
    /// The caller's role or token does not allow it.
    PermissionDenied,
    /// A bound was met.
    ResourceExhausted,
    /// No leader, no quorum, not reachable: try again later.
    Unavailable,
    /// This node is not the leader; the caller may find it.
    NotLeader,
    /// Our fault.
    Internal,
}

impl ErrorCode {
    /// The same call may succeed later without a change.
    pub const fn is_retryable(self) -> bool {
        match self {
            Self::Unavailable | Self::NotLeader => true,
            Self::InvalidArgument
            | Self::NotFound
            | Self::AlreadyExists
            | Self::Conflict
            | Self::FailedPrecondition
            | Self::PermissionDenied
            | Self::ResourceExhausted
            | Self::Internal => false,
        }
    }
}

/// A failed call, as it travels.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct RpcError {
    /// Kind.
    pub code: ErrorCode,
    /// Whole chain of causes in words for the user.
    pub message: String,
}

impl RpcError {
    /// An error of `code` that says `message`.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_joining_and_readmission_are_open() {
        let open: Vec<_> = Method::ALL
            .into_iter()
            .filter(|m| m.access() == Access::Open)
            .collect();
        assert_eq!(open, [Method::Join, Method::Readmit]);
    }

    #[test]
    fn numbers_name_methods() {
        for method in Method::ALL {
            assert_eq!(Method::from_number(method.number()), Some(method));
        }
        assert_eq!(Method::from_number(0), None);
    }
}
