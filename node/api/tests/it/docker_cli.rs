//! What docker's own clients do with a cluster.

use crate::cluster::FakeCluster;
use crate::harness::{Server, Test, block_on, clients};
use shoal_model::spec::{Healthcheck, OnPartition, PublishMode};
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
        networks(&server, client).await;
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
    server.docker_ok(client, &["service", "rm", "web"]).await;
    let gone = server
        .docker_refused(client, &["service", "inspect", "web"])
        .await;
    assert!(
        gone.to_lowercase().contains("no such service: web"),
        "{gone}"
    );
}

/// Creates a service in the background, without asking a registry.
fn service<'a>(words: &[&'a str]) -> Vec<&'a str> {
    let begin = ["service", "create", "-d", "--no-resolve-image"];
    begin.iter().chain(words).copied().collect()
}

#[expect(
    clippy::too_many_lines,
    reason = "one client's day, command by command"
)]
async fn networks(server: &Server, client: &str) {
    let bridge = server
        .docker_refused(client, &["network", "create", "mine"])
        .await;
    assert!(
        bridge.contains("driver `bridge` are not there yet"),
        "{bridge}"
    );
    let create = [
        "network",
        "create",
        "-d",
        "overlay",
        "--attachable",
        "--subnet",
        "10.9.0.0/24",
        "--opt",
        "encrypted",
        "--opt",
        "com.docker.network.driver.mtu=1300",
        "--label",
        "a=b",
        "back",
    ];
    let id = server.docker_ok(client, &create).await;
    let network = server.cluster.network("back");
    assert_eq!(id, network.id.to_string());
    assert!(network.spec.attachable);
    assert_eq!(network.spec.mtu, Some(1300));
    let again = server
        .docker_refused(client, &["network", "create", "-d", "overlay", "back"])
        .await;
    assert!(
        again.contains("network with name back already exists"),
        "{again}"
    );

    let format = "{{.Name}} {{.Driver}} {{.Scope}}";
    let rows = server
        .docker_ok(client, &["network", "ls", "--format", format])
        .await;
    for row in [
        "back overlay swarm",
        "bridge bridge local",
        "none null local",
    ] {
        assert!(rows.lines().any(|line| line == row), "{rows}");
    }
    let custom = ["network", "ls", "-q", "--no-trunc", "-f", "type=custom"];
    assert_eq!(server.docker_ok(client, &custom).await, id);
    let dangling = ["network", "ls", "-q", "--no-trunc", "-f", "dangling=true"];
    assert_eq!(server.docker_ok(client, &dangling).await, id);
    let format = "{{(index .IPAM.Config 0).Gateway}} {{.Attachable}} {{.Labels.a}}";
    let inspected = server
        .docker_ok(client, &["network", "inspect", "-f", format, &id[..12]])
        .await;
    assert_eq!(inspected, "10.9.0.1 true b");

    let missing = server
        .docker_refused(client, &service(&["--network", "nope", "a:1"]))
        .await;
    // Older clients say it in their own words.
    assert!(missing.contains("nope"), "{missing}");
    let words = service(&[
        "--name",
        "api",
        "--network",
        "name=back,alias=db",
        "--endpoint-mode",
        "dnsrr",
        "-l",
        "shoal.sticky=30s",
        "a:1",
    ]);
    server.docker_ok(client, &words).await;
    let spec = server.cluster.service("api").spec;
    assert_eq!(spec.task.networks[0].network_id, network.id);
    assert_eq!(spec.task.networks[0].aliases, ["db"]);
    assert_eq!(spec.endpoint.sticky_s, Some(30));
    // Networks survive a change of something else, as do ports with what Docker has no field for.
    let words = service(&[
        "--name",
        "web",
        "--network",
        "back",
        "-p",
        "8080:80",
        "-l",
        "shoal.publish.8080:80/tcp.allow=10.0.0.0/8",
        "a:1",
    ]);
    server.docker_ok(client, &words).await;
    let before = server.cluster.service("web").spec;
    assert_eq!(before.endpoint.ports[0].mode, PublishMode::Ingress);
    assert_eq!(before.endpoint.ports[0].allow.len(), 1);
    server
        .docker_ok(client, &["service", "scale", "-d", "web=2"])
        .await;
    let after = server.cluster.service("web").spec;
    assert_eq!(after.task, before.task);
    assert_eq!(after.endpoint, before.endpoint);
    let ports = ["service", "ls", "-f", "name=web", "--format", "{{.Ports}}"];
    assert_eq!(server.docker_ok(client, &ports).await, "*:8080->80/tcp");

    let verbose = [
        "network",
        "inspect",
        "--verbose",
        "-f",
        "{{len .Services}}",
        "back",
    ];
    assert_eq!(server.docker_ok(client, &verbose).await, "2");
    let used = server
        .docker_refused(client, &["network", "rm", "back"])
        .await;
    assert!(used.contains("in use"), "{used}");
    server
        .docker_ok(client, &["service", "rm", "web", "api"])
        .await;
    let pruned = server.docker_ok(client, &["network", "prune", "-f"]).await;
    assert!(pruned.contains("back"), "{pruned}");
    let gone = server
        .docker_refused(client, &["network", "inspect", "back"])
        .await;
    assert!(gone.to_lowercase().contains("network"), "{gone}");
    let own = server
        .docker_refused(client, &["network", "rm", "bridge"])
        .await;
    assert!(own.contains("pre-defined network"), "{own}");
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
