//! One large packet of the kernel's into the segments that travel.

use super::packet::{CWR, FIN, HEADER_BYTES_MAX, Layout, PSH, Transport, VnetHeader};

/// A large packet on its way to be cut up. Segments are made in place, one after the other: the header of the next one
/// is written over the end of the payload of the last, which is encrypted by then.
#[derive(Debug)]
pub(super) struct Split {
    layout: Layout,
    header: [u8; HEADER_BYTES_MAX],
    segment_bytes: usize,
    next: usize,
    count: u16,
}

impl Split {
    /// `None` for what is no large packet of a kind that can be cut.
    pub(super) fn of(vnet: &VnetHeader, packet: &[u8]) -> Option<Self> {
        let layout = Layout::of(packet)?;
        let segment_bytes = usize::from(vnet.segment_bytes);
        if segment_bytes == 0 || layout.payload > HEADER_BYTES_MAX {
            return None;
        }
        let mut header = [0; HEADER_BYTES_MAX];
        header[..layout.payload].copy_from_slice(&packet[..layout.payload]);
        Some(Self {
            layout,
            header,
            segment_bytes,
            next: layout.payload,
            count: 0,
        })
    }

    /// The next segment, within the packet that it was made of.
    pub(super) fn next<'p>(&mut self, packet: &'p mut [u8]) -> Option<&'p [u8]> {
        let first = self.count == 0;
        if self.next >= packet.len() && !(first && self.next == packet.len()) {
            return None;
        }
        let layout = self.layout;
        let begin = self.next - layout.payload;
        let end = (self.next + self.segment_bytes).min(packet.len());
        let last = end == packet.len();
        let segment = &mut packet[begin..end];
        segment[..layout.payload].copy_from_slice(&self.header[..layout.payload]);
        if !layout.ipv6 {
            let id = u16::from_be_bytes([segment[4], segment[5]]).wrapping_add(self.count);
            segment[4..6].copy_from_slice(&id.to_be_bytes());
        }
        if layout.transport == Transport::Tcp {
            let offset = (self.next - layout.payload) as u32;
            let sequence = layout.sequence(segment).wrapping_add(offset);
            layout.set_sequence(segment, sequence);
            let flags = &mut segment[layout.flags_at()];
            if !last {
                *flags &= !(FIN | PSH);
            }
            if !first {
                *flags &= !CWR;
            }
        }
        layout.set_lengths(segment);
        layout.set_checksum(segment);
        self.next = end;
        self.count += 1;
        if last {
            // Also ends a packet without payload.
            self.next = usize::MAX;
        }
        Some(segment)
    }
}
