//! What the agent keeps across restarts: its assignments with their statuses, and the managers that it knows.
//!
//! References only: a secret's payload never comes here. The whole record is small and written in one piece; writes
//! that come while one is under way are one.

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use shoal_model::codec::{self, CodecError};
use shoal_model::session::ManagerPeer;
use shoal_model::{Task, TaskStatus};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// One assignment and what became of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskRecord {
    /// As assigned.
    pub task: Task,
    /// As last observed here.
    pub status: TaskStatus,
    /// The managers have dropped the record; what is left of the task here must go.
    pub forgotten: bool,
}

/// Everything that is kept.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentRecord {
    /// Assignments.
    pub tasks: Vec<TaskRecord>,
    /// Managers, the last leader first.
    pub managers: Vec<ManagerPeer>,
}

/// Why the record could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The file can't be read.
    #[error("failed to read `{path}`")]
    Read {
        /// Which.
        path: PathBuf,
        /// The cause.
        #[source]
        err: io::Error,
    },
    /// The file can't be written.
    #[error("failed to write `{path}`")]
    Write {
        /// Which.
        path: PathBuf,
        /// The cause.
        #[source]
        err: io::Error,
    },
    /// The record is damaged, or of a later version.
    #[error("the agent's record can't be used")]
    Record(#[source] CodecError),
    /// The blocking thread was lost.
    #[error("the write of the agent's record was cut short")]
    Cut,
}

/// The seam "disk" of the agent.
#[async_trait]
pub trait AgentDisk: Send + Sync + 'static {
    /// The last bytes that were saved.
    async fn load(&self) -> Result<Option<Vec<u8>>, DiskError>;

    /// Replaces them; durable once this returns.
    async fn save(&self, bytes: Vec<u8>) -> Result<(), DiskError>;
}

impl AgentRecord {
    /// Reads what was saved; nothing saved is an empty record.
    ///
    /// # Errors
    /// See [`DiskError`].
    pub async fn load(disk: &dyn AgentDisk) -> Result<Self, DiskError> {
        match disk.load().await? {
            Some(bytes) => codec::decode(&bytes).map_err(DiskError::Record),
            None => Ok(Self::default()),
        }
    }

    /// Saves it.
    ///
    /// # Errors
    /// See [`DiskError`].
    pub async fn save(&self, disk: &dyn AgentDisk) -> Result<(), DiskError> {
        let bytes = codec::encode(self).map_err(DiskError::Record)?;
        disk.save(bytes).await
    }
}

/// A file that is replaced by rename: `<data-root>/agent/assignments`.
#[derive(Debug, Clone)]
pub struct FileDisk {
    path: PathBuf,
}

impl FileDisk {
    /// Keeps the record in `folder`, which is made if it is missing.
    pub fn new(folder: &Path) -> Self {
        Self {
            path: folder.join("assignments"),
        }
    }
}

#[async_trait]
impl AgentDisk for FileDisk {
    async fn load(&self) -> Result<Option<Vec<u8>>, DiskError> {
        match tokio::fs::read(&self.path).await {
            Ok(bytes) => Ok(Some(bytes)),
            Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(err) => Err(DiskError::Read {
                path: self.path.clone(),
                err,
            }),
        }
    }

    async fn save(&self, bytes: Vec<u8>) -> Result<(), DiskError> {
        let path = self.path.clone();
        let written = tokio::task::spawn_blocking(move || {
            replace(&path, &bytes).map_err(|err| DiskError::Write { path, err })
        });
        written.await.map_err(|_| DiskError::Cut)?
    }
}

fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder)?;
    let temporary = path.with_extension("tmp");
    let mut file = std::fs::File::create(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    std::fs::File::open(folder)?.sync_all()
}
