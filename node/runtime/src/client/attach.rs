//! Live output and input of a container.

use super::conn::Conn;
use super::{ShimError, unexpected};
use crate::Bundle;
use crate::logs::StreamKind;
use crate::proto::{self, Request, Response};
use bytes::{Bytes, BytesMut};
use std::io;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

/// Which streams to hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AttachOptions {
    /// Write input. With `stdin_once` the container's input ends when this client leaves.
    pub stdin: bool,
    /// Read standard output (with a terminal: everything).
    pub stdout: bool,
    /// Read standard error.
    pub stderr: bool,
}

/// Both directions of an attached client. Dropping both detaches.
#[derive(Debug)]
pub struct AttachStreams {
    /// To the container.
    pub input: AttachInput,
    /// From the container.
    pub output: AttachOutput,
}

/// To the container.
#[derive(Debug)]
pub struct AttachInput {
    half: OwnedWriteHalf,
}

/// From the container.
#[derive(Debug)]
pub struct AttachOutput {
    half: OwnedReadHalf,
    buffer: BytesMut,
    ended: bool,
}

pub(super) async fn start(
    bundle: Bundle,
    options: AttachOptions,
) -> Result<AttachStreams, ShimError> {
    let mut conn = Conn::connect(&bundle)
        .await
        .map_err(|e| bundle.gone_or("connect to", e))?;
    let AttachOptions {
        stdin,
        stdout,
        stderr,
    } = options;
    conn.send(&Request::Attach {
        stdin,
        stdout,
        stderr,
    })
    .await
    .map_err(|e| bundle.gone_or("ask", e))?;
    let answer = conn
        .recv::<Response>()
        .await
        .map_err(|e| bundle.gone_or("hear from", e))?;
    match answer {
        Some((Response::Attached, _)) => {
            let (stream, buffer) = conn.into_parts();
            let (read, write) = stream.into_split();
            Ok(AttachStreams {
                input: AttachInput { half: write },
                output: AttachOutput {
                    half: read,
                    buffer: BytesMut::from(&buffer[..]),
                    ended: false,
                },
            })
        }
        Some((other, _)) => Err(unexpected(&bundle, other)),
        None => Err(bundle.lost()),
    }
}

impl AttachInput {
    /// Sends input. Waits while the container does not read.
    ///
    /// # Errors
    /// When the shim is gone, or has dropped this client.
    pub async fn write(&mut self, data: &[u8]) -> io::Result<()> {
        for piece in data.chunks(proto::DATA_BYTES_MAX) {
            let header = proto::data_header(proto::DATA_STDIN, piece.len());
            self.half.write_all(&header).await?;
            self.half.write_all(piece).await?;
        }
        Ok(())
    }

    /// Says that there is no more input: the container reads end of file.
    ///
    /// # Errors
    /// When the shim is gone.
    pub async fn close(&mut self) -> io::Result<()> {
        self.half
            .write_all(&proto::data_header(proto::DATA_END, 0))
            .await
    }
}

impl AttachOutput {
    /// The next piece of output; `None` when the container is over and all of its output was read. Safe to cancel.
    ///
    /// # Errors
    /// `UnexpectedEof` when the shim is gone, or has dropped this client because it took nothing for too long.
    pub async fn next(&mut self) -> io::Result<Option<(StreamKind, Bytes)>> {
        while !self.ended {
            let frame = proto::data_frame(&self.buffer).map_err(io::Error::other)?;
            let Some((kind, end)) = frame else {
                if self.half.read_buf(&mut self.buffer).await? == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                continue;
            };
            let mut data = self.buffer.split_to(end);
            let data = data.split_off(proto::DATA_HEADER_BYTES).freeze();
            match kind {
                proto::DATA_STDOUT => return Ok(Some((StreamKind::Stdout, data))),
                proto::DATA_STDERR => return Ok(Some((StreamKind::Stderr, data))),
                proto::DATA_END => self.ended = true,
                _ => return Err(io::Error::other("unknown kind of data frame")),
            }
        }
        Ok(None)
    }
}
