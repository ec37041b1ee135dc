//! Gives out what the networks of a cluster have: subnets, addresses, virtual addresses, published ports.
//!
//! Everything here is a function of a view of the store and of what was asked: no clock, no randomness, no I/O. What is
//! given out becomes true when an entry with it is applied; the store refuses it if somebody else was faster.
//!
//! * [`subnets`] and [`mesh`] divide the cluster's pools.
//! * [`addresses`] gives addresses to tasks, containers and services, and blocks of addresses to nodes.
//! * [`service`] says what a service gets: its virtual addresses and the numbers of its ports.

pub mod addresses;
mod blocks;
mod error;
pub mod mesh;
pub mod service;
pub mod subnets;
#[cfg(test)]
mod tests;

pub use addresses::Addresses;
pub use error::AllocationError;
