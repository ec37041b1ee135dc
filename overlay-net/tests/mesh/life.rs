//! The daemon and netd come and go.

use super::Test;
use super::flows::Flow;
use super::hosts::{PATIENCE, Scene, eventually, ip_says};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::time::Duration;

pub(crate) const TESTS: &[Test] = &[
    ("a_daemon_that_starts_again_finds_its_netd", daemon_restart),
    ("a_killed_netd_is_back_within_a_second", netd_killed),
    ("netd_ends_with_its_run_root", run_root_gone),
    ("a_node_that_leaves_has_no_device", leave),
];

fn daemon_restart() {
    let mut scene = Scene::new(2);
    scene.introduce();
    scene.reach(0, 1);
    let target = scene.hosts[1].mesh_ipv4().into();
    let flow = Flow::start(&scene.hosts[0], &scene.hosts[1], target);
    flow.advance(1 << 20);
    flow.forget_gaps();
    let before = (scene.hosts[0].netd_pid(), scene.hosts[0].outside());
    scene.hosts[0].restart_daemon();
    flow.advance(1 << 20);
    // The new daemon tells the same again, and nobody notices.
    scene.introduce();
    flow.advance(8 << 20);
    let after = (scene.hosts[0].netd_pid(), scene.hosts[0].outside());
    assert_eq!(after, before);
    let gap = flow.longest_gap();
    assert!(
        gap < Duration::from_millis(500),
        "the flow paused for {gap:?}"
    );
    flow.finish();
}

fn netd_killed() {
    let mut scene = Scene::new(2);
    scene.introduce();
    scene.reach(0, 1);
    let target = scene.hosts[1].mesh_ipv4().into();
    let flow = Flow::start(&scene.hosts[0], &scene.hosts[1], target);
    flow.advance(1 << 20);
    let before = (scene.hosts[0].netd_pid(), scene.hosts[0].outside());
    flow.forget_gaps();
    kill(Pid::from_raw(before.0), Signal::SIGKILL).unwrap();
    flow.advance(8 << 20);
    let gap = flow.longest_gap();
    assert!(gap < Duration::from_secs(1), "back after {gap:?}");
    flow.finish();
    assert_ne!(scene.hosts[0].netd_pid(), before.0);
    assert_eq!(scene.hosts[0].outside(), before.1);
}

fn run_root_gone() {
    let mut scene = Scene::new(1);
    scene.hosts[0].abandoned = true;
    let host = &scene.hosts[0];
    let (device, namespace) = (host.mesh.device().to_owned(), host.namespace.clone());
    let pid = host.netd_pid();
    // Nobody can reach it any more; the daemon, which would start another one, can't either.
    std::fs::remove_dir_all(host.dir.path()).unwrap();
    eventually("netd ends", PATIENCE, || {
        !std::fs::read_to_string(format!("/proc/{pid}/comm"))
            .is_ok_and(|comm| comm.contains("mesh"))
    });
    eventually("its device goes", PATIENCE, || {
        !ip_says(&format!("-n {namespace} link show")).contains(&device)
    });
}

fn leave() {
    let scene = Scene::new(1);
    let host = &scene.hosts[0];
    let shown = || ip_says(&format!("-n {} link show", host.namespace));
    assert!(shown().contains(host.mesh.device()));
    let mesh = host.mesh.clone();
    host.run(async move { mesh.leave().await }).unwrap();
    assert!(!shown().contains(host.mesh.device()));
}
