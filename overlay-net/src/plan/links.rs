//! Devices, routes, neighbours and rules for marked packets.

use super::marks::{self, KIND_MASK, OUTGOING};
use super::{AttachedInterface, Plan, PlanInput};
use crate::local::InstanceTag;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use shoal_model::network::MeshAddress;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Origin of our routes and rules, as `ip route` shows it (`proto 83`).
pub(crate) const PROTOCOL: u8 = 83;

/// Where our rules for marked packets stand: before everything but the table of local addresses.
pub(crate) const MARK_PRIORITY: u32 = 21_300;

/// Metric of the routes that end what no host has: after any other route.
const UNREACHABLE_METRIC: u32 = 4_278_198_272;

/// The hardware address of every host's end, so that a container's router never changes.
pub(crate) const CONTAINER_ROUTER_MAC: [u8; 6] = [0x02, 0x53, 0x48, 0x4f, 0x41, 0x4c];

/// `02:42:` and the four bytes of the address, as Docker does.
pub(crate) const fn container_mac(address: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = address.octets();
    [0x02, 0x42, a, b, c, d]
}

/// The hardware address of a node's end of the tunnel.
pub(crate) const fn tunnel_mac(mesh: &MeshAddress) -> [u8; 6] {
    let [a, b, c, d] = mesh.ipv4.octets();
    [0x02, 0x53, a, b, c, d]
}

/// Names of an instance's devices in the overlay.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LinkNames {
    /// WireGuard's.
    pub mesh: String,
    /// The tunnel of published ports.
    pub tunnel: String,
    /// What the names of containers' host ends begin with.
    pub container_prefix: String,
    /// What the names of all devices of the instance begin with.
    pub prefix: String,
    /// The packet filter's table.
    pub table: String,
}

impl LinkNames {
    /// The names of an instance.
    pub fn of(tag: &InstanceTag) -> Self {
        let prefix = tag.link_prefix();
        Self {
            mesh: format!("{prefix}w"),
            tunnel: format!("{prefix}x"),
            container_prefix: format!("{prefix}o"),
            table: format!("{}-net", tag.table_name()),
            prefix,
        }
    }
}

/// Where a route leads.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum RouteTarget {
    /// Out of a device.
    Device(String),
    /// To a router that is taken to be on the device.
    Router(IpAddr, String),
    /// Nowhere, and the sender is told.
    Unreachable,
}

/// A route.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    /// Where to.
    pub destination: IpNet,
    /// How.
    pub target: RouteTarget,
    /// Routing table; 254 is the main one.
    pub table: u32,
    /// Lower ones go first.
    pub metric: u32,
}

/// What the addresses of IPv6 routers in the tunnel begin with; the IPv4 address of their node follows.
const TUNNEL_ROUTERS: u128 = 0xfe80_0000_0000_0000_0000_5348_0000_0000;

/// Number of the main routing table.
const MAIN: u32 = 254;

impl Route {
    fn device(destination: IpNet, device: &str) -> Self {
        Self {
            destination,
            target: RouteTarget::Device(device.to_owned()),
            table: MAIN,
            metric: metric(&destination),
        }
    }

    fn unreachable(destination: IpNet) -> Self {
        Self {
            destination,
            target: RouteTarget::Unreachable,
            table: MAIN,
            metric: UNREACHABLE_METRIC,
        }
    }
}

/// The metric that the kernel gives a route without one.
const fn metric(destination: &IpNet) -> u32 {
    match destination {
        IpNet::V4(_) => 0,
        IpNet::V6(_) => 1024,
    }
}

/// Packets with a mark take a routing table of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct MarkRule {
    /// IPv6 packets; else IPv4.
    pub ipv6: bool,
    /// The mark, and the table's number.
    pub mark: u32,
}

/// A permanent neighbour.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Neighbour {
    /// On that device.
    pub device: String,
    /// Its address.
    pub address: IpAddr,
    /// Its hardware address.
    pub mac: [u8; 6],
}

/// Which node has a hardware address of the tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct FdbEntry {
    /// Hardware address.
    pub mac: [u8; 6],
    /// The node's address in the mesh.
    pub node: Ipv4Addr,
}

pub(super) fn add_links(input: &PlanInput<'_>, plan: &mut Plan) {
    if plan.mesh.is_some() {
        add_peers(input, plan);
    }
    for network in input.state.networks.values() {
        // What nobody has must not leave the node by its default route.
        let subnets = &network.subnets;
        plan.routes
            .insert(Route::unreachable(IpNet::V4(subnets.ipv4)));
        let ipv6 = subnets.ipv6.map(|net| Route::unreachable(IpNet::V6(net)));
        plan.routes.extend(ipv6);
    }
    for interface in input.interfaces() {
        let (routes, neighbours) = endpoint_links(interface);
        plan.routes.extend(routes);
        plan.neighbours.extend(neighbours);
    }
}

/// The host's routes to a container, and what stands in for ARP and neighbour discovery.
pub(crate) fn endpoint_links(interface: &AttachedInterface) -> (Vec<Route>, Vec<Neighbour>) {
    let endpoint = &interface.endpoint;
    let mac = container_mac(endpoint.ipv4);
    let addresses = std::iter::once(IpAddr::V4(endpoint.ipv4)).chain(endpoint.ipv6.map(IpAddr::V6));
    addresses
        .map(|address| {
            let route = Route::device(IpNet::from(address), &interface.host_link);
            let neighbour = Neighbour {
                device: interface.host_link.clone(),
                address,
                mac,
            };
            (route, neighbour)
        })
        .unzip()
}

fn add_peers(input: &PlanInput<'_>, plan: &mut Plan) {
    let mesh_device = plan.names.mesh.clone();
    let tunnel = plan.names.tunnel.clone();
    for peer in plan.peers.values() {
        let routes = peer.allowed_ips.iter();
        plan.routes
            .extend(routes.map(|net| Route::device(*net, &mesh_device)));
    }
    for node in input.others() {
        let mac = tunnel_mac(&node.mesh);
        let mark = OUTGOING | marks::number(&node.mesh);
        plan.fdb.insert(FdbEntry {
            mac,
            node: node.mesh.ipv4,
        });
        // A router of IPv6 must not have a route elsewhere; link-local addresses never have.
        let router_ipv6 =
            Ipv6Addr::from_bits(TUNNEL_ROUTERS | u128::from(node.mesh.ipv4.to_bits()));
        let addresses = [IpAddr::V4(node.mesh.ipv4), IpAddr::V6(router_ipv6)];
        for address in addresses {
            plan.neighbours.insert(Neighbour {
                device: tunnel.clone(),
                address,
                mac,
            });
            let destination = everywhere(address);
            plan.routes.insert(Route {
                destination,
                target: RouteTarget::Router(address, tunnel.clone()),
                table: mark,
                metric: metric(&destination),
            });
            let ipv6 = address.is_ipv6();
            plan.rules.insert(MarkRule { ipv6, mark });
        }
    }
}

fn everywhere(family: IpAddr) -> IpNet {
    match family {
        IpAddr::V4(_) => IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0)),
        IpAddr::V6(_) => IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 0)),
    }
}

/// Value and mask of the marks that need any of our rules.
pub(crate) const OUTGOING_MARKS: (u32, u32) = (OUTGOING, KIND_MASK);
