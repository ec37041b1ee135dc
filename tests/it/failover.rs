//! Hosts that die, cables that are pulled, daemons that are killed.

use crate::harness::{TestCluster, eventually, with_cluster, within};
use nix::sys::signal::Signal;
use std::collections::BTreeSet;
use std::time::Duration;

const SLEEP: &str = "--stop-signal SIGKILL busybox sleep 100000";
/// The failure table says 4 s; the rest is for a machine that is busy with tests.
const REPLACED_MAX: Duration = Duration::from_secs(15);

async fn replaced(test: &TestCluster, on: &str, count: usize, lost: &[&str]) {
    within(REPLACED_MAX, "the lost tasks run elsewhere", async || {
        let rows = test.running(on, "web").await;
        let elsewhere = rows.iter().all(|(_, node)| !lost.contains(&node.as_str()));
        let slots: BTreeSet<_> = rows.iter().map(|(name, _)| name.clone()).collect();
        let there = rows.len() == count && slots.len() == count && elsewhere;
        if there {
            Ok(())
        } else {
            Err(format!("{rows:?}"))
        }
    })
    .await;
}

#[test]
fn root_tasks_of_a_killed_host_run_elsewhere() {
    with_cluster(1, 3, async |test| {
        test.shoal(
            "manager1",
            &format!("svc create --name web --replicas 8 {SLEEP}"),
        )
        .await;
        let before = test.running("manager1", "web").await;
        test.cluster_mut()
            .host_mut("worker1")
            .unwrap()
            .kill()
            .await
            .unwrap();
        replaced(test, "manager1", 8, &["worker1"]).await;
        let after = test.running("manager1", "web").await;
        let untouched = before.iter().filter(|(_, node)| node != "worker1");
        assert!(
            untouched.clone().all(|row| after.contains(row)),
            "{before:?} → {after:?}"
        );

        // The machine comes back: its stale tasks are gone, it takes new ones.
        test.cluster_mut().reboot("worker1").await.unwrap();
        test.wait_ready(4).await;
        eventually("the stale containers are gone", async || {
            let left = test.shoal("worker1", "ps -q").await;
            if left.is_empty() { Ok(()) } else { Err(left) }
        })
        .await;
        test.shoal("manager1", "svc scale web=12").await;
        let rows = test.wait_running("manager1", "web", 12).await;
        assert!(
            TestCluster::per_node(&rows).contains_key("worker1"),
            "{rows:?}"
        );
    });
}

#[test]
fn root_tasks_of_a_cut_off_host_run_elsewhere_and_once_after_healing() {
    with_cluster(1, 2, async |test| {
        test.shoal(
            "manager1",
            &format!("svc create --name web --replicas 6 {SLEEP}"),
        )
        .await;
        test.cluster()
            .switch
            .set_cable("worker1", false)
            .await
            .unwrap();
        replaced(test, "manager1", 6, &["worker1"]).await;
        test.cluster()
            .switch
            .set_cable("worker1", true)
            .await
            .unwrap();
        test.wait_ready(3).await;
        eventually("the loser has stopped its tasks", async || {
            let left = test.shoal("worker1", "ps -q").await;
            if left.is_empty() { Ok(()) } else { Err(left) }
        })
        .await;
        test.wait_running("manager1", "web", 6).await;
    });
}

#[test]
fn root_every_acknowledged_write_outlives_the_leader() {
    with_cluster(3, 0, async |test| {
        let leader = test.leader("manager1").await;
        let survivor = test.follower().await;
        let mut acknowledged = Vec::new();
        for number in 0..30 {
            if number == 10 {
                test.cluster_mut()
                    .host_mut(&leader)
                    .unwrap()
                    .kill()
                    .await
                    .unwrap();
            }
            let line = format!("svc create -d -q --name w{number} --replicas 0 busybox");
            if test.try_shoal(&survivor, &line).await.is_ok() {
                acknowledged.push(format!("w{number}"));
            }
        }
        assert!(
            acknowledged.len() >= 20,
            "only {} writes were acknowledged",
            acknowledged.len()
        );
        let found = test.shoal(&survivor, "svc ls --format {{.Name}}").await;
        let found: BTreeSet<_> = found.lines().collect();
        let lost: Vec<_> = acknowledged
            .iter()
            .filter(|name| !found.contains(name.as_str()))
            .collect();
        assert!(lost.is_empty(), "acknowledged but lost: {lost:?}");
    });
}

#[test]
fn root_all_managers_restarted_keep_everything_and_touch_no_container() {
    with_cluster(3, 1, async |test| {
        test.shoal(
            "manager1",
            &format!("svc create --name web --replicas 4 {SLEEP}"),
        )
        .await;
        let before = containers(test).await;
        for name in ["manager1", "manager2", "manager3"] {
            test.cluster_mut()
                .host_mut(name)
                .unwrap()
                .kill_daemon()
                .await
                .unwrap();
        }
        for name in ["manager1", "manager2", "manager3"] {
            test.cluster_mut().restart_daemon(name).await.unwrap();
        }
        eventually("the service is there", async || {
            let shown = test
                .try_shoal("manager1", "svc ls --format {{.Name}}:{{.Replicas}}")
                .await;
            match shown {
                Ok(text) if text == "web:4/4\n" => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
        assert_eq!(containers(test).await, before);
    });
}

async fn containers(test: &TestCluster) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    for host in &test.cluster().state.hosts {
        let ids = test.shoal(&host.name, "ps -q --no-trunc").await;
        all.extend(ids.lines().map(str::to_owned));
    }
    all
}

#[test]
fn root_killed_daemon_finds_its_containers_again() {
    with_cluster(1, 1, async |test| {
        test.shoal(
            "manager1",
            &format!("svc create --name web --replicas 4 {SLEEP}"),
        )
        .await;
        let before = containers(test).await;
        test.cluster_mut()
            .host_mut("worker1")
            .unwrap()
            .kill_daemon()
            .await
            .unwrap();
        test.cluster_mut().restart_daemon("worker1").await.unwrap();
        test.wait_ready(2).await;
        assert_eq!(containers(test).await, before);
        test.wait_running("manager1", "web", 4).await;
        assert_eq!(containers(test).await, before);
    });
}

#[test]
fn root_minority_refuses_writes_and_rejoins() {
    with_cluster(3, 0, async |test| {
        let leader = test.leader("manager1").await;
        let survivor = test.follower().await;
        test.cluster()
            .switch
            .set_cable(&leader, false)
            .await
            .unwrap();
        eventually("the majority takes writes", async || {
            let line = "svc create -d -q --name majority --replicas 0 busybox";
            match test.try_shoal(&survivor, line).await {
                Ok(_) => Ok(()),
                Err(error) if error.to_string().contains("in use") => Ok(()),
                Err(error) => Err(error.to_string()),
            }
        })
        .await;
        let line = "svc create -d -q --name minority --replicas 0 busybox";
        let said = test.refused(&leader, line).await;
        assert!(said.contains("quorum") || said.contains("leader"), "{said}");

        test.cluster()
            .switch
            .set_cable(&leader, true)
            .await
            .unwrap();
        eventually(
            "the old leader sees the majority's write",
            async || match test.try_shoal(&leader, "svc ls --format {{.Name}}").await {
                Ok(text) if text == "majority\n" => Ok(()),
                other => Err(format!("{other:?}")),
            },
        )
        .await;
    });
}

/// Containers of `host` that really run, whatever its daemon can still say: processes below its cgroup.
fn sleepers(test: &TestCluster, host: &str) -> usize {
    let parent = format!("{}/", test.cluster().host(host).unwrap().cgroup_parent);
    std::fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter(|process| {
            let read = |file| std::fs::read(process.path().join(file)).unwrap_or_default();
            let ours = String::from_utf8_lossy(&read("cgroup")).contains(&parent);
            ours && read("cmdline").starts_with(b"sleep\x00100000")
        })
        .count()
}

fn a_slot_never_runs_twice(end_daemon: Option<Signal>) {
    with_cluster(1, 2, async |test| {
        let line = format!(
            "svc create --name web --replicas 2 --on-partition stop --constraint node.role==worker {SLEEP}"
        );
        test.shoal("manager1", &line).await;
        assert_eq!(
            (sleepers(test, "worker1"), sleepers(test, "worker2")),
            (1, 1)
        );
        if let Some(signal) = end_daemon {
            test.cluster()
                .host("worker1")
                .unwrap()
                .signal_daemon(signal)
                .unwrap();
        }
        test.cluster()
            .switch
            .set_cable("worker1", false)
            .await
            .unwrap();
        within(REPLACED_MAX, "both slots run on worker2", async || {
            let (old, new) = (sleepers(test, "worker1"), sleepers(test, "worker2"));
            assert!(old + new <= 2, "a slot runs twice: {old} + {new}");
            if new == 2 {
                Ok(())
            } else {
                Err(format!("{old} + {new}"))
            }
        })
        .await;
        assert_eq!(sleepers(test, "worker1"), 0);
    });
}

#[test]
fn root_slot_with_on_partition_stop_never_runs_twice() {
    a_slot_never_runs_twice(None);
}

#[test]
fn root_slot_with_on_partition_stop_never_runs_twice_with_a_frozen_daemon() {
    a_slot_never_runs_twice(Some(Signal::SIGSTOP));
}

#[test]
fn root_slot_with_on_partition_stop_never_runs_twice_with_a_dead_daemon() {
    a_slot_never_runs_twice(Some(Signal::SIGKILL));
}
