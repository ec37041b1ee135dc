//! The words of Shoal: ids, specs, objects, task states, Raft commands, wire messages, and the one codec.
//!
//! This crate never does I/O, never asks a clock and never draws a random number: whoever makes an object passes the
//! time and the id in. Everything here is plain data that `serde` can move, plus the rules that are true of the
//! data alone (which state follows which, which role may call which method).
#![forbid(unsafe_code)]

pub mod cluster;
pub mod codec;
pub mod command;
pub mod control;
pub mod id;
pub mod netstate;
pub mod network;
pub mod node;
pub mod resources;
pub mod rpc;
pub mod service;
pub mod session;
pub mod spec;
pub mod task;
pub mod time;
pub mod volume;

pub use cluster::{Cluster, ClusterSpec};
pub use id::{
    ClusterId, ContainerId, NetworkId, NodeId, RaftNodeId, ServiceId, SessionId, TaskId, VolumeId,
};
pub use netstate::NetState;
pub use network::{AddressLease, Attachment, Endpoint, Network, NetworkSpec};
pub use node::{Availability, Node, NodeDescription, NodeRole, NodeSpec, NodeState, NodeStatus};
pub use resources::Resources;
pub use service::Service;
pub use spec::{ContainerSpec, ServiceMode, ServiceSpec, TaskSpec};
pub use task::{Task, TaskState, TaskStatus};
pub use time::Timestamp;
pub use volume::Volume;

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Labels of an object: key to value, in key order.
pub type Labels = BTreeMap<String, String>;

/// The version of an object: the Raft log index of the entry that last changed it. Zero means "not stored yet".
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Version(pub u64);

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// What every stored object carries: its version and when it was made and last changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Meta {
    /// Set by `apply`; a write that names another version is refused as stale.
    pub version: Version,
    /// Proposer's wall clock when the object was made.
    pub created_at: Timestamp,
    /// Proposer's wall clock at the last change.
    pub updated_at: Timestamp,
}
