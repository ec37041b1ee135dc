//! A snapshot on disk: one encrypted file, written beside the last one and put in its place by a rename.
//!
//! ```text
//! head:  "SHOALSNP" | format 1 | cipher 1 | 6 zeros | salt 32 | key id 16 | crc u32
//! part:  length u32 | sealed: kind u8, bytes
//! ```
//! Parts are the meta data, then the pages of the state, then an end that counts them: a file that was cut anywhere
//! does not read as complete.

use super::crypt::{FileKey, KEY_ID_BYTES, RaftKey, SALT_BYTES, TAG_BYTES, crc32c, random};
use super::disk::{Disk, DiskFile, read_all};
use super::error::LogError;
use super::types::SnapshotMeta;
use super::wire::WireSnapshotMeta;
use bytes::Bytes;
use shoal_model::codec;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// The current snapshot.
const FILE_NAME: &str = "snapshot";
const MAGIC: &[u8; 8] = b"SHOALSNP";
const FORMAT: u8 = 1;
const CIPHER_AES_256_GCM: u8 = 1;
const HEAD_BYTES: usize = 16 + SALT_BYTES + KEY_ID_BYTES + 4;
const PURPOSE: &[u8] = b"shoal raft snapshot";
const KIND_META: u8 = 1;
const KIND_PAGE: u8 = 2;
const KIND_END: u8 = 3;
/// Parts are written out when this many bytes have gathered.
const WRITE_BYTES: usize = 1 << 20;

/// Names of unfinished files differ, since a snapshot may be built while another is received.
static NEXT_TEMPORARY: AtomicU64 = AtomicU64::new(0);

/// The path of the current snapshot.
pub(crate) fn current_path(directory: &Path) -> PathBuf {
    directory.join(FILE_NAME)
}

/// Deletes what an interrupted write left.
pub(crate) fn remove_unfinished(disk: &dyn Disk, directory: &Path) -> Result<(), LogError> {
    let names = disk
        .list(directory)
        .map_err(|err| LogError::io("list", directory, err))?;
    for name in names.iter().filter(|name| name.ends_with(".tmp")) {
        let path = directory.join(name);
        disk.remove(&path)
            .map_err(|err| LogError::io("delete", &path, err))?;
    }
    Ok(())
}

/// Writes a snapshot piece by piece.
pub(crate) struct SnapshotWriter {
    path: PathBuf,
    file: Box<dyn DiskFile>,
    key: FileKey,
    end: u64,
    next_part: u64,
    pages: u64,
    buffer: Vec<u8>,
}

impl SnapshotWriter {
    /// Starts a file beside the current one.
    pub(crate) fn create(
        disk: &dyn Disk,
        directory: &Path,
        key: &RaftKey,
        meta: &SnapshotMeta,
    ) -> io::Result<Self> {
        let number = NEXT_TEMPORARY.fetch_add(1, Ordering::Relaxed);
        let path = directory.join(format!("{FILE_NAME}.{number}.tmp"));
        let salt = random::<SALT_BYTES>()?;
        let mut head = Vec::with_capacity(HEAD_BYTES);
        head.extend_from_slice(MAGIC);
        head.extend_from_slice(&[FORMAT, CIPHER_AES_256_GCM, 0, 0, 0, 0, 0, 0]);
        head.extend_from_slice(&salt);
        head.extend_from_slice(&key.id()[..]);
        let crc = crc32c(&head);
        head.extend_from_slice(&crc.to_le_bytes());
        let mut writer = Self {
            file: disk.create(&path, 0)?,
            path,
            key: key.file_key(&salt, PURPOSE),
            end: 0,
            next_part: 0,
            pages: 0,
            buffer: head,
        };
        let meta = codec::encode(&WireSnapshotMeta::from(meta)).map_err(io::Error::other)?;
        writer.part(KIND_META, &meta)?;
        Ok(writer)
    }

    /// Its file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Adds a page of the state.
    pub(crate) fn page(&mut self, page: &[u8]) -> io::Result<()> {
        self.pages += 1;
        self.part(KIND_PAGE, page)
    }

    /// Ends the file and makes it durable. It is not the current snapshot before [`adopt`].
    pub(crate) fn finish(mut self) -> io::Result<PathBuf> {
        self.part(KIND_END, &self.pages.to_le_bytes())?;
        self.flush()?;
        self.file.sync()?;
        Ok(self.path)
    }

    fn part(&mut self, kind: u8, bytes: &[u8]) -> io::Result<()> {
        let length = u32::try_from(bytes.len() + 1 + TAG_BYTES).map_err(io::Error::other)?;
        self.buffer.extend_from_slice(&length.to_le_bytes());
        let start = self.buffer.len();
        self.buffer.push(kind);
        self.buffer.extend_from_slice(bytes);
        self.key.seal(self.next_part, &[], &mut self.buffer, start);
        self.next_part += 1;
        if self.buffer.len() >= WRITE_BYTES {
            self.flush()
        } else {
            Ok(())
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.write_at(self.end, &self.buffer)?;
        self.end += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }
}

/// Makes a finished file the current snapshot.
pub(crate) fn adopt(disk: &dyn Disk, directory: &Path, finished: &Path) -> io::Result<()> {
    disk.rename(finished, &current_path(directory))?;
    disk.sync_dir(directory)
}

/// A whole snapshot in memory: its pages, still encoded.
pub(crate) struct SnapshotContent {
    pub(crate) meta: SnapshotMeta,
    pub(crate) pages: Vec<Bytes>,
}

/// Reads the file at `path`; `None` if there is none.
pub(crate) fn read(
    disk: &dyn Disk,
    path: &Path,
    key: &RaftKey,
) -> Result<Option<SnapshotContent>, LogError> {
    let bytes = match disk.open(path).and_then(|file| read_all(&*file)) {
        Ok(bytes) => bytes,
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(err) => return Err(LogError::io("read", path, err)),
    };
    Parts::new(path, &bytes, key)?.read().map(Some)
}

struct Parts<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    key: FileKey,
    at: usize,
    next_part: u64,
}

impl<'a> Parts<'a> {
    fn new(path: &'a Path, bytes: &'a [u8], key: &RaftKey) -> Result<Self, LogError> {
        let damaged = |reason: &str| LogError::Damaged {
            path: path.to_owned(),
            offset: 0,
            reason: reason.to_owned(),
        };
        if bytes.len() < HEAD_BYTES || &bytes[..8] != MAGIC {
            return Err(damaged("it does not start as a snapshot does"));
        }
        if bytes[8] != FORMAT || bytes[9] != CIPHER_AES_256_GCM {
            let (format, cipher) = (bytes[8], bytes[9]);
            return Err(LogError::UnknownFormat {
                path: path.to_owned(),
                format,
                cipher,
            });
        }
        let crc = u32::from_le_bytes(std::array::from_fn(|i| bytes[HEAD_BYTES - 4 + i]));
        if crc != crc32c(&bytes[..HEAD_BYTES - 4]) {
            return Err(damaged("its head does not match its checksum"));
        }
        let salt: [u8; SALT_BYTES] = std::array::from_fn(|i| bytes[16 + i]);
        let key_id: [u8; KEY_ID_BYTES] = std::array::from_fn(|i| bytes[16 + SALT_BYTES + i]);
        if key_id != key.id() {
            return Err(LogError::WrongKey {
                path: path.to_owned(),
            });
        }
        let key = key.file_key(&salt, PURPOSE);
        Ok(Self {
            path,
            bytes,
            key,
            at: HEAD_BYTES,
            next_part: 0,
        })
    }

    fn read(mut self) -> Result<SnapshotContent, LogError> {
        let (kind, body) = self.next()?;
        if kind != KIND_META {
            return Err(self.damaged("it has no meta data"));
        }
        let meta: WireSnapshotMeta = codec::decode(&body).map_err(|err| LogError::Undecodable {
            path: self.path.to_owned(),
            err,
        })?;
        let mut pages = Vec::new();
        loop {
            let (kind, body) = self.next()?;
            match kind {
                KIND_PAGE => pages.push(body),
                KIND_END if body[..] == (pages.len() as u64).to_le_bytes() => {
                    let meta = meta
                        .try_into()
                        .map_err(|_| self.damaged("its membership is not valid"))?;
                    return Ok(SnapshotContent { meta, pages });
                }
                _ => return Err(self.damaged("a part of it is of no known kind")),
            }
        }
    }

    fn next(&mut self) -> Result<(u8, Bytes), LogError> {
        let length = self
            .bytes
            .get(self.at..self.at + 4)
            .and_then(|word| word.try_into().ok());
        let start = self.at + 4;
        let sealed = length
            .map(|length| u32::from_le_bytes(length) as usize)
            .and_then(|length| self.bytes.get(start..start + length))
            .ok_or_else(|| self.damaged("it ends too early"))?;
        let mut sealed = sealed.to_vec();
        let end = start + sealed.len();
        let plain = self.key.open(self.next_part, &[], &mut sealed);
        let Some((&kind, body)) = plain.and_then(|plain| plain.split_first()) else {
            return Err(self.damaged("a part of it does not match its checksum"));
        };
        let body = Bytes::copy_from_slice(body);
        self.at = end;
        self.next_part += 1;
        Ok((kind, body))
    }

    fn damaged(&self, reason: &str) -> LogError {
        LogError::Damaged {
            path: self.path.to_owned(),
            offset: self.at as u64,
            reason: reason.to_owned(),
        }
    }
}
