//! Starting, ending, streams, signals, and what outlives whom.

use crate::fixture::{Fixture, exe, until, within};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use shoal_runtime::{
    AttachOptions, ExecSpec, ExecStdio, Existing, ShimError, ShimHandle, Stage, StartError, spec,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

#[tokio::test]
async fn output_exit_code_and_log_are_the_programs() {
    let fixture = Fixture::sh("echo out; echo err >&2; exit 7");
    let (exit, out, err) = fixture.run().await;
    assert_eq!((exit.code, exit.signal), (7, None));
    assert_eq!((out.as_str(), err.as_str()), ("out\n", "err\n"));
    let log = fixture.log_text();
    assert!(log.contains(r#"{"log":"out\n","stream":"stdout""#), "{log}");
    assert!(log.contains(r#"{"log":"err\n","stream":"stderr""#), "{log}");
}

#[tokio::test]
async fn programs_that_cannot_run_end_with_dockers_codes() {
    for (program, code, message) in [
        (
            "nope",
            127,
            "exec: \"nope\": executable file not found in $PATH",
        ),
        (
            "/bin/nope",
            127,
            "exec: \"/bin/nope\": stat /bin/nope: no such file or directory",
        ),
        ("/etc", 126, "exec: \"/etc\": permission denied"),
    ] {
        let fixture = Fixture::new(&[program]);
        let handle = fixture.spawn().await;
        let error = handle.start().await.unwrap_err();
        assert_eq!(
            (error.exit_code(), error.to_string().as_str()),
            (code, message)
        );
        assert!(matches!(error, StartError::Failed(_)));
        assert_eq!(within(handle.wait()).await.unwrap().code, code);
        handle.delete(false).await.unwrap();
        fixture.assert_clean();
    }
}

#[tokio::test]
async fn a_failed_stage_leaves_nothing() {
    type Edit = fn(&mut serde_json::Value);
    let cases: [(Stage, Edit); 6] = [
        (Stage::Validate, |spec| {
            spec["process"]["args"] = serde_json::json!([])
        }),
        (Stage::Cgroup, |spec| {
            spec["linux"]["resources"]["cpu"] = serde_json::json!({"cpus": "4000"});
        }),
        (Stage::Mounts, |spec| {
            let mount = serde_json::json!({"destination":"/x","type":"nofs","source":"x"});
            spec["mounts"].as_array_mut().unwrap().push(mount);
        }),
        (Stage::Mounts, |spec| {
            let mount = serde_json::json!(
                {"destination":"/x","type":"bind","source":"/no/such/path","options":["rbind"]}
            );
            spec["mounts"].as_array_mut().unwrap().push(mount);
        }),
        (Stage::Kernel, |spec| {
            spec["linux"]["sysctl"] = serde_json::json!({"net.no.such": "1"});
        }),
        (Stage::Namespaces, |spec| {
            spec["linux"]["namespaces"][1]["path"] = "/no/such/netns".into();
        }),
    ];
    for (stage, edit) in cases {
        let mut fixture = Fixture::sh("true");
        fixture.edit(edit);
        match fixture.try_spawn().await {
            Err(ShimError::Setup(failure)) => assert_eq!(failure.stage, stage, "{failure}"),
            other => panic!("{stage}: {other:?}"),
        }
        fixture.assert_clean();
    }
}

#[tokio::test]
async fn stdin_reaches_the_program_and_ends_once() {
    let mut fixture = Fixture::sh("cat; echo done");
    fixture.shim.stdio.open_stdin = true;
    fixture.shim.stdio.stdin_once = true;
    let handle = fixture.spawn().await;
    let options = AttachOptions {
        stdin: true,
        stdout: true,
        stderr: true,
    };
    let mut streams = handle.attach(options).await.unwrap();
    handle.start().await.unwrap();
    let sent = vec![b'x'; 300_000];
    let writing = async {
        streams.input.write(&sent).await.unwrap();
        streams.input.close().await.unwrap();
    };
    let reading = async {
        let mut text = Vec::new();
        while let Some((_, data)) = streams.output.next().await.unwrap() {
            text.extend_from_slice(&data);
        }
        text
    };
    let ((), text) = within(async { tokio::join!(writing, reading) }).await;
    assert_eq!(text.len(), sent.len() + 5);
    assert!(text.ends_with(b"done\n"));
    handle.delete(false).await.unwrap();
}

#[tokio::test]
async fn a_terminal_has_a_size_and_a_name() {
    let mut fixture = Fixture::sh("stty size; tty; echo end >/dev/console");
    fixture.edit(|spec| {
        spec["process"]["terminal"] = true.into();
        spec["process"]["consoleSize"] = serde_json::json!({"height": 33, "width": 77});
    });
    let (exit, out, _) = fixture.run().await;
    assert_eq!(
        (exit.code, out.as_str()),
        (0, "33 77\r\n/dev/pts/0\r\nend\r\n")
    );
}

#[tokio::test]
async fn signals_pause_and_kill() {
    let fixture =
        Fixture::sh("trap 'echo term; exit 3' TERM; echo up; while :; do sleep 0.05; done");
    let handle = fixture.spawn().await;
    let options = AttachOptions {
        stdin: false,
        stdout: true,
        stderr: false,
    };
    let mut streams = handle.attach(options).await.unwrap();
    handle.start().await.unwrap();
    assert_eq!(
        &within(streams.output.next()).await.unwrap().unwrap().1[..],
        b"up\n"
    );
    handle.pause().await.unwrap();
    assert!(handle.is_paused().await.unwrap());
    assert!(matches!(
        handle.pause().await,
        Err(ShimError::WrongState { .. })
    ));
    handle.resume().await.unwrap();
    assert!(matches!(
        handle.delete(false).await,
        Err(ShimError::WrongState { .. })
    ));
    handle.kill(15, false).await.unwrap();
    assert_eq!(within(handle.wait()).await.unwrap().code, 3);
    assert!(matches!(
        handle.kill(15, false).await,
        Err(ShimError::WrongState { .. })
    ));
    handle.delete(false).await.unwrap();
    fixture.assert_clean();
}

#[tokio::test]
async fn a_paused_container_can_be_killed() {
    let fixture = Fixture::sh("sleep 1000");
    let handle = fixture.spawn().await;
    handle.start().await.unwrap();
    handle.pause().await.unwrap();
    handle.kill(9, false).await.unwrap();
    let exit = within(handle.wait()).await.unwrap();
    assert_eq!((exit.code, exit.signal), (137, Some(9)));
    handle.delete(false).await.unwrap();
}

fn boottime_ns() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME).unwrap();
    now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64
}

#[tokio::test]
async fn the_fencing_deadline_kills_without_anybody() {
    let mut fixture = Fixture::sh("trap '' TERM; sleep 1000");
    fixture.shim.fencing_deadline_ns = Some(boottime_ns() + 60_000_000_000);
    let handle = fixture.spawn().await;
    handle.start().await.unwrap();
    handle.pause().await.unwrap();
    handle
        .renew_deadline(Some(boottime_ns() + 200_000_000))
        .await
        .unwrap();
    let exit = within(handle.wait()).await.unwrap();
    assert!(exit.fenced);
    assert_eq!(exit.signal, Some(9));
    assert!(matches!(
        handle.renew_deadline(None).await,
        Err(ShimError::WrongState { .. })
    ));
    handle.delete(false).await.unwrap();
    fixture.assert_clean();
}

#[tokio::test]
async fn a_dead_shim_takes_its_container_along_and_is_seen_as_lost() {
    let fixture = Fixture::sh("sleep 1000");
    let handle = fixture.spawn().await;
    handle.start().await.unwrap();
    let pid = handle.pid();
    kill(Pid::from_raw(handle.shim_pid() as i32), Signal::SIGKILL).unwrap();
    assert!(matches!(
        within(handle.wait()).await,
        Err(ShimError::Lost { .. })
    ));
    until("the container's end", || {
        !std::path::Path::new(&format!("/proc/{pid}/exe")).exists()
    })
    .await;
    let found = ShimHandle::attach_existing(fixture.bundle().dir())
        .await
        .unwrap();
    assert!(matches!(found, Existing::Lost), "{found:?}");
    fixture.assert_clean();
    let found = ShimHandle::attach_existing(fixture.bundle().dir())
        .await
        .unwrap();
    assert!(matches!(found, Existing::Absent), "{found:?}");
}

#[tokio::test]
async fn a_second_handle_finds_the_running_container() {
    let fixture = Fixture::sh("sleep 1000");
    let first = fixture.spawn().await;
    first.start().await.unwrap();
    let Existing::Alive(second) = ShimHandle::attach_existing(fixture.bundle().dir())
        .await
        .unwrap()
    else {
        panic!("not found");
    };
    assert_eq!(
        (second.pid(), second.shim_pid()),
        (first.pid(), first.shim_pid())
    );
    let again = fixture.try_spawn().await;
    assert!(
        matches!(again, Err(ShimError::AlreadyRunning { .. })),
        "{again:?}"
    );
    second.kill(9, true).await.unwrap();
    assert_eq!(within(first.wait()).await.unwrap().code, 137);
    second.delete(false).await.unwrap();
}

#[tokio::test]
async fn exec_runs_beside_the_program() {
    let fixture = Fixture::sh("sleep 1000");
    let handle = fixture.spawn().await;
    handle.start().await.unwrap();
    let args = ["/bin/sh", "-c", "cat; hostname >&2; exit 5"]
        .map(str::to_owned)
        .to_vec();
    let process = spec::process(args);
    let exec = ExecSpec {
        process,
        stdin: true,
        stdout: true,
        stderr: true,
    };
    let mut exec = handle.exec(exec).await.unwrap();
    let Some(ExecStdio::Pipes {
        stdin,
        stdout,
        stderr,
    }) = exec.stdio.take()
    else {
        panic!()
    };
    let (mut stdin, mut stdout, mut stderr) = (stdin.unwrap(), stdout.unwrap(), stderr.unwrap());
    stdin.write_all(b"hello").await.unwrap();
    drop(stdin);
    let (mut out, mut err) = (String::new(), String::new());
    within(stdout.read_to_string(&mut out)).await.unwrap();
    within(stderr.read_to_string(&mut err)).await.unwrap();
    assert_eq!(out, "hello");
    assert_eq!(within(exec.wait()).await.unwrap().code, 5);
    let missing = ExecSpec {
        process: spec::process(vec!["nope".into()]),
        stdin: false,
        stdout: false,
        stderr: false,
    };
    match handle.exec(missing).await {
        Err(ShimError::Setup(failure)) => assert_eq!(failure.exit_code(), 127),
        other => panic!("{other:?}"),
    }
    handle.delete(true).await.unwrap();
    fixture.assert_clean();
}

#[tokio::test]
async fn exec_with_a_terminal() {
    let fixture = Fixture::sh("sleep 1000");
    let handle = fixture.spawn().await;
    handle.start().await.unwrap();
    let mut process = spec::process(
        ["/bin/sh", "-c", "read x; stty size"]
            .map(str::to_owned)
            .to_vec(),
    );
    process.set_terminal(Some(true));
    let exec = ExecSpec {
        process,
        stdin: true,
        stdout: true,
        stderr: true,
    };
    let mut exec = handle.exec(exec).await.unwrap();
    let Some(ExecStdio::Terminal(mut terminal)) = exec.stdio.take() else {
        panic!()
    };
    terminal.resize(80, 24).unwrap();
    terminal.write_all(b"go\n").await.unwrap();
    let mut text = String::new();
    within(terminal.read_to_string(&mut text)).await.unwrap();
    assert!(text.ends_with("24 80\r\n"), "{text:?}");
    assert_eq!(within(exec.wait()).await.unwrap().code, 0);
    handle.delete(true).await.unwrap();
}

#[tokio::test]
async fn the_reaper_passes_signals_and_exit_codes_on() {
    let mut fixture =
        Fixture::sh("(sleep 0.01 &); trap 'exit 9' TERM; echo up; while :; do sleep 0.05; done");
    fixture.shim.init = true;
    let handle = fixture.spawn().await;
    let options = AttachOptions {
        stdin: false,
        stdout: true,
        stderr: false,
    };
    let mut streams = handle.attach(options).await.unwrap();
    handle.start().await.unwrap();
    assert_eq!(
        &within(streams.output.next()).await.unwrap().unwrap().1[..],
        b"up\n"
    );
    handle.kill(15, false).await.unwrap();
    assert_eq!(within(handle.wait()).await.unwrap().code, 9);
    handle.delete(false).await.unwrap();
    fixture.assert_clean();
}

#[tokio::test]
async fn a_client_that_takes_nothing_does_not_stop_the_container() {
    let fixture = Fixture::sh("dd if=/dev/zero bs=1M count=8 2>/dev/null; echo end >&2");
    let handle = fixture.spawn().await;
    let options = AttachOptions {
        stdin: false,
        stdout: true,
        stderr: true,
    };
    let _idle = handle.attach(options).await.unwrap();
    handle.start().await.unwrap();
    assert_eq!(within(handle.wait()).await.unwrap().code, 0);
    handle.delete(false).await.unwrap();
    assert!(exe().exists());
}
