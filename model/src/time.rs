//! Wall-clock time as data.

use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Nanoseconds since 1970-01-01T00:00:00Z by the wall clock of whoever wrote it.
///
/// Used for display, history and expiry; never to order events between nodes (versions do that).
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// The point in time `since_epoch` after the Unix epoch; saturates in the year 2262.
    pub fn from_unix(since_epoch: Duration) -> Self {
        Self(i64::try_from(since_epoch.as_nanos()).unwrap_or(i64::MAX))
    }

    /// This time plus `duration`, saturating.
    #[must_use]
    pub fn plus(self, duration: Duration) -> Self {
        Self(
            self.0
                .saturating_add(i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)),
        )
    }

    /// How long after `earlier` this is; zero if it is not.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }
}
