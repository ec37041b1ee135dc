//! Three members over real QUIC on loopback, each on a real-time thread of its own.

use super::cluster::{Clock, create, eventually, node_id, written_id};
use crate::consensus::Consensus as _;
use crate::raft::{Placement, RaftHandle, RaftKey, RaftOptions, RaftRuntime, RealDisk, Timing};
use crate::store::Store;
use async_trait::async_trait;
use shoal_model::rpc::Method;
use shoal_model::{ClusterId, NodeRole, RaftNodeId, Timestamp};
use shoal_transport::ca::{Authority, SigningRequest, Subject};
use shoal_transport::{
    Endpoint, EndpointOptions, Identity, IdentityHandle, NodeKey, Peer, RpcHandler, RpcStream,
};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

struct Handler(RaftHandle);

#[async_trait]
impl RpcHandler for Handler {
    async fn handle(&self, peer: Peer, method: Method, stream: RpcStream) {
        self.0.handle_rpc(peer, method, stream).await;
    }
}

struct Member {
    id: u64,
    raft: RaftHandle,
    store: Store,
    endpoint: Endpoint,
    runtime: RaftRuntime,
}

async fn member(authority: &Authority, cluster_id: ClusterId, id: u64, dir: &Path) -> Member {
    let wall = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap();
    let key = NodeKey::generate().unwrap();
    let request = SigningRequest::parse(&key.signing_request().unwrap()).unwrap();
    let subject = Subject {
        node_id: node_id(id),
        role: NodeRole::Manager,
        cluster_id,
    };
    let day = Duration::from_secs(24 * 3600);
    let now = Timestamp::from_unix(wall);
    let certificate = authority.issue(&subject, &request, now, day).unwrap();
    let identity = Identity::new(key, certificate, authority.certificate_der().to_vec()).unwrap();
    let runtime = RaftRuntime::start().unwrap();
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let bind = async move {
        Endpoint::bind(
            any,
            IdentityHandle::new(Some(identity)),
            EndpointOptions::control(),
        )
    };
    let endpoint = runtime.handle().spawn(bind).await.unwrap().unwrap();
    let store = Store::new();
    let raft = RaftHandle::start(RaftOptions {
        data_dir: dir.join(id.to_string()),
        raft_id: RaftNodeId(id),
        node_id: node_id(id),
        advertise: endpoint.local_addr(),
        key: RaftKey::from_bytes([1; 32]),
        timing: Timing::default(),
        snapshot_interval_entries: 10_000,
        connector: Arc::new(endpoint.clone()),
        disk: Arc::new(RealDisk),
        store: store.clone(),
        clock: Arc::new(Clock),
        seed: id,
        placement: Placement::Threads(runtime.clone()),
    })
    .await
    .unwrap();
    let handler = Arc::new(Handler(raft.clone()));
    let served = endpoint.clone();
    drop(
        runtime
            .handle()
            .spawn(async move { served.serve(handler).await }),
    );
    Member {
        id,
        raft,
        store,
        endpoint,
        runtime,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn three_members_over_quic_survive_the_loss_of_their_leader() {
    let wall = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap();
    let cluster_id = ClusterId::from_bits(1);
    let root = Authority::generate(cluster_id, Timestamp::from_unix(wall)).unwrap();
    let authority = Authority::load(&root).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut members = Vec::new();
    for id in 1..=3 {
        members.push(member(&authority, cluster_id, id, dir.path()).await);
    }
    members[0].raft.bootstrap(Vec::new()).await.unwrap();
    for place in 1..3 {
        let added = &members[place];
        let addr = added.endpoint.local_addr();
        let leader = members
            .iter()
            .find(|member| member.raft.leadership().borrow().is_leader());
        let leader = leader.unwrap();
        leader
            .raft
            .add_member(RaftNodeId(added.id), node_id(added.id), addr)
            .await
            .unwrap();
    }
    for number in 0..50 {
        members[0].raft.propose(vec![create(number)]).await.unwrap();
    }
    members[0].raft.read_barrier().await.unwrap();
    let lost = members.remove(0);
    lost.endpoint.shutdown().await;
    eventually("another leader", || {
        members
            .iter()
            .any(|member| member.raft.leadership().borrow().is_leader())
    })
    .await;
    let leader = members
        .iter()
        .find(|member| member.raft.leadership().borrow().is_leader());
    leader
        .unwrap()
        .raft
        .propose(vec![create(50)])
        .await
        .unwrap();
    for member in &members {
        eventually("all writes", || {
            let view = member.store.view();
            (0..=50).all(|number| view.node(written_id(number)).is_some())
        })
        .await;
    }
    members.push(lost);
    for member in members {
        member.raft.shutdown().await;
        member.endpoint.shutdown().await;
        tokio::task::spawn_blocking(move || member.runtime.stop())
            .await
            .unwrap();
    }
}
