//! Clusters for tests, and waiting for conditions.

use crate::busybox::busybox_root;
use shoal_playground::{Cluster, ClusterOptions, DaemonOptions, PlaygroundError};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Longest time for anything in a test to come about.
pub(crate) const SOON: Duration = Duration::from_secs(30);
/// How often a condition is looked at again.
const POLL_PERIOD: Duration = Duration::from_millis(20);

/// One cluster at a time.
static MACHINE: Mutex<()> = Mutex::new(());

/// The `shoal` program: beside the test program, where cargo puts it.
pub(crate) fn shoal_program() -> PathBuf {
    if let Some(path) = std::env::var_os("SHOAL_BIN") {
        return path.into();
    }
    let own = std::env::current_exe().unwrap();
    let profile_dir = own.ancestors().nth(2).unwrap();
    let program = profile_dir.join("shoal");
    assert!(
        program.exists(),
        "`{}` is not there: build it with `cargo build --package shoal-cli`",
        program.display()
    );
    program
}

/// A cluster of its own for one test. Everything is removed at its end, also when the test fails.
pub(crate) struct TestCluster {
    cluster: Option<Cluster>,
    runtime: tokio::runtime::Handle,
    dir: tempfile::TempDir,
    failed: bool,
    _machine: MutexGuard<'static, ()>,
}

/// Runs `body` with a cluster of so many managers and workers, all ready, with the image `busybox` on each.
pub(crate) fn with_cluster<F>(managers: u8, workers: u8, body: F)
where
    F: AsyncFnOnce(&mut TestCluster),
{
    with_hosts(managers, workers, &[], async |test| {
        test.cluster().join_all().await.unwrap();
        test.wait_ready(usize::from(managers) + usize::from(workers))
            .await;
        body(test).await;
    });
}

/// Runs `body` with hosts that have daemons with these arguments and the image `busybox`, but no cluster.
pub(crate) fn with_hosts<F>(managers: u8, workers: u8, daemon_args: &[&str], body: F)
where
    F: AsyncFnOnce(&mut TestCluster),
{
    assert!(
        nix::unistd::geteuid().is_root(),
        "multi-host tests make namespaces: run as root"
    );
    let machine = MACHINE.lock().unwrap_or_else(PoisonError::into_inner);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let dir = tempfile::Builder::new()
        .prefix("shoal-it-")
        .tempdir()
        .unwrap();
    let options = ClusterOptions {
        dir: dir.path().join("pg"),
        exe: shoal_program(),
        managers,
        workers,
        tethered: true,
        daemon: DaemonOptions {
            args: daemon_args.iter().map(|arg| (*arg).to_owned()).collect(),
        },
    };
    let cluster = runtime.block_on(Cluster::power_on(options)).unwrap();
    let mut test = TestCluster {
        cluster: Some(cluster),
        runtime: runtime.handle().clone(),
        dir,
        failed: true,
        _machine: machine,
    };
    runtime.block_on(async {
        test.import_busybox().await;
        body(&mut test).await;
    });
    test.failed = false;
    test.remove();
}

impl TestCluster {
    pub(crate) fn cluster(&self) -> &Cluster {
        self.cluster.as_ref().unwrap()
    }

    pub(crate) fn cluster_mut(&mut self) -> &mut Cluster {
        self.cluster.as_mut().unwrap()
    }

    /// A folder of the test's own.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Runs the client on a host; a failure fails the test.
    pub(crate) async fn shoal(&self, host: &str, line: &str) -> String {
        match self.try_shoal(host, line).await {
            Ok(output) => output,
            Err(error) => panic!("{error}"),
        }
    }

    /// Runs the client on a host. Words are split at blanks.
    pub(crate) async fn try_shoal(
        &self,
        host: &str,
        line: &str,
    ) -> Result<String, PlaygroundError> {
        self.cluster()
            .host(host)?
            .shoal(line.split_whitespace())
            .await
    }

    /// Runs the client on a host where it must fail; answers what it said.
    pub(crate) async fn refused(&self, host: &str, line: &str) -> String {
        match self.try_shoal(host, line).await {
            Err(PlaygroundError::Command { stderr, .. }) => stderr,
            other => panic!("`shoal {line}` should have been refused, but: {other:?}"),
        }
    }

    /// Runs the docker client against a host's daemon; a failure fails the test.
    pub(crate) async fn docker(&self, host: &str, args: &[&str]) -> String {
        let (ok, out, err) = self.try_docker(host, args).await;
        assert!(ok, "docker {args:?}: {err}");
        out
    }

    /// Runs the docker client: success, standard output, standard error.
    pub(crate) async fn try_docker(&self, host: &str, args: &[&str]) -> (bool, String, String) {
        let socket = self.cluster().host(host).unwrap().socket();
        let output = tokio::process::Command::new("docker")
            .env("DOCKER_HOST", format!("unix://{}", socket.display()))
            .env("DOCKER_CONFIG", self.dir().join("docker-config"))
            .args(args)
            .stdin(std::process::Stdio::null())
            .output()
            .await
            .unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (
            output.status.success(),
            text(&output.stdout),
            text(&output.stderr),
        )
    }

    async fn import_busybox(&self) {
        let archive = self.dir().join("busybox.tar");
        std::fs::write(&archive, busybox_root()).unwrap();
        for host in &self.cluster().state.hosts {
            let archive = archive.display().to_string();
            host.shoal(["import", &archive, "busybox:latest"])
                .await
                .unwrap();
        }
    }

    /// Waits until `node ls` shows so many ready nodes.
    pub(crate) async fn wait_ready(&self, count: usize) {
        eventually("all nodes are ready", async || {
            let shown = self.shoal("manager1", "node ls --format {{.Status}}").await;
            let ready = shown.lines().filter(|line| *line == "Ready").count();
            if ready == count { Ok(()) } else { Err(shown) }
        })
        .await;
    }

    /// The running tasks of a service: name to node.
    pub(crate) async fn running(&self, on: &str, service: &str) -> Vec<(String, String)> {
        let line = format!(
            "svc ps {service} --no-trunc --filter desired-state=running --format {{{{.Name}}}}|{{{{.Node}}}}|{{{{.CurrentState}}}}"
        );
        let shown = self.shoal(on, &line).await;
        let mut rows: Vec<_> = shown
            .lines()
            .filter_map(|line| {
                let mut columns = line.split('|').map(str::to_owned);
                let (name, node, state) = (columns.next()?, columns.next()?, columns.next()?);
                state.starts_with("Running").then_some((name, node))
            })
            .collect();
        rows.sort();
        rows
    }

    /// Waits until exactly `count` tasks of a service run, one per slot.
    pub(crate) async fn wait_running(
        &self,
        on: &str,
        service: &str,
        count: usize,
    ) -> Vec<(String, String)> {
        eventually(&format!("{count} tasks of `{service}` run"), async || {
            let rows = self.running(on, service).await;
            let slots: std::collections::BTreeSet<_> = rows.iter().map(|(name, _)| name).collect();
            if rows.len() == count && slots.len() == count {
                Ok(rows)
            } else {
                Err(format!("{rows:?}"))
            }
        })
        .await
    }

    /// How many tasks each node runs.
    pub(crate) fn per_node(rows: &[(String, String)]) -> BTreeMap<&str, usize> {
        let mut counts = BTreeMap::new();
        for (_, node) in rows {
            *counts.entry(node.as_str()).or_default() += 1;
        }
        counts
    }

    /// The manager that leads, as `on` sees it.
    pub(crate) async fn leader(&self, on: &str) -> String {
        eventually("there is a leader", async || {
            let shown = self
                .cluster()
                .host(on)
                .unwrap()
                .shoal(["node", "ls", "--format", "{{.Hostname}} {{.ManagerStatus}}"])
                .await
                .map_err(|error| error.to_string())?;
            let leader = shown.lines().find_map(|line| line.strip_suffix(" Leader"));
            leader.map(str::to_owned).ok_or(shown.clone())
        })
        .await
    }

    /// A manager that does not lead.
    pub(crate) async fn follower(&self) -> String {
        let leader = self.leader("manager1").await;
        let managers = ["manager1", "manager2", "manager3"];
        managers
            .into_iter()
            .find(|name| *name != leader)
            .unwrap()
            .to_owned()
    }

    fn remove(&mut self) {
        let Some(cluster) = self.cluster.take() else {
            return;
        };
        if self.failed {
            for host in &cluster.state.hosts {
                let log = std::fs::read_to_string(host.log_path()).unwrap_or_default();
                let tail: Vec<_> = log.lines().rev().take(40).collect();
                let text = tail.into_iter().rev().collect::<Vec<_>>().join("\n");
                // To the stream itself: what print macros write is captured and shown much later.
                drop(writeln!(
                    std::io::stderr(),
                    "--- log of {}\n{text}",
                    host.name
                ));
            }
        }
        let runtime = self.runtime.clone();
        // Not on a thread of the runtime: this also runs while a panic unwinds.
        let removed = std::thread::spawn(move || {
            let local = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            drop(runtime);
            local.block_on(cluster.remove())
        })
        .join()
        .unwrap();
        if !self.failed {
            removed.unwrap();
        }
    }
}

impl Drop for TestCluster {
    fn drop(&mut self) {
        self.remove();
    }
}

/// Looks at `condition` until it holds; its error says what was seen instead.
pub(crate) async fn eventually<T>(
    what: &str,
    condition: impl AsyncFnMut() -> Result<T, String>,
) -> T {
    within(SOON, what, condition).await
}

/// Like [`eventually`], with its own limit.
pub(crate) async fn within<T>(
    limit: Duration,
    what: &str,
    mut condition: impl AsyncFnMut() -> Result<T, String>,
) -> T {
    let start = Instant::now();
    loop {
        let last = match condition().await {
            Ok(value) => return value,
            Err(last) => last,
        };
        assert!(
            start.elapsed() < limit,
            "not within {limit:?}: {what}; last seen: {last}"
        );
        tokio::time::sleep(POLL_PERIOD).await;
    }
}
