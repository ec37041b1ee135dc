//! The quorum doctor: would the managers that remain still agree?

use crate::consensus::Member;
use shoal_model::NodeId;

/// Why taking `node` out of Raft would lose quorum; `None`: it may go.
///
/// The members that remain must be at least one, and a majority of them must answer now: a cluster with three
/// managers of which one is dead may demote the dead one, not a living one.
pub(crate) fn loss(members: &[Member], node: NodeId) -> Option<String> {
    if !members.iter().any(|member| member.node_id == node) {
        return None;
    }
    let remaining: Vec<_> = members
        .iter()
        .filter(|member| member.voter && member.node_id != node)
        .collect();
    if remaining.is_empty() {
        return Some(
            "it is the last manager: promote another node first, or leave with `--force` to give up the cluster"
                .to_owned(),
        );
    }
    let reachable = remaining.iter().filter(|member| member.reachable).count();
    let needed = remaining.len() / 2 + 1;
    if reachable >= needed {
        return None;
    }
    let silent: Vec<_> = remaining
        .iter()
        .filter(|member| !member.reachable)
        .map(|member| format!("`{}`", member.node_id))
        .collect();
    Some(format!(
        "of the {} managers that would remain only {reachable} can be reached, and {needed} are needed for quorum; \
         unreachable: {}. Bring them back or demote them first",
        remaining.len(),
        silent.join(", ")
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use shoal_model::RaftNodeId;

    /// One letter per member: `u` up, `d` down, `l` a learner that is up.
    fn members(text: &str) -> Vec<Member> {
        text.chars()
            .zip(1..)
            .map(|(letter, number): (char, u64)| Member {
                raft_id: RaftNodeId(number),
                node_id: NodeId::from_bits(number.into()),
                addr: ([127, 0, 0, 1], 2377).into(),
                voter: letter != 'l',
                leader: number == 1,
                reachable: letter != 'd',
            })
            .collect()
    }

    fn check(text: &str, node: u128, refused: bool) {
        let loss = loss(&members(text), NodeId::from_bits(node));
        assert_eq!(loss.is_some(), refused, "{text} without {node}: {loss:?}");
    }

    #[test]
    fn a_demotion_that_loses_quorum_is_refused() {
        check("u", 1, true);
        check("uu", 1, false);
        check("ud", 1, true);
        check("ud", 2, false);
        check("uuu", 2, false);
        check("uud", 3, false);
        check("uud", 2, true);
        check("ul", 1, true);
        check("ul", 2, false);
        check("uuudd", 1, true);
        check("uuudd", 5, false);
        check("uu", 9, false);
    }
}
