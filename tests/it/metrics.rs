//! What monitoring gets to see of a node.

use crate::harness::{TestCluster, eventually, with_hosts};

const METRICS_ADDR: &str = "127.0.0.1:9323";

/// The value of a sample, by its name with labels.
fn sample(text: &str, name: &str) -> Option<f64> {
    let lines = text.lines().filter_map(|line| line.rsplit_once(' '));
    lines
        .filter(|(sample, _)| *sample == name)
        .find_map(|(_, value)| value.parse().ok())
}

async fn scrape(test: &TestCluster, host: &str) -> String {
    let url = format!("http://{METRICS_ADDR}/metrics");
    let host = test.cluster().host(host).unwrap();
    host.run(["curl", "-sf", "-m", "10", &url]).await.unwrap()
}

#[test]
fn root_metrics_tell_what_a_node_is_and_runs() {
    with_hosts(1, 1, &["--metrics-addr", METRICS_ADDR], async |test| {
        let alone = scrape(test, "worker1").await;
        assert_eq!(
            sample(&alone, "shoal_containers{state=\"running\"}"),
            Some(0.0)
        );
        assert_eq!(sample(&alone, "shoal_images"), Some(1.0));
        assert!(sample(&alone, "process_resident_memory_bytes") > Some(1e6));
        assert_eq!(sample(&alone, "shoal_session_open"), None, "{alone}");

        test.cluster().join_all().await.unwrap();
        test.wait_ready(2).await;
        test.shoal(
            "manager1",
            "svc create -d --name web --replicas 4 busybox sleep 600",
        )
        .await;
        test.wait_running("manager1", "web", 4).await;
        let text = eventually("two tasks are told on each node", async || {
            let worker = scrape(test, "worker1").await;
            match sample(&worker, "shoal_tasks{state=\"running\"}") {
                Some(2.0) => Ok(worker),
                _ => Err(worker),
            }
        })
        .await;
        assert_eq!(
            sample(&text, "shoal_containers{state=\"running\"}"),
            Some(2.0)
        );
        assert_eq!(sample(&text, "shoal_session_open"), Some(1.0));
        assert_eq!(
            sample(&text, "shoal_raft_leader"),
            None,
            "a worker has no Raft: {text}"
        );
        let manager = scrape(test, "manager1").await;
        assert_eq!(sample(&manager, "shoal_raft_leader"), Some(1.0));
        assert!(sample(&manager, "shoal_raft_term") >= Some(1.0));
        assert!(sample(&manager, "shoal_raft_applied_index") > Some(5.0));

        // The same on the socket.
        let socket = test.cluster().host("manager1").unwrap().socket();
        let by_socket = tokio::process::Command::new("curl")
            .args(["-sf", "--unix-socket"])
            .arg(&socket)
            .arg("http://shoal/metrics")
            .output();
        let by_socket = by_socket.await.unwrap().stdout;
        let by_socket = String::from_utf8(by_socket).unwrap();
        assert_eq!(sample(&by_socket, "shoal_raft_leader"), Some(1.0));
    });
}
