//! What users may ask for. Every refusal names the field as Docker's API does, the value, and the way out.

mod cluster;
mod container;
mod mounts;
mod names;
mod network;
mod node;
mod ports;
mod service;
#[cfg(test)]
mod tests;

pub use cluster::cluster;
pub use names::{image_reference, network_name, service_name, volume_name};
pub use network::{NETWORKS_PER_CONTAINER_MAX, attachment, network};
pub use node::node;
pub use service::service;

use shoal_model::Labels;
use shoal_model::rpc::{ErrorCode, RpcError};

/// Most tasks of one service.
pub const REPLICAS_MAX: u64 = 100_000;

/// Longest duration of a spec, in nanoseconds: 365 days.
pub const DURATION_NS_MAX: u64 = 365 * 24 * 3600 * 1_000_000_000;

/// A node is declared down no earlier than its lease and this much later, in milliseconds: its tasks are dead by then.
pub const LEASE_MARGIN_MS: u64 = 1_000;

/// Most entries of one list in a spec.
pub const LIST_ENTRIES_MAX: usize = 1_000;

/// Most labels of one object.
pub const LABELS_MAX: usize = 1_000;

/// What is wrong with a spec.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{field}`: {problem}")]
pub struct Invalid {
    /// The field, as Docker's API names it.
    pub field: String,
    /// The value, what is wrong with it, and what would be right.
    pub problem: String,
}

impl Invalid {
    fn new(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self {
            field: field.into(),
            problem: problem.into(),
        }
    }
}

impl From<Invalid> for RpcError {
    fn from(invalid: Invalid) -> Self {
        Self::new(ErrorCode::InvalidArgument, invalid.to_string())
    }
}

impl From<Invalid> for super::Failure {
    fn from(invalid: Invalid) -> Self {
        RpcError::from(invalid).into()
    }
}

fn ensure(holds: bool, field: &str, problem: impl FnOnce() -> String) -> Result<(), Invalid> {
    if holds {
        return Ok(());
    }
    Err(Invalid::new(field, problem()))
}

fn duration(field: &str, nanoseconds: u64) -> Result<(), Invalid> {
    ensure(nanoseconds <= DURATION_NS_MAX, field, || {
        format!("{nanoseconds} ns is too long: at most 365 days are allowed")
    })
}

fn list_bound<T>(field: &str, list: &[T]) -> Result<(), Invalid> {
    ensure(list.len() <= LIST_ENTRIES_MAX, field, || {
        format!(
            "{} entries: at most {LIST_ENTRIES_MAX} are allowed",
            list.len()
        )
    })
}

fn labels(field: &str, labels: &Labels) -> Result<(), Invalid> {
    ensure(labels.len() <= LABELS_MAX, field, || {
        format!("{} labels: at most {LABELS_MAX} are allowed", labels.len())
    })?;
    ensure(!labels.contains_key(""), field, || {
        "a label has an empty key: give `KEY=VALUE`".to_owned()
    })
}

fn no_nul(field: &str, text: &str) -> Result<(), Invalid> {
    ensure(!text.contains('\0'), field, || {
        "the text contains a NUL character: remove it".to_owned()
    })
}
