//! A disk in memory that forgets what was not synced when its machine crashes, and fails a sync when told to.

use shoal_manager::raft::{Disk, DiskFile};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Simulated time of one sync.
const SYNC_TIME: Duration = Duration::from_micros(500);

#[derive(Debug, Default, Clone)]
struct Content {
    current: Vec<u8>,
    synced: Vec<u8>,
}

#[derive(Debug, Default)]
struct Files {
    next: u64,
    contents: BTreeMap<u64, Content>,
    /// Names as the running system sees them.
    names: BTreeMap<PathBuf, u64>,
    /// Names that a crash leaves.
    synced_names: BTreeMap<PathBuf, u64>,
    fail_syncs: u32,
}

/// Clones share the disk.
#[derive(Debug, Clone, Default)]
pub struct MemoryDisk {
    files: Arc<Mutex<Files>>,
}

impl MemoryDisk {
    fn lock(&self) -> MutexGuard<'_, Files> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The machine lost its power. Of the bytes that were not synced, a part that `random` decides survives: a torn
    /// write.
    pub fn crash(&self, mut random: impl FnMut() -> u64) {
        let mut files = self.lock();
        files.names = files.synced_names.clone();
        let kept: Vec<u64> = files.names.values().copied().collect();
        files.contents.retain(|id, _| kept.contains(id));
        for content in files.contents.values_mut() {
            let len = content.current.len().max(content.synced.len());
            let cut = usize::try_from(random() % (len as u64 + 1)).unwrap_or(0);
            let mut after = content.synced.clone();
            let survives = cut.min(content.current.len());
            if after.len() < survives {
                after.resize(survives, 0);
            }
            after[..survives].copy_from_slice(&content.current[..survives]);
            content.current.clone_from(&after);
            content.synced = after;
        }
        files.fail_syncs = 0;
    }

    /// The next sync fails, and what it should have made durable is in doubt.
    pub fn fail_next_sync(&self) {
        self.lock().fail_syncs = 1;
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
            current: vec![0; zeros],
            synced: Vec::new(),
        };
        files.contents.insert(id, content);
        files.names.insert(path.to_owned(), id);
        Ok(Box::new(MemoryFile {
            files: Arc::clone(&self.files),
            id,
        }))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let id = *self
            .lock()
            .names
            .get(path)
            .ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        Ok(Box::new(MemoryFile {
            files: Arc::clone(&self.files),
            id,
        }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut files = self.lock();
        let id = files
            .names
            .remove(from)
            .ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        files.names.insert(to.to_owned(), id);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let removed = self.lock().names.remove(path);
        removed
            .map(drop)
            .ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
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

impl DiskFile for MemoryFile {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let offset = usize::try_from(offset).map_err(io::Error::other)?;
        Ok(self.with(|content| {
            let rest = content.current.get(offset..).unwrap_or(&[]);
            let count = rest.len().min(buffer.len());
            buffer[..count].copy_from_slice(&rest[..count]);
            count
        }))
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let offset = usize::try_from(offset).map_err(io::Error::other)?;
        let end = offset + bytes.len();
        self.with(|content| {
            if content.current.len() < end {
                content.current.resize(end, 0);
            }
            content.current[offset..end].copy_from_slice(bytes);
        });
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        if files.fail_syncs > 0 {
            files.fail_syncs -= 1;
            return Err(io::Error::other("simulated fsync error"));
        }
        if let Some(content) = files.contents.get_mut(&self.id) {
            content.synced = content.current.clone();
        }
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.with(|content| content.current.len() as u64))
    }
}
