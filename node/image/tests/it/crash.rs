//! kill -9 in the middle, and a disk that is full.

use crate::fixture::{Fixture, Tar, chain, names, options};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use shoal_image::ImageStore;
use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use tokio::io::AsyncReadExt;

const CHILD_ROOT: &str = "SHOAL_IMAGE_TEST_CHILD";

/// Not a test of its own: the process that `a_killed_unpack_leaves_nothing` kills.
#[tokio::test]
async fn child_that_unpacks_without_end() {
    let Ok(root) = std::env::var(CHILD_ROOT) else {
        return;
    };
    let store = ImageStore::open(options(Path::new(&root))).unwrap();
    let begin = Tar::new().dir("d/").file("d/first", b"x").finish();
    // The end marker is cut off and the stream never ends.
    let endless =
        Cursor::new(begin[..begin.len() - 1024].to_vec()).chain(tokio::io::empty().chain(Never));
    let result = store.import(endless, None, &[], "").await;
    panic!("the stream has no end: {result:?}");
}

struct Never;

impl tokio::io::AsyncRead for Never {
    fn poll_read(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
        _: &mut tokio::io::ReadBuf<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::task::Poll::Pending
    }
}

fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "{what} did not happen");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_killed_unpack_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "crash::child_that_unpacks_without_end"])
        .env(CHILD_ROOT, dir.path())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let tmp = dir.path().join("images/tmp");
    wait_for("the first file", || {
        std::fs::read_dir(&tmp).is_ok_and(|mut entries| {
            entries.any(|e| e.is_ok_and(|e| e.path().join("fs/d/first").exists()))
        })
    });
    child.kill().unwrap();
    child.wait().unwrap();
    assert_ne!(
        names(&tmp),
        Vec::<String>::new(),
        "the crash left its half-made files"
    );
    let store = ImageStore::open(options(dir.path())).unwrap();
    let fixture = Fixture { dir, store };
    fixture.assert_empty();
    assert!(fixture.store.list().is_empty());
}

/// A small file system, unmounted when dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn new(path: PathBuf, options: &str) -> Self {
        std::fs::create_dir(&path).unwrap();
        mount(
            Some("tmpfs"),
            &path,
            Some("tmpfs"),
            MsFlags::empty(),
            Some(options),
        )
        .unwrap();
        Self(path)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        umount2(&self.0, MntFlags::MNT_DETACH).unwrap();
    }
}

#[tokio::test]
async fn a_full_disk_is_named_and_nothing_half_made_stays() {
    for limit in ["size=3m", "size=64m,nr_inodes=60"] {
        let dir = tempfile::tempdir().unwrap();
        let disk = SmallDisk::new(dir.path().join("images"), limit);
        let store = ImageStore::open(options(dir.path())).unwrap();
        let mut tar = Tar::new();
        for at in 0..100 {
            tar = tar.file(&format!("f{at}"), &vec![at; 40_000]);
        }
        let fixture = Fixture { dir, store };
        let result = fixture
            .store
            .import(Cursor::new(tar.finish()), None, &[], "")
            .await;
        let text = chain(&result.unwrap_err());
        assert!(text.contains("no space left on the disk"), "{text}");
        fixture.assert_empty();
        // What fits still works.
        let small = Tar::new().file("f", b"x").finish();
        fixture
            .store
            .import(Cursor::new(small), None, &[], "")
            .await
            .unwrap();
        drop(fixture.store);
        drop(disk);
    }
}
