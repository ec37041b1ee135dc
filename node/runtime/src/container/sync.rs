//! The socket between the shim and a process that it is making: one message per packet.

use super::sys::SysResult;
use crate::Failure;
use nix::cmsg_space;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr,
    recvmsg, sendmsg, socketpair,
};
use serde::{Deserialize, Serialize};
use shoal_model::codec;
use std::fs::File;
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};

/// Most bytes of a message: 8 KiB. A failure has at most a few path names.
const MESSAGE_BYTES_MAX: usize = 8 << 10;

/// Most descriptors that come along with a message: one per control group.
const FDS_MAX: usize = 8;

/// What is said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Message {
    /// Shim: users are mapped.
    Mapped,
    /// Shim: the control groups are there; what comes along are the files by which the process enters them, none when
    /// it was born in them.
    Placed,
    /// Child: here is the terminal (a descriptor comes along).
    Terminal,
    /// Child: everything but the execution is done.
    Ready,
    /// Shim: execute the program.
    Start,
    /// Child: it did not work.
    Failed(Failure),
}

/// The shim's end; never blocks.
#[derive(Debug)]
pub(crate) struct ShimSide(OwnedFd);

/// The end of the process that is made; waits.
#[derive(Debug)]
pub(super) struct ChildSide(OwnedFd);

/// Both ends.
pub(super) fn pair() -> SysResult<(ShimSide, ChildSide)> {
    let (shim, child) = socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        SockFlag::SOCK_CLOEXEC,
    )?;
    Ok((ShimSide(shim), ChildSide(child)))
}

impl AsFd for ShimSide {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl ShimSide {
    pub(crate) fn send(&self, message: &Message) -> SysResult<()> {
        send(&self.0, message, &[])
    }

    /// Lets the process enter its control groups by `entrances`.
    pub(crate) fn send_placed(&self, entrances: &[File]) -> SysResult<()> {
        let fds: Vec<_> = entrances.iter().map(AsFd::as_fd).collect();
        send(&self.0, &Message::Placed, &fds)
    }

    /// The next message; `None` when the process executed its program or died.
    pub(crate) fn recv(&self) -> SysResult<Option<(Message, Vec<OwnedFd>)>> {
        recv(&self.0, MsgFlags::MSG_DONTWAIT)
    }
}

impl ChildSide {
    pub(super) fn send(&self, message: &Message, fds: &[BorrowedFd<'_>]) -> SysResult<()> {
        send(&self.0, message, fds)
    }

    /// Waits for exactly this message. A closed socket means that the shim is gone.
    pub(super) fn expect(&self, wanted: &Message) -> SysResult<Vec<OwnedFd>> {
        match recv(&self.0, MsgFlags::empty())? {
            Some((message, fds)) if message == *wanted => Ok(fds),
            Some(_) => Err(Errno::EPROTO),
            None => Err(Errno::EPIPE),
        }
    }

    /// Whether the shim still has its end. A death of the shim from before [`die_with_shim`] is seen by this alone.
    ///
    /// [`die_with_shim`]: super::program::die_with_shim
    pub(super) fn is_connected(&self) -> bool {
        let mut byte = [0u8; 1];
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        // Zero bytes are the end: there are no empty messages.
        match nix::sys::socket::recv(self.0.as_raw_fd(), &mut byte, flags) {
            Ok(count) => count > 0,
            Err(errno) => errno == Errno::EAGAIN,
        }
    }

    /// Waits for the control groups and enters them.
    pub(super) fn enter_groups(&self) -> SysResult<()> {
        for entrance in self.expect(&Message::Placed)? {
            // "0" is the writer itself. The kernel moves a single task that moves itself without a lock over all
            // processes of the machine, for which it would have to wait many milliseconds.
            nix::unistd::write(&entrance, b"0")?;
        }
        Ok(())
    }
}

fn send(socket: &OwnedFd, message: &Message, fds: &[BorrowedFd<'_>]) -> SysResult<()> {
    let mut bytes = codec::encode(message).map_err(|_| Errno::EINVAL)?;
    if bytes.len() > MESSAGE_BYTES_MAX
        && let Message::Failed(failure) = message
    {
        let mut failure = failure.clone();
        failure.message = failure
            .message
            .chars()
            .take(MESSAGE_BYTES_MAX / 8)
            .collect();
        bytes = codec::encode(&Message::Failed(failure)).map_err(|_| Errno::EINVAL)?;
    }
    let raw: Vec<RawFd> = fds.iter().map(|fd| fd.as_raw_fd()).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control: &[ControlMessage<'_>] = if raw.is_empty() { &[] } else { &rights };
    sendmsg::<UnixAddr>(
        socket.as_raw_fd(),
        &[IoSlice::new(&bytes)],
        control,
        MsgFlags::MSG_NOSIGNAL,
        None,
    )
    .map(drop)
}

fn recv(socket: &OwnedFd, flags: MsgFlags) -> SysResult<Option<(Message, Vec<OwnedFd>)>> {
    let mut bytes = [0u8; MESSAGE_BYTES_MAX];
    let mut space = cmsg_space!([RawFd; FDS_MAX]);
    let mut slices = [IoSliceMut::new(&mut bytes)];
    let flags = flags | MsgFlags::MSG_CMSG_CLOEXEC;
    let received = loop {
        match recvmsg::<UnixAddr>(socket.as_raw_fd(), &mut slices, Some(&mut space), flags) {
            // The kernel says once that the other side left without reading everything; what it sent before its end
            // comes afterwards.
            Err(Errno::EINTR | Errno::ECONNRESET) => {}
            other => break other?,
        }
    };
    let mut fds = Vec::new();
    for item in received.cmsgs()? {
        if let ControlMessageOwned::ScmRights(raw) = item {
            for raw in raw {
                // SAFETY: the kernel has just made this descriptor for us.
                fds.push(unsafe { OwnedFd::from_raw_fd(raw) });
            }
        }
    }
    let count = received.bytes;
    if count == 0 {
        return Ok(None);
    }
    let message = codec::decode(&bytes[..count]).map_err(|_| Errno::EPROTO)?;
    Ok(Some((message, fds)))
}
