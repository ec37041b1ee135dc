//! One log record as a line of JSON.

use super::time::{parse_rfc3339, push_rfc3339};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use shoal_model::Timestamp;
use std::borrow::Cow;
use std::collections::BTreeMap;

/// Where output came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StreamKind {
    /// Standard output; with a terminal, everything.
    Stdout,
    /// Standard error.
    Stderr,
}

impl StreamKind {
    /// The word in the file.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// One record: a line of output, or a piece of a very long one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogEntry {
    /// Where it came from.
    pub stream: StreamKind,
    /// When the shim read it.
    pub time: Timestamp,
    /// The text with its line end; a piece of a longer line has none.
    pub line: Bytes,
    /// What `labels` and `env` of the log options chose.
    pub attrs: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Record<'a> {
    #[serde(borrow)]
    log: Cow<'a, str>,
    stream: StreamKind,
    #[serde(borrow)]
    time: Cow<'a, str>,
    #[serde(default)]
    attrs: BTreeMap<String, String>,
}

/// Reads one line of a log file; `None` when it is torn or not a record.
pub(super) fn decode(line: &[u8]) -> Option<LogEntry> {
    let record: Record<'_> = serde_json::from_slice(line).ok()?;
    Some(LogEntry {
        stream: record.stream,
        time: parse_rfc3339(&record.time)?,
        line: Bytes::from(record.log.into_owned()),
        attrs: record.attrs,
    })
}

/// Appends one record. `attrs` is `,"attrs":{…}` or empty. Bytes that are not UTF-8 become U+FFFD, as in docker.
pub(super) fn encode(
    out: &mut String,
    stream: StreamKind,
    time: Timestamp,
    line: &[u8],
    attrs: &str,
) {
    out.push_str("{\"log\":\"");
    for chunk in line.utf8_chunks() {
        push_escaped(out, chunk.valid());
        if !chunk.invalid().is_empty() {
            out.push_str("\\ufffd");
        }
    }
    out.push_str("\",\"stream\":\"");
    out.push_str(stream.name());
    out.push('"');
    out.push_str(attrs);
    out.push_str(",\"time\":\"");
    push_rfc3339(out, time);
    out.push_str("\"}\n");
}

/// Escapes what JSON demands and what Go's encoder escapes besides.
fn push_escaped(out: &mut String, text: &str) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let mut plain = 0;
    for (at, c) in text.char_indices() {
        let replacement = match c {
            '"' => "\\\"",
            '\\' => "\\\\",
            '\n' => "\\n",
            '\r' => "\\r",
            '\u{2028}' => "\\u2028",
            '\u{2029}' => "\\u2029",
            '<' | '>' | '&' | '\0'..='\x1f' => "",
            _ => continue,
        };
        out.push_str(&text[plain..at]);
        plain = at + c.len_utf8();
        if replacement.is_empty() {
            out.push_str("\\u00");
            out.push(char::from(HEX[c as usize >> 4 & 15]));
            out.push(char::from(HEX[c as usize & 15]));
        } else {
            out.push_str(replacement);
        }
    }
    out.push_str(&text[plain..]);
}
