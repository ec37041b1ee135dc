//! Outgoing connections: one per address, dialled by one caller at a time.

use crate::identity::{Identity, PeerIdentity};
use crate::rpc::TransportError;
use quinn::Connection;
use std::collections::HashMap;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// Slots kept before those without a live connection are forgotten.
const SLOTS_SWEPT_FROM: usize = 1024;

/// An established connection.
#[derive(Debug, Clone)]
pub(crate) struct Link {
    pub(crate) connection: Connection,
    /// Who answered.
    pub(crate) peer: PeerIdentity,
    /// The identity of this node that the peer was shown.
    pub(crate) shown: Identity,
}

#[derive(Debug, Default)]
struct Slot {
    /// Held while dialling.
    dial: tokio::sync::Mutex<()>,
    state: Mutex<SlotState>,
}

#[derive(Debug, Default)]
struct SlotState {
    link: Option<Link>,
    /// Datagrams received when the count last changed, and when that was noticed.
    heard: Option<(u64, Instant)>,
    failure: Option<(Instant, TransportError)>,
}

/// All outgoing connections of an endpoint.
#[derive(Debug, Default)]
pub(crate) struct Pool {
    slots: Mutex<HashMap<SocketAddr, Arc<Slot>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing in here panics while it holds a lock, and every state between two statements is a valid one.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pool {
    /// The connection to `addr`, dialled with `dial` if there is none that was shown `identity` and is alive.
    ///
    /// Callers that wait for the same dial share its result, failure included. A connection on which nothing was
    /// heard for `silence_max` is left to its streams, and a new one is dialled: the peer may have been cut off and
    /// be back, long before the old connection's retransmission timer tries again.
    pub(crate) async fn link<F>(
        &self,
        addr: SocketAddr,
        identity: &Identity,
        silence_max: Duration,
        dial: impl FnOnce() -> F,
    ) -> Result<Link, TransportError>
    where
        F: Future<Output = Result<Link, TransportError>>,
    {
        let slot = self.slot(addr);
        if let Some(link) = slot.live(identity, silence_max) {
            return Ok(link);
        }
        let asked_at = Instant::now();
        let _dialling = slot.dial.lock().await;
        if let Some(link) = slot.live(identity, silence_max) {
            return Ok(link);
        }
        if let Some((failed_at, err)) = &lock(&slot.state).failure
            && *failed_at > asked_at
        {
            return Err(err.clone());
        }
        let result = dial().await;
        let mut state = lock(&slot.state);
        state.heard = None;
        match &result {
            Ok(link) => {
                state.link = Some(link.clone());
                state.failure = None;
            }
            Err(err) => {
                state.link = None;
                state.failure = Some((Instant::now(), err.clone()));
            }
        }
        result
    }

    /// Drops a connection that turned out to be dead.
    pub(crate) fn forget(&self, addr: SocketAddr, link: &Link) {
        let slot = self.slot(addr);
        let mut state = lock(&slot.state);
        if state
            .link
            .as_ref()
            .is_some_and(|held| held.connection.stable_id() == link.connection.stable_id())
        {
            state.link = None;
        }
    }

    fn slot(&self, addr: SocketAddr) -> Arc<Slot> {
        let mut slots = lock(&self.slots);
        if let Some(slot) = slots.get(&addr) {
            return Arc::clone(slot);
        }
        if slots.len() >= SLOTS_SWEPT_FROM {
            slots.retain(|_, slot| Arc::strong_count(slot) > 1 || slot.is_alive());
        }
        let slot = Arc::<Slot>::default();
        slots.insert(addr, Arc::clone(&slot));
        slot
    }
}

impl Slot {
    fn is_alive(&self) -> bool {
        lock(&self.state)
            .link
            .as_ref()
            .is_some_and(|link| link.connection.close_reason().is_none())
    }

    fn live(&self, identity: &Identity, silence_max: Duration) -> Option<Link> {
        let mut state = lock(&self.state);
        let link = state.link.as_ref()?;
        if link.connection.close_reason().is_some() || !link.shown.is_same(identity) {
            state.link = None;
            return None;
        }
        let link = link.clone();
        let received = link.connection.stats().udp_rx.datagrams;
        match state.heard {
            Some((count, since)) if count == received => {
                if since.elapsed() >= silence_max {
                    state.link = None;
                    return None;
                }
            }
            _ => state.heard = Some((received, Instant::now())),
        }
        Some(link)
    }
}
