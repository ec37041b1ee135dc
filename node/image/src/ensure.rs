//! Brings the layers of one image into place: from blobs that are there, or from a download.

use crate::content::{ContentError, remove_tree};
use crate::digest::Digest;
use crate::image::Layer;
use crate::layer::{DOWNLOAD_CHUNKS_MAX, LayerError, LayerJob, Source, StagedLayer, stage_layer};
use crate::progress::{LayerState, ProgressSink};
use crate::registry::{Registry, RegistryError};
use crate::snapshot::SnapshotInfo;
use crate::store::ImageStore;
use crate::unpack::UnpackError;
use futures_util::future::try_join_all;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};

/// Least time between two byte counts of one layer.
const PROGRESS_PERIOD_MS: u64 = 100;

/// Why a layer did not get into place.
#[derive(Debug, thiserror::Error)]
pub enum EnsureError {
    /// Verifying, unpacking or storing it failed.
    #[error(transparent)]
    Layer(#[from] LayerError),
    /// Getting it failed.
    #[error(transparent)]
    Registry(#[from] RegistryError),
}

impl From<ContentError> for EnsureError {
    fn from(err: ContentError) -> Self {
        Self::Layer(err.into())
    }
}

/// Tells a blocking thread that nobody waits for it any more.
struct CancelOnDrop(Arc<AtomicBool>);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl ImageStore {
    /// Makes sure that all layers have a blob and a snapshot, and fills in their unpacked sizes. Layers are worked on in
    /// parallel and become visible from the lowest up. `registry` is where missing blobs come from.
    pub(crate) async fn ensure_layers(
        &self,
        layers: &mut [Layer],
        registry: Option<&Registry>,
        progress: &ProgressSink,
    ) -> Result<(), (Digest, EnsureError)> {
        let chains: Vec<Digest> = layers.iter().map(|layer| layer.chain_id.clone()).collect();
        let mut below_ready: Option<oneshot::Receiver<()>> = None;
        let mut work = Vec::with_capacity(layers.len());
        for (at, layer) in layers.iter().enumerate() {
            progress.layer(layer.blob.short(), LayerState::Pending);
            let (ready, next) = oneshot::channel();
            let below = &chains[..at];
            let below_ready = below_ready.replace(next);
            work.push(async move {
                let info = self
                    .ensure_layer(layer, below, below_ready, registry, progress)
                    .await;
                let info = info.map_err(|err| (layer.blob.clone(), err))?;
                if ready.send(()).is_err() {
                    tracing::trace!("nothing lies above the top layer");
                }
                Ok(info)
            });
        }
        let infos = try_join_all(work).await?;
        for (layer, info) in layers.iter_mut().zip(infos) {
            layer.unpacked_bytes = info.bytes;
        }
        Ok(())
    }

    async fn ensure_layer(
        &self,
        layer: &Layer,
        below: &[Digest],
        below_ready: Option<oneshot::Receiver<()>>,
        registry: Option<&Registry>,
        progress: &ProgressSink,
    ) -> Result<SnapshotInfo, EnsureError> {
        let id = layer.blob.short();
        let content = &self.inner.content;
        let lock = self.inner.layer_lock(&layer.chain_id);
        let _alone = match lock.try_lock() {
            Ok(alone) => alone,
            Err(_) => {
                progress.layer(id, LayerState::Waiting);
                lock.lock().await
            }
        };
        if content.has_blob(&layer.blob)
            && let Some(info) = content.snapshot(&layer.chain_id)?
        {
            progress.layer(id, LayerState::AlreadyExists);
            return Ok(info);
        }
        let permit = match self.inner.permits.try_acquire() {
            Ok(permit) => permit,
            Err(_) => {
                progress.layer(id, LayerState::Waiting);
                let permit = self.inner.permits.acquire().await;
                permit.map_err(|_| LayerError::Cancelled)?
            }
        };
        let staged = self.stage(layer, registry, progress).await?;
        drop(permit);
        if let Some(below_ready) = below_ready {
            below_ready.await.map_err(|_| LayerError::Cancelled)?;
        }
        let info = staged.info.clone();
        let (content, chain, below) = (Arc::clone(content), layer.chain_id.clone(), below.to_vec());
        let commit = move || content.commit_layer(staged, &chain, &below);
        let committed = tokio::task::spawn_blocking(commit).await;
        committed.map_err(LayerError::Thread)??;
        progress.layer(id, LayerState::Complete);
        Ok(info)
    }

    async fn stage(
        &self,
        layer: &Layer,
        registry: Option<&Registry>,
        progress: &ProgressSink,
    ) -> Result<StagedLayer, EnsureError> {
        if self.inner.content.has_blob(&layer.blob) {
            match (self.stage_local(layer, progress).await, registry) {
                (Ok(staged), _) => return Ok(staged),
                (Err(err), Some(_)) if is_damage(&err) => {
                    let path = self.inner.content.blob_path(&layer.blob);
                    tracing::warn!(path = %path.display(), %err, "damaged blob is fetched again");
                    remove_tree(&path)?;
                }
                (Err(LayerError::BlobDigest { found, .. }), None) => {
                    let path = self.inner.content.blob_path(&layer.blob);
                    return Err(ContentError::Damaged { path, found }.into());
                }
                (Err(err), _) => return Err(err.into()),
            }
        }
        let Some(registry) = registry else {
            let path = self.inner.content.blob_path(&layer.blob);
            return Err(ContentError::Missing { path }.into());
        };
        self.download(layer, registry, progress).await
    }

    async fn stage_local(
        &self,
        layer: &Layer,
        progress: &ProgressSink,
    ) -> Result<StagedLayer, LayerError> {
        let file = self.inner.content.open_blob(&layer.blob)?;
        let total = layer.blob_bytes;
        let counts = counter(progress, layer, move |current| LayerState::Extracting {
            current,
            total,
        });
        let (job, _cancel) = self.job(layer, Source::File(file), counts);
        let content = Arc::clone(&self.inner.content);
        tokio::task::spawn_blocking(move || stage_layer(&content, job))
            .await
            .map_err(LayerError::Thread)?
    }

    async fn download(
        &self,
        layer: &Layer,
        registry: &Registry,
        progress: &ProgressSink,
    ) -> Result<StagedLayer, EnsureError> {
        let (sender, receiver) = mpsc::channel(DOWNLOAD_CHUNKS_MAX);
        let total = layer.blob_bytes;
        let counts = counter(progress, layer, move |current| LayerState::Downloading {
            current,
            total,
        });
        let (mut job, _cancel) = self.job(layer, Source::Stream(receiver), counts);
        job.keep = true;
        let content = Arc::clone(&self.inner.content);
        let staging = tokio::task::spawn_blocking(move || stage_layer(&content, job));
        let id = layer.blob.short().to_owned();
        let on_retry = |attempt| progress.layer(&id, LayerState::Retrying { attempt });
        let fetched = registry.blob(&layer.blob, total, sender, on_retry).await;
        if fetched.is_ok() {
            progress.layer(&id, LayerState::DownloadComplete);
        }
        let staged = staging.await.map_err(LayerError::Thread)?;
        match (fetched, staged) {
            // The unpacker stopped first: it knows why.
            (Err(RegistryError::Stopped), Err(err)) => Err(err.into()),
            (Err(err), _) => Err(err.into()),
            (Ok(()), staged) => Ok(staged?),
        }
    }

    fn job(
        &self,
        layer: &Layer,
        source: Source,
        on_bytes: Box<dyn FnMut(u64) + Send>,
    ) -> (LayerJob, CancelOnDrop) {
        let cancelled = Arc::new(AtomicBool::new(false));
        let job = LayerJob {
            source,
            blob: Some(layer.blob.clone()),
            blob_bytes: Some(layer.blob_bytes),
            diff_id: Some(layer.diff_id.clone()),
            keep: false,
            limits: self.inner.options.limits,
            cancelled: Arc::clone(&cancelled),
            on_bytes,
        };
        (job, CancelOnDrop(cancelled))
    }

    /// Unpacks a layer of an image whose snapshot is gone.
    pub(crate) async fn unpack_again(
        &self,
        layer: &Layer,
        below: &[Digest],
    ) -> Result<SnapshotInfo, LayerError> {
        let none = ProgressSink::none();
        match self.ensure_layer(layer, below, None, None, &none).await {
            Ok(info) => Ok(info),
            Err(EnsureError::Layer(err)) => Err(err),
            // Without a registry there is nothing to ask.
            Err(EnsureError::Registry(_)) => Err(LayerError::Cancelled),
        }
    }
}

/// Whether a blob on the disk is to blame, so that another copy would do.
fn is_damage(err: &LayerError) -> bool {
    matches!(
        err,
        LayerError::BlobDigest { .. }
            | LayerError::TooLong { .. }
            | LayerError::Read(_)
            | LayerError::Unpack(UnpackError::Tar(_))
    )
}

/// Reports byte counts, not more often than the period.
fn counter(
    progress: &ProgressSink,
    layer: &Layer,
    state: impl Fn(u64) -> LayerState + Send + 'static,
) -> Box<dyn FnMut(u64) + Send> {
    let (progress, id) = (progress.clone(), layer.blob.short().to_owned());
    let mut last: Option<Instant> = None;
    Box::new(move |bytes| {
        let period = Duration::from_millis(PROGRESS_PERIOD_MS);
        if last.is_none_or(|last| last.elapsed() >= period) {
            last = Some(Instant::now());
            progress.layer(&id, state(bytes));
        }
    })
}
