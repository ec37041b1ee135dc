//! `mesh bench`: one and four TCP streams and UDP between two hosts, by raw link, by this device, and by Debian's
//! wireguard-go, in one run. Needs iperf3, and wireguard-go with wireguard-tools for the comparison.

use super::hosts::{Scene, eventually, in_namespace, ip};
use std::net::{IpAddr, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Length of one measurement.
const SECONDS: u32 = 5;
const ROUND_TRIPS: usize = 5_000;

pub(crate) fn run() {
    println!(
        "{:<14} {:>16} {:>9} {:>9}",
        "", "Mbit/s", "retrans.", "CPU s/Gb"
    );
    let mut scene = Scene::new(2);
    row(&scene, "raw veth", "192.0.2.2", &[]);
    scene.introduce();
    scene.reach(0, 1);
    let netds: Vec<i32> = scene
        .hosts
        .iter()
        .map(super::hosts::Host::netd_pid)
        .collect();
    for (host, pid) in scene.hosts.iter().zip(&netds) {
        println!(
            "netd {}: {} KiB resident before",
            host.number,
            resident_kib(*pid)
        );
    }
    let target = scene.hosts[1].mesh_ipv4().to_string();
    row(&scene, "shoal netd", &target, &netds);
    for (host, pid) in scene.hosts.iter().zip(&netds) {
        println!(
            "netd {}: {} KiB resident after",
            host.number,
            resident_kib(*pid)
        );
    }
    if Command::new("wireguard-go")
        .arg("--version")
        .output()
        .is_ok()
    {
        let peers = WireguardGo::start(&scene);
        row(&scene, "wireguard-go", "10.88.0.2", &peers.pids());
    }
}

fn row(scene: &Scene, name: &str, target: &str, pids: &[i32]) {
    let server = iperf(scene, 1, &["-s"]);
    let kinds: [(&str, &[&str]); 3] = [
        ("TCP, 1 stream", &[]),
        ("TCP, 4 streams", &["-P", "4"]),
        ("UDP", &["-u", "-b", "0", "-l", "1300"]),
    ];
    for (kind, options) in kinds {
        let before = cpu_seconds(pids);
        let seconds = SECONDS.to_string();
        let mut arguments = vec!["-c", target, "-t", &seconds, "-J"];
        arguments.extend(options);
        let client = iperf(scene, 0, &arguments);
        let output = client.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let sum = said
            .rfind("\"sum_received\"")
            .or_else(|| said.rfind("\"sum\""));
        let received = &said[sum.unwrap_or(0)..];
        let bits = number_after(received, "\"bits_per_second\":");
        let again = number_after(
            &said[said.rfind("\"sum_sent\"").unwrap_or(0)..],
            "\"retransmits\":",
        );
        let cpu = (cpu_seconds(pids) - before) / (bits * f64::from(SECONDS) / 1e9);
        println!(
            "{name:<13} {kind:<15} {:>8.0} {again:>9.0} {cpu:>9.2}",
            bits / 1e6
        );
    }
    stop(server);
    let (p50, p99) = round_trips(scene, target.parse().unwrap());
    println!("{name:<13} round trip p50 {p50:?}, p99 {p99:?}");
}

fn number_after(text: &str, key: &str) -> f64 {
    let Some(at) = text.find(key) else { return 0.0 };
    let rest = text[at + key.len()..].trim_start();
    let end = rest.find([',', '\n', '}']).unwrap_or(rest.len());
    rest[..end].trim().parse().unwrap_or(0.0)
}

fn iperf(scene: &Scene, host: usize, arguments: &[&str]) -> Child {
    let namespace = &scene.hosts[host].namespace;
    let child = Command::new("ip")
        .args(["netns", "exec", namespace, "iperf3"])
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    if arguments == ["-s"] {
        eventually("iperf3 listens", Duration::from_secs(5), || {
            super::hosts::ip_says(&format!("netns exec {namespace} ss -ltn")).contains(":5201")
        });
    }
    child
}

fn stop(mut child: Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

/// Median and 99th percentile of small datagrams there and back.
fn round_trips(scene: &Scene, target: IpAddr) -> (Duration, Duration) {
    let (ready, port) = std::sync::mpsc::channel();
    let server = in_namespace(&scene.hosts[1].namespace, move || {
        let socket = UdpSocket::bind((target, 0)).unwrap();
        ready.send(socket.local_addr().unwrap().port()).unwrap();
        let mut buffer = [0; 64];
        for _ in 0..ROUND_TRIPS {
            let (bytes, from) = socket.recv_from(&mut buffer).unwrap();
            socket.send_to(&buffer[..bytes], from).unwrap();
        }
    });
    let port = port.recv().unwrap();
    let client = in_namespace(&scene.hosts[0].namespace, move || {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.connect((target, port)).unwrap();
        let mut times = Vec::with_capacity(ROUND_TRIPS);
        for _ in 0..ROUND_TRIPS {
            let began = Instant::now();
            socket.send(&[0; 32]).unwrap();
            socket.recv(&mut [0; 64]).unwrap();
            times.push(began.elapsed());
        }
        times.sort();
        (times[ROUND_TRIPS / 2], times[ROUND_TRIPS * 99 / 100])
    });
    server.join().unwrap();
    client.join().unwrap()
}

/// CPU time of processes so far.
fn cpu_seconds(pids: &[i32]) -> f64 {
    let ticks: u64 = pids
        .iter()
        .filter_map(|pid| std::fs::read_to_string(format!("/proc/{pid}/stat")).ok())
        .map(|stat| {
            let after = &stat[stat.rfind(')').unwrap_or(0)..];
            let fields: Vec<&str> = after.split_whitespace().collect();
            fields[12].parse::<u64>().unwrap() + fields[13].parse::<u64>().unwrap()
        })
        .sum();
    ticks as f64 / 100.0
}

fn resident_kib(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

struct WireguardGo(Vec<Child>);

impl WireguardGo {
    fn start(scene: &Scene) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let children = [0, 1].map(|host| {
            let namespace = &scene.hosts[host].namespace;
            let name = format!("wgo{}-{host}", std::process::id() % 10_000);
            let child = Command::new("ip")
                .args(["netns", "exec", namespace, "wireguard-go", "-f", &name])
                .env("LOG_LEVEL", "error")
                .stdout(Stdio::null())
                .spawn()
                .unwrap();
            eventually("wireguard-go's device", Duration::from_secs(5), || {
                super::hosts::ip_says(&format!("-n {namespace} link show {name}")).contains(&name)
            });
            let wg = |arguments: &str| {
                let output = Command::new("ip")
                    .args(["netns", "exec", namespace])
                    .args(arguments.split_whitespace())
                    .output()
                    .unwrap();
                assert!(output.status.success(), "{arguments}");
                String::from_utf8_lossy(&output.stdout).trim().to_owned()
            };
            let key = dir.path().join(format!("key{host}"));
            std::fs::write(&key, wg("wg genkey")).unwrap();
            wg(&format!(
                "wg set {name} private-key {} listen-port 5182{host}",
                key.display()
            ));
            ip(&format!(
                "-n {namespace} addr add 10.88.0.{}/24 dev {name}",
                host + 1
            ));
            ip(&format!("-n {namespace} link set {name} mtu 1420 up"));
            let public = wg(&format!("wg show {name} public-key"));
            (child, name, public)
        });
        for (host, other) in [(0, 1), (1, 0)] {
            let (name, public) = (&children[host].1, &children[other].2);
            let namespace = &scene.hosts[host].namespace;
            ip(&format!(
                "netns exec {namespace} wg set {name} peer {public} allowed-ips 10.88.0.0/24 endpoint \
                 192.0.2.{}:5182{other}",
                other + 1
            ));
        }
        Self(children.into_iter().map(|(child, ..)| child).collect())
    }

    fn pids(&self) -> Vec<i32> {
        self.0.iter().map(|child| child.id() as i32).collect()
    }
}

impl Drop for WireguardGo {
    fn drop(&mut self) {
        for child in self.0.drain(..) {
            stop(child);
        }
    }
}
