//! Machines.

use crate::network::{MeshAddress, WireGuardDescription};
use crate::{Labels, Meta, NodeId, RaftNodeId, Resources, Timestamp};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;

/// What a node does in the cluster. A manager also runs tasks unless it is drained.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
pub enum NodeRole {
    /// Runs tasks.
    #[default]
    Worker,
    /// Takes part in Raft.
    Manager,
}

impl NodeRole {
    /// The word in Docker's API and in constraints.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Worker => "worker",
            Self::Manager => "manager",
        }
    }
}

impl std::fmt::Display for NodeRole {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

/// Whether a node takes tasks.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
pub enum Availability {
    /// Takes new tasks.
    #[default]
    Active,
    /// Keeps its tasks, takes no new ones.
    Pause,
    /// Its tasks are moved away, it takes no new ones.
    Drain,
}

impl Availability {
    /// The word in Docker's API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Pause => "pause",
            Self::Drain => "drain",
        }
    }
}

/// What the user wants of a node.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct NodeSpec {
    /// Optional name; the host name is shown where it is empty.
    pub name: String,
    /// Set by the user, seen by constraints as `node.labels.*`.
    pub labels: Labels,
    /// The role that the user wants; [`Node::role`] is the one it has.
    pub role: NodeRole,
    /// Whether it takes tasks.
    pub availability: Availability,
}

/// What a node says of itself when its session starts and when it changes.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct NodeDescription {
    /// Host name.
    pub hostname: String,
    /// `linux`.
    pub os: String,
    /// As the OCI says it: `amd64`, `arm64`.
    pub architecture: String,
    /// What the machine has.
    pub resources: Resources,
    /// Version of the engine, for `node ls`.
    pub engine_version: String,
    /// Set on the daemon's command line, seen by constraints as `engine.labels.*`.
    pub engine_labels: Labels,
    /// Newest store feature level that this binary reads.
    pub feature_level_max: u32,
    /// Where others reach the control port of this node.
    pub control_addr: Option<SocketAddr>,
    /// Where others reach the bulk port of this node.
    pub bulk_addr: Option<SocketAddr>,
    /// Its part in the mesh; `None` while it has none.
    pub wireguard: Option<WireGuardDescription>,
    /// Networks that the machine reaches by routes of its own: no subnet of ours may overlap them.
    pub local_networks: Vec<IpNet>,
}

/// Whether managers hear from a node.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
pub enum NodeState {
    /// Not heard of since this leader leads, and the down limit has not passed.
    #[default]
    Unknown,
    /// Not heard of for longer than the down limit; its tasks are replaced.
    Down,
    /// Has a live session.
    Ready,
    /// Said good-bye.
    Disconnected,
}

impl NodeState {
    /// The word in Docker's API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Down => "down",
            Self::Ready => "ready",
            Self::Disconnected => "disconnected",
        }
    }
}

/// What was observed of a node.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Liveness.
    pub state: NodeState,
    /// Why it is in that state.
    pub message: String,
    /// The address that its session comes from, as the leader sees it; port removed for display.
    pub addr: String,
}

/// The manager part of a node that is one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManagerStatus {
    /// Raft's own id.
    pub raft_id: RaftNodeId,
    /// Where its peers reach it.
    pub addr: SocketAddr,
}

/// A machine of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Identity, the common name in its certificate.
    pub id: NodeId,
    /// Version and times.
    pub meta: Meta,
    /// What the user wants.
    pub spec: NodeSpec,
    /// What it says of itself; `None` until its first session.
    pub description: Option<NodeDescription>,
    /// What was observed.
    pub status: NodeStatus,
    /// The role that its newest certificate carries.
    pub role: NodeRole,
    /// Present while it is a member of Raft.
    pub manager: Option<ManagerStatus>,
    /// SHA-256 of its public key (SubjectPublicKeyInfo): a node is its key.
    pub public_key_digest: [u8; 32],
    /// Its addresses in the mesh, given out once it has said its WireGuard key.
    pub mesh: Option<MeshAddress>,
    /// Planned restart: until then the node is not declared down.
    pub hold_until: Option<Timestamp>,
}

impl Node {
    /// The name that a user sees: the given one, else the host name, else the id.
    pub fn display_name(&self) -> String {
        if !self.spec.name.is_empty() {
            return self.spec.name.clone();
        }
        match &self.description {
            Some(description) if !description.hostname.is_empty() => description.hostname.clone(),
            _ => self.id.to_string(),
        }
    }

    /// Takes new tasks: heard of, active.
    pub fn takes_tasks(&self) -> bool {
        self.status.state == NodeState::Ready && self.spec.availability == Availability::Active
    }
}
