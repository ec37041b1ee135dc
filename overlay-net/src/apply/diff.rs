//! Comparing what is with what should be.

use std::collections::BTreeSet;

/// What is missing, and what is too much.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Difference<'a, T> {
    pub(super) missing: Vec<&'a T>,
    pub(super) excess: Vec<&'a T>,
}

impl<'a, T: Ord> Difference<'a, T> {
    pub(super) fn between(now: &'a BTreeSet<T>, wanted: &'a BTreeSet<T>) -> Self {
        Self {
            missing: wanted.difference(now).collect(),
            excess: now.difference(wanted).collect(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.missing.len() + self.excess.len()
    }
}
