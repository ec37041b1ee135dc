//! Makes an image of one layer from the tar of a root file system.

use crate::changes::{ChangeError, apply_changes};
use crate::content::ContentError;
use crate::digest::Digest;
use crate::feed::feed;
use crate::image::{Image, Layer};
use crate::index::ImageRecord;
use crate::layer::{LayerError, LayerJob, Source, stage_layer};
use crate::manifest::{ManifestError, ParsedConfig, descriptor, host_platform, synthesise};
use crate::reference::Reference;
use crate::store::{ImageStore, ResolveError, layer_names};
use serde_json::{Map, Value, json};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use tokio::io::AsyncRead;

/// Why a root file system was not imported.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// A `--change`.
    #[error(transparent)]
    Change(#[from] ChangeError),
    /// The tar.
    #[error("failed to import the root file system")]
    Layer(#[from] LayerError),
    /// What the changes make is no image configuration.
    #[error("the changes make a configuration that can't be used")]
    Config(#[from] ManifestError),
    /// Imports get a tag, never a digest.
    #[error("refusing to import an image under a name with a digest")]
    DigestReference,
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

impl ImageStore {
    /// Imports a tar, plain or compressed, as an image with one layer. `changes` are Dockerfile instructions, `message` goes into
    /// the history.
    ///
    /// # Errors
    /// [`ImportError`].
    pub async fn import(
        &self,
        tar: impl AsyncRead + Send + Unpin + 'static,
        reference: Option<Reference>,
        changes: &[String],
        message: &str,
    ) -> Result<Image, ImportError> {
        if reference.as_ref().is_some_and(|r| r.digest().is_some()) {
            return Err(ImportError::DigestReference);
        }
        let mut config = Map::new();
        apply_changes(&mut config, changes)?;
        let job = LayerJob {
            source: Source::Stream(feed(tar)),
            blob: None,
            blob_bytes: None,
            diff_id: None,
            keep: true,
            limits: self.inner.options.limits,
            cancelled: Arc::new(AtomicBool::new(false)),
            on_bytes: Box::new(|_| {}),
        };
        let content = Arc::clone(&self.inner.content);
        let staged = tokio::task::spawn_blocking(move || stage_layer(&content, job)).await??;
        let layer = Layer {
            blob: staged.blob_digest.clone(),
            media_type: staged.media_type.to_owned(),
            blob_bytes: staged.blob_bytes,
            diff_id: staged.diff_id.clone(),
            chain_id: staged.diff_id.clone(),
            unpacked_bytes: staged.info.bytes,
        };
        let config_bytes = configuration(&layer.diff_id, config, message)
            .to_string()
            .into_bytes();
        let parsed = ParsedConfig::parse(&config_bytes)?;
        let id = Digest::sha256(&config_bytes);
        let blob = descriptor(&layer.media_type, layer.blob.clone(), layer.blob_bytes);
        let manifest = synthesise((&id, config_bytes.len() as u64), vec![blob]);
        let manifest = serde_json::to_vec(&manifest).map_err(|err| ManifestError::Malformed {
            what: "manifest",
            err,
        })?;
        let mut names = layer_names(std::slice::from_ref(&layer));
        names.extend([id.clone(), Digest::sha256(&manifest)]);
        let _hold = self.inner.hold(names);
        let _alone = self.inner.layer_lock(&layer.chain_id).lock_owned().await;
        let (inner, image_id) = (Arc::clone(&self.inner), id.clone());
        tokio::task::spawn_blocking(move || -> Result<(), ContentError> {
            inner.content.commit_layer(staged, &layer.chain_id, &[])?;
            inner.content.put_document(&config_bytes)?;
            let record = ImageRecord {
                manifest: inner.content.put_document(&manifest)?,
                layers: vec![layer],
            };
            let names: Vec<Reference> = reference.into_iter().collect();
            inner.add_image(&image_id, record, parsed, &names)
        })
        .await??;
        Ok(self.resolve(&id.to_string())?)
    }
}

fn configuration(diff_id: &Digest, config: Map<String, Value>, message: &str) -> Value {
    let now = jiff::Timestamp::now().to_string();
    let platform = host_platform();
    json!({
        "created": now,
        "architecture": platform.architecture,
        "os": platform.os,
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": [diff_id]},
        "history": [{"created": now, "comment": message}],
    })
}
