//! A server on a socket of its own, with an engine of its own.

use crate::cluster::FakeCluster;
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use shoal_api::{ApiOptions, ApiServer, SOCKET_MODE_DEFAULT};
use shoal_engine::{EngineHandle, EngineOptions};
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::Arc;
use tokio::net::UnixStream;
use tokio_util::sync::CancellationToken;

/// Docker's clients on this machine, oldest first.
pub(crate) const CLIENTS: [&str; 2] = ["/usr/bin/docker", "/usr/local/bin/docker"];

pub(crate) struct Server {
    directory: tempfile::TempDir,
    pub(crate) cluster: Arc<FakeCluster>,
    engine: EngineHandle,
    stop: CancellationToken,
    serving: tokio::task::JoinHandle<()>,
}

impl Server {
    pub(crate) async fn start(cluster: FakeCluster) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        let mut options = EngineOptions::new(root.join("data"), root.join("run"), "/bin/false");
        options.instance = format!("t{:x}", std::process::id() & 0xffff);
        options.address_pools = vec!["10.213.0.0/16".to_owned()];
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
        self.engine.shutdown().await;
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
