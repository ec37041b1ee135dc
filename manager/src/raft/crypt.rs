//! Encryption of everything that Raft stores: AES-256-GCM, one derived key per file, a counter as nonce.
//!
//! The master key lies beside the node key. A file's own key is HKDF-SHA-256 of the master key and a random salt in
//! the file's head, so that a nonce can't repeat under one key as long as a file is only ever written forward by the
//! process that made it, which is how the log and the snapshots work.

use super::disk::{Disk, read_all};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::hkdf;
use ring::rand::{SecureRandom as _, SystemRandom};
use shoal_model::cluster::Redacted;
use std::io;
use std::path::{Path, PathBuf};

/// Bytes of the master key.
const KEY_BYTES: usize = 32;
/// Bytes of a file's salt.
pub(crate) const SALT_BYTES: usize = 32;
/// Bytes of the fingerprint that tells a wrong key from damage.
pub(crate) const KEY_ID_BYTES: usize = 16;
/// Bytes that sealing adds.
pub(crate) const TAG_BYTES: usize = 16;
/// First byte of the key file: its format.
const KEY_FORMAT: u8 = 1;
/// Second byte of the key file: the key itself follows. Other numbers are for keys that are wrapped by another one.
const KEY_PLAIN: u8 = 0;

/// Why a key can't be had.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file can't be read or written.
    #[error("failed to {verb} the Raft key `{path}`")]
    Io {
        /// `read` or `write`.
        verb: &'static str,
        /// The key file.
        path: PathBuf,
        /// Why.
        #[source]
        err: io::Error,
    },
    /// The file is not a key file of a format that this binary reads.
    #[error("`{path}` is not a Raft key that this binary reads: {reason}")]
    Format {
        /// The key file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The random source failed.
    #[error("the system's random source failed")]
    Random,
}

/// The master key of this node's Raft files.
#[derive(Debug, Clone)]
pub struct RaftKey(Redacted<[u8; KEY_BYTES]>);

impl RaftKey {
    /// A key made of given bytes; simulation takes them from its seed.
    pub const fn from_bytes(bytes: [u8; KEY_BYTES]) -> Self {
        Self(Redacted(bytes))
    }

    /// Reads the key file, or makes it, mode 0600, if there is none.
    ///
    /// # Errors
    /// See [`KeyError`].
    pub fn load_or_create(disk: &dyn Disk, path: &Path) -> Result<Self, KeyError> {
        let fail = |verb, err| KeyError::Io {
            verb,
            path: path.to_owned(),
            err,
        };
        match disk.open(path) {
            Ok(file) => {
                let bytes = read_all(&*file).map_err(|err| fail("read", err))?;
                Self::parse(path, &bytes)
            }
            Err(err) if err.kind() == io::ErrorKind::NotFound => Self::create(disk, path),
            Err(err) => Err(fail("read", err)),
        }
    }

    fn parse(path: &Path, bytes: &[u8]) -> Result<Self, KeyError> {
        let refuse = |reason: String| KeyError::Format {
            path: path.to_owned(),
            reason,
        };
        match bytes {
            [KEY_FORMAT, KEY_PLAIN, key @ ..] => key
                .try_into()
                .map(|key| Self(Redacted(key)))
                .map_err(|_| refuse(format!("{} bytes instead of {KEY_BYTES}", key.len()))),
            [KEY_FORMAT, kind, ..] => Err(refuse(format!("protection {kind} is not known"))),
            [format, ..] => Err(refuse(format!("format {format} is not known"))),
            [] => Err(refuse("it is empty".to_owned())),
        }
    }

    fn create(disk: &dyn Disk, path: &Path) -> Result<Self, KeyError> {
        let fail = |err| KeyError::Io {
            verb: "write",
            path: path.to_owned(),
            err,
        };
        let key = random::<KEY_BYTES>().map_err(|_| KeyError::Random)?;
        let mut bytes = vec![KEY_FORMAT, KEY_PLAIN];
        bytes.extend(key);
        let temporary = path.with_extension("tmp");
        let directory = path.parent().unwrap_or_else(|| Path::new("."));
        disk.create_dir_all(directory).map_err(fail)?;
        let mut file = disk.create(&temporary, 0).map_err(fail)?;
        file.write_at(0, &bytes).map_err(fail)?;
        file.sync().map_err(fail)?;
        disk.rename(&temporary, path).map_err(fail)?;
        disk.sync_dir(directory).map_err(fail)?;
        Ok(Self(Redacted(key)))
    }

    /// A fingerprint of the key, safe to store in the open.
    pub(crate) fn id(&self) -> [u8; KEY_ID_BYTES] {
        self.derive(b"", b"shoal raft key id")
    }

    /// The key of one file.
    pub(crate) fn file_key(&self, salt: &[u8; SALT_BYTES], purpose: &'static [u8]) -> FileKey {
        let bytes: [u8; KEY_BYTES] = self.derive(salt, purpose);
        #[expect(clippy::expect_used, reason = "the length is right by type")]
        let key = UnboundKey::new(&AES_256_GCM, &bytes).expect("AES-256 takes keys of 32 bytes");
        FileKey(LessSafeKey::new(key))
    }

    fn derive<const N: usize>(&self, salt: &[u8], purpose: &'static [u8]) -> [u8; N] {
        struct Length(usize);
        impl hkdf::KeyType for Length {
            fn len(&self) -> usize {
                self.0
            }
        }
        let mut out = [0; N];
        let secret = hkdf::Salt::new(hkdf::HKDF_SHA256, salt).extract(&self.0.0);
        let filled = secret
            .expand(&[purpose], Length(N))
            .and_then(|okm| okm.fill(&mut out));
        #[expect(
            clippy::expect_used,
            reason = "HKDF-SHA-256 gives up to 8160 bytes, and N is at most 32"
        )]
        filled.expect("HKDF gives 32 bytes");
        out
    }
}

/// Seals and opens the parts of one file, numbered from zero.
pub(crate) struct FileKey(LessSafeKey);

impl FileKey {
    /// Seals `buffer[start..]` in place and appends the tag.
    pub(crate) fn seal(&self, number: u64, aad: &[u8], buffer: &mut Vec<u8>, start: usize) {
        let sealed =
            self.0
                .seal_in_place_separate_tag(nonce(number), Aad::from(aad), &mut buffer[start..]);
        #[expect(
            clippy::expect_used,
            reason = "AES-GCM seals up to 64 GiB, and callers bound a part to megabytes"
        )]
        let tag = sealed.expect("a part of a few megabytes can be sealed");
        buffer.extend_from_slice(tag.as_ref());
    }

    /// Opens a sealed part; `None` if it is not what was sealed.
    pub(crate) fn open<'b>(
        &self,
        number: u64,
        aad: &[u8],
        sealed: &'b mut [u8],
    ) -> Option<&'b [u8]> {
        self.0
            .open_in_place(nonce(number), Aad::from(aad), sealed)
            .ok()
            .map(|plain| &*plain)
    }
}

fn nonce(number: u64) -> Nonce {
    let mut bytes = [0; NONCE_LEN];
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    Nonce::assume_unique_for_key(bytes)
}

/// Fresh random bytes for a salt. They never influence behaviour, so that simulation may draw them too.
pub(crate) fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| io::Error::other("the system's random source failed"))?;
    Ok(bytes)
}

/// CRC-32C (Castagnoli), for the few bytes that must be found before anything can be decrypted.
pub(crate) fn crc32c(bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0u32; 256];
        let mut index = 0;
        while index < 256 {
            let mut value = index as u32;
            let mut bit = 0;
            while bit < 8 {
                value = if value & 1 == 1 {
                    (value >> 1) ^ 0x82f6_3b78
                } else {
                    value >> 1
                };
                bit += 1;
            }
            table[index] = value;
            index += 1;
        }
        table
    };
    !bytes.iter().fold(!0u32, |crc, &byte| {
        (crc >> 8) ^ TABLE[usize::from((crc as u8) ^ byte)]
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::disk::RealDisk;

    #[test]
    fn crc_is_castagnoli() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn key_file_is_private_and_read_back() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("raft.key");
        let made = RaftKey::load_or_create(&RealDisk, &path).unwrap();
        let read = RaftKey::load_or_create(&RealDisk, &path).unwrap();
        assert_eq!(made.id(), read.id());
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn unknown_protection_is_named() {
        let error = RaftKey::parse(Path::new("k"), &[1, 9, 0]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "`k` is not a Raft key that this binary reads: protection 9 is not known"
        );
    }

    #[test]
    fn sealed_parts_open_only_in_their_place() {
        let key = RaftKey::from_bytes([7; 32]).file_key(&[1; SALT_BYTES], b"test");
        let mut buffer = b"plain".to_vec();
        key.seal(3, b"head", &mut buffer, 0);
        assert_eq!(
            key.open(3, b"head", &mut buffer.clone()),
            Some(&b"plain"[..])
        );
        assert_eq!(key.open(4, b"head", &mut buffer.clone()), None);
        assert_eq!(key.open(3, b"tail", &mut buffer.clone()), None);
    }
}
