//! A disk that fails when told to: nothing that was not synced may be acknowledged.

use super::cluster::{Cluster, create, stop_reason};
use crate::consensus::{Consensus as _, ProposeError};
use crate::raft::{Disk, DiskFile, RealDisk};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

#[derive(Clone, Default)]
struct Faults {
    sync: Arc<AtomicBool>,
    write: Arc<AtomicBool>,
}

struct FaultyDisk(Faults);

struct FaultyFile(Box<dyn DiskFile>, Faults);

impl Disk for FaultyDisk {
    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        RealDisk.create_dir_all(path)
    }
    fn create(&self, path: &Path, zero_bytes: u64) -> io::Result<Box<dyn DiskFile>> {
        let file = RealDisk.create(path, zero_bytes)?;
        Ok(Box::new(FaultyFile(file, self.0.clone())))
    }
    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        RealDisk.open(path)
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

impl DiskFile for FaultyFile {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read_at(offset, buffer)
    }
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        if self.1.write.load(Ordering::Relaxed) {
            return Err(io::Error::from(io::ErrorKind::StorageFull));
        }
        self.0.write_at(offset, bytes)
    }
    fn sync(&mut self) -> io::Result<()> {
        if self.1.sync.load(Ordering::Relaxed) {
            return Err(io::Error::other("the device is gone"));
        }
        self.0.sync()
    }
    fn len(&self) -> io::Result<u64> {
        self.0.len()
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
