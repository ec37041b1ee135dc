//! Makes small images: tars entry by entry, docker archives, OCI layouts.

use shoal_image::{Digest, ImageStore, ImageStoreOptions, UnpackLimits};
use std::io::{Cursor, Write};
use std::path::{Path, PathBuf};
use tar::{Builder, EntryType, Header};
use tempfile::TempDir;

/// A store in a directory of its own.
pub(crate) struct Fixture {
    pub(crate) dir: TempDir,
    pub(crate) store: ImageStore,
}

impl Fixture {
    pub(crate) fn new() -> Self {
        Self::with_limits(UnpackLimits::default())
    }

    pub(crate) fn with_limits(limits: UnpackLimits) -> Self {
        assert!(nix::unistd::geteuid().is_root(), "these tests need root");
        let dir = tempfile::tempdir().unwrap();
        let options = ImageStoreOptions {
            limits,
            ..options(dir.path())
        };
        let store = ImageStore::open(options).unwrap();
        Self { dir, store }
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.dir.path().join("images")
    }

    /// Imports `tar` and returns the directory of its only layer.
    pub(crate) async fn unpack(&self, tar: Vec<u8>) -> anyhow::Result<PathBuf> {
        let image = self.store.import(Cursor::new(tar), None, &[], "").await?;
        let rootfs = self.store.prepare_rootfs(&image).await?;
        Ok(rootfs.lower[0].canonicalize()?)
    }

    /// Nothing half made and nothing unreferenced: only the files of the images in the list.
    pub(crate) fn assert_empty(&self) {
        for dir in ["tmp", "snapshots", "blobs/sha256", "l"] {
            assert_eq!(names(&self.root().join(dir)), Vec::<String>::new(), "{dir}");
        }
    }
}

pub(crate) fn options(dir: &Path) -> ImageStoreOptions {
    ImageStoreOptions {
        root: dir.join("images"),
        ..ImageStoreOptions::default()
    }
}

pub(crate) fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// Everything that went wrong, in one line.
pub(crate) fn chain(err: &(dyn std::error::Error + 'static)) -> String {
    let mut text = err.to_string();
    let mut source = err.source();
    while let Some(err) = source {
        text = format!("{text}: {err}");
        source = err.source();
    }
    text
}

/// A tar under construction; paths are written as they are, however hostile.
pub(crate) struct Tar(Builder<Vec<u8>>);

impl Tar {
    pub(crate) fn new() -> Self {
        Self(Builder::new(Vec::new()))
    }

    pub(crate) fn header(kind: EntryType, mode: u32) -> Header {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_000_000_000);
        header.set_size(0);
        header
    }

    pub(crate) fn raw(mut self, mut header: Header, path: &str, link: &str, data: &[u8]) -> Self {
        let gnu = header.as_gnu_mut().unwrap();
        gnu.name[..path.len()].copy_from_slice(path.as_bytes());
        gnu.linkname[..link.len()].copy_from_slice(link.as_bytes());
        if !data.is_empty() {
            header.set_size(data.len() as u64);
        }
        header.set_cksum();
        self.0.append(&header, data).unwrap();
        self
    }

    pub(crate) fn file(self, path: &str, data: &[u8]) -> Self {
        self.raw(Self::header(EntryType::Regular, 0o644), path, "", data)
    }

    pub(crate) fn dir(self, path: &str) -> Self {
        self.raw(Self::header(EntryType::Directory, 0o755), path, "", b"")
    }

    pub(crate) fn symlink(self, path: &str, target: &str) -> Self {
        self.raw(Self::header(EntryType::Symlink, 0o777), path, target, b"")
    }

    pub(crate) fn hard_link(self, path: &str, target: &str) -> Self {
        self.raw(Self::header(EntryType::Link, 0o644), path, target, b"")
    }

    pub(crate) fn pax(mut self, records: &[(&str, &[u8])]) -> Self {
        self.0
            .append_pax_extensions(records.iter().copied())
            .unwrap();
        self
    }

    pub(crate) fn builder(&mut self) -> &mut Builder<Vec<u8>> {
        &mut self.0
    }

    pub(crate) fn finish(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// The configuration of an image for this machine with these layers.
pub(crate) fn config(layers: &[Vec<u8>]) -> Vec<u8> {
    let diff_ids: Vec<String> = layers
        .iter()
        .map(|l| Digest::sha256(l).to_string())
        .collect();
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    serde_json::to_vec(&serde_json::json!({
        "created": "2026-01-02T03:04:05.5Z",
        "architecture": architecture,
        "os": "linux",
        "config": {"Cmd": ["/bin/sh"], "Env": ["PATH=/bin"], "Healthcheck": {"Test": ["CMD", "true"], "Interval": 5}},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    }))
    .unwrap()
}

/// What `docker save` writes, in the form before version 25.
pub(crate) fn docker_archive(name: &str, layers: &[Vec<u8>]) -> Vec<u8> {
    let config = config(layers);
    let mut tar = Tar::new();
    let mut paths = Vec::new();
    for (at, layer) in layers.iter().enumerate() {
        let path = format!("{at}/layer.tar");
        tar = tar.dir(&format!("{at}/")).file(&path, layer);
        paths.push(path);
    }
    let manifest =
        serde_json::json!([{"Config": "config.json", "RepoTags": [name], "Layers": paths}]);
    tar.file("config.json", &config)
        .file("manifest.json", manifest.to_string().as_bytes())
        .finish()
}

/// The files of an OCI layout: name and content.
pub(crate) fn oci_layout(name: &str, layers: &[Vec<u8>]) -> Vec<(String, Vec<u8>)> {
    let blob = |bytes: &[u8]| format!("blobs/sha256/{}", Digest::sha256(bytes).hex());
    let describe = |media_type: &str, bytes: &[u8]| serde_json::json!({"mediaType": media_type, "digest": Digest::sha256(bytes).to_string(), "size": bytes.len()});
    let config = config(layers);
    let compressed: Vec<Vec<u8>> = layers.iter().map(|l| gzip(l)).collect();
    let blobs: Vec<_> = compressed
        .iter()
        .map(|l| describe("application/vnd.oci.image.layer.v1.tar+gzip", l))
        .collect();
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": describe("application/vnd.oci.image.config.v1+json", &config),
        "layers": blobs,
    })
    .to_string()
    .into_bytes();
    let mut entry = describe("application/vnd.oci.image.manifest.v1+json", &manifest);
    entry["annotations"] = serde_json::json!({"org.opencontainers.image.ref.name": name});
    let index = serde_json::json!({"schemaVersion": 2, "manifests": [entry]}).to_string();
    let mut files = vec![
        (
            "oci-layout".to_owned(),
            br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec(),
        ),
        ("index.json".to_owned(), index.into_bytes()),
        (blob(&config), config),
        (blob(&manifest), manifest),
    ];
    files.extend(compressed.into_iter().map(|layer| (blob(&layer), layer)));
    files
}
