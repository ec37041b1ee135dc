//! What gets through, and what does not.

use super::Test;
use super::flows::Flow;
use super::hosts::{PATIENCE, Scene, eventually, in_namespace, ip, ip_says};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

pub(crate) const TESTS: &[Test] = &[
    (
        "tcp_and_udp_of_all_sizes_get_through_in_both_families",
        sizes,
    ),
    ("a_removed_peer_is_cut_off_at_once", removed),
    (
        "replayed_and_foreign_packets_are_dropped_and_counted",
        hostile,
    ),
    ("the_device_has_the_mtu_that_it_was_given", mtu),
];

fn sizes() {
    let mut scene = Scene::new(2);
    scene.introduce();
    scene.reach(0, 1);
    let [a, b] = &scene.hosts[..] else { panic!() };
    let addresses: [IpAddr; 2] = [b.mesh_ipv4().into(), b.mesh_ipv6().into()];
    for address in addresses {
        let flow = Flow::start(a, b, address);
        flow.advance(64 << 20);
        flow.finish();
        udp(&scene, address);
    }
    // In the other direction too.
    let flow = Flow::start(b, a, a.mesh_ipv4().into());
    flow.advance(16 << 20);
    flow.finish();
}

/// Datagrams of sizes around every boundary come back as they were.
fn udp(scene: &Scene, address: IpAddr) {
    let (ready, port) = std::sync::mpsc::channel();
    let server = in_namespace(&scene.hosts[1].namespace, move || {
        let socket = UdpSocket::bind(SocketAddr::new(address, 0)).unwrap();
        ready.send(socket.local_addr().unwrap().port()).unwrap();
        let mut buffer = vec![0; 65_535];
        loop {
            let (bytes, from) = socket.recv_from(&mut buffer).unwrap();
            socket.send_to(&buffer[..bytes], from).unwrap();
            if bytes == 0 {
                return;
            }
        }
    });
    let target = SocketAddr::new(address, port.recv().unwrap());
    let client = in_namespace(&scene.hosts[0].namespace, move || {
        let any: IpAddr = if target.is_ipv4() {
            "0.0.0.0".parse().unwrap()
        } else {
            "::".parse().unwrap()
        };
        let socket = UdpSocket::bind(SocketAddr::new(any, 0)).unwrap();
        socket.connect(target).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut buffer = vec![0; 65_535];
        // 1,392 and 1,372 fill one packet; the larger ones are fragments.
        for bytes in [
            1, 2, 1_371, 1_372, 1_373, 1_391, 1_392, 1_393, 4_000, 60_000, 0,
        ] {
            let sent: Vec<u8> = (0..bytes).map(|at| (at * 7) as u8).collect();
            socket.send(&sent).unwrap();
            let got = socket.recv(&mut buffer).unwrap();
            assert_eq!(buffer[..got], sent, "{bytes} bytes");
        }
    });
    client.join().unwrap();
    server.join().unwrap();
}

fn removed() {
    let mut scene = Scene::new(2);
    scene.introduce();
    scene.reach(0, 1);
    scene.reach(1, 0);
    let mut plan = scene.plan(1);
    plan.peers.clear();
    let began = Instant::now();
    scene.tell(1, plan);
    // The other one does not know yet, and has a live session.
    let gone = began.elapsed();
    assert!(!scene.pings(0, scene.hosts[1].mesh_ipv4().into()));
    assert!(gone < Duration::from_secs(1), "{gone:?}");
    // And back again.
    scene.introduce();
    scene.reach(0, 1);
}

fn hostile() {
    let mut scene = Scene::new(2);
    scene.introduce();
    scene.reach(0, 1);
    replay(&scene);
    foreign(&scene);
}

/// Sends every encrypted frame of a ping a second time.
fn replay(scene: &Scene) {
    let port = scene.hosts[1].outside().port();
    let (ready, begun) = std::sync::mpsc::channel();
    let wire = in_namespace(&scene.switch, move || {
        let (from, to) = (packet_socket("h1"), packet_socket("h2"));
        ready.send(()).unwrap();
        let mut frame = vec![0; 2_000];
        loop {
            let bytes = nix::unistd::read(&from, &mut frame).unwrap();
            let frame = &mut frame[..bytes];
            // Ethernet 14, IPv4 20, UDP 8: a data message to the second host.
            let data = bytes > 46 && frame[12..14] == [8, 0] && frame[23] == 17 && frame[42] == 4;
            if data && frame[36..38] == port.to_be_bytes() {
                // Its checksum was left to hardware that is not there; without one it is taken as it is.
                frame[40..42].fill(0);
                nix::unistd::write(&to, frame).unwrap();
                return;
            }
        }
    });
    begun.recv().unwrap();
    let before = scene.hosts[1].drops()["replay"];
    scene.reach(0, 1);
    wire.join().unwrap();
    eventually("the replayed packet is counted", PATIENCE, || {
        scene.hosts[1].drops()["replay"] == before + 1
    });
}

fn packet_socket(link: &str) -> OwnedFd {
    use nix::sys::socket::{
        AddressFamily, LinkAddr, SockFlag, SockType, SockaddrLike, bind, socket,
    };
    let index = nix::net::if_::if_nametoindex(link).unwrap();
    let fd = socket(
        AddressFamily::Packet,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        nix::sys::socket::SockProtocol::EthAll,
    )
    .unwrap();
    // SAFETY: a sockaddr_ll is plain data for which all zeroes is valid.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    address.sll_ifindex = index as i32;
    // SAFETY: pointer and length are those of `address`.
    let address = unsafe {
        LinkAddr::from_raw(
            (&raw const address).cast(),
            Some(size_of::<libc::sockaddr_ll>() as u32),
        )
    }
    .unwrap();
    bind(fd.as_raw_fd(), &address).unwrap();
    fd
}

/// A packet from an address that is not the sender's does not get out of the device.
fn foreign(scene: &Scene) {
    let [a, b] = &scene.hosts[..] else { panic!() };
    ip(&format!("-n {} addr add 10.99.0.9/32 dev lo", a.namespace));
    ip(&format!(
        "-n {} route add 10.99.0.9/32 dev {}",
        b.namespace,
        b.mesh.device()
    ));
    let target = SocketAddr::new(b.mesh_ipv4().into(), 9);
    let before = b.drops()["foreign-source"];
    let sent = in_namespace(&a.namespace, move || {
        let socket = UdpSocket::bind("10.99.0.9:0").unwrap();
        for _ in 0..7 {
            socket.send_to(b"spoofed", target).unwrap();
        }
    });
    sent.join().unwrap();
    eventually("the spoofed packets are counted", PATIENCE, || {
        b.drops()["foreign-source"] == before + 7
    });
}

fn mtu() {
    let scene = Scene::new(1);
    let host = &scene.hosts[0];
    let shown = ip_says(&format!(
        "-n {} link show {}",
        host.namespace,
        host.mesh.device()
    ));
    assert!(
        shown.contains("mtu 1420") && shown.contains("UP"),
        "{shown}"
    );
}
