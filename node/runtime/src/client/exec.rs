//! Exec'ed processes: their ends of pipes or terminal come over the connection, no byte passes through the shim.

use super::conn::{Conn, watched};
use super::{ShimError, unexpected};
use crate::Bundle;
use crate::proto::{ExecRequest, Request, Response};
use nix::errno::Errno;
use oci_spec::runtime::Process;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::unix::pipe;

/// What to run, and which of its streams to hold.
#[derive(Debug, Clone)]
pub struct ExecSpec {
    /// The OCI description; it must be complete: absent capabilities mean none. `terminal` asks for a terminal.
    pub process: Process,
    /// Give it a pipe as standard input; otherwise `/dev/null`.
    pub stdin: bool,
    /// Give it a pipe as standard output; otherwise `/dev/null`.
    pub stdout: bool,
    /// Give it a pipe as standard error; otherwise `/dev/null`.
    pub stderr: bool,
}

/// How an exec'ed process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExecExit {
    /// Its own code, or 128 + signal.
    pub code: i32,
    /// The signal that ended it, if one did.
    pub signal: Option<i32>,
}

/// A running exec'ed process. Dropping the handle closes the streams; the process goes on.
#[derive(Debug)]
pub struct ExecHandle {
    pid: u32,
    bundle: Bundle,
    conn: Conn,
    /// Our ends of its streams; take them out as needed.
    pub stdio: Option<ExecStdio>,
}

/// Our ends of the streams of an exec'ed process.
#[derive(Debug)]
pub enum ExecStdio {
    /// Without a terminal.
    Pipes {
        /// If asked for.
        stdin: Option<pipe::Sender>,
        /// If asked for.
        stdout: Option<pipe::Receiver>,
        /// If asked for.
        stderr: Option<pipe::Receiver>,
    },
    /// With a terminal.
    Terminal(PtyMaster),
}

pub(super) async fn start(bundle: Bundle, spec: ExecSpec) -> Result<ExecHandle, ShimError> {
    let process = serde_json::to_string(&spec.process).map_err(|source| ShimError::Encode {
        what: "the process",
        source,
    })?;
    let mut conn = Conn::connect(&bundle)
        .await
        .map_err(|e| bundle.gone_or("connect to", e))?;
    let request = Request::Exec(ExecRequest {
        process,
        stdin: spec.stdin,
        stdout: spec.stdout,
        stderr: spec.stderr,
    });
    conn.send(&request)
        .await
        .map_err(|e| bundle.gone_or("ask", e))?;
    let answer = conn
        .recv::<Response>()
        .await
        .map_err(|e| bundle.gone_or("hear from", e))?;
    match answer {
        Some((Response::ExecStarted { pid }, fds)) => Ok(ExecHandle {
            pid,
            stdio: Some(stdio(&bundle, &spec, fds)?),
            bundle,
            conn,
        }),
        Some((other, _)) => Err(unexpected(&bundle, other)),
        None => Err(bundle.lost()),
    }
}

fn stdio(bundle: &Bundle, spec: &ExecSpec, fds: Vec<OwnedFd>) -> Result<ExecStdio, ShimError> {
    let mut fds = fds.into_iter();
    let mut next = || fds.next().ok_or_else(|| bundle.protocol());
    let failed = |error| bundle.io("use a stream of", error);
    if spec.process.terminal().unwrap_or(false) {
        return Ok(ExecStdio::Terminal(
            PtyMaster::new(next()?).map_err(failed)?,
        ));
    }
    let stdin = match spec.stdin {
        true => Some(pipe::Sender::from_owned_fd(next()?).map_err(failed)?),
        false => None,
    };
    let mut receiver = |wanted: bool| -> Result<Option<pipe::Receiver>, ShimError> {
        match wanted {
            true => Ok(Some(
                pipe::Receiver::from_owned_fd(next()?).map_err(failed)?,
            )),
            false => Ok(None),
        }
    };
    Ok(ExecStdio::Pipes {
        stdin,
        stdout: receiver(spec.stdout)?,
        stderr: receiver(spec.stderr)?,
    })
}

impl ExecHandle {
    /// The host's process id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Sends a signal to the process.
    ///
    /// # Errors
    /// When the shim is gone. A process that has just ended is not an error.
    pub async fn kill(&mut self, signal: i32) -> Result<(), ShimError> {
        self.conn
            .send(&Request::KillExec { signal })
            .await
            .map_err(|e| self.bundle.gone_or("ask", e))
    }

    /// Waits for the end of the process.
    ///
    /// # Errors
    /// When the shim is gone.
    pub async fn wait(&mut self) -> Result<ExecExit, ShimError> {
        let answer = self
            .conn
            .recv::<Response>()
            .await
            .map_err(|e| self.bundle.gone_or("hear from", e))?;
        match answer {
            Some((Response::ExecExited { code, signal }, _)) => Ok(ExecExit { code, signal }),
            Some((other, _)) => Err(unexpected(&self.bundle, other)),
            None => Err(self.bundle.lost()),
        }
    }
}

/// Our side of a terminal. Reads end (as at a closed pipe) when the last process that has the other side is gone.
#[derive(Debug)]
pub struct PtyMaster {
    fd: AsyncFd<OwnedFd>,
}

impl PtyMaster {
    fn new(fd: OwnedFd) -> io::Result<Self> {
        let raw = fd.as_raw_fd();
        // SAFETY: fcntl on a descriptor that we own touches no memory.
        let flags = Errno::result(unsafe { libc::fcntl(raw, libc::F_GETFL) })?;
        // SAFETY: as above.
        Errno::result(unsafe { libc::fcntl(raw, libc::F_SETFL, flags | libc::O_NONBLOCK) })?;
        Ok(Self {
            fd: watched(fd, Interest::READABLE | Interest::WRITABLE)?,
        })
    }

    /// Sets the size of the terminal.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn resize(&self, columns: u16, rows: u16) -> io::Result<()> {
        crate::container::set_window_size(self.fd.as_raw_fd(), columns, rows)?;
        Ok(())
    }

    /// A second handle on the same terminal, for reading and writing from two tasks.
    ///
    /// # Errors
    /// When descriptors run out.
    pub fn try_clone(&self) -> io::Result<Self> {
        Self::new(self.fd.get_ref().try_clone()?)
    }
}

impl AsyncRead for PtyMaster {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.fd.poll_read_ready(cx))?;
            let unfilled = buf.initialize_unfilled();
            match guard.try_io(|fd| read(fd.as_raw_fd(), unfilled)) {
                Ok(Ok(count)) => {
                    buf.advance(count);
                    return Poll::Ready(Ok(()));
                }
                // The kernel's way to say that nobody holds the other side any more.
                Ok(Err(error)) if error.raw_os_error() == Some(libc::EIO) => {
                    return Poll::Ready(Ok(()));
                }
                Ok(Err(error)) => return Poll::Ready(Err(error)),
                Err(_would_block) => {}
            }
        }
    }
}

impl AsyncWrite for PtyMaster {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.fd.poll_write_ready(cx))?;
            match guard.try_io(|fd| write(fd.as_raw_fd(), data)) {
                Ok(result) => return Poll::Ready(result),
                Err(_would_block) => {}
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

fn read(fd: RawFd, buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the pointer and the length are those of one slice.
    let count = unsafe { libc::read(fd, buffer.as_mut_ptr().cast(), buffer.len()) };
    Ok(Errno::result(count)? as usize)
}

fn write(fd: RawFd, data: &[u8]) -> io::Result<usize> {
    // SAFETY: the pointer and the length are those of one slice.
    let count = unsafe { libc::write(fd, data.as_ptr().cast(), data.len()) };
    Ok(Errno::result(count)? as usize)
}
