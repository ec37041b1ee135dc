//! The list of images: one small file, replaced atomically.
//!
//! Its first line carries the format version and the digest of the rest, so that a truncated or altered file is noticed
//! and never half believed.

use crate::content::{Content, ContentError, TmpPath, sync_dir};
use crate::digest::Digest;
use crate::image::Layer;
use crate::reference::Reference;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::PathBuf;

const INDEX_VERSION: u32 = 1;
const INDEX_FILE: &str = "index.json";

/// Why the list of images can't be read.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// The file system.
    #[error(transparent)]
    Content(#[from] ContentError),
    /// The file is truncated or altered.
    #[error(
        "the list of images `{}` is damaged ({reason}): restore it from a backup, or move it away to start with an empty list and \
         pull or load the images again",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Written by a newer program.
    #[error(
        "the list of images `{}` has the format version {found}, this program reads version {INDEX_VERSION}: use the newer program",
        path.display()
    )]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
}

#[derive(Serialize, Deserialize)]
struct FirstLine {
    version: u32,
    digest: Digest,
}

/// One image of the list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ImageRecord {
    pub(crate) manifest: Digest,
    pub(crate) layers: Vec<Layer>,
}

/// The whole list.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Index {
    pub(crate) images: BTreeMap<Digest, ImageRecord>,
    /// Names with a tag.
    pub(crate) names: BTreeMap<Reference, Digest>,
    /// Repositories with the digest of the manifest.
    pub(crate) digests: BTreeMap<Reference, Digest>,
}

impl Index {
    pub(crate) fn read(content: &Content) -> Result<Self, IndexError> {
        let path = content.root().join(INDEX_FILE);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(err) => return Err(ContentError::io("read", path, err).into()),
        };
        let damaged = |reason: String| IndexError::Damaged {
            path: path.clone(),
            reason,
        };
        let end = bytes.iter().position(|b| *b == b'\n');
        let end = end.ok_or_else(|| damaged("its first line is cut off".to_owned()))?;
        let (first, body) = (&bytes[..end], &bytes[end + 1..]);
        let first: FirstLine =
            serde_json::from_slice(first).map_err(|err| damaged(format!("first line: {err}")))?;
        if first.version != INDEX_VERSION {
            return Err(IndexError::Version {
                path,
                found: first.version,
            });
        }
        if Digest::sha256(body) != first.digest {
            return Err(damaged(
                "its content does not have the recorded digest".to_owned(),
            ));
        }
        serde_json::from_slice(body).map_err(|err| damaged(err.to_string()))
    }

    /// Replaces the file; durable when this returns.
    pub(crate) fn write(&self, content: &Content) -> Result<(), ContentError> {
        let path = content.root().join(INDEX_FILE);
        let encode = |err: serde_json::Error| ContentError::io("encode", &path, err.into());
        let body = serde_json::to_vec(self).map_err(encode)?;
        let first = FirstLine {
            version: INDEX_VERSION,
            digest: Digest::sha256(&body),
        };
        let mut bytes = serde_json::to_vec(&first).map_err(encode)?;
        bytes.push(b'\n');
        bytes.extend(body);
        let tmp = TmpPath(content.tmp_path());
        File::create(&tmp.0)
            .and_then(|mut file| {
                file.write_all(&bytes)?;
                file.sync_all()
            })
            .map_err(|err| ContentError::io("write", &path, err))?;
        fs::rename(&tmp.0, &path).map_err(|err| ContentError::io("rename", &path, err))?;
        sync_dir(content.root())
    }

    /// Everything that some image needs: blobs of manifests, configurations and layers.
    pub(crate) fn blobs(&self) -> BTreeSet<&Digest> {
        let mut blobs = BTreeSet::new();
        for (id, record) in &self.images {
            blobs.extend([id, &record.manifest]);
            blobs.extend(record.layers.iter().map(|layer| &layer.blob));
        }
        blobs
    }

    /// The snapshots that some image needs.
    pub(crate) fn chains(&self) -> BTreeSet<&Digest> {
        let records = self.images.values();
        records
            .flat_map(|record| record.layers.iter().map(|layer| &layer.chain_id))
            .collect()
    }
}
