//! Attached clients: the connection stops being HTTP and carries a container's standard streams.

use crate::error::{ApiError, ApiResult};
use crate::server::Api;
use crate::stream::{frame, output_type};
use axum::body::Body;
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt};
use http::header::{CONNECTION, CONTENT_TYPE, UPGRADE};
use http::{HeaderValue, StatusCode};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use shoal_engine::AttachStreams;
use shoal_engine::requests::{InputSink, OutputStream};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_util::io::StreamReader;

/// Bytes read from a client at a time.
const INPUT_CHUNK_BYTES: usize = 32 * 1024;
/// Docker's default keys to detach: ctrl-p, ctrl-q.
const DETACH_KEYS_DEFAULT: &[u8] = &[16, 17];

/// The client's side of the connection, taken from the request.
pub(crate) struct Client {
    upgrade: Option<OnUpgrade>,
    body: Body,
}

impl Client {
    /// Notes whether the client asked to leave HTTP.
    pub(crate) fn of(mut request: Request) -> Self {
        let asked = request.headers().contains_key(UPGRADE);
        let upgrade = asked.then(|| hyper::upgrade::on(&mut request));
        Self {
            upgrade,
            body: request.into_body(),
        }
    }

    /// As [`Self::of`] for a request whose body has been read.
    pub(crate) fn with_upgrade(upgrade: Option<OnUpgrade>) -> Self {
        Self {
            upgrade,
            body: Body::empty(),
        }
    }

    /// Joins the client and the container, and answers. Without an upgrade the answer's body is the output, and the
    /// request's body the input.
    pub(crate) fn join(self, api: &Api, streams: AttachStreams, keys: DetachKeys) -> Response {
        let media_type = output_type(streams.tty);
        let Some(upgrade) = self.upgrade else {
            return plain(api, self.body, streams);
        };
        let stopping = api.stopping.clone();
        tokio::spawn(async move {
            let io = match upgrade.await {
                Ok(upgraded) => TokioIo::new(upgraded),
                Err(err) => {
                    tracing::debug!(%err, "a client did not finish its upgrade");
                    return;
                }
            };
            tokio::select! {
                result = pump(io, streams, keys) => {
                    if let Err(err) = result {
                        tracing::debug!(%err, "an attached client went away");
                    }
                }
                () = stopping.cancelled() => {}
            }
        });
        let mut response = StatusCode::SWITCHING_PROTOCOLS.into_response();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(UPGRADE, HeaderValue::from_static("tcp"));
        response
    }
}

fn plain(api: &Api, input: Body, streams: AttachStreams) -> Response {
    let tty = streams.tty;
    if let Some(mut stdin) = streams.stdin {
        let stopping = api.stopping.clone();
        tokio::spawn(async move {
            let mut input =
                StreamReader::new(input.into_data_stream().map_err(std::io::Error::other));
            let copy = async {
                tokio::io::copy(&mut input, &mut stdin).await?;
                stdin.shutdown().await
            };
            tokio::select! {
                result = copy => {
                    if let Err(err) = result {
                        tracing::debug!(%err, "the input of an attached client ended with an error");
                    }
                }
                () = stopping.cancelled() => {}
            }
        });
    }
    let output = streams.output.filter_map(move |chunk| {
        let bytes: Option<Bytes> = match chunk {
            Ok(chunk) => Some(frame(tty, chunk.stream, &[&chunk.bytes])),
            Err(err) => {
                tracing::debug!(%err, "the output of a container ended with an error");
                None
            }
        };
        std::future::ready(bytes)
    });
    crate::stream::streaming(api, output_type(tty), output)
}

/// Moves bytes until the container's output ends, the client goes, or it types the detach keys.
async fn pump(
    io: impl AsyncRead + AsyncWrite,
    streams: AttachStreams,
    keys: DetachKeys,
) -> std::io::Result<()> {
    let (reader, mut writer) = tokio::io::split(io);
    let tty = streams.tty;
    let keys = if tty { keys } else { DetachKeys::none() };
    let input = feed(reader, streams.stdin, keys);
    {
        let output = drain(streams.output, &mut writer, tty);
        tokio::pin!(input, output);
        tokio::select! {
            result = &mut output => result?,
            ended = &mut input => match ended {
                Ok(InputEnd::Detached) => {}
                Ok(InputEnd::Closed) | Err(_) => output.await?,
            },
        }
    }
    writer.shutdown().await
}

enum InputEnd {
    /// No more bytes from the client; it may still read.
    Closed,
    /// The client typed the detach keys.
    Detached,
}

async fn feed(
    mut reader: impl AsyncRead + Unpin,
    stdin: Option<InputSink>,
    mut keys: DetachKeys,
) -> std::io::Result<InputEnd> {
    let mut buffer = vec![0; INPUT_CHUNK_BYTES];
    let Some(mut stdin) = stdin else {
        // Nothing is wanted from the client, but its going must be noticed by nobody: the output may go on.
        while reader.read(&mut buffer).await? > 0 {}
        return Ok(InputEnd::Closed);
    };
    loop {
        let len = reader.read(&mut buffer).await?;
        if len == 0 {
            stdin.shutdown().await?;
            return Ok(InputEnd::Closed);
        }
        match keys.filter(&buffer[..len]) {
            Typed::Bytes(bytes) => stdin.write_all(&bytes).await?,
            Typed::Detach(bytes) => {
                stdin.write_all(&bytes).await?;
                return Ok(InputEnd::Detached);
            }
        }
        stdin.flush().await?;
    }
}

async fn drain(
    mut output: OutputStream,
    writer: &mut (impl AsyncWrite + Unpin),
    tty: bool,
) -> std::io::Result<()> {
    while let Some(chunk) = output.next().await {
        let chunk = chunk.map_err(std::io::Error::other)?;
        writer
            .write_all(&frame(tty, chunk.stream, &[&chunk.bytes]))
            .await?;
        writer.flush().await?;
    }
    Ok(())
}

/// The keys that detach a client from a terminal, and how many of them were typed.
#[derive(Debug, Clone)]
pub(crate) struct DetachKeys {
    keys: Vec<u8>,
    typed: usize,
}

enum Typed {
    Bytes(Vec<u8>),
    /// The keys were typed; the bytes came before.
    Detach(Vec<u8>),
}

impl DetachKeys {
    fn none() -> Self {
        Self {
            keys: Vec::new(),
            typed: 0,
        }
    }

    /// Reads `ctrl-p,ctrl-q`; absent: these two.
    pub(crate) fn parse(text: Option<&str>) -> ApiResult<Self> {
        let keys = match text {
            None => DETACH_KEYS_DEFAULT.to_vec(),
            Some(text) => text
                .split(',')
                .map(|key| {
                    parse_key(key).ok_or_else(|| {
                        ApiError::bad_request(format!("Invalid detach keys ({text}) provided"))
                    })
                })
                .collect::<ApiResult<_>>()?,
        };
        Ok(Self { keys, typed: 0 })
    }

    /// Holds back a beginning of the keys until it is sure that it is none.
    fn filter(&mut self, bytes: &[u8]) -> Typed {
        let mut out = Vec::with_capacity(bytes.len() + self.typed);
        for &byte in bytes {
            if self.keys.get(self.typed) == Some(&byte) {
                self.typed += 1;
                if self.typed == self.keys.len() {
                    return Typed::Detach(out);
                }
                continue;
            }
            out.extend_from_slice(&self.keys[..self.typed]);
            self.typed = usize::from(self.keys.first() == Some(&byte));
            if self.typed == 0 {
                out.push(byte);
            } else if self.keys.len() == 1 {
                return Typed::Detach(out);
            }
        }
        Typed::Bytes(out)
    }
}

fn parse_key(key: &str) -> Option<u8> {
    match key.strip_prefix("ctrl-") {
        Some(name) => match name.as_bytes() {
            [letter @ b'a'..=b'z'] => Some(letter - b'a' + 1),
            [b'@'] => Some(0),
            [b'['] => Some(27),
            [b'\\'] => Some(28),
            [b']'] => Some(29),
            [b'^'] => Some(30),
            [b'_'] => Some(31),
            _ => None,
        },
        None => match key.as_bytes() {
            [byte] if byte.is_ascii() => Some(*byte),
            _ => None,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(keys: &mut DetachKeys, bytes: &[u8]) -> (Vec<u8>, bool) {
        match keys.filter(bytes) {
            Typed::Bytes(bytes) => (bytes, false),
            Typed::Detach(bytes) => (bytes, true),
        }
    }

    #[test]
    fn detach_keys_are_seen_across_reads_and_else_passed_on() {
        let mut keys = DetachKeys::parse(None).unwrap();
        assert_eq!(typed(&mut keys, b"ab\x10"), (b"ab".to_vec(), false));
        assert_eq!(typed(&mut keys, b"c"), (b"\x10c".to_vec(), false));
        assert_eq!(typed(&mut keys, b"\x10\x10"), (b"\x10".to_vec(), false));
        assert_eq!(typed(&mut keys, b"\x11z"), (Vec::new(), true));
    }

    #[test]
    fn detach_keys_are_parsed_as_docker_parses_them() {
        let keys = DetachKeys::parse(Some("ctrl-a,b,ctrl-]")).unwrap();
        assert_eq!(keys.keys, [1, b'b', 29]);
        for text in ["ctrl-", "ctrl-A", "ab", "ctrl-a,"] {
            assert!(DetachKeys::parse(Some(text)).is_err(), "{text}");
        }
    }

    #[test]
    fn without_keys_everything_passes() {
        let mut keys = DetachKeys::none();
        assert_eq!(typed(&mut keys, b"\x10\x11"), (b"\x10\x11".to_vec(), false));
    }
}
