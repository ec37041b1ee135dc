//! Which nodes satisfy the platform and the constraints of a spec: one bit per node, computed once per kind of spec.

use crate::constraint::{self, Constraint};
use crate::filter::platform_matches;
use shoal_model::spec::{Placement, Platform};
use shoal_model::{Node, NodeId};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

/// Most kinds of specs whose bits are kept; beyond it all are forgotten and computed again when asked for.
const KINDS_MAX: usize = 64;

/// A set of node indices.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct NodeBits(Vec<u64>);

impl NodeBits {
    pub(crate) fn contains(&self, index: u32) -> bool {
        self.0
            .get(index as usize / 64)
            .is_some_and(|word| word >> (index % 64) & 1 == 1)
    }

    fn set(&mut self, index: u32, value: bool) {
        let word = index as usize / 64;
        if word >= self.0.len() {
            self.0.resize(word + 1, 0);
        }
        if value {
            self.0[word] |= 1 << (index % 64);
        } else {
            self.0[word] &= !(1 << (index % 64));
        }
    }

    /// The members in ascending order.
    pub(crate) fn ones(&self) -> impl Iterator<Item = u32> + '_ {
        self.0.iter().zip(0u32..).flat_map(|(&word, position)| {
            let mut rest = word;
            std::iter::from_fn(move || {
                let bit = rest.trailing_zeros();
                rest &= rest.checked_sub(1)?;
                Some(position * 64 + bit)
            })
        })
    }
}

/// The eligible nodes that take tasks, least loaded first. Loads in it may be lower than they are by now, never higher:
/// a reader corrects what it takes out.
#[derive(Debug, Clone, Default)]
pub(crate) struct LoadQueue {
    /// [`crate::Cluster`]'s epoch for which it was built; another one makes it worthless.
    pub(crate) epoch: u64,
    /// (tasks, id, index).
    pub(crate) nodes: BinaryHeap<Reverse<(u32, NodeId, u32)>>,
}

/// What the bits depend on.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Kind {
    constraints: Vec<String>,
    platforms: Vec<(String, String)>,
}

#[derive(Debug, Clone)]
struct Entry {
    /// `None`: a constraint can't be read, nothing is eligible.
    constraints: Option<Vec<Constraint>>,
    platforms: Vec<Platform>,
    bits: NodeBits,
    queue: LoadQueue,
}

impl Kind {
    fn of(placement: &Placement) -> Self {
        Self {
            constraints: placement.constraints.clone(),
            platforms: placement
                .platforms
                .iter()
                .map(|p| (p.os.clone(), p.architecture.clone()))
                .collect(),
        }
    }
}

impl Entry {
    fn admits(&self, node: &Node) -> bool {
        platform_matches(&self.platforms, node)
            && self
                .constraints
                .as_ref()
                .is_some_and(|all| all.iter().all(|constraint| constraint.matches(node)))
    }
}

/// The bits of the kinds of specs that were asked for, kept up to date node by node.
#[derive(Debug, Clone, Default)]
pub(crate) struct EligibilityCache {
    kinds: BTreeMap<Kind, Entry>,
}

impl EligibilityCache {
    /// A node appeared, changed or went.
    pub(crate) fn node_changed(&mut self, index: u32, node: Option<&Node>) {
        for entry in self.kinds.values_mut() {
            let admitted = node.is_some_and(|node| entry.admits(node));
            entry.bits.set(index, admitted);
        }
    }

    /// The queue of the nodes that satisfy `placement`, whose bits were asked for before.
    pub(crate) fn queue(&mut self, placement: &Placement) -> Option<&mut LoadQueue> {
        let entry = self.kinds.get_mut(&Kind::of(placement))?;
        Some(&mut entry.queue)
    }

    /// The nodes that satisfy `placement`.
    pub(crate) fn bits<'a>(
        &mut self,
        placement: &Placement,
        nodes: impl Iterator<Item = (u32, &'a Node)>,
    ) -> NodeBits {
        let kind = Kind::of(placement);
        if let Some(entry) = self.kinds.get(&kind) {
            return entry.bits.clone();
        }
        if self.kinds.len() >= KINDS_MAX {
            self.kinds.clear();
        }
        let mut entry = Entry {
            constraints: constraint::parse(&placement.constraints).ok(),
            platforms: placement.platforms.clone(),
            bits: NodeBits::default(),
            queue: LoadQueue::default(),
        };
        for (index, node) in nodes {
            let admitted = entry.admits(node);
            entry.bits.set(index, admitted);
        }
        let bits = entry.bits.clone();
        self.kinds.insert(kind, entry);
        bits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_list_their_members_in_order() {
        let mut bits = NodeBits::default();
        for index in [130, 0, 63, 64, 7] {
            bits.set(index, true);
        }
        bits.set(7, false);
        assert_eq!(bits.ones().collect::<Vec<_>>(), [0, 63, 64, 130]);
        assert!(bits.contains(63) && !bits.contains(7) && !bits.contains(9_999));
    }
}
