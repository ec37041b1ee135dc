//! A file system that is really full.

use super::cluster::{Cluster, create, stop_reason};
use crate::consensus::Consensus as _;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use shoal_model::command::{Object, StoreAction};
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

const DISK_BYTES: u64 = 48 << 20;

/// An ext4 file system in a file, mounted as long as this lives.
struct SmallDisk {
    dir: TempDir,
}

impl SmallDisk {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image");
        let file = std::fs::File::create(&image).unwrap();
        file.set_len(DISK_BYTES).unwrap();
        let run = |program: &str, args: &[&str], paths: &[&Path]| {
            let out = Command::new(program)
                .args(args)
                .args(paths)
                .output()
                .unwrap();
            assert!(out.status.success(), "{program}: {out:?}");
        };
        run("mkfs.ext4", &["-q", "-m", "0"], &[&image]);
        let disk = Self { dir };
        std::fs::create_dir(disk.path()).unwrap();
        run("mount", &["-o", "loop"], &[&image, &disk.path()]);
        // Only here, whatever the machine shares with others.
        mount(
            None::<&str>,
            &disk.path(),
            None::<&str>,
            MsFlags::MS_PRIVATE,
            None::<&str>,
        )
        .unwrap();
        disk
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("mounted")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Detached, since a failed test may still have files open.
        umount2(&self.path(), MntFlags::MNT_DETACH).unwrap();
    }
}

fn fill(path: &Path) {
    let mut file = std::fs::File::create(path).unwrap();
    let zeros = vec![0; 1 << 16];
    let err = loop {
        if let Err(err) = std::io::Write::write_all(&mut file, &zeros) {
            break err;
        }
    };
    assert_eq!(err.kind(), std::io::ErrorKind::StorageFull);
}

/// A change of about a megabyte, which the store refuses and the log takes all the same.
fn bulky() -> StoreAction {
    let mut action = create(1_000_000);
    if let StoreAction::Create(Object::Node(node)) = &mut action {
        node.spec.name = "x".repeat(1 << 20);
    }
    action
}

#[tokio::test]
async fn as_root_a_full_file_system_stops_the_role_and_room_brings_it_back() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: mounting a file system takes root");
        return;
    }
    let disk = SmallDisk::new();
    let mut cluster = Cluster::in_dir(disk.path());
    cluster.start(1).await.unwrap();
    let handle = cluster.handle(1);
    handle.bootstrap(Vec::new()).await.unwrap();
    for number in 0..10 {
        cluster.write(number).await;
    }
    let ballast = disk.path().join("ballast");
    fill(&ballast);
    // The segment has its space already, so writes go on until the next one is needed.
    let mut written = 0;
    let stopped = loop {
        assert!(written < 20, "the file system never became full");
        match handle.propose(vec![bulky()]).await {
            Err(crate::consensus::ProposeError::Rejected(_)) => written += 1,
            Err(err) => break err,
            Ok(version) => panic!("{version:?}"),
        }
    };
    assert!(written > 0, "{stopped}");
    let reason = stop_reason(&handle).await;
    assert!(reason.contains("the Raft log can't be written"), "{reason}");
    assert!(reason.contains("No space left on device"), "{reason}");
    cluster.stop(1).await;
    drop(handle);
    // As full as it was, it says so at the start and damages nothing.
    let error = cluster.start(1).await.unwrap_err();
    let text = crate::raft::error::chain(&error);
    assert!(text.contains("No space left on device"), "{text}");
    std::fs::remove_file(&ballast).unwrap();
    cluster.start(1).await.unwrap();
    cluster.leader().await;
    cluster.write(20).await;
    cluster.has(1, (0..10).chain([20])).await;
    cluster.stop(1).await;
}
