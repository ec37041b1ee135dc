//! The network of a container that starts: its namespace, its addresses, its links, its published ports.

use super::record::ContainerRecord;
use super::start::{Made, running_pid};
use crate::config::{ContainerConfig, NetworkMode};
use crate::env::Env;
use crate::error::{EngineError, Result};
use crate::etc_files;
use crate::info::Endpoint;
use crate::network::overlay::{self, Joined};
use crate::network::{Allocate, Lease, OverlayLease, PortWish};
use crate::oci::NetworkNamespace;
use shoal_model::ContainerId;
use shoal_model::network::AttachmentWish;
use shoal_overlay_net::OverlayAttach;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::Arc;

/// The network as far as it is made.
pub(crate) struct Network {
    pub(crate) namespace: NetworkNamespace,
    pub(crate) lease: Lease,
    place: Place,
}

/// Where the namespace is to be connected.
enum Place {
    /// Nowhere.
    Apart,
    /// On the default bridge, with that address.
    Bridge(Ipv4Addr),
    /// In networks of the cluster.
    Overlay(Box<(Joined, OverlayAttach)>),
}

impl Network {
    /// The container's own addresses.
    pub(crate) fn addresses(&self) -> Vec<IpAddr> {
        match &self.place {
            Place::Apart => Vec::new(),
            Place::Bridge(address) => vec![IpAddr::V4(*address)],
            Place::Overlay(overlay) => {
                let ends = overlay.1.endpoints.iter();
                ends.flat_map(|end| {
                    let ipv6 = end.ipv6.map(IpAddr::V6);
                    [IpAddr::V4(end.ipv4)].into_iter().chain(ipv6)
                })
                .collect()
            }
        }
    }

    /// Content of /etc/resolv.conf, when names are answered by the overlay.
    pub(crate) fn resolv_conf(&self) -> Option<String> {
        match &self.place {
            Place::Apart | Place::Bridge(_) => None,
            Place::Overlay(overlay) => Some(shoal_overlay_net::dns::resolv_conf(&overlay.1.dns)),
        }
    }
}

/// Makes the namespace and gets the addresses; connects nothing yet.
pub(crate) async fn make_network(
    env: &Arc<Env>,
    record: &ContainerRecord,
    made: &mut Vec<Made>,
) -> Result<Network> {
    let mode = if record.config.network_disabled {
        &NetworkMode::None
    } else {
        &record.network_mode
    };
    let joined = |namespace| Network {
        namespace,
        lease: Lease::default(),
        place: Place::Apart,
    };
    match mode {
        NetworkMode::Host => Ok(joined(NetworkNamespace::Host)),
        NetworkMode::Container(name) => {
            let pid = running_pid(env, name, "join the network namespace of").await?;
            let path = format!("/proc/{pid}/ns/net").into();
            Ok(joined(NetworkNamespace::Path(path)))
        }
        NetworkMode::None => {
            let path = own_namespace(env, record, made).await?;
            Ok(of_its_own(path, Place::Apart))
        }
        NetworkMode::Bridge if record.config.endpoints.is_empty() => {
            on_bridge(env, record, made).await
        }
        NetworkMode::Bridge | NetworkMode::Named(_) => in_cluster(env, record, made).await,
    }
}

async fn own_namespace(
    env: &Env,
    record: &ContainerRecord,
    made: &mut Vec<Made>,
) -> Result<PathBuf> {
    let path = env.networks.netns_path(&record.id);
    env.networks.create_netns(&path).await?;
    made.push(Made::Namespace(path.clone()));
    Ok(path)
}

fn of_its_own(path: PathBuf, place: Place) -> Network {
    Network {
        lease: Lease {
            netns: Some(path.clone()),
            ..Lease::default()
        },
        namespace: NetworkNamespace::Path(path),
        place,
    }
}

async fn on_bridge(env: &Env, record: &ContainerRecord, made: &mut Vec<Made>) -> Result<Network> {
    let path = own_namespace(env, record, made).await?;
    let address = env.addresses.send(Allocate(record.id)).await??;
    made.push(Made::Address);
    let mut network = of_its_own(path, Place::Bridge(address));
    network.lease.endpoint = Some(Endpoint {
        network: "bridge".to_owned(),
        network_id: env.networks.record.id.clone(),
        address: Some(address),
        prefix_len: env.networks.bridge.prefix_len,
        gateway: Some(env.networks.bridge.gateway),
        ..Endpoint::default()
    });
    Ok(network)
}

/// The networks that the managers are to be asked for.
fn wishes(record: &ContainerRecord) -> Vec<AttachmentWish> {
    match &record.network_mode {
        NetworkMode::Named(name) if record.config.networks.is_empty() => vec![AttachmentWish {
            network: name.clone(),
            ipv4: None,
            aliases: Vec::new(),
        }],
        _ => record.config.networks.clone(),
    }
}

async fn in_cluster(env: &Env, record: &ContainerRecord, made: &mut Vec<Made>) -> Result<Network> {
    let config = &record.config;
    let joined = env.overlay.ready().await?;
    let asked = config.endpoints.is_empty();
    let (path, endpoints) = if asked {
        // Whatever comes of the question, the managers may have given addresses out.
        made.push(Made::Asked);
        let wishes = wishes(record);
        let (path, endpoints) = tokio::join!(
            own_namespace(env, record, made),
            env.overlay.ask(&joined, record.id, &record.name, &wishes)
        );
        (path?, endpoints?)
    } else {
        let path = own_namespace(env, record, made).await?;
        (path, config.endpoints.clone())
    };
    let host_resolv = etc_files::read_host_resolv_conf(&env.options.resolv_conf);
    let attach = OverlayAttach {
        container: record.id,
        name: record.name.clone(),
        netns: path.clone(),
        endpoints: endpoints.clone(),
        first_interface: 0,
        dns: etc_files::overlay_dns(config, &host_resolv),
        mtu: None,
    };
    let mut network = of_its_own(path, Place::Overlay(Box::new((joined, attach))));
    network.lease.overlay = Some(OverlayLease {
        endpoints,
        shown: Vec::new(),
        asked,
    });
    Ok(network)
}

/// What a running container holds of the cluster's networks, for an overlay that has to find everything again.
pub(crate) fn overlay_attach(
    env: &Env,
    id: ContainerId,
    name: &str,
    config: &ContainerConfig,
    lease: &crate::info::NetworkSettings,
) -> Option<OverlayAttach> {
    if lease.overlay.is_empty() {
        return None;
    }
    let host_resolv = etc_files::read_host_resolv_conf(&env.options.resolv_conf);
    Some(OverlayAttach {
        container: id,
        name: name.to_owned(),
        netns: lease.sandbox.clone()?,
        endpoints: lease.overlay.clone(),
        first_interface: 0,
        dns: etc_files::overlay_dns(config, &host_resolv),
        mtu: None,
    })
}

/// Connects the namespace and publishes the ports.
pub(crate) async fn connect(
    env: &Env,
    record: &ContainerRecord,
    network: &mut Network,
    made: &mut Vec<Made>,
) -> Result<()> {
    let Network { lease, place, .. } = network;
    let address = match &*place {
        Place::Apart => return Ok(()),
        Place::Bridge(address) => *address,
        Place::Overlay(overlay) => match overlay.1.endpoints.first() {
            Some(end) => end.ipv4,
            None => return Ok(()),
        },
    };
    made.push(match &*place {
        Place::Overlay(_) => Made::Overlay,
        Place::Apart | Place::Bridge(_) => Made::Link,
    });
    let wishes = port_wishes(&record.config);
    let (attached, published) = tokio::join!(link(env, record, place, lease), async {
        if wishes.is_empty() {
            Ok(Vec::new())
        } else {
            let published = env.networks.publish(&record.id, address, &wishes).await;
            name_holder(env, published).await
        }
    });
    if published.as_ref().is_ok_and(|ports| !ports.is_empty()) {
        made.push(Made::Ports);
    }
    attached?;
    lease.ports = published?;
    Ok(())
}

/// Makes the container's links.
async fn link(env: &Env, record: &ContainerRecord, place: &Place, lease: &mut Lease) -> Result<()> {
    match place {
        Place::Apart => {}
        Place::Bridge(address) => {
            let Some(netns) = lease.netns.clone() else {
                return Ok(());
            };
            let (host_link, mac) = env.networks.attach(&record.id, &netns, *address).await?;
            lease.host_link = Some(host_link);
            if let Some(endpoint) = &mut lease.endpoint {
                endpoint.mac = mac;
            }
        }
        Place::Overlay(overlay) => {
            let (joined, attach) = &**overlay;
            let interfaces = overlay::attach(joined, attach).await?;
            if let Some(lease) = &mut lease.overlay {
                let ends = lease.endpoints.iter().zip(&interfaces);
                lease.shown = ends.map(|(end, link)| overlay::shown(end, link)).collect();
            }
        }
    }
    Ok(())
}

/// The network knows containers by id only; users want the name too.
async fn name_holder<T>(env: &Env, published: Result<T>) -> Result<T> {
    let Err(EngineError::PortTaken {
        address,
        port,
        holder,
    }) = published
    else {
        return published;
    };
    let id = holder.trim_matches('`');
    let holder = match id.parse::<ContainerId>() {
        Ok(_) => match crate::supervisor::resolve(env, id).await {
            Ok(entry) => format!("container {} ({id})", entry.info().name),
            // It is being removed.
            Err(_) => holder,
        },
        Err(_) => holder,
    };
    Err(EngineError::PortTaken {
        address,
        port,
        holder,
    })
}

fn port_wishes(config: &ContainerConfig) -> Vec<PortWish> {
    let mut wishes = Vec::new();
    for (container, bindings) in &config.host.port_bindings {
        let default = [crate::config::PortBinding::default()];
        let bindings = if bindings.is_empty() {
            &default[..]
        } else {
            bindings
        };
        wishes.extend(bindings.iter().map(|binding| PortWish {
            container: *container,
            host_ip: binding.host_ip,
            host_ports: binding.host_ports,
        }));
    }
    if config.host.publish_all_ports {
        let unbound = config
            .exposed_ports
            .iter()
            .filter(|port| !config.host.port_bindings.contains_key(port));
        wishes.extend(unbound.map(|container| PortWish {
            container: *container,
            host_ip: crate::config::PortBinding::default().host_ip,
            host_ports: (0, 0),
        }));
    }
    wishes
}
