//! The record of this node's place in Raft, on disk.

use crate::raft::Disk;
use serde::{Deserialize, Serialize};
use shoal_model::RaftNodeId;
use shoal_model::codec::{self, CodecError};
use std::io;
use std::path::{Path, PathBuf};

const RECORD_NAME: &str = "member";
const TEMPORARY_NAME: &str = "member.tmp";

/// Why the record can't be used.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The disk failed.
    #[error("failed to {verb} `{path}`")]
    Io {
        /// What was attempted.
        verb: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        err: io::Error,
    },
    /// The file is damaged.
    #[error("failed to read the member record `{path}`")]
    Decode {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        err: CodecError,
    },
}

/// The place: it is written once, before the log has its first entry from others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct MemberRecord {
    pub(super) raft_id: RaftNodeId,
}

impl MemberRecord {
    pub(super) fn load(disk: &dyn Disk, data_dir: &Path) -> Result<Option<Self>, RecordError> {
        let path = data_dir.join(RECORD_NAME);
        let fail = |err| RecordError::Io {
            verb: "read",
            path: path.clone(),
            err,
        };
        let file = match disk.open(&path) {
            Ok(file) => file,
            Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(err) => return Err(fail(err)),
        };
        let bytes = crate::raft::read_all(&*file).map_err(fail)?;
        let record = codec::decode(&bytes).map_err(|err| RecordError::Decode {
            path: path.clone(),
            err,
        })?;
        Ok(Some(record))
    }

    pub(super) fn save(&self, disk: &dyn Disk, data_dir: &Path) -> Result<(), RecordError> {
        let path = data_dir.join(RECORD_NAME);
        let temporary = data_dir.join(TEMPORARY_NAME);
        let bytes = codec::encode(self).map_err(|err| RecordError::Decode {
            path: path.clone(),
            err,
        })?;
        let write = || {
            disk.create_dir_all(data_dir)?;
            let mut file = disk.create(&temporary, 0)?;
            file.write_at(0, &bytes)?;
            file.sync()?;
            disk.rename(&temporary, &path)?;
            disk.sync_dir(data_dir)
        };
        write().map_err(|err| RecordError::Io {
            verb: "write",
            path: path.clone(),
            err,
        })
    }
}

/// Directory of the log of one place.
pub(super) fn log_dir_name(raft_id: RaftNodeId) -> String {
    format!("log-{raft_id}")
}

/// Forgets the place in Raft and deletes its log: for a node that was demoted, has left, or begins anew. The manager
/// must have been shut down.
///
/// # Errors
/// The disk failed; the record goes first, so that what remains is never taken for a place.
pub fn forget(disk: &dyn Disk, data_dir: &Path) -> Result<(), RecordError> {
    remove(disk, &data_dir.join(RECORD_NAME))?;
    let names = match disk.list(data_dir) {
        Ok(names) => names,
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(err) => {
            return Err(RecordError::Io {
                verb: "list",
                path: data_dir.to_owned(),
                err,
            });
        }
    };
    for name in names.iter().filter(|name| name.starts_with("log-")) {
        let directory = data_dir.join(name);
        let files = disk.list(&directory).map_err(|err| RecordError::Io {
            verb: "list",
            path: directory.clone(),
            err,
        })?;
        for file in files {
            remove(disk, &directory.join(file))?;
        }
    }
    disk.sync_dir(data_dir).map_err(|err| RecordError::Io {
        verb: "sync",
        path: data_dir.to_owned(),
        err,
    })
}

fn remove(disk: &dyn Disk, path: &Path) -> Result<(), RecordError> {
    match disk.remove(path) {
        Ok(()) => Ok(()),
        Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(err) => Err(RecordError::Io {
            verb: "remove",
            path: path.to_owned(),
            err,
        }),
    }
}
