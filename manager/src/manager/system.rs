//! Time and ids of a real machine.

use crate::consensus::{IdSource, WallClock};
use shoal_model::Timestamp;
use std::time::{Duration, SystemTime};

/// The machine's wall clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl WallClock for SystemClock {
    fn now(&self) -> Timestamp {
        let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        // A clock before 1970 is as good as one at 1970: nothing is ordered by it.
        Timestamp::from_unix(since_epoch.unwrap_or(Duration::ZERO))
    }
}

/// The operating system's random numbers, by way of a generator that is fit for secrets.
#[derive(Debug, Clone, Copy, Default)]
pub struct RandomIds;

impl IdSource for RandomIds {
    fn bits(&self) -> u128 {
        rand::random()
    }
}
