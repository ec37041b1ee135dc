//! What is true of every state, whatever entries led to it. Unit tests, simulation and chaos share these checks; one
//! file per property.

mod addresses;
mod desired;
mod endpoints;
mod indexes;
mod leases;
mod names;
mod ports;
mod raft_ids;
mod references;
mod versions;
mod vips;
mod volumes;

use super::state::State;
use std::fmt;

/// A broken invariant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Which property.
    pub invariant: &'static str,
    /// What breaks it.
    pub details: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.invariant, self.details)
    }
}

/// Finds what breaks one property.
type Check = fn(&State) -> Vec<String>;

/// Checks every property; empty means that all hold. Costs a walk over all objects: for tests, never for production.
pub fn check_invariants(state: &State) -> Vec<Violation> {
    let checks: [(&'static str, Check); 12] = [
        ("addresses", addresses::check),
        ("endpoints", endpoints::check),
        ("leases", leases::check),
        ("virtual addresses and ports", vips::check),
        ("desired states", desired::check),
        ("indexes", indexes::check),
        ("names", names::check),
        ("host ports", ports::check),
        ("raft ids", raft_ids::check),
        ("references", references::check),
        ("versions", versions::check),
        ("volumes", volumes::check),
    ];
    checks
        .into_iter()
        .flat_map(|(invariant, check)| {
            check(state)
                .into_iter()
                .map(move |details| Violation { invariant, details })
        })
        .collect()
}
