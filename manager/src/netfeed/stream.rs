//! One node's feed: sends it what concerns it, and takes its answers.

use super::term::{FeedTerm, Parcel, Update};
use shoal_model::NodeId;
use shoal_model::netstate::{
    NET_CHANGES_PER_MESSAGE_MAX, NetFeedMessage, NetFeedRequest, NetUpdate,
};
use shoal_transport::{RpcReceiver, RpcSender, RpcStream, StreamError};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;
use tracing::debug;

/// The first frame must come within this.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);

/// A node that does not take a message for so long is gone.
const SEND_TIMEOUT: Duration = Duration::from_secs(5);

/// Shortest time between two updates. The first change after a pause is sent at once; what follows within this period
/// travels together.
const UPDATES_PERIOD: Duration = Duration::from_millis(4);

/// Why a feed ended early.
#[derive(Debug, thiserror::Error)]
enum FeedError {
    /// The stream broke.
    #[error("the stream of the feed broke")]
    Stream(#[from] StreamError),
    /// The node takes nothing any more.
    #[error("the node did not take a message for {} s", SEND_TIMEOUT.as_secs())]
    Stuck,
    /// The node broke the protocol.
    #[error("a second hello in one feed")]
    Protocol,
}

pub(super) async fn run(term: Arc<FeedTerm>, node_id: NodeId, mut stream: RpcStream) {
    let hello = tokio::time::timeout(HELLO_TIMEOUT, stream.recv::<NetFeedRequest>()).await;
    let Ok(Ok(Some(NetFeedRequest::Hello))) = hello else {
        debug!(%node_id, "a network feed did not start with a hello");
        return;
    };
    let (sender, receiver) = stream.split();
    let (id, wake) = term.open(node_id);
    let mut active = Active {
        term: Arc::clone(&term),
        node_id,
        id,
        sender,
        update_sent_at: None,
    };
    let result = active.serve(receiver, &wake).await;
    term.close(node_id, id);
    match result {
        Ok(()) => debug!(%node_id, "network feed ended"),
        Err(err) => debug!(%node_id, err = &err as &dyn std::error::Error, "network feed broke"),
    }
}

struct Active {
    term: Arc<FeedTerm>,
    node_id: NodeId,
    id: u64,
    sender: RpcSender,
    update_sent_at: Option<Instant>,
}

impl Active {
    async fn serve(&mut self, mut receiver: RpcReceiver, wake: &Notify) -> Result<(), FeedError> {
        let cancel = self.term.cancel().clone();
        loop {
            tokio::select! {
                request = receiver.recv::<NetFeedRequest>() => match request? {
                    Some(NetFeedRequest::Applied { version }) => {
                        if !self.term.applied(self.node_id, self.id, version) {
                            return Ok(());
                        }
                    }
                    Some(NetFeedRequest::Hello) => return Err(FeedError::Protocol),
                    None => return Ok(()),
                },
                () = self.due(wake) => {
                    let Some(parcel) = self.term.parcel(self.node_id, self.id) else {
                        return Ok(());
                    };
                    self.send_parcel(parcel).await?;
                }
                () = cancel.cancelled() => return Ok(()),
            }
        }
    }

    /// Waits until there is something to send, and it may be sent. What is dropped in between has lost no wake-up: it is
    /// given back.
    async fn due(&self, wake: &Notify) {
        if let Some(sent_at) = self.update_sent_at {
            tokio::time::sleep_until(sent_at + UPDATES_PERIOD).await;
        }
        wake.notified().await;
    }

    async fn send_parcel(&mut self, parcel: Parcel) -> Result<(), FeedError> {
        if let Some(update) = parcel.update {
            for message in messages(&update) {
                self.send(&NetFeedMessage::Update(message)).await?;
            }
            self.update_sent_at = Some(Instant::now());
        }
        if let Some(version) = parcel.confirmed {
            self.send(&NetFeedMessage::Confirmed { version }).await?;
        }
        if parcel.rotate_key {
            self.send(&NetFeedMessage::RotateKey).await?;
        }
        Ok(())
    }

    async fn send(&mut self, message: &NetFeedMessage) -> Result<(), FeedError> {
        tokio::time::timeout(SEND_TIMEOUT, self.sender.send(message))
            .await
            .map_err(|_| FeedError::Stuck)?
            .map_err(FeedError::Stream)
    }
}

/// The messages of an update; one without changes is one message.
fn messages(update: &Update) -> impl Iterator<Item = NetUpdate> + '_ {
    let count = update
        .changes
        .len()
        .div_ceil(NET_CHANGES_PER_MESSAGE_MAX)
        .max(1);
    (0..count).map(move |place| {
        let first = place * NET_CHANGES_PER_MESSAGE_MAX;
        let changes = update.changes.iter().skip(first);
        NetUpdate {
            complete: update.complete,
            version: update.version,
            changes: changes
                .take(NET_CHANGES_PER_MESSAGE_MAX)
                .map(super::term::Changed::to_change)
                .collect(),
            more: place + 1 != count,
        }
    })
}
