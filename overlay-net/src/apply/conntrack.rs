//! Forgetting tracked connections: NAT decides once per connection, so a decision that became wrong must go.

use crate::nft::{Attrs, attributes, request};
use crate::plan::Forget;
use std::io;
use std::net::IpAddr;

/// `NFNL_SUBSYS_CTNETLINK`.
const SUBSYSTEM: u16 = 1 << 8;
const GET: u16 = SUBSYSTEM | 1;
const DELETE: u16 = SUBSYSTEM | 2;
const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const ZONE: u16 = 18;
const NLA_F_NESTED: u16 = 0x8000;

const TCP: u8 = 6;
const UDP: u8 = 17;

/// One direction of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Tuple {
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    destination_port: u16,
}

impl Tuple {
    fn parse(bytes: &[u8]) -> Option<Self> {
        let (mut source, mut destination) = (None, None);
        let (mut protocol, mut destination_port) = (None, 0);
        for (kind, value) in attributes(bytes) {
            for (field, value) in attributes(value) {
                match (kind, field) {
                    (1, 1 | 3) => source = address(value),
                    (1, 2 | 4) => destination = address(value),
                    (2, 1) => protocol = value.first().copied(),
                    (2, 3) => destination_port = u16::from_be_bytes(value.try_into().ok()?),
                    _ => {}
                }
            }
        }
        Some(Self {
            source: source?,
            destination: destination?,
            protocol: protocol?,
            destination_port,
        })
    }
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => Some(IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?)),
        16 => Some(IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?)),
        _ => None,
    }
}

fn to_forget(what: &Forget, original: &Tuple, reply: &Tuple) -> bool {
    let balanced = original.destination != reply.source;
    match original.protocol {
        TCP => balanced && what.gone.contains(&reply.source),
        UDP if balanced => {
            what.gone.contains(&reply.source) || what.resting.contains(&reply.source)
        }
        // Packets that went nowhere because there was no such port yet.
        UDP => {
            what.new_vips.contains(&original.destination)
                || what.new_udp_ports.contains(&original.destination_port)
        }
        _ => false,
    }
}

/// Forgets what `what` says; answers how many connections that were. Blocks for a walk over all connections.
pub(super) fn forget(what: &Forget) -> io::Result<usize> {
    let mut forgotten = 0;
    for connection in request(GET, 0, &Attrs::default(), true)? {
        let part = |kind| attributes(&connection).find(|(k, _)| *k == kind);
        let (Some((_, original)), Some((_, reply))) = (part(TUPLE_ORIGINAL), part(TUPLE_REPLY))
        else {
            continue;
        };
        let (Some(first), Some(second)) = (Tuple::parse(original), Tuple::parse(reply)) else {
            continue;
        };
        if !to_forget(what, &first, &second) {
            continue;
        }
        let mut attrs = Attrs::default().bytes(TUPLE_ORIGINAL | NLA_F_NESTED, original);
        if let Some((_, zone)) = part(ZONE) {
            attrs = attrs.bytes(ZONE, zone);
        }
        let family = if first.source.is_ipv4() {
            libc::AF_INET
        } else {
            libc::AF_INET6
        };
        match request(DELETE, family as u8, &attrs, false) {
            Ok(_) => forgotten += 1,
            // It ended by itself.
            Err(err) if err.raw_os_error() == Some(libc::ENOENT) => {}
            Err(err) => return Err(err),
        }
    }
    Ok(forgotten)
}
