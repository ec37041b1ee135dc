//! What a manager does: Raft, the replicated store, control loops, dispatcher, certificate authority.
#![forbid(unsafe_code)]

pub mod allocator;
pub mod ca_server;
pub mod consensus;
pub mod control;
pub mod dispatcher;
pub mod loops;
pub mod manager;
pub mod netfeed;
pub mod raft;
pub mod role_manager;
pub mod store;
#[cfg(any(test, feature = "testing"))]
pub mod testing;

pub use manager::{Manager, ManagerHandle, ManagerOptions, Start};
