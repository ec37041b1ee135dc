//! What the kernel of one node should have: a pure function of the network state, of the containers that are attached
//! here, and of what the node knows by itself.
//!
//! No clock, no randomness, no kernel. The same input gives the same plan, whatever order it came in; the applier
//! compares a plan with what is in force and changes what differs.

mod balance;
mod filter;
mod fronts;
mod links;
mod marks;
mod peers;

pub use fronts::{Forget, Fronts};
pub use links::{FdbEntry, LinkNames, MarkRule, Neighbour, Route, RouteTarget};
pub use peers::PeerPlan;

pub(crate) use filter::endpoint_elements;
pub(crate) use links::{
    CONTAINER_ROUTER_MAC, MARK_PRIORITY, OUTGOING_MARKS, PROTOCOL, container_mac, endpoint_links,
    tunnel_mac,
};
pub(crate) use marks::{TUNNEL_PORT, TUNNEL_VNI};
pub(crate) use peers::peers;

#[cfg(test)]
mod tests;

use crate::local::InstanceTag;
use crate::nft;
use crate::probe::Outlook;
use shoal_model::netstate::{NetNode, NetState};
use shoal_model::network::{Endpoint, MeshAddress};
use shoal_model::{ContainerId, NodeId};
use std::collections::{BTreeMap, BTreeSet};

/// MTU of the mesh's device in bytes, over a path of 1500: WireGuard takes 80 with an IPv6 header.
pub const MESH_MTU: u32 = 1_420;

/// What the tunnel for published ports takes of the mesh's MTU, in bytes: outer IPv4, UDP and VXLAN headers, and the
/// inner Ethernet header.
pub const TUNNEL_OVERHEAD: u32 = 50;

/// A container's interface in a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttachedInterface {
    /// The host's end.
    pub host_link: String,
    /// Its addresses.
    pub endpoint: Endpoint,
}

/// The containers that are attached here, with their interfaces.
pub type Attached = BTreeMap<ContainerId, Vec<AttachedInterface>>;

/// All that a plan depends on.
#[derive(Debug, Clone, Copy)]
pub struct PlanInput<'a> {
    /// Marks our kernel objects.
    pub tag: &'a InstanceTag,
    /// What the managers told.
    pub state: &'a NetState,
    /// What the node knows by itself.
    pub outlook: Outlook<'a>,
    /// Its containers.
    pub attached: &'a Attached,
    /// UDP ports of daemons, which no container may reach at any node's address.
    pub daemon_ports: &'a BTreeSet<u16>,
    /// MTU of the mesh's device in bytes.
    pub mesh_mtu: u32,
}

impl<'a> PlanInput<'a> {
    fn own_node(&self) -> Option<&'a NetNode> {
        self.state.nodes.get(&self.outlook.node_id)
    }

    /// All nodes but this one.
    fn others(&self) -> impl Iterator<Item = &'a NetNode> {
        let own = self.outlook.node_id;
        self.state.nodes.values().filter(move |node| node.id != own)
    }

    fn interfaces(&self) -> impl Iterator<Item = &'a AttachedInterface> {
        self.attached.values().flatten()
    }
}

/// What there should be.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// Names of our devices.
    pub names: LinkNames,
    /// The node's addresses in the mesh; `None`: it has none yet, so that there is no mesh and no tunnel.
    pub mesh: Option<MeshAddress>,
    /// MTU of the mesh's device in bytes.
    pub mesh_mtu: u32,
    /// A network has IPv6, so that the host must pass it on.
    pub ipv6: bool,
    /// Host ends of containers.
    pub host_links: BTreeSet<String>,
    /// Routes with our mark as their origin.
    pub routes: BTreeSet<Route>,
    /// Which marked packets take which of our routing tables.
    pub rules: BTreeSet<MarkRule>,
    /// Permanent neighbours on our devices.
    pub neighbours: BTreeSet<Neighbour>,
    /// Where the tunnel finds its other ends.
    pub fdb: BTreeSet<FdbEntry>,
    /// WireGuard's peers.
    pub peers: BTreeMap<NodeId, PeerPlan>,
    /// Where connections lead.
    pub fronts: Fronts,
    /// The packet filter.
    pub(crate) filter: nft::Model,
}

/// Plans a node.
pub fn plan(input: &PlanInput<'_>) -> Plan {
    let names = LinkNames::of(input.tag);
    let mut plan = Plan {
        mesh: input.own_node().map(|node| node.mesh),
        mesh_mtu: input.mesh_mtu,
        ipv6: input
            .state
            .networks
            .values()
            .any(|network| network.subnets.ipv6.is_some()),
        host_links: input
            .interfaces()
            .map(|interface| interface.host_link.clone())
            .collect(),
        peers: peers::peers(input),
        fronts: Fronts::of(input),
        filter: filter::filter(input, &names),
        names,
        ..Plan::default()
    };
    links::add_links(input, &mut plan);
    plan
}
