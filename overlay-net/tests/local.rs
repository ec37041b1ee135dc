//! Local networks on the real kernel. Each test runs in a network and mount namespace of its own; needs root.

#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

use nix::sched::{CloneFlags, setns, unshare};
use shoal_overlay_net::{
    AttachSpec, BridgeSpec, InstanceTag, LocalNet, LocalNetError, LocalPlan, PortPublish, Transport,
};
use std::fs::File;
use std::future::Future;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

struct Scene {
    net: LocalNet,
    bridge: BridgeSpec,
    dir: tempfile::TempDir,
}

impl Scene {
    fn netns(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    async fn container(&self, name: &str, last: u8) -> Ipv4Addr {
        let address = Ipv4Addr::new(172, 31, 7, last);
        self.net.create_netns(&self.netns(name)).await.unwrap();
        let spec = AttachSpec {
            container: name.to_owned(),
            interface: "eth0".to_owned(),
            bridge: self.bridge.name.clone(),
            address,
            prefix_len: 24,
            gateway: Some(self.bridge.gateway),
            mac: None,
            mtu: 1500,
        };
        self.net.attach(&self.netns(name), &spec).await.unwrap();
        address
    }

    fn publish(&self, container: &str, to: Ipv4Addr, host_port: u16) -> PortPublish {
        PortPublish {
            container: container.to_owned(),
            transport: Transport::Tcp,
            host_ip: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            host_port,
            container_ip: to,
            container_port: 8080,
        }
    }
}

/// Runs `body` in namespaces of its own. Threads that the runtime starts inherit them.
fn in_own_namespaces<F: Future<Output = ()>>(body: impl FnOnce(Scene) -> F + Send + 'static) {
    std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).expect("needs root");
        let private = nix::mount::MsFlags::MS_REC | nix::mount::MsFlags::MS_PRIVATE;
        nix::mount::mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let net = LocalNet::open(InstanceTag::derive("test")).unwrap();
            let bridge = BridgeSpec {
                name: net.bridge_name("bridge"),
                network: Ipv4Addr::new(172, 31, 7, 0),
                prefix_len: 24,
                gateway: Ipv4Addr::new(172, 31, 7, 1),
                mtu: 1500,
                internal: false,
                masquerade: true,
            };
            net.ensure_bridge(bridge.clone()).await.unwrap();
            loopback_up();
            body(Scene {
                net,
                bridge,
                dir: tempfile::tempdir().unwrap(),
            })
            .await;
        });
    })
    .join()
    .unwrap();
}

fn loopback_up() {
    assert!(
        Command::new("ip")
            .args(["link", "set", "lo", "up"])
            .status()
            .unwrap()
            .success()
    );
}

/// Serves one byte string to each of `count` clients from within a namespace; answers the clients' addresses.
fn serve(
    netns: &Path,
    address: SocketAddr,
    count: usize,
) -> std::thread::JoinHandle<Vec<SocketAddr>> {
    let namespace = File::open(netns).unwrap();
    let (ready, bound) = std::sync::mpsc::channel();
    let server = std::thread::spawn(move || {
        setns(&namespace, CloneFlags::CLONE_NEWNET).unwrap();
        let listener = TcpListener::bind(address).unwrap();
        ready.send(()).unwrap();
        let mut clients = Vec::new();
        for _ in 0..count {
            let (mut stream, client) = listener.accept().unwrap();
            stream.write_all(b"here").unwrap();
            clients.push(client);
        }
        clients
    });
    bound.recv().unwrap();
    server
}

fn ask(netns: Option<PathBuf>, address: SocketAddr) -> std::io::Result<String> {
    std::thread::spawn(move || {
        if let Some(path) = netns {
            setns(File::open(path).unwrap(), CloneFlags::CLONE_NEWNET).unwrap();
        }
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(2))?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    })
    .join()
    .unwrap()
}

#[test]
fn root_published_port_answers_on_every_way_in() {
    in_own_namespaces(async |scene| {
        let web = scene.container("web", 2).await;
        scene.container("other", 3).await;
        scene
            .net
            .publish(&[scene.publish("web", web, 8000)])
            .await
            .unwrap();
        let server = serve(&scene.netns("web"), (web, 8080).into(), 5);

        let ways = [
            ("directly", None, (web, 8080)),
            ("through the gateway", None, (scene.bridge.gateway, 8000)),
            ("through loopback", None, (Ipv4Addr::LOCALHOST, 8000)),
            (
                "from a neighbour",
                Some("other"),
                (scene.bridge.gateway, 8000),
            ),
            ("from itself", Some("web"), (scene.bridge.gateway, 8000)),
        ];
        for (way, from, address) in ways {
            let answer = ask(from.map(|name| scene.netns(name)), address.into());
            assert_eq!(answer.ok().as_deref(), Some("here"), "{way}");
        }
        assert_eq!(server.join().unwrap().len(), 5);

        scene.net.unpublish("web").await.unwrap();
        assert!(ask(None, (scene.bridge.gateway, 8000).into()).is_err());
    });
}

#[test]
fn root_containers_cannot_reach_the_hosts_loopback() {
    in_own_namespaces(async |scene| {
        scene.container("evil", 2).await;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 9000)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let netns = scene.netns("evil");
        // A route to 127/8 through the gateway is what an attacker in the container would add.
        let commands = [
            "ip link set lo down",
            "ip addr flush dev lo",
            "ip route add 127.0.0.1/32 via 172.31.7.1",
            "sysctl -qw net.ipv4.conf.all.route_localnet=1",
        ];
        for command in commands {
            let nsenter = format!("--net={}", netns.display());
            let status = Command::new("nsenter")
                .arg(nsenter)
                .args(["sh", "-c", command])
                .status()
                .unwrap();
            assert!(status.success(), "{command}");
        }
        assert!(ask(Some(netns), (Ipv4Addr::LOCALHOST, 9000).into()).is_err());
        let refused = listener.accept().unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::WouldBlock);
    });
}

#[test]
fn root_a_taken_port_names_its_holder() {
    in_own_namespaces(async |scene| {
        let web = scene.container("web", 2).await;
        let other = scene.container("other", 3).await;
        scene
            .net
            .publish(&[scene.publish("web", web, 8000)])
            .await
            .unwrap();
        let error = scene
            .net
            .publish(&[scene.publish("other", other, 8000)])
            .await
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            "port 8000/tcp on 0.0.0.0 is already allocated: it is held by `web`"
        );
        let process = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 8001)).unwrap();
        let error = scene
            .net
            .publish(&[scene.publish("other", other, 8001)])
            .await
            .unwrap_err();
        assert!(
            matches!(error, LocalNetError::PortTaken { holder, .. } if holder == "another process")
        );
        drop(process);
        let chosen = scene
            .net
            .publish(&[scene.publish("other", other, 0)])
            .await
            .unwrap();
        assert_ne!(chosen[0].host_port, 0);
    });
}

#[test]
fn root_reconcile_removes_what_is_ours_and_unwanted_and_nothing_else() {
    in_own_namespaces(async |scene| {
        let web = scene.container("web", 2).await;
        scene
            .net
            .publish(&[scene.publish("web", web, 8000)])
            .await
            .unwrap();
        assert!(
            Command::new("ip")
                .args(["link", "add", "foreign", "type", "bridge"])
                .status()
                .unwrap()
                .success()
        );

        // A second daemon life on the same kernel: keeps the bridge, drops the container's link.
        let again = LocalNet::open(InstanceTag::derive("test")).unwrap();
        let plan = LocalPlan {
            bridges: vec![scene.bridge.clone()],
            ports: vec![],
        };
        again.reconcile(plan.clone(), &[]).await.unwrap();
        let links = listed("ip -o link");
        assert!(links.contains(&scene.bridge.name) && links.contains("foreign"));
        assert_eq!(links.matches("veth").count(), 0, "{links}");
        let before = listed("nft list ruleset");
        again.reconcile(plan, &[]).await.unwrap();
        assert_eq!(listed("nft list ruleset"), before);

        again.remove_everything().await.unwrap();
        assert_eq!(listed("nft list ruleset"), "");
        let links = listed("ip -o link");
        assert!(!links.contains(&scene.bridge.name) && links.contains("foreign"));
    });
}

/// What a witness program prints.
fn listed(command: &str) -> String {
    let output = Command::new("sh").args(["-c", command]).output().unwrap();
    assert!(output.status.success(), "{command}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn root_a_deleted_namespace_leaves_no_link_and_no_mount() {
    in_own_namespaces(async |scene| {
        scene.container("web", 2).await;
        scene.net.detach("web", "eth0").await.unwrap();
        scene.net.delete_netns(&scene.netns("web")).await.unwrap();
        scene.net.delete_netns(&scene.netns("web")).await.unwrap();
        assert!(
            !listed("cat /proc/self/mountinfo").contains(&scene.dir.path().display().to_string())
        );
        assert!(!scene.netns("web").exists());
    });
}

#[test]
fn root_the_machines_networks_are_its_routes_without_the_default_and_the_overlays() {
    in_own_namespaces(async |scene| {
        let own = scene.bridge.name.split('-').next().unwrap();
        for command in [
            "link add uplink type veth peer name outside".to_owned(),
            "link set uplink up".to_owned(),
            "link set outside up".to_owned(),
            "addr add 192.0.2.5/24 dev uplink".to_owned(),
            "route add default via 192.0.2.1".to_owned(),
            "route add 198.51.100.0/24 via 192.0.2.1".to_owned(),
            "route add 203.0.113.0/24 via 192.0.2.1 table 77".to_owned(),
            "addr add fd77::5/64 dev uplink nodad".to_owned(),
            format!("link add {own}w type veth peer name {own}y"),
            format!("link set {own}w up"),
            format!("link set {own}y up"),
            format!("route add 10.20.0.0/16 dev {own}w"),
        ] {
            listed(&format!("ip {command}"));
        }
        let networks = scene.net.machine_networks().await.unwrap();
        let texts: Vec<String> = networks.iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            [
                "172.31.7.0/24",
                "192.0.2.0/24",
                "198.51.100.0/24",
                "fd77::/64"
            ]
        );
    });
}
