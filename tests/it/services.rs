//! Services in a healthy cluster.

use crate::harness::{TestCluster, eventually, with_cluster};

/// Sleeps without ignoring the stop signal: a busybox applet as process 1 would.
const SLEEP: &str = "--stop-signal SIGKILL busybox sleep 100000";

#[test]
fn root_service_is_created_spread_scaled_and_removed() {
    with_cluster(3, 2, async |test| {
        test.shoal(
            "manager1",
            &format!("svc create --name web --replicas 6 {SLEEP}"),
        )
        .await;
        let rows = test.wait_running("manager1", "web", 6).await;
        let counts = TestCluster::per_node(&rows);
        assert!(
            counts.len() == 5 && counts.values().all(|count| *count <= 2),
            "{counts:?}"
        );
        let shown = test
            .shoal(
                "manager2",
                "svc ls --format {{.Name}}:{{.Replicas}}:{{.Mode}}",
            )
            .await;
        assert_eq!(shown, "web:6/6:replicated\n");

        test.shoal("manager2", "svc scale web=2").await;
        test.wait_running("manager3", "web", 2).await;
        test.shoal("manager3", "svc scale web=7").await;
        test.wait_running("manager1", "web", 7).await;

        test.shoal("manager1", "svc rm web").await;
        no_container_is_left(test).await;
        assert_eq!(test.shoal("manager2", "svc ls -q").await, "");
    });
}

async fn no_container_is_left(test: &TestCluster) {
    eventually("no container is left", async || {
        for host in &test.cluster().state.hosts {
            let left = test.shoal(&host.name, "ps -a -q").await;
            if !left.is_empty() {
                return Err(format!("{}: {left}", host.name));
            }
        }
        Ok(())
    })
    .await;
}

#[test]
fn root_constraints_are_kept_and_an_impossible_one_is_explained() {
    with_cluster(1, 2, async |test| {
        test.shoal("manager1", "node update --label-add zone=a worker1")
            .await;
        let line =
            format!("svc create --name a --replicas 3 --constraint node.labels.zone==a {SLEEP}");
        test.shoal("manager1", &line).await;
        let rows = test.wait_running("manager1", "a", 3).await;
        assert_eq!(
            TestCluster::per_node(&rows).into_keys().collect::<Vec<_>>(),
            ["worker1"]
        );

        let line = format!("svc create -d --name never --constraint node.labels.zone==b {SLEEP}");
        test.shoal("manager1", &line).await;
        eventually("the refusal is explained", async || {
            let text = test.shoal("manager1", "svc explain never").await;
            let named = text.contains("node.labels.zone") && text.contains("worker2");
            if named { Ok(()) } else { Err(text) }
        })
        .await;
        // The way out that it names works.
        test.shoal("manager1", "node update --label-add zone=b worker2")
            .await;
        test.wait_running("manager1", "never", 1).await;
    });
}

#[test]
fn root_global_service_runs_once_on_every_node() {
    with_cluster(1, 2, async |test| {
        test.shoal(
            "manager1",
            &format!("svc create --name agent --mode global {SLEEP}"),
        )
        .await;
        let rows = test.running("manager1", "agent").await;
        let counts = TestCluster::per_node(&rows);
        assert!(
            counts.len() == 3 && counts.values().all(|count| *count == 1),
            "{counts:?}"
        );
    });
}

#[test]
fn root_drained_node_gets_no_tasks_and_loses_those_that_it_has() {
    with_cluster(1, 2, async |test| {
        test.shoal(
            "manager1",
            &format!("svc create --name web --replicas 6 {SLEEP}"),
        )
        .await;
        test.shoal("manager1", "node update --availability drain worker1")
            .await;
        eventually("worker1 is empty", async || {
            let rows = test.running("manager1", "web").await;
            let counts = TestCluster::per_node(&rows);
            let moved = rows.len() == 6 && !counts.contains_key("worker1");
            if moved {
                Ok(())
            } else {
                Err(format!("{counts:?}"))
            }
        })
        .await;
        test.shoal("manager1", "svc scale web=9").await;
        let rows = test.wait_running("manager1", "web", 9).await;
        assert!(
            !TestCluster::per_node(&rows).contains_key("worker1"),
            "{rows:?}"
        );
    });
}

#[test]
fn root_changed_spec_replaces_every_task() {
    with_cluster(1, 1, async |test| {
        test.shoal(
            "manager1",
            &format!("svc create --name web --replicas 3 --env V=1 {SLEEP}"),
        )
        .await;
        test.shoal(
            "manager1",
            "svc update --env-add V=2 --update-monitor 100ms web",
        )
        .await;
        let format = "{{.Spec.TaskTemplate.ContainerSpec.Env}}";
        let spec = test
            .shoal("manager1", &format!("svc inspect web --format {format}"))
            .await;
        assert!(spec.contains("V=2"), "{spec}");
        test.wait_running("manager1", "web", 3).await;
        test.shoal("manager1", "svc rollback web").await;
        let spec = test
            .shoal("manager1", &format!("svc inspect web --format {format}"))
            .await;
        assert!(spec.contains("V=1"), "{spec}");
    });
}

#[test]
fn root_crashed_container_is_restarted_on_its_node() {
    with_cluster(1, 1, async |test| {
        let line = format!("svc create --name web --constraint node.role==worker {SLEEP}");
        test.shoal("manager1", &line).await;
        let before = test.shoal("worker1", "ps -q --no-trunc").await;
        test.shoal("worker1", &format!("kill {before}")).await;
        eventually("another container runs", async || {
            let now = test.shoal("worker1", "ps -q --no-trunc").await;
            if !now.is_empty() && now != before {
                Ok(())
            } else {
                Err(now)
            }
        })
        .await;
        let rows = test.wait_running("manager1", "web", 1).await;
        assert_eq!(rows[0].1, "worker1");
    });
}

#[test]
fn root_service_logs_come_from_every_node() {
    with_cluster(1, 2, async |test| {
        let host = test.cluster().host("manager1").unwrap();
        let script = "echo hello from $(hostname); exec sleep 100000";
        let create = [
            "svc",
            "create",
            "--name",
            "talk",
            "--mode",
            "global",
            "--stop-signal",
            "SIGKILL",
            "busybox",
            "sh",
            "-c",
            script,
        ];
        host.shoal(create).await.unwrap();
        eventually("three lines have come", async || {
            let text = test.shoal("manager1", "svc logs talk").await;
            let lines = text
                .lines()
                .filter(|line| line.contains("| hello from"))
                .count();
            if lines == 3 { Ok(()) } else { Err(text) }
        })
        .await;
    });
}

#[test]
fn root_bad_specs_are_refused_with_the_field_and_the_way_out() {
    with_cluster(1, 0, async |test| {
        test.shoal("manager1", "svc create -d --name web --replicas 0 busybox")
            .await;
        let cases = [
            ("svc create -d --name web --replicas 0 busybox", "web"),
            ("svc create -d --name bad/name busybox", "name"),
            ("svc create -d --constraint zone=b busybox", "constraint"),
            ("svc create -d --network nowhere busybox", "nowhere"),
            ("network create -d bridge mine", "overlay"),
            ("network create --subnet 10.1.2.3/24 mine", "10.1.2.0/24"),
            (
                "svc create -d --publish mode=host,target=80,allow=10.0.0.0/8 busybox",
                "ingress",
            ),
            (
                "svc create -d --mode global --replicas 3 busybox",
                "--replicas",
            ),
            ("svc inspect nothing", "nothing"),
            ("svc scale web=-1", "web=-1"),
            ("init", "already part"),
        ];
        for (line, expected) in cases {
            let said = test.refused("manager1", line).await;
            assert!(said.contains(expected), "`shoal {line}` said: {said}");
        }
        assert_eq!(
            test.shoal("manager1", "svc ls --format {{.Name}}").await,
            "web\n"
        );
    });
}
