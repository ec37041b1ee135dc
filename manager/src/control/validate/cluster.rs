//! Settings of the cluster.

use super::{Invalid, LEASE_MARGIN_MS, ensure, labels, list_bound};
use crate::allocator::subnets::IPV4_PREFIX_LEN;
use shoal_model::ClusterSpec;
use std::ops::RangeInclusive;

/// Heartbeat periods, in milliseconds.
const HEARTBEAT_PERIOD_MS: RangeInclusive<u64> = 50..=60_000;

/// Down limits, in milliseconds: at most a day.
const DOWN_LIMIT_MS_MAX: u64 = 24 * 3600 * 1000;

/// Lives of node certificates, in seconds: an hour to ten years.
const NODE_CERT_EXPIRY_S: RangeInclusive<u64> = 3600..=10 * 365 * 24 * 3600;

/// Prefix lengths of the mesh's pool.
const MESH_PREFIX_LEN: RangeInclusive<u8> = 8..=24;

/// Ages of WireGuard keys, in seconds: an hour to a year.
const KEY_ROTATION_S: RangeInclusive<u64> = 3600..=365 * 24 * 3600;

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
    )?;
    within("KeyRotation", spec.key_rotation_s, &KEY_ROTATION_S)?;
    pools(spec)
}

fn pools(spec: &ClusterSpec) -> Result<(), Invalid> {
    const POOLS: &str = "DefaultAddrPool";
    let length = spec.subnet_prefix_len;
    ensure(IPV4_PREFIX_LEN.contains(&length), "SubnetSize", || {
        let (first, last) = (IPV4_PREFIX_LEN.start(), IPV4_PREFIX_LEN.end());
        format!("{length}: {first} to {last} are allowed")
    })?;
    list_bound(POOLS, &spec.address_pools)?;
    ensure(!spec.address_pools.is_empty(), POOLS, || {
        "no pool is given: networks need addresses".to_owned()
    })?;
    for (place, pool) in spec.address_pools.iter().enumerate() {
        ensure(*pool == pool.trunc(), POOLS, || {
            format!("{pool} has host bits set: it should be {}", pool.trunc())
        })?;
        ensure(pool.prefix_len() <= length, POOLS, || {
            format!("{pool} is smaller than one subnet of /{length}")
        })?;
        let others = &spec.address_pools[..place];
        let other = others
            .iter()
            .find(|it| it.contains(pool) || pool.contains(*it));
        ensure(other.is_none(), POOLS, || {
            let other = other.map(ToString::to_string).unwrap_or_default();
            format!("{pool} overlaps {other}")
        })?;
    }
    let mesh = spec.mesh_pool;
    let well_formed = mesh == mesh.trunc() && MESH_PREFIX_LEN.contains(&mesh.prefix_len());
    ensure(well_formed, "MeshPool", || {
        let (first, last) = (MESH_PREFIX_LEN.start(), MESH_PREFIX_LEN.end());
        format!("{mesh}: give a network from /{first} to /{last} without host bits")
    })
}

fn within(field: &str, value: u64, range: &RangeInclusive<u64>) -> Result<(), Invalid> {
    ensure(range.contains(&value), field, || {
        format!("{value}: {} to {} are allowed", range.start(), range.end())
    })
}
