//! The interfaces of a container.
//!
//! A container's address is a /32 (and a /128) without neighbours: everything it sends goes to its router, whose
//! hardware address is fixed, and every host is that router. So there is no ARP and no neighbour discovery, neither
//! inside nor outside.

use super::kernel::{Kernel, add_neighbour, add_route};
use super::{ApplyError, settings};
use crate::local::links::{delete, index_of, link_error};
use crate::local::{LocalNetError, netns};
use crate::plan::{
    AttachedInterface, CONTAINER_ROUTER_MAC, Neighbour, Route, RouteTarget, container_mac,
    endpoint_links,
};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags};
use rtnetlink::packet_route::link::{InfoData, InfoVeth};
use rtnetlink::{Handle, LinkMessageBuilder, LinkUnspec, LinkVeth};
use shoal_model::network::{Endpoint, Subnets};
use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd;
use std::path::Path;

/// An interface that a container gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InterfaceSpec {
    /// Name of the host's end.
    pub host_link: String,
    /// Name inside, `eth0`.
    pub name: String,
    /// Its addresses.
    pub endpoint: Endpoint,
    /// The network's addresses.
    pub subnets: Subnets,
    /// MTU in bytes.
    pub mtu: u32,
    /// It is the container's way out.
    pub default_route: bool,
}

impl InterfaceSpec {
    pub(super) fn attached(&self) -> AttachedInterface {
        AttachedInterface {
            host_link: self.host_link.clone(),
            endpoint: self.endpoint.clone(),
        }
    }

    /// Hardware address inside.
    pub const fn mac(&self) -> [u8; 6] {
        container_mac(self.endpoint.ipv4)
    }

    /// Its addresses, each with its router and its network.
    fn families(&self) -> impl Iterator<Item = (IpAddr, IpAddr, IpNet)> {
        let subnets = self.subnets;
        let ipv4 = (
            IpAddr::V4(self.endpoint.ipv4),
            IpAddr::V4(subnets.gateway),
            IpNet::V4(subnets.ipv4.trunc()),
        );
        let ipv6 = match (self.endpoint.ipv6, subnets.gateway_ipv6, subnets.ipv6) {
            (Some(address), Some(gateway), Some(net)) => Some((
                IpAddr::V6(address),
                IpAddr::V6(gateway),
                IpNet::V6(net.trunc()),
            )),
            _ => None,
        };
        std::iter::once(ipv4).chain(ipv6)
    }
}

/// Makes the interfaces, in both namespaces. On a failure some may be left.
pub(super) async fn make(
    kernel: &Kernel,
    netns_path: &Path,
    interfaces: &[InterfaceSpec],
) -> Result<(), ApplyError> {
    let namespace = File::open(netns_path).map_err(|err| LocalNetError::Namespace {
        action: "enter",
        path: netns_path.to_owned(),
        err,
    })?;
    let inside = async {
        let connected = netns::connect_in(netns_path.to_owned()).await;
        connected.map_err(ApplyError::Links)
    };
    let outside = async {
        for spec in interfaces {
            make_pair(kernel, &namespace, spec).await?;
        }
        Ok(())
    };
    let (inside, ()) = futures_util::try_join!(inside, outside)?;
    for spec in interfaces {
        configure(&inside, spec).await?;
    }
    Ok(())
}

/// The pair of links, and the host's side of it.
async fn make_pair(
    kernel: &Kernel,
    namespace: &File,
    spec: &InterfaceSpec,
) -> Result<(), ApplyError> {
    let netlink = kernel.netlink();
    if let Some(index) = index_of(netlink, &spec.host_link).await? {
        // Of the container's last run: its namespace is gone, and the kernel is still clearing away.
        delete(netlink, &spec.host_link, index).await?;
    }
    // The inner end is born in the container's namespace under its final name: no later move or rename.
    let peer = LinkMessageBuilder::<LinkUnspec>::new()
        .name(spec.name.clone())
        .mtu(spec.mtu)
        .address(spec.mac().to_vec())
        .setns_by_fd(namespace.as_raw_fd())
        .build();
    let message = LinkMessageBuilder::<LinkVeth>::new(&spec.host_link, &spec.name)
        .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
        .mtu(spec.mtu)
        .address(CONTAINER_ROUTER_MAC.to_vec())
        .up()
        .build();
    let made = netlink.link().add(message).execute().await;
    made.map_err(link_error("create the link pair", &spec.host_link))?;
    let index = index_of(netlink, &spec.host_link)
        .await?
        .ok_or_else(|| LocalNetError::NoLink {
            name: spec.host_link.clone(),
        })?;
    settings::accept_loopback_answers(&spec.host_link)?;
    let (routes, neighbours) = endpoint_links(&spec.attached());
    for neighbour in &neighbours {
        kernel.add_neighbour(neighbour, Some(index)).await?;
    }
    for route in &routes {
        add_route(netlink, route, Some(index)).await?;
    }
    Ok(())
}

/// The container's side.
async fn configure(inside: &Handle, spec: &InterfaceSpec) -> Result<(), ApplyError> {
    let name = spec.name.as_str();
    let index = index_of(inside, name)
        .await?
        .ok_or_else(|| LocalNetError::NoLink {
            name: name.to_owned(),
        })?;
    for (address, _, _) in spec.families() {
        let bits = if address.is_ipv4() { 32 } else { 128 };
        let mut add = inside.address().add(index, address, bits);
        if address.is_ipv6() {
            // Nobody else can have it, and the container must not wait for proof.
            let no_detection = AddressAttribute::Flags(AddressFlags::Nodad);
            add.message_mut().attributes.push(no_detection);
        }
        let added = add.execute().await;
        added.map_err(link_error("give an address to", name))?;
    }
    let up = LinkUnspec::new_with_index(index).up().build();
    let set = inside.link().set(up).execute().await;
    set.map_err(link_error("set up", name))?;
    for (_, gateway, net) in spec.families() {
        let neighbour = Neighbour {
            device: name.to_owned(),
            address: gateway,
            mac: CONTAINER_ROUTER_MAC,
        };
        add_neighbour(inside, &neighbour, index).await?;
        for route in routes_inside(spec, gateway, net) {
            add_route(inside, &route, Some(index)).await?;
        }
    }
    Ok(())
}

/// To the router, to the network by the router, and to everything else if this is the way out.
fn routes_inside(spec: &InterfaceSpec, gateway: IpAddr, net: IpNet) -> Vec<Route> {
    const MAIN: u32 = 254;
    let device = spec.name.clone();
    let route = |destination, target| Route {
        destination,
        target,
        table: MAIN,
        metric: 0,
    };
    let by_router = || RouteTarget::Router(gateway, device.clone());
    let mut routes = vec![
        route(IpNet::from(gateway), RouteTarget::Device(device.clone())),
        route(net, by_router()),
    ];
    if spec.default_route {
        let everywhere = match gateway {
            IpAddr::V4(_) => IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0)),
            IpAddr::V6(_) => IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 0)),
        };
        routes.push(route(everywhere, by_router()));
    }
    routes
}
