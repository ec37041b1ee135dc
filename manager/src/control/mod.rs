//! The control API: validates what users ask for, writes it through Raft, reads linearizably.
//!
//! [`ControlApi`] is what the rest of the manager uses. A request is executed by the leader; any other manager passes it
//! on, once, and waits out a change of leaders for at most [`forward::LEADER_WAIT_MAX`]. What a request changes is
//! computed from a consistent view and refused by the store if that view is outdated: nothing is locked.

mod answer;
mod cluster;
mod core;
mod error;
mod explain;
mod feeds;
pub mod forward;
mod network;
mod node;
mod quorum;
mod server;
mod service;
mod task;
#[cfg(test)]
mod tests;
pub mod validate;
mod volume;

pub use answer::Answer;
pub(crate) use core::Core;
pub(crate) use error::{Effect, Failure, rpc_error};
pub use forward::ControlApi;
pub(crate) use quorum::loss as quorum_loss;
