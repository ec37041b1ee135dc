//! Wall-clock time and random ids: the two things that this crate takes from outside on its own.

use rand::Rng as _;
use shoal_model::{ContainerId, Timestamp};
use std::time::{SystemTime, UNIX_EPOCH};

/// Now, by the wall clock.
pub(crate) fn now() -> Timestamp {
    Timestamp::from_unix(
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default(),
    )
}

/// A fresh container id.
pub(crate) fn container_id() -> ContainerId {
    ContainerId::from_bytes(random_bytes())
}

/// 256 random bits as 64 hexadecimal digits.
pub(crate) fn hex_id() -> String {
    container_id().to_string()
}

fn random_bytes() -> [u8; 32] {
    let mut bytes = [0; 32];
    rand::rng().fill_bytes(&mut bytes);
    bytes
}

/// Reads a time as Docker's API takes it: RFC 3339, seconds since the epoch with an optional fraction, or the time that
/// has passed since then, as in `1h30m`.
pub fn parse_time(text: &str) -> Option<Timestamp> {
    if text.ends_with(|last: char| last.is_ascii_alphabetic())
        && let Ok(passed) = text.parse::<jiff::SignedDuration>()
    {
        let passed = i64::try_from(passed.as_nanos()).ok()?;
        return Some(Timestamp(now().0.checked_sub(passed)?));
    }
    if let Ok(time) = text.parse::<jiff::Timestamp>() {
        return Some(Timestamp(i64::try_from(time.as_nanosecond()).ok()?));
    }
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = seconds.parse().ok()?;
    if fraction.len() > 9 || !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let nanos: i64 = format!("{fraction:0<9}").parse().ok()?;
    Some(Timestamp(
        seconds.checked_mul(1_000_000_000)?.checked_add(nanos)?,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_count_back_from_now() {
        for (text, seconds) in [("0s", 0), ("10m", 600), ("1h30m", 5_400), ("1.5h", 5_400)] {
            let then = parse_time(text).unwrap().0;
            let passed = now().0 - then - seconds * 1_000_000_000;
            assert!((0..60_000_000_000).contains(&passed), "{text}: {passed}");
        }
        assert_eq!(parse_time("1x"), None);
    }

    #[test]
    fn times_are_read_in_both_forms() {
        for (text, nanos) in [
            ("0", Some(0)),
            ("12.5", Some(12_500_000_000)),
            ("1970-01-01T00:00:01Z", Some(1_000_000_000)),
            ("1.0000000001", None),
            ("soon", None),
        ] {
            assert_eq!(parse_time(text).map(|t| t.0), nanos, "{text}");
        }
    }
}
