//! Times and spans as Docker's API writes them.

use crate::error::{ApiError, ApiResult};
use shoal_model::Timestamp;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// What Go writes for a time that was never set.
pub(crate) const NEVER: &str = "0001-01-01T00:00:00Z";

/// RFC 3339 with nanoseconds.
pub(crate) fn rfc3339(at: Timestamp) -> String {
    match jiff::Timestamp::from_nanosecond(i128::from(at.0)) {
        Ok(time) => format!("{time:.9}"),
        Err(_) => NEVER.to_owned(),
    }
}

/// RFC 3339 with nanoseconds, or Go's zero time.
pub(crate) fn rfc3339_or_never(at: Option<Timestamp>) -> String {
    at.map_or_else(|| NEVER.to_owned(), rfc3339)
}

/// Whole seconds since 1970.
pub(crate) fn unix_seconds(at: Timestamp) -> i64 {
    at.0.div_euclid(1_000_000_000)
}

/// Now by this machine's wall clock.
pub(crate) fn now() -> Timestamp {
    Timestamp::from_unix(
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default(),
    )
}

/// Reads what clients send for `since` and `until`: Unix seconds with an optional fraction, RFC 3339, or a span before
/// `now` (`10m`). `0` and the empty text mean "not set".
pub(crate) fn parse_time(field: &str, text: &str, now: Timestamp) -> ApiResult<Option<Timestamp>> {
    if text.is_empty() || text == "0" {
        return Ok(None);
    }
    if let Some(at) = parse_unix(text) {
        return Ok(Some(at));
    }
    if let Ok(time) = text.parse::<jiff::Timestamp>() {
        let nanoseconds = i64::try_from(time.as_nanosecond()).unwrap_or(i64::MAX);
        return Ok(Some(Timestamp(nanoseconds)));
    }
    if let Some(span) = parse_go_duration(text) {
        let span = i64::try_from(span.as_nanos()).unwrap_or(i64::MAX);
        return Ok(Some(Timestamp(now.0.saturating_sub(span))));
    }
    Err(ApiError::field(
        field,
        format!("`{text}` is neither Unix seconds nor RFC 3339 nor a span such as 10m"),
    ))
}

fn parse_unix(text: &str) -> Option<Timestamp> {
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = seconds.parse().ok()?;
    if fraction.len() > 9 || !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let fraction: i64 = format!("{fraction:0<9}").parse().ok()?;
    seconds
        .checked_mul(1_000_000_000)?
        .checked_add(fraction)
        .map(Timestamp)
}

/// Reads Go's spans: `1h30m`, `1.5s`, `200ms`.
pub(crate) fn parse_go_duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut total = 0f64;
    while !rest.is_empty() {
        let number_len = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..number_len].parse().ok()?;
        rest = &rest[number_len..];
        let unit_len = rest
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(rest.len());
        let seconds = match &rest[..unit_len] {
            "ns" => 1e-9,
            "us" | "µs" | "μs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        rest = &rest[unit_len..];
        total += number * seconds;
    }
    (!text.is_empty())
        .then(|| Duration::try_from_secs_f64(total).ok())
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_docker_reads_them() {
        let now = Timestamp(100_000_000_000);
        for (text, expected) in [
            ("", None),
            ("0", None),
            ("12", Some(12_000_000_000)),
            ("12.5", Some(12_500_000_000)),
            ("12.000000001", Some(12_000_000_001)),
            ("1970-01-01T00:00:02Z", Some(2_000_000_000)),
            ("1970-01-01T01:00:02.5+01:00", Some(2_500_000_000)),
            ("10s", Some(90_000_000_000)),
            ("1m30s", Some(10_000_000_000)),
        ] {
            let at = parse_time("since", text, now).unwrap();
            assert_eq!(at, expected.map(Timestamp), "{text}");
        }
        for text in ["soon", "10x", "1.2.3", "--", "1e3"] {
            assert!(parse_time("since", text, now).is_err(), "{text}");
        }
    }

    #[test]
    fn times_are_written_with_nanoseconds() {
        assert_eq!(rfc3339(Timestamp(1)), "1970-01-01T00:00:00.000000001Z");
        assert_eq!(rfc3339_or_never(None), NEVER);
    }
}
