//! Disks in memory that forget what was not synced when their machine loses its power, and fail when told to.

use async_trait::async_trait;
use shoal_agent::AgentDisk;
use shoal_agent::disk::DiskError;
use shoal_manager::raft::{Disk, DiskFile};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Simulated time of one sync.
const SYNC_TIME: Duration = Duration::from_micros(500);

/// Bytes that the device writes as a whole.
const BLOCK_BYTES: usize = 512;

/// The text of an injected error, by which it is told from a real one.
pub(crate) const INJECTED: &str = "simulated fsync error";

#[derive(Debug, Default)]
struct Content {
    bytes: Vec<u8>,
    /// Blocks that were written since the last sync, as they were before.
    before: BTreeMap<usize, Vec<u8>>,
    /// Blocks whose sync failed, as they were before: the system takes them for clean, so that no later sync writes
    /// them, unless they are written again.
    lost: BTreeMap<usize, Vec<u8>>,
    /// Bytes of the file that survive for sure.
    synced_len: usize,
}

impl Content {
    fn write(&mut self, offset: usize, bytes: &[u8]) {
        let end = offset + bytes.len();
        if self.bytes.len() < end {
            self.bytes.resize(end, 0);
        }
        for block in offset / BLOCK_BYTES..end.div_ceil(BLOCK_BYTES) {
            let start = block * BLOCK_BYTES;
            let stop = (start + BLOCK_BYTES).min(self.bytes.len());
            let current = &self.bytes[start..stop];
            let old = self.lost.remove(&block);
            self.before
                .entry(block)
                .or_insert_with(|| old.unwrap_or_else(|| current.to_vec()));
        }
        self.bytes[offset..end].copy_from_slice(bytes);
    }

    fn sync(&mut self) {
        self.before.clear();
        self.synced_len = self.bytes.len();
    }

    fn fail_sync(&mut self) {
        self.lost.append(&mut self.before);
    }

    /// Each block that was not synced has reached the device or not.
    fn crash(&mut self, random: &mut impl FnMut() -> u64) {
        self.before.append(&mut self.lost);
        for (block, old) in std::mem::take(&mut self.before) {
            if random().is_multiple_of(2) {
                let start = block * BLOCK_BYTES;
                self.bytes[start..start + old.len()].copy_from_slice(&old);
            }
        }
        let doubtful = self.bytes.len().saturating_sub(self.synced_len) as u64;
        let survives = usize::try_from(random() % (doubtful + 1)).unwrap_or(0);
        self.bytes.truncate(self.synced_len + survives);
        self.synced_len = self.bytes.len();
    }
}

#[derive(Debug, Default)]
struct Files {
    next: u64,
    contents: BTreeMap<u64, Content>,
    /// Names as the running system sees them.
    names: BTreeMap<PathBuf, u64>,
    /// Names that a loss of power leaves.
    synced_names: BTreeMap<PathBuf, u64>,
    fail_syncs: u32,
}

/// The disk under Raft. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct MemoryDisk {
    files: Arc<Mutex<Files>>,
}

impl MemoryDisk {
    fn lock(&self) -> MutexGuard<'_, Files> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The machine lost its power: `random` decides what of the writes that were not synced has survived.
    pub fn crash(&self, mut random: impl FnMut() -> u64) {
        let mut files = self.lock();
        files.names = files.synced_names.clone();
        let kept: Vec<u64> = files.names.values().copied().collect();
        files.contents.retain(|id, _| kept.contains(id));
        for content in files.contents.values_mut() {
            content.crash(&mut random);
        }
        files.fail_syncs = 0;
    }

    /// The next sync fails, and what it should have made durable is in doubt.
    pub fn fail_next_sync(&self) {
        self.lock().fail_syncs = 1;
    }

    /// No sync fails any more.
    pub fn heal(&self) {
        self.lock().fail_syncs = 0;
    }

    fn file(&self, id: u64) -> Box<dyn DiskFile> {
        Box::new(MemoryFile {
            files: Arc::clone(&self.files),
            id,
        })
    }
}

fn missing() -> io::Error {
    io::Error::from(io::ErrorKind::NotFound)
}

impl Disk for MemoryDisk {
    fn create_dir_all(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn create(&self, path: &Path, zero_bytes: u64) -> io::Result<Box<dyn DiskFile>> {
        let zeros = usize::try_from(zero_bytes).map_err(io::Error::other)?;
        let mut files = self.lock();
        files.next += 1;
        let id = files.next;
        let content = Content {
            bytes: vec![0; zeros],
            ..Content::default()
        };
        files.contents.insert(id, content);
        files.names.insert(path.to_owned(), id);
        drop(files);
        Ok(self.file(id))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let id = self.lock().names.get(path).copied();
        id.map(|id| self.file(id)).ok_or_else(missing)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut files = self.lock();
        let id = files.names.remove(from).ok_or_else(missing)?;
        files.names.insert(to.to_owned(), id);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let removed = self.lock().names.remove(path);
        removed.map(drop).ok_or_else(missing)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        let files = self.lock();
        let names = files
            .names
            .keys()
            .filter(|name| name.parent() == Some(path));
        Ok(names
            .filter_map(|name| Some(name.file_name()?.to_str()?.to_owned()))
            .collect())
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let mut files = self.lock();
        let inside = |name: &PathBuf| name.parent() == Some(path);
        files.synced_names.retain(|name, _| !inside(name));
        let live: Vec<_> = files
            .names
            .iter()
            .filter(|(name, _)| inside(name))
            .map(|(name, id)| (name.clone(), *id))
            .collect();
        files.synced_names.extend(live);
        Ok(())
    }

    fn simulated_sync_time(&self) -> Duration {
        SYNC_TIME
    }
}

struct MemoryFile {
    files: Arc<Mutex<Files>>,
    id: u64,
}

impl MemoryFile {
    fn with<T>(&self, act: impl FnOnce(&mut Content) -> T) -> T {
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        act(files.contents.entry(self.id).or_default())
    }
}

impl DiskFile for MemoryFile {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let offset = usize::try_from(offset).map_err(io::Error::other)?;
        Ok(self.with(|content| {
            let rest = content.bytes.get(offset..).unwrap_or(&[]);
            let count = rest.len().min(buffer.len());
            buffer[..count].copy_from_slice(&rest[..count]);
            count
        }))
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let offset = usize::try_from(offset).map_err(io::Error::other)?;
        self.with(|content| content.write(offset, bytes));
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        if files.fail_syncs > 0 {
            files.fail_syncs -= 1;
            if let Some(content) = files.contents.get_mut(&self.id) {
                content.fail_sync();
            }
            return Err(io::Error::other(INJECTED));
        }
        if let Some(content) = files.contents.get_mut(&self.id) {
            content.sync();
        }
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.with(|content| content.bytes.len() as u64))
    }
}

/// The disk of an agent: one record, replaced as a whole. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct RecordDisk(Arc<Mutex<Option<Vec<u8>>>>);

impl RecordDisk {
    fn lock(&self) -> MutexGuard<'_, Option<Vec<u8>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl AgentDisk for RecordDisk {
    async fn load(&self) -> Result<Option<Vec<u8>>, DiskError> {
        Ok(self.lock().clone())
    }

    async fn save(&self, bytes: Vec<u8>) -> Result<(), DiskError> {
        // A crash meanwhile leaves the old record.
        tokio::time::sleep(SYNC_TIME).await;
        *self.lock() = Some(bytes);
        Ok(())
    }
}
