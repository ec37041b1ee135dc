//! One call as a stream of frames over any pair of byte streams.
//!
//! A frame is `length (u32, little endian) | value in the codec's envelope`. The same code runs over QUIC in
//! production and over simulated TCP in the simulation.

use crate::rpc::{HEADER_BYTES, TRANSPORT_VERSION};
use bytes::{Buf, Bytes, BytesMut};
use serde::{Serialize, de::DeserializeOwned};
use shoal_model::codec::{self, CodecError};
use shoal_model::rpc::{Method, RpcError};
use std::io;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Most bytes of one frame: 32 MiB. Larger things travel in several frames.
pub const FRAME_BYTES_MAX: usize = 32 << 20;

/// Most bytes of one frame from a peer without a certificate: 64 KiB.
pub const OPEN_FRAME_BYTES_MAX: usize = 64 << 10;

/// A send buffer that has grown past this is given back after use.
const BUFFER_KEPT_BYTES_MAX: usize = 1 << 20;

const LENGTH_BYTES: usize = 4;
/// Room for a read at first. A stream that waits holds no more than that.
const READ_BYTES_MIN: usize = 1 << 10;
/// Room for a read while a longer frame arrives.
const READ_BYTES_MAX: usize = 64 << 10;

/// The half of a byte stream that is read.
pub type ReadHalf = Box<dyn AsyncRead + Send + Sync + Unpin>;

/// The half of a byte stream that is written.
pub type WriteHalf = Box<dyn AsyncWrite + Send + Sync + Unpin>;

/// Why the peer refuses a call, sent as the code of a stream reset: there is nothing else in it to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, thiserror::Error)]
pub enum Refused {
    /// The caller's role, or the store of the called manager, does not allow it.
    #[error("this node's role does not allow the call")]
    Access,
    /// The called node does not know the method.
    #[error("the called node does not know the method")]
    UnknownMethod,
    /// The called node speaks another version of the transport.
    #[error("the called node speaks another version of the transport")]
    Version,
}

impl Refused {
    const ALL: [Self; 3] = [Self::Access, Self::UnknownMethod, Self::Version];

    pub(crate) const fn code(self) -> u32 {
        match self {
            Self::Access => 0x101,
            Self::UnknownMethod => 0x102,
            Self::Version => 0x103,
        }
    }

    fn from_code(code: u64) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|refused| u64::from(refused.code()) == code)
    }
}

/// Why a frame could not be sent or received.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The value can't be encoded.
    #[error("failed to encode a frame")]
    Encode(#[source] CodecError),
    /// The peer sent something else than what this side reads.
    #[error("failed to decode a frame")]
    Decode(#[source] CodecError),
    /// Over the bound.
    #[error("the frame has {bytes} bytes, and at most {bytes_max} are allowed")]
    FrameTooLarge {
        /// Its size.
        bytes: usize,
        /// The bound.
        bytes_max: usize,
    },
    /// The stream ended inside a frame, or before the frame that had to come.
    #[error("the stream ended before the answer was complete")]
    Truncated,
    /// An earlier send was given up half-way; what was sent is not a frame.
    #[error("an earlier frame was sent in part only")]
    Interrupted,
    /// The peer refused the call.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// The connection is gone, or the peer has let go of the stream.
    #[error("the connection was lost")]
    Lost(#[source] io::Error),
}

impl StreamError {
    fn from_io(err: io::Error) -> Self {
        let code = err.get_ref().and_then(|inner| {
            let read = inner.downcast_ref::<quinn::ReadError>();
            let written = inner.downcast_ref::<quinn::WriteError>();
            match (read, written) {
                (Some(quinn::ReadError::Reset(code)), _)
                | (_, Some(quinn::WriteError::Stopped(code))) => Some(code.into_inner()),
                _ => None,
            }
        });
        match code.and_then(Refused::from_code) {
            Some(refused) => Self::Refused(refused),
            None => Self::Lost(err),
        }
    }
}

/// The sending half of a call.
pub struct RpcSender {
    write: WriteHalf,
    /// Not yet written: the header before the first frame.
    buffer: Vec<u8>,
    interrupted: bool,
}

/// The receiving half of a call.
pub struct RpcReceiver {
    read: ReadHalf,
    buffer: BytesMut,
    frame_bytes_max: usize,
}

/// One call: frames both ways.
pub struct RpcStream {
    sender: RpcSender,
    receiver: RpcReceiver,
}

impl std::fmt::Debug for RpcStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RpcStream").finish_non_exhaustive()
    }
}

impl RpcStream {
    /// A stream whose header, if it has one, was already dealt with.
    pub fn new(read: ReadHalf, write: WriteHalf) -> Self {
        Self {
            sender: RpcSender {
                write,
                buffer: Vec::new(),
                interrupted: false,
            },
            receiver: RpcReceiver {
                read,
                buffer: BytesMut::new(),
                frame_bytes_max: FRAME_BYTES_MAX,
            },
        }
    }

    /// The caller's side of a new stream. The header goes out together with the first frame.
    pub fn caller(read: ReadHalf, write: WriteHalf, method: Method) -> Self {
        let mut stream = Self::new(read, write);
        stream.sender.buffer.push(TRANSPORT_VERSION);
        stream
            .sender
            .buffer
            .extend_from_slice(&method.number().to_le_bytes());
        stream
    }

    /// The called side of a new stream: reads the header.
    ///
    /// # Errors
    /// [`StreamError::Refused`] for a header that this side does not know, or the loss of the stream.
    pub async fn accept(
        mut read: ReadHalf,
        write: WriteHalf,
    ) -> Result<(Method, Self), StreamError> {
        let method = read_header(&mut read).await?;
        Ok((method, Self::new(read, write)))
    }

    pub(crate) fn set_frame_bytes_max(&mut self, bytes: usize) {
        self.receiver.frame_bytes_max = bytes;
    }

    /// Sends one frame. Not cancel-safe: after a cancelled send the stream refuses further ones.
    ///
    /// # Errors
    /// Every [`StreamError`] but `Decode` and `Truncated`.
    pub async fn send<T: Serialize + Sync + ?Sized>(
        &mut self,
        value: &T,
    ) -> Result<(), StreamError> {
        self.sender.send(value).await
    }

    /// Receives one frame; `None` at the end of the stream. Cancel-safe. Sends the header first if no frame has been
    /// sent yet.
    ///
    /// # Errors
    /// Every [`StreamError`] but `Encode`.
    pub async fn recv<T: DeserializeOwned>(&mut self) -> Result<Option<T>, StreamError> {
        if !self.sender.buffer.is_empty() {
            self.sender.flush().await?;
        }
        self.receiver.recv().await
    }

    /// Sends the one answer of a call and ends the stream.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub async fn reply<T: Serialize + Sync>(
        &mut self,
        answer: &Result<T, RpcError>,
    ) -> Result<(), StreamError> {
        self.send(answer).await?;
        self.finish().await
    }

    /// Tells the peer that no more frames will come. The other direction stays open.
    ///
    /// # Errors
    /// [`StreamError::Lost`].
    pub async fn finish(&mut self) -> Result<(), StreamError> {
        self.sender.finish().await
    }

    /// Both directions, to be used apart.
    pub fn split(self) -> (RpcSender, RpcReceiver) {
        (self.sender, self.receiver)
    }

    /// The byte streams below, for bodies that are not frames. Bytes that were read ahead come first.
    ///
    /// # Errors
    /// [`StreamError::Lost`].
    pub async fn into_bytes(mut self) -> Result<(ReadHalf, WriteHalf), StreamError> {
        self.sender.flush().await?;
        let ahead = self.receiver.buffer.freeze();
        let read: ReadHalf = if ahead.is_empty() {
            self.receiver.read
        } else {
            Box::new(AsyncReadExt::chain(
                io::Cursor::new(ahead),
                self.receiver.read,
            ))
        };
        Ok((read, self.sender.write))
    }
}

pub(crate) async fn read_header(
    read: &mut (impl AsyncRead + Unpin + ?Sized),
) -> Result<Method, StreamError> {
    let mut header = [0; HEADER_BYTES];
    read.read_exact(&mut header).await.map_err(|err| {
        if err.kind() == io::ErrorKind::UnexpectedEof {
            StreamError::Truncated
        } else {
            StreamError::from_io(err)
        }
    })?;
    let [version, low, high] = header;
    if version != TRANSPORT_VERSION {
        return Err(Refused::Version.into());
    }
    Method::from_number(u16::from_le_bytes([low, high])).ok_or(Refused::UnknownMethod.into())
}

impl RpcSender {
    /// Sends one frame. Not cancel-safe: after a cancelled send the stream refuses further ones.
    ///
    /// # Errors
    /// As [`RpcStream::send`].
    pub async fn send<T: Serialize + Sync + ?Sized>(
        &mut self,
        value: &T,
    ) -> Result<(), StreamError> {
        let start = self.buffer.len();
        match self.append_frame(value) {
            Ok(()) => self.flush().await,
            Err(err) => {
                self.buffer.truncate(start);
                Err(err)
            }
        }
    }

    fn append_frame<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), StreamError> {
        let start = self.buffer.len();
        self.buffer.extend_from_slice(&[0; LENGTH_BYTES]);
        codec::encode_into(value, &mut self.buffer).map_err(StreamError::Encode)?;
        let bytes = self.buffer.len() - start - LENGTH_BYTES;
        let too_large = StreamError::FrameTooLarge {
            bytes,
            bytes_max: FRAME_BYTES_MAX,
        };
        if bytes > FRAME_BYTES_MAX {
            return Err(too_large);
        }
        let length = u32::try_from(bytes).map_err(|_| too_large)?;
        self.buffer[start..start + LENGTH_BYTES].copy_from_slice(&length.to_le_bytes());
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), StreamError> {
        if self.interrupted {
            return Err(StreamError::Interrupted);
        }
        self.interrupted = true;
        self.write
            .write_all(&self.buffer)
            .await
            .map_err(StreamError::from_io)?;
        self.write.flush().await.map_err(StreamError::from_io)?;
        self.interrupted = false;
        self.buffer.clear();
        if self.buffer.capacity() > BUFFER_KEPT_BYTES_MAX {
            self.buffer = Vec::new();
        }
        Ok(())
    }

    /// Tells the peer that no more frames will come.
    ///
    /// # Errors
    /// [`StreamError::Lost`].
    pub async fn finish(&mut self) -> Result<(), StreamError> {
        if !self.buffer.is_empty() {
            self.flush().await?;
        }
        self.write.shutdown().await.map_err(StreamError::from_io)
    }
}

impl RpcReceiver {
    /// Receives one frame; `None` at the end of the stream. Cancel-safe.
    ///
    /// # Errors
    /// As [`RpcStream::recv`].
    pub async fn recv<T: DeserializeOwned>(&mut self) -> Result<Option<T>, StreamError> {
        match self.recv_frame().await? {
            Some(frame) => codec::decode(&frame).map(Some).map_err(StreamError::Decode),
            None => Ok(None),
        }
    }

    async fn recv_frame(&mut self) -> Result<Option<Bytes>, StreamError> {
        loop {
            if let Some(frame) = self.take_frame()? {
                return Ok(Some(frame));
            }
            // Room grows with what has arrived, never with what a length field promises.
            let arrived = self.buffer.len();
            self.buffer
                .reserve(arrived.clamp(READ_BYTES_MIN, READ_BYTES_MAX));
            let read = self
                .read
                .read_buf(&mut self.buffer)
                .await
                .map_err(StreamError::from_io)?;
            if read == 0 {
                return if self.buffer.is_empty() {
                    Ok(None)
                } else {
                    Err(StreamError::Truncated)
                };
            }
        }
    }

    fn take_frame(&mut self) -> Result<Option<Bytes>, StreamError> {
        let Some(length) = self.buffer.first_chunk::<LENGTH_BYTES>() else {
            return Ok(None);
        };
        let bytes = u32::from_le_bytes(*length) as usize;
        if bytes > self.frame_bytes_max {
            return Err(StreamError::FrameTooLarge {
                bytes,
                bytes_max: self.frame_bytes_max,
            });
        }
        if self.buffer.len() < LENGTH_BYTES + bytes {
            return Ok(None);
        }
        self.buffer.advance(LENGTH_BYTES);
        Ok(Some(self.buffer.split_to(bytes).freeze()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    fn pair() -> (RpcStream, (ReadHalf, WriteHalf)) {
        let (left, right) = tokio::io::duplex(1 << 16);
        let (left_read, left_write) = tokio::io::split(left);
        let (right_read, right_write) = tokio::io::split(right);
        (
            RpcStream::caller(Box::new(left_read), Box::new(left_write), Method::Control),
            (Box::new(right_read), Box::new(right_write)),
        )
    }

    #[tokio::test]
    async fn frames_follow_the_header() {
        let (mut caller, (read, write)) = pair();
        caller.send("question").await.unwrap();
        caller.finish().await.unwrap();
        let (method, mut called) = RpcStream::accept(read, write).await.unwrap();
        assert_eq!(method, Method::Control);
        assert_eq!(
            called.recv::<String>().await.unwrap().as_deref(),
            Some("question")
        );
        assert!(called.recv::<String>().await.unwrap().is_none());
        called.reply(&Ok(7u32)).await.unwrap();
        let answer: Result<u32, RpcError> = caller.recv().await.unwrap().unwrap();
        assert_eq!(answer, Ok(7));
    }

    #[tokio::test]
    async fn a_cancelled_receive_loses_nothing() {
        let (mut caller, (read, mut write)) = pair();
        drop(read);
        let mut frame = vec![0; LENGTH_BYTES];
        codec::encode_into("answer", &mut frame).unwrap();
        let length = u32::try_from(frame.len() - LENGTH_BYTES).unwrap();
        frame[..LENGTH_BYTES].copy_from_slice(&length.to_le_bytes());
        caller.sender.buffer.clear();
        for byte in frame {
            assert!(caller.recv::<String>().now_or_never().is_none());
            write.write_all(&[byte]).await.unwrap();
        }
        assert_eq!(
            caller.recv::<String>().await.unwrap().as_deref(),
            Some("answer")
        );
    }

    #[tokio::test]
    async fn a_promised_length_over_the_bound_is_refused_before_it_is_read() {
        let (mut caller, (_read, mut write)) = pair();
        caller.sender.buffer.clear();
        write.write_all(&u32::MAX.to_le_bytes()).await.unwrap();
        let err = caller.recv::<String>().await.unwrap_err();
        assert!(matches!(err, StreamError::FrameTooLarge { .. }), "{err}");
    }

    #[tokio::test]
    async fn an_end_inside_a_frame_is_an_error() {
        let (mut caller, (_read, mut write)) = pair();
        caller.sender.buffer.clear();
        write.write_all(&[9, 0, 0, 0, 1]).await.unwrap();
        write.shutdown().await.unwrap();
        let err = caller.recv::<String>().await.unwrap_err();
        assert!(matches!(err, StreamError::Truncated), "{err}");
    }

    #[tokio::test]
    async fn unknown_headers_are_refused() {
        for (header, expected) in [
            ([9, 1, 0], Refused::Version),
            ([TRANSPORT_VERSION, 0xff, 0xff], Refused::UnknownMethod),
        ] {
            let err = read_header(&mut header.as_slice()).await.unwrap_err();
            assert!(matches!(err, StreamError::Refused(found) if found == expected));
        }
    }
}
