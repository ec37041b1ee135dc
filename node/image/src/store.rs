//! The image store: what there is, under which names, and who uses it.

use crate::content::{Content, ContentError, TmpPath};
use crate::digest::Digest;
use crate::image::{Image, Layer, Removed, RootfsLayers};
use crate::index::{ImageRecord, Index, IndexError};
use crate::layer::LayerError;
use crate::manifest::ParsedConfig;
use crate::reference::{Reference, ReferenceError};
use crate::unpack::UnpackLimits;
use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use tokio::sync::Semaphore;

/// Layers that are transferred and unpacked at the same time, over all pulls.
pub const LAYERS_AT_ONCE_MAX: usize = 3;

/// How to open a store.
#[derive(Debug, Clone, Default)]
pub struct ImageStoreOptions {
    /// Where everything is kept: `<data-root>/images`.
    pub root: PathBuf,
    /// Registries (`host[:port]`) that may be reached over plain HTTP or without a valid certificate.
    pub insecure_registries: Vec<String>,
    /// Registries (`host[:port]`) that are asked before `docker.io`.
    pub mirrors: Vec<String>,
    /// Extra certificate authorities as Docker keeps them: `<dir>/<host[:port]>/*.crt`.
    pub certs_dir: Option<PathBuf>,
    /// What one layer may hold.
    pub limits: UnpackLimits,
}

/// Why the store can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Its files.
    #[error(transparent)]
    Content(#[from] ContentError),
    /// The list of images.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// Another daemon has it.
    #[error("the image store `{}` is in use by another process", path.display())]
    InUse {
        /// The store.
        path: PathBuf,
    },
}

/// Why no image was found.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// Nothing has this name or id.
    #[error("No such image: {name}")]
    NotFound {
        /// As asked.
        name: String,
    },
    /// The id is too short.
    #[error("image id `{prefix}` is ambiguous: {count} images begin with it")]
    Ambiguous {
        /// As asked.
        prefix: String,
        /// How many match.
        count: usize,
    },
    /// The text is neither a name nor an id.
    #[error("`{name}`")]
    Reference {
        /// As asked.
        name: String,
        /// Why.
        #[source]
        err: ReferenceError,
    },
    /// Its configuration can't be read.
    #[error(
        "the configuration of image `{name}` is damaged: remove the image, or pull or load it again"
    )]
    Damaged {
        /// As asked.
        name: String,
    },
}

/// Why a name could not be given.
#[derive(Debug, thiserror::Error)]
pub enum TagError {
    /// The image.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    /// A name with a digest can't be given by hand.
    #[error("refusing to create a tag with a digest reference")]
    DigestReference,
    /// The store's files.
    #[error(transparent)]
    Content(#[from] ContentError),
    /// The working thread died.
    #[error("the working thread failed")]
    Thread(#[from] tokio::task::JoinError),
}

/// Why an image was not removed.
#[derive(Debug, thiserror::Error)]
pub enum RemoveError {
    /// The image.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    /// Something uses it.
    #[error("conflict: unable to remove image `{name}`: it is in use by {}", holders.join(", "))]
    InUse {
        /// As asked.
        name: String,
        /// Who.
        holders: Vec<String>,
    },
    /// By id, but it has several names.
    #[error(
        "conflict: unable to delete {id} (must be forced) - image is referenced in multiple repositories"
    )]
    SeveralNames {
        /// The short id.
        id: String,
    },
    /// The store's files.
    #[error(transparent)]
    Content(#[from] ContentError),
    /// The working thread died.
    #[error("the working thread failed")]
    Thread(#[from] tokio::task::JoinError),
}

/// Why a root file system could not be prepared.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// The image is gone.
    #[error("No such image: {id}")]
    NoImage {
        /// Its id.
        id: Digest,
    },
    /// An image without layers has no root file system.
    #[error("image {id} has no layers")]
    NoLayers {
        /// Its id.
        id: Digest,
    },
    /// A layer could not be unpacked.
    #[error("failed to unpack layer {layer} of image {id}")]
    Layer {
        /// The image.
        id: Digest,
        /// The layer's blob.
        layer: Digest,
        /// Why.
        #[source]
        err: Box<LayerError>,
    },
    /// The store's files.
    #[error(transparent)]
    Content(#[from] ContentError),
    /// The working thread died.
    #[error("the working thread failed")]
    Thread(#[from] tokio::task::JoinError),
}

/// The images of this node. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ImageStore {
    pub(crate) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) content: Arc<Content>,
    pub(crate) options: ImageStoreOptions,
    pub(crate) permits: Arc<Semaphore>,
    /// Held while the list changes and while rubbish is collected.
    writer: Mutex<()>,
    index: Mutex<Arc<Index>>,
    configs: Mutex<HashMap<Digest, Arc<ParsedConfig>>>,
    uses: Mutex<Uses>,
    layer_locks: Mutex<HashMap<Digest, Weak<tokio::sync::Mutex<()>>>>,
    /// Locked as long as this process has the store.
    _lock: File,
}

#[derive(Debug, Default)]
struct Uses {
    /// Blobs and snapshots that are being brought in or are in use.
    holds: BTreeMap<Digest, usize>,
    /// Image to the holders of its leases.
    leases: BTreeMap<Digest, Vec<String>>,
}

/// A lock that a panic elsewhere does not poison: every critical section leaves complete values behind.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ImageStore {
    /// Opens or makes the store, and removes what a crash left half done; blocks.
    ///
    /// # Errors
    /// [`OpenError`]: the directory can't be used, another process has it, or the list of images is damaged.
    pub fn open(options: ImageStoreOptions) -> Result<Self, OpenError> {
        crate::content::make_dir(&options.root)?;
        let lock_path = options.root.join("lock");
        let lock =
            File::create(&lock_path).map_err(|err| ContentError::io("create", &lock_path, err))?;
        if lock.try_lock().is_err() {
            return Err(OpenError::InUse { path: options.root });
        }
        let content = Content::open(&options.root)?;
        let index = Index::read(&content)?;
        let inner = Inner {
            content,
            options,
            permits: Arc::new(Semaphore::new(LAYERS_AT_ONCE_MAX)),
            writer: Mutex::new(()),
            configs: Mutex::new(HashMap::new()),
            index: Mutex::new(Arc::new(index)),
            uses: Mutex::new(Uses::default()),
            layer_locks: Mutex::new(HashMap::new()),
            _lock: lock,
        };
        inner.collect_garbage()?;
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// Finds an image by name, name with digest, full id, or unique prefix of its id.
    ///
    /// # Errors
    /// [`ResolveError`].
    pub fn resolve(&self, name_or_id: &str) -> Result<Image, ResolveError> {
        let id = self.inner.find(name_or_id)?.0;
        self.inner.image(&id).ok_or_else(|| ResolveError::Damaged {
            name: name_or_id.to_owned(),
        })
    }

    /// Every image whose configuration can be read, in the order of ids.
    pub fn list(&self) -> Vec<Image> {
        let index = self.inner.index();
        index
            .images
            .keys()
            .filter_map(|id| self.inner.image(id))
            .collect()
    }

    /// Gives an image a further name; a name that another image has moves.
    ///
    /// # Errors
    /// [`TagError`].
    pub async fn tag(&self, id: &Digest, reference: &Reference) -> Result<(), TagError> {
        if reference.digest().is_some() {
            return Err(TagError::DigestReference);
        }
        let inner = Arc::clone(&self.inner);
        let (id, name) = (id.clone(), reference.without_digest());
        tokio::task::spawn_blocking(move || {
            inner.change(|index| {
                if !index.images.contains_key(&id) {
                    let name = id.to_string();
                    return Err(ResolveError::NotFound { name }.into());
                }
                index.names.insert(name, id);
                Ok(())
            })
        })
        .await?
    }

    /// Takes a name away; the image goes with its last name, unless something uses it. `force` removes all names of an id,
    /// and the names of an image in use, whose layers then stay until it is removed again.
    ///
    /// # Errors
    /// [`RemoveError`].
    pub async fn remove(&self, name_or_id: &str, force: bool) -> Result<Vec<Removed>, RemoveError> {
        let inner = Arc::clone(&self.inner);
        let name = name_or_id.to_owned();
        tokio::task::spawn_blocking(move || inner.remove(&name, force)).await?
    }

    /// Removes the layers and blobs that no image needs; a pull that runs keeps what it has.
    ///
    /// # Errors
    /// [`RemoveError`].
    pub async fn collect_garbage(&self) -> Result<Vec<Digest>, RemoveError> {
        let inner = Arc::clone(&self.inner);
        Ok(tokio::task::spawn_blocking(move || inner.collect_garbage()).await??)
    }

    /// The directories for overlayfs, unpacked from the blobs where they are missing.
    ///
    /// # Errors
    /// [`PrepareError`].
    pub async fn prepare_rootfs(&self, image: &Image) -> Result<RootfsLayers, PrepareError> {
        let _hold = self.inner.hold(layer_names(&image.layers));
        let mut below: Vec<Digest> = Vec::new();
        let mut lower = Vec::new();
        if image.layers.is_empty() {
            return Err(PrepareError::NoLayers {
                id: image.id.clone(),
            });
        }
        for layer in image.layers.iter() {
            let present = self.inner.content.snapshot(&layer.chain_id)?;
            let info = match present {
                Some(info) => info,
                None => {
                    let unpacked = self.unpack_again(layer, &below).await;
                    unpacked.map_err(|err| PrepareError::Layer {
                        id: image.id.clone(),
                        layer: layer.blob.clone(),
                        err: Box::new(err),
                    })?
                }
            };
            if info.opaque_root {
                // Overlayfs merges the roots of all its layers, whatever their marks say.
                lower.clear();
            }
            lower.push(self.inner.content.short_link(&layer.chain_id)?);
            below.push(layer.chain_id.clone());
        }
        lower.reverse();
        Ok(RootfsLayers { lower })
    }

    /// Keeps an image and its layers until the lease is dropped. `holder` is who is named when somebody wants to remove the
    /// image: a container id.
    ///
    /// # Errors
    /// [`ResolveError::NotFound`] when the image is gone.
    pub fn lease(&self, image: &Image, holder: &str) -> Result<ImageLease, ResolveError> {
        let _writer = locked(&self.inner.writer);
        if !self.inner.index().images.contains_key(&image.id) {
            return Err(ResolveError::NotFound {
                name: image.id.to_string(),
            });
        }
        let mut uses = locked(&self.inner.uses);
        let holders = uses.leases.entry(image.id.clone()).or_default();
        holders.push(holder.to_owned());
        Ok(ImageLease {
            inner: Arc::clone(&self.inner),
            image: image.id.clone(),
            holder: holder.to_owned(),
        })
    }

    /// Opens a blob of some image, unverified, to send it to another node.
    ///
    /// # Errors
    /// [`ContentError::Missing`] when the store does not have it.
    pub fn open_blob(&self, digest: &Digest) -> Result<File, ContentError> {
        self.inner.content.open_blob(digest)
    }
}

/// Keeps an image and its layers while something uses them; ends when dropped.
#[derive(Debug)]
pub struct ImageLease {
    inner: Arc<Inner>,
    image: Digest,
    holder: String,
}

impl Drop for ImageLease {
    fn drop(&mut self) {
        let mut uses = locked(&self.inner.uses);
        if let Some(holders) = uses.leases.get_mut(&self.image) {
            if let Some(at) = holders.iter().position(|h| *h == self.holder) {
                holders.remove(at);
            }
            if holders.is_empty() {
                uses.leases.remove(&self.image);
            }
        }
    }
}

/// Keeps blobs and snapshots from the garbage collection; ends when dropped.
#[derive(Debug)]
pub(crate) struct Hold {
    inner: Arc<Inner>,
    names: Vec<Digest>,
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut uses = locked(&self.inner.uses);
        for name in &self.names {
            if let Some(count) = uses.holds.get_mut(name) {
                *count -= 1;
                if *count == 0 {
                    uses.holds.remove(name);
                }
            }
        }
    }
}

/// The blobs and snapshots of layers.
pub(crate) fn layer_names(layers: &[Layer]) -> Vec<Digest> {
    let names = layers
        .iter()
        .flat_map(|l| [l.blob.clone(), l.chain_id.clone()]);
    names.collect()
}

impl Inner {
    pub(crate) fn index(&self) -> Arc<Index> {
        Arc::clone(&locked(&self.index))
    }

    pub(crate) fn hold(self: &Arc<Self>, names: Vec<Digest>) -> Hold {
        // Behind the writer's lock, so that a collection that runs sees the hold or is over.
        let _writer = locked(&self.writer);
        let mut uses = locked(&self.uses);
        for name in &names {
            *uses.holds.entry(name.clone()).or_default() += 1;
        }
        Hold {
            inner: Arc::clone(self),
            names,
        }
    }

    /// One caller at a time works on a layer; the others find it done.
    pub(crate) fn layer_lock(&self, chain: &Digest) -> Arc<tokio::sync::Mutex<()>> {
        let mut locks = locked(&self.layer_locks);
        locks.retain(|_, lock| lock.strong_count() > 0);
        if let Some(lock) = locks.get(chain).and_then(Weak::upgrade) {
            return lock;
        }
        let lock = Arc::new(tokio::sync::Mutex::new(()));
        locks.insert(chain.clone(), Arc::downgrade(&lock));
        lock
    }

    /// Changes the list: on the disk first, then for readers.
    pub(crate) fn change<T, E: From<ContentError>>(
        &self,
        change: impl FnOnce(&mut Index) -> Result<T, E>,
    ) -> Result<T, E> {
        let _writer = locked(&self.writer);
        let mut index = Index::clone(&self.index());
        let result = change(&mut index)?;
        index.write(&self.content)?;
        *locked(&self.index) = Arc::new(index);
        Ok(result)
    }

    /// Adds an image whose blobs and snapshots are in place.
    pub(crate) fn add_image(
        &self,
        id: &Digest,
        record: ImageRecord,
        config: ParsedConfig,
        names: &[Reference],
    ) -> Result<(), ContentError> {
        locked(&self.configs).insert(id.clone(), Arc::new(config));
        self.change(|index| {
            index.images.insert(id.clone(), record);
            for name in names {
                match name.digest() {
                    Some(digest) => index
                        .digests
                        .insert(name.with_digest(digest.clone()), id.clone()),
                    None => index.names.insert(name.clone(), id.clone()),
                };
            }
            Ok(())
        })
    }

    fn config(&self, id: &Digest) -> Option<Arc<ParsedConfig>> {
        if let Some(config) = locked(&self.configs).get(id) {
            return Some(Arc::clone(config));
        }
        let parsed = self.content.read_document(id).map_err(|err| {
            tracing::warn!(image = %id, %err, "image configuration is damaged");
        });
        let parsed = ParsedConfig::parse(&parsed.ok()?).map_err(|err| {
            tracing::warn!(image = %id, %err, "image configuration is malformed");
        });
        let parsed = Arc::new(parsed.ok()?);
        locked(&self.configs).insert(id.clone(), Arc::clone(&parsed));
        Some(parsed)
    }

    pub(crate) fn image(&self, id: &Digest) -> Option<Image> {
        let index = self.index();
        let record = index.images.get(id)?;
        let parsed = self.config(id)?;
        let of = |names: &BTreeMap<Reference, Digest>| -> Vec<String> {
            let own = names.iter().filter(|(_, image)| *image == id);
            own.map(|(name, _)| name.familiar()).collect()
        };
        Some(Image {
            id: id.clone(),
            manifest: record.manifest.clone(),
            config: Arc::new(parsed.config.clone()),
            docker: Arc::new(parsed.docker.clone()),
            repo_tags: of(&index.names),
            repo_digests: of(&index.digests),
            size: record.layers.iter().map(|layer| layer.unpacked_bytes).sum(),
            created: parsed.created,
            layers: record.layers.clone().into(),
        })
    }

    /// The id, and the name if it was found by one.
    fn find(&self, text: &str) -> Result<(Digest, Option<Reference>), ResolveError> {
        let index = self.index();
        let not_found = || ResolveError::NotFound {
            name: text.to_owned(),
        };
        if let Ok(id) = text.parse::<Digest>() {
            return match index.images.contains_key(&id) {
                true => Ok((id, None)),
                false => Err(not_found()),
            };
        }
        let reference = Reference::parse(text);
        if let Ok(reference) = &reference {
            let (names, key) = match reference.digest() {
                Some(digest) => (&index.digests, reference.with_digest(digest.clone())),
                None => (&index.names, reference.clone()),
            };
            if let Some(id) = names.get(&key) {
                return Ok((id.clone(), Some(key)));
            }
        }
        let prefix = text.strip_prefix("sha256:").unwrap_or(text);
        if prefix.is_empty() || !prefix.bytes().all(|b| b.is_ascii_hexdigit()) {
            return match reference {
                Err(err) => Err(ResolveError::Reference {
                    name: text.to_owned(),
                    err,
                }),
                Ok(_) => Err(not_found()),
            };
        }
        let mut found = index
            .images
            .keys()
            .filter(|id| id.hex().starts_with(prefix));
        match (found.next(), found.count()) {
            (None, _) => Err(not_found()),
            (Some(id), 0) => Ok((id.clone(), None)),
            (Some(_), more) => Err(ResolveError::Ambiguous {
                prefix: text.to_owned(),
                count: more + 1,
            }),
        }
    }

    fn remove(&self, text: &str, force: bool) -> Result<Vec<Removed>, RemoveError> {
        let (id, name) = self.find(text)?;
        let mut removed = Vec::new();
        let deleted = self.change(|index| -> Result<bool, RemoveError> {
            let tags: Vec<Reference> = names_of(&index.names, &id);
            let digests: Vec<Reference> = names_of(&index.digests, &id);
            let others = tags.iter().any(|tag| Some(tag) != name.as_ref());
            if name.is_none() && tags.len() > 1 && !force {
                return Err(RemoveError::SeveralNames {
                    id: id.short().to_owned(),
                });
            }
            if let (Some(name), true) = (&name, others) {
                index.names.remove(name);
                index.digests.remove(name);
                removed.push(Removed::Untagged(name.familiar()));
                return Ok(false);
            }
            let holders = locked(&self.uses)
                .leases
                .get(&id)
                .cloned()
                .unwrap_or_default();
            if !holders.is_empty() && !force {
                return Err(RemoveError::InUse {
                    name: text.to_owned(),
                    holders,
                });
            }
            for name in tags.iter().chain(&digests) {
                index.names.remove(name);
                index.digests.remove(name);
                removed.push(Removed::Untagged(name.familiar()));
            }
            if holders.is_empty() {
                index.images.remove(&id);
                removed.push(Removed::Deleted(id.clone()));
            }
            Ok(holders.is_empty())
        })?;
        if deleted {
            locked(&self.configs).remove(&id);
            removed.extend(self.collect_garbage()?.into_iter().map(Removed::Deleted));
        }
        Ok(removed)
    }

    /// Removes blobs and snapshots that neither the list nor a hold needs; returns the snapshots.
    pub(crate) fn collect_garbage(&self) -> Result<Vec<Digest>, ContentError> {
        let mut rubbish = Vec::new();
        let mut gone = Vec::new();
        {
            let _writer = locked(&self.writer);
            let index = self.index();
            let uses = locked(&self.uses);
            let (blobs, chains) = (index.blobs(), index.chains());
            for algorithm in [crate::Algorithm::Sha256, crate::Algorithm::Sha512] {
                for name in file_names(&self.content.blobs_dir(algorithm))? {
                    let digest = format!("{}:{name}", algorithm.name()).parse::<Digest>();
                    let path = self.content.blobs_dir(algorithm).join(name);
                    if !digest.is_ok_and(|d| blobs.contains(&d) || uses.holds.contains_key(&d)) {
                        self.set_aside(path, &mut rubbish)?;
                    }
                }
            }
            for name in file_names(&self.content.snapshots_dir())? {
                // Every chain id is a SHA-256, but for the lowest layer of an image that uses SHA-512 for it.
                let ids = ["sha256", "sha512"].map(|a| format!("{a}:{name}").parse::<Digest>());
                let id = ids.into_iter().find_map(Result::ok);
                let path = self.content.snapshots_dir().join(name);
                if !id
                    .as_ref()
                    .is_some_and(|d| chains.contains(d) || uses.holds.contains_key(d))
                {
                    self.set_aside(path, &mut rubbish)?;
                    gone.extend(id);
                }
            }
        }
        for link in file_names(&self.content.links_dir())? {
            let link = self.content.links_dir().join(link);
            if !link.exists() {
                crate::content::remove_tree(&link)?;
            }
        }
        drop(rubbish);
        Ok(gone)
    }

    /// Takes a file out of sight; it is deleted when `rubbish` is dropped, outside of any lock.
    fn set_aside(&self, path: PathBuf, rubbish: &mut Vec<TmpPath>) -> Result<(), ContentError> {
        let aside = self.content.tmp_path();
        fs::rename(&path, &aside).map_err(|err| ContentError::io("rename", path, err))?;
        rubbish.push(TmpPath(aside));
        Ok(())
    }
}

fn names_of(names: &BTreeMap<Reference, Digest>, id: &Digest) -> Vec<Reference> {
    let own = names.iter().filter(|(_, image)| *image == id);
    own.map(|(name, _)| name.clone()).collect()
}

fn file_names(dir: &std::path::Path) -> Result<Vec<String>, ContentError> {
    let fail = |err| ContentError::io("list", dir, err);
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).map_err(fail)? {
        names.push(
            entry
                .map_err(fail)?
                .file_name()
                .to_string_lossy()
                .into_owned(),
        );
    }
    Ok(names)
}
