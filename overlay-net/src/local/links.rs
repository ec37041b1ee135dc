//! Links, addresses and routes through rtnetlink.

use super::{AttachSpec, BridgeSpec, InstanceTag, LocalNetError, netns};
use futures_util::TryStreamExt;
use rtnetlink::packet_route::link::{InfoData, InfoVeth, LinkAttribute, LinkMessage};
use rtnetlink::{
    Handle, LinkBridge, LinkBridgePort, LinkMessageBuilder, LinkUnspec, LinkVeth,
    RouteMessageBuilder,
};
use std::fs::{self, File};
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

/// Opens a netlink connection in the calling thread's network namespace and lets the runtime serve it.
pub(crate) fn connect() -> io::Result<Handle> {
    let (connection, handle, _) = rtnetlink::new_connection()?;
    // Ends by itself when the last handle is dropped.
    tokio::spawn(connection);
    Ok(handle)
}

pub(crate) fn link_error(
    action: &'static str,
    name: &str,
) -> impl FnOnce(rtnetlink::Error) -> LocalNetError {
    let name = name.to_owned();
    move |err| LocalNetError::Link { action, name, err }
}

/// The errno of a refused request.
pub(crate) fn errno(err: &rtnetlink::Error) -> i32 {
    match err {
        rtnetlink::Error::NetlinkError(message) => message.code.map_or(0, |code| -code.get()),
        _ => 0,
    }
}

pub(crate) async fn index_of(netlink: &Handle, name: &str) -> Result<Option<u32>, LocalNetError> {
    let mut found = netlink.link().get().match_name(name.to_owned()).execute();
    match found.try_next().await {
        Ok(link) => Ok(link.map(|link| link.header.index)),
        Err(err) if errno(&err) == libc::ENODEV => Ok(None),
        Err(err) => Err(link_error("look up", name)(err)),
    }
}

/// Names and indexes of this instance's bridges and of the links on them. Other links with its tag belong to the
/// overlay.
pub(super) async fn local_links(
    netlink: &Handle,
    tag: &InstanceTag,
) -> Result<Vec<(String, u32)>, LocalNetError> {
    let prefixes = tag.local_prefixes();
    let mut links = own_links(netlink, tag).await?;
    links.retain(|(name, _)| prefixes.iter().any(|prefix| name.starts_with(prefix)));
    Ok(links)
}

/// Names and indexes of the links that carry this instance's tag.
pub(super) async fn own_links(
    netlink: &Handle,
    tag: &InstanceTag,
) -> Result<Vec<(String, u32)>, LocalNetError> {
    let prefix = tag.link_prefix();
    let links: Vec<LinkMessage> = netlink
        .link()
        .get()
        .execute()
        .try_collect()
        .await
        .map_err(link_error("list", "links"))?;
    Ok(links
        .into_iter()
        .filter_map(|link| {
            let name = link
                .attributes
                .iter()
                .find_map(|attribute| match attribute {
                    LinkAttribute::IfName(name) => Some(name.clone()),
                    _ => None,
                })?;
            name.starts_with(&prefix)
                .then_some((name, link.header.index))
        })
        .collect())
}

pub(crate) async fn delete(netlink: &Handle, name: &str, index: u32) -> Result<(), LocalNetError> {
    match netlink.link().del(index).execute().await {
        // The other end, or its namespace, was quicker.
        Err(err) if errno(&err) == libc::ENODEV => Ok(()),
        other => other.map_err(link_error("remove link", name)),
    }
}

/// Makes the bridge if it is not there, and gives it its address and settings in any case.
pub(super) async fn ensure_bridge(
    netlink: &Handle,
    bridge: &BridgeSpec,
) -> Result<(), LocalNetError> {
    let name = bridge.name.as_str();
    if index_of(netlink, name).await?.is_none() {
        let message = LinkBridge::new(name).mtu(bridge.mtu).build();
        match netlink.link().add(message).execute().await {
            Err(err) if errno(&err) == libc::EEXIST => {}
            other => other.map_err(link_error("create bridge", name))?,
        }
    }
    let index = index_of(netlink, name)
        .await?
        .ok_or_else(|| LocalNetError::NoLink {
            name: name.to_owned(),
        })?;
    let address = IpAddr::V4(bridge.gateway);
    match netlink
        .address()
        .add(index, address, bridge.prefix_len)
        .execute()
        .await
    {
        Err(err) if errno(&err) == libc::EEXIST => {}
        other => other.map_err(link_error("give an address to", name))?,
    }
    let up = LinkUnspec::new_with_index(index).up().build();
    netlink
        .link()
        .set(up)
        .execute()
        .await
        .map_err(link_error("set up", name))?;
    // Published ports answer on 127.0.0.1 too; the raw chain drops what containers send there (see `ruleset`).
    write_setting(
        &format!("/proc/sys/net/ipv4/conf/{name}/route_localnet"),
        "1",
    )?;
    write_setting("/proc/sys/net/ipv4/ip_forward", "1")
}

pub(crate) fn write_setting(path: &str, value: &str) -> Result<(), LocalNetError> {
    let failed = |err| LocalNetError::Setting {
        path: PathBuf::from(path),
        err,
    };
    if fs::read_to_string(path).map_err(failed)?.trim() == value {
        return Ok(());
    }
    fs::write(path, value).map_err(failed)
}

/// `02:42:` and the four bytes of the address, as Docker does: stable, and unique within the subnet.
fn default_mac(address: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = address.octets();
    [0x02, 0x42, a, b, c, d]
}

/// Makes the pair of links, one end in the container's namespace, and configures that end. Answers its MAC.
pub(super) async fn attach(
    netlink: &Handle,
    netns_path: &Path,
    host_link: &str,
    spec: &AttachSpec,
) -> Result<[u8; 6], LocalNetError> {
    let namespace_error = |err| LocalNetError::Namespace {
        action: "enter",
        path: netns_path.to_owned(),
        err,
    };
    let bridge = index_of(netlink, &spec.bridge)
        .await?
        .ok_or_else(|| LocalNetError::NoLink {
            name: spec.bridge.clone(),
        })?;
    let namespace = File::open(netns_path).map_err(namespace_error)?;
    let mac = spec.mac.unwrap_or_else(|| default_mac(spec.address));
    let inside = netns::connect_in(netns_path.to_owned());
    let pair = async {
        // The inner end is born in the container's namespace, up, under its final name: no later move or rename.
        let peer = LinkMessageBuilder::<LinkUnspec>::new()
            .name(spec.interface.clone())
            .mtu(spec.mtu)
            .address(mac.to_vec())
            .setns_by_fd(namespace.as_raw_fd())
            .build();
        let message = LinkMessageBuilder::<LinkVeth>::new(host_link, &spec.interface)
            .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
            .mtu(spec.mtu)
            .controller(bridge)
            .up()
            .build();
        let action = "create the link pair";
        netlink
            .link()
            .add(message)
            .execute()
            .await
            .map_err(link_error(action, host_link))?;
        // Where bridge-nf-call-iptables is on, a container's packet to its own published port is sent back through
        // the port that it came from, which a bridge refuses unless the port is in hairpin mode.
        let hairpin = LinkBridgePort::new(0)
            .name(host_link.to_owned())
            .hairpin(true)
            .build();
        let action = "set hairpin mode of";
        netlink
            .link()
            .change(hairpin)
            .execute()
            .await
            .map_err(link_error(action, host_link))
    };
    let (inside, ()) = futures_util::try_join!(inside, pair)?;
    configure(&inside, spec).await?;
    Ok(mac)
}

async fn configure(inside: &Handle, spec: &AttachSpec) -> Result<(), LocalNetError> {
    let name = spec.interface.as_str();
    let index = index_of(inside, name)
        .await?
        .ok_or_else(|| LocalNetError::NoLink {
            name: name.to_owned(),
        })?;
    let action = "give an address to";
    let address = IpAddr::V4(spec.address);
    let added = inside
        .address()
        .add(index, address, spec.prefix_len)
        .execute()
        .await;
    added.map_err(link_error(action, name))?;
    let up = LinkUnspec::new_with_index(index).up().build();
    inside
        .link()
        .set(up)
        .execute()
        .await
        .map_err(link_error("set up", name))?;
    if let Some(gateway) = spec.gateway {
        let route = RouteMessageBuilder::<Ipv4Addr>::new()
            .gateway(gateway)
            .build();
        let action = "add the default route through";
        inside
            .route()
            .add(route)
            .execute()
            .await
            .map_err(link_error(action, name))?;
    }
    Ok(())
}
