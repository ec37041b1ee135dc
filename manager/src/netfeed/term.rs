//! The feeds of one leadership: who is told what, and what everybody has applied.

use super::catalogue::{Catalogue, Differences, Topic, dirty};
use super::rotation::Schedule;
use super::{Leases, NotConfirmed};
use crate::consensus::WallClock;
use crate::store::{ChangeBatch, State, Store, WatchItem, Watcher};
use shoal_model::command::ObjectKey;
use shoal_model::control::NodeNetworkView;
use shoal_model::netstate::{NetChange, NetKey, NetRecord};
use shoal_model::{NodeId, Version};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tracing::info;

/// Changes that may wait for a node; beyond this it is told everything anew.
const CHANGES_WAITING_MAX: usize = 20_000;

/// Somebody who waits looks this often whether leases have ended meanwhile.
const LEASES_PERIOD: Duration = Duration::from_millis(50);

/// Time between two looks at whose key is due.
const SCHEDULE_PERIOD: Duration = Duration::from_secs(10);

/// Everything of one leadership. Ends with it.
pub(crate) struct FeedTerm {
    store: Store,
    leases: Arc<dyn Leases>,
    inner: Mutex<Inner>,
    /// Counts up whenever more may be confirmed than before.
    progress: watch::Sender<u64>,
    cancel: CancellationToken,
}

#[derive(Default)]
struct Inner {
    catalogue: Catalogue,
    /// Every change up to this version has been handed out.
    handed_out: Version,
    feeds: BTreeMap<NodeId, Feed>,
    followers: BTreeMap<Topic, BTreeSet<NodeId>>,
    opened: u64,
}

/// One node's feed.
struct Feed {
    id: u64,
    topics: BTreeSet<Topic>,
    pending: Pending,
    wake: Arc<Notify>,
    /// Version of the newest change that concerns the node.
    concerned: Version,
    /// Version that it says it has applied.
    applied: Version,
    /// Version of which it was told that all nodes have it.
    told: Version,
}

/// What is to be sent to a node.
#[derive(Default)]
struct Pending {
    changes: BTreeMap<NetKey, Option<Arc<NetRecord>>>,
    complete: bool,
    confirmed: Option<Version>,
    rotate_key: bool,
}

/// What a stream sends next.
pub(super) struct Parcel {
    pub(super) update: Option<Update>,
    pub(super) confirmed: Option<Version>,
    pub(super) rotate_key: bool,
}

/// A new state of a node.
pub(super) struct Update {
    pub(super) complete: bool,
    pub(super) version: Version,
    pub(super) changes: Vec<Changed>,
}

/// A change whose record is still shared.
pub(super) enum Changed {
    Put(Arc<NetRecord>),
    Remove(NetKey),
}

impl Changed {
    pub(super) fn to_change(&self) -> NetChange {
        match self {
            Self::Put(record) => NetChange::Put(NetRecord::clone(record)),
            Self::Remove(key) => NetChange::Remove(*key),
        }
    }
}

impl Feed {
    /// The newest version of which the node lacks nothing: what does not concern it needs no answer.
    fn in_force(&self, handed_out: Version) -> Version {
        if self.applied >= self.concerned {
            handed_out
        } else {
            self.applied
        }
    }

    fn put(&mut self, key: NetKey, record: Option<&Arc<NetRecord>>, version: Version) {
        self.concerned = version;
        if self.pending.complete {
            return;
        }
        self.pending.changes.insert(key, record.cloned());
        if self.pending.changes.len() > CHANGES_WAITING_MAX {
            self.complete(version);
        }
    }

    fn complete(&mut self, version: Version) {
        self.concerned = version;
        self.pending.complete = true;
        self.pending.changes.clear();
    }
}

impl Inner {
    fn apply(&mut self, differences: &Differences, version: Version) {
        let mut woken = BTreeSet::new();
        for node_id in &differences.followers {
            if self.follow_topics(*node_id, version) {
                woken.insert(*node_id);
            }
        }
        for difference in &differences.records {
            let now = self.followers_of(&difference.after);
            let former = self.followers_of(&difference.before);
            for node_id in former.union(&now) {
                let Some(feed) = self.feeds.get_mut(node_id) else {
                    continue;
                };
                let record = difference.record.as_ref().filter(|_| now.contains(node_id));
                feed.put(difference.key, record, version);
                woken.insert(*node_id);
            }
        }
        self.handed_out = self.handed_out.max(version);
        for node_id in woken {
            if let Some(feed) = self.feeds.get(&node_id) {
                feed.wake.notify_one();
            }
        }
    }

    /// A node that follows other topics than before is told everything anew.
    fn follow_topics(&mut self, node_id: NodeId, version: Version) -> bool {
        let topics = self.catalogue.topics(node_id);
        let Some(feed) = self.feeds.get_mut(&node_id) else {
            return false;
        };
        if feed.topics == topics {
            return false;
        }
        feed.complete(version);
        let former = std::mem::replace(&mut feed.topics, topics.clone());
        self.unfollow(node_id, &former);
        for topic in topics {
            self.followers.entry(topic).or_default().insert(node_id);
        }
        true
    }

    fn unfollow(&mut self, node_id: NodeId, topics: &BTreeSet<Topic>) {
        for topic in topics {
            if let Some(followers) = self.followers.get_mut(topic) {
                followers.remove(&node_id);
                if followers.is_empty() {
                    self.followers.remove(topic);
                }
            }
        }
    }

    fn followers_of(&self, topics: &BTreeSet<Topic>) -> BTreeSet<NodeId> {
        let followers = topics.iter().filter_map(|topic| self.followers.get(topic));
        followers.flatten().copied().collect()
    }

    /// Ends the feed of a node.
    fn forget(&mut self, node_id: NodeId) {
        if let Some(feed) = self.feeds.remove(&node_id) {
            self.unfollow(node_id, &feed.topics);
            feed.wake.notify_one();
        }
    }

    fn start_over(&mut self, state: &State) {
        self.catalogue = Catalogue::of(state);
        self.handed_out = state.version();
        let gone = self.feeds.keys().filter(|id| state.node(**id).is_none());
        for node_id in gone.copied().collect::<Vec<_>>() {
            self.forget(node_id);
        }
        let nodes: Vec<NodeId> = self.feeds.keys().copied().collect();
        for node_id in nodes {
            self.follow_topics(node_id, state.version());
            if let Some(feed) = self.feeds.get_mut(&node_id) {
                feed.complete(state.version());
                feed.wake.notify_one();
            }
        }
    }

    /// The nodes that count: a live lease, and something there that could be told.
    fn counted<'a>(
        &'a self,
        state: &'a State,
        live: &'a BTreeSet<NodeId>,
    ) -> impl Iterator<Item = (NodeId, Option<&'a Feed>)> + 'a {
        live.iter().filter_map(|node_id| {
            let feed = self.feeds.get(node_id);
            let described = || {
                let description = state.node(*node_id)?.description.as_ref()?;
                description.wireguard.as_ref()
            };
            // A node without an overlay has no way to other nodes' tasks that could be taken from it.
            (feed.is_some() || described().is_some()).then_some((*node_id, feed))
        })
    }
}

impl FeedTerm {
    pub(super) fn new(store: Store, leases: Arc<dyn Leases>, cancel: CancellationToken) -> Self {
        Self {
            store,
            leases,
            inner: Mutex::default(),
            progress: watch::Sender::new(0),
            cancel,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing panics while it holds the lock.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn progressed(&self) {
        self.progress.send_modify(|count| *count += 1);
    }

    pub(super) fn cancel(&self) -> &CancellationToken {
        &self.cancel
    }

    /// Follows the store and tells who concerns whom; ends with the store.
    pub(crate) async fn run(&self, mut watcher: Watcher) {
        self.lock().start_over(&self.store.view());
        self.progressed();
        let follow = async {
            while let Some(item) = watcher.next().await {
                self.take(item, &mut watcher);
                self.progressed();
            }
        };
        tokio::select! {
            () = follow => {}
            () = self.tell_confirmed() => {}
        }
    }

    /// Takes an item with all that has come meanwhile: records are looked at once.
    pub(super) fn take(&self, first: WatchItem, watcher: &mut Watcher) {
        let mut batches: Vec<Arc<ChangeBatch>> = Vec::new();
        let mut next = Some(first);
        while let Some(item) = next {
            match item {
                WatchItem::Changes(batch) => batches.push(batch),
                WatchItem::Resync => {
                    // What is still in the queue is in the view already, and finds nothing to change.
                    self.lock().start_over(&self.store.view());
                    return;
                }
            }
            next = watcher.try_next();
        }
        let state = self.store.view();
        let mut keys = BTreeSet::new();
        for batch in &batches {
            for change in &batch.changes {
                dirty(&state, change, &mut keys);
            }
        }
        let Some(last) = batches.last() else {
            return;
        };
        let mut inner = self.lock();
        let differences = inner.catalogue.update(&state, keys);
        inner.apply(&differences, last.version);
        let changes = batches.iter().flat_map(|batch| &batch.changes);
        for change in changes.filter(|change| change.after.is_none()) {
            if let ObjectKey::Node(id) = change.key {
                inner.forget(id);
            }
        }
    }

    /// Opens a node's feed; its former one ends.
    pub(super) fn open(&self, node_id: NodeId) -> (u64, Arc<Notify>) {
        let mut inner = self.lock();
        inner.opened += 1;
        let id = inner.opened;
        let wake = Arc::new(Notify::new());
        let mut feed = Feed {
            id,
            topics: inner.catalogue.topics(node_id),
            pending: Pending::default(),
            wake: Arc::clone(&wake),
            concerned: Version(0),
            applied: Version(0),
            told: Version(0),
        };
        feed.complete(inner.handed_out);
        feed.wake.notify_one();
        for topic in feed.topics.clone() {
            inner.followers.entry(topic).or_default().insert(node_id);
        }
        if let Some(former) = inner.feeds.insert(node_id, feed) {
            former.wake.notify_one();
            let topics = inner.catalogue.topics(node_id);
            let stale = former.topics.difference(&topics).copied().collect();
            inner.unfollow(node_id, &stale);
        }
        (id, wake)
    }

    /// Forgets a feed unless a newer one has taken its place.
    pub(super) fn close(&self, node_id: NodeId, id: u64) {
        let mut inner = self.lock();
        if inner.feeds.get(&node_id).is_some_and(|feed| feed.id == id) {
            inner.forget(node_id);
        }
        drop(inner);
        self.progressed();
    }

    /// What the feed sends next; `None`: a newer feed has taken its place, or the node was removed.
    pub(super) fn parcel(&self, node_id: NodeId, id: u64) -> Option<Parcel> {
        let mut inner = self.lock();
        let inner = &mut *inner;
        let feed = inner.feeds.get_mut(&node_id).filter(|feed| feed.id == id)?;
        let pending = std::mem::take(&mut feed.pending);
        let update = if pending.complete {
            let records = inner.catalogue.records(node_id);
            Some(Update {
                complete: true,
                version: inner.handed_out,
                changes: records.into_iter().map(Changed::Put).collect(),
            })
        } else if pending.changes.is_empty() {
            None
        } else {
            let changes = pending.changes.into_iter();
            Some(Update {
                complete: false,
                version: feed.concerned,
                changes: changes
                    .map(|(key, record)| record.map_or(Changed::Remove(key), Changed::Put))
                    .collect(),
            })
        };
        Some(Parcel {
            update,
            confirmed: pending.confirmed,
            rotate_key: pending.rotate_key,
        })
    }

    /// The node has applied a version. False: a newer feed has taken the place of this one.
    pub(super) fn applied(&self, node_id: NodeId, id: u64, version: Version) -> bool {
        let mut inner = self.lock();
        let Some(feed) = inner.feeds.get_mut(&node_id).filter(|feed| feed.id == id) else {
            return false;
        };
        feed.applied = feed.applied.max(version);
        drop(inner);
        self.progressed();
        true
    }

    /// Follows whatever may make more confirmed than before.
    pub(crate) fn progress(&self) -> watch::Receiver<u64> {
        self.progress.subscribe()
    }

    /// The newest version that every node with a live lease has applied.
    pub(crate) fn confirmed(&self) -> Version {
        let state = self.store.view();
        let live = self.leases.live(&state);
        let inner = self.lock();
        let in_force =
            |feed: Option<&Feed>| feed.map_or(Version(0), |feed| feed.in_force(inner.handed_out));
        let versions = inner.counted(&state, &live).map(|(_, feed)| in_force(feed));
        versions
            .min()
            .unwrap_or(inner.handed_out)
            .min(inner.handed_out)
    }

    /// The nodes with a live lease that have not applied `version`.
    pub(crate) fn missing(&self, version: Version) -> BTreeSet<NodeId> {
        let state = self.store.view();
        let live = self.leases.live(&state);
        let inner = self.lock();
        let counted = inner.counted(&state, &live);
        counted
            .filter(|(_, feed)| feed.is_none_or(|feed| feed.in_force(inner.handed_out) < version))
            .map(|(node_id, _)| node_id)
            .collect()
    }

    pub(super) async fn wait_confirmed(
        &self,
        version: Version,
        deadline: Instant,
    ) -> Result<(), NotConfirmed> {
        let mut progress = self.progress();
        loop {
            progress.borrow_and_update();
            if self.confirmed() >= version {
                return Ok(());
            }
            let nodes = || self.missing(version);
            tokio::select! {
                changed = progress.changed() => if changed.is_err() {
                    return Err(NotConfirmed { version, nodes: nodes() });
                },
                () = tokio::time::sleep(LEASES_PERIOD) => {}
                () = tokio::time::sleep_until(deadline) => {
                    return Err(NotConfirmed { version, nodes: nodes() });
                }
                () = self.cancel.cancelled() => {
                    return Err(NotConfirmed { version, nodes: BTreeSet::new() });
                }
            }
        }
    }

    /// Tells each node once after every update that all nodes have that version, when they have.
    async fn tell_confirmed(&self) {
        let mut progress = self.progress();
        loop {
            progress.borrow_and_update();
            let untold = self
                .lock()
                .feeds
                .values()
                .any(|feed| feed.told < feed.concerned);
            if untold {
                let confirmed = self.confirmed();
                for feed in self.lock().feeds.values_mut() {
                    if feed.told < feed.concerned && feed.concerned <= confirmed {
                        feed.told = confirmed;
                        feed.pending.confirmed = Some(confirmed);
                        feed.wake.notify_one();
                    }
                }
            }
            tokio::select! {
                changed = progress.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(LEASES_PERIOD), if untold => {}
            }
        }
    }

    /// What every node says.
    pub(super) fn nodes(&self, state: &State) -> Vec<NodeNetworkView> {
        let inner = self.lock();
        let one = |node: &Arc<shoal_model::Node>| NodeNetworkView {
            node_id: node.id,
            name: node.display_name(),
            mesh: node.mesh,
            wireguard: node
                .description
                .as_ref()
                .and_then(|description| description.wireguard.clone()),
            applied: inner
                .feeds
                .get(&node.id)
                .map(|feed| feed.in_force(inner.handed_out)),
            wanted: inner.handed_out,
        };
        state.nodes().map(one).collect()
    }

    /// Every change up to this version has been handed out.
    #[cfg(test)]
    pub(super) fn handed_out(&self) -> Version {
        self.lock().handed_out
    }

    #[cfg(test)]
    pub(super) fn is_open(&self, node_id: NodeId, id: u64) -> bool {
        let inner = self.lock();
        inner.feeds.get(&node_id).is_some_and(|feed| feed.id == id)
    }

    #[cfg(test)]
    pub(super) fn check_catalogue(&self, state: &State) {
        assert_eq!(self.lock().catalogue, Catalogue::of(state));
    }

    /// Has each node make a new key once in a while, as the cluster's settings say.
    pub(crate) async fn rotate_on_schedule(&self, clock: &dyn WallClock) {
        let mut ticks = tokio::time::interval(SCHEDULE_PERIOD);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut schedule = Schedule::default();
        loop {
            ticks.tick().await;
            let state = self.store.view();
            let Some(cluster) = state.cluster() else {
                continue;
            };
            let period = Duration::from_secs(cluster.spec.key_rotation_s);
            let nodes = state.nodes().map(|node| node.id);
            for node_id in schedule.due(clock.now(), period, nodes) {
                if !self.rotate_keys(Some(node_id)).is_empty() {
                    info!(%node_id, "node makes a new WireGuard key");
                }
            }
        }
    }

    pub(super) fn rotate_keys(&self, node_id: Option<NodeId>) -> BTreeSet<NodeId> {
        let mut told = BTreeSet::new();
        for (id, feed) in &mut self.lock().feeds {
            if node_id.is_none_or(|wanted| wanted == *id) {
                feed.pending.rotate_key = true;
                feed.wake.notify_one();
                told.insert(*id);
            }
        }
        told
    }
}
