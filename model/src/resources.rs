//! Resources that tasks ask for and nodes have.

use serde::{Deserialize, Serialize};

/// An amount of CPU and memory.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
pub struct Resources {
    /// Billionths of one CPU.
    pub nano_cpus: i64,
    /// Bytes.
    pub memory_bytes: i64,
}

/// What a task may use at most and what is kept free for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ResourceRequirements {
    /// Enforced by cgroups; zero in a field means "no limit".
    pub limits: Resources,
    /// Most processes and threads; zero means "no limit".
    pub pids_limit: i64,
    /// Counted by the scheduler.
    pub reservations: Resources,
}
