//! One connection to a shim, with the file descriptors that come along.

use crate::Bundle;
use crate::bundle::SOCKET_NAME;
use crate::proto;
use nix::cmsg_space;
use nix::errno::Errno;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, UnixAddr, recvmsg};
use serde::{Serialize, de::DeserializeOwned};
use std::fs::File;
use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::path::PathBuf;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncWriteExt as _, Interest};
use tokio::net::UnixStream;

/// Bytes read at once: 16 KiB.
const READ_BYTES: usize = 16 << 10;

/// File descriptors that one message may carry: stdin, stdout, stderr.
const FDS_MAX: usize = 3;

#[derive(Debug)]
pub(super) struct Conn {
    stream: UnixStream,
    buffer: Vec<u8>,
    fds: Vec<OwnedFd>,
}

impl Conn {
    pub(super) fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        let stream = std::os::unix::net::UnixStream::from(fd);
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream: UnixStream::from_std(stream)?,
            buffer: Vec::new(),
            fds: Vec::new(),
        })
    }

    pub(super) async fn connect(bundle: &Bundle) -> io::Result<Self> {
        // A socket's path has at most 107 bytes and a bundle's may be longer: go through the directory.
        let dir = File::open(bundle.dir())?;
        let path: PathBuf = format!("/proc/self/fd/{}/{SOCKET_NAME}", dir.as_raw_fd()).into();
        let stream = UnixStream::connect(path).await?;
        Ok(Self {
            stream,
            buffer: Vec::new(),
            fds: Vec::new(),
        })
    }

    pub(super) async fn send<T: Serialize>(&mut self, value: &T) -> io::Result<()> {
        let frame = proto::frame(value).map_err(io::Error::other)?;
        self.stream.write_all(&frame).await
    }

    /// The next frame with the descriptors that arrived by then; `None` when the shim closed the connection.
    pub(super) async fn recv<T: DeserializeOwned>(
        &mut self,
    ) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
        loop {
            if let Some(value) = proto::take_frame(&mut self.buffer).map_err(io::Error::other)? {
                return Ok(Some((value, std::mem::take(&mut self.fds))));
            }
            if self.fill().await? == 0 {
                return Ok(None);
            }
        }
    }

    async fn fill(&mut self) -> io::Result<usize> {
        let Self {
            stream,
            buffer,
            fds,
        } = self;
        let fd = stream.as_raw_fd();
        stream
            .async_io(Interest::READABLE, || receive(fd, buffer, fds))
            .await
    }

    /// The stream and what was already read from it.
    pub(super) fn into_parts(self) -> (UnixStream, Vec<u8>) {
        (self.stream, self.buffer)
    }
}

fn receive(fd: RawFd, buffer: &mut Vec<u8>, fds: &mut Vec<OwnedFd>) -> io::Result<usize> {
    let mut chunk = [0u8; READ_BYTES];
    let mut space = cmsg_space!([RawFd; FDS_MAX]);
    let mut slices = [IoSliceMut::new(&mut chunk)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT;
    let message = recvmsg::<UnixAddr>(fd, &mut slices, Some(&mut space), flags).map_err(
        |errno| match errno {
            Errno::EAGAIN => io::ErrorKind::WouldBlock.into(),
            other => io::Error::from(other),
        },
    )?;
    for item in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(raw) = item {
            // SAFETY: the kernel has just made these descriptors for us, and nobody else knows them.
            fds.extend(
                raw.into_iter()
                    .map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }),
            );
        }
    }
    let count = message.bytes;
    buffer.extend_from_slice(&chunk[..count]);
    Ok(count)
}

/// A descriptor whose readiness tokio watches.
pub(crate) fn watched(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an owned descriptor stays open, under the same number, until the value is dropped.
    let registered = unsafe { AsyncFd::register_with_interest(fd, interest) };
    registered.map_err(|error| error.into_parts().1)
}
