//! Signals by name or number.

use crate::error::{EngineError, Result};
use std::str::FromStr as _;

/// First and last real-time signal as programs see them.
const RTMIN: i32 = 34;
const RTMAX: i32 = 64;

/// Reads `KILL`, `SIGKILL`, `9`, `RTMIN+3`.
pub(crate) fn parse(text: &str) -> Result<i32> {
    let refuse = || EngineError::invalid("signal", format!("`{text}`: no such signal"));
    if let Ok(number) = text.parse::<i32>() {
        return if (1..=RTMAX).contains(&number) {
            Ok(number)
        } else {
            Err(refuse())
        };
    }
    let upper = text.to_ascii_uppercase();
    let bare = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(rest) = bare.strip_prefix("RTMIN") {
        return real_time(RTMIN, rest).ok_or_else(refuse);
    }
    if let Some(rest) = bare.strip_prefix("RTMAX") {
        return real_time(RTMAX, rest).ok_or_else(refuse);
    }
    nix::sys::signal::Signal::from_str(&format!("SIG{bare}"))
        .map(|signal| signal as i32)
        .map_err(|_| refuse())
}

fn real_time(base: i32, offset: &str) -> Option<i32> {
    let offset = match offset {
        "" => 0,
        text => text.parse::<i32>().ok()?,
    };
    base.checked_add(offset)
        .filter(|number| (RTMIN..=RTMAX).contains(number))
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn signals_have_names_and_numbers() {
        for (text, number) in [
            ("KILL", 9),
            ("SIGTERM", 15),
            ("sigint", 2),
            ("10", 10),
            ("RTMIN", 34),
            ("SIGRTMIN+3", 37),
            ("RTMAX-1", 63),
        ] {
            assert_eq!(parse(text).unwrap(), number, "{text}");
        }
        for text in ["", "0", "65", "-1", "FOO", "RTMIN-1", "RTMAX+1"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
