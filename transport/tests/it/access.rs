//! Who gets in, and who may call what.

use crate::fixture::{Cluster, DEADLINE, LIFE, Manager, ask, client, loopback, now};
use shoal_model::rpc::Method;
use shoal_model::{NodeId, NodeRole, Timestamp};
use shoal_transport::stream::Refused;
use shoal_transport::{
    CallError, Connector, Endpoint, EndpointOptions, Expect, IdentityHandle, NodeKey, StreamError,
    TransportError, call,
};
use std::net::UdpSocket;
use std::sync::atomic::Ordering;
use std::time::Duration;

fn check_refused(result: Result<u64, CallError>) {
    match result {
        Err(CallError::Stream {
            err: StreamError::Refused(Refused::Access),
            ..
        }) => {}
        other => panic!("expected a refusal, got {other:?}"),
    }
}

fn check_no_connection(result: Result<u64, CallError>) {
    match result {
        Err(CallError::Transport(TransportError::Handshake { .. })) => {}
        other => panic!("expected a failed handshake, got {other:?}"),
    }
}

#[tokio::test]
async fn a_manager_may_call_everything() {
    let manager = Manager::start();
    let caller = client(Some(manager.cluster.identity(20, NodeRole::Manager)));
    assert_eq!(
        ask(&caller, manager.addr, Method::Control).await.unwrap(),
        1040
    );
    assert_eq!(
        ask(&caller, manager.addr, Method::Leave).await.unwrap(),
        1012
    );
}

#[tokio::test]
async fn a_worker_may_call_what_nodes_may() {
    let manager = Manager::start();
    let caller = client(Some(manager.cluster.identity(20, NodeRole::Worker)));
    assert_eq!(
        ask(&caller, manager.addr, Method::Leave).await.unwrap(),
        1012
    );
    for method in [Method::Control, Method::RaftAppend, Method::RaftJoin] {
        check_refused(ask(&caller, manager.addr, method).await);
    }
    assert_eq!(manager.served(), 1);
}

#[tokio::test]
async fn a_node_that_the_store_no_longer_admits_is_refused() {
    let manager = Manager::start();
    let caller = client(Some(manager.cluster.identity(20, NodeRole::Manager)));
    ask(&caller, manager.addr, Method::Control).await.unwrap();
    manager.handler.refuse_all.store(true, Ordering::SeqCst);
    check_refused(ask(&caller, manager.addr, Method::Control).await);
}

#[tokio::test]
async fn certificates_of_another_cluster_are_refused() {
    let manager = Manager::start();
    let stranger = Cluster::new(2).identity(20, NodeRole::Manager);
    check_no_connection(ask(&client(Some(stranger)), manager.addr, Method::Control).await);
    assert_eq!(manager.served(), 0);
}

#[tokio::test]
async fn a_certificate_that_the_root_did_not_sign_is_no_identity() {
    let manager = Manager::start();
    let stranger = Cluster::new(1);
    let key = NodeKey::generate().unwrap();
    let forged = stranger.identity_at(key.clone(), 20, NodeRole::Manager, now());
    let result = shoal_transport::Identity::new(
        key,
        forged.certificate_der().to_vec(),
        manager.cluster.root.certificate_der.clone(),
    );
    assert!(result.is_err());
}

#[tokio::test]
async fn expired_certificates_are_refused_on_both_sides() {
    let manager = Manager::start();
    let long_ago = Timestamp(now().0 - 2 * i64::try_from(LIFE.as_nanos()).unwrap());
    let key = NodeKey::generate().unwrap();
    let expired = manager
        .cluster
        .identity_at(key, 20, NodeRole::Manager, long_ago);
    assert!(expired.is_expired(now()));
    check_no_connection(
        ask(
            &client(Some(expired.clone())),
            manager.addr,
            Method::Control,
        )
        .await,
    );
    assert_eq!(manager.served(), 0);

    let server = Manager::start_at(manager.cluster.clone(), expired, loopback());
    let caller = client(Some(manager.cluster.identity(21, NodeRole::Manager)));
    check_no_connection(ask(&caller, server.addr, Method::Control).await);
}

#[tokio::test]
async fn a_certificate_of_the_future_is_refused() {
    let manager = Manager::start();
    let tomorrow = now().plus(LIFE);
    let key = NodeKey::generate().unwrap();
    let early = manager
        .cluster
        .identity_at(key, 20, NodeRole::Manager, tomorrow);
    check_no_connection(ask(&client(Some(early)), manager.addr, Method::Control).await);
}

#[tokio::test]
async fn the_expected_peer_must_answer() {
    let manager = Manager::start();
    let caller = client(Some(manager.cluster.identity(20, NodeRole::Worker)));
    let other = Expect::Node(NodeId::from_bits(99));
    let err = caller
        .open(manager.addr, other, Method::Leave)
        .await
        .unwrap_err();
    assert!(matches!(err, TransportError::WrongPeer { .. }), "{err}");
    let right = Expect::Node(manager.identity.node_id());
    let answer: u64 = call(&caller, manager.addr, right, Method::Leave, &1u64, DEADLINE)
        .await
        .unwrap();
    assert_eq!(answer, 13);
}

#[tokio::test]
async fn a_node_without_identity_neither_calls_nor_answers() {
    let manager = Manager::start();
    let lonely = client(None);
    let err = ask(&lonely, manager.addr, Method::Leave).await.unwrap_err();
    assert!(matches!(
        err,
        CallError::Transport(TransportError::NoIdentity)
    ));

    let options = EndpointOptions {
        dial_timeout: Duration::from_millis(300),
        ..EndpointOptions::control()
    };
    let handle = IdentityHandle::new(Some(manager.cluster.identity(20, NodeRole::Manager)));
    let caller = Endpoint::bind(loopback(), handle, options).unwrap();
    let err = ask(&caller, lonely.local_addr(), Method::Leave)
        .await
        .unwrap_err();
    assert!(
        matches!(err, CallError::Transport(TransportError::TimedOut { .. })),
        "{err}"
    );
}

#[tokio::test]
async fn garbage_datagrams_are_harmless() {
    let manager = Manager::start();
    let socket = UdpSocket::bind(loopback()).unwrap();
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    for length in 0..1400usize {
        let bytes: Vec<u8> = (0..length)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                (state & 0xff) as u8
            })
            .collect();
        socket.send_to(&bytes, manager.addr).unwrap();
        let mut long_header = bytes;
        if let Some(first) = long_header.first_mut() {
            *first |= 0xc0;
        }
        socket.send_to(&long_header, manager.addr).unwrap();
    }
    let caller = client(Some(manager.cluster.identity(20, NodeRole::Manager)));
    assert_eq!(
        ask(&caller, manager.addr, Method::Control).await.unwrap(),
        1040
    );
}
