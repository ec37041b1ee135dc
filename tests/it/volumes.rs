//! Volumes that keep a slot where its data is.

use crate::harness::{TestCluster, eventually, with_cluster};
use std::time::Duration;

async fn create(test: &TestCluster) -> String {
    let host = test.cluster().host("manager1").unwrap();
    let script = "date > /data/stamp; exec sleep 100000";
    let create = [
        "svc",
        "create",
        "--name",
        "db",
        "--stop-signal",
        "SIGKILL",
        "--constraint",
        "node.role==worker",
        "--mount",
        "type=volume,source=data,target=/data",
        "busybox",
        "sh",
        "-c",
        script,
    ];
    host.shoal(create).await.unwrap();
    let rows = test.wait_running("manager1", "db", 1).await;
    rows[0].1.clone()
}

#[test]
fn root_slot_waits_for_the_node_of_its_volume_and_can_be_rebound() {
    with_cluster(1, 2, async |test| {
        let home = create(test).await;
        test.cluster_mut()
            .host_mut(&home)
            .unwrap()
            .kill()
            .await
            .unwrap();
        eventually("the reason and the way out are told", async || {
            let text = test.shoal("manager1", "svc explain db").await;
            let told = text.contains("data") && text.contains("rebind-volume");
            if told { Ok(()) } else { Err(text) }
        })
        .await;
        assert!(test.running("manager1", "db").await.is_empty());

        test.shoal("manager1", "svc rebind-volume --slot 1 --volume data db")
            .await;
        let rows = test.wait_running("manager1", "db", 1).await;
        assert_ne!(rows[0].1, home);
    });
}

#[test]
fn root_slot_returns_to_its_volume_with_the_machine() {
    with_cluster(1, 2, async |test| {
        let home = create(test).await;
        test.cluster_mut()
            .host_mut(&home)
            .unwrap()
            .kill()
            .await
            .unwrap();
        crate::harness::within(Duration::from_secs(20), "the node is down", async || {
            let shown = test
                .shoal("manager1", "node ls --format {{.Hostname}}:{{.Status}}")
                .await;
            if shown.contains(&format!("{home}:Down")) {
                Ok(())
            } else {
                Err(shown)
            }
        })
        .await;
        test.cluster_mut().reboot(&home).await.unwrap();
        let rows = test.wait_running("manager1", "db", 1).await;
        assert_eq!(rows[0].1, home);
        let shown = test.shoal(&home, "volume ls -q").await;
        assert_eq!(shown, "data\n");
    });
}
