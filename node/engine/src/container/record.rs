//! What is on disk of a container: a record that is made once, and a state that changes.

use crate::config::{ContainerConfig, NetworkMode, RestartPolicy};
use crate::disk::{self, Durability};
use crate::error::Result;
use crate::info::{ContainerStatus, MountPoint};
use crate::merge::Command;
use crate::network::Lease;
use serde::{Deserialize, Serialize};
use shoal_model::{ContainerId, Timestamp};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The part that is made at creation. Name, limits and restart policy may be changed by the user afterwards.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ContainerRecord {
    pub(crate) id: ContainerId,
    pub(crate) name: String,
    pub(crate) created: Timestamp,
    pub(crate) image_id: String,
    pub(crate) config: Arc<ContainerConfig>,
    pub(crate) path: String,
    pub(crate) args: Vec<String>,
    pub(crate) mounts: Arc<Vec<MountPoint>>,
    /// With the other container's id instead of its name.
    pub(crate) network_mode: NetworkMode,
}

impl ContainerRecord {
    pub(crate) fn command(&self) -> Command {
        Command {
            path: self.path.clone(),
            args: self.args.clone(),
        }
    }

    pub(crate) fn restart_policy(&self) -> RestartPolicy {
        self.config.host.restart_policy
    }

    /// A container that is removed at its end need not survive a power cut.
    pub(crate) fn durability(&self) -> Durability {
        if self.config.host.auto_remove {
            Durability::Cached
        } else {
            Durability::Synced
        }
    }

    pub(crate) fn volume_names(&self) -> Vec<String> {
        self.mounts
            .iter()
            .filter(|point| !point.name.is_empty())
            .map(|point| point.name.clone())
            .collect()
    }

    pub(crate) fn anonymous_volumes(&self) -> Vec<String> {
        self.mounts
            .iter()
            .filter(|point| point.anonymous)
            .map(|point| point.name.clone())
            .collect()
    }
}

/// How far a container is, on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) enum Phase {
    /// Never started.
    #[default]
    Created,
    /// A start is under way: whatever it has made is undone if the engine dies now.
    Starting,
    /// Runs under its shim.
    Running,
    /// Frozen.
    Paused,
    /// Ended.
    Exited,
}

/// The changing part.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct StateRecord {
    pub(crate) phase: Phase,
    pub(crate) exit_code: i32,
    pub(crate) error: String,
    pub(crate) oom_killed: bool,
    pub(crate) started_at: Option<Timestamp>,
    pub(crate) finished_at: Option<Timestamp>,
    pub(crate) restart_count: u32,
    /// The user stopped it: `unless-stopped` does not start it again.
    pub(crate) stopped_by_user: bool,
    pub(crate) lease: Lease,
}

impl StateRecord {
    pub(crate) fn status(&self) -> ContainerStatus {
        match self.phase {
            // Until its first instruction a container is what it was before.
            Phase::Created | Phase::Starting if self.started_at.is_none() => {
                ContainerStatus::Created
            }
            Phase::Created | Phase::Starting | Phase::Exited => ContainerStatus::Exited,
            Phase::Running => ContainerStatus::Running,
            Phase::Paused => ContainerStatus::Paused,
        }
    }
}

/// The directory of one container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ContainerDir(PathBuf);

impl ContainerDir {
    pub(crate) fn new(containers: &Path, id: &ContainerId) -> Self {
        Self(containers.join(id.to_string()))
    }

    pub(crate) fn at(path: PathBuf) -> Self {
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    pub(crate) fn record_path(&self) -> PathBuf {
        self.0.join("container.json")
    }

    pub(crate) fn state_path(&self) -> PathBuf {
        self.0.join("state.json")
    }

    pub(crate) fn bundle(&self) -> PathBuf {
        self.0.join("bundle")
    }

    pub(crate) fn rootfs(&self) -> PathBuf {
        self.bundle().join("rootfs")
    }

    pub(crate) fn upper(&self) -> PathBuf {
        self.0.join("upper")
    }

    pub(crate) fn work(&self) -> PathBuf {
        self.0.join("work")
    }

    pub(crate) fn hosts(&self) -> PathBuf {
        self.0.join("hosts")
    }

    pub(crate) fn hostname(&self) -> PathBuf {
        self.0.join("hostname")
    }

    pub(crate) fn resolv_conf(&self) -> PathBuf {
        self.0.join("resolv.conf")
    }

    pub(crate) fn log(&self, id: &ContainerId) -> PathBuf {
        self.0.join(format!("{id}-json.log"))
    }

    /// Makes the directory with all that a container needs before its first start. Blocks.
    pub(crate) fn populate(&self, record: &ContainerRecord) -> Result<()> {
        for (path, mode) in [
            (self.0.clone(), 0o710),
            (self.bundle(), 0o700),
            (self.rootfs(), 0o755),
            (self.upper(), 0o755),
            (self.work(), 0o700),
        ] {
            disk::create_dir_all(&path, mode)?;
        }
        disk::write_record(&self.record_path(), record, record.durability())
    }

    pub(crate) fn write_state(&self, state: &StateRecord, durability: Durability) -> Result<()> {
        disk::write_record(&self.state_path(), state, durability)
    }
}
