//! What a container shares, may and must not: namespaces, mounts, devices, limits, terminals.

use crate::support::{Site, Test, block_on, launch, log_text, run, shell, until_info};
use futures_util::StreamExt as _;
use shoal_engine::{
    AttachOptions, ContainerUpdate, DeviceMapping, ErrorKind, NamespaceMode, NetworkMode,
    ResourceLimits, RestartPolicy, TerminalSize,
};
use tokio::io::AsyncWriteExt as _;

pub(crate) const TESTS: &[Test] = &[
    ("namespaces_of_another_container_are_joined", joins),
    (
        "mounts_of_another_container_come_with_volumes_from",
        volumes_from,
    ),
    ("a_memory_file_system_is_bounded", tmpfs),
    ("a_process_killed_for_memory_is_told", out_of_memory),
    ("a_terminal_has_the_size_it_is_given", terminal),
    ("privileged_has_every_capability_and_device", privileged),
    ("a_device_is_there_with_its_permissions_only", devices),
    ("limits_change_while_it_runs_and_stay", update),
];

fn joins() {
    block_on(async {
        let site = Site::new();
        let engine = site.engine_with_image().await;
        let first = launch(&engine, Some("first"), shell("sleep 1000")).await;
        let pid = engine.inspect(&first).await.unwrap().state.pid;
        let mut config =
            shell("for name in net pid ipc; do busybox readlink /proc/self/ns/$name; done");
        config.host.network_mode = NetworkMode::Container("first".to_owned());
        config.host.pid_mode = NamespaceMode::Container("first".to_owned());
        config.host.ipc_mode = NamespaceMode::Container("first".to_owned());
        let (_, code, output) = run(&engine, config.clone()).await;
        let expected: String = ["net", "pid", "ipc"]
            .iter()
            .map(|name| std::fs::read_link(format!("/proc/{pid}/ns/{name}")).unwrap())
            .map(|link| format!("{}\n", link.display()))
            .collect();
        assert_eq!((code, output), (0, expected));
        engine.kill(&first, "KILL").await.unwrap();
        until_info(&engine, &first, "ended", |info| {
            !info.state.status.is_running()
        })
        .await;
        let late = engine.create(None, config).await.unwrap().id.to_string();
        let err = engine.start_container(&late).await.unwrap_err();
        assert_eq!(err.kind(), ErrorKind::Conflict);
        assert!(err.to_string().contains(&first), "{err}");
        site.close(engine).await;
    });
}

fn volumes_from() {
    block_on(async {
        let site = Site::new();
        let engine = site.engine_with_image().await;
        let mut config = shell("echo kept > /store/file; echo loose > /loose/file");
        config.host.binds = vec!["store:/store".to_owned()];
        config.volumes.insert("/loose".to_owned());
        let (first, code, _) = run(&engine, config).await;
        assert_eq!(code, 0);
        let mut config = shell("cat /store/file /loose/file; touch /store/mine");
        config.host.volumes_from = vec![format!("{first}:ro")];
        let (_, code, output) = run(&engine, config).await;
        assert_ne!(code, 0, "the volume is read-only here");
        assert!(output.starts_with("kept\nloose\n"), "{output}");
        assert!(output.contains("Read-only"), "{output}");
        let mut config = shell("true");
        config.host.volumes_from = vec!["nobody".to_owned()];
        let err = engine.create(None, config).await.unwrap_err();
        assert!(err.to_string().contains("nobody"), "{err}");
        site.close(engine).await;
    });
}

fn tmpfs() {
    block_on(async {
        let site = Site::new();
        let engine = site.engine_with_image().await;
        let mut config = shell(
            "touch /x; busybox dd if=/dev/zero of=/scratch/big bs=64k count=64 2>&1; \
             busybox stat -c %a:%s /scratch /scratch/big",
        );
        config.host.read_only_rootfs = true;
        config
            .host
            .tmpfs
            .insert("/scratch".to_owned(), "size=1m,mode=1750".to_owned());
        let (_, _, output) = run(&engine, config).await;
        assert!(output.contains("Read-only file system"), "{output}");
        assert!(output.contains("No space left on device"), "{output}");
        assert!(output.contains("1750:"), "{output}");
        assert!(output.contains(":1048576"), "{output}");
        site.close(engine).await;
    });
}

fn out_of_memory() {
    block_on(async {
        let site = Site::new();
        let engine = site.engine_with_image().await;
        let mut config = shell("busybox tail /dev/zero");
        config.cmd = Some(["busybox", "tail", "/dev/zero"].map(str::to_owned).to_vec());
        config.host.resources.memory_bytes = 16 << 20;
        config.host.resources.memory_swap_bytes = 16 << 20;
        let (id, code, _) = run(&engine, config).await;
        let info = engine.inspect(&id).await.unwrap();
        assert_eq!((code, info.state.oom_killed), (137, true));
        // The next run knows nothing of it.
        let (id, _, _) = run(&engine, shell("true")).await;
        assert!(!engine.inspect(&id).await.unwrap().state.oom_killed);
        site.close(engine).await;
    });
}

fn terminal() {
    block_on(async {
        let site = Site::new();
        let engine = site.engine_with_image().await;
        let mut config = shell("read line; busybox stty size; busybox tty");
        config.tty = true;
        config.open_stdin = true;
        let id = engine.create(None, config).await.unwrap().id.to_string();
        let options = AttachOptions {
            stdin: true,
            stdout: true,
            stderr: true,
            logs: false,
            stream: true,
        };
        let streams = engine.attach(&id, options).await.unwrap();
        assert!(streams.tty);
        engine.start_container(&id).await.unwrap();
        let size = TerminalSize {
            width: 101,
            height: 37,
        };
        engine.resize(&id, size).await.unwrap();
        let mut stdin = streams.stdin.unwrap();
        stdin.write_all(b"go\n").await.unwrap();
        let chunks: Vec<_> = streams
            .output
            .map(|chunk| chunk.unwrap().bytes)
            .collect()
            .await;
        let text = String::from_utf8(chunks.concat()).unwrap();
        assert!(text.contains("37 101\r\n"), "{text:?}");
        assert!(text.contains("/dev/"), "{text:?}");
        let gone = engine.resize(&id, size).await.unwrap_err();
        assert_eq!(gone.kind(), ErrorKind::Conflict);
        site.close(engine).await;
    });
}

fn privileged() {
    block_on(async {
        let site = Site::new();
        let engine = site.engine_with_image().await;
        let line = "busybox grep CapEff /proc/self/status; busybox mkdir /m; \
                    busybox mount -t tmpfs none /m && echo mounted; [ -c /dev/kmsg ] && echo kmsg";
        let mut config = shell(line);
        config.host.privileged = true;
        let (_, _, output) = run(&engine, config).await;
        let own = std::fs::read_to_string("/proc/self/status").unwrap();
        let own = own.lines().find(|line| line.starts_with("CapEff")).unwrap();
        let kmsg = if std::path::Path::new("/dev/kmsg").exists() {
            "kmsg\n"
        } else {
            ""
        };
        assert_eq!(output, format!("{own}\nmounted\n{kmsg}"));
        let (_, _, output) = run(&engine, shell(line)).await;
        assert!(
            output.starts_with("CapEff:\t00000000a80425fb\n"),
            "{output}"
        );
        assert!(
            !output.contains("mounted\n") && !output.contains("kmsg"),
            "{output}"
        );
        site.close(engine).await;
    });
}

fn devices() {
    block_on(async {
        let site = Site::new();
        let engine = site.engine_with_image().await;
        let line = "busybox head -c 1 /dev/mine; echo read $?; : > /dev/mine && echo written; \
                    busybox mknod /mem c 1 1; busybox head -c 1 /mem && echo memory";
        let mut config = shell(line);
        config.host.devices = vec![DeviceMapping {
            host_path: "/dev/kmsg".to_owned(),
            container_path: "/dev/mine".to_owned(),
            permissions: "w".to_owned(),
        }];
        if !std::path::Path::new("/dev/kmsg").exists() {
            println!("skipped in part: there is no /dev/kmsg to share");
            return site.close(engine).await;
        }
        let (_, _, output) = run(&engine, config.clone()).await;
        assert!(output.contains("read 1\nwritten\n"), "{output}");
        assert!(!output.contains("memory\n"), "{output}");
        config.host.devices[0].host_path = "/dev/no-such-device".to_owned();
        let id = engine.create(None, config).await.unwrap().id.to_string();
        let err = engine.start_container(&id).await.unwrap_err();
        assert!(err.to_string().contains("/dev/no-such-device"), "{err}");
        site.close(engine).await;
    });
}

fn update() {
    block_on(async {
        let site = Site::new();
        let engine = site.engine_with_image().await;
        let id = launch(&engine, None, shell("sleep 1000")).await;
        let limits = |pids_limit| ContainerUpdate {
            resources: Some(ResourceLimits {
                pids_limit,
                ..ResourceLimits::default()
            }),
            restart_policy: Some(RestartPolicy::UnlessStopped),
        };
        engine.update(&id, limits(7)).await.unwrap();
        assert_eq!(engine.stats(&id).await.unwrap().pids_limit, 7);
        let info = engine.inspect(&id).await.unwrap();
        assert_eq!(
            info.config.host.restart_policy,
            RestartPolicy::UnlessStopped
        );
        engine
            .restart(&id, Some(std::time::Duration::ZERO), None)
            .await
            .unwrap();
        assert_eq!(engine.stats(&id).await.unwrap().pids_limit, 7);
        let bad = ContainerUpdate {
            resources: Some(ResourceLimits {
                memory_bytes: 1,
                ..ResourceLimits::default()
            }),
            restart_policy: None,
        };
        let err = engine.update(&id, bad).await.unwrap_err();
        assert_eq!(err.kind(), ErrorKind::InvalidArgument, "{err}");
        assert_eq!(log_text(&engine, &id).await, "");
        site.close(engine).await;
    });
}
