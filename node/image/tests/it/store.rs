//! Names, leases, removal, damage, and starting again.

use crate::fixture::{Fixture, Tar, chain, docker_archive, options};
use shoal_image::{Image, ImageStore, OpenError, ProgressSink, Reference, Removed};
use std::io::Cursor;

async fn load(store: &ImageStore, name: &str, layers: &[Vec<u8>]) -> Image {
    let archive = docker_archive(name, layers);
    let loaded = store
        .load(Cursor::new(archive), ProgressSink::none())
        .await
        .unwrap();
    loaded[0].image.clone()
}

fn layer(content: &[u8]) -> Vec<u8> {
    Tar::new().file("f", content).finish()
}

#[tokio::test]
async fn images_are_found_by_name_and_id_and_survive_a_restart() {
    let fixture = Fixture::new();
    let image = load(&fixture.store, "web:1", &[layer(b"x")]).await;
    fixture
        .store
        .tag(&image.id, &Reference::parse("localhost:5000/web").unwrap())
        .await
        .unwrap();
    let Fixture { dir, store } = fixture;
    assert!(matches!(
        ImageStore::open(options(dir.path())),
        Err(OpenError::InUse { .. })
    ));
    drop(store);
    let store = ImageStore::open(options(dir.path())).unwrap();
    let id = image.id.to_string();
    for name in [
        "web:1",
        "docker.io/library/web:1",
        "localhost:5000/web:latest",
        &id,
        &id[7..20],
        &id[..20],
    ] {
        assert_eq!(store.resolve(name).unwrap().id, image.id, "{name}");
    }
    assert_eq!(
        store.resolve("web").unwrap_err().to_string(),
        "No such image: web"
    );
    assert_eq!(
        chain(&store.resolve("a b").unwrap_err()),
        "`a b`: invalid reference format"
    );
    store.prepare_rootfs(&image).await.unwrap();
}

#[tokio::test]
async fn shared_layers_go_with_their_last_image() {
    let fixture = Fixture::new();
    let one = load(&fixture.store, "one:1", &[layer(b"base"), layer(b"1")]).await;
    let two = load(&fixture.store, "two:1", &[layer(b"base"), layer(b"2")]).await;
    assert_eq!(one.layers[0], two.layers[0]);
    let removed = fixture.store.remove("one:1", false).await.unwrap();
    assert_eq!(
        removed,
        [
            Removed::Untagged("one:1".to_owned()),
            Removed::Deleted(one.id.clone()),
            Removed::Deleted(one.layers[1].chain_id.clone()),
        ]
    );
    fixture.store.prepare_rootfs(&two).await.unwrap();
    fixture.store.remove(two.id.short(), false).await.unwrap();
    fixture.assert_empty();
}

#[tokio::test]
async fn an_image_in_use_stays() {
    let fixture = Fixture::new();
    let image = load(&fixture.store, "web:1", &[layer(b"x")]).await;
    fixture
        .store
        .tag(&image.id, &Reference::parse("web:2").unwrap())
        .await
        .unwrap();
    let by_id = fixture
        .store
        .remove(image.id.short(), false)
        .await
        .unwrap_err();
    assert!(by_id.to_string().contains("must be forced"), "{by_id}");
    let lease = fixture.store.lease(&image, "container abc").unwrap();
    let untagged = fixture.store.remove("web:2", false).await.unwrap();
    assert_eq!(untagged, [Removed::Untagged("web:2".to_owned())]);
    let refused = fixture.store.remove("web:1", false).await.unwrap_err();
    assert!(
        refused.to_string().contains("in use by container abc"),
        "{refused}"
    );
    let forced = fixture.store.remove("web:1", true).await.unwrap();
    assert_eq!(forced, [Removed::Untagged("web:1".to_owned())]);
    fixture.store.prepare_rootfs(&image).await.unwrap();
    drop(lease);
    fixture.store.remove(image.id.short(), false).await.unwrap();
    fixture.assert_empty();
    assert!(fixture.store.lease(&image, "late").is_err());
}

#[tokio::test]
async fn a_damaged_list_is_named_with_the_way_out() {
    let fixture = Fixture::new();
    load(&fixture.store, "web:1", &[layer(b"x")]).await;
    let Fixture { dir, store } = fixture;
    drop(store);
    let path = dir.path().join("images/index.json");
    let good = std::fs::read(&path).unwrap();
    let mut flipped = good.clone();
    *flipped.last_mut().unwrap() ^= 1;
    for bad in [
        &good[..good.len() / 2],
        &good[..10],
        &[],
        flipped.as_slice(),
    ] {
        std::fs::write(&path, bad).unwrap();
        let text = chain(&ImageStore::open(options(dir.path())).unwrap_err());
        assert!(
            text.contains("index.json` is damaged") && text.contains("move it away"),
            "{text}"
        );
    }
    let newer =
        String::from_utf8(good.clone())
            .unwrap()
            .replacen("\"version\":1", "\"version\":2", 1);
    std::fs::write(&path, newer).unwrap();
    let text = chain(&ImageStore::open(options(dir.path())).unwrap_err());
    assert!(text.contains("format version 2"), "{text}");
    std::fs::write(&path, good).unwrap();
    ImageStore::open(options(dir.path()))
        .unwrap()
        .resolve("web:1")
        .unwrap();
}

#[tokio::test]
async fn a_lost_snapshot_is_made_again_and_a_damaged_blob_is_named() {
    let fixture = Fixture::new();
    let image = load(&fixture.store, "web:1", &[layer(b"x")]).await;
    let snapshot = fixture
        .root()
        .join("snapshots")
        .join(image.layers[0].chain_id.hex());
    std::fs::remove_dir_all(&snapshot).unwrap();
    let rootfs = fixture.store.prepare_rootfs(&image).await.unwrap();
    assert_eq!(std::fs::read(rootfs.lower[0].join("f")).unwrap(), b"x");
    std::fs::remove_dir_all(&snapshot).unwrap();
    let blob = fixture
        .root()
        .join("blobs/sha256")
        .join(image.layers[0].blob.hex());
    let mut bytes = std::fs::read(&blob).unwrap();
    bytes[600] ^= 1;
    std::fs::write(&blob, bytes).unwrap();
    let text = chain(&fixture.store.prepare_rootfs(&image).await.unwrap_err());
    assert!(
        text.contains(blob.to_str().unwrap()) && text.contains("pull or load the image again"),
        "{text}"
    );
    assert!(!snapshot.exists());
    load(&fixture.store, "web:1", &[layer(b"x")]).await;
    fixture.store.prepare_rootfs(&image).await.unwrap();
}
