//! The images of a node: content-addressed blobs, unpacked layers for overlayfs, archives and registries.
//!
//! Nothing becomes visible before its digest is verified and its bytes are on the disk; no layer, however hostile, writes
//! outside of its own directory. This crate mounts nothing and knows no container.

mod digest;
mod image;
mod progress;
mod reference;
mod store;

pub use digest::{Algorithm, Digest, DigestError, Hasher};
pub use image::{DockerConfig, Healthcheck, Image, Layer, LoadedImage, Removed, RootfsLayers};
pub use progress::{LayerState, PROGRESS_EVENTS_MAX, Progress, ProgressSink};
pub use reference::{PATH_CHARS_MAX, Reference, ReferenceError, TAG_CHARS_MAX};
pub use store::{
    ImageLease, ImageStore, ImageStoreOptions, ImportError, LeaseError, LoadError, OpenError,
    PrepareError, PullError, RegistryAuth, RemoveError, ResolveError, TagError,
};
