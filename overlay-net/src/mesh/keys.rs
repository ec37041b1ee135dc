//! The node's private keys: made on the node, kept in one file, shown to nobody.

use boringtun::x25519::{PublicKey, StaticSecret};
use rand::TryRng;
use rand::rngs::SysRng;
use serde::{Deserialize, Serialize};
use shoal_model::cluster::Redacted;
use shoal_model::codec::{self, CodecError};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Name of the file.
const FILE: &str = "wireguard.key";

/// Why the keys could not be kept.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file.
    #[error("failed to {action} `{}`", path.display())]
    File {
        /// `read`, `write`.
        action: &'static str,
        /// Which.
        path: PathBuf,
        /// The system's answer.
        #[source]
        err: io::Error,
    },
    /// Its content.
    #[error("`{}` is damaged, or of a newer version", path.display())]
    Content {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        err: CodecError,
    },
    /// No random numbers.
    #[error("the system gives no random numbers")]
    Random,
}

/// What the file holds. Later forms are appended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum KeyFile {
    V1(KeyRecord),
}

/// The keys, and the port that peers know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct KeyRecord {
    /// In use.
    pub(super) current: Redacted<[u8; 32]>,
    /// In use next.
    pub(super) next: Option<Redacted<[u8; 32]>>,
    /// The UDP port that was had last; 0: none yet.
    pub(super) port: u16,
}

/// The file and what is in it.
#[derive(Debug, Clone)]
pub(super) struct Keys {
    path: PathBuf,
    record: KeyRecord,
}

impl Keys {
    /// Reads the file, or makes it with a new key.
    pub(super) fn load(dir: &Path) -> Result<Self, KeyError> {
        let path = dir.join(FILE);
        match fs::read(&path) {
            Ok(bytes) => match codec::decode(&bytes) {
                Ok(KeyFile::V1(record)) => Ok(Self { path, record }),
                Err(err) => Err(KeyError::Content { path, err }),
            },
            Err(err) if err.kind() == io::ErrorKind::NotFound => {
                let record = KeyRecord {
                    current: generate()?,
                    next: None,
                    port: 0,
                };
                let keys = Self { path, record };
                keys.save(&keys.record)?;
                Ok(keys)
            }
            Err(err) => Err(KeyError::File {
                action: "read",
                path,
                err,
            }),
        }
    }

    pub(super) fn record(&self) -> &KeyRecord {
        &self.record
    }

    pub(super) fn public_key(&self) -> [u8; 32] {
        public_of(&self.record.current)
    }

    pub(super) fn next_public_key(&self) -> Option<[u8; 32]> {
        self.record.next.as_ref().map(public_of)
    }

    /// Remembers the port.
    pub(super) fn set_port(&mut self, port: u16) -> Result<(), KeyError> {
        if self.record.port == port {
            return Ok(());
        }
        let record = KeyRecord {
            port,
            ..self.record.clone()
        };
        self.replace(record)
    }

    /// Makes the key that is to be used next, unless there is one.
    pub(super) fn prepare(&mut self) -> Result<(), KeyError> {
        if self.record.next.is_some() {
            return Ok(());
        }
        let record = KeyRecord {
            next: Some(generate()?),
            ..self.record.clone()
        };
        self.replace(record)
    }

    /// Begins to use the next key.
    pub(super) fn switch(&mut self) -> Result<(), KeyError> {
        let Some(next) = self.record.next.clone() else {
            return Ok(());
        };
        let record = KeyRecord {
            current: next,
            next: None,
            port: self.record.port,
        };
        self.replace(record)
    }

    fn replace(&mut self, record: KeyRecord) -> Result<(), KeyError> {
        self.save(&record)?;
        self.record = record;
        Ok(())
    }

    /// Whole or not at all, whatever happens meanwhile.
    fn save(&self, record: &KeyRecord) -> Result<(), KeyError> {
        let failed = |err| KeyError::File {
            action: "write",
            path: self.path.clone(),
            err,
        };
        let bytes =
            codec::encode(&KeyFile::V1(record.clone())).map_err(|err| KeyError::Content {
                path: self.path.clone(),
                err,
            })?;
        let temporary = self.path.with_extension("key.new");
        let write = || {
            if let Some(dir) = self.path.parent() {
                fs::create_dir_all(dir)?;
            }
            let mut file = File::options()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&temporary)?;
            file.write_all(&bytes)?;
            file.sync_all()?;
            fs::rename(&temporary, &self.path)?;
            match self.path.parent() {
                Some(dir) => File::open(dir)?.sync_all(),
                None => Ok(()),
            }
        };
        write().map_err(failed)
    }
}

fn generate() -> Result<Redacted<[u8; 32]>, KeyError> {
    let mut bytes = [0; 32];
    let mut random = SysRng;
    random
        .try_fill_bytes(&mut bytes)
        .map_err(|_| KeyError::Random)?;
    Ok(Redacted(bytes))
}

fn public_of(private: &Redacted<[u8; 32]>) -> [u8; 32] {
    PublicKey::from(&StaticSecret::from(private.0)).to_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_key_is_made_once_and_read_by_its_owner_only() {
        let dir = tempfile::tempdir().unwrap();
        let first = Keys::load(dir.path()).unwrap();
        let again = Keys::load(dir.path()).unwrap();
        assert_eq!(first.record(), again.record());
        let mode = fs::metadata(dir.path().join(FILE))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(!format!("{first:?}").contains(&format!("{:?}", first.record.current.0)));
    }

    #[test]
    fn a_switch_uses_the_key_that_was_announced() {
        let dir = tempfile::tempdir().unwrap();
        let mut keys = Keys::load(dir.path()).unwrap();
        let old = keys.public_key();
        keys.prepare().unwrap();
        let announced = keys.next_public_key().unwrap();
        keys.prepare().unwrap();
        assert_eq!(keys.next_public_key(), Some(announced));
        keys.switch().unwrap();
        let keys = Keys::load(dir.path()).unwrap();
        assert_eq!(
            (keys.public_key(), keys.next_public_key()),
            (announced, None)
        );
        assert_ne!(old, announced);
    }

    #[test]
    fn a_damaged_file_is_refused_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(FILE), [1, 9, 9]).unwrap();
        assert!(matches!(
            Keys::load(dir.path()),
            Err(KeyError::Content { .. })
        ));
        assert_eq!(fs::read(dir.path().join(FILE)).unwrap(), [1, 9, 9]);
    }
}
