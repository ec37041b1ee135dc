//! Joining, leaving, promotion and demotion.

use crate::harness::{eventually, with_cluster, with_hosts};

#[test]
fn root_wrong_and_used_up_tokens_are_refused() {
    with_hosts(1, 2, &[], async |test| {
        test.shoal("manager1", "init").await;
        let address = test.cluster().host("manager1").unwrap().address.to_string();
        let token = test.shoal("manager1", "join-token -q worker").await;
        let token = token.trim();
        let wrong_secret = format!("{}{}", &token[..token.len() - 4], "zzzz");
        for wrong in ["nonsense", wrong_secret.as_str()] {
            let said = test
                .refused("worker1", &format!("join --token {wrong} {address}"))
                .await;
            assert!(said.contains("token"), "{said}");
        }
        // Of another cluster: the digest of the root does not fit, and the secret is never sent.
        let (prefix, rest) = token.split_at("SHTKN-1-".len());
        let flipped = if rest.starts_with('1') { "2" } else { "1" };
        let other = format!("{prefix}{flipped}{}", &rest[1..]);
        test.refused("worker1", &format!("join --token {other} {address}"))
            .await;

        test.shoal("manager1", "join-token --rotate --uses 1 -q worker")
            .await;
        let old = test
            .refused("worker1", &format!("join --token {token} {address}"))
            .await;
        assert!(old.contains("token"), "{old}");
        let fresh = test.shoal("manager1", "join-token -q worker").await;
        test.shoal(
            "worker1",
            &format!("join --token {} {address}", fresh.trim()),
        )
        .await;
        let said = test
            .refused(
                "worker2",
                &format!("join --token {} {address}", fresh.trim()),
            )
            .await;
        assert!(said.contains("used up"), "{said}");
        test.wait_ready(2).await;
    });
}

#[test]
fn root_promotion_and_demotion_change_the_quorum_and_the_last_one_is_refused() {
    with_cluster(1, 2, async |test| {
        let said = test.refused("manager1", "node demote manager1").await;
        assert!(
            said.contains("last manager") || said.contains("quorum"),
            "{said}"
        );
        for name in ["worker1", "worker2"] {
            test.shoal("manager1", &format!("node promote {name}"))
                .await;
            eventually("it is a manager", async || {
                let line = "node ls --format {{.Hostname}}:{{.ManagerStatus}}";
                let shown = test.shoal("manager1", line).await;
                if shown.contains(&format!("{name}:Reachable")) {
                    Ok(())
                } else {
                    Err(shown)
                }
            })
            .await;
        }
        // The new managers answer.
        test.shoal("worker1", "svc create -d --name web --replicas 0 busybox")
            .await;
        assert_eq!(
            test.shoal("worker2", "svc ls --format {{.Name}}").await,
            "web\n"
        );

        test.shoal("worker1", "node demote worker2").await;
        eventually("it is a worker", async || {
            let line = "node ls --format {{.Hostname}}:{{.ManagerStatus}}";
            let shown = test.shoal("manager1", line).await;
            if shown.lines().any(|line| line == "worker2:") {
                Ok(())
            } else {
                Err(shown)
            }
        })
        .await;
        let said = test.refused("worker2", "svc ls").await;
        assert!(said.contains("not a swarm manager"), "{said}");
    });
}

#[test]
fn root_worker_leaves_and_can_join_again() {
    with_cluster(1, 1, async |test| {
        let line = "svc create --name web --replicas 2 --stop-signal SIGKILL busybox sleep 100000";
        test.shoal("manager1", line).await;
        test.shoal("worker1", "leave").await;
        eventually("its containers are gone", async || {
            let left = test.shoal("worker1", "ps -a -q").await;
            if left.is_empty() { Ok(()) } else { Err(left) }
        })
        .await;
        test.wait_running("manager1", "web", 2).await;
        let said = test.refused("worker1", "svc ls").await;
        assert!(said.contains("swarm manager"), "{said}");
        let token = test.shoal("manager1", "join-token -q worker").await;
        let address = test.cluster().host("manager1").unwrap().address;
        test.shoal(
            "worker1",
            &format!("join --token {} {address}", token.trim()),
        )
        .await;
        let said = test.refused("manager1", "leave").await;
        assert!(said.contains("--force"), "{said}");
    });
}
