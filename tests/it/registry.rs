//! Debian's registry on a host of its own, and a client that puts images into it.

use crate::busybox::busybox_root;
use crate::harness::{TestCluster, eventually};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

/// The registry's place on the switch.
pub(crate) const REGISTRY_HOST: &str = "registry";
const REGISTRY_NUMBER: u8 = 100;
/// As images name it.
pub(crate) const REGISTRY: &str = "10.99.0.100:5000";
/// `user` with the password `myPassword`, as Apache's documentation has it.
const HTPASSWD: &str = "user:$2y$05$c4WoMPo3SXsafkva.HHa6uXQZWr7oboPiC2bT/r7q1BB8I2s0BRqC\n";
/// The same as a client sends it.
const BASIC_AUTH: &str = "Basic dXNlcjpteVBhc3N3b3Jk";

/// How the registry knows its users.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Users {
    /// Everybody may do everything.
    Open,
    /// `user` with `myPassword`.
    Basic,
}

/// A running registry. It ends with the cluster, or when dropped.
pub(crate) struct Registry {
    dir: PathBuf,
    netns: PathBuf,
    users: Users,
    server: tokio::process::Child,
    /// As its host numbers it.
    pid: String,
}

impl Registry {
    /// Plugs the registry's host into the switch, if it is not there yet, and starts the registry on it.
    pub(crate) async fn start(test: &mut TestCluster, users: Users) -> Self {
        if test.cluster().host(REGISTRY_HOST).is_err() {
            let cluster = test.cluster_mut();
            cluster
                .add_host(REGISTRY_HOST, REGISTRY_NUMBER)
                .await
                .unwrap();
        }
        let dir = test.dir().join("registry");
        std::fs::create_dir_all(&dir).unwrap();
        let mut text = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: '{REGISTRY}', relativeurls: true}}\n",
            dir.join("storage").display()
        );
        if users == Users::Basic {
            let path = dir.join("htpasswd");
            std::fs::write(&path, HTPASSWD).unwrap();
            text += &format!(
                "auth: {{htpasswd: {{realm: test, path: {}}}}}\n",
                path.display()
            );
        }
        let config = dir.join("config.yml");
        std::fs::write(&config, text).unwrap();
        let host = test.cluster().host(REGISTRY_HOST).unwrap();
        // Its process id is the host's own, and survives the exec.
        let script = "echo $$; exec docker-registry serve \"$0\" >/dev/null 2>&1";
        let argv = ["sh", "-c", script, &config.display().to_string()];
        let mut server = host
            .command(argv)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut pid = String::new();
        let output = tokio::io::BufReader::new(server.stdout.take().unwrap());
        let mut lines = tokio::io::AsyncBufReadExt::lines(output);
        pid.push_str(&lines.next_line().await.unwrap().unwrap());
        let registry = Self {
            dir,
            netns: host.netns.clone(),
            users,
            server,
            pid,
        };
        eventually("the registry listens", async || {
            let answer = registry.request("GET", "/v2/", None, &[]);
            match answer {
                Ok((200, _)) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
        registry
    }

    /// Ends it; what it stores stays for the next start.
    pub(crate) async fn stop(mut self, test: &TestCluster) {
        let host = test.cluster().host(REGISTRY_HOST).unwrap();
        host.run(["kill", self.pid.trim()]).await.unwrap();
        self.server.wait().await.unwrap();
    }

    /// Where a blob is kept.
    pub(crate) fn blob_file(&self, digest: &str) -> PathBuf {
        let hex = digest.strip_prefix("sha256:").unwrap();
        let blobs = self.dir.join("storage/docker/registry/v2/blobs/sha256");
        blobs.join(&hex[..2]).join(hex).join("data")
    }

    /// Pushes an image with these layers (tar archives) over a busybox; answers the digests of its blobs, the
    /// manifest's first.
    pub(crate) fn push(&self, path: &str, tag: &str, layers: &[Vec<u8>]) -> Vec<String> {
        let base = busybox_root();
        let all: Vec<&[u8]> = std::iter::once(base.as_slice())
            .chain(layers.iter().map(Vec::as_slice))
            .collect();
        let diff_ids: Vec<String> = all.iter().map(|layer| sha256(layer)).collect();
        let architecture = match std::env::consts::ARCH {
            "aarch64" => "arm64",
            _ => "amd64",
        };
        let config = json!({
            "os": "linux", "architecture": architecture,
            "config": {"Cmd": ["sh"], "Env": ["PATH=/bin"]},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let config = self.push_blob(
            path,
            config.to_string().as_bytes(),
            "application/vnd.oci.image.config.v1+json",
        );
        let layers: Vec<Value> = all
            .iter()
            .map(|layer| self.push_blob(path, layer, "application/vnd.oci.image.layer.v1.tar"))
            .collect();
        let media_type = "application/vnd.oci.image.manifest.v1+json";
        let manifest = json!({"schemaVersion": 2, "mediaType": media_type, "config": config, "layers": layers});
        let manifest = manifest.to_string();
        let url = format!("/v2/{path}/manifests/{tag}");
        let (status, _) = self
            .request("PUT", &url, Some(media_type), manifest.as_bytes())
            .unwrap();
        assert_eq!(status, 201);
        let blobs = std::iter::once(&config).chain(&layers);
        let digests = blobs.map(|blob| blob["digest"].as_str().unwrap().to_owned());
        std::iter::once(sha256(manifest.as_bytes()))
            .chain(digests)
            .collect()
    }

    fn push_blob(&self, path: &str, bytes: &[u8], media_type: &str) -> Value {
        let digest = sha256(bytes);
        let url = format!("/v2/{path}/blobs/uploads/");
        let (status, location) = self.request("POST", &url, None, &[]).unwrap();
        assert_eq!(status, 202);
        let separator = if location.contains('?') { '&' } else { '?' };
        let url = format!("{location}{separator}digest={digest}");
        let octets = Some("application/octet-stream");
        let (status, _) = self.request("PUT", &url, octets, bytes).unwrap();
        assert_eq!(status, 201);
        json!({"mediaType": media_type, "digest": digest, "size": bytes.len()})
    }

    /// One request from the registry's own host: status, and where to go on.
    fn request(
        &self,
        method: &str,
        url: &str,
        content_type: Option<&str>,
        body: &[u8],
    ) -> std::io::Result<(u16, String)> {
        let mut head = format!(
            "{method} {url} HTTP/1.1\r\nHost: {REGISTRY}\r\nConnection: close\r\nContent-Length: {}\r\n",
            body.len()
        );
        if let Some(content_type) = content_type {
            head += &format!("Content-Type: {content_type}\r\n");
        }
        if self.users == Users::Basic {
            head += &format!("Authorization: {BASIC_AUTH}\r\n");
        }
        head += "\r\n";
        let mut stream = connect_in(&self.netns, REGISTRY.parse().unwrap())?;
        stream.write_all(head.as_bytes())?;
        stream.write_all(body)?;
        let mut answer = BufReader::new(stream);
        let mut line = String::new();
        answer.read_line(&mut line)?;
        let status = line.split(' ').nth(1).and_then(|code| code.parse().ok());
        let mut location = String::new();
        loop {
            line.clear();
            if answer.read_line(&mut line)? == 0 || line == "\r\n" {
                break;
            }
            if let Some((name, value)) = line.split_once(':')
                && name.eq_ignore_ascii_case("location")
            {
                location = value.trim().to_owned();
            }
        }
        answer.read_to_end(&mut Vec::new())?;
        let status = status.ok_or(std::io::ErrorKind::InvalidData)?;
        // Absolute or relative: the path is what counts.
        let path = match location.split_once("://") {
            Some((_, rest)) => rest.find('/').map_or("", |at| &rest[at..]).to_owned(),
            None => location,
        };
        Ok((status, path))
    }
}

/// Connects from inside of a network namespace.
fn connect_in(netns: &Path, addr: SocketAddr) -> std::io::Result<TcpStream> {
    let netns = std::fs::File::open(netns)?;
    std::thread::spawn(move || {
        nix::sched::setns(netns, nix::sched::CloneFlags::CLONE_NEWNET)?;
        TcpStream::connect_timeout(&addr, Duration::from_secs(5))
    })
    .join()
    .unwrap()
}

/// `sha256:…` of some bytes.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    let digest = shoal_transport::ca::sha256(bytes);
    digest.iter().fold("sha256:".to_owned(), |text, byte| {
        format!("{text}{byte:02x}")
    })
}

/// A layer with one file of so many bytes that do not compress, and those bytes' digest.
pub(crate) fn noise_layer(name: &str, bytes: usize) -> (Vec<u8>, String) {
    let mut content = vec![0; bytes];
    rand::fill(&mut content[..]);
    let mut header = tar::Header::new_gnu();
    header.set_size(bytes as u64);
    header.set_mode(0o644);
    let mut tar = tar::Builder::new(Vec::new());
    tar.append_data(&mut header, name, content.as_slice())
        .unwrap();
    (tar.into_inner().unwrap(), sha256(&content))
}

/// An address on the switch that nobody has.
pub(crate) const NOBODY: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 250);
