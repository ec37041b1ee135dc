//! The main job on one machine, shown and verified step by step: `shoal playground demo`.

use crate::host::{DaemonOptions, wait_until_async};
use crate::{Cluster, ClusterOptions, PlaygroundError, check_machine, shop, write_demo_image};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Replicas of the demo's service.
const REPLICAS: usize = 6;
/// Replicas after scaling up.
const REPLICAS_SCALED: usize = 12;
/// Longest time for anything to come about; the demo shows how long it really took.
pub(crate) const STEP_MAX: Duration = Duration::from_secs(60);
/// Name of the demo's image.
pub(crate) const IMAGE: &str = "shoal-demo:latest";

/// Why the demo did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// The machine can't do it.
    #[error(transparent)]
    Machine(#[from] crate::MissingFeature),
    /// A step failed.
    #[error("step `{step}` failed")]
    Step {
        /// Which.
        step: String,
        /// Why.
        #[source]
        err: PlaygroundError,
    },
    /// Interrupted by the user.
    #[error("interrupted; everything was removed")]
    Interrupted,
}

/// Prints the steps with their times.
struct Progress {
    start: Instant,
}

impl Progress {
    /// Runs one step and prints how long it took.
    async fn step<T>(
        &self,
        name: &str,
        work: impl Future<Output = Result<(T, String), PlaygroundError>>,
    ) -> Result<T, DemoError> {
        let start = Instant::now();
        match work.await {
            Ok((value, note)) => {
                let (total, took) = (self.start.elapsed(), start.elapsed());
                println!(
                    "[{:6.2} s] {name}: {note} ({} ms)",
                    total.as_secs_f32(),
                    took.as_millis()
                );
                Ok(value)
            }
            Err(err) => Err(DemoError::Step {
                step: name.to_owned(),
                err,
            }),
        }
    }
}

/// One line of `svc ps`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Row {
    id: String,
    name: String,
    node: String,
}

/// Starts a cluster of three managers and two workers, runs a service on it, kills a worker and the leader, scales, and
/// removes everything. Every step is verified.
///
/// # Errors
/// The first step that failed. Everything is removed in any case.
pub async fn demo(exe: PathBuf, dir: PathBuf) -> Result<(), DemoError> {
    check_machine()?;
    let mut interrupt = Interrupt::listen();
    let progress = Progress {
        start: Instant::now(),
    };
    let options = ClusterOptions {
        dir,
        exe,
        managers: 3,
        workers: 2,
        tethered: true,
        daemon: DaemonOptions::default(),
    };
    let power_on = async {
        let cluster = Cluster::power_on(options.clone()).await?;
        Ok((
            cluster,
            "3 managers, 2 workers, each with its own daemon".to_owned(),
        ))
    };
    // Not cut short by an interrupt: what is half made could not be removed.
    let powered = progress.step("hosts started", power_on).await;
    if powered.is_err() && interrupt.has_come() {
        return Err(DemoError::Interrupted);
    }
    let mut cluster = powered?;
    let outcome = tokio::select! {
        biased;
        () = interrupt.comes() => Err(DemoError::Interrupted),
        outcome = show(&progress, &mut cluster, &options) => outcome,
    };
    let removed = progress
        .step("playground removed", async {
            cluster.remove().await?;
            Ok(((), "no process, mount, link or cgroup is left".to_owned()))
        })
        .await;
    outcome.and(removed)
}

/// SIGINT and SIGTERM, remembered from the moment at which it is listened to them.
struct Interrupt(Vec<tokio::signal::unix::Signal>);

impl Interrupt {
    fn listen() -> Self {
        use tokio::signal::unix::{SignalKind, signal};
        let kinds = [SignalKind::interrupt(), SignalKind::terminate()];
        // One that can't be listened to ends the process at once, as by default.
        Self(
            kinds
                .into_iter()
                .filter_map(|kind| signal(kind).ok())
                .collect(),
        )
    }

    async fn comes(&mut self) {
        let waits = self.0.iter_mut().map(|signal| Box::pin(signal.recv()));
        let waits: Vec<_> = waits.collect();
        if waits.is_empty() {
            return std::future::pending().await;
        }
        futures_util::future::select_all(waits).await;
    }

    fn has_come(&mut self) -> bool {
        futures_util::FutureExt::now_or_never(self.comes()).is_some()
    }
}

async fn show(
    progress: &Progress,
    cluster: &mut Cluster,
    options: &ClusterOptions,
) -> Result<(), DemoError> {
    progress.step("cluster formed", form(cluster)).await?;
    progress
        .step(
            "image imported on every host",
            import_image(cluster, options),
        )
        .await?;
    progress
        .step("svc create --replicas 6", create_service(cluster))
        .await?;
    print_tables(cluster, "manager1").await?;
    progress
        .step(
            "network create, svc create --network --publish",
            shop::publish(cluster),
        )
        .await?;
    progress
        .step(
            "run --network, service asked by name",
            shop::ask_by_name(cluster, "worker2"),
        )
        .await?;
    progress
        .step("worker host killed, tasks replaced", kill_worker(cluster))
        .await?;
    print_tables(cluster, "manager1").await?;
    progress
        .step(
            "published port on the hosts that are left",
            shop::ask_every_host(cluster),
        )
        .await?;
    let survivor = progress
        .step("leader's host killed under writes", kill_leader(cluster))
        .await?;
    progress
        .step("svc scale web=12", scale(cluster, &survivor))
        .await?;
    print_tables(cluster, &survivor).await?;
    progress
        .step("svc rm shop", shop::remove(cluster, &survivor))
        .await?;
    progress
        .step("svc rm", remove_service(cluster, &survivor))
        .await
}

async fn print_tables(cluster: &Cluster, on: &str) -> Result<(), DemoError> {
    for args in [vec!["node", "ls"], vec!["svc", "ps", "web"]] {
        let step = format!("shoal {}", args.join(" "));
        let shown = async { cluster.host(on)?.shoal(&args).await }.await;
        let table = shown.map_err(|err| DemoError::Step {
            step: step.clone(),
            err,
        })?;
        println!("\n$ {step}\n{table}");
    }
    Ok(())
}

async fn form(cluster: &Cluster) -> Result<((), String), PlaygroundError> {
    cluster.join_all().await?;
    let first = cluster.host("manager1")?;
    let wanted = cluster.state.hosts.len();
    wait_until_async("every node is ready", STEP_MAX, async || {
        let ready = first
            .shoal(["node", "ls", "--format", "{{.Status}}"])
            .await?;
        let count = ready
            .lines()
            .filter(|line| line.eq_ignore_ascii_case("ready"))
            .count();
        Ok(if count == wanted { Ok(()) } else { Err(ready) })
    })
    .await?;
    Ok(((), format!("{wanted} nodes ready")))
}

async fn import_image(
    cluster: &Cluster,
    options: &ClusterOptions,
) -> Result<((), String), PlaygroundError> {
    let archive = options.dir.join("demo-image.tar");
    write_demo_image(&options.exe, &archive)?;
    let entrypoint = r#"ENTRYPOINT ["/shoal", "playground", "web"]"#;
    let archive = archive.display().to_string();
    let imports = cluster
        .state
        .hosts
        .iter()
        .map(|host| host.shoal(["import", "--change", entrypoint, &archive, IMAGE]));
    futures_util::future::try_join_all(imports).await?;
    Ok(((), IMAGE.to_owned()))
}

/// The tasks of `web` that run, as `svc ps` shows them.
async fn running(cluster: &Cluster, on: &str) -> Result<BTreeSet<Row>, PlaygroundError> {
    let format = "{{.ID}}\t{{.Name}}\t{{.Node}}\t{{.CurrentState}}";
    let filter = [
        "--filter",
        "desired-state=running",
        "--no-trunc",
        "--format",
        format,
    ];
    let args = ["svc", "ps", "web"].into_iter().chain(filter);
    let shown = cluster.host(on)?.shoal(args).await?;
    let rows = shown.lines().filter_map(|line| {
        let mut columns = line.split('\t').map(str::to_owned);
        let (id, name, node, state) = (
            columns.next()?,
            columns.next()?,
            columns.next()?,
            columns.next()?,
        );
        state
            .starts_with("Running")
            .then_some(Row { id, name, node })
    });
    Ok(rows.collect())
}

/// Waits until exactly `count` tasks run, one per slot, none of them on `not_on`.
async fn wait_for_running(
    cluster: &Cluster,
    on: &str,
    count: usize,
    not_on: &[&str],
) -> Result<BTreeSet<Row>, PlaygroundError> {
    let what = format!("{count} tasks run, one per slot");
    wait_until_async(&what, STEP_MAX, async || {
        let rows = running(cluster, on).await?;
        let slots: BTreeSet<_> = rows.iter().map(|row| &row.name).collect();
        let misplaced = rows.iter().any(|row| not_on.contains(&row.node.as_str()));
        let there = rows.len() == count && slots.len() == count && !misplaced;
        Ok(if there {
            Ok(rows)
        } else {
            Err(format!("{rows:?}"))
        })
    })
    .await
}

async fn create_service(cluster: &Cluster) -> Result<((), String), PlaygroundError> {
    let replicas = REPLICAS.to_string();
    let first = cluster.host("manager1")?;
    let args = [
        "svc",
        "create",
        "--quiet",
        "--name",
        "web",
        "--replicas",
        &replicas,
        IMAGE,
    ];
    first.shoal(args).await?;
    let rows = wait_for_running(cluster, "manager1", REPLICAS, &[]).await?;
    let nodes: BTreeSet<_> = rows.iter().map(|row| &row.node).collect();
    Ok(((), format!("{REPLICAS} tasks run on {} nodes", nodes.len())))
}

async fn kill_worker(cluster: &mut Cluster) -> Result<((), String), PlaygroundError> {
    let before = running(cluster, "manager1").await?;
    let lost = before.iter().filter(|row| row.node == "worker1").count();
    let killed = Instant::now();
    cluster.host("worker1")?.strike()?;
    let after = wait_for_running(cluster, "manager1", REPLICAS, &["worker1"]).await?;
    let kept = before
        .iter()
        .filter(|row| row.node != "worker1")
        .all(|row| after.contains(row));
    if !kept {
        let text = format!("tasks of other nodes were replaced as well: {before:?} → {after:?}");
        return Err(PlaygroundError::State(text));
    }
    let seconds = killed.elapsed().as_secs_f32();
    cluster.host_mut("worker1")?.kill().await?;
    Ok((
        (),
        format!("{lost} tasks lost and running elsewhere after {seconds:.2} s, no other touched"),
    ))
}

/// Who leads, as a manager sees it.
async fn leader(cluster: &Cluster, on: &str) -> Result<Option<String>, PlaygroundError> {
    let args = ["node", "ls", "--format", "{{.Hostname}} {{.ManagerStatus}}"];
    let shown = cluster.host(on)?.shoal(args).await?;
    let leads = shown.lines().find_map(|line| line.strip_suffix(" Leader"));
    Ok(leads.map(str::to_owned))
}

/// Kills the leader's host while services are being made through another manager; afterwards every acknowledged one
/// must be there. Answers a surviving manager.
async fn kill_leader(cluster: &mut Cluster) -> Result<(String, String), PlaygroundError> {
    const WRITES_BEFORE: usize = 5;
    const WRITES_AFTER: usize = 10;
    let leading = leader(cluster, "manager1").await?;
    let leading =
        leading.ok_or_else(|| PlaygroundError::State("`node ls` shows no leader".to_owned()))?;
    let managers = ["manager1", "manager2", "manager3"];
    let survivor = managers
        .into_iter()
        .find(|name| *name != leading)
        .unwrap_or("manager2");
    let mut acknowledged = Vec::new();
    let mut gap = Duration::ZERO;
    let mut last = Instant::now();
    while acknowledged.len() < WRITES_BEFORE + WRITES_AFTER {
        if acknowledged.len() == WRITES_BEFORE {
            last = Instant::now();
            cluster.host(&leading)?.strike()?;
        }
        let name = format!("write{}", acknowledged.len());
        write_one(cluster, survivor, &name).await?;
        if acknowledged.len() == WRITES_BEFORE {
            gap = last.elapsed();
        }
        acknowledged.push(name);
    }
    let found = cluster
        .host(survivor)?
        .shoal(["svc", "ls", "--format", "{{.Name}}"])
        .await?;
    let found: BTreeSet<_> = found.lines().collect();
    if let Some(lost) = acknowledged
        .iter()
        .find(|name| !found.contains(name.as_str()))
    {
        return Err(PlaygroundError::State(format!(
            "acknowledged write `{lost}` is lost"
        )));
    }
    wait_for_running(cluster, survivor, REPLICAS, &["worker1", &leading]).await?;
    cluster.host_mut(&leading)?.kill().await?;
    let remove = ["svc", "rm"]
        .into_iter()
        .chain(acknowledged.iter().map(String::as_str));
    cluster.host(survivor)?.shoal(remove).await?;
    let gap = gap.as_millis();
    let note = format!(
        "{leading} led; next write acknowledged after {gap} ms, {} of {} acknowledged writes found",
        acknowledged.len(),
        acknowledged.len()
    );
    Ok((survivor.to_owned(), note))
}

/// One write: a service without replicas. Only success counts as acknowledged, so a refusal is tried again.
async fn write_one(cluster: &Cluster, on: &str, name: &str) -> Result<(), PlaygroundError> {
    let args = [
        "svc",
        "create",
        "-d",
        "-q",
        "--name",
        name,
        "--replicas",
        "0",
        IMAGE,
    ];
    wait_until_async(
        &format!("service `{name}` is accepted"),
        STEP_MAX,
        async || {
            match cluster.host(on)?.shoal(args).await {
                Ok(_) => Ok(Ok(())),
                // An earlier try may have been applied although its answer was lost.
                Err(PlaygroundError::Command { stderr, .. }) if stderr.contains("in use") => {
                    Ok(Ok(()))
                }
                Err(error @ PlaygroundError::Command { .. }) => Ok(Err(error.to_string())),
                Err(error) => Err(error),
            }
        },
    )
    .await
}

async fn scale(cluster: &Cluster, on: &str) -> Result<((), String), PlaygroundError> {
    let wanted = format!("web={REPLICAS_SCALED}");
    cluster
        .host(on)?
        .shoal(["svc", "scale", "-d", &wanted])
        .await?;
    wait_for_running(cluster, on, REPLICAS_SCALED, &[]).await?;
    Ok((
        (),
        format!("{REPLICAS_SCALED} tasks run on the 3 nodes that are left"),
    ))
}

async fn remove_service(cluster: &Cluster, on: &str) -> Result<((), String), PlaygroundError> {
    cluster.host(on)?.shoal(["svc", "rm", "web"]).await?;
    let alive: Vec<_> = cluster
        .state
        .hosts
        .iter()
        .filter(|host| host.init_pid.is_some())
        .collect();
    wait_until_async("no container is left", STEP_MAX, async || {
        for host in &alive {
            let left = host.shoal(["ps", "-a", "-q"]).await?;
            if !left.trim().is_empty() {
                return Ok(Err(format!("on {}: {left}", host.name)));
            }
        }
        Ok(Ok(()))
    })
    .await?;
    Ok(((), format!("no container is left on {} nodes", alive.len())))
}
