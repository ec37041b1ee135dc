//! Three managers in processes of their own: the real transport, the real disk, the real store.

use crate::load::KEYS;
use anyhow::{Context as _, bail, ensure};
use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use shoal_manager::consensus::{Consensus as _, Leadership, WallClock};
use shoal_manager::raft::{
    Placement, RaftHandle, RaftKey, RaftOptions, RaftRuntime, RealDisk, Timing,
};
use shoal_manager::store::Store;
use shoal_model::command::{Object, StoreAction};
use shoal_model::rpc::{ErrorCode, Method, RpcError};
use shoal_model::{
    ClusterId, Meta, Node, NodeId, NodeRole, NodeSpec, NodeState, NodeStatus, RaftNodeId, Timestamp,
};
use shoal_transport::ca::{Authority, SigningRequest};
use shoal_transport::files::IdentityFiles;
use shoal_transport::{
    Connector as _, Endpoint, EndpointOptions, Expect, Identity, IdentityHandle, NodeKey, Peer,
    RpcHandler, RpcStream, call,
};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Mutex;

const PORT: u16 = 23_770;
/// Longest wait for one call.
const DEADLINE: Duration = Duration::from_secs(10);

/// What the load generator asks of a manager.
#[derive(Serialize, Deserialize)]
enum Request {
    /// Found the cluster.
    Found,
    /// Add that manager.
    Add(u64),
    /// Make the objects that are written.
    Prepare,
    /// Write.
    Write(u32, String),
    /// The term, if you lead.
    Term,
    /// Read linearizably.
    Read(u32),
    /// How many members answer you.
    Reachable,
}

struct Clock;

impl WallClock for Clock {
    fn now(&self) -> Timestamp {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        Timestamp::from_unix(since.unwrap_or_default())
    }
}

fn addr(id: u64) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], PORT + u16::try_from(id).unwrap_or_default()))
}

fn node_id(id: u64) -> NodeId {
    NodeId::from_bits(u128::from(id))
}

fn key_id(key: u32) -> NodeId {
    NodeId::from_bits(u128::from(key) + (1 << 64))
}

/// Serves manager `id` until it is killed.
pub(crate) async fn serve(id: u64, directory: PathBuf) -> anyhow::Result<()> {
    let identity = IdentityFiles::new(directory.join("certs"))
        .load()?
        .context("no certificate")?;
    let runtime = RaftRuntime::start()?;
    let bind = async move {
        Endpoint::bind(
            addr(id),
            IdentityHandle::new(Some(identity)),
            EndpointOptions::control(),
        )
    };
    let endpoint = runtime.handle().spawn(bind).await??;
    let store = Store::new();
    let key = RaftKey::load_or_create(&RealDisk, &directory.join("raft.key"))?;
    let raft = RaftHandle::start(RaftOptions {
        data_dir: directory.join("raft"),
        raft_id: RaftNodeId(id),
        node_id: node_id(id),
        advertise: addr(id),
        key,
        timing: Timing::default(),
        snapshot_interval_entries: 10_000,
        connector: Arc::new(endpoint.clone()),
        disk: Arc::new(RealDisk),
        store: store.clone(),
        clock: Arc::new(Clock),
        seed: id,
        placement: Placement::Threads(runtime.clone()),
    })
    .await?;
    let handler = Arc::new(Handler { raft, store });
    let serving = runtime
        .handle()
        .spawn(async move { endpoint.serve(handler).await });
    serving.await??;
    Ok(())
}

struct Handler {
    raft: RaftHandle,
    store: Store,
}

#[async_trait]
impl RpcHandler for Handler {
    async fn handle(&self, peer: Peer, method: Method, mut stream: RpcStream) {
        if method != Method::Control {
            return self.raft.handle_rpc(peer, method, stream).await;
        }
        let answered = async {
            // A client keeps its stream and sends one request after the other.
            while let Some(request) = stream.recv().await? {
                let answer = self.answer(request).await;
                stream.send(&answer).await?;
            }
            stream.finish().await?;
            anyhow::Ok(())
        };
        if let Err(err) = answered.await {
            eprintln!("a call failed: {err:#}");
        }
    }
}

impl Handler {
    async fn answer(&self, request: Request) -> Result<u64, RpcError> {
        let raft = &self.raft;
        let done = match request {
            Request::Found => raft.bootstrap(Vec::new()).await.map(|()| 0),
            Request::Add(id) => raft
                .add_member(RaftNodeId(id), node_id(id), addr(id))
                .await
                .map(|()| 0),
            Request::Prepare => raft
                .propose((0..KEYS).map(create).collect())
                .await
                .map(|version| version.0),
            Request::Write(key, value) => raft
                .propose(vec![write(key, value)])
                .await
                .map(|version| version.0),
            Request::Term => return self.term(),
            Request::Read(key) => raft.read_barrier().await.map(|()| self.read(key)),
            Request::Reachable => {
                Ok(raft.members().iter().filter(|one| one.reachable).count() as u64)
            }
        };
        done.map_err(|err| RpcError::new(ErrorCode::Unavailable, err.to_string()))
    }
}

impl Handler {
    /// The bytes of the value of that key.
    fn read(&self, key: u32) -> u64 {
        let view = self.store.view();
        view.node(key_id(key))
            .map_or(0, |node| node.status.message.len() as u64)
    }

    fn term(&self) -> Result<u64, RpcError> {
        match &*self.raft.leadership().borrow() {
            Leadership::Leader { term } => Ok(*term),
            other => Err(RpcError::new(ErrorCode::NotLeader, format!("{other:?}"))),
        }
    }
}

fn create(key: u32) -> StoreAction {
    StoreAction::Create(Object::Node(Box::new(Node {
        id: key_id(key),
        meta: Meta::default(),
        spec: NodeSpec {
            name: format!("key-{key}"),
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

fn write(key: u32, value: String) -> StoreAction {
    let status = NodeStatus {
        state: NodeState::Ready,
        message: value,
        addr: String::new(),
    };
    StoreAction::SetNodeStatus {
        node_id: key_id(key),
        status,
        description: None,
    }
}

/// The manager processes, killed when dropped, and a client of them.
pub(crate) struct Managers {
    directory: PathBuf,
    children: Vec<Option<Child>>,
    pub(crate) client: Client,
}

impl Drop for Managers {
    fn drop(&mut self) {
        for child in self.children.iter_mut().flatten() {
            drop(child.kill());
            drop(child.wait());
        }
    }
}

impl Managers {
    /// Makes certificates, starts three managers, and joins them.
    pub(crate) async fn start(directory: &Path) -> anyhow::Result<Self> {
        let now = Clock.now();
        let cluster_id = ClusterId::from_bits(1);
        let root = Authority::generate(cluster_id, now)?;
        let authority = Authority::load(&root)?;
        let mut identities = Vec::new();
        for id in 0..=3 {
            let identity = issue(&authority, cluster_id, id, now)?;
            let folder = directory.join(id.to_string()).join("certs");
            std::fs::create_dir_all(&folder)?;
            IdentityFiles::new(folder).store(&identity)?;
            identities.push(identity);
        }
        let own = IdentityHandle::new(Some(identities.swap_remove(0)));
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let endpoint = Endpoint::bind(any, own, EndpointOptions::control())?;
        let client = Client {
            endpoint,
            leader: 1,
        };
        let mut managers = Self {
            directory: directory.to_owned(),
            children: Vec::new(),
            client,
        };
        for id in 1..=3 {
            managers.children.push(None);
            managers.spawn(id)?;
        }
        managers.client.insist(1, &Request::Found).await?;
        for id in 2..=3 {
            managers.client.insist(1, &Request::Add(id)).await?;
        }
        managers.client.insist(1, &Request::Prepare).await?;
        Ok(managers)
    }

    fn spawn(&mut self, id: u64) -> anyhow::Result<()> {
        let child = Command::new(std::env::current_exe()?)
            .args(["serve", &id.to_string()])
            .arg(self.directory.join(id.to_string()))
            .stdout(Stdio::null())
            .spawn()?;
        self.children[usize::try_from(id)? - 1] = Some(child);
        Ok(())
    }

    /// Kills the leader, and tells how long it took until another one acknowledged a write. The killed one is started
    /// again afterwards.
    pub(crate) async fn kill_leader(&mut self) -> anyhow::Result<Duration> {
        let (leader, _) = self.client.find_leader().await?;
        let place = usize::try_from(leader)? - 1;
        let mut child = self.children[place]
            .take()
            .context("the leader is not running")?;
        let killed = Instant::now();
        child.kill()?;
        let took = self.client.written_elsewhere(leader, killed).await?;
        child.wait()?;
        self.spawn(leader)?;
        self.client.all_reachable().await?;
        Ok(took)
    }

    /// Drops every packet to and from the leader, and tells how long it took until another one acknowledged a write.
    /// Needs a network namespace of its own.
    pub(crate) async fn cut_leader(&mut self) -> anyhow::Result<Duration> {
        let (leader, _) = self.client.find_leader().await?;
        let port = addr(leader).port();
        nft(&format!(
            "table inet cut {{ chain input {{ type filter hook input priority 0; udp dport {port} drop; udp sport {port} drop; }}; }}"
        ))?;
        let cut = Instant::now();
        let took = self.client.written_elsewhere(leader, cut).await;
        nft("delete table inet cut")?;
        self.client.all_reachable().await?;
        took
    }

    /// Their process ids.
    pub(crate) fn pids(&self) -> Vec<u32> {
        self.children.iter().flatten().map(Child::id).collect()
    }

    /// Resident memory of each manager, in KiB.
    pub(crate) fn memory_kib(&self) -> Vec<u64> {
        memory_kib(self.children.iter().flatten())
    }
}

/// Resident memory of processes, in KiB.
pub(crate) fn memory_kib<'a>(children: impl Iterator<Item = &'a Child>) -> Vec<u64> {
    let read = |child: &Child| {
        let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).ok()?;
        let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
        line.split_whitespace().nth(1)?.parse().ok()
    };
    children.filter_map(read).collect()
}

/// Processor time that processes have used so far.
pub(crate) fn processor_time(pids: impl Iterator<Item = u32>) -> Duration {
    /// Of `/proc`, on every architecture.
    const TICKS_PER_SECOND: u64 = 100;
    let read = |pid: u32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name before the last bracket may hold anything.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        Some(fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?)
    };
    let ticks: u64 = pids.filter_map(read).sum();
    Duration::from_millis(ticks * 1_000 / TICKS_PER_SECOND)
}

fn nft(script: &str) -> anyhow::Result<()> {
    let interfaces = std::fs::read_to_string("/proc/self/net/dev")?;
    let only_loopback = interfaces
        .lines()
        .skip(2)
        .all(|line| line.trim_start().starts_with("lo:"));
    ensure!(
        only_loopback,
        "cutting the leader off needs a network namespace of its own: run this under `unshare --net`"
    );
    let status = Command::new("nft").arg(script).status()?;
    ensure!(status.success(), "nft refused `{script}`");
    Ok(())
}

fn issue(
    authority: &Authority,
    cluster_id: ClusterId,
    id: u64,
    now: Timestamp,
) -> anyhow::Result<Identity> {
    let key = NodeKey::generate()?;
    let request = SigningRequest::parse(&key.signing_request()?)?;
    let subject = shoal_transport::ca::Subject {
        node_id: node_id(id),
        role: NodeRole::Manager,
        cluster_id,
    };
    let certificate =
        authority.issue(&subject, &request, now, Duration::from_secs(7 * 24 * 3600))?;
    Ok(Identity::new(
        key,
        certificate,
        authority.certificate_der().to_vec(),
    )?)
}

/// A client that knows the leader.
#[derive(Clone)]
pub(crate) struct Client {
    endpoint: Endpoint,
    leader: u64,
}

impl Client {
    async fn ask(&self, id: u64, request: &Request, limit: Duration) -> anyhow::Result<u64> {
        let expect = Expect::Node(node_id(id));
        Ok(call(
            &self.endpoint,
            addr(id),
            expect,
            Method::Control,
            request,
            limit,
        )
        .await?)
    }

    /// Writes until somebody else than `leader` acknowledges it, and tells how long after `since` that was.
    async fn written_elsewhere(&self, leader: u64, since: Instant) -> anyhow::Result<Duration> {
        let value = "x".repeat(crate::load::VALUE_BYTES);
        while since.elapsed() < DEADLINE {
            for id in (1..=3).filter(|id| *id != leader) {
                let request = Request::Write(0, value.clone());
                let limit = Duration::from_millis(500);
                if self.ask(id, &request, limit).await.is_ok() {
                    return Ok(since.elapsed());
                }
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        bail!("nobody took over")
    }

    /// Waits until a leader hears of all three: a cluster of two would meet the next fault otherwise.
    async fn all_reachable(&mut self) -> anyhow::Result<()> {
        let started = Instant::now();
        while started.elapsed() < DEADLINE {
            let (leader, _) = self.find_leader().await?;
            let limit = Duration::from_secs(1);
            if matches!(self.ask(leader, &Request::Reachable, limit).await, Ok(3)) {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        bail!("a manager did not come back")
    }

    async fn insist(&self, id: u64, request: &Request) -> anyhow::Result<u64> {
        let started = Instant::now();
        loop {
            match self.ask(id, request, DEADLINE).await {
                Err(err) if started.elapsed() > DEADLINE => return Err(err),
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
                done => return done,
            }
        }
    }

    /// Opens a stream per client to the leader.
    pub(crate) async fn sessions(&self, clients: u32) -> anyhow::Result<Sessions> {
        let mut streams = Vec::new();
        for _ in 0..clients {
            let expect = Expect::Node(node_id(self.leader));
            let stream = self
                .endpoint
                .open(addr(self.leader), expect, Method::Control)
                .await?;
            streams.push(Mutex::new(stream));
        }
        Ok(Sessions(Arc::new(streams)))
    }

    /// The leader and its term.
    pub(crate) async fn find_leader(&mut self) -> anyhow::Result<(u64, u64)> {
        let started = Instant::now();
        while started.elapsed() < DEADLINE {
            let mut newest = None;
            for id in 1..=3 {
                if let Ok(term) = self.ask(id, &Request::Term, Duration::from_secs(1)).await {
                    // One that was cut off takes itself for the leader for a moment longer.
                    newest = newest.max(Some((term, id)));
                }
            }
            if let Some((term, id)) = newest {
                self.leader = id;
                return Ok((id, term));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        bail!("there is no leader")
    }
}

/// Streams to the leader, one per client.
#[derive(Clone)]
pub(crate) struct Sessions(Arc<Vec<Mutex<RpcStream>>>);

impl Sessions {
    /// Writes a value, as that client.
    pub(crate) async fn write(&self, client: u32, value: String) -> anyhow::Result<()> {
        self.ask(client, &Request::Write(client % KEYS, value))
            .await
    }

    /// Reads a value, as that client.
    pub(crate) async fn read(&self, client: u32) -> anyhow::Result<()> {
        self.ask(client, &Request::Read(client % KEYS)).await
    }

    async fn ask(&self, client: u32, request: &Request) -> anyhow::Result<()> {
        let mut stream = self.0[client as usize].lock().await;
        stream.send(request).await?;
        let answer: Result<u64, RpcError> = stream.recv().await?.context("no answer")?;
        Ok(answer.map(drop)?)
    }
}
