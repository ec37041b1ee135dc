//! Who has been silent for how long, without a clock of its own: `now` is passed in.

use shoal_model::NodeId;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::Instant;

/// Time between two looks at all nodes.
pub const TICK_PERIOD: Duration = Duration::from_millis(50);

/// A look that comes later than this was kept from running: so long nothing could be heard either.
const LATENESS_IGNORED: Duration = Duration::from_millis(20);

/// A leader that was kept from running for so long has lost its connections: everybody gets a fresh down limit.
const LATENESS_FORGIVEN_ALL: Duration = Duration::from_secs(1);

/// When each node was last heard, in time during which this leader was able to hear.
///
/// A leader whose own timer woke late (a stopped process, a busy machine) must not declare nodes down for its own
/// lateness. So silence is counted in attentive time: that lateness is subtracted.
#[derive(Debug)]
pub struct Liveness {
    /// Base for nodes that were not heard yet.
    started: Heard,
    nodes: BTreeMap<NodeId, Heard>,
    last_look: Instant,
    /// Sum of all lateness so far.
    deaf: Duration,
}

#[derive(Debug, Clone, Copy)]
struct Heard {
    at: Instant,
    deaf: Duration,
}

impl Liveness {
    /// Starts when the leader starts: every node has a full down limit from here.
    pub fn new(now: Instant) -> Self {
        Self {
            started: Heard {
                at: now,
                deaf: Duration::ZERO,
            },
            nodes: BTreeMap::new(),
            last_look: now,
            deaf: Duration::ZERO,
        }
    }

    /// The node gave a sign of life.
    pub fn heard(&mut self, node_id: NodeId, now: Instant) {
        let deaf = self.deaf;
        self.nodes.insert(node_id, Heard { at: now, deaf });
    }

    /// The node said good-bye or was removed.
    pub fn forget(&mut self, node_id: NodeId) {
        self.nodes.remove(&node_id);
    }

    /// Must be called every [`TICK_PERIOD`]; what it is late by counts for nobody.
    pub fn look(&mut self, now: Instant) {
        let late = now
            .saturating_duration_since(self.last_look)
            .saturating_sub(TICK_PERIOD);
        self.last_look = now;
        if late >= LATENESS_FORGIVEN_ALL {
            let deaf = self.deaf;
            self.started = Heard { at: now, deaf };
            self.nodes.clear();
        } else if late > LATENESS_IGNORED {
            self.deaf += late;
        }
    }

    /// How long the node has been silent, as far as this leader could have heard it.
    pub fn silence(&self, node_id: NodeId, now: Instant) -> Duration {
        let heard = self.nodes.get(&node_id).copied().unwrap_or(self.started);
        self.since(heard, now)
    }

    /// Whether the node was heard since this leader leads.
    pub fn was_heard(&self, node_id: NodeId) -> bool {
        self.nodes.contains_key(&node_id)
    }

    /// The silence of every node that was heard.
    pub fn silences(&self, now: Instant) -> BTreeMap<NodeId, Duration> {
        self.nodes
            .iter()
            .map(|(id, heard)| (*id, self.since(*heard, now)))
            .collect()
    }

    fn since(&self, heard: Heard, now: Instant) -> Duration {
        now.saturating_duration_since(heard.at)
            .saturating_sub(self.deaf.saturating_sub(heard.deaf))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: NodeId = NodeId::from_bits(1);

    fn at(start: Instant, ms: u64) -> Instant {
        start + Duration::from_millis(ms)
    }

    fn look_until(liveness: &mut Liveness, start: Instant, from: u64, until: u64) {
        for ms in (from..=until).step_by(50) {
            liveness.look(at(start, ms));
        }
    }

    #[test]
    fn silence_counts_from_the_last_sign_of_life() {
        let start = Instant::now();
        let mut liveness = Liveness::new(start);
        look_until(&mut liveness, start, 50, 1000);
        assert_eq!(
            liveness.silence(NODE, at(start, 1000)),
            Duration::from_secs(1)
        );
        liveness.heard(NODE, at(start, 1000));
        assert!(liveness.was_heard(NODE));
        look_until(&mut liveness, start, 1050, 4000);
        assert_eq!(
            liveness.silence(NODE, at(start, 4000)),
            Duration::from_secs(3)
        );
    }

    #[test]
    fn own_lateness_is_nobodys_silence() {
        let start = Instant::now();
        let mut liveness = Liveness::new(start);
        liveness.heard(NODE, start);
        look_until(&mut liveness, start, 50, 500);
        liveness.look(at(start, 1000));
        assert_eq!(
            liveness.silence(NODE, at(start, 1000)),
            Duration::from_millis(550)
        );
    }

    #[test]
    fn a_long_stall_gives_everybody_a_fresh_limit() {
        let start = Instant::now();
        let mut liveness = Liveness::new(start);
        liveness.heard(NODE, start);
        liveness.look(at(start, 10_000));
        assert_eq!(liveness.silence(NODE, at(start, 10_000)), Duration::ZERO);
        look_until(&mut liveness, start, 10_050, 12_000);
        assert_eq!(
            liveness.silence(NODE, at(start, 12_000)),
            Duration::from_secs(2)
        );
    }
}
