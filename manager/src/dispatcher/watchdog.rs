//! Declares nodes DOWN that have been silent for the down limit, UNKNOWN that a new leader has not heard yet, and
//! READY again that are heard while the store says something else.

use super::liveness::{Liveness, TICK_PERIOD};
use super::writer::Report;
use super::{Term, lock};
use crate::store::State;
use shoal_model::command::StoreAction;
use shoal_model::{ClusterSpec, Node, NodeId, NodeState, NodeStatus, Timestamp};
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::time::{Instant, MissedTickBehavior};
use tracing::warn;

/// A new leader gives nodes so long to find it before it calls them UNKNOWN. Usually all of them are back within a
/// fraction of it, and nothing needs to be written.
const UNKNOWN_AFTER: Duration = Duration::from_secs(1);

/// A node that was heard this long ago at most is alive.
const HEARD_AGAIN_MAX: Duration = Duration::from_secs(1);

pub(super) async fn run(term: &Term) {
    let mut ticks = tokio::time::interval(TICK_PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // What was reported and is not in the view yet.
    let mut reported = BTreeSet::new();
    loop {
        ticks.tick().await;
        let now = Instant::now();
        let wall = term.context.clock.now();
        let state = term.context.store.view();
        let mut live = lock(&term.live);
        live.liveness.look(now);
        let actions = verdicts(&state, &live.liveness, now, wall, &mut reported);
        if !actions.is_empty() {
            // Queued under the lock: a hello that comes later is written later.
            let report = Report { actions, ack: None };
            if !term.writer.report(report) {
                reported.clear();
            }
        }
    }
}

/// What must be written about silent nodes. `reported` remembers verdicts until the store shows them.
fn verdicts(
    state: &State,
    liveness: &Liveness,
    now: Instant,
    wall: Timestamp,
    reported: &mut BTreeSet<(NodeId, NodeState)>,
) -> Vec<StoreAction> {
    let limit = state.cluster().map_or_else(
        || ClusterSpec::default().down_limit_ms,
        |cluster| cluster.spec.down_limit_ms,
    );
    let limit = Duration::from_millis(limit);
    let mut actions = Vec::new();
    let mut current = BTreeSet::new();
    for node in state.nodes() {
        let silence = liveness.silence(node.id, now);
        let heard = liveness.was_heard(node.id);
        let Some(verdict) = verdict(node, silence, heard, limit, wall) else {
            continue;
        };
        current.insert((node.id, verdict));
        if !reported.contains(&(node.id, verdict)) {
            actions.push(action(node, verdict, silence));
        }
    }
    *reported = current;
    actions
}

fn verdict(
    node: &Node,
    silence: Duration,
    heard: bool,
    limit: Duration,
    wall: Timestamp,
) -> Option<NodeState> {
    let held = node.hold_until.is_some_and(|until| until > wall);
    match node.status.state {
        NodeState::Ready | NodeState::Unknown if silence >= limit && !held => {
            // A node that was added but never came has nothing to lose, and is not reported as lost.
            let never_came = node.description.is_none() && !heard;
            (!never_came).then_some(NodeState::Down)
        }
        NodeState::Ready if !heard && silence >= UNKNOWN_AFTER => Some(NodeState::Unknown),
        // A verdict that was on its way into the store when the node came back.
        NodeState::Unknown | NodeState::Down | NodeState::Disconnected
            if heard && silence < HEARD_AGAIN_MAX =>
        {
            Some(NodeState::Ready)
        }
        NodeState::Ready | NodeState::Unknown | NodeState::Down | NodeState::Disconnected => None,
    }
}

fn action(node: &Node, verdict: NodeState, silence: Duration) -> StoreAction {
    let message = match verdict {
        NodeState::Down => {
            warn!(node_id = %node.id, silence_ms = silence.as_millis(), "node is down");
            format!("not heard of for {:.1} s", silence.as_secs_f64())
        }
        NodeState::Unknown => "not heard of since the leader changed".to_owned(),
        NodeState::Ready | NodeState::Disconnected => String::new(),
    };
    StoreAction::SetNodeStatus {
        node_id: node.id,
        status: NodeStatus {
            state: verdict,
            message,
            addr: node.status.addr.clone(),
        },
        description: None,
    }
}
