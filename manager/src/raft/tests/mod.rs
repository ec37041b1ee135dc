//! Raft over real files, with streams in memory that a test can cut.

mod cluster;
mod cluster_tests;
mod disk_fault;
mod format_tests;
mod full_disk_tests;
mod journal_tests;
mod kill_tests;
mod quic_tests;
mod snapshot_tests;
