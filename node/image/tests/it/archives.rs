//! Loading and importing.

use crate::fixture::{Fixture, Tar, chain, docker_archive, gzip, oci_layout};
use shoal_image::{Digest, ProgressSink, Reference};
use std::io::Cursor;

fn layers() -> Vec<Vec<u8>> {
    vec![
        Tar::new().file("base", b"1").finish(),
        Tar::new().file("top", b"22").finish(),
    ]
}

async fn load(fixture: &Fixture, archive: Vec<u8>) -> Vec<shoal_image::LoadedImage> {
    fixture
        .store
        .load(Cursor::new(archive), ProgressSink::none())
        .await
        .unwrap()
}

#[tokio::test]
async fn docker_and_oci_archives_give_the_same_image() {
    let layers = layers();
    let docker = Fixture::new();
    let from_docker = load(&docker, docker_archive("web:1", &layers)).await;
    let mut oci = Tar::new();
    for (name, content) in oci_layout("docker.io/library/web:1", &layers) {
        let mut header = Tar::header(tar::EntryType::Regular, 0o644);
        header.set_size(content.len() as u64);
        oci.builder()
            .append_data(&mut header, &name, content.as_slice())
            .unwrap();
    }
    let oci_store = Fixture::new();
    let from_oci = load(&oci_store, gzip(&oci.finish())).await;
    let dir = tempfile::tempdir().unwrap();
    for (name, content) in oci_layout("web:1", &layers) {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }
    let layout_store = Fixture::new();
    let from_layout = layout_store
        .store
        .load_layout(dir.path(), ProgressSink::none())
        .await
        .unwrap();
    for (fixture, loaded) in [
        (&docker, from_docker),
        (&oci_store, from_oci),
        (&layout_store, from_layout),
    ] {
        assert_eq!(loaded.len(), 1);
        let image = fixture.store.resolve("web:1").unwrap();
        assert_eq!(image.id, Digest::sha256(crate::fixture::config(&layers)));
        assert_eq!((image.size, image.layers.len()), (3, 2));
        assert_eq!(image.repo_tags, ["web:1"]);
        assert_eq!(image.created.0, 1_767_323_045_500_000_000);
        assert_eq!(
            image.docker.healthcheck.as_ref().unwrap().test,
            ["CMD", "true"]
        );
        let rootfs = fixture.store.prepare_rootfs(&image).await.unwrap();
        assert!(rootfs.lower[0].join("top").exists() && rootfs.lower[1].join("base").exists());
        assert!(
            rootfs
                .lower
                .iter()
                .all(|l| l.strip_prefix(fixture.root()).unwrap().as_os_str().len() <= 12)
        );
    }
}

#[tokio::test]
async fn layers_of_old_archives_may_be_links() {
    let layer = Tar::new().file("f", b"x").finish();
    let config = crate::fixture::config(&[layer.clone(), layer.clone()]);
    let manifest =
        r#"[{"Config":"c.json","RepoTags":null,"Layers":["a/layer.tar","b/layer.tar"]}]"#;
    let archive = Tar::new()
        .file("a/layer.tar", &layer)
        .symlink("b/layer.tar", "../a/layer.tar")
        .file("c.json", &config)
        .file("manifest.json", manifest.as_bytes());
    let fixture = Fixture::new();
    let loaded = load(&fixture, archive.finish()).await;
    assert_eq!(loaded[0].image.layers.len(), 2);
    assert!(loaded[0].names.is_empty());
    fixture.store.resolve(loaded[0].image.id.short()).unwrap();
}

#[tokio::test]
async fn archives_of_something_else_are_refused() {
    let fixture = Fixture::new();
    let check = async |archive: Vec<u8>, expected: &str| {
        let result = fixture
            .store
            .load(Cursor::new(archive), ProgressSink::none())
            .await;
        let text = chain(&result.unwrap_err());
        assert!(
            text.contains(expected),
            "`{text}` does not say `{expected}`"
        );
        fixture.assert_empty();
    };
    check(
        Tar::new().file("f", b"x").finish(),
        "the archive holds no image",
    )
    .await;
    check(
        b"no tar at all".to_vec(),
        "failed to read the image archive",
    )
    .await;
    let lacking = r#"[{"Config":"c.json","RepoTags":["x:1"],"Layers":["l"]}]"#;
    let lacking = Tar::new().file("manifest.json", lacking.as_bytes());
    check(lacking.finish(), "lacks `c.json`").await;
    check(
        Tar::new().file("manifest.json", b"[{").finish(),
        "`manifest.json` in the archive is malformed",
    )
    .await;
    let mut files = oci_layout("web:1", &layers());
    files[3].1.push(b' ');
    let mut oci = Tar::new();
    for (name, content) in files {
        oci = oci.file(&name, &content);
    }
    check(oci.finish(), "has the digest").await;
}

#[tokio::test]
async fn an_import_has_its_changes_and_message() {
    let fixture = Fixture::new();
    let name = Reference::parse("base").unwrap();
    let changes = [r#"CMD ["sh"]"#.to_owned(), "ENV A=b".to_owned()];
    let tar = zstd::encode_all(Cursor::new(Tar::new().file("f", b"x").finish()), 1).unwrap();
    let image = fixture
        .store
        .import(Cursor::new(tar), Some(name), &changes, "from a tar")
        .await
        .unwrap();
    assert_eq!(image.repo_tags, ["base:latest"]);
    let config = image.config.config().as_ref().unwrap();
    assert_eq!(config.cmd().as_deref().unwrap(), ["sh"]);
    assert_eq!(config.env().as_deref().unwrap(), ["A=b"]);
    let history = image.config.history().as_ref().unwrap();
    assert_eq!(history[0].comment().as_deref(), Some("from a tar"));
    let wrong = fixture
        .store
        .import(Cursor::new(Vec::new()), None, &["RUN x".to_owned()], "")
        .await;
    assert_eq!(
        wrong.unwrap_err().to_string(),
        "RUN is not a valid change command"
    );
}
