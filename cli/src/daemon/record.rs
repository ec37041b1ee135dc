//! What the daemon remembers of its membership beside its certificate: addresses, and managers to try first.

use serde::{Deserialize, Serialize};
use shoal_model::session::ManagerPeer;
use std::fs::{self, File};
use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// Why the record can't be used.
#[derive(Debug, thiserror::Error)]
#[error("failed to {action} `{path}`")]
pub(crate) struct RecordError {
    action: &'static str,
    path: PathBuf,
    /// The file is there and is no record: it will never be readable.
    damaged: bool,
    #[source]
    err: io::Error,
}

impl RecordError {
    /// Whether the file's content is to blame, and not the disk.
    pub(crate) const fn is_damage(&self) -> bool {
        self.damaged
    }
}

/// The record, as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NodeRecord {
    /// Format of this file.
    pub(crate) version: u32,
    /// Where the control port listens.
    pub(crate) listen: SocketAddr,
    /// Where others reach it.
    pub(crate) advertise: SocketAddr,
    /// Managers to talk to after a restart.
    pub(crate) managers: Vec<ManagerPeer>,
}

impl NodeRecord {
    pub(crate) const VERSION: u32 = 1;

    fn path(data_root: &Path) -> PathBuf {
        data_root.join("node.json")
    }

    pub(crate) fn load(data_root: &Path) -> Result<Option<Self>, RecordError> {
        let path = Self::path(data_root);
        let error = |damaged, err| RecordError {
            action: "read",
            path: path.clone(),
            damaged,
            err,
        };
        let failed = |err| error(false, err);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(err) => return Err(failed(err)),
        };
        let record: Self = serde_json::from_slice(&text).map_err(|err| error(true, err.into()))?;
        if record.version != Self::VERSION {
            let text = format!("version {} is not known to this binary", record.version);
            return Err(failed(io::Error::other(text)));
        }
        Ok(Some(record))
    }

    /// Replaces the record: a crash leaves the old one or the new one.
    pub(crate) fn save(&self, data_root: &Path) -> Result<(), RecordError> {
        let path = Self::path(data_root);
        let temporary = path.with_extension("json.new");
        let write = || {
            let mut file = File::create(&temporary)?;
            serde_json::to_writer(&mut file, self)?;
            file.write_all(b"\n")?;
            file.sync_all()?;
            fs::rename(&temporary, &path)?;
            File::open(data_root)?.sync_all()
        };
        write().map_err(|err| RecordError {
            action: "write",
            path: path.clone(),
            damaged: false,
            err,
        })
    }

    pub(crate) fn remove(data_root: &Path) -> Result<(), RecordError> {
        let path = Self::path(data_root);
        match fs::remove_file(&path) {
            Err(err) if err.kind() != io::ErrorKind::NotFound => Err(RecordError {
                action: "remove",
                path,
                damaged: false,
                err,
            }),
            _ => Ok(()),
        }
    }
}
