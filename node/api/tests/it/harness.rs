//! A server on a socket of its own, with an engine of its own.

use crate::cluster::FakeCluster;
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use shoal_api::{ApiOptions, ApiServer, SOCKET_MODE_DEFAULT};
use shoal_engine::{EngineHandle, EngineOptions, ListFilter, RemoveOptions};
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Instant;
use tokio::net::UnixStream;
use tokio_util::sync::CancellationToken;

/// Docker's clients on this machine, oldest first.
pub(crate) const CLIENTS: [&str; 2] = ["/usr/bin/docker", "/usr/local/bin/docker"];

/// A test: its name and what it does.
pub(crate) type Test = (&'static str, fn());

static NEXT_SUBNET: AtomicU8 = AtomicU8::new(1);

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
pub(crate) fn block_on(future: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(future);
}

/// A root file system with busybox.
fn busybox_tar() -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    let busybox = std::fs::read("/bin/busybox").expect("busybox-static is installed");
    header.set_mode(0o755);
    header.set_size(busybox.len() as u64);
    builder
        .append_data(&mut header, "bin/busybox", busybox.as_slice())
        .unwrap();
    for name in [
        "sh", "true", "false", "echo", "cat", "sleep", "id", "touch", "ls", "stty",
    ] {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_mode(0o777);
        header.set_size(0);
        builder
            .append_link(&mut header, format!("bin/{name}"), "busybox")
            .unwrap();
    }
    builder.into_inner().unwrap()
}

pub(crate) struct Server {
    directory: tempfile::TempDir,
    instance: String,
    pub(crate) cluster: Arc<FakeCluster>,
    engine: EngineHandle,
    stop: CancellationToken,
    serving: tokio::task::JoinHandle<()>,
}

impl Server {
    pub(crate) async fn start(cluster: FakeCluster) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        let subnet = NEXT_SUBNET.fetch_add(1, Ordering::Relaxed);
        let exe = std::env::current_exe().unwrap();
        let mut options = EngineOptions::new(root.join("data"), root.join("run"), exe);
        let instance = root.to_string_lossy().into_owned();
        options.instance = instance.clone();
        options.cgroup_parent = format!("/shoal-api-test-{}-{subnet}", std::process::id());
        options.bridge_address = Some(format!("10.214.{subnet}.1/24"));
        let engine = EngineHandle::start(options).await.unwrap();
        let cluster = Arc::new(cluster);
        let server = ApiServer::bind(ApiOptions {
            socket: root.join("shoal.sock"),
            mode: SOCKET_MODE_DEFAULT,
            group: None,
            engine: engine.clone(),
            cluster: cluster.clone(),
            version: "0.1.0".to_owned(),
            git_commit: "abc".to_owned(),
        })
        .await
        .unwrap();
        let stop = CancellationToken::new();
        let serving = tokio::spawn(server.serve(stop.clone()));
        Self {
            directory,
            instance,
            cluster,
            engine,
            stop,
            serving,
        }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.path().join("shoal.sock")
    }

    /// Runs a client against this server.
    pub(crate) async fn docker(&self, client: &str, args: &[&str]) -> Output {
        tokio::process::Command::new(client)
            .args(args)
            .env("DOCKER_HOST", format!("unix://{}", self.socket().display()))
            .env("DOCKER_CONFIG", self.directory.path())
            .output()
            .await
            .unwrap()
    }

    /// Runs a shell line with clients in it; its standard output.
    pub(crate) async fn docker_shell(&self, script: &str) -> String {
        let output = self.docker("/bin/sh", &["-c", script]).await;
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{script}: {stderr}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Runs a client that must succeed; its standard output.
    pub(crate) async fn docker_ok(&self, client: &str, args: &[&str]) -> String {
        let output = self.docker(client, args).await;
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{client} {args:?}: {stderr}");
        String::from_utf8_lossy(&output.stdout)
            .trim_end()
            .to_owned()
    }

    /// Runs a client that must fail; its standard error.
    pub(crate) async fn docker_refused(&self, client: &str, args: &[&str]) -> String {
        let output = self.docker(client, args).await;
        assert!(!output.status.success(), "{client} {args:?} succeeded");
        String::from_utf8_lossy(&output.stderr)
            .trim_end()
            .to_owned()
    }

    pub(crate) async fn request(
        &self,
        method: &str,
        path: &str,
        body: impl Into<Bytes>,
    ) -> (u16, Value) {
        request(&self.socket(), method, path, body.into()).await
    }

    /// Ends it; nothing may be left.
    pub(crate) async fn stop(self) {
        let socket = self.socket();
        self.stop.cancel();
        self.serving.await.unwrap();
        assert!(!socket.exists());
        let all = ListFilter {
            all: true,
            ..ListFilter::default()
        };
        let force = RemoveOptions {
            force: true,
            volumes: true,
        };
        for info in self.engine.list(all).await.unwrap() {
            self.engine
                .remove(&info.id.to_string(), force)
                .await
                .unwrap();
        }
        self.engine.shutdown().await;
        let tag = shoal_overlay_net::InstanceTag::derive(&self.instance);
        let net = shoal_overlay_net::LocalNet::open(tag).unwrap();
        net.remove_everything().await.unwrap();
    }

    /// Imports busybox through the API, as `busybox:latest`.
    pub(crate) async fn import_busybox(&self) {
        let path = "/images/create?fromSrc=-&repo=busybox&changes=CMD%20%5B%22sh%22%5D&changes=ENV%20PATH=/bin";
        let (status, value) = self.request("POST", path, busybox_tar()).await;
        assert_eq!(status, 200, "{value}");
        assert!(
            value["status"].as_str().unwrap().starts_with("sha256:"),
            "{value}"
        );
    }
}

async fn request(socket: &Path, method: &str, path: &str, body: Bytes) -> (u16, Value) {
    let stream = UnixStream::connect(socket).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .unwrap();
    let connection = tokio::spawn(connection);
    let request = hyper::Request::builder()
        .method(method)
        .uri(path)
        .header("host", "x")
        .body(Full::new(body))
        .unwrap();
    let response = sender.send_request(request).await.unwrap();
    let status = response.status().as_u16();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    connection.abort();
    let value = serde_json::from_slice(&bytes)
        .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&bytes).into_owned()));
    (status, value)
}

/// The clients that are installed; the others are reported.
pub(crate) fn clients() -> Vec<&'static str> {
    CLIENTS
        .into_iter()
        .filter(|client| {
            let is_there = Path::new(client).exists();
            if !is_there {
                eprintln!("skipped: {client} is not installed");
            }
            is_there
        })
        .collect()
}
