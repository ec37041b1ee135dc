//! What a start makes of every kind of damage to the log.

use super::cluster::Cluster;
use crate::raft::{LogError, RaftKey, StartError};
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;

const BLOCK: usize = 512;

/// A stopped cluster of one member with writes 0 to 9, and its last segment.
async fn stopped() -> (Cluster, PathBuf) {
    let mut cluster = Cluster::of(1).await;
    for number in 0..10 {
        cluster.write(number).await;
    }
    cluster.stop(1).await;
    let names = std::fs::read_dir(cluster.data_dir(1)).unwrap();
    let mut paths: Vec<PathBuf> = names.map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| {
        path.file_name()
            .unwrap()
            .to_str()
            .unwrap()
            .starts_with("log-")
    });
    paths.sort();
    let last = paths.pop().unwrap();
    (cluster, last)
}

/// Where each frame starts.
fn frames(bytes: &[u8]) -> Vec<usize> {
    (BLOCK..bytes.len())
        .step_by(BLOCK)
        .filter(|at| &bytes[*at..at + 4] == b"SFRM")
        .collect()
}

fn overwrite(path: &PathBuf, at: usize, bytes: &[u8]) {
    let file = OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(bytes, at as u64).unwrap();
}

async fn start_error(cluster: &mut Cluster) -> LogError {
    match cluster.start(1).await.unwrap_err() {
        StartError::Log(err) => err,
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn torn_last_record_is_cut_off() {
    let (mut cluster, segment) = stopped().await;
    let bytes = std::fs::read(&segment).unwrap();
    let last = *frames(&bytes).last().unwrap();
    // The head of the frame came to the disk, most of its body did not.
    let tail = bytes[last + 40..]
        .iter()
        .rposition(|byte| *byte != 0)
        .unwrap()
        + 1;
    overwrite(&segment, last + 40, &vec![0; tail]);
    cluster.start(1).await.unwrap();
    cluster.has(1, 0..9).await;
    cluster.write(20).await;
    // The cut segment reads as complete from now on.
    cluster.stop(1).await;
    cluster.start(1).await.unwrap();
    cluster.has(1, [20]).await;
}

#[tokio::test]
async fn last_record_without_its_first_block_is_cut_off() {
    let (mut cluster, segment) = stopped().await;
    let bytes = std::fs::read(&segment).unwrap();
    let last = *frames(&bytes).last().unwrap();
    overwrite(&segment, last, &[0; BLOCK]);
    cluster.start(1).await.unwrap();
    cluster.has(1, 0..9).await;
}

#[tokio::test]
async fn flipped_bit_in_the_last_record_is_damage_not_a_torn_write() {
    let (mut cluster, segment) = stopped().await;
    let bytes = std::fs::read(&segment).unwrap();
    let last = *frames(&bytes).last().unwrap();
    overwrite(&segment, last + 30, &[bytes[last + 30] ^ 1]);
    let error = start_error(&mut cluster).await;
    assert!(
        matches!(error, LogError::Damaged { offset, .. } if offset == last as u64),
        "{error}"
    );
}

#[tokio::test]
async fn damage_in_the_middle_is_named() {
    let (mut cluster, segment) = stopped().await;
    let bytes = std::fs::read(&segment).unwrap();
    let middle = frames(&bytes)[8];
    for (at, what) in [(middle + 30, "body"), (middle + 5, "head")] {
        overwrite(&segment, at, &[bytes[at] ^ 0x10]);
        let error = start_error(&mut cluster).await;
        assert!(
            matches!(error, LogError::Damaged { offset, .. } if offset == middle as u64),
            "{what}: {error}"
        );
        overwrite(&segment, at, &[bytes[at]]);
    }
    // A block of zeros in the middle is not the end of the log either.
    overwrite(&segment, middle, &[0; BLOCK]);
    assert!(matches!(
        start_error(&mut cluster).await,
        LogError::Damaged { .. }
    ));
    overwrite(&segment, middle, &bytes[middle..middle + BLOCK]);
    cluster.start(1).await.unwrap();
    cluster.has(1, 0..10).await;
}

#[tokio::test]
async fn cut_file_is_damage() {
    let (mut cluster, segment) = stopped().await;
    OpenOptions::new()
        .write(true)
        .open(&segment)
        .unwrap()
        .set_len(1 << 20)
        .unwrap();
    let error = start_error(&mut cluster).await;
    assert!(
        error
            .to_string()
            .ends_with("its size is not the one that it was made with"),
        "{error}"
    );
}

#[tokio::test]
async fn wrong_key_is_told_from_damage() {
    let (cluster, segment) = stopped().await;
    let key = RaftKey::from_bytes([99; 32]);
    let disk = std::sync::Arc::new(crate::raft::RealDisk);
    let opened = crate::raft::journal::Journal::open(disk, &cluster.data_dir(1), &key);
    let error = opened.err().unwrap();
    assert!(matches!(error, LogError::WrongKey { .. }), "{error}");
    drop(segment);
}

#[tokio::test]
async fn missing_segment_is_named() {
    let (mut cluster, _) = stopped().await;
    cluster.start(1).await.unwrap();
    cluster.stop(1).await;
    cluster.start(1).await.unwrap();
    cluster.stop(1).await;
    std::fs::remove_file(cluster.data_dir(1).join("log-0000000000000001")).unwrap();
    let error = start_error(&mut cluster).await;
    assert!(matches!(error, LogError::Missing { .. }), "{error}");
}

#[tokio::test]
async fn nothing_readable_is_on_disk() {
    let (cluster, segment) = stopped().await;
    let bytes = std::fs::read(&segment).unwrap();
    let name = super::cluster::written_id(7).bits().to_be_bytes();
    assert!(!bytes.windows(name.len()).any(|window| window == name));
    drop(cluster);
}
