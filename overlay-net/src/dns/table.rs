//! Which names there are: a pure function of the network state and of this node's own view of it.

use crate::probe::Outlook;
use serde::{Deserialize, Serialize};
use shoal_model::netstate::{EndpointId, NetEndpoint, NetService, NetState};
use shoal_model::network::{Endpoint, Subnets};
use shoal_model::spec::{EndpointMode, OnPartition};
use shoal_model::{ContainerId, NetworkId, ServiceId};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The addresses that one end of a network has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Addresses {
    /// IPv4.
    pub ipv4: Ipv4Addr,
    /// IPv6, where the network has it.
    pub ipv6: Option<Ipv6Addr>,
}

impl Addresses {
    /// One or two addresses.
    pub fn each(self) -> impl Iterator<Item = IpAddr> {
        let ipv4 = std::iter::once(IpAddr::V4(self.ipv4));
        ipv4.chain(self.ipv6.map(IpAddr::V6))
    }
}

/// Whose names they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum NameOwner {
    /// A service and its tasks.
    Service(ServiceId),
    /// A container in an attachable network.
    Container(ContainerId),
}

/// The key of [`DnsNames`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct DnsKey {
    /// The network.
    pub network_id: NetworkId,
    /// The owner of the names in it.
    pub owner: NameOwner,
}

/// A network, as far as names are concerned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsNetwork {
    /// Its name in lower case, the domain of its names.
    pub name: String,
    /// It has no names: it is the network of published ports, which brings services together that were never meant to
    /// know each other.
    pub nameless: bool,
    /// Its containers learn nothing of the outside.
    pub internal: bool,
    /// Addresses that nobody outside is asked about.
    pub subnets: Subnets,
}

/// The names of one owner in one network. Names are in lower case.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsNames {
    /// The owner's name.
    pub name: String,
    /// Its further names.
    pub aliases: Vec<String>,
    /// What name and aliases resolve to; `None`: the members in rotation.
    pub vip: Option<Addresses>,
    /// The tasks, or the container itself.
    pub members: Vec<DnsMember>,
}

/// A task or a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsMember {
    /// What it is.
    pub id: EndpointId,
    /// Its slot; 0: none.
    pub slot: u64,
    /// `web.3`, or the container's name.
    pub name: String,
    /// Further names of this task alone.
    pub aliases: Vec<String>,
    /// Its addresses.
    pub addresses: Addresses,
    /// It takes new connections.
    pub in_rotation: bool,
}

/// All names that a node's containers may see.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DnsTable {
    /// Networks.
    pub networks: BTreeMap<NetworkId, DnsNetwork>,
    /// Names.
    pub names: BTreeMap<DnsKey, DnsNames>,
}

/// One change of a table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum DnsChange {
    /// Adds, replaces or (`None`) removes a network.
    Network(NetworkId, Option<DnsNetwork>),
    /// Adds, replaces or (`None`) removes the names of an owner.
    Names(DnsKey, Option<DnsNames>),
}

/// A change of the table that answers are given from. It is in force as a whole, or not at all.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DnsUpdate {
    /// It replaces everything known before.
    pub complete: bool,
    /// What changes.
    pub changes: Vec<DnsChange>,
}

impl DnsTable {
    /// The names of `state` as a node with this outlook sees them.
    pub fn of(state: &NetState, outlook: &Outlook<'_>) -> Self {
        let mut table = Self::default();
        for network in state.networks.values() {
            let known = DnsNetwork {
                name: network.name.to_lowercase(),
                nameless: network.ingress,
                internal: network.internal,
                subnets: network.subnets,
            };
            table.networks.insert(network.id, known);
        }
        let mut members: BTreeMap<ServiceId, Vec<&NetEndpoint>> = BTreeMap::new();
        for endpoint in state.endpoints.values() {
            match (endpoint.service, endpoint.id) {
                (Some((service_id, _)), _) => members.entry(service_id).or_default().push(endpoint),
                (None, EndpointId::Container(id)) => table.add_container(id, endpoint, outlook),
                // A task without a service has no name that anybody could know.
                (None, EndpointId::Task(_)) => {}
            }
        }
        for service in state.services.values() {
            let members = members.remove(&service.id).unwrap_or_default();
            table.add_service(service, &members, outlook);
        }
        table
    }

    fn has_names(&self, network_id: NetworkId) -> bool {
        let network = self.networks.get(&network_id);
        network.is_some_and(|network| !network.nameless)
    }

    fn add_service(
        &mut self,
        service: &NetService,
        members: &[&NetEndpoint],
        outlook: &Outlook<'_>,
    ) {
        let rotation = outlook.rotation(service.on_partition, members.iter().copied());
        let rotation: BTreeSet<_> = rotation.iter().map(|member| member.id).collect();
        for attachment in &service.networks {
            let network_id = attachment.network_id;
            if !self.has_names(network_id) {
                continue;
            }
            let vip = service.vips.iter().find(|vip| vip.network_id == network_id);
            let vip = vip.filter(|_| service.mode == EndpointMode::Vip);
            let members = members.iter().flat_map(|member| {
                let ends = ends_in(member, network_id);
                ends.map(|end| member_of(member, end, rotation.contains(&member.id)))
            });
            let names = DnsNames {
                name: service.name.to_lowercase(),
                aliases: lower(&attachment.aliases),
                vip: vip.map(|vip| Addresses {
                    ipv4: vip.ipv4,
                    ipv6: vip.ipv6,
                }),
                members: members.collect(),
            };
            let owner = NameOwner::Service(service.id);
            self.names.insert(DnsKey { network_id, owner }, names);
        }
    }

    fn add_container(&mut self, id: ContainerId, endpoint: &NetEndpoint, outlook: &Outlook<'_>) {
        // A container of its own has nobody to stand in for it: suspicion of its node changes nothing.
        let in_rotation = !outlook
            .rotation(OnPartition::Keep, std::iter::once(endpoint))
            .is_empty();
        for end in &endpoint.endpoints {
            if !self.has_names(end.network_id) {
                continue;
            }
            let mut aliases = lower(&end.aliases);
            aliases.push(id.short());
            let names = DnsNames {
                name: endpoint.name.to_lowercase(),
                aliases,
                vip: None,
                members: vec![DnsMember {
                    aliases: Vec::new(),
                    ..member_of(endpoint, end, in_rotation)
                }],
            };
            let key = DnsKey {
                network_id: end.network_id,
                owner: NameOwner::Container(id),
            };
            self.names.insert(key, names);
        }
    }

    /// What makes `self` of nothing.
    pub fn complete(&self) -> DnsUpdate {
        DnsUpdate {
            complete: true,
            changes: Self::default().changes_to(self),
        }
    }

    /// What makes `newer` of `self`; empty if they are equal.
    pub fn changes_to(&self, newer: &Self) -> Vec<DnsChange> {
        let networks = differences(&self.networks, &newer.networks)
            .map(|(id, network)| DnsChange::Network(id, network));
        let names =
            differences(&self.names, &newer.names).map(|(key, names)| DnsChange::Names(key, names));
        networks.chain(names).collect()
    }

    /// Takes an update.
    pub fn apply(&mut self, update: DnsUpdate) {
        if update.complete {
            *self = Self::default();
        }
        for change in update.changes {
            match change {
                DnsChange::Network(id, network) => put(&mut self.networks, id, network),
                DnsChange::Names(key, names) => put(&mut self.names, key, names),
            }
        }
    }
}

fn put<K: Ord, V>(map: &mut BTreeMap<K, V>, key: K, value: Option<V>) {
    match value {
        Some(value) => map.insert(key, value),
        None => map.remove(&key),
    };
}

/// The keys at which `newer` is not as `older`, with their new values.
fn differences<'m, K: Ord + Copy, V: PartialEq + Clone>(
    older: &'m BTreeMap<K, V>,
    newer: &'m BTreeMap<K, V>,
) -> impl Iterator<Item = (K, Option<V>)> + 'm {
    let gone = older.keys().filter(|key| !newer.contains_key(key));
    let changed = newer
        .iter()
        .filter(|(key, value)| older.get(key) != Some(value));
    gone.map(|key| (*key, None))
        .chain(changed.map(|(key, value)| (*key, Some(value.clone()))))
}

fn ends_in(endpoint: &NetEndpoint, network_id: NetworkId) -> impl Iterator<Item = &Endpoint> {
    let ends = endpoint.endpoints.iter();
    ends.filter(move |end| end.network_id == network_id)
}

fn member_of(endpoint: &NetEndpoint, end: &Endpoint, in_rotation: bool) -> DnsMember {
    DnsMember {
        id: endpoint.id,
        slot: endpoint.service.map_or(0, |(_, slot)| slot),
        name: endpoint.name.to_lowercase(),
        aliases: lower(&end.aliases),
        addresses: Addresses {
            ipv4: end.ipv4,
            ipv6: end.ipv6,
        },
        in_rotation,
    }
}

fn lower(names: &[String]) -> Vec<String> {
    names.iter().map(|name| name.to_lowercase()).collect()
}
