//! Peers that are not where they were first looked for.

use super::Test;
use super::hosts::{PATIENCE, Scene, eventually, ip};
use shoal_overlay_net::PeerPath;
use std::net::SocketAddr;
use std::time::Duration;

pub(crate) const TESTS: &[Test] = &[
    ("a_peer_is_found_at_its_second_address", second_address),
    ("a_peer_that_moves_is_followed", moves),
    ("nodes_that_do_not_reach_each_other_go_over_a_relay", relay),
];

/// An address at which nobody answers.
const NOBODY: &str = "192.0.2.250:4500";

fn second_address() {
    let mut scene = Scene::new(2);
    scene.version += 1;
    for host in 0..2 {
        let mut plan = scene.plan(host);
        for peer in plan.peers.values_mut() {
            let nobody: SocketAddr = NOBODY.parse().unwrap();
            peer.endpoints.insert(0, nobody);
        }
        scene.tell(host, plan);
    }
    let found = scene.reach(0, 1);
    assert!(found < Duration::from_secs(9), "found after {found:?}");
}

fn moves() {
    let mut scene = Scene::new(2);
    scene.introduce();
    scene.reach(0, 1);
    let namespace = scene.hosts[0].namespace.clone();
    ip(&format!("-n {namespace} addr del 192.0.2.1/24 dev eth0"));
    ip(&format!("-n {namespace} addr add 192.0.2.77/24 dev eth0"));
    // Its own packets show where it is now.
    scene.reach(0, 1);
    scene.reach(1, 0);
    let mesh = scene.hosts[1].mesh.clone();
    let peers = scene.hosts[1]
        .run(async move { mesh.peers().await })
        .unwrap();
    let endpoint = peers[0].endpoint.unwrap();
    assert_eq!(endpoint.ip().to_string(), "192.0.2.77");
}

fn relay() {
    let mut scene = Scene::new(3);
    // The first and the third are cut off from each other.
    for (here, there) in [(0, 3), (2, 1)] {
        let namespace = scene.hosts[here].namespace.clone();
        ip(&format!(
            "-n {namespace} route add blackhole 192.0.2.{there}/32"
        ));
    }
    let middle = scene.hosts[1].namespace.clone();
    ip(&format!(
        "netns exec {middle} sysctl -qw net.ipv4.ip_forward=1"
    ));
    scene.version += 1;
    let relay = scene.hosts[1].node;
    for host in 0..3 {
        let mut plan = scene.plan(host);
        for (node, peer) in &mut plan.peers {
            peer.relay = *node == relay;
        }
        scene.tell(host, plan);
    }
    let target = scene.hosts[2].mesh_ipv4();
    eventually("the way over the relay", 2 * PATIENCE, || {
        scene.pings(0, target.into())
    });
    let path = || {
        let mesh = scene.hosts[0].mesh.clone();
        let peers = scene.hosts[0]
            .run(async move { mesh.peers().await })
            .unwrap();
        let third = scene.hosts[2].node;
        peers
            .iter()
            .find(|peer| peer.node_id == third)
            .unwrap()
            .path
    };
    assert_eq!(path(), PeerPath::Relay(relay));
    // The direct way opens, and is taken again.
    for (here, there) in [(0, 3), (2, 1)] {
        let namespace = scene.hosts[here].namespace.clone();
        ip(&format!(
            "-n {namespace} route del blackhole 192.0.2.{there}/32"
        ));
    }
    eventually("the direct way", PATIENCE, || path() == PeerPath::Direct);
    scene.reach(0, 2);
}
