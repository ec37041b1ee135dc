//! Hosts as network namespaces at one switch, each with its mesh.

use ipnet::IpNet;
use nix::sched::{CloneFlags, setns};
use shoal_model::network::MeshAddress;
use shoal_model::{NodeId, Version};
use shoal_overlay_net::mesh::{MESH_MTU, Mesh, MeshOptions, MeshPeer, MeshPlan, OwnKeys};
use shoal_overlay_net::netd::{Netd, NetdOptions};
use shoal_overlay_net::{InstanceTag, WireGuardChoice};
use std::collections::BTreeMap;
use std::fs::File;
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;

/// Longest time that anything may take that is waited for.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) fn on_kernel() -> bool {
    std::env::var("SHOAL_TEST_WIREGUARD").is_ok_and(|choice| choice == "kernel")
}

pub(crate) fn ip(arguments: &str) {
    let output = Command::new("ip")
        .args(arguments.split_whitespace())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {arguments}: {said}");
}

/// What `ip` says, or nothing if it fails.
pub(crate) fn ip_says(arguments: &str) -> String {
    let output = Command::new("ip")
        .args(arguments.split_whitespace())
        .output()
        .unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Waits until `condition` holds.
#[track_caller]
pub(crate) fn eventually(
    what: &str,
    patience: Duration,
    mut condition: impl FnMut() -> bool,
) -> Duration {
    let began = Instant::now();
    while !condition() {
        assert!(
            began.elapsed() < patience,
            "{what}: not within {patience:?}"
        );
        std::thread::park_timeout(Duration::from_millis(5));
    }
    began.elapsed()
}

pub(crate) fn enter(namespace: &str) {
    let file = File::open(format!("/run/netns/{namespace}")).unwrap();
    setns(&file, CloneFlags::CLONE_NEWNET).unwrap();
}

/// Runs `work` on a thread in a namespace.
pub(crate) fn in_namespace<T: Send + 'static>(
    namespace: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> std::thread::JoinHandle<T> {
    let namespace = namespace.to_owned();
    std::thread::spawn(move || {
        enter(&namespace);
        work()
    })
}

static SCENES: AtomicU32 = AtomicU32::new(0);

/// Hosts at one switch.
pub(crate) struct Scene {
    pub(crate) switch: String,
    pub(crate) hosts: Vec<Host>,
    pub(crate) version: u64,
}

/// A host.
pub(crate) struct Host {
    pub(crate) number: u8,
    pub(crate) node: NodeId,
    pub(crate) namespace: String,
    pub(crate) mesh: Mesh,
    pub(crate) netd: Netd,
    pub(crate) dir: tempfile::TempDir,
    runtime: Option<Runtime>,
    /// Its netd is no concern of the test's end.
    pub(crate) abandoned: bool,
}

impl Scene {
    /// So many hosts, with addresses in the mesh, that do not know each other yet.
    pub(crate) fn new(hosts: u8) -> Self {
        let number = SCENES.fetch_add(1, Ordering::Relaxed);
        let prefix = format!("shm{}-{number}", std::process::id());
        let switch = format!("{prefix}-sw");
        ip(&format!("netns add {switch}"));
        ip(&format!("-n {switch} link add br0 type bridge"));
        ip(&format!("-n {switch} link set br0 up"));
        let hosts = (1..=hosts)
            .map(|host| Host::new(&switch, &format!("{prefix}-{host}"), host))
            .collect();
        Self {
            switch,
            hosts,
            version: 1,
        }
    }

    /// The plan of one host, in which it knows all others.
    pub(crate) fn plan(&self, host: usize) -> MeshPlan {
        let own = &self.hosts[host];
        let others = self.hosts.iter().filter(|other| other.node != own.node);
        let description = own.mesh.description().borrow().clone();
        MeshPlan {
            version: Version(self.version),
            own: Some(OwnKeys {
                public_key: description.public_key,
                next_key: description.next_key,
            }),
            peers: others.map(|other| (other.node, other.as_peer())).collect(),
        }
    }

    /// Tells every host of all others.
    pub(crate) fn introduce(&mut self) {
        self.version += 1;
        for host in 0..self.hosts.len() {
            self.tell(host, self.plan(host));
        }
    }

    pub(crate) fn tell(&self, host: usize, plan: MeshPlan) {
        let mesh = self.hosts[host].mesh.clone();
        let done = self.hosts[host].run(async move { mesh.set_plan(plan).await });
        done.unwrap();
    }

    /// Waits until a packet of the first gets to the second and back.
    #[track_caller]
    pub(crate) fn reach(&self, from: usize, to: usize) -> Duration {
        let target = self.hosts[to].mesh_ipv4();
        let began = Instant::now();
        while !self.pings(from, target.into()) {
            assert!(began.elapsed() < PATIENCE, "no ping: {}", self.report());
        }
        began.elapsed()
    }

    /// What all devices say, for a person.
    fn report(&self) -> String {
        let of = |host: &Host| {
            let mesh = host.mesh.clone();
            let peers = host.run(async move { mesh.peers().await });
            format!(
                "host {}: {peers:?}, dropped {:?}\n",
                host.number,
                host.drops()
            )
        };
        self.hosts.iter().map(of).collect()
    }

    pub(crate) fn pings(&self, from: usize, target: IpAddr) -> bool {
        let namespace = &self.hosts[from].namespace;
        let output = Command::new("ip")
            .args(["netns", "exec", namespace, "busybox", "ping", "-c1", "-W1"])
            .arg(target.to_string())
            .output()
            .unwrap();
        output.status.success()
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        for host in &mut self.hosts {
            host.end();
        }
        ip(&format!("netns del {}", self.switch));
    }
}

impl Host {
    fn new(switch: &str, namespace: &str, number: u8) -> Self {
        ip(&format!("netns add {namespace}"));
        ip(&format!("-n {namespace} link set lo up"));
        let port = format!("h{number}");
        ip(&format!(
            "-n {switch} link add {port} type veth peer name eth0 netns {namespace}"
        ));
        ip(&format!("-n {switch} link set {port} master br0 up"));
        ip(&format!(
            "-n {namespace} addr add 192.0.2.{number}/24 dev eth0"
        ));
        ip(&format!(
            "-n {namespace} -6 addr add 2001:db8::{number}/64 dev eth0 nodad"
        ));
        ip(&format!("-n {namespace} link set eth0 up"));
        let runtime = runtime_in(namespace);
        let dir = tempfile::tempdir().unwrap();
        let (netd, mesh) = start(&runtime, dir.path(), number).unwrap();
        let host = Self {
            number,
            node: NodeId::from_bits(u128::from(number)),
            namespace: namespace.to_owned(),
            mesh,
            netd,
            dir,
            runtime: Some(runtime),
            abandoned: false,
        };
        host.give_addresses();
        host
    }

    /// What the applier does in the product.
    pub(crate) fn give_addresses(&self) {
        let (namespace, device) = (&self.namespace, self.mesh.device());
        let (ipv4, ipv6) = (self.mesh_ipv4(), self.mesh_ipv6());
        ip(&format!(
            "-n {namespace} addr replace {ipv4}/32 dev {device}"
        ));
        ip(&format!(
            "-n {namespace} -6 addr replace {ipv6}/128 dev {device} nodad"
        ));
        ip(&format!(
            "-n {namespace} route replace 10.77.0.0/24 dev {device}"
        ));
        ip(&format!(
            "-n {namespace} -6 route replace fd77::/64 dev {device}"
        ));
    }

    pub(crate) fn mesh_ipv4(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, 0, self.number)
    }

    pub(crate) fn mesh_ipv6(&self) -> Ipv6Addr {
        Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, u16::from(self.number))
    }

    pub(crate) fn outside(&self) -> SocketAddr {
        let port = self.mesh.description().borrow().port;
        SocketAddr::from(([192, 0, 2, self.number], port))
    }

    pub(crate) fn as_peer(&self) -> MeshPeer {
        let description = self.mesh.description().borrow().clone();
        let mesh = MeshAddress {
            ipv4: self.mesh_ipv4(),
            ipv6: self.mesh_ipv6(),
        };
        MeshPeer {
            public_key: description.public_key,
            next_key: description.next_key,
            endpoints: vec![self.outside()],
            mesh,
            allowed: [
                IpNet::from(IpAddr::V4(mesh.ipv4)),
                IpNet::from(IpAddr::V6(mesh.ipv6)),
            ]
            .into(),
            relay: false,
        }
    }

    /// Runs something in the host's namespace.
    pub(crate) fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> T {
        run_on(self.runtime.as_ref().unwrap(), work)
    }

    /// The daemon dies: everything that it had in memory is gone, netd is left alone. Another one starts.
    pub(crate) fn restart_daemon(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_secs(5));
        }
        let runtime = runtime_in(&self.namespace);
        let (netd, mesh) = start(&runtime, self.dir.path(), self.number).unwrap();
        (self.netd, self.mesh, self.runtime) = (netd, mesh, Some(runtime));
    }

    /// Process of the host's netd: the one that holds its lock.
    pub(crate) fn netd_pid(&self) -> i32 {
        let socket = self.netd.socket().to_owned();
        let stream = std::os::unix::net::UnixStream::connect(socket).unwrap();
        let peer =
            nix::sys::socket::getsockopt(&stream, nix::sys::socket::sockopt::PeerCredentials);
        peer.unwrap().pid()
    }

    pub(crate) fn drops(&self) -> BTreeMap<String, u64> {
        let mesh = self.mesh.clone();
        self.run(async move { mesh.drops().await }).unwrap()
    }

    fn end(&mut self) {
        if let Some(runtime) = self.runtime.take_if(|_| self.abandoned) {
            runtime.shutdown_background();
        }
        if let Some(runtime) = self.runtime.take() {
            let (mesh, netd) = (self.mesh.clone(), self.netd.clone());
            let ended = run_on(&runtime, async move {
                mesh.leave().await.ok();
                netd.stop().await
            });
            if let Err(err) = ended {
                eprintln!("netd did not end: {}", shoal_overlay_net::netd::chain(&err));
            }
            runtime.shutdown_timeout(Duration::from_secs(5));
        }
        ip(&format!("netns del {}", self.namespace));
    }
}

/// A runtime whose threads, and so whose processes, are in the namespace.
fn runtime_in(namespace: &str) -> Runtime {
    let namespace = namespace.to_owned();
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .on_thread_start(move || enter(&namespace))
        .enable_all()
        .build()
        .unwrap()
}

fn run_on<T: Send + 'static>(
    runtime: &Runtime,
    work: impl Future<Output = T> + Send + 'static,
) -> T {
    let (sender, receiver) = std::sync::mpsc::channel();
    runtime.spawn(async move { sender.send(work.await) });
    receiver.recv_timeout(Duration::from_secs(30)).unwrap()
}

fn start(
    runtime: &Runtime,
    dir: &std::path::Path,
    number: u8,
) -> Result<(Netd, Mesh), Box<dyn std::error::Error + Send + Sync>> {
    let dir = dir.to_owned();
    run_on(runtime, async move {
        let netd = Netd::start(NetdOptions {
            exe: std::env::current_exe()?,
            run_root: dir.clone(),
            log: "debug".to_owned(),
        })
        .await?;
        let choice = if on_kernel() {
            WireGuardChoice::Kernel
        } else {
            WireGuardChoice::Userspace
        };
        let mesh = Mesh::start(MeshOptions {
            instance: InstanceTag::derive(&format!("host {number}")),
            certs_dir: dir.join("certs"),
            choice,
            port: 0,
            mtu: MESH_MTU,
            netd: netd.clone(),
        })
        .await?;
        Ok((netd, mesh))
    })
}
