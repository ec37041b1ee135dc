//! Who is suspected: a function of times that are passed in.

use shoal_model::NodeId;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::Ipv4Addr;
use std::time::Duration;

/// Peers that are asked at the full rate; with more of them all times grow, so that the number of packets does not.
const PEERS_AT_FULL_RATE: u32 = 200;

/// Times of a detector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DetectorOptions {
    /// Each peer is asked once in this time.
    pub period: Duration,
    /// A peer is suspected after so much silence.
    pub silence_max: Duration,
    /// A peer that never answered is suspected after this time: its first handshake may need a second try.
    pub first_answer_max: Duration,
}

impl Default for DetectorOptions {
    fn default() -> Self {
        Self {
            period: Duration::from_millis(200),
            silence_max: Duration::from_millis(700),
            first_answer_max: Duration::from_secs(6),
        }
    }
}

impl DetectorOptions {
    /// The times for a number of peers.
    fn for_peers(self, peers: usize) -> Self {
        let peers = u32::try_from(peers).unwrap_or(u32::MAX);
        let factor = peers.div_ceil(PEERS_AT_FULL_RATE).max(1);
        Self {
            period: self.period * factor,
            silence_max: self.silence_max * factor,
            first_answer_max: self.first_answer_max.max(self.silence_max * factor),
        }
    }

    /// Silence that makes a peer count as lost when the node asks itself whether it is the one that is cut off.
    ///
    /// Peers are asked at different moments of a period: of those that fell silent together, the last has been silent
    /// for up to a period less than the first.
    fn doubt_after(&self) -> Duration {
        self.silence_max
            .saturating_sub(self.period + self.period / 4)
    }
}

/// Answers in a row that end a suspicion.
const ANSWERS_TO_TRUST: u32 = 2;
/// Round trips whose median is shown.
const ROUND_TRIPS_KEPT: usize = 64;
/// Probes of a peer that may still be answered: 6.4 s of them.
const PROBES_OPEN_MAX: usize = 32;

/// What is known of one peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerProbe {
    /// Round trip of the last answer.
    pub rtt_last: Option<Duration>,
    /// Median round trip of the latest answers.
    pub rtt_p50: Option<Duration>,
    /// Probes sent.
    pub sent: u64,
    /// Probes answered.
    pub answered: u64,
    /// It is suspected.
    pub suspect: bool,
}

/// A probe to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ping {
    /// To whom.
    pub node_id: NodeId,
    /// The peer's mesh address.
    pub address: Ipv4Addr,
    /// Its number, which the answer repeats.
    pub sequence: u64,
}

#[derive(Debug)]
struct Peer {
    address: Ipv4Addr,
    /// The last sign of life; when it was added, before the first one.
    heard_at: Duration,
    ever_heard: bool,
    next_at: Duration,
    open: VecDeque<(u64, Duration)>,
    suspect: bool,
    /// Answers in a row since it is suspected.
    answers: u32,
    round_trips: VecDeque<Duration>,
    sent: u64,
    answered: u64,
}

/// The judgement over all peers. `now` is the time since any fixed moment; it never goes back.
#[derive(Debug)]
pub struct Detector {
    asked: DetectorOptions,
    /// The same for the number of peers that there are.
    options: DetectorOptions,
    peers: BTreeMap<NodeId, Peer>,
    next_sequence: u64,
    ticked_at: Option<Duration>,
    doubts_itself: bool,
}

impl Detector {
    /// A detector without peers.
    pub fn new(options: DetectorOptions) -> Self {
        Self {
            asked: options,
            options,
            peers: BTreeMap::new(),
            next_sequence: 1,
            ticked_at: None,
            doubts_itself: false,
        }
    }

    /// Makes exactly `peers` the peers. Those that were known keep their history, unless their address changed.
    pub fn set_peers(&mut self, now: Duration, peers: &BTreeMap<NodeId, Ipv4Addr>) {
        self.peers
            .retain(|id, peer| peers.get(id) == Some(&peer.address));
        self.options = self.asked.for_peers(peers.len());
        let count = u32::try_from(peers.len()).unwrap_or(u32::MAX).max(1);
        for (place, (id, address)) in (0u32..).zip(peers) {
            self.peers.entry(*id).or_insert_with(|| Peer {
                address: *address,
                heard_at: now,
                ever_heard: false,
                // Spread over the period, so that many peers are not asked in one burst.
                next_at: now + self.options.period * (place % count) / count,
                open: VecDeque::new(),
                suspect: false,
                answers: 0,
                round_trips: VecDeque::new(),
                sent: 0,
                answered: 0,
            });
        }
    }

    /// The probes that are due.
    pub fn tick(&mut self, now: Duration) -> Vec<Ping> {
        self.forgive_own_pause(now);
        let mut due = Vec::new();
        for (id, peer) in &mut self.peers {
            if peer.next_at > now {
                continue;
            }
            // The rhythm stays; probes that were missed in a pause are not made up for.
            peer.next_at += self.options.period;
            if peer.next_at <= now {
                peer.next_at = now + self.options.period;
            }
            if peer.open.len() == PROBES_OPEN_MAX {
                peer.open.pop_front();
            }
            peer.open.push_back((self.next_sequence, now));
            peer.sent += 1;
            due.push(Ping {
                node_id: *id,
                address: peer.address,
                sequence: self.next_sequence,
            });
            self.next_sequence += 1;
        }
        self.judge(now);
        due
    }

    /// An answer came. Answers to nothing, from elsewhere, or for the second time are ignored.
    pub fn answer(&mut self, now: Duration, from: Ipv4Addr, sequence: u64) {
        let found = self.peers.values_mut().find_map(|peer| {
            let place = peer.open.iter().position(|(open, _)| *open == sequence)?;
            Some((peer, place))
        });
        let Some((peer, place)) = found else { return };
        if peer.address != from {
            return;
        }
        let Some((_, sent_at)) = peer.open.remove(place) else {
            return;
        };
        peer.heard_at = now;
        peer.ever_heard = true;
        peer.answered += 1;
        if peer.round_trips.len() == ROUND_TRIPS_KEPT {
            peer.round_trips.pop_front();
        }
        peer.round_trips.push_back(now.saturating_sub(sent_at));
        if peer.suspect {
            peer.answers += 1;
            if peer.answers >= ANSWERS_TO_TRUST {
                peer.suspect = false;
            }
        }
    }

    /// The nodes whose tasks get no new connections.
    pub fn suspects(&self) -> BTreeSet<NodeId> {
        let suspects = self.peers.iter().filter(|(_, peer)| peer.suspect);
        suspects.map(|(id, _)| *id).collect()
    }

    /// Most peers are silent: this node takes itself for the one that is cut off, and suspects nobody anew.
    pub fn doubts_itself(&self) -> bool {
        self.doubts_itself
    }

    /// When [`Detector::tick`] is due next: for a probe, or because a peer will have been silent for too long; `None`:
    /// there are no peers.
    pub fn next_at(&self, now: Duration) -> Option<Duration> {
        let probes = self.peers.values().map(|peer| peer.next_at);
        let trusted = self.peers.values().filter(|peer| !peer.suspect);
        let silences = trusted
            .map(|peer| peer.heard_at + peer.allowance(&self.options, self.options.silence_max))
            // A peer that is past it, and not suspected, is so because this node doubts itself.
            .filter(|deadline| *deadline > now);
        probes.chain(silences).min()
    }

    /// What is known of each peer.
    pub fn peers(&self) -> BTreeMap<NodeId, PeerProbe> {
        let peers = self.peers.iter();
        peers.map(|(id, peer)| (*id, peer.shown())).collect()
    }

    /// Time in which this process did not run is nobody's silence: answers may lie in the socket unread.
    fn forgive_own_pause(&mut self, now: Duration) {
        let last = self.ticked_at.replace(now).unwrap_or(now);
        let pause = now.saturating_sub(last);
        if pause <= self.options.period * 2 {
            return;
        }
        let forgiven = pause - self.options.period;
        for peer in self.peers.values_mut() {
            peer.heard_at = (peer.heard_at + forgiven).min(now);
        }
    }

    fn judge(&mut self, now: Duration) {
        let options = self.options;
        let lost = self.peers.values().filter(|peer| {
            peer.suspect || peer.silent_for(now) >= peer.allowance(&options, options.doubt_after())
        });
        let (lost, peers) = (lost.count(), self.peers.len());
        self.doubts_itself = peers >= 2 && lost * 2 > peers;
        if self.doubts_itself {
            return;
        }
        for peer in self.peers.values_mut() {
            let silent = peer.silent_for(now) >= peer.allowance(&options, options.silence_max);
            if silent && !peer.suspect {
                peer.suspect = true;
                peer.answers = 0;
            }
        }
    }
}

impl Peer {
    fn silent_for(&self, now: Duration) -> Duration {
        now.saturating_sub(self.heard_at)
    }

    fn allowance(&self, options: &DetectorOptions, known: Duration) -> Duration {
        if self.ever_heard {
            known
        } else {
            options.first_answer_max
        }
    }

    fn shown(&self) -> PeerProbe {
        let mut sorted: Vec<_> = self.round_trips.iter().copied().collect();
        sorted.sort_unstable();
        PeerProbe {
            rtt_last: self.round_trips.back().copied(),
            rtt_p50: sorted.get(sorted.len() / 2).copied(),
            sent: self.sent,
            answered: self.answered,
            suspect: self.suspect,
        }
    }
}
