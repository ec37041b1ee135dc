//! Health checks with Docker's rules.

use super::actor::{ContainerActor, ProbeDone};
use crate::HEALTH_PROBES_KEPT_MAX;
use crate::config::ContainerConfig;
use crate::info::{Health, HealthProbe, HealthStatus};
use crate::requests::ExecConfig;
use crate::user::Identity;
use actix::Addr;
use shoal_model::Timestamp;
use shoal_model::spec::Healthcheck;
use shoal_runtime::{ExecSpec, ExecStdio, ShimHandle};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncReadExt as _;

/// Bytes of a probe's output that are kept, as in Docker.
const PROBE_OUTPUT_BYTES_MAX: u64 = 4096;
const INTERVAL_DEFAULT: Duration = Duration::from_secs(30);
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(30);
const START_INTERVAL_DEFAULT: Duration = Duration::from_secs(5);
const RETRIES_DEFAULT: u64 = 3;
/// Exit code of a probe that could not be run or took too long.
const PROBE_FAILED: i32 = -1;

/// What is tested; `None`: nothing.
pub(crate) fn command(config: &ContainerConfig) -> Option<Vec<String>> {
    let test = &config.healthcheck.as_ref()?.test;
    match test.first().map(String::as_str)? {
        "NONE" => None,
        "CMD-SHELL" => {
            let line = test.get(1)?.clone();
            Some(vec!["/bin/sh".to_owned(), "-c".to_owned(), line])
        }
        "CMD" => (test.len() > 1).then(|| test[1..].to_vec()),
        _ => Some(test.clone()),
    }
}

/// A container that has just started.
pub(crate) fn fresh() -> Health {
    Health {
        status: HealthStatus::Starting,
        failing_streak: 0,
        log: Vec::new(),
    }
}

fn or(value_ns: u64, default: Duration) -> Duration {
    if value_ns == 0 {
        default
    } else {
        Duration::from_nanos(value_ns)
    }
}

/// Takes a probe's result in; gives the new status if it changed.
pub(crate) fn record(
    health: &mut Health,
    check: &Healthcheck,
    probe: HealthProbe,
    since_start: Duration,
) -> Option<HealthStatus> {
    let before = health.status;
    if probe.exit_code == 0 {
        health.failing_streak = 0;
        health.status = HealthStatus::Healthy;
    } else {
        let in_start_period = since_start < Duration::from_nanos(check.start_period_ns);
        // Until the first success failures in the start period do not count.
        if before != HealthStatus::Starting || !in_start_period {
            health.failing_streak += 1;
            let retries = if check.retries == 0 {
                RETRIES_DEFAULT
            } else {
                check.retries
            };
            if health.failing_streak >= retries {
                health.status = HealthStatus::Unhealthy;
            }
        }
    }
    health.log.push(probe);
    if health.log.len() > HEALTH_PROBES_KEPT_MAX {
        health.log.remove(0);
    }
    (health.status != before).then_some(health.status)
}

/// What the probing loop needs.
pub(crate) struct Prober {
    pub(crate) shim: ShimHandle,
    pub(crate) actor: Addr<ContainerActor>,
    pub(crate) config: Arc<ContainerConfig>,
    pub(crate) identity: Identity,
    pub(crate) run: u64,
    pub(crate) started: Timestamp,
    /// The container ran already when this engine came: what it knew of its health is gone, so ask at once.
    pub(crate) at_once: bool,
}

/// Probes until the container's run is over.
pub(crate) async fn probe_loop(prober: Prober) {
    let Some(check) = prober.config.healthcheck.clone() else {
        return;
    };
    let mut status = HealthStatus::Starting;
    let mut at_once = prober.at_once;
    loop {
        let since_start = crate::clock::now().since(prober.started);
        let starting = status == HealthStatus::Starting
            && since_start < Duration::from_nanos(check.start_period_ns);
        let pause = if starting {
            or(check.start_interval_ns, START_INTERVAL_DEFAULT)
        } else {
            or(check.interval_ns, INTERVAL_DEFAULT)
        };
        if !std::mem::take(&mut at_once) {
            tokio::time::sleep(pause).await;
        }
        let probe = run_probe(&prober, &check).await;
        let done = ProbeDone {
            run: prober.run,
            probe,
        };
        match prober.actor.send(done).await {
            Ok(Some(now)) => status = now,
            Ok(None) | Err(_) => return,
        }
    }
}

async fn run_probe(prober: &Prober, check: &Healthcheck) -> HealthProbe {
    let start = crate::clock::now();
    let limit = or(check.timeout_ns, TIMEOUT_DEFAULT);
    let (exit_code, output) = match probe_process(prober, limit).await {
        Ok(result) => result,
        Err(reason) => (PROBE_FAILED, reason),
    };
    HealthProbe {
        start,
        end: crate::clock::now(),
        exit_code,
        output,
    }
}

async fn probe_process(prober: &Prober, limit: Duration) -> Result<(i32, String), String> {
    let exec = ExecConfig {
        cmd: command(&prober.config).unwrap_or_default(),
        ..ExecConfig::default()
    };
    let process = crate::oci::exec_process(&prober.config, &exec, &prober.identity)
        .map_err(|err| err.to_string())?;
    let spec = ExecSpec {
        process,
        stdin: false,
        stdout: true,
        stderr: true,
    };
    let mut handle = prober
        .shim
        .exec(spec)
        .await
        .map_err(|err| crate::error::chain(&err))?;
    let stdio = handle.stdio.take();
    let mut output = Vec::new();
    let finished = tokio::time::timeout(limit, async {
        let reading = read_both(stdio, &mut output);
        let (_, exit) = tokio::join!(reading, handle.wait());
        exit
    })
    .await;
    match finished {
        Ok(Ok(exit)) => Ok((exit.code, String::from_utf8_lossy(&output).into_owned())),
        Ok(Err(err)) => Err(crate::error::chain(&err)),
        Err(_) => {
            handle
                .kill(libc::SIGKILL)
                .await
                .map_err(|err| crate::error::chain(&err))?;
            Err(format!("Health check exceeded timeout ({limit:?})"))
        }
    }
}

/// Reads both streams to their ends, and keeps the beginning.
async fn read_both(stdio: Option<ExecStdio>, output: &mut Vec<u8>) {
    let Some(ExecStdio::Pipes { stdout, stderr, .. }) = stdio else {
        return;
    };
    let read = |pipe: Option<tokio::net::unix::pipe::Receiver>| async {
        let mut kept = Vec::new();
        if let Some(mut pipe) = pipe {
            let mut head = (&mut pipe).take(PROBE_OUTPUT_BYTES_MAX);
            // What a probe prints is told as far as it can be read.
            if head.read_to_end(&mut kept).await.is_ok() {
                drop(tokio::io::copy(&mut pipe, &mut tokio::io::sink()).await);
            }
        }
        kept
    };
    let (mut first, second) = tokio::join!(read(stdout), read(stderr));
    first.extend(second);
    first.truncate(PROBE_OUTPUT_BYTES_MAX as usize);
    *output = first;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn probe(exit_code: i32) -> HealthProbe {
        HealthProbe {
            start: Timestamp(0),
            end: Timestamp(1),
            exit_code,
            output: String::new(),
        }
    }

    fn check(start_period_s: u64, results: &[(u64, i32)], expected: HealthStatus) -> Health {
        let settings = Healthcheck {
            retries: 2,
            start_period_ns: start_period_s * 1_000_000_000,
            ..Healthcheck::default()
        };
        let mut health = fresh();
        for (at, code) in results {
            record(
                &mut health,
                &settings,
                probe(*code),
                Duration::from_secs(*at),
            );
        }
        assert_eq!(health.status, expected, "{results:?}");
        health
    }

    #[test]
    fn failures_in_a_row_make_unhealthy_and_one_success_heals() {
        check(0, &[(1, 1)], HealthStatus::Starting);
        check(0, &[(1, 1), (2, 1)], HealthStatus::Unhealthy);
        check(0, &[(1, 1), (2, 0), (3, 1)], HealthStatus::Healthy);
        check(0, &[(1, 1), (2, 1), (3, 0)], HealthStatus::Healthy);
    }

    #[test]
    fn failures_in_the_start_period_do_not_count_until_a_success() {
        check(10, &[(1, 1), (2, 1), (3, 1)], HealthStatus::Starting);
        check(10, &[(1, 0), (2, 1), (3, 1)], HealthStatus::Unhealthy);
        check(10, &[(1, 1), (11, 1), (12, 1)], HealthStatus::Unhealthy);
    }

    #[test]
    fn the_log_keeps_the_last_probes() {
        let results: Vec<_> = (0..9).map(|n| (n, i32::try_from(n).unwrap())).collect();
        let health = check(0, &results, HealthStatus::Unhealthy);
        assert_eq!(health.log.len(), HEALTH_PROBES_KEPT_MAX);
        assert_eq!(health.log[0].exit_code, 4);
    }
}
