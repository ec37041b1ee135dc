//! Properties of cutting up and putting together.

use super::merge::Merger;
use super::packet::{ACK, FIN, Layout, PSH, Transport, VNET_BYTES, VnetHeader};
use super::split::Split;
use super::train::{Destination, Train};
use proptest::prelude::*;

/// A whole TCP or UDP packet with right lengths and checksums.
fn packet(ipv6: bool, transport: Transport, flags: u8, sequence: u32, payload: &[u8]) -> Vec<u8> {
    let mut packet = if ipv6 {
        let mut head = vec![0x60, 0, 0, 0, 0, 0, 6, 64];
        head.extend((0..32).map(|at| at as u8));
        head
    } else {
        let mut head = vec![0x45, 0, 0, 0, 0x12, 0x34, 0x40, 0, 64, 6, 0, 0];
        head.extend([10, 0, 0, 1, 10, 0, 0, 2]);
        head
    };
    match transport {
        Transport::Tcp => {
            packet.extend([0x30, 0x39, 0, 80]);
            packet.extend(sequence.to_be_bytes());
            packet.extend([0, 0, 0, 9, 0x80, flags, 1, 0, 0, 0, 0, 0]);
            packet.extend([1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8]);
        }
        Transport::Udp => {
            let protocol = if ipv6 { 6 } else { 9 };
            packet[protocol] = 17;
            packet.extend([0x30, 0x39, 0, 80, 0, 0, 0, 0]);
        }
    }
    packet.extend(payload);
    let layout = Layout::of(&packet).unwrap();
    layout.set_lengths(&mut packet);
    layout.set_checksum(&mut packet);
    packet
}

fn segments(large: &[u8], segment_bytes: usize) -> Vec<Vec<u8>> {
    let layout = Layout::of(large).unwrap();
    let vnet = VnetHeader::of_segments(&layout, segment_bytes);
    let mut large = large.to_vec();
    let mut split = Split::of(&vnet, &large).unwrap();
    let mut segments = Vec::new();
    while let Some(segment) = split.next(&mut large) {
        segments.push(segment.to_vec());
        // As encryption does not, but the next header does: what was handed out is not looked at again.
    }
    segments
}

/// Puts packets through a merger; answers what the kernel would get.
fn merge(packets: &[Vec<u8>]) -> Vec<(VnetHeader, Vec<u8>)> {
    let mut merger = Merger::new(true);
    let mut out = Vec::new();
    let mut emit = |bytes: &[u8]| {
        let (vnet, packet) = bytes.split_first_chunk::<VNET_BYTES>().unwrap();
        out.push((VnetHeader::parse(vnet), packet.to_vec()));
    };
    for packet in packets {
        // Room for the tag that is cut off, which is overwritten with rubbish.
        let slot = merger.slot(packet.len() + 16, &mut emit);
        slot[..packet.len()].copy_from_slice(packet);
        slot[packet.len()..].fill(0xee);
        merger.accept(packet.len(), true, &mut emit);
    }
    merger.flush(&mut emit);
    out
}

/// The packets that the kernel makes of what it gets.
fn expand(merged: &[(VnetHeader, Vec<u8>)]) -> Vec<Vec<u8>> {
    merged
        .iter()
        .flat_map(|(vnet, packet)| {
            if vnet.is_segmented() {
                segments(packet, usize::from(vnet.segment_bytes))
            } else {
                vec![packet.clone()]
            }
        })
        .collect()
}

fn kind() -> impl Strategy<Value = (bool, Transport)> {
    let transport = prop_oneof![Just(Transport::Tcp), Just(Transport::Udp)];
    (any::<bool>(), transport)
}

proptest! {
    #[test]
    fn every_segment_is_a_whole_packet_and_together_they_are_the_large_one(
        (ipv6, transport) in kind(),
        payload in proptest::collection::vec(any::<u8>(), 1..20_000),
        segment_bytes in 200usize..1_400,
        last in prop_oneof![Just(0), Just(PSH), Just(PSH | FIN)],
    ) {
        let large = packet(ipv6, transport, ACK | last, 0xffff_f000, &payload);
        let segments = segments(&large, segment_bytes);
        let mut joined = Vec::new();
        for (index, segment) in segments.iter().enumerate() {
            let layout = Layout::of(segment).unwrap();
            prop_assert!(layout.fills(segment) && layout.is_intact(segment));
            if transport == Transport::Tcp {
                let expected = 0xffff_f000u32.wrapping_add(joined.len() as u32);
                prop_assert_eq!(layout.sequence(segment), expected);
                let is_last = index + 1 == segments.len();
                let flags = if is_last { ACK | last } else { ACK };
                prop_assert_eq!(segment[layout.flags_at()], flags);
            }
            joined.extend_from_slice(&segment[layout.payload..]);
        }
        prop_assert_eq!(joined, payload);
    }

    #[test]
    fn segments_of_one_packet_become_one_packet_again(
        (ipv6, transport) in kind(),
        payload in proptest::collection::vec(any::<u8>(), 1..20_000),
        segment_bytes in 200usize..1_400,
    ) {
        let large = packet(ipv6, transport, ACK | PSH, 7, &payload);
        let segments = segments(&large, segment_bytes);
        let merged = merge(&segments);
        prop_assert_eq!(merged.len(), 1);
        let layout = Layout::of(&large).unwrap();
        prop_assert_eq!(&merged[0].1[layout.payload..], &payload[..]);
        prop_assert_eq!(&merged[0].1[..4], &large[..4]);
        prop_assert_eq!(expand(&merged), segments);
    }

    /// Whatever comes in whatever order: the kernel gets exactly the packets that arrived.
    #[test]
    fn nothing_is_lost_changed_or_reordered(
        picks in proptest::collection::vec((0usize..4, 0u32..6, 1usize..500, any::<u8>()), 1..40),
    ) {
        let packets: Vec<Vec<u8>> = picks
            .into_iter()
            .map(|(what, place, bytes, fill)| {
                let payload = vec![fill; bytes];
                match what {
                    0 => packet(false, Transport::Tcp, ACK, place * 300, &vec![fill; 300]),
                    1 => packet(true, Transport::Tcp, ACK | (fill & PSH), place * 200, &payload),
                    2 => packet(false, Transport::Udp, 0, 0, &payload),
                    // Damaged, and not even TCP.
                    _ => payload,
                }
            })
            .collect();
        // Their identifications are those of the packets' own.
        let plain = |packets: Vec<Vec<u8>>| -> Vec<Vec<u8>> {
            packets
                .into_iter()
                .map(|mut packet| {
                    if Layout::of(&packet).is_some_and(|layout| !layout.ipv6) {
                        packet[4..6].fill(0);
                        packet[10..12].fill(0);
                    }
                    packet
                })
                .collect()
        };
        prop_assert_eq!(plain(expand(&merge(&packets))), plain(packets));
    }

    #[test]
    fn a_train_carries_every_datagram_once_and_in_order(
        sizes in proptest::collection::vec((0usize..3, 33usize..1_600), 0..200),
    ) {
        let endpoint = "192.0.2.1:5".parse().unwrap();
        let mut train = Train::new();
        let mut sent: Vec<(usize, Vec<u8>)> = Vec::new();
        let mut emit = |load: super::train::Load<'_>| {
            for datagram in load.bytes.chunks(load.datagram_bytes) {
                sent.push((load.to.group, datagram.to_vec()));
            }
        };
        let mut expected = Vec::new();
        for (number, (group, bytes)) in sizes.into_iter().enumerate() {
            let datagram = vec![number as u8; bytes];
            let slot = train.slot(Destination { group, endpoint }, bytes.max(256), &mut emit);
            slot[..bytes].copy_from_slice(&datagram);
            train.push(bytes, &mut emit);
            expected.push((group, datagram));
        }
        train.send(&mut emit);
        prop_assert_eq!(sent, expected);
    }
}
