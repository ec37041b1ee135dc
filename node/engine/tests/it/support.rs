//! Engines of tests, the image they run, and the harness.

use futures_util::StreamExt as _;
use shoal_engine::{
    ContainerConfig, ContainerInfo, EngineHandle, EngineOptions, LogOptions, RemoveOptions,
    WaitCondition,
};
use std::io::Write as _;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

/// A test: its name and what it does.
pub(crate) type Test = (&'static str, fn());

/// Runs the tests whose names contain the first argument; `--list` lists.
pub(crate) fn run_all(groups: &[&[Test]]) -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let filter = args.iter().find(|arg| !arg.starts_with('-'));
    let tests = groups.iter().copied().flatten();
    let wanted =
        tests.filter(|(name, _)| filter.is_none_or(|filter| name.contains(filter.as_str())));
    if args.iter().any(|arg| arg == "--list") {
        wanted.for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: these tests need root");
        return ExitCode::SUCCESS;
    }
    let mut failed = 0;
    for (name, test) in wanted {
        let started = Instant::now();
        let passed = std::panic::catch_unwind(AssertUnwindSafe(test)).is_ok();
        let word = if passed { "ok" } else { "FAILED" };
        println!("test {name} ... {word} ({:?})", started.elapsed());
        failed += u32::from(!passed);
    }
    if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Runs a test's future on a runtime like the daemon's.
pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(future)
}

/// The directories of one engine, removed at the end.
pub(crate) struct Site {
    dir: tempfile::TempDir,
    subnet: u8,
}

static NEXT_SUBNET: AtomicU8 = AtomicU8::new(1);

/// Takes away what a test that failed has left: processes, namespaces, links, rules, control groups.
impl Drop for Site {
    fn drop(&mut self) {
        let options = self.options();
        let dir = self.path().to_owned();
        let sweep = std::thread::spawn(move || {
            block_on(async {
                for entry in std::fs::read_dir(dir.join("data/containers"))
                    .into_iter()
                    .flatten()
                    .flatten()
                {
                    let found =
                        shoal_runtime::ShimHandle::attach_existing(&entry.path().join("bundle"))
                            .await;
                    if let Ok(shoal_runtime::Existing::Alive(shim)) = found {
                        drop(shim.delete(true).await);
                    }
                }
                let tag = shoal_overlay_net::InstanceTag::derive(&options.instance);
                let net = shoal_overlay_net::LocalNet::open(tag).unwrap();
                for entry in std::fs::read_dir(dir.join("run/netns"))
                    .into_iter()
                    .flatten()
                    .flatten()
                {
                    drop(net.delete_netns(&entry.path()).await);
                }
                net.remove_everything().await.unwrap();
            });
            for hierarchy in std::fs::read_dir("/sys/fs/cgroup")
                .into_iter()
                .flatten()
                .flatten()
            {
                let group = hierarchy
                    .path()
                    .join(options.cgroup_parent.trim_start_matches('/'));
                drop(std::fs::remove_dir(group));
            }
            drop(std::fs::remove_dir(format!(
                "/sys/fs/cgroup{}",
                options.cgroup_parent
            )));
        });
        assert!(
            sweep.join().is_ok(),
            "a test's leavings could not be removed"
        );
    }
}

impl Site {
    pub(crate) fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            subnet: NEXT_SUBNET.fetch_add(1, Ordering::Relaxed),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// The settings of its engine.
    pub(crate) fn options(&self) -> EngineOptions {
        options(self.path(), self.subnet)
    }

    pub(crate) fn subnet(&self) -> u8 {
        self.subnet
    }

    pub(crate) async fn engine(&self) -> EngineHandle {
        EngineHandle::start(self.options()).await.unwrap()
    }

    /// An engine with the test image.
    pub(crate) async fn engine_with_image(&self) -> EngineHandle {
        let engine = self.engine().await;
        import(&engine).await;
        engine
    }

    /// Files in the namespace directory: one per pinned namespace.
    pub(crate) fn namespaces(&self) -> usize {
        std::fs::read_dir(self.path().join("run/netns")).map_or(0, Iterator::count)
    }

    /// Directories of containers, hidden ones too.
    pub(crate) fn container_dirs(&self) -> usize {
        std::fs::read_dir(self.path().join("data/containers")).map_or(0, Iterator::count)
    }

    /// Links of this engine beside its bridge.
    pub(crate) fn links(&self) -> usize {
        let tag = shoal_overlay_net::InstanceTag::derive(&self.options().instance);
        let prefix = format!("s{}v", tag.as_str());
        std::fs::read_dir("/sys/class/net")
            .unwrap()
            .flatten()
            .filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix))
            .count()
    }

    /// Shims of this engine.
    pub(crate) fn shims(&self) -> usize {
        let mark = self.path().to_string_lossy().into_owned();
        std::fs::read_dir("/proc")
            .unwrap()
            .flatten()
            .filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok())
            .filter(|line| {
                let line = String::from_utf8_lossy(line);
                line.contains("shim\0--bundle") && line.contains(&mark)
            })
            .count()
    }

    /// Waits until nothing of any container is left.
    pub(crate) async fn assert_clean(&self) {
        eventually(
            "no namespace, link, shim or container directory is left",
            || {
                let left = (
                    self.namespaces(),
                    self.links(),
                    self.shims(),
                    self.container_dirs(),
                );
                if left == (0, 0, 0, 0) {
                    Ok(())
                } else {
                    Err(format!("{left:?}"))
                }
            },
        )
        .await;
    }

    /// Removes every container, ends the engine and lets the site go.
    pub(crate) async fn close(self, engine: EngineHandle) {
        let all = shoal_engine::ListFilter {
            all: true,
            ..Default::default()
        };
        for info in engine.list(all).await.unwrap() {
            let options = RemoveOptions {
                force: true,
                volumes: true,
            };
            engine.remove(&info.id.to_string(), options).await.unwrap();
        }
        self.assert_clean().await;
        engine.shutdown().await;
    }
}

/// Settings of an engine below `dir`.
pub(crate) fn options(dir: &Path, subnet: u8) -> EngineOptions {
    let exe = std::env::current_exe().unwrap();
    let mut options = EngineOptions::new(dir.join("data"), dir.join("run"), exe);
    options.instance = dir.to_string_lossy().into_owned();
    let site = dir.file_name().unwrap().to_string_lossy();
    options.cgroup_parent = format!("/shoal-test-{}", site.trim_start_matches('.'));
    options.bridge_address = Some(format!("10.213.{subnet}.1/24"));
    options
}

/// A condition that must come true, with what was last seen.
pub(crate) async fn eventually(what: &str, mut check: impl FnMut() -> Result<(), String>) {
    let deadline = Instant::now() + Duration::from_secs(15);
    loop {
        match check() {
            Ok(()) => return,
            Err(seen) if Instant::now() > deadline => panic!("not so: {what}; last seen: {seen}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    }
}

/// Imports busybox as `busybox:latest`.
pub(crate) async fn import(engine: &EngineHandle) {
    let tar = std::io::Cursor::new(image_tar());
    let changes = ["CMD [\"sh\"]".to_owned(), "ENV PATH=/bin".to_owned()];
    engine
        .image_import(tar, Some("busybox:latest"), &changes, "test")
        .await
        .unwrap();
}

fn image_tar() -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut add = |path: &str, mode: u32, content: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_mode(mode);
        header.set_size(content.len() as u64);
        builder.append_data(&mut header, path, content).unwrap();
    };
    let busybox = std::fs::read("/bin/busybox").expect("busybox-static is installed");
    add("bin/busybox", 0o755, &busybox);
    add(
        "etc/passwd",
        0o644,
        b"root:x:0:0:root:/root:/bin/sh\nweb:x:33:34:w:/var/www:/bin/sh\n",
    );
    add(
        "etc/group",
        0o644,
        b"root:x:0:\nwww:x:34:\nextra:x:50:web\n",
    );
    add("data/seed", 0o644, b"from the image\n");
    for name in [
        "sh", "true", "false", "echo", "cat", "sleep", "id", "touch", "kill", "env", "hostname",
        "ls", "nc", "ip", "trap",
    ] {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_mode(0o777);
        header.set_size(0);
        builder
            .append_link(&mut header, format!("bin/{name}"), "busybox")
            .unwrap();
    }
    let mut bytes = builder.into_inner().unwrap();
    bytes.flush().unwrap();
    bytes
}

/// A container that runs a shell line.
pub(crate) fn shell(line: &str) -> ContainerConfig {
    ContainerConfig {
        image: "busybox".to_owned(),
        cmd: Some(vec!["sh".to_owned(), "-c".to_owned(), line.to_owned()]),
        ..ContainerConfig::default()
    }
}

/// Runs a container to its end: its id, exit code and output.
pub(crate) async fn run(engine: &EngineHandle, config: ContainerConfig) -> (String, i32, String) {
    let id = engine.create(None, config).await.unwrap().id.to_string();
    engine.start_container(&id).await.unwrap();
    let code = engine
        .wait(&id, WaitCondition::NotRunning)
        .await
        .unwrap()
        .exit_code;
    let output = log_text(engine, &id).await;
    (id, code, output)
}

/// What it has written.
pub(crate) async fn log_text(engine: &EngineHandle, id: &str) -> String {
    let entries = engine.logs(id, LogOptions::default()).await.unwrap();
    let lines: Vec<_> = entries.map(|entry| entry.unwrap().line).collect().await;
    String::from_utf8(lines.concat()).unwrap()
}

/// Creates and starts a container; gives its id.
pub(crate) async fn launch(
    engine: &EngineHandle,
    name: Option<&str>,
    config: ContainerConfig,
) -> String {
    let name = name.map(str::to_owned);
    let id = engine.create(name, config).await.unwrap().id.to_string();
    engine.start_container(&id).await.unwrap();
    id
}

/// Waits until a container is as it should be.
pub(crate) async fn until_info(
    engine: &EngineHandle,
    id: &str,
    what: &str,
    done: impl Fn(&ContainerInfo) -> bool,
) -> ContainerInfo {
    let deadline = Instant::now() + Duration::from_secs(15);
    loop {
        let info = engine.inspect(id).await.unwrap();
        if done(&info) {
            return info;
        }
        assert!(Instant::now() < deadline, "not {what}: {:?}", info.state);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
