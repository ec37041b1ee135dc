//! Times unpacking and pulling of a three-layer image of about 117 MiB compressed.
//!
//! `cargo bench -p shoal-image` needs root and Debian's `docker-registry`. Every figure is the median of the runs, with a fresh
//! store each; the peak of the resident set is the whole process's.

use oci_client::client::{Client, ClientConfig, ClientProtocol};
use oci_client::secrets::RegistryAuth;
use serde_json::json;
use shoal_image::{Digest, ImageStore, ImageStoreOptions, ProgressSink, Reference};
use shoal_model::spec::Platform;
use std::io::{Cursor, Write};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const RUNS: usize = 3;
const LAYERS: u64 = 3;
/// Half of each file is noise, half is text: about 39 MiB compressed of 78.
const FILES_PER_LAYER: u64 = 1_200;
const FILE_BYTES: usize = 65_536;

fn main() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime starts");
    runtime.block_on(run());
}

async fn run() {
    let tars: Vec<Vec<u8>> = (0..LAYERS).map(layer).collect();
    let blobs: Vec<Vec<u8>> = tars.iter().map(|tar| gzip(tar)).collect();
    let megabytes =
        |parts: &[Vec<u8>]| parts.iter().map(Vec::len).sum::<usize>() as f64 / f64::from(1 << 20);
    println!(
        "three layers, {:.0} MiB unpacked, {:.0} MiB compressed",
        megabytes(&tars),
        megabytes(&blobs)
    );
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (mut registry, host) = start_registry(dir.path()).await;
    push(&host, &tars, &blobs).await;
    let first = blobs[0].clone();
    drop((tars, blobs));
    reset_peak();
    let before = peak_kib();
    measure("pull", async |store| {
        let name = Reference::parse(&format!("{host}/bench:1")).expect("a well-formed name");
        let pulled = store
            .pull(&name, &Platform::default(), None, ProgressSink::none())
            .await;
        pulled.expect("the pull succeeds");
    })
    .await;
    println!(
        "peak resident set during the pulls: {} MiB more",
        peak_kib().saturating_sub(before) / 1024
    );
    measure("import of one gzip layer", async |store| {
        let imported = store
            .import(Cursor::new(first.clone()), None, &[], "")
            .await;
        imported.expect("the import succeeds");
    })
    .await;
    registry.kill().expect("the registry is ours");
    registry.wait().expect("the registry ends");
}

async fn measure(what: &str, work: impl AsyncFn(&ImageStore)) {
    let mut times = Vec::new();
    for _ in 0..RUNS {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let options = ImageStoreOptions {
            root: dir.path().to_owned(),
            ..ImageStoreOptions::default()
        };
        let store = ImageStore::open(options).expect("the store opens");
        let begin = Instant::now();
        work(&store).await;
        times.push(begin.elapsed());
    }
    times.sort();
    println!("{what}: median {:.2?} of {times:.2?}", times[RUNS / 2]);
}

/// Makes the kernel forget earlier peaks of the resident set.
fn reset_peak() {
    std::fs::write("/proc/self/clear_refs", "5").expect("the peak can be reset");
}

/// The highest resident set since then.
fn peak_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("proc is mounted");
    let line = status.lines().find(|line| line.starts_with("VmHWM:"));
    let peak = line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok());
    peak.expect("the kernel counts the peak")
}

fn layer(seed: u64) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut state = seed + 1;
    for at in 0..FILES_PER_LAYER {
        let mut content = vec![0; FILE_BYTES];
        for (index, byte) in content.iter_mut().enumerate() {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            *byte = if index % 8192 < 4096 {
                (state >> 56) as u8
            } else {
                b'a' + (index % 17) as u8
            };
        }
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(FILE_BYTES as u64);
        let path = format!("layer{seed}/{}/{at}", at % 40);
        builder
            .append_data(&mut header, path, content.as_slice())
            .expect("memory does not fail");
    }
    builder.into_inner().expect("memory does not fail")
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes).expect("memory does not fail");
    encoder.finish().expect("memory does not fail")
}

async fn start_registry(dir: &std::path::Path) -> (Child, String) {
    let probe = std::net::TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let host = probe.local_addr().expect("it is bound").to_string();
    drop(probe);
    let file = dir.join("config.yml");
    let storage = dir.join("storage");
    let text = format!(
        "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: '{host}'}}\n",
        storage.display()
    );
    std::fs::write(&file, text).expect("the directory is ours");
    let child = Command::new("docker-registry")
        .arg("serve")
        .arg(&file)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("Debian's docker-registry is installed");
    let deadline = Instant::now() + Duration::from_secs(20);
    while tokio::net::TcpStream::connect(&host).await.is_err() {
        assert!(Instant::now() < deadline, "docker-registry does not listen");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    (child, host)
}

async fn push(host: &str, tars: &[Vec<u8>], blobs: &[Vec<u8>]) {
    install_tls_provider();
    let client = Client::new(ClientConfig {
        protocol: ClientProtocol::Http,
        ..ClientConfig::default()
    });
    client
        .store_auth_if_needed(host, &RegistryAuth::Anonymous)
        .await;
    let target =
        oci_client::Reference::with_tag(host.to_owned(), "bench".to_owned(), "1".to_owned());
    let put = async |bytes: Vec<u8>, media_type: &str| {
        let digest = Digest::sha256(&bytes).to_string();
        let entry = json!({"mediaType": media_type, "digest": digest, "size": bytes.len()});
        client
            .push_blob(&target, bytes, &digest)
            .await
            .expect("the registry takes blobs");
        entry
    };
    let diff_ids: Vec<String> = tars
        .iter()
        .map(|tar| Digest::sha256(tar).to_string())
        .collect();
    let architecture = if cfg!(target_arch = "x86_64") {
        "amd64"
    } else {
        "arm64"
    };
    let config = json!({"architecture": architecture, "os": "linux", "config": {}, "rootfs": {"type": "layers", "diff_ids": diff_ids}});
    let config = put(
        config.to_string().into_bytes(),
        "application/vnd.oci.image.config.v1+json",
    )
    .await;
    let mut layers = Vec::new();
    for blob in blobs {
        layers.push(put(blob.clone(), "application/vnd.oci.image.layer.v1.tar+gzip").await);
    }
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let manifest =
        json!({"schemaVersion": 2, "mediaType": media_type, "config": config, "layers": layers});
    let header = media_type.parse().expect("a media type is a header value");
    let pushed = client
        .push_manifest_raw(&target, manifest.to_string().into_bytes(), header)
        .await;
    pushed.expect("the registry takes the manifest");
}

/// The pushing client needs one; another thread may have been first.
fn install_tls_provider() {
    drop(rustls::crypto::ring::default_provider().install_default());
}
