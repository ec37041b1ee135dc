//! The cluster object: settings, certificate authority, join tokens.

use crate::{ClusterId, Labels, Meta, Timestamp};
use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Settings that the user may change (`swarm update`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterSpec {
    /// Always `default`, as in Docker.
    pub name: String,
    /// Set by the user.
    pub labels: Labels,
    /// Ended tasks kept per slot.
    pub task_history_max: u64,
    /// Raft entries between two snapshots.
    pub snapshot_interval_entries: u64,
    /// How often a node says that it lives, in milliseconds.
    pub heartbeat_period_ms: u64,
    /// A node that could not renew for this long lets its `stop` tasks be killed, in milliseconds.
    pub lease_ms: u64,
    /// Silence after which a node is down and its tasks are replaced, in milliseconds.
    pub down_limit_ms: u64,
    /// Life of a node certificate, in seconds; at least 3600.
    pub node_cert_expiry_s: u64,
    /// Where subnets of networks are taken from, in order.
    pub address_pools: Vec<Ipv4Net>,
    /// Prefix length of a subnet that is taken from a pool.
    pub subnet_prefix_len: u8,
    /// Where the nodes' addresses in the mesh are taken from; between /8 and /24. Set when the cluster is made.
    pub mesh_pool: Ipv4Net,
    /// Seconds after which a node changes its WireGuard key; at least 3600.
    pub key_rotation_s: u64,
}

/// Default of [`ClusterSpec::address_pools`], as in Docker.
pub const DEFAULT_ADDRESS_POOL: Ipv4Net =
    Ipv4Net::new_assert(std::net::Ipv4Addr::new(10, 0, 0, 0), 8);

/// Default of [`ClusterSpec::mesh_pool`].
pub const DEFAULT_MESH_POOL: Ipv4Net =
    Ipv4Net::new_assert(std::net::Ipv4Addr::new(10, 255, 0, 0), 16);

impl Default for ClusterSpec {
    fn default() -> Self {
        Self {
            name: "default".to_owned(),
            labels: Labels::new(),
            task_history_max: 5,
            snapshot_interval_entries: 10_000,
            heartbeat_period_ms: 500,
            lease_ms: 2_000,
            down_limit_ms: 3_000,
            node_cert_expiry_s: 90 * 24 * 3600,
            address_pools: vec![DEFAULT_ADDRESS_POOL],
            subnet_prefix_len: 24,
            mesh_pool: DEFAULT_MESH_POOL,
            key_rotation_s: 7 * 24 * 3600,
        }
    }
}

/// Bytes or text that must not be printed.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Redacted<T>(pub T);

impl<T> fmt::Debug for Redacted<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// The certificate authority of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootCa {
    /// DER of the root certificate.
    pub certificate_der: Vec<u8>,
    /// PKCS#8 DER of its key.
    pub key_der: Redacted<Vec<u8>>,
}

/// The secret half of a join token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinSecret {
    /// 25 digits of base 36, 128 bits.
    pub secret: Redacted<String>,
    /// After this it is refused.
    pub expires_at: Option<Timestamp>,
    /// Joins left; refused at zero.
    pub uses_left: Option<u64>,
}

/// The cluster: exactly one object of this kind is in a store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cluster {
    /// Identity, the organisation in every certificate.
    pub id: ClusterId,
    /// Version and times.
    pub meta: Meta,
    /// What the user wants.
    pub spec: ClusterSpec,
    /// The certificate authority.
    pub root_ca: RootCa,
    /// Lets workers join.
    pub worker_secret: JoinSecret,
    /// Lets managers join.
    pub manager_secret: JoinSecret,
    /// Raft ids given out so far; the next manager gets the next one.
    pub last_raft_id: u64,
}
