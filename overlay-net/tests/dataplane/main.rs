//! The data plane on the real kernel: two hosts as network namespaces; needs root.

#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod scene;

use scene::{
    Container, Host, PATIENCE, Space, Wire, ask, ask_udp, base_state, endpoint, inside, port,
    service, task, two_hosts, view,
};
use shoal_model::netstate::{EndpointId, NetRecord, NetState};
use shoal_model::spec::{OnPartition, Protocol};
use shoal_model::{NodeId, TaskId};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

/// Both hosts with a container each in network 1, which serve `svc-1` at 8080, published at 80.
struct Web {
    wire: Wire,
    hosts: [Host; 2],
    state: NetState,
    backends: [Container; 2],
}

impl Web {
    fn new() -> Self {
        let (wire, hosts) = two_hosts();
        let mut state = base_state();
        let ports = vec![port(Protocol::Tcp, 80, 8080), port(Protocol::Udp, 80, 8080)];
        let web = service(1, 1, ports);
        for host in [1, 2] {
            let task = task(host, &web, host, &[endpoint(1, host, 2)]);
            state.put(NetRecord::Endpoint(task));
        }
        state.put(NetRecord::Service(web));
        for host in &hosts {
            host.apply(&view(&state));
        }
        let backends = [0, 1].map(|index: usize| {
            let host = &hosts[index];
            let number = host.number();
            let container = host.attach(number, &[endpoint(1, number, 2)], &state);
            container.serve(8080, &format!("web-{number}"));
            container
        });
        Self {
            wire,
            hosts,
            state,
            backends,
        }
    }

    fn client(&self, network: u8, host: u8) -> Container {
        let endpoints = [endpoint(network, host, 5)];
        self.hosts[usize::from(host) - 1].attach(50 + network, &endpoints, &self.state)
    }

    fn apply(&self) {
        for host in &self.hosts {
            host.apply(&view(&self.state));
        }
    }

    fn set_rotation(&mut self, task: u8, in_rotation: bool) {
        let id = EndpointId::Task(TaskId::from_bits(task.into()));
        self.state.endpoints.get_mut(&id).unwrap().in_rotation = in_rotation;
        self.apply();
    }

    /// A machine on the wire, without any part in the cluster.
    fn outsider(&self) -> Space {
        let client = Space::new();
        self.wire.plug(&client, 9);
        client
    }
}

fn vip() -> [IpAddr; 2] {
    ["10.0.1.201".parse().unwrap(), "fd00:1::c9".parse().unwrap()]
}

fn spread(mut answer: impl FnMut() -> String, count: usize) -> BTreeMap<String, usize> {
    let mut heard = BTreeMap::new();
    for _ in 0..count {
        *heard.entry(answer()).or_default() += 1;
    }
    heard
}

#[test]
fn containers_reach_each_other_across_hosts() {
    let web = Web::new();
    let client = web.client(1, 1);
    for backend in &web.backends {
        for (address, own) in [(backend.ip(), client.ip()), (backend.ip6(), client.ip6())] {
            let (_, seen) = ask(&client.space, address, 8080).unwrap();
            assert_eq!(seen, own);
            let (_, seen) = ask_udp(&client.space, address, 8080).unwrap();
            assert_eq!(seen, own);
        }
    }
}

#[test]
fn a_virtual_address_spreads_connections_over_all_backends() {
    let web = Web::new();
    let client = web.client(1, 1);
    for vip in vip() {
        let heard = spread(|| ask(&client.space, vip, 8080).unwrap().0, 60);
        assert_eq!(heard.len(), 2, "{heard:?}");
        assert!(heard.values().all(|count| *count > 12), "{heard:?}");
        let heard = spread(|| ask_udp(&client.space, vip, 8080).unwrap().0, 30);
        assert_eq!(heard.len(), 2, "{heard:?}");
    }
}

#[test]
fn a_backend_reaches_itself_by_its_own_virtual_address() {
    let mut web = Web::new();
    web.set_rotation(2, false);
    for vip in vip() {
        let (name, seen) = ask(&web.backends[0].space, vip, 8080).unwrap();
        assert_eq!(name, "web-1");
        assert!(
            seen.to_string().ends_with('1'),
            "the router's address: {seen}"
        );
        ask_udp(&web.backends[0].space, vip, 8080).unwrap();
    }
    // And by a published port of its own host.
    let wire = web.hosts[0].wire();
    assert_eq!(ask(&web.backends[0].space, wire, 80).unwrap().0, "web-1");
}

#[test]
fn a_published_port_of_any_host_leads_to_any_backend_which_sees_the_client() {
    let mut web = Web::new();
    let outsider = web.outsider();
    let own: [IpAddr; 2] = ["192.168.77.9".parse().unwrap(), "fd77::9".parse().unwrap()];
    for host in &web.hosts {
        let doors = [IpAddr::V4(host.wire()), IpAddr::V6(host.wire6())];
        for (door, own) in doors.into_iter().zip(own) {
            let heard = spread(
                || {
                    let (name, seen) = ask(&outsider, door, 80).unwrap();
                    assert_eq!(seen, own, "through {door} to {name}");
                    name
                },
                30,
            );
            assert_eq!(heard.len(), 2, "{heard:?}");
            let (_, seen) = ask_udp(&outsider, door, 80).unwrap();
            assert_eq!(seen, own);
        }
    }
    // Through a host without a backend.
    web.set_rotation(1, false);
    for _ in 0..5 {
        let (name, seen) = ask(&outsider, web.hosts[0].wire(), 80).unwrap();
        assert_eq!((name.as_str(), seen), ("web-2", own[0]));
        let (name, seen) = ask(&outsider, web.hosts[0].wire6(), 80).unwrap();
        assert_eq!((name.as_str(), seen), ("web-2", own[1]));
        let (name, seen) = ask_udp(&outsider, web.hosts[0].wire(), 80).unwrap();
        assert_eq!((name.as_str(), seen), ("web-2", own[0]));
    }
}

#[test]
fn hosts_and_containers_reach_published_ports_too() {
    let mut web = Web::new();
    web.set_rotation(1, false);
    let [one, two] = &web.hosts;
    // The host itself, by every address of its own; the backend is on the other one.
    let loopback: IpAddr = "127.0.0.1".parse().unwrap();
    assert_eq!(ask(&one.space, loopback, 80).unwrap().0, "web-2");
    assert_eq!(ask(&one.space, one.wire(), 80).unwrap().0, "web-2");
    assert_eq!(ask_udp(&one.space, one.wire(), 80).unwrap().0, "web-2");
    assert_eq!(ask_udp(&one.space, loopback, 80).unwrap().0, "web-2");
    // The backend's own host, by the other one's door and by its own.
    assert_eq!(ask(&two.space, one.wire(), 80).unwrap().0, "web-2");
    assert_eq!(ask(&two.space, one.wire6(), 80).unwrap().0, "web-2");
    assert_eq!(ask(&two.space, loopback, 80).unwrap().0, "web-2");
    // Containers of another network, by either host.
    for host in [1, 2] {
        let client = web.client(2, host);
        for door in &web.hosts {
            assert_eq!(ask(&client.space, door.wire(), 80).unwrap().0, "web-2");
        }
    }
}

#[test]
fn networks_are_isolated() {
    let web = Web::new();
    let stranger = web.client(2, 1);
    let before = web.hosts[0].drops("isolation");
    for backend in &web.backends {
        assert!(ask(&stranger.space, backend.ip(), 8080).is_err());
        assert!(ask(&stranger.space, backend.ip6(), 8080).is_err());
    }
    for vip in vip() {
        assert!(ask(&stranger.space, vip, 8080).is_err());
    }
    assert!(web.hosts[0].drops("isolation") > before);
    // Hosts' addresses in the mesh, and their daemons' ports.
    let mesh = IpAddr::V4(web.hosts[1].node.mesh.ipv4);
    for host in &web.hosts {
        host.space.sh("true");
        let listener = Container {
            id: stranger.id,
            space: clone_of(&host.space),
            endpoints: Vec::new(),
        };
        listener.serve(2377, "daemon");
    }
    assert!(ask(&stranger.space, mesh, 2377).is_err());
    assert!(ask_udp(&stranger.space, mesh, 2377).is_err());
    assert!(ask_udp(&stranger.space, web.hosts[0].wire(), 2377).is_err());
    assert!(ask_udp(&stranger.space, web.hosts[1].wire(), 2377).is_err());
    assert!(web.hosts[0].drops("mesh_address") > 0);
    assert!(web.hosts[0].drops("daemon_port") > 0);
    // The outside reaches nothing that is not published.
    let outsider = web.outsider();
    outsider.sh(&format!(
        "ip route add 10.0.0.0/8 via {}",
        web.hosts[0].wire()
    ));
    assert!(ask(&outsider, web.backends[0].ip(), 8080).is_err());
    assert!(web.hosts[0].drops("unpublished") > 0);
}

/// Another view of the same namespace.
fn clone_of(space: &Space) -> Space {
    let file = space.enter();
    let other = Space::new();
    other.run(move |_| {
        nix::sched::setns(&file, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
    });
    other
}

/// Sends a datagram in the name of an address.
fn send_as(from: &Space, source: &str, to: &str) {
    let (source, to): (IpAddr, IpAddr) = (source.parse().unwrap(), to.parse().unwrap());
    let sent = inside(from.enter(), move || {
        let socket = std::net::UdpSocket::bind((source, 0)).unwrap();
        socket.send_to(b"?", (to, 9)).unwrap();
    });
    sent.join().unwrap();
}

#[test]
fn forged_sources_are_dropped_and_counted() {
    let web = Web::new();
    let client = web.client(1, 1);
    client
        .space
        .sh("ip addr add 10.0.1.18/32 dev lo && ip addr add fd00:1::12/128 dev lo nodad");
    assert_eq!(web.hosts[0].drops("spoofed"), 0);
    send_as(&client.space, "10.0.1.18", "10.0.1.34");
    let first = web.hosts[0].drops("spoofed");
    assert!(first > 0);
    send_as(&client.space, "fd00:1::12", "fd00:1::22");
    assert!(web.hosts[0].drops("spoofed") > first);
    // And from the wire, in the name of a container.
    let outsider = web.outsider();
    outsider.sh(&format!(
        "ip addr add 10.0.1.40/32 dev lo && ip route add 10.0.1.18/32 via {}",
        web.hosts[0].wire()
    ));
    send_as(&outsider, "10.0.1.40", "10.0.1.18");
    assert!(web.hosts[0].drops("foreign_source") > 0);
}

#[test]
fn internal_networks_have_no_way_out_and_others_have() {
    let web = Web::new();
    let outsider = web.outsider();
    let listener = Container {
        id: web.backends[0].id,
        space: clone_of(&outsider),
        endpoints: Vec::new(),
    };
    listener.serve(7000, "world");
    let free = web.client(2, 1);
    let (name, seen) = ask(&free.space, "192.168.77.9".parse::<IpAddr>().unwrap(), 7000).unwrap();
    assert_eq!(
        (name.as_str(), seen),
        ("world", IpAddr::V4(web.hosts[0].wire()))
    );
    let (_, seen) = ask(&free.space, "fd77::9".parse::<IpAddr>().unwrap(), 7000).unwrap();
    assert_eq!(seen, IpAddr::V6(web.hosts[0].wire6()));
    let shut = web.client(3, 1);
    assert!(ask(&shut.space, "192.168.77.9".parse::<IpAddr>().unwrap(), 7000).is_err());
    shut.space.sh("ip route add default via 10.0.3.1 dev eth0");
    assert!(ask(&shut.space, "192.168.77.9".parse::<IpAddr>().unwrap(), 7000).is_err());
    assert!(web.hosts[0].drops("internal") > 0);
}

#[test]
fn a_service_without_backends_refuses_at_once() {
    let mut web = Web::new();
    web.set_rotation(1, false);
    web.set_rotation(2, false);
    let client = web.client(1, 1);
    let outsider = web.outsider();
    for (from, to, port) in [
        (&client.space, vip()[0], 8080),
        (&client.space, vip()[1], 8080),
        (&outsider, IpAddr::V4(web.hosts[0].wire()), 80),
        (&web.hosts[0].space, IpAddr::V4(web.hosts[0].wire()), 80),
    ] {
        let refused = ask(from, to, port).unwrap_err();
        assert!(refused.contains("refused"), "{to}: {refused}");
        let refused = ask_udp(from, to, port).unwrap_err();
        // A host's own packet does not even leave the socket.
        let heard = refused.contains("refused") || refused.contains("not permitted");
        assert!(heard, "{to}: {refused}");
    }
    assert!(web.hosts[0].drops("refused") > 0);
}

#[test]
fn ports_are_published_where_and_for_whom_the_user_says() {
    let mut web = Web::new();
    let service = web.state.services.values_mut().next().unwrap();
    service.ports[0].addrs = vec!["192.168.77.1/32".parse().unwrap()];
    service.ports[1].allow = vec![
        "192.168.77.9/32".parse().unwrap(),
        "192.168.0.0/16".parse().unwrap(),
    ];
    web.apply();
    let outsider = web.outsider();
    ask(&outsider, web.hosts[0].wire(), 80).unwrap();
    assert!(ask(&outsider, web.hosts[1].wire(), 80).is_err());
    assert!(ask(&outsider, web.hosts[0].wire6(), 80).is_err());
    let loopback: IpAddr = "127.0.0.1".parse().unwrap();
    assert!(ask(&web.hosts[0].space, loopback, 80).is_err());
    ask_udp(&outsider, web.hosts[1].wire(), 80).unwrap();
    assert!(ask_udp(&outsider, web.hosts[1].wire6(), 80).is_err());
    assert!(web.hosts[1].drops("not_allowed") > 0);
}

#[test]
fn sticky_clients_stay_with_their_backend() {
    let mut web = Web::new();
    web.state.services.values_mut().next().unwrap().sticky_s = Some(60);
    web.apply();
    let client = web.client(1, 1);
    for vip in vip() {
        let heard = spread(|| ask(&client.space, vip, 8080).unwrap().0, 20);
        assert_eq!(heard.len(), 1, "{heard:?}");
    }
    // Its backend leaves: it goes to another one, and stays there when the first comes back.
    let (first, _) = ask(&client.space, vip()[0], 8080).unwrap();
    let left = if first == "web-1" { 1 } else { 2 };
    web.set_rotation(left, false);
    let (second, _) = ask(&client.space, vip()[0], 8080).unwrap();
    assert_ne!(first, second);
    web.set_rotation(left, true);
    let heard = spread(|| ask(&client.space, vip()[0], 8080).unwrap().0, 20);
    assert_eq!(heard, BTreeMap::from([(second, 20)]));
}

#[test]
fn suspects_get_nothing_and_a_lost_lease_stops_what_must_stop() {
    let mut web = Web::new();
    let client = web.client(1, 1);
    let mut sees = view(&web.state);
    sees.suspects = Arc::new(BTreeSet::from([NodeId::from_bits(2)]));
    web.hosts[0].apply(&sees);
    let heard = spread(|| ask(&client.space, vip()[0], 8080).unwrap().0, 15);
    assert_eq!(heard.keys().collect::<Vec<_>>(), ["web-1"]);
    // `keep`: a lost lease changes nothing.
    let mut sees = view(&web.state);
    sees.leased = false;
    assert!(!web.hosts[0].apply(&sees).is_empty());
    assert!(web.hosts[0].apply(&sees).is_empty());
    let heard = spread(|| ask(&client.space, vip()[0], 8080).unwrap().0, 30);
    assert_eq!(heard.len(), 2);
    web.state.services.values_mut().next().unwrap().on_partition = OnPartition::Stop;
    let mut sees = view(&web.state);
    sees.leased = false;
    web.hosts[0].apply(&sees);
    let heard = spread(|| ask(&client.space, vip()[0], 8080).unwrap().0, 15);
    assert_eq!(heard.keys().collect::<Vec<_>>(), ["web-1"]);
}

#[test]
fn datagrams_leave_a_backend_that_rests_and_connections_one_that_is_gone() {
    use std::io::{Read, Write};
    let mut web = Web::new();
    web.set_rotation(2, false);
    let client = web.client(1, 2);
    let (talk, talked) = std::sync::mpsc::channel::<()>();
    let (heard, hear) = std::sync::mpsc::channel();
    let to = vip()[0];
    let talker = inside(client.space.enter(), move || {
        let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.connect((to, 8080)).unwrap();
        for () in talked {
            let mut buffer = [0; 100];
            socket.send(b"?").unwrap();
            let length = socket.recv(&mut buffer).unwrap();
            heard.send(buffer[..length].to_vec()).unwrap();
        }
    });
    let say = || {
        talk.send(()).unwrap();
        String::from_utf8(hear.recv().unwrap()).unwrap()
    };
    assert!(say().starts_with("web-1"));
    // A connection that stays open to a server that waits for it to end.
    let server = web.backends[0].space.enter();
    let (ready, listening) = std::sync::mpsc::channel();
    let held = inside(server, move || {
        let listener = std::net::TcpListener::bind("0.0.0.0:9000").unwrap();
        ready.send(()).unwrap();
        let (mut stream, _) = listener.accept().unwrap();
        let mut text = [0; 2];
        stream.read_exact(&mut text).unwrap();
        stream.write_all(&text).unwrap();
    });
    listening.recv().unwrap();
    let open = inside(client.space.enter(), move || {
        std::net::TcpStream::connect((to, 9000)).unwrap()
    });
    let mut open = open.join().unwrap();
    web.set_rotation(2, true);
    web.set_rotation(1, false);
    assert!(say().starts_with("web-2"), "the same socket goes elsewhere");
    open.write_all(b"ok").unwrap();
    let mut text = [0; 2];
    open.read_exact(&mut text).unwrap();
    assert_eq!(&text, b"ok", "an open connection comes to its end");
    held.join().unwrap();
    drop(talk);
    talker.join().unwrap();
    // Gone for good: the connection is forgotten.
    let id = EndpointId::Task(TaskId::from_bits(1));
    web.state.endpoints.remove(&id);
    let report = web.hosts[1].apply(&view(&web.state));
    assert!(report.connections_forgotten > 0, "{report:?}");
}

#[test]
fn applying_twice_changes_nothing_and_removal_leaves_nothing() {
    let web = Web::new();
    let client = web.client(1, 1);
    for host in &web.hosts {
        let again = host.apply(&view(&web.state));
        assert!(again.is_empty(), "{again:?}");
    }
    // What others removed comes back.
    let host = &web.hosts[0];
    let names = host.plane.names().clone();
    host.space
        .sh(&format!("nft delete table inet {}", names.table));
    host.space.sh(&format!("ip link del {}", names.tunnel));
    host.space.sh("ip route flush proto 83");
    assert!(!host.apply(&view(&web.state)).is_empty());
    assert!(host.apply(&view(&web.state)).is_empty());
    assert!(ask(&client.space, web.backends[1].ip(), 8080).is_ok());
    host.detach(&client);
    let again = host.apply(&view(&web.state));
    assert!(again.is_empty(), "{again:?}");
    let plane = host.plane.clone();
    host.space
        .run(move |runtime| runtime.block_on(plane.remove_everything()).unwrap());
    assert_eq!(host.space.sh("nft list ruleset"), "");
    assert_eq!(host.space.sh("ip route show table all proto 83"), "");
    assert_eq!(host.space.sh("ip -6 route show table all proto 83"), "");
    assert_eq!(
        host.space.sh("ip rule show | grep -c '0x5310' || true"),
        "0\n"
    );
    let links = host.space.sh("ip -o link");
    let left: Vec<&str> = links
        .lines()
        .filter(|line| line.contains(&names.prefix) && !line.contains(&names.mesh))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

/// Prints how long the kernel takes; `--nocapture` shows it.
#[test]
fn a_thousand_services_of_ten_tasks_change_one_by_one() {
    use shoal_model::netstate::{NetEndpoint, NetService};
    let (_wire, hosts) = two_hosts();
    let mut state = base_state();
    let network = service(1, 1, Vec::new()).networks[0].network_id;
    let large = state.networks.get_mut(&network).unwrap();
    large.subnets.ipv4 = "10.128.0.0/9".parse().unwrap();
    let address = |number: u32| std::net::Ipv4Addr::from(0x0a80_0000 + number);
    for number in 0..1_000_u32 {
        let mut web: NetService = service(1, 1, Vec::new());
        web.id = shoal_model::ServiceId::from_bits(number.into());
        web.ports = vec![port(Protocol::Tcp, 10_000 + number as u16, 80)];
        web.vips[0].ipv4 = address(100_000 + number);
        web.vips[0].ipv6 = None;
        for slot in 0..10 {
            let mut end = endpoint(1, 1, 1);
            end.ipv4 = address(number * 10 + slot);
            end.ipv6 = None;
            let host = 1 + (slot % 2) as u8;
            let mut member: NetEndpoint = task(1, &web, host, &[end]);
            member.id = EndpointId::Task(TaskId::from_bits(u128::from(number * 10 + slot)));
            state.put(NetRecord::Endpoint(member));
        }
        state.put(NetRecord::Service(web));
    }
    let started = std::time::Instant::now();
    hosts[0].apply(&view(&state));
    println!(
        "1,000 services x 10 tasks from nothing: {:?}",
        started.elapsed()
    );
    let id = EndpointId::Task(TaskId::from_bits(5_005));
    state.endpoints.get_mut(&id).unwrap().in_rotation = false;
    let started = std::time::Instant::now();
    let report = hosts[0].apply(&view(&state));
    println!("one task leaves: {:?}", started.elapsed());
    assert!(report.filter_changed && report.link_changes == 0);
    let again = hosts[0].apply(&view(&state));
    assert!(again.is_empty(), "{again:?}");
    let started = std::time::Instant::now();
    let one = hosts[0].attach(9, &[endpoint(2, 1, 5)], &state);
    println!("attach, with a new namespace: {:?}", started.elapsed());
    hosts[0].detach(&one);
    assert!(started.elapsed() < std::time::Duration::from_secs(60));
}
