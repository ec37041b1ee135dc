//! What a layer becomes on the disk.

use crate::fixture::{Fixture, Tar, docker_archive, gzip};
use shoal_image::ProgressSink;
use std::io::Cursor;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;
use tar::EntryType;

fn xattr(path: &Path, name: &str) -> Option<Vec<u8>> {
    let path = std::ffi::CString::new(path.as_os_str().as_encoded_bytes()).unwrap();
    let name = std::ffi::CString::new(name).unwrap();
    let mut buffer = [0_u8; 256];
    // SAFETY: both strings are NUL-terminated and the buffer is writable for its length.
    let count = unsafe {
        libc::lgetxattr(
            path.as_ptr(),
            name.as_ptr(),
            buffer.as_mut_ptr().cast(),
            buffer.len(),
        )
    };
    usize::try_from(count)
        .ok()
        .map(|count| buffer[..count].to_vec())
}

fn is_whiteout(path: &Path) -> bool {
    let meta = path.symlink_metadata().unwrap();
    meta.file_type().is_char_device() && meta.rdev() == 0
}

#[tokio::test]
async fn metadata_of_every_kind_of_file_is_kept() {
    let fixture = Fixture::new();
    let mut owned = Tar::header(EntryType::Regular, 0o4755);
    owned.set_uid(1234);
    owned.set_gid(5678);
    let mut device = Tar::header(EntryType::Char, 0o666);
    device.set_device_major(1).unwrap();
    device.set_device_minor(3).unwrap();
    let long = format!("deep/{}/file", "x".repeat(200));
    let mut tar = Tar::new()
        .dir("./")
        .dir("deep/")
        .pax(&[
            ("mtime", b"1700000000.25"),
            ("SCHILY.xattr.user.color", b"blue"),
            ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
        ])
        .raw(owned, "suid", "", b"#!")
        .hard_link("again", "suid")
        .symlink("link", "/etc/absolute")
        .raw(device, "null", "", b"")
        .raw(Tar::header(EntryType::Fifo, 0o600), "pipe", "", b"");
    let mut header = Tar::header(EntryType::Regular, 0o600);
    header.set_size(4);
    tar.builder()
        .append_data(&mut header, &long, &b"long"[..])
        .unwrap();
    let root = fixture.unpack(tar.finish()).await.unwrap();

    let suid = root.join("suid").metadata().unwrap();
    assert_eq!(
        (suid.uid(), suid.gid(), suid.mode() & 0o7777),
        (1234, 5678, 0o4755)
    );
    assert_eq!(
        (suid.mtime(), suid.mtime_nsec(), suid.nlink()),
        (1_700_000_000, 250_000_000, 2)
    );
    assert_eq!(xattr(&root.join("suid"), "user.color").unwrap(), b"blue");
    assert_eq!(xattr(&root.join("suid"), "trusted.overlay.opaque"), None);
    assert_eq!(
        std::fs::read_link(root.join("link")).unwrap(),
        Path::new("/etc/absolute")
    );
    let null = root.join("null").metadata().unwrap();
    assert_eq!(
        (null.rdev(), null.mode() & 0o777),
        (nix::sys::stat::makedev(1, 3), 0o666)
    );
    assert!(
        root.join("pipe")
            .symlink_metadata()
            .unwrap()
            .file_type()
            .is_fifo()
    );
    assert_eq!(std::fs::read(root.join(&long)).unwrap(), b"long");
    // Filling `deep/` did not change its time.
    assert_eq!(root.join("deep").metadata().unwrap().mtime(), 1_000_000_000);
    assert_eq!(
        root.metadata().unwrap().permissions().mode() & 0o7777,
        0o755
    );
}

#[tokio::test]
async fn file_capabilities_survive_the_owner() {
    let fixture = Fixture::new();
    // Version 2, effective, CAP_NET_RAW permitted.
    let capability: &[u8] = &[
        1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    ];
    let mut header = Tar::header(EntryType::Regular, 0o755);
    header.set_uid(7);
    let tar = Tar::new()
        .pax(&[("SCHILY.xattr.security.capability", capability)])
        .raw(header, "ping", "", b"x");
    let root = fixture.unpack(tar.finish()).await.unwrap();
    assert_eq!(
        xattr(&root.join("ping"), "security.capability").unwrap(),
        capability
    );
}

#[tokio::test]
async fn whiteouts_take_overlayfs_form() {
    let fixture = Fixture::new();
    let tar = Tar::new()
        .dir("a/")
        .file("a/.wh.gone", b"")
        .dir("b/")
        .file("b/.wh..wh..opq", b"")
        .file("b/new", b"1")
        .file(".wh.replaced", b"")
        .dir("replaced/")
        .file("own", b"kept")
        .file(".wh.own", b"")
        .dir("owndir/")
        .file(".wh.owndir", b"")
        .file("c/.wh..wh.plnk", b"");
    let root = fixture.unpack(tar.finish()).await.unwrap();
    assert!(is_whiteout(&root.join("a/gone")));
    let opaque = |name: &str| xattr(&root.join(name), "trusted.overlay.opaque");
    assert_eq!(opaque("b").unwrap(), b"y");
    assert_eq!(std::fs::read(root.join("b/new")).unwrap(), b"1");
    assert_eq!(opaque("replaced").unwrap(), b"y");
    assert_eq!(opaque("owndir").unwrap(), b"y");
    assert_eq!(opaque("a"), None);
    assert_eq!(std::fs::read(root.join("own")).unwrap(), b"kept");
    assert!(!root.join("c/.wh..wh.plnk").exists());
}

#[tokio::test]
async fn later_entries_win() {
    let fixture = Fixture::new();
    let tar = Tar::new()
        .file("x", b"first")
        .file("x", b"second")
        .dir("d/")
        .file("d/f", b"1")
        .file("d", b"now a file")
        .file("e", b"file")
        .dir("e/")
        .file("e/inside", b"2")
        .symlink("s", "x")
        .file("s", b"not through the link");
    let root = fixture.unpack(tar.finish()).await.unwrap();
    assert_eq!(std::fs::read(root.join("x")).unwrap(), b"second");
    assert_eq!(std::fs::read(root.join("d")).unwrap(), b"now a file");
    assert_eq!(std::fs::read(root.join("e/inside")).unwrap(), b"2");
    assert_eq!(
        std::fs::read(root.join("s")).unwrap(),
        b"not through the link"
    );
}

#[tokio::test]
async fn sparse_files_of_gnu_and_pax_keep_their_holes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sparse");
    let file = std::fs::File::create(&path).unwrap();
    std::os::unix::fs::FileExt::write_at(&file, b"begin", 0).unwrap();
    std::os::unix::fs::FileExt::write_at(&file, b"end", 64 << 20).unwrap();
    for format in [
        "--format=gnu",
        "--format=pax",
        "--format=pax --sparse-version=0.1",
        "--format=pax --sparse-version=0.0",
    ] {
        let fixture = Fixture::new();
        let tar = std::process::Command::new("tar")
            .args(["--sparse", "-C"])
            .arg(dir.path())
            .args(format.split(' '))
            .args(["-cf", "-", "sparse"])
            .output()
            .unwrap();
        assert!(tar.status.success(), "{tar:?}");
        assert!(
            tar.stdout.len() < 1 << 20,
            "{format}: GNU tar found no hole"
        );
        let root = fixture.unpack(tar.stdout).await.unwrap();
        let unpacked = std::fs::read(root.join("sparse")).unwrap();
        assert_eq!(unpacked, std::fs::read(&path).unwrap(), "{format}");
        let blocks = root.join("sparse").metadata().unwrap().blocks();
        assert!(
            blocks * 512 < 1 << 20,
            "{format}: {blocks} blocks are in use"
        );
    }
}

#[tokio::test]
async fn compressed_forms_unpack_to_the_same() {
    let tar = Tar::new().file("f", &vec![7; 300_000]).finish();
    let mut two_members = gzip(&tar[..1000]);
    two_members.extend(gzip(&tar[1000..]));
    let zstd = zstd::encode_all(Cursor::new(&tar), 3).unwrap();
    let fixture = Fixture::new();
    let plain = fixture.unpack(tar.clone()).await.unwrap();
    for bytes in [gzip(&tar), two_members, zstd] {
        assert_eq!(fixture.unpack(bytes).await.unwrap(), plain);
    }
}

#[tokio::test]
async fn directories_that_an_archive_leaves_out_look_like_those_below() {
    let fixture = Fixture::new();
    let mut private = Tar::header(EntryType::Directory, 0o700);
    private.set_uid(42);
    private.set_gid(43);
    let base = Tar::new().raw(private, "home/", "", b"").finish();
    let top = Tar::new().file("home/file", b"x").finish();
    let archive = docker_archive("two:1", &[base, top]);
    let loaded = fixture
        .store
        .load(Cursor::new(archive), ProgressSink::none())
        .await
        .unwrap();
    let rootfs = fixture
        .store
        .prepare_rootfs(&loaded[0].image)
        .await
        .unwrap();
    assert_eq!(rootfs.lower.len(), 2);
    let home = rootfs.lower[0].join("home").metadata().unwrap();
    assert_eq!(
        (home.uid(), home.gid(), home.mode() & 0o7777),
        (42, 43, 0o700)
    );
    assert_eq!(home.mtime(), 1_000_000_000);
}

#[tokio::test]
async fn a_layer_with_an_opaque_root_hides_all_below() {
    let fixture = Fixture::new();
    let base = Tar::new().file("old", b"x").finish();
    let top = Tar::new()
        .file(".wh..wh..opq", b"")
        .file("new", b"y")
        .finish();
    let archive = docker_archive("two:1", &[base, top]);
    let loaded = fixture
        .store
        .load(Cursor::new(archive), ProgressSink::none())
        .await
        .unwrap();
    let rootfs = fixture
        .store
        .prepare_rootfs(&loaded[0].image)
        .await
        .unwrap();
    assert_eq!(rootfs.lower.len(), 1);
    assert!(rootfs.lower[0].join("new").exists());
}
