//! The local networks of this node: the default bridge with its addresses, `host` and `none`.

mod actor;
mod give_back;
pub(crate) mod ipam;
pub(crate) mod overlay;

pub(crate) use actor::{Allocate, NetworkActor, ReleaseAddress};
pub use overlay::Attacher;
pub(crate) use overlay::OverlayLease;

use crate::config::ContainerPort;
use crate::disk::{self, Durability};
use crate::error::{EngineError, Result, chain};
use crate::info::{Endpoint, PublishedPort};
use crate::options::EngineOptions;
use ipam::{Ipam, Subnet};
use serde::{Deserialize, Serialize};
use shoal_model::spec::Protocol;
use shoal_model::{ContainerId, Timestamp};
use shoal_overlay_net::{
    AttachSpec, BridgeSpec, InstanceTag, LocalNet, LocalNetError, LocalPlan, PortPublish, Transport,
};
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

/// Name of the interface inside a container.
const INTERFACE: &str = "eth0";
/// The default bridge's part of its link's name.
const BRIDGE_SHORT: &str = "br0";

/// The default bridge as it was first made, so that its subnet stays the same for good.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct BridgeRecord {
    pub(crate) id: String,
    pub(crate) created: Timestamp,
    pub(crate) subnet: Subnet,
    pub(crate) gateway: Ipv4Addr,
}

/// What a container's start got from the network, to be undone at its end.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Lease {
    /// Its place on the default bridge.
    pub(crate) endpoint: Option<Endpoint>,
    /// Its places in networks of the cluster.
    pub(crate) overlay: Option<OverlayLease>,
    pub(crate) ports: Vec<PublishedPort>,
    /// The namespace that was made for the container.
    pub(crate) netns: Option<PathBuf>,
    pub(crate) host_link: Option<String>,
}

impl Lease {
    /// Every place, as users see it.
    pub(crate) fn endpoints(&self) -> Vec<Endpoint> {
        let overlay = self.overlay.iter().flat_map(|overlay| &overlay.shown);
        self.endpoint.iter().chain(overlay).cloned().collect()
    }

    /// The address that published ports lead to.
    pub(crate) fn address(&self) -> Option<Ipv4Addr> {
        let overlay = self.overlay.as_ref().and_then(|lease| lease.shown.first());
        self.endpoint.as_ref().or(overlay)?.address
    }
}

/// The networks, shared by all actors. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Networks {
    pub(crate) local: LocalNet,
    pub(crate) bridge: BridgeSpec,
    pub(crate) record: BridgeRecord,
    /// Ids of the networks `host` and `none`.
    pub(crate) fixed_ids: [String; 2],
    netns_dir: PathBuf,
}

#[derive(Serialize, Deserialize)]
struct NetworksRecord {
    bridge: BridgeRecord,
    host_id: String,
    none_id: String,
}

impl Networks {
    /// Reads or chooses the default bridge. Must run within a tokio runtime; touches no link yet.
    pub(crate) fn open(options: &EngineOptions) -> Result<Self> {
        let local = LocalNet::open(InstanceTag::derive(&options.instance))
            .map_err(network_error("open the local networks"))?;
        let dir = options.data_root.join("networks");
        disk::create_dir_all(&dir, 0o700)?;
        let path = dir.join("networks.json");
        let mut record = match read_networks(&path, options)? {
            Some(record) => record,
            None => NetworksRecord {
                bridge: choose_bridge(options)?,
                host_id: crate::clock::hex_id(),
                none_id: crate::clock::hex_id(),
            },
        };
        if let Some(fixed) = &options.bridge_address {
            let (subnet, gateway) = Subnet::parse(fixed)?;
            record.bridge.subnet = subnet;
            record.bridge.gateway = gateway;
        }
        disk::write_record(&path, &record, Durability::Synced)?;
        let bridge = BridgeSpec {
            name: local.bridge_name(BRIDGE_SHORT),
            network: record.bridge.subnet.network,
            prefix_len: record.bridge.subnet.prefix_len,
            gateway: record.bridge.gateway,
            mtu: options.bridge_mtu,
            internal: false,
            masquerade: true,
        };
        let netns_dir = options.run_root.join("netns");
        disk::create_dir_all(&netns_dir, 0o700)?;
        Ok(Self {
            local,
            bridge,
            record: record.bridge,
            fixed_ids: [record.host_id, record.none_id],
            netns_dir,
        })
    }

    pub(crate) fn ipam(&self) -> Ipam {
        Ipam::new(self.record.subnet, self.record.gateway)
    }

    /// Where a container's namespace is pinned.
    pub(crate) fn netns_path(&self, id: &ContainerId) -> PathBuf {
        self.netns_dir.join(id.to_string())
    }

    /// Makes the kernel have the bridge and what the running containers hold, and nothing else of ours.
    pub(crate) async fn reconcile(&self, running: &[(ContainerId, Lease)]) -> Result<()> {
        let ports = running
            .iter()
            .filter_map(|(id, lease)| Some((id, lease, lease.address()?)))
            .flat_map(|(id, lease, address)| {
                lease
                    .ports
                    .iter()
                    .map(move |port| publish_spec(id, address, port))
            })
            .collect();
        let links: Vec<String> = running
            .iter()
            .filter_map(|(_, lease)| lease.host_link.clone())
            .collect();
        let plan = LocalPlan {
            bridges: vec![self.bridge.clone()],
            ports,
        };
        self.local
            .reconcile(plan, &links)
            .await
            .map_err(network_error("bring the local networks in order"))?;
        self.sweep_namespaces(running).await
    }

    async fn sweep_namespaces(&self, running: &[(ContainerId, Lease)]) -> Result<()> {
        let dir = std::fs::read_dir(&self.netns_dir)
            .map_err(EngineError::disk("read", &self.netns_dir))?;
        for entry in dir {
            let path = entry
                .map_err(EngineError::disk("read", &self.netns_dir))?
                .path();
            let held = running
                .iter()
                .any(|(_, lease)| lease.netns.as_deref() == Some(path.as_path()));
            if !held {
                self.delete_netns(&path).await?;
            }
        }
        Ok(())
    }

    pub(crate) async fn create_netns(&self, path: &Path) -> Result<()> {
        self.local
            .create_netns(path)
            .await
            .map_err(network_error("create the network namespace"))
    }

    pub(crate) async fn delete_netns(&self, path: &Path) -> Result<()> {
        self.local
            .delete_netns(path)
            .await
            .map_err(network_error("delete the network namespace"))
    }

    /// Lets a namespace go, with its links, together with others that end about now.
    pub(crate) fn retire_netns(&self, path: &Path) {
        self.local.retire_netns(path);
    }

    /// Lets every namespace go that waits for it.
    pub(crate) async fn delete_retired(&self) -> Result<()> {
        self.local
            .delete_retired()
            .await
            .map_err(network_error("delete the network namespaces"))
    }

    /// Connects a namespace to the bridge; gives the host's end and the hardware address.
    pub(crate) async fn attach(
        &self,
        id: &ContainerId,
        netns: &Path,
        address: Ipv4Addr,
    ) -> Result<(String, String)> {
        let spec = AttachSpec {
            container: id.to_string(),
            interface: INTERFACE.to_owned(),
            bridge: self.bridge.name.clone(),
            address,
            prefix_len: self.bridge.prefix_len,
            gateway: Some(self.bridge.gateway),
            mac: None,
            mtu: self.bridge.mtu,
        };
        let attachment = self
            .local
            .attach(netns, &spec)
            .await
            .map_err(network_error("attach the container to its network"))?;
        let mac: Vec<_> = attachment
            .mac
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        Ok((attachment.host_link, mac.join(":")))
    }

    /// Publishes every wish, each on the first free port of its range; all or none.
    pub(crate) async fn publish(
        &self,
        id: &ContainerId,
        address: Ipv4Addr,
        wishes: &[PortWish],
    ) -> Result<Vec<PublishedPort>> {
        let mut published = Vec::with_capacity(wishes.len());
        for wish in wishes {
            match self.publish_one(id, address, wish).await {
                Ok(port) => published.push(port),
                Err(err) => {
                    self.unpublish(id).await?;
                    return Err(err);
                }
            }
        }
        Ok(published)
    }

    async fn publish_one(
        &self,
        id: &ContainerId,
        address: Ipv4Addr,
        wish: &PortWish,
    ) -> Result<PublishedPort> {
        let (first, last) = wish.host_ports;
        let mut refused = None;
        for host_port in first..=last.max(first) {
            let port = PublishedPort {
                container: wish.container,
                host_ip: wish.host_ip,
                host_port,
            };
            match self
                .local
                .publish(&[publish_spec(id, address, &port)])
                .await
            {
                Ok(chosen) => {
                    let host_port = chosen.first().map_or(host_port, |port| port.host_port);
                    return Ok(PublishedPort { host_port, ..port });
                }
                Err(err @ LocalNetError::PortTaken { .. }) => refused = Some(err),
                Err(err) => return Err(publish_error(err)),
            }
        }
        // The range has at least one port, so at least one try was made.
        Err(refused.map_or_else(
            || EngineError::invalid("port range", "it is empty"),
            publish_error,
        ))
    }

    pub(crate) async fn unpublish(&self, id: &ContainerId) -> Result<()> {
        self.local
            .unpublish(&id.to_string())
            .await
            .map_err(network_error("withdraw published ports"))
    }
}

/// A port to be published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PortWish {
    pub(crate) container: ContainerPort,
    pub(crate) host_ip: IpAddr,
    pub(crate) host_ports: (u16, u16),
}

fn publish_spec(id: &ContainerId, address: Ipv4Addr, port: &PublishedPort) -> PortPublish {
    PortPublish {
        container: id.to_string(),
        transport: match port.container.protocol {
            Protocol::Tcp => Transport::Tcp,
            Protocol::Udp => Transport::Udp,
        },
        host_ip: port.host_ip,
        host_port: port.host_port,
        container_ip: address,
        container_port: port.container.port,
    }
}

fn publish_error(err: LocalNetError) -> EngineError {
    match err {
        LocalNetError::PortTaken {
            host_ip,
            host_port,
            holder,
            ..
        } => EngineError::PortTaken {
            address: host_ip,
            port: host_port,
            holder,
        },
        other => network_error("publish a port")(other),
    }
}

fn network_error(action: &'static str) -> impl FnOnce(LocalNetError) -> EngineError {
    move |err| EngineError::Network {
        action,
        reason: chain(&err),
    }
}

/// The record of the networks; a damaged one is put aside and made anew from what containers hold.
fn read_networks(path: &Path, options: &EngineOptions) -> Result<Option<NetworksRecord>> {
    let err = match disk::read_record::<NetworksRecord>(path) {
        // One of a newer program is good, but not for this one.
        Err(err @ EngineError::Record { .. }) if !disk::is_of_other_version(path) => err,
        other => return other,
    };
    let aside = path.with_extension("json.damaged");
    std::fs::rename(path, &aside).map_err(EngineError::disk("put aside", path))?;
    let bridge = bridge_of_containers(&options.data_root.join("containers"));
    tracing::error!(
        err = chain(&err),
        aside = %aside.display(),
        subnet = ?bridge.as_ref().map(|bridge| bridge.subnet),
        "the record of the networks can't be used; it is made anew from the addresses of containers"
    );
    Ok(bridge.map(|bridge| NetworksRecord {
        bridge,
        host_id: crate::clock::hex_id(),
        none_id: crate::clock::hex_id(),
    }))
}

/// The default bridge as containers that are attached to it know it.
fn bridge_of_containers(containers: &Path) -> Option<BridgeRecord> {
    let found = crate::container::recover::endpoints(containers).into_iter();
    let mut bridges = found.filter_map(|(_, endpoint)| {
        let (address, gateway) = (endpoint.address?, endpoint.gateway?);
        let (subnet, _) = Subnet::parse(&format!("{address}/{}", endpoint.prefix_len)).ok()?;
        let known = Some(endpoint.network_id).filter(|id| !id.is_empty());
        Some(BridgeRecord {
            id: known.unwrap_or_else(crate::clock::hex_id),
            created: crate::clock::now(),
            subnet,
            gateway,
        })
    });
    bridges.next()
}

fn choose_bridge(options: &EngineOptions) -> Result<BridgeRecord> {
    let pools = if options.address_pools.is_empty() {
        ipam::default_pools()
    } else {
        let parsed = options
            .address_pools
            .iter()
            .map(|text| Ok(Subnet::parse(text)?.0));
        parsed.collect::<Result<_>>()?
    };
    let used = host_subnets()?;
    let subnet = pools
        .into_iter()
        .find(|pool| !used.iter().any(|used| used.overlaps(pool)))
        .ok_or_else(|| EngineError::Network {
            action: "choose the default bridge's subnet",
            reason: "every address pool overlaps with an address of this host; name another pool or a bridge address"
                .to_owned(),
        })?;
    Ok(BridgeRecord {
        id: crate::clock::hex_id(),
        created: crate::clock::now(),
        subnet,
        gateway: subnet.first_host(),
    })
}

/// Subnets of the host's own addresses.
fn host_subnets() -> Result<Vec<Subnet>> {
    let interfaces = nix::ifaddrs::getifaddrs().map_err(|errno| EngineError::Network {
        action: "list the host's addresses",
        reason: errno.to_string(),
    })?;
    Ok(interfaces
        .filter_map(|interface| {
            let address = interface.address?.as_sockaddr_in()?.ip();
            let mask = interface.netmask?.as_sockaddr_in()?.ip().to_bits();
            Some(Subnet {
                network: Ipv4Addr::from_bits(address.to_bits() & mask),
                prefix_len: u8::try_from(mask.count_ones()).unwrap_or(32),
            })
        })
        .filter(|subnet| (1..=32).contains(&subnet.prefix_len))
        .collect())
}
