//! The session with the leader: finds it, says hello, keeps the lease alive, takes assignments, sends statuses.

use crate::agent::{AgentClock, Announcement, SessionState};
use crate::lease::Lease;
use crate::reports::Batch;
use crate::tasks::{OutOfSync, Tasks};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use shoal_model::NodeRole;
use shoal_model::node::NodeDescription;
use shoal_model::rpc::Method;
use shoal_model::session::{ManagerMessage, ManagerPeer, NodeMessage};
use shoal_transport::{Connector, Expect, RpcReceiver, RpcSender, StreamError, TransportError};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior};
use tracing::{debug, info, warn};

/// A manager must welcome a node within this.
const WELCOME_TIMEOUT: Duration = Duration::from_secs(2);

/// A message must be taken within this.
const SEND_TIMEOUT: Duration = Duration::from_secs(3);

/// Unanswered heartbeats after which the session is given up.
const HEARTBEATS_UNANSWERED_MAX: u64 = 3;

/// A batch of statuses that is not acknowledged within this is sent again.
const REPORT_TIMEOUT: Duration = Duration::from_secs(2);

/// Wait after every known manager has been tried in vain; doubles up to [`BACK_OFF_MAX`].
const BACK_OFF_MIN: Duration = Duration::from_millis(50);

/// Longest such wait.
const BACK_OFF_MAX: Duration = Duration::from_secs(1);

/// Longest time between two looks at the volumes of this node.
const VOLUMES_PERIOD: Duration = Duration::from_secs(5);

/// Why a session ended or did not begin.
#[derive(Debug, thiserror::Error)]
enum SessionError {
    #[error(transparent)]
    Transport(#[from] TransportError),
    #[error("the stream of the session broke")]
    Stream(#[from] StreamError),
    #[error("the manager did not welcome this node in time")]
    NoWelcome,
    #[error("the manager did not take a message in time")]
    Stuck,
    #[error("the manager does not answer heartbeats")]
    Unanswered,
    #[error("the manager ended the session: {0}")]
    Closed(String),
    #[error("the manager ended the stream")]
    Ended,
}

/// What the loop needs.
pub(crate) struct SessionLoop {
    pub(crate) connector: Arc<dyn Connector>,
    pub(crate) tasks: Tasks,
    pub(crate) seeds: Vec<SocketAddr>,
    pub(crate) description: watch::Receiver<NodeDescription>,
    pub(crate) announcements: mpsc::Receiver<(Announcement, oneshot::Sender<()>)>,
    pub(crate) role: watch::Sender<Option<NodeRole>>,
    pub(crate) state: watch::Sender<SessionState>,
    pub(crate) seed: u64,
}

impl SessionLoop {
    /// Runs until it is dropped.
    pub(crate) async fn run(mut self) {
        let mut random = StdRng::seed_from_u64(self.seed);
        let mut back_off = BACK_OFF_MIN;
        loop {
            let mut served = false;
            for addr in self.candidates() {
                let Err((err, welcomed)) = self.session(addr).await;
                if welcomed {
                    info!(%addr, reason = %err, "session ended");
                    served = true;
                } else {
                    debug!(%addr, err = &err as &dyn std::error::Error, "no session with this manager");
                }
                self.state.send_replace(SessionState::Searching);
                if served {
                    break;
                }
            }
            if served {
                back_off = BACK_OFF_MIN;
            }
            let jitter = 0.5 + random.random::<f64>() / 2.0;
            self.pause(back_off.mul_f64(jitter)).await;
            back_off = (back_off * 2).min(BACK_OFF_MAX);
        }
    }

    /// Waits; announcements can't be made meanwhile, and whoever made one learns it by the dropped answer.
    async fn pause(&mut self, time: Duration) {
        let sleep = tokio::time::sleep(time);
        tokio::pin!(sleep);
        loop {
            tokio::select! {
                () = &mut sleep => return,
                Some((_, answer)) = self.announcements.recv() => drop(answer),
            }
        }
    }

    /// Known managers, the last leader first, then the addresses given at the start.
    fn candidates(&self) -> Vec<SocketAddr> {
        let mut addrs: Vec<_> = self.tasks.managers().iter().map(|peer| peer.addr).collect();
        for seed in &self.seeds {
            if !addrs.contains(seed) {
                addrs.push(*seed);
            }
        }
        addrs
    }

    async fn session(&mut self, addr: SocketAddr) -> Result<Infallible, (SessionError, bool)> {
        let mut open = self.open(addr).await.map_err(|err| (err, false))?;
        self.state.send_replace(SessionState::Open { addr });
        info!(%addr, "session opened");
        let managers = self.tasks.managers();
        if let Some(leader) = managers.iter().find(|peer| peer.addr == addr) {
            self.tasks.prefer(leader);
        }
        self.tasks.begin_session();
        self.tasks.shared().reports.repeat_all();
        self.serve(&mut open).await.map_err(|err| (err, true))
    }

    async fn open(&mut self, addr: SocketAddr) -> Result<Open, SessionError> {
        let stream = self
            .connector
            .open(addr, Expect::AnyManager, Method::Session)
            .await?;
        let (sender, receiver) = stream.split();
        let volumes = self.volumes().await;
        let description = Box::new(self.description.borrow_and_update().clone());
        let mut open = Open {
            sender,
            receiver,
            heartbeat_period: Duration::ZERO,
            lease: Duration::ZERO,
            asked: Vec::new(),
            sequence: 0,
            batch: None,
            batches: 0,
            volumes: volumes.clone(),
            synced: false,
        };
        let hello = NodeMessage::Hello {
            description,
            volumes,
        };
        open.send(&hello).await?;
        tokio::time::timeout(WELCOME_TIMEOUT, self.welcome(&mut open))
            .await
            .map_err(|_| SessionError::NoWelcome)??;
        Ok(open)
    }

    async fn welcome(&self, open: &mut Open) -> Result<(), SessionError> {
        loop {
            match open.receiver.recv().await?.ok_or(SessionError::Ended)? {
                ManagerMessage::Welcome {
                    session_id: _,
                    heartbeat_period_ms,
                    lease_ms,
                } => {
                    open.heartbeat_period = Duration::from_millis(heartbeat_period_ms.max(1));
                    open.lease = Duration::from_millis(lease_ms);
                    return Ok(());
                }
                ManagerMessage::Managers(managers) => self.know(managers),
                ManagerMessage::Closed(reason) => return Err(SessionError::Closed(reason)),
                ManagerMessage::Role(_)
                | ManagerMessage::Assignments(_)
                | ManagerMessage::HeartbeatAck { .. }
                | ManagerMessage::StatusesAck { .. } => {}
            }
        }
    }

    /// An empty list would leave this node without anybody to ask.
    fn know(&self, managers: Vec<ManagerPeer>) {
        if !managers.is_empty() && managers != self.tasks.managers() {
            self.tasks.set_managers(managers);
        }
    }

    async fn volumes(&self) -> Vec<String> {
        match self.tasks.shared().runtime.volumes().await {
            Ok(mut volumes) => {
                volumes.sort();
                volumes
            }
            Err(err) => {
                warn!(err = %err, "the volumes of this node are not known");
                Vec::new()
            }
        }
    }

    async fn serve(&mut self, open: &mut Open) -> Result<Infallible, SessionError> {
        let shared = Arc::clone(self.tasks.shared());
        let mut heartbeats = tokio::time::interval(open.heartbeat_period);
        heartbeats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut volumes = tokio::time::interval(VOLUMES_PERIOD);
        volumes.set_missed_tick_behavior(MissedTickBehavior::Delay);
        volumes.reset();
        loop {
            let report_timeout = open.batch.as_ref().map(|sent| sent.repeat_at);
            tokio::select! {
                message = open.receiver.recv() => {
                    let message = message?.ok_or(SessionError::Ended)?;
                    self.take(open, message).await?;
                }
                // The lease begins once this node knows what it must not run any more.
                _ = heartbeats.tick(), if open.synced => open.heartbeat(&*shared.clock).await?,
                () = shared.reports.filled(), if open.batch.is_none() => {
                    self.report(open).await?;
                }
                () = until(report_timeout) => self.report(open).await?,
                Some((announcement, done)) = self.announcements.recv() => {
                    open.send(&announcement.message()).await?;
                    if done.send(()).is_err() {
                        debug!("nobody waits for the announcement any more");
                    }
                }
                changed = self.description.changed() => {
                    if changed.is_ok() {
                        self.describe(open).await?;
                    }
                }
                _ = volumes.tick() => {
                    if self.volumes().await != open.volumes {
                        self.describe(open).await?;
                    }
                }
            }
        }
    }

    async fn describe(&mut self, open: &mut Open) -> Result<(), SessionError> {
        let volumes = self.volumes().await;
        open.volumes.clone_from(&volumes);
        let description = Box::new(self.description.borrow_and_update().clone());
        open.send(&NodeMessage::Describe {
            description,
            volumes,
        })
        .await
    }

    async fn report(&self, open: &mut Open) -> Result<(), SessionError> {
        let Some(batch) = self.tasks.shared().reports.batch() else {
            open.batch = None;
            return Ok(());
        };
        open.batches += 1;
        let message = NodeMessage::Statuses {
            batch: open.batches,
            statuses: batch.statuses.clone(),
        };
        open.send(&message).await?;
        open.batch = Some(Sent {
            number: open.batches,
            batch,
            repeat_at: Instant::now() + REPORT_TIMEOUT,
        });
        Ok(())
    }

    async fn take(&self, open: &mut Open, message: ManagerMessage) -> Result<(), SessionError> {
        match message {
            ManagerMessage::Welcome { .. } => {}
            ManagerMessage::Managers(managers) => self.know(managers),
            ManagerMessage::Role(role) => {
                self.role.send_replace(Some(role));
            }
            ManagerMessage::Assignments(message) => match self.tasks.apply(message) {
                Ok(true) => open.synced = true,
                Ok(false) => {}
                Err(OutOfSync { .. }) => {
                    warn!("assignments are out of step; all of them are asked for");
                    open.send(&NodeMessage::Resync).await?;
                }
            },
            ManagerMessage::HeartbeatAck { sequence } => {
                open.answered(sequence, &self.tasks.shared().lease);
            }
            ManagerMessage::StatusesAck { batch } => {
                if let Some(sent) = open.batch.take_if(|sent| sent.number == batch) {
                    self.tasks.shared().reports.acknowledge(&sent.batch);
                }
            }
            ManagerMessage::Closed(reason) => return Err(SessionError::Closed(reason)),
        }
        Ok(())
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

struct Sent {
    number: u64,
    batch: Batch,
    repeat_at: Instant,
}

/// One open session.
struct Open {
    sender: RpcSender,
    receiver: RpcReceiver,
    heartbeat_period: Duration,
    lease: Duration,
    /// Unanswered heartbeats: number, and when they were sent by CLOCK_BOOTTIME.
    asked: Vec<(u64, u64)>,
    sequence: u64,
    /// The batch that waits for its acknowledgement: one at a time, so that what comes meanwhile gathers.
    batch: Option<Sent>,
    batches: u64,
    volumes: Vec<String>,
    /// A complete set has come.
    synced: bool,
}

impl Open {
    async fn send(&mut self, message: &NodeMessage) -> Result<(), SessionError> {
        tokio::time::timeout(SEND_TIMEOUT, self.sender.send(message))
            .await
            .map_err(|_| SessionError::Stuck)?
            .map_err(SessionError::Stream)
    }

    async fn heartbeat(&mut self, clock: &dyn AgentClock) -> Result<(), SessionError> {
        let unanswered = u64::try_from(self.asked.len()).unwrap_or(u64::MAX);
        if unanswered >= HEARTBEATS_UNANSWERED_MAX {
            return Err(SessionError::Unanswered);
        }
        self.sequence += 1;
        let sequence = self.sequence;
        self.asked.push((sequence, clock.boottime_ns()));
        self.send(&NodeMessage::Heartbeat { sequence }).await
    }

    fn answered(&mut self, sequence: u64, lease: &Lease) {
        if let Some((_, asked_at)) = self.asked.iter().find(|(asked, _)| *asked == sequence) {
            lease.renew(*asked_at, self.lease);
        }
        self.asked.retain(|(asked, _)| *asked > sequence);
    }
}
