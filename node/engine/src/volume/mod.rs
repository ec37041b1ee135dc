//! Volumes: directories with a name, a record, and a list of who uses them.

mod actor;

pub(crate) use actor::{
    EnsureVolume, GetVolume, ListVolumes, RemoveVolume, UnuseVolumes, UseVolumes, VolumeActor,
};

use crate::disk::{self, Durability};
use crate::error::{EngineError, Result};
use crate::info::VolumeInfo;
use serde::{Deserialize, Serialize};
use shoal_model::{Labels, Timestamp};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// The record of a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct VolumeRecord {
    pub(crate) name: String,
    pub(crate) created: Timestamp,
    pub(crate) labels: Labels,
    pub(crate) options: BTreeMap<String, String>,
    pub(crate) anonymous: bool,
}

/// Where volumes are on disk.
#[derive(Debug, Clone)]
pub(crate) struct VolumeDir(PathBuf);

impl VolumeDir {
    /// Opens the directory and clears what was half made or half removed.
    pub(crate) fn open(root: PathBuf) -> Result<Self> {
        disk::create_dir_all(&root, 0o711)?;
        for entry in fs::read_dir(&root).map_err(EngineError::disk("read", &root))? {
            let entry = entry.map_err(EngineError::disk("read", &root))?;
            if entry.file_name().as_encoded_bytes().starts_with(b".") {
                disk::remove_dir_all(&entry.path())?;
            }
        }
        Ok(Self(root))
    }

    /// Where the data of a volume is.
    pub(crate) fn data(&self, name: &str) -> PathBuf {
        self.0.join(name).join("_data")
    }

    /// Every volume with a readable record; the others are named in the log and left alone.
    pub(crate) fn load(&self) -> Result<BTreeMap<String, VolumeRecord>> {
        let mut found = BTreeMap::new();
        for entry in fs::read_dir(&self.0).map_err(EngineError::disk("read", &self.0))? {
            let entry = entry.map_err(EngineError::disk("read", &self.0))?;
            match disk::read_record::<VolumeRecord>(&entry.path().join("volume.json")) {
                Ok(Some(record)) => drop(found.insert(record.name.clone(), record)),
                Ok(None) => {
                    tracing::warn!(path = %entry.path().display(), "a directory among the volumes has no record")
                }
                Err(err) => {
                    tracing::error!(%err, "a volume's record can't be read; its data is left as it is")
                }
            }
        }
        Ok(found)
    }

    /// Makes a volume visible by one rename. Blocks.
    pub(crate) fn create(&self, record: &VolumeRecord) -> Result<()> {
        let half = self.0.join(format!(".new-{}", record.name));
        disk::remove_dir_all(&half)?;
        let made = (|| {
            disk::create_dir_all(&half.join("_data"), 0o755)?;
            disk::write_record(&half.join("volume.json"), record, Durability::Synced)?;
            let path = self.0.join(&record.name);
            fs::rename(&half, &path).map_err(EngineError::disk("create", &path))?;
            disk::sync_dir(&self.0)
        })();
        if made.is_err() {
            disk::remove_dir_all(&half)?;
        }
        made
    }

    /// Makes a volume invisible by one rename, then removes its data. Blocks.
    pub(crate) fn remove(&self, name: &str) -> Result<()> {
        let path = self.0.join(name);
        let half = self.0.join(format!(".old-{name}"));
        disk::remove_dir_all(&half)?;
        match fs::rename(&path, &half) {
            Ok(()) => disk::remove_dir_all(&half),
            Err(err) if err.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(err) => Err(EngineError::disk("remove", path)(err)),
        }
    }

    pub(crate) fn info(&self, record: &VolumeRecord) -> VolumeInfo {
        VolumeInfo {
            name: record.name.clone(),
            driver: "local".to_owned(),
            mountpoint: self.data(&record.name),
            created: record.created,
            labels: record.labels.clone(),
            options: record.options.clone(),
            anonymous: record.anonymous,
            used_by: Vec::new(),
        }
    }
}

/// Bytes of the files below `path`. Blocks; what vanishes meanwhile is not counted.
pub(crate) fn disk_usage(path: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(path) else {
        return 0;
    };
    entries
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(meta) if meta.is_dir() => disk_usage(&entry.path()),
            Ok(meta) => meta.len(),
            Err(_) => 0,
        })
        .sum()
}
