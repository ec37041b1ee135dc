//! Raft: the log, elections, members, snapshots. The Raft library stays inside this module.
//!
//! [`RaftHandle`] is one member. Above it stands [`crate::consensus::Consensus`], beside it the two seams: [`Disk`] for
//! files and [`shoal_transport::Connector`] for streams. Entries are opaque bytes down here; only the adapter of the
//! store decodes them, and what it can't decode stops this manager, it is never skipped. Nothing here asks the wall
//! clock, and every random number comes from the seed in [`RaftOptions`], but for keys and salts on disk.

mod crypt;
mod disk;
mod error;
mod handle;
mod intake;
mod journal;
mod leadership;
mod log_store;
mod members;
mod network;
mod options;
mod reads;
mod runtime;
mod segment;
mod server;
mod snapshot;
mod state_machine;
mod stop;
#[cfg(test)]
mod tests;
mod types;
mod wire;
mod writer;

pub use crypt::{KeyError, RaftKey};
pub(crate) use disk::read_all;
pub use disk::{Disk, DiskFile, RealDisk};
pub use error::{LogError, StartError};
pub use handle::RaftHandle;
pub use options::{COMMAND_BYTES_MAX, RaftOptions, Timing};
pub use runtime::{Placement, RaftRuntime};

/// The library's handle.
type Raft = openraft::Raft<types::TypeConfig, state_machine::Applier>;
