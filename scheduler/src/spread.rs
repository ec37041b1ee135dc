//! Which of the nodes that fit comes first.
//!
//! Without placement preferences: nodes that do not keep failing the service, then fewest tasks of the service, then
//! fewest tasks, then the lowest id. With preferences the nodes form a tree, one level per preference, one branch per
//! value, and the branch with the fewest tasks of the service comes first on each level.

use crate::constraint::Key;
use shoal_model::{Node, NodeId};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

/// The rank of a node for one service; the smallest comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rank {
    /// It failed the service too often lately.
    pub(crate) failing: bool,
    /// It does not hold the data that the service would mount.
    pub(crate) without_data: bool,
    /// Tasks of the service.
    pub(crate) service_tasks: u32,
    /// All tasks.
    pub(crate) tasks: u32,
    /// Breaks ties.
    pub(crate) node_id: NodeId,
    /// Where the node is found; ids are unique, so it never decides.
    pub(crate) index: u32,
}

/// One value of a preference, or the whole.
#[derive(Debug, Default)]
struct Branch {
    /// Tasks of the service below it.
    tasks: u64,
    /// Children by value.
    children: BTreeMap<String, usize>,
    /// Children that still have candidates: (tasks, place among the values, child).
    open: BTreeSet<(u64, usize, usize)>,
    /// Candidates, on the last level.
    candidates: BinaryHeap<Reverse<Rank>>,
}

/// The candidates of one group, best first.
#[derive(Debug)]
pub(crate) struct Ranking {
    keys: Vec<Option<Key>>,
    branches: Vec<Branch>,
    /// The way to the candidate that [`Ranking::next`] returned last: (branch, place of the child, child).
    path: Vec<(usize, usize, usize)>,
    leaf: usize,
}

impl Ranking {
    /// An empty ranking that spreads over the label paths in `spread`, outermost first.
    pub(crate) fn new(spread: &[String]) -> Self {
        Self {
            keys: spread.iter().map(|text| Key::parse(text)).collect(),
            branches: vec![Branch::default()],
            path: Vec::new(),
            leaf: 0,
        }
    }

    /// Whether there are no preferences.
    pub(crate) fn is_flat(&self) -> bool {
        self.keys.is_empty()
    }

    /// Makes the tasks that a node already has weigh in its branches, and the node a candidate if it has a rank.
    pub(crate) fn add(&mut self, node: &Node, service_tasks: u32, rank: Option<Rank>) {
        let mut branch = 0;
        self.branches[0].tasks += u64::from(service_tasks);
        for level in 0..self.keys.len() {
            let value = self.keys[level]
                .as_ref()
                .map(|key| key.value(node).into_owned())
                .unwrap_or_default();
            let fresh = self.branches.len();
            let child = *self.branches[branch].children.entry(value).or_insert(fresh);
            if child == fresh {
                self.branches.push(Branch::default());
            }
            branch = child;
            self.branches[branch].tasks += u64::from(service_tasks);
        }
        if let Some(rank) = rank {
            self.branches[branch].candidates.push(Reverse(rank));
        }
    }

    /// Opens the branches; called once, after the last [`Ranking::add`].
    pub(crate) fn open(&mut self) {
        for branch in 0..self.branches.len() {
            let children: Vec<usize> = self.branches[branch].children.values().copied().collect();
            self.branches[branch].open = children
                .into_iter()
                .enumerate()
                .map(|(place, child)| (self.branches[child].tasks, place, child))
                .collect();
        }
    }

    /// Takes the best candidate out.
    pub(crate) fn next(&mut self) -> Option<Rank> {
        loop {
            self.path.clear();
            let mut branch = 0;
            while let Some(&(_, place, child)) = self.branches[branch].open.first() {
                self.path.push((branch, place, child));
                branch = child;
            }
            if let Some(Reverse(rank)) = self.branches[branch].candidates.pop() {
                self.leaf = branch;
                return Some(rank);
            }
            // Nothing is left down there: close this branch and look again. The root has no parent to close it.
            let (parent, _, _) = *self.path.last()?;
            self.branches[parent].open.pop_first();
        }
    }

    /// The candidate that was taken last got a task; with a rank it stays a candidate.
    pub(crate) fn took(&mut self, rank: Option<Rank>) {
        for &(parent, place, child) in &self.path {
            let tasks = self.branches[child].tasks;
            self.branches[parent].open.remove(&(tasks, place, child));
            self.branches[parent].open.insert((tasks + 1, place, child));
            self.branches[child].tasks = tasks + 1;
        }
        if let Some(rank) = rank {
            self.branches[self.leaf].candidates.push(Reverse(rank));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_order_by_failing_then_service_then_load_then_id() {
        let rank = |failing, service_tasks, tasks, id| Rank {
            failing,
            without_data: false,
            service_tasks,
            tasks,
            node_id: NodeId::from_bits(id),
            index: 0,
        };
        let mut ranks = [
            rank(true, 0, 0, 1),
            rank(false, 1, 0, 2),
            rank(false, 0, 9, 3),
            rank(false, 0, 2, 5),
            rank(false, 0, 2, 4),
        ];
        ranks.sort();
        let ids: Vec<u128> = ranks.iter().map(|rank| rank.node_id.bits()).collect();
        assert_eq!(ids, [4, 5, 3, 2, 1]);
    }
}
