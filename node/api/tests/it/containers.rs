//! What docker's own clients do with containers.

use crate::cluster::FakeCluster;
use crate::harness::{Server, Test, block_on, clients};

pub(crate) const TESTS: &[Test] = &[
    ("containers::docker_clients_run_containers", || {
        block_on(docker_clients_run_containers())
    }),
    ("containers::what_goes_in_comes_out", || {
        block_on(what_goes_in_comes_out())
    }),
];

#[expect(
    clippy::too_many_lines,
    reason = "one client's day, command by command"
)]
async fn docker_clients_run_containers() {
    let server = Server::start(FakeCluster::default()).await;
    server.import_busybox().await;
    for client in clients() {
        let run = ["run", "--rm", "busybox", "echo", "hello"];
        assert_eq!(server.docker_ok(client, &run).await, "hello");
        let failing = server
            .docker(
                client,
                &["run", "--rm", "busybox", "sh", "-c", "echo bad >&2; exit 7"],
            )
            .await;
        assert_eq!(failing.status.code(), Some(7));
        assert_eq!(String::from_utf8_lossy(&failing.stderr), "bad\n");
        let missing = server
            .docker(client, &["run", "--rm", "busybox", "nothing-like-that"])
            .await;
        assert_eq!(missing.status.code(), Some(127), "{missing:?}");

        server
            .docker_ok(
                client,
                &[
                    "run",
                    "-d",
                    "--name",
                    "box",
                    "--label",
                    "a=b",
                    "busybox",
                    "sh",
                    "-c",
                    "echo one; echo two >&2; exec sleep 1000",
                ],
            )
            .await;
        let rows = server.docker_ok(
            client,
            &[
                "ps",
                "--filter",
                "label=a=b",
                "--format",
                "{{.Names}} {{.Image}} {{.State}}",
            ],
        );
        assert_eq!(rows.await, "box busybox running");
        let exec = server
            .docker(client, &["exec", "box", "sh", "-c", "id -u; exit 3"])
            .await;
        assert_eq!(
            (
                exec.status.code(),
                String::from_utf8_lossy(&exec.stdout).as_ref()
            ),
            (Some(3), "0\n")
        );
        let logs = server.docker(client, &["logs", "box"]).await;
        assert_eq!(String::from_utf8_lossy(&logs.stdout), "one\n");
        assert_eq!(String::from_utf8_lossy(&logs.stderr), "two\n");
        let tail = server
            .docker(client, &["logs", "--tail", "1", "-t", "box"])
            .await;
        assert!(
            String::from_utf8_lossy(&tail.stderr).ends_with("Z two\n"),
            "{tail:?}"
        );
        let inspected = server.docker_ok(
            client,
            &[
                "inspect",
                "-f",
                "{{.State.Running}} {{.HostConfig.NetworkMode}} {{json .Config.Cmd}}",
                "box",
            ],
        );
        assert!(inspected.await.starts_with("true "), "inspect");
        let top = server.docker_ok(client, &["top", "box"]).await;
        assert!(top.contains("sleep 1000"), "{top}");
        let stats = server
            .docker_ok(
                client,
                &["stats", "--no-stream", "--format", "{{.PIDs}}", "box"],
            )
            .await;
        assert_eq!(stats, "1");
        server.docker_ok(client, &["rename", "box", "other"]).await;
        server
            .docker_ok(client, &["stop", "-t", "1", "other"])
            .await;
        let taken = server
            .docker_refused(client, &["create", "--name", "other", "busybox"])
            .await;
        assert!(taken.contains("is already in use by container"), "{taken}");
        server.docker_ok(client, &["rm", "other"]).await;

        server
            .docker_ok(client, &["tag", "busybox", "local/other:1"])
            .await;
        let images = server
            .docker_ok(client, &["images", "--format", "{{.Repository}}:{{.Tag}}"])
            .await;
        assert!(
            images.contains("local/other:1") && images.contains("busybox:latest"),
            "{images}"
        );
        assert!(
            server
                .docker_ok(client, &["rmi", "local/other:1"])
                .await
                .contains("Untagged: local/other:1")
        );
        let history = server
            .docker_ok(client, &["history", "-q", "busybox"])
            .await;
        assert!(!history.is_empty());
    }
    server.stop().await;
}

async fn what_goes_in_comes_out() {
    let server = Server::start(FakeCluster::default()).await;
    server.import_busybox().await;
    for client in clients() {
        let script = format!("printf 'in and out' | {client} run --rm -i busybox cat");
        let piped = server.docker_shell(&script).await;
        assert_eq!(piped, "in and out");
        server
            .docker_ok(client, &["create", "--name", "cp", "busybox", "true"])
            .await;
        let copied = format!(
            "echo content > $DOCKER_CONFIG/f && {client} cp $DOCKER_CONFIG/f cp:/f && {client} cp cp:/f - | tar xOf -"
        );
        assert_eq!(server.docker_shell(&copied).await, "content\n");
        server.docker_ok(client, &["rm", "cp"]).await;
    }
    server.stop().await;
}
