//! Sanity of speed: floors far below what is measured, so that only a broken path falls under them.

use crate::fixture::{DEADLINE, Manager, client};
use shoal_model::NodeRole;
use shoal_model::rpc::Method;
use shoal_transport::{Connector, Expect, call};
use std::time::{Duration, Instant};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_are_fast_one_by_one_and_together() {
    const CALLS: u32 = 500;
    const TOGETHER: u32 = 64;
    let manager = Manager::start();
    let caller = client(Some(manager.cluster.identity(20, NodeRole::Manager)));
    let one = || async {
        let answer: u64 = call(
            &caller,
            manager.addr,
            Expect::AnyManager,
            Method::Control,
            &1u64,
            DEADLINE,
        )
        .await
        .unwrap();
        assert_eq!(answer, 41);
    };
    one().await;
    let started = Instant::now();
    for _ in 0..CALLS {
        one().await;
    }
    let each = started.elapsed() / CALLS;
    let started = Instant::now();
    for _ in 0..CALLS / TOGETHER {
        futures_util::future::join_all((0..TOGETHER).map(|_| one())).await;
    }
    let together = started.elapsed() / (CALLS / TOGETHER * TOGETHER);
    println!("one by one {each:?}, {TOGETHER} together {together:?}");
    assert!(each < Duration::from_millis(20), "{each:?} per call");
    assert!(
        together < Duration::from_millis(20),
        "{together:?} per call"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_frame_arrives_whole() {
    let manager = Manager::start();
    let caller = client(Some(manager.cluster.identity(20, NodeRole::Worker)));
    let mut stream = caller
        .open(manager.addr, Expect::AnyManager, Method::Session)
        .await
        .unwrap();
    let large = "shoal ".repeat(2 << 20);
    let started = Instant::now();
    stream.send(&large).await.unwrap();
    assert_eq!(stream.recv::<String>().await.unwrap().unwrap(), large);
    println!("12 MiB there and back in {:?}", started.elapsed());
}
