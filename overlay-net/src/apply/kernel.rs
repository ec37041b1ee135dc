//! Links, addresses, routes, neighbours and rules: read, compared, changed.

use super::diff::Difference;
use super::{ApplyError, settings};
use crate::local::links::{delete, errno, index_of, link_error};
use crate::plan::{
    FdbEntry, MARK_PRIORITY, MarkRule, Neighbour, OUTGOING_MARKS, PROTOCOL, Plan, Route,
    RouteTarget, TUNNEL_OVERHEAD, TUNNEL_PORT, TUNNEL_VNI, tunnel_mac,
};
use futures_util::TryStreamExt;
use ipnet::IpNet;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage};
use rtnetlink::{Handle, IpVersion, LinkUnspec, LinkVxlan, RouteMessageBuilder};
use shoal_model::network::MeshAddress;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The host's netlink.
#[derive(Debug, Clone)]
pub(super) struct Kernel {
    netlink: Handle,
}

/// A device of ours as it is.
struct Device {
    index: u32,
    mac: Vec<u8>,
    mtu: u32,
    up: bool,
}

/// Devices by name, and names by index.
struct Devices {
    by_name: BTreeMap<String, Device>,
    names: BTreeMap<u32, String>,
}

impl Devices {
    fn index(&self, name: &str) -> Option<u32> {
        self.by_name.get(name).map(|device| device.index)
    }
}

impl Kernel {
    pub(super) fn new(netlink: Handle) -> Self {
        Self { netlink }
    }

    pub(super) fn netlink(&self) -> &Handle {
        &self.netlink
    }

    /// Makes links, addresses, routes, neighbours and rules be as planned; answers how many changes that took. What
    /// belongs to a device that is not there yet waits for the next time.
    pub(super) async fn apply(&self, plan: &Plan) -> Result<usize, ApplyError> {
        if plan.mesh.is_some() || !plan.host_links.is_empty() {
            settings::prepare_host(plan.ipv6)?;
        }
        let mut changes = self.tunnel(plan).await?;
        let devices = self.devices(&plan.names.prefix).await?;
        changes += self.mesh_addresses(plan, &devices).await?;
        changes += self.neighbours(plan, &devices).await?;
        changes += self.fdb(plan, &devices).await?;
        changes += self.routes(plan, &devices).await?;
        changes += self.rules(plan).await?;
        Ok(changes)
    }

    /// Names of the links that begin with `prefix`.
    pub(super) async fn links(&self, prefix: &str) -> Result<Vec<String>, ApplyError> {
        Ok(self.devices(prefix).await?.by_name.into_keys().collect())
    }

    /// Removes a link; harmless if it is not there.
    pub(super) async fn remove_link(&self, name: &str) -> Result<(), ApplyError> {
        match index_of(&self.netlink, name).await? {
            Some(index) => Ok(delete(&self.netlink, name, index).await?),
            None => Ok(()),
        }
    }

    async fn devices(&self, prefix: &str) -> Result<Devices, ApplyError> {
        let links: Vec<LinkMessage> = self
            .netlink
            .link()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(link_error("list", "links"))?;
        let mut devices = Devices {
            by_name: BTreeMap::new(),
            names: BTreeMap::new(),
        };
        for link in links {
            let (mut name, mut mac, mut mtu) = (String::new(), Vec::new(), 0);
            for attribute in link.attributes {
                match attribute {
                    LinkAttribute::IfName(text) => name = text,
                    LinkAttribute::Address(bytes) => mac = bytes,
                    LinkAttribute::Mtu(bytes) => mtu = bytes,
                    _ => {}
                }
            }
            if name.starts_with(prefix) {
                let index = link.header.index;
                let up = link.header.flags.contains(LinkFlags::Up);
                devices.names.insert(index, name.clone());
                let device = Device {
                    index,
                    mac,
                    mtu,
                    up,
                };
                devices.by_name.insert(name, device);
            }
        }
        Ok(devices)
    }

    /// The tunnel's device. Its own address in the mesh is part of it: with another one it is made anew.
    async fn tunnel(&self, plan: &Plan) -> Result<usize, ApplyError> {
        let name = plan.names.tunnel.as_str();
        let mtu = plan.mesh_mtu.saturating_sub(TUNNEL_OVERHEAD);
        let devices = self.devices(name).await?;
        let device = devices.by_name.get(name);
        let Some(mesh) = plan.mesh else {
            return match device {
                Some(device) => {
                    delete(&self.netlink, name, device.index).await?;
                    Ok(1)
                }
                None => Ok(0),
            };
        };
        let mac = tunnel_mac(&mesh);
        match device {
            Some(device) if device.mac == mac && device.up && device.mtu == mtu => return Ok(0),
            Some(device) => delete(&self.netlink, name, device.index).await?,
            None => {}
        }
        let message = LinkVxlan::new(name, TUNNEL_VNI)
            .port(TUNNEL_PORT)
            .local(mesh.ipv4)
            .learning(false)
            .address(mac.to_vec())
            .mtu(mtu)
            .up()
            .build();
        self.netlink
            .link()
            .add(message)
            .execute()
            .await
            .map_err(link_error("create tunnel", name))?;
        settings::prepare_tunnel(name)?;
        Ok(1)
    }

    /// The node's addresses on the mesh's device, which the mesh makes.
    async fn mesh_addresses(&self, plan: &Plan, devices: &Devices) -> Result<usize, ApplyError> {
        let name = plan.names.mesh.as_str();
        let Some(device) = devices.by_name.get(name) else {
            return Ok(0);
        };
        let failed = || link_error("give an address to", name);
        let found: Vec<AddressMessage> = self
            .netlink
            .address()
            .get()
            .set_link_index_filter(device.index)
            .execute()
            .try_collect()
            .await
            .map_err(failed())?;
        let now: BTreeMap<IpAddr, AddressMessage> = found
            .into_iter()
            .filter_map(|message| Some((address_of(&message)?, message)))
            .collect();
        let wanted: BTreeSet<IpAddr> = plan.mesh.iter().flat_map(mesh_addresses).collect();
        let mut changes = 0;
        for (address, message) in &now {
            if !wanted.contains(address) && !is_link_local(address) {
                let deleted = self.netlink.address().del(message.clone()).execute().await;
                deleted.map_err(failed())?;
                changes += 1;
            }
        }
        for address in wanted.iter().filter(|address| !now.contains_key(address)) {
            let bits = if address.is_ipv4() { 32 } else { 128 };
            let add = self.netlink.address().add(device.index, *address, bits);
            add.execute().await.map_err(failed())?;
            changes += 1;
        }
        if !device.up {
            let up = LinkUnspec::new_with_index(device.index).up().build();
            let set = self.netlink.link().set(up).execute().await;
            set.map_err(link_error("set up", name))?;
            changes += 1;
        }
        Ok(changes)
    }

    async fn neighbours(&self, plan: &Plan, devices: &Devices) -> Result<usize, ApplyError> {
        let mut now = BTreeMap::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let found = self.neighbour_messages(family).await?;
            let ours = found
                .into_iter()
                .filter_map(|message| Some((neighbour_of(&message, devices)?, message)));
            now.extend(ours);
        }
        let wanted = plan.neighbours.iter().cloned();
        let wanted: BTreeSet<Neighbour> = wanted
            .filter(|neighbour| devices.index(&neighbour.device).is_some())
            .collect();
        let known: BTreeSet<Neighbour> = now.keys().cloned().collect();
        let difference = Difference::between(&known, &wanted);
        for neighbour in &difference.excess {
            if let Some(message) = now.get(neighbour) {
                let deleted = self.netlink.neighbours().del(message.clone()).execute();
                gone_is_fine(deleted.await, "forget a neighbour of", &neighbour.device)?;
            }
        }
        for neighbour in &difference.missing {
            self.add_neighbour(neighbour, devices.index(&neighbour.device))
                .await?;
        }
        Ok(difference.len())
    }

    pub(super) async fn add_neighbour(
        &self,
        neighbour: &Neighbour,
        index: Option<u32>,
    ) -> Result<(), ApplyError> {
        add_neighbour(&self.netlink, neighbour, index.unwrap_or_default()).await
    }

    async fn neighbour_messages(
        &self,
        family: AddressFamily,
    ) -> Result<Vec<NeighbourMessage>, ApplyError> {
        let request = self.netlink.neighbours().get();
        let found = request.set_address_family(family).execute();
        let found = found.try_collect().await;
        Ok(found.map_err(link_error("list neighbours of", "links"))?)
    }

    async fn fdb(&self, plan: &Plan, devices: &Devices) -> Result<usize, ApplyError> {
        let name = plan.names.tunnel.as_str();
        let Some(index) = devices.index(name) else {
            return Ok(0);
        };
        let found = self.neighbour_messages(AddressFamily::Bridge).await?;
        let now: BTreeMap<FdbEntry, NeighbourMessage> = found
            .into_iter()
            .filter(|message| message.header.ifindex == index)
            .filter_map(|message| Some((fdb_entry_of(&message)?, message)))
            .collect();
        let known: BTreeSet<FdbEntry> = now.keys().copied().collect();
        let difference = Difference::between(&known, &plan.fdb);
        for entry in &difference.excess {
            if let Some(message) = now.get(entry) {
                let deleted = self.netlink.neighbours().del(message.clone()).execute();
                gone_is_fine(deleted.await, "forget a node behind", name)?;
            }
        }
        for entry in &difference.missing {
            let added = self
                .netlink
                .neighbours()
                .add_bridge(index, &entry.mac)
                .destination(IpAddr::V4(entry.node))
                .flags(NeighbourFlags::Own)
                .replace()
                .execute()
                .await;
            added.map_err(link_error("add a node behind", name))?;
        }
        Ok(difference.len())
    }

    async fn routes(&self, plan: &Plan, devices: &Devices) -> Result<usize, ApplyError> {
        let mut now = BTreeMap::new();
        for message in [
            RouteMessageBuilder::<Ipv4Addr>::new().build(),
            RouteMessageBuilder::<Ipv6Addr>::new().build(),
        ] {
            let found: Vec<RouteMessage> = self
                .netlink
                .route()
                .get(message)
                .execute()
                .try_collect()
                .await
                .map_err(link_error("list routes of", "links"))?;
            let ours = found
                .into_iter()
                .filter(|route| route.header.protocol == RouteProtocol::Other(PROTOCOL))
                .filter_map(|message| Some((route_of(&message, devices)?, message)));
            now.extend(ours);
        }
        let wanted: BTreeSet<Route> = plan
            .routes
            .iter()
            .filter(|route| match &route.target {
                RouteTarget::Device(name) | RouteTarget::Router(_, name) => {
                    devices.by_name.get(name).is_some_and(|device| device.up)
                }
                RouteTarget::Unreachable => true,
            })
            .cloned()
            .collect();
        let known: BTreeSet<Route> = now.keys().cloned().collect();
        let difference = Difference::between(&known, &wanted);
        for route in &difference.excess {
            if let Some(message) = now.get(route) {
                let deleted = self.netlink.route().del(message.clone()).execute().await;
                gone_is_fine(deleted, "remove the route", &route.destination.to_string())?;
            }
        }
        for route in &difference.missing {
            let index = match &route.target {
                RouteTarget::Device(name) | RouteTarget::Router(_, name) => devices.index(name),
                RouteTarget::Unreachable => None,
            };
            add_route(&self.netlink, route, index).await?;
        }
        Ok(difference.len())
    }

    /// One rule sends packets without our marks past the others, so that they cost nothing.
    async fn rules(&self, plan: &Plan) -> Result<usize, ApplyError> {
        let mut now = BTreeMap::new();
        for (ipv6, version) in [(false, IpVersion::V4), (true, IpVersion::V6)] {
            let found: Vec<RuleMessage> = self
                .netlink
                .rule()
                .get(version)
                .execute()
                .try_collect()
                .await
                .map_err(link_error("list", "routing rules"))?;
            let ours = found
                .into_iter()
                .filter_map(|message| Some((rule_of(&message, ipv6)?, message)));
            now.extend(ours);
        }
        let mut wanted: BTreeSet<Rule> = plan.rules.iter().map(|rule| Rule::Mark(*rule)).collect();
        if !wanted.is_empty() {
            for ipv6 in [false, true] {
                wanted.extend([Rule::Skip { ipv6 }, Rule::End { ipv6 }]);
            }
        }
        let known: BTreeSet<Rule> = now.keys().copied().collect();
        let difference = Difference::between(&known, &wanted);
        for rule in &difference.excess {
            if let Some(message) = now.get(rule) {
                let deleted = self.netlink.rule().del(message.clone()).execute().await;
                gone_is_fine(deleted, "remove", "a routing rule")?;
            }
        }
        for rule in &difference.missing {
            let mut request = self.netlink.rule().add();
            *request.message_mut() = rule.message();
            let added = request.execute().await;
            added.map_err(link_error("add", "a routing rule"))?;
        }
        Ok(difference.len())
    }
}

pub(super) async fn add_neighbour(
    netlink: &Handle,
    neighbour: &Neighbour,
    index: u32,
) -> Result<(), ApplyError> {
    let added = netlink
        .neighbours()
        .add(index, neighbour.address)
        .link_layer_address(&neighbour.mac)
        .replace()
        .execute()
        .await;
    Ok(added.map_err(link_error("add a neighbour of", &neighbour.device))?)
}

/// Adds a route of ours; harmless if it is there.
pub(super) async fn add_route(
    netlink: &Handle,
    route: &Route,
    index: Option<u32>,
) -> Result<(), ApplyError> {
    let mut message = match route.destination {
        IpNet::V4(net) => RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(net.addr(), net.prefix_len())
            .build(),
        IpNet::V6(net) => RouteMessageBuilder::<Ipv6Addr>::new()
            .destination_prefix(net.addr(), net.prefix_len())
            .build(),
    };
    message.header.protocol = RouteProtocol::Other(PROTOCOL);
    set_table(&mut message, route.table);
    if route.metric != 0 {
        let metric = RouteAttribute::Priority(route.metric);
        message.attributes.push(metric);
    }
    match &route.target {
        RouteTarget::Device(_) => message.header.scope = RouteScope::Link,
        RouteTarget::Router(router, _) => {
            message.header.flags |= rtnetlink::packet_route::route::RouteFlags::Onlink;
            let router = RouteAttribute::Gateway(RouteAddress::from(*router));
            message.attributes.push(router);
        }
        RouteTarget::Unreachable => message.header.kind = RouteType::Unreachable,
    }
    message.attributes.extend(index.map(RouteAttribute::Oif));
    let added = netlink.route().add(message).execute().await;
    match added {
        Err(err) if errno(&err) == libc::EEXIST => Ok(()),
        other => Ok(other.map_err(link_error("add the route", &route.destination.to_string()))?),
    }
}

fn set_table(message: &mut RouteMessage, table: u32) {
    match u8::try_from(table) {
        Ok(small) => message.header.table = small,
        Err(_) => {
            message.header.table = 0;
            message.attributes.push(RouteAttribute::Table(table));
        }
    }
}

fn gone_is_fine(
    result: Result<(), rtnetlink::Error>,
    action: &'static str,
    name: &str,
) -> Result<(), ApplyError> {
    match result {
        Err(err) if [libc::ENOENT, libc::ESRCH, libc::ENODEV].contains(&errno(&err)) => Ok(()),
        other => Ok(other.map_err(link_error(action, name))?),
    }
}

fn mesh_addresses(mesh: &MeshAddress) -> [IpAddr; 2] {
    [IpAddr::V4(mesh.ipv4), IpAddr::V6(mesh.ipv6)]
}

fn is_link_local(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(_) => false,
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

fn address_of(message: &AddressMessage) -> Option<IpAddr> {
    message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            AddressAttribute::Address(address) => Some(*address),
            _ => None,
        })
}

fn neighbour_of(message: &NeighbourMessage, devices: &Devices) -> Option<Neighbour> {
    let device = devices.names.get(&message.header.ifindex)?.clone();
    if message.header.state != NeighbourState::Permanent {
        return None;
    }
    let (mut address, mut mac) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => {
                address = Some(IpAddr::V4(*v4));
            }
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => {
                address = Some(IpAddr::V6(*v6));
            }
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = bytes.as_slice().try_into().ok(),
            _ => {}
        }
    }
    Some(Neighbour {
        device,
        address: address?,
        mac: mac?,
    })
}

fn fdb_entry_of(message: &NeighbourMessage) -> Option<FdbEntry> {
    let (mut node, mut mac) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => node = Some(*v4),
            NeighbourAttribute::Destination(NeighbourAddress::Other(bytes)) => {
                let octets: [u8; 4] = bytes.as_slice().try_into().ok()?;
                node = Some(Ipv4Addr::from(octets));
            }
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = bytes.as_slice().try_into().ok(),
            _ => {}
        }
    }
    Some(FdbEntry {
        mac: mac?,
        node: node?,
    })
}

/// A route with our origin. One whose device is not ours, or that we would not make so, is none of the wanted ones.
fn route_of(message: &RouteMessage, devices: &Devices) -> Option<Route> {
    let unspecified = match message.header.address_family {
        AddressFamily::Inet => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        _ => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let (mut destination, mut router, mut device) = (unspecified, None, None);
    let (mut table, mut metric) = (u32::from(message.header.table), 0);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => destination = ip(address)?,
            RouteAttribute::Gateway(address) => router = ip(address),
            RouteAttribute::Oif(index) => device = devices.names.get(index).cloned(),
            RouteAttribute::Table(number) => table = *number,
            RouteAttribute::Priority(number) => metric = *number,
            _ => {}
        }
    }
    let target = match (message.header.kind, router, device) {
        (RouteType::Unreachable, _, _) => RouteTarget::Unreachable,
        (_, Some(router), Some(device)) => RouteTarget::Router(router, device),
        (_, None, Some(device)) => RouteTarget::Device(device),
        (_, _, None) => return None,
    };
    Some(Route {
        destination: IpNet::new(destination, message.header.destination_prefix_length).ok()?,
        target,
        table,
        metric,
    })
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some(IpAddr::V4(*v4)),
        RouteAddress::Inet6(v6) => Some(IpAddr::V6(*v6)),
        _ => None,
    }
}

/// A routing rule of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rule {
    /// Packets without a mark of ours go on behind our rules.
    Skip { ipv6: bool },
    /// Packets with a mark take its table.
    Mark(MarkRule),
    /// Where they go on.
    End { ipv6: bool },
}

impl Rule {
    fn message(self) -> RuleMessage {
        let mut message = RuleMessage::default();
        let (ipv6, priority) = match self {
            Self::Skip { ipv6 } => {
                let (value, mask) = OUTGOING_MARKS;
                message.header.action = RuleAction::Goto;
                message.header.flags = RuleFlags::Invert;
                message.attributes.extend([
                    RuleAttribute::FwMark(value),
                    RuleAttribute::FwMask(mask),
                    RuleAttribute::Goto(MARK_PRIORITY + 2),
                ]);
                (ipv6, MARK_PRIORITY)
            }
            Self::Mark(MarkRule { ipv6, mark }) => {
                message.header.action = RuleAction::ToTable;
                message.attributes.extend([
                    RuleAttribute::FwMark(mark),
                    RuleAttribute::FwMask(u32::MAX),
                    RuleAttribute::Table(mark),
                ]);
                (ipv6, MARK_PRIORITY + 1)
            }
            Self::End { ipv6 } => {
                message.header.action = RuleAction::Nop;
                (ipv6, MARK_PRIORITY + 2)
            }
        };
        message.header.family = if ipv6 {
            AddressFamily::Inet6
        } else {
            AddressFamily::Inet
        };
        message.attributes.extend([
            RuleAttribute::Priority(priority),
            RuleAttribute::Protocol(RouteProtocol::Other(PROTOCOL)),
        ]);
        message
    }
}

fn rule_of(message: &RuleMessage, ipv6: bool) -> Option<Rule> {
    let ours = RuleAttribute::Protocol(RouteProtocol::Other(PROTOCOL));
    if !message.attributes.contains(&ours) {
        return None;
    }
    let mark = message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RuleAttribute::FwMark(mark) => Some(*mark),
            _ => None,
        });
    match (message.header.action, mark) {
        (RuleAction::Goto, _) => Some(Rule::Skip { ipv6 }),
        (RuleAction::Nop, _) => Some(Rule::End { ipv6 }),
        (_, Some(mark)) => Some(Rule::Mark(MarkRule { ipv6, mark })),
        (_, None) => None,
    }
}
