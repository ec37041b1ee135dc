//! Sending a transaction to the kernel.

use super::batch::Batch;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use std::io;

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

/// Receive buffer of the socket in bytes: an acknowledgement of 36 bytes for every message of a large transaction.
const RECEIVE_BUFFER_BYTES: usize = 1 << 20;
const NLMSG_ERROR: u16 = 2;

/// Applies `batch` in the network namespace of the calling thread: all of it or nothing.
///
/// Blocks for the length of the kernel's commit (well below a millisecond for our sizes).
pub(crate) fn commit(table: &str, batch: Batch) -> Result<(), NftError> {
    let (bytes, steps) = batch.finish();
    let mut socket = Socket::new(NETLINK_NETFILTER).map_err(NftError::Socket)?;
    socket.bind_auto().map_err(NftError::Socket)?;
    socket
        .connect(&SocketAddr::new(0, 0))
        .map_err(NftError::Socket)?;
    socket.set_cap_ack(true).map_err(NftError::Socket)?;
    socket
        .set_rx_buf_sz(RECEIVE_BUFFER_BYTES as libc::c_int)
        .map_err(NftError::Socket)?;
    socket.send(&bytes, 0).map_err(NftError::Socket)?;
    let mut answers = 0;
    let mut refused = None;
    while answers < steps.len() {
        let (buffer, _) = socket.recv_from_full().map_err(NftError::Socket)?;
        for (sequence, errno) in answers_in(&buffer) {
            answers += 1;
            if errno != 0 && refused.is_none() {
                let step = match sequence.checked_sub(1).and_then(|i| steps.get(i)) {
                    Some(step) => step.clone(),
                    // The frame of the batch itself is refused (no rights, no nf_tables): no other answer follows.
                    None => "begin a transaction".to_owned(),
                };
                answers = if sequence == 0 { steps.len() } else { answers };
                let err = io::Error::from_raw_os_error(errno);
                refused = Some(NftError::Refused {
                    step,
                    table: table.to_owned(),
                    err,
                });
            }
        }
    }
    refused.map_or(Ok(()), Err)
}

/// Sequence number and errno of each acknowledgement in a datagram.
fn answers_in(mut buffer: &[u8]) -> Vec<(usize, i32)> {
    let word = |bytes: &[u8], at: usize| -> u32 {
        bytes
            .get(at..at + 4)
            .and_then(|word| word.try_into().ok())
            .map_or(0, u32::from_ne_bytes)
    };
    let mut answers = Vec::new();
    while buffer.len() >= 20 {
        let length = (word(buffer, 0) as usize).clamp(16, buffer.len());
        let kind = u16::from_ne_bytes([buffer[4], buffer[5]]);
        if kind == NLMSG_ERROR {
            let errno = -(word(buffer, 16) as i32);
            answers.push((word(buffer, 8) as usize, errno));
        }
        buffer = &buffer[length.next_multiple_of(4).min(buffer.len())..];
    }
    answers
}
