//! Unpacked layers: `snapshots/<chain id>/fs` beside `layer.json`, and short links for mount options.
//!
//! A snapshot directory is complete if it exists: it got its name by one rename, after everything in it was synced.

use crate::content::{Content, ContentError, sync_dir};
use crate::digest::Digest;
use crate::layer::StagedLayer;
use serde::{Deserialize, Serialize};
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

const INFO_VERSION: u32 = 1;
/// Digits of a link name; more are taken if two chains share them.
const LINK_DIGITS: usize = 10;

/// What is remembered of an unpacked layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SnapshotInfo {
    /// Bytes of file content.
    pub(crate) bytes: u64,
    /// Entries of the archive.
    pub(crate) entries: u64,
    /// Nothing below this layer shows through.
    pub(crate) opaque_root: bool,
}

#[derive(Serialize, Deserialize)]
struct InfoFile {
    version: u32,
    #[serde(flatten)]
    info: SnapshotInfo,
}

/// The chain ids of a row of layers, lowest first.
pub(crate) fn chain_ids(diff_ids: &[Digest]) -> Vec<Digest> {
    let mut chain: Vec<Digest> = Vec::with_capacity(diff_ids.len());
    for diff_id in diff_ids {
        let next = match chain.last() {
            None => diff_id.clone(),
            Some(below) => Digest::sha256(format!("{below} {diff_id}")),
        };
        chain.push(next);
    }
    chain
}

impl Content {
    pub(crate) fn snapshot_dir(&self, chain: &Digest) -> PathBuf {
        self.snapshots_dir().join(chain.hex())
    }

    /// What is known of a snapshot; `None` if it does not exist.
    pub(crate) fn snapshot(&self, chain: &Digest) -> Result<Option<SnapshotInfo>, ContentError> {
        let path = self.snapshot_dir(chain).join("layer.json");
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(err) => return Err(ContentError::io("read", path, err)),
        };
        match serde_json::from_slice::<InfoFile>(&text) {
            Ok(file) if file.version == INFO_VERSION => Ok(Some(file.info)),
            // It is made again from its blob.
            Ok(_) | Err(_) => {
                tracing::warn!(path = %path.display(), "damaged snapshot record; the layer is unpacked again");
                Ok(None)
            }
        }
    }

    /// Makes a staged layer visible: its blob, then its snapshot. `below` are the chain ids under it, lowest first.
    pub(crate) fn commit_layer(
        &self,
        staged: StagedLayer,
        chain: &Digest,
        below: &[Digest],
    ) -> Result<(), ContentError> {
        self.inherit_metadata(&staged, below)?;
        let record = staged.dir.0.join("layer.json");
        let file = InfoFile {
            version: INFO_VERSION,
            info: staged.info.clone(),
        };
        let text = serde_json::to_vec(&file)
            .map_err(|err| ContentError::io("encode", &record, err.into()))?;
        fs::write(&record, text).map_err(|err| ContentError::io("write", &record, err))?;
        self.sync()?;
        if let Some(blob) = staged.blob {
            let dir = self.blobs_dir(blob.digest.algorithm());
            blob.publish()?;
            sync_dir(&dir)?;
        }
        let target = self.snapshot_dir(chain);
        if target.exists() {
            if self.snapshot(chain)?.is_some() {
                return Ok(());
            }
            let rubbish = crate::content::TmpPath(self.tmp_path());
            fs::rename(&target, &rubbish.0)
                .map_err(|err| ContentError::io("rename", &target, err))?;
        }
        fs::rename(&staged.dir.0, &target)
            .map_err(|err| ContentError::io("rename", &target, err))?;
        sync_dir(&self.snapshots_dir())
    }

    /// Gives directories that the archive used without listing them the owner, mode and time of the layer below, so that
    /// the merged tree does not change for them.
    fn inherit_metadata(&self, staged: &StagedLayer, below: &[Digest]) -> Result<(), ContentError> {
        let tree = staged.dir.0.join("fs");
        for path in &staged.implicit {
            let path = Path::new(OsStr::from_bytes(path));
            let lower = below.iter().rev().find_map(|chain| {
                let lower = self.snapshot_dir(chain).join("fs");
                plain_directory(&lower, path)
            });
            let (Some(lower), Some(own)) = (lower, plain_directory(&tree, path)) else {
                continue;
            };
            let fail = |err| ContentError::io("set the owner of", &own.0, err);
            std::os::unix::fs::lchown(&own.0, Some(lower.1.uid()), Some(lower.1.gid()))
                .map_err(fail)?;
            fs::set_permissions(&own.0, fs::Permissions::from_mode(lower.1.mode() & 0o7777))
                .map_err(fail)?;
            let times = lower.1.modified().map_err(fail)?;
            fs::File::open(&own.0)
                .and_then(|dir| dir.set_modified(times))
                .map_err(fail)?;
        }
        Ok(())
    }

    /// A short path to a snapshot's tree: a mount option has room for one page.
    pub(crate) fn short_link(&self, chain: &Digest) -> Result<PathBuf, ContentError> {
        let target = Path::new("../snapshots").join(chain.hex()).join("fs");
        let mut digits = LINK_DIGITS;
        loop {
            let link = self.links_dir().join(&chain.hex()[..digits]);
            match fs::read_link(&link) {
                Ok(found) if found == target => return Ok(link),
                Ok(_) if digits < chain.hex().len() => digits += 2,
                Ok(_) => {
                    let err = io::ErrorKind::AlreadyExists.into();
                    return Err(ContentError::io("link", link, err));
                }
                Err(_) => match std::os::unix::fs::symlink(&target, &link) {
                    Ok(()) => return Ok(link),
                    Err(err) if err.kind() == io::ErrorKind::AlreadyExists && link.is_symlink() => {
                    }
                    Err(err) => return Err(ContentError::io("link", link, err)),
                },
            }
        }
    }
}

/// The directory `path` in `tree`, if every component on the way is a directory and no link.
fn plain_directory(tree: &Path, path: &Path) -> Option<(PathBuf, fs::Metadata)> {
    let mut at = tree.to_owned();
    for part in path.components() {
        at.push(part);
        if !fs::symlink_metadata(&at).ok()?.is_dir() {
            return None;
        }
    }
    let meta = fs::symlink_metadata(&at).ok()?;
    Some((at, meta))
}
