//! A bridge from an asynchronous reader to a blocking one.

use crate::content::READ_BYTES;
use crate::layer::DOWNLOAD_CHUNKS_MAX;
use bytes::{Buf, Bytes, BytesMut};
use std::io::{self, BufRead, Read};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::mpsc;

/// Reads `source` on the runtime and hands its bytes on through a bounded channel; stops when the receiver is dropped.
pub(crate) fn feed(
    mut source: impl AsyncRead + Send + Unpin + 'static,
) -> mpsc::Receiver<Result<Bytes, io::Error>> {
    let (sender, receiver) = mpsc::channel(DOWNLOAD_CHUNKS_MAX);
    tokio::spawn(async move {
        loop {
            let mut buffer = BytesMut::with_capacity(READ_BYTES);
            let read = tokio::select! {
                read = source.read_buf(&mut buffer) => read,
                () = sender.closed() => return,
            };
            let (chunk, last) = match read {
                Ok(0) => return,
                Ok(_) => (Ok(buffer.freeze()), false),
                Err(err) => (Err(err), true),
            };
            if sender.send(chunk).await.is_err() || last {
                return;
            }
        }
    });
    receiver
}

/// The blocking end.
pub(crate) struct ChunkReader {
    receiver: mpsc::Receiver<Result<Bytes, io::Error>>,
    chunk: Bytes,
}

impl ChunkReader {
    pub(crate) fn feed(source: impl AsyncRead + Send + Unpin + 'static) -> Self {
        Self {
            receiver: feed(source),
            chunk: Bytes::new(),
        }
    }
}

impl BufRead for ChunkReader {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.chunk.is_empty()
            && let Some(chunk) = self.receiver.blocking_recv()
        {
            self.chunk = chunk?;
        }
        Ok(&self.chunk)
    }

    fn consume(&mut self, count: usize) {
        self.chunk.advance(count);
    }
}

impl Read for ChunkReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let count = available.len().min(buffer.len());
        buffer[..count].copy_from_slice(&available[..count]);
        self.consume(count);
        Ok(count)
    }
}
