//! Answers: one frame, or a list in pages.

use serde::Serialize;
use shoal_model::codec;
use shoal_model::control::{ControlResponse, PAGE_ITEMS_MAX};
use shoal_model::rpc::{ErrorCode, RpcError};
use shoal_transport::{RpcStream, StreamError};

/// A page that holds this many encoded bytes is closed, so that no frame passes the transport's bound.
const PAGE_BYTES_TARGET: usize = 2 << 20;

/// The frames of an answer, in order.
#[derive(Debug)]
pub enum Answer {
    /// Made here: what is still to be sent, last first.
    Local(Vec<ControlResponse>),
    /// Passed through from the leader: the frame that has come, then the rest.
    Remote {
        /// The frame that is sent next.
        next: Option<ControlResponse>,
        /// Where further ones come from.
        stream: RpcStream,
    },
}

impl Answer {
    pub(super) fn one(response: ControlResponse) -> Self {
        Self::Local(vec![response])
    }

    /// `items` in pages, each wrapped by `page`, and the end of the list.
    pub(super) fn pages<T: Serialize>(
        items: impl Iterator<Item = T>,
        page: impl Fn(Vec<T>) -> ControlResponse,
    ) -> Self {
        let mut frames = Vec::new();
        let mut open = Vec::new();
        let mut bytes = 0;
        for item in items {
            // An item that can't be encoded fails again, and is told, when its page is sent.
            bytes += codec::encode(&item).map_or(0, |encoded| encoded.len());
            open.push(item);
            if open.len() == PAGE_ITEMS_MAX || bytes >= PAGE_BYTES_TARGET {
                frames.push(page(std::mem::take(&mut open)));
                bytes = 0;
            }
        }
        if !open.is_empty() {
            frames.push(page(open));
        }
        frames.push(ControlResponse::End);
        frames.reverse();
        Self::Local(frames)
    }

    /// The next frame; `None` at the end.
    ///
    /// # Errors
    /// The connection to the leader was lost in the middle of a list.
    pub async fn next(&mut self) -> Option<Result<ControlResponse, RpcError>> {
        match self {
            Self::Local(frames) => frames.pop().map(Ok),
            Self::Remote { next, stream } => {
                if let Some(frame) = next.take() {
                    return Some(Ok(frame));
                }
                let received: Result<Option<Result<_, RpcError>>, StreamError> =
                    stream.recv().await;
                match received {
                    Ok(frame) => frame,
                    Err(err) => Some(Err(super::rpc_error(ErrorCode::Unavailable, &err))),
                }
            }
        }
    }

    /// All frames at once.
    ///
    /// # Errors
    /// As [`Self::next`].
    pub async fn collect(mut self) -> Result<Vec<ControlResponse>, RpcError> {
        let mut frames = Vec::new();
        while let Some(frame) = self.next().await {
            frames.push(frame?);
        }
        Ok(frames)
    }
}
