//! Files of the store: where they are, and how they become visible.
//!
//! Everything is made under `tmp/`, synced, and renamed into place. What is in place is complete; what is under `tmp/` after
//! a crash is rubbish.

use crate::digest::{Algorithm, Digest, Hasher};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes read from a file at a time.
pub(crate) const READ_BYTES: usize = 256 << 10;
/// Most bytes of a manifest or of an image configuration.
pub const DOCUMENT_BYTES_MAX: u64 = 8 << 20;

/// Why the store could not work on its files.
#[derive(Debug, thiserror::Error)]
pub enum ContentError {
    /// The file system refused.
    #[error("failed to {action} `{}`", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's answer.
        #[source]
        err: io::Error,
    },
    /// No room is left.
    #[error("no space left on the disk of `{}`: remove images or enlarge the file system", path.display())]
    DiskFull {
        /// What was being written.
        path: PathBuf,
    },
    /// A blob is not what its name says.
    #[error("blob `{}` is damaged (its content is {found}): pull or load the image again", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The digest of what is in it.
        found: Digest,
    },
    /// A blob is not there.
    #[error("blob `{}` is missing: pull or load the image again", path.display())]
    Missing {
        /// Where it should be.
        path: PathBuf,
    },
    /// New content is not what was asked for.
    #[error("content has the digest {found}, but {expected} was expected")]
    WrongDigest {
        /// What was asked for.
        expected: Digest,
        /// What came.
        found: Digest,
    },
    /// A document is over [`DOCUMENT_BYTES_MAX`].
    #[error(
        "`{digest}` has {size} bytes, more than the limit of {DOCUMENT_BYTES_MAX} for a manifest or configuration"
    )]
    DocumentTooLarge {
        /// The document.
        digest: Digest,
        /// Its size.
        size: u64,
    },
}

impl ContentError {
    /// Names what was tried on which path; a full disk gets its own variant.
    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>, err: io::Error) -> Self {
        let path = path.into();
        if is_disk_full(&err) {
            return Self::DiskFull { path };
        }
        Self::Io { action, path, err }
    }
}

/// Whether `err` says that no room, quota or inode is left.
pub(crate) fn is_disk_full(err: &io::Error) -> bool {
    matches!(err.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT))
}

/// The directories of one store.
#[derive(Debug)]
pub(crate) struct Content {
    root: PathBuf,
    root_dir: File,
    next_tmp: AtomicU64,
}

impl Content {
    /// Makes the directories and empties `tmp/`.
    pub(crate) fn open(root: &Path) -> Result<Arc<Self>, ContentError> {
        for dir in ["blobs/sha256", "blobs/sha512", "snapshots", "l"] {
            make_dir(&root.join(dir))?;
        }
        let tmp = root.join("tmp");
        remove_tree(&tmp)?;
        make_dir(&tmp)?;
        let root_dir = File::open(root).map_err(|err| ContentError::io("open", root, err))?;
        Ok(Arc::new(Self {
            root: root.to_owned(),
            root_dir,
            next_tmp: AtomicU64::new(0),
        }))
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn blobs_dir(&self, algorithm: Algorithm) -> PathBuf {
        self.root.join("blobs").join(algorithm.name())
    }

    pub(crate) fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.blobs_dir(digest.algorithm()).join(digest.hex())
    }

    pub(crate) fn snapshots_dir(&self) -> PathBuf {
        self.root.join("snapshots")
    }

    pub(crate) fn links_dir(&self) -> PathBuf {
        self.root.join("l")
    }

    pub(crate) fn has_blob(&self, digest: &Digest) -> bool {
        self.blob_path(digest).is_file()
    }

    /// A name under `tmp/` that nobody else has.
    pub(crate) fn tmp_path(&self) -> PathBuf {
        let number = self.next_tmp.fetch_add(1, Ordering::Relaxed);
        self.root.join("tmp").join(number.to_string())
    }

    /// Everything written to this file system so far is on the disk when this returns.
    pub(crate) fn sync(&self) -> Result<(), ContentError> {
        nix::unistd::syncfs(&self.root_dir)
            .map_err(|err| ContentError::io("sync", &self.root, err.into()))
    }

    /// Starts a blob whose digest is computed while it is written.
    pub(crate) fn stage_blob(
        self: &Arc<Self>,
        algorithm: Algorithm,
    ) -> Result<BlobStage, ContentError> {
        let path = self.tmp_path();
        let file = OpenOptions::new()
            .write(true)
            .read(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(|err| ContentError::io("create", &path, err))?;
        Ok(BlobStage {
            content: Arc::clone(self),
            tmp: TmpPath(path),
            file,
            hasher: algorithm.hasher(),
            bytes: 0,
        })
    }

    /// Stores a manifest or configuration and returns its digest; durable when this returns.
    pub(crate) fn put_document(self: &Arc<Self>, bytes: &[u8]) -> Result<Digest, ContentError> {
        let digest = Digest::sha256(bytes);
        if self.has_blob(&digest) && self.read_document(&digest).is_ok() {
            return Ok(digest);
        }
        let mut stage = self.stage_blob(Algorithm::Sha256)?;
        stage.write(bytes)?;
        let staged = stage.finish();
        staged.sync()?;
        staged.publish()?;
        sync_dir(&self.blobs_dir(Algorithm::Sha256))?;
        Ok(digest)
    }

    /// Reads a small blob and checks its digest.
    pub(crate) fn read_document(&self, digest: &Digest) -> Result<Vec<u8>, ContentError> {
        let path = self.blob_path(digest);
        let file = self.open_blob(digest)?;
        let mut bytes = Vec::new();
        file.take(DOCUMENT_BYTES_MAX + 1)
            .read_to_end(&mut bytes)
            .map_err(|err| ContentError::io("read", &path, err))?;
        if bytes.len() as u64 > DOCUMENT_BYTES_MAX {
            return Err(ContentError::DocumentTooLarge {
                digest: digest.clone(),
                size: bytes.len() as u64,
            });
        }
        let mut hasher = digest.algorithm().hasher();
        hasher.update(&bytes);
        let found = hasher.finish();
        if found != *digest {
            return Err(ContentError::Damaged { path, found });
        }
        Ok(bytes)
    }

    /// Opens a blob without checking it.
    pub(crate) fn open_blob(&self, digest: &Digest) -> Result<File, ContentError> {
        let path = self.blob_path(digest);
        File::open(&path).map_err(|err| match err.kind() {
            io::ErrorKind::NotFound => ContentError::Missing { path },
            _ => ContentError::io("open", path, err),
        })
    }
}

/// A blob that is being written; removed again unless it is published.
#[derive(Debug)]
pub(crate) struct BlobStage {
    content: Arc<Content>,
    tmp: TmpPath,
    file: File,
    hasher: Hasher,
    bytes: u64,
}

impl BlobStage {
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), ContentError> {
        self.file
            .write_all(bytes)
            .map_err(|err| ContentError::io("write", &self.tmp.0, err))?;
        self.hasher.update(bytes);
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    pub(crate) fn finish(self) -> StagedBlob {
        StagedBlob {
            digest: self.hasher.finish(),
            bytes: self.bytes,
            content: self.content,
            file: Some(self.file),
            tmp: self.tmp,
        }
    }
}

/// A complete blob under its temporary name.
#[derive(Debug)]
pub(crate) struct StagedBlob {
    pub(crate) digest: Digest,
    pub(crate) bytes: u64,
    content: Arc<Content>,
    /// `None` once closed.
    file: Option<File>,
    tmp: TmpPath,
}

impl StagedBlob {
    /// Closes the file: an archive may have more of them than a process may have open.
    pub(crate) fn closed(mut self) -> Self {
        self.file = None;
        self
    }

    pub(crate) fn path(&self) -> &Path {
        &self.tmp.0
    }

    pub(crate) fn sync(&self) -> Result<(), ContentError> {
        // An error of writing back that nobody has seen yet is told to whoever opens the file next.
        let synced = match &self.file {
            Some(file) => file.sync_all(),
            None => File::open(&self.tmp.0).and_then(|file| file.sync_all()),
        };
        synced.map_err(|err| ContentError::io("sync", &self.tmp.0, err))
    }

    /// Gives the blob its name. The caller has synced it, and syncs the directory.
    pub(crate) fn publish(self) -> Result<(), ContentError> {
        let path = self.content.blob_path(&self.digest);
        fs::rename(&self.tmp.0, &path).map_err(|err| ContentError::io("rename", path, err))
    }
}

/// A path under `tmp/` that is removed, tree and all, when this is dropped. After a rename there is nothing to remove.
#[derive(Debug)]
pub(crate) struct TmpPath(pub(crate) PathBuf);

impl Drop for TmpPath {
    fn drop(&mut self) {
        if let Err(err) = remove_tree(&self.0) {
            tracing::warn!(path = %self.0.display(), %err, "temporary file could not be removed");
        }
    }
}

/// Removes a file or a directory tree without following links; absence is fine.
pub(crate) fn remove_tree(path: &Path) -> Result<(), ContentError> {
    let removed = match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(err) => Err(err),
    };
    match removed {
        Err(err) if err.kind() != io::ErrorKind::NotFound => {
            Err(ContentError::io("remove", path, err))
        }
        _ => Ok(()),
    }
}

/// Makes a directory and its parents for the owner alone.
pub(crate) fn make_dir(path: &Path) -> Result<(), ContentError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|err| ContentError::io("create", path, err))
}

/// Makes renames in a directory durable.
pub(crate) fn sync_dir(path: &Path) -> Result<(), ContentError> {
    File::open(path)
        .and_then(|dir| dir.sync_all())
        .map_err(|err| ContentError::io("sync", path, err))
}
