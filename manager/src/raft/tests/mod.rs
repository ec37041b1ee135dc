//! Raft, tested over real files and in-memory streams.
