//! Hosts whose data root is on a small file system that becomes full.

use crate::harness::{TestCluster, eventually, with_cluster, with_hosts, within};
use crate::registry::{REGISTRY, Registry, Users, noise_layer};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Longest wait for a manager that tries again with growing pauses.
const TRIED_AGAIN_MAX: Duration = Duration::from_secs(60);

/// Where a host's daemon keeps its data, as seen from this machine: the file system is mounted inside of the host.
fn inside(test: &TestCluster, host: &str, path: &str) -> PathBuf {
    let host = test.cluster().host(host).unwrap();
    let root = PathBuf::from(format!("/proc/{}/root", host.init_pid.unwrap()));
    let data = host.dir.join("data");
    root.join(data.strip_prefix("/").unwrap()).join(path)
}

/// Restarts a host's daemon with an ext4 file system of so many bytes as its data root; what it had is copied.
async fn on_small_disk(test: &mut TestCluster, name: &str, bytes: u64) {
    test.cluster_mut()
        .host_mut(name)
        .unwrap()
        .stop_daemon()
        .await
        .unwrap();
    let image = test.dir().join(format!("{name}.ext4"));
    let file = std::fs::File::create(&image).unwrap();
    file.set_len(bytes).unwrap();
    let host = test.cluster().host(name).unwrap();
    let data = host.dir.join("data");
    let (image, data) = (image.display(), data.display());
    let script = format!(
        "mkfs.ext4 -q -m 0 {image} && mkdir -p {data}.small && mount -o loop {image} {data}.small \
         && cp -a {data}/. {data}.small/ && mount --move {data}.small {data}"
    );
    host.run(["sh", "-ec", &script]).await.unwrap();
    test.cluster_mut().restart_daemon(name).await.unwrap();
}

/// Takes all but so many bytes of the file system of `dir`.
fn fill(dir: &Path, leave: u64) -> PathBuf {
    let path = dir.join("ballast");
    let mut file = std::fs::File::create(&path).unwrap();
    let stat = nix::sys::statvfs::statvfs(dir).unwrap();
    let free = stat.blocks_available() * stat.fragment_size();
    let chunk = vec![0xaa; 1 << 16];
    for _ in 0..free.saturating_sub(leave) / chunk.len() as u64 {
        file.write_all(&chunk).unwrap();
    }
    if leave == 0 {
        while file.write_all(&chunk).is_ok() {}
        while file.write_all(b"x").is_ok() {}
    }
    file.sync_all().ok();
    path
}

fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap().flatten();
    let mut names: Vec<_> = entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

#[test]
fn root_full_data_root_fails_pulls_imports_and_containers_clearly_until_there_is_room() {
    with_hosts(1, 0, &["--insecure-registry", REGISTRY], async |test| {
        let registry = Registry::start(test, Users::Open).await;
        let (layer, sum) = noise_layer("noise", 16 << 20);
        let archive = test.dir().join("large.tar");
        std::fs::write(&archive, &layer).unwrap();
        registry.push("large", "1", &[layer]);
        on_small_disk(test, "manager1", 96 << 20).await;
        let images = inside(test, "manager1", "images");
        let stored = |part: &str| names(&images.join(part));
        let before = (stored("blobs/sha256"), stored("snapshots"));
        let ballast = fill(&inside(test, "manager1", ""), 6 << 20);

        let image = format!("{REGISTRY}/large:1");
        let import = format!("import {} large:imported", archive.display());
        for line in [format!("pull {image}"), import.clone()] {
            let said = test.refused("manager1", &line).await;
            assert!(
                said.to_lowercase().contains("no space left on"),
                "{line}: {said}"
            );
            assert!(said.contains("data/images"), "{line}: {said}");
            assert_eq!(stored("tmp"), Vec::<String>::new(), "{line}");
            let now = (stored("blobs/sha256"), stored("snapshots"));
            assert_eq!(now, before, "{line}");
        }
        fill_rest(test);
        let said = test.refused("manager1", "run -d busybox true").await;
        assert!(said.contains("No space left on device"), "{said}");
        assert_eq!(test.shoal("manager1", "ps -a -q").await, "");

        std::fs::remove_file(&ballast).unwrap();
        std::fs::remove_file(inside(test, "manager1", "rest")).unwrap();
        test.shoal("manager1", &format!("pull -q {image}")).await;
        test.shoal("manager1", &import).await;
        let line = format!("run --rm {image} busybox sha256sum noise");
        let shown = test.shoal("manager1", &line).await;
        assert!(
            shown.contains(sum.strip_prefix("sha256:").unwrap()),
            "{shown}"
        );
        registry.stop(test).await;
    });
}

/// Takes the last byte.
fn fill_rest(test: &TestCluster) {
    let path = inside(test, "manager1", "rest");
    let mut file = std::fs::File::create(path).unwrap();
    for chunk in [1 << 16, 1 << 10, 1] {
        while file.write_all(&vec![0xaa; chunk]).is_ok() {}
    }
}

/// A service whose spec has some hundred kilobytes.
async fn bulky(test: &TestCluster, on: &str, number: u32) -> bool {
    let host = test.cluster().host(on).unwrap();
    let name = format!("bulky{number}");
    let labels: Vec<String> = (0..6)
        .map(|label| format!("l{label}={}", "x".repeat(90_000)))
        .collect();
    let mut args = vec![
        "svc",
        "create",
        "-d",
        "-q",
        "--replicas",
        "0",
        "--name",
        &name,
    ];
    for label in &labels {
        args.extend(["--label", label]);
    }
    args.push("busybox");
    host.shoal(args).await.is_ok()
}

#[test]
fn root_manager_whose_disk_is_full_says_so_loses_nothing_and_comes_back() {
    with_cluster(3, 0, async |test| {
        let full = test.leader("manager1").await;
        on_small_disk(test, &full, 64 << 20).await;
        eventually("it is a manager on its small disk", async || {
            let line = "node ls --format {{.Status}}";
            match test.try_shoal(&full, line).await {
                Ok(shown) if shown == "Ready\nReady\nReady\n" => Ok(()),
                shown => Err(format!("{shown:?}")),
            }
        })
        .await;
        let others = ["manager1", "manager2", "manager3"];
        let other = others.into_iter().find(|name| **name != *full).unwrap();
        let ballast = fill(&inside(test, &full, ""), 0);
        let mut acknowledged = Vec::new();
        let mut number = 0;
        // Its segment has its space already: writes go on there until it needs the next one.
        within(TRIED_AGAIN_MAX, "the full manager says so", async || {
            number += 1;
            if bulky(test, other, number).await {
                acknowledged.push(format!("bulky{number}"));
            }
            match test.try_shoal(&full, "svc ls -q").await {
                Err(error) if error.to_string().contains("No space left on device") => Ok(()),
                shown => Err(format!("after {number} writes: {shown:?}")),
            }
        })
        .await;
        assert!(acknowledged.len() > 5, "{acknowledged:?}");
        test.shoal(other, "svc create -d --name after --replicas 0 busybox")
            .await;
        acknowledged.push("after".to_owned());
        std::fs::remove_file(&ballast).unwrap();
        within(TRIED_AGAIN_MAX, "it has everything", async || {
            let shown = test.try_shoal(&full, "svc ls --format {{.Name}}").await;
            let shown = shown.map_err(|error| error.to_string())?;
            let found: Vec<_> = shown.lines().collect();
            let lost: Vec<_> = acknowledged
                .iter()
                .filter(|name| !found.contains(&name.as_str()))
                .collect();
            assert!(lost.is_empty(), "acknowledged but lost: {lost:?}");
            Ok(())
        })
        .await;
        eventually("it counts again", async || {
            let line = "node ls --format {{.Hostname}}:{{.ManagerStatus}}";
            let shown = test.shoal(other, line).await;
            match shown.contains(&format!("{full}:Reachable"))
                || shown.contains(&format!("{full}:Leader"))
            {
                true => Ok(()),
                false => Err(shown),
            }
        })
        .await;
    });
}
