//! The constraints of the service hold for the node.

use super::{Filter, names};
use crate::constraint::{Constraint, ConstraintError, Key, Operator, parse};
use crate::node::{NodeEntry, Seat};

pub(super) struct ConstraintFilter<'a> {
    texts: &'a [String],
    constraints: Result<Vec<Constraint>, ConstraintError>,
}

impl<'a> ConstraintFilter<'a> {
    pub(super) fn new(texts: &'a [String]) -> Self {
        Self {
            texts,
            constraints: parse(texts),
        }
    }
}

impl Filter for ConstraintFilter<'_> {
    fn name(&self) -> &'static str {
        "constraint"
    }

    fn admits(&self, seat: Seat<'_>) -> bool {
        let entry = seat.node;
        if self.texts.is_empty() {
            return true;
        }
        match (&self.constraints, &entry.node) {
            (Ok(all), Some(node)) => all.iter().all(|constraint| constraint.matches(node)),
            (Err(_), _) | (_, None) => false,
        }
    }

    fn explain(&self, refused: &[&NodeEntry]) -> (String, String) {
        let all = match &self.constraints {
            Ok(all) => all,
            Err(error) => return (error.to_string(), "correct the constraint".to_owned()),
        };
        let breaks = |entry: &NodeEntry, constraint: &Constraint| {
            entry
                .node
                .as_ref()
                .is_none_or(|node| !constraint.matches(node))
        };
        let broken: Vec<&Constraint> = all
            .iter()
            .filter(|c| refused.iter().any(|entry| breaks(entry, c)))
            .collect();
        let reason = broken
            .iter()
            .map(|c| {
                let nodes = refused.iter().copied().filter(|entry| breaks(entry, c));
                format!("`{c}` does not hold on {}", names(nodes))
            })
            .collect::<Vec<_>>()
            .join("; ");
        let fix = broken
            .first()
            .zip(refused.first())
            .map_or_else(String::new, |(constraint, node)| fix(constraint, node));
        (reason, fix)
    }
}

fn fix(constraint: &Constraint, node: &NodeEntry) -> String {
    let give_up = format!("remove the constraint `{constraint}`");
    match (&constraint.key, constraint.operator) {
        (Key::NodeLabel(label), Operator::Equal) => format!(
            "run `shoal node update --label-add {label}={} {}`, or {give_up}",
            constraint.value,
            node.name()
        ),
        (Key::NodeLabel(label), Operator::NotEqual) => format!(
            "run `shoal node update --label-rm {label} {}`, or {give_up}",
            node.name()
        ),
        (
            Key::Id
            | Key::Hostname
            | Key::Ip
            | Key::Role
            | Key::Os
            | Key::Architecture
            | Key::EngineLabel(_),
            _,
        ) => format!("add a node for which it holds, or {give_up}"),
    }
}
