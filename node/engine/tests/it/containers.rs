//! The life of containers.

use crate::support::{Site, Test, block_on, eventually, log_text, run, shell};
use futures_util::StreamExt as _;
use shoal_engine::{
    AttachOptions, ContainerStatus, EngineError, ErrorKind, ExecConfig, ListFilter, NetworkMode,
    PortBinding, RemoveOptions, RestartPolicy, WaitCondition,
};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

pub(crate) const TESTS: &[Test] = &[
    (
        "a_container_runs_logs_and_tells_its_exit_code",
        runs_and_logs,
    ),
    ("an_attached_client_misses_nothing", attach_misses_nothing),
    ("auto_remove_leaves_nothing", auto_remove),
    ("exec_runs_beside_and_tells_its_code", exec),
    ("a_missing_program_is_told_and_undone", missing_program),
    ("stop_kills_after_the_grace", stop_grace),
    ("on_failure_restarts_so_often_and_no_more", on_failure),
    ("names_and_ports_conflict_clearly", conflicts),
    (
        "volumes_are_filled_shared_and_refused_while_in_use",
        volumes,
    ),
    ("a_published_port_answers", published_port),
    ("a_health_check_turns_healthy", health),
    ("pause_rename_and_update_show", pause_rename),
    ("files_go_in_and_out", copy),
];

fn runs_and_logs() {
    block_on(async {
        let site = Site::new();
        let engine = site.engine_with_image().await;
        let mut config = shell("id; hostname; cat /etc/hostname; echo $HOME; exit 7");
        config.user = "web".to_owned();
        config.hostname = "box".to_owned();
        let (id, code, output) = run(&engine, config).await;
        assert_eq!(code, 7);
        assert_eq!(
            output,
            "uid=33(web) gid=34(www) groups=34(www),50(extra)\nbox\nbox\n/var/www\n"
        );
        let info = engine.inspect(&id).await.unwrap();
        assert_eq!(info.state.status, ContainerStatus::Exited);
        assert!(info.state.finished_at >= info.state.started_at);
        // It can run again, and only `all` lists what has ended.
        engine.start_container(&id).await.unwrap();
        engine.wait(&id, WaitCondition::NotRunning).await.unwrap();
        assert!(engine.list(ListFilter::default()).await.unwrap().is_empty());
        site.close(engine).await;
    });
}

fn attach_misses_nothing() {
    block_on(async {
        let site = Site::new();
        let engine = site.engine_with_image().await;
        let mut config = shell("cat; echo end; echo err >&2");
        config.open_stdin = true;
        config.stdin_once = true;
        let id = engine.create(None, config).await.unwrap().id.to_string();
        let options = AttachOptions {
            stdin: true,
            stdout: true,
            stderr: true,
            logs: false,
            stream: true,
        };
        let streams = engine.attach(&id, options).await.unwrap();
        let mut stdin = streams.stdin.unwrap();
        stdin.write_all(b"hello\n").await.unwrap();
        stdin.shutdown().await.unwrap();
        engine.start_container(&id).await.unwrap();
        let chunks: Vec<_> = streams.output.collect().await;
        let text = |kind| {
            let of_kind = chunks
                .iter()
                .map(|chunk| chunk.as_ref().unwrap())
                .filter(|chunk| chunk.stream == kind);
            String::from_utf8(of_kind.flat_map(|chunk| chunk.bytes.to_vec()).collect()).unwrap()
        };
        assert_eq!(text(shoal_engine::StdStream::Stdout), "hello\nend\n");
        assert_eq!(text(shoal_engine::StdStream::Stderr), "err\n");
        site.close(engine).await;
    });
}

fn auto_remove() {
    block_on(async {
        let site = Site::new();
        let engine = site.engine_with_image().await;
        let mut config = shell("exit 3");
        config.host.auto_remove = true;
        config.volumes.insert("/scratch".to_owned());
        let id = engine.create(None, config).await.unwrap().id.to_string();
        let removed = engine
            .wait_begin(&id, WaitCondition::Removed)
            .await
            .unwrap();
        engine.start_container(&id).await.unwrap();
        assert_eq!(removed.await.exit_code, 3);
        let gone = engine.inspect(&id).await.unwrap_err();
        assert_eq!(gone.kind(), ErrorKind::NotFound);
        assert!(
            engine
                .volume_list(Default::default())
                .await
                .unwrap()
                .is_empty()
        );
        site.assert_clean().await;
        site.close(engine).await;
    });
}

fn exec() {
    block_on(async {
        let site = Site::new();
        let engine = site.engine_with_image().await;
        let id = engine
            .create(None, shell("sleep 1000"))
            .await
            .unwrap()
            .id
            .to_string();
        engine.start_container(&id).await.unwrap();
        let config = ExecConfig {
            cmd: ["sh", "-c", "id -u; exit 5"].map(str::to_owned).to_vec(),
            user: "web".to_owned(),
            attach_stdout: true,
            attach_stderr: true,
            ..ExecConfig::default()
        };
        let exec = engine.exec_create(&id, config).await.unwrap();
        let streams = engine.exec_start(&exec, false).await.unwrap();
        let chunks: Vec<_> = streams
            .output
            .map(|chunk| chunk.unwrap().bytes)
            .collect()
            .await;
        assert_eq!(chunks.concat(), b"33\n");
        for _ in 0..1000 {
            if !engine.exec_inspect(&exec).await.unwrap().running {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(engine.exec_inspect(&exec).await.unwrap().exit_code, Some(5));
        assert!(engine.exec_start(&exec, false).await.is_err());
        let top = engine.top(&id).await.unwrap();
        assert!(
            top.rows.iter().any(|row| row[7].contains("sleep 1000")),
            "{top:?}"
        );
        assert!(engine.stats(&id).await.unwrap().pids >= 1);
        site.close(engine).await;
    });
}

fn missing_program() {
    block_on(async {
        let site = Site::new();
        let engine = site.engine_with_image().await;
        let mut config = shell("");
        config.cmd = Some(vec!["/no/such".to_owned()]);
        let id = engine.create(None, config).await.unwrap().id.to_string();
        let err = engine.start_container(&id).await.unwrap_err();
        assert!(
            matches!(err, EngineError::Start { exit_code: 127, .. }),
            "{err}"
        );
        let info = engine.inspect(&id).await.unwrap();
        assert_eq!(
            (info.state.status, info.state.exit_code),
            (ContainerStatus::Created, 127)
        );
        eventually("the failed start is undone", || {
            match (site.namespaces(), site.links(), site.shims()) {
                (0, 0, 0) => Ok(()),
                left => Err(format!("{left:?}")),
            }
        })
        .await;
        site.close(engine).await;
    });
}

fn stop_grace() {
    block_on(async {
        let site = Site::new();
        let engine = site.engine_with_image().await;
        let deaf = engine
            .create(None, shell("trap '' TERM; sleep 1000 & wait; sleep 1000"))
            .await
            .unwrap()
            .id
            .to_string();
        engine.start_container(&deaf).await.unwrap();
        engine
            .stop(&deaf, Some(Duration::from_millis(200)), None)
            .await
            .unwrap();
        assert_eq!(engine.inspect(&deaf).await.unwrap().state.exit_code, 137);
        let again = engine.stop(&deaf, None, None).await.unwrap_err();
        assert_eq!(again.kind(), ErrorKind::NotModified);
        let polite = engine
            .create(
                None,
                shell("trap 'exit 4' TERM; echo up; while :; do sleep 0.01; done"),
            )
            .await
            .unwrap()
            .id
            .to_string();
        engine.start_container(&polite).await.unwrap();
        for _ in 0..1000 {
            if log_text(&engine, &polite).await.contains("up") {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        engine.stop(&polite, None, None).await.unwrap();
        assert_eq!(engine.inspect(&polite).await.unwrap().state.exit_code, 4);
        site.close(engine).await;
    });
}

fn on_failure() {
    block_on(async {
        let site = Site::new();
        let engine = site.engine_with_image().await;
        let mut config = shell("echo run; exit 1");
        config.host.restart_policy = RestartPolicy::OnFailure { retries_max: 2 };
        let id = engine.create(None, config).await.unwrap().id.to_string();
        engine.start_container(&id).await.unwrap();
        engine.wait(&id, WaitCondition::NotRunning).await.unwrap();
        let info = engine.inspect(&id).await.unwrap();
        assert_eq!(
            (info.restart_count, info.state.status),
            (2, ContainerStatus::Exited)
        );
        assert_eq!(log_text(&engine, &id).await, "run\nrun\nrun\n");
        site.close(engine).await;
    });
}

fn conflicts() {
    block_on(async {
        let site = Site::new();
        let engine = site.engine_with_image().await;
        let name = || Some("web".to_owned());
        engine.create(name(), shell("true")).await.unwrap();
        let taken = engine.create(name(), shell("true")).await.unwrap_err();
        assert!(
            taken
                .to_string()
                .contains("\"/web\" is already in use by container"),
            "{taken}"
        );
        let unknown = engine.create(
            None,
            shoal_engine::ContainerConfig {
                image: "nope".to_owned(),
                ..Default::default()
            },
        );
        assert_eq!(
            unknown.await.unwrap_err().to_string(),
            "No such image: nope:latest"
        );
        let mut config = shell("sleep 1000");
        config.host.port_bindings.insert(
            "80".parse().unwrap(),
            vec![PortBinding {
                host_ip: [127, 0, 0, 1].into(),
                host_ports: (18_471, 18_471),
            }],
        );
        let first = engine
            .create(None, config.clone())
            .await
            .unwrap()
            .id
            .to_string();
        engine.start_container(&first).await.unwrap();
        let second = engine.create(None, config).await.unwrap().id.to_string();
        let err = engine.start_container(&second).await.unwrap_err();
        assert!(
            matches!(&err, EngineError::PortTaken { holder, .. } if holder.contains(&first)),
            "{err}"
        );
        let mut config = shell("true");
        config.host.network_mode = NetworkMode::Named("front".to_owned());
        assert_eq!(
            engine.create(None, config).await.unwrap_err().kind(),
            ErrorKind::NotFound
        );
        site.close(engine).await;
    });
}

fn volumes() {
    block_on(async {
        let site = Site::new();
        let engine = site.engine_with_image().await;
        let mut config = shell("cat /data/seed; touch /data/mine; ls /data");
        config.host.binds = vec!["store:/data".to_owned()];
        let (id, code, output) = run(&engine, config.clone()).await;
        assert_eq!((code, output.as_str()), (0, "from the image\nmine\nseed\n"));
        let in_use = engine.volume_remove("store", false).await.unwrap_err();
        assert!(in_use.to_string().contains(&id), "{in_use}");
        let (_, _, output) = run(&engine, config).await;
        assert!(output.ends_with("mine\nseed\n"), "{output}");
        let mut bad = shell("true");
        bad.host.mounts = vec![shoal_model::spec::Mount {
            kind: shoal_model::spec::MountKind::Bind {
                source: "/no/such/source".to_owned(),
                propagation: String::new(),
            },
            target: "/x".to_owned(),
            read_only: false,
        }];
        let err = engine.create(None, bad).await.unwrap_err();
        assert!(
            err.to_string()
                .contains("bind source path does not exist: /no/such/source"),
            "{err}"
        );
        site.close(engine).await;
    });
}

fn published_port() {
    block_on(async {
        let site = Site::new();
        let engine = site.engine_with_image().await;
        let mut config = shell("while :; do echo hello | nc -l -p 80; done");
        config
            .host
            .port_bindings
            .insert("80".parse().unwrap(), vec![PortBinding::default()]);
        let id = engine.create(None, config).await.unwrap().id.to_string();
        engine.start_container(&id).await.unwrap();
        let info = engine.inspect(&id).await.unwrap();
        let port = info.network.ports[0].host_port;
        let address = info.network.endpoints[0].address.unwrap();
        assert_eq!(address.octets(), [10, 213, site.subnet(), 2]);
        let gateway = format!("10.213.{}.1:{port}", site.subnet());
        let mut text = [0; 6];
        for _ in 0..200 {
            let answer = async {
                let mut stream = tokio::net::TcpStream::connect(&gateway).await?;
                stream.read_exact(&mut text).await
            };
            if let Ok(Ok(_)) = tokio::time::timeout(Duration::from_secs(1), answer).await {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let log = log_text(&engine, &id).await;
        assert_eq!(&text, b"hello\n", "the container says: {log}");
        site.close(engine).await;
    });
}

fn health() {
    block_on(async {
        let site = Site::new();
        let engine = site.engine_with_image().await;
        let mut config = shell("sleep 1000");
        config.healthcheck = Some(shoal_model::spec::Healthcheck {
            test: ["CMD-SHELL", "echo fine"].map(str::to_owned).to_vec(),
            interval_ns: 20_000_000,
            ..Default::default()
        });
        let id = engine.create(None, config).await.unwrap().id.to_string();
        engine.start_container(&id).await.unwrap();
        let mut last = None;
        for _ in 0..1000 {
            last = engine.inspect(&id).await.unwrap().state.health;
            if last
                .as_ref()
                .is_some_and(|health| health.status == shoal_engine::info::HealthStatus::Healthy)
            {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let health = last.unwrap();
        assert_eq!(
            health.status,
            shoal_engine::info::HealthStatus::Healthy,
            "{health:?}"
        );
        assert_eq!(health.log[0].output, "fine\n");
        site.close(engine).await;
    });
}

fn pause_rename() {
    block_on(async {
        let site = Site::new();
        let engine = site.engine_with_image().await;
        let id = engine
            .create(None, shell("sleep 1000"))
            .await
            .unwrap()
            .id
            .to_string();
        engine.start_container(&id).await.unwrap();
        engine.pause(&id).await.unwrap();
        assert_eq!(
            engine.inspect(&id).await.unwrap().state.status,
            ContainerStatus::Paused
        );
        assert!(engine.pause(&id).await.is_err());
        engine.unpause(&id).await.unwrap();
        engine.rename(&id, "other").await.unwrap();
        assert_eq!(engine.inspect("other").await.unwrap().id.to_string(), id);
        let refused = engine
            .remove("other", RemoveOptions::default())
            .await
            .unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Conflict);
        engine
            .restart("other", Some(Duration::ZERO), None)
            .await
            .unwrap();
        assert_eq!(
            engine.inspect("other").await.unwrap().state.status,
            ContainerStatus::Running
        );
        site.close(engine).await;
    });
}

fn copy() {
    block_on(async {
        let site = Site::new();
        let engine = site.engine_with_image().await;
        let id = engine
            .create(None, shell("cat /data/new; sleep 1000"))
            .await
            .unwrap()
            .id
            .to_string();
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(4);
        header.set_mode(0o644);
        builder
            .append_data(&mut header, "new", &b"new\n"[..])
            .unwrap();
        let tar = builder.into_inner().unwrap();
        engine
            .archive_put(&id, "/data", std::io::Cursor::new(tar), Default::default())
            .await
            .unwrap();
        engine.start_container(&id).await.unwrap();
        let (stat, stream) = engine.archive_get(&id, "/data").await.unwrap();
        assert_eq!(stat.name, "data");
        let bytes: Vec<_> = stream.map(|piece| piece.unwrap()).collect().await;
        let bytes = bytes.concat();
        let mut archive = tar::Archive::new(bytes.as_slice());
        let mut names: Vec<_> = archive
            .entries()
            .unwrap()
            .map(|entry| entry.unwrap().path().unwrap().display().to_string())
            .collect();
        names.sort();
        assert_eq!(names, ["data/", "data/new", "data/seed"]);
        assert_eq!(
            engine.archive_stat(&id, "/nope").await.unwrap_err().kind(),
            ErrorKind::NotFound
        );
        site.close(engine).await;
    });
}
