//! Bodies that go on: multiplexed output, JSON objects one after the other, values that come later.

use crate::error::{ApiError, ApiResult};
use crate::server::Api;
use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::{BufMut, Bytes, BytesMut};
use futures_util::{Stream, StreamExt};
use http::header::CONTENT_TYPE;
use serde_json::Value;
use shoal_engine::StdStream;
use std::convert::Infallible;

/// Media type of the output of a terminal.
pub(crate) const RAW_STREAM: &str = "application/vnd.docker.raw-stream";
/// Media type of standard output and standard error in frames.
pub(crate) const MULTIPLEXED_STREAM: &str = "application/vnd.docker.multiplexed-stream";
/// Bytes of a frame's head: stream, three zeros, length.
const FRAME_HEAD_LEN: usize = 8;

/// The media type of a container's output.
pub(crate) const fn output_type(tty: bool) -> &'static str {
    if tty { RAW_STREAM } else { MULTIPLEXED_STREAM }
}

/// Puts parts of one chunk into one frame, or, for a terminal, just together.
pub(crate) fn frame(tty: bool, stream: StdStream, parts: &[&[u8]]) -> Bytes {
    let len: usize = parts.iter().map(|part| part.len()).sum();
    let mut out = BytesMut::with_capacity(FRAME_HEAD_LEN + len);
    if !tty {
        out.put_u8(match stream {
            StdStream::Stdout => 1,
            StdStream::Stderr => 2,
        });
        out.put_bytes(0, 3);
        // A chunk is never near 4 GiB: it was one read or one line.
        out.put_u32(u32::try_from(len).unwrap_or(u32::MAX));
    }
    for part in parts {
        out.extend_from_slice(part);
    }
    out.freeze()
}

/// An answer whose body comes bit by bit and ends at the latest with the server.
pub(crate) fn streaming(
    api: &Api,
    media_type: &'static str,
    body: impl Stream<Item = Bytes> + Send + 'static,
) -> Response {
    let stopping = api.stopping.clone();
    let body = body
        .map(Ok::<_, Infallible>)
        .take_until(stopping.cancelled_owned());
    ([(CONTENT_TYPE, media_type)], Body::from_stream(body)).into_response()
}

/// An answer of JSON objects, each on a line of its own. An error becomes Docker's last object of a stream.
pub(crate) fn json_lines(
    api: &Api,
    items: impl Stream<Item = ApiResult<Value>> + Send + 'static,
) -> Response {
    let lines = items.map(|item| json_line(&item.unwrap_or_else(|err| error_object(&err))));
    streaming(api, "application/json", lines)
}

/// One object and its line end.
pub(crate) fn json_line(value: &Value) -> Bytes {
    let mut line = value.to_string().into_bytes();
    line.extend_from_slice(b"\r\n");
    line.into()
}

/// How Docker tells an error once the headers are out.
pub(crate) fn error_object(err: &ApiError) -> Value {
    serde_json::json!({
        "errorDetail": { "message": err.message(), "code": err.status().as_u16() },
        "error": err.message(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_as_docker_writes_them() {
        assert_eq!(
            frame(false, StdStream::Stderr, &[b"a", b"bc"]),
            Bytes::from_static(b"\x02\0\0\0\0\0\0\x03abc")
        );
        assert_eq!(
            frame(true, StdStream::Stdout, &[b"abc"]),
            Bytes::from_static(b"abc")
        );
    }
}
