//! What docker's own clients do with a cluster.

use crate::cluster::FakeCluster;
use crate::harness::{Server, Test, block_on, clients};
use shoal_model::spec::{Healthcheck, OnPartition};
use shoal_model::{Availability, ServiceMode};

pub(crate) const TESTS: &[Test] = &[
    ("docker_cli::docker_clients_drive_a_cluster", || {
        block_on(docker_clients_drive_a_cluster())
    }),
    ("docker_cli::docker_clients_read_the_daemon", || {
        block_on(docker_clients_read_the_daemon())
    }),
];

async fn docker_clients_drive_a_cluster() {
    for client in clients() {
        let server = Server::start(FakeCluster::default()).await;
        let not_manager = server.docker_refused(client, &["service", "ls"]).await;
        assert!(
            not_manager.contains("This node is not a swarm manager."),
            "{not_manager}"
        );
        let init = server.docker_ok(client, &["swarm", "init"]).await;
        assert!(init.contains("docker swarm join --token w1"), "{init}");
        let again = server.docker_refused(client, &["swarm", "init"]).await;
        assert!(
            again.contains("This node is already part of a swarm."),
            "{again}"
        );

        let nodes = server.docker_ok(
            client,
            &[
                "node",
                "ls",
                "--format",
                "{{.Hostname}} {{.Status}} {{.ManagerStatus}}",
            ],
        );
        assert_eq!(nodes.await, "host-a Ready Leader");
        server
            .docker_ok(
                client,
                &[
                    "node",
                    "update",
                    "--label-add",
                    "zone=a",
                    "--availability",
                    "drain",
                    "self",
                ],
            )
            .await;
        let node = server.cluster.node();
        assert_eq!(node.spec.availability, Availability::Drain);
        assert_eq!(node.spec.labels["zone"], "a");

        let rotated = server
            .docker_ok(client, &["swarm", "join-token", "--rotate", "-q", "worker"])
            .await;
        assert_eq!(rotated, "w1+");
        services(&server, client).await;
        server
            .docker_ok(client, &["swarm", "leave", "--force"])
            .await;
        server.stop().await;
    }
}

#[expect(
    clippy::too_many_lines,
    reason = "one client's day, command by command"
)]
async fn services(server: &Server, client: &str) {
    let create = [
        "service",
        "create",
        "-d",
        "--no-resolve-image",
        "--name",
        "web",
        "--replicas",
        "2",
        "a:1",
    ];
    server.docker_ok(client, &create).await;
    // What docker's client has no flag for must survive its read-modify-write.
    server.cluster.change_service("web", |service| {
        service.spec.on_partition = Some(OnPartition::Stop);
        service.spec.down_limit_ms = Some(1_500);
        service.spec.task.container.healthcheck = Some(Healthcheck {
            test: vec!["CMD".to_owned(), "true".to_owned()],
            interval_ns: 5,
            ..Healthcheck::default()
        });
        service.spec.task.restart.delay_ns = Some(0);
    });
    let before = server.cluster.service("web").spec;
    server
        .docker_ok(
            client,
            &[
                "service",
                "update",
                "-d",
                "--no-resolve-image",
                "--env-add",
                "A=b",
                "web",
            ],
        )
        .await;
    let mut expected = before.clone();
    expected.task.container.env = vec!["A=b".to_owned()];
    assert_eq!(server.cluster.service("web").spec, expected);

    server
        .docker_ok(client, &["service", "scale", "-d", "web=5"])
        .await;
    expected.mode = ServiceMode::Replicated { replicas: 5 };
    assert_eq!(server.cluster.service("web").spec, expected);
    server
        .docker_ok(client, &["service", "rollback", "-d", "web"])
        .await;
    expected.mode = before.mode.clone();
    assert_eq!(server.cluster.service("web").spec, expected);

    let rows = server
        .docker_ok(
            client,
            &[
                "service",
                "ls",
                "--format",
                "{{.Name}} {{.Mode}} {{.Replicas}} {{.Image}}",
            ],
        )
        .await;
    assert_eq!(rows, "web replicated 0/1 a:1");
    let pretty = server
        .docker_ok(client, &["service", "inspect", "--pretty", "web"])
        .await;
    assert!(pretty.contains("Replicas:"), "{pretty}");
    let taken = server
        .docker_refused(
            client,
            &[
                "service",
                "create",
                "-d",
                "--no-resolve-image",
                "--publish",
                "80",
                "a:1",
            ],
        )
        .await;
    assert!(taken.contains("`ingress` is not supported yet"), "{taken}");
    server.docker_ok(client, &["service", "rm", "web"]).await;
    let gone = server
        .docker_refused(client, &["service", "inspect", "web"])
        .await;
    assert!(
        gone.to_lowercase().contains("no such service: web"),
        "{gone}"
    );
}

async fn docker_clients_read_the_daemon() {
    let server = Server::start(FakeCluster::default()).await;
    for client in clients() {
        let version = server.docker_ok(
            client,
            &[
                "version",
                "--format",
                "{{.Server.Version}} {{.Server.APIVersion}}",
            ],
        );
        assert_eq!(version.await, "0.1.0 1.51");
        let info = server.docker_ok(
            client,
            &["info", "--format", "{{.Swarm.LocalNodeState}} {{.OSType}}"],
        );
        assert_eq!(info.await, "inactive linux");
        assert_eq!(server.docker_ok(client, &["ps", "-aq"]).await, "");
        server.docker_ok(client, &["volume", "create", "v1"]).await;
        assert_eq!(
            server.docker_ok(client, &["volume", "ls", "-q"]).await,
            "v1"
        );
        let inspected = server.docker_ok(client, &["volume", "inspect", "-f", "{{.Driver}}", "v1"]);
        assert_eq!(inspected.await, "local");
        server.docker_ok(client, &["volume", "rm", "v1"]).await;
        let networks = server
            .docker_ok(client, &["network", "ls", "--format", "{{.Name}}"])
            .await;
        for name in ["bridge", "host", "none"] {
            assert!(networks.lines().any(|line| line == name), "{networks}");
        }
        let missing = server.docker_refused(client, &["inspect", "nothing"]).await;
        assert!(
            missing.to_lowercase().contains("no such object: nothing"),
            "{missing}"
        );
        let missing = server.docker_refused(client, &["logs", "nothing"]).await;
        assert!(missing.contains("No such container: nothing"), "{missing}");
    }
    server.stop().await;
}
