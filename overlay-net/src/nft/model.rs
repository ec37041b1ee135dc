//! A whole table as data, and the transaction that turns one into another.

use super::batch::{Batch, ChainHook, ChainKind, Element, SetDefinition, Value};
use super::rule::Rule;
use std::collections::{BTreeMap, BTreeSet};

/// A table: what should be, or what is in force.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Model {
    /// Named counters.
    pub(crate) counters: BTreeSet<String>,
    /// Sets and maps.
    pub(crate) sets: BTreeMap<String, SetModel>,
    /// Chains.
    pub(crate) chains: BTreeMap<String, ChainModel>,
}

/// A named set. The elements of sets that learn are the kernel's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SetModel {
    pub(crate) definition: SetDefinition,
    pub(crate) elements: BTreeMap<Range, Option<Value>>,
}

/// A key, or the keys from one to before another.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Range {
    pub(crate) key: Vec<u8>,
    pub(crate) end: Option<Vec<u8>>,
}

impl Range {
    /// A single key.
    pub(crate) const fn one(key: Vec<u8>) -> Self {
        Self { key, end: None }
    }
}

/// A chain.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct ChainModel {
    /// `None`: only other chains lead to it.
    pub(crate) base: Option<BaseChain>,
    pub(crate) rules: Vec<Rule>,
}

/// Where a chain is hooked in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BaseChain {
    pub(crate) kind: ChainKind,
    pub(crate) hook: ChainHook,
    pub(crate) priority: i32,
}

impl SetModel {
    pub(crate) const fn new(definition: SetDefinition) -> Self {
        Self {
            definition,
            elements: BTreeMap::new(),
        }
    }
}

fn element((range, value): (&Range, &Option<Value>)) -> Element {
    Element {
        key: range.key.clone(),
        end: range.end.clone(),
        value: value.clone(),
    }
}

impl Model {
    /// The table from nothing, in place of whatever is there.
    pub(crate) fn replace(&self, family: u8, table: &str) -> Batch {
        let mut batch = Batch::new(family, table);
        batch.add_table();
        batch.delete_table();
        batch.add_table();
        Self::default().write_changes(self, &mut batch);
        batch
    }

    /// From `self`, which is in force, to `wanted`; `None` when only [`Model::replace`] can do that, because a set or
    /// a base chain became another one.
    pub(crate) fn changes_to(&self, wanted: &Self, family: u8, table: &str) -> Option<Batch> {
        let kept = |name: &String, set: &SetModel| {
            let now = wanted.sets.get(name);
            now.is_none_or(|now| now.definition == set.definition)
        };
        let same_sets = self.sets.iter().all(|(name, set)| kept(name, set));
        let same_bases = self.chains.iter().all(|(name, chain)| {
            let now = wanted.chains.get(name);
            now.is_none_or(|now| now.base == chain.base)
        });
        if !(same_sets && same_bases && self.counters.is_subset(&wanted.counters)) {
            return None;
        }
        let mut batch = Batch::new(family, table);
        self.write_changes(wanted, &mut batch);
        Some(batch)
    }

    /// In an order in which nothing refers to what is not there: what others refer to comes first and goes last.
    fn write_changes(&self, wanted: &Self, batch: &mut Batch) {
        for counter in wanted.counters.difference(&self.counters) {
            batch.add_counter(counter);
        }
        for (name, set) in &wanted.sets {
            if !self.sets.contains_key(name) {
                batch.define_set(name, set.definition);
            }
        }
        for (name, chain) in &wanted.chains {
            match (self.chains.contains_key(name), chain.base) {
                (true, _) => {}
                (false, Some(base)) => batch.add_chain(name, base.kind, base.hook, base.priority),
                (false, None) => batch.add_regular_chain(name),
            }
        }
        self.remove_stale_elements(wanted, batch);
        self.write_rules(wanted, batch);
        self.insert_new_elements(wanted, batch);
        for name in self.chains.keys() {
            if !wanted.chains.contains_key(name) {
                batch.delete_chain(name);
            }
        }
        for name in self.sets.keys() {
            if !wanted.sets.contains_key(name) {
                batch.delete_set(name);
            }
        }
    }

    fn remove_stale_elements(&self, wanted: &Self, batch: &mut Batch) {
        for (name, set) in &self.sets {
            let now = wanted.sets.get(name).map(|set| &set.elements);
            let stale = set
                .elements
                .iter()
                .filter(|(range, value)| now.and_then(|now| now.get(range)) != Some(value));
            let stale = stale.map(|(range, _)| element((range, &None)));
            batch.remove(name, stale);
        }
    }

    fn write_rules(&self, wanted: &Self, batch: &mut Batch) {
        for (name, chain) in &self.chains {
            let now = wanted.chains.get(name).map(|chain| &chain.rules);
            if now != Some(&chain.rules) && !chain.rules.is_empty() {
                batch.flush_chain(name);
            }
        }
        for (name, chain) in &wanted.chains {
            if self.chains.get(name).map(|chain| &chain.rules) == Some(&chain.rules) {
                continue;
            }
            for rule in &chain.rules {
                batch.add_rule(name, rule);
            }
        }
    }

    fn insert_new_elements(&self, wanted: &Self, batch: &mut Batch) {
        for (name, set) in &wanted.sets {
            let now = self.sets.get(name).map(|set| &set.elements);
            let new = set
                .elements
                .iter()
                .filter(|(range, value)| now.and_then(|now| now.get(range)) != Some(value));
            batch.insert(name, new.map(element));
        }
    }
}

/// A few elements that change at once, in a table that is in force.
#[derive(Debug, Default)]
pub(crate) struct SetChanges {
    /// By set and key: the new value, or `None` if the element goes.
    changes: BTreeMap<(String, Range), Option<Option<Value>>>,
}

impl SetChanges {
    pub(crate) fn put(&mut self, set: &str, range: Range, value: Option<Value>) {
        self.changes.insert((set.to_owned(), range), Some(value));
    }

    pub(crate) fn take(&mut self, set: &str, range: &Range) {
        self.changes.insert((set.to_owned(), range.clone()), None);
    }

    /// What differs from `model`, as messages.
    pub(crate) fn write(&self, model: &Model, batch: &mut Batch) {
        for ((set, range), new) in &self.changes {
            let now = model.sets.get(set).and_then(|set| set.elements.get(range));
            if now == new.as_ref() {
                continue;
            }
            if now.is_some() {
                batch.remove(set, [element((range, &None))]);
            }
            if let Some(value) = new {
                batch.insert(set, [element((range, value))]);
            }
        }
    }

    /// Changes the model in the same way.
    pub(crate) fn enter(self, model: &mut Model) {
        for ((set, range), new) in self.changes {
            let Some(set) = model.sets.get_mut(&set) else {
                continue;
            };
            match new {
                Some(value) => set.elements.insert(range, value),
                None => set.elements.remove(&range),
            };
        }
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
