//! What a container may do, beside what runc lets it do; limits; isolation.

use crate::fixture::{Fixture, within};
use shoal_runtime::{ExecSpec, ExecStdio, spec};
use tokio::io::AsyncReadExt as _;

const STATUS: &str = "grep -E '^(Cap|Seccomp:|NoNewPrivs|Groups|Uid|Gid)' /proc/self/status";

#[tokio::test]
async fn rights_are_those_that_runc_gives() {
    let fixture = Fixture::sh(STATUS);
    let (_, ours, _) = fixture.run().await;
    assert!(ours.contains("Seccomp:\t2"), "{ours}");
    assert!(ours.contains("CapEff:\t00000000a80425fb"), "{ours}");
    assert_eq!(ours, fixture.run_with_runc());
}

#[tokio::test]
async fn what_is_mounted_and_in_dev_is_what_runc_mounts() {
    let script = "awk '{print $5, $6}' /proc/self/mountinfo | sed 's/lowerdir.*//' | grep -v '^/ '; \
                  ls -l /dev | awk '{print $1,$3,$4,$NF}'";
    let fixture = Fixture::sh(script);
    let (_, ours, _) = fixture.run().await;
    let theirs = fixture.run_with_runc();
    let names = |text: &str| {
        let mut names: Vec<String> = text
            .lines()
            .filter_map(|line| line.split(' ').next())
            // runc leaves a descriptor of its own there, and makes a link to /proc/kcore.
            .map(str::to_owned)
            .filter(|name| name.starts_with('/') && !name.starts_with("/sys/fs/cgroup/"))
            .collect();
        names.sort();
        names
    };
    assert_eq!(names(&ours), names(&theirs));
}

#[tokio::test]
async fn exec_has_exactly_the_rights_and_groups_of_its_container() {
    let probe = format!(
        "{STATUS}; cat /proc/self/cgroup; for n in mnt pid net uts ipc cgroup; do readlink /proc/self/ns/$n; done"
    );
    let fixture = Fixture::sh(&format!("{probe}; sleep 1000"));
    let handle = fixture.spawn().await;
    let options = shoal_runtime::AttachOptions {
        stdin: false,
        stdout: true,
        stderr: true,
    };
    let mut streams = handle.attach(options).await.unwrap();
    handle.start().await.unwrap();
    let exec = ExecSpec {
        process: spec::process(["/bin/sh", "-c", &probe].map(str::to_owned).to_vec()),
        stdin: false,
        stdout: true,
        stderr: false,
    };
    let mut exec = handle.exec(exec).await.unwrap();
    let Some(ExecStdio::Pipes {
        stdout: Some(mut stdout),
        ..
    }) = exec.stdio.take()
    else {
        panic!()
    };
    let mut theirs = String::new();
    within(stdout.read_to_string(&mut theirs)).await.unwrap();
    let mut ours = String::new();
    while ours.len() < theirs.len() {
        let (_, data) = within(streams.output.next()).await.unwrap().unwrap();
        ours.push_str(&String::from_utf8_lossy(&data));
    }
    assert!(theirs.contains("Seccomp:\t2"), "{theirs}");
    assert_eq!(ours, theirs);
    handle.delete(true).await.unwrap();
}

#[tokio::test]
async fn another_user_has_no_capabilities_and_owns_its_streams() {
    let mut fixture = Fixture::sh(
        "id -u; id -g; id -G; grep CapEff /proc/self/status; echo x >/dev/stdout; umask; pwd",
    );
    fixture.edit(|spec| {
        spec["process"]["user"] =
            serde_json::json!({"uid": 1000, "gid": 1001, "additionalGids": [5, 7], "umask": 63});
        spec["process"]["cwd"] = "/new/dir".into();
    });
    let (exit, out, err) = fixture.run().await;
    assert_eq!(exit.code, 0, "{err}");
    assert_eq!(
        out,
        "1000\n1001\n1001 5 7\nCapEff:\t0000000000000000\nx\n0077\n/new/dir\n"
    );
}

#[tokio::test]
async fn paths_of_the_host_are_hidden_and_the_root_can_be_readonly() {
    let mut fixture = Fixture::sh(
        "cat /proc/kcore | wc -c; touch /proc/sys/kernel/hostname 2>/dev/null || echo ro; \
         touch /x 2>/dev/null || echo root-ro; touch /dev/shm/x && echo shm; hostname",
    );
    fixture.edit(|spec| {
        spec["root"]["readonly"] = true.into();
        spec["hostname"] = "box".into();
    });
    let (_, out, err) = fixture.run().await;
    assert_eq!(out, "0\nro\nroot-ro\nshm\nbox\n", "{err}");
}

#[tokio::test]
async fn memory_pids_and_devices_are_limited() {
    let mut fixture = Fixture::sh("dd if=/dev/zero of=/dev/null bs=200M count=1");
    fixture.edit(|spec| {
        spec["linux"]["resources"]["memory"] =
            serde_json::json!({"limit": 64 << 20, "swap": 64 << 20});
    });
    let (exit, ..) = fixture.run().await;
    assert!(exit.oom_killed, "{exit:?}");

    let mut fixture = Fixture::sh("for i in $(seq 30); do sleep 5 & done; echo all");
    fixture.edit(|spec| spec["linux"]["resources"]["pids"] = serde_json::json!({"limit": 8}));
    let (_, out, err) = fixture.run().await;
    assert!(
        !out.contains("all") && err.contains("can't fork"),
        "{out} {err}"
    );

    let fixture = Fixture::sh("mknod /mem c 1 1 && head -c 1 /mem");
    let (_, _, err) = fixture.run().await;
    assert!(err.contains("Operation not permitted"), "{err}");
}

#[tokio::test]
async fn processor_time_is_limited_counted_and_changed() {
    let mut fixture = Fixture::sh("while :; do :; done");
    fixture.edit(|spec| {
        spec["linux"]["resources"]["cpu"] = serde_json::json!({"quota": 10000, "period": 100_000});
    });
    let handle = fixture.spawn().await;
    handle.start().await.unwrap();
    loop {
        let stats = within(handle.stats()).await.unwrap();
        if stats.cpu.throttled_periods >= 2 && stats.pids.current == 1 {
            assert!(stats.cpu.usage_ns > 0 && stats.memory.usage_bytes > 0);
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    let update = serde_json::from_str(r#"{"pids":{"limit":99},"cpu":{"cpus":"0"}}"#).unwrap();
    handle.update_resources(&update).await.unwrap();
    assert_eq!(handle.stats().await.unwrap().pids.limit, Some(99));
    handle.delete(true).await.unwrap();
    fixture.assert_clean();
}
