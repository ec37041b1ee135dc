//! The reader: every file of a log from the oldest to the newest, or only its end, and what comes after.

use super::format::decode;
use super::writer::numbered;
use super::{LogEntry, StreamKind};
use nix::errno::Errno;
use shoal_model::Timestamp;
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Bytes read at once: 64 KiB.
const CHUNK_BYTES: usize = 64 << 10;

/// Most bytes of one record; a longer line is damage and is skipped. 1 MiB: a full partial line escapes to 96 KiB,
/// the rest is for attributes.
const RECORD_BYTES_MAX: usize = 1 << 20;

/// Older files that are looked for.
const OLDER_FILES_MAX: u32 = 1000;

/// Which records, and whether to wait for more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogOptions {
    /// Only this many records from the end, counted before any other filter; `None` for all.
    pub tail: Option<u64>,
    /// Only records at or after this time.
    pub since: Option<Timestamp>,
    /// Only records at or before this time; the stream ends at the first later one.
    pub until: Option<Timestamp>,
    /// Records of standard output.
    pub stdout: bool,
    /// Records of standard error.
    pub stderr: bool,
    /// Wait for more until the container has ended.
    pub follow: bool,
}

impl Default for LogOptions {
    /// Everything that is there now.
    fn default() -> Self {
        Self {
            tail: None,
            since: None,
            until: None,
            stdout: true,
            stderr: true,
            follow: false,
        }
    }
}

/// Why a log can't be read.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// A file can't be read.
    #[error("failed to read the log `{path}`")]
    Read {
        /// The newest file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Changes of the log can't be watched.
    #[error("failed to watch the log `{path}`")]
    Watch {
        /// The newest file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Records in order.
#[derive(Debug)]
pub struct LogStream {
    path: PathBuf,
    options: LogOptions,
    ready: VecDeque<LogEntry>,
    state: State,
    watch: Option<AsyncFd<OwnedFd>>,
    ended: watch::Receiver<bool>,
    /// `ended` was already true when the last read began: what that read did not find will never come.
    last_pass: bool,
}

#[derive(Debug)]
enum State {
    Idle(Cursor),
    Reading(JoinHandle<(Cursor, io::Result<Batch>)>),
    Waiting(Cursor),
    Over,
}

/// Opens the log whose newest file is `path`. `ended` says when the container is over and nothing will be added; it
/// only matters with `follow`. A log without files is empty.
///
/// # Errors
/// When changes can't be watched. Errors of reading come from [`LogStream::next`].
pub fn read_logs(
    path: &Path,
    options: LogOptions,
    ended: watch::Receiver<bool>,
) -> Result<LogStream, LogError> {
    let watch = if options.follow {
        // Watched before the first read, so that no change falls between.
        Some(watch_directory(path).map_err(|source| LogError::Watch {
            path: path.to_owned(),
            source,
        })?)
    } else {
        None
    };
    Ok(LogStream {
        path: path.to_owned(),
        state: State::Idle(Cursor::new(path, options.tail)),
        options,
        ready: VecDeque::new(),
        watch,
        ended,
        last_pass: false,
    })
}

impl LogStream {
    /// The next record; `None` at the end. Safe to cancel. After an error there is nothing more.
    pub async fn next(&mut self) -> Option<Result<LogEntry, LogError>> {
        loop {
            if let Some(entry) = self.ready.pop_front() {
                match self.judge(&entry) {
                    Judgement::Show => return Some(Ok(entry)),
                    Judgement::Skip => continue,
                    Judgement::Stop => {
                        self.ready.clear();
                        self.state = State::Over;
                        return None;
                    }
                }
            }
            match self.advance().await {
                Ok(true) => {}
                Ok(false) => return None,
                Err(source) => {
                    self.state = State::Over;
                    let path = self.path.clone();
                    return Some(Err(LogError::Read { path, source }));
                }
            }
        }
    }

    /// One step towards more records; `false` when there are no more.
    async fn advance(&mut self) -> io::Result<bool> {
        match &mut self.state {
            State::Over => return Ok(false),
            State::Waiting(_) => self.changed().await?,
            State::Reading(task) => {
                let (cursor, batch) = task.await.map_err(io::Error::other)?;
                let batch = batch?;
                self.ready.extend(batch.entries);
                self.state = match (batch.at_end, self.options.follow, self.last_pass) {
                    (false, _, _) => State::Idle(cursor),
                    (true, true, false) => State::Waiting(cursor),
                    (true, _, _) => State::Over,
                };
                return Ok(true);
            }
            State::Idle(_) => {}
        }
        if let State::Idle(mut cursor) | State::Waiting(mut cursor) =
            std::mem::replace(&mut self.state, State::Over)
        {
            self.last_pass = *self.ended.borrow();
            self.state = State::Reading(tokio::task::spawn_blocking(move || {
                let batch = cursor.read();
                (cursor, batch)
            }));
        }
        Ok(true)
    }

    /// Waits until a file changed or the container ended.
    async fn changed(&mut self) -> io::Result<()> {
        let Some(watch) = &self.watch else {
            return Ok(());
        };
        if *self.ended.borrow_and_update() {
            return Ok(());
        }
        tokio::select! {
            guard = watch.readable() => {
                let mut guard = guard?;
                let drained = drain(watch.get_ref());
                guard.clear_ready();
                drained
            }
            gone = self.ended.changed() => {
                if gone.is_err() {
                    // Nobody will ever tell: what is there now is all there is.
                    self.watch = None;
                    self.options.follow = false;
                }
                Ok(())
            }
        }
    }

    fn judge(&self, entry: &LogEntry) -> Judgement {
        if self.options.until.is_some_and(|until| entry.time > until) {
            return Judgement::Stop;
        }
        let wanted = match entry.stream {
            StreamKind::Stdout => self.options.stdout,
            StreamKind::Stderr => self.options.stderr,
        };
        if wanted && self.options.since.is_none_or(|since| entry.time >= since) {
            Judgement::Show
        } else {
            Judgement::Skip
        }
    }
}

enum Judgement {
    Show,
    Skip,
    Stop,
}

#[derive(Debug)]
struct Batch {
    entries: Vec<LogEntry>,
    /// Everything that is in the files now was read.
    at_end: bool,
}

/// Where reading stands. Blocking.
#[derive(Debug)]
struct Cursor {
    path: PathBuf,
    tail: Option<u64>,
    opened: bool,
    /// The file that is read, then newer ones.
    files: VecDeque<File>,
    /// The last file that was read to its end, to find newer ones by.
    last: Option<(u64, u64)>,
    buffer: Vec<u8>,
    /// Within a line that is too long: its rest is skipped.
    skipping: bool,
}

impl Cursor {
    fn new(path: &Path, tail: Option<u64>) -> Self {
        Self {
            path: path.to_owned(),
            tail,
            opened: false,
            files: VecDeque::new(),
            last: None,
            buffer: Vec::new(),
            skipping: false,
        }
    }

    fn read(&mut self) -> io::Result<Batch> {
        if !self.opened {
            self.files = files_after(&self.path, None)?;
            if let Some(lines) = self.tail {
                seek_tail(&mut self.files, lines)?;
            }
            self.opened = true;
        }
        let mut entries = Vec::new();
        while entries.is_empty() {
            let Some(file) = self.files.front_mut() else {
                self.files = files_after(&self.path, self.last)?;
                if self.files.is_empty() {
                    return Ok(Batch {
                        entries,
                        at_end: true,
                    });
                }
                continue;
            };
            let before = self.buffer.len();
            self.buffer.resize(before + CHUNK_BYTES, 0);
            let result = file.read(&mut self.buffer[before..]);
            self.buffer
                .truncate(before + *result.as_ref().unwrap_or(&0));
            if result? > 0 {
                self.take_lines(&mut entries);
            } else if !self.next_file()? {
                return Ok(Batch {
                    entries,
                    at_end: true,
                });
            }
        }
        Ok(Batch {
            entries,
            at_end: false,
        })
    }

    /// At the end of a file: goes on to a newer one, if there is one.
    fn next_file(&mut self) -> io::Result<bool> {
        let Some(file) = self.files.front() else {
            return Ok(false);
        };
        let meta = file.metadata()?;
        let id = (meta.dev(), meta.ino());
        if self.files.len() == 1 {
            let newer = files_after(&self.path, Some(id))?;
            if newer.is_empty() {
                return Ok(false);
            }
            // The writer may have added to this file between our last read and its rename.
            let position = self.files[0].stream_position()?;
            self.files.extend(newer);
            if self.files[0].metadata()?.len() > position {
                return Ok(true);
            }
        }
        self.files.pop_front();
        self.last = Some(id);
        self.buffer.clear();
        self.skipping = false;
        Ok(true)
    }

    fn take_lines(&mut self, entries: &mut Vec<LogEntry>) {
        let mut start = 0;
        while let Some(length) = self.buffer[start..].iter().position(|byte| *byte == b'\n') {
            if !std::mem::take(&mut self.skipping) {
                entries.extend(decode(&self.buffer[start..start + length]));
            }
            start += length + 1;
        }
        self.buffer.drain(..start);
        if self.buffer.len() > RECORD_BYTES_MAX {
            self.buffer.clear();
            self.skipping = true;
        }
    }
}

/// The files of the log that are newer than the file `known` (all without), oldest first.
fn files_after(path: &Path, known: Option<(u64, u64)>) -> io::Result<VecDeque<File>> {
    let mut files = VecDeque::new();
    let mut ids = Vec::new();
    for index in 0..OLDER_FILES_MAX {
        let name = if index == 0 {
            path.to_owned()
        } else {
            numbered(path, index)
        };
        let file = match File::open(&name) {
            Ok(file) => file,
            // Between removing and making the newest file, older ones are there.
            Err(error) if error.kind() == io::ErrorKind::NotFound && index == 0 => continue,
            Err(error) if error.kind() == io::ErrorKind::NotFound => break,
            Err(error) => return Err(error),
        };
        let meta = file.metadata()?;
        let id = (meta.dev(), meta.ino());
        if Some(id) == known {
            break;
        }
        // A file that was renamed while we look is met a second time under its new name.
        if !ids.contains(&id) {
            ids.push(id);
            files.push_front(file);
        }
    }
    Ok(files)
}

/// Leaves the files that hold the last `lines` records, the first one positioned.
fn seek_tail(files: &mut VecDeque<File>, lines: u64) -> io::Result<()> {
    let mut wanted = lines;
    for index in (0..files.len()).rev() {
        let (position, found) = tail_position(&files[index], wanted)?;
        wanted -= found;
        if wanted == 0 {
            files[index].seek(SeekFrom::Start(position))?;
            files.drain(..index);
            break;
        }
    }
    Ok(())
}

/// Where the last `wanted` lines of `file` begin, and how many there are (at most `wanted`).
fn tail_position(file: &File, wanted: u64) -> io::Result<(u64, u64)> {
    let end = file.metadata()?.len();
    if wanted == 0 {
        return Ok((end, 0));
    }
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut from = end;
    let mut ends = 0;
    while from > 0 {
        let length = from.min(CHUNK_BYTES as u64);
        from -= length;
        let part = &mut chunk[..length as usize];
        file.read_exact_at(part, from)?;
        for at in (0..part.len()).rev() {
            if part[at] == b'\n' {
                ends += 1;
                if ends == wanted + 1 {
                    return Ok((from + at as u64 + 1, wanted));
                }
            }
        }
    }
    Ok((0, ends.min(wanted)))
}

/// An inotify descriptor that tells of every change of a file in the log's directory.
fn watch_directory(path: &Path) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the call takes flags and touches no memory.
    let raw = unsafe { libc::inotify_init1(libc::IN_CLOEXEC | libc::IN_NONBLOCK) };
    let raw = Errno::result(raw)?;
    // SAFETY: the kernel has just made this descriptor for us.
    let fd = unsafe { OwnedFd::from_raw_fd(raw) };
    let directory = path.parent().unwrap_or(Path::new("/"));
    let name = std::ffi::CString::new(directory.as_os_str().as_bytes())?;
    let mask = libc::IN_MODIFY | libc::IN_CREATE | libc::IN_MOVED_TO;
    // SAFETY: the path ends with a zero byte and outlives the call.
    Errno::result(unsafe { libc::inotify_add_watch(fd.as_raw_fd(), name.as_ptr(), mask) })?;
    crate::client::conn::watched(fd, Interest::READABLE)
}

/// Forgets the events: that something changed is all we want to know.
fn drain(fd: &OwnedFd) -> io::Result<()> {
    let mut events = [0u8; 4096];
    loop {
        // SAFETY: the pointer and the length are those of one array.
        let count = unsafe { libc::read(fd.as_raw_fd(), events.as_mut_ptr().cast(), events.len()) };
        match Errno::result(count) {
            Ok(_) => {}
            Err(Errno::EAGAIN) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}
