//! Daemons that die or hang, shims that are killed, disks that are full, steps that fail: what is left, and what is
//! said.

use crate::fixture::{Fixture, HostMount, PATIENCE, exe, until, within};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use shoal_runtime::{ExecSpec, Existing, LogConfig, Rootfs, ShimError, ShimHandle, Stage, spec};
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A daemon that is killed and reaped at the end of its test.
struct Daemon(Child);

impl Daemon {
    /// Returns when the container's program runs.
    fn start(fixture: &Fixture, lease: Option<Duration>) -> Self {
        fixture
            .bundle()
            .write(&fixture.spec, &fixture.shim)
            .unwrap();
        let mut command = Command::new(exe());
        command.arg("daemon").arg(fixture.path(""));
        command.args(lease.map(|lease| lease.as_millis().to_string()));
        let mut daemon = Self(command.stdout(Stdio::piped()).spawn().unwrap());
        let mut line = String::new();
        let output = daemon.0.stdout.take().unwrap();
        BufReader::new(output).read_line(&mut line).unwrap();
        assert!(line.trim().parse::<u32>().is_ok(), "{line:?}");
        daemon
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.0.id().cast_signed()), signal).unwrap();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

async fn found(fixture: &Fixture) -> ShimHandle {
    match ShimHandle::attach_existing(fixture.bundle().dir()).await {
        Ok(Existing::Alive(handle)) => handle,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_container_outlives_its_daemon_and_is_found_again() {
    let mut fixture = Fixture::sh("echo up; read x; echo got $x; exit 4");
    fixture.shim.stdio.open_stdin = true;
    let daemon = Daemon::start(&fixture, None);
    let before = found(&fixture).await;
    daemon.signal(Signal::SIGKILL);
    drop(daemon);
    let handle = found(&fixture).await;
    assert_eq!(handle.pid(), before.pid());
    assert!(handle.is_running().await.unwrap());
    let exec = ExecSpec {
        process: spec::process(vec!["true".into()]),
        stdin: false,
        stdout: false,
        stderr: false,
    };
    let mut exec = handle.exec(exec).await.unwrap();
    assert_eq!(within(exec.wait()).await.unwrap().code, 0);
    let options = shoal_runtime::AttachOptions {
        stdin: true,
        stdout: true,
        stderr: true,
    };
    let mut streams = handle.attach(options).await.unwrap();
    streams.input.write(b"word\n").await.unwrap();
    assert_eq!(within(handle.wait()).await.unwrap().code, 4);
    let log = fixture.log_text();
    assert!(log.contains("up") && log.contains("got word"), "{log}");
    handle.delete(false).await.unwrap();
    fixture.assert_clean();
}

#[tokio::test]
async fn a_daemon_that_hangs_or_dies_loses_its_container_at_the_deadline() {
    const LEASE: Duration = Duration::from_millis(800);
    for signal in [Signal::SIGSTOP, Signal::SIGKILL] {
        let fixture = Fixture::sh("trap '' TERM; while :; do sleep 0.05; done");
        let daemon = Daemon::start(&fixture, Some(LEASE));
        let handle = found(&fixture).await;
        // As long as it renews, no deadline passes.
        let start = Instant::now();
        until("two leases", || start.elapsed() > 2 * LEASE).await;
        assert!(handle.is_running().await.unwrap());
        daemon.signal(signal);
        let stopped = Instant::now();
        let exit = within(handle.wait()).await.unwrap();
        assert!(exit.fenced, "{exit:?}");
        let late = stopped.elapsed();
        assert!(late < LEASE + PATIENCE / 10, "{signal}: {late:?}");
        handle.delete(false).await.unwrap();
        fixture.assert_clean();
    }
}

#[tokio::test]
async fn a_full_disk_costs_log_lines_and_nothing_else() {
    let mut fixture = Fixture::sh("yes | head -c 400000; echo; read x; echo after; exit 6");
    let disk = HostMount::tmpfs(fixture.path("disk"), 128);
    let filler = disk.path().join("filler");
    std::fs::write(&filler, vec![0; 64 << 10]).unwrap();
    let log = disk.path().join("log");
    fixture.shim.stdio.open_stdin = true;
    fixture.shim.log = LogConfig::JsonFile {
        path: log.clone(),
        max_size_bytes: None,
        max_files: 1,
        attrs: std::collections::BTreeMap::new(),
    };
    let handle = fixture.spawn().await;
    let options = shoal_runtime::AttachOptions {
        stdin: true,
        stdout: true,
        stderr: true,
    };
    let mut streams = handle.attach(options).await.unwrap();
    handle.start().await.unwrap();
    let mut taken = 0;
    while taken < 400_001 {
        let (_, data) = within(streams.output.next()).await.unwrap().unwrap();
        taken += data.len();
    }
    assert!(handle.is_running().await.unwrap());
    let full = std::fs::metadata(&log).unwrap().len();
    assert!((32 << 10..=64 << 10).contains(&full), "{full}");
    // With room again, whole records follow.
    std::fs::remove_file(&filler).unwrap();
    streams.input.write(b"\n").await.unwrap();
    assert_eq!(within(handle.wait()).await.unwrap().code, 6);
    let text = std::fs::read_to_string(&log).unwrap();
    let mut records = text.lines().map(serde_json::from_str::<serde_json::Value>);
    let broken = records.clone().filter(Result::is_err).count();
    assert!(broken <= 1, "{broken}");
    let last = records.next_back().unwrap().unwrap();
    assert_eq!(last["log"], "after\n");
    handle.delete(false).await.unwrap();
    fixture.assert_clean_but(disk.path());
}

#[tokio::test]
async fn every_further_stage_that_fails_leaves_nothing_and_is_named() {
    type Edit = fn(&mut Fixture);
    let cases: [(Stage, Edit); 6] = [
        (Stage::Rootfs, |fixture| {
            if let Rootfs::Overlay { lower, .. } = &mut fixture.shim.rootfs {
                lower.push("/no/such/layer".into());
            }
        }),
        (Stage::Stdio, |fixture| {
            fixture.shim.log = LogConfig::JsonFile {
                path: "/no/such/directory/log".into(),
                max_size_bytes: None,
                max_files: 1,
                attrs: std::collections::BTreeMap::new(),
            };
        }),
        (Stage::Devices, |fixture| {
            fixture.edit(|spec| {
                let device = json!({"path": "/proc/device", "type": "c", "major": 1, "minor": 3});
                spec["linux"]["devices"] = json!([device]);
            });
        }),
        (Stage::Credentials, |fixture| {
            fixture.edit(|spec| {
                let limit = json!({"type": "RLIMIT_NOFILE", "soft": 1, "hard": 1u64 << 40});
                spec["process"]["rlimits"] = json!([limit]);
            });
        }),
        (Stage::Seccomp, |fixture| {
            fixture.edit(|spec| {
                spec["linux"]["seccomp"]["defaultAction"] = "SCMP_ACT_NOTIFY".into();
            });
        }),
        (Stage::Bundle, |fixture| fixture.shim.version = 99),
    ];
    for (stage, edit) in cases {
        let mut fixture = Fixture::sh("true");
        edit(&mut fixture);
        match fixture.try_spawn().await {
            Err(ShimError::Setup(failure)) => assert_eq!(failure.stage, stage, "{failure}"),
            other => panic!("{stage}: {other:?}"),
        }
        fixture.assert_clean();
    }
}

/// Making this container hangs: the list of users is a pipe that nobody writes.
fn hanging() -> Fixture {
    let fixture = Fixture::sh("true");
    let path = fixture.path("base/etc/passwd");
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::from_bits_truncate(0o644)).unwrap();
    fixture
}

#[tokio::test]
async fn a_shim_that_is_killed_while_it_makes_a_container_leaves_nothing() {
    let fixture = hanging();
    fixture
        .bundle()
        .write(&fixture.spec, &fixture.shim)
        .unwrap();
    let spawning = tokio::spawn(ShimHandle::spawn(fixture.options()));
    let pid = |who: &str| -> i32 {
        let state = std::fs::read(fixture.path("state.json")).unwrap_or_default();
        let state: serde_json::Value = serde_json::from_slice(&state).unwrap_or_default();
        state[who].as_i64().unwrap_or(0) as i32
    };
    until("the first process", || pid("init_pid") != 0).await;
    let init = pid("init_pid");
    kill(Pid::from_raw(pid("shim_pid")), Signal::SIGKILL).unwrap();
    let result = within(spawning).await.unwrap();
    assert!(matches!(result, Err(ShimError::Lost { .. })), "{result:?}");
    let found = ShimHandle::attach_existing(fixture.bundle().dir()).await;
    assert!(matches!(found, Ok(Existing::Lost)), "{found:?}");
    fixture.assert_clean();
    until("the end of the first process", || {
        kill(Pid::from_raw(init), None).is_err()
    })
    .await;
}

#[tokio::test]
async fn a_container_that_can_not_be_made_in_time_is_given_up() {
    let fixture = hanging();
    fixture
        .bundle()
        .write(&fixture.spec, &fixture.shim)
        .unwrap();
    let mut options = fixture.options();
    options.setup_timeout = Duration::from_millis(300);
    let result = within(ShimHandle::spawn(options)).await;
    assert!(
        matches!(result, Err(ShimError::TimedOut { .. })),
        "{result:?}"
    );
    fixture.assert_clean();
}

#[tokio::test]
async fn a_test_that_fails_leaves_nothing() {
    let fixture = Fixture::sh("sleep 1000");
    let handle = fixture.spawn().await;
    handle.start().await.unwrap();
    let cgroups = fixture.cgroups();
    assert!(cgroups.iter().any(|dir| dir.exists()));
    drop(fixture);
    assert!(cgroups.iter().all(|dir| !dir.exists()));
    until("the end of the program", || {
        kill(Pid::from_raw(handle.pid().cast_signed()), None).is_err()
    })
    .await;
}
