//! Damaged files of a daemon: each is recovered or named with the way out, and the others do not notice.

use crate::harness::{TestCluster, eventually, with_cluster};
use std::collections::BTreeSet;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

const SLEEP: &str = "--stop-signal SIGKILL busybox sleep 100000";

/// What a disk writes whole or not at all.
const BLOCK_BYTES: u64 = 512;

fn data_root(test: &TestCluster, host: &str) -> PathBuf {
    test.cluster().host(host).unwrap().dir.join("data")
}

async fn stop(test: &mut TestCluster, host: &str) {
    let host = test.cluster_mut().host_mut(host).unwrap();
    host.stop_daemon().await.unwrap();
}

fn truncate(path: &Path) {
    let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    let len = file.metadata().unwrap().len();
    assert!(len > 1, "{}", path.display());
    file.set_len(len / 2).unwrap();
}

/// Files below a manager's own directory whose names begin so.
fn raft_files(test: &TestCluster, host: &str, prefix: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let dir = data_root(test, host).join("raft");
    for log in std::fs::read_dir(dir).unwrap().flatten() {
        let Ok(files) = std::fs::read_dir(log.path()) else {
            continue;
        };
        let fits = |path: &PathBuf| {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            name.starts_with(prefix)
        };
        found.extend(files.flatten().map(|file| file.path()).filter(fits));
    }
    found.sort();
    found
}

/// Bytes of a segment that are in use: the rest is zeros.
fn used(path: &Path) -> u64 {
    let mut bytes = Vec::new();
    let mut file = std::fs::File::open(path).unwrap();
    file.read_to_end(&mut bytes).unwrap();
    let last = bytes.iter().rposition(|byte| *byte != 0);
    last.map_or(0, |last| last as u64 + 1)
}

fn overwrite(path: &Path, at: u64, bytes: &[u8]) {
    let mut file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    file.seek(SeekFrom::Start(at)).unwrap();
    file.write_all(bytes).unwrap();
}

async fn manager_status(test: &TestCluster, on: &str, host: &str) -> String {
    let line = "node ls --format {{.Hostname}}:{{.Status}}:{{.ManagerStatus}}";
    let shown = test.try_shoal(on, line).await.unwrap_or_default();
    let row = shown.lines().find(|row| row.starts_with(host));
    row.unwrap_or_default().to_owned()
}

/// Damages what a stopped follower has; it must name `file`, go on as a node, and be healed by the way out.
async fn manager_is_damaged_and_healed(
    test: &mut TestCluster,
    file: &str,
    damage: impl FnOnce(&TestCluster, &str),
) {
    let hurt = test.follower().await;
    let leader = test.leader("manager1").await;
    let before = test.shoal(&hurt, "ps -q --no-trunc").await;
    stop(test, &hurt).await;
    damage(test, &hurt);
    test.cluster_mut().restart_daemon(&hurt).await.unwrap();
    // The others take writes, and see the node's tasks run on.
    test.shoal(
        &leader,
        "svc create -d --name meanwhile --replicas 0 busybox",
    )
    .await;
    eventually("the node is there, its manager is not", async || {
        let row = manager_status(test, &leader, &hurt).await;
        match row.contains(":Ready:Unreachable") {
            true => Ok(()),
            false => Err(row),
        }
    })
    .await;
    assert_eq!(test.shoal(&hurt, "ps -q --no-trunc").await, before);
    let said = test.refused(&hurt, "svc ls").await;
    for words in ["does not run", file, "node demote", "node promote"] {
        assert!(said.contains(words), "`{words}` is missing in: {said}");
    }
    let info = test.shoal(&hurt, "info --format {{.Swarm.Error}}").await;
    assert!(info.contains(file), "{info}");

    test.shoal(&leader, &format!("node demote {hurt}")).await;
    eventually("it is a worker", async || {
        let row = manager_status(test, &leader, &hurt).await;
        if row.ends_with(":Ready:") {
            Ok(())
        } else {
            Err(row)
        }
    })
    .await;
    test.shoal(&leader, &format!("node promote {hurt}")).await;
    eventually("it is a manager again", async || {
        let row = manager_status(test, &leader, &hurt).await;
        let shown = test.try_shoal(&hurt, "svc ls --format {{.Name}}").await;
        match shown {
            Ok(text) if row.ends_with(":Ready:Reachable") && text.contains("meanwhile") => Ok(()),
            other => Err(format!("{row} {other:?}")),
        }
    })
    .await;
    test.shoal(&leader, "svc rm meanwhile").await;
    assert_eq!(test.shoal(&hurt, "ps -q --no-trunc").await, before);
}

#[test]
fn root_manager_with_a_damaged_log_or_snapshot_stays_a_node_and_gets_a_new_log() {
    with_cluster(3, 0, async |test| {
        test.shoal(
            "manager1",
            &format!("svc create --name web --mode global {SLEEP}"),
        )
        .await;
        manager_is_damaged_and_healed(test, "log-0", |test, host| {
            let segment = &raft_files(test, host, "log-")[0];
            // A frame in the middle: whole ones follow. Each begins with a block.
            let block = used(segment) / 3 / BLOCK_BYTES * BLOCK_BYTES;
            overwrite(segment, block, &[0x55; 64]);
        })
        .await;
        let set = ["swarm", "update", "--snapshot-interval", "100"];
        test.docker("manager1", &set).await;
        let follower = test.follower().await;
        let mut number = 0;
        eventually("every follower has a snapshot", async || {
            number += 1;
            let line = format!("node update --label-add n={number} manager1");
            test.shoal("manager1", &line).await;
            let found = raft_files(test, &follower, "snapshot");
            // Not one that is still being written.
            match found.iter().any(|path| path.ends_with("snapshot")) {
                true => Ok(()),
                false => Err(format!("{found:?}")),
            }
        })
        .await;
        manager_is_damaged_and_healed(test, "snapshot", |test, host| {
            let found = raft_files(test, host, "snapshot");
            truncate(
                found
                    .iter()
                    .find(|path| path.ends_with("snapshot"))
                    .unwrap(),
            );
        })
        .await;
    });
}

#[test]
fn root_torn_last_record_of_a_log_is_dropped_and_fetched_again() {
    with_cluster(3, 0, async |test| {
        let hurt = test.follower().await;
        let leader = test.leader("manager1").await;
        // A record of several blocks, the last thing that is written before the end.
        let label = format!("long={}", "x".repeat(5_000));
        let create = format!("svc create -d --name first --replicas 0 --label {label} busybox");
        test.shoal(&leader, &create).await;
        let host = test.cluster_mut().host_mut(&hurt).unwrap();
        host.kill_daemon().await.unwrap();
        let segments = raft_files(test, &hurt, "log-");
        let last = segments.last().unwrap();
        // The disk has written every block of it but the last.
        let block = (used(last) - 1) / BLOCK_BYTES * BLOCK_BYTES;
        overwrite(last, block, &[0; BLOCK_BYTES as usize]);
        test.shoal(&leader, "svc create -d --name second --replicas 0 busybox")
            .await;
        test.cluster_mut().restart_daemon(&hurt).await.unwrap();
        eventually("it has caught up", async || {
            let shown = test.try_shoal(&hurt, "svc ls --format {{.Name}}").await;
            match shown {
                Ok(text) if text == "first\nsecond\n" => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
    });
}

async fn containers(test: &TestCluster, host: &str) -> BTreeSet<String> {
    let shown = test.shoal(host, "ps -q --no-trunc").await;
    shown.lines().map(str::to_owned).collect()
}

#[test]
fn root_damaged_files_of_a_worker_cost_no_container() {
    with_cluster(1, 1, async |test| {
        let line =
            format!("svc create --name web --replicas 3 --constraint node.role==worker {SLEEP}");
        test.shoal("manager1", &line).await;
        let run = "run -d --name own busybox sleep 100000";
        let own = test.shoal("worker1", run).await.trim().to_owned();
        let before = containers(test, "worker1").await;
        assert_eq!(before.len(), 4);
        let subnet = "{{(index .IPAM.Config 0).Subnet}} {{.Id}}";
        let network = ["network", "inspect", "bridge", "--format", subnet];
        let bridge = test.docker("worker1", &network).await;
        for file in ["node.json", "agent/assignments", "networks/networks.json"] {
            stop(test, "worker1").await;
            truncate(&data_root(test, "worker1").join(file));
            test.cluster_mut().restart_daemon("worker1").await.unwrap();
            test.wait_ready(2).await;
            test.wait_running("manager1", "web", 3).await;
            assert_eq!(containers(test, "worker1").await, before, "{file}");
        }
        // The bridge is the one that the running containers know.
        assert_eq!(test.docker("worker1", &network).await, bridge);
        let address = "inspect --format {{.NetworkSettings.Networks.bridge.IPAddress}} own";
        let address = test.shoal("worker1", address).await;
        let ping = format!("run --rm busybox ping -c 1 -W 5 {}", address.trim());
        test.shoal("worker1", &ping).await;

        // Without its certificate the node can't return, says so, and joins as the node that it was.
        let list = "node ls --format {{.ID}}|{{.Hostname}}";
        let ids = test.shoal("manager1", list).await;
        stop(test, "worker1").await;
        truncate(&data_root(test, "worker1").join("certs/node.crt"));
        test.cluster_mut().restart_daemon("worker1").await.unwrap();
        eventually("the node says what to do", async || {
            let info = test
                .shoal("worker1", "info --format {{.Swarm.Error}}")
                .await;
            match info.contains("node.crt") && info.contains("shoal join") {
                true => Ok(()),
                false => Err(info),
            }
        })
        .await;
        assert_eq!(containers(test, "worker1").await, before);
        let token = test.shoal("manager1", "join-token -q worker").await;
        let address = test.cluster().host("manager1").unwrap().address;
        let join = format!("join --token {} {address}", token.trim());
        test.shoal("worker1", &join).await;
        test.wait_ready(2).await;
        assert_eq!(test.shoal("manager1", list).await, ids);
        test.wait_running("manager1", "web", 3).await;
        assert_eq!(containers(test, "worker1").await, before);

        // A container whose state is lost counts as ended, and is ended; a task's is started again.
        let task = before.iter().find(|id| **id != own).unwrap();
        stop(test, "worker1").await;
        for id in [task, &own] {
            let state = data_root(test, "worker1").join(format!("containers/{id}/state.json"));
            truncate(&state);
        }
        test.cluster_mut().restart_daemon("worker1").await.unwrap();
        test.wait_running("manager1", "web", 3).await;
        eventually("three tasks run again, and only they", async || {
            let now = containers(test, "worker1").await;
            match now.len() == 3 && !now.contains(&own) {
                true => Ok(()),
                false => Err(format!("{now:?}")),
            }
        })
        .await;
        test.shoal("worker1", "start own").await;
        test.shoal("worker1", "exec own true").await;
    });
}
