//! Manifests, indexes and configurations as registries and archives have them: the fields that matter here.

use crate::digest::Digest;
use crate::image::DockerConfig;
use oci_spec::image::ImageConfiguration;
use serde::{Deserialize, Serialize};
use shoal_model::Timestamp;
use shoal_model::spec::Platform;
use std::collections::BTreeMap;

pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(crate) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub(crate) const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// Most layers of an image: the limit of Docker's overlay driver.
pub const IMAGE_LAYERS_MAX: usize = 125;

/// Why a document does not describe an image that can run here.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Not the JSON that it should be.
    #[error("malformed {what}")]
    Malformed {
        /// Which document.
        what: &'static str,
        /// Where it is wrong.
        #[source]
        err: serde_json::Error,
    },
    /// Schema 1, or something newer.
    #[error("unsupported manifest schema version {version}")]
    Schema {
        /// The version.
        version: u32,
    },
    /// The index has no image for the machine.
    #[error("no matching manifest for {wanted} in the manifest list entries (it has {available})")]
    NoPlatform {
        /// What was looked for.
        wanted: String,
        /// What is there.
        available: String,
    },
    /// The image is for another machine.
    #[error("image is for {found}, which does not match the platform {wanted}")]
    OtherPlatform {
        /// What was looked for.
        wanted: String,
        /// What the image says.
        found: String,
    },
    /// An artifact that is no container image.
    #[error("`{media_type}` is not a container image")]
    NotAnImage {
        /// The media type that says so.
        media_type: String,
    },
    /// Manifest and configuration contradict each other.
    #[error("the manifest has {layers} layers, but the image configuration has {diff_ids}")]
    LayerCount {
        /// In the manifest.
        layers: usize,
        /// In the configuration.
        diff_ids: usize,
    },
    /// Too many layers.
    #[error("the image has {layers} layers, more than the limit of {IMAGE_LAYERS_MAX}")]
    TooManyLayers {
        /// How many.
        layers: usize,
    },
    /// A layer identifier in the configuration is not a digest.
    #[error("the image configuration has a malformed layer id `{text}`")]
    DiffId {
        /// As written.
        text: String,
    },
}

/// A pointer to a blob.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(default)]
    pub(crate) media_type: String,
    pub(crate) digest: Digest,
    #[serde(default)]
    pub(crate) size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) platform: Option<DescriptorPlatform>,
    #[serde(
        default,
        skip_serializing_if = "BTreeMap::is_empty",
        deserialize_with = "null_is_empty"
    )]
    pub(crate) annotations: BTreeMap<String, String>,
}

fn null_is_empty<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<BTreeMap<String, String>, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// The machine that an entry of an index is for.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct DescriptorPlatform {
    pub(crate) os: String,
    pub(crate) architecture: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) variant: Option<String>,
}

/// An image manifest.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Manifest {
    pub(crate) schema_version: u32,
    #[serde(default)]
    pub(crate) media_type: String,
    pub(crate) config: Descriptor,
    pub(crate) layers: Vec<Descriptor>,
}

/// An image index or Docker manifest list.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ImageIndex {
    #[serde(default)]
    pub(crate) schema_version: u32,
    pub(crate) manifests: Vec<Descriptor>,
}

/// Either of the two.
#[derive(Debug)]
pub(crate) enum Document {
    Manifest(Manifest),
    Index(ImageIndex),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Probe {
    #[serde(default)]
    schema_version: u32,
    manifests: Option<serde::de::IgnoredAny>,
}

impl Document {
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        let malformed = |err| ManifestError::Malformed {
            what: "manifest",
            err,
        };
        let probe: Probe = serde_json::from_slice(bytes).map_err(malformed)?;
        if probe.schema_version != 2 {
            return Err(ManifestError::Schema {
                version: probe.schema_version,
            });
        }
        if probe.manifests.is_some() {
            return Ok(Self::Index(
                serde_json::from_slice(bytes).map_err(malformed)?,
            ));
        }
        let manifest: Manifest = serde_json::from_slice(bytes).map_err(malformed)?;
        let media_type = &manifest.config.media_type;
        let is_image = media_type.is_empty()
            || media_type == OCI_CONFIG
            || media_type.starts_with("application/vnd.docker.container.image")
            || media_type == "application/octet-stream";
        if !is_image {
            return Err(ManifestError::NotAnImage {
                media_type: media_type.clone(),
            });
        }
        Ok(Self::Manifest(manifest))
    }
}

/// This machine, in the words of images.
pub(crate) fn host_platform() -> Platform {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "powerpc64" => "ppc64le",
        other => other,
    };
    Platform {
        os: "linux".to_owned(),
        architecture: architecture.to_owned(),
    }
}

/// Fills the empty fields of `wanted` with this machine's.
pub(crate) fn complete(wanted: &Platform) -> Platform {
    let host = host_platform();
    let or = |text: &String, default: String| {
        if text.is_empty() {
            default
        } else {
            text.clone()
        }
    };
    Platform {
        os: or(&wanted.os, host.os),
        architecture: or(&wanted.architecture, host.architecture),
    }
}

impl ImageIndex {
    /// The entry for `wanted`; among several the plainest variant that each machine of the architecture can run.
    pub(crate) fn select(&self, wanted: &Platform) -> Result<&Descriptor, ManifestError> {
        let is_manifest = |d: &&Descriptor| {
            d.media_type.is_empty()
                || d.media_type == OCI_MANIFEST
                || d.media_type == DOCKER_MANIFEST
        };
        let candidates: Vec<&Descriptor> = self.manifests.iter().filter(is_manifest).collect();
        let matching = candidates.iter().filter(|d| {
            let platform = d.platform.as_ref();
            platform.is_some_and(|p| p.os == wanted.os && p.architecture == wanted.architecture)
        });
        let rank = |d: &&&Descriptor| {
            let variant = d.platform.as_ref().and_then(|p| p.variant.as_deref());
            match (wanted.architecture.as_str(), variant.unwrap_or("")) {
                (_, "") => 0,
                ("amd64", "v1") | ("arm64", "v8") | ("arm", "v7") => 1,
                ("arm", "v6") => 2,
                _ => 3,
            }
        };
        if let Some(found) = matching.min_by_key(rank) {
            return Ok(found);
        }
        // An index without platforms and with one entry is a layout that holds one image.
        if let [only] = candidates.as_slice()
            && only.platform.is_none()
        {
            return Ok(only);
        }
        let platforms = candidates.iter().filter_map(|d| d.platform.as_ref());
        let available: Vec<String> = platforms
            .map(|p| format!("{}/{}", p.os, p.architecture))
            .collect();
        Err(ManifestError::NoPlatform {
            wanted: format!("{}/{}", wanted.os, wanted.architecture),
            available: available.join(", "),
        })
    }
}

/// A configuration in all the forms that are needed.
#[derive(Debug, Clone)]
pub(crate) struct ParsedConfig {
    pub(crate) config: ImageConfiguration,
    pub(crate) docker: DockerConfig,
    pub(crate) diff_ids: Vec<Digest>,
    pub(crate) created: Timestamp,
}

#[derive(Deserialize)]
struct DockerPart {
    config: Option<DockerConfig>,
}

impl ParsedConfig {
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        let malformed = |err| ManifestError::Malformed {
            what: "image configuration",
            err,
        };
        let docker: DockerPart = serde_json::from_slice(bytes).map_err(malformed)?;
        let config: ImageConfiguration = serde_json::from_slice(bytes).map_err(malformed)?;
        let diff_ids = config.rootfs().diff_ids().iter().map(|text| {
            text.parse()
                .map_err(|_| ManifestError::DiffId { text: text.clone() })
        });
        let diff_ids: Vec<Digest> = diff_ids.collect::<Result<_, _>>()?;
        if diff_ids.len() > IMAGE_LAYERS_MAX {
            return Err(ManifestError::TooManyLayers {
                layers: diff_ids.len(),
            });
        }
        let created = config
            .created()
            .as_deref()
            .and_then(|text| text.parse::<jiff::Timestamp>().ok());
        Ok(Self {
            diff_ids,
            docker: docker.config.unwrap_or_default(),
            created: Timestamp(
                created.map_or(0, |t| i64::try_from(t.as_nanosecond()).unwrap_or(0)),
            ),
            config,
        })
    }

    /// Refuses an image for another machine.
    pub(crate) fn check_platform(&self, wanted: &Platform) -> Result<(), ManifestError> {
        let os = self.config.os().to_string();
        let architecture = self.config.architecture().to_string();
        if os == wanted.os && architecture == wanted.architecture {
            return Ok(());
        }
        Err(ManifestError::OtherPlatform {
            wanted: format!("{}/{}", wanted.os, wanted.architecture),
            found: format!("{os}/{architecture}"),
        })
    }
}

/// The manifest of an image that came without one.
pub(crate) fn synthesise(config: (&Digest, u64), layers: Vec<Descriptor>) -> Manifest {
    Manifest {
        schema_version: 2,
        media_type: OCI_MANIFEST.to_owned(),
        config: descriptor(OCI_CONFIG, config.0.clone(), config.1),
        layers,
    }
}

pub(crate) fn descriptor(media_type: &str, digest: Digest, size: u64) -> Descriptor {
    Descriptor {
        media_type: media_type.to_owned(),
        digest,
        size,
        platform: None,
        annotations: BTreeMap::new(),
    }
}
