//! The replicated store: objects in persistent maps, changed only by applying Raft entries.
//!
//! [`State`] is pure: no I/O, no clock, no randomness, no hash order. A clone costs O(1) and is a consistent view.
//! [`Store`] shares the newest state with the rest of the manager and tells watchers what changed. Nothing in here ever
//! panics on the content of an entry: bad input is a [`Rejection`](shoal_model::command::Rejection), the same on every
//! manager.

mod addresses;
mod apply;
mod assign;
pub mod bounds;
pub mod change;
pub mod handle;
mod indexes;
pub mod invariants;
mod networks;
pub mod snapshot;
mod state;
mod tasks;
#[cfg(test)]
mod tests;

pub use change::{Change, ChangeKind, Entity};
pub use handle::{Batch, ChangeBatch, Store, WatchItem, Watcher};
pub use indexes::NodeUsage;
pub use invariants::{Violation, check_invariants};
pub use networks::{clash, is_reserved, share_address};
pub use state::State;
pub use tasks::{forwards_desired, holds_node};
