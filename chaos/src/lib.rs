//! Deterministic simulation: three managers in one process, from one seed.
//!
//! Raft, the store and the control loops are the real ones. The fakes are the seams: the disk ([`MemoryDisk`]), the
//! network ([`SimulatedLink`], turmoil's TCP), the clock ([`SimulatedClock`]), and ten engines, which report through
//! the leader what they would run ([`World`]). Nothing here starts a thread or asks the machine for time or randomness.
#![forbid(unsafe_code)]

mod clock;
mod disk;
mod network;
mod world;

pub use clock::{SeededIds, SimulatedClock};
pub use disk::MemoryDisk;
pub use network::{CONTROL_PORT, SimulatedLink, serve};
pub use world::{ENGINES, MANAGERS, World};
