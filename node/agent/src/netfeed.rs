//! The network feed: takes the node's network state from the leader, has it applied, and says what is in force.
//!
//! It follows the session: the manager that a session is open with is the leader. Without one the last state stays in
//! force; after a restart of the daemon it is brought into force again before tasks are.

use crate::agent::{AgentClock, SessionState};
use crate::disk::AgentDisk;
use crate::lease::Lease;
use crate::network::{AgentNetwork, NetworkSink, SinkError, keep, kept};
use shoal_model::Version;
use shoal_model::netstate::{NetFeedMessage, NetFeedRequest, NetState, NetUpdate};
use shoal_model::rpc::Method;
use shoal_transport::{Connector, Expect, RpcSender, StreamError, TransportError};
use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{debug, warn};

/// A message must be taken within this.
const SEND_TIMEOUT: Duration = Duration::from_secs(3);

/// Wait before the feed is opened again with the same manager; doubles up to [`REOPEN_MAX`].
const REOPEN_MIN: Duration = Duration::from_millis(50);

/// Longest such wait.
const REOPEN_MAX: Duration = Duration::from_secs(2);

/// Wait before a state is applied again that could not be; doubles up to [`RETRY_MAX`].
const RETRY_MIN: Duration = Duration::from_millis(100);

/// Longest such wait.
const RETRY_MAX: Duration = Duration::from_secs(5);

/// How long the start of the tasks waits for the last state to be in force.
const RESTORE_TIMEOUT: Duration = Duration::from_secs(5);

/// So long after its start an agent without a lease is one that finds its managers.
const FIRST_LEASE_WAIT: Duration = Duration::from_secs(2);

/// Why a feed ended or did not begin.
#[derive(Debug, thiserror::Error)]
enum FeedError {
    #[error(transparent)]
    Transport(#[from] TransportError),
    #[error("the stream of the network feed broke")]
    Stream(#[from] StreamError),
    #[error("the manager did not take a message in time")]
    Stuck,
    #[error("the manager ended the network feed")]
    Ended,
    #[error("the first update of a network feed was not complete")]
    Incomplete,
}

/// Brings the last state into force, before tasks are started that may need it.
pub(crate) async fn restore(network: &AgentNetwork) {
    let Some(state) = kept(&*network.disk).await else {
        return;
    };
    let version = state.version;
    let applied = network.sink.apply(Arc::new(state));
    match tokio::time::timeout(RESTORE_TIMEOUT, applied).await {
        Ok(Ok(_)) => debug!(%version, "the last state of the networks is in force again"),
        Ok(Err(err)) => {
            warn!(%version, err = %err, "the last state of the networks could not be applied")
        }
        Err(_) => warn!(%version, "the last state of the networks is not in force yet"),
    }
}

/// Tells the overlay whether the node has a lease, until dropped.
pub(crate) async fn follow_lease(
    lease: Lease,
    clock: Arc<dyn AgentClock>,
    sink: Arc<dyn NetworkSink>,
) {
    let mut deadlines = lease.subscribe();
    let started = Instant::now();
    let mut told = None;
    loop {
        let deadline = *deadlines.borrow_and_update();
        let left = match deadline {
            Some(at) => Duration::from_nanos(at.saturating_sub(clock.boottime_ns())),
            None => FIRST_LEASE_WAIT.saturating_sub(started.elapsed()),
        };
        let live = !left.is_zero();
        // Before the first lease nothing is known: what the last daemon said stays.
        if told != Some(live) && (deadline.is_some() || !live) {
            sink.lease(live).await;
            told = Some(live);
        }
        let over = async {
            if live {
                tokio::time::sleep(left).await;
            } else {
                std::future::pending().await
            }
        };
        tokio::select! {
            () = over => {}
            changed = deadlines.changed() => if changed.is_err() { return },
        }
    }
}

/// What the loop needs.
pub(crate) struct FeedLoop {
    pub(crate) connector: Arc<dyn Connector>,
    pub(crate) network: AgentNetwork,
    pub(crate) session: watch::Receiver<SessionState>,
}

impl FeedLoop {
    /// Runs until it is dropped, or the session's loop is gone.
    pub(crate) async fn run(mut self) {
        let mut wait = REOPEN_MIN;
        loop {
            let open = |state: &SessionState| matches!(state, SessionState::Open { .. });
            let addr = match self.session.wait_for(open).await.map(|state| *state) {
                Ok(SessionState::Open { addr }) => addr,
                Ok(SessionState::Searching) => continue,
                Err(_) => return,
            };
            let mut session = self.session.clone();
            let moved = session.wait_for(|state| *state != SessionState::Open { addr });
            let mut served = false;
            tokio::select! {
                _ = moved => {
                    wait = REOPEN_MIN;
                    continue;
                }
                ended = self.feed(addr, &mut served) => {
                    let Err(err) = ended;
                    debug!(%addr, err = &err as &dyn std::error::Error, "network feed ended");
                }
            }
            if served {
                wait = REOPEN_MIN;
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(REOPEN_MAX);
        }
    }

    async fn feed(&self, addr: SocketAddr, served: &mut bool) -> Result<Infallible, FeedError> {
        let stream = self
            .connector
            .open(addr, Expect::AnyManager, Method::NetFeed)
            .await?;
        let (sender, mut receiver) = stream.split();
        let mut feed = Feed {
            sender,
            sink: &*self.network.sink,
            disk: &*self.network.disk,
            state: None,
            whole: false,
            waiting: false,
            applying: None,
            failures: 0,
            retry_at: None,
        };
        feed.send(&NetFeedRequest::Hello).await?;
        loop {
            feed.begin();
            tokio::select! {
                message = receiver.recv::<NetFeedMessage>() => {
                    let message = message?.ok_or(FeedError::Ended)?;
                    *served = true;
                    feed.take(message).await?;
                }
                applied = finished(&mut feed.applying) => feed.finished(applied).await?,
                () = until(feed.retry_at) => feed.retry_at = None,
            }
        }
    }
}

type Applying<'a> = Pin<Box<dyn Future<Output = Result<Version, SinkError>> + Send + 'a>>;

async fn finished(applying: &mut Option<Applying<'_>>) -> Result<Version, SinkError> {
    match applying {
        Some(applying) => applying.await,
        None => std::future::pending().await,
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// One open feed.
struct Feed<'a> {
    sender: RpcSender,
    sink: &'a dyn NetworkSink,
    disk: &'a dyn AgentDisk,
    /// What has come so far; `None` before the first message.
    state: Option<NetState>,
    /// The last update has come to its end.
    whole: bool,
    /// The state is newer than what was last given to the sink.
    waiting: bool,
    /// One state at a time: what comes meanwhile is applied together.
    applying: Option<Applying<'a>>,
    failures: u32,
    retry_at: Option<Instant>,
}

impl Feed<'_> {
    async fn send(&mut self, request: &NetFeedRequest) -> Result<(), FeedError> {
        tokio::time::timeout(SEND_TIMEOUT, self.sender.send(request))
            .await
            .map_err(|_| FeedError::Stuck)?
            .map_err(FeedError::Stream)
    }

    async fn take(&mut self, message: NetFeedMessage) -> Result<(), FeedError> {
        match message {
            NetFeedMessage::Update(update) => self.update(update)?,
            NetFeedMessage::Confirmed { version } => self.sink.confirmed(version).await,
            NetFeedMessage::RotateKey => {
                if let Err(err) = self.sink.rotate_key().await {
                    warn!(err = %err, "failed to make a new WireGuard key");
                }
            }
        }
        Ok(())
    }

    fn update(&mut self, update: NetUpdate) -> Result<(), FeedError> {
        let more = update.more;
        let first_of_update = self.whole || self.state.is_none();
        if self.state.is_none() && !update.complete {
            return Err(FeedError::Incomplete);
        }
        let state = self.state.get_or_insert_default();
        state.take(update, first_of_update);
        self.whole = !more;
        if self.whole {
            self.waiting = true;
            // What failed may have been for the lack of this.
            self.retry_at = None;
        }
        Ok(())
    }

    /// Gives the newest state to the sink, if it is free.
    fn begin(&mut self) {
        if !self.waiting || !self.whole || self.applying.is_some() || self.retry_at.is_some() {
            return;
        }
        let Some(state) = &self.state else {
            return;
        };
        self.waiting = false;
        let state = Arc::new(state.clone());
        let (sink, disk) = (self.sink, self.disk);
        self.applying = Some(Box::pin(async move {
            let keep = async {
                if let Err(err) = keep(&state, disk).await {
                    let err = &err as &dyn std::error::Error;
                    warn!(err, "failed to keep the state of the networks on disk");
                }
            };
            // Kept before the managers hear of it: a restarted daemon must not go back behind what others rely on.
            let (applied, ()) = tokio::join!(sink.apply(Arc::clone(&state)), keep);
            applied
        }));
    }

    async fn finished(&mut self, applied: Result<Version, SinkError>) -> Result<(), FeedError> {
        self.applying = None;
        match applied {
            Ok(version) => {
                self.failures = 0;
                self.send(&NetFeedRequest::Applied { version }).await
            }
            Err(err) => {
                let factor = 1u32.checked_shl(self.failures).unwrap_or(u32::MAX);
                let wait = RETRY_MIN.saturating_mul(factor).min(RETRY_MAX);
                warn!(err = %err, "the state of the networks could not be applied, it is tried again");
                self.failures = self.failures.saturating_add(1);
                self.waiting = true;
                self.retry_at = Some(Instant::now() + wait);
                Ok(())
            }
        }
    }
}
