//! A bundle with a busybox root, removed with everything that belongs to it.

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::Signal;
use oci_spec::runtime::Spec;
use shoal_runtime::{
    AttachOptions, Bundle, Exit, LogConfig, Rootfs, ShimHandle, ShimSpec, SpawnOptions,
    default_spec,
};
use std::collections::BTreeMap;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// No step of a test takes longer, unless it hangs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

static NUMBER: AtomicU32 = AtomicU32::new(0);

pub(crate) struct Fixture {
    dir: tempfile::TempDir,
    pub(crate) name: String,
    pub(crate) spec: Spec,
    pub(crate) shim: ShimSpec,
}

/// The program that becomes the shim: built beside this test.
pub(crate) fn exe() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    test.parent()
        .unwrap()
        .parent()
        .unwrap()
        .join("examples/shim")
}

/// A test that fails leaves nothing either.
impl Drop for Fixture {
    fn drop(&mut self) {
        let state = std::fs::read(self.dir.path().join("state.json")).unwrap_or_default();
        let state: serde_json::Value = serde_json::from_slice(&state).unwrap_or_default();
        for who in ["shim", "init"] {
            let pid = state[format!("{who}_pid")].as_i64().unwrap_or(0);
            let ticks = state[format!("{who}_start_ticks")].as_u64();
            if pid != 0 && start_ticks(pid) == ticks {
                kill_now(pid as i32);
            }
        }
        let start = Instant::now();
        for dir in self.cgroups() {
            while dir.exists() && std::fs::remove_dir(&dir).is_err() {
                let pids = std::fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
                pids.lines()
                    .filter_map(|p| p.parse().ok())
                    .for_each(kill_now);
                if start.elapsed() > PATIENCE {
                    eprintln!("{} can't be removed", dir.display());
                    break;
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }
}

fn kill_now(pid: i32) {
    // It may be gone by itself.
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGKILL).ok();
}

fn start_ticks(pid: i64) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_whitespace().nth(19)?.parse().ok()
}

/// A file system that a test mounts on the host, for as long as the test runs.
pub(crate) struct HostMount(PathBuf);

impl HostMount {
    /// A tmpfs with room for `kib` at `path`, whose mounts and unmounts others share.
    pub(crate) fn tmpfs(path: PathBuf, kib: u32) -> Self {
        std::fs::create_dir_all(&path).unwrap();
        let size = format!("size={kib}k");
        let kind = Some("tmpfs");
        mount(kind, &path, kind, MsFlags::empty(), Some(size.as_str())).unwrap();
        let guard = Self(path);
        let none = None::<&str>;
        mount(none, &guard.0, none, MsFlags::MS_SHARED, none).unwrap();
        guard
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for HostMount {
    fn drop(&mut self) {
        if let Err(errno) = umount2(&self.0, MntFlags::MNT_DETACH) {
            eprintln!("{} can't be unmounted: {errno}", self.0.display());
        }
    }
}

impl Fixture {
    /// A container that runs `script` in busybox' shell.
    pub(crate) fn sh(script: &str) -> Self {
        Self::new(&["/bin/sh", "-c", script])
    }

    pub(crate) fn new(args: &[&str]) -> Self {
        assert!(nix::unistd::geteuid().is_root(), "these tests need root");
        let dir = tempfile::tempdir().unwrap();
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("rt-test-{}-{number}", std::process::id());
        let base = dir.path().join("base");
        for part in [
            "base/bin", "base/etc", "base/tmp", "upper", "work", "rootfs",
        ] {
            std::fs::create_dir_all(dir.path().join(part)).unwrap();
        }
        std::fs::copy("/bin/busybox", base.join("bin/busybox")).unwrap();
        for applet in APPLETS {
            std::os::unix::fs::symlink("busybox", base.join("bin").join(applet)).unwrap();
        }
        let args = args.iter().map(|a| (*a).to_owned()).collect();
        let spec = default_spec("rootfs", args, Path::new(&format!("/shoal-tests/{name}")));
        let rootfs = Rootfs::Overlay {
            lower: vec![base],
            upper: dir.path().join("upper"),
            work: dir.path().join("work"),
        };
        let mut shim = ShimSpec::new(&name, rootfs);
        shim.log = LogConfig::JsonFile {
            path: dir.path().join("log"),
            max_size_bytes: None,
            max_files: 1,
            attrs: BTreeMap::new(),
        };
        Self {
            dir,
            name,
            spec,
            shim,
        }
    }

    /// A path in the bundle.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn bundle(&self) -> Bundle {
        Bundle::new(self.dir.path())
    }

    /// Changes the OCI configuration as JSON.
    pub(crate) fn edit(&mut self, change: impl FnOnce(&mut serde_json::Value)) {
        let mut value = serde_json::to_value(&self.spec).unwrap();
        change(&mut value);
        self.spec = serde_json::from_value(value).unwrap();
    }

    pub(crate) fn options(&self) -> SpawnOptions {
        SpawnOptions::new(exe(), self.dir.path())
    }

    pub(crate) async fn spawn(&self) -> ShimHandle {
        self.try_spawn().await.unwrap()
    }

    pub(crate) async fn try_spawn(&self) -> Result<ShimHandle, shoal_runtime::ShimError> {
        self.bundle().write(&self.spec, &self.shim).unwrap();
        ShimHandle::spawn(self.options()).await
    }

    /// Runs the container to its end and removes it: exit, standard output, standard error.
    pub(crate) async fn run(&self) -> (Exit, String, String) {
        let handle = self.spawn().await;
        let options = AttachOptions {
            stdin: false,
            stdout: true,
            stderr: true,
        };
        let mut streams = handle.attach(options).await.unwrap();
        handle.start().await.unwrap();
        let mut text = [String::new(), String::new()];
        while let Some((stream, data)) = within(streams.output.next()).await.unwrap() {
            let at = usize::from(stream == shoal_runtime::logs::StreamKind::Stderr);
            text[at].push_str(&String::from_utf8_lossy(&data));
        }
        let exit = within(handle.wait()).await.unwrap();
        handle.delete(false).await.unwrap();
        self.assert_clean();
        let [out, err] = text;
        (exit, out, err)
    }

    pub(crate) fn log_text(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap()
    }

    /// Nothing of the container is left.
    pub(crate) fn assert_clean(&self) {
        self.assert_clean_but(Path::new("/no/mount"));
    }

    /// Nothing of the container is left; the test itself has something mounted at `own`.
    pub(crate) fn assert_clean_but(&self, own: &Path) {
        for path in self.cgroups() {
            assert!(!path.exists(), "{} is left", path.display());
        }
        for name in ["shim.sock", "state.json", "exit.json"] {
            assert!(!self.path(name).exists(), "{name} is left");
        }
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let points = mounts.lines().filter_map(|line| line.split(' ').nth(4));
        let mut left = points
            .map(Path::new)
            .filter(|point| point.starts_with(self.path("")));
        assert!(!left.any(|point| point != own), "a mount is left");
    }

    pub(crate) fn cgroups(&self) -> Vec<PathBuf> {
        let hierarchies = std::fs::read_dir("/sys/fs/cgroup").unwrap();
        let dirs = hierarchies.map(|entry| entry.unwrap().path());
        dirs.chain(["/sys/fs/cgroup".into()])
            .map(|dir| dir.join("shoal-tests").join(&self.name))
            .collect()
    }

    /// What `runc run` prints for the same bundle: the witness. Its root is mounted as it wants it.
    pub(crate) fn run_with_runc(&self) -> String {
        let mut spec = serde_json::to_value(&self.spec).unwrap();
        spec["root"]["path"] = self.dir.path().join("base").to_str().unwrap().into();
        let witness = self.dir.path().join("witness");
        std::fs::create_dir_all(&witness).unwrap();
        std::fs::write(witness.join("config.json"), spec.to_string()).unwrap();
        let output = Command::new("runc")
            .args([
                "--root",
                witness.join("state").to_str().unwrap(),
                "run",
                "--bundle",
            ])
            .arg(&witness)
            .arg(format!("{}-w", self.name))
            .output()
            .unwrap();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "runc: {errors}");
        String::from_utf8(output.stdout).unwrap()
    }
}

const APPLETS: &[&str] = &[
    "sh", "cat", "echo", "ls", "sleep", "true", "false", "id", "hostname", "mount", "grep", "head",
    "dd", "kill", "stty", "tty", "wc", "yes", "env", "pwd", "ps", "mknod", "unshare", "touch",
    "sed", "sort", "readlink", "stat", "tail", "seq", "ip", "awk", "trap", "printf", "rm", "date",
];

/// `future`, which must not take longer than [`PATIENCE`].
pub(crate) async fn within<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(PATIENCE, future)
        .await
        .expect("took too long")
}

/// Waits until `condition` holds, looking every few milliseconds.
pub(crate) async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "{what} did not happen");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
