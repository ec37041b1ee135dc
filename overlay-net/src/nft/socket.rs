//! Talking to the kernel's netfilter over netlink.

use super::batch::{Attrs, Batch};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsRawFd;

/// Why the kernel did not take a transaction. Nothing of it is in force then.
#[derive(Debug, thiserror::Error)]
pub enum NftError {
    /// No socket to nf_tables.
    #[error("failed to talk to nf_tables")]
    Socket(#[source] io::Error),
    /// The kernel refused a step.
    #[error("nf_tables refused to {step} of table `{table}`")]
    Refused {
        /// What was to be done.
        step: String,
        /// Where.
        table: String,
        /// The kernel's answer.
        #[source]
        err: io::Error,
    },
}

/// Room in the socket for answers, in bytes.
const RECEIVE_BUFFER_BYTES: libc::c_int = 1 << 20;
/// Bytes that a socket sends beyond its message: the kernel wants its buffer a little larger.
const SEND_BUFFER_SPARE_BYTES: usize = 4096;
/// Bytes in the header of a netlink message, and with the header of netfilter behind it.
const HEADER_BYTES: usize = 16;
const NETFILTER_HEADER_BYTES: usize = 20;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;

fn open() -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.set_cap_ack(true)?;
    socket.set_rx_buf_sz(RECEIVE_BUFFER_BYTES)?;
    Ok(socket)
}

/// A netlink message must fit the send buffer as a whole, and the usual limit is too small for a large table.
fn make_room(socket: &Socket, bytes: usize) -> io::Result<()> {
    let size = libc::c_int::try_from(bytes + SEND_BUFFER_SPARE_BYTES).unwrap_or(libc::c_int::MAX);
    // SAFETY: the option's value is one `c_int`, which `size` is, and the descriptor is open.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_SNDBUFFORCE,
            (&raw const size).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Bytes up to which the send buffer is large enough by itself.
const SMALL_BYTES: usize = 32 << 10;

/// Applies `batch` in the network namespace of the calling thread: all of it or nothing.
///
/// Blocks for the length of the kernel's commit (well below a millisecond for a few elements).
pub(crate) fn commit(table: &str, batch: Batch) -> Result<(), NftError> {
    let (bytes, steps) = batch.finish();
    let socket = open().map_err(NftError::Socket)?;
    if bytes.len() > SMALL_BYTES {
        make_room(&socket, bytes.len()).map_err(NftError::Socket)?;
    }
    socket.send(&bytes, 0).map_err(NftError::Socket)?;
    let mut refused = None;
    loop {
        let (buffer, _) = socket.recv_from_full().map_err(NftError::Socket)?;
        for message in messages(&buffer) {
            if message.kind != NLMSG_ERROR {
                continue;
            }
            let sequence = message.sequence as usize;
            if message.errno() != 0 && refused.is_none() {
                let step = match sequence.checked_sub(1).and_then(|i| steps.get(i)) {
                    Some(step) => step.clone(),
                    // The frame of the batch itself is refused (no rights, no nf_tables): no other answer follows.
                    None => "begin a transaction".to_owned(),
                };
                let err = io::Error::from_raw_os_error(message.errno());
                refused = Some(NftError::Refused {
                    step,
                    table: table.to_owned(),
                    err,
                });
            }
            if sequence == 0 || sequence == steps.len() {
                return refused.map_or(Ok(()), Err);
            }
        }
    }
}

/// Whether the table exists.
pub(crate) fn table_exists(family: u8, table: &str) -> Result<bool, NftError> {
    const GET_TABLE: u16 = 10 << 8 | 1;
    match request(GET_TABLE, family, &Attrs::default().text(1, table), false) {
        Ok(_) => Ok(true),
        Err(err) if err.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(err) => Err(NftError::Socket(err)),
    }
}

/// The named counters of a table: packets and bytes.
pub(crate) fn counters(family: u8, table: &str) -> Result<BTreeMap<String, (u64, u64)>, NftError> {
    const GET_OBJECT: u16 = 10 << 8 | 19;
    const COUNTER: u32 = 1;
    let filter = Attrs::default().text(1, table).be32(3, COUNTER);
    let number = |data: &[u8], kind| {
        let bytes = attributes(data).find(|(k, _)| *k == kind);
        bytes.and_then(|(_, v)| Some(u64::from_be_bytes(v.try_into().ok()?)))
    };
    let found = request(GET_OBJECT, family, &filter, true).map_err(NftError::Socket)?;
    Ok(found
        .iter()
        .filter_map(|body| {
            let (_, name) = attributes(body).find(|(kind, _)| *kind == 2)?;
            let (_, data) = attributes(body).find(|(kind, _)| *kind == 4)?;
            let name = std::str::from_utf8(name).ok()?.trim_end_matches('\0');
            Some((name.to_owned(), (number(data, 2)?, number(data, 1)?)))
        })
        .collect())
}

/// Sends one request to netfilter; answers the attributes of each message that comes back.
pub(crate) fn request(
    kind: u16,
    family: u8,
    attrs: &Attrs,
    dump: bool,
) -> io::Result<Vec<Vec<u8>>> {
    let socket = open()?;
    let flags = NLM_F_REQUEST | if dump { NLM_F_DUMP } else { NLM_F_ACK };
    let length = u32::try_from(NETFILTER_HEADER_BYTES + attrs.0.len()).unwrap_or(u32::MAX);
    let mut bytes = Vec::with_capacity(NETFILTER_HEADER_BYTES + attrs.0.len());
    bytes.extend(length.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend(1u32.to_ne_bytes());
    bytes.extend([0; 4]);
    bytes.extend([family, 0, 0, 0]);
    bytes.extend(&attrs.0);
    socket.send(&bytes, 0)?;
    let mut found = Vec::new();
    loop {
        let (buffer, _) = socket.recv_from_full()?;
        for message in messages(&buffer) {
            match message.kind {
                NLMSG_ERROR if message.errno() != 0 => {
                    return Err(io::Error::from_raw_os_error(message.errno()));
                }
                NLMSG_ERROR | NLMSG_DONE => return Ok(found),
                _ => {
                    let attributes = message.body.get(NETFILTER_HEADER_BYTES - HEADER_BYTES..);
                    found.push(attributes.unwrap_or_default().to_vec());
                }
            }
        }
    }
}

/// Kind and value of each attribute.
pub(crate) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    const KIND_MASK: u16 = 0x3fff;
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(bytes.get(0..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(bytes.get(2..4)?.try_into().ok()?) & KIND_MASK;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

struct Message<'a> {
    kind: u16,
    sequence: u32,
    body: &'a [u8],
}

impl Message<'_> {
    fn errno(&self) -> i32 {
        let code = self.body.get(0..4).and_then(|code| code.try_into().ok());
        code.map_or(0, |code| -i32::from_ne_bytes(code))
    }
}

/// The messages of a datagram.
fn messages(mut buffer: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let header = buffer.get(..HEADER_BYTES)?;
        let length = u32::from_ne_bytes(header[0..4].try_into().ok()?) as usize;
        let length = length.clamp(HEADER_BYTES, buffer.len());
        let message = Message {
            kind: u16::from_ne_bytes([header[4], header[5]]),
            sequence: u32::from_ne_bytes(header[8..12].try_into().ok()?),
            body: &buffer[HEADER_BYTES..length],
        };
        buffer = &buffer[length.next_multiple_of(4).min(buffer.len())..];
        Some(message)
    })
}
