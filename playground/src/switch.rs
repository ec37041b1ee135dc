//! The switch that joins the hosts.

use crate::PlaygroundError;
use futures_util::TryStreamExt;
use rtnetlink::packet_route::link::{InfoData, InfoVeth};
use rtnetlink::{
    Handle, LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder,
};
use shoal_overlay_net::netns;
use std::fs::File;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

/// Network of the playground: `10.99.0.0/24`, reachable from nowhere else.
pub(crate) const PREFIX_LEN: u8 = 24;

/// The address of the host with this number, from 1.
pub(crate) fn host_address(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 99, 0, number)
}

/// A bridge in a network namespace of its own.
pub struct Switch {
    dir: PathBuf,
    netlink: Handle,
}

impl Switch {
    /// Makes the switch; its namespaces are pinned below `dir`.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn create(dir: &Path) -> Result<Self, PlaygroundError> {
        let path = dir.join("netns/switch");
        netns::create(path)
            .await
            .map_err(|err| network("make the switch", err))?;
        let switch = Self::open(dir).await?;
        let bridge = LinkBridge::new("br0").build();
        let made = switch.netlink.link().add(bridge).execute().await;
        made.map_err(|err| network("make the switch's bridge", err))?;
        Ok(switch)
    }

    /// Opens the switch that was made before.
    ///
    /// # Errors
    /// When it is not there.
    pub async fn open(dir: &Path) -> Result<Self, PlaygroundError> {
        let netlink = netns::connect_in(dir.join("netns/switch"))
            .await
            .map_err(|err| network("open the switch", err))?;
        Ok(Self {
            dir: dir.to_owned(),
            netlink,
        })
    }

    /// Where the network namespace of a host is pinned.
    pub fn host_netns(&self, host: &str) -> PathBuf {
        self.dir.join("netns").join(host)
    }

    /// Makes a host's network namespace and plugs it in.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn plug_in(&self, host: &str, address: Ipv4Addr) -> Result<(), PlaygroundError> {
        let path = self.host_netns(host);
        let action = format!("plug in host `{host}`");
        netns::create(path.clone())
            .await
            .map_err(|err| network(&action, err))?;
        let namespace = File::open(&path).map_err(|err| network(&action, err))?;
        let bridge = index_of(&self.netlink, "br0").await?;
        let peer = LinkMessageBuilder::<LinkUnspec>::new()
            .name("eth0".to_owned())
            .setns_by_fd(namespace.as_raw_fd())
            .build();
        let pair = LinkMessageBuilder::<LinkVeth>::new(&port_name(host), "eth0")
            .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
            .controller(bridge)
            .up()
            .build();
        let added = self.netlink.link().add(pair).execute().await;
        added.map_err(|err| network(&action, err))?;
        let inside = netns::connect_in(path)
            .await
            .map_err(|err| network(&action, err))?;
        let eth0 = index_of(&inside, "eth0").await?;
        let added = inside
            .address()
            .add(eth0, IpAddr::V4(address), PREFIX_LEN)
            .execute()
            .await;
        added.map_err(|err| network(&action, err))?;
        let up = LinkUnspec::new_with_index(eth0).up().build();
        inside
            .link()
            .set(up)
            .execute()
            .await
            .map_err(|err| network(&action, err))?;
        let route = RouteMessageBuilder::<Ipv4Addr>::new()
            .output_interface(eth0)
            .build();
        inside
            .route()
            .add(route)
            .execute()
            .await
            .map_err(|err| network(&action, err))
    }

    /// Pulls or plugs a host's cable: packets vanish in both directions, without a word.
    ///
    /// # Errors
    /// When there is no such port.
    pub async fn set_cable(&self, host: &str, connected: bool) -> Result<(), PlaygroundError> {
        let port = index_of(&self.netlink, &port_name(host)).await?;
        let link = LinkUnspec::new_with_index(port);
        let link = if connected { link.up() } else { link.down() };
        let set = self.netlink.link().set(link.build()).execute().await;
        set.map_err(|err| network(&format!("switch the cable of host `{host}`"), err))
    }

    /// Removes the namespaces of the hosts and of the switch.
    ///
    /// # Errors
    /// The first failure; the others are removed all the same.
    pub async fn remove(dir: &Path) -> Result<(), PlaygroundError> {
        let pins = dir.join("netns");
        let entries = match std::fs::read_dir(&pins) {
            Ok(entries) => entries,
            Err(err) if err.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(err) => {
                return Err(PlaygroundError::File {
                    action: "list",
                    path: pins,
                    err,
                });
            }
        };
        let mut first = Ok(());
        for entry in entries.flatten() {
            let removed = netns::delete(entry.path()).await;
            if first.is_ok() {
                first = removed.map_err(|err| network("remove a network namespace", err));
            }
        }
        first
    }
}

/// The host's port on the switch; link names have at most 15 characters.
fn port_name(host: &str) -> String {
    format!("p-{host}").chars().take(15).collect()
}

async fn index_of(netlink: &Handle, name: &str) -> Result<u32, PlaygroundError> {
    let mut found = netlink.link().get().match_name(name.to_owned()).execute();
    let link = found
        .try_next()
        .await
        .map_err(|err| network(&format!("find `{name}`"), err))?;
    link.map(|link| link.header.index)
        .ok_or_else(|| PlaygroundError::State(format!("there is no link `{name}`")))
}

fn network(action: &str, err: impl std::error::Error + Send + Sync + 'static) -> PlaygroundError {
    PlaygroundError::Network {
        action: action.to_owned(),
        err: Box::new(err),
    }
}
