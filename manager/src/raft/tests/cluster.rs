//! Members in one process: real files, streams in memory, links that can be cut.

use crate::consensus::{Consensus as _, Leadership, ProposeError, WallClock};
use crate::raft::{
    Disk, Placement, RaftHandle, RaftKey, RaftOptions, RealDisk, StartError, Timing,
};
use crate::store::Store;
use async_trait::async_trait;
use shoal_model::command::{Object, StoreAction};
use shoal_model::rpc::Method;
use shoal_model::{
    ClusterId, Node, NodeId, NodeRole, NodeSpec, NodeStatus, RaftNodeId, Timestamp, Version,
};
use shoal_transport::{Connector, Expect, Peer, PeerIdentity, RpcStream, TransportError};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tempfile::TempDir;
use tokio::time::Instant;

/// Longest wait for any condition.
const PATIENCE: Duration = Duration::from_secs(20);

pub(super) struct Clock;

impl WallClock for Clock {
    fn now(&self) -> Timestamp {
        Timestamp(1)
    }
}

pub(super) fn addr(id: u64) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 1_000 + u16::try_from(id).unwrap()))
}

pub(super) fn node_id(id: u64) -> NodeId {
    NodeId::from_bits(u128::from(id))
}

/// All links between members.
#[derive(Clone, Default)]
pub(super) struct Wire(Arc<Mutex<WireState>>);

#[derive(Default)]
struct WireState {
    members: BTreeMap<SocketAddr, RaftHandle>,
    cut: BTreeSet<SocketAddr>,
    refusing: BTreeSet<SocketAddr>,
    refused: u64,
    /// Questions for votes, by who asked: also those that a cut swallows.
    votes_asked: BTreeMap<SocketAddr, u64>,
    streams: Vec<(SocketAddr, SocketAddr, tokio::task::AbortHandle)>,
}

impl Wire {
    pub(super) fn connect(&self, addr: SocketAddr, handle: RaftHandle) {
        self.0.lock().unwrap().members.insert(addr, handle);
    }

    pub(super) fn disconnect(&self, addr: SocketAddr) {
        self.0.lock().unwrap().members.remove(&addr);
    }

    /// Cuts a member off: open streams go silent, new ones are never answered.
    pub(super) fn cut(&self, id: u64) {
        let mut state = self.0.lock().unwrap();
        state.cut.insert(addr(id));
        for (from, to, stream) in &state.streams {
            if *from == addr(id) || *to == addr(id) {
                stream.abort();
            }
        }
    }

    pub(super) fn heal(&self, id: u64) {
        self.0.lock().unwrap().cut.remove(&addr(id));
    }

    /// A member answers every new stream with an error at once, and its open ones end.
    pub(super) fn refuse(&self, id: u64) {
        let mut state = self.0.lock().unwrap();
        state.refusing.insert(addr(id));
        for (_, _, stream) in state.streams.iter().filter(|(_, to, _)| *to == addr(id)) {
            stream.abort();
        }
    }

    /// How often a member has asked others for their vote, or whether they would give it.
    pub(super) fn votes_asked(&self, id: u64) -> u64 {
        let state = self.0.lock().unwrap();
        state.votes_asked.get(&addr(id)).copied().unwrap_or(0)
    }

    /// Streams that were refused so far.
    pub(super) fn refused(&self) -> u64 {
        self.0.lock().unwrap().refused
    }
}

struct Link {
    wire: Wire,
    own: SocketAddr,
}

#[async_trait]
impl Connector for Link {
    async fn open(
        &self,
        to: SocketAddr,
        _expect: Expect,
        method: Method,
    ) -> Result<RpcStream, TransportError> {
        let limit = Duration::from_secs(1);
        let member = {
            let mut state = self.wire.0.lock().unwrap();
            if matches!(method, Method::RaftPreVote | Method::RaftVote) {
                *state.votes_asked.entry(self.own).or_default() += 1;
            }
            if state.refusing.contains(&to) {
                state.refused += 1;
                return Err(TransportError::Io {
                    addr: to,
                    err: Arc::new(std::io::ErrorKind::ConnectionRefused.into()),
                });
            }
            let cut = state.cut.contains(&self.own) || state.cut.contains(&to);
            if cut {
                None
            } else {
                state.members.get(&to).cloned()
            }
        };
        let Some(member) = member else {
            tokio::time::sleep(limit).await;
            return Err(TransportError::TimedOut { addr: to, limit });
        };
        let (near, far) = tokio::io::duplex(1 << 20);
        let (near_read, near_write) = tokio::io::split(near);
        let (far_read, far_write) = tokio::io::split(far);
        let peer = Peer {
            addr: self.own,
            identity: Some(PeerIdentity {
                node_id: node_id(u64::from(self.own.port()) - 1_000),
                role: NodeRole::Manager,
                cluster_id: ClusterId::from_bits(1),
                public_key_digest: [0; 32],
            }),
        };
        let serving = tokio::spawn(async move {
            let accepted = RpcStream::accept(Box::new(far_read), Box::new(far_write)).await;
            if let Ok((method, stream)) = accepted {
                member.handle_rpc(peer, method, stream).await;
            }
        });
        self.wire
            .0
            .lock()
            .unwrap()
            .streams
            .push((self.own, to, serving.abort_handle()));
        Ok(RpcStream::caller(
            Box::new(near_read),
            Box::new(near_write),
            method,
        ))
    }
}

pub(super) struct Cluster {
    /// Removed with the cluster, unless the directory belongs to somebody else.
    _temporary: Option<TempDir>,
    dir: PathBuf,
    pub(super) wire: Wire,
    pub(super) members: BTreeMap<u64, (RaftHandle, Store)>,
    pub(super) disks: BTreeMap<u64, Arc<dyn Disk>>,
}

impl Cluster {
    pub(super) fn empty() -> Self {
        let temporary = tempfile::tempdir().unwrap();
        let dir = temporary.path().to_owned();
        Self {
            _temporary: Some(temporary),
            ..Self::in_dir(dir)
        }
    }

    /// Over a directory that outlives the cluster.
    pub(super) fn in_dir(dir: PathBuf) -> Self {
        Self {
            _temporary: None,
            dir,
            wire: Wire::default(),
            members: BTreeMap::new(),
            disks: BTreeMap::new(),
        }
    }

    /// Members 1 to `count`, founded by member 1.
    pub(super) async fn of(count: u64) -> Self {
        let mut cluster = Self::empty();
        cluster.start(1).await.unwrap();
        cluster.handle(1).bootstrap(Vec::new()).await.unwrap();
        for id in 2..=count {
            cluster.start(id).await.unwrap();
            let leader = cluster.leader().await;
            let handle = cluster.handle(leader);
            handle
                .add_member(RaftNodeId(id), node_id(id), addr(id))
                .await
                .unwrap();
        }
        cluster
    }

    pub(super) fn data_dir(&self, id: u64) -> PathBuf {
        self.dir.join(id.to_string())
    }

    pub(super) fn key(&self, id: u64) -> RaftKey {
        RaftKey::from_bytes([u8::try_from(id).unwrap(); 32])
    }

    pub(super) async fn start(&mut self, id: u64) -> Result<(), StartError> {
        let store = Store::new();
        let disk = self
            .disks
            .get(&id)
            .cloned()
            .unwrap_or_else(|| Arc::new(RealDisk));
        let handle = RaftHandle::start(RaftOptions {
            data_dir: self.data_dir(id),
            raft_id: RaftNodeId(id),
            node_id: node_id(id),
            advertise: addr(id),
            key: self.key(id),
            timing: Timing::default(),
            snapshot_interval_entries: 10_000,
            connector: Arc::new(Link {
                wire: self.wire.clone(),
                own: addr(id),
            }),
            disk,
            store: store.clone(),
            clock: Arc::new(Clock),
            seed: id,
            placement: Placement::Caller,
        })
        .await?;
        self.wire.connect(addr(id), handle.clone());
        self.members.insert(id, (handle, store));
        Ok(())
    }

    pub(super) async fn stop(&mut self, id: u64) {
        let (handle, _) = self.members.remove(&id).unwrap();
        handle.shutdown().await;
        self.wire.disconnect(addr(id));
    }

    pub(super) fn handle(&self, id: u64) -> RaftHandle {
        self.members[&id].0.clone()
    }

    pub(super) fn store(&self, id: u64) -> &Store {
        &self.members[&id].1
    }

    pub(super) fn leader_now(&self) -> Option<u64> {
        self.members
            .iter()
            .find(|(_, (handle, _))| handle.leadership().borrow().is_leader())
            .map(|(id, _)| *id)
    }

    pub(super) async fn leader(&self) -> u64 {
        self.leader_other_than(0).await
    }

    pub(super) async fn leader_other_than(&self, old: u64) -> u64 {
        let mut found = None;
        eventually("a leader", || {
            found = self
                .members
                .iter()
                .find(|(id, (handle, _))| **id != old && handle.leadership().borrow().is_leader())
                .map(|(id, _)| *id);
            found.is_some()
        })
        .await;
        found.unwrap()
    }

    /// Writes until some member has taken it.
    pub(super) async fn write(&self, number: u64) -> Version {
        let deadline = Instant::now() + PATIENCE;
        loop {
            assert!(Instant::now() < deadline, "no leader takes write {number}");
            if let Some(leader) = self.leader_now() {
                match self.handle(leader).propose(vec![create(number)]).await {
                    Ok(version) => return version,
                    Err(ProposeError::Rejected(_)) => return Version(0),
                    Err(_) => {}
                }
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Waits until member `id` has everything in `numbers`.
    pub(super) async fn has(&self, id: u64, numbers: impl IntoIterator<Item = u64>) {
        let store = self.store(id).clone();
        for number in numbers {
            eventually(&format!("write {number} on member {id}"), || {
                store.view().node(written_id(number)).is_some()
            })
            .await;
        }
    }
}

/// The node object that write `number` makes.
pub(super) fn written_id(number: u64) -> NodeId {
    NodeId::from_bits(u128::from(number) + (1 << 64))
}

pub(super) fn create(number: u64) -> StoreAction {
    StoreAction::Create(Object::Node(Box::new(Node {
        id: written_id(number),
        meta: shoal_model::Meta::default(),
        spec: NodeSpec {
            name: format!("n{number}"),
            ..NodeSpec::default()
        },
        description: None,
        status: NodeStatus::default(),
        role: NodeRole::Worker,
        manager: None,
        public_key_digest: [0; 32],
        hold_until: None,
        mesh: None,
    })))
}

pub(super) async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Why a member has stopped.
pub(super) async fn stop_reason(handle: &RaftHandle) -> String {
    let mut leadership = handle.leadership();
    let stopped = leadership.wait_for(|now| matches!(now, Leadership::Stopped { .. }));
    let stopped = tokio::time::timeout(PATIENCE, stopped)
        .await
        .unwrap()
        .unwrap()
        .clone();
    match stopped {
        Leadership::Stopped { reason } => reason,
        Leadership::Leader { .. } | Leadership::Follower { .. } => unreachable!(),
    }
}
