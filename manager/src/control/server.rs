//! Serves the control API on streams.

use super::forward::{ControlApi, is_of_any_node};
use crate::store::{Change, Entity, WatchItem};
use shoal_model::control::{ControlRequest, ControlResponse, WatchEvent, WatchRequest};
use shoal_model::rpc::{ErrorCode, RpcError};
use shoal_model::{NodeId, ServiceId, Version};
use shoal_transport::{RpcStream, StreamError};
use std::time::Duration;

/// A watch says "read again" at least this often.
const WATCH_REFRESH: Duration = Duration::from_secs(30);

impl ControlApi {
    /// Serves one request of the node `caller`.
    ///
    /// # Errors
    /// The stream broke; the caller is gone.
    pub async fn serve(&self, caller: NodeId, mut stream: RpcStream) -> Result<(), StreamError> {
        let Some(request) = stream.recv::<ControlRequest>().await? else {
            return Ok(());
        };
        self.reply(caller, request, stream).await
    }

    /// Serves one request about a container of the node `caller`, which may be a worker.
    ///
    /// # Errors
    /// The stream broke; the caller is gone.
    pub async fn serve_attach(
        &self,
        caller: NodeId,
        mut stream: RpcStream,
    ) -> Result<(), StreamError> {
        let Some(request) = stream.recv::<ControlRequest>().await? else {
            return Ok(());
        };
        if is_of_any_node(&request) {
            return self.reply(caller, request, stream).await;
        }
        let message = "a node may only attach and detach its own containers by this call";
        let error = RpcError::new(ErrorCode::PermissionDenied, message);
        stream.reply::<ControlResponse>(&Err(error)).await
    }

    async fn reply(
        &self,
        caller: NodeId,
        request: ControlRequest,
        mut stream: RpcStream,
    ) -> Result<(), StreamError> {
        match self.answer(caller, request).await {
            Ok(mut answer) => {
                while let Some(frame) = answer.next().await {
                    stream.send(&frame).await?;
                }
                stream.finish().await
            }
            Err(error) => {
                let answer: Result<ControlResponse, RpcError> = Err(error);
                stream.reply(&answer).await
            }
        }
    }

    /// Serves one watch: an event at once, then one for every change, until the caller is gone.
    ///
    /// # Errors
    /// The stream broke.
    pub async fn serve_watch(&self, mut stream: RpcStream) -> Result<(), StreamError> {
        let Some(request) = stream.recv::<WatchRequest>().await? else {
            return Ok(());
        };
        let mut watcher = self.core.store.watch();
        let version = self.core.store.view().version();
        let (mut sender, mut receiver) = stream.split();
        sender.send(&changed(version)).await?;
        let mut caller_sends = true;
        loop {
            let item = tokio::select! {
                item = watcher.next() => item,
                // Finds out, at the latest, that a caller who has ended its own side is gone.
                () = tokio::time::sleep(WATCH_REFRESH) => Some(WatchItem::Resync),
                end = receiver.recv::<WatchRequest>(), if caller_sends => {
                    end?;
                    caller_sends = false;
                    continue;
                }
            };
            let Some(item) = item else {
                let gone = RpcError::new(ErrorCode::Unavailable, "the manager is stopping");
                let last: Result<WatchEvent, RpcError> = Err(gone);
                sender.send(&last).await?;
                return sender.finish().await;
            };
            let mut concerned = concerns(&request, &item);
            while let Some(further) = watcher.try_next() {
                concerned |= concerns(&request, &further);
            }
            if concerned {
                let version = self.core.store.view().version();
                sender.send(&changed(version)).await?;
            }
        }
    }
}

fn changed(version: Version) -> Result<WatchEvent, RpcError> {
    Ok(WatchEvent::Changed { version })
}

fn concerns(request: &WatchRequest, item: &WatchItem) -> bool {
    match (request.service_id, item) {
        (None, _) | (_, WatchItem::Resync) => true,
        (Some(service), WatchItem::Changes(batch)) => {
            batch.changes.iter().any(|change| touches(change, service))
        }
    }
}

fn touches(change: &Change, id: ServiceId) -> bool {
    match change.newest() {
        Some(Entity::Service(service)) => service.id == id,
        Some(Entity::Task(task)) => task.service_id == id,
        Some(
            Entity::Cluster(_)
            | Entity::Node(_)
            | Entity::Volume(_)
            | Entity::Network(_)
            | Entity::Lease(_)
            | Entity::Attachment(_),
        )
        | None => false,
    }
}
