//! Durations of one kind.

use std::fmt;
use std::time::Duration;

/// Durations of repetitions, and how they are told.
#[derive(Debug, Default)]
pub(crate) struct Series(Vec<Duration>);

impl Series {
    pub(crate) fn push(&mut self, duration: Duration) {
        self.0.push(duration);
    }

    fn sorted(&self) -> Vec<Duration> {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        sorted
    }

    /// The middle one; zero without any.
    pub(crate) fn median(&self) -> Duration {
        let sorted = self.sorted();
        sorted.get(sorted.len() / 2).copied().unwrap_or_default()
    }

    /// How many times longer the rival's median is; nothing without a rival.
    pub(crate) fn ratio(&self, rival: &Self) -> String {
        if rival.0.is_empty() || self.0.is_empty() {
            return String::new();
        }
        let ratio = rival.median().as_secs_f64() / self.median().as_secs_f64();
        format!("   1/{ratio:.1} of the rival")
    }
}

impl fmt::Display for Series {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sorted = self.sorted();
        let (Some(first), Some(last)) = (sorted.first(), sorted.last()) else {
            return f.write_str("not measured");
        };
        let ms = |duration: Duration| duration.as_secs_f64() * 1_000.0;
        let (min, median, max) = (ms(*first), ms(self.median()), ms(*last));
        write!(
            f,
            "{min:.1} / {median:.1} / {max:.1} ms, n={}",
            sorted.len()
        )
    }
}
