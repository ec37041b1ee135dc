//! A probe on the wire: 32 bytes there, the same 32 bytes with another kind back.
//!
//! ```text
//! 0  magic "SHPR"   4  version 1   5  kind (1 probe, 2 answer)   6  zero   8  sequence   16  nonce
//! ```
//!
//! The nonce is the prober's for as long as it runs, so that nobody who does not see the mesh can answer for a peer.
//! An answer is as long as its question: the responder amplifies nothing.

/// UDP port of the responder at a node's mesh address.
pub const PROBE_PORT: u16 = 51_821;

/// Length of every packet, in bytes.
pub(super) const PACKET_BYTES: usize = 32;

const MAGIC: [u8; 4] = *b"SHPR";
const VERSION: u8 = 1;
const PROBE: u8 = 1;
const ANSWER: u8 = 2;

/// What identifies a probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    pub(super) sequence: u64,
    pub(super) nonce: [u8; 16],
}

/// The bytes of a probe.
pub(super) fn probe(stamp: Stamp) -> [u8; PACKET_BYTES] {
    let mut packet = [0; PACKET_BYTES];
    packet[..4].copy_from_slice(&MAGIC);
    packet[4] = VERSION;
    packet[5] = PROBE;
    packet[8..16].copy_from_slice(&stamp.sequence.to_be_bytes());
    packet[16..].copy_from_slice(&stamp.nonce);
    packet
}

/// The answer to a packet; `None` if it is no probe.
pub(super) fn answer_to(packet: &[u8]) -> Option<[u8; PACKET_BYTES]> {
    let mut answer = <[u8; PACKET_BYTES]>::try_from(packet).ok()?;
    if !is(&answer, PROBE) {
        return None;
    }
    answer[5] = ANSWER;
    Some(answer)
}

/// Which probe a packet answers; `None` if it is no answer.
pub(super) fn stamp_of_answer(packet: &[u8]) -> Option<Stamp> {
    let packet = <&[u8; PACKET_BYTES]>::try_from(packet).ok()?;
    if !is(packet, ANSWER) {
        return None;
    }
    let mut stamp = Stamp {
        sequence: 0,
        nonce: [0; 16],
    };
    let mut sequence = [0; 8];
    sequence.copy_from_slice(&packet[8..16]);
    stamp.sequence = u64::from_be_bytes(sequence);
    stamp.nonce.copy_from_slice(&packet[16..]);
    Some(stamp)
}

fn is(packet: &[u8; PACKET_BYTES], kind: u8) -> bool {
    packet[..4] == MAGIC && packet[4] == VERSION && packet[5] == kind
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_probe_is_answered_and_only_an_answer_counts() {
        let stamp = Stamp {
            sequence: 77,
            nonce: [3; 16],
        };
        let sent = probe(stamp);
        let answer = answer_to(&sent).unwrap();
        assert_eq!(stamp_of_answer(&answer), Some(stamp));
        assert_eq!(stamp_of_answer(&sent), None);
        assert_eq!(
            answer_to(&answer),
            None,
            "two responders would talk forever"
        );
        assert_eq!(answer_to(&sent[..31]), None);
        let mut longer = sent.to_vec();
        longer.push(0);
        assert_eq!(answer_to(&longer), None);
        let mut newer = sent;
        newer[4] = 2;
        assert_eq!(answer_to(&newer), None);
    }
}
