//! RFC 3339 times in UTC with nanoseconds, as docker's log files have them.

use shoal_model::Timestamp;
use std::fmt::Write as _;

const NANOS_PER_SECOND: i64 = 1_000_000_000;
const SECONDS_PER_DAY: i64 = 86_400;

/// `time` as text; trailing zeros of the fraction are left out, as Go's `RFC3339Nano` does.
pub fn format_rfc3339(time: Timestamp) -> String {
    let mut text = String::with_capacity(30);
    push_rfc3339(&mut text, time);
    text
}

pub(super) fn push_rfc3339(text: &mut String, time: Timestamp) {
    let seconds = time.0.div_euclid(NANOS_PER_SECOND);
    let nanos = time.0.rem_euclid(NANOS_PER_SECOND);
    let (year, month, day) = civil(seconds.div_euclid(SECONDS_PER_DAY));
    let second = seconds.rem_euclid(SECONDS_PER_DAY);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let start = text.len();
    // Writing to a string can't fail.
    let written = write!(
        text,
        "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{nanos:09}"
    );
    debug_assert!(written.is_ok());
    let kept = text[start..]
        .trim_end_matches('0')
        .trim_end_matches('.')
        .len();
    text.truncate(start + kept);
    text.push('Z');
}

/// Reads a time with any offset; `None` when it is not RFC 3339.
pub fn parse_rfc3339(text: &str) -> Option<Timestamp> {
    let number = |range: std::ops::Range<usize>| -> Option<i64> {
        let digits = text.get(range)?;
        digits
            .bytes()
            .all(|b| b.is_ascii_digit())
            .then(|| digits.parse().ok())?
    };
    let marks = [(4, b'-'), (7, b'-'), (13, b':'), (16, b':')];
    if marks
        .iter()
        .any(|(at, mark)| text.as_bytes().get(*at) != Some(mark))
        || !matches!(text.as_bytes().get(10), Some(b'T' | b't' | b' '))
    {
        return None;
    }
    let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
    let (hour, minute, second) = (number(11..13)?, number(14..16)?, number(17..19)?);
    if !(1..=12).contains(&month)
        || !(1..=31).contains(&day)
        || hour > 23
        || minute > 59
        || second > 60
    {
        return None;
    }
    let mut rest = &text[19..];
    let mut nanos = 0;
    if let Some(fraction) = rest.strip_prefix('.') {
        let length = fraction.bytes().take_while(u8::is_ascii_digit).count();
        let digits = &fraction[..length.min(9)];
        nanos = digits.parse::<i64>().ok()? * 10_i64.pow(9 - digits.len() as u32);
        rest = &fraction[length..];
    }
    let offset = offset_seconds(rest)?;
    let seconds = days(year, month, day) * SECONDS_PER_DAY + hour * 3600 + minute * 60 + second;
    let total = (seconds - offset).checked_mul(NANOS_PER_SECOND)?;
    Some(Timestamp(total.checked_add(nanos)?))
}

fn offset_seconds(text: &str) -> Option<i64> {
    if text == "Z" || text == "z" {
        return Some(0);
    }
    let (sign, digits) = match text.split_at_checked(1)? {
        ("+", digits) => (1, digits),
        ("-", digits) => (-1, digits),
        _ => return None,
    };
    let (hours, minutes) = digits.split_once(':')?;
    if hours.len() != 2 || minutes.len() != 2 {
        return None;
    }
    let hours: i64 = hours.parse().ok()?;
    let minutes: i64 = minutes.parse().ok()?;
    Some(sign * (hours * 3600 + minutes * 60))
}

/// Year, month and day of a day counted from 1970-01-01 in the Gregorian calendar. The calendar repeats every 400
/// years of 146,097 days; counting from March puts the leap day at the end of a year.
fn civil(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 {
        march_month + 3
    } else {
        march_month - 9
    };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let march_month = (month + 9) % 12;
    let day_of_year = (153 * march_month + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_times() {
        let check = |nanos, text: &str| {
            assert_eq!(format_rfc3339(Timestamp(nanos)), text);
            assert_eq!(parse_rfc3339(text), Some(Timestamp(nanos)), "{text}");
        };
        check(0, "1970-01-01T00:00:00Z");
        check(951_782_400_000_000_000, "2000-02-29T00:00:00Z");
        check(1_700_000_000_120_000_000, "2023-11-14T22:13:20.12Z");
        check(-1, "1969-12-31T23:59:59.999999999Z");
    }

    #[test]
    fn offsets_are_read_and_rubbish_is_not() {
        assert_eq!(
            parse_rfc3339("1970-01-01T02:00:00+02:00"),
            Some(Timestamp(0))
        );
        for text in [
            "",
            "1970",
            "1970-13-01T00:00:00Z",
            "1970-01-01T00:00:00",
            "197a-01-01T00:00:00Z",
        ] {
            assert_eq!(parse_rfc3339(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn every_time_survives_text(nanos in any::<i64>()) {
            let text = format_rfc3339(Timestamp(nanos));
            prop_assert_eq!(parse_rfc3339(&text), Some(Timestamp(nanos)));
        }

        #[test]
        fn any_text_is_a_time_or_none(text in "\\PC{0,40}") {
            assert!(parse_rfc3339(&text).is_none_or(|time| parse_rfc3339(&format_rfc3339(time)) == Some(time)));
        }
    }
}
