//! The handle of one Raft member: start, propose, read, shut down.

use super::error::{StartError, chain};
use super::intake::{Intake, Waiting};
use super::journal::Journal;
use super::leadership::{self, Watcher};
use super::log_store::LogStore;
use super::network::{AddressBook, Network};
use super::options::{COMMAND_BYTES_MAX, RaftOptions, Timing};
use super::reads::ReadRounds;
use super::runtime::Executor;
use super::server::Server;
use super::state_machine::{Applier, Files};
use super::stop::StopCause;
use super::types::{Proposal, RaftPeer, TypeConfig};
use super::writer::WriterHandle;
use super::{LogError, Raft};
use crate::consensus::{Leadership, ProposeError, WallClock};
use crate::store::Store;
use bytes::Bytes;
use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::error::{
    ClientWriteError, ForwardReason, ForwardToLeader, LinearizableReadError, RaftError,
};
use openraft::raft::ClientWriteResponse;
use openraft::{Instant as _, RaftMetrics, ReadPolicy, ServerState};
use shoal_model::codec;
use shoal_model::command::{ACTIONS_PER_COMMAND_MAX, Command, FEATURE_LEVEL, Outcome, StoreAction};
use shoal_model::rpc::Method;
use shoal_model::session::ManagerPeer;
use shoal_model::{NodeId, RaftNodeId, Version};
use shoal_transport::{Peer, RpcStream};
use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{Mutex, oneshot, watch};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

/// Wait before a leader without a lease is asked again.
const LEASE_RETRY: Duration = Duration::from_millis(5);
/// How often a waiting proposal looks whether there is still a majority.
const QUORUM_LOOK: Duration = Duration::from_millis(200);
/// Longest wait for another member to take over before a shutdown goes on without.
const HAND_OVER_MAX: Duration = Duration::from_secs(1);

type WriteResult =
    Result<ClientWriteResponse<TypeConfig>, RaftError<TypeConfig, ClientWriteError<TypeConfig>>>;

/// One member of Raft. Clones are the same member.
#[derive(Clone)]
pub struct RaftHandle {
    pub(crate) inner: Arc<Inner>,
}

/// Carries one group of proposals to Raft. One that never ran, since Raft's thread has ended, gives up those who wait for
/// it.
struct Carrier(Option<RaftHandle>);

impl Carrier {
    async fn run(mut self) {
        if let Some(handle) = self.0.take() {
            handle.carry().await;
        }
    }
}

impl Drop for Carrier {
    fn drop(&mut self) {
        if let Some(handle) = &self.0 {
            handle.inner.intake.abandon();
        }
    }
}

pub(crate) struct Inner {
    pub(crate) raft: Raft,
    pub(crate) own_id: RaftNodeId,
    pub(crate) node_id: NodeId,
    pub(crate) advertise: SocketAddr,
    pub(crate) timing: Timing,
    store: Store,
    clock: Arc<dyn WallClock>,
    executor: Executor,
    server: Server,
    stop: StopCause,
    leadership: watch::Receiver<Leadership>,
    snapshot_interval: Arc<AtomicU64>,
    cancel: CancellationToken,
    intake: Intake,
    reads: ReadRounds,
    writer_ended: Mutex<Option<oneshot::Receiver<()>>>,
    /// One change of members at a time.
    pub(crate) changing_members: Mutex<()>,
}

impl RaftHandle {
    /// Reads what is on disk and takes part in Raft from then on. A member without any data waits for
    /// [`Self::bootstrap`] or for a leader that adds it.
    ///
    /// # Errors
    /// See [`StartError`]; a damaged log or snapshot is never repaired by guess.
    pub async fn start(options: RaftOptions) -> Result<Self, StartError> {
        let config = options.timing.config()?;
        let executor = Executor::new(options.placement, options.seed);
        let stop = StopCause::default();
        let files = Files::new(
            Arc::clone(&options.disk),
            options.data_dir.clone(),
            options.key.clone(),
            executor.clone(),
        );
        let (journal, image, applier) =
            open_files(&executor, &files, options.store.clone(), stop.clone()).await?;
        let sync_time = options.disk.simulated_sync_time();
        let (writer, ended) = WriterHandle::start(journal, &executor, sync_time, stop.clone())?;
        let log = LogStore::new(image, writer);
        let book = AddressBook::default();
        let network = Network {
            own_id: options.raft_id,
            connector: options.connector,
            book: book.clone(),
            timing: options.timing,
            files: files.clone(),
        };
        let started = start_library(&executor, config, network, log.clone(), applier).await;
        let raft = started.map_err(|err| StartError::Raft {
            raft_id: options.raft_id,
            reason: stop.get().unwrap_or(err),
        })?;
        let (sender, leadership) = watch::channel(Leadership::Follower { leader: None });
        let snapshot_interval = Arc::new(options.snapshot_interval_entries.into());
        let cancel = CancellationToken::new();
        let watcher = Watcher {
            raft: raft.clone(),
            log,
            node_id: options.node_id,
            timing: options.timing,
            book,
            stop: stop.clone(),
            snapshot_interval: Arc::clone(&snapshot_interval),
            leadership: sender,
            cancel: cancel.clone(),
        };
        drop(executor.spawn(watcher.run()));
        let server = Server {
            own_id: options.raft_id,
            raft: raft.clone(),
            files,
        };
        let inner = Inner {
            raft,
            own_id: options.raft_id,
            node_id: options.node_id,
            advertise: options.advertise,
            timing: options.timing,
            store: options.store,
            clock: options.clock,
            executor,
            server,
            stop,
            leadership,
            snapshot_interval,
            cancel,
            intake: Intake::default(),
            reads: ReadRounds::default(),
            writer_ended: Mutex::new(Some(ended)),
            changing_members: Mutex::new(()),
        };
        let inner = Arc::new(inner);
        Ok(Self { inner })
    }

    /// Whether this member has a log: it was bootstrapped, or a leader added it.
    ///
    /// # Errors
    /// [`ProposeError::Shutdown`].
    pub async fn is_initialized(&self) -> Result<bool, ProposeError> {
        self.inner
            .raft
            .is_initialized()
            .await
            .map_err(|_| self.shut_down())
    }

    /// Founds a cluster of this one member and commits the first entries.
    ///
    /// # Errors
    /// [`ProposeError::Membership`] when there is a log already; the rest as `propose`.
    pub async fn bootstrap(&self, first: Vec<Vec<StoreAction>>) -> Result<(), ProposeError> {
        let inner = &self.inner;
        let own = RaftPeer {
            node_id: inner.node_id,
            addr: inner.advertise,
        };
        let raft = inner.raft.clone();
        let members = BTreeMap::from([(inner.own_id, own)]);
        raft.initialize(members).await.map_err(|err| match err {
            RaftError::APIError(err) => ProposeError::Membership {
                reason: format!("this manager can't found a cluster: {err}"),
            },
            RaftError::Fatal(_) => self.shut_down(),
        })?;
        let mut leadership = inner.leadership.clone();
        let founded = leadership
            .wait_for(|now| !matches!(now, Leadership::Follower { .. }))
            .await
            .is_ok_and(|now| now.is_leader());
        if !founded {
            return Err(self.shut_down());
        }
        for actions in first {
            self.propose_actions(actions).await?;
        }
        Ok(())
    }

    /// Serves one stream of another member: the methods whose names start with `Raft`, but for `RaftJoin`, which is a
    /// request to the role manager.
    pub async fn handle_rpc(&self, peer: Peer, method: Method, stream: RpcStream) {
        let server = self.inner.server.clone();
        // A caller that gives up this future gives up the stream as well.
        let served = AbortOnDropHandle::new(
            self.inner
                .executor
                .spawn(async move { server.serve(method, stream).await }),
        );
        match served.await {
            Ok(Ok(())) => {}
            Ok(Err(err)) => {
                tracing::debug!(addr = %peer.addr, ?method, err = chain(&err), "a Raft stream ended");
            }
            Err(err) => tracing::debug!(%err, "a Raft stream was cut by the end of Raft"),
        }
    }

    /// How many entries lie between two snapshots from now on.
    pub fn set_snapshot_interval(&self, entries: u64) {
        self.inner
            .snapshot_interval
            .store(entries.max(1), Ordering::Relaxed);
    }

    /// Takes a snapshot now.
    ///
    /// # Errors
    /// [`ProposeError::Shutdown`].
    pub async fn take_snapshot(&self) -> Result<(), ProposeError> {
        self.inner
            .raft
            .trigger()
            .snapshot()
            .await
            .map_err(|_| self.shut_down())
    }

    /// Hands leadership over if this member leads, leaves Raft, and closes the log. Returns once the last byte is on
    /// disk.
    pub async fn shutdown(&self) {
        let inner = &self.inner;
        if self.metrics().state == ServerState::Leader
            && let Err(err) = timeout(HAND_OVER_MAX, self.hand_over(None))
                .await
                .unwrap_or(Ok(()))
        {
            tracing::debug!(%err, "nobody takes over leadership");
        }
        inner.stop.set("it was shut down".to_owned());
        inner.cancel.cancel();
        if let Err(err) = inner.raft.shutdown().await {
            tracing::warn!(%err, "Raft ended badly");
        }
        // Taken, so that a second call does not wait for what has been told already.
        let ended = inner.writer_ended.lock().await.take();
        if let Some(ended) = ended
            && timeout(HAND_OVER_MAX, ended).await.is_err()
        {
            tracing::debug!("the log writer still has work from streams that are being closed");
        }
    }

    pub(crate) fn metrics(&self) -> RaftMetrics<TypeConfig> {
        self.inner.raft.metrics().borrow_watched().clone()
    }

    pub(crate) fn leadership_watch(&self) -> watch::Receiver<Leadership> {
        self.inner.leadership.clone()
    }

    pub(crate) fn shut_down(&self) -> ProposeError {
        let reason = self
            .inner
            .stop
            .get()
            .unwrap_or_else(|| "Raft has ended".to_owned());
        ProposeError::Shutdown { reason }
    }

    pub(crate) async fn propose_actions(
        &self,
        actions: Vec<StoreAction>,
    ) -> Result<Version, ProposeError> {
        if self.inner.stop.get().is_some() {
            return Err(self.shut_down());
        }
        let (level, command) = self.encode(actions)?;
        let (answer, outcome) = oneshot::channel();
        let waiting = Waiting {
            level,
            command,
            answer,
        };
        if self.inner.intake.add(waiting) {
            self.send_carrier();
        }
        outcome
            .await
            .unwrap_or_else(|_| Err(self.unknown_after_stop()))
    }

    fn send_carrier(&self) {
        let carrier = Carrier(Some(self.clone()));
        drop(self.inner.executor.spawn(carrier.run()));
    }

    /// Takes proposals that wait and makes one entry of them; each proposer gets its own outcome.
    async fn carry(&self) {
        let (batch, more) = self.inner.intake.take();
        if more {
            self.send_carrier();
        }
        let level = batch.iter().map(|waiting| waiting.level).max().unwrap_or(1);
        let (commands, answers): (Vec<_>, Vec<_>) = batch
            .into_iter()
            .map(|waiting| (waiting.command, waiting.answer))
            .unzip();
        if commands.is_empty() {
            return;
        }
        let proposal = Proposal { level, commands };
        let written = self
            .write(|| self.inner.raft.client_write(proposal.clone()))
            .await;
        let mut outcomes = written.map(|response| response.data.0.into_iter());
        for answer in answers {
            let outcome = match &mut outcomes {
                Ok(outcomes) => match outcomes.next() {
                    Some(Outcome::Applied { version }) => Ok(version),
                    Some(Outcome::Rejected(rejection)) => Err(rejection.into()),
                    None => Err(self.unknown_after_stop()),
                },
                Err(err) => Err(err.clone()),
            };
            // Who does not wait any more does not need the answer.
            drop(answer.send(outcome));
        }
    }

    fn encode(&self, actions: Vec<StoreAction>) -> Result<(u32, Bytes), ProposeError> {
        if actions.len() > ACTIONS_PER_COMMAND_MAX {
            return Err(ProposeError::TooManyActions {
                actions: actions.len(),
                actions_max: ACTIONS_PER_COMMAND_MAX,
            });
        }
        let agreed = self.inner.store.view().feature_level();
        let mut level = 1;
        for action in &actions {
            let needed = action.feature_level();
            if needed > agreed.max(1) {
                return Err(ProposeError::FeatureLevel { needed, agreed });
            }
            level = level.max(needed);
            if let StoreAction::RaiseFeatureLevel(raised) = action {
                if *raised > FEATURE_LEVEL {
                    return Err(ProposeError::FeatureLevel {
                        needed: *raised,
                        agreed: FEATURE_LEVEL,
                    });
                }
                // Whoever can't read what comes next must stop here, not later.
                level = level.max(*raised);
            }
        }
        let command = Command {
            time: self.inner.clock.now(),
            actions,
        };
        let too_large = |bytes| ProposeError::TooLarge {
            bytes,
            bytes_max: COMMAND_BYTES_MAX,
        };
        let bytes = codec::encode(&command).map_err(|_| too_large(codec::VALUE_BYTES_MAX))?;
        if bytes.len() > COMMAND_BYTES_MAX {
            return Err(too_large(bytes.len()));
        }
        Ok((level, bytes.into()))
    }

    /// Sends a write, again as long as a new leader waits for its first majority, and waits for its outcome.
    pub(crate) async fn write<F>(
        &self,
        send: impl Fn() -> F,
    ) -> Result<ClientWriteResponse<TypeConfig>, ProposeError>
    where
        F: Future<Output = WriteResult>,
    {
        if self.inner.stop.get().is_some() {
            return Err(self.shut_down());
        }
        let started = Instant::now();
        loop {
            let answer = self.unless_quorum_is_lost(send()).await?;
            let forward = match answer {
                Ok(response) => return Ok(response),
                Err(RaftError::APIError(ClientWriteError::ForwardToLeader(forward))) => forward,
                Err(RaftError::APIError(err)) => return Err(self.explain(err)),
                Err(RaftError::Fatal(_)) => return Err(self.unknown_after_stop()),
            };
            let waits_for_lease = forward.reason == ForwardReason::LeaseExpired
                && started.elapsed() < self.inner.timing.election_max;
            if !waits_for_lease {
                return Err(self.forwarded(&forward));
            }
            sleep(LEASE_RETRY).await;
        }
    }

    /// Waits for an answer, but not for longer than there is hope for one.
    async fn unless_quorum_is_lost<T>(
        &self,
        answer: impl Future<Output = T>,
    ) -> Result<T, ProposeError> {
        let mut answer = std::pin::pin!(answer);
        let sent = Instant::now();
        loop {
            if let Ok(answer) = timeout(QUORUM_LOOK, answer.as_mut()).await {
                return Ok(answer);
            }
            let metrics = self.metrics();
            let patience = self.inner.timing.give_up;
            let lost = !leadership::is_alone(&metrics)
                && leadership::quorum_age(&metrics).is_none_or(|age| age > patience);
            if lost && sent.elapsed() > patience {
                return Err(ProposeError::Unknown {
                    reason: self.quorum_reason(&metrics),
                });
            }
        }
    }

    fn explain(&self, err: ClientWriteError<TypeConfig>) -> ProposeError {
        match err {
            ClientWriteError::ForwardToLeader(forward) => self.forwarded(&forward),
            ClientWriteError::LogEntryDiscarded(_) => ProposeError::Unknown {
                reason: "another manager became the leader meanwhile".to_owned(),
            },
            ClientWriteError::ChangeMembershipError(err) => ProposeError::Membership {
                reason: err.to_string(),
            },
            ClientWriteError::PreconditionFailed(err) => ProposeError::Membership {
                reason: err.to_string(),
            },
        }
    }

    fn unknown_after_stop(&self) -> ProposeError {
        let reason = self
            .inner
            .stop
            .get()
            .unwrap_or_else(|| "Raft has ended".to_owned());
        ProposeError::Unknown {
            reason: format!("this manager stopped meanwhile: {reason}"),
        }
    }

    pub(crate) fn forwarded(&self, forward: &ForwardToLeader<TypeConfig>) -> ProposeError {
        let metrics = self.metrics();
        if forward.reason == ForwardReason::LeaseExpired {
            return ProposeError::NoQuorum {
                reason: self.quorum_reason(&metrics),
            };
        }
        let own_id = self.inner.own_id;
        let leader = forward
            .leader_node
            .as_ref()
            .filter(|_| forward.leader_id != Some(own_id));
        let leader = leader.map(|peer| ManagerPeer {
            node_id: peer.node_id,
            addr: peer.addr,
        });
        ProposeError::NotLeader { leader }
    }

    pub(crate) fn quorum_reason(&self, metrics: &RaftMetrics<TypeConfig>) -> String {
        let voters: Vec<RaftNodeId> = metrics.membership_config.voter_ids().collect();
        let silent: Vec<String> = voters
            .iter()
            .filter(|id| !self.is_reachable(metrics, **id))
            .filter_map(|id| leadership::peer_of(metrics, *id))
            .map(|peer| format!("`{}` at {}", peer.node_id, peer.addr))
            .collect();
        if silent.is_empty() {
            return format!("too few of the {} managers have answered yet", voters.len());
        }
        format!(
            "{} of {} managers do not answer: {}",
            silent.len(),
            voters.len(),
            silent.join(", ")
        )
    }

    /// Whether this member has stopped for want of room on its disk, and could start again once there is some.
    pub fn stopped_without_room(&self) -> bool {
        self.inner.stop.is_no_room()
    }

    /// Whether a member answers, as far as this one knows.
    pub(crate) fn is_reachable(&self, metrics: &RaftMetrics<TypeConfig>, id: RaftNodeId) -> bool {
        if id == metrics.id {
            return true;
        }
        let Some(heartbeat) = &metrics.heartbeat else {
            return metrics.current_leader == Some(id);
        };
        let acked = heartbeat.get(&id).and_then(|acked| *acked);
        acked.is_some_and(|acked| acked.elapsed() < self.inner.timing.election_max * 2)
    }

    /// Asks a majority whether this member still leads; all who come while one round is under way share the next.
    pub(crate) async fn barrier(&self) -> Result<(), ProposeError> {
        self.inner.reads.share(|| self.read_round()).await
    }

    async fn read_round(&self) -> Result<(), ProposeError> {
        if self.inner.stop.get().is_some() {
            return Err(self.shut_down());
        }
        let started = Instant::now();
        loop {
            let read = self.inner.raft.ensure_linearizable(ReadPolicy::ReadIndex);
            let patience = self.inner.timing.give_up;
            let answer = timeout(patience, read)
                .await
                .map_err(|_| ProposeError::NoQuorum {
                    reason: self.quorum_reason(&self.metrics()),
                })?;
            let retry = match answer {
                Ok(_) => return Ok(()),
                Err(RaftError::Fatal(_)) => return Err(self.shut_down()),
                Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(forward))) => {
                    if forward.reason != ForwardReason::LeaseExpired {
                        return Err(self.forwarded(&forward));
                    }
                    self.forwarded(&forward)
                }
                Err(RaftError::APIError(LinearizableReadError::QuorumNotEnough(_))) => {
                    ProposeError::NoQuorum {
                        reason: self.quorum_reason(&self.metrics()),
                    }
                }
            };
            if started.elapsed() >= self.inner.timing.election_max {
                return Err(retry);
            }
            sleep(LEASE_RETRY).await;
        }
    }
}

async fn start_library(
    executor: &Executor,
    config: Arc<openraft::Config>,
    network: Network,
    log: LogStore,
    applier: Applier,
) -> Result<Raft, String> {
    let own_id = network.own_id;
    executor
        .spawn(async move { Raft::new(own_id, config, network, log, applier).await })
        .await
        .map_err(|err| err.to_string())?
        .map_err(|err| err.to_string())
}

type Opened = (Journal, super::journal::LogImage, Applier);

async fn open_files(
    executor: &Executor,
    files: &Files,
    store: Store,
    stop: StopCause,
) -> Result<Opened, StartError> {
    let files = files.clone();
    let opened = executor
        .heavy(move || {
            let open = || -> Result<Opened, LogError> {
                let (journal, image) =
                    Journal::open(Arc::clone(&files.disk), &files.directory, &files.key)?;
                let applier = Applier::open(store, files, stop)?;
                Ok((journal, image, applier))
            };
            Ok(open())
        })
        .await;
    let opened = opened.map_err(|err| StartError::Thread {
        name: "blocking",
        err,
    })?;
    Ok(opened?)
}
