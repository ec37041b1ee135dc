//! Archives that mean harm: each is a clear error, and nothing of it remains.

use crate::fixture::{Fixture, Tar, chain, docker_archive, gzip};
use proptest::prelude::*;
use shoal_image::{ImportError, ProgressSink, UnpackLimits};
use std::io::Cursor;
use std::path::Path;
use tar::EntryType;

async fn refused(tar: Vec<u8>, limits: UnpackLimits, expected: &str) {
    let fixture = Fixture::with_limits(limits);
    let result = fixture.store.import(Cursor::new(tar), None, &[], "").await;
    let text = chain(&result.unwrap_err());
    assert!(
        text.contains(expected),
        "`{text}` does not say `{expected}`"
    );
    fixture.assert_empty();
}

#[tokio::test]
async fn paths_that_climb_out_are_refused() {
    let none = UnpackLimits::default();
    refused(
        Tar::new().file("../evil", b"x").finish(),
        none,
        "`../evil` leads out of the layer",
    )
    .await;
    refused(
        Tar::new().file("a/../../evil", b"x").finish(),
        none,
        "leads out of the layer",
    )
    .await;
    refused(
        Tar::new().file("a/.wh...", b"").finish(),
        none,
        "leads out of the layer",
    )
    .await;
    refused(
        Tar::new().hard_link("l", "../../etc/passwd").finish(),
        none,
        "leads out of the layer",
    )
    .await;
    refused(
        Tar::new().hard_link("l", "/etc/passwd").finish(),
        none,
        "which the layer does not have",
    )
    .await;
}

#[tokio::test]
async fn absolute_paths_land_in_the_layer() {
    let fixture = Fixture::new();
    let outside = tempfile::tempdir().unwrap();
    let path = outside.path().join("file");
    let tar = Tar::new().file(path.to_str().unwrap(), b"x").finish();
    let root = fixture.unpack(tar).await.unwrap();
    assert!(!path.exists());
    assert!(root.join(path.strip_prefix("/").unwrap()).exists());
}

#[tokio::test]
async fn links_on_the_way_never_lead_out() {
    let outside = tempfile::tempdir().unwrap();
    let target = outside.path().to_str().unwrap().to_owned();
    std::fs::write(outside.path().join("secret"), b"s").unwrap();
    let up = format!("../../../../../../../../..{target}");
    for target in [target.as_str(), up.as_str()] {
        let through = [
            Tar::new().symlink("x", target).file("x/evil", b"e"),
            Tar::new().symlink("x", target).dir("x/evil/"),
            Tar::new().symlink("x", target).file("x/.wh.secret", b""),
            Tar::new().symlink("x", target).file("x/.wh..wh..opq", b""),
            Tar::new()
                .symlink("x", target)
                .hard_link("copy", "x/secret"),
            Tar::new().symlink("x", target).symlink("x/evil", "y"),
            Tar::new()
                .symlink("y", target)
                .symlink("x", "y")
                .file("x/evil", b"e"),
            Tar::new()
                .dir("x/")
                .file("x/a", b"")
                .symlink("x", target)
                .file("x/evil", b"e"),
        ];
        for tar in through {
            let fixture = Fixture::new();
            let result = fixture
                .store
                .import(Cursor::new(tar.finish()), None, &[], "")
                .await;
            assert!(result.is_err(), "{result:?}");
            fixture.assert_empty();
            assert_eq!(crate::fixture::names(outside.path()), ["secret"]);
        }
    }
    assert_eq!(std::fs::read(outside.path().join("secret")).unwrap(), b"s");
}

#[tokio::test]
async fn links_that_stay_inside_are_followed() {
    let fixture = Fixture::new();
    let tar = Tar::new()
        .dir("usr/lib/")
        .symlink("lib", "/usr/lib")
        .file("lib/f", b"x")
        .finish();
    let root = fixture.unpack(tar).await.unwrap();
    assert_eq!(std::fs::read(root.join("usr/lib/f")).unwrap(), b"x");
}

#[tokio::test]
async fn bounds_hold() {
    let few = UnpackLimits {
        entries_max: 100,
        ..UnpackLimits::default()
    };
    let mut many = Tar::new();
    for at in 0..101 {
        many = many.raw(
            Tar::header(EntryType::Char, 0o600),
            &format!("device{at}"),
            "",
            b"",
        );
    }
    refused(many.finish(), few, "more entries than the limit of 100").await;
    let small = UnpackLimits {
        file_bytes_max: 10,
        ..UnpackLimits::default()
    };
    refused(
        Tar::new().file("big", b"12345678901").finish(),
        small,
        "`big` has 11 bytes",
    )
    .await;
    let total = UnpackLimits {
        total_bytes_max: 1 << 20,
        ..UnpackLimits::default()
    };
    let bomb = gzip(&Tar::new().file("zeros", &vec![0; 2 << 20]).finish());
    refused(bomb, total, "more bytes than the limit of 1048576").await;
    // The bomb may hide behind the end of the archive as well.
    let mut trailing = Tar::new().file("f", b"x").finish();
    trailing.resize(2 << 20, 0);
    refused(gzip(&trailing), total, "more bytes than the limit").await;
}

#[tokio::test]
async fn huge_headers_are_refused_before_memory_is_taken() {
    for kind in [
        EntryType::GNULongName,
        EntryType::GNULongLink,
        EntryType::XHeader,
        EntryType::XGlobalHeader,
    ] {
        let mut header = Tar::header(kind, 0);
        header.set_size(1 << 40);
        let mut tar = Tar::new().raw(header, "x", "", b"").finish();
        tar.truncate(512);
        refused(tar, UnpackLimits::default(), "over the limit of").await;
    }
}

#[tokio::test]
async fn a_sparse_file_of_exabytes_is_refused() {
    let tar = Tar::new()
        .pax(&[
            ("GNU.sparse.size", b"9000000000000000000"),
            ("GNU.sparse.map", b"0,1"),
        ])
        .file("sparse", b"x");
    refused(
        tar.finish(),
        UnpackLimits::default(),
        "has 9000000000000000000 bytes",
    )
    .await;
}

#[tokio::test]
async fn broken_archives_are_refused() {
    let none = UnpackLimits::default();
    let tar = Tar::new().file("f", &[1; 5000]).finish();
    refused(tar[..2000].to_vec(), none, "unexpected end of file").await;
    let mut damaged = tar.clone();
    damaged[0] ^= 1;
    refused(damaged, none, "wrong checksum").await;
    refused(gzip(&tar)[..40].to_vec(), none, "failed to").await;
    refused(b"BZh91AY&SY".to_vec(), none, "bzip2").await;
    refused(b"\xfd7zXZ\0rest".to_vec(), none, "xz").await;
    let unknown = Tar::new().raw(Tar::header(EntryType::new(b'M'), 0), "f", "", b"");
    refused(unknown.finish(), none, "unsupported type").await;
}

#[tokio::test]
async fn a_layer_that_is_not_the_configured_one_is_refused() {
    let fixture = Fixture::new();
    let good = Tar::new().file("f", b"good").finish();
    let evil = Tar::new().file("f", b"evil").finish();
    let archive = docker_archive("x:1", std::slice::from_ref(&good));
    let at = archive.windows(4).position(|w| w == b"good").unwrap();
    let mut changed = archive.clone();
    changed[at..at + 4].copy_from_slice(b"evil");
    assert_ne!(good, evil);
    let result = fixture
        .store
        .load(Cursor::new(changed), ProgressSink::none())
        .await;
    let text = chain(&result.unwrap_err());
    assert!(text.contains("but the image configuration says"), "{text}");
    fixture.assert_empty();
    assert!(fixture.store.list().is_empty());
}

/// Entries made of few names, so that they collide all the time.
fn any_tar() -> impl Strategy<Value = Vec<u8>> {
    let name = prop::sample::select(vec![
        "a",
        "b",
        "a/b",
        "a/b/c",
        "b/a",
        "./a",
        "/b",
        "../a",
        "a/../b",
        "a/..",
        ".wh.a",
        "a/.wh.b",
        "a/.wh..wh..opq",
        ".wh..wh..opq",
        "..",
        ".",
        "",
        "a//b/",
    ]);
    let target = prop::sample::select(vec![
        "a", "/", "..", "../..", "a/b", "/a/b", "/tmp", "b", ".",
    ]);
    let entry = (0_usize..7, name, target);
    prop::collection::vec(entry, 0..30).prop_map(|entries| {
        let mut tar = Tar::new();
        for (kind, name, target) in entries {
            let kind = [
                EntryType::Regular,
                EntryType::Directory,
                EntryType::Symlink,
                EntryType::Link,
                EntryType::Fifo,
                EntryType::Char,
                EntryType::Regular,
            ][kind];
            let data: &[u8] = if kind == EntryType::Regular {
                b"evil"
            } else {
                b""
            };
            tar = tar.raw(Tar::header(kind, 0o755), name, target, data);
        }
        tar.finish()
    })
}

fn import_blocking(tar: Vec<u8>) -> Result<(), ImportError> {
    let fixture = Fixture::new();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let result = runtime.block_on(fixture.store.import(Cursor::new(tar), None, &[], ""));
    let inside = crate::fixture::names(fixture.dir.path());
    assert_eq!(inside, ["images"]);
    let mut dirs = crate::fixture::names(&fixture.root());
    dirs.retain(|name| name != "index.json");
    assert_eq!(dirs, ["blobs", "l", "lock", "snapshots", "tmp"]);
    if result.is_err() {
        fixture.assert_empty();
    }
    result.map(drop)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn colliding_entries_stay_inside(tar in any_tar()) {
        let host = Path::new("/tmp/evil").exists();
        drop(import_blocking(tar));
        prop_assert_eq!(Path::new("/tmp/evil").exists(), host);
    }

    #[test]
    fn damaged_archives_never_panic(
        tar in any_tar(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..20),
    ) {
        let mut tar = tar;
        for (at, byte) in damage {
            let at = at.index(tar.len());
            tar[at] = byte;
        }
        drop(import_blocking(tar));
    }
}
