//! Generic netlink: enough of it to speak with one family.

use netlink_sys::{Socket, SocketAddr as NetlinkAddr, protocols::NETLINK_GENERIC};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
const HEADER_BYTES: usize = 16;
const GENERIC_HEADER_BYTES: usize = 4;
const CONTROL_FAMILY: u16 = 0x10;
const CONTROL_GET_FAMILY: u8 = 3;
const CONTROL_FAMILY_ID: u16 = 1;
const CONTROL_FAMILY_NAME: u16 = 2;
const NESTED: u16 = 0x8000;
const KIND_MASK: u16 = 0x3fff;
const VERSION: u8 = 1;

/// Why a conversation failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum GenetlinkError {
    #[error("failed to talk to generic netlink")]
    Socket(#[source] io::Error),
    #[error("the kernel refused")]
    Refused(#[source] io::Error),
    #[error("the kernel's answer is not understood")]
    Answer,
}

impl GenetlinkError {
    pub(super) fn errno(&self) -> Option<i32> {
        match self {
            Self::Socket(err) | Self::Refused(err) => err.raw_os_error(),
            Self::Answer => None,
        }
    }
}

/// Attributes that are being put together.
#[derive(Debug, Default)]
pub(super) struct Attributes(Vec<u8>);

impl Attributes {
    pub(super) fn new() -> Self {
        Self::default()
    }

    /// Bytes so far.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn bytes(&mut self, kind: u16, value: &[u8]) {
        let length = (value.len() + 4) as u16;
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    pub(super) fn text(&mut self, kind: u16, value: &str) {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.bytes(kind, &bytes);
    }

    pub(super) fn nested(&mut self, kind: u16, value: Self) {
        self.bytes(kind | NESTED, &value.0);
    }
}

/// Attributes that were received.
pub(super) struct Parsed<'a>(&'a [u8]);

impl<'a> Parsed<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }
}

impl<'a> Iterator for Parsed<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let head = self.0.first_chunk::<4>()?;
        let length = usize::from(u16::from_ne_bytes([head[0], head[1]]));
        let kind = u16::from_ne_bytes([head[2], head[3]]) & KIND_MASK;
        let value = self.0.get(4..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    }
}

/// Sends one change and waits until it is in force.
pub(super) fn change(
    family: &str,
    command: u8,
    attributes: Attributes,
) -> Result<(), GenetlinkError> {
    let mut socket = Conversation::open()?;
    let family = socket.family(family)?;
    socket.ask(family, command, NLM_F_ACK, &attributes, |_| {})
}

/// Asks for everything, and hands over each part.
pub(super) fn dump(
    family: &str,
    command: u8,
    attributes: Attributes,
    part: impl FnMut(Parsed<'_>),
) -> Result<(), GenetlinkError> {
    let mut socket = Conversation::open()?;
    let family = socket.family(family)?;
    socket.ask(family, command, NLM_F_DUMP, &attributes, part)
}

struct Conversation(Socket);

impl Conversation {
    fn open() -> Result<Self, GenetlinkError> {
        let mut socket = Socket::new(NETLINK_GENERIC).map_err(GenetlinkError::Socket)?;
        socket.bind_auto().map_err(GenetlinkError::Socket)?;
        let kernel = NetlinkAddr::new(0, 0);
        socket.connect(&kernel).map_err(GenetlinkError::Socket)?;
        Ok(Self(socket))
    }

    fn family(&mut self, name: &str) -> Result<u16, GenetlinkError> {
        let mut attributes = Attributes::new();
        attributes.text(CONTROL_FAMILY_NAME, name);
        let mut id = None;
        let (family, command) = (CONTROL_FAMILY, CONTROL_GET_FAMILY);
        self.ask(family, command, NLM_F_ACK, &attributes, |message| {
            for (kind, value) in message {
                if kind == CONTROL_FAMILY_ID && value.len() >= 2 {
                    id = Some(u16::from_ne_bytes([value[0], value[1]]));
                }
            }
        })?;
        id.ok_or(GenetlinkError::Answer)
    }

    fn ask(
        &mut self,
        family: u16,
        command: u8,
        flags: u16,
        attributes: &Attributes,
        mut part: impl FnMut(Parsed<'_>),
    ) -> Result<(), GenetlinkError> {
        let length = HEADER_BYTES + GENERIC_HEADER_BYTES + attributes.len();
        let mut message = Vec::with_capacity(length);
        message.extend((length as u32).to_ne_bytes());
        message.extend(family.to_ne_bytes());
        message.extend((NLM_F_REQUEST | flags).to_ne_bytes());
        // Sequence number and port: there is one request at a time.
        message.extend([0; 8]);
        message.extend([command, VERSION, 0, 0]);
        message.extend(&attributes.0);
        self.0.send(&message, 0).map_err(GenetlinkError::Socket)?;
        loop {
            let (datagram, _) = self.0.recv_from_full().map_err(GenetlinkError::Socket)?;
            if answer(&datagram, &mut part)? {
                return Ok(());
            }
        }
    }
}

/// Hands over the parts in a datagram; answers whether the last one is among them.
fn answer(mut datagram: &[u8], part: &mut impl FnMut(Parsed<'_>)) -> Result<bool, GenetlinkError> {
    while let Some(header) = datagram.first_chunk::<HEADER_BYTES>() {
        let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let kind = u16::from_ne_bytes([header[4], header[5]]);
        let body = datagram
            .get(HEADER_BYTES..length)
            .ok_or(GenetlinkError::Answer)?;
        match kind {
            NLMSG_ERROR => {
                let code = body.first_chunk().ok_or(GenetlinkError::Answer)?;
                return match i32::from_ne_bytes(*code) {
                    0 => Ok(true),
                    code => Err(GenetlinkError::Refused(io::Error::from_raw_os_error(-code))),
                };
            }
            NLMSG_DONE => return Ok(true),
            _ => part(Parsed::new(
                body.get(GENERIC_HEADER_BYTES..).unwrap_or_default(),
            )),
        }
        datagram = datagram
            .get(length.next_multiple_of(4)..)
            .unwrap_or_default();
    }
    Ok(false)
}

/// A socket address as the kernel has it in memory.
pub(super) fn sockaddr_bytes(address: SocketAddr) -> Vec<u8> {
    let mut bytes = Vec::new();
    match address {
        SocketAddr::V4(address) => {
            bytes.extend((libc::AF_INET as u16).to_ne_bytes());
            bytes.extend(address.port().to_be_bytes());
            bytes.extend(address.ip().octets());
            bytes.extend([0; 8]);
        }
        SocketAddr::V6(address) => {
            bytes.extend((libc::AF_INET6 as u16).to_ne_bytes());
            bytes.extend(address.port().to_be_bytes());
            bytes.extend(address.flowinfo().to_be_bytes());
            bytes.extend(address.ip().octets());
            bytes.extend(address.scope_id().to_ne_bytes());
        }
    }
    bytes
}

/// The reverse.
pub(super) fn sockaddr_of(bytes: &[u8]) -> Option<SocketAddr> {
    let family = i32::from(u16::from_ne_bytes([*bytes.first()?, *bytes.get(1)?]));
    let port = u16::from_be_bytes([*bytes.get(2)?, *bytes.get(3)?]);
    match family {
        libc::AF_INET => {
            let octets: [u8; 4] = bytes.get(4..8)?.try_into().ok()?;
            let address = SocketAddrV4::new(Ipv4Addr::from(octets), port);
            Some(SocketAddr::V4(address))
        }
        libc::AF_INET6 => {
            let octets: [u8; 16] = bytes.get(8..24)?.try_into().ok()?;
            let scope: [u8; 4] = bytes.get(24..28)?.try_into().ok()?;
            let scope = u32::from_ne_bytes(scope);
            let address = SocketAddrV6::new(Ipv6Addr::from(octets), port, 0, scope);
            Some(SocketAddr::V6(address))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_survive_the_way_through_the_kernels_form() {
        for text in ["192.0.2.7:51820", "[2001:db8::7]:51820"] {
            let address: SocketAddr = text.parse().unwrap();
            assert_eq!(sockaddr_of(&sockaddr_bytes(address)), Some(address));
        }
    }

    #[test]
    fn attributes_survive_and_damage_ends_them() {
        let mut inner = Attributes::new();
        inner.bytes(7, &[1, 2, 3]);
        let mut outer = Attributes::new();
        outer.text(2, "x");
        outer.nested(8, inner);
        let parsed: Vec<_> = Parsed::new(&outer.0).collect();
        assert_eq!(parsed[0], (2, &b"x\0"[..]));
        let nested: Vec<_> = Parsed::new(parsed[1].1).collect();
        assert_eq!(nested, [(7, &[1u8, 2, 3][..])]);
        assert_eq!(Parsed::new(&[200, 0, 1, 0, 5]).count(), 0);
    }
}
