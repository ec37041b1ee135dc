//! Settings of the cluster.

use super::{Invalid, LEASE_MARGIN_MS, ensure, labels};
use shoal_model::ClusterSpec;
use std::ops::RangeInclusive;

/// Heartbeat periods, in milliseconds.
const HEARTBEAT_PERIOD_MS: RangeInclusive<u64> = 50..=60_000;

/// Down limits, in milliseconds: at most a day.
const DOWN_LIMIT_MS_MAX: u64 = 24 * 3600 * 1000;

/// Lives of node certificates, in seconds: an hour to ten years.
const NODE_CERT_EXPIRY_S: RangeInclusive<u64> = 3600..=10 * 365 * 24 * 3600;

/// Raft entries between snapshots.
const SNAPSHOT_INTERVAL_ENTRIES: RangeInclusive<u64> = 100..=10_000_000;

/// Most ended tasks per slot.
const TASK_HISTORY_MAX: u64 = 1_000;

/// Checks the settings of a cluster.
///
/// # Errors
/// [`Invalid`] with the first field that is wrong.
pub fn cluster(spec: &ClusterSpec) -> Result<(), Invalid> {
    ensure(spec.name == "default", "Name", || {
        format!(
            "`{}`: the cluster is always named `default`",
            spec.name.escape_debug()
        )
    })?;
    labels("Labels", &spec.labels)?;
    let history = spec.task_history_max;
    ensure(
        history <= TASK_HISTORY_MAX,
        "Orchestration.TaskHistoryRetentionLimit",
        || format!("{history}: at most {TASK_HISTORY_MAX} ended tasks are kept per slot"),
    )?;
    within(
        "Raft.SnapshotInterval",
        spec.snapshot_interval_entries,
        &SNAPSHOT_INTERVAL_ENTRIES,
    )?;
    within(
        "Dispatcher.HeartbeatPeriod",
        spec.heartbeat_period_ms,
        &HEARTBEAT_PERIOD_MS,
    )?;
    within(
        "CAConfig.NodeCertExpiry",
        spec.node_cert_expiry_s,
        &NODE_CERT_EXPIRY_S,
    )?;
    let lease_min = spec.heartbeat_period_ms.saturating_mul(2);
    ensure(spec.lease_ms >= lease_min, "Dispatcher.Lease", || {
        format!(
            "{} ms: at least two heartbeat periods, {lease_min} ms, are needed",
            spec.lease_ms
        )
    })?;
    let down_min = spec.lease_ms.saturating_add(LEASE_MARGIN_MS);
    within(
        "Dispatcher.DownLimit",
        spec.down_limit_ms,
        &(down_min..=DOWN_LIMIT_MS_MAX),
    )
}

fn within(field: &str, value: u64, range: &RangeInclusive<u64>) -> Result<(), Invalid> {
    ensure(range.contains(&value), field, || {
        format!("{value}: {} to {} are allowed", range.start(), range.end())
    })
}
