//! Services whose image comes from a registry.

use crate::harness::{TestCluster, eventually, with_hosts};
use crate::registry::{NOBODY, REGISTRY, Registry, Users};

const TASK: &str = "--stop-signal SIGKILL";

/// Founds a cluster of hosts whose daemons may talk to the registry without TLS.
fn with_registry<F>(users: Users, body: F)
where
    F: AsyncFnOnce(&mut TestCluster, Registry),
{
    let nobody = format!("{NOBODY}:5000");
    let args = [
        "--insecure-registry",
        REGISTRY,
        "--insecure-registry",
        &nobody,
    ];
    with_hosts(1, 2, &args, async |test| {
        test.cluster().join_all().await.unwrap();
        test.wait_ready(3).await;
        let registry = Registry::start(test, users).await;
        body(test, registry).await;
    });
}

/// Waits until `svc ps` shows these words in one row, and `svc explain` the last of them.
async fn is_told(test: &TestCluster, service: &str, words: &[&str]) {
    eventually(&format!("`{service}` says {words:?}"), async || {
        let line =
            format!("svc ps {service} --no-trunc --format {{{{.CurrentState}}}}|{{{{.Error}}}}");
        let shown = test.shoal("manager1", &line).await;
        let told = shown
            .lines()
            .any(|row| words.iter().all(|word| row.contains(word)));
        let explained = test
            .shoal("manager1", &format!("svc explain {service}"))
            .await;
        match told && explained.contains(words[words.len() - 1]) {
            true => Ok(()),
            false => Err(format!("{shown}\n{explained}")),
        }
    })
    .await;
}

#[test]
fn root_service_is_pulled_on_every_node_and_a_wrong_image_says_why() {
    with_registry(Users::Open, async |test, registry| {
        let blobs = registry.push("team/web", "1", &[]);
        let line = format!(
            "svc create --name web --mode global {TASK} {REGISTRY}/team/web:1 sleep 100000"
        );
        test.shoal("manager1", &line).await;
        assert_eq!(test.running("manager1", "web").await.len(), 3);

        // A tag that nobody has pushed yet.
        let line = format!(
            "svc create -d --name early --replicas 2 {TASK} {REGISTRY}/team/web:2 sleep 100000"
        );
        test.shoal("manager1", &line).await;
        is_told(test, "early", &["Rejected", "manifest unknown"]).await;
        registry.push("team/web", "2", &[]);
        test.wait_running("manager1", "early", 2).await;

        // Nobody answers there.
        let line = format!(
            "svc create -d --name far --replicas 1 {TASK} {NOBODY}:5000/web:1 sleep 100000"
        );
        test.shoal("manager1", &line).await;
        let address = format!("failed to reach the registry `{NOBODY}:5000`");
        is_told(test, "far", &[&address]).await;

        // A layer that is not what its manifest says.
        let (layer, _) = crate::registry::noise_layer("noise", 1 << 20);
        let digests = registry.push("team/bad", "1", &[layer]);
        let blob = registry.blob_file(digests.last().unwrap());
        let mut bytes = std::fs::read(&blob).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0xff;
        std::fs::write(&blob, bytes).unwrap();
        let line = format!(
            "svc create -d --name bad --replicas 1 {TASK} {REGISTRY}/team/bad:1 sleep 100000"
        );
        test.shoal("manager1", &line).await;
        is_told(test, "bad", &["but its manifest says"]).await;
        assert!(test.running("manager1", "bad").await.is_empty());
        // By a digest that is not there.
        let none = crate::registry::sha256(b"nothing");
        let line = format!(
            "svc create -d --name none --replicas 1 {TASK} {REGISTRY}/team/web@{none} sleep 100000"
        );
        test.shoal("manager1", &line).await;
        is_told(test, "none", &["Rejected", "not found"]).await;
        // And by the one that is.
        let line = format!(
            "svc create --name pinned --replicas 1 {TASK} {REGISTRY}/team/web@{} sleep 100000",
            blobs[0]
        );
        test.shoal("manager1", &line).await;
        registry.stop(test).await;
    });
}

#[test]
fn root_plain_registry_that_was_not_declared_names_the_flag() {
    with_hosts(1, 0, &[], async |test| {
        let registry = Registry::start(test, Users::Open).await;
        registry.push("web", "1", &[]);
        let said = test
            .refused("manager1", &format!("pull {REGISTRY}/web:1"))
            .await;
        assert!(said.contains("--insecure-registry"), "{said}");
        assert!(said.contains(REGISTRY), "{said}");
        registry.stop(test).await;
    });
}

/// Runs the client on `manager1` with a user's settings of its own: success, and everything that it said.
async fn as_user(test: &TestCluster, args: &[&str], input: &str) -> (bool, String) {
    use tokio::io::AsyncWriteExt;
    let mut command = test.cluster().host("manager1").unwrap().client(args);
    let mut client = command
        .env("DOCKER_CONFIG", test.dir().join("user"))
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = client.stdin.take().unwrap();
    // A client that reads nothing has ended already.
    drop(stdin.write_all(input.as_bytes()).await);
    drop(stdin);
    let output = client.wait_with_output().await.unwrap();
    let said = [output.stdout, output.stderr].concat();
    (
        output.status.success(),
        String::from_utf8_lossy(&said).into_owned(),
    )
}

#[test]
#[expect(clippy::too_many_lines, reason = "one story, told step by step")]
fn root_credentials_open_a_registry_for_pulls_and_for_the_nodes_of_a_service() {
    with_registry(Users::Basic, async |test, registry| {
        registry.push("team/secret", "1", &[]);
        let image = format!("{REGISTRY}/team/secret:1");
        let (ok, said) = as_user(test, &["pull", &image], "").await;
        assert!(!ok && said.contains("pull access denied"), "{said}");

        let login = ["login", "-u", "user", "--password-stdin", REGISTRY];
        let (ok, said) = as_user(test, &login, "wrong\n").await;
        assert!(!ok && said.contains("unauthorized"), "{said}");
        assert!(!test.dir().join("user/config.json").exists());
        let (ok, said) = as_user(test, &login, "myPassword\n").await;
        assert!(ok && said.contains("Login Succeeded"), "{said}");

        // Without the flag the nodes have nothing to show, with it all of them have.
        let create = |name: &'static str, flags: &[&'static str]| {
            let mut args = vec!["svc", "create", "--name", name, "--mode", "global"];
            args.extend(flags);
            args.extend(["--stop-signal", "SIGKILL"]);
            args.into_iter().map(str::to_owned).collect::<Vec<_>>()
        };
        let run = |mut args: Vec<String>| {
            args.extend([image.clone(), "sleep".to_owned(), "100000".to_owned()]);
            args
        };
        let closed = run(create("closed", &["-d"]));
        let closed: Vec<&str> = closed.iter().map(String::as_str).collect();
        let (ok, said) = as_user(test, &closed, "").await;
        assert!(ok, "{said}");
        is_told(test, "closed", &["Rejected", "pull access denied"]).await;
        let open = run(create("open", &["--with-registry-auth"]));
        let open: Vec<&str> = open.iter().map(String::as_str).collect();
        let (ok, said) = as_user(test, &open, "").await;
        assert!(ok, "{said}");
        assert_eq!(test.running("manager1", "open").await.len(), 3);

        // They are shown to nobody and lie on no worker's disk.
        let shown = test
            .docker("manager1", &["service", "inspect", "open"])
            .await;
        let secrets = [
            "myPassword",
            "bXlQYXNzd29yZA",
            "dXNlcjpteVBhc3N3b3Jk",
            "registrytoken",
        ];
        for secret in secrets {
            assert!(!shown.contains(secret), "{shown}");
            for host in ["manager1", "worker1", "worker2"] {
                let data = test.cluster().host(host).unwrap().dir.clone();
                let grep = ["-r", "-l", "-a", secret, "--exclude=busybox"];
                let found = std::process::Command::new("grep")
                    .args(grep)
                    .arg(data.join("data"))
                    .arg(data.join("daemon.log"))
                    .output()
                    .unwrap();
                assert!(
                    found.stdout.is_empty(),
                    "{}",
                    String::from_utf8_lossy(&found.stdout)
                );
            }
        }
        // A change by somebody who has none keeps them: another image of the registry is pulled with them.
        registry.push("team/secret", "2", &[]);
        let line = format!("svc update --image {REGISTRY}/team/secret:2 open");
        test.shoal("manager1", &line).await;
        test.wait_running("manager1", "open", 3).await;
        // Docker's own client logs in and sends the same.
        let (ok, _, said) = test
            .try_docker(
                "manager1",
                &["login", "-u", "user", "-p", "nonsense", REGISTRY],
            )
            .await;
        assert!(!ok && said.contains("unauthorized"), "{said}");
        test.docker(
            "manager1",
            &["login", "-u", "user", "-p", "myPassword", REGISTRY],
        )
        .await;
        let other = format!("{REGISTRY}/team/secret:2");
        let args = [
            "service",
            "create",
            "-d",
            "--name",
            "docker",
            "--with-registry-auth",
            &other,
        ];
        test.docker("manager1", &args).await;

        let (ok, said) = as_user(test, &["pull", "-q", &image], "").await;
        assert!(ok, "{said}");
        let (ok, said) = as_user(test, &["logout", REGISTRY], "").await;
        assert!(ok && said.contains("Removing login credentials"), "{said}");
        let file = std::fs::read_to_string(test.dir().join("user/config.json")).unwrap();
        assert!(!file.contains(REGISTRY), "{file}");
        let (ok, said) = as_user(test, &["pull", &image], "").await;
        assert!(!ok && said.contains("pull access denied"), "{said}");
        registry.stop(test).await;
    });
}
