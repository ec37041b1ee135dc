//! What one member of Raft is started with.

use super::crypt::RaftKey;
use super::disk::Disk;
use super::error::StartError;
use super::runtime::Placement;
use crate::consensus::WallClock;
use crate::store::Store;
use shoal_model::{NodeId, RaftNodeId};
use shoal_transport::Connector;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Most bytes of one encoded command: 4 MiB.
pub const COMMAND_BYTES_MAX: usize = 4 << 20;

/// Commands in memory and in the log, in bytes, that call for a snapshot before its time: 16 MiB.
pub(crate) const LOG_BYTES_BEFORE_SNAPSHOT: usize = 16 << 20;

/// Shortest time between two snapshots, unless [`LOG_BYTES_BEFORE_SNAPSHOT`] is passed: under a load of writes they
/// would cost more than the writes.
pub(crate) const SNAPSHOT_SPACING: Duration = Duration::from_secs(5);

/// Raft's times. A leader that is not heard of for `election_max` plus a random time between `election_min` and
/// `election_max` is replaced; a leader that hears of no majority for `election_max` takes no more writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// Between two signs of life of the leader.
    pub heartbeat: Duration,
    /// Shortest random part of an election timeout.
    pub election_min: Duration,
    /// Longest random part of an election timeout, and the leader's lease.
    pub election_max: Duration,
    /// A proposal that was accepted while there was a majority is given up, outcome unknown, after this time without
    /// one.
    pub give_up: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_millis(50),
            election_min: Duration::from_millis(150),
            election_max: Duration::from_millis(300),
            give_up: Duration::from_millis(1_500),
        }
    }
}

impl Timing {
    /// How long the answer to one message with entries may take: a slow disk is not a dead member.
    pub(crate) fn append_deadline(&self) -> Duration {
        (self.election_max * 4).max(Duration::from_secs(1))
    }

    /// The settings of the Raft library.
    pub(crate) fn config(&self) -> Result<Arc<openraft::Config>, StartError> {
        let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let config = openraft::Config {
            cluster_name: "shoal".to_owned(),
            heartbeat_interval: millis(self.heartbeat),
            election_timeout_min: millis(self.election_min),
            election_timeout_max: millis(self.election_max),
            // Snapshots are taken by this crate's own rule, which counts bytes too.
            snapshot_policy: openraft::SnapshotPolicy::Never,
            // A member that lags gets entries as long as they are there, a snapshot otherwise.
            replication_lag_threshold: u64::MAX,
            max_in_snapshot_log_to_keep: 1_000,
            purge_batch_size: 256,
            max_payload_entries: 1_024,
            enable_pre_vote: Some(true),
            // A restarted leader must be elected again: others may have gone on.
            enable_leader_restore: Some(false),
            broadcast_submitted_on_append: Some(true),
            removed_leader_step_down: openraft::StepDownPolicy::After(150),
            ..openraft::Config::default()
        };
        config
            .validate()
            .map(Arc::new)
            .map_err(|err| StartError::Timing {
                reason: err.to_string(),
            })
    }
}

/// What one member of Raft is started with.
pub struct RaftOptions {
    /// Own directory: log segments and the snapshot.
    pub data_dir: PathBuf,
    /// Own id in Raft.
    pub raft_id: RaftNodeId,
    /// Own node.
    pub node_id: NodeId,
    /// Where others reach this manager's control port.
    pub advertise: SocketAddr,
    /// Encrypts the files in `data_dir`.
    pub key: RaftKey,
    /// Raft's times.
    pub timing: Timing,
    /// Entries between two snapshots; more when they come fast.
    pub snapshot_interval_entries: u64,
    /// Seam: streams to other managers.
    pub connector: Arc<dyn Connector>,
    /// Seam: files.
    pub disk: Arc<dyn Disk>,
    /// What is replicated.
    pub store: Store,
    /// Seam: stamps commands.
    pub clock: Arc<dyn WallClock>,
    /// Decides election timeouts; the same seed gives the same ones.
    pub seed: u64,
    /// Where it runs.
    pub placement: Placement,
}
