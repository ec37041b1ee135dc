//! Counters of a container, as its cgroups show them.

use serde::{Deserialize, Serialize};

/// A reading of all counters.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Stats {
    /// Processor time.
    pub cpu: CpuStats,
    /// Memory.
    pub memory: MemoryStats,
    /// Processes and threads.
    pub pids: PidsStats,
    /// Block devices, one entry each.
    pub block_io: Vec<BlockIoStats>,
}

/// Processor time.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CpuStats {
    /// All of it, nanoseconds.
    pub usage_ns: u64,
    /// In user mode, nanoseconds.
    pub user_ns: u64,
    /// In the kernel, nanoseconds.
    pub system_ns: u64,
    /// Quota periods that passed.
    pub periods: u64,
    /// Quota periods in which the quota was used up.
    pub throttled_periods: u64,
    /// Time spent waiting for the next period, nanoseconds.
    pub throttled_ns: u64,
}

/// Memory.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct MemoryStats {
    /// Bytes charged now, page cache included.
    pub usage_bytes: u64,
    /// The most there ever was; zero where the kernel does not tell.
    pub max_usage_bytes: u64,
    /// The limit; `None` for no limit.
    pub limit_bytes: Option<u64>,
    /// Page cache that can be dropped first (docker subtracts it from the usage it shows).
    pub inactive_file_bytes: u64,
    /// Anonymous memory.
    pub anon_bytes: u64,
    /// Page cache.
    pub file_bytes: u64,
    /// How often the out-of-memory killer took a process.
    pub oom_kills: u64,
}

/// Processes and threads.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PidsStats {
    /// Now.
    pub current: u64,
    /// At most; `None` for no limit.
    pub limit: Option<u64>,
}

/// One block device.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct BlockIoStats {
    /// Device number.
    pub major: u64,
    /// Device number.
    pub minor: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub write_bytes: u64,
    /// Read operations.
    pub read_ops: u64,
    /// Write operations.
    pub write_ops: u64,
}
