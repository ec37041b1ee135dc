//! Pulls from the real `docker-registry`, directly and through a proxy that breaks connections.

use crate::fixture::{Fixture, Tar, chain, config, gzip, names};
use futures_util::future::join;
use oci_client::client::{Client, ClientConfig, ClientProtocol};
use oci_client::secrets::RegistryAuth as OciAuth;
use shoal_image::{Digest, LayerState, Progress, ProgressSink, Reference, RegistryAuth};
use shoal_model::spec::Platform;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::time::Duration;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// `user` with the password `myPassword`, as Apache's documentation has it.
const HTPASSWD: &str = "user:$2y$05$c4WoMPo3SXsafkva.HHa6uXQZWr7oboPiC2bT/r7q1BB8I2s0BRqC\n";

struct Registry {
    dir: TempDir,
    child: Child,
    host: String,
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Registry {
    async fn start(auth: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let host = format!("127.0.0.1:{port}");
        let storage = dir.path().join("storage");
        let mut text = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: '{host}', relativeurls: true}}\n",
            storage.display()
        );
        if auth {
            let path = dir.path().join("htpasswd");
            std::fs::write(&path, HTPASSWD).unwrap();
            text += &format!(
                "auth: {{htpasswd: {{realm: test, path: {}}}}}\n",
                path.display()
            );
        }
        let file = dir.path().join("config.yml");
        std::fs::write(&file, text).unwrap();
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(&file)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("Debian's docker-registry is installed");
        let registry = Self { dir, child, host };
        let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
        while TcpStream::connect(&registry.host).await.is_err() {
            assert!(
                tokio::time::Instant::now() < deadline,
                "docker-registry does not listen"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        registry
    }

    fn blob_file(&self, digest: &Digest) -> std::path::PathBuf {
        let hex = digest.hex();
        self.dir
            .path()
            .join("storage/docker/registry/v2/blobs/sha256")
            .join(&hex[..2])
            .join(hex)
            .join("data")
    }

    /// Pushes an image and an index that has it for this machine; returns the digest of the index.
    async fn push(&self, path: &str, layers: &[Vec<u8>], auth: &OciAuth) -> Digest {
        install_tls_provider();
        let client = Client::new(ClientConfig {
            protocol: ClientProtocol::Http,
            ..ClientConfig::default()
        });
        let target =
            oci_client::Reference::with_tag(self.host.clone(), path.to_owned(), "1".to_owned());
        client.store_auth_if_needed(&self.host, auth).await;
        let put = async |bytes: Vec<u8>, media_type: &str| {
            let digest = Digest::sha256(&bytes).to_string();
            let entry =
                serde_json::json!({"mediaType": media_type, "digest": digest, "size": bytes.len()});
            client.push_blob(&target, bytes, &digest).await.unwrap();
            entry
        };
        let config = put(
            config(layers),
            "application/vnd.docker.container.image.v1+json",
        )
        .await;
        let mut blobs = Vec::new();
        for layer in layers {
            blobs.push(
                put(
                    gzip(layer),
                    "application/vnd.docker.image.rootfs.diff.tar.gzip",
                )
                .await,
            );
        }
        let docker = "application/vnd.docker.distribution.manifest.v2+json";
        let manifest = serde_json::json!({"schemaVersion": 2, "mediaType": docker, "config": config, "layers": blobs});
        let manifest = manifest.to_string().into_bytes();
        let digest = Digest::sha256(&manifest).to_string();
        let size = manifest.len();
        let by_digest =
            oci_client::Reference::with_digest(self.host.clone(), path.to_owned(), digest.clone());
        client
            .push_manifest_raw(&by_digest, manifest, docker.parse().unwrap())
            .await
            .unwrap();
        let architecture = if cfg!(target_arch = "x86_64") {
            "amd64"
        } else {
            "arm64"
        };
        let index_type = "application/vnd.oci.image.index.v1+json";
        let index = serde_json::json!({"schemaVersion": 2, "mediaType": index_type, "manifests": [
            {"mediaType": docker, "digest": digest, "size": size,
             "platform": {"os": "linux", "architecture": architecture}},
        ]});
        let index = index.to_string().into_bytes();
        let digest = Digest::sha256(&index);
        client
            .push_manifest_raw(&target, index, index_type.parse().unwrap())
            .await
            .unwrap();
        digest
    }
}

/// Forwards to a registry; cuts a connection after `cut_after` bytes of answers, `cuts` times.
struct Proxy {
    host: String,
    cuts: Arc<AtomicI64>,
    bytes: Arc<AtomicUsize>,
}

impl Proxy {
    async fn start(target: String, cut_after: usize, cuts: i64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let proxy = Self {
            host,
            cuts: Arc::new(AtomicI64::new(cuts)),
            bytes: Arc::new(AtomicUsize::new(0)),
        };
        let (cuts, bytes) = (Arc::clone(&proxy.cuts), Arc::clone(&proxy.bytes));
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (target, cuts, bytes) = (target.clone(), Arc::clone(&cuts), Arc::clone(&bytes));
                tokio::spawn(async move {
                    let server = TcpStream::connect(target).await.unwrap();
                    let (mut from_client, mut to_client) = client.into_split();
                    let (mut from_server, mut to_server) = server.into_split();
                    let up = tokio::spawn(async move {
                        tokio::io::copy(&mut from_client, &mut to_server).await
                    });
                    let mut buffer = vec![0; 8192];
                    let mut sent = 0;
                    while let Ok(count @ 1..) = from_server.read(&mut buffer).await {
                        if to_client.write_all(&buffer[..count]).await.is_err() {
                            break;
                        }
                        sent += count;
                        bytes.fetch_add(count, Ordering::Relaxed);
                        if sent > cut_after && cuts.fetch_sub(1, Ordering::Relaxed) > 0 {
                            break;
                        }
                    }
                    up.abort();
                });
            }
        });
        proxy
    }
}

/// A layer that does not compress, so that its transfer takes a while.
fn big_layer(seed: u64) -> Vec<u8> {
    let mut state = seed;
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    let content: Vec<u8> = (0..2 << 20).map(|_| next()).collect();
    let mut tar = Tar::new();
    let mut header = Tar::header(tar::EntryType::Regular, 0o644);
    header.set_size(content.len() as u64);
    tar.builder()
        .append_data(&mut header, format!("big{seed}"), content.as_slice())
        .unwrap();
    tar.finish()
}

fn reference(host: &str, path: &str) -> Reference {
    Reference::parse(&format!("{host}/{path}:1")).unwrap()
}

async fn pull(
    fixture: &Fixture,
    name: &Reference,
) -> Result<shoal_image::Image, shoal_image::PullError> {
    fixture
        .store
        .pull(name, &Platform::default(), None, ProgressSink::none())
        .await
}

#[tokio::test]
async fn an_image_is_pulled_once_with_progress_and_names() {
    let registry = Registry::start(false).await;
    let layers = [big_layer(1), Tar::new().file("f", b"x").finish()];
    let index = registry
        .push("team/web", &layers, &OciAuth::Anonymous)
        .await;
    let name = reference(&registry.host, "team/web");
    let fixture = Fixture::new();
    let (sink, mut events) = ProgressSink::channel();
    let image = fixture
        .store
        .pull(&name, &Platform::default(), None, sink)
        .await
        .unwrap();
    assert_eq!(image.repo_tags, [format!("{}/team/web:1", registry.host)]);
    assert_eq!(
        image.repo_digests,
        [format!("{}/team/web@{index}", registry.host)]
    );
    let rootfs = fixture.store.prepare_rootfs(&image).await.unwrap();
    assert_eq!(std::fs::read(rootfs.lower[0].join("f")).unwrap(), b"x");
    assert_eq!(names(&fixture.root().join("tmp")), Vec::<String>::new());
    let mut complete = 0;
    let mut counted = false;
    while let Some(event) = events.recv().await {
        if let Progress::Layer { state, .. } = event {
            complete += usize::from(state == LayerState::Complete);
            counted |= state.counts().is_some();
        }
    }
    assert!(complete == 2 && counted);
    let (sink, mut events) = ProgressSink::channel();
    fixture
        .store
        .pull(&name, &Platform::default(), None, sink)
        .await
        .unwrap();
    let mut exists = 0;
    while let Some(event) = events.recv().await {
        exists += usize::from(matches!(
            event,
            Progress::Layer {
                state: LayerState::AlreadyExists,
                ..
            }
        ));
    }
    assert_eq!(exists, 2);
    let by_digest = name.with_digest(index);
    fixture
        .store
        .pull(&by_digest, &Platform::default(), None, ProgressSink::none())
        .await
        .unwrap();
    assert_eq!(fixture.store.list().len(), 1);
}

#[tokio::test]
async fn broken_transfers_are_taken_up_where_they_stopped() {
    let registry = Registry::start(false).await;
    let layer = big_layer(2);
    registry
        .push("web", std::slice::from_ref(&layer), &OciAuth::Anonymous)
        .await;
    let proxy = Proxy::start(registry.host.clone(), 600_000, 3).await;
    let fixture = Fixture::new();
    pull(&fixture, &reference(&proxy.host, "web"))
        .await
        .unwrap();
    assert!(
        proxy.cuts.load(Ordering::Relaxed) <= 0,
        "the proxy never cut"
    );
    let bytes = proxy.bytes.load(Ordering::Relaxed);
    assert!(
        bytes < layer.len() * 2,
        "{bytes} bytes: the transfer began again from its start"
    );
}

#[tokio::test]
async fn a_transfer_that_always_breaks_gives_up() {
    let registry = Registry::start(false).await;
    registry
        .push("web", &[big_layer(3)], &OciAuth::Anonymous)
        .await;
    let proxy = Proxy::start(registry.host.clone(), 20_000, i64::MAX).await;
    let fixture = Fixture::new();
    let err = pull(&fixture, &reference(&proxy.host, "web"))
        .await
        .unwrap_err();
    assert!(chain(&err).contains("broke off 5 times"), "{}", chain(&err));
    assert!(err.is_retryable());
    fixture.store.collect_garbage().await.unwrap();
    fixture.assert_empty();
}

#[tokio::test]
async fn two_pulls_of_one_image_share_the_work() {
    let registry = Registry::start(false).await;
    let layer = big_layer(4);
    registry
        .push("web", std::slice::from_ref(&layer), &OciAuth::Anonymous)
        .await;
    let proxy = Proxy::start(registry.host.clone(), usize::MAX, 0).await;
    let fixture = Fixture::new();
    let name = reference(&proxy.host, "web");
    let (one, two) = join(pull(&fixture, &name), pull(&fixture, &name)).await;
    assert_eq!(one.unwrap().id, two.unwrap().id);
    let bytes = proxy.bytes.load(Ordering::Relaxed);
    assert!(
        bytes < layer.len() + layer.len() / 2,
        "{bytes} bytes for a layer of {}",
        layer.len()
    );
}

#[tokio::test]
async fn a_cancelled_pull_leaves_nothing() {
    let registry = Registry::start(false).await;
    registry
        .push("web", &[big_layer(5)], &OciAuth::Anonymous)
        .await;
    let fixture = Fixture::new();
    let (sink, mut events) = ProgressSink::channel();
    let name = reference(&registry.host, "web");
    let platform = Platform::default();
    let mut pulling = Box::pin(fixture.store.pull(&name, &platform, None, sink));
    let cancelled = loop {
        tokio::select! {
            biased;
            Some(event) = events.recv() => {
                if matches!(event, Progress::Layer { state: LayerState::Downloading { .. }, .. }) {
                    break true;
                }
            }
            _ = &mut pulling => break false,
        }
    };
    assert!(cancelled, "the pull was over before it could be cancelled");
    drop(pulling);
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while !names(&fixture.root().join("tmp")).is_empty() {
        assert!(
            tokio::time::Instant::now() < deadline,
            "temporary files stay"
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(fixture.store.list().is_empty());
    fixture.store.collect_garbage().await.unwrap();
    fixture.assert_empty();
}

#[tokio::test]
async fn errors_say_what_is_wrong() {
    let registry = Registry::start(false).await;
    let layer = Tar::new().file("f", &[9; 3000]).finish();
    registry
        .push("web", std::slice::from_ref(&layer), &OciAuth::Anonymous)
        .await;
    let fixture = Fixture::new();
    let check = async |name: Reference, platform: Platform, expected: &str| {
        let result = fixture
            .store
            .pull(&name, &platform, None, ProgressSink::none())
            .await;
        let text = chain(&result.unwrap_err());
        assert!(
            text.contains(expected),
            "`{text}` does not say `{expected}`"
        );
    };
    let any = Platform::default;
    check(
        reference(&registry.host, "nobody"),
        any(),
        "not found: manifest unknown",
    )
    .await;
    check(
        reference("127.0.0.1:1", "web"),
        any(),
        "failed to reach the registry `127.0.0.1:1`",
    )
    .await;
    let other = Platform {
        os: "linux".to_owned(),
        architecture: "s390x".to_owned(),
    };
    check(
        reference(&registry.host, "web"),
        other,
        "no matching manifest for linux/s390x",
    )
    .await;
    let blob = registry.blob_file(&Digest::sha256(gzip(&layer)));
    let mut bytes = std::fs::read(&blob).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0xff;
    std::fs::write(&blob, bytes).unwrap();
    check(
        reference(&registry.host, "web"),
        any(),
        "but its manifest says",
    )
    .await;
    fixture.store.collect_garbage().await.unwrap();
    fixture.assert_empty();
}

#[tokio::test]
async fn credentials_open_a_closed_registry() {
    let registry = Registry::start(true).await;
    let auth = OciAuth::Basic("user".to_owned(), "myPassword".to_owned());
    registry
        .push("web", &[Tar::new().file("f", b"x").finish()], &auth)
        .await;
    let fixture = Fixture::new();
    let name = reference(&registry.host, "web");
    let with = async |password: Option<&str>| {
        let auth = password.map(|password| RegistryAuth::Basic {
            username: "user".to_owned(),
            password: password.to_owned(),
        });
        fixture
            .store
            .pull(&name, &Platform::default(), auth, ProgressSink::none())
            .await
    };
    for password in [None, Some("wrong")] {
        let text = chain(&with(password).await.unwrap_err());
        assert!(text.contains("pull access denied"), "{text}");
        assert!(!text.contains("wrong"), "{text}");
    }
    with(Some("myPassword")).await.unwrap();
}

/// `user:myPassword` as clients send it.
const BASIC: &str = "Basic dXNlcjpteVBhc3N3b3Jk";
const TOKEN: &str = "a-token-for-pulls";

/// In front of an open registry: lets through who has a token, and gives tokens to who knows the password.
async fn token_server(target: String, tokens: Arc<AtomicUsize>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let host = listener.local_addr().unwrap().to_string();
    let own = host.clone();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let (target, own, tokens) = (target.clone(), own.clone(), Arc::clone(&tokens));
            tokio::spawn(async move { serve_with_tokens(client, &target, &own, &tokens).await });
        }
    });
    host
}

async fn serve_with_tokens(mut client: TcpStream, target: &str, own: &str, tokens: &AtomicUsize) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match client.read_u8().await {
            // The beginning of TLS, which is not spoken here.
            Ok(0x16) if head.is_empty() => return,
            Ok(byte) => head.push(byte),
            Err(_) => return,
        }
    }
    let head = String::from_utf8(head).unwrap();
    let path = head.split(' ').nth(1).unwrap();
    let auth = head
        .lines()
        .filter_map(|line| line.split_once(": "))
        .find(|(name, _)| name.eq_ignore_ascii_case("authorization"))
        .map(|(_, value)| value.trim());
    let denied = |challenge: &str| {
        format!(
            "HTTP/1.1 401 Unauthorized\r\n{challenge}Connection: close\r\nContent-Length: 0\r\n\r\n"
        )
    };
    let answer = if path.starts_with("/token") {
        if auth == Some(BASIC) && path.contains("repository%3Aweb%3Apull")
            || auth == Some(BASIC) && path.contains("repository:web:pull")
        {
            tokens.fetch_add(1, Ordering::Relaxed);
            let body = format!("{{\"token\":\"{TOKEN}\",\"expires_in\":300}}");
            let length = body.len();
            format!(
                "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
            )
        } else {
            denied("")
        }
    } else if auth == Some(&format!("Bearer {TOKEN}")) {
        let mut server = TcpStream::connect(target).await.unwrap();
        let (line, rest) = head.split_once("\r\n").unwrap();
        let request = format!("{line}\r\nConnection: close\r\n{rest}");
        server.write_all(request.as_bytes()).await.unwrap();
        // A client that has what it wants goes away.
        drop(tokio::io::copy(&mut server, &mut client).await);
        return;
    } else {
        denied(&format!(
            "Www-Authenticate: Bearer realm=\"http://{own}/token\",service=\"test\",scope=\"repository:web:pull\"\r\n"
        ))
    };
    drop(client.write_all(answer.as_bytes()).await);
}

#[tokio::test]
async fn a_token_server_gives_tokens_for_the_right_password_only() {
    let registry = Registry::start(false).await;
    let layers = [big_layer(6), Tar::new().file("f", b"x").finish()];
    registry.push("web", &layers, &OciAuth::Anonymous).await;
    let tokens = Arc::new(AtomicUsize::new(0));
    let host = token_server(registry.host.clone(), Arc::clone(&tokens)).await;
    let fixture = Fixture::new();
    let name = reference(&host, "web");
    let basic = |password: &str| RegistryAuth::Basic {
        username: "user".to_owned(),
        password: password.to_owned(),
    };
    for auth in [None, Some(basic("wrong"))] {
        let platform = Platform::default();
        let pulled = fixture
            .store
            .pull(&name, &platform, auth, ProgressSink::none());
        let text = chain(&pulled.await.unwrap_err());
        assert!(text.contains("pull access denied"), "{text}");
        assert!(!text.contains("wrong"), "{text}");
    }
    let checked = fixture.store.check_credentials(&name, basic("wrong")).await;
    let text = chain(&checked.unwrap_err());
    assert!(text.contains("denied"), "{text}");
    assert_eq!(tokens.load(Ordering::Relaxed), 0);
    fixture
        .store
        .check_credentials(&name, basic("myPassword"))
        .await
        .unwrap();
    let platform = Platform::default();
    let auth = Some(basic("myPassword"));
    let pulled = fixture
        .store
        .pull(&name, &platform, auth, ProgressSink::none());
    let image = pulled.await.unwrap();
    assert_eq!(image.layers.len(), 2);
    assert!(tokens.load(Ordering::Relaxed) >= 1);
    // A token in hand needs no password.
    let other = Fixture::new();
    let auth = Some(RegistryAuth::Bearer(TOKEN.to_owned()));
    let pulled = other
        .store
        .pull(&name, &platform, auth, ProgressSink::none());
    pulled.await.unwrap();
}

#[tokio::test]
async fn basic_credentials_are_checked_by_the_registry_itself() {
    let registry = Registry::start(true).await;
    let fixture = Fixture::new();
    let name = reference(&registry.host, "nothing-here");
    let basic = |password: &str| RegistryAuth::Basic {
        username: "user".to_owned(),
        password: password.to_owned(),
    };
    fixture
        .store
        .check_credentials(&name, basic("myPassword"))
        .await
        .unwrap();
    let checked = fixture.store.check_credentials(&name, basic("wrong")).await;
    let text = chain(&checked.unwrap_err());
    assert!(text.contains("denied"), "{text}");
}

#[tokio::test]
async fn a_damaged_blob_is_fetched_again() {
    let registry = Registry::start(false).await;
    registry
        .push(
            "web",
            &[Tar::new().file("f", &[1; 9000]).finish()],
            &OciAuth::Anonymous,
        )
        .await;
    let fixture = Fixture::new();
    let name = reference(&registry.host, "web");
    let image = pull(&fixture, &name).await.unwrap();
    let layer = &image.layers[0];
    std::fs::remove_dir_all(fixture.root().join("snapshots").join(layer.chain_id.hex())).unwrap();
    let blob = fixture.root().join("blobs/sha256").join(layer.blob.hex());
    std::fs::write(&blob, b"rubbish").unwrap();
    let image = pull(&fixture, &name).await.unwrap();
    let rootfs = fixture.store.prepare_rootfs(&image).await.unwrap();
    assert_eq!(std::fs::read(rootfs.lower[0].join("f")).unwrap(), [1; 9000]);
    assert!(Path::new(&blob).metadata().unwrap().len() > 20);
}

/// The pushing client needs one; another thread may have been first.
fn install_tls_provider() {
    drop(rustls::crypto::ring::default_provider().install_default());
}
