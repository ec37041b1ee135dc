//! Reads and writes the settings of the cluster.

use super::common;
use super::service_in::{LABEL_DOWN_LIMIT, take_ms};
use crate::error::ApiResult;
use crate::fields::Fields;
use base64::Engine as _;
use ipnet::Ipv4Net;
use serde_json::{Value, json};
use shoal_model::{Cluster, ClusterSpec};

/// Label of the cluster with how long an answered heartbeat is good for.
const LABEL_LEASE: &str = "shoal.lease";
/// Label of the cluster with where the nodes' addresses in the mesh are taken from.
const LABEL_MESH_POOL: &str = "shoal.mesh-pool";
/// Label of the cluster with the time after which a node changes its WireGuard key: `168h`.
const LABEL_KEY_ROTATION: &str = "shoal.key-rotation";
/// Longest and shortest prefix of a subnet that networks get by themselves.
const SUBNET_SIZE_MIN: u8 = 8;
const SUBNET_SIZE_MAX: u8 = 29;
const MS_PER_S: u64 = 1_000;
const NS_PER_MS: u64 = 1_000_000;
const NS_PER_S: u64 = 1_000_000_000;
/// Characters in a line of PEM.
const PEM_LINE_LEN: usize = 64;

/// Reads the settings; what is absent or zero stays as it is in `base`.
pub(crate) fn cluster_spec(mut body: Fields, base: &ClusterSpec) -> ApiResult<ClusterSpec> {
    let mut labels = body.labels("Labels")?;
    let mut spec = base.clone();
    if let Some(ms) = take_ms(&body, &mut labels, LABEL_LEASE)? {
        spec.lease_ms = ms;
    }
    if let Some(ms) = take_ms(&body, &mut labels, LABEL_DOWN_LIMIT)? {
        spec.down_limit_ms = ms;
    }
    if let Some(text) = labels.remove(LABEL_MESH_POOL) {
        spec.mesh_pool = pool(&body, &format!("Labels.{LABEL_MESH_POOL}"), &text)?;
    }
    if let Some(ms) = take_ms(&body, &mut labels, LABEL_KEY_ROTATION)? {
        spec.key_rotation_s = ms / MS_PER_S;
    }
    spec.labels = labels;
    let name = body.string("Name")?;
    if !matches!(name.as_str(), "" | "default") {
        return Err(body.error("Name", "the cluster is always called `default`"));
    }
    let mut orchestration = body.object_or_empty("Orchestration")?;
    if let Some(limit) = orchestration.opt_int::<i64>("TaskHistoryRetentionLimit")? {
        spec.task_history_max = u64::try_from(limit).map_err(|_| {
            orchestration.error("TaskHistoryRetentionLimit", "must not be negative")
        })?;
    }
    orchestration.done()?;
    let mut raft = body.object_or_empty("Raft")?;
    non_zero(
        raft.int("SnapshotInterval")?,
        &mut spec.snapshot_interval_entries,
    );
    raft.refuse(&[
        ("KeepOldSnapshots", "one snapshot is kept"),
        (
            "LogEntriesForSlowFollowers",
            "it follows from the snapshot interval",
        ),
        ("ElectionTick", "elections are not counted in ticks here"),
        ("HeartbeatTick", "elections are not counted in ticks here"),
    ])?;
    raft.done()?;
    let mut dispatcher = body.object_or_empty("Dispatcher")?;
    let period_ns: u64 = dispatcher.int("HeartbeatPeriod")?;
    non_zero(period_ns / NS_PER_MS, &mut spec.heartbeat_period_ms);
    dispatcher.done()?;
    let mut ca = body.object_or_empty("CAConfig")?;
    let expiry_ns: u64 = ca.int("NodeCertExpiry")?;
    non_zero(expiry_ns / NS_PER_S, &mut spec.node_cert_expiry_s);
    ca.refuse(&[
        (
            "ExternalCAs",
            "the cluster has its own certificate authority",
        ),
        ("SigningCACert", "rotation of the root is not done yet"),
        ("SigningCAKey", "rotation of the root is not done yet"),
        ("ForceRotate", "rotation of the root is not done yet"),
    ])?;
    ca.done()?;
    body.refuse(&[
        ("TaskDefaults", "the node's own log driver is the default"),
        ("EncryptionConfig", "autolock is not done yet"),
    ])?;
    body.done()?;
    Ok(spec)
}

/// Reads where subnets of networks come from, which is said once, when the cluster is made.
pub(crate) fn address_pools(body: &mut Fields, spec: &mut ClusterSpec) -> ApiResult<()> {
    let pools = body.strings("DefaultAddrPool")?;
    let size: u8 = body.int("SubnetSize")?;
    if size != 0 {
        if !(SUBNET_SIZE_MIN..=SUBNET_SIZE_MAX).contains(&size) {
            let reason =
                format!("{size}: expected a length from {SUBNET_SIZE_MIN} to {SUBNET_SIZE_MAX}");
            return Err(body.error("SubnetSize", reason));
        }
        spec.subnet_prefix_len = size;
    }
    if !pools.is_empty() {
        spec.address_pools = pools
            .iter()
            .map(|text| pool(body, "DefaultAddrPool", text))
            .collect::<ApiResult<_>>()?;
    }
    let too_small = spec
        .address_pools
        .iter()
        .find(|pool| pool.prefix_len() > spec.subnet_prefix_len);
    if let Some(pool) = too_small {
        let reason = format!(
            "{pool} is smaller than a subnet of length {}",
            spec.subnet_prefix_len
        );
        return Err(body.error("DefaultAddrPool", reason));
    }
    Ok(())
}

fn pool(body: &Fields, field: &str, text: &str) -> ApiResult<Ipv4Net> {
    let error = || {
        body.error(
            field,
            format!("`{text}`: expected a block such as 10.20.0.0/16"),
        )
    };
    let pool: Ipv4Net = text.parse().map_err(|_| error())?;
    if pool.addr() == pool.network() {
        Ok(pool)
    } else {
        Err(error())
    }
}

fn non_zero(value: u64, place: &mut u64) {
    if value != 0 {
        *place = value;
    }
}

/// Writes the settings so that they can be sent back.
fn spec(spec: &ClusterSpec) -> Value {
    let mut labels = spec.labels.clone();
    let default = ClusterSpec::default();
    if spec.lease_ms != default.lease_ms {
        labels.insert(LABEL_LEASE.to_owned(), format!("{}ms", spec.lease_ms));
    }
    if spec.down_limit_ms != default.down_limit_ms {
        labels.insert(
            LABEL_DOWN_LIMIT.to_owned(),
            format!("{}ms", spec.down_limit_ms),
        );
    }
    if spec.mesh_pool != default.mesh_pool {
        labels.insert(LABEL_MESH_POOL.to_owned(), spec.mesh_pool.to_string());
    }
    if spec.key_rotation_s != default.key_rotation_s {
        labels.insert(
            LABEL_KEY_ROTATION.to_owned(),
            format!("{}s", spec.key_rotation_s),
        );
    }
    json!({
        "Name": spec.name,
        "Labels": labels,
        "Orchestration": { "TaskHistoryRetentionLimit": spec.task_history_max },
        "Raft": {
            "SnapshotInterval": spec.snapshot_interval_entries,
            "LogEntriesForSlowFollowers": 0,
            "ElectionTick": 0,
            "HeartbeatTick": 0,
        },
        "Dispatcher": { "HeartbeatPeriod": spec.heartbeat_period_ms.saturating_mul(NS_PER_MS) },
        "CAConfig": { "NodeCertExpiry": spec.node_cert_expiry_s.saturating_mul(NS_PER_S) },
        "TaskDefaults": {},
        "EncryptionConfig": { "AutoLockManagers": false },
    })
}

/// Writes the cluster as `GET /info` shows it: without its secrets.
pub(crate) fn info(cluster: &Cluster) -> Value {
    let pools = cluster.spec.address_pools.iter();
    let pools: Vec<String> = pools.map(ToString::to_string).collect();
    let mut out = json!({
        "ID": cluster.id.to_string(),
        "Spec": spec(&cluster.spec),
        "TLSInfo": { "TrustRoot": pem(&cluster.root_ca.certificate_der) },
        "RootRotationInProgress": false,
        "DefaultAddrPool": pools,
        "SubnetSize": cluster.spec.subnet_prefix_len,
        "DataPathPort": 0,
    });
    common::put_meta(&mut out, &cluster.meta);
    out
}

/// Writes the cluster as `GET /swarm` shows it.
pub(crate) fn swarm(cluster: &Cluster, worker_token: &str, manager_token: &str) -> Value {
    let mut out = info(cluster);
    out["JoinTokens"] = json!({ "Worker": worker_token, "Manager": manager_token });
    out
}

fn pem(der: &[u8]) -> String {
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let mut out = String::from("-----BEGIN CERTIFICATE-----\n");
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (line, tail) = rest.split_at(rest.len().min(PEM_LINE_LEN));
        out.push_str(line);
        out.push('\n');
        rest = tail;
    }
    out.push_str("-----END CERTIFICATE-----\n");
    out
}
