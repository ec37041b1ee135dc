//! Control groups of the second generation. A shim finds them where a host has nothing else: in a mount namespace
//! whose `/sys/fs/cgroup` is this host's unified hierarchy, with or without controllers in it.

use crate::fixture::{Fixture, exe, within};
use shoal_runtime::{AttachOptions, ExecSpec, ExecStdio, ShimHandle, SpawnOptions, spec};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use tokio::io::AsyncReadExt as _;

/// A program that starts the shim there; `None` on hosts without such a hierarchy.
fn unified_exe(fixture: &Fixture) -> Option<PathBuf> {
    let both = Path::new("/sys/fs/cgroup/unified");
    if !both.join("cgroup.procs").exists() {
        // The other tests run on it.
        assert!(Path::new("/sys/fs/cgroup/cgroup.procs").exists() || !both.exists());
        return None;
    }
    let path = fixture.path("unified-shim");
    let script = format!(
        "#!/bin/sh\nexec /bin/busybox unshare -m /bin/sh -c \
         'mount -o bind /sys/fs/cgroup/unified /sys/fs/cgroup && exec \"$0\" \"$@\"' {} \"$@\"\n",
        exe().display()
    );
    std::fs::write(&path, script).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    Some(path)
}

#[tokio::test]
async fn a_container_is_born_in_its_group_with_its_devices_frozen_and_removed() {
    let fixture = Fixture::sh(
        "grep ^0: /proc/self/cgroup; ls /sys/fs/cgroup | grep -c cgroup.procs; \
         mknod /mem c 1 1 && head -c 1 /mem 2>&1; head -c 1 /dev/zero | wc -c; sleep 1000",
    );
    let Some(exe) = unified_exe(&fixture) else {
        return;
    };
    fixture
        .bundle()
        .write(&fixture.spec, &fixture.shim)
        .unwrap();
    let options = SpawnOptions::new(exe, fixture.path(""));
    let handle = within(ShimHandle::spawn(options)).await.unwrap();
    let group = Path::new("/sys/fs/cgroup/unified/shoal-tests").join(&fixture.name);
    let pids = || std::fs::read_to_string(group.join("cgroup.procs")).unwrap();
    assert_eq!(pids().trim(), handle.pid().to_string());
    let attach = AttachOptions {
        stdin: false,
        stdout: true,
        stderr: true,
    };
    let mut streams = handle.attach(attach).await.unwrap();
    handle.start().await.unwrap();
    let mut text = String::new();
    while text.lines().count() < 4 {
        let (_, data) = within(streams.output.next()).await.unwrap().unwrap();
        text.push_str(&String::from_utf8_lossy(&data));
    }
    let denied = "head: /mem: Operation not permitted";
    assert_eq!(text, format!("0::/\n1\n{denied}\n1\n"));

    handle.pause().await.unwrap();
    let events = std::fs::read_to_string(group.join("cgroup.events")).unwrap();
    assert!(events.contains("frozen 1"), "{events}");
    handle.resume().await.unwrap();

    let args = ["grep", "^0:", "/proc/self/cgroup"].map(str::to_owned);
    let exec = ExecSpec {
        process: spec::process(args.to_vec()),
        stdin: false,
        stdout: true,
        stderr: false,
    };
    let mut exec = handle.exec(exec).await.unwrap();
    let Some(ExecStdio::Pipes { stdout, .. }) = exec.stdio.take() else {
        panic!()
    };
    let mut text = String::new();
    within(stdout.unwrap().read_to_string(&mut text))
        .await
        .unwrap();
    assert_eq!(text, "0::/\n");
    assert_eq!(within(exec.wait()).await.unwrap().code, 0);
    handle.pause().await.unwrap();
    handle.delete(true).await.unwrap();
    fixture.assert_clean();
}
