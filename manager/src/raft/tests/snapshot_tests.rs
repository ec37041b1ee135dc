//! Snapshots: restart from one, catch up by one, damage to one.

use super::cluster::{Cluster, addr, eventually, node_id};
use crate::consensus::Consensus as _;
use crate::raft::{LogError, StartError};
use shoal_model::RaftNodeId;

async fn snapshot_and_purge(cluster: &Cluster, id: u64) {
    let handle = cluster.handle(id);
    let applied = handle.metrics().last_applied.unwrap();
    handle.take_snapshot().await.unwrap();
    eventually("a snapshot", || handle.metrics().snapshot >= Some(applied)).await;
    handle
        .inner
        .raft
        .trigger()
        .purge_log(applied.index)
        .await
        .unwrap();
    eventually("a purge", || handle.metrics().purged >= Some(applied)).await;
}

#[tokio::test]
async fn restart_from_snapshot_and_tail() {
    let mut cluster = Cluster::of(1).await;
    for number in 0..10 {
        cluster.write(number).await;
    }
    snapshot_and_purge(&cluster, 1).await;
    for number in 10..15 {
        cluster.write(number).await;
    }
    let before = cluster.store(1).view();
    cluster.stop(1).await;
    cluster.start(1).await.unwrap();
    cluster.has(1, 0..15).await;
    let after = cluster.store(1).view();
    assert!(before.nodes().eq(after.nodes()));
    let names = std::fs::read_dir(cluster.data_dir(1)).unwrap();
    let segments = names.filter(|entry| {
        entry
            .as_ref()
            .unwrap()
            .file_name()
            .to_str()
            .unwrap()
            .starts_with("log-")
    });
    assert!(segments.count() <= 2);
}

#[tokio::test]
async fn lagging_and_new_members_catch_up_by_snapshot() {
    let mut cluster = Cluster::of(3).await;
    let leader = cluster.leader().await;
    let lagging = if leader == 3 { 2 } else { 3 };
    cluster.wire.cut(lagging);
    for number in 0..30 {
        cluster.write(number).await;
    }
    snapshot_and_purge(&cluster, leader).await;
    cluster.wire.heal(lagging);
    cluster.has(lagging, 0..30).await;
    cluster.start(4).await.unwrap();
    let leader = cluster.handle(cluster.leader().await);
    leader
        .add_member(RaftNodeId(4), node_id(4), addr(4))
        .await
        .unwrap();
    cluster.write(30).await;
    cluster.has(4, 0..31).await;
    // Both remember it on their own.
    for id in [lagging, 4] {
        cluster.stop(id).await;
        cluster.start(id).await.unwrap();
        cluster.has(id, 0..31).await;
    }
    for id in 1..=4 {
        let unfinished = std::fs::read_dir(cluster.data_dir(id))
            .unwrap()
            .filter(|entry| {
                entry
                    .as_ref()
                    .unwrap()
                    .file_name()
                    .to_str()
                    .unwrap()
                    .ends_with(".tmp")
            });
        assert_eq!(unfinished.count(), 0, "member {id}");
    }
}

#[tokio::test]
async fn snapshots_come_by_themselves() {
    let cluster = Cluster::of(1).await;
    let handle = cluster.handle(1);
    handle.set_snapshot_interval(10);
    for number in 0..25 {
        cluster.write(number).await;
    }
    eventually("a snapshot", || handle.metrics().snapshot.is_some()).await;
}

#[tokio::test]
async fn damaged_snapshot_is_named() {
    let mut cluster = Cluster::of(1).await;
    for number in 0..10 {
        cluster.write(number).await;
    }
    snapshot_and_purge(&cluster, 1).await;
    cluster.stop(1).await;
    let path = cluster.data_dir(1).join("snapshot");
    let good = std::fs::read(&path).unwrap();
    for damage in [good[..good.len() - 30].to_vec(), {
        let mut flipped = good.clone();
        let middle = flipped.len() / 2;
        flipped[middle] ^= 1;
        flipped
    }] {
        std::fs::write(&path, damage).unwrap();
        let error = cluster.start(1).await.unwrap_err();
        assert!(
            matches!(error, StartError::Log(LogError::Damaged { .. })),
            "{error}"
        );
    }
    std::fs::write(&path, good).unwrap();
    cluster.start(1).await.unwrap();
    cluster.has(1, 0..10).await;
}
