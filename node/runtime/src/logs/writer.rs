//! The writer: cuts output into lines, encodes them, and starts new files. Lives in the shim.
//!
//! It never fails the container: when the disk refuses, lines are lost and counted, and writing is tried again with
//! the next output.

use super::format::encode;
use super::{PARTIAL_LINE_BYTES, StreamKind};
use crate::LogConfig;
use shoal_model::Timestamp;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// Encoded bytes that are collected before a write: 64 KiB.
const BATCH_BYTES: usize = 64 << 10;

/// Output that has not ended its line yet.
#[derive(Debug, Default)]
struct Pending {
    bytes: Vec<u8>,
    /// The time of the first piece, while pieces of one long line are written.
    partial_since: Option<Timestamp>,
}

/// Writes one container's log.
#[derive(Debug)]
pub(crate) struct LogWriter {
    target: Option<Target>,
    stdout: Pending,
    stderr: Pending,
}

#[derive(Debug)]
struct Target {
    file: Option<File>,
    path: PathBuf,
    size: u64,
    max_size: u64,
    max_files: u32,
    attrs: String,
    batch: String,
    /// The file ends within a record, after a failed write.
    torn: bool,
    lost_bytes: u64,
}

impl LogWriter {
    /// Opens the log for appending.
    pub(crate) fn open(config: &LogConfig) -> io::Result<Self> {
        let target = match config {
            LogConfig::None => None,
            LogConfig::JsonFile {
                path,
                max_size_bytes,
                max_files,
                attrs,
            } => {
                let attrs = if attrs.is_empty() {
                    String::new()
                } else {
                    format!(",\"attrs\":{}", serde_json::to_string(attrs)?)
                };
                let mut target = Target {
                    file: None,
                    path: path.clone(),
                    size: 0,
                    max_size: max_size_bytes.unwrap_or(u64::MAX),
                    max_files: (*max_files).max(1),
                    attrs,
                    batch: String::new(),
                    torn: false,
                    lost_bytes: 0,
                };
                target.reopen()?;
                Some(target)
            }
        };
        Ok(Self {
            target,
            stdout: Pending::default(),
            stderr: Pending::default(),
        })
    }

    /// Takes output as it was read at `now`.
    pub(crate) fn write(&mut self, stream: StreamKind, data: &[u8], now: Timestamp) {
        let Some(target) = &mut self.target else {
            return;
        };
        let pending = match stream {
            StreamKind::Stdout => &mut self.stdout,
            StreamKind::Stderr => &mut self.stderr,
        };
        let mut rest = data;
        while !rest.is_empty() {
            let room = PARTIAL_LINE_BYTES - pending.bytes.len();
            let window = &rest[..rest.len().min(room)];
            let (piece, ended) = match window.iter().position(|byte| *byte == b'\n') {
                Some(at) => (&window[..=at], true),
                None => (window, false),
            };
            rest = &rest[piece.len()..];
            let full = pending.bytes.len() + piece.len() == PARTIAL_LINE_BYTES;
            if !ended && !full {
                pending.bytes.extend_from_slice(piece);
                continue;
            }
            let time = pending.partial_since.unwrap_or(now);
            if pending.bytes.is_empty() {
                target.record(stream, time, piece);
            } else {
                pending.bytes.extend_from_slice(piece);
                target.record(stream, time, &pending.bytes);
                pending.bytes.clear();
            }
            pending.partial_since = (!ended).then_some(time);
        }
        target.flush();
    }

    /// Writes what is left of a line that never ended, and gives the memory back.
    pub(crate) fn end(&mut self, stream: StreamKind, now: Timestamp) {
        let pending = match stream {
            StreamKind::Stdout => &mut self.stdout,
            StreamKind::Stderr => &mut self.stderr,
        };
        let last = std::mem::take(pending);
        if let Some(target) = &mut self.target
            && !last.bytes.is_empty()
        {
            target.record(stream, last.partial_since.unwrap_or(now), &last.bytes);
            target.flush();
        }
    }

    /// Encoded bytes that the disk refused since the log was opened.
    #[cfg(test)]
    pub(crate) fn lost_bytes(&self) -> u64 {
        self.target.as_ref().map_or(0, |target| target.lost_bytes)
    }
}

impl Target {
    fn record(&mut self, stream: StreamKind, time: Timestamp, line: &[u8]) {
        if self.size + self.batch.len() as u64 >= self.max_size {
            self.flush();
            if self.size >= self.max_size {
                self.rotate();
            }
        }
        encode(&mut self.batch, stream, time, line, &self.attrs);
        if self.batch.len() >= BATCH_BYTES {
            self.flush();
        }
    }

    fn flush(&mut self) {
        if self.batch.is_empty() {
            return;
        }
        let total = self.batch.len() as u64;
        let written = self.append();
        self.size += written;
        self.lost_bytes += total - written;
        self.torn = written < total && (written > 0 || self.torn);
        self.batch.clear();
        self.batch.shrink_to(PARTIAL_LINE_BYTES);
    }

    /// Appends the batch as far as the disk lets; returns how many bytes of it are in the file.
    fn append(&mut self) -> u64 {
        if self.file.is_none() && self.reopen().is_err() {
            return 0;
        }
        let Some(file) = &mut self.file else { return 0 };
        if self.torn {
            // A record that was cut off ends here, so that only that one is unreadable.
            match file.write_all(b"\n") {
                Ok(()) => {
                    self.torn = false;
                    self.size += 1;
                }
                Err(_) => return 0,
            }
        }
        let mut rest = self.batch.as_bytes();
        while !rest.is_empty() {
            match file.write(rest) {
                Ok(0) => break,
                Ok(count) => rest = &rest[count..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        (self.batch.len() - rest.len()) as u64
    }

    /// Shifts `.1` to `.2` and so on and starts an empty file. When a rename fails, the old file is written on.
    fn rotate(&mut self) {
        if self.max_files > 1 {
            for index in (1..self.max_files - 1).rev() {
                let shifted =
                    fs::rename(numbered(&self.path, index), numbered(&self.path, index + 1));
                if shifted.is_err_and(|error| error.kind() != io::ErrorKind::NotFound) {
                    return;
                }
            }
            if fs::rename(&self.path, numbered(&self.path, 1)).is_err() {
                return;
            }
        } else if fs::remove_file(&self.path).is_err() {
            return;
        }
        self.file = None;
        self.size = 0;
        self.torn = false;
        // Tried again with the next batch when it fails.
        if self.reopen().is_err() {
            self.file = None;
        }
    }

    fn reopen(&mut self) -> io::Result<()> {
        let mut options = OpenOptions::new();
        let file = options
            .append(true)
            .create(true)
            .mode(0o640)
            .open(&self.path)?;
        self.size = file.metadata()?.len();
        // What an earlier shim left half-written is closed by a line end as well.
        self.torn = self.size > 0 && !ends_with_newline(&self.path, self.size)?;
        self.file = Some(file);
        Ok(())
    }
}

fn ends_with_newline(path: &Path, size: u64) -> io::Result<bool> {
    use std::os::unix::fs::FileExt as _;
    let mut last = [0];
    File::open(path)?.read_exact_at(&mut last, size - 1)?;
    Ok(last == *b"\n")
}

/// The name of the `index`th older file.
pub(super) fn numbered(path: &Path, index: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{index}"));
    name.into()
}
