//! Questions by TCP: each with its length before it, several on one connection.

use super::message::{Reply, Transport};
use super::server::{Core, Served};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;

/// Most connections of one container; further ones wait to be accepted.
const CONNECTIONS_MAX: usize = 32;
/// A connection on which nothing is asked, or whose client does not read, is closed after this time.
const IDLE_MAX: Duration = Duration::from_secs(10);
/// Pause after a failed accept: out of descriptors, most likely.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// Answers at `listener` until it is cancelled; open connections end with it.
pub(super) async fn serve(core: Arc<Core>, served: Arc<Served>, listener: TcpListener) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if connections.len() < CONNECTIONS_MAX => match accepted {
                Ok((stream, _)) => {
                    let (core, served) = (Arc::clone(&core), Arc::clone(&served));
                    connections.spawn(async move {
                        if let Err(err) = converse(&core, &served, stream).await {
                            tracing::debug!(container = %served.id, %err, "a resolver's connection ended");
                        }
                    });
                }
                Err(err) => {
                    tracing::warn!(container = %served.id, %err, "the resolver can't accept a connection");
                    tokio::time::sleep(ACCEPT_RETRY).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn converse(core: &Core, served: &Served, mut stream: TcpStream) -> io::Result<()> {
    loop {
        let question = match timeout(IDLE_MAX, read(&mut stream)).await? {
            Err(err) if err.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            question => question?,
        };
        let answer = match core.reply_to(served, &question, Transport::Tcp) {
            Reply::Answer(answer, _) => answer,
            Reply::Forward { failure } => {
                core.ask_outside(served, &question, Transport::Tcp, failure)
                    .await
            }
            Reply::Nothing => return Ok(()),
        };
        let Ok(length) = u16::try_from(answer.len()) else {
            return Ok(());
        };
        if answer.is_empty() {
            return Ok(());
        }
        let mut framed = length.to_be_bytes().to_vec();
        framed.extend(answer);
        timeout(IDLE_MAX, stream.write_all(&framed)).await??;
    }
}

async fn read(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let length = stream.read_u16().await?;
    let mut question = vec![0; usize::from(length)];
    stream.read_exact(&mut question).await?;
    Ok(question)
}
