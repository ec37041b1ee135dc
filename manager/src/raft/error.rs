//! How Raft's storage and start fail.

use super::crypt::KeyError;
use crate::store::snapshot::ImportError;
use shoal_model::RaftNodeId;
use shoal_model::codec::CodecError;
use std::io;
use std::path::{Path, PathBuf};

/// Why the log or a snapshot can't be used.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// A file operation failed.
    #[error("failed to {verb} `{path}`")]
    Io {
        /// `read`, `write`, `list`…
        verb: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// Why.
        #[source]
        err: io::Error,
    },
    /// Acknowledged entries may be lost, so nothing is repaired here: the node must leave and join again, or its disk
    /// be restored.
    #[error("`{path}` is damaged at byte {offset}: {reason}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where.
        offset: u64,
        /// What does not fit.
        reason: String,
    },
    /// A newer binary wrote it.
    #[error(
        "`{path}` has format {format} with cipher {cipher}, and this binary reads format 1 with cipher 1"
    )]
    UnknownFormat {
        /// The file.
        path: PathBuf,
        /// Its format.
        format: u8,
        /// Its cipher.
        cipher: u8,
    },
    /// The key file does not belong to these files.
    #[error("`{path}` was encrypted with another key than the one in the key file")]
    WrongKey {
        /// The file.
        path: PathBuf,
    },
    /// The bytes are what was written, and are not understood.
    #[error("failed to decode a record of `{path}`")]
    Undecodable {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        err: CodecError,
    },
    /// A file of the log is not there.
    #[error("segment `{path}` of the log is missing")]
    Missing {
        /// The file that should be there.
        path: PathBuf,
    },
    /// The entries do not follow each other.
    #[error("the log in `{path}` has entry {found} after entry {last}")]
    Gap {
        /// The file.
        path: PathBuf,
        /// The last entry before the gap.
        last: u64,
        /// The first behind it.
        found: u64,
    },
    /// The state in a snapshot is not understood.
    #[error("failed to load the state in `{path}`")]
    State {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        err: ImportError,
    },
}

impl LogError {
    pub(crate) fn io(verb: &'static str, path: &Path, err: io::Error) -> Self {
        Self::Io {
            verb,
            path: path.to_owned(),
            err,
        }
    }
}

/// Why Raft did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// No key.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// No log, or no snapshot.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The timing is not possible.
    #[error("the Raft timing is not possible: {reason}")]
    Timing {
        /// Which relation does not hold.
        reason: String,
    },
    /// A thread could not be started.
    #[error("failed to start the thread `{name}`")]
    Thread {
        /// Its name.
        name: &'static str,
        /// Why.
        #[source]
        err: io::Error,
    },
    /// The Raft library refused what it found.
    #[error("Raft {raft_id} did not start: {reason}")]
    Raft {
        /// Own id.
        raft_id: RaftNodeId,
        /// What it said.
        reason: String,
    },
}

/// The whole chain of causes in one line, for the reason of a stopped manager.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
