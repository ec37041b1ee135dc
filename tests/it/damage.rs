//! Files that are cut off or overwritten, daemons killed at any instant, input that makes no sense.

use crate::harness::{TestCluster, eventually, with_cluster, with_hosts};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

const SLEEP: &str = "--stop-signal SIGKILL busybox sleep 100000";

fn host_dir(test: &TestCluster, host: &str) -> PathBuf {
    test.cluster().host(host).unwrap().dir.clone()
}

async fn restart(test: &mut TestCluster, host: &str) {
    test.cluster_mut()
        .host_mut(host)
        .unwrap()
        .kill_daemon()
        .await
        .unwrap();
    test.cluster_mut().restart_daemon(host).await.unwrap();
}

async fn logged(test: &TestCluster, host: &str, words: &[&str]) {
    let path = test.cluster().host(host).unwrap().log_path();
    eventually("the daemon says what is wrong", async || {
        let log = std::fs::read_to_string(&path).unwrap();
        assert!(!log.contains("panicked"), "{log}");
        let told = |line: &str| words.iter().all(|word| line.contains(word));
        if log.lines().any(told) {
            Ok(())
        } else {
            Err(log)
        }
    })
    .await;
}

#[test]
fn root_damaged_container_is_named_then_put_aside_and_the_others_live() {
    with_hosts(1, 0, &[], async |test| {
        let run = "run -d busybox sleep 54321";
        let hurt = test.shoal("manager1", run).await.trim().to_owned();
        let whole = test.shoal("manager1", run).await.trim().to_owned();
        assert_eq!(processes(test, "manager1", "sleep\x0054321"), 2);
        let dir = host_dir(test, "manager1").join("data");
        let record = dir.join(format!("containers/{hurt}/container.json"));
        let file = std::fs::OpenOptions::new().write(true).open(&record);
        file.unwrap().set_len(20).unwrap();
        for _ in 0..4 {
            restart(test, "manager1").await;
            let shown = test.shoal("manager1", "ps -q --no-trunc").await;
            assert_eq!(shown.trim(), whole);
        }
        logged(test, "manager1", &["container.json", &hurt]).await;
        assert!(dir.join("quarantine").join(&hurt).exists());
        // Nobody could have stopped it any more.
        eventually("its processes have ended", async || {
            match processes(test, "manager1", "sleep\x0054321") {
                1 => Ok(()),
                other => Err(format!("{other} run")),
            }
        })
        .await;
    });
}

/// Processes of a host's containers with a command line that begins so.
fn processes(test: &TestCluster, host: &str, cmdline: &str) -> usize {
    let parent = format!("{}/", test.cluster().host(host).unwrap().cgroup_parent);
    std::fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter(|process| {
            let read = |file| std::fs::read(process.path().join(file)).unwrap_or_default();
            let ours = String::from_utf8_lossy(&read("cgroup")).contains(&parent);
            ours && read("cmdline").starts_with(cmdline.as_bytes())
        })
        .count()
}

fn entries(dir: &std::path::Path) -> usize {
    std::fs::read_dir(dir).map_or(0, Iterator::count)
}

/// One raw request; the status code of its answer.
fn raw(test: &TestCluster, request: &[u8]) -> String {
    let mut stream =
        UnixStream::connect(test.cluster().host("manager1").unwrap().socket()).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    // The daemon may answer and close before it has read everything.
    drop(stream.write_all(request));
    let mut answer = [0; 12];
    let mut len = 0;
    while len < answer.len() {
        match stream.read(&mut answer[len..]) {
            Ok(0) | Err(_) => break,
            Ok(more) => len += more,
        }
    }
    let text = String::from_utf8_lossy(&answer[..len]).into_owned();
    text.split(' ').nth(1).unwrap_or_default().to_owned()
}

#[test]
fn root_nonsense_at_the_socket_and_at_the_ports_changes_nothing() {
    with_cluster(1, 1, async |test| {
        let post = |path: &str, body: &[u8]| {
            let head = format!(
                "POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
                body.len()
            );
            [head.as_bytes(), body].concat()
        };
        let create = "/v1.43/containers/create";
        let deep = "[".repeat(100_000);
        let large = vec![b'a'; 5 << 20];
        let cases: [(Vec<u8>, &str); 6] = [
            (post(create, b"{nonsense"), "400"),
            (post(create, b"{\"Image\":\"busybox\",\"Cmd\":7}"), "400"),
            (post("/v1.43/services/create", deep.as_bytes()), "400"),
            (post(create, &large), "413"),
            (
                b"GET /v9.99/info HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
                "400",
            ),
            (b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(), "404"),
        ];
        for (request, expected) in cases {
            let shown = String::from_utf8_lossy(&request[..60.min(request.len())]).into_owned();
            assert_eq!(raw(test, &request), expected, "{shown}");
        }
        raw(test, b"\0\x01\x02 utter nonsense\r\n\r\n");

        // Datagrams that are no QUIC, or the beginning of one.
        let netns = std::fs::File::open(&test.cluster().host("worker1").unwrap().netns).unwrap();
        let address = test.cluster().host("manager1").unwrap().address;
        let sent = std::thread::spawn(move || {
            nix::sched::setns(netns, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
            let mut noise = 0x9e37_79b9_u32;
            for round in 0..4_000_usize {
                let mut datagram = vec![0; [0, 1, 7, 60, 1_200, 1_400][round % 6]];
                for byte in &mut datagram {
                    noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    *byte = noise.to_be_bytes()[0];
                }
                if let (0, [first, a, b, c, d, ..]) = (round % 2, &mut datagram[..]) {
                    // A long header of version 1.
                    *first |= 0xc0;
                    [*a, *b, *c, *d] = [0, 0, 0, 1];
                }
                let port = 2377 + u16::from(round % 4 > 1);
                socket.send_to(&datagram, (address, port)).unwrap();
            }
        });
        sent.join().unwrap();
        test.wait_ready(2).await;
        test.shoal(
            "manager1",
            &format!("svc create --name web --replicas 2 {SLEEP}"),
        )
        .await;
        let log = std::fs::read_to_string(test.cluster().host("manager1").unwrap().log_path());
        assert!(!log.unwrap().contains("panicked"));
    });
}

#[test]
fn root_daemons_restarted_in_order_one_by_one_replace_no_task() {
    with_cluster(3, 1, async |test| {
        let line = format!("svc create --name web --replicas 8 {SLEEP}");
        test.shoal("manager1", &line).await;
        let history = "svc ps web --no-trunc --format {{.ID}}|{{.Node}}|{{.DesiredState}}";
        let before = test.shoal("manager1", history).await;
        for name in ["manager1", "manager2", "manager3", "worker1"] {
            let host = test.cluster_mut().host_mut(name).unwrap();
            host.stop_daemon().await.unwrap();
            test.cluster_mut().restart_daemon(name).await.unwrap();
            eventually("all nodes are ready again", async || {
                let line = "node ls --format {{.Hostname}}:{{.Status}}:{{.ManagerStatus}}";
                match test.try_shoal(name, line).await {
                    Ok(text)
                        if text.matches(":Ready:").count() == 4 && !text.contains("Unreach") =>
                    {
                        Ok(())
                    }
                    Err(error) if name == "worker1" && error.to_string().contains("manager") => {
                        Ok(())
                    }
                    other => Err(format!("{other:?}")),
                }
            })
            .await;
        }
        test.wait_ready(4).await;
        let mut after: Vec<_> = test
            .shoal("manager1", history)
            .await
            .lines()
            .map(str::to_owned)
            .collect();
        let mut before: Vec<_> = before.lines().map(str::to_owned).collect();
        before.sort();
        after.sort();
        assert_eq!(before, after);
    });
}

#[test]
fn root_hostile_archives_stay_in_the_image_or_are_refused() {
    with_hosts(1, 0, &[], async |test| {
        let canary = test.dir().join("canary");
        let out = canary.display().to_string();
        let up = format!("{}{out}", "../".repeat(20));
        type Make<'a> = &'a dyn Fn(&mut tar::Builder<Vec<u8>>);
        let file = |tar: &mut tar::Builder<Vec<u8>>, path: &str| {
            let mut header = tar::Header::new_gnu();
            header.set_size(1);
            header.set_mode(0o644);
            // Past the crate's own checks: the name goes into the header as it is.
            let name = &mut header.as_old_mut().name;
            name[..path.len()].copy_from_slice(path.as_bytes());
            header.set_cksum();
            tar.append(&header, &b"x"[..]).unwrap();
        };
        let link = |tar: &mut tar::Builder<Vec<u8>>, kind: tar::EntryType, to: &str| {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(kind);
            header.set_size(0);
            tar.append_link(&mut header, "d", to).unwrap();
        };
        let dir = test.dir().display().to_string();
        let cases: [(&str, Make<'_>); 4] = [
            ("up", &|tar| file(tar, &up)),
            ("absolute", &|tar| file(tar, &out)),
            ("through", &|tar| {
                link(tar, tar::EntryType::Symlink, &dir);
                file(tar, "d/canary");
            }),
            ("hard", &|tar| {
                link(tar, tar::EntryType::Link, "/etc/passwd")
            }),
        ];
        for (name, make) in cases {
            let mut tar = tar::Builder::new(Vec::new());
            make(&mut tar);
            let path = test.dir().join(format!("{name}.tar"));
            std::fs::write(&path, tar.into_inner().unwrap()).unwrap();
            let line = format!("import {} hostile:{name}", path.display());
            let imported = test.try_shoal("manager1", &line).await;
            assert!(!canary.exists(), "`{name}` escaped: {imported:?}");
            if name != "absolute" {
                assert!(imported.is_err(), "`{name}`: {imported:?}");
            }
        }
        // No image, but many files.
        let mut tar = tar::Builder::new(Vec::new());
        for number in 0..3_000 {
            file(&mut tar, &format!("f{number}"));
        }
        let path = test.dir().join("many.tar");
        std::fs::write(&path, tar.into_inner().unwrap()).unwrap();
        let said = test
            .refused("manager1", &format!("load -i {}", path.display()))
            .await;
        assert!(said.contains("manifest.json"), "{said}");
        let tmp = host_dir(test, "manager1").join("data/images/tmp");
        assert_eq!(entries(&tmp), 0);
        test.shoal("manager1", "run --rm busybox true").await;
    });
}
