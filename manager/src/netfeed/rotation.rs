//! When nodes make new WireGuard keys without being asked, pure.
//!
//! Time is cut into spans of the cluster's setting, for each node at other moments, so that not all keys change at once.
//! A node is told when a span of its own ends. Nothing is kept: a leader begins with the span that it finds. So a node
//! that has no feed at that moment, or a cluster without a leader, keeps its key for one span more.

use shoal_model::{NodeId, Timestamp};
use std::collections::BTreeMap;
use std::time::Duration;

/// The span that each node is in.
#[derive(Debug, Default)]
pub(super) struct Schedule {
    period: Duration,
    spans: BTreeMap<NodeId, i128>,
}

impl Schedule {
    /// The nodes of which a span has ended since the last look.
    pub(super) fn due(
        &mut self,
        now: Timestamp,
        period: Duration,
        nodes: impl Iterator<Item = NodeId>,
    ) -> Vec<NodeId> {
        if period.is_zero() {
            return Vec::new();
        }
        if period != self.period {
            self.period = period;
            self.spans.clear();
        }
        let mut spans = BTreeMap::new();
        let mut due = Vec::new();
        for node_id in nodes {
            let span = span(now, period, node_id);
            let before = self.spans.get(&node_id).copied().unwrap_or(span);
            if span > before {
                due.push(node_id);
            }
            // A clock that goes back ends no span twice.
            spans.insert(node_id, span.max(before));
        }
        self.spans = spans;
        due
    }
}

fn span(now: Timestamp, period: Duration, node_id: NodeId) -> i128 {
    let period = i128::try_from(period.as_nanos()).unwrap_or(i128::MAX);
    // Ids are random: so is their place within the span.
    let offset = i128::try_from(node_id.bits() >> 1).unwrap_or(0) % period;
    i128::from(now.0).saturating_add(offset).div_euclid(period)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WEEK: Duration = Duration::from_secs(7 * 24 * 3_600);

    fn at(weeks: i64, hours: i64) -> Timestamp {
        let hour = 3_600_000_000_000;
        Timestamp(hour * (weeks * 7 * 24 + hours))
    }

    fn nodes() -> impl Iterator<Item = NodeId> {
        (1..=50_u128).map(|number| {
            NodeId::from_bits(number.wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835))
        })
    }

    #[test]
    fn every_node_is_due_once_a_week_and_not_all_at_once() {
        let mut schedule = Schedule::default();
        assert_eq!(schedule.due(at(100, 0), WEEK, nodes()), []);
        let mut times: BTreeMap<NodeId, u32> = BTreeMap::new();
        let mut most = 0;
        for hour in 1..=7 * 24 {
            let due = schedule.due(at(100, hour), WEEK, nodes());
            most = most.max(due.len());
            for node_id in due {
                *times.entry(node_id).or_default() += 1;
            }
        }
        assert_eq!(times.len(), 50);
        assert!(times.values().all(|count| *count == 1), "{times:?}");
        assert!(most < 10, "{most} in one hour");
    }

    #[test]
    fn a_clock_that_goes_back_and_a_new_setting_make_nobody_due() {
        let mut schedule = Schedule::default();
        schedule.due(at(100, 0), WEEK, nodes());
        assert_eq!(schedule.due(at(99, 0), WEEK, nodes()), []);
        assert_eq!(schedule.due(at(100, 0), WEEK, nodes()), []);
        assert_eq!(schedule.due(at(100, 0), WEEK * 2, nodes()), []);
        assert_eq!(schedule.due(at(103, 0), WEEK * 2, nodes()).len(), 50);
        assert_eq!(schedule.due(at(200, 0), Duration::ZERO, nodes()), []);
    }
}
