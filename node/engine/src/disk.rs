//! Records on disk: a format version and a value, written to a temporary name and renamed.

use crate::error::{EngineError, Result};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

/// The version of every record that this binary writes.
pub(crate) const RECORD_VERSION: u32 = 1;

/// Most bytes of a record that are read: 16 MiB.
const RECORD_BYTES_MAX: u64 = 16 << 20;

/// Whether a record must survive a power cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Durability {
    /// Synced, and its directory too.
    Synced,
    /// Survives the daemon, not the machine: for what a reboot makes worthless anyway.
    Cached,
}

#[derive(Serialize)]
struct EnvelopeRef<'a, T> {
    version: u32,
    record: &'a T,
}

#[derive(Deserialize)]
struct Envelope<T> {
    #[expect(
        dead_code,
        reason = "checked in a first pass, before the record's shape is known"
    )]
    version: u32,
    record: T,
}

#[derive(Deserialize)]
struct VersionOnly {
    version: u32,
}

/// Writes a record so that a reader finds the old or the new one, never a part.
pub(crate) fn write_record<T: Serialize>(
    path: &Path,
    record: &T,
    durability: Durability,
) -> Result<()> {
    let bytes = serde_json::to_vec(&EnvelopeRef {
        version: RECORD_VERSION,
        record,
    })
    .map_err(|err| EngineError::disk("write", path)(io::Error::other(err)))?;
    write_file(path, &bytes, 0o600, durability)
}

/// Writes a whole file under a temporary name and renames it.
pub(crate) fn write_file(
    path: &Path,
    bytes: &[u8],
    mode: u32,
    durability: Durability,
) -> Result<()> {
    let failed = |err| EngineError::disk("write", path)(err);
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".tmp");
    let written = (|| {
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(mode)
            .open(&temporary)?;
        file.write_all(bytes)?;
        if durability == Durability::Synced {
            file.sync_all()?;
        }
        fs::rename(&temporary, path)
    })();
    if let Err(err) = written {
        // What was half written must not stay; the first error is the one to tell.
        if let Err(err) = fs::remove_file(&temporary)
            && err.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %path.display(), %err, "could not remove a temporary file");
        }
        return Err(failed(err));
    }
    match (durability, path.parent()) {
        (Durability::Synced, Some(parent)) => sync_dir(parent),
        _ => Ok(()),
    }
}

/// Makes renames and creations in `dir` survive a power cut.
pub(crate) fn sync_dir(dir: &Path) -> Result<()> {
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(EngineError::disk("sync", dir))
}

/// Reads a record; `None` when there is no such file.
pub(crate) fn read_record<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let bytes = match fs::metadata(path) {
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(err) => return Err(EngineError::disk("read", path)(err)),
        Ok(meta) if meta.len() > RECORD_BYTES_MAX => {
            return Err(bad(
                path,
                format!("it has more than {RECORD_BYTES_MAX} bytes"),
            ));
        }
        Ok(_) => fs::read(path).map_err(EngineError::disk("read", path))?,
    };
    let version: VersionOnly =
        serde_json::from_slice(&bytes).map_err(|err| bad(path, err.to_string()))?;
    if version.version != RECORD_VERSION {
        return Err(bad(
            path,
            format!(
                "it has version {}, this engine reads version {RECORD_VERSION}",
                version.version
            ),
        ));
    }
    let envelope: Envelope<T> =
        serde_json::from_slice(&bytes).map_err(|err| bad(path, err.to_string()))?;
    Ok(Some(envelope.record))
}

/// Whether a record that can't be read is a whole one of another version of this program.
pub(crate) fn is_of_other_version(path: &Path) -> bool {
    let read = fs::read(path).ok();
    let version: Option<VersionOnly> = read.and_then(|bytes| serde_json::from_slice(&bytes).ok());
    version.is_some_and(|found| found.version != RECORD_VERSION)
}

fn bad(path: &Path, reason: String) -> EngineError {
    EngineError::Record {
        path: path.to_owned(),
        reason,
    }
}

/// Makes a directory and its parents.
pub(crate) fn create_dir_all(path: &Path, mode: u32) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(path)
        .map_err(EngineError::disk("create", path))
}

/// Removes a directory with all that is in it; one that is not there is fine.
pub(crate) fn remove_dir_all(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Ok(()) => Ok(()),
        Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(err) => Err(EngineError::disk("remove", path)(err)),
    }
}

/// Runs blocking work on a blocking thread.
pub(crate) async fn blocking<T: Send + 'static>(
    what: &'static str,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|_| EngineError::WorkLost { what })?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_whole_versioned_or_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("r.json");
        assert!(read_record::<Vec<u32>>(&path).unwrap().is_none());
        write_record(&path, &vec![1, 2], Durability::Synced).unwrap();
        assert_eq!(read_record::<Vec<u32>>(&path).unwrap(), Some(vec![1, 2]));
        fs::write(&path, r#"{"version":2,"record":[]}"#).unwrap();
        let text = read_record::<Vec<u32>>(&path).unwrap_err().to_string();
        assert!(text.contains("version 2"), "{text}");
        fs::write(&path, r#"{"version":1,"rec"#).unwrap();
        assert!(read_record::<Vec<u32>>(&path).is_err());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
