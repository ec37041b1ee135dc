//! Subnets, the cluster's IPv6 prefix, addresses in the mesh.

use super::scene::{Scene, network_spec};
use crate::allocator::{AllocationError, mesh, subnets};
use ipnet::IpNet;
use shoal_model::network::{IpamConfig, NetworkSpec};
use shoal_model::{ClusterId, ClusterSpec, NetworkId};
use std::collections::BTreeSet;
use std::net::IpAddr;

fn chosen(scene: &Scene, spec: &NetworkSpec) -> Result<String, AllocationError> {
    let subnets = subnets::choose(&scene.state, scene.cluster(), spec)?;
    Ok(format!(
        "{} {} {}",
        subnets.ipv4, subnets.gateway, subnets.range
    ))
}

fn add(scene: &mut Scene, number: u128, subnet: Option<&str>) -> String {
    let spec = network_spec(&format!("net{number}"), subnet);
    let network = scene.add_network(NetworkId::from_bits(number), spec);
    network.unwrap().subnets.ipv4.to_string()
}

#[test]
fn subnets_come_from_the_pools_in_order_and_meet_nothing() {
    let mut scene = Scene::with_spec(ClusterSpec {
        address_pools: vec![
            "10.255.0.0/22".parse().unwrap(),
            "172.20.0.0/22".parse().unwrap(),
            "10.9.0.0/24".parse().unwrap(),
        ],
        mesh_pool: "10.255.0.0/24".parse().unwrap(),
        ..ClusterSpec::default()
    });
    scene.add_node(1, &["172.20.1.128/25", "0.0.0.0/0", "fd99::/64"]);
    assert_eq!(add(&mut scene, 1, None), "10.255.1.0/24", "after the mesh");
    assert_eq!(add(&mut scene, 2, Some("10.255.3.0/25")), "10.255.3.0/25");
    assert_eq!(add(&mut scene, 3, None), "10.255.2.0/24");
    assert_eq!(add(&mut scene, 4, None), "172.20.0.0/24");
    assert_eq!(
        add(&mut scene, 5, None),
        "172.20.2.0/24",
        "after the machine's"
    );
    assert_eq!(add(&mut scene, 6, None), "172.20.3.0/24");
    assert_eq!(add(&mut scene, 7, None), "10.9.0.0/24");
    let refused = chosen(&scene, &network_spec("more", None)).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "the address pools of the cluster (10.255.0.0/22, 172.20.0.0/22, 10.9.0.0/24) have no free subnet of /24: \
         7 networks exist; remove one, give `--subnet`, or add a pool"
    );
}

#[test]
fn the_network_of_published_ports_is_larger_and_no_pool_hog() {
    let ingress = NetworkSpec {
        name: "ingress".to_owned(),
        ingress: true,
        ..NetworkSpec::default()
    };
    for (pool, length, expected) in [
        ("10.0.0.0/8", 24, "10.0.0.0/20 10.0.0.1 10.0.0.0/20"),
        ("10.0.0.0/20", 24, "10.0.0.0/24 10.0.0.1 10.0.0.0/24"),
        ("10.0.0.0/16", 16, "10.0.0.0/16 10.0.0.1 10.0.0.0/16"),
    ] {
        let scene = Scene::with_spec(ClusterSpec {
            address_pools: vec![pool.parse().unwrap()],
            subnet_prefix_len: length,
            ..ClusterSpec::default()
        });
        assert_eq!(chosen(&scene, &ingress).unwrap(), expected);
    }
}

#[test]
fn overlaps_are_refused_with_the_holder_s_name() {
    let mut scene = Scene::new();
    scene.add_node(1, &["192.168.7.0/24"]);
    add(&mut scene, 1, Some("10.5.0.0/24"));
    for (subnet, holder) in [
        ("10.5.0.0/25", "10.5.0.0/24 of network `net1`"),
        ("10.0.0.0/8", "10.255.0.0/16 of the mesh"),
        (
            "192.168.0.0/16",
            "192.168.7.0/24 of the machine of node `n1`",
        ),
    ] {
        let refused = chosen(&scene, &network_spec("x", Some(subnet))).unwrap_err();
        assert!(refused.to_string().contains(holder), "{refused}");
    }
}

/// `subnet gateway range` of one family, `-` for what is left out; the answer begins like that.
fn check(expected: &str, configs: &[&str], ipv6: bool) {
    let optional = |word: &str| (word != "-").then(|| word.to_owned());
    let ipam = configs.iter().map(|config| {
        let words: Vec<&str> = config.split(' ').collect();
        IpamConfig {
            subnet: words[0].parse::<IpNet>().unwrap(),
            gateway: optional(words[1]).map(|word| word.parse::<IpAddr>().unwrap()),
            ip_range: optional(words[2]).map(|word| word.parse::<IpNet>().unwrap()),
        }
    });
    let spec = NetworkSpec {
        ipam: ipam.collect(),
        ipv6,
        ..network_spec("x", None)
    };
    let scene = Scene::new();
    let subnets = subnets::choose(&scene.state, scene.cluster(), &spec);
    let answer = match subnets {
        Ok(found) => {
            let v6 = found.ipv6.zip(found.gateway_ipv6);
            let v6 = v6.map(|(net, gateway)| format!(" {net} {gateway}"));
            let v6 = v6.unwrap_or_default();
            format!("{} {} {}{v6}", found.ipv4, found.gateway, found.range)
        }
        Err(err) => err.to_string(),
    };
    assert!(answer.starts_with(expected), "{answer} / {expected}");
}

#[test]
fn what_users_ask_for_is_checked() {
    check(
        "10.1.0.0/24 10.1.0.1 10.1.0.0/24",
        &["10.1.0.0/24 - -"],
        false,
    );
    check(
        "10.1.0.0/24 10.1.0.254 10.1.0.128/25",
        &["10.1.0.0/24 10.1.0.254 10.1.0.128/25"],
        false,
    );
    check(
        "`IPAM.Config[0].Subnet`: 10.1.0.5/24 has host bits set: it should be 10.1.0.0/24",
        &["10.1.0.5/24 - -"],
        false,
    );
    check(
        "`IPAM.Config.Subnet`: 10.1.0.0/30: prefixes from /8 to /29",
        &["10.1.0.0/30 - -"],
        false,
    );
    check(
        "`IPAM.Config.Subnet`: 0.0.0.0/7: prefixes",
        &["0.0.0.0/7 - -"],
        false,
    );
    check(
        "`IPAM.Config.Subnet`: 127.1.0.0/24 meets 127.0.0.0/8 (loopback)",
        &["127.1.0.0/24 - -"],
        false,
    );
    check(
        "`IPAM.Config.Gateway`: 10.2.0.1 is no host of 10.1.0.0/24",
        &["10.1.0.0/24 10.2.0.1 -"],
        false,
    );
    check(
        "`IPAM.Config.Gateway`: 10.1.0.255 is no host",
        &["10.1.0.0/24 10.1.0.255 -"],
        false,
    );
    check(
        "`IPAM.Config.IPRange`: 10.2.0.0/25 does not lie",
        &["10.1.0.0/24 - 10.2.0.0/25"],
        false,
    );
    check(
        "`IPAM.Config.IPRange`: 10.1.0.0/31 has no address",
        &["10.1.0.0/24 - 10.1.0.0/31"],
        false,
    );
    check(
        "`IPAM.Config[1].Subnet`: 10.2.0.0/24 is the second",
        &["10.1.0.0/24 - -", "10.2.0.0/24 - -"],
        false,
    );
    check(
        "`EnableIPv6`: the subnet fd00:1::/64",
        &["fd00:1::/64 - -"],
        false,
    );
}

#[test]
fn what_users_ask_for_in_ipv6_is_checked() {
    check(
        "10.0.0.0/24 10.0.0.1 10.0.0.0/24 fd00:1::/64 fd00:1::1",
        &["fd00:1::/64 - -"],
        true,
    );
    check(
        "10.0.0.0/24 10.0.0.1 10.0.0.0/24 fd00:1::/120 fd00:1::ff",
        &["fd00:1::/120 fd00:1::ff -"],
        true,
    );
    check(
        "`IPAM.Config.Subnet`: fd00:1::/121 is smaller than 10.0.0.0/24",
        &["fd00:1::/121 - -"],
        true,
    );
    check(
        "`IPAM.Config.IPRange`: fd00:1::/80: an IPv6 address follows",
        &["fd00:1::/64 - fd00:1::/80"],
        true,
    );
    check(
        "`IPAM.Config.Subnet`: fe80::/64 is no range",
        &["fe80::/64 - -"],
        true,
    );
    check(
        "10.1.0.0/24 10.1.0.9 10.1.0.0/24 fd00:1::/64 fd00:1::9",
        &["10.1.0.0/24 10.1.0.9 -", "fd00:1::/64 - -"],
        true,
    );
}

#[test]
fn ipv6_subnets_come_from_the_cluster_s_prefix() {
    let mut scene = Scene::new();
    let prefix = mesh::cluster_prefix(scene.cluster().id);
    assert_eq!(prefix.network().to_bits() >> 120, 0xfd);
    let mut seen = BTreeSet::new();
    for number in 1..=3 {
        let mut spec = network_spec(&format!("net{number}"), None);
        spec.ipv6 = true;
        let network = scene
            .add_network(NetworkId::from_bits(number), spec)
            .unwrap();
        let subnet = network.subnets.ipv6.unwrap();
        assert!(prefix.contains(&subnet) && subnet.prefix_len() == 64);
        assert!(seen.insert(subnet));
    }
    assert!(
        !seen.contains(&mesh::subnet(scene.cluster().id, 0)),
        "that is the mesh"
    );
    let others: BTreeSet<_> = (0..1_000)
        .map(|bits| mesh::cluster_prefix(ClusterId::from_bits(bits)))
        .collect();
    assert_eq!(others.len(), 1_000, "clusters differ");
}

#[test]
fn mesh_addresses_are_the_lowest_that_rest_with_nobody() {
    let mut scene = Scene::with_spec(ClusterSpec {
        mesh_pool: "10.255.0.0/29".parse().unwrap(),
        ..ClusterSpec::default()
    });
    let next = |scene: &Scene, resting: &[&str]| {
        let resting = resting.iter().map(|text| text.parse().unwrap()).collect();
        mesh::next(&scene.state, scene.cluster(), &resting)
    };
    assert_eq!(next(&scene, &[]).unwrap().ipv4.to_string(), "10.255.0.1");
    assert_eq!(
        next(&scene, &["10.255.0.1"]).unwrap().ipv4.to_string(),
        "10.255.0.2"
    );
    for number in 1..=6 {
        scene.add_node(number, &[]);
    }
    let refused = next(&scene, &[]).unwrap_err().to_string();
    assert_eq!(
        refused,
        "all addresses of the mesh (10.255.0.0/29) are in use by 6 nodes"
    );
}
