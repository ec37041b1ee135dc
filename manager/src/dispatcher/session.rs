//! One node's session: answers its heartbeats, takes its reports, sends it its assignments.

use super::outbox::{Outbox, Pending};
use super::writer::Report;
use super::{Term, assignments, lock};
use crate::store::State;
use shoal_model::command::StoreAction;
use shoal_model::node::{NodeDescription, NodeState, NodeStatus};
use shoal_model::session::{
    AssignmentsMessage, ManagerMessage, NodeMessage, STATUSES_PER_MESSAGE_MAX,
};
use shoal_model::{ClusterSpec, NodeId, SessionId, Task, TaskId, TaskStatus};
use shoal_transport::{Peer, RpcReceiver, RpcSender, RpcStream, StreamError};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tracing::{debug, info, warn};

/// The first frame must come within this.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);

/// A node that does not take a message for so long is gone.
const SEND_TIMEOUT: Duration = Duration::from_secs(5);

/// Shortest time between two sets of changes. The first change after a pause is sent at once; what follows within
/// this period travels together.
const CHANGES_PERIOD: Duration = Duration::from_millis(4);

/// Longest hold that a node may announce.
const HOLD_MAX: Duration = Duration::from_secs(600);

/// Why a session ended early.
#[derive(Debug, thiserror::Error)]
enum SessionError {
    /// The stream broke.
    #[error("the stream of the session broke")]
    Stream(#[from] StreamError),
    /// The node takes nothing any more.
    #[error("the node did not take a message for {} s", SEND_TIMEOUT.as_secs())]
    Stuck,
    /// The node broke the protocol.
    #[error("{0}")]
    Protocol(&'static str),
}

struct Active {
    term: Arc<Term>,
    node_id: NodeId,
    id: SessionId,
    addr: SocketAddr,
    outbox: Arc<Outbox>,
    sender: RpcSender,
    /// Number of the last assignments message.
    sequence: u64,
    changes_sent_at: Option<Instant>,
}

/// Whether the session goes on.
enum Flow {
    Continue,
    End,
}

pub(super) async fn run(term: Arc<Term>, peer: Peer, mut stream: RpcStream) {
    let Some(identity) = peer.identity else {
        return;
    };
    let node_id = identity.node_id;
    let hello = tokio::time::timeout(HELLO_TIMEOUT, stream.recv::<NodeMessage>()).await;
    let Ok(Ok(Some(NodeMessage::Hello {
        description,
        volumes,
    }))) = hello
    else {
        debug!(%node_id, "a session did not start with a hello");
        return;
    };
    let (sender, receiver) = stream.split();
    let state = term.context.store.view();
    let known = state.node(node_id).is_some();
    let (id, outbox) = term.open(node_id);
    if !known {
        outbox.close("the node is not part of the cluster".to_owned());
    }
    let mut active = Active {
        node_id,
        id,
        addr: peer.addr,
        outbox,
        sender,
        sequence: 0,
        changes_sent_at: None,
        term: Arc::clone(&term),
    };
    if known {
        active.register(&state, description, volumes);
    }
    let result = active.serve(receiver).await;
    term.close(node_id, id);
    match result {
        Ok(()) => debug!(%node_id, "session ended"),
        Err(err) => {
            debug!(%node_id, err = &err as &dyn std::error::Error, "session broke");
        }
    }
}

impl Active {
    async fn serve(&mut self, mut receiver: RpcReceiver) -> Result<(), SessionError> {
        self.welcome().await?;
        let cancel = self.term.cancel.clone();
        let outbox = Arc::clone(&self.outbox);
        loop {
            tokio::select! {
                message = receiver.recv::<NodeMessage>() => match message? {
                    Some(message) => {
                        if let Flow::End = self.take(message).await? {
                            return Ok(());
                        }
                    }
                    None => return Ok(()),
                },
                () = outbox.filled() => {
                    if let Flow::End = self.flush().await? {
                        return Ok(());
                    }
                }
                () = cancel.cancelled() => {
                    let reason = "this manager does not lead any more";
                    return self.send(&ManagerMessage::Closed(reason.to_owned())).await;
                }
            }
        }
    }

    /// Opens with the session's terms and all that the node must know.
    async fn welcome(&mut self) -> Result<(), SessionError> {
        let state = self.term.context.store.view();
        let spec = state
            .cluster()
            .map_or_else(ClusterSpec::default, |cluster| cluster.spec.clone());
        self.send(&ManagerMessage::Welcome {
            session_id: self.id,
            heartbeat_period_ms: spec.heartbeat_period_ms,
            lease_ms: spec.lease_ms,
        })
        .await?;
        let managers = assignments::managers(&state);
        self.send(&ManagerMessage::Managers(managers)).await?;
        self.send_role(&state).await?;
        if state.node(self.node_id).is_some() {
            self.send_complete(&state).await?;
        }
        Ok(())
    }

    /// Sends what the outbox holds. Contents come from the newest view, so that nothing older ever follows something
    /// newer.
    async fn flush(&mut self) -> Result<Flow, SessionError> {
        if let Some(sent_at) = self.changes_sent_at {
            tokio::time::sleep_until(sent_at + CHANGES_PERIOD).await;
        }
        let Pending {
            tasks,
            complete,
            managers,
            role,
            acks,
            closed,
        } = self.outbox.take();
        let state = self.term.context.store.view();
        if let Some(reason) = closed {
            self.send(&ManagerMessage::Closed(reason)).await?;
            return Ok(Flow::End);
        }
        if complete {
            self.send_complete(&state).await?;
        } else if !tasks.is_empty() {
            let holds = |task: &Task| self.term.gate.holds(&state, task);
            let messages =
                assignments::incremental(&state, self.node_id, tasks, self.sequence, &holds);
            self.send_assignments(messages).await?;
        }
        for batch in acks {
            self.send(&ManagerMessage::StatusesAck { batch }).await?;
        }
        if managers {
            let managers = assignments::managers(&state);
            self.send(&ManagerMessage::Managers(managers)).await?;
        }
        if role {
            self.send_role(&state).await?;
        }
        Ok(Flow::Continue)
    }

    async fn send_role(&mut self, state: &State) -> Result<(), SessionError> {
        match state.node(self.node_id) {
            Some(node) => {
                let role = assignments::wanted_role(node);
                self.send(&ManagerMessage::Role(role)).await
            }
            None => Ok(()),
        }
    }

    async fn send_complete(&mut self, state: &State) -> Result<(), SessionError> {
        let holds = |task: &Task| self.term.gate.holds(state, task);
        let messages = assignments::complete(state, self.node_id, self.sequence, &holds);
        self.send_assignments(messages).await
    }

    async fn send_assignments(
        &mut self,
        messages: Vec<AssignmentsMessage>,
    ) -> Result<(), SessionError> {
        for message in messages {
            let sequence = message.results_in;
            self.send(&ManagerMessage::Assignments(message)).await?;
            self.sequence = sequence;
        }
        self.changes_sent_at = Some(Instant::now());
        Ok(())
    }

    async fn send(&mut self, message: &ManagerMessage) -> Result<(), SessionError> {
        tokio::time::timeout(SEND_TIMEOUT, self.sender.send(message))
            .await
            .map_err(|_| SessionError::Stuck)?
            .map_err(SessionError::Stream)
    }

    async fn take(&mut self, message: NodeMessage) -> Result<Flow, SessionError> {
        if !self.term.heard(self.node_id, self.id) {
            // The outbox says why.
            return self.flush().await.map(|_| Flow::End);
        }
        match message {
            NodeMessage::Hello { .. } => {
                return Err(SessionError::Protocol("a second hello in one session"));
            }
            NodeMessage::Heartbeat { sequence } => {
                // Without a quorum there is no lease to renew; the node repeats its question.
                if self.term.quorum.is_confirmed() {
                    let ack = ManagerMessage::HeartbeatAck { sequence };
                    self.send(&ack).await?;
                }
            }
            NodeMessage::Statuses { batch, statuses } => self.statuses(batch, statuses)?,
            NodeMessage::Describe {
                description,
                volumes,
            } => {
                let state = self.term.context.store.view();
                self.register(&state, description, volumes);
            }
            NodeMessage::Hold { duration_ms } => self.hold(Duration::from_millis(duration_ms)),
            NodeMessage::Resync => self.outbox.complete(),
            NodeMessage::Goodbye => {
                self.goodbye();
                return Ok(Flow::End);
            }
        }
        Ok(Flow::Continue)
    }

    /// Writes what is new about the node: most sessions of a known node write nothing.
    fn register(&self, state: &State, description: Box<NodeDescription>, volumes: Vec<String>) {
        let Some(node) = state.node(self.node_id) else {
            return;
        };
        let mut actions = Vec::new();
        let addr = self.addr.ip().to_string();
        let described = node.description.as_ref() == Some(&*description);
        let ready = node.status.state == NodeState::Ready && node.status.addr == addr;
        if !described || !ready || !node.status.message.is_empty() {
            actions.push(StoreAction::SetNodeStatus {
                node_id: self.node_id,
                status: NodeStatus {
                    state: NodeState::Ready,
                    message: String::new(),
                    addr,
                },
                description: (!described).then_some(description),
            });
        }
        if node.hold_until.is_some() {
            actions.push(StoreAction::SetNodeHold {
                node_id: self.node_id,
                until: None,
            });
        }
        let names: Vec<_> = volumes
            .into_iter()
            .filter(|name| {
                state
                    .volume_by_name(self.node_id, name)
                    .is_some_and(|volume| !volume.materialized)
            })
            .collect();
        if !names.is_empty() {
            actions.push(StoreAction::SetVolumesMaterialized {
                node_id: self.node_id,
                names,
            });
        }
        if !ready {
            info!(node_id = %self.node_id, addr = %self.addr, "node is ready");
        }
        self.report(actions, None);
    }

    fn report(&self, actions: Vec<StoreAction>, batch: Option<u64>) {
        if actions.is_empty() {
            if let Some(batch) = batch {
                self.outbox.ack(batch);
            }
            return;
        }
        let is_statuses = batch.is_some();
        let ack = batch.map(|batch| (Arc::clone(&self.outbox), batch));
        if !self.term.writer.report(Report { actions, ack }) && !is_statuses {
            // Statuses are repeated by the node, the rest with the next session.
            self.outbox.close("this manager is overloaded".to_owned());
        }
    }

    fn statuses(
        &self,
        batch: u64,
        statuses: Vec<(TaskId, TaskStatus)>,
    ) -> Result<(), SessionError> {
        if statuses.len() > STATUSES_PER_MESSAGE_MAX {
            return Err(SessionError::Protocol("too many statuses in one message"));
        }
        let state = self.term.context.store.view();
        // Of several reports of one task the last one counts.
        let newest: BTreeMap<TaskId, TaskStatus> = statuses.into_iter().collect();
        let actions = newest
            .into_iter()
            .filter(|(task_id, status)| match state.task(*task_id) {
                Some(task) if task.node_id == Some(self.node_id) => task.status != *status,
                Some(_) => {
                    warn!(node_id = %self.node_id, %task_id, "a node reported a task of another node");
                    false
                }
                // The record is gone; the node will hear of it.
                None => false,
            })
            .map(|(task_id, status)| StoreAction::SetTaskStatus {
                task_id,
                status: Box::new(status),
            })
            .collect();
        self.report(actions, Some(batch));
        Ok(())
    }

    fn hold(&self, duration: Duration) {
        let until = (!duration.is_zero())
            .then(|| self.term.context.clock.now().plus(duration.min(HOLD_MAX)));
        let node_id = self.node_id;
        info!(%node_id, hold_ms = duration.as_millis(), "node announced a restart");
        self.report(vec![StoreAction::SetNodeHold { node_id, until }], None);
    }

    fn goodbye(&self) {
        let node_id = self.node_id;
        info!(%node_id, "node said good-bye");
        let mut live = lock(&self.term.live);
        live.liveness.forget(node_id);
        self.report(
            vec![StoreAction::SetNodeStatus {
                node_id,
                status: NodeStatus {
                    state: NodeState::Disconnected,
                    message: "the node said good-bye".to_owned(),
                    addr: self.addr.ip().to_string(),
                },
                description: None,
            }],
            None,
        );
    }
}
