//! Deterministic simulation: three managers and ten agents in one process, from one seed.
//!
//! Managers (Raft, store, loops, dispatcher, control API) and agents are the real ones. The fakes are the seams: the
//! disks ([`MemoryDisk`], [`RecordDisk`]), the network ([`SimulatedLink`] over turmoil's TCP), the clocks
//! ([`SimulatedClock`]), the containers ([`FakeEngine`]) and the overlay ([`FakeOverlay`]). Nothing here starts a thread or asks the machine for time
//! or randomness.
//!
//! * [`simulate`]: one run: faults by seed, then healing, then everything must be well.
//! * [`World`]: what outlives a crash, and what is known of it from outside.
//! * [`checks`]: what must hold at every instant, and what must hold in the end.
#![forbid(unsafe_code)]

pub mod checks;
mod client;
mod clock;
mod disk;
mod engine;
mod faults;
mod founding;
mod network;
mod node;
mod overlay;
mod register;
mod simulation;
mod trace;
mod world;

pub use clock::{SeededIds, SimulatedClock};
pub use disk::{MemoryDisk, RecordDisk};
pub use engine::{Container, FakeEngine};
pub use network::{CONTROL_PORT, SimulatedLink, serve};
pub use overlay::FakeOverlay;
pub use register::Register;
pub use simulation::{Failure, Summary, simulate};
pub use trace::Trace;
pub use world::{MANAGERS, NODES, World};
