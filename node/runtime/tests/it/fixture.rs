//! A bundle with a busybox root, removed with everything that belongs to it.

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
        for path in self.cgroups() {
            assert!(!path.exists(), "{} is left", path.display());
        }
        for name in ["shim.sock", "state.json", "exit.json"] {
            assert!(!self.dir.path().join(name).exists(), "{name} is left");
        }
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(
            !mounts.contains(self.dir.path().to_str().unwrap()),
            "a mount is left"
        );
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
    "sed", "readlink", "stat", "tail", "seq", "ip", "awk", "trap", "printf", "rm", "date",
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
