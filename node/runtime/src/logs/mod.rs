//! Container logs in docker's json-file format: the writer inside the shim, and the reader for the engine.
//!
//! One line per record: `{"log":"text\n","stream":"stdout","time":"2026-01-02T03:04:05.678Z"}`. The newest file is
//! `<path>`, older ones are `<path>.1`, `<path>.2` and so on. Writer and reader share nothing but the files.

mod format;
mod reader;
mod time;
mod writer;

pub use format::{LogEntry, StreamKind};
pub use reader::{LogError, LogOptions, LogStream, read_logs};
pub use time::{format_rfc3339, parse_rfc3339};
pub(crate) use writer::LogWriter;

/// Bytes of output after which a line without an end is written as a record of its own: 16 KiB, as docker has it.
pub const PARTIAL_LINE_BYTES: usize = 16 << 10;

#[cfg(test)]
mod tests;
