//! What callers see of an image.

use crate::digest::Digest;
use crate::reference::Reference;
use oci_spec::image::ImageConfiguration;
use serde::{Deserialize, Serialize};
use shoal_model::Timestamp;
use std::path::PathBuf;
use std::sync::Arc;

/// An image that is in the store. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Image {
    /// The digest of the configuration, Docker's image id.
    pub id: Digest,
    /// The digest of the manifest that names the configuration and the layers.
    pub manifest: Digest,
    /// The configuration as the OCI specification defines it.
    pub config: Arc<ImageConfiguration>,
    /// The fields of the configuration that are Docker's own.
    pub docker: Arc<DockerConfig>,
    /// Names with a tag, as Docker shows them: `busybox:latest`.
    pub repo_tags: Vec<String>,
    /// Names with the digest of the manifest, for images that came from a registry.
    pub repo_digests: Vec<String>,
    /// Bytes of all layers, unpacked.
    pub size: u64,
    /// When the image was made, by its own word; zero if it doesn't say.
    pub created: Timestamp,
    /// The layers, lowest first.
    pub layers: Arc<[Layer]>,
}

/// One layer of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    /// The digest of the blob as it is transferred.
    pub blob: Digest,
    /// The OCI or Docker media type of the blob.
    pub media_type: String,
    /// Bytes of the blob.
    pub blob_bytes: u64,
    /// The digest of the tar inside the blob.
    pub diff_id: Digest,
    /// The name of this layer on top of those below it; the name of its snapshot.
    pub chain_id: Digest,
    /// Bytes of the files in the layer, unpacked.
    pub unpacked_bytes: u64,
}

/// The part of an image configuration that the OCI specification leaves out.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct DockerConfig {
    /// How to find out whether a container is well.
    #[serde(rename = "Healthcheck")]
    pub healthcheck: Option<Healthcheck>,
    /// The shell of the shell form of `RUN`, `CMD` and `ENTRYPOINT`.
    #[serde(rename = "Shell")]
    pub shell: Option<Vec<String>>,
    /// Build instructions for images that are built on this one.
    #[serde(rename = "OnBuild")]
    pub on_build: Option<Vec<String>>,
}

/// Docker's `HEALTHCHECK`; times are nanoseconds, zero means the default.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Healthcheck {
    /// `["CMD", …]`, `["CMD-SHELL", command]`, `["NONE"]`, or empty: inherit.
    pub test: Vec<String>,
    /// Time between two checks.
    pub interval: i64,
    /// Most time for one check.
    pub timeout: i64,
    /// Time in which failures do not count.
    pub start_period: i64,
    /// Time between two checks while starting.
    pub start_interval: i64,
    /// Failures in a row that mean unhealthy.
    pub retries: i64,
}

/// One image that a load brought.
#[derive(Debug, Clone)]
pub struct LoadedImage {
    /// The image.
    pub image: Image,
    /// The names that the archive gave it; empty: it has none.
    pub names: Vec<Reference>,
}

/// One thing that a removal did, in order, as `docker rmi` prints it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Removed {
    /// A name was taken away.
    Untagged(String),
    /// An image or a layer is gone.
    Deleted(Digest),
}

/// The directories for the `lowerdir` option of overlayfs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RootfsLayers {
    /// Top layer first. Short link paths, so that many of them fit into one mount option page.
    pub lower: Vec<PathBuf>,
}
