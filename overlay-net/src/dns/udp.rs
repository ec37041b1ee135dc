//! Questions by UDP.

use super::message::{self, Reply, Transport, UDP_BYTES_MAX};
use super::server::{Core, Served};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::net::UdpSocket;
use tokio::task::JoinSet;

/// Answers at `socket` until it is cancelled; the questions that wait for servers outside end with it.
pub(super) async fn serve(core: Arc<Core>, served: Arc<Served>, socket: UdpSocket) {
    let socket = Arc::new(socket);
    let mut waiting = JoinSet::new();
    loop {
        tokio::select! {
            readable = socket.readable() => {
                if let Err(err) = readable {
                    tracing::warn!(container = %served.id, %err, "the resolver's socket failed");
                    return;
                }
            }
            Some(_) = waiting.join_next() => continue,
        }
        if let Some((question, client, failure)) = take(&core, &served, &socket) {
            let (core, served) = (Arc::clone(&core), Arc::clone(&served));
            let socket = Arc::clone(&socket);
            waiting.spawn(async move {
                let answer = core
                    .ask_outside(&served, &question, Transport::Udp, failure)
                    .await;
                let limit = message::udp_limit(&question);
                let answer = match message::cut(&answer) {
                    Some(short) if answer.len() > limit => short,
                    _ => answer,
                };
                send(&socket, &answer, client);
            });
        }
    }
}

/// Takes one packet. It is answered at once if it can be, else it is handed back.
fn take(
    core: &Core,
    served: &Served,
    socket: &UdpSocket,
) -> Option<(Vec<u8>, SocketAddr, Vec<u8>)> {
    let mut buffer = [0; UDP_BYTES_MAX];
    let (length, client) = match socket.try_recv_from(&mut buffer) {
        Ok(received) => received,
        Err(err) => {
            // ICMP errors of clients that did not wait for their answer are reported here.
            if err.kind() != io::ErrorKind::WouldBlock {
                tracing::debug!(container = %served.id, %err, "an answer could not be delivered");
            }
            return None;
        }
    };
    let question = &buffer[..length];
    match core.reply_to(served, question, Transport::Udp) {
        Reply::Answer(answer, _) => {
            send(socket, &answer, client);
            None
        }
        Reply::Forward { failure } => Some((question.to_vec(), client, failure)),
        Reply::Nothing => None,
    }
}

/// A full socket loses the answer, as UDP may: the client asks again.
fn send(socket: &UdpSocket, answer: &[u8], client: SocketAddr) {
    if answer.is_empty() {
        return;
    }
    if let Err(err) = socket.try_send_to(answer, client) {
        tracing::debug!(%err, "an answer could not be sent");
    }
}
