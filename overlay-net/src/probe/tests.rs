//! Suspicion as a story: what happens at which millisecond.

use super::detector::{Detector, DetectorOptions};
use shoal_model::NodeId;
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::Duration;

const ROUND_TRIP_MS: u64 = 3;

/// Peers 1 to `count`, and who of them answers. Time goes in steps of 10 ms.
struct Story {
    detector: Detector,
    now_ms: u64,
    answers: BTreeSet<u8>,
    /// Answers under way: when they arrive, from whom, to which probe.
    flying: Vec<(u64, Ipv4Addr, u64)>,
}

fn address(peer: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 9, 0, peer)
}

fn node(peer: u8) -> NodeId {
    NodeId::from_bits(u128::from(peer))
}

impl Story {
    fn of(count: u8) -> Self {
        let mut detector = Detector::new(DetectorOptions::default());
        let peers: BTreeMap<_, _> = (1..=count)
            .map(|peer| (node(peer), address(peer)))
            .collect();
        detector.set_peers(Duration::ZERO, &peers);
        Self {
            detector,
            now_ms: 0,
            answers: (1..=count).collect(),
            flying: Vec::new(),
        }
    }

    fn step(&mut self) {
        let (now_ms, now) = (self.now_ms, Duration::from_millis(self.now_ms));
        self.flying.retain(|(at, from, sequence)| {
            let arrives = *at <= now_ms;
            if arrives {
                self.detector.answer(now, *from, *sequence);
            }
            !arrives
        });
        for ping in self.detector.tick(now) {
            let peer = ping.address.octets()[3];
            if self.answers.contains(&peer) {
                let arrival = (now_ms + ROUND_TRIP_MS, ping.address, ping.sequence);
                self.flying.push(arrival);
            }
        }
    }

    /// Lets time pass until `until_ms`, this process running all the time.
    fn run(&mut self, until_ms: u64) {
        while self.now_ms < until_ms {
            self.now_ms += 10;
            self.step();
        }
    }

    fn suspects(&self) -> Vec<u8> {
        let suspects = self.detector.suspects();
        (1..=255)
            .filter(|peer| suspects.contains(&node(*peer)))
            .collect()
    }

    /// Until when `expected` takes to become the suspects, in milliseconds from now.
    fn time_to(&mut self, expected: &[u8], at_most_ms: u64) -> u64 {
        let from_ms = self.now_ms;
        while self.suspects() != expected {
            assert!(self.now_ms < from_ms + at_most_ms, "{:?}", self.suspects());
            self.run(self.now_ms + 10);
        }
        self.now_ms - from_ms
    }
}

#[test]
fn a_peer_that_falls_silent_is_suspected_within_a_second_and_trusted_after_two_answers() {
    for cut_at in [1_000, 1_050, 1_110, 1_190] {
        let mut story = Story::of(5);
        story.run(cut_at);
        assert_eq!(story.suspects(), [], "all answer");
        story.answers.remove(&3);
        let took = story.time_to(&[3], 1_000);
        assert!((480..=720).contains(&took), "{took} ms");
        story.run(30_000);
        assert_eq!(story.suspects(), [3]);
        story.answers.insert(3);
        let took = story.time_to(&[], 1_000);
        assert!(took <= 420, "{took} ms");
    }
}

#[test]
fn lost_probes_now_and_then_are_no_silence() {
    let mut story = Story::of(3);
    story.run(1_000);
    for round in 0..50 {
        // Two of three probes are lost.
        story.answers.remove(&2);
        story.run(1_000 + round * 600 + 400);
        story.answers.insert(2);
        story.run(1_000 + round * 600 + 600);
        assert_eq!(story.suspects(), [], "round {round}");
    }
}

#[test]
fn a_node_that_is_cut_off_suspects_itself_and_changes_nothing() {
    for peers in [2, 3, 4, 9, 60] {
        for cut_at in [1_000, 1_070, 1_130] {
            let mut story = Story::of(peers);
            story.run(cut_at);
            story.answers.clear();
            while story.now_ms < cut_at + 10_000 {
                story.run(story.now_ms + 10);
                assert_eq!(story.suspects(), [], "{peers} peers, {} ms", story.now_ms);
            }
            assert!(story.detector.doubts_itself());
            story.answers = (1..=peers).collect();
            story.run(story.now_ms + 500);
            assert!(!story.detector.doubts_itself());
        }
    }
}

#[test]
fn half_of_the_peers_may_be_suspected_and_one_more_is_not() {
    let mut story = Story::of(4);
    story.run(1_000);
    story.answers = [3, 4].into();
    story.time_to(&[1, 2], 1_000);
    story.answers = [4].into();
    story.run(5_000);
    assert_eq!(story.suspects(), [1, 2], "most are silent: nothing changes");
    assert!(story.detector.doubts_itself());
    // Those that are back are trusted, in doubt or not.
    story.answers = [1, 4].into();
    story.time_to(&[2, 3], 2_000);
}

#[test]
fn an_only_peer_can_be_suspected() {
    let mut story = Story::of(1);
    story.run(1_000);
    story.answers.clear();
    story.time_to(&[1], 1_000);
}

#[test]
fn a_new_peer_has_time_for_its_first_handshake() {
    let mut story = Story::of(3);
    story.answers.remove(&3);
    story.run(5_900);
    assert_eq!(story.suspects(), []);
    story.time_to(&[3], 200);
}

#[test]
fn a_pause_of_this_process_is_nobodys_silence() {
    let mut story = Story::of(3);
    story.run(1_000);
    for _ in 0..20 {
        // The process stands still; the answers that came meanwhile are only read afterwards, if at all.
        story.flying.clear();
        story.now_ms += 3_000;
        story.step();
        assert_eq!(story.suspects(), []);
        story.run(story.now_ms + 300);
        assert_eq!(story.suspects(), []);
    }
    story.answers.remove(&1);
    story.time_to(&[1], 1_000);
}

#[test]
fn answers_from_elsewhere_and_answers_twice_do_not_count() {
    let mut detector = Detector::new(DetectorOptions::default());
    let peers = [(node(1), address(1)), (node(2), address(2))].into();
    detector.set_peers(Duration::ZERO, &peers);
    let ping = detector.tick(Duration::ZERO)[0];
    let at = Duration::from_millis(5);
    detector.answer(at, address(9), ping.sequence);
    detector.answer(at, ping.address, ping.sequence + 1_000);
    assert_eq!(detector.peers()[&ping.node_id].answered, 0);
    detector.answer(at, ping.address, ping.sequence);
    detector.answer(at, ping.address, ping.sequence);
    let shown = detector.peers()[&ping.node_id];
    assert_eq!((shown.sent, shown.answered), (1, 1));
    assert_eq!(shown.rtt_last, Some(at));
}

#[test]
fn peers_that_go_are_forgotten_and_those_that_stay_keep_their_history() {
    let mut story = Story::of(3);
    story.run(1_000);
    story.answers.remove(&3);
    story.time_to(&[3], 1_000);
    let now = Duration::from_millis(story.now_ms);
    let stay: BTreeMap<_, _> = [1, 3].map(|peer| (node(peer), address(peer))).into();
    story.detector.set_peers(now, &stay);
    assert_eq!(story.suspects(), [3]);
    assert!(story.detector.peers()[&node(1)].answered > 3);
    let moved = BTreeMap::from([(node(3), address(33))]);
    story.detector.set_peers(now, &moved);
    assert_eq!(story.suspects(), [], "at a new address it starts anew");
}

#[test]
fn the_rate_is_bounded_and_the_next_turn_is_known() {
    let mut detector = Detector::new(DetectorOptions::default());
    let peers: BTreeMap<_, _> = (0..2_000u32)
        .map(|peer| {
            (
                NodeId::from_bits(u128::from(peer)),
                Ipv4Addr::from_bits(0x0a00_0000 + peer),
            )
        })
        .collect();
    detector.set_peers(Duration::ZERO, &peers);
    let mut sent = 0;
    let mut now = Duration::ZERO;
    while now < Duration::from_secs(10) {
        sent += detector.tick(now).len();
        let next = detector.next_at(now).unwrap();
        assert!(next > now, "{next:?} after {now:?}");
        now = next;
    }
    assert!((9_000..=11_000).contains(&sent), "{sent} probes in 10 s");
}
