//! A host with containers, their resolver, and name servers outside.

mod outside;

pub(crate) use outside::Outside;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use shoal_model::netstate::{EndpointId, NetEndpoint, NetNetwork, NetService, NetState};
use shoal_model::network::{Endpoint, NetworkAttachment, ServiceVip, Subnets};
use shoal_model::spec::{EndpointMode, OnPartition};
use shoal_model::{ContainerId, NetworkId, NodeId, ServiceId, TaskId};
use shoal_overlay_net::dns::{
    DnsContainer, DnsError, DnsOptions, DnsServer, DnsServerOptions, DnsTable, DnsUpdate,
    resolv_conf,
};
use shoal_overlay_net::netd::{Netd, NetdOptions};
use shoal_overlay_net::netns;
use shoal_overlay_net::probe::Outlook;
use std::collections::BTreeSet;
use std::fs::File;
use std::net::{Ipv4Addr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::time::{Duration, Instant};

const BACKEND: NetworkId = NetworkId::from_bits(1);
/// How long a condition may take to come true.
const DEADLINE: Duration = Duration::from_secs(10);

pub(crate) struct Scene {
    pub(crate) server: DnsServer,
    table: Mutex<DnsTable>,
    dir: tempfile::TempDir,
}

/// Runs `body` in namespaces of its own, beside a runtime whose threads are in them too.
pub(crate) fn in_own_namespaces<F: Future<Output = ()>>(
    body: impl FnOnce(Scene) -> F + Send + 'static,
) {
    std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).expect("needs root");
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
        run("ip link set lo up");
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async { body(Scene::new()).await });
    })
    .join()
    .unwrap();
}

impl Scene {
    /// Tasks of the service `web`: more than fit into a small answer.
    pub(crate) const TASKS: usize = 40;

    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let own = dir.path().join("container-resolv.conf");
        std::fs::write(&own, resolv_conf(&DnsOptions::default())).unwrap();
        let bind = MsFlags::MS_BIND;
        mount(
            Some(&own),
            "/etc/resolv.conf",
            None::<&str>,
            bind,
            None::<&str>,
        )
        .unwrap();
        std::fs::write(dir.path().join("resolv.conf"), "").unwrap();
        let table = table(Ipv4Addr::new(10, 0, 0, 2));
        let server = started(dir.path());
        server.set_table(table.complete());
        Self {
            server,
            table: Mutex::new(table),
            dir,
        }
    }

    pub(crate) fn netns(&self, container: &str) -> Option<PathBuf> {
        Some(self.dir.path().join(container))
    }

    fn path(&self, container: &str) -> PathBuf {
        self.dir.path().join(container)
    }

    /// Makes the container's namespace if it is not there, and opens its resolver.
    pub(crate) async fn container(&self, name: &str, options: DnsOptions) {
        if !self.path(name).exists() {
            netns::create(self.path(name)).await.unwrap();
        }
        self.open(name, options).await.unwrap();
    }

    pub(crate) async fn open(&self, name: &str, options: DnsOptions) -> Result<(), DnsError> {
        let container = self.described(name, options);
        self.server.open_container(container).await
    }

    pub(crate) fn described(&self, name: &str, options: DnsOptions) -> DnsContainer {
        DnsContainer {
            id: id(name),
            netns: self.path(name),
            networks: vec![BACKEND],
            options,
        }
    }

    /// A netd of this scene, as a process of its own.
    pub(crate) async fn netd(&self) -> Netd {
        let own = std::env::current_exe().unwrap();
        let exe = own.ancestors().nth(2).unwrap().join("examples/netd");
        assert!(
            exe.exists(),
            "build it first: cargo build -p shoal-overlay-net --examples"
        );
        let options = NetdOptions {
            exe,
            run_root: self.dir.path().to_owned(),
            log: "info".to_owned(),
        };
        Netd::start(options).await.unwrap()
    }

    /// Kills the netd of this scene as a crash does.
    pub(crate) fn kill_netd(&self) {
        let run_root = self.dir.path().to_string_lossy().into_owned();
        let processes = std::fs::read_dir("/proc").unwrap().filter_map(|entry| {
            let entry = entry.unwrap();
            let pid: i32 = entry.file_name().to_string_lossy().parse().ok()?;
            let line = std::fs::read_to_string(entry.path().join("cmdline")).ok()?;
            let words: Vec<_> = line.split('\0').collect();
            (words.get(1) == Some(&"netd") && words.get(3) == Some(&&*run_root)).then_some(pid)
        });
        let pids: Vec<_> = processes.collect();
        assert_eq!(pids.len(), 1, "one netd runs");
        nix::sys::signal::kill(Pid::from_raw(pids[0]), Signal::SIGKILL).unwrap();
    }

    pub(crate) async fn make_namespace(&self, name: &str) {
        netns::create(self.path(name)).await.unwrap();
    }

    pub(crate) async fn close(&self, name: &str) {
        self.server.close_container(id(name)).await;
    }

    pub(crate) async fn leave_network(&self, name: &str) {
        let mut container = self.server.containers().await.remove(0);
        assert_eq!(container.id, id(name));
        container.networks.clear();
        self.server.open_container(container).await.unwrap();
    }

    pub(crate) async fn remake_namespace(&self, name: &str) {
        netns::delete(self.path(name)).await.unwrap();
        self.make_namespace(name).await;
    }

    pub(crate) async fn restart_server(&mut self) {
        let containers = self.server.containers().await;
        self.server = started(self.dir.path());
        self.server.set_table(self.table.lock().unwrap().complete());
        for container in containers {
            self.server.open_container(container).await.unwrap();
        }
    }

    /// Gives `web` another address, by the change alone.
    pub(crate) fn set_vip(&self, vip: Ipv4Addr) {
        let mut last = self.table.lock().unwrap();
        let now = table(vip);
        self.server.set_table(DnsUpdate {
            complete: false,
            changes: last.changes_to(&now),
        });
        *last = now;
    }

    /// Writes the host's resolv.conf.
    pub(crate) fn host_resolvers(&self, servers: &[&str]) {
        let lines = servers
            .iter()
            .map(|server| format!("nameserver {server}\n"));
        let new = self.dir.path().join("resolv.conf.new");
        std::fs::write(&new, lines.collect::<String>()).unwrap();
        std::fs::rename(&new, self.dir.path().join("resolv.conf")).unwrap();
    }

    /// What a command prints inside the container's network namespace.
    pub(crate) fn inside(&self, container: &str, command: &str) -> String {
        let netns = format!("--net={}", self.path(container).display());
        let output = Command::new("nsenter")
            .args([&netns, "sh", "-c", command])
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    pub(crate) fn dig(&self, container: &str, question: &str) -> String {
        self.dig_at(container, "127.0.0.11", question)
    }

    pub(crate) fn dig_at(&self, container: &str, server: &str, question: &str) -> String {
        self.inside(container, &format!("dig @{server} {question}"))
    }

    pub(crate) fn getent(&self, container: &str, question: &str) -> String {
        self.inside(container, &format!("getent {question}"))
    }

    /// Sockets that wait for packets or connections in the container's namespace.
    pub(crate) fn listening(&self, container: &str) -> usize {
        self.inside(container, "ss -Hlntu").lines().count()
    }

    /// Asks for `count` names outside at once, and counts the failures that come back while the rest waits.
    pub(crate) fn flood(&self, container: &str, count: u16) -> usize {
        const WAITING_MAX: u16 = 100;
        let netns = self.path(container);
        let asker = std::thread::spawn(move || {
            setns(File::open(netns).unwrap(), CloneFlags::CLONE_NEWNET).unwrap();
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            socket.connect("127.0.0.11:53").unwrap();
            socket
                .set_read_timeout(Some(Duration::from_millis(1_500)))
                .unwrap();
            let mut failures = 0;
            let mut answer = [0; 512];
            for number in 0..count {
                socket
                    .send(&outside::question(&format!("n{number}.example."), number))
                    .unwrap();
                if number >= WAITING_MAX && socket.recv(&mut answer).is_ok() && answer[3] & 15 == 2
                {
                    failures += 1;
                }
            }
            failures
        });
        asker.join().unwrap()
    }

    /// Waits until `condition` holds.
    pub(crate) fn until(&self, what: &str, condition: impl Fn() -> bool) {
        let started = Instant::now();
        while !condition() {
            assert!(started.elapsed() < DEADLINE, "not in time: {what}");
            std::thread::yield_now();
        }
    }
}

fn started(dir: &Path) -> DnsServer {
    DnsServer::start(DnsServerOptions {
        host_resolv_conf: dir.join("resolv.conf"),
    })
}

fn id(name: &str) -> ContainerId {
    let mut bytes = [0; 32];
    bytes[..name.len()].copy_from_slice(name.as_bytes());
    ContainerId::from_bytes(bytes)
}

pub(crate) fn run(command: &str) {
    let status = Command::new("sh").args(["-c", command]).status().unwrap();
    assert!(status.success(), "{command}");
}

/// How this node sees the state: nobody is suspected.
pub(crate) fn outlook(suspects: &BTreeSet<NodeId>) -> Outlook<'_> {
    Outlook {
        node_id: NodeId::from_bits(1),
        suspects,
        leased: true,
    }
}

fn table(vip: Ipv4Addr) -> DnsTable {
    DnsTable::of(&state(vip), &outlook(&BTreeSet::new()))
}

/// The network `backend` with the service `web` of [`Scene::TASKS`] tasks: slot N has 10.0.0.(100 + N).
pub(crate) fn state(vip: Ipv4Addr) -> NetState {
    let mut state = NetState::default();
    let subnets = Subnets {
        ipv4: "10.0.0.0/24".parse().unwrap(),
        gateway: Ipv4Addr::new(10, 0, 0, 1),
        range: "10.0.0.0/24".parse().unwrap(),
        ipv6: Some("fd00:0:0:1::/64".parse().unwrap()),
        gateway_ipv6: None,
    };
    let network = NetNetwork {
        id: BACKEND,
        name: "backend".to_owned(),
        subnets,
        internal: false,
        ingress: false,
        mtu: None,
    };
    state.networks.insert(BACKEND, network);
    let service = NetService {
        id: ServiceId::from_bits(1),
        name: "web".to_owned(),
        mode: EndpointMode::Vip,
        sticky_s: None,
        networks: vec![NetworkAttachment {
            network_id: BACKEND,
            aliases: Vec::new(),
        }],
        vips: vec![ServiceVip {
            network_id: BACKEND,
            ipv4: vip,
            ipv6: subnets.ipv6_of(vip),
        }],
        ports: Vec::new(),
        on_partition: OnPartition::Keep,
    };
    state.services.insert(service.id, service);
    for slot in 1..=Scene::TASKS as u8 {
        let ipv4 = Ipv4Addr::new(10, 0, 0, 100 + slot);
        let endpoint = NetEndpoint {
            id: EndpointId::Task(TaskId::from_bits(u128::from(slot))),
            node_id: NodeId::from_bits(1),
            service: Some((ServiceId::from_bits(1), u64::from(slot))),
            name: format!("web.{slot}"),
            endpoints: vec![Endpoint {
                network_id: BACKEND,
                ipv4,
                ipv6: subnets.ipv6_of(ipv4),
                aliases: Vec::new(),
            }],
            in_rotation: true,
        };
        state.endpoints.insert(endpoint.id, endpoint);
    }
    state
}
