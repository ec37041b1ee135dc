//! Prunes, events, pulls, and a full disk.

use crate::support::{Site, Test, block_on, eventually, launch, run, shell, until_info};
use futures_util::StreamExt as _;
use shoal_engine::{ErrorKind, EventFilter, EventType, VolumeCreate, WaitCondition};
use shoal_model::spec::Platform;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

pub(crate) const TESTS: &[Test] = &[
    ("prune_removes_what_nobody_uses_and_its_filters_hold", prune),
    ("events_are_replayed_filtered_and_end", events),
    ("one_image_asked_for_twice_is_pulled_once", pulls),
    ("a_full_disk_is_told_and_nothing_half_made_stays", full_disk),
];

fn filters(pairs: &[(&str, &str)]) -> BTreeMap<String, Vec<String>> {
    let mut filters: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (key, value) in pairs {
        filters
            .entry((*key).to_owned())
            .or_default()
            .push((*value).to_owned());
    }
    filters
}

fn prune() {
    block_on(async {
        let site = Site::new();
        let engine = site.engine_with_image().await;
        let mut kept = shell("true");
        kept.labels.insert("keep".to_owned(), String::new());
        kept.volumes.insert("/loose".to_owned());
        let (kept, _, _) = run(&engine, kept).await;
        let (gone, _, _) = run(&engine, shell("true")).await;
        let runs = launch(&engine, None, shell("sleep 1000")).await;
        let pruned = engine
            .prune_containers(filters(&[("label!", "keep")]))
            .await
            .unwrap();
        assert_eq!(pruned.removed, [gone]);
        assert!(engine.inspect(&kept).await.is_ok() && engine.inspect(&runs).await.is_ok());
        let nothing = engine
            .prune_containers(filters(&[("until", "1h")]))
            .await
            .unwrap();
        assert!(nothing.removed.is_empty(), "{nothing:?}");

        let named = VolumeCreate {
            name: "named".to_owned(),
            ..VolumeCreate::default()
        };
        engine.volume_create(named).await.unwrap();
        let err = engine
            .volume_prune(filters(&[("until", "1h")]))
            .await
            .unwrap_err();
        assert_eq!(err.kind(), ErrorKind::InvalidArgument);
        assert!(err.to_string().contains("until"), "{err}");
        assert!(
            engine
                .volume_prune(filters(&[]))
                .await
                .unwrap()
                .removed
                .is_empty()
        );
        let all = engine
            .volume_prune(filters(&[("all", "true")]))
            .await
            .unwrap();
        assert_eq!(all.removed, ["named"], "the anonymous one is in use");
        site.close(engine).await;
    });
}

fn events() {
    block_on(async {
        let site = Site::new();
        let engine = site.engine_with_image().await;
        let since = Some(shoal_engine::parse_time("0").unwrap());
        let mut config = shell("exit 3");
        config.labels.insert("mine".to_owned(), "yes".to_owned());
        let (id, _, _) = run(&engine, config).await;
        let (other, _, _) = run(&engine, shell("true")).await;
        let told = async |filters| {
            let filter = EventFilter {
                since,
                until: Some(shoal_engine::parse_time("0s").unwrap()),
                filters,
            };
            let stream = engine.events(filter).await.unwrap();
            stream.map(|event| event.unwrap()).collect::<Vec<_>>().await
        };
        let mine = told(filters(&[("label", "mine=yes"), ("type", "container")])).await;
        let actions: Vec<_> = mine.iter().map(|event| event.action.as_str()).collect();
        assert_eq!(actions, ["create", "start", "die"]);
        assert!(mine.iter().all(|event| event.actor_id == id));
        assert_eq!(mine[2].attributes["exitCode"], "3");
        let dead = told(filters(&[("event", "die"), ("container", &other)])).await;
        assert_eq!(dead.len(), 1);
        assert_eq!(dead[0].kind, EventType::Container);
        let refused = engine
            .events(EventFilter {
                filters: filters(&[("colour", "red")]),
                ..EventFilter::default()
            })
            .await
            .err()
            .unwrap();
        assert!(refused.to_string().contains("colour"), "{refused}");
        site.close(engine).await;
    });
}

/// A registry that knows no image, and answers only once it may.
async fn slow_registry(
    asked: Arc<AtomicUsize>,
    answer: Arc<tokio::sync::Semaphore>,
) -> std::net::SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let (asked, answer) = (Arc::clone(&asked), Arc::clone(&answer));
            tokio::spawn(async move {
                let mut request = vec![0; 4096];
                let count = stream.read(&mut request).await.unwrap_or(0);
                let request = String::from_utf8_lossy(&request[..count]).into_owned();
                if request.contains("/manifests/") {
                    asked.fetch_add(1, Ordering::SeqCst);
                    drop(answer.acquire().await);
                }
                let body =
                    r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}"#;
                let text = format!(
                    "HTTP/1.1 404 Not Found\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
                    body.len()
                );
                drop(stream.write_all(text.as_bytes()).await);
            });
        }
    });
    address
}

fn pulls() {
    block_on(async {
        let site = Site::new();
        let engine = site.engine().await;
        let asked = Arc::new(AtomicUsize::new(0));
        let answer = Arc::new(tokio::sync::Semaphore::new(0));
        let address = slow_registry(Arc::clone(&asked), Arc::clone(&answer)).await;
        let name = format!("{address}/nope:1");
        let pull = || {
            let (engine, name) = (engine.clone(), name.clone());
            tokio::spawn(async move {
                let platform = Platform {
                    os: "linux".to_owned(),
                    architecture: "amd64".to_owned(),
                };
                let (progress, _events) = tokio::sync::mpsc::channel(64);
                engine.image_pull(&name, platform, None, progress).await
            })
        };
        let first = pull();
        eventually("the registry was asked", || {
            let count = asked.load(Ordering::SeqCst);
            if count == 1 {
                Ok(())
            } else {
                Err(count.to_string())
            }
        })
        .await;
        let mut second = pull();
        // Absence can only be waited for: a pull of its own would ask within this time.
        let quiet = std::time::Duration::from_millis(300);
        assert!(tokio::time::timeout(quiet, &mut second).await.is_err());
        assert_eq!(asked.load(Ordering::SeqCst), 1);
        answer.add_permits(1000);
        for pull in [first, second] {
            let err = pull.await.unwrap().unwrap_err();
            assert_eq!(err.kind(), ErrorKind::NotFound, "{err}");
            assert!(err.to_string().contains("nope"), "{err}");
        }
        site.close(engine).await;
    });
}

/// A small file system, gone with the value.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(path: PathBuf) -> Self {
        std::fs::create_dir_all(&path).unwrap();
        nix::mount::mount(
            Some("small"),
            &path,
            Some("tmpfs"),
            nix::mount::MsFlags::empty(),
            Some("size=24m"),
        )
        .unwrap();
        Self(path)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH).unwrap();
    }
}

fn full_disk() {
    block_on(async {
        let site = Site::new();
        let disk = SmallDisk::mount(site.path().join("data"));
        let engine = site.engine_with_image().await;
        let runs = launch(&engine, None, shell("exec sleep 1000")).await;
        let filler = disk.0.join("filler");
        let mut file = std::fs::File::create(&filler).unwrap();
        let full = std::io::copy(&mut std::io::repeat(1), &mut file).unwrap_err();
        assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
        let before = site.container_dirs();
        let name = || Some("late".to_owned());
        let err = engine.create(name(), shell("true")).await.unwrap_err();
        assert_eq!(err.kind(), ErrorKind::Unavailable, "{err}");
        let text = format!("{err}: {:?}", std::error::Error::source(&err));
        assert!(
            text.contains("StorageFull") || text.contains("No space"),
            "{text}"
        );
        assert_eq!(
            site.container_dirs(),
            before,
            "a half-made container stayed"
        );
        // What runs can be ended, and its end is known.
        engine.kill(&runs, "KILL").await.unwrap();
        let ended = engine.wait(&runs, WaitCondition::NotRunning).await.unwrap();
        assert_eq!(ended.exit_code, 137);
        drop(file);
        std::fs::remove_file(&filler).unwrap();
        let id = launch(&engine, Some("late"), shell("exit 6")).await;
        until_info(&engine, &id, "ended", |info| info.state.exit_code == 6).await;
        site.close(engine).await;
        drop(disk);
    });
}
