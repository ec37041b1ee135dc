//! Pulls an image from a registry.

use crate::content::ContentError;
use crate::digest::Digest;
use crate::ensure::EnsureError;
use crate::image::{Image, Layer};
use crate::index::ImageRecord;
use crate::manifest::{Document, Manifest, ManifestError, ParsedConfig, complete};
use crate::progress::ProgressSink;
use crate::reference::Reference;
use crate::registry::{Fetched, Registry, RegistryAuth, RegistryError};
use crate::snapshot::chain_ids;
use crate::store::{ImageStore, ResolveError, layer_names};
use shoal_model::spec::Platform;
use std::sync::Arc;

/// Indexes that may point to indexes.
const INDEX_DEPTH_MAX: usize = 4;

/// Why an image was not pulled.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// The registry.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// What the registry sent is no image for this machine.
    #[error("`{reference}` can't be used")]
    Manifest {
        /// The image.
        reference: String,
        /// Why.
        #[source]
        err: ManifestError,
    },
    /// A layer.
    #[error("failed to get layer {layer} of `{reference}`")]
    Layer {
        /// The image.
        reference: String,
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

impl PullError {
    /// Whether the same pull may succeed later without anybody changing the request.
    pub fn is_retryable(&self) -> bool {
        let registry = match self {
            Self::Registry(err) => err,
            Self::Layer { err, .. } => match err.as_ref() {
                EnsureError::Registry(err) => err,
                EnsureError::Layer(_) => return true,
            },
            Self::Manifest { .. } => return false,
            Self::Content(_) | Self::Gone(_) | Self::Thread(_) => return true,
        };
        match registry {
            RegistryError::Unreachable { .. }
            | RegistryError::Broken { .. }
            | RegistryError::Refused { .. }
            | RegistryError::Stopped => true,
            RegistryError::PlainHttp { .. }
            | RegistryError::UnknownImage { .. }
            | RegistryError::Denied { .. }
            | RegistryError::UnknownBlob { .. }
            | RegistryError::WrongDigest { .. }
            | RegistryError::TooLarge { .. }
            | RegistryError::Certificates { .. } => false,
        }
    }
}

impl ImageStore {
    /// Asks the registry of `reference` whether it takes these credentials; the image itself need not exist.
    ///
    /// # Errors
    /// [`RegistryError::Denied`] when it does not, or why it could not be asked.
    pub async fn check_credentials(
        &self,
        reference: &Reference,
        auth: RegistryAuth,
    ) -> Result<(), RegistryError> {
        Registry::check_credentials(&self.inner.options, reference, auth).await
    }

    /// Pulls an image and gives it the name that it was asked for under. Dropping the future leaves nothing visible.
    ///
    /// # Errors
    /// [`PullError`].
    pub async fn pull(
        &self,
        reference: &Reference,
        platform: &Platform,
        auth: Option<RegistryAuth>,
        progress: ProgressSink,
    ) -> Result<Image, PullError> {
        let manifest_error = |err| PullError::Manifest {
            reference: reference.familiar(),
            err,
        };
        let wanted = complete(platform);
        let (registry, top) = Registry::connect(&self.inner.options, reference, auth).await?;
        let tag = reference.tag().unwrap_or_default();
        progress.status(tag, format!("Pulling from {}", reference.path()));
        let top_digest = top.digest.clone();
        let (manifest, fetched) = image_manifest(&registry, top, &wanted, reference).await?;
        let id = manifest.config.digest.clone();
        let held = vec![id.clone(), fetched.digest.clone()];
        let _hold = self.inner.hold(held);
        let config_bytes = self.config_bytes(&registry, &manifest).await?;
        let config = ParsedConfig::parse(&config_bytes).map_err(manifest_error)?;
        config.check_platform(&wanted).map_err(manifest_error)?;
        let mut layers = layers_of(&manifest, &config).map_err(manifest_error)?;
        let _layer_hold = self.inner.hold(layer_names(&layers));
        let known = self.inner.index().images.contains_key(&id);
        self.ensure_layers(&mut layers, Some(&registry), &progress)
            .await
            .map_err(|(layer, err)| PullError::Layer {
                reference: reference.familiar(),
                layer,
                err: Box::new(err),
            })?;
        let mut names = vec![reference.with_digest(top_digest.clone())];
        if reference.digest().is_none() {
            names.push(reference.clone());
        }
        let record = ImageRecord {
            manifest: fetched.digest.clone(),
            layers,
        };
        let inner = Arc::clone(&self.inner);
        let image_id = id.clone();
        tokio::task::spawn_blocking(move || -> Result<(), ContentError> {
            inner.content.put_document(&fetched.bytes)?;
            inner.content.put_document(&config_bytes)?;
            inner.add_image(&image_id, record, config, &names)
        })
        .await??;
        progress.status("", format!("Digest: {top_digest}"));
        let outcome = if known {
            "Image is up to date for"
        } else {
            "Downloaded newer image for"
        };
        progress.status("", format!("Status: {outcome} {}", reference.familiar()));
        Ok(self.resolve(&id.to_string())?)
    }

    async fn config_bytes(
        &self,
        registry: &Registry,
        manifest: &Manifest,
    ) -> Result<Vec<u8>, PullError> {
        let config = &manifest.config;
        match self.inner.content.read_document(&config.digest) {
            Ok(bytes) => Ok(bytes),
            Err(_) => Ok(registry.document(&config.digest, config.size).await?),
        }
    }
}

/// Follows indexes down to the manifest for the machine.
async fn image_manifest(
    registry: &Registry,
    top: Fetched,
    wanted: &Platform,
    reference: &Reference,
) -> Result<(Manifest, Fetched), PullError> {
    let manifest_error = |err| PullError::Manifest {
        reference: reference.familiar(),
        err,
    };
    let mut fetched = top;
    for _ in 0..INDEX_DEPTH_MAX {
        match Document::parse(&fetched.bytes).map_err(manifest_error)? {
            Document::Manifest(manifest) => return Ok((manifest, fetched)),
            Document::Index(index) => {
                let entry = index.select(wanted).map_err(manifest_error)?;
                fetched = registry.manifest(Some(&entry.digest), None).await?;
            }
        }
    }
    Err(manifest_error(ManifestError::NotAnImage {
        media_type: "index of indexes".to_owned(),
    }))
}

/// Joins what the manifest and the configuration say about each layer.
pub(crate) fn layers_of(
    manifest: &Manifest,
    config: &ParsedConfig,
) -> Result<Vec<Layer>, ManifestError> {
    let diff_ids = &config.diff_ids;
    if manifest.layers.len() != diff_ids.len() {
        return Err(ManifestError::LayerCount {
            layers: manifest.layers.len(),
            diff_ids: diff_ids.len(),
        });
    }
    let chains = chain_ids(diff_ids);
    let layers = manifest.layers.iter().zip(diff_ids).zip(chains);
    Ok(layers
        .map(|((blob, diff_id), chain_id)| Layer {
            blob: blob.digest.clone(),
            media_type: blob.media_type.clone(),
            blob_bytes: blob.size,
            diff_id: diff_id.clone(),
            chain_id,
            unpacked_bytes: 0,
        })
        .collect())
}
