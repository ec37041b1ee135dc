//! Writes the networks of the cluster.

use crate::time::rfc3339;
use serde_json::{Map, Value, json};
use shoal_engine::info::Endpoint as ShownEndpoint;
use shoal_model::control::{NetworkView, NodeView};
use shoal_model::netstate::{EndpointId, NetEndpoint};
use shoal_model::network::{Network, Subnets};
use shoal_model::spec::{PortConfig, PublishMode};
use shoal_model::{ContainerId, NetworkId, NodeId, ServiceId};
use std::collections::BTreeMap;

/// What an inspection knows besides the network.
#[derive(Default)]
pub(crate) struct Around<'a> {
    /// Containers of this node that are in it.
    pub(crate) containers: Vec<(ContainerId, String, ShownEndpoint)>,
    /// All nodes.
    pub(crate) nodes: &'a [NodeView],
    /// Published ports of its services.
    pub(crate) ports: BTreeMap<ServiceId, Vec<PortConfig>>,
    /// With services and their tasks.
    pub(crate) verbose: bool,
}

/// Writes a network as lists show it.
pub(crate) fn summary(network: &Network) -> Value {
    let spec = &network.spec;
    json!({
        "Name": spec.name,
        "Id": network.id.to_string(),
        "Created": rfc3339(network.meta.created_at),
        "Scope": "swarm",
        "Driver": "overlay",
        "EnableIPv4": true,
        "EnableIPv6": network.subnets.ipv6.is_some(),
        "IPAM": { "Driver": "default", "Options": null, "Config": ipam(&network.subnets) },
        "Internal": spec.internal,
        "Attachable": spec.attachable,
        "Ingress": spec.ingress,
        "ConfigFrom": { "Network": "" },
        "ConfigOnly": false,
        "Containers": null,
        "Options": spec.options,
        "Labels": spec.labels,
    })
}

/// The subnets as they were given out.
fn ipam(subnets: &Subnets) -> Value {
    let mut first = json!({
        "Subnet": subnets.ipv4.to_string(),
        "Gateway": subnets.gateway.to_string(),
    });
    if subnets.range != subnets.ipv4 {
        first["IPRange"] = json!(subnets.range.to_string());
    }
    let mut configs = vec![first];
    if let (Some(subnet), Some(gateway)) = (subnets.ipv6, subnets.gateway_ipv6) {
        configs.push(json!({ "Subnet": subnet.to_string(), "Gateway": gateway.to_string() }));
    }
    Value::Array(configs)
}

/// Writes a network as its inspection shows it.
pub(crate) fn inspect(view: &NetworkView, around: &Around<'_>) -> Value {
    let mut out = summary(&view.network);
    let containers: Map<String, Value> = around
        .containers
        .iter()
        .map(|(id, name, end)| (id.to_string(), container(id, name, end)))
        .collect();
    out["Containers"] = containers.into();
    out["Peers"] = peers(view, around.nodes);
    if around.verbose {
        out["Services"] = services(view, around);
    }
    out
}

fn container(id: &ContainerId, name: &str, end: &ShownEndpoint) -> Value {
    let ipv4 = end.address.map(|a| format!("{a}/{}", end.prefix_len));
    let ipv6 = end.ipv6.map(|a| format!("{a}/{}", end.ipv6_prefix_len));
    json!({
        "Name": name,
        "EndpointID": endpoint_id(&id.to_string(), &end.network_id),
        "MacAddress": end.mac,
        "IPv4Address": ipv4.unwrap_or_default(),
        "IPv6Address": ipv6.unwrap_or_default(),
    })
}

/// The nodes that have addresses of the network.
fn peers(view: &NetworkView, nodes: &[NodeView]) -> Value {
    let leases = view.leases.iter().map(|lease| lease.node_id);
    leases
        .filter_map(|id| nodes.iter().find(|known| known.node.id == id))
        .map(|known| json!({ "Name": known.node.display_name(), "IP": address(known) }))
        .collect()
}

/// Where other nodes reach the node.
fn address(known: &NodeView) -> String {
    known.node.status.addr.clone()
}

/// Services by name with their tasks; containers that no service owns stand under the empty name, as in Docker.
fn services(view: &NetworkView, around: &Around<'_>) -> Value {
    let mut out = Map::new();
    for (id, name, vip) in &view.services {
        let ends = view
            .endpoints
            .iter()
            .filter(|end| end.service.is_some_and(|(service_id, _)| service_id == *id));
        let ports = around.ports.get(id).into_iter().flatten();
        let entry = json!({
            "VIP": vip.map(|vip| vip.ipv4.to_string()).unwrap_or_default(),
            "Ports": ports.filter(|p| p.mode == PublishMode::Ingress).map(port).collect::<Vec<_>>(),
            "LocalLBIndex": 0,
            "Tasks": ends.map(|end| member(view.network.id, end, around.nodes)).collect::<Vec<_>>(),
        });
        out.insert(name.clone(), entry);
    }
    let alone: Vec<Value> = view
        .endpoints
        .iter()
        .filter(|end| end.service.is_none())
        .map(|end| member(view.network.id, end, around.nodes))
        .collect();
    if !alone.is_empty() {
        let entry = json!({ "VIP": "<nil>", "Ports": [], "LocalLBIndex": 0, "Tasks": alone });
        out.insert(String::new(), entry);
    }
    out.into()
}

fn port(port: &PortConfig) -> String {
    format!("Target: {}, Publish: {}", port.target, port.published)
}

fn member(network: NetworkId, end: &NetEndpoint, nodes: &[NodeView]) -> Value {
    let (name, owner) = match end.id {
        EndpointId::Task(id) => (format!("{}.{id}", end.name), id.to_string()),
        EndpointId::Container(id) => (end.name.clone(), id.to_string()),
    };
    let place = end.endpoints.iter().find(|end| end.network_id == network);
    json!({
        "Name": name,
        "EndpointID": endpoint_id(&owner, &network.to_string()),
        "EndpointIP": place.map(|end| end.ipv4.to_string()).unwrap_or_default(),
        "Info": { "Host IP": host(nodes, end.node_id) },
    })
}

fn host(nodes: &[NodeView], id: NodeId) -> String {
    let node = nodes.iter().find(|known| known.node.id == id);
    node.map(address).unwrap_or_default()
}

/// Docker's endpoints have ids of their own; ours are known by who is in which network.
pub(crate) fn endpoint_id(owner: &str, network: &str) -> String {
    // FNV-1a, four times with different beginnings: the text only has to be stable, and differ where they differ.
    const PRIME: u64 = 0x100_0000_01b3;
    const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
    let hash = |round: u64| {
        let bytes = owner.bytes().chain([b'/']).chain(network.bytes());
        bytes.fold(OFFSET ^ round.wrapping_mul(PRIME), |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(PRIME)
        })
    };
    (0..4)
        .map(|round| format!("{:016x}", hash(round)))
        .collect()
}

/// Writes the networks of a task: what it is in, and with which addresses.
pub(crate) fn attachments(
    endpoints: &[shoal_model::network::Endpoint],
    known: &BTreeMap<NetworkId, Network>,
) -> Value {
    endpoints
        .iter()
        .map(|end| {
            let network = known.get(&end.network_id);
            let prefix = network.map_or(32, |network| network.subnets.ipv4.prefix_len());
            let mut addresses = vec![format!("{}/{prefix}", end.ipv4)];
            if let Some(ipv6) = end.ipv6 {
                let subnet = network.and_then(|network| network.subnets.ipv6);
                let prefix = subnet.map_or(128, |subnet| subnet.prefix_len());
                addresses.push(format!("{ipv6}/{prefix}"));
            }
            json!({
                "Network": network.map_or_else(
                    || json!({ "ID": end.network_id.to_string() }),
                    network_object,
                ),
                "Addresses": addresses,
            })
        })
        .collect()
}

/// The network as objects of the cluster hold it.
fn network_object(network: &Network) -> Value {
    let spec = &network.spec;
    let mut out = json!({
        "ID": network.id.to_string(),
        "Spec": {
            "Name": spec.name,
            "Labels": spec.labels,
            "DriverConfiguration": { "Name": "overlay", "Options": spec.options },
            "IPv6Enabled": network.subnets.ipv6.is_some(),
            "Internal": spec.internal,
            "Attachable": spec.attachable,
            "Ingress": spec.ingress,
            "IPAMOptions": { "Driver": { "Name": "default" } },
            "Scope": "swarm",
        },
        "DriverState": { "Name": "overlay" },
        "IPAMOptions": { "Driver": { "Name": "default" }, "Configs": ipam(&network.subnets) },
    });
    super::common::put_meta(&mut out, &network.meta);
    out
}
