//! The images of a node: content-addressed blobs, unpacked layers for overlayfs, archives and registries.
//!
//! Nothing becomes visible before its digest is verified and its bytes are on the disk; no layer, however hostile, writes
//! outside of its own directory. This crate mounts nothing and knows no container.
//!
//! A layer is kept twice: unpacked, as a snapshot that containers mount, and as the blob that it came in, so that other nodes can have it
//! from this one under the digest that the manifest names.

mod archive;
mod changes;
mod confined;
mod content;
mod digest;
mod ensure;
mod feed;
mod image;
mod import;
mod index;
mod layer;
mod manifest;
mod progress;
mod pull;
mod reference;
mod registry;
mod snapshot;
mod store;
mod tarball;
mod unpack;

pub use archive::{ARCHIVE_FILES_MAX, LoadError};
pub use changes::ChangeError;
pub use content::{ContentError, DOCUMENT_BYTES_MAX};
pub use digest::{Algorithm, Digest, DigestError, Hasher};
pub use ensure::EnsureError;
pub use image::{DockerConfig, Healthcheck, Image, Layer, LoadedImage, Removed, RootfsLayers};
pub use import::ImportError;
pub use index::IndexError;
pub use layer::LayerError;
pub use manifest::{IMAGE_LAYERS_MAX, ManifestError};
pub use progress::{LayerState, PROGRESS_EVENTS_MAX, Progress, ProgressSink};
pub use pull::PullError;
pub use reference::{PATH_CHARS_MAX, Reference, ReferenceError, TAG_CHARS_MAX};
pub use registry::{AuthHeaderError, RETRIES_MAX, RegistryAuth, RegistryError};
pub use store::{
    ImageLease, ImageStore, ImageStoreOptions, LAYERS_AT_ONCE_MAX, OpenError, PrepareError,
    RemoveError, ResolveError, TagError,
};
pub use tarball::TarError;
pub use unpack::{
    DIRECTORY_PATHS_BYTES_MAX, LAYER_BYTES_MAX, LAYER_ENTRIES_MAX, LAYER_FILE_BYTES_MAX,
    UnpackError, UnpackLimits,
};
