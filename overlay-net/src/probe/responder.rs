//! Answers other nodes' probes.

use super::packet::{self, PACKET_BYTES, PROBE_PORT};
use super::prober::bound;
use std::io;
use std::net::Ipv4Addr;
use tokio::net::UdpSocket;
use tokio::task::JoinSet;

/// Why there is no responder.
#[derive(Debug, thiserror::Error)]
#[error("failed to open the probe port {PROBE_PORT} at the mesh address `{address}`")]
pub struct ResponderError {
    address: Ipv4Addr,
    #[source]
    err: io::Error,
}

/// A running responder; it ends when it is dropped.
#[derive(Debug)]
pub struct Responder {
    address: Ipv4Addr,
    /// Dropping the set ends the loop.
    _loop: JoinSet<()>,
}

impl Responder {
    /// Answers at the node's mesh address, which need not be there yet. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// When somebody has the port.
    pub fn start(address: Ipv4Addr) -> Result<Self, ResponderError> {
        let failed = |err| ResponderError { address, err };
        let socket = bound(address, PROBE_PORT).map_err(failed)?;
        let socket = UdpSocket::from_std(socket).map_err(failed)?;
        let mut task = JoinSet::new();
        task.spawn(answer(socket));
        Ok(Self {
            address,
            _loop: task,
        })
    }

    /// Where it answers.
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }
}

async fn answer(socket: UdpSocket) {
    let mut buffer = [0; PACKET_BYTES + 1];
    loop {
        let (length, from) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(err) => {
                // An ICMP error of an earlier answer: that peer is gone.
                tracing::trace!(%err, "an answer to a probe was refused");
                continue;
            }
        };
        if let Some(answer) = packet::answer_to(&buffer[..length])
            && let Err(err) = socket.try_send_to(&answer, from)
        {
            tracing::trace!(%err, "a probe could not be answered");
        }
    }
}
