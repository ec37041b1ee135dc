//! Namespaces, mounts, layers, limits, privileges: what a configuration may ask for beyond the defaults.

use crate::fixture::{Fixture, HostMount, until, within};
use nix::mount::{MsFlags, mount};
use nix::unistd::chown;
use serde_json::json;
use shoal_runtime::Rootfs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Child, Command};

/// A process that is killed and reaped at the end of its test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[tokio::test]
async fn users_of_a_user_namespace_are_mapped() {
    const FIRST: u32 = 100_000;
    let mut fixture = Fixture::sh(
        "id -u; cat /proc/self/uid_map; touch /mine && stat -c %u /mine; echo x >/dev/null && echo dev; \
         grep CapEff /proc/self/status; mount -t tmpfs t /tmp 2>/dev/null || echo no-mount",
    );
    let open = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(fixture.path(""), open).unwrap();
    for part in ["upper", "work", "rootfs"] {
        chown(&fixture.path(part), Some(FIRST.into()), Some(FIRST.into())).unwrap();
    }
    fixture.edit(|spec| {
        let namespaces = spec["linux"]["namespaces"].as_array_mut().unwrap();
        namespaces.push(json!({"type": "user"}));
        let map = json!([{"containerID": 0, "hostID": FIRST, "size": 65536}]);
        spec["linux"]["uidMappings"] = map.clone();
        spec["linux"]["gidMappings"] = map;
    });
    let (exit, out, err) = fixture.run().await;
    assert_eq!(exit.code, 0, "{err}");
    let words: Vec<_> = out.split_whitespace().collect();
    let expected = [
        "0",
        "0",
        "100000",
        "65536",
        "0",
        "dev",
        "CapEff:",
        "00000000a80425fb",
        "no-mount",
    ];
    assert_eq!(words, expected, "{err}");
    let meta = std::fs::metadata(fixture.path("upper/mine")).unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&meta), FIRST);
}

fn namespace(pid: u32, name: &str) -> String {
    let link = std::fs::read_link(format!("/proc/{pid}/ns/{name}")).unwrap();
    link.to_str().unwrap().to_owned()
}

#[tokio::test]
async fn namespaces_are_joined_by_path_and_the_shim_stays_outside() {
    let holder = Command::new("/bin/busybox")
        .args(["unshare", "-n", "-u", "-i", "/bin/busybox", "sleep", "1000"])
        .spawn();
    let holder = Running(holder.unwrap());
    let of_holder = holder.0.id();
    let own = std::process::id();
    until("the holder's namespaces", || {
        namespace(of_holder, "ipc") != namespace(own, "ipc")
    })
    .await;
    let joined = ["net", "uts", "ipc"];
    let mut fixture = Fixture::sh("sleep 1000");
    fixture.edit(|spec| {
        let list = spec["linux"]["namespaces"].as_array_mut().unwrap();
        for (name, kind) in joined.iter().zip(["network", "uts", "ipc"]) {
            let entry = list.iter_mut().find(|n| n["type"] == kind).unwrap();
            entry["path"] = format!("/proc/{of_holder}/ns/{name}").into();
        }
    });
    let handle = fixture.spawn().await;
    handle.start().await.unwrap();
    for name in joined {
        let expected = namespace(of_holder, name);
        assert_eq!(namespace(handle.pid(), name), expected, "{name}");
        assert_eq!(namespace(handle.shim_pid(), name), namespace(own, name));
    }
    assert_ne!(namespace(handle.pid(), "mnt"), namespace(own, "mnt"));

    // A second container sees the processes of the first.
    let mut second = Fixture::sh("ps -o args");
    let pid_path = format!("/proc/{}/ns/pid", handle.pid());
    second.edit(|spec| {
        let list = spec["linux"]["namespaces"].as_array_mut().unwrap();
        let entry = list.iter_mut().find(|n| n["type"] == "pid").unwrap();
        entry["path"] = pid_path.into();
    });
    let (_, out, err) = second.run().await;
    assert!(out.contains("sleep 1000"), "{out} {err}");
    handle.delete(true).await.unwrap();
    fixture.assert_clean();
}

#[tokio::test]
async fn binds_are_read_only_with_everything_below_and_keep_their_propagation() {
    let mut fixture = Fixture::sh(
        "touch /ro/x 2>&1; touch /ro/sub/x 2>&1; echo hi >/rw/file; cat /one; touch /one 2>&1; \
         grep ' /shared ' /proc/self/mountinfo | grep -o 'shared:'; \
         grep ' /private ' /proc/self/mountinfo | grep -c 'shared:'; mount -t tmpfs t /shared/up && echo up; sleep 1000",
    );
    let host = HostMount::tmpfs(fixture.path("host"), 64);
    let path = |name: &str| host.path().join(name);
    for name in ["sub", "up", "late"] {
        std::fs::create_dir(path(name)).unwrap();
    }
    std::fs::write(path("one"), "one\n").unwrap();
    let _sub = HostMount::tmpfs(path("sub"), 64);
    fixture.edit(|spec| {
        let bind = |source, destination: &str, options: &[&str]| {
            json!({"type": "bind", "source": source, "destination": destination, "options": options})
        };
        let base = path("");
        spec["mounts"].as_array_mut().unwrap().extend([
            bind(base.clone(), "/ro", &["rbind", "ro", "rprivate"]),
            bind(base.clone(), "/rw", &["rbind", "rw", "rprivate"]),
            bind(path("one"), "/one", &["bind", "ro"]),
            bind(base.clone(), "/shared", &["rbind", "rshared"]),
            bind(base.clone(), "/slave", &["rbind", "rslave"]),
            bind(base, "/private", &["rbind", "rprivate"]),
        ]);
        spec["linux"]["rootfsPropagation"] = "rshared".into();
        spec["linux"]["seccomp"].take();
        for set in ["bounding", "effective", "permitted"] {
            let set = &mut spec["process"]["capabilities"][set];
            set.as_array_mut().unwrap().push("CAP_SYS_ADMIN".into());
        }
    });
    let handle = fixture.spawn().await;
    handle.start().await.unwrap();
    let count = || -> usize {
        let log = std::fs::read_to_string(fixture.path("log")).unwrap();
        log.lines().count()
    };
    until("all of the output", || count() == 7).await;
    let log = fixture.log_text();
    let lines: Vec<serde_json::Value> = log
        .lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect();
    let text: String = lines
        .iter()
        .map(|line| line["log"].as_str().unwrap())
        .collect();
    assert_eq!(
        text,
        "touch: /ro/x: Read-only file system\ntouch: /ro/sub/x: Read-only file system\none\n\
         touch: /one: Read-only file system\nshared:\n0\nup\n"
    );
    assert_eq!(std::fs::read_to_string(path("file")).unwrap(), "hi\n");
    // What the container mounts shows up here, and what is mounted here shows up there as far as was asked.
    let is_mount = |line: &str, at: &str| line.split(' ').nth(4) == Some(at);
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let up = path("up");
    assert!(
        table
            .lines()
            .any(|line| is_mount(line, up.to_str().unwrap()))
    );
    nix::mount::umount(&up).unwrap();
    let _late = HostMount::tmpfs(path("late"), 64);
    let inside = std::fs::read_to_string(format!("/proc/{}/mountinfo", handle.pid())).unwrap();
    let seen = |at: &str| inside.lines().any(|line| is_mount(line, at));
    assert!(seen("/slave/late") && seen("/shared/late"), "{inside}");
    assert!(!seen("/private/late") && !seen("/rw/late"), "{inside}");
    handle.delete(true).await.unwrap();
}

#[tokio::test]
async fn more_layers_than_fit_into_mount_options_are_stacked_in_order() {
    const LAYERS: usize = 80;
    let mut fixture = Fixture::sh("cat /top; ls /layers | wc -l; cat /odd");
    let mut lower = Vec::new();
    for number in 0..LAYERS {
        let layer = fixture.path(&format!("layers/{number:-<60}"));
        std::fs::create_dir_all(layer.join("layers")).unwrap();
        std::fs::write(layer.join(format!("layers/{number}")), "").unwrap();
        std::fs::write(layer.join("top"), format!("{number}\n")).unwrap();
        lower.push(layer);
    }
    // Separators of mount options in a name.
    let odd = fixture.path("odd,name:with\\all");
    std::fs::create_dir_all(&odd).unwrap();
    std::fs::write(odd.join("odd"), "odd\n").unwrap();
    lower.push(odd);
    if let Rootfs::Overlay { lower: list, .. } = &mut fixture.shim.rootfs {
        lower.append(list);
        *list = lower;
    }
    let (exit, out, err) = fixture.run().await;
    assert_eq!((exit.code, out.as_str()), (0, "0\n80\nodd\n"), "{err}");
}

#[tokio::test]
async fn limits_ambient_capabilities_no_new_privileges_and_sysctls_are_set() {
    let mut fixture = Fixture::sh(
        "ulimit -Sn; ulimit -Hn; grep -E '^(Cap(Eff|Amb)|NoNew|Seccomp:)' /proc/self/status; \
         cat /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/msgmax",
    );
    fixture.edit(|spec| {
        let process = &mut spec["process"];
        process["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200}]);
        process["user"] = json!({"uid": 1000, "gid": 1000});
        let caps = json!(["CAP_NET_RAW"]);
        for set in [
            "bounding",
            "effective",
            "permitted",
            "inheritable",
            "ambient",
        ] {
            process["capabilities"][set] = caps.clone();
        }
        process["noNewPrivileges"] = true.into();
        spec["linux"]["sysctl"] = json!({"net.ipv4.ip_forward": "1", "kernel/msgmax": "4096"});
    });
    let (_, out, err) = fixture.run().await;
    let expected = "100\n200\nCapEff:\t0000000000002000\nCapAmb:\t0000000000002000\n\
                    NoNewPrivs:\t1\nSeccomp:\t2\n1\n4096\n";
    assert_eq!(out, expected, "{err}");
    assert_eq!(out, fixture.run_with_runc());
}

#[tokio::test]
async fn a_shared_root_gets_no_mount_of_the_container() {
    let mut fixture = Fixture::sh("sleep 1000");
    fixture.edit(|spec| spec["linux"]["rootfsPropagation"] = "shared".into());
    let host = HostMount::tmpfs(fixture.path("host"), 64);
    let handle = fixture.spawn().await;
    handle.start().await.unwrap();
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let below = fixture.path("rootfs");
    assert!(!table.contains(below.to_str().unwrap()), "{table}");
    let none = None::<&str>;
    mount(none, host.path(), none, MsFlags::MS_PRIVATE, none).unwrap();
    handle.kill(9, true).await.unwrap();
    within(handle.wait()).await.unwrap();
    handle.delete(false).await.unwrap();
}
