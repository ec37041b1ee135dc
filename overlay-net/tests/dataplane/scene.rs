//! Hosts as network namespaces, each with a thread and a runtime of its own, on one wire; containers in them.

use ipnet::{IpNet, Ipv4Net};
use nix::sched::{CloneFlags, setns, unshare};
use shoal_model::netstate::{
    EndpointId, NetEndpoint, NetLease, NetNetwork, NetNode, NetRecord, NetService, NetState,
};
use shoal_model::network::{Endpoint, MeshAddress, NetworkAttachment, ServiceVip, Subnets};
use shoal_model::spec::{EndpointMode, OnPartition, PortConfig, Protocol, PublishMode};
use shoal_model::{ContainerId, NetworkId, NodeId, ServiceId, TaskId, Version};
use shoal_overlay_net::InstanceTag;
use shoal_overlay_net::apply::{DataPlane, DataPlaneOptions, InterfaceSpec, View};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc;
use std::time::Duration;

/// How long a client waits before it takes a packet for dropped.
pub(crate) const PATIENCE: Duration = Duration::from_secs(2);

type Job = Box<dyn FnOnce(&tokio::runtime::Runtime) + Send>;

/// A thread in a network namespace.
pub(crate) struct Space {
    jobs: mpsc::Sender<Job>,
    pub(crate) netns: PathBuf,
}

impl Space {
    pub(crate) fn new() -> Self {
        let (jobs, queue) = mpsc::channel::<Job>();
        let (ready, started) = mpsc::channel();
        std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("needs root");
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            let (pid, thread) = (std::process::id(), nix::unistd::gettid());
            ready
                .send(PathBuf::from(format!("/proc/{pid}/task/{thread}/ns/net")))
                .unwrap();
            for job in queue {
                job(&runtime);
            }
        });
        let netns = started.recv().unwrap();
        let space = Self { jobs, netns };
        space.sh("ip link set lo up");
        space
    }

    /// Runs `work` on the thread.
    pub(crate) fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&tokio::runtime::Runtime) -> T + Send + 'static,
    ) -> T {
        let (answer, result) = mpsc::channel();
        let job: Job = Box::new(move |runtime| answer.send(work(runtime)).unwrap());
        self.jobs.send(job).unwrap();
        result.recv().expect("the job panicked")
    }

    /// Runs a witness; answers what it prints.
    pub(crate) fn sh(&self, line: &str) -> String {
        let line = line.to_owned();
        self.run(move |_| {
            let out = Command::new("sh").args(["-c", &line]).output().unwrap();
            assert!(
                out.status.success(),
                "`{line}`: {}",
                String::from_utf8_lossy(&out.stderr)
            );
            String::from_utf8(out.stdout).unwrap()
        })
    }

    pub(crate) fn enter(&self) -> File {
        File::open(&self.netns).unwrap()
    }
}

/// Runs `work` on a thread in the namespace of `file`.
pub(crate) fn inside<T: Send + 'static>(
    file: File,
    work: impl FnOnce() -> T + Send + 'static,
) -> std::thread::JoinHandle<T> {
    std::thread::spawn(move || {
        setns(&file, CloneFlags::CLONE_NEWNET).unwrap();
        work()
    })
}

/// A host with a data plane.
pub(crate) struct Host {
    pub(crate) space: Space,
    pub(crate) plane: DataPlane,
    pub(crate) node: NetNode,
}

impl Host {
    pub(crate) fn number(&self) -> u8 {
        self.node.mesh.ipv4.octets()[3]
    }

    /// Its address on the wire.
    pub(crate) fn wire(&self) -> Ipv4Addr {
        Ipv4Addr::new(192, 168, 77, self.number())
    }

    pub(crate) fn wire6(&self) -> Ipv6Addr {
        format!("fd77::{}", self.number()).parse().unwrap()
    }

    pub(crate) fn apply(&self, view: &View) -> shoal_overlay_net::apply::Report {
        let (plane, view) = (self.plane.clone(), view.clone());
        self.space
            .run(move |runtime| runtime.block_on(plane.apply(&view)).unwrap())
    }

    pub(crate) fn drops(&self, reason: &str) -> u64 {
        let plane = self.plane.clone();
        let drops = self
            .space
            .run(move |runtime| runtime.block_on(plane.drops()).unwrap());
        drops[reason].packets
    }

    /// Attaches a container with interfaces for `endpoints`.
    pub(crate) fn attach(&self, name: u8, endpoints: &[Endpoint], state: &NetState) -> Container {
        let space = Space::new();
        let id = ContainerId::from_bytes([name; 32]);
        let mut default = true;
        let specs: Vec<InterfaceSpec> = endpoints
            .iter()
            .zip(0..)
            .map(|(endpoint, number)| {
                let network = &state.networks[&endpoint.network_id];
                let default_route = !network.internal && std::mem::take(&mut default);
                InterfaceSpec {
                    host_link: format!("{}{name}n{number}", self.plane.names().container_prefix),
                    name: format!("eth{number}"),
                    endpoint: endpoint.clone(),
                    subnets: network.subnets,
                    mtu: 1370,
                    default_route,
                }
            })
            .collect();
        let (plane, netns) = (self.plane.clone(), space.netns.clone());
        self.space
            .run(move |runtime| runtime.block_on(plane.attach(id, &netns, &specs)).unwrap());
        Container {
            id,
            space,
            endpoints: endpoints.to_vec(),
        }
    }

    pub(crate) fn detach(&self, container: &Container) {
        let (plane, id) = (self.plane.clone(), container.id);
        self.space
            .run(move |runtime| runtime.block_on(plane.detach(id)).unwrap());
    }
}

pub(crate) struct Container {
    pub(crate) id: ContainerId,
    pub(crate) space: Space,
    pub(crate) endpoints: Vec<Endpoint>,
}

impl Container {
    pub(crate) fn ip(&self) -> IpAddr {
        IpAddr::V4(self.endpoints[0].ipv4)
    }

    pub(crate) fn ip6(&self) -> IpAddr {
        IpAddr::V6(self.endpoints[0].ipv6.unwrap())
    }

    /// Serves TCP and UDP at `port` for as long as the namespace is there: each client hears this name and its own
    /// address.
    pub(crate) fn serve(&self, port: u16, name: &str) {
        let (ready, bound) = mpsc::channel();
        let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
        let tcp = (name.to_owned(), ready.clone());
        inside(self.space.enter(), move || {
            let listener = TcpListener::bind(any).unwrap();
            tcp.1.send(()).unwrap();
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let peer = stream.peer_addr().unwrap();
                let text = format!("{} {}", tcp.0, peer.ip().to_canonical());
                if stream.write_all(text.as_bytes()).is_err() {
                    continue;
                }
            }
        });
        let udp = name.to_owned();
        inside(self.space.enter(), move || {
            let socket = UdpSocket::bind(any).unwrap();
            ready.send(()).unwrap();
            let mut buffer = [0; 100];
            loop {
                let (_, peer) = socket.recv_from(&mut buffer).unwrap();
                let text = format!("{udp} {}", peer.ip().to_canonical());
                if socket.send_to(text.as_bytes(), peer).is_err() {
                    continue;
                }
            }
        });
        bound.recv().unwrap();
        bound.recv().unwrap();
    }
}

/// What a client hears: the server's name and the address that the server saw.
pub(crate) fn ask(
    from: &Space,
    to: impl Into<IpAddr>,
    port: u16,
) -> Result<(String, IpAddr), String> {
    let to = SocketAddr::new(to.into(), port);
    let heard = inside(from.enter(), move || {
        let mut stream =
            TcpStream::connect_timeout(&to, PATIENCE).map_err(|err| err.to_string())?;
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut text = String::new();
        stream
            .read_to_string(&mut text)
            .map_err(|err| err.to_string())?;
        Ok(text)
    });
    heard.join().unwrap().map(|text: String| parse(&text))
}

/// The same over UDP.
pub(crate) fn ask_udp(
    from: &Space,
    to: impl Into<IpAddr>,
    port: u16,
) -> Result<(String, IpAddr), String> {
    let to = SocketAddr::new(to.into(), port);
    let heard = inside(from.enter(), move || {
        let any: IpAddr = match to.ip() {
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let socket = UdpSocket::bind((any, 0)).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.connect(to).map_err(|err| err.to_string())?;
        socket.send(b"?").map_err(|err| err.to_string())?;
        let mut buffer = [0; 200];
        let length = socket.recv(&mut buffer).map_err(|err| err.to_string())?;
        Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
    });
    heard.join().unwrap().map(|text: String| parse(&text))
}

fn parse(text: &str) -> (String, IpAddr) {
    let (name, address) = text.split_once(' ').unwrap();
    (name.to_owned(), address.parse().unwrap())
}

/// A wire that every host and client is on.
pub(crate) struct Wire(Space);

impl Wire {
    pub(crate) fn new() -> Self {
        let space = Space::new();
        space.sh("ip link add br0 type bridge && ip link set br0 up");
        Self(space)
    }

    /// Plugs a namespace in as `eth0` with the address number `last`.
    pub(crate) fn plug(&self, space: &Space, last: u8) {
        let (own, other) = (self.thread(), space);
        own.sh(&format!(
            "ip link add p{last} type veth peer name eth0 netns {} && ip link set p{last} master br0 up",
            pin(&other.netns)
        ));
        space.sh(&format!(
            "ip link set eth0 up && ip addr add 192.168.77.{last}/24 dev eth0 && ip addr add fd77::{last}/64 dev eth0 nodad"
        ));
    }

    fn thread(&self) -> &Space {
        &self.0
    }
}

/// `ip` takes a namespace by the process that is in it: that of a thread is one too.
fn pin(netns: &Path) -> String {
    let parts: Vec<_> = netns.components().collect();
    let thread = parts[4].as_os_str().to_str().unwrap();
    thread.to_owned()
}

/// Two hosts, joined by a wire and by a device in place of WireGuard's: packets with any address pass it, as they do
/// between two peers with the right keys.
pub(crate) fn two_hosts() -> (Wire, [Host; 2]) {
    let wire = Wire::new();
    let hosts = [1, 2].map(|number| {
        let space = Space::new();
        wire.plug(&space, number);
        let node = node(number);
        let id = node.id;
        let tag = InstanceTag::derive(&format!("host-{number}"));
        let plane = space.run(move |runtime| {
            let _entered = runtime.enter();
            DataPlane::open(DataPlaneOptions {
                instance: tag,
                node_id: id,
                daemon_ports: BTreeSet::from([2377, 2378]),
                mesh_mtu: 1420,
            })
            .unwrap()
        });
        Host { space, plane, node }
    });
    let [one, two] = &hosts;
    one.space.sh(&format!(
        "ip link add {} mtu 1420 address 02:00:00:00:00:01 type veth peer name {} mtu 1420 address 02:00:00:00:00:01 netns {}",
        one.plane.names().mesh,
        two.plane.names().mesh,
        pin(&two.space.netns)
    ));
    for host in &hosts {
        let mesh = &host.plane.names().mesh;
        host.space.sh(&format!("ip link set {mesh} arp off up"));
    }
    (wire, hosts)
}

pub(crate) fn node(number: u8) -> NetNode {
    NetNode {
        id: NodeId::from_bits(number.into()),
        name: format!("host-{number}"),
        public_key: [number; 32],
        next_key: None,
        addrs: vec![
            SocketAddr::from(([192, 168, 77, number], 51820)),
            SocketAddr::new(format!("fd77::{number}").parse().unwrap(), 51820),
        ],
        mesh: MeshAddress {
            ipv4: Ipv4Addr::new(10, 99, 0, number),
            ipv6: format!("fd99::{number}").parse().unwrap(),
        },
        relay: false,
    }
}

/// Network `number` is 10.0.NUMBER.0/24.
pub(crate) fn network(number: u8, internal: bool) -> NetNetwork {
    NetNetwork {
        id: NetworkId::from_bits(number.into()),
        name: format!("net-{number}"),
        subnets: Subnets {
            ipv4: format!("10.0.{number}.0/24").parse().unwrap(),
            gateway: Ipv4Addr::new(10, 0, number, 1),
            range: format!("10.0.{number}.0/24").parse().unwrap(),
            ipv6: Some(format!("fd00:{number}::/64").parse().unwrap()),
            gateway_ipv6: Some(format!("fd00:{number}::1").parse().unwrap()),
        },
        internal,
        ingress: false,
        mtu: None,
    }
}

/// An endpoint in network `number` on host `host`: the host's block is /28 number HOST.
pub(crate) fn endpoint(number: u8, host: u8, place: u8) -> Endpoint {
    let last = host * 16 + place;
    Endpoint {
        network_id: NetworkId::from_bits(number.into()),
        ipv4: Ipv4Addr::new(10, 0, number, last),
        ipv6: Some(format!("fd00:{number}::{last:x}").parse().unwrap()),
        aliases: Vec::new(),
    }
}

pub(crate) fn lease(number: u8, host: u8) -> NetLease {
    let block: Ipv4Net = format!("10.0.{number}.{}/28", host * 16).parse().unwrap();
    NetLease {
        network_id: NetworkId::from_bits(number.into()),
        node_id: NodeId::from_bits(host.into()),
        blocks: BTreeSet::from([block]),
    }
}

/// Service `id` with a virtual address in network `number`, 10.0.NUMBER.(200 + ID).
pub(crate) fn service(id: u8, number: u8, ports: Vec<PortConfig>) -> NetService {
    let network_id = NetworkId::from_bits(number.into());
    let last = 200 + id;
    NetService {
        id: ServiceId::from_bits(id.into()),
        name: format!("svc-{id}"),
        mode: EndpointMode::Vip,
        sticky_s: None,
        networks: vec![NetworkAttachment {
            network_id,
            aliases: Vec::new(),
        }],
        vips: vec![ServiceVip {
            network_id,
            ipv4: Ipv4Addr::new(10, 0, number, last),
            ipv6: Some(format!("fd00:{number}::{last:x}").parse().unwrap()),
        }],
        ports,
        on_partition: OnPartition::Keep,
    }
}

pub(crate) fn port(protocol: Protocol, published: u16, target: u16) -> PortConfig {
    PortConfig {
        name: String::new(),
        protocol,
        target,
        published,
        mode: PublishMode::Ingress,
        addrs: Vec::<IpNet>::new(),
        allow: Vec::new(),
    }
}

/// Task `id` of a service.
pub(crate) fn task(id: u8, of: &NetService, host: u8, endpoints: &[Endpoint]) -> NetEndpoint {
    NetEndpoint {
        id: EndpointId::Task(TaskId::from_bits(id.into())),
        node_id: NodeId::from_bits(host.into()),
        service: Some((of.id, id.into())),
        name: format!("{}.{id}", of.name),
        endpoints: endpoints.to_vec(),
        in_rotation: true,
    }
}

/// Both hosts, networks 1 and 2, and an internal one, 3.
pub(crate) fn base_state() -> NetState {
    let mut state = NetState {
        version: Version(1),
        ..NetState::default()
    };
    for host in [1, 2] {
        state.put(NetRecord::Node(node(host)));
        for number in [1, 2, 3] {
            state.put(NetRecord::Lease(lease(number, host)));
        }
    }
    for number in [1, 2, 3] {
        state.put(NetRecord::Network(network(number, number == 3)));
    }
    state
}

pub(crate) fn view(state: &NetState) -> View {
    View {
        state: std::sync::Arc::new(state.clone()),
        leased: true,
        ..View::default()
    }
}
