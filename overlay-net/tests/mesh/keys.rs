//! Keys change while packets flow.

use super::Test;
use super::flows::Flow;
use super::hosts::{PATIENCE, Scene, eventually};
use shoal_model::Version;
use std::time::Duration;

pub(crate) const TESTS: &[Test] = &[("a_key_changes_without_losing_a_connection", rotation)];

/// Both nodes change their keys, one after the other and then at the same time, as the managers carry it.
fn rotation() {
    let mut scene = Scene::new(2);
    scene.introduce();
    scene.reach(0, 1);
    let target = scene.hosts[1].mesh_ipv4().into();
    let flow = Flow::start(&scene.hosts[0], &scene.hosts[1], target);
    flow.advance(1 << 20);
    for who in [&[0][..], &[1], &[0, 1]] {
        flow.forget_gaps();
        change_keys(&mut scene, who);
        flow.advance(8 << 20);
        let gap = flow.longest_gap();
        assert!(gap < Duration::from_secs(2), "the flow paused for {gap:?}");
    }
    flow.finish();
}

fn change_keys(scene: &mut Scene, who: &[usize]) {
    let old: Vec<[u8; 32]> = scene.hosts.iter().map(key_in_use).collect();
    for host in who {
        let mesh = scene.hosts[*host].mesh.clone();
        scene.hosts[*host]
            .run(async move { mesh.rotate().await })
            .unwrap();
        let next = scene.hosts[*host].mesh.description().borrow().next_key;
        assert!(next.is_some(), "announced before it is used");
        assert_eq!(key_in_use(&scene.hosts[*host]), old[*host]);
    }
    // All nodes learn the next keys, and say so.
    scene.introduce();
    let version = Version(scene.version);
    for host in &scene.hosts {
        let mesh = host.mesh.clone();
        host.run(async move { mesh.confirmed(version).await });
    }
    for host in who {
        let host = &scene.hosts[*host];
        eventually("the new key is used", PATIENCE, || {
            let description = host.mesh.description().borrow().clone();
            description.next_key.is_none()
                && description.public_key != old[usize::from(host.number) - 1]
        });
    }
    scene.reach(0, 1);
    // The old keys go everywhere.
    scene.introduce();
    scene.reach(1, 0);
}

fn key_in_use(host: &super::hosts::Host) -> [u8; 32] {
    host.mesh.description().borrow().public_key
}
