//! kill -9 of a process that writes: everything that it acknowledged is found afterwards.

use super::cluster::{Cluster, create, written_id};
use crate::consensus::Consensus as _;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Command, Stdio};

const DIR: &str = "SHOAL_RAFT_KILL_DIR";
const FIRST: &str = "SHOAL_RAFT_KILL_FIRST";

/// The child: writes for ever, and tells each number once it is acknowledged.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "only runs as a child of `acknowledged_writes_survive_kill_9`"]
async fn child_writes() {
    let Ok(dir) = std::env::var(DIR) else { return };
    let first: u64 = std::env::var(FIRST).unwrap().parse().unwrap();
    let mut cluster = Cluster::in_dir(dir.into());
    cluster.start(1).await.unwrap();
    let handle = cluster.handle(1);
    if !handle.is_initialized().await.unwrap() {
        handle.bootstrap(Vec::new()).await.unwrap();
    }
    handle.set_snapshot_interval(100);
    cluster.leader().await;
    for number in first.. {
        // An id from the run before may be there: it was written and not acknowledged.
        drop(handle.propose(vec![create(number)]).await);
        if cluster.store(1).view().node(written_id(number)).is_some() {
            let mut out = std::io::stdout().lock();
            writeln!(out, "acknowledged {number}").unwrap();
            out.flush().unwrap();
        }
    }
}

#[tokio::test]
async fn acknowledged_writes_survive_kill_9() {
    let dir = tempfile::tempdir().unwrap();
    let mut first = 0;
    for round in 0..6 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "raft::tests::kill_tests::child_writes",
                "--ignored",
                "--nocapture",
            ])
            .env(DIR, dir.path())
            .env(FIRST, first.to_string())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut acknowledged = Vec::new();
        // Another moment in each round, also in the middle of snapshots and purges.
        let enough = 50 + round * 37;
        while acknowledged.len() < enough {
            let line = lines.next().unwrap().unwrap();
            if let Some(number) = line.strip_prefix("acknowledged ") {
                acknowledged.push(number.parse::<u64>().unwrap());
            }
        }
        child.kill().unwrap();
        child.wait().unwrap();
        acknowledged.extend(lines.map_while(Result::ok).filter_map(|line| {
            line.strip_prefix("acknowledged ")
                .and_then(|number| number.parse::<u64>().ok())
        }));
        let last = *acknowledged.last().unwrap();
        let mut cluster = Cluster::in_dir(dir.path().to_owned());
        cluster.start(1).await.unwrap();
        cluster.leader().await;
        cluster.has(1, 0..=last).await;
        cluster.stop(1).await;
        first = last + 1;
    }
}
