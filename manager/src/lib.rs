//! What a manager does: Raft, the replicated store, control loops, dispatcher, certificate authority.
#![forbid(unsafe_code)]

pub mod consensus;
pub mod loops;
pub mod control;
pub mod store;
