//! A disk that fails when told to: nothing that was not synced may be acknowledged.

use super::cluster::{Cluster, create, stop_reason};
use crate::consensus::{Consensus as _, ProposeError};
use crate::raft::{Disk, DiskFile, RealDisk};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

#[derive(Clone, Default)]
struct Faults {
    sync: Arc<AtomicBool>,
    write: Arc<AtomicBool>,
    unsynced: Arc<Mutex<Vec<Unsynced>>>,
}

/// A write that a loss of power takes back.
struct Unsynced {
    path: PathBuf,
    offset: u64,
    before: Vec<u8>,
    /// Its sync failed: a later one does not save it.
    failed: bool,
}

impl Faults {
    fn lose_power(&self) {
        for write in self.unsynced.lock().unwrap().drain(..).rev() {
            let mut file = RealDisk.open(&write.path).unwrap();
            file.write_at(write.offset, &write.before).unwrap();
        }
    }
}

struct FaultyDisk(Faults);

struct FaultyFile {
    file: Box<dyn DiskFile>,
    path: PathBuf,
    faults: Faults,
}

impl Disk for FaultyDisk {
    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        RealDisk.create_dir_all(path)
    }
    fn create(&self, path: &Path, zero_bytes: u64) -> io::Result<Box<dyn DiskFile>> {
        Ok(self.faulty(RealDisk.create(path, zero_bytes)?, path))
    }
    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        Ok(self.faulty(RealDisk.open(path)?, path))
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        RealDisk.rename(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        RealDisk.remove(path)
    }
    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        RealDisk.list(path)
    }
    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        RealDisk.sync_dir(path)
    }
}

impl FaultyDisk {
    fn faulty(&self, file: Box<dyn DiskFile>, path: &Path) -> Box<dyn DiskFile> {
        // A file is made under a temporary name, and written on after it has its own.
        let made = path.file_name().is_some_and(|name| name == "log.tmp");
        let names = RealDisk.list(path.parent().unwrap()).unwrap();
        let next = names.iter().filter(|name| name.starts_with("log-")).count();
        let path = match made {
            true => path.with_file_name(format!("log-{next:016x}")),
            false => path.to_owned(),
        };
        Box::new(FaultyFile {
            file,
            path,
            faults: self.0.clone(),
        })
    }
}

impl DiskFile for FaultyFile {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        self.file.read_at(offset, buffer)
    }
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        if self.faults.write.load(Ordering::Relaxed) {
            return Err(io::Error::from(io::ErrorKind::StorageFull));
        }
        let mut before = vec![0; bytes.len()];
        self.file.read_at(offset, &mut before)?;
        let mut unsynced = self.faults.unsynced.lock().unwrap();
        let again = unsynced
            .iter_mut()
            .find(|write| write.path == self.path && write.offset == offset);
        match again {
            Some(write) => write.failed = false,
            None => unsynced.push(Unsynced {
                path: self.path.clone(),
                offset,
                before,
                failed: false,
            }),
        }
        drop(unsynced);
        self.file.write_at(offset, bytes)
    }
    fn sync(&mut self) -> io::Result<()> {
        let mut unsynced = self.faults.unsynced.lock().unwrap();
        if self.faults.sync.load(Ordering::Relaxed) {
            let own = unsynced.iter_mut().filter(|write| write.path == self.path);
            own.for_each(|write| write.failed = true);
            return Err(io::Error::other("the device is gone"));
        }
        unsynced.retain(|write| write.failed || write.path != self.path);
        drop(unsynced);
        self.file.sync()
    }
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }
}

async fn with_faulty_leader() -> (Cluster, Faults) {
    let faults = Faults::default();
    let mut cluster = Cluster::empty();
    cluster
        .disks
        .insert(1, Arc::new(FaultyDisk(faults.clone())));
    cluster.start(1).await.unwrap();
    cluster.handle(1).bootstrap(Vec::new()).await.unwrap();
    (cluster, faults)
}

#[tokio::test]
async fn failed_sync_is_never_acknowledged_and_stops_the_role() {
    let (cluster, faults) = with_faulty_leader().await;
    cluster.write(1).await;
    faults.sync.store(true, Ordering::Relaxed);
    let handle = cluster.handle(1);
    let error = handle.propose(vec![create(2)]).await.unwrap_err();
    assert!(matches!(error, ProposeError::Unknown { .. }), "{error}");
    // A disk that works again changes nothing: what the failed sync left behind is not known.
    faults.sync.store(false, Ordering::Relaxed);
    let reason = stop_reason(&handle).await;
    assert!(
        reason.contains("the Raft log can't be written: the device is gone"),
        "{reason}"
    );
    let error = handle.propose(vec![create(3)]).await.unwrap_err();
    assert!(matches!(error, ProposeError::Shutdown { .. }), "{error}");
}

#[tokio::test]
async fn what_a_failed_sync_left_is_durable_before_the_log_goes_on() {
    let (mut cluster, faults) = with_faulty_leader().await;
    cluster.write(1).await;
    faults.sync.store(true, Ordering::Relaxed);
    let handle = cluster.handle(1);
    handle.propose(vec![create(2)]).await.unwrap_err();
    cluster.stop(1).await;
    faults.sync.store(false, Ordering::Relaxed);
    // The system still shows the record whose sync failed, and the log goes on behind it.
    cluster.start(1).await.unwrap();
    cluster.write(3).await;
    cluster.stop(1).await;
    faults.lose_power();
    cluster.start(1).await.unwrap();
    cluster.has(1, [1, 3]).await;
}

#[tokio::test]
async fn full_disk_stops_the_role_and_a_restart_with_room_recovers() {
    let (mut cluster, faults) = with_faulty_leader().await;
    cluster.write(1).await;
    faults.write.store(true, Ordering::Relaxed);
    let handle = cluster.handle(1);
    handle.propose(vec![create(2)]).await.unwrap_err();
    let reason = stop_reason(&handle).await;
    assert!(reason.contains("the Raft log can't be written"), "{reason}");
    cluster.stop(1).await;
    faults.write.store(false, Ordering::Relaxed);
    cluster.start(1).await.unwrap();
    cluster.write(3).await;
    cluster.has(1, [1, 3]).await;
}
