//! Renewal under open streams, restarts, lost peers, shutdown.

use crate::fixture::{DEADLINE, Manager, ask, client, loopback, now};
use shoal_model::rpc::Method;
use shoal_model::{NodeRole, Timestamp};
use shoal_transport::files::IdentityFiles;
use shoal_transport::renewal::{RenewalContext, RenewalHandle, due, run};
use shoal_transport::{
    CallError, Connector, Endpoint, EndpointOptions, Expect, Identity, IdentityHandle, RpcStream,
    TransportError, call,
};
use std::net::UdpSocket;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

#[tokio::test]
async fn streams_live_on_while_the_certificate_is_renewed() {
    let manager = Manager::start();
    let old = manager.cluster.identity(20, NodeRole::Worker);
    let caller = client(Some(old.clone()));
    let mut stream = caller
        .open(manager.addr, Expect::AnyManager, Method::Session)
        .await
        .unwrap();
    stream.send("before").await.unwrap();
    assert_eq!(stream.recv::<String>().await.unwrap().unwrap(), "before");
    // Promoted: same node, same key, new role.
    let promoted = manager
        .cluster
        .identity_at(old.key().clone(), 20, NodeRole::Manager, now());
    assert!(ask(&caller, manager.addr, Method::Control).await.is_err());
    caller.identity().swap(Some(promoted));
    assert_eq!(
        ask(&caller, manager.addr, Method::Control).await.unwrap(),
        1040
    );
    stream.send("after").await.unwrap();
    assert_eq!(stream.recv::<String>().await.unwrap().unwrap(), "after");
}

#[tokio::test]
async fn a_server_presents_its_renewed_certificate() {
    let manager = Manager::start();
    let worker_now =
        manager
            .cluster
            .identity_at(manager.identity.key().clone(), 10, NodeRole::Worker, now());
    manager.endpoint.identity().swap(Some(worker_now));
    let deadline = Instant::now() + DEADLINE;
    loop {
        let caller = client(Some(manager.cluster.identity(20, NodeRole::Manager)));
        let refused = ask(&caller, manager.addr, Method::Control).await.is_err();
        if refused {
            return;
        }
        assert!(Instant::now() < deadline, "still answers as a manager");
    }
}

#[tokio::test]
async fn a_restarted_peer_is_noticed_at_once() {
    let manager = Manager::start();
    let relay = Relay::start(manager.addr).await;
    let caller = client(Some(manager.cluster.identity(20, NodeRole::Manager)));
    let mut waiting = caller
        .open(relay.addr, Expect::AnyManager, Method::Session)
        .await
        .unwrap();
    waiting.send("hello").await.unwrap();
    waiting.recv::<String>().await.unwrap().unwrap();
    // The same node in a new process: it knows nothing of the connection.
    let cluster = Arc::clone(&manager.cluster);
    let reborn = Manager::start_at(cluster, manager.identity.clone(), loopback());
    relay.target.send_replace(reborn.addr);
    let started = Instant::now();
    waiting.send("anyone?").await.unwrap();
    assert!(waiting.recv::<String>().await.is_err());
    let noticed_after = started.elapsed();
    assert!(noticed_after < Duration::from_secs(1), "{noticed_after:?}");
    assert_eq!(
        ask(&caller, relay.addr, Method::Control).await.unwrap(),
        1040
    );
    assert_eq!(reborn.served(), 1);
}

/// Passes datagrams between one client and a server that can be exchanged under it.
struct Relay {
    addr: std::net::SocketAddr,
    target: tokio::sync::watch::Sender<std::net::SocketAddr>,
}

impl Relay {
    async fn start(target: std::net::SocketAddr) -> Self {
        let socket = tokio::net::UdpSocket::bind(loopback()).await.unwrap();
        let addr = socket.local_addr().unwrap();
        let (target, now) = tokio::sync::watch::channel(target);
        tokio::spawn(async move {
            let mut servers = Vec::new();
            let mut client = None;
            let mut bytes = vec![0; 65_536];
            loop {
                let (length, from) = socket.recv_from(&mut bytes).await.unwrap();
                let server = *now.borrow();
                if !servers.contains(&server) {
                    servers.push(server);
                }
                let to = if servers.contains(&from) {
                    client
                } else {
                    client = Some(from);
                    Some(server)
                };
                // Late packets of the server that was taken away are lost, as those of a killed one.
                if let Some(to) = to.filter(|_| from == server || !servers.contains(&from)) {
                    socket.send_to(&bytes[..length], to).await.unwrap();
                }
            }
        });
        Self { addr, target }
    }
}

#[tokio::test]
async fn a_silent_address_costs_a_caller_its_dial_timeout_only() {
    let manager = Manager::start();
    let options = EndpointOptions {
        dial_timeout: Duration::from_millis(200),
        ..EndpointOptions::control()
    };
    let handle = IdentityHandle::new(Some(manager.cluster.identity(20, NodeRole::Manager)));
    let caller = Endpoint::bind(loopback(), handle, options).unwrap();
    let silent = UdpSocket::bind(loopback()).unwrap();
    let addr = silent.local_addr().unwrap();
    let started = Instant::now();
    let calls = (0..20).map(|_| ask(&caller, addr, Method::Control));
    for result in futures_util::future::join_all(calls).await {
        assert!(matches!(result, Err(CallError::Transport(_))));
    }
    assert!(
        started.elapsed() < Duration::from_secs(2),
        "callers waited one after the other: {:?}",
        started.elapsed()
    );
}

#[tokio::test]
async fn a_call_without_answer_ends_at_its_deadline() {
    let (near, _far) = tokio::io::duplex(1024);
    let silent = Silent(std::sync::Mutex::new(Some(near)));
    let limit = Duration::from_millis(100);
    let result: Result<u64, CallError> = call(
        &silent,
        loopback(),
        Expect::AnyManager,
        Method::Control,
        &1u64,
        limit,
    )
    .await;
    assert!(
        matches!(result, Err(CallError::TimedOut { .. })),
        "{result:?}"
    );
}

/// A connector whose one stream never answers.
struct Silent(std::sync::Mutex<Option<tokio::io::DuplexStream>>);

#[async_trait::async_trait]
impl Connector for Silent {
    async fn open(
        &self,
        _addr: std::net::SocketAddr,
        _expect: Expect,
        method: Method,
    ) -> Result<RpcStream, TransportError> {
        let stream = self.0.lock().unwrap().take().unwrap();
        let (read, write) = tokio::io::split(stream);
        Ok(RpcStream::caller(Box::new(read), Box::new(write), method))
    }
}

#[tokio::test]
async fn shutdown_tells_the_peers() {
    let manager = Manager::start();
    let caller = client(Some(manager.cluster.identity(20, NodeRole::Worker)));
    let mut stream = caller
        .open(manager.addr, Expect::AnyManager, Method::Session)
        .await
        .unwrap();
    stream.send("hello").await.unwrap();
    stream.recv::<String>().await.unwrap().unwrap();
    manager.endpoint.shutdown().await;
    assert!(stream.recv::<String>().await.is_err());
}

#[test]
fn renewal_is_due_at_half_to_four_fifths_of_life() {
    let cluster = crate::fixture::Cluster::new(1);
    let identity = cluster.identity(20, NodeRole::Worker);
    let hours = |draw| due(&identity, draw).since(identity.issued_at()).as_secs() / 3600;
    assert_eq!(hours(0.0), 12);
    assert_eq!(hours(1.0), 19);
}

#[tokio::test]
async fn the_renewal_loop_swaps_and_stores_what_it_gets() {
    let folder = tempfile::tempdir().unwrap();
    let cluster = Arc::new(crate::fixture::Cluster::new(1));
    let old = cluster.identity(20, NodeRole::Worker);
    let identity = IdentityHandle::new(Some(old.clone()));
    let files = IdentityFiles::new(folder.path());
    let handle = RenewalHandle::new();
    let context = RenewalContext {
        identity: identity.clone(),
        files: files.clone(),
        handle: handle.clone(),
        now,
        random: || 0.5,
    };
    let issuer = Arc::clone(&cluster);
    let renew = move |old: Identity| {
        let issuer = Arc::clone(&issuer);
        async move {
            let later = Timestamp(now().0 + 1_000_000_000);
            let key = old.key().clone();
            Ok::<_, std::io::Error>(issuer.identity_at(key, 20, NodeRole::Manager, later))
        }
    };
    let running = tokio::spawn(run(context, renew));
    let mut changes = identity.subscribe();
    changes.mark_unchanged();
    handle.renew_now();
    tokio::time::timeout(DEADLINE, changes.changed())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(identity.current().unwrap().role(), NodeRole::Manager);
    assert_eq!(files.load().unwrap().unwrap().role(), NodeRole::Manager);
    running.abort();
}
