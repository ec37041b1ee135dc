//! Addresses of one network after the other: what the store says, and what was given out on top of it.
//!
//! A node uses addresses of blocks that it has leased, so that a new task changes nothing on other nodes. When no block
//! is left, an address that another node has leased and does not use changes its node. Blocks are taken from the bottom
//! of the range, virtual addresses from the top.

use super::AllocationError;
use super::blocks::{self, SINGLE};
use crate::store::{State, is_reserved};
use ipnet::Ipv4Net;
use shoal_model::command::{Object, ObjectKey, StoreAction};
use shoal_model::netstate::EndpointId;
use shoal_model::network::{AddressLease, Endpoint, NetworkAttachment};
use shoal_model::{Meta, Network, NetworkId, NodeId};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::net::Ipv4Addr;

/// A draft of who has which address. [`Addresses::into_actions`] says how the leases come to be like it.
pub struct Addresses<'a> {
    state: &'a State,
    networks: BTreeMap<NetworkId, Book<'a>>,
}

impl<'a> Addresses<'a> {
    /// Nothing is given out yet beyond what `state` says.
    pub const fn new(state: &'a State) -> Self {
        Self {
            state,
            networks: BTreeMap::new(),
        }
    }

    /// An address in each of `networks` for a task or container on `node`. All or none: what was given before a failure
    /// is free again.
    ///
    /// `seed` chooses among the free addresses, so that one that has just become free is seldom the next.
    ///
    /// # Errors
    /// See [`AllocationError`].
    pub fn endpoints(
        &mut self,
        networks: &[NetworkAttachment],
        node: NodeId,
        seed: u128,
    ) -> Result<Vec<Endpoint>, AllocationError> {
        let mut given: Vec<Endpoint> = Vec::with_capacity(networks.len());
        for attachment in networks {
            let book = self.book(attachment.network_id);
            match book.and_then(|book| Ok((book.take(node, seed)?, book.network))) {
                Ok((address, network)) => given.push(endpoint(network, address, attachment)),
                Err(err) => {
                    for endpoint in &given {
                        self.put_back(endpoint, node);
                    }
                    return Err(err);
                }
            }
        }
        Ok(given)
    }

    /// That address for a container on `node`, if nobody has it.
    ///
    /// # Errors
    /// See [`AllocationError`].
    pub fn fixed(
        &mut self,
        attachment: &NetworkAttachment,
        node: NodeId,
        address: Ipv4Addr,
    ) -> Result<Endpoint, AllocationError> {
        let book = self.book(attachment.network_id)?;
        book.claim(node, address)?;
        Ok(endpoint(book.network, address, attachment))
    }

    /// The highest address that is neither in use nor leased; else the highest that is leased and not used.
    ///
    /// # Errors
    /// See [`AllocationError`].
    pub fn virtual_address(&mut self, network: NetworkId) -> Result<Ipv4Addr, AllocationError> {
        self.book(network)?.take_virtual()
    }

    /// The changes of leases, in an order in which each is allowed once those before it are made.
    pub fn into_actions(self) -> Vec<StoreAction> {
        let mut shrunk = Vec::new();
        let mut grown = Vec::new();
        for book in self.networks.into_values() {
            for (node_id, draft) in book.leases {
                match draft.change {
                    Change::None => {}
                    Change::Shrunk => shrunk.push(action(book.network.id, node_id, draft)),
                    Change::Grown => grown.push(action(book.network.id, node_id, draft)),
                }
            }
        }
        shrunk.into_iter().chain(grown).collect()
    }

    fn put_back(&mut self, endpoint: &Endpoint, node: NodeId) {
        if let Some(book) = self.networks.get_mut(&endpoint.network_id) {
            book.free_of(node).push(endpoint.ipv4);
            let count = book.free_of(node).len();
            if let Some(rich) = &mut book.rich {
                rich.push((count, Reverse(node)));
            }
        }
    }

    fn book(&mut self, id: NetworkId) -> Result<&mut Book<'a>, AllocationError> {
        let state = self.state;
        let network = state.network(id).ok_or(AllocationError::NoNetwork(id))?;
        Ok(self.networks.entry(id).or_insert_with(|| Book {
            state,
            network,
            leases: BTreeMap::new(),
            free: BTreeMap::new(),
            rich: None,
            moves: false,
            full: false,
            occupied: None,
        }))
    }
}

fn endpoint(network: &Network, ipv4: Ipv4Addr, attachment: &NetworkAttachment) -> Endpoint {
    Endpoint {
        network_id: network.id,
        ipv4,
        ipv6: network.subnets.ipv6_of(ipv4),
        aliases: attachment.aliases.clone(),
    }
}

fn action(network_id: NetworkId, node_id: NodeId, draft: Draft) -> StoreAction {
    let meta = draft.stored;
    if draft.blocks.is_empty() {
        return StoreAction::Remove {
            key: ObjectKey::Lease(network_id, node_id),
            version: meta.map(|meta| meta.version),
        };
    }
    let stored = meta.is_some();
    let lease = Object::Lease(Box::new(AddressLease {
        network_id,
        node_id,
        meta: meta.unwrap_or_default(),
        blocks: draft.blocks,
    }));
    if stored {
        StoreAction::Update(lease)
    } else {
        StoreAction::Create(lease)
    }
}

/// How a lease differs from the stored one. A lease changes once per entry, so that no draft shrinks and grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Change {
    #[default]
    None,
    Shrunk,
    Grown,
}

/// A lease as it is to be.
#[derive(Debug, Clone, Default)]
struct Draft {
    /// Version of the stored one.
    stored: Option<Meta>,
    blocks: BTreeSet<Ipv4Net>,
    change: Change,
}

/// One network.
struct Book<'a> {
    state: &'a State,
    network: &'a Network,
    /// Leases that were looked at.
    leases: BTreeMap<NodeId, Draft>,
    /// Addresses that a node has leased and nobody uses, of nodes that were looked at.
    free: BTreeMap<NodeId, Vec<Ipv4Addr>>,
    /// Nodes with the number of their free addresses, most first, once an address had to change its node. An entry may
    /// be outdated; every node that may give has one.
    rich: Option<BinaryHeap<(usize, Reverse<NodeId>)>>,
    /// A node that has grown with this draft has addresses to spare.
    moves: bool,
    /// No block is left that nobody has leased. What is leased is split in a draft, and never free again.
    full: bool,
    /// Stretches (first, last) that are leased or virtual, once they were asked for.
    occupied: Option<Occupied>,
}

/// Disjoint stretches (first, last) of addresses, in order.
#[derive(Debug, Clone, Default)]
struct Occupied {
    stretches: BTreeSet<(u32, u32)>,
    /// How many addresses they have.
    addresses: u64,
}

impl Occupied {
    fn add(&mut self, block: Ipv4Net) {
        if self.stretches.insert(ends(block)) {
            self.addresses += blocks::size(block);
        }
    }

    fn remove(&mut self, block: Ipv4Net) {
        if self.stretches.remove(&ends(block)) {
            self.addresses -= blocks::size(block);
        }
    }
}

fn ends(block: Ipv4Net) -> (u32, u32) {
    (block.network().to_bits(), block.broadcast().to_bits())
}

impl Book<'_> {
    fn take(&mut self, node: NodeId, seed: u128) -> Result<Ipv4Addr, AllocationError> {
        if self.free_of(node).is_empty() {
            self.grow(node)?;
        }
        let free = self.free_of(node);
        let count = free.len() as u128;
        if count == 0 {
            return Err(self.exhausted());
        }
        // The remainder is less than the length.
        let place = usize::try_from(seed % count).unwrap_or(0);
        Ok(free.remove(place))
    }

    fn claim(&mut self, node: NodeId, address: Ipv4Addr) -> Result<(), AllocationError> {
        let bad = |problem: String| AllocationError::BadAddress {
            network: self.network.spec.name.clone(),
            address,
            problem,
        };
        let subnet = self.network.subnets.ipv4;
        if !subnet.contains(&address) {
            return Err(bad(format!("it is not in the network's subnet {subnet}")));
        }
        if is_reserved(self.network, address) {
            return Err(bad(
                "it is the network's own, its gateway's, or its last one".to_owned(),
            ));
        }
        if let Some(holder) = self.holder(address) {
            return Err(AllocationError::AddressTaken {
                network: self.network.spec.name.clone(),
                address,
                holder,
            });
        }
        if self.draft(node).change == Change::Shrunk {
            return Err(self.moving());
        }
        let block = blocks::single(address);
        match self.state.block_of(self.network.id, address) {
            Some((_, holder)) if holder == node => {
                self.free_of(node).retain(|free| *free != address);
                return Ok(());
            }
            Some((_, holder)) if self.state.node(holder).is_none() => {
                return Err(bad(
                    "it was leased to a node that has left: try again when every node knows"
                        .to_owned(),
                ));
            }
            Some((_, holder)) => self.take_from(holder, address)?,
            None => {}
        }
        self.lease_more(node, block)?;
        self.free_of(node).retain(|free| *free != address);
        Ok(())
    }

    /// Who has the address, in words.
    fn holder(&self, address: Ipv4Addr) -> Option<String> {
        let state = self.state;
        if let Some(id) = state.vip_at(self.network.id, address) {
            let service = state.service(id)?;
            return Some(format!("service `{}`", service.spec.name));
        }
        Some(match state.endpoint_at(self.network.id, address)? {
            EndpointId::Task(id) => format!("task `{}`", state.task(id)?.name()),
            EndpointId::Container(id) => format!("container `{}`", state.attachment(id)?.name),
        })
    }

    fn draft(&mut self, node: NodeId) -> &mut Draft {
        let (state, network) = (self.state, self.network.id);
        self.leases.entry(node).or_insert_with(|| {
            let stored = state.lease(network, node);
            Draft {
                blocks: stored.map(|lease| lease.blocks.clone()).unwrap_or_default(),
                stored: stored.map(|lease| lease.meta),
                change: Change::None,
            }
        })
    }

    /// The addresses that the node has leased and nobody uses, lowest first unless some were put back.
    fn free_of(&mut self, node: NodeId) -> &mut Vec<Ipv4Addr> {
        let (state, network) = (self.state, self.network);
        self.free.entry(node).or_insert_with(|| {
            let lease = state.lease(network.id, node);
            let blocks = lease.iter().flat_map(|lease| &lease.blocks);
            blocks
                .flat_map(|block| unused(state, network, *block))
                .collect()
        })
    }

    /// Leases a further block to the node.
    fn grow(&mut self, node: NodeId) -> Result<(), AllocationError> {
        if self.draft(node).change == Change::Shrunk {
            return Err(self.moving());
        }
        let block = if self.full { None } else { self.unleased(node) };
        match block {
            Some(block) => self.lease_more(node, block),
            None => {
                self.full = true;
                let (holder, address) = self.spare()?;
                self.take_from(holder, address)?;
                self.lease_more(node, blocks::single(address))
            }
        }
    }

    /// A block that nobody has leased.
    fn unleased(&mut self, node: NodeId) -> Option<Ipv4Net> {
        let network = self.network;
        let range = network.subnets.range;
        let own = self.draft(node).blocks.iter();
        let own = own.map(|block| blocks::size(*block)).sum();
        let occupied = self.occupied();
        let wanted = blocks::next_block(own, occupied.addresses, blocks::size(range));
        (wanted.max(range.prefix_len())..=SINGLE).find_map(|length| {
            let ordered = occupied.stretches.iter().copied();
            let block = blocks::lowest_free(range, length, ordered)?;
            if is_useful(network, block) {
                return Some(block);
            }
            // A block of reserved addresses only is good for nothing, and there are four of them at most.
            let mut others = occupied.stretches.clone();
            loop {
                let block = blocks::lowest_free(range, length, others.iter().copied())?;
                if is_useful(network, block) {
                    return Some(block);
                }
                others.insert(ends(block));
            }
        })
    }

    /// What is leased or virtual.
    fn occupied(&mut self) -> &mut Occupied {
        let (state, network, leases) = (self.state, self.network, &self.leases);
        self.occupied.get_or_insert_with(|| {
            let mut occupied = Occupied::default();
            let stored = state.blocks_in(network.id);
            stored
                .filter(|(_, node)| !leases.contains_key(node))
                .for_each(|(block, _)| occupied.add(block));
            let drafted = leases.values().flat_map(|draft| &draft.blocks);
            drafted.for_each(|block| occupied.add(*block));
            state
                .vips_in(network.id, network.subnets.ipv4)
                .for_each(|(address, _)| occupied.add(blocks::single(address)));
            occupied
        })
    }

    fn lease_more(&mut self, node: NodeId, block: Ipv4Net) -> Result<(), AllocationError> {
        let (state, network) = (self.state, self.network);
        let moving = self.moving();
        let draft = self.draft(node);
        if draft.change == Change::Shrunk {
            return Err(moving);
        }
        draft.change = Change::Grown;
        draft.blocks.insert(block);
        self.free_of(node).extend(unused(state, network, block));
        self.occupied().add(block);
        Ok(())
    }

    /// Takes an unused address out of the lease of a node.
    fn take_from(&mut self, holder: NodeId, address: Ipv4Addr) -> Result<(), AllocationError> {
        let moving = self.moving();
        let draft = self.draft(holder);
        let leased = draft.blocks.iter().find(|block| block.contains(&address));
        let Some(block) = leased.copied().filter(|_| draft.change != Change::Grown) else {
            return Err(moving);
        };
        let rest = blocks::without(block, blocks::single(address));
        draft.change = Change::Shrunk;
        draft.blocks.remove(&block);
        draft.blocks.extend(&rest);
        self.free_of(holder).retain(|free| *free != address);
        let occupied = self.occupied();
        occupied.remove(block);
        rest.into_iter().for_each(|block| occupied.add(block));
        Ok(())
    }

    /// The highest unused address of the node that has most of them. Nodes that have left keep theirs for a while.
    fn spare(&mut self) -> Result<(NodeId, Ipv4Addr), AllocationError> {
        let mut rich = match self.rich.take() {
            Some(rich) => rich,
            None => {
                self.load_all();
                let present = self
                    .free
                    .iter()
                    .filter(|(id, _)| self.state.node(**id).is_some());
                present
                    .map(|(id, free)| (free.len(), Reverse(*id)))
                    .collect()
            }
        };
        let found = self.richest(&mut rich);
        self.rich = Some(rich);
        match found {
            Some(found) => Ok(found),
            None if self.moves => Err(self.moving()),
            None => Err(self.exhausted()),
        }
    }

    /// Takes the first node from `rich` whose entry is still true. One that has grown gives nothing with this draft.
    fn richest(
        &mut self,
        rich: &mut BinaryHeap<(usize, Reverse<NodeId>)>,
    ) -> Option<(NodeId, Ipv4Addr)> {
        while let Some((count, Reverse(id))) = rich.pop() {
            let free = self.free.get(&id).map_or(&[][..], |free| free);
            let Some(highest) = free.iter().max().copied() else {
                continue;
            };
            if free.len() != count {
                rich.push((free.len(), Reverse(id)));
                continue;
            }
            if self
                .leases
                .get(&id)
                .is_some_and(|it| it.change == Change::Grown)
            {
                self.moves = true;
                continue;
            }
            rich.push((count - 1, Reverse(id)));
            return Some((id, highest));
        }
        None
    }

    fn load_all(&mut self) {
        let nodes: Vec<NodeId> = self
            .state
            .leases_in(self.network.id)
            .map(|lease| lease.node_id)
            .collect();
        for node in nodes {
            self.free_of(node);
        }
    }

    fn take_virtual(&mut self) -> Result<Ipv4Addr, AllocationError> {
        let address = match self.highest_free() {
            Some(address) => address,
            None => {
                let (address, holder) = self.highest_unused().ok_or_else(|| self.exhausted())?;
                self.take_from(holder, address)?;
                address
            }
        };
        self.occupied().add(blocks::single(address));
        Ok(address)
    }

    /// The highest address that is neither leased nor virtual.
    fn highest_free(&mut self) -> Option<Ipv4Addr> {
        let network = self.network;
        let (first, last) = ends(network.subnets.range);
        let stretches = &self.occupied().stretches;
        let mut stretches = stretches.iter().rev().peekable();
        let mut place = last;
        while place >= first {
            while stretches.next_if(|(start, _)| *start > place).is_some() {}
            let address = Ipv4Addr::from_bits(place);
            match stretches.peek() {
                Some((start, end)) if *end >= place => place = start.checked_sub(1)?,
                _ if is_reserved(network, address) => place = place.checked_sub(1)?,
                _ => return Some(address),
            }
        }
        None
    }

    /// The highest address that is leased and not used. Nodes that have left keep theirs for a while.
    fn highest_unused(&mut self) -> Option<(Ipv4Addr, NodeId)> {
        self.load_all();
        let range = self.network.subnets.range;
        let present = self
            .free
            .iter()
            .filter(|(id, _)| self.state.node(**id).is_some());
        present
            .flat_map(|(id, free)| free.iter().map(|address| (*address, *id)))
            .filter(|(address, _)| range.contains(address))
            .max()
    }

    fn moving(&self) -> AllocationError {
        AllocationError::Moving {
            network: self.network.spec.name.clone(),
        }
    }

    fn exhausted(&self) -> AllocationError {
        let (state, id) = (self.state, self.network.id);
        let range = self.network.subnets.range;
        let reserved = addresses_reserved(self.network);
        let vips = state.vips_in(id, range).count();
        let resting = state
            .blocks_in(id)
            .filter(|(_, node)| state.node(*node).is_none())
            .map(|(block, _)| blocks::size(block))
            .sum();
        let usable = blocks::size(range) - reserved;
        AllocationError::Exhausted {
            network: self.network.spec.name.clone(),
            range,
            usable,
            endpoints: usable.saturating_sub(vips as u64).saturating_sub(resting),
            nodes: state.leases_in(id).count(),
            vips: vips as u64,
            resting,
        }
    }
}

/// How many addresses of the range nobody gets.
fn addresses_reserved(network: &Network) -> u64 {
    let subnets = &network.subnets;
    let of_gateway = subnets
        .gateway_ipv6
        .zip(subnets.ipv6)
        .and_then(|(gateway, subnet)| {
            let place = gateway.to_bits() - subnet.network().to_bits();
            let place = u32::try_from(place).ok()?;
            let bits = subnets.ipv4.network().to_bits().checked_add(place)?;
            Some(Ipv4Addr::from_bits(bits))
        });
    let own = [
        subnets.ipv4.network(),
        subnets.ipv4.broadcast(),
        subnets.gateway,
    ];
    let all: BTreeSet<Ipv4Addr> = own.into_iter().chain(of_gateway).collect();
    all.iter().filter(|it| subnets.range.contains(*it)).count() as u64
}

/// It has an address that somebody can have.
fn is_useful(network: &Network, block: Ipv4Net) -> bool {
    // Four addresses are reserved at most.
    block.prefix_len() < SINGLE - 2 || addresses(block).any(|it| !is_reserved(network, it))
}

fn addresses(block: Ipv4Net) -> impl Iterator<Item = Ipv4Addr> {
    (block.network().to_bits()..=block.broadcast().to_bits()).map(Ipv4Addr::from_bits)
}

/// The addresses of a block that nobody has, lowest first.
fn unused(state: &State, network: &Network, block: Ipv4Net) -> Vec<Ipv4Addr> {
    let mut used = state
        .endpoints_in(network.id, block)
        .map(|(address, _)| address)
        .peekable();
    addresses(block)
        .filter(|address| {
            while used.next_if(|used| used < address).is_some() {}
            used.peek() != Some(address) && !is_reserved(network, *address)
        })
        .collect()
}
