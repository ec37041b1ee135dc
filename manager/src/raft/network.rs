//! Raft's messages to other members, over [`Connector`].
//!
//! Entries travel on a stream that stays open: requests are sent without waiting for the answers to the ones before,
//! and answers come back in order. Every wait has a deadline, so that a member that was cut off stalls nobody.

use super::options::Timing;
use super::state_machine::{Files, SnapshotFile};
use super::types::{LogId, RaftPeer, TypeConfig, Vote};
use super::wire::{self, AppendReply, Hello, SnapshotMessage, SnapshotReply, WireVote};
use futures_util::stream::{self, Stream, StreamExt as _};
use openraft::OptionalSend;
use openraft::base::{BoxFuture, BoxStream};
use openraft::error::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{Backoff, RPCOption, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendError,
    StreamAppendResult, TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::type_config::alias::SnapshotOf;
use serde::{Serialize, de::DeserializeOwned};
use shoal_model::RaftNodeId;
use shoal_model::rpc::Method;
use shoal_transport::{Connector, Expect, RpcReceiver, RpcSender};
use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

type RpcFailure = RPCError<TypeConfig>;

/// Append requests that may be under way to one member.
const PIPELINE_DEPTH: usize = 32;
/// Wait before a member that did not answer is tried again.
const RETRY_AFTER: Duration = Duration::from_millis(50);
/// Time for sending and installing one snapshot.
const SNAPSHOT_DEADLINE: Duration = Duration::from_secs(300);
/// Time without progress in sending a snapshot.
const SNAPSHOT_STALL: Duration = Duration::from_secs(30);

/// Where members are now, which may be newer than what a client was made with.
#[derive(Debug, Clone, Default)]
pub(crate) struct AddressBook(Arc<Mutex<BTreeMap<RaftNodeId, RaftPeer>>>);

impl AddressBook {
    /// Takes over the members of the newest membership.
    pub(crate) fn update(&self, members: BTreeMap<RaftNodeId, RaftPeer>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = members;
    }

    /// Where a member is.
    pub(crate) fn get(&self, id: RaftNodeId) -> Option<RaftPeer> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&id)
            .cloned()
    }
}

/// Makes a client per member.
#[derive(Clone)]
pub(crate) struct Network {
    pub(crate) own_id: RaftNodeId,
    pub(crate) connector: Arc<dyn Connector>,
    pub(crate) book: AddressBook,
    pub(crate) timing: Timing,
    pub(crate) files: Files,
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = PeerClient;

    async fn new_client(&mut self, target: RaftNodeId, node: &RaftPeer) -> PeerClient {
        PeerClient {
            network: self.clone(),
            target,
            made_with: node.clone(),
            idle: None,
        }
    }
}

/// A client of one member.
pub(crate) struct PeerClient {
    network: Network,
    target: RaftNodeId,
    made_with: RaftPeer,
    /// An append stream without anything under way.
    idle: Option<(RpcSender, RpcReceiver)>,
}

fn unreachable(reason: impl ToString) -> RpcFailure {
    RPCError::Unreachable(Unreachable::from_string(reason))
}

fn timed_out(what: &str, limit: Duration) -> RpcFailure {
    unreachable(format!(
        "no answer to {what} within {} ms",
        limit.as_millis()
    ))
}

impl PeerClient {
    async fn open(&self, method: Method) -> Result<(RpcSender, RpcReceiver), RpcFailure> {
        let peer = self.network.book.get(self.target);
        let peer = peer.as_ref().unwrap_or(&self.made_with);
        let stream = self
            .network
            .connector
            .open(peer.addr, Expect::Node(peer.node_id), method)
            .await
            .map_err(|err| unreachable(super::error::chain(&err)))?;
        let (mut sender, receiver) = stream.split();
        let hello = Hello {
            from: self.network.own_id,
            to: self.target,
        };
        sender.send(&hello).await.map_err(unreachable)?;
        Ok((sender, receiver))
    }

    async fn unary<Req, Resp>(
        &self,
        method: Method,
        request: &Req,
        limit: Duration,
    ) -> Result<Resp, RpcFailure>
    where
        Req: Serialize + Sync,
        Resp: DeserializeOwned,
    {
        let exchange = async {
            let (mut sender, mut receiver) = self.open(method).await?;
            sender.send(request).await.map_err(unreachable)?;
            let answer = receiver.recv().await.map_err(unreachable)?;
            answer.ok_or_else(|| unreachable("the member closed the stream without an answer"))
        };
        timeout(limit, exchange)
            .await
            .map_err(|_| timed_out("a call", limit))?
    }

    async fn ask_for_vote(
        &self,
        method: Method,
        rpc: VoteRequest<TypeConfig>,
        limit: Duration,
    ) -> Result<VoteResponse<TypeConfig>, RpcFailure> {
        let request = wire::VoteRequest {
            vote: (&rpc.vote).into(),
            last: wire::log_id_to_wire(rpc.last_log_id.as_ref()),
            transfer: rpc.leadership_transfer,
        };
        let reply: wire::VoteReply = self.unary(method, &request, limit).await?;
        Ok(VoteResponse {
            vote: reply.vote.into(),
            vote_granted: reply.granted,
            last_log_id: wire::log_id_from_wire(reply.last),
        })
    }

    async fn send_snapshot(
        &self,
        vote: Vote,
        snapshot: SnapshotOf<TypeConfig, SnapshotFile>,
    ) -> Result<Vote, RpcFailure> {
        let (mut sender, mut receiver) = self.open(Method::RaftSnapshot).await?;
        let files = self.network.files.clone();
        let path = snapshot.snapshot.path;
        // The file may have been replaced by a newer snapshot, so that its own meta data counts.
        let content = files
            .read_elsewhere(path)
            .await
            .and_then(|content| {
                content.ok_or_else(|| std::io::Error::other("there is no snapshot"))
            })
            .map_err(|err| RPCError::Network(NetworkError::from_string(err)))?;
        let meta = (&content.meta).into();
        let head = SnapshotMessage::Head {
            vote: WireVote::from(&vote),
            meta,
        };
        let pages = content.pages.len() as u64;
        let messages = std::iter::once(head)
            .chain(content.pages.into_iter().map(SnapshotMessage::Page))
            .chain(std::iter::once(SnapshotMessage::End { pages }));
        for message in messages {
            timeout(SNAPSHOT_STALL, sender.send(&message))
                .await
                .map_err(|_| timed_out("a part of a snapshot", SNAPSHOT_STALL))?
                .map_err(unreachable)?;
        }
        let reply: SnapshotReply =
            receiver.recv().await.map_err(unreachable)?.ok_or_else(|| {
                unreachable("the member closed the stream before the snapshot was installed")
            })?;
        reply.map(Vote::from).map_err(unreachable)
    }
}

impl RaftNetworkV2<TypeConfig> for PeerClient {
    type SnapshotData = SnapshotFile;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RpcFailure> {
        let input = Box::pin(stream::once(async { rpc }));
        let mut answers = self.stream_append(input, option).await?;
        let answer = answers
            .next()
            .await
            .ok_or_else(|| unreachable("the member closed the stream without an answer"))?;
        answer.map(AppendEntriesResponse::from)
    }

    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        _option: RPCOption,
    ) -> BoxFuture<
        's,
        Result<BoxStream<'s, Result<StreamAppendResult<TypeConfig>, RpcFailure>>, RpcFailure>,
    >
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + OptionalSend + Unpin + 'static,
    {
        Box::pin(async move {
            let session = AppendSession {
                limit: self.network.timing.append_deadline(),
                stream: self.idle.take(),
                client: self,
                input: Some(input),
                under_way: VecDeque::new(),
            };
            let answers: BoxStream<'s, _> = Box::pin(stream::unfold(Some(session), next_answer));
            Ok(answers)
        })
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RpcFailure> {
        self.ask_for_vote(Method::RaftVote, rpc, option.hard_ttl())
            .await
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RpcFailure> {
        self.ask_for_vote(Method::RaftPreVote, rpc, option.hard_ttl())
            .await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: SnapshotOf<TypeConfig, SnapshotFile>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let send = timeout(SNAPSHOT_DEADLINE, self.send_snapshot(vote, snapshot));
        tokio::select! {
            closed = cancel => Err(StreamingError::Closed(closed)),
            sent = send => {
                let sent = sent.map_err(|_| timed_out("a snapshot", SNAPSHOT_DEADLINE))?;
                Ok(SnapshotResponse::new(sent?))
            }
        }
    }

    async fn transfer_leader(
        &mut self,
        req: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RpcFailure> {
        let request = wire::TransferRequest {
            from_leader: req.from_leader().into(),
            to: *req.to_node_id(),
            last: wire::log_id_to_wire(req.last_log_id()),
        };
        let reply: wire::TransferReply = self
            .unary(Method::RaftTransferLeader, &request, option.hard_ttl())
            .await?;
        reply.map_err(unreachable)?;
        Ok(Ok(()))
    }

    fn backoff(&self) -> Option<Backoff> {
        Some(Backoff::new(std::iter::repeat(RETRY_AFTER)))
    }
}

/// Requests under way on one append stream.
struct AppendSession<'s, S> {
    client: &'s mut PeerClient,
    /// `None` once all requests were taken.
    input: Option<S>,
    /// Opened with the first request, never before: the library waits out its back-off inside `input`, so that a member
    /// that refuses streams would be asked again and again without a pause.
    stream: Option<(RpcSender, RpcReceiver)>,
    /// When each request was sent, oldest first.
    under_way: VecDeque<Instant>,
    limit: Duration,
}

type Answer<'s, S> = Option<(
    Result<StreamAppendResult<TypeConfig>, RpcFailure>,
    Option<AppendSession<'s, S>>,
)>;

/// Sends what there is to send and waits for the next answer. After a failure, a conflict or a higher vote the stream
/// is dropped, and with it the answers to whatever is still under way.
async fn next_answer<S>(session: Option<AppendSession<'_, S>>) -> Answer<'_, S>
where
    S: Stream<Item = AppendEntriesRequest<TypeConfig>> + OptionalSend + Unpin + 'static,
{
    let mut session = session?;
    match session.advance().await {
        Ok(Some(Ok(matching))) => Some((Ok(Ok(matching)), Some(session))),
        Ok(Some(refused)) => Some((Ok(refused), None)),
        Ok(None) => {
            session.client.idle = session.stream;
            None
        }
        Err(failure) => Some((Err(failure), None)),
    }
}

impl<S> AppendSession<'_, S>
where
    S: Stream<Item = AppendEntriesRequest<TypeConfig>> + OptionalSend + Unpin + 'static,
{
    /// The next answer; `None` when everything that was sent is answered and nothing is left to send.
    async fn advance(&mut self) -> Result<Option<StreamAppendResult<TypeConfig>>, RpcFailure> {
        loop {
            let waiting = self.under_way.front().map(|sent| *sent + self.limit);
            let may_send = self.under_way.len() < PIPELINE_DEPTH;
            match (&mut self.input, waiting) {
                (None, None) => return Ok(None),
                (Some(input), None) => match input.next().await {
                    Some(request) => self.send(request).await?,
                    None => self.input = None,
                },
                (Some(input), Some(deadline)) if may_send => {
                    tokio::select! {
                        biased;
                        reply = receive(&mut self.stream) => return self.answered(reply).map(Some),
                        request = input.next() => match request {
                            Some(request) => self.send(request).await?,
                            None => self.input = None,
                        },
                        () = sleep_until(deadline) => return Err(timed_out("entries", self.limit)),
                    }
                }
                (_, Some(deadline)) => {
                    let reply = timeout_at(deadline, receive(&mut self.stream))
                        .await
                        .map_err(|_| timed_out("entries", self.limit))?;
                    return self.answered(reply).map(Some);
                }
            }
        }
    }

    async fn send(&mut self, request: AppendEntriesRequest<TypeConfig>) -> Result<(), RpcFailure> {
        let request = wire::AppendRequest {
            vote: (&request.vote).into(),
            prev: wire::log_id_to_wire(request.prev_log_id.as_ref()),
            entries: request.entries.iter().map(Into::into).collect(),
            committed: wire::log_id_to_wire(request.leader_commit.as_ref()),
        };
        let (sender, _) = match &mut self.stream {
            Some(stream) => stream,
            stream @ None => {
                let opened = timeout(self.limit, self.client.open(Method::RaftAppend))
                    .await
                    .map_err(|_| timed_out("opening a stream", self.limit))??;
                stream.insert(opened)
            }
        };
        timeout(self.limit, sender.send(&request))
            .await
            .map_err(|_| timed_out("sending entries", self.limit))?
            .map_err(unreachable)?;
        self.under_way.push_back(Instant::now());
        Ok(())
    }

    fn answered(
        &mut self,
        reply: Result<AppendReply, RpcFailure>,
    ) -> Result<StreamAppendResult<TypeConfig>, RpcFailure> {
        self.under_way.pop_front();
        match reply? {
            AppendReply::Matching(id) => Ok(Ok(wire::log_id_from_wire(id))),
            AppendReply::Conflict(id) => Ok(Err(StreamAppendError::Conflict(LogId::from(id)))),
            AppendReply::HigherVote(vote) => Ok(Err(StreamAppendError::HigherVote(vote.into()))),
            AppendReply::Stopped(reason) => {
                Err(unreachable(format!("the member has stopped: {reason}")))
            }
        }
    }
}

async fn receive(stream: &mut Option<(RpcSender, RpcReceiver)>) -> Result<AppendReply, RpcFailure> {
    let closed = || unreachable("the member closed the stream");
    let (_, receiver) = stream.as_mut().ok_or_else(closed)?;
    let reply = receiver.recv().await.map_err(unreachable)?;
    reply.ok_or_else(closed)
}
