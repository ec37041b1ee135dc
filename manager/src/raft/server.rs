//! Raft's messages from other members.

use super::Raft;
use super::snapshot::SnapshotWriter;
use super::state_machine::{Files, SnapshotFile};
use super::types::{TypeConfig, Vote};
use super::wire::{
    self, AppendReply, AppendRequest, Hello, InvalidMembership, SnapshotMessage, SnapshotReply,
    TransferReply, TransferRequest, VoteReply, WireEntry,
};
use futures_util::stream::{self, StreamExt as _};
use openraft::raft::{
    AppendEntriesRequest, StreamAppendError, StreamAppendResult, TransferLeaderRequest, VoteRequest,
};
use openraft::type_config::alias::SnapshotOf;
use shoal_model::RaftNodeId;
use shoal_model::rpc::Method;
use shoal_transport::{RpcReceiver, RpcSender, RpcStream, StreamError};
use std::io;
use std::path::{Path, PathBuf};

/// Why a stream of another member ended early.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServeError {
    /// The stream failed.
    #[error("the stream of a Raft member failed")]
    Stream(#[from] StreamError),
    /// Somebody means a member that this manager is not (any more).
    #[error("the message is for Raft member {0}, and this is another one")]
    WrongMember(RaftNodeId),
    /// The messages of a snapshot came in the wrong order.
    #[error("a snapshot came in the wrong order")]
    SnapshotOrder,
    /// A received snapshot can't be stored.
    #[error("failed to store a received snapshot")]
    Store(#[source] io::Error),
    /// A received membership makes no sense.
    #[error(transparent)]
    Membership(#[from] InvalidMembership),
    /// Raft stopped.
    #[error("Raft has stopped: {0}")]
    Stopped(String),
    /// Not a method of Raft.
    #[error("method {0:?} is not one of Raft's")]
    Method(Method),
}

/// What a stream is served with.
#[derive(Clone)]
pub(crate) struct Server {
    pub(crate) own_id: RaftNodeId,
    pub(crate) raft: Raft,
    pub(crate) files: Files,
}

impl Server {
    /// Serves one stream to its end.
    pub(crate) async fn serve(&self, method: Method, stream: RpcStream) -> Result<(), ServeError> {
        let (mut sender, mut receiver) = stream.split();
        let Some(hello) = receiver.recv::<Hello>().await? else {
            return Ok(());
        };
        if hello.to != self.own_id {
            return Err(ServeError::WrongMember(hello.to));
        }
        match method {
            Method::RaftAppend => self.append(sender, receiver).await,
            Method::RaftVote | Method::RaftPreVote => {
                self.vote(method, &mut sender, &mut receiver).await
            }
            Method::RaftTransferLeader => self.transfer(&mut sender, &mut receiver).await,
            Method::RaftSnapshot => self.snapshot(&mut sender, &mut receiver).await,
            other => Err(ServeError::Method(other)),
        }
    }

    async fn append(&self, mut sender: RpcSender, receiver: RpcReceiver) -> Result<(), ServeError> {
        let requests = stream::unfold(receiver, |mut receiver| async move {
            match receiver.recv::<AppendRequest>().await {
                Ok(Some(request)) => match append_request(request) {
                    Ok(request) => Some((request, receiver)),
                    Err(err) => {
                        tracing::warn!(%err, "a Raft member sent entries that can't be read");
                        None
                    }
                },
                Ok(None) => None,
                Err(err) => {
                    tracing::debug!(%err, "an append stream ended");
                    None
                }
            }
        });
        let answers = self.raft.stream_append(requests);
        let mut answers = std::pin::pin!(answers);
        while let Some(answer) = answers.next().await {
            match answer {
                Ok(answer) => sender.send(&append_reply(answer)).await?,
                Err(fatal) => {
                    let reason = fatal.to_string();
                    sender.send(&AppendReply::Stopped(reason.clone())).await?;
                    return Err(ServeError::Stopped(reason));
                }
            }
        }
        Ok(())
    }

    async fn vote(
        &self,
        method: Method,
        sender: &mut RpcSender,
        receiver: &mut RpcReceiver,
    ) -> Result<(), ServeError> {
        let Some(request) = receiver.recv::<wire::VoteRequest>().await? else {
            return Ok(());
        };
        let request = VoteRequest {
            vote: request.vote.into(),
            last_log_id: wire::log_id_from_wire(request.last),
            leadership_transfer: request.transfer,
        };
        let answer = if method == Method::RaftPreVote {
            self.raft.pre_vote(request).await
        } else {
            self.raft.vote(request).await
        };
        let answer = answer.map_err(|err| ServeError::Stopped(err.to_string()))?;
        let reply = VoteReply {
            vote: (&answer.vote).into(),
            granted: answer.vote_granted,
            last: wire::log_id_to_wire(answer.last_log_id.as_ref()),
        };
        sender.send(&reply).await?;
        Ok(sender.finish().await?)
    }

    async fn transfer(
        &self,
        sender: &mut RpcSender,
        receiver: &mut RpcReceiver,
    ) -> Result<(), ServeError> {
        let Some(request) = receiver.recv::<TransferRequest>().await? else {
            return Ok(());
        };
        let request = TransferLeaderRequest::new(
            request.from_leader.into(),
            request.to,
            wire::log_id_from_wire(request.last),
        );
        let answer = self
            .raft
            .handle_transfer_leader(request)
            .await
            .map_err(|err| ServeError::Stopped(err.to_string()))?;
        let reply: TransferReply = answer.map_err(|err| err.to_string());
        sender.send(&reply).await?;
        Ok(sender.finish().await?)
    }

    async fn snapshot(
        &self,
        sender: &mut RpcSender,
        receiver: &mut RpcReceiver,
    ) -> Result<(), ServeError> {
        let Some(SnapshotMessage::Head { vote, meta }) = receiver.recv().await? else {
            return Err(ServeError::SnapshotOrder);
        };
        let meta = meta.try_into()?;
        let writer = SnapshotWriter::create(
            &*self.files.disk,
            &self.files.directory,
            &self.files.key,
            &meta,
        )
        .map_err(ServeError::Store)?;
        let unfinished = writer.path().to_owned();
        let path = match receive_pages(writer, receiver).await {
            Ok(path) => path,
            Err(err) => {
                self.remove(&unfinished);
                return Err(err);
            }
        };
        let snapshot = SnapshotOf::<TypeConfig, SnapshotFile> {
            meta,
            snapshot: SnapshotFile { path: path.clone() },
        };
        let answer = self
            .raft
            .install_full_snapshot(Vote::from(vote), snapshot)
            .await;
        // A snapshot that was not needed any more was not adopted, and its file is still there.
        self.remove(&path);
        let reply: SnapshotReply = answer
            .map(|answer| (&answer.vote).into())
            .map_err(|err| err.to_string());
        sender.send(&reply).await?;
        Ok(sender.finish().await?)
    }

    fn remove(&self, path: &Path) {
        if let Err(err) = self.files.disk.remove(path)
            && err.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %path.display(), %err, "failed to remove a received snapshot");
        }
    }
}

async fn receive_pages(
    mut writer: SnapshotWriter,
    receiver: &mut RpcReceiver,
) -> Result<PathBuf, ServeError> {
    let mut received = 0;
    loop {
        match receiver.recv().await? {
            Some(SnapshotMessage::Page(page)) => {
                received += 1;
                writer.page(&page).map_err(ServeError::Store)?;
            }
            Some(SnapshotMessage::End { pages }) if pages == received => {
                return writer.finish().map_err(ServeError::Store);
            }
            Some(SnapshotMessage::Head { .. } | SnapshotMessage::End { .. }) | None => {
                return Err(ServeError::SnapshotOrder);
            }
        }
    }
}

fn append_request(
    request: AppendRequest,
) -> Result<AppendEntriesRequest<TypeConfig>, InvalidMembership> {
    let entries: Result<Vec<_>, _> = request
        .entries
        .into_iter()
        .map(WireEntry::into_entry)
        .collect();
    Ok(AppendEntriesRequest {
        vote: request.vote.into(),
        prev_log_id: wire::log_id_from_wire(request.prev),
        entries: entries?,
        leader_commit: wire::log_id_from_wire(request.committed),
    })
}

fn append_reply(answer: StreamAppendResult<TypeConfig>) -> AppendReply {
    match answer {
        Ok(matching) => AppendReply::Matching(wire::log_id_to_wire(matching.as_ref())),
        Err(StreamAppendError::Conflict(id)) => AppendReply::Conflict((&id).into()),
        Err(StreamAppendError::HigherVote(vote)) => AppendReply::HigherVote((&vote).into()),
    }
}
