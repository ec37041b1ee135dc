//! The dispatcher protocol: one bidirectional stream between an agent and the leader.
//!
//! The agent opens the stream with [`NodeMessage::Hello`]; the leader answers [`ManagerMessage::Welcome`], then a
//! complete set of assignments, then changes. Either side may end the stream at any time; the agent then finds the
//! leader again and starts over. What was acknowledged is never lost: statuses are repeated until acknowledged.

use crate::cluster::Redacted;
use crate::node::NodeDescription;
use crate::{NodeId, NodeRole, SessionId, Task, TaskId, TaskStatus};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;

/// Most task statuses in one message.
pub const STATUSES_PER_MESSAGE_MAX: usize = 1_000;

/// Most assignment changes in one message; a larger set comes in several.
pub const CHANGES_PER_MESSAGE_MAX: usize = 500;

/// From the agent to the leader.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum NodeMessage {
    /// Opens the session.
    Hello {
        /// What the node is.
        description: Box<NodeDescription>,
        /// Names of the volumes that it has.
        volumes: Vec<String>,
    },
    /// "I live." Sent every heartbeat period; answered by [`ManagerMessage::HeartbeatAck`], which renews the lease.
    Heartbeat {
        /// Counts up; the answer repeats it, so that the lease starts when the question was sent.
        sequence: u64,
    },
    /// States of tasks, at most [`STATUSES_PER_MESSAGE_MAX`].
    Statuses {
        /// Repeated in the acknowledgement.
        batch: u64,
        /// Which task is in which state.
        statuses: Vec<(TaskId, TaskStatus)>,
    },
    /// The description or the set of volumes has changed.
    Describe {
        /// What the node is.
        description: Box<NodeDescription>,
        /// Names of the volumes that it has.
        volumes: Vec<String>,
    },
    /// A planned restart: do not declare this node down for so long.
    Hold {
        /// Milliseconds; zero ends the hold.
        duration_ms: u64,
    },
    /// The last message could not be applied: send everything again.
    Resync,
    /// The node leaves for now (shutdown of the machine); its tasks may be replaced at once.
    Goodbye,
}

/// From the leader to the agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ManagerMessage {
    /// The session is open.
    Welcome {
        /// Names this session.
        session_id: SessionId,
        /// Milliseconds between heartbeats.
        heartbeat_period_ms: u64,
        /// Milliseconds that an answered heartbeat is good for.
        lease_ms: u64,
    },
    /// The managers to try when this one is gone.
    Managers(Vec<ManagerPeer>),
    /// The role that the node should have now.
    Role(NodeRole),
    /// What the node must run.
    Assignments(AssignmentsMessage),
    /// Answers a heartbeat.
    HeartbeatAck {
        /// Of the heartbeat.
        sequence: u64,
    },
    /// The statuses of that batch are in the store.
    StatusesAck {
        /// Of [`NodeMessage::Statuses`].
        batch: u64,
    },
    /// The session is over, with the reason; reconnect.
    Closed(String),
}

/// A manager's address.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ManagerPeer {
    /// The node.
    pub node_id: NodeId,
    /// Its control port.
    pub addr: SocketAddr,
}

/// A set of assignments or a change of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AssignmentsMessage {
    /// Whether it replaces everything or changes something.
    pub kind: AssignmentsKind,
    /// Sequence number that the node must be at; ignored for a complete set.
    pub applies_to: u64,
    /// Sequence number that the node is at afterwards.
    pub results_in: u64,
    /// The changes, at most [`CHANGES_PER_MESSAGE_MAX`].
    pub changes: Vec<AssignmentChange>,
    /// Further messages of the same set follow; what is missing may only be removed after the last.
    pub more: bool,
}

/// Kind of an assignments message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum AssignmentsKind {
    /// Everything that the node must run; the rest must go.
    Complete,
    /// Changes only.
    Incremental,
}

/// One change. Secrets, configs and networks will be further variants.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum AssignmentChange {
    /// The node runs this task, or its desired state has changed.
    UpdateTask(Box<Task>),
    /// The record is gone: stop it if it runs, and forget it.
    RemoveTask(TaskId),
    /// Credentials for the registry of a task's image. They come before the task itself, and are never stored.
    RegistryAuth {
        /// Whose image.
        task_id: TaskId,
        /// As [`crate::ServiceSpec::registry_auth`].
        auth: Redacted<String>,
    },
}
