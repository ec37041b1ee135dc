//! Clients of the shim: requests and answers, or raw data once attached.

use crate::logs::StreamKind;
use crate::proto::{self, Request, Response};
use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, sendmsg};
use std::io::{self, IoSlice, Read as _, Write as _};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// Output that is held for one attached client before the container's output is left in its pipe: 256 KiB.
const OUTPUT_BYTES_MAX: usize = 256 << 10;

/// How long an attached client may take nothing while that much is held. Then it is dropped: a client that hangs
/// must not stop the container.
pub(super) const STALL_MAX: Duration = Duration::from_secs(2);

/// Bytes read from a client at once: 16 KiB.
const READ_BYTES: usize = 16 << 10;

/// Input of an attached client that is held while the container does not read: two full data frames, so that one is
/// always complete.
const INPUT_BYTES_MAX: usize = 2 * (proto::DATA_BYTES_MAX + proto::DATA_HEADER_BYTES);

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Control,
    /// Waits for the end of the container.
    Waiter,
    /// Waits for the result of `Start` or `Delete`.
    Pending,
    /// Belongs to the exec'ed process with this number.
    Exec(i32),
    Attached {
        stdin: bool,
        stdout: bool,
        stderr: bool,
    },
}

#[derive(Debug)]
pub(super) struct Connection {
    stream: UnixStream,
    pub(super) role: Role,
    input: Vec<u8>,
    output: Vec<u8>,
    /// Since when the client has taken nothing of a full buffer.
    stalled_since: Option<Instant>,
    /// Ends when everything is sent.
    pub(super) closing: bool,
    /// The client sends nothing more.
    pub(super) input_ended: bool,
}

impl Connection {
    pub(super) fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream,
            role: Role::Control,
            input: Vec::new(),
            output: Vec::new(),
            stalled_since: None,
            closing: false,
            input_ended: false,
        })
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    pub(super) fn wants_write(&self) -> bool {
        !self.output.is_empty()
    }

    /// Whether more may be read: an attached client's input waits for the container.
    pub(super) fn wants_read(&self) -> bool {
        let bound = match self.role {
            Role::Attached { .. } => INPUT_BYTES_MAX,
            Role::Control | Role::Waiter | Role::Pending | Role::Exec(_) => {
                proto::FRAME_BYTES_MAX + proto::FRAME_HEADER_BYTES
            }
        };
        !self.input_ended && self.input.len() < bound
    }

    /// Bytes of the client have not been worked off.
    pub(super) fn holds_input(&self) -> bool {
        matches!(proto::data_frame(&self.input), Ok(Some(_)) | Err(_))
    }

    /// More output must not be read for this client now.
    pub(super) fn is_full(&self) -> bool {
        self.output.len() >= OUTPUT_BYTES_MAX
    }

    /// Since when the client takes nothing.
    pub(super) fn stalled_for(&self, now: Instant) -> Option<Duration> {
        self.stalled_since.map(|since| now.duration_since(since))
    }

    /// Reads what is there; `false` when the client is gone.
    pub(super) fn fill(&mut self) -> bool {
        let mut chunk = [0u8; READ_BYTES];
        match self.stream.read(&mut chunk) {
            Ok(0) => {
                self.input_ended = true;
                false
            }
            Ok(count) => {
                self.input.extend_from_slice(&chunk[..count]);
                true
            }
            Err(error) => {
                matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                )
            }
        }
    }

    /// The next complete request.
    pub(super) fn take_request(&mut self) -> Result<Option<Request>, proto::FrameError> {
        proto::take_frame(&mut self.input)
    }

    /// Input of an attached client: what may be written to the container now, and whether it is the end.
    pub(super) fn stdin(&mut self) -> Result<Stdin<'_>, proto::FrameError> {
        match proto::data_frame(&self.input)? {
            None => Ok(Stdin::Nothing),
            Some((proto::DATA_STDIN, end)) if end > proto::DATA_HEADER_BYTES => {
                Ok(Stdin::Data(&self.input[proto::DATA_HEADER_BYTES..end]))
            }
            Some((proto::DATA_STDIN, _)) => Ok(Stdin::Empty),
            Some((proto::DATA_END, _)) => Ok(Stdin::End),
            Some((_, end)) => Err(proto::FrameError::TooLong { length: end }),
        }
    }

    /// `count` bytes of the present input frame were written to the container; the rest stays a frame.
    pub(super) fn consume_stdin(&mut self, count: usize) {
        let Ok(Some((kind, end))) = proto::data_frame(&self.input) else {
            return;
        };
        let rest = end - proto::DATA_HEADER_BYTES - count;
        if rest == 0 {
            self.input.drain(..end);
        } else {
            self.input.drain(..count);
            self.input[..proto::DATA_HEADER_BYTES].copy_from_slice(&proto::data_header(kind, rest));
        }
        if self.input.is_empty() {
            self.input = Vec::new();
        }
    }

    pub(super) fn respond(&mut self, response: &Response) {
        match proto::frame(response) {
            Ok(frame) => self.output.extend_from_slice(&frame),
            // Our own answers are small; one that can't be encoded ends the connection.
            Err(_) => self.closing = true,
        }
    }

    /// Answers with descriptors; `false` when the client is gone.
    pub(super) fn respond_with(&mut self, response: &Response, fds: &[OwnedFd]) -> bool {
        let Ok(frame) = proto::frame(response) else {
            return false;
        };
        let raw: Vec<RawFd> = fds.iter().map(|fd| fd.as_raw_fd()).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let control: &[ControlMessage<'_>] = if raw.is_empty() { &[] } else { &rights };
        let flags = MsgFlags::MSG_NOSIGNAL;
        let sent = sendmsg::<UnixAddr>(
            self.stream.as_raw_fd(),
            &[IoSlice::new(&frame)],
            control,
            flags,
            None,
        );
        match sent {
            Ok(count) => {
                self.output.extend_from_slice(&frame[count..]);
                true
            }
            Err(_) => false,
        }
    }

    /// Queues output for an attached client that wants it.
    pub(super) fn push_data(&mut self, kind: StreamKind, data: &[u8]) {
        let Role::Attached { stdout, stderr, .. } = self.role else {
            return;
        };
        let (wanted, kind) = match kind {
            StreamKind::Stdout => (stdout, proto::DATA_STDOUT),
            StreamKind::Stderr => (stderr, proto::DATA_STDERR),
        };
        if !wanted {
            return;
        }
        for piece in data.chunks(proto::DATA_BYTES_MAX) {
            self.output
                .extend_from_slice(&proto::data_header(kind, piece.len()));
            self.output.extend_from_slice(piece);
        }
    }

    /// Tells an attached client that all output was sent.
    pub(super) fn push_end(&mut self) {
        self.output
            .extend_from_slice(&proto::data_header(proto::DATA_END, 0));
        self.closing = true;
    }

    /// Sends what the client takes now; `false` when it is gone.
    pub(super) fn flush(&mut self, now: Instant) -> bool {
        let mut sent = 0;
        let alive = loop {
            if sent == self.output.len() {
                break true;
            }
            match self.stream.write(&self.output[sent..]) {
                Ok(0) => break false,
                Ok(count) => sent += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break true,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break false,
            }
        };
        self.output.drain(..sent);
        if self.output.is_empty() {
            self.output = Vec::new();
        }
        self.stalled_since = match (self.is_full(), sent > 0) {
            (false, _) => None,
            (true, true) => Some(now),
            (true, false) => self.stalled_since.or(Some(now)),
        };
        alive
    }
}

/// What an attached client's input says.
pub(super) enum Stdin<'a> {
    Nothing,
    Empty,
    Data(&'a [u8]),
    End,
}

/// Whether the peer of a connection is our own user: nobody else may command a container.
pub(super) fn is_own_user(stream: &UnixStream) -> Result<bool, Errno> {
    let peer = nix::sys::socket::getsockopt(stream, nix::sys::socket::sockopt::PeerCredentials)?;
    Ok(peer.uid() == nix::unistd::geteuid().as_raw())
}
