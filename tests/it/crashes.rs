//! Daemons killed in the middle of something: nothing half-made stays, and everything works again.

use crate::harness::{TestCluster, eventually, with_cluster, with_hosts};
use crate::registry::{REGISTRY, Registry, Users, noise_layer};
use futures_util::future::join_all;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

/// Bytes of each of a large image's layers.
const LAYER_BYTES: usize = 24 << 20;
const LAYERS: usize = 3;

fn data_root(test: &TestCluster, host: &str) -> PathBuf {
    test.cluster().host(host).unwrap().dir.join("data")
}

async fn kill_daemon(test: &mut TestCluster, host: &str) {
    let host = test.cluster_mut().host_mut(host).unwrap();
    host.kill_daemon().await.unwrap();
}

fn names(dir: &Path) -> BTreeSet<String> {
    let Ok(entries) = std::fs::read_dir(dir) else {
        return BTreeSet::new();
    };
    entries
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

/// Bytes of all files below a directory; what vanishes meanwhile does not count.
fn bytes_below(dir: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(dir) else {
        return 0;
    };
    let size = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(meta) if meta.is_dir() => bytes_below(&entry.path()),
        Ok(meta) => meta.len(),
        Err(_) => 0,
    };
    entries.flatten().map(size).sum()
}

/// Waits, without a pause that could miss the moment, until so many bytes have come or the client has ended.
async fn has_come(dir: &Path, bytes: u64, client: &mut tokio::process::Child) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while bytes_below(dir) < bytes && client.try_wait().unwrap().is_none() {
        assert!(Instant::now() < deadline, "the pull stands still");
        tokio::task::yield_now().await;
    }
}

#[test]
fn root_daemon_killed_during_a_pull_leaves_nothing_half_visible() {
    with_hosts(1, 0, &["--insecure-registry", REGISTRY], async |test| {
        let registry = Registry::start(test, Users::Open).await;
        let (layers, sums): (Vec<_>, Vec<_>) = (0..LAYERS)
            .map(|number| noise_layer(&format!("noise{number}"), LAYER_BYTES))
            .unzip();
        registry.push("large", "1", &layers);
        let images = data_root(test, "manager1").join("images");
        let stored = |part: &str| names(&images.join(part));
        let (blobs, snapshots) = (stored("blobs/sha256"), stored("snapshots"));
        let image = format!("{REGISTRY}/large:1");
        let total = (LAYER_BYTES * LAYERS) as u64;
        let before = bytes_below(&images);
        let mut interrupted = 0;
        for percent in [1, 20, 45, 70, 95] {
            let host = test.cluster().host("manager1").unwrap();
            let mut pull = host
                .client(["pull", &image])
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .kill_on_drop(true)
                .spawn()
                .unwrap();
            has_come(&images, before + total * percent / 100, &mut pull).await;
            kill_daemon(test, "manager1").await;
            if !pull.wait().await.unwrap().success() {
                interrupted += 1;
            }
            test.cluster_mut().restart_daemon("manager1").await.unwrap();
            assert_eq!(stored("tmp"), BTreeSet::new(), "at {percent} %");
            let shown = test
                .shoal("manager1", "images --format {{.Repository}}")
                .await;
            if shown.contains("large") {
                // The pull was quicker than the kill.
                test.shoal("manager1", &format!("rmi {image}")).await;
            }
            assert_eq!(stored("blobs/sha256"), blobs, "at {percent} %");
            assert_eq!(stored("snapshots"), snapshots, "at {percent} %");
        }
        assert!(interrupted >= 3, "only {interrupted} pulls were cut short");

        test.shoal("manager1", &format!("pull -q {image}")).await;
        let line = format!("run --rm {image} busybox sha256sum noise0 noise1 noise2");
        let shown = test.shoal("manager1", &line).await;
        for sum in sums {
            assert!(
                shown.contains(sum.strip_prefix("sha256:").unwrap()),
                "{shown}"
            );
        }
        registry.stop(test).await;
    });
}

/// What a host's daemon has in the kernel for containers, by what each belongs to.
#[derive(Debug)]
struct Kernel {
    netns: BTreeSet<String>,
    links: usize,
    mounts: BTreeSet<String>,
    cgroups: BTreeSet<String>,
    shims: BTreeSet<String>,
}

impl Kernel {
    async fn look(test: &TestCluster, name: &str) -> Self {
        let host = test.cluster().host(name).unwrap();
        let containers = host.dir.join("data/containers");
        let id_of = |text: &str| {
            let rest = text.split_once(containers.to_str()?)?.1;
            let id = rest.trim_start_matches('/').split('/').next()?;
            Some(id.to_owned())
        };
        let mountinfo = format!("/proc/{}/mountinfo", host.init_pid.unwrap());
        let mountinfo = std::fs::read_to_string(mountinfo).unwrap();
        let shims = std::fs::read_dir("/proc").unwrap().flatten();
        let shims = shims.filter_map(|process| {
            let words = std::fs::read(process.path().join("cmdline")).ok()?;
            let words = String::from_utf8_lossy(&words).into_owned();
            words.contains("shim\0--bundle").then(|| id_of(&words))?
        });
        let links = host.run(["ip", "-o", "link", "show", "type", "veth"]).await;
        let links = links.unwrap();
        Self {
            netns: names(&host.dir.join("run/netns")),
            links: links.lines().filter(|line| !line.contains(" eth0")).count(),
            mounts: mountinfo
                .lines()
                .filter_map(|line| id_of(line.split(' ').nth(4)?))
                .collect(),
            cgroups: cgroups(&host.cgroup_parent),
            shims: shims.collect(),
        }
    }

    /// What differs from having everything for `running` and nothing else.
    fn differs(&self, running: &BTreeSet<String>) -> Option<String> {
        let fits = self.netns == *running
            && self.links == running.len()
            && self.cgroups == *running
            && self.shims == *running
            && self.mounts.is_subset(running);
        (!fits).then(|| format!("running: {running:#?}\nin the kernel: {self:#?}"))
    }
}

/// Containers with a cgroup below `parent`, in any hierarchy.
fn cgroups(parent: &str) -> BTreeSet<String> {
    let parent = parent.trim_start_matches('/');
    let root = Path::new("/sys/fs/cgroup");
    let hierarchies = names(root).into_iter().map(|name| root.join(name));
    let mut found = BTreeSet::new();
    for hierarchy in hierarchies.chain([root.to_owned()]) {
        let dir = hierarchy.join(parent);
        let below = names(&dir).into_iter();
        found.extend(below.filter(|name| dir.join(name).is_dir()));
    }
    found
}

async fn with_status(test: &TestCluster, host: &str, statuses: &[&str]) -> BTreeSet<String> {
    let line = "ps -a --no-trunc --format {{.ID}}|{{.State}}";
    let shown = test.shoal(host, line).await;
    let rows = shown.lines().filter_map(|line| line.split_once('|'));
    rows.filter(|(_, state)| statuses.contains(state))
        .map(|(id, _)| id.to_owned())
        .collect()
}

/// Every container runs or is recorded as not running, and the kernel has what the running ones need and no more.
async fn is_consistent(test: &TestCluster, host: &str) {
    eventually("records and kernel agree", async || {
        let all = with_status(test, host, &["created", "running", "exited"]).await;
        let listed = test.shoal(host, "ps -a -q --no-trunc").await;
        let others: Vec<_> = listed.lines().filter(|id| !all.contains(*id)).collect();
        if !others.is_empty() {
            return Err(format!("in no final state: {others:?}"));
        }
        let running = with_status(test, host, &["running"]).await;
        match Kernel::look(test, host).await.differs(&running) {
            None => Ok(()),
            Some(difference) => Err(difference),
        }
    })
    .await;
    let dirs = names(&data_root(test, host).join("containers"));
    let listed = test.shoal(host, "ps -a -q --no-trunc").await;
    let listed: BTreeSet<_> = listed.lines().map(str::to_owned).collect();
    assert_eq!(dirs, listed);
}

/// Starts so many containers at once, and kills the daemon when `reached` holds.
async fn kill_in_a_burst(test: &mut TestCluster, count: usize, reached: impl Fn(&Path) -> bool) {
    let host = test.cluster().host("manager1").unwrap();
    let containers = host.dir.join("data/containers");
    let clients: Vec<_> = (0..count)
        .map(|_| {
            let mut command = host.client(["run", "-d", "busybox", "sleep", "100000"]);
            command
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .kill_on_drop(true);
            command.spawn().unwrap()
        })
        .collect();
    let deadline = Instant::now() + Duration::from_secs(30);
    while !reached(&containers) {
        assert!(Instant::now() < deadline, "the burst stands still");
        tokio::task::yield_now().await;
    }
    kill_daemon(test, "manager1").await;
    join_all(clients.into_iter().map(|mut client| async move {
        client.wait().await.unwrap();
    }))
    .await;
}

#[test]
fn root_daemon_killed_during_container_starts_leaves_nothing_over() {
    with_hosts(1, 0, &[], async |test| {
        let visible = |containers: &Path| {
            let all = names(containers);
            all.iter().filter(|name| !name.starts_with('.')).count()
        };
        let with_file = |containers: &Path, file: &str| {
            let all = names(containers).into_iter();
            all.filter(|name| containers.join(name).join(file).exists())
                .count()
        };
        // First directories, first records, first shims, some of each.
        type Reached<'a> = &'a dyn Fn(&Path) -> bool;
        let points: [Reached<'_>; 5] = [
            &|containers| !names(containers).is_empty(),
            &|containers| visible(containers) >= 1,
            &|containers| with_file(containers, "bundle/config.json") >= 1,
            &|containers| with_file(containers, "bundle/config.json") >= 5,
            &|containers| with_file(containers, "bundle/config.json") >= 10,
        ];
        for reached in points {
            kill_in_a_burst(test, 12, reached).await;
            test.cluster_mut().restart_daemon("manager1").await.unwrap();
            is_consistent(test, "manager1").await;
            // What was only created can be started, what was found running is really reached.
            for id in with_status(test, "manager1", &["created"]).await {
                test.shoal("manager1", &format!("start {id}")).await;
            }
            for id in with_status(test, "manager1", &["running"]).await {
                test.shoal("manager1", &format!("exec {id} true")).await;
            }
            let all = test.shoal("manager1", "ps -a -q --no-trunc").await;
            if !all.is_empty() {
                let all = all.replace('\n', " ");
                test.shoal("manager1", &format!("rm -f {all}")).await;
            }
            is_consistent(test, "manager1").await;
            let kernel = Kernel::look(test, "manager1").await;
            assert_eq!(kernel.differs(&BTreeSet::new()), None);
        }
    });
}

#[test]
fn root_daemon_killed_while_tasks_start_runs_each_slot_once() {
    with_cluster(1, 1, async |test| {
        let line = "svc create -d --name web --replicas 12 --constraint node.role==worker --stop-signal SIGKILL busybox sleep 100000";
        test.shoal("manager1", line).await;
        let containers = data_root(test, "worker1").join("containers");
        eventually("some tasks have started", async || {
            let started = names(&containers).into_iter();
            let shims = started.filter(|name| containers.join(name).join("bundle").exists());
            match shims.count() {
                0..=2 => Err("none yet".to_owned()),
                _ => Ok(()),
            }
        })
        .await;
        kill_daemon(test, "worker1").await;
        test.cluster_mut().restart_daemon("worker1").await.unwrap();
        test.wait_running("manager1", "web", 12).await;
        eventually("one container per task", async || {
            let shown = test.shoal("worker1", "ps -q").await;
            match shown.lines().count() {
                12 => Ok(()),
                other => Err(format!("{other} run")),
            }
        })
        .await;
        is_consistent(test, "worker1").await;
        test.shoal("manager1", "svc rm web").await;
        eventually("all are gone", async || {
            let left = test.shoal("worker1", "ps -a -q").await;
            if left.is_empty() { Ok(()) } else { Err(left) }
        })
        .await;
        is_consistent(test, "worker1").await;
    });
}
