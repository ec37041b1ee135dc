//! The dispatcher: streams to each node what it must run, takes statuses back, and notices who is silent.
//!
//! It works on the leader only and keeps nothing but what it heard: sessions and heartbeats live in memory, and what
//! it decides goes into the store like every loop's decisions. A closed connection means nothing by itself, because
//! a daemon may come back; only silence for the down limit makes a node DOWN.
//!
//! * [`assignments`]: which tasks a node must know, pure.
//! * `gate`: which tasks must not hear yet that they are to go.
//! * [`liveness`]: who has been silent for how long, pure.
//! * `outbox`: what one session still has to send; changes of one task are one.
//! * `router`: follows the store and fills the outboxes of the nodes concerned.
//! * `writer`: puts everything that sessions report into as few entries as possible.
//! * `quorum`: renews no lease unless this manager is still the leader.
//! * `session`: one node's stream.

pub mod assignments;
mod gate;
mod leases;
pub mod liveness;
mod outbox;
mod quorum;
mod router;
mod session;
mod watchdog;
mod writer;

#[cfg(test)]
mod tests;

use crate::consensus::{Consensus, IdSource, Leadership, WallClock};
use crate::netfeed::{FeedTerm, NetFeeds};
use crate::store::Store;
use gate::Gate;
use leases::LeaseBook;
use liveness::Liveness;
use outbox::Outbox;
use quorum::Quorum;
use shoal_model::session::ManagerMessage;
use shoal_model::{NodeId, SessionId};
use shoal_transport::{Peer, RpcStream};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};
use writer::Writer;

/// What the dispatcher needs.
#[derive(Clone)]
pub struct DispatcherContext {
    /// The store of this manager.
    pub store: Store,
    /// Where reports are proposed.
    pub consensus: Arc<dyn Consensus>,
    /// Wall-clock time, for holds.
    pub clock: Arc<dyn WallClock>,
    /// Ids of sessions.
    pub ids: Arc<dyn IdSource>,
    /// What nodes are told of networks; it serves while this dispatcher does.
    pub netfeeds: NetFeeds,
    /// Ends the dispatcher.
    pub cancel: CancellationToken,
}

/// Serves the sessions of all nodes while this manager leads. Clones share it.
#[derive(Clone)]
pub struct Dispatcher(Arc<Inner>);

struct Inner {
    context: DispatcherContext,
    term: Mutex<Option<Arc<Term>>>,
}

/// Everything of one leadership. Ends with it.
struct Term {
    context: DispatcherContext,
    live: Arc<Mutex<Live>>,
    feeds: Arc<FeedTerm>,
    gate: Gate,
    writer: Writer,
    quorum: Quorum,
    cancel: CancellationToken,
}

/// Who has a session, and who was heard when. One lock, so that a node can't be declared down between its hello and
/// the report of it.
struct Live {
    sessions: BTreeMap<NodeId, Session>,
    liveness: Liveness,
}

struct Session {
    id: SessionId,
    outbox: Arc<Outbox>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics while it holds one of these locks, and each statement leaves a valid state.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Dispatcher {
    /// A dispatcher that serves nobody until [`Self::run`] runs and this manager leads.
    pub fn new(context: DispatcherContext) -> Self {
        Self(Arc::new(Inner {
            context,
            term: Mutex::new(None),
        }))
    }

    /// Follows leadership until cancelled: each time this manager becomes leader, everything starts afresh.
    pub async fn run(&self) {
        let context = &self.0.context;
        let mut leadership = context.consensus.leadership();
        loop {
            let now = leadership.borrow_and_update().clone();
            let leads = match now {
                Leadership::Leader { .. } => true,
                Leadership::Follower { .. } => false,
                Leadership::Stopped { .. } => return,
            };
            let cancel = context.cancel.child_token();
            let serve = async {
                if leads {
                    self.serve_term(&cancel).await;
                }
                cancel.cancelled().await;
            };
            tokio::select! {
                () = serve => return,
                changed = leadership.changed() => {
                    cancel.cancel();
                    *lock(&self.0.term) = None;
                    if changed.is_err() {
                        return;
                    }
                }
            }
        }
    }

    async fn serve_term(&self, cancel: &CancellationToken) {
        let context = self.0.context.clone();
        let (writer, queue) = Writer::new();
        let started = Instant::now();
        let live = Arc::new(Mutex::new(Live {
            sessions: BTreeMap::new(),
            liveness: Liveness::new(started),
        }));
        let leases = Arc::new(LeaseBook::new(Arc::clone(&live)));
        // Both follow the store from before they look at it, so that they miss nothing.
        let (watcher, feed_watcher) = (context.store.watch(), context.store.watch());
        let feeds = context
            .netfeeds
            .begin(context.store.clone(), leases, cancel.clone());
        let term = Arc::new(Term {
            context: context.clone(),
            live,
            feeds: Arc::clone(&feeds),
            gate: Gate::new(started),
            writer,
            quorum: Quorum::default(),
            cancel: cancel.clone(),
        });
        *lock(&self.0.term) = Some(Arc::clone(&term));
        info!("dispatcher serves sessions");
        tokio::select! {
            () = router::run(&term, watcher) => {}
            () = queue.run(&context) => {}
            () = watchdog::run(&term) => {}
            () = quorum::run(&term) => {}
            () = feeds.run(feed_watcher) => {}
            () = feeds.rotate_on_schedule(&*context.clock) => {}
            () = gate::run(&term) => {}
            () = cancel.cancelled() => {}
        }
        *lock(&self.0.term) = None;
        context.netfeeds.end();
        debug!("dispatcher stopped serving sessions");
    }

    /// Serves one [`shoal_model::rpc::Method::Session`] stream until it ends.
    pub async fn handle(&self, peer: Peer, stream: RpcStream) {
        let term = lock(&self.0.term).clone();
        match term {
            Some(term) => session::run(term, peer, stream).await,
            None => self.redirect(stream).await,
        }
    }

    /// Tells a node whom to ask instead: the leader first.
    async fn redirect(&self, mut stream: RpcStream) {
        let context = &self.0.context;
        let leader = match &*context.consensus.leadership().borrow() {
            Leadership::Follower { leader } => leader.clone(),
            Leadership::Leader { .. } | Leadership::Stopped { .. } => None,
        };
        let mut managers = assignments::managers(&context.store.view());
        if let Some(leader) = leader {
            managers.retain(|manager| manager.node_id != leader.node_id);
            managers.insert(0, leader);
        }
        let farewell = [
            ManagerMessage::Managers(managers),
            ManagerMessage::Closed("this manager does not lead".to_owned()),
        ];
        for message in farewell {
            if let Err(err) = stream.send(&message).await {
                debug!(
                    err = &err as &dyn std::error::Error,
                    "node left before it was redirected"
                );
                return;
            }
        }
        if let Err(err) = stream.finish().await {
            debug!(
                err = &err as &dyn std::error::Error,
                "node left before it was redirected"
            );
        }
    }

    /// How long ago each node with a heartbeat in this term was last heard; empty while this manager does not lead.
    pub fn last_heard(&self) -> BTreeMap<NodeId, Duration> {
        let term = lock(&self.0.term).clone();
        term.map_or_else(BTreeMap::new, |term| {
            lock(&term.live).liveness.silences(Instant::now())
        })
    }

    /// How many nodes have a session now.
    pub fn sessions_len(&self) -> usize {
        let term = lock(&self.0.term).clone();
        term.map_or(0, |term| lock(&term.live).sessions.len())
    }
}

impl Term {
    /// Opens a session; the node's former one is told that it is over.
    fn open(&self, node_id: NodeId) -> (SessionId, Arc<Outbox>) {
        let id = SessionId::from_bits(self.context.ids.bits());
        let outbox = Arc::new(Outbox::default());
        let mut live = lock(&self.live);
        live.liveness.heard(node_id, Instant::now());
        let session = Session {
            id,
            outbox: Arc::clone(&outbox),
        };
        if let Some(former) = live.sessions.insert(node_id, session) {
            former
                .outbox
                .close("the node has opened a newer session".to_owned());
        }
        (id, outbox)
    }

    /// Forgets a session unless a newer one has taken its place.
    fn close(&self, node_id: NodeId, id: SessionId) {
        let mut live = lock(&self.live);
        if live
            .sessions
            .get(&node_id)
            .is_some_and(|session| session.id == id)
        {
            live.sessions.remove(&node_id);
        }
    }

    /// A sign of life within session `id`; false if the session was replaced.
    fn heard(&self, node_id: NodeId, id: SessionId) -> bool {
        let mut live = lock(&self.live);
        let current = live
            .sessions
            .get(&node_id)
            .is_some_and(|session| session.id == id);
        if current {
            live.liveness.heard(node_id, Instant::now());
        }
        current
    }
}
