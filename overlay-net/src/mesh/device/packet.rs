//! Headers of packets: where things are in them, and their checksums.

use std::ops::Range;

/// Bytes of the header that the kernel puts before each packet of a TUN device (`struct virtio_net_hdr`).
pub(super) const VNET_BYTES: usize = 10;
/// Longest IP and TCP header without IP options: 40 + 60.
pub(super) const HEADER_BYTES_MAX: usize = 120;

const NEEDS_CSUM: u8 = 1;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
/// Flag beside the kind: the flow marks congestion.
const GSO_ECN: u8 = 0x80;

pub(super) const FIN: u8 = 0x01;
pub(super) const PSH: u8 = 0x08;
pub(super) const ACK: u8 = 0x10;
pub(super) const CWR: u8 = 0x80;

/// What the kernel says of a packet beside the packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct VnetHeader {
    pub(super) flags: u8,
    pub(super) gso_type: u8,
    pub(super) header_bytes: u16,
    pub(super) segment_bytes: u16,
    pub(super) checksum_start: u16,
    pub(super) checksum_offset: u16,
}

impl VnetHeader {
    /// Of a whole packet whose checksum is still to be made. The header is in the byte order of the machine.
    pub(super) fn parse(bytes: &[u8; VNET_BYTES]) -> Self {
        let word = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
        Self {
            flags: bytes[0],
            gso_type: bytes[1] & !GSO_ECN,
            header_bytes: word(2),
            segment_bytes: word(4),
            checksum_start: word(6),
            checksum_offset: word(8),
        }
    }

    /// Of several segments in one.
    pub(super) fn of_segments(layout: &Layout, segment_bytes: usize) -> Self {
        Self {
            flags: NEEDS_CSUM,
            gso_type: match (layout.transport, layout.ipv6) {
                (Transport::Tcp, false) => GSO_TCPV4,
                (Transport::Tcp, true) => GSO_TCPV6,
                (Transport::Udp, _) => GSO_UDP_L4,
            },
            header_bytes: layout.payload as u16,
            segment_bytes: segment_bytes as u16,
            checksum_start: layout.transport_at as u16,
            checksum_offset: layout.transport.checksum_offset() as u16,
        }
    }

    pub(super) fn to_bytes(self) -> [u8; VNET_BYTES] {
        let mut bytes = [0; VNET_BYTES];
        bytes[0] = self.flags;
        bytes[1] = self.gso_type;
        let words = [
            self.header_bytes,
            self.segment_bytes,
            self.checksum_start,
            self.checksum_offset,
        ];
        for (place, word) in bytes[2..].chunks_exact_mut(2).zip(words) {
            place.copy_from_slice(&word.to_ne_bytes());
        }
        bytes
    }

    /// It stands for several packets.
    pub(super) fn is_segmented(&self) -> bool {
        self.gso_type != GSO_NONE
    }

    pub(super) fn needs_checksum(&self) -> bool {
        self.flags & NEEDS_CSUM != 0
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transport {
    Tcp,
    Udp,
}

impl Transport {
    const fn checksum_offset(self) -> usize {
        match self {
            Self::Tcp => 16,
            Self::Udp => 6,
        }
    }

    const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }
}

/// Where things are in a packet of TCP or UDP that is no fragment and has neither IP options nor extension headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) ipv6: bool,
    pub(super) transport: Transport,
    /// Where the TCP or UDP header begins.
    pub(super) transport_at: usize,
    /// Where the payload begins.
    pub(super) payload: usize,
}

impl Layout {
    pub(super) fn of(packet: &[u8]) -> Option<Self> {
        let (ipv6, transport_at, protocol) = match packet.first()? >> 4 {
            4 if packet.len() >= 20 && packet[0] == 0x45 => {
                let fragment = u16::from_be_bytes([packet[6], packet[7]]) & 0x3fff;
                if fragment != 0 {
                    return None;
                }
                (false, 20, packet[9])
            }
            6 if packet.len() >= 40 => (true, 40, packet[6]),
            _ => return None,
        };
        let (transport, payload) = match protocol {
            6 => {
                let words = packet.get(transport_at + 12)? >> 4;
                (Transport::Tcp, transport_at + usize::from(words) * 4)
            }
            17 => (Transport::Udp, transport_at + 8),
            _ => return None,
        };
        let smallest = match transport {
            Transport::Tcp => transport_at + 20,
            Transport::Udp => transport_at + 8,
        };
        (payload >= smallest && payload <= packet.len()).then_some(Self {
            ipv6,
            transport,
            transport_at,
            payload,
        })
    }

    pub(super) fn checksum_at(&self) -> usize {
        self.transport_at + self.transport.checksum_offset()
    }

    pub(super) fn flags_at(&self) -> usize {
        self.transport_at + 13
    }

    pub(super) fn sequence(&self, packet: &[u8]) -> u32 {
        let at = self.transport_at + 4;
        u32::from_be_bytes([packet[at], packet[at + 1], packet[at + 2], packet[at + 3]])
    }

    pub(super) fn set_sequence(&self, packet: &mut [u8], sequence: u32) {
        let at = self.transport_at + 4;
        packet[at..at + 4].copy_from_slice(&sequence.to_be_bytes());
    }

    fn addresses(&self) -> Range<usize> {
        if self.ipv6 { 8..40 } else { 12..20 }
    }

    /// The sum over what the transport's checksum covers beside header and payload.
    fn pseudo_header(&self, packet: &[u8]) -> u64 {
        let length = (packet.len() - self.transport_at) as u32;
        let mut fixed = [0; 8];
        fixed[..4].copy_from_slice(&length.to_be_bytes());
        fixed[7] = self.transport.number();
        sum(&fixed, sum(&packet[self.addresses()], 0))
    }

    /// Writes the lengths that follow from the length of `packet`, and the IP header's checksum.
    pub(super) fn set_lengths(&self, packet: &mut [u8]) {
        let total = packet.len();
        if self.ipv6 {
            packet[4..6].copy_from_slice(&((total - 40) as u16).to_be_bytes());
        } else {
            packet[2..4].copy_from_slice(&(total as u16).to_be_bytes());
            packet[10..12].fill(0);
            let checksum = !fold(sum(&packet[..20], 0));
            packet[10..12].copy_from_slice(&checksum.to_ne_bytes());
        }
        if self.transport == Transport::Udp {
            let length = (total - self.transport_at) as u16;
            let at = self.transport_at + 4;
            packet[at..at + 2].copy_from_slice(&length.to_be_bytes());
        }
    }

    /// Writes the transport's whole checksum.
    pub(super) fn set_checksum(&self, packet: &mut [u8]) {
        let at = self.checksum_at();
        packet[at..at + 2].fill(0);
        let total = sum(&packet[self.transport_at..], self.pseudo_header(packet));
        let checksum = match !fold(total) {
            // To UDP, zero says that there is none.
            0 if self.transport == Transport::Udp => 0xffff,
            checksum => checksum,
        };
        packet[at..at + 2].copy_from_slice(&checksum.to_ne_bytes());
    }

    /// Writes the part of the checksum that somebody else completes.
    pub(super) fn set_partial_checksum(&self, packet: &mut [u8]) {
        let at = self.checksum_at();
        let partial = fold(self.pseudo_header(packet));
        packet[at..at + 2].copy_from_slice(&partial.to_ne_bytes());
    }

    /// Both checksums are there and right.
    pub(super) fn is_intact(&self, packet: &[u8]) -> bool {
        let at = self.checksum_at();
        let absent = self.transport == Transport::Udp && packet[at..at + 2] == [0, 0];
        let head = self.ipv6 || fold(sum(&packet[..20], 0)) == 0xffff;
        head && !absent
            && fold(sum(
                &packet[self.transport_at..],
                self.pseudo_header(packet),
            )) == 0xffff
    }

    /// The lengths in the headers are those of `packet`.
    pub(super) fn fills(&self, packet: &[u8]) -> bool {
        let word = |at: usize| usize::from(u16::from_be_bytes([packet[at], packet[at + 1]]));
        let ip = if self.ipv6 { word(4) + 40 } else { word(2) };
        let transport = match self.transport {
            Transport::Tcp => true,
            Transport::Udp => word(self.transport_at + 4) == packet.len() - self.transport_at,
        };
        ip == packet.len() && transport
    }
}

/// The one's complement sum of `bytes` as 16-bit words in the machine's byte order, on top of `start`. An odd last
/// byte is padded with zero. The byte order does not matter as long as the result is stored in the same one.
///
/// Words of 64 bits are added with the carry going round: that is the same sum, as 2^16 - 1 divides 2^64 - 1. Four of
/// them at a time do not wait for each other.
pub(super) fn sum(bytes: &[u8], start: u64) -> u64 {
    let mut lanes = [start, 0, 0, 0];
    let (blocks, rest) = bytes.as_chunks::<32>();
    for block in blocks {
        let (words, _) = block.as_chunks::<8>();
        lanes[0] = add(lanes[0], u64::from_ne_bytes(words[0]));
        lanes[1] = add(lanes[1], u64::from_ne_bytes(words[1]));
        lanes[2] = add(lanes[2], u64::from_ne_bytes(words[2]));
        lanes[3] = add(lanes[3], u64::from_ne_bytes(words[3]));
    }
    let mut total = add(add(lanes[0], lanes[1]), add(lanes[2], lanes[3]));
    let (words, rest) = rest.as_chunks::<8>();
    for word in words {
        total = add(total, u64::from_ne_bytes(*word));
    }
    if !rest.is_empty() {
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        total = add(total, u64::from_ne_bytes(last));
    }
    total
}

/// One's complement addition.
#[inline]
const fn add(left: u64, right: u64) -> u64 {
    let (sum, carry) = left.overflowing_add(right);
    // A sum that was carried is at most 2^64 - 2.
    sum + carry as u64
}

/// A sum as 16 bits.
pub(super) fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// Completes the checksum of a packet as the kernel asks for it; `false` if it asks for nonsense.
pub(super) fn complete_checksum(header: &VnetHeader, packet: &mut [u8]) -> bool {
    let start = usize::from(header.checksum_start);
    let at = start + usize::from(header.checksum_offset);
    if at + 2 > packet.len() {
        return false;
    }
    // The field holds the sum of the pseudo header.
    let checksum = match !fold(sum(&packet[start..], 0)) {
        0 => 0xffff,
        checksum => checksum,
    };
    packet[at..at + 2].copy_from_slice(&checksum.to_ne_bytes());
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn slow_sum(bytes: &[u8]) -> u16 {
        let mut total = 0u32;
        for pair in bytes.chunks(2) {
            let word = u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]);
            total += u32::from(word);
            total = (total & 0xffff) + (total >> 16);
        }
        total as u16
    }

    proptest! {
        #[test]
        fn the_sum_is_that_of_the_definition(bytes in proptest::collection::vec(any::<u8>(), 0..3_000)) {
            let fast = fold(sum(&bytes, 0)).to_ne_bytes();
            prop_assert_eq!(u16::from_be_bytes(fast), slow_sum(&bytes));
        }

        #[test]
        fn any_bytes_have_a_layout_within_them_or_none(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Some(layout) = Layout::of(&bytes) {
                prop_assert!(layout.payload <= bytes.len());
                prop_assert!(layout.payload <= HEADER_BYTES_MAX);
                prop_assert!(layout.checksum_at() + 2 <= layout.payload);
            }
        }
    }
}
