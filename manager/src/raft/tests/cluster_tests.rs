//! Elections, partitions, members.

use super::cluster::{Cluster, addr, create, eventually, node_id, stop_reason};
use crate::consensus::{Consensus as _, Leadership, ProposeError};
use crate::raft::types::Proposal;
use bytes::Bytes;
use shoal_model::RaftNodeId;
use std::time::Duration;
use tokio::time::Instant;

#[tokio::test]
async fn single_member_takes_writes_and_remembers_them() {
    let mut cluster = Cluster::of(1).await;
    for number in 0..20 {
        cluster.write(number).await;
    }
    cluster.stop(1).await;
    cluster.start(1).await.unwrap();
    cluster.has(1, 0..20).await;
    cluster.leader().await;
    cluster.write(20).await;
    cluster.handle(1).read_barrier().await.unwrap();
}

#[tokio::test]
async fn second_bootstrap_is_refused() {
    let cluster = Cluster::of(1).await;
    let error = cluster.handle(1).bootstrap(Vec::new()).await.unwrap_err();
    assert!(matches!(error, ProposeError::Membership { .. }), "{error}");
}

#[tokio::test]
async fn follower_names_the_leader() {
    let cluster = Cluster::of(3).await;
    let leader = cluster.leader().await;
    let follower = if leader == 1 { 2 } else { 1 };
    eventually("the follower to know its leader", || {
        let leadership = cluster.handle(follower).leadership().borrow().clone();
        matches!(leadership, Leadership::Follower { leader: Some(_) })
    })
    .await;
    let error = cluster
        .handle(follower)
        .propose(vec![create(1)])
        .await
        .unwrap_err();
    let ProposeError::NotLeader {
        leader: Some(named),
    } = error
    else {
        panic!("{error}");
    };
    assert_eq!((named.node_id, named.addr), (node_id(leader), addr(leader)));
}

#[tokio::test]
async fn killed_leader_is_replaced_and_loses_nothing() {
    let mut cluster = Cluster::of(3).await;
    for number in 0..50 {
        cluster.write(number).await;
    }
    let old = cluster.leader().await;
    cluster.wire.cut(old);
    let started = Instant::now();
    let leader = cluster.leader_other_than(old).await;
    cluster
        .handle(leader)
        .propose(vec![create(50)])
        .await
        .unwrap();
    assert!(
        started.elapsed() < Duration::from_secs(5),
        "{:?}",
        started.elapsed()
    );
    cluster.has(leader, 0..51).await;
    cluster.wire.heal(old);
    cluster.has(old, 0..51).await;
    cluster.stop(old).await;
}

#[tokio::test]
async fn minority_leader_refuses_and_says_who_is_missing() {
    let cluster = Cluster::of(3).await;
    let old = cluster.leader().await;
    cluster.write(1).await;
    cluster.wire.cut(old);
    cluster.leader_other_than(old).await;
    let handle = cluster.handle(old);
    let asked = Instant::now();
    let error = handle.propose(vec![create(2)]).await.unwrap_err();
    let ProposeError::NoQuorum { reason } = &error else {
        panic!("{error}")
    };
    assert!(reason.contains("2 of 3 managers do not answer"), "{reason}");
    let error = handle.read_barrier().await.unwrap_err();
    assert!(matches!(error, ProposeError::NoQuorum { .. }), "{error}");
    assert!(
        asked.elapsed() < Duration::from_secs(3),
        "{:?}",
        asked.elapsed()
    );
    eventually("the minority leader to step down", || {
        !handle.leadership().borrow().is_leader()
    })
    .await;
}

#[tokio::test]
async fn member_that_refuses_streams_is_asked_again_with_pauses() {
    let cluster = Cluster::of(3).await;
    let leader = cluster.leader().await;
    let refusing = if leader == 3 { 2 } else { 3 };
    cluster.wire.refuse(refusing);
    for number in 0..10 {
        cluster.write(number).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    // Entries and heartbeats ask 20 times a second each; without the pause it is tens of thousands.
    let refused = cluster.wire.refused();
    assert!(
        (10..200).contains(&refused),
        "{refused} streams were asked for"
    );
}

/// Elections that a member that was cut off can't win; each asks two others.
const ROUNDS_IN_VAIN: u64 = 3;

#[tokio::test]
async fn returning_member_does_not_depose_the_leader() {
    let cluster = Cluster::of(3).await;
    let leader = cluster.leader().await;
    let away = if leader == 3 { 2 } else { 3 };
    let term = cluster.handle(leader).metrics().current_term;
    let asked_before = cluster.wire.votes_asked(away);
    cluster.wire.cut(away);
    // It has missed its leader and wants to be elected, again and again, in vain.
    eventually("the member to ask for votes in several rounds", || {
        cluster.wire.votes_asked(away) >= asked_before + 2 * ROUNDS_IN_VAIN
    })
    .await;
    // Only real elections raise the term, with which a member that returns would depose everybody.
    assert_eq!(cluster.handle(away).metrics().current_term, term);
    cluster.wire.heal(away);
    cluster.write(7).await;
    cluster.has(away, [7]).await;
    assert_eq!(cluster.leader().await, leader);
    assert_eq!(cluster.handle(leader).metrics().current_term, term);
}

#[tokio::test]
async fn all_members_restarted_remember_everything() {
    let mut cluster = Cluster::of(3).await;
    for number in 0..30 {
        cluster.write(number).await;
    }
    for id in 1..=3 {
        cluster.stop(id).await;
    }
    for id in 1..=3 {
        cluster.start(id).await.unwrap();
    }
    cluster.write(30).await;
    for id in 1..=3 {
        cluster.has(id, 0..31).await;
    }
}

#[tokio::test]
async fn members_come_and_go_under_load() {
    let mut cluster = Cluster::of(3).await;
    let mut next = 0;
    for id in 4..=5 {
        cluster.start(id).await.unwrap();
        let leader = cluster.handle(cluster.leader().await);
        let adding = leader.add_member(RaftNodeId(id), node_id(id), addr(id));
        let writing = async {
            for _ in 0..20 {
                cluster.write(next).await;
                next += 1;
            }
        };
        let (added, ()) = tokio::join!(adding, writing);
        added.unwrap();
    }
    assert_eq!(cluster.handle(cluster.leader().await).members().len(), 5);
    for id in [4, 5] {
        let leader = cluster.handle(cluster.leader_other_than(id).await);
        leader.remove_member(RaftNodeId(id)).await.unwrap();
        cluster.write(next).await;
        next += 1;
        cluster.stop(id).await;
    }
    let members = cluster.handle(cluster.leader().await).members();
    let ids: Vec<u64> = members.iter().map(|member| member.raft_id.0).collect();
    assert_eq!(ids, [1, 2, 3]);
    for id in 1..=3 {
        cluster.has(id, 0..next).await;
    }
}

#[tokio::test]
async fn removal_that_would_lose_quorum_is_refused() {
    let cluster = Cluster::of(3).await;
    let leader = cluster.leader().await;
    let others: Vec<u64> = (1..=3).filter(|id| *id != leader).collect();
    cluster.wire.cut(others[0]);
    let handle = cluster.handle(leader);
    eventually("the leader to miss the member", || {
        handle
            .members()
            .iter()
            .any(|member| member.raft_id.0 == others[0] && !member.reachable)
    })
    .await;
    let error = handle
        .remove_member(RaftNodeId(others[1]))
        .await
        .unwrap_err();
    let ProposeError::Membership { reason } = error else {
        panic!("{error}")
    };
    assert!(
        reason.contains("2 managers would remain, of which 1 answer and 2 are needed"),
        "{reason}"
    );
    handle.remove_member(RaftNodeId(others[0])).await.unwrap();
    assert_eq!(handle.members().len(), 2);
}

#[tokio::test]
async fn last_member_can_not_be_removed() {
    let cluster = Cluster::of(1).await;
    let error = cluster
        .handle(1)
        .remove_member(RaftNodeId(1))
        .await
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "it is the last manager: promote another node first"
    );
}

#[tokio::test]
async fn leader_hands_over_when_asked_and_when_it_shuts_down() {
    let mut cluster = Cluster::of(3).await;
    let first = cluster.leader().await;
    let target = if first == 2 { 3 } else { 2 };
    cluster
        .handle(first)
        .transfer_leadership(Some(RaftNodeId(target)))
        .await
        .unwrap();
    assert_eq!(cluster.leader_other_than(first).await, target);
    cluster.write(1).await;
    let started = Instant::now();
    cluster.stop(target).await;
    cluster.leader().await;
    // Much faster than an election after silence.
    assert!(
        started.elapsed() < Duration::from_secs(2),
        "{:?}",
        started.elapsed()
    );
    cluster.write(2).await;
}

#[tokio::test]
async fn moved_member_is_found_at_its_new_address() {
    let mut cluster = Cluster::of(3).await;
    let leader = cluster.leader().await;
    let moved = if leader == 3 { 2 } else { 3 };
    let (handle, _) = cluster.members[&moved].clone();
    cluster.wire.disconnect(addr(moved));
    cluster.wire.connect(addr(40), handle);
    let leader = cluster.handle(leader);
    leader
        .add_member(RaftNodeId(moved), node_id(moved), addr(40))
        .await
        .unwrap();
    cluster.write(5).await;
    cluster.has(moved, [5]).await;
    cluster.stop(moved).await;
}

#[tokio::test]
async fn undecodable_entry_stops_the_role() {
    let cluster = Cluster::of(1).await;
    let handle = cluster.handle(1);
    let proposal = Proposal {
        level: 1,
        commands: vec![Bytes::from_static(b"\x01\xff\xff\xff")],
    };
    assert!(handle.inner.raft.client_write(proposal).await.is_err());
    let reason = stop_reason(&handle).await;
    assert!(reason.contains("can't be decoded"), "{reason}");
    let error = handle.propose(vec![create(1)]).await.unwrap_err();
    assert!(matches!(error, ProposeError::Shutdown { .. }), "{error}");
}

#[tokio::test]
async fn entry_of_a_newer_feature_level_stops_the_role_on_every_member() {
    let cluster = Cluster::of(3).await;
    let leader = cluster.handle(cluster.leader().await);
    let proposal = Proposal {
        level: 99,
        commands: vec![Bytes::from_static(b"anything")],
    };
    assert!(leader.inner.raft.client_write(proposal).await.is_err());
    let stopped = |id: u64| match &*cluster.handle(id).leadership().borrow() {
        Leadership::Stopped { reason } => Some(reason.clone()),
        Leadership::Leader { .. } | Leadership::Follower { .. } => None,
    };
    // Without a majority the last one never learns that the entry is committed; it must not pass it either.
    eventually("a majority to stop", || {
        (1..=3).filter_map(stopped).count() >= 2
    })
    .await;
    for reason in (1..=3).filter_map(stopped) {
        assert!(reason.contains("needs store feature level 99"), "{reason}");
    }
    assert_eq!(cluster.leader_now(), None);
    let entry = leader.metrics().last_log_index;
    for id in 1..=3 {
        let applied = cluster.handle(id).metrics().last_applied;
        assert!(applied.map(|id| id.index) < entry, "member {id}");
    }
}

#[tokio::test]
async fn too_large_and_too_many_are_refused_before_the_log() {
    let cluster = Cluster::of(1).await;
    let handle = cluster.handle(1);
    let many = vec![create(1); 2_001];
    assert!(matches!(
        handle.propose(many).await,
        Err(ProposeError::TooManyActions {
            actions: 2_001,
            actions_max: 2_000
        })
    ));
    let mut large = create(2);
    if let shoal_model::command::StoreAction::Create(shoal_model::command::Object::Node(node)) =
        &mut large
    {
        node.spec.name = "x".repeat(5 << 20);
    }
    assert!(matches!(
        handle.propose(vec![large]).await,
        Err(ProposeError::TooLarge { .. })
    ));
}

#[tokio::test]
async fn many_writers_share_syncs_and_all_are_found() {
    let cluster = Cluster::of(3).await;
    let leader = cluster.handle(cluster.leader().await);
    let writers = (0..300).map(|number| {
        let leader = leader.clone();
        async move { leader.propose(vec![create(number)]).await.unwrap() }
    });
    futures_util::future::join_all(writers).await;
    for id in 1..=3 {
        cluster.has(id, 0..300).await;
    }
}
