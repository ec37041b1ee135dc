//! The daemon's numbers for monitoring. docs/metrics.md lists them.

use super::joined::Joined;
use shoal_agent::agent::SessionState;
use shoal_engine::EngineHandle;
use shoal_manager::ManagerHandle;
use shoal_manager::consensus::Leadership;
use shoal_overlay_net::metrics::{Exposition, MetricKind, OverlayMetrics};
use std::collections::BTreeMap;
use std::time::Duration;

/// How long a part of the daemon has for its numbers; without them the rest is told.
const PART_MAX: Duration = Duration::from_secs(2);

/// Numbers of everything that runs now.
pub(crate) async fn render(engine: &EngineHandle, joined: Option<&Joined>) -> String {
    let mut out = Exposition::new();
    write_build(&mut out);
    write_process(&mut out);
    write_engine(&mut out, engine).await;
    if let Some(joined) = joined {
        write_agent(&mut out, joined);
        if let Some(manager) = &*joined.manager.load() {
            write_manager(&mut out, manager);
        }
    }
    if let Some(overlay) = engine.overlay() {
        match tokio::time::timeout(PART_MAX, overlay.metrics()).await {
            Ok(metrics) => OverlayMetrics::write(&metrics, &mut out),
            Err(_) => tracing::warn!("the overlay network does not tell its numbers"),
        }
    }
    out.finish()
}

fn write_build(out: &mut Exposition) {
    let commit = option_env!("SHOAL_GIT_COMMIT").unwrap_or("unknown");
    out.family(
        MetricKind::Gauge,
        "shoal_build_info",
        "The running program; always 1.",
        ["version", "commit"],
        [([env!("CARGO_PKG_VERSION"), commit], 1.0)],
    );
}

/// The names of Prometheus' own client libraries.
fn write_process(out: &mut Exposition) {
    let process = match Process::read() {
        Ok(process) => process,
        Err(err) => {
            tracing::debug!(%err, "the daemon's own numbers can't be read");
            return;
        }
    };
    out.family(
        MetricKind::Counter,
        "process_cpu_seconds_total",
        "CPU time of the daemon.",
        [],
        [([], process.cpu_seconds)],
    );
    out.family(
        MetricKind::Gauge,
        "process_resident_memory_bytes",
        "Resident memory of the daemon.",
        [],
        [([], process.resident_bytes as f64)],
    );
    out.family(
        MetricKind::Gauge,
        "process_open_fds",
        "Open file descriptors of the daemon.",
        [],
        [([], process.open_fds as f64)],
    );
}

struct Process {
    cpu_seconds: f64,
    resident_bytes: u64,
    open_fds: usize,
}

impl Process {
    fn read() -> std::io::Result<Self> {
        use nix::sys::resource::{UsageWho, getrusage};
        use nix::sys::time::TimeValLike;
        let statm = std::fs::read_to_string("/proc/self/statm")?;
        let pages = statm.split(' ').nth(1).and_then(|word| word.parse().ok());
        let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE)?.unwrap_or(4096);
        let usage = getrusage(UsageWho::RUSAGE_SELF)?;
        let cpu = usage.user_time() + usage.system_time();
        Ok(Self {
            cpu_seconds: cpu.num_microseconds() as f64 / 1e6,
            resident_bytes: pages.unwrap_or(0) * u64::try_from(page).unwrap_or(4096),
            open_fds: std::fs::read_dir("/proc/self/fd")?.count(),
        })
    }
}

async fn write_engine(out: &mut Exposition, engine: &EngineHandle) {
    let info = match tokio::time::timeout(PART_MAX, engine.info()).await {
        Ok(Ok(info)) => info,
        Ok(Err(err)) => {
            tracing::warn!(%err, "the engine does not tell its numbers");
            return;
        }
        Err(_) => {
            tracing::warn!("the engine does not tell its numbers in time");
            return;
        }
    };
    let states = [
        ("running", info.containers_running),
        ("paused", info.containers_paused),
        ("stopped", info.containers_stopped),
    ];
    out.family(
        MetricKind::Gauge,
        "shoal_containers",
        "Containers of this node by state.",
        ["state"],
        states.map(|(state, count)| ([state], count as f64)),
    );
    out.family(
        MetricKind::Gauge,
        "shoal_images",
        "Images of this node.",
        [],
        [([], info.images as f64)],
    );
}

fn write_agent(out: &mut Exposition, joined: &Joined) {
    let open = matches!(
        *joined.agent.session_state().borrow(),
        SessionState::Open { .. }
    );
    out.family(
        MetricKind::Gauge,
        "shoal_session_open",
        "1 if the node has a session with the leading manager.",
        [],
        [([], f64::from(u8::from(open)))],
    );
    let mut states: BTreeMap<&str, u64> = BTreeMap::new();
    for (_, status) in joined.agent.statuses() {
        *states.entry(status.state.as_str()).or_default() += 1;
    }
    out.family(
        MetricKind::Gauge,
        "shoal_tasks",
        "Tasks of services on this node by observed state.",
        ["state"],
        states
            .iter()
            .map(|(state, count)| ([*state], *count as f64)),
    );
}

fn write_manager(out: &mut Exposition, manager: &ManagerHandle) {
    let leadership = manager.consensus().leadership().borrow().clone();
    out.family(
        MetricKind::Gauge,
        "shoal_raft_leader",
        "1 if this manager leads, 0 if it follows.",
        [],
        [([], f64::from(u8::from(leadership.is_leader())))],
    );
    if let Leadership::Leader { term } = leadership {
        out.family(
            MetricKind::Gauge,
            "shoal_raft_term",
            "Term of the leader; only the leader tells it.",
            [],
            [([], term as f64)],
        );
    }
    out.family(
        MetricKind::Gauge,
        "shoal_raft_applied_index",
        "Index of the last entry that this manager's store has applied.",
        [],
        [([], manager.store().view().version().0 as f64)],
    );
}
