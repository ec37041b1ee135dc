//! A table made ready for questions: which addresses a name has for a container, and which name an address has.

use super::table::{
    Addresses, DnsChange, DnsKey, DnsMember, DnsNames, DnsNetwork, DnsUpdate, NameOwner,
};
use shoal_model::NetworkId;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

/// What a name or an address is to the networks of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Found<T> {
    /// It exists; a name may have no address at the moment.
    Here(T),
    /// It does not exist, and nobody outside can know better.
    Nowhere,
    /// It is nothing of ours.
    NotOurs,
}

/// All names of a node, indexed.
#[derive(Debug, Default)]
pub(super) struct Zone {
    networks: BTreeMap<NetworkId, Network>,
}

#[derive(Debug, Default)]
struct Network {
    /// `None` as long as the network itself was not announced: nobody sees its names yet.
    info: Option<DnsNetwork>,
    owners: BTreeMap<NameOwner, DnsNames>,
    by_name: HashMap<String, BTreeSet<NameOwner>>,
    by_address: HashMap<IpAddr, BTreeSet<NameOwner>>,
}

impl Zone {
    /// Takes an update of the table.
    pub(super) fn apply(&mut self, update: DnsUpdate) {
        if update.complete {
            self.networks.clear();
        }
        for change in update.changes {
            match change {
                DnsChange::Network(id, info) => self.networks.entry(id).or_default().info = info,
                DnsChange::Names(DnsKey { network_id, owner }, names) => {
                    let network = self.networks.entry(network_id).or_default();
                    network.set(owner, names);
                }
            }
        }
        self.networks
            .retain(|_, network| network.info.is_some() || !network.owners.is_empty());
    }

    /// What a container in `networks` gets for `name`, in lower case and without the final dot.
    ///
    /// The networks are asked in order, first for the whole name, then for `NAME.NETWORK`.
    pub(super) fn addresses(&self, networks: &[NetworkId], name: &str) -> Found<Vec<Addresses>> {
        let whole = networks
            .iter()
            .filter_map(|id| self.networks.get(id)?.addresses(name));
        let qualified = name
            .match_indices('.')
            .filter_map(|(dot, _)| self.qualified(networks, &name[..dot], &name[dot + 1..]));
        match whole.chain(qualified).next() {
            Some(addresses) => Found::Here(addresses),
            None => Found::NotOurs,
        }
    }

    fn qualified(
        &self,
        networks: &[NetworkId],
        name: &str,
        domain: &str,
    ) -> Option<Vec<Addresses>> {
        let mut known = networks.iter().filter_map(|id| self.networks.get(id));
        let is_it = |network: &&Network| network.info.as_ref().is_some_and(|i| i.name == domain);
        known.find(is_it)?.addresses(name)
    }

    /// The name of `address`: `NAME.NETWORK`.
    pub(super) fn name_of(&self, networks: &[NetworkId], address: IpAddr) -> Found<String> {
        let known = || networks.iter().filter_map(|id| self.networks.get(id));
        if let Some(name) = known().find_map(|network| network.name_of(address)) {
            return Found::Here(name);
        }
        if known().any(|network| network.covers(address)) {
            Found::Nowhere
        } else {
            Found::NotOurs
        }
    }

    /// Whether a container in `networks` may learn of the outside.
    pub(super) fn sees_outside(&self, networks: &[NetworkId]) -> bool {
        let mut known = networks
            .iter()
            .filter_map(|id| self.networks.get(id)?.info.as_ref());
        known.any(|network| !network.internal)
    }
}

impl Network {
    fn set(&mut self, owner: NameOwner, names: Option<DnsNames>) {
        if let Some(old) = self.owners.remove(&owner) {
            forget(&mut self.by_name, all_names(&old).map(str::to_owned), owner);
            forget(&mut self.by_address, all_addresses(&old), owner);
        }
        if let Some(names) = names {
            for name in all_names(&names) {
                self.by_name
                    .entry(name.to_owned())
                    .or_default()
                    .insert(owner);
            }
            for address in all_addresses(&names) {
                self.by_address.entry(address).or_default().insert(owner);
            }
            self.owners.insert(owner, names);
        }
    }

    /// The addresses of a name of this network; `None`: there is no such name.
    fn addresses(&self, name: &str) -> Option<Vec<Addresses>> {
        self.info.as_ref()?;
        self.exact(name)
            .or_else(|| self.tasks(name))
            .or_else(|| self.slot(name))
            .or_else(|| self.member(name))
    }

    fn owners_of(&self, name: &str) -> impl Iterator<Item = (&NameOwner, &DnsNames)> {
        let owners = self.by_name.get(name).into_iter().flatten();
        owners.filter_map(|owner| self.owners.get_key_value(owner))
    }

    /// Services that have `name` as their name or alias.
    fn services(&self, name: &str) -> impl Iterator<Item = &DnsNames> {
        self.owners_of(name).filter_map(move |(owner, names)| {
            let is_service = matches!(owner, NameOwner::Service(_));
            (is_service && names_owner(names, name)).then_some(names)
        })
    }

    /// A name, an alias of a service, a container or a task.
    fn exact(&self, name: &str) -> Option<Vec<Addresses>> {
        let mut owners = self.owners_of(name).peekable();
        owners.peek()?;
        let mut found = Vec::new();
        for (_, names) in owners {
            match names.vip {
                Some(vip) if names_owner(names, name) => found.push(vip),
                _ if names_owner(names, name) => found.extend(in_rotation(&names.members)),
                _ => found.extend(in_rotation(
                    names
                        .members
                        .iter()
                        .filter(|member| member.aliases.iter().any(|a| a == name)),
                )),
            }
        }
        Some(found)
    }

    /// `tasks.SERVICE`.
    fn tasks(&self, name: &str) -> Option<Vec<Addresses>> {
        let mut services = self.services(name.strip_prefix("tasks.")?).peekable();
        services.peek()?;
        Some(
            services
                .flat_map(|names| in_rotation(&names.members))
                .collect(),
        )
    }

    /// `SLOT.SERVICE`. A task answers to its own name even out of rotation: whoever asks wants this one.
    fn slot(&self, name: &str) -> Option<Vec<Addresses>> {
        let (slot, service) = name.split_once('.')?;
        let slot = decimal(slot)?;
        let members = self.services(service).flat_map(|names| &names.members);
        some(
            members
                .filter(|member| member.slot == slot)
                .map(|member| member.addresses),
        )
    }

    /// `SERVICE.SLOT` (or the node's id for a global service), or the same with the task's id behind it.
    fn member(&self, name: &str) -> Option<Vec<Addresses>> {
        let (front, last) = name.rsplit_once('.')?;
        let stable = self.services(front).flat_map(|names| &names.members);
        let stable = stable.filter(|member| member.name == name);
        let owner = front.rsplit_once('.').map(|(service, _)| service);
        let full = owner.into_iter().flat_map(|service| self.services(service));
        let full = full.flat_map(|names| &names.members);
        let full = full.filter(|member| member.name == front && is_task(member, last));
        some(stable.chain(full).map(|member| member.addresses))
    }

    fn name_of(&self, address: IpAddr) -> Option<String> {
        let domain = &self.info.as_ref()?.name;
        let owner = self.by_address.get(&address)?.first()?;
        let names = self.owners.get(owner)?;
        let is_vip = names
            .vip
            .is_some_and(|vip| vip.each().any(|own| own == address));
        let member = names
            .members
            .iter()
            .find(|member| member.addresses.each().any(|own| own == address));
        let name = match member {
            Some(member) if !is_vip => &member.name,
            _ => &names.name,
        };
        Some(format!("{name}.{domain}"))
    }

    fn covers(&self, address: IpAddr) -> bool {
        let Some(info) = &self.info else {
            return false;
        };
        match address {
            IpAddr::V4(address) => info.subnets.ipv4.contains(&address),
            IpAddr::V6(address) => info.subnets.ipv6.is_some_and(|net| net.contains(&address)),
        }
    }
}

fn some<T>(items: impl Iterator<Item = T>) -> Option<Vec<T>> {
    let items: Vec<_> = items.collect();
    (!items.is_empty()).then_some(items)
}

fn in_rotation<'m>(
    members: impl IntoIterator<Item = &'m DnsMember>,
) -> impl Iterator<Item = Addresses> {
    let members = members.into_iter().filter(|member| member.in_rotation);
    members.map(|member| member.addresses)
}

fn names_owner(names: &DnsNames, name: &str) -> bool {
    names.name == name || names.aliases.iter().any(|alias| alias == name)
}

fn is_task(member: &DnsMember, id: &str) -> bool {
    use shoal_model::netstate::EndpointId;
    matches!(member.id, EndpointId::Task(task) if task.to_string() == id)
}

/// A slot as it is written: `3`, but neither `03` nor `+3`.
fn decimal(text: &str) -> Option<u64> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit()) && !text.starts_with('0');
    if plain { text.parse().ok() } else { None }
}

fn all_names(names: &DnsNames) -> impl Iterator<Item = &str> {
    let own = std::iter::once(&names.name).chain(&names.aliases);
    let members = names.members.iter().flat_map(|member| &member.aliases);
    own.chain(members).map(String::as_str)
}

fn all_addresses(names: &DnsNames) -> impl Iterator<Item = IpAddr> {
    let vip = names.vip.into_iter();
    let members = names.members.iter().map(|member| member.addresses);
    vip.chain(members).flat_map(Addresses::each)
}

fn forget<K: std::hash::Hash + Eq>(
    index: &mut HashMap<K, BTreeSet<NameOwner>>,
    keys: impl Iterator<Item = K>,
    owner: NameOwner,
) {
    for key in keys {
        if let Some(owners) = index.get_mut(&key) {
            owners.remove(&owner);
            if owners.is_empty() {
                index.remove(&key);
            }
        }
    }
}
