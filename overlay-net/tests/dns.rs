//! The resolver of containers on the real kernel: sockets, rules and servers in namespaces of their own; needs root.
//! `dig` and `getent` are the witnesses.

#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod dns_scene;

use dns_scene::{Outside, Scene, in_own_namespaces, outlook, state};
use shoal_overlay_net::dns::{DnsOptions, Names};
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

#[test]
fn root_a_container_asks_at_port_53_by_udp_and_tcp() {
    in_own_namespaces(async |scene| {
        scene.container("app", DnsOptions::default()).await;
        assert_eq!(scene.dig("app", "web A +short"), "10.0.0.2");
        assert_eq!(scene.dig("app", "web AAAA +short"), "fd00:0:0:1::2");
        assert_eq!(scene.dig("app", "web A +short +tcp"), "10.0.0.2");
        assert_eq!(scene.dig("app", "-x 10.0.0.2 +short"), "web.backend.");
        // More addresses than fit into 512 bytes: the client comes again by TCP and gets them all.
        let all = scene.dig("app", "tasks.web A +short +noedns");
        assert_eq!(all.lines().count(), Scene::TASKS);
        let cut = scene.dig("app", "tasks.web A +noedns +ignore");
        assert!(cut.contains("flags: qr aa tc rd ra"), "{cut}");
    });
}

#[test]
fn root_answers_come_in_an_order_of_chance() {
    in_own_namespaces(async |scene| {
        scene.container("app", DnsOptions::default()).await;
        let mut firsts = std::collections::BTreeSet::new();
        for _ in 0..60 {
            let answer = scene.dig("app", "tasks.web A +short +bufsize=4096");
            firsts.insert(answer.lines().next().unwrap().to_owned());
        }
        assert!(firsts.len() > 10, "{firsts:?}");
    });
}

#[test]
fn root_a_container_can_serve_port_53_itself() {
    in_own_namespaces(async |scene| {
        scene.container("app", DnsOptions::default()).await;
        let own = Outside::start(
            scene.netns("app"),
            "0.0.0.0:53".parse().unwrap(),
            "192.0.2.53",
        );
        assert_eq!(scene.dig("app", "web A +short"), "10.0.0.2");
        assert_eq!(scene.dig("app", "web A +short +tcp"), "10.0.0.2");
        let answer = scene.dig_at("app", "127.0.0.1", "web A +short");
        assert_eq!(
            answer, "192.0.2.53",
            "its own server answers at its own addresses"
        );
        assert_eq!(own.questions(), 1);
    });
}

#[test]
fn root_the_resolver_library_finds_names_and_addresses() {
    in_own_namespaces(async |scene| {
        scene.container("app", DnsOptions::default()).await;
        // The library asks only for families of which the machine has an address that is not the loopback's.
        let link = "ip link add d0 type veth peer d1 && ip link set d0 up && ip link set d1 up";
        let addresses =
            "ip addr add 10.0.0.50/32 dev d0 && ip addr add fd00:0:0:1::32/128 dev d0 nodad";
        scene.inside("app", &format!("{link} && {addresses}"));
        assert!(scene.getent("app", "ahostsv4 web").starts_with("10.0.0.2 "));
        assert!(
            scene
                .getent("app", "ahostsv6 3.web")
                .starts_with("fd00:0:0:1::67 ")
        );
        assert!(
            scene
                .getent("app", "hosts 10.0.0.103")
                .contains("web.3.backend")
        );
        let all = scene.getent("app", "ahostsv4 tasks.web");
        assert_eq!(all.matches("STREAM").count(), Scene::TASKS, "{all}");
    });
}

#[test]
fn root_other_names_are_asked_outside_and_a_dead_server_is_passed_over_once() {
    in_own_namespaces(async |scene| {
        scene.container("app", DnsOptions::default()).await;
        let live = Outside::start(None, "127.0.0.3:53".parse().unwrap(), "192.0.2.1");
        // 127.0.0.2 takes packets and says nothing.
        let _silent = std::net::UdpSocket::bind("127.0.0.2:53").unwrap();
        scene.host_resolvers(&["127.0.0.2", "127.0.0.3"]);
        let started = Instant::now();
        assert_eq!(
            scene.dig("app", "example.org A +short +timeout=9"),
            "192.0.2.1"
        );
        assert!(
            started.elapsed() >= Duration::from_secs(2),
            "the first server had its time"
        );
        let started = Instant::now();
        assert_eq!(scene.dig("app", "example.net A +short"), "192.0.2.1");
        assert!(
            started.elapsed() < Duration::from_secs(1),
            "the second one is remembered"
        );
        assert_eq!(scene.dig("app", "example.org A +short +tcp"), "192.0.2.1");
        assert_eq!(live.questions(), 3);
        // What exists here is asked nowhere, whatever is asked of it.
        assert_eq!(scene.dig("app", "web MX +short"), "");
        assert_eq!(live.questions(), 3);
        let counters = scene.server.counters();
        assert_eq!(
            (counters.forwarded, counters.empty, counters.failed),
            (3, 1, 0)
        );
    });
}

#[test]
fn root_a_server_that_refuses_is_passed_over_and_nobody_left_is_a_failure() {
    in_own_namespaces(async |scene| {
        scene.container("app", DnsOptions::default()).await;
        let refusing = Outside::refusing(None, "127.0.0.2:53".parse().unwrap());
        let live = Outside::start(None, "127.0.0.3:53".parse().unwrap(), "192.0.2.1");
        scene.host_resolvers(&["127.0.0.2", "127.0.0.3"]);
        assert_eq!(scene.dig("app", "example.org A +short"), "192.0.2.1");
        assert_eq!((refusing.questions(), live.questions()), (1, 1));
        scene.host_resolvers(&["127.0.0.2"]);
        let answer = scene.dig("app", "example.org A");
        assert!(answer.contains("status: REFUSED"), "{answer}");
        // Nobody listens at 127.0.0.4: the kernel says so at once.
        scene.host_resolvers(&["127.0.0.4"]);
        let answer = scene.dig("app", "example.org A");
        assert!(answer.contains("status: SERVFAIL"), "{answer}");
        assert_eq!(scene.server.counters().failed, 1);
    });
}

#[test]
fn root_edns_travels_to_the_server_outside() {
    in_own_namespaces(async |scene| {
        scene.container("app", DnsOptions::default()).await;
        let live = Outside::start(None, "127.0.0.3:53".parse().unwrap(), "192.0.2.1");
        scene.host_resolvers(&["127.0.0.3"]);
        scene.dig("app", "example.org A +dnssec +bufsize=1400");
        assert_eq!(live.last_edns(), Some((1400, true)));
        scene.dig("app", "example.org A +noedns");
        assert_eq!(live.last_edns(), None);
        let answer = scene.dig("app", "web A +dnssec");
        assert!(
            answer.contains("EDNS: version: 0, flags: do; udp: 4096"),
            "{answer}"
        );
    });
}

#[test]
fn root_a_containers_own_servers_are_asked_from_within_its_namespace() {
    in_own_namespaces(async |scene| {
        let options = DnsOptions {
            nameservers: vec![IpAddr::V4(Ipv4Addr::new(127, 0, 0, 5))],
            ..DnsOptions::default()
        };
        scene.container("app", options).await;
        let own = Outside::start(
            scene.netns("app"),
            "127.0.0.5:53".parse().unwrap(),
            "192.0.2.5",
        );
        let host = Outside::start(None, "127.0.0.3:53".parse().unwrap(), "192.0.2.1");
        scene.host_resolvers(&["127.0.0.3"]);
        assert_eq!(scene.dig("app", "example.org A +short"), "192.0.2.5");
        assert_eq!(scene.dig("app", "example.org A +short +tcp"), "192.0.2.5");
        assert_eq!((own.questions(), host.questions()), (2, 0));
    });
}

#[test]
fn root_a_circle_of_servers_ends() {
    in_own_namespaces(async |scene| {
        let options = DnsOptions {
            nameservers: vec![IpAddr::V4(Ipv4Addr::new(127, 0, 0, 5))],
            ..DnsOptions::default()
        };
        scene.container("app", options).await;
        // The container's own server asks the resolver, which asks the container's server.
        let circle = Outside::asking(
            scene.netns("app"),
            "127.0.0.5:53".parse().unwrap(),
            "127.0.0.11:53",
        );
        let answer = scene.dig("app", "example.org A +timeout=9 +tries=1");
        assert!(answer.contains("status: SERVFAIL"), "{answer}");
        assert!(
            (50..=300).contains(&circle.questions()),
            "{}",
            circle.questions()
        );
        assert_eq!(scene.dig("app", "web A +short"), "10.0.0.2");
    });
}

#[test]
fn root_a_changed_table_is_in_force_at_once_and_reopening_changes_nothing() {
    in_own_namespaces(async |scene| {
        scene.container("app", DnsOptions::default()).await;
        let rules = scene.inside("app", "nft list ruleset");
        scene.container("app", DnsOptions::default()).await;
        assert_eq!(scene.inside("app", "nft list ruleset"), rules);
        scene.set_vip(Ipv4Addr::new(10, 0, 0, 77));
        assert_eq!(scene.dig("app", "web A +short"), "10.0.0.77");
        scene.leave_network("app").await;
        scene.host_resolvers(&[]);
        assert!(scene.dig("app", "web A").contains("status: SERVFAIL"));
        assert_eq!(scene.server.containers().await.len(), 1);
    });
}

#[test]
fn root_a_restarted_server_answers_in_the_same_namespaces() {
    in_own_namespaces(async |mut scene| {
        scene.container("app", DnsOptions::default()).await;
        assert_eq!(scene.dig("app", "web A +short"), "10.0.0.2");
        scene.restart_server().await;
        assert_eq!(scene.dig("app", "web A +short"), "10.0.0.2");
        assert_eq!(scene.dig("app", "web A +short +tcp"), "10.0.0.2");
        let rules = scene.inside("app", "nft list ruleset");
        assert_eq!(rules.matches("dnat to").count(), 2, "{rules}");
    });
}

#[test]
fn root_another_namespace_at_the_same_path_gets_sockets_of_its_own() {
    in_own_namespaces(async |scene| {
        scene.container("app", DnsOptions::default()).await;
        scene.remake_namespace("app").await;
        scene.container("app", DnsOptions::default()).await;
        assert_eq!(scene.dig("app", "web A +short"), "10.0.0.2");
    });
}

#[test]
fn root_a_closed_container_is_not_answered_and_leaves_no_socket() {
    in_own_namespaces(async |scene| {
        scene.container("app", DnsOptions::default()).await;
        assert_eq!(scene.listening("app"), 2);
        scene.close("app").await;
        scene.until("the sockets are closed", || scene.listening("app") == 0);
        assert!(
            scene
                .dig("app", "web A +timeout=1 +tries=1")
                .contains("connection refused")
        );
        let absent = scene
            .open("nowhere", DnsOptions::default())
            .await
            .unwrap_err();
        assert!(absent.to_string().contains("nowhere"), "{absent}");
    });
}

#[test]
fn root_a_flood_of_questions_outside_is_bounded() {
    in_own_namespaces(async |scene| {
        scene.container("app", DnsOptions::default()).await;
        let _silent = std::net::UdpSocket::bind("127.0.0.2:53").unwrap();
        scene.host_resolvers(&["127.0.0.2"]);
        let failed = scene.flood("app", 300);
        assert!(failed >= 200, "{failed} were failed at once");
        assert_eq!(
            scene.dig("app", "web A +short"),
            "10.0.0.2",
            "own names are answered all the while"
        );
    });
}

#[test]
fn root_names_outlive_the_daemon_and_come_back_with_a_new_netd() {
    in_own_namespaces(async |scene| {
        let nobody = BTreeSet::new();
        let outlook = outlook(&nobody);
        scene.make_namespace("box").await;
        let container = scene.described("box", DnsOptions::default());
        let netd = scene.netd().await;
        let names = Names::new(netd.clone());
        names.open(container.clone()).await.unwrap();
        let first = state(Ipv4Addr::new(10, 0, 0, 2));
        names.update(&first, &outlook).await.unwrap();
        assert_eq!(scene.dig("box", "web A +short"), "10.0.0.2");

        // The daemon ends; the next one finds netd as it is, and says what it knows anew.
        drop((names, netd));
        assert_eq!(scene.dig("box", "web A +short"), "10.0.0.2");
        let netd = scene.netd().await;
        assert_eq!(scene.dig("box", "web A +short"), "10.0.0.2");
        let names = Names::new(netd.clone());
        names.reconcile(vec![container]).await.unwrap();
        let second = state(Ipv4Addr::new(10, 0, 0, 77));
        names.update(&second, &outlook).await.unwrap();
        assert_eq!(scene.dig("box", "web A +short"), "10.0.0.77");
        names.update(&first, &outlook).await.unwrap();
        assert_eq!(
            scene.dig("box", "web A +short"),
            "10.0.0.2",
            "by the difference alone"
        );
        assert_eq!(names.counters().await.unwrap().answered, 5);

        // Netd crashes: another one is started, and the next update tells it everything.
        let mut generation = netd.generation();
        generation.mark_unchanged();
        scene.kill_netd();
        generation.changed().await.unwrap();
        names.update(&second, &outlook).await.unwrap();
        assert_eq!(scene.dig("box", "web A +short"), "10.0.0.77");

        // What ran when the daemon ended, and runs no more, loses its resolver.
        names.reconcile(Vec::new()).await.unwrap();
        scene.until("the sockets are closed", || scene.listening("box") == 0);
        netd.stop().await.unwrap();
    });
}
