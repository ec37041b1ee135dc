//! `shoal daemon`: wires engine, agent, manager and API together.
//!
//! Runtimes: one for everything ordinary; one thread with real-time priority for Raft and the control port; one small
//! runtime for the bulk port, so that a transfer never delays a heartbeat.

mod address;
mod handler;
mod joined;
mod logs;
mod membership;
mod metrics;
mod overlay;
mod record;
mod task_logs;

use crate::args::daemon::{DaemonArgs, NetdArgs};
use crate::spec::parse;
use membership::{Membership, MembershipOptions};
use record::NodeRecord;
use shoal_api::{ApiOptions, ApiServer, MetricsServer, SOCKET_MODE_DEFAULT};
use shoal_engine::{EngineHandle, EngineOptions};
use std::process::ExitCode;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// Threads of the ordinary runtime, whatever the number of cores: the daemon waits more than it computes.
const WORKER_THREADS: usize = 2;

/// Why the daemon did not start, as one text.
type Failure = String;

/// An error with its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    text
}

pub(crate) fn main(args: DaemonArgs) -> ExitCode {
    if let Err(err) = start_logging(&args.log, args.log_json) {
        eprintln!("shoal daemon: {err}");
        return ExitCode::FAILURE;
    }
    if !nix::unistd::geteuid().is_root() {
        eprintln!("shoal daemon: must run as root: it makes namespaces, mounts and network links");
        return ExitCode::FAILURE;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKER_THREADS)
        .thread_name("shoal")
        .enable_all()
        .build();
    let outcome = match runtime {
        Ok(runtime) => runtime.block_on(run(args)),
        Err(err) => Err(format!("failed to start threads: {err}")),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("shoal daemon: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn start_logging(log: &str, json: bool) -> Result<(), Failure> {
    use tracing_subscriber::EnvFilter;
    let filter = EnvFilter::try_new(log)
        .map_err(|err| format!("invalid argument \"{}\" for --log: {err}", log))?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    if json {
        builder.json().init();
    } else {
        builder.with_ansi(false).init();
    }
    Ok(())
}

/// `shoal netd`. It has no threads but its own: this runs before any exists.
pub(crate) fn netd_main(args: &NetdArgs) -> ExitCode {
    if let Err(err) = start_logging(&args.log, false) {
        eprintln!("shoal netd: {err}");
        return ExitCode::FAILURE;
    }
    let run_root = args.run_root.clone();
    match shoal_overlay_net::netd::main(&shoal_overlay_net::netd::NetdArgs { run_root }) {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            tracing::error!(err = shoal_overlay_net::netd::chain(&err), "netd ended");
            ExitCode::FAILURE
        }
    }
}

fn engine_options(args: &DaemonArgs) -> Result<EngineOptions, Failure> {
    let exe =
        std::env::current_exe().map_err(|err| format!("failed to find this program: {err}"))?;
    let instance = shoal_overlay_net::InstanceTag::derive(&args.data_root.to_string_lossy());
    // What can't be read is said when the node returns to its cluster.
    let overlay_expected = matches!(NodeRecord::load(&args.data_root), Ok(Some(_)));
    Ok(EngineOptions {
        overlay_expected,
        cgroup_parent: args.cgroup_parent.clone(),
        instance: instance.as_str().to_owned(),
        insecure_registries: args.insecure_registries.clone(),
        log_options: parse::pairs(&args.log_opts).into_iter().collect(),
        ..EngineOptions::new(&args.data_root, &args.run_root, exe)
    })
}

async fn run(args: DaemonArgs) -> Result<(), Failure> {
    let stop = CancellationToken::new();
    let signals = Signals::new().map_err(|err| format!("failed to handle signals: {err}"))?;
    let engine = EngineHandle::start(engine_options(&args)?)
        .await
        .map_err(|err| format!("failed to start the engine: {}", chain(&err)))?;
    let membership = Membership::open(MembershipOptions::new(&args)?, engine.clone());
    let membership = Arc::new(membership);
    let server = ApiServer::bind(ApiOptions {
        socket: args.socket.clone(),
        mode: SOCKET_MODE_DEFAULT,
        group: args.group.clone(),
        engine: engine.clone(),
        cluster: membership.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        git_commit: option_env!("SHOAL_GIT_COMMIT")
            .unwrap_or("unknown")
            .to_owned(),
    })
    .await
    .map_err(|err| format!("failed to serve the API: {}", chain(&err)))?;
    let measuring = match args.metrics_addr {
        None => None,
        Some(addr) => {
            let server = MetricsServer::bind(addr, membership.clone())
                .await
                .map_err(|err| chain(&err))?;
            tracing::info!(addr = %server.addr(), "daemon serves metrics");
            Some(tokio::spawn(server.serve(stop.clone())))
        }
    };
    // The API answers while the node finds its way back into its cluster.
    let resuming = tokio::spawn({
        let membership = membership.clone();
        async move { membership.resume().await }
    });
    tracing::info!(socket = %args.socket.display(), "daemon serves the API");
    let serving = tokio::spawn(server.serve(stop.clone()));
    signals.wait().await;
    tracing::info!("daemon stops; containers run on");
    resuming.abort();
    membership.shutdown().await;
    stop.cancel();
    if serving.await.is_err() {
        tracing::warn!("the API server ended badly");
    }
    if let Some(measuring) = measuring
        && measuring.await.is_err()
    {
        tracing::warn!("the metrics server ended badly");
    }
    engine.shutdown().await;
    Ok(())
}

/// The signals that stop the daemon.
struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn wait(mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
