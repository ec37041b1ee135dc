//! What a container has written: where it goes and how it is read again.

use super::record::{ContainerDir, ContainerRecord};
use crate::error::{EngineError, Result, chain};
use crate::info::ContainerInfo;
use crate::options::EngineOptions;
use crate::requests::{LogEntry, LogOptions, StdStream};
use futures_util::StreamExt as _;
use futures_util::stream::{self, BoxStream};
use shoal_runtime::LogConfig;
use shoal_runtime::logs::{self, StreamKind};
use std::collections::BTreeMap;

/// The driver and options that a container has in the end.
fn effective<'a>(
    options: &'a EngineOptions,
    own: &'a crate::config::LogConfig,
) -> (&'a str, &'a BTreeMap<String, String>) {
    if own.driver.is_empty() {
        let merged = if own.options.is_empty() {
            &options.log_options
        } else {
            &own.options
        };
        (&options.log_driver, merged)
    } else {
        (&own.driver, &own.options)
    }
}

/// Whether the container's output can be read again.
pub(crate) fn is_kept(options: &EngineOptions, own: &crate::config::LogConfig) -> bool {
    effective(options, own).0 == "json-file"
}

/// Refuses unknown drivers and options.
pub(crate) fn check(options: &EngineOptions, own: &crate::config::LogConfig) -> Result<()> {
    let (driver, opts) = effective(options, own);
    parse(driver, opts).map(drop)
}

struct Limits {
    max_size_bytes: Option<u64>,
    max_files: u32,
}

fn parse(driver: &str, options: &BTreeMap<String, String>) -> Result<Limits> {
    if !matches!(driver, "json-file" | "none") {
        return Err(EngineError::unsupported(
            format!("log driver `{driver}`"),
            "known are json-file and none",
        ));
    }
    let mut limits = Limits {
        max_size_bytes: None,
        max_files: 1,
    };
    for (key, value) in options {
        let refuse = |reason: &str| {
            EngineError::invalid(format!("log option {key}"), format!("`{value}`: {reason}"))
        };
        match key.as_str() {
            "max-size" => {
                let size = parse_size(value).filter(|bytes| *bytes > 0);
                limits.max_size_bytes = match value.as_str() {
                    "-1" => None,
                    _ => Some(size.ok_or_else(|| refuse("expected a size such as 10m"))?),
                };
            }
            "max-file" => {
                let count = value.parse().ok().filter(|count| *count > 0);
                limits.max_files = count.ok_or_else(|| refuse("expected a number above zero"))?;
            }
            _ => {
                return Err(EngineError::unsupported(
                    format!("log option `{key}`"),
                    "known are max-size and max-file",
                ));
            }
        }
    }
    if limits.max_files > 1 && limits.max_size_bytes.is_none() {
        return Err(EngineError::invalid(
            "log option max-file",
            "it needs max-size too",
        ));
    }
    Ok(limits)
}

/// `10m`, `1g`, `512k`, `1000`.
fn parse_size(text: &str) -> Option<u64> {
    let lower = text.to_ascii_lowercase();
    let bare = lower.strip_suffix('b').unwrap_or(&lower);
    let (number, factor) = match bare.as_bytes().last()? {
        b'k' => (&bare[..bare.len() - 1], 1 << 10),
        b'm' => (&bare[..bare.len() - 1], 1 << 20),
        b'g' => (&bare[..bare.len() - 1], 1 << 30),
        _ => (bare, 1u64),
    };
    number.parse::<u64>().ok()?.checked_mul(factor)
}

/// What the shim is told.
pub(crate) fn shim_config(
    options: &EngineOptions,
    record: &ContainerRecord,
    dir: &ContainerDir,
) -> Result<LogConfig> {
    let (driver, opts) = effective(options, &record.config.host.log);
    let limits = parse(driver, opts)?;
    Ok(if driver == "none" {
        LogConfig::None
    } else {
        LogConfig::JsonFile {
            path: dir.log(&record.id),
            max_size_bytes: limits.max_size_bytes,
            max_files: limits.max_files,
            attrs: BTreeMap::new(),
        }
    })
}

/// The log of a container; with `follow` until `ended` turns true and all was read.
pub(crate) fn read(
    info: &ContainerInfo,
    options: &LogOptions,
    ended: tokio::sync::watch::Receiver<bool>,
) -> Result<BoxStream<'static, Result<LogEntry>>> {
    let Some(path) = &info.log_path else {
        return Err(EngineError::unsupported(
            "reading the log",
            "configured logging driver does not support reading",
        ));
    };
    if !options.stdout && !options.stderr {
        return Err(EngineError::invalid(
            "logs",
            "you must choose at least one stream",
        ));
    }
    let wanted = logs::LogOptions {
        tail: options.tail.map(|lines| lines as u64),
        since: options.since,
        until: options.until,
        stdout: options.stdout,
        stderr: options.stderr,
        follow: options.follow,
    };
    let unreadable = |err: &logs::LogError| {
        EngineError::conflict(format!("the log can't be read: {}", chain(err)))
    };
    let reader = logs::read_logs(path, wanted, ended).map_err(|err| unreadable(&err))?;
    Ok(stream::unfold(reader, move |mut reader| async move {
        let entry = match reader.next().await? {
            Ok(entry) => Ok(LogEntry {
                stream: match entry.stream {
                    StreamKind::Stdout => StdStream::Stdout,
                    StreamKind::Stderr => StdStream::Stderr,
                },
                time: entry.time,
                line: entry.line,
            }),
            Err(err) => Err(unreadable(&err)),
        };
        Some((entry, reader))
    })
    .boxed())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_docker_reads_them() {
        for (text, bytes) in [
            ("10", Some(10)),
            ("10k", Some(10 << 10)),
            ("2MB", Some(2 << 20)),
            ("1g", Some(1 << 30)),
            ("m", None),
            ("", None),
            ("-1", None),
        ] {
            assert_eq!(parse_size(text), bytes, "{text}");
        }
    }

    #[test]
    fn unknown_drivers_and_options_are_refused() {
        let options = |pairs: &[(&str, &str)]| {
            pairs
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                .collect()
        };
        assert!(
            parse(
                "json-file",
                &options(&[("max-size", "1m"), ("max-file", "3")])
            )
            .is_ok()
        );
        assert!(parse("syslog", &options(&[])).is_err());
        assert!(parse("json-file", &options(&[("labels", "x")])).is_err());
        assert!(parse("json-file", &options(&[("max-file", "3")])).is_err());
        assert!(parse("json-file", &options(&[("max-size", "big")])).is_err());
    }
}
