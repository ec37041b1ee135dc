//! Loads images from archives: `docker save` in both forms, OCI archives, OCI layout directories.
//!
//! An archive names its parts only at its end, so that its files are spooled to the disk under their digests first; what
//! no image of the archive needs is dropped again.

use crate::content::{Content, ContentError, DOCUMENT_BYTES_MAX, StagedBlob};
use crate::digest::{Algorithm, Digest};
use crate::ensure::EnsureError;
use crate::feed::ChunkReader;
use crate::image::LoadedImage;
use crate::index::ImageRecord;
use crate::layer::{Compression, LayerError};
use crate::manifest::{
    Descriptor, Document, ImageIndex, Manifest, ManifestError, ParsedConfig, descriptor,
    host_platform, synthesise,
};
use crate::progress::ProgressSink;
use crate::pull::layers_of;
use crate::reference::{Reference, ReferenceError};
use crate::store::{Hold, ImageStore, ResolveError, layer_names};
use crate::tarball::{Kind, TarError, TarReader};
use crate::unpack::clean;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Cursor, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::io::AsyncRead;

/// Most files of one image archive.
pub const ARCHIVE_FILES_MAX: usize = 20_000;
/// Links that are followed from one archive name to the next.
const LINKS_MAX: usize = 8;
const INDEX_DEPTH_MAX: usize = 4;
/// How OCI layouts name their images.
const NAME_ANNOTATIONS: [&str; 2] = [
    "io.containerd.image.name",
    "org.opencontainers.image.ref.name",
];

/// Why an archive was not loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// It is not a readable tar archive.
    #[error("failed to read the image archive")]
    Tar(#[from] TarError),
    /// Its compression is not one of ours.
    #[error("failed to decompress the image archive")]
    Decompress(#[source] Box<LayerError>),
    /// It is an archive, but not of images.
    #[error("the archive holds no image: it has neither a `manifest.json` nor an `index.json`")]
    NotAnImage,
    /// A part is not there.
    #[error("the archive lacks `{path}`, which its manifest names")]
    Missing {
        /// The part.
        path: String,
    },
    /// A part is not what its name says.
    #[error("`{path}` in the archive has the digest {found}")]
    WrongDigest {
        /// The part.
        path: String,
        /// What is in it.
        found: Digest,
    },
    /// Too many files.
    #[error("the archive has more than {ARCHIVE_FILES_MAX} files")]
    TooManyFiles,
    /// A document is not readable.
    #[error("`{path}` in the archive is malformed")]
    Json {
        /// The document.
        path: String,
        /// Where it is wrong.
        #[source]
        err: serde_json::Error,
    },
    /// An image can't be used.
    #[error("an image of the archive can't be used")]
    Manifest(#[from] ManifestError),
    /// A name is none.
    #[error("the archive has the malformed image name `{name}`")]
    Name {
        /// As written.
        name: String,
        /// Why.
        #[source]
        err: ReferenceError,
    },
    /// A layer.
    #[error("failed to unpack layer {layer}")]
    Layer {
        /// The layer.
        layer: Digest,
        /// Why.
        #[source]
        err: Box<EnsureError>,
    },
    /// The store's files.
    #[error(transparent)]
    Content(#[from] ContentError),
    /// Somebody removed the image in the very moment.
    #[error(transparent)]
    Gone(#[from] ResolveError),
    /// The working thread died.
    #[error("the working thread failed")]
    Thread(#[from] tokio::task::JoinError),
}

/// One entry of a docker archive's `manifest.json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerEntry {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

/// An image of the archive whose blobs are published and held.
struct Found {
    id: Digest,
    config_bytes: Vec<u8>,
    manifest_bytes: Vec<u8>,
    manifest: Manifest,
    config: ParsedConfig,
    names: Vec<Reference>,
}

impl ImageStore {
    /// Loads all images of an archive, plain or compressed.
    ///
    /// # Errors
    /// [`LoadError`].
    pub async fn load(
        &self,
        tar: impl AsyncRead + Send + Unpin + 'static,
        progress: ProgressSink,
    ) -> Result<Vec<LoadedImage>, LoadError> {
        let reader = ChunkReader::feed(tar);
        let inner = Arc::clone(&self.inner);
        let found = tokio::task::spawn_blocking(move || {
            let spool = Spool::read_archive(&inner.content, reader)?;
            spool.images(&inner)
        });
        let (found, hold) = found.await??;
        self.finish_load(found, hold, &progress).await
    }

    /// Loads all images of an OCI layout directory.
    ///
    /// # Errors
    /// [`LoadError`].
    pub async fn load_layout(
        &self,
        dir: &Path,
        progress: ProgressSink,
    ) -> Result<Vec<LoadedImage>, LoadError> {
        let (inner, dir) = (Arc::clone(&self.inner), dir.to_owned());
        let found = tokio::task::spawn_blocking(move || {
            let spool = Spool::read_layout(&inner.content, &dir)?;
            spool.images(&inner)
        });
        let (found, hold) = found.await??;
        self.finish_load(found, hold, &progress).await
    }

    async fn finish_load(
        &self,
        found: Vec<Found>,
        hold: Hold,
        progress: &ProgressSink,
    ) -> Result<Vec<LoadedImage>, LoadError> {
        let mut loaded = Vec::new();
        for image in found {
            match self.load_one(image, progress).await {
                Ok(image) => loaded.push(image),
                Err(err) => {
                    drop(hold);
                    if let Err(err) = self.collect_garbage().await {
                        tracing::warn!(%err, "blobs of a failed load could not be removed");
                    }
                    return Err(err);
                }
            }
        }
        Ok(loaded)
    }

    async fn load_one(
        &self,
        found: Found,
        progress: &ProgressSink,
    ) -> Result<LoadedImage, LoadError> {
        let mut layers = layers_of(&found.manifest, &found.config)?;
        let _hold = self.inner.hold(layer_names(&layers));
        self.ensure_layers(&mut layers, None, progress)
            .await
            .map_err(|(layer, err)| LoadError::Layer {
                layer,
                err: Box::new(err),
            })?;
        let (inner, id, names) = (
            Arc::clone(&self.inner),
            found.id.clone(),
            found.names.clone(),
        );
        tokio::task::spawn_blocking(move || -> Result<(), ContentError> {
            inner.content.put_document(&found.config_bytes)?;
            let record = ImageRecord {
                manifest: inner.content.put_document(&found.manifest_bytes)?,
                layers,
            };
            inner.add_image(&found.id, record, found.config, &found.names)
        })
        .await??;
        let image = self.resolve(&id.to_string())?;
        match names.first() {
            Some(_) => names.iter().for_each(|name| {
                progress.status("", format!("Loaded image: {}", name.familiar()));
            }),
            None => progress.status("", format!("Loaded image ID: {id}")),
        }
        Ok(LoadedImage { image, names })
    }
}

enum Part {
    File(StagedBlob),
    Link(Vec<u8>),
}

/// The files of an archive, by name.
struct Spool {
    parts: BTreeMap<Vec<u8>, Part>,
    /// Parts that have become blobs.
    published: BTreeMap<Vec<u8>, (Digest, u64, &'static str)>,
}

impl Spool {
    fn read_archive(content: &Arc<Content>, mut reader: ChunkReader) -> Result<Self, LoadError> {
        let read = |err| LoadError::Tar(TarError::Read(err));
        let mut magic = Vec::new();
        (&mut reader)
            .take(6)
            .read_to_end(&mut magic)
            .map_err(read)?;
        let compression =
            Compression::of(&magic).map_err(|err| LoadError::Decompress(Box::new(err)))?;
        let whole = Cursor::new(magic).chain(reader);
        match compression {
            Compression::None => Self::read_tar(content, whole),
            Compression::Gzip => Self::read_tar(
                content,
                BufReader::new(flate2::bufread::MultiGzDecoder::new(whole)),
            ),
            Compression::Zstd => {
                let decoder = zstd::stream::read::Decoder::with_buffer(whole).map_err(read)?;
                Self::read_tar(content, BufReader::new(decoder))
            }
        }
    }

    fn read_tar(content: &Arc<Content>, source: impl BufRead) -> Result<Self, LoadError> {
        let mut parts = BTreeMap::new();
        let mut tar = TarReader::new(source);
        while let Some(entry) = tar.next_entry()? {
            let Some(path) = clean(&entry.path) else {
                continue;
            };
            let part = match entry.kind {
                Kind::File => {
                    let mut stage = content.stage_blob(algorithm_of(&path))?;
                    loop {
                        let data = tar.data().map_err(TarError::Read)?;
                        let count = data.len();
                        if count == 0 {
                            break;
                        }
                        stage.write(data)?;
                        tar.consume(count);
                    }
                    Part::File(stage.finish().closed())
                }
                Kind::HardLink => Part::Link(entry.link),
                Kind::Symlink => {
                    let dir = path.iter().rposition(|b| *b == b'/').map_or(0, |at| at + 1);
                    Part::Link([&path[..dir], &entry.link].concat())
                }
                Kind::Directory | Kind::Fifo | Kind::CharDevice | Kind::BlockDevice => continue,
            };
            parts.insert(path, part);
            if parts.len() > ARCHIVE_FILES_MAX {
                return Err(LoadError::TooManyFiles);
            }
        }
        Ok(Self {
            parts,
            published: BTreeMap::new(),
        })
    }

    fn read_layout(content: &Arc<Content>, dir: &Path) -> Result<Self, LoadError> {
        let mut names = vec![PathBuf::from("index.json")];
        for algorithm in ["sha256", "sha512"] {
            let sub = Path::new("blobs").join(algorithm);
            let Ok(entries) = std::fs::read_dir(dir.join(&sub)) else {
                continue;
            };
            for entry in entries {
                let entry = entry.map_err(|err| ContentError::io("list", dir.join(&sub), err))?;
                names.push(sub.join(entry.file_name()));
                if names.len() > ARCHIVE_FILES_MAX {
                    return Err(LoadError::TooManyFiles);
                }
            }
        }
        let mut parts = BTreeMap::new();
        for name in names {
            let path = dir.join(&name);
            let fail = |err| ContentError::io("read", &path, err);
            let mut file = std::fs::File::open(&path).map_err(fail)?;
            let key = name.as_os_str().as_encoded_bytes().to_vec();
            let mut stage = content.stage_blob(algorithm_of(&key))?;
            let mut buffer = vec![0; crate::content::READ_BYTES];
            loop {
                match file.read(&mut buffer).map_err(fail)? {
                    0 => break,
                    count => stage.write(&buffer[..count])?,
                }
            }
            parts.insert(key, Part::File(stage.finish().closed()));
        }
        Ok(Self {
            parts,
            published: BTreeMap::new(),
        })
    }

    /// The images, with their blobs published; the hold keeps the blobs until the images are in the list.
    fn images(mut self, inner: &Arc<crate::store::Inner>) -> Result<(Vec<Found>, Hold), LoadError> {
        // Before anything gets its final name: one sync for all of it.
        inner.content.sync()?;
        let staged = self.parts.values().filter_map(|part| match part {
            Part::File(blob) => Some(blob.digest.clone()),
            Part::Link(_) => None,
        });
        let hold = inner.hold(staged.collect());
        let found = if self.parts.contains_key(&b"manifest.json"[..]) {
            self.docker_images()?
        } else if self.parts.contains_key(&b"index.json"[..]) {
            self.oci_images()?
        } else {
            return Err(LoadError::NotAnImage);
        };
        crate::content::sync_dir(&inner.content.blobs_dir(Algorithm::Sha256))?;
        Ok((found, hold))
    }

    fn docker_images(&mut self) -> Result<Vec<Found>, LoadError> {
        let text = self.read("manifest.json")?;
        let entries: Vec<DockerEntry> =
            serde_json::from_slice(&text).map_err(|err| LoadError::Json {
                path: "manifest.json".to_owned(),
                err,
            })?;
        let mut found = Vec::new();
        for entry in entries {
            let config_bytes = self.read(&entry.config)?;
            let mut layers = Vec::new();
            for path in entry.layers.unwrap_or_default() {
                let (digest, size, media_type) = self.publish(&path)?;
                layers.push(descriptor(media_type, digest, size));
            }
            let names =
                entry.repo_tags.unwrap_or_default().into_iter().map(|name| {
                    Reference::parse(&name).map_err(|err| LoadError::Name { name, err })
                });
            let names = names.collect::<Result<_, _>>()?;
            let id = Digest::sha256(&config_bytes);
            let manifest = synthesise((&id, config_bytes.len() as u64), layers);
            let manifest_bytes = serde_json::to_vec(&manifest).map_err(|err| LoadError::Json {
                path: "manifest".to_owned(),
                err,
            })?;
            found.push(Found {
                id,
                config: ParsedConfig::parse(&config_bytes)?,
                config_bytes,
                manifest_bytes,
                manifest,
                names,
            });
        }
        Ok(found)
    }

    fn oci_images(&mut self) -> Result<Vec<Found>, LoadError> {
        let text = self.read("index.json")?;
        let index: ImageIndex = serde_json::from_slice(&text).map_err(|err| LoadError::Json {
            path: "index.json".to_owned(),
            err,
        })?;
        let mut found: Vec<Found> = Vec::new();
        for entry in &index.manifests {
            let image = self.oci_image(entry)?;
            match found.iter_mut().find(|f| f.id == image.id) {
                Some(same) => same.names.extend(image.names),
                None => found.push(image),
            }
        }
        Ok(found)
    }

    fn oci_image(&mut self, entry: &Descriptor) -> Result<Found, LoadError> {
        let mut digest = entry.digest.clone();
        for _ in 0..INDEX_DEPTH_MAX {
            let manifest_bytes = self.document(&digest)?;
            let manifest = match Document::parse(&manifest_bytes)? {
                Document::Manifest(manifest) => manifest,
                Document::Index(index) => {
                    digest = index.select(&host_platform())?.digest.clone();
                    continue;
                }
            };
            let config_bytes = self.document(&manifest.config.digest)?;
            for layer in &manifest.layers {
                let (found, _, _) = self.publish(&blob_name(&layer.digest))?;
                expect_digest(&blob_name(&layer.digest), &layer.digest, found)?;
            }
            return Ok(Found {
                id: manifest.config.digest.clone(),
                config: ParsedConfig::parse(&config_bytes)?,
                config_bytes,
                manifest_bytes,
                manifest,
                names: layout_names(entry),
            });
        }
        Err(ManifestError::NotAnImage {
            media_type: "index of indexes".to_owned(),
        }
        .into())
    }

    fn document(&self, digest: &Digest) -> Result<Vec<u8>, LoadError> {
        let name = blob_name(digest);
        let bytes = self.read(&name)?;
        let mut hasher = digest.algorithm().hasher();
        hasher.update(&bytes);
        expect_digest(&name, digest, hasher.finish())?;
        Ok(bytes)
    }

    /// The name behind links.
    fn target(&self, path: &str) -> Result<Vec<u8>, LoadError> {
        let missing = || LoadError::Missing {
            path: path.to_owned(),
        };
        let mut name = clean(path.as_bytes()).ok_or_else(missing)?;
        for _ in 0..LINKS_MAX {
            match self.parts.get(&name) {
                Some(Part::Link(target)) => name = clean(target).ok_or_else(missing)?,
                Some(Part::File(_)) => return Ok(name),
                None if self.published.contains_key(&name) => return Ok(name),
                None => return Err(missing()),
            }
        }
        Err(missing())
    }

    fn read(&self, path: &str) -> Result<Vec<u8>, LoadError> {
        let name = self.target(path)?;
        let Some(Part::File(blob)) = self.parts.get(&name) else {
            return Err(LoadError::Missing {
                path: path.to_owned(),
            });
        };
        if blob.bytes > DOCUMENT_BYTES_MAX {
            return Err(ContentError::DocumentTooLarge {
                digest: blob.digest.clone(),
                size: blob.bytes,
            }
            .into());
        }
        let bytes = std::fs::read(blob.path());
        Ok(bytes.map_err(|err| ContentError::io("read", blob.path(), err))?)
    }

    fn publish(&mut self, path: &str) -> Result<(Digest, u64, &'static str), LoadError> {
        let name = self.target(path)?;
        if let Some(Part::File(blob)) = self.parts.remove(&name) {
            let mut magic = Vec::new();
            std::fs::File::open(blob.path())
                .and_then(|file| file.take(6).read_to_end(&mut magic))
                .map_err(|err| ContentError::io("read", blob.path(), err))?;
            let compression = Compression::of(&magic);
            let compression = compression.map_err(|err| LoadError::Decompress(Box::new(err)))?;
            let entry = (blob.digest.clone(), blob.bytes, compression.media_type());
            blob.publish()?;
            self.published.insert(name.clone(), entry);
        }
        let published = self.published.get(&name).cloned();
        published.ok_or_else(|| LoadError::Missing {
            path: path.to_owned(),
        })
    }
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm().name(), digest.hex())
}

fn algorithm_of(path: &[u8]) -> Algorithm {
    if path.starts_with(b"blobs/sha512/") {
        Algorithm::Sha512
    } else {
        Algorithm::Sha256
    }
}

fn expect_digest(path: &str, expected: &Digest, found: Digest) -> Result<(), LoadError> {
    if *expected == found {
        return Ok(());
    }
    Err(LoadError::WrongDigest {
        path: path.to_owned(),
        found,
    })
}

/// The names of an image in an OCI layout. A bare tag, which the specification allows too, names no repository.
fn layout_names(entry: &Descriptor) -> Vec<Reference> {
    let names = NAME_ANNOTATIONS
        .iter()
        .filter_map(|key| entry.annotations.get(*key));
    let full = names.filter(|name| name.contains(['/', ':']));
    let parsed = full.filter_map(|name| Reference::parse(name).ok());
    parsed.take(1).collect()
}
