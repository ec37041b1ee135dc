//! The engine ends, in order or not, and starts again.

use crate::support::{self, Site, Test, block_on, eventually, launch, shell, until_info};
use shoal_engine::info::HealthStatus;
use shoal_engine::{ContainerStatus, EngineHandle, RestartPolicy, WaitCondition};
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode};
use std::time::Duration;

pub(crate) const TESTS: &[Test] = &[
    ("running_containers_survive_the_engine", survive),
    (
        "a_lost_shim_is_told_and_the_policy_starts_it_again",
        lost_shim,
    ),
    (
        "policies_decide_what_a_new_engine_starts",
        policies_at_start,
    ),
    ("health_is_asked_at_once_after_the_engine", health_again),
    ("a_killed_engine_leaves_nothing_half_made", killed_engine),
    (
        "a_record_that_can_not_be_recovered_is_put_aside",
        quarantine,
    ),
];

fn survive() {
    block_on(async {
        let site = Site::new();
        let engine = site.engine_with_image().await;
        let id = engine
            .create(Some("stays".to_owned()), shell("sleep 1000"))
            .await
            .unwrap()
            .id
            .to_string();
        engine.start_container(&id).await.unwrap();
        let before = engine.inspect(&id).await.unwrap();
        engine.shutdown().await;
        drop(engine);
        let engine = reopen(&site).await;
        let after = engine.inspect("stays").await.unwrap();
        assert_eq!(after.state.status, ContainerStatus::Running);
        assert_eq!(after.state.pid, before.state.pid);
        assert_eq!(after.network, before.network);
        // Its address is still taken.
        let other = engine
            .create(None, shell("sleep 1000"))
            .await
            .unwrap()
            .id
            .to_string();
        engine.start_container(&other).await.unwrap();
        let second = engine.inspect(&other).await.unwrap();
        assert_ne!(
            second.network.endpoints[0].address,
            after.network.endpoints[0].address
        );
        engine.kill(&id, "KILL").await.unwrap();
        assert_eq!(
            engine
                .wait(&id, WaitCondition::NotRunning)
                .await
                .unwrap()
                .exit_code,
            137
        );
        site.close(engine).await;
    });
}

/// The image store of an engine that has just ended may be let go a moment later.
async fn reopen(site: &Site) -> EngineHandle {
    for _ in 0..1000 {
        match EngineHandle::start(site.options()).await {
            Ok(engine) => return engine,
            Err(err) if err.to_string().contains("image store") => {
                tokio::time::sleep(Duration::from_millis(5)).await
            }
            Err(err) => panic!("{err}"),
        }
    }
    panic!("the image store was not let go");
}

fn lost_shim() {
    block_on(async {
        let site = Site::new();
        let engine = site.engine_with_image().await;
        let mut config = shell("sleep 1000");
        config.host.restart_policy = RestartPolicy::Always;
        let id = engine.create(None, config).await.unwrap().id.to_string();
        engine.start_container(&id).await.unwrap();
        let before = engine.inspect(&id).await.unwrap();
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", before.state.pid)).unwrap();
        let shim: i32 = stat
            .rsplit(')')
            .next()
            .unwrap()
            .split_whitespace()
            .nth(1)
            .unwrap()
            .parse()
            .unwrap();
        engine.shutdown().await;
        drop(engine);
        for pid in [shim, before.state.pid.cast_signed()] {
            let pid = nix::unistd::Pid::from_raw(pid);
            nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
        }
        let engine = reopen(&site).await;
        let mut seen = None;
        for _ in 0..1000 {
            let info = engine.inspect(&id).await.unwrap();
            if info.state.status == ContainerStatus::Running {
                assert_ne!(info.state.pid, before.state.pid);
                seen = Some(info);
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(seen.is_some(), "the container was not started again");
        site.close(engine).await;
    });
}

fn policies_at_start() {
    block_on(async {
        let site = Site::new();
        let engine = site.engine_with_image().await;
        let flags = site.path().join("flags");
        std::fs::create_dir(&flags).unwrap();
        let failure = RestartPolicy::OnFailure { retries_max: 0 };
        let with = |policy, line: &str| {
            let mut config = shell(line);
            config.host.restart_policy = policy;
            config.host.binds = vec![format!("{}:/flags", flags.display())];
            config
        };
        let deaf = "exec sleep 1000";
        // It crashes until the flag is there: when the engine ends, it waits for its next restart.
        let crashing = "[ -e /flags/go ] && exec sleep 1000; exit 1";
        let ended = launch(&engine, None, with(RestartPolicy::UnlessStopped, deaf)).await;
        let stopped = launch(&engine, None, with(RestartPolicy::UnlessStopped, deaf)).await;
        let always = launch(&engine, None, with(RestartPolicy::Always, deaf)).await;
        let never = launch(&engine, None, with(RestartPolicy::No, deaf)).await;
        let failed = launch(&engine, None, with(failure, deaf)).await;
        let waits = launch(&engine, None, with(failure, crashing)).await;
        let fresh = engine.create(None, with(RestartPolicy::Always, deaf)).await;
        let fresh = fresh.unwrap().id.to_string();
        for id in [&stopped, &always] {
            engine.stop(id, Some(Duration::ZERO), None).await.unwrap();
        }
        until_info(&engine, &waits, "restarted", |info| info.restart_count > 2).await;
        let mut pids = Vec::new();
        for id in [&ended, &never, &failed] {
            pids.push(engine.inspect(id).await.unwrap().state.pid);
        }
        engine.shutdown().await;
        drop(engine);
        for pid in pids {
            let pid = nix::unistd::Pid::from_raw(pid.cast_signed());
            nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
        }
        std::fs::write(flags.join("go"), "").unwrap();
        let engine = reopen(&site).await;
        for id in [&ended, &always, &failed, &waits] {
            until_info(&engine, id, "running", |info| info.state.pid != 0).await;
        }
        for (id, status) in [
            (&stopped, ContainerStatus::Exited),
            (&never, ContainerStatus::Exited),
            (&fresh, ContainerStatus::Created),
        ] {
            assert_eq!(engine.inspect(id).await.unwrap().state.status, status);
        }
        site.close(engine).await;
    });
}

fn health_again() {
    block_on(async {
        let site = Site::new();
        let engine = site.engine_with_image().await;
        let mut config = shell("sleep 1000");
        let start_period = Duration::from_millis(300);
        config.healthcheck = Some(shoal_model::spec::Healthcheck {
            test: ["CMD", "true"].map(str::to_owned).to_vec(),
            interval_ns: 3_600_000_000_000,
            start_interval_ns: 5_000_000,
            start_period_ns: 300_000_000,
            ..Default::default()
        });
        let id = launch(&engine, None, config).await;
        let started = std::time::Instant::now();
        let is_healthy = |info: &shoal_engine::ContainerInfo| {
            let health = info.state.health.as_ref();
            health.is_some_and(|health| health.status == HealthStatus::Healthy)
        };
        until_info(&engine, &id, "healthy", is_healthy).await;
        engine.shutdown().await;
        drop(engine);
        // Past the start period the interval counts, which is an hour.
        tokio::time::sleep(start_period.saturating_sub(started.elapsed())).await;
        let engine = reopen(&site).await;
        until_info(&engine, &id, "healthy", is_healthy).await;
        site.close(engine).await;
    });
}

/// Runs as a child: an engine that starts and removes containers until it is killed.
pub(crate) fn engine_process() -> ExitCode {
    let mut args = std::env::args().skip(2);
    let (Some(dir), Some(subnet)) = (args.next(), args.next()) else {
        return ExitCode::FAILURE;
    };
    block_on(async {
        let options = support::options(&PathBuf::from(dir), subnet.parse().unwrap());
        let engine = EngineHandle::start(options).await.unwrap();
        println!("ready");
        loop {
            let mut config = shell("true");
            config.host.auto_remove = true;
            config.volumes.insert("/v".to_owned());
            config
                .host
                .port_bindings
                .insert("80".parse().unwrap(), vec![Default::default()]);
            let id = engine.create(None, config).await.unwrap().id.to_string();
            let gone = engine
                .wait_begin(&id, WaitCondition::Removed)
                .await
                .unwrap();
            engine.start_container(&id).await.unwrap();
            gone.await;
        }
    })
}

fn spawn_engine(site: &Site) -> Child {
    use std::io::BufRead as _;
    let mut child = Command::new(std::env::current_exe().unwrap())
        .arg("engine")
        .arg(site.path())
        .arg(site.subnet().to_string())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let stdout = child.stdout.take().unwrap();
    std::io::BufReader::new(stdout)
        .read_line(&mut line)
        .unwrap();
    assert_eq!(line, "ready\n");
    child
}

fn killed_engine() {
    block_on(async {
        let site = Site::new();
        let engine = site.engine_with_image().await;
        engine.shutdown().await;
        drop(engine);
        // Instants spread over several starts, ends and removals; each round's delay differs.
        for round in 0..24u64 {
            let mut child = wait_for_engine(&site).await;
            tokio::time::sleep(Duration::from_micros(1_700 * round + 300)).await;
            child.kill().unwrap();
            child.wait().unwrap();
        }
        let engine = reopen(&site).await;
        site.assert_clean().await;
        let all = shoal_engine::ListFilter {
            all: true,
            ..Default::default()
        };
        assert!(engine.list(all).await.unwrap().is_empty());
        eventually("no volume is left", || {
            let names: Vec<_> = std::fs::read_dir(site.path().join("data/volumes"))
                .unwrap()
                .flatten()
                .map(|entry| entry.file_name())
                .collect();
            if names.is_empty() {
                Ok(())
            } else {
                Err(format!("{names:?}"))
            }
        })
        .await;
        site.close(engine).await;
    });
}

async fn wait_for_engine(site: &Site) -> Child {
    let lock = site.path().join("data/images/lock");
    eventually("the image store is let go", || {
        let file = std::fs::File::open(&lock).map_err(|err| err.to_string())?;
        file.try_lock().map_err(|err| err.to_string())
    })
    .await;
    spawn_engine(site)
}

fn quarantine() {
    block_on(async {
        let site = Site::new();
        let engine = site.engine_with_image().await;
        let id = engine
            .create(None, shell("true"))
            .await
            .unwrap()
            .id
            .to_string();
        engine.shutdown().await;
        drop(engine);
        let dir = site.path().join("data/containers").join(&id);
        std::fs::write(dir.join("container.json"), "{\"version\":1,\"rec").unwrap();
        for _ in 0..4 {
            let engine = reopen(&site).await;
            assert!(engine.inspect(&id).await.is_err());
            engine.shutdown().await;
        }
        let reason = site
            .path()
            .join("data/quarantine")
            .join(format!("{id}.reason"));
        let text = std::fs::read_to_string(reason).unwrap();
        assert!(text.contains("container.json"), "{text}");
        let engine = reopen(&site).await;
        site.close(engine).await;
    });
}
