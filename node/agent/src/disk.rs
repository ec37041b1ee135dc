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
    /// The record can't be encoded.
    #[error("the agent's record can't be encoded")]
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

    /// Replaces them; durable once this returns, unless the disk says otherwise of itself.
    async fn save(&self, bytes: Vec<u8>) -> Result<(), DiskError>;

    /// Puts bytes that can't be used where no later [`Self::save`] touches them, and says where. A disk without such a
    /// place gives nothing, and the next save replaces them.
    async fn set_aside(&self) -> Result<Option<PathBuf>, DiskError> {
        Ok(None)
    }
}

impl AgentRecord {
    /// Reads what was saved; nothing saved is an empty record, and so is a damaged one, which is set aside. Nothing is
    /// lost by that: the managers' complete set names every task of this node, and containers that no record names
    /// are left alone until it has come.
    ///
    /// # Errors
    /// See [`DiskError`]. What can't be read at all may be readable later: it is not given up.
    pub async fn load(disk: &dyn AgentDisk) -> Result<Self, DiskError> {
        let Some(bytes) = disk.load().await? else {
            return Ok(Self::default());
        };
        match codec::decode(&bytes) {
            Ok(record) => Ok(record),
            Err(err) => {
                let aside = disk.set_aside().await?;
                tracing::error!(
                    err = &err as &dyn std::error::Error,
                    ?aside,
                    "the record of this node's assignments can't be used; it was set aside, and the managers are asked \
                     for all assignments"
                );
                Ok(Self::default())
            }
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
    durable: bool,
}

impl FileDisk {
    /// Keeps the record in `folder`, which is made if it is missing.
    pub fn new(folder: &Path) -> Self {
        Self {
            path: folder.join("assignments"),
            durable: true,
        }
    }

    /// Keeps bytes in the file `name` that a loss of power may take back or damage: nothing waits for the device.
    pub fn hasty(folder: &Path, name: &str) -> Self {
        Self {
            path: folder.join(name),
            durable: false,
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
        let (path, durable) = (self.path.clone(), self.durable);
        let written = tokio::task::spawn_blocking(move || {
            replace(&path, &bytes, durable).map_err(|err| DiskError::Write { path, err })
        });
        written.await.map_err(|_| DiskError::Cut)?
    }

    async fn set_aside(&self) -> Result<Option<PathBuf>, DiskError> {
        let path = self.path.clone();
        let moved = tokio::task::spawn_blocking(move || {
            set_aside(&path).map_err(|err| DiskError::Write { path, err })
        });
        moved.await.map_err(|_| DiskError::Cut)?.map(Some)
    }
}

/// Damaged records that are kept for whoever looks into it; after that the newest replaces the last.
const DAMAGED_KEPT_MAX: u32 = 8;

fn set_aside(path: &Path) -> io::Result<PathBuf> {
    let place = |number: u32| path.with_extension(format!("damaged-{number}"));
    let free = (1..DAMAGED_KEPT_MAX)
        .map(place)
        .find(|place| !place.exists());
    let target = free.unwrap_or_else(|| place(DAMAGED_KEPT_MAX));
    std::fs::rename(path, &target)?;
    std::fs::File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()?;
    Ok(target)
}

fn replace(path: &Path, bytes: &[u8], durable: bool) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder)?;
    let temporary = path.with_extension("tmp");
    let mut file = std::fs::File::create(&temporary)?;
    file.write_all(bytes)?;
    if durable {
        file.sync_all()?;
    }
    std::fs::rename(&temporary, path)?;
    if durable {
        std::fs::File::open(folder)?.sync_all()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_damaged_record_is_kept_aside_and_the_agent_starts_empty() {
        let folder = tempfile::tempdir().unwrap();
        let disk = FileDisk::new(folder.path());
        for (number, bytes) in [(1, &b""[..]), (2, b"\xff\xff garbage"), (3, b"\x01\xff")] {
            disk.save(bytes.to_vec()).await.unwrap();
            let record = AgentRecord::load(&disk).await.unwrap();
            assert_eq!(record, AgentRecord::default());
            let aside = folder.path().join(format!("assignments.damaged-{number}"));
            assert_eq!(std::fs::read(aside).unwrap(), bytes);
            assert!(disk.load().await.unwrap().is_none());
        }
        AgentRecord::default().save(&disk).await.unwrap();
        assert!(disk.load().await.unwrap().is_some());
    }
}
