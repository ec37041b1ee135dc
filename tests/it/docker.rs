//! An unmodified docker client against our daemon.

use crate::harness::{eventually, with_cluster, with_hosts};

#[test]
fn root_docker_runs_containers() {
    with_hosts(1, 0, &[], async |test| {
        let docker = async |args: &[&str]| test.docker("manager1", args).await;
        assert_eq!(
            docker(&["run", "--rm", "busybox", "echo", "hello"]).await,
            "hello\n"
        );
        let (ok, _, _) = test
            .try_docker(
                "manager1",
                &["run", "--rm", "busybox", "sh", "-c", "exit 7"],
            )
            .await;
        assert!(!ok);
        let id = docker(&[
            "run",
            "-d",
            "--name",
            "web",
            "busybox",
            "sh",
            "-c",
            "echo one; echo two >&2; sleep 1000",
        ])
        .await;
        assert_eq!(id.trim().len(), 64);
        assert_eq!(docker(&["ps", "--format", "{{.Names}}"]).await, "web\n");
        assert_eq!(
            docker(&["exec", "web", "cat", "/etc/hostname"])
                .await
                .trim(),
            &id[..12]
        );
        eventually("the log has a line", async || {
            let text = test.docker("manager1", &["logs", "web"]).await;
            if text == "one\n" { Ok(()) } else { Err(text) }
        })
        .await;
        let state = docker(&["inspect", "--format", "{{.State.Status}}", "web"]).await;
        assert_eq!(state, "running\n");
        docker(&["stop", "-t", "0", "web"]).await;
        assert_eq!(docker(&["ps", "-q"]).await, "");
        docker(&["rm", "web"]).await;
        assert_eq!(docker(&["ps", "-aq"]).await, "");
        assert!(
            docker(&["images", "--format", "{{.Repository}}"])
                .await
                .contains("busybox")
        );
        docker(&["version"]).await;
        docker(&["info"]).await;
    });
}

#[test]
fn root_docker_publishes_a_port() {
    with_hosts(1, 0, &[], async |test| {
        let script = "mkdir /www; echo it works > /www/index.html; exec httpd -f -p 8080 -h /www";
        test.docker(
            "manager1",
            &[
                "run",
                "-d",
                "-p",
                "8000:8080",
                "busybox",
                "sh",
                "-c",
                script,
            ],
        )
        .await;
        let host = test.cluster().host("manager1").unwrap();
        let url = format!("http://{}:8000/", host.address);
        eventually("the page is served", async || {
            let page = host.run(["busybox", "wget", "-q", "-O", "-", &url]).await;
            page.map_err(|error| error.to_string()).and_then(|page| {
                if page == "it works\n" {
                    Ok(())
                } else {
                    Err(page)
                }
            })
        })
        .await;
        let (ok, _, said) = test
            .try_docker(
                "manager1",
                &["run", "-d", "-p", "8000:80", "busybox", "sleep", "9"],
            )
            .await;
        assert!(!ok && said.contains("already allocated"), "{said}");
    });
}

#[test]
fn root_docker_drives_services() {
    with_cluster(1, 1, async |test| {
        let docker = async |args: &[&str]| test.docker("manager1", args).await;
        docker(&[
            "service",
            "create",
            "--name",
            "web",
            "--replicas",
            "2",
            "--stop-signal",
            "SIGKILL",
            "--no-resolve-image",
            "busybox",
            "sleep",
            "100000",
        ])
        .await;
        assert_eq!(
            docker(&["service", "ls", "--format", "{{.Name}} {{.Replicas}}"]).await,
            "web 2/2\n"
        );
        let states = docker(&["service", "ps", "web", "--format", "{{.CurrentState}}"]).await;
        assert_eq!(
            states
                .lines()
                .filter(|line| line.starts_with("Running"))
                .count(),
            2,
            "{states}"
        );
        docker(&["service", "scale", "web=3"]).await;
        assert_eq!(
            docker(&["service", "ls", "--format", "{{.Replicas}}"]).await,
            "3/3\n"
        );
        docker(&[
            "service",
            "update",
            "--env-add",
            "A=1",
            "--update-monitor",
            "100ms",
            "web",
        ])
        .await;
        let env = docker(&[
            "service",
            "inspect",
            "web",
            "--format",
            "{{.Spec.TaskTemplate.ContainerSpec.Env}}",
        ])
        .await;
        assert_eq!(env, "[A=1]\n");
        let nodes = docker(&["node", "ls", "--format", "{{.Hostname}} {{.Status}}"]).await;
        assert!(nodes.contains("worker1 Ready"), "{nodes}");
        docker(&["node", "update", "--availability", "drain", "worker1"]).await;
        docker(&["service", "rm", "web"]).await;
        assert_eq!(docker(&["service", "ls", "-q"]).await, "");
    });
}
