//! The container's standard streams: our ends of its pipes, or the terminal.

use crate::container::ChildStdio;
use crate::logs::StreamKind;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};

/// Bytes read from a stream at once: 32 KiB.
pub(super) const READ_BYTES: usize = 32 << 10;

/// Our ends.
#[derive(Debug, Default)]
pub(super) struct Streams {
    pub(super) stdin: Option<OwnedFd>,
    pub(super) stdout: Option<OwnedFd>,
    pub(super) stderr: Option<OwnedFd>,
    /// Reads and writes go here when the container has a terminal.
    pub(super) terminal: Option<OwnedFd>,
    /// With a terminal: whether input is let in.
    pub(super) input_allowed: bool,
}

/// Pipes for a process; a stream that is not wanted is `/dev/null`.
pub(super) fn pipes(stdin: bool, stdout: bool, stderr: bool) -> io::Result<(Streams, ChildStdio)> {
    let mut ours = Streams::default();
    let input = if stdin {
        let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
        set_nonblocking(write.as_fd())?;
        ours.stdin = Some(write);
        read
    } else {
        OpenOptions::new().read(true).open("/dev/null")?.into()
    };
    let output = |wanted: bool| -> io::Result<(Option<OwnedFd>, OwnedFd)> {
        if !wanted {
            return Ok((
                None,
                OpenOptions::new().write(true).open("/dev/null")?.into(),
            ));
        }
        let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
        set_nonblocking(read.as_fd())?;
        Ok((Some(read), write))
    };
    let (stdout, child_stdout) = output(stdout)?;
    let (stderr, child_stderr) = output(stderr)?;
    ours.stdout = stdout;
    ours.stderr = stderr;
    Ok((ours, ChildStdio::Pipes(input, child_stdout, child_stderr)))
}

pub(super) fn set_nonblocking(fd: BorrowedFd<'_>) -> Result<(), Errno> {
    let flags = OFlag::from_bits_retain(nix::fcntl::fcntl(fd, nix::fcntl::FcntlArg::F_GETFL)?);
    let flags = nix::fcntl::FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK);
    nix::fcntl::fcntl(fd, flags).map(drop)
}

/// The outcome of one read.
pub(super) enum Taken {
    Data(usize),
    Nothing,
    End,
}

impl Streams {
    /// Where output of `kind` is read.
    pub(super) fn output(&self, kind: StreamKind) -> Option<BorrowedFd<'_>> {
        let fd = match kind {
            StreamKind::Stdout => self.terminal.as_ref().or(self.stdout.as_ref()),
            StreamKind::Stderr => self.stderr.as_ref(),
        };
        fd.map(OwnedFd::as_fd)
    }

    /// Where input is written; `None` when there is none, or not any more.
    pub(super) fn input(&self) -> Option<BorrowedFd<'_>> {
        match &self.terminal {
            Some(terminal) if self.input_allowed => Some(terminal.as_fd()),
            Some(_) => None,
            None => self.stdin.as_ref().map(OwnedFd::as_fd),
        }
    }

    pub(super) fn read(&self, kind: StreamKind, buffer: &mut [u8]) -> Taken {
        let Some(fd) = self.output(kind) else {
            return Taken::End;
        };
        match nix::unistd::read(fd, buffer) {
            Ok(0) => Taken::End,
            Ok(count) => Taken::Data(count),
            Err(Errno::EAGAIN | Errno::EINTR) => Taken::Nothing,
            // A terminal says EIO when nobody has its other side open.
            Err(_) => Taken::End,
        }
    }

    pub(super) fn close(&mut self, kind: StreamKind) {
        match kind {
            StreamKind::Stdout => {
                self.stdout = None;
                self.terminal = None;
            }
            StreamKind::Stderr => self.stderr = None,
        }
    }

    /// Ends the input of a container without a terminal; a terminal has no end.
    pub(super) fn end_input(&mut self) {
        self.stdin = None;
    }

    pub(super) fn resize(&self, columns: u16, rows: u16) -> Option<Result<(), Errno>> {
        let terminal = self.terminal.as_ref()?;
        Some(crate::container::set_window_size(
            terminal.as_raw_fd(),
            columns,
            rows,
        ))
    }
}
