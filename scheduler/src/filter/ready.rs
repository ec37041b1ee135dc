//! The node is heard of and takes tasks.

use super::{Filter, names};
use crate::node::{NodeEntry, Seat};
use shoal_model::{Availability, NodeState};

pub(super) struct ReadyFilter;

/// What keeps a node from taking tasks, in the order in which it is told.
const STANDINGS: [(&str, Standing); 6] = [
    ("down", Standing::Down),
    ("disconnected", Standing::Disconnected),
    ("not heard of yet", Standing::Unknown),
    ("drained", Standing::Drained),
    ("paused", Standing::Paused),
    ("removed", Standing::Removed),
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Standing {
    Down,
    Disconnected,
    Unknown,
    Drained,
    Paused,
    Removed,
    Ready,
}

fn standing(entry: &NodeEntry) -> Standing {
    let Some(node) = &entry.node else {
        return Standing::Removed;
    };
    match (node.spec.availability, node.status.state) {
        (Availability::Drain, _) => Standing::Drained,
        (Availability::Active | Availability::Pause, NodeState::Down) => Standing::Down,
        (Availability::Active | Availability::Pause, NodeState::Disconnected) => {
            Standing::Disconnected
        }
        (Availability::Active | Availability::Pause, NodeState::Unknown) => Standing::Unknown,
        (Availability::Pause, NodeState::Ready) => Standing::Paused,
        (Availability::Active, NodeState::Ready) => Standing::Ready,
    }
}

impl Filter for ReadyFilter {
    fn name(&self) -> &'static str {
        "ready"
    }

    fn admits(&self, seat: Seat<'_>) -> bool {
        seat.node.takes_tasks()
    }

    fn explain(&self, refused: &[&NodeEntry]) -> (String, String) {
        let of = |wanted: Standing| {
            refused
                .iter()
                .copied()
                .filter(move |node| standing(node) == wanted)
        };
        let reason = STANDINGS
            .iter()
            .filter_map(|&(word, kind)| {
                let verb = match of(kind).count() {
                    0 => return None,
                    1 => "is",
                    _ => "are",
                };
                Some(format!("{} {verb} {word}", names(of(kind))))
            })
            .collect::<Vec<_>>()
            .join("; ");
        let held =
            |node: &&NodeEntry| matches!(standing(node), Standing::Drained | Standing::Paused);
        let fix = match refused.iter().copied().find(held) {
            Some(node) => format!(
                "run `shoal node update --availability active {}`, or add a node",
                node.name()
            ),
            None => "bring a node back, or add one".to_owned(),
        };
        (reason, fix)
    }
}
