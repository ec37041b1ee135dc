//! What nodes are told of stored objects, pure.

use crate::store::State;
use shoal_model::netstate::{
    EndpointId, NetEndpoint, NetKey, NetLease, NetNetwork, NetNode, NetRecord, NetService,
};
use shoal_model::spec::PublishMode;
use shoal_model::{
    AddressLease, Attachment, Network, Node, NodeId, NodeState, Service, Task, TaskState,
};
use std::net::{IpAddr, SocketAddr};

/// Whether `task` takes new connections: it runs, is healthy, and is to stay, on a node that was not lost.
pub fn in_rotation(state: &State, task: &Task) -> bool {
    task.desired == TaskState::Running
        && task.status.state == TaskState::Running
        && task.status.ready
        && task.node_id.is_some_and(|node_id| !is_lost(state, node_id))
}

/// Whether other nodes send connections to `task`: it has addresses in networks, or ports on every node.
pub fn is_reachable(task: &Task) -> bool {
    !task.endpoints.is_empty() || task.ports.iter().any(is_ingress)
}

fn is_ingress(port: &shoal_model::spec::PortConfig) -> bool {
    port.mode == PublishMode::Ingress
}

/// Whether the service is reached by ports on every node.
pub(super) fn has_ingress(service: &Service) -> bool {
    service.ports.iter().any(is_ingress)
}

/// Whether the node is gone, or so long silent that its tasks are replaced.
pub(crate) fn is_lost(state: &State, node_id: NodeId) -> bool {
    state
        .node(node_id)
        .is_none_or(|node| node.status.state == NodeState::Down)
}

/// The record of `key` as `state` has it; `None`: there is nothing to tell.
pub(crate) fn record(state: &State, key: NetKey) -> Option<NetRecord> {
    match key {
        NetKey::Node(id) => node(state.node(id)?).map(NetRecord::Node),
        NetKey::Network(id) => Some(NetRecord::Network(network(state.network(id)?))),
        NetKey::Lease(network, node) => Some(NetRecord::Lease(lease(state.lease(network, node)?))),
        NetKey::Service(id) => service(state.service(id)?).map(NetRecord::Service),
        NetKey::Endpoint(EndpointId::Task(id)) => {
            task(state, state.task(id)?).map(NetRecord::Endpoint)
        }
        NetKey::Endpoint(EndpointId::Container(id)) => Some(NetRecord::Endpoint(attachment(
            state,
            state.attachment(id)?,
        ))),
    }
}

/// A node is part of the mesh once it has a key and an address there.
fn node(node: &Node) -> Option<NetNode> {
    let description = node.description.as_ref()?;
    let wireguard = description.wireguard.as_ref()?;
    let port = wireguard.port;
    // What the node says of itself comes first; what the leader sees helps where an address is translated.
    let said = description.control_addr.map(|addr| addr.ip());
    let seen: Option<IpAddr> = node.status.addr.parse().ok();
    let mut addrs: Vec<SocketAddr> = Vec::new();
    for ip in said.into_iter().chain(seen) {
        let addr = SocketAddr::new(ip, port);
        if !ip.is_unspecified() && !addrs.contains(&addr) {
            addrs.push(addr);
        }
    }
    Some(NetNode {
        id: node.id,
        name: node.display_name(),
        public_key: wireguard.public_key,
        next_key: wireguard.next_key,
        addrs,
        mesh: node.mesh?,
        relay: node.manager.is_some(),
    })
}

fn network(network: &Network) -> NetNetwork {
    NetNetwork {
        id: network.id,
        name: network.spec.name.clone(),
        subnets: network.subnets,
        internal: network.spec.internal,
        ingress: network.spec.ingress,
        mtu: network.spec.mtu,
    }
}

fn lease(lease: &AddressLease) -> NetLease {
    NetLease {
        network_id: lease.network_id,
        node_id: lease.node_id,
        blocks: lease.blocks.clone(),
    }
}

/// A service that is being removed is not told any more: its name may belong to another one already.
fn service(service: &Service) -> Option<NetService> {
    let spec = &service.spec;
    (!service.pending_delete).then(|| NetService {
        id: service.id,
        name: spec.name.clone(),
        mode: spec.endpoint.mode,
        sticky_s: spec.endpoint.sticky_s,
        networks: spec.task.networks.clone(),
        vips: service.vips.clone(),
        ports: service
            .ports
            .iter()
            .filter(|port| is_ingress(port))
            .cloned()
            .collect(),
        on_partition: spec.effective_on_partition(),
    })
}

/// A task has an end in networks from when it got its addresses until it has ended.
fn task(state: &State, task: &Task) -> Option<NetEndpoint> {
    let node_id = task.node_id?;
    if task.endpoints.is_empty() || task.status.state.is_terminal() {
        return None;
    }
    Some(NetEndpoint {
        id: EndpointId::Task(task.id),
        node_id,
        service: Some((task.service_id, task.slot)),
        name: task.name(),
        endpoints: task.endpoints.clone(),
        in_rotation: in_rotation(state, task),
    })
}

fn attachment(state: &State, attachment: &Attachment) -> NetEndpoint {
    NetEndpoint {
        id: EndpointId::Container(attachment.container_id),
        node_id: attachment.node_id,
        service: None,
        name: attachment.name.clone(),
        endpoints: attachment.endpoints.clone(),
        in_rotation: !is_lost(state, attachment.node_id),
    }
}
