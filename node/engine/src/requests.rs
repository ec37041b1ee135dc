//! Options and answers of the engine's methods.

use crate::error::EngineError;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use serde::{Deserialize, Serialize};
use shoal_model::{ContainerId, Timestamp};
use std::collections::BTreeMap;
use std::pin::Pin;
use std::time::Duration;
use tokio::io::AsyncWrite;

/// Answer to a creation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Created {
    /// The new container.
    pub id: ContainerId,
    /// What the user should know.
    pub warnings: Vec<String>,
}

/// What a waiting client waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WaitCondition {
    /// Does not run (true at once for one that was never started).
    #[default]
    NotRunning,
    /// The next end.
    NextExit,
    /// It is gone.
    Removed,
}

/// Answer to a wait.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WaitResult {
    /// Exit code of the last run.
    pub exit_code: i32,
    /// Why it could not be started or removed; empty if nothing.
    pub error: String,
}

/// How a container is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RemoveOptions {
    /// Kill it if it runs.
    pub force: bool,
    /// Remove its anonymous volumes.
    pub volumes: bool,
}

/// Which containers a list shows. Within one key any value may match; all keys must.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ListFilter {
    /// Also those that do not run.
    pub all: bool,
    /// At most so many, newest first; zero: no limit. Implies `all`.
    pub limit: usize,
    /// Docker's filters: `id name label status exited ancestor before since volume network publish expose health
    /// is-task`.
    pub filters: BTreeMap<String, Vec<String>>,
}

/// Which standard stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum StdStream {
    /// Standard output, and everything of a terminal.
    Stdout,
    /// Standard error.
    Stderr,
}

/// Which part of a log is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogOptions {
    /// Wait for more until the container ends.
    pub follow: bool,
    /// Standard output.
    pub stdout: bool,
    /// Standard error.
    pub stderr: bool,
    /// Not before.
    pub since: Option<Timestamp>,
    /// Not after.
    pub until: Option<Timestamp>,
    /// Only the last so many lines; `None`: all.
    pub tail: Option<usize>,
}

impl Default for LogOptions {
    fn default() -> Self {
        Self {
            follow: false,
            stdout: true,
            stderr: true,
            since: None,
            until: None,
            tail: None,
        }
    }
}

/// One line of a log, with its line end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogEntry {
    /// Where it was written.
    pub stream: StdStream,
    /// When.
    pub time: Timestamp,
    /// The bytes.
    pub line: Bytes,
}

/// Bytes from a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutputChunk {
    /// Where they were written.
    pub stream: StdStream,
    /// The bytes.
    pub bytes: Bytes,
}

/// What a client attaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AttachOptions {
    /// Standard input.
    pub stdin: bool,
    /// Standard output.
    pub stdout: bool,
    /// Standard error.
    pub stderr: bool,
    /// First what was logged so far.
    pub logs: bool,
    /// Then what comes.
    pub stream: bool,
}

/// Bytes into a container. Shutting it down closes the container's standard input.
pub type InputSink = Pin<Box<dyn AsyncWrite + Send>>;

/// Bytes out of a container.
pub type OutputStream = BoxStream<'static, Result<OutputChunk, EngineError>>;

/// An attached client's two directions.
pub struct AttachStreams {
    /// Into the container; `None` when standard input was not attached.
    pub stdin: Option<InputSink>,
    /// Out of it; ends when the process does.
    pub output: OutputStream,
    /// Everything comes as [`StdStream::Stdout`], raw.
    pub tty: bool,
}

impl std::fmt::Debug for AttachStreams {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AttachStreams")
            .field("stdin", &self.stdin.is_some())
            .field("tty", &self.tty)
            .finish_non_exhaustive()
    }
}

/// A further process in a container.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ExecConfig {
    /// Program and arguments.
    pub cmd: Vec<String>,
    /// `user[:group]`; empty: the container's.
    pub user: String,
    /// Working directory; empty: the container's.
    pub working_dir: String,
    /// Added to the container's.
    pub env: Vec<String>,
    /// A terminal.
    pub tty: bool,
    /// Attach standard input.
    pub attach_stdin: bool,
    /// Attach standard output.
    pub attach_stdout: bool,
    /// Attach standard error.
    pub attach_stderr: bool,
    /// All capabilities.
    pub privileged: bool,
    /// First size of the terminal.
    pub console_size: Option<TerminalSize>,
}

/// Size of a terminal in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TerminalSize {
    /// Columns.
    pub width: u16,
    /// Lines.
    pub height: u16,
}

/// The processes of a container.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ProcessTable {
    /// Column heads.
    pub titles: Vec<String>,
    /// One row per process.
    pub rows: Vec<Vec<String>>,
}

/// A change of a container's settings; `None` leaves a field as it is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ContainerUpdate {
    /// All limits at once, as in Docker's body: zero or empty fields are left as they are.
    pub resources: Option<crate::config::ResourceLimits>,
    /// Restart policy.
    pub restart_policy: Option<crate::config::RestartPolicy>,
}

/// What a prune removed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Pruned {
    /// Names or ids.
    pub removed: Vec<String>,
    /// Bytes that are free again.
    pub reclaimed_bytes: u64,
}

/// A file in a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathStat {
    /// Last part of the path.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// Mode bits as stat(2) gives them.
    pub mode: u32,
    /// Last change of the content.
    pub modified: Timestamp,
    /// Target of a symbolic link; empty for others.
    pub link_target: String,
}

/// How an archive is unpacked into a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ArchivePutOptions {
    /// Refuse to replace a directory by a file and the reverse.
    pub no_overwrite_dir_non_dir: bool,
    /// Keep the archive's owners; otherwise the container's root owns everything.
    pub copy_uid_gid: bool,
}

/// Which events are wanted.
#[derive(Debug, Clone, Default)]
pub struct EventFilter {
    /// Replay from here, as far as the buffer reaches.
    pub since: Option<Timestamp>,
    /// End here.
    pub until: Option<Timestamp>,
    /// Docker's filters: `type event container image volume network label`.
    pub filters: BTreeMap<String, Vec<String>>,
}

/// A new volume.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct VolumeCreate {
    /// Name; empty: an anonymous one.
    pub name: String,
    /// `local` or empty.
    pub driver: String,
    /// Driver options.
    pub options: BTreeMap<String, String>,
    /// Labels.
    pub labels: shoal_model::Labels,
}

/// Grace before SIGKILL when a stop names none and the container neither.
pub const STOP_TIMEOUT_DEFAULT: Duration = Duration::from_secs(10);
