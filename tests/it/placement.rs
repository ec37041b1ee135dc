//! Where tasks go: preferences, labels that change, new nodes, health.

use crate::harness::{TestCluster, eventually, with_cluster, with_hosts};

const SLEEP: &str = "--stop-signal SIGKILL busybox sleep 100000";

/// Nodes that run a task of a service, as soon as they are these.
async fn runs_on(test: &TestCluster, service: &str, nodes: &[&str]) {
    eventually(&format!("`{service}` runs on {nodes:?}"), async || {
        let rows = test.running("manager1", service).await;
        let mut found: Vec<_> = rows.iter().map(|(_, node)| node.as_str()).collect();
        found.sort_unstable();
        if found == nodes {
            Ok(())
        } else {
            Err(format!("{rows:?}"))
        }
    })
    .await;
}

#[test]
fn root_placement_preference_spreads_over_values_of_a_label_first() {
    with_cluster(1, 3, async |test| {
        // Three hosts, two racks: by node it would be 2, 2, 2.
        for (host, rack) in [("worker1", "a"), ("worker2", "b"), ("worker3", "b")] {
            let line = format!("node update --label-add rack={rack} {host}");
            test.shoal("manager1", &line).await;
        }
        let line = format!(
            "svc create --name web --replicas 6 --constraint node.role==worker --placement-pref spread=node.labels.rack {SLEEP}"
        );
        test.shoal("manager1", &line).await;
        let rows = test.running("manager1", "web").await;
        let counts = TestCluster::per_node(&rows);
        assert_eq!(counts.get("worker1"), Some(&3), "{counts:?}");
        let rack_b = [counts.get("worker2"), counts.get("worker3")];
        let mut rack_b: Vec<usize> = rack_b.into_iter().flatten().copied().collect();
        rack_b.sort_unstable();
        assert_eq!(rack_b, [1, 2], "{counts:?}");
    });
}

#[test]
fn root_global_service_follows_labels_drains_and_new_nodes() {
    with_cluster(1, 1, async |test| {
        let line = format!(
            "svc create -d --name agent --mode global --constraint node.labels.zone==a {SLEEP}"
        );
        test.shoal("manager1", &line).await;
        runs_on(test, "agent", &[]).await;
        let update = async |test: &TestCluster, words: &str| {
            test.shoal("manager1", &format!("node update {words}"))
                .await;
        };
        update(test, "--label-add zone=a worker1").await;
        runs_on(test, "agent", &["worker1"]).await;
        update(test, "--label-add zone=a manager1").await;
        runs_on(test, "agent", &["manager1", "worker1"]).await;
        update(test, "--label-add zone=b manager1").await;
        runs_on(test, "agent", &["worker1"]).await;
        update(test, "--availability drain worker1").await;
        runs_on(test, "agent", &[]).await;
        eventually("its container has ended", async || {
            let left = test.shoal("worker1", "ps -q").await;
            if left.is_empty() { Ok(()) } else { Err(left) }
        })
        .await;
        update(test, "--availability active worker1").await;
        runs_on(test, "agent", &["worker1"]).await;

        let everywhere = format!("svc create --name all --mode global {SLEEP}");
        test.shoal("manager1", &everywhere).await;
        runs_on(test, "all", &["manager1", "worker1"]).await;
        join_another(test).await;
        runs_on(test, "all", &["manager1", "worker1", "worker9"]).await;
        runs_on(test, "agent", &["worker1"]).await;
        update(test, "--label-add zone=a worker9").await;
        runs_on(test, "agent", &["worker1", "worker9"]).await;
    });
}

/// Plugs in a host that was not there before and lets it join.
async fn join_another(test: &mut TestCluster) {
    let archive = test.dir().join("busybox.tar").display().to_string();
    let cluster = test.cluster_mut();
    cluster.add_host("worker9", 9).await.unwrap();
    cluster.restart_daemon("worker9").await.unwrap();
    test.shoal("worker9", &format!("import {archive} busybox:latest"))
        .await;
    let token = test.shoal("manager1", "join-token -q worker").await;
    let address = test.cluster().host("manager1").unwrap().address;
    let join = format!("join --token {} {address}", token.trim());
    test.shoal("worker9", &join).await;
}

#[test]
fn root_unhealthy_task_is_replaced_on_its_node_and_history_shows_it() {
    with_cluster(1, 1, async |test| {
        let host = test.cluster().host("manager1").unwrap();
        let flags = "svc create --name web --constraint node.role==worker --stop-signal SIGKILL \
                     --health-interval 200ms --health-retries 2 --health-timeout 5s --health-cmd";
        let words = flags.split_whitespace();
        let words = words.chain(["test ! -e /sick", "busybox", "sleep", "100000"]);
        host.shoal(words).await.unwrap();
        let task = "svc ps web --no-trunc -q --filter desired-state=running";
        let task_before = test.shoal("manager1", task).await;
        let before = test.shoal("worker1", "ps -q --no-trunc").await;
        let id = before.trim();
        test.shoal("worker1", &format!("exec {id} touch /sick"))
            .await;
        eventually("another container runs on the same node", async || {
            let now = test.shoal("worker1", "ps -q --no-trunc").await;
            match now.lines().count() == 1 && now != before {
                true => Ok(()),
                false => Err(now),
            }
        })
        .await;
        test.wait_running("manager1", "web", 1).await;
        // The task is the same one; what happened to it is in its history.
        assert_eq!(test.shoal("manager1", task).await, task_before);
        eventually("`svc ps` shows the restart", async || {
            let shown = test.shoal("manager1", "svc ps web --no-trunc").await;
            let row = shown.lines().find(|row| row.contains(r"\_ web.1"));
            match row.is_some_and(|row| row.contains("unhealthy") && row.contains("worker1")) {
                true => Ok(()),
                false => Err(shown),
            }
        })
        .await;
    });
}

#[test]
fn root_explanation_begins_with_the_way_out_that_most_nodes_need() {
    with_cluster(1, 2, async |test| {
        test.shoal("manager1", "node update --availability drain manager1")
            .await;
        let line = format!("svc create -d --name web --constraint node.labels.disk==ssd {SLEEP}");
        test.shoal("manager1", &line).await;
        eventually("it says what to do", async || {
            let shown = test.shoal("manager1", "svc explain web").await;
            let way_out = shown.lines().find(|line| line.contains("way out"));
            match way_out.is_some_and(|line| line.contains("disk")) {
                true => Ok(()),
                false => Err(shown),
            }
        })
        .await;
    });
}

#[test]
fn root_task_of_a_down_node_does_not_count_as_running() {
    with_cluster(1, 2, async |test| {
        test.shoal(
            "manager1",
            &format!("svc create --name all --mode global {SLEEP}"),
        )
        .await;
        let list = "svc ls --format {{.Replicas}}";
        assert_eq!(test.shoal("manager1", list).await, "3/3\n");
        let host = test.cluster_mut().host_mut("worker2").unwrap();
        host.kill().await.unwrap();
        eventually("two of three count", async || {
            let shown = test.shoal("manager1", list).await;
            if shown.starts_with("2/") {
                Ok(())
            } else {
                Err(shown)
            }
        })
        .await;
    });
}

#[test]
fn root_nodes_are_removed_when_down_or_by_force() {
    with_cluster(1, 2, async |test| {
        test.shoal(
            "manager1",
            &format!("svc create --name web --mode global {SLEEP}"),
        )
        .await;
        let said = test.refused("manager1", "node rm worker1").await;
        assert!(said.contains("not down"), "{said}");
        let host = test.cluster_mut().host_mut("worker1").unwrap();
        host.kill().await.unwrap();
        eventually("it is down", async || {
            let line = "node ls --format {{.Hostname}}:{{.Status}}";
            let shown = test.shoal("manager1", line).await;
            if shown.contains("worker1:Down") {
                Ok(())
            } else {
                Err(shown)
            }
        })
        .await;
        test.shoal("manager1", "node rm worker1").await;
        test.shoal("manager1", "node rm --force worker2").await;
        let names = "node ls --format {{.Hostname}}";
        assert_eq!(test.shoal("manager1", names).await, "manager1\n");
        runs_on(test, "web", &["manager1"]).await;
        // The one that was up is out: it gets no session any more, and its tasks are nobody's.
        let path = test.cluster().host("worker2").unwrap().log_path();
        eventually("the removed node is told", async || {
            let log = std::fs::read_to_string(&path).unwrap();
            if log.contains("removed") {
                Ok(())
            } else {
                Err(log)
            }
        })
        .await;
        test.shoal("worker2", "leave --force").await;
        eventually("its containers are gone", async || {
            let left = test.shoal("worker2", "ps -a -q").await;
            if left.is_empty() { Ok(()) } else { Err(left) }
        })
        .await;
    });
}

#[test]
#[expect(clippy::too_many_lines, reason = "one story, told step by step")]
fn root_leader_can_demote_itself_and_an_expired_token_is_refused() {
    with_hosts(3, 1, &[], async |test| {
        test.shoal("manager1", "init").await;
        let address = test.cluster().host("manager1").unwrap().address;
        let token = test.shoal("manager1", "join-token -q manager").await;
        for host in ["manager2", "manager3"] {
            test.shoal(host, &format!("join --token {} {address}", token.trim()))
                .await;
        }
        test.wait_ready(3).await;
        let line = "join-token --rotate --expires 1s -q worker";
        let short = test.shoal("manager1", line).await;
        let join = format!("join --token {} {address}", short.trim());
        let limit = std::time::Instant::now() + std::time::Duration::from_secs(2);
        eventually("the token has expired", async || {
            match std::time::Instant::now() > limit {
                true => Ok(()),
                false => Err("not yet".to_owned()),
            }
        })
        .await;
        let said = test.refused("worker1", &join).await;
        assert!(
            said.contains("expired") && said.contains("--rotate"),
            "{said}"
        );
        assert_eq!(
            test.shoal("worker1", "info --format {{.Swarm.LocalNodeState}}")
                .await,
            "inactive\n"
        );

        let leader = test.leader("manager1").await;
        let all = ["manager1", "manager2", "manager3"];
        let other = all.into_iter().find(|name| *name != leader).unwrap();
        test.shoal(&leader, &format!("node demote {leader}")).await;
        let next = eventually("another one leads", async || {
            let line = "node ls --format {{.Hostname}}:{{.ManagerStatus}}";
            let shown = test
                .try_shoal(other, line)
                .await
                .map_err(|err| err.to_string())?;
            let row = |status: &str| {
                let row = shown.lines().find_map(|row| row.strip_suffix(status));
                row.map(str::to_owned)
            };
            match (
                row(":Leader"),
                shown.lines().any(|row| row == format!("{leader}:")),
            ) {
                (Some(next), true) if next != leader => Ok(next),
                _ => Err(shown),
            }
        })
        .await;
        test.shoal(&next, "svc create -d --name web --replicas 0 busybox")
            .await;
        let said = eventually("the old leader is a worker", async || {
            match test.try_shoal(&leader, "svc ls").await {
                Err(error) if error.to_string().contains("not a swarm manager") => {
                    Ok(error.to_string())
                }
                other => Err(format!("{other:?}")),
            }
        })
        .await;
        assert!(said.contains("promote"), "{said}");
        // Demoted and promoted again while its daemon is down, it begins with a new place.
        test.shoal(&next, &format!("node promote {leader}")).await;
        let reachable = async |test: &TestCluster, host: &str| {
            eventually("it is a manager", async || {
                let line = "node ls --format {{.Hostname}}:{{.ManagerStatus}}";
                let shown = test.shoal(&next, line).await;
                match shown.contains(&format!("{host}:Reachable")) {
                    true => Ok(()),
                    false => Err(shown),
                }
            })
            .await;
        };
        reachable(test, &leader).await;
        let host = test.cluster_mut().host_mut(&leader).unwrap();
        host.stop_daemon().await.unwrap();
        for verb in ["demote", "promote"] {
            test.shoal(&next, &format!("node {verb} {leader}")).await;
            eventually("the change has reached Raft", async || {
                let line = "node ls --format {{.Hostname}}:{{.ManagerStatus}}";
                let shown = test.shoal(&next, line).await;
                match shown.lines().any(|row| row == format!("{leader}:")) {
                    true => Ok(()),
                    false => Err(shown),
                }
            })
            .await;
        }
        test.cluster_mut().restart_daemon(&leader).await.unwrap();
        reachable(test, &leader).await;
        assert_eq!(
            test.shoal(&leader, "svc ls --format {{.Name}}").await,
            "web\n"
        );
    });
}
