//! Datagrams of one size to one peer that leave by one system call.

use std::net::SocketAddr;

/// Most bytes of one call: the payload of an IPv4 datagram of the greatest length.
const TRAIN_BYTES_MAX: usize = 65_507;
/// Most datagrams of one call that every kernel with UDP segmentation takes.
const DATAGRAMS_MAX: usize = 64;
/// Room for one datagram more: of any message that is no data.
const SLACK_BYTES: usize = PACKET_ROOM;
const PACKET_ROOM: usize = 65_535 + 64;

/// Where datagrams go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Destination {
    pub(super) group: usize,
    pub(super) endpoint: SocketAddr,
}

/// What [`Train::send`] hands over: bytes, the size of each datagram, and where they go.
#[derive(Debug)]
pub(super) struct Load<'a> {
    pub(super) to: Destination,
    pub(super) bytes: &'a [u8],
    pub(super) datagram_bytes: usize,
}

/// The datagrams at hand, one behind the other.
#[derive(Debug)]
pub(super) struct Train {
    buffer: Box<[u8]>,
    end: usize,
    datagram_bytes: usize,
    count: usize,
    to: Option<Destination>,
}

impl Train {
    pub(super) fn new() -> Self {
        Self {
            buffer: vec![0; TRAIN_BYTES_MAX + SLACK_BYTES].into_boxed_slice(),
            end: 0,
            datagram_bytes: 0,
            count: 0,
            to: None,
        }
    }

    /// Where to write the next datagram for `to`, of at most `bytes`.
    pub(super) fn slot(
        &mut self,
        to: Destination,
        bytes: usize,
        emit: &mut impl FnMut(Load<'_>),
    ) -> &mut [u8] {
        let full = self.count == DATAGRAMS_MAX || self.end + bytes > TRAIN_BYTES_MAX;
        if self.count > 0 && (full || self.to != Some(to)) {
            self.send(emit);
        }
        self.to = Some(to);
        &mut self.buffer[self.end..self.end + bytes]
    }

    /// A datagram of `bytes` was written there.
    pub(super) fn push(&mut self, bytes: usize, emit: &mut impl FnMut(Load<'_>)) {
        if self.count > 0 && bytes > self.datagram_bytes {
            // Only the last one may be of another size, and that a smaller one.
            let (begin, to) = (self.end, self.to);
            self.send(emit);
            self.buffer.copy_within(begin..begin + bytes, 0);
            self.to = to;
        }
        if self.count == 0 {
            self.datagram_bytes = bytes;
        }
        self.end += bytes;
        self.count += 1;
        if bytes < self.datagram_bytes {
            self.send(emit);
        }
    }

    /// Sends what is at hand.
    pub(super) fn send(&mut self, emit: &mut impl FnMut(Load<'_>)) {
        if let Some(to) = self.to.take()
            && self.count > 0
        {
            emit(Load {
                to,
                bytes: &self.buffer[..self.end],
                datagram_bytes: self.datagram_bytes,
            });
        }
        self.end = 0;
        self.count = 0;
    }
}
