//! Segments that arrive one after the other into one large packet for the kernel.

use super::packet::{ACK, HEADER_BYTES_MAX, Layout, PSH, Transport, VNET_BYTES, VnetHeader};

/// Where the packet begins in the buffer; the kernel's header is right before it.
const BASE: usize = 16;
/// Longest IP packet in bytes.
const PACKET_BYTES_MAX: usize = 65_535;
/// Room behind it for a datagram that is still to be looked at.
const SLACK_BYTES: usize = PACKET_BYTES_MAX + 1;

/// The packets that the segments at hand belong to.
#[derive(Debug, Clone, Copy)]
struct Flow {
    layout: Layout,
    /// The header of the first segment, without what differs between segments.
    pattern: [u8; HEADER_BYTES_MAX],
    next_sequence: u32,
    segment_bytes: usize,
}

/// Collects segments of one flow. The next packet is decrypted right behind the last payload, with its header over the
/// end of that payload, which is put back when the header has been looked at: no payload is ever copied.
#[derive(Debug)]
pub(super) struct Merger {
    buffer: Box<[u8]>,
    /// Where the next packet was asked to be put.
    slot: usize,
    end: usize,
    count: usize,
    flow: Option<Flow>,
    /// No further segment may follow.
    closed: bool,
    /// What the header of the next packet overwrites.
    covered: [u8; HEADER_BYTES_MAX],
    /// The kernel takes large packets of UDP.
    udp: bool,
}

impl Merger {
    pub(super) fn new(udp: bool) -> Self {
        Self {
            buffer: vec![0; BASE + PACKET_BYTES_MAX + SLACK_BYTES].into_boxed_slice(),
            slot: BASE,
            end: BASE,
            count: 0,
            flow: None,
            closed: false,
            covered: [0; HEADER_BYTES_MAX],
            udp,
        }
    }

    /// Where to put the next packet, of at most `bytes`. It must be followed by [`Merger::accept`] or
    /// [`Merger::cancel`].
    pub(super) fn slot(&mut self, bytes: usize, emit: &mut impl FnMut(&[u8])) -> &mut [u8] {
        let fits = self.end + bytes <= BASE + PACKET_BYTES_MAX;
        match self.flow {
            Some(flow) if !self.closed && fits => {
                let header = flow.layout.payload;
                self.slot = self.end - header;
                self.covered[..header].copy_from_slice(&self.buffer[self.slot..self.end]);
            }
            _ => {
                self.flush(emit);
                self.slot = BASE;
            }
        }
        &mut self.buffer[self.slot..self.slot + bytes]
    }

    /// Nothing, or nothing good, was put there.
    pub(super) fn cancel(&mut self) {
        if let Some(flow) = self.flow
            && self.slot != BASE
        {
            self.uncover(flow.layout.payload);
        }
    }

    fn uncover(&mut self, header: usize) {
        let slot = self.slot;
        self.buffer[slot..slot + header].copy_from_slice(&self.covered[..header]);
    }

    /// A packet of `bytes` was put there. `more` may follow of the same flow; if not, nothing is done for it.
    pub(super) fn accept(&mut self, bytes: usize, more: bool, emit: &mut impl FnMut(&[u8])) {
        if self.slot == BASE {
            self.begin(bytes, more);
            return;
        }
        let Some(flow) = &mut self.flow else { return };
        let header = flow.layout.payload;
        let packet = &self.buffer[self.slot..self.slot + bytes];
        if let Some(pushes) = flow.continues_with(packet) {
            let payload = bytes - header;
            flow.next_sequence = flow.next_sequence.wrapping_add(payload as u32);
            self.closed = pushes || payload < flow.segment_bytes;
            let flags_at = BASE + flow.layout.flags_at();
            self.uncover(header);
            if pushes {
                self.buffer[flags_at] |= PSH;
            }
            self.end = self.slot + bytes;
            self.count += 1;
        } else {
            let other = packet.to_vec();
            self.uncover(header);
            self.flush(emit);
            self.buffer[BASE..BASE + bytes].copy_from_slice(&other);
            self.begin(bytes, more);
        }
    }

    fn begin(&mut self, bytes: usize, more: bool) {
        let packet = &self.buffer[BASE..BASE + bytes];
        self.flow = if more {
            Flow::of(packet, self.udp)
        } else {
            None
        };
        self.closed = self.flow.is_some_and(|flow| flow.pushes(packet));
        self.end = BASE + bytes;
        self.count = 1;
    }

    /// Gives away what is at hand.
    pub(super) fn flush(&mut self, emit: &mut impl FnMut(&[u8])) {
        if self.count == 0 {
            return;
        }
        let vnet = match self.flow {
            Some(flow) if self.count > 1 => {
                let packet = &mut self.buffer[BASE..self.end];
                flow.layout.set_lengths(packet);
                flow.layout.set_partial_checksum(packet);
                VnetHeader::of_segments(&flow.layout, flow.segment_bytes)
            }
            _ => VnetHeader::default(),
        };
        self.buffer[BASE - VNET_BYTES..BASE].copy_from_slice(&vnet.to_bytes());
        emit(&self.buffer[BASE - VNET_BYTES..self.end]);
        self.count = 0;
        self.flow = None;
        self.closed = false;
        self.end = BASE;
    }
}

/// A header without what differs between the segments of one packet.
fn pattern(layout: &Layout, packet: &[u8]) -> [u8; HEADER_BYTES_MAX] {
    let mut header = [0; HEADER_BYTES_MAX];
    header[..layout.payload].copy_from_slice(&packet[..layout.payload]);
    if layout.ipv6 {
        header[4..6].fill(0);
    } else {
        header[2..6].fill(0);
        header[10..12].fill(0);
    }
    let checksum = layout.checksum_at();
    header[checksum..checksum + 2].fill(0);
    match layout.transport {
        Transport::Tcp => {
            layout.set_sequence(&mut header, 0);
            header[layout.flags_at()] &= !PSH;
        }
        Transport::Udp => header[layout.transport_at + 4..layout.transport_at + 6].fill(0),
    }
    header
}

impl Flow {
    /// The flow that `packet` may begin.
    fn of(packet: &[u8], udp: bool) -> Option<Self> {
        let layout = Layout::of(packet)?;
        let segment_bytes = packet.len() - layout.payload;
        let mergeable = match layout.transport {
            Transport::Tcp => packet[layout.flags_at()] & !PSH == ACK,
            Transport::Udp => udp,
        };
        let whole = segment_bytes > 0 && layout.fills(packet) && layout.is_intact(packet);
        (mergeable && whole).then(|| Self {
            layout,
            pattern: pattern(&layout, packet),
            next_sequence: match layout.transport {
                Transport::Tcp => layout.sequence(packet).wrapping_add(segment_bytes as u32),
                Transport::Udp => 0,
            },
            segment_bytes,
        })
    }

    fn pushes(&self, packet: &[u8]) -> bool {
        self.layout.transport == Transport::Tcp && packet[self.layout.flags_at()] & PSH != 0
    }

    /// Whether `packet` is the next segment, and if so, whether it is the last by its own word.
    fn continues_with(&self, packet: &[u8]) -> Option<bool> {
        let layout = &self.layout;
        let payload = packet.len().checked_sub(layout.payload)?;
        let same = payload > 0
            && payload <= self.segment_bytes
            && Layout::of(packet).as_ref() == Some(layout)
            && pattern(layout, packet)[..layout.payload] == self.pattern[..layout.payload]
            && (layout.transport == Transport::Udp
                || layout.sequence(packet) == self.next_sequence)
            && layout.fills(packet)
            && layout.is_intact(packet);
        same.then(|| self.pushes(packet))
    }
}
