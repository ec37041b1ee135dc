//! Which step comes next, from the store and the membership.

use super::{Step, role_now, steps};
use crate::ca_server::new_node;
use crate::consensus::Member;
use crate::store::State;
use shoal_model::command::{Command, Object, StoreAction};
use shoal_model::node::ManagerStatus;
use shoal_model::{Availability, Node, NodeId, NodeRole, RaftNodeId, Timestamp};
use std::net::SocketAddr;

const ADDR: SocketAddr = SocketAddr::V4(std::net::SocketAddrV4::new(
    std::net::Ipv4Addr::LOCALHOST,
    2377,
));

/// Nodes 1, 2…: one letter per node for the wish (`m` or `w`), upper case if it has a place in Raft.
fn state(nodes: &str) -> State {
    let actions = nodes
        .chars()
        .zip(1_u64..)
        .map(|(letter, number)| StoreAction::Create(Object::Node(Box::new(node(letter, number)))));
    let command = Command {
        time: Timestamp(1),
        actions: actions.collect(),
    };
    let mut state = State::new();
    state.apply(1, &command);
    state
}

fn node(letter: char, number: u64) -> Node {
    let role = if letter.eq_ignore_ascii_case(&'m') {
        NodeRole::Manager
    } else {
        NodeRole::Worker
    };
    let id = NodeId::from_bits(number.into());
    let mut node = new_node(id, [0; 32], role, Availability::Active);
    node.manager = letter.is_ascii_uppercase().then_some(ManagerStatus {
        raft_id: RaftNodeId(number),
        addr: ADDR,
    });
    node
}

/// Members 1, 2…: `v` a voter, `d` a voter that does not answer, `l` a learner, `-` none.
fn members(text: &str) -> Vec<Member> {
    text.chars()
        .zip(1_u64..)
        .filter(|(letter, _)| *letter != '-')
        .map(|(letter, number)| Member {
            raft_id: RaftNodeId(number),
            node_id: NodeId::from_bits(number.into()),
            addr: ADDR,
            voter: letter != 'l',
            leader: number == 1,
            reachable: letter != 'd',
        })
        .collect()
}

fn check(nodes: &str, raft: &str, expected: &str) {
    let found: Vec<_> = steps(&state(nodes), &members(raft), NodeId::from_bits(1))
        .iter()
        .map(|step| match step {
            Step::Add { raft_id, .. } => format!("add {raft_id}"),
            Step::HandOver => "hand over".to_owned(),
            Step::Remove { raft_id, .. } => format!("remove {raft_id}"),
            Step::Forget { node_id, .. } => format!("forget {}", node_id.bits()),
            Step::Wait { node_id, .. } => format!("wait {}", node_id.bits()),
            Step::Raise(level) => format!("raise {level}"),
        })
        .collect();
    assert_eq!(found.join(", "), expected, "{nodes} {raft}");
}

#[test]
fn each_pass_takes_the_next_step() {
    check("MMM", "vvv", "");
    check("Mm", "v-", "");
    check("MM", "v-", "add 2");
    check("MM", "vl", "add 2");
    check("MWM", "vvv", "remove 2");
    check("MWM", "v-v", "forget 2");
    check("WMM", "vvv", "hand over");
    check("W", "v", "wait 1");
    check("MWM", "vvd", "wait 2");
    check("MMW", "vvd", "remove 3");
    check("MWW", "vvv", "remove 2");
    check("M", "vv", "remove 2");
}

#[test]
fn a_manager_stays_one_until_it_is_out_of_raft() {
    assert_eq!(role_now(&node('m', 1)), NodeRole::Manager);
    assert_eq!(role_now(&node('W', 1)), NodeRole::Manager);
    assert_eq!(role_now(&node('w', 1)), NodeRole::Worker);
}
