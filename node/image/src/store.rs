//! The image store.

use crate::digest::Digest;
use crate::image::{Image, LoadedImage, Removed, RootfsLayers};
use crate::progress::ProgressSink;
use crate::reference::Reference;
use shoal_model::spec::Platform;
use std::path::{Path, PathBuf};
use tokio::io::AsyncRead;

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
}

/// Credentials for one registry.
#[derive(Clone, PartialEq, Eq)]
pub enum RegistryAuth {
    /// User name and password, for basic and for token authentication.
    Basic {
        /// The user.
        username: String,
        /// The password or access token.
        password: String,
    },
    /// A bearer token that the registry itself accepts.
    Bearer(String),
}

impl std::fmt::Debug for RegistryAuth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Basic { .. } => "Basic([redacted])",
            Self::Bearer(_) => "Bearer([redacted])",
        })
    }
}

macro_rules! pending { ($($n:ident),*) => { $(
#[doc = "Why it failed."]
#[derive(Debug, thiserror::Error)]
pub enum $n {
    /// Not there yet.
    #[error("not ready")]
    NotReady,
})* } }
pending!(
    OpenError,
    PullError,
    LoadError,
    ImportError,
    ResolveError,
    TagError,
    RemoveError,
    PrepareError,
    LeaseError
);

/// The images of this node. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ImageStore {}

/// Keeps an image and its layers while something uses them; ends when dropped.
#[derive(Debug)]
pub struct ImageLease {}

#[expect(
    clippy::unused_async,
    unused_variables,
    missing_docs,
    reason = "signatures first"
)]
impl ImageStore {
    /// Opens (or makes) the store; blocks.
    pub fn open(options: ImageStoreOptions) -> Result<Self, OpenError> {
        Err(OpenError::NotReady)
    }
    pub async fn pull(
        &self,
        reference: &Reference,
        platform: &Platform,
        auth: Option<RegistryAuth>,
        progress: ProgressSink,
    ) -> Result<Image, PullError> {
        Err(PullError::NotReady)
    }
    pub async fn load(
        &self,
        tar: impl AsyncRead + Send + Unpin + 'static,
        progress: ProgressSink,
    ) -> Result<Vec<LoadedImage>, LoadError> {
        Err(LoadError::NotReady)
    }
    pub async fn load_layout(
        &self,
        dir: &Path,
        progress: ProgressSink,
    ) -> Result<Vec<LoadedImage>, LoadError> {
        Err(LoadError::NotReady)
    }
    pub async fn import(
        &self,
        tar: impl AsyncRead + Send + Unpin + 'static,
        reference: Option<Reference>,
        changes: &[String],
        message: &str,
    ) -> Result<Image, ImportError> {
        Err(ImportError::NotReady)
    }
    /// A name, a name with digest, a full id, or a unique prefix of an id.
    pub fn resolve(&self, name_or_id: &str) -> Result<Image, ResolveError> {
        Err(ResolveError::NotReady)
    }
    pub fn list(&self) -> Vec<Image> {
        Vec::new()
    }
    pub async fn tag(&self, id: &Digest, reference: &Reference) -> Result<(), TagError> {
        Err(TagError::NotReady)
    }
    pub async fn remove(&self, name_or_id: &str, force: bool) -> Result<Vec<Removed>, RemoveError> {
        Err(RemoveError::NotReady)
    }
    pub async fn prepare_rootfs(&self, image: &Image) -> Result<RootfsLayers, PrepareError> {
        Err(PrepareError::NotReady)
    }
    /// `holder` is named in the error of who tries to remove the image: a container id.
    pub fn lease(&self, image: &Image, holder: &str) -> Result<ImageLease, LeaseError> {
        Err(LeaseError::NotReady)
    }
}
