//! What the agent asks of the engine, task by task.

use crate::Test;
use crate::site::{Site, block_on, task};
use shoal_agent::runtime::{ContainerChange, ContainerPhase, Exit, Health};
use shoal_agent::{EngineRuntime, RuntimeError, TaskRuntime as _};
use shoal_model::spec::{Healthcheck, PortConfig, PublishMode};
use shoal_model::task::VolumeAttachment;
use shoal_model::{ContainerId, Task, VolumeId};
use std::time::{Duration, Instant};

pub(crate) const TESTS: &[Test] = &[
    ("a_task_starts_is_found_and_stops_with_its_grace", stop),
    ("health_is_told_when_it_changes", health),
    ("a_lease_is_renewed_and_its_end_kills", fencing),
    (
        "what_can_not_run_here_is_rejected_with_the_reason",
        rejected,
    ),
    ("ports_are_told_as_chosen", ports),
    ("exits_are_told_with_their_reasons", exits),
];

/// Longest wait for anything: 15 s.
const PATIENCE: Duration = Duration::from_secs(15);

async fn launch(runtime: &EngineRuntime, task: &Task, deadline: Option<u64>) -> ContainerId {
    runtime.prepare(task, None).await.unwrap();
    let id = runtime.create(task, 0, deadline).await.unwrap();
    runtime.start(id).await.unwrap();
    id
}

async fn exited(runtime: &EngineRuntime, id: ContainerId, known: Health) -> Exit {
    let change = tokio::time::timeout(PATIENCE, runtime.changed(id, known)).await;
    match change.expect("the container ends").unwrap() {
        ContainerChange::Exited(exit) => exit,
        other => panic!("{other:?}"),
    }
}

fn boottime_ns() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME).unwrap();
    u64::try_from(Duration::from(now).as_nanos()).unwrap()
}

fn stop() {
    block_on(async {
        let (_site, engine, runtime) = Site::new(1).await;
        let deaf = task(&["sh", "-c", "trap '' TERM; sleep 1000"], |spec| {
            spec.container.stop_grace_period_ns = Some(1_000_000_000);
        });
        let id = launch(&runtime, &deaf, None).await;
        let info = engine.inspect(&id.to_string()).await.unwrap();
        assert_eq!(info.name, format!("web.1.{}", deaf.id));
        let found = runtime.found().await.unwrap();
        assert_eq!((found.len(), found[0].task_id), (1, deaf.id));
        assert!(matches!(&found[0].phase, ContainerPhase::Running(running) if running.pid != 0));
        // Starting what runs is no error: an agent that was cut short does it again.
        runtime.start(id).await.unwrap();
        let started = Instant::now();
        runtime.stop(id).await.unwrap();
        let took = started.elapsed();
        assert!(
            took >= Duration::from_secs(1),
            "the grace was cut: {took:?}"
        );
        assert_eq!(exited(&runtime, id, Health::Unchecked).await.exit_code, 137);
        runtime.stop(id).await.unwrap();
        runtime.remove(id).await.unwrap();
        runtime.remove(id).await.unwrap();
        assert!(runtime.found().await.unwrap().is_empty());
        engine.shutdown().await;
    });
}

fn health() {
    block_on(async {
        let (_site, engine, runtime) = Site::new(2).await;
        let line = "while [ ! -e /ready ]; do sleep 0.01; done; sleep 1000";
        let checked = task(&["sh", "-c", line], |spec| {
            spec.container.healthcheck = Some(Healthcheck {
                test: ["CMD", "cat", "/ready"].map(str::to_owned).to_vec(),
                interval_ns: 20_000_000,
                retries: 2,
                ..Healthcheck::default()
            });
        });
        runtime.prepare(&checked, None).await.unwrap();
        let id = runtime.create(&checked, 0, None).await.unwrap();
        assert_eq!(runtime.start(id).await.unwrap().health, Health::Starting);
        let mut known = Health::Starting;
        let file = engine.inspect(&id.to_string()).await.unwrap().state.pid;
        let file = format!("/proc/{file}/root/ready");
        for expected in [Health::Unhealthy, Health::Healthy, Health::Unhealthy] {
            match expected {
                Health::Healthy => std::fs::write(&file, "").unwrap(),
                _ if known == Health::Healthy => std::fs::remove_file(&file).unwrap(),
                _ => {}
            }
            let change = tokio::time::timeout(PATIENCE, runtime.changed(id, known)).await;
            let change = change.expect("its health changes").unwrap();
            assert_eq!(change, ContainerChange::Health(expected));
            known = expected;
        }
        runtime.remove(id).await.unwrap();
        assert!(matches!(
            runtime.changed(id, known).await.unwrap(),
            ContainerChange::Exited(Exit { exit_code: 137, .. })
        ));
        engine.shutdown().await;
    });
}

fn fencing() {
    block_on(async {
        let (_site, engine, runtime) = Site::new(3).await;
        let fenced = task(&["sleep", "1000"], |_| {});
        let lease = 1_500_000_000;
        let id = launch(&runtime, &fenced, Some(boottime_ns() + lease)).await;
        let last = boottime_ns() + 2 * lease;
        runtime.renew(id, last).await.unwrap();
        let exit = exited(&runtime, id, Health::Unchecked).await;
        assert!(
            boottime_ns() >= last,
            "killed before its renewed lease ended"
        );
        assert_eq!(exit.exit_code, 137);
        assert!(exit.reason.contains("lease"), "{exit:?}");
        // Renewing what has ended is no error.
        runtime.renew(id, last + lease).await.unwrap();
        runtime.remove(id).await.unwrap();
        engine.shutdown().await;
    });
}

async fn refusal(runtime: &EngineRuntime, task: &Task) -> String {
    let refused = match runtime.prepare(task, None).await {
        Ok(()) => runtime.create(task, 0, None).await.map(drop),
        Err(err) => Err(err),
    };
    match refused.unwrap_err() {
        RuntimeError::Rejected { reason } => reason,
        other => panic!("{other:?}"),
    }
}

fn rejected() {
    block_on(async {
        let (_site, engine, runtime) = Site::new(4).await;
        let mut missing = task(&["sleep", "1"], |_| {});
        missing.volumes = vec![VolumeAttachment {
            volume_id: VolumeId::from_bits(1),
            name: "data".to_owned(),
            must_exist: true,
        }];
        let reason = refusal(&runtime, &missing).await;
        assert!(
            reason.contains("volume `data`") && reason.contains("rebind"),
            "{reason}"
        );
        let bad = task(&["sleep", "1"], |spec| {
            spec.container.image = "app/UPPER:1".to_owned();
        });
        let reason = refusal(&runtime, &bad).await;
        assert!(reason.contains("app/UPPER"), "{reason}");
        // Nobody listens there: it may work later, so that is no rejection.
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let registry = closed.local_addr().unwrap();
        drop(closed);
        let far = task(&["sleep", "1"], |spec| {
            spec.container.image = format!("{registry}/app:1");
        });
        match runtime.prepare(&far, None).await.unwrap_err() {
            RuntimeError::Unavailable { reason } => {
                assert!(reason.contains(&registry.to_string()), "{reason}");
            }
            other => panic!("{other:?}"),
        }
        assert!(runtime.found().await.unwrap().is_empty());
        engine.shutdown().await;
    });
}

fn port(target: u16, published: u16, mode: PublishMode) -> PortConfig {
    PortConfig {
        name: String::new(),
        protocol: shoal_model::spec::Protocol::Tcp,
        target,
        published,
        mode,
        addrs: Vec::new(),
        allow: Vec::new(),
    }
}

fn ports() {
    block_on(async {
        let (_site, engine, runtime) = Site::new(5).await;
        let mut open = task(&["sleep", "1000"], |_| {});
        open.ports = vec![port(80, 0, PublishMode::Host)];
        runtime.prepare(&open, None).await.unwrap();
        let id = runtime.create(&open, 0, None).await.unwrap();
        let running = runtime.start(id).await.unwrap();
        assert_eq!((running.ports.len(), running.ports[0].target), (1, 80));
        let chosen = running.ports[0].published;
        assert_ne!(chosen, 0);
        // The next one can't have the same port, and is told who has it.
        open.ports[0].published = chosen;
        let second = runtime.create(&open, 1, None).await.unwrap();
        let err = runtime.start(second).await.unwrap_err();
        assert!(matches!(err, RuntimeError::Unavailable { .. }), "{err:?}");
        assert!(
            err.to_string().contains(&format!("web.1.{}", open.id)),
            "{err}"
        );
        for id in [id, second] {
            runtime.remove(id).await.unwrap();
        }
        engine.shutdown().await;
    });
}

fn exits() {
    block_on(async {
        let (_site, engine, runtime) = Site::new(6).await;
        let plain = launch(&runtime, &task(&["sh", "-c", "exit 3"], |_| {}), None).await;
        let exit = exited(&runtime, plain, Health::Unchecked).await;
        assert_eq!((exit.exit_code, exit.oom_killed), (3, false));
        runtime.remove(plain).await.unwrap();
        let greedy = task(&["tail", "/dev/zero"], |spec| {
            spec.resources.limits.memory_bytes = 16 << 20;
        });
        let greedy = launch(&runtime, &greedy, None).await;
        let exit = exited(&runtime, greedy, Health::Unchecked).await;
        assert_eq!((exit.exit_code, exit.oom_killed), (137, true));
        runtime.remove(greedy).await.unwrap();
        let absent = task(&["/no/such"], |_| {});
        let id = runtime.create(&absent, 0, None).await.unwrap();
        match runtime.start(id).await.unwrap_err() {
            RuntimeError::Start { exit_code, reason } => {
                assert_eq!(exit_code, 127);
                assert!(reason.contains("/no/such"), "{reason}");
            }
            other => panic!("{other:?}"),
        }
        runtime.remove(id).await.unwrap();
        engine.shutdown().await;
    });
}
