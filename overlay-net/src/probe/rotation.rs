//! Who takes new connections of a service, as one node sees it. The one rule for virtual addresses, ingress and names.

use shoal_model::NodeId;
use shoal_model::netstate::NetEndpoint;
use shoal_model::spec::OnPartition;
use std::collections::BTreeSet;

/// What a node knows by itself, beside the managers' state.
#[derive(Debug, Clone, Copy)]
pub struct Outlook<'a> {
    /// The node.
    pub node_id: NodeId,
    /// Nodes that do not answer it.
    pub suspects: &'a BTreeSet<NodeId>,
    /// It has a live lease with the managers, so that what it knows is in force.
    pub leased: bool,
}

impl Outlook<'_> {
    /// Those of a service's `members` that take new connections: what the managers say, minus tasks elsewhere that
    /// can't be confirmed for want of a lease (only services whose tasks stop in a partition: others may go on),
    /// minus the tasks of suspects, but at most half of those that are left, rounded down.
    ///
    /// The order of `members` decides which suspects stay when not all may go; callers pass them in the order of
    /// their ids, so that every part of a node decides alike.
    pub fn rotation<'m>(
        &self,
        on_partition: OnPartition,
        members: impl IntoIterator<Item = &'m NetEndpoint>,
    ) -> Vec<&'m NetEndpoint> {
        let confirmed = |member: &NetEndpoint| {
            self.leased || on_partition == OnPartition::Keep || member.node_id == self.node_id
        };
        let mut rotation: Vec<_> = members
            .into_iter()
            .filter(|member| member.in_rotation && confirmed(member))
            .collect();
        let mut may_go = rotation.len() / 2;
        rotation.retain(|member| {
            let goes = may_go > 0
                && member.node_id != self.node_id
                && self.suspects.contains(&member.node_id);
            may_go -= usize::from(goes);
            !goes
        });
        rotation
    }
}
