//! One task: a loop that looks where the task stands, takes the next step, and looks again.

use crate::agent::AgentClock;
use crate::lease::Lease;
use crate::repair::{End, GOOD_RUN, History, Verdict};
use crate::reports::Reports;
use crate::runtime::{
    ContainerChange, ContainerPhase, Exit, Found, Health, Running, RuntimeError, TaskRuntime,
};
use crate::step::{self, Action, Phase, Situation, Wanted};
use shoal_model::cluster::Redacted;
use shoal_model::spec::OnPartition;
use shoal_model::task::{ContainerStatus, EXITS_KEPT_MAX, ExitRecord};
use shoal_model::{ContainerId, Task, TaskId, TaskState, TaskStatus, Timestamp};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, Semaphore, watch};
use tokio::time::Instant;
use tracing::{info, warn};

/// Wait after a failure of the runtime that may pass; doubles up to [`RETRY_DELAY_MAX`].
const RETRY_DELAY_MIN: Duration = Duration::from_millis(200);

/// Longest such wait.
const RETRY_DELAY_MAX: Duration = Duration::from_secs(10);

/// Attempts to bring a task up before it is reported as failed, so that managers may try another node.
const ATTEMPTS_TO_START_MAX: u32 = 5;

/// What the managers said last.
#[derive(Debug, Clone)]
pub(crate) struct Assignment {
    pub(crate) task: Arc<Task>,
    /// The record is gone.
    pub(crate) forgotten: bool,
    /// Credentials for the registry of its image.
    pub(crate) registry_auth: Option<Redacted<String>>,
}

impl Assignment {
    fn wanted(&self) -> Wanted {
        if self.forgotten {
            return Wanted::Forgotten;
        }
        match self.task.desired {
            TaskState::Remove => Wanted::Gone,
            // The managers have given the task up: it may have been replaced.
            _ if self.task.status.state.is_terminal() => Wanted::Shutdown,
            TaskState::Running => Wanted::Running,
            desired if desired > TaskState::Running => Wanted::Shutdown,
            _ => Wanted::Ready,
        }
    }
}

/// What all tasks of a node share.
pub(crate) struct Shared {
    pub(crate) runtime: Arc<dyn TaskRuntime>,
    pub(crate) clock: Arc<dyn AgentClock>,
    pub(crate) lease: Lease,
    pub(crate) reports: Reports,
    /// Containers that may be made or started at a time.
    pub(crate) starts: Semaphore,
    /// Something changed that belongs on disk.
    pub(crate) dirty: Notify,
}

struct Held {
    id: ContainerId,
    state: HeldState,
}

enum HeldState {
    Created,
    Running {
        running: Running,
        since: Option<Instant>,
    },
    Exited {
        end: End,
        verdict: Verdict,
        restart_at: Instant,
    },
}

pub(crate) struct Driver {
    shared: Arc<Shared>,
    id: TaskId,
    assignment: watch::Receiver<Assignment>,
    status: TaskStatus,
    held: Option<Held>,
    /// The container before, kept for its log.
    previous: Option<ContainerId>,
    /// Containers made so far.
    made: u32,
    history: History,
    failures: u32,
}

impl Driver {
    /// A driver that goes on from `status`, with the containers that were found.
    pub(crate) fn new(
        shared: Arc<Shared>,
        assignment: watch::Receiver<Assignment>,
        status: TaskStatus,
        mut found: Vec<Found>,
    ) -> (Self, Vec<ContainerId>) {
        let id = assignment.borrow().task.id;
        found.sort_by_key(|found| found.created);
        let made = u32::try_from(found.len())
            .unwrap_or(u32::MAX)
            .max(status.restarts);
        let newest = found.pop();
        let previous = found.pop().map(|found| found.container_id);
        let stale = found.into_iter().map(|found| found.container_id).collect();
        let mut driver = Self {
            history: History::resumed(status.restarts, status.at),
            shared,
            id,
            assignment,
            status,
            held: None,
            previous,
            made,
            failures: 0,
        };
        if let Some(found) = newest {
            driver.resume(found);
        }
        (driver, stale)
    }

    fn resume(&mut self, found: Found) {
        let id = found.container_id;
        match found.phase {
            ContainerPhase::Created => {
                let state = HeldState::Created;
                self.held = Some(Held { id, state });
            }
            ContainerPhase::Running(running) => self.hold_running(id, running, None),
            ContainerPhase::Exited(exit) => {
                let state = HeldState::Running {
                    running: Running {
                        pid: 0,
                        ports: Vec::new(),
                        health: Health::Unchecked,
                    },
                    since: None,
                };
                self.held = Some(Held { id, state });
                let task = Arc::clone(&self.assignment.borrow().task);
                self.ended(&task, exit);
            }
        }
    }

    /// Runs until the task is forgotten; `may_forget` says whether that still holds.
    pub(crate) async fn run(mut self, may_forget: impl Fn(TaskId) -> bool) {
        self.publish();
        loop {
            let assignment = self.assignment.borrow_and_update().clone();
            let situation = self.situation(&assignment);
            let action = step::next(&situation);
            if action == Action::Forget {
                if may_forget(self.id) {
                    return;
                }
                continue;
            }
            match self.act(action, &assignment).await {
                Ok(true) => self.failures = 0,
                Ok(false) => return,
                Err(err) => self.failed(action, &assignment.task, err).await,
            }
        }
    }

    fn situation(&self, assignment: &Assignment) -> Situation {
        let clock = &self.shared.clock;
        let task = &assignment.task;
        Situation {
            observed: self.status.state,
            wanted: assignment.wanted(),
            phase: match &self.held {
                None => Phase::Absent,
                Some(held) => match &held.state {
                    HeldState::Created => Phase::Created,
                    HeldState::Running { .. } => Phase::Running,
                    HeldState::Exited { verdict, .. } => Phase::Exited(*verdict),
                },
            },
            may_start: task.not_before.is_none_or(|at| clock.now() >= at),
            has_lease: self.has_lease(task),
        }
    }

    fn has_lease(&self, task: &Task) -> bool {
        task.on_partition != OnPartition::Stop
            || self.shared.lease.is_alive(self.shared.clock.boottime_ns())
    }

    /// One step. False: the agent is ending.
    async fn act(&mut self, action: Action, assignment: &Assignment) -> Result<bool, RuntimeError> {
        let task = &assignment.task;
        match action {
            Action::Wait => return Ok(self.wait(None, !self.has_lease(task)).await),
            Action::Delay => {
                let now = self.shared.clock.now();
                let left = task.not_before.map_or(Duration::ZERO, |at| at.since(now));
                return Ok(self.wait(Some(Instant::now() + left), false).await);
            }
            Action::Report(state) => self.report_end_or_progress(state),
            Action::Prepare => return self.prepare(task).await,
            Action::Create => self.create(task).await?,
            Action::Start => self.start().await?,
            Action::Follow => return self.follow(task).await,
            Action::Replace => return self.replace().await,
            Action::Stop => self.stop(task).await?,
            Action::Remove => self.remove().await?,
            Action::Forget => {}
        }
        Ok(true)
    }

    /// Waits for a new assignment, for `until`, or for a renewed lease. False: the agent is ending.
    async fn wait(&mut self, until: Option<Instant>, for_lease: bool) -> bool {
        let mut lease = self.shared.lease.subscribe();
        let timer = async {
            match until {
                Some(until) => tokio::time::sleep_until(until).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = self.assignment.changed() => changed.is_ok(),
            () = timer => true,
            renewed = lease.changed(), if for_lease => renewed.is_ok(),
        }
    }

    fn report_end_or_progress(&mut self, state: TaskState) {
        let message = match state {
            TaskState::Accepted => "accepted",
            TaskState::Running => "started",
            TaskState::Complete => "finished",
            TaskState::Shutdown => "shutdown",
            TaskState::Failed => "failed",
            _ => "",
        };
        self.report(state, message, None);
    }

    /// The observed state only moves forward.
    fn report(&mut self, state: TaskState, message: &str, err: Option<String>) {
        let forward = state > self.status.state && !self.status.state.is_terminal();
        if forward {
            info!(task_id = %self.id, from = %self.status.state, to = %state, "task state changed");
            self.status.state = state;
        }
        if self.status.state.is_terminal() {
            self.status.ready = false;
        }
        self.status.at = self.shared.clock.now();
        self.status.message = message.to_owned();
        if let Some(err) = err {
            self.status.err = err;
        }
        self.publish();
    }

    fn publish(&self) {
        let current = self.shared.reports.get(self.id);
        if current.as_ref() != Some(&self.status) {
            self.shared.reports.set(self.id, self.status.clone());
            self.shared.dirty.notify_one();
        }
    }

    async fn prepare(&mut self, task: &Arc<Task>) -> Result<bool, RuntimeError> {
        self.report(TaskState::Preparing, "preparing", None);
        let runtime = Arc::clone(&self.shared.runtime);
        let task = Arc::clone(task);
        let auth = self.assignment.borrow().registry_auth.clone();
        let prepared = runtime.prepare(&task, auth.as_ref());
        tokio::pin!(prepared);
        loop {
            tokio::select! {
                result = &mut prepared => {
                    result?;
                    self.report(TaskState::Ready, "prepared", None);
                    return Ok(true);
                }
                changed = self.assignment.changed() => {
                    if changed.is_err() {
                        return Ok(false);
                    }
                    let wanted = self.assignment.borrow().wanted();
                    if !matches!(wanted, Wanted::Ready | Wanted::Running) {
                        return Ok(true);
                    }
                }
            }
        }
    }

    async fn create(&mut self, task: &Task) -> Result<(), RuntimeError> {
        self.report(TaskState::Starting, "starting", None);
        let _permit = self.shared.starts.acquire().await;
        let deadline = (task.on_partition == OnPartition::Stop)
            .then(|| self.shared.lease.deadline())
            .flatten();
        let id = self
            .shared
            .runtime
            .create(task, self.made, deadline)
            .await?;
        self.made = self.made.saturating_add(1);
        let state = HeldState::Created;
        self.held = Some(Held { id, state });
        Ok(())
    }

    async fn start(&mut self) -> Result<(), RuntimeError> {
        let Some(id) = self.held.as_ref().map(|held| held.id) else {
            return Ok(());
        };
        let permit = self.shared.starts.acquire().await;
        let running = self.shared.runtime.start(id).await?;
        drop(permit);
        self.status.err.clear();
        self.hold_running(id, running, Some(Instant::now()));
        if self.status.state < TaskState::Running {
            self.report(TaskState::Running, "started", None);
        } else {
            self.report(TaskState::Running, "restarted", None);
        }
        Ok(())
    }

    fn hold_running(&mut self, id: ContainerId, running: Running, since: Option<Instant>) {
        self.status.container = Some(ContainerStatus {
            container_id: id,
            pid: running.pid,
            exit_code: 0,
        });
        self.status.ports.clone_from(&running.ports);
        self.status.ready = is_ready(running.health);
        let state = HeldState::Running { running, since };
        self.held = Some(Held { id, state });
    }

    /// Waits for the running container's end, a change of its health, a new assignment; renews its deadline.
    async fn follow(&mut self, task: &Task) -> Result<bool, RuntimeError> {
        let Some(Held {
            id,
            state: HeldState::Running { running, .. },
        }) = &self.held
        else {
            return Ok(true);
        };
        let (id, health) = (*id, running.health);
        let runtime = Arc::clone(&self.shared.runtime);
        let mut lease = self.shared.lease.subscribe();
        let fenced = task.on_partition == OnPartition::Stop;
        let deadline = *lease.borrow_and_update();
        if fenced && let Some(deadline) = deadline {
            runtime.renew(id, deadline).await?;
        }
        let change = tokio::select! {
            change = runtime.changed(id, health) => change?,
            changed = self.assignment.changed() => return Ok(changed.is_ok()),
            renewed = lease.changed(), if fenced => return Ok(renewed.is_ok()),
        };
        match change {
            ContainerChange::Exited(exit) => self.ended(task, exit),
            ContainerChange::Health(Health::Unhealthy) => {
                warn!(task_id = %self.id, "task is unhealthy and is stopped");
                self.status.ready = false;
                self.publish();
                let mut exit = self.stop_held(id).await?;
                "unhealthy".clone_into(&mut exit.reason);
                self.ended(task, exit);
            }
            ContainerChange::Health(health) => {
                if let Some(Held {
                    state: HeldState::Running { running, .. },
                    ..
                }) = &mut self.held
                {
                    running.health = health;
                }
                self.status.ready = is_ready(health);
                self.report(TaskState::Running, "started", None);
            }
        }
        Ok(true)
    }

    async fn stop_held(&self, id: ContainerId) -> Result<Exit, RuntimeError> {
        let runtime = &self.shared.runtime;
        runtime.stop(id).await?;
        // Any other health than the one named answers at once too, so ask until the end comes.
        let mut known = Health::Unchecked;
        loop {
            match runtime.changed(id, known).await? {
                ContainerChange::Exited(exit) => return Ok(exit),
                ContainerChange::Health(health) => known = health,
            }
        }
    }

    /// The container ended without being asked to by the managers.
    fn ended(&mut self, task: &Task, mut exit: Exit) {
        let Some(Held {
            id,
            state: HeldState::Running { since, .. },
        }) = &self.held
        else {
            return;
        };
        let now = self.shared.clock.now();
        if exit.at == Timestamp::default() {
            exit.at = now;
        }
        let end = End {
            success: exit.exit_code == 0 && exit.reason.is_empty(),
            ran_for: since.map_or(GOOD_RUN, |since| since.elapsed()),
            at: exit.at,
            monitored: task.monitor_until.is_some_and(|until| now < until),
            fenced: !self.has_lease(task),
        };
        let verdict = self.history.judge(&task.spec.restart, &end);
        let wait = match verdict {
            Verdict::Restart(wait) => wait,
            Verdict::End(_) => Duration::ZERO,
        };
        let reason = describe(&exit, end.fenced);
        let id = *id;
        self.note_exit(id, &exit, &reason);
        if !end.success {
            self.status.err = reason;
        }
        self.held = Some(Held {
            id,
            state: HeldState::Exited {
                end,
                verdict,
                restart_at: Instant::now() + wait,
            },
        });
        info!(task_id = %self.id, exit_code = exit.exit_code, ?verdict, "container of task ended");
        self.publish();
    }

    fn note_exit(&mut self, id: ContainerId, exit: &Exit, reason: &str) {
        self.status.ready = false;
        self.status.container = Some(ContainerStatus {
            container_id: id,
            pid: 0,
            exit_code: exit.exit_code,
        });
        if self.status.exits.len() >= EXITS_KEPT_MAX {
            self.status.exits.remove(0);
        }
        self.status.exits.push(ExitRecord {
            container_id: Some(id),
            at: exit.at,
            exit_code: exit.exit_code,
            reason: reason.to_owned(),
        });
    }

    async fn replace(&mut self) -> Result<bool, RuntimeError> {
        let Some(Held {
            id,
            state: HeldState::Exited {
                end, restart_at, ..
            },
        }) = &self.held
        else {
            return Ok(true);
        };
        let (id, end, restart_at) = (*id, *end, *restart_at);
        if Instant::now() < restart_at {
            self.report(self.status.state, "waits for its restart", None);
            return Ok(self.wait(Some(restart_at), false).await);
        }
        if let Some(previous) = self.previous.take() {
            self.shared.runtime.remove(previous).await?;
        }
        self.previous = Some(id);
        self.held = None;
        self.history.restarted(&end);
        self.status.restarts = self.status.restarts.saturating_add(1);
        self.report(self.status.state, "restarting", None);
        Ok(true)
    }

    /// Stops the container because the managers want it stopped.
    async fn stop(&mut self, task: &Task) -> Result<(), RuntimeError> {
        let Some(id) = self.held.as_ref().map(|held| held.id) else {
            return Ok(());
        };
        self.status.ready = false;
        self.publish();
        let exit = self.stop_held(id).await?;
        self.status.container = Some(ContainerStatus {
            container_id: id,
            pid: 0,
            exit_code: exit.exit_code,
        });
        let end = End {
            success: true,
            ran_for: GOOD_RUN,
            at: exit.at,
            monitored: false,
            fenced: false,
        };
        let verdict = self.history.judge(&task.spec.restart, &end);
        let restart_at = Instant::now();
        let state = HeldState::Exited {
            end,
            verdict,
            restart_at,
        };
        self.held = Some(Held { id, state });
        Ok(())
    }

    async fn remove(&mut self) -> Result<(), RuntimeError> {
        let runtime = &self.shared.runtime;
        if let Some(held) = &self.held {
            runtime.remove(held.id).await?;
            self.held = None;
        }
        if let Some(previous) = self.previous {
            runtime.remove(previous).await?;
            self.previous = None;
        }
        Ok(())
    }

    async fn failed(&mut self, action: Action, task: &Task, err: RuntimeError) {
        warn!(task_id = %self.id, ?action, err = %err, "a step of the task failed");
        let bringing_up = matches!(action, Action::Prepare | Action::Create | Action::Start);
        self.failures = self.failures.saturating_add(1);
        let reason = err.to_string();
        match err {
            RuntimeError::Rejected { .. } if bringing_up => {
                let first = self.status.state < TaskState::Running;
                let state = if first {
                    TaskState::Rejected
                } else {
                    TaskState::Failed
                };
                self.report(state, "rejected", Some(reason));
            }
            RuntimeError::Start { exit_code, .. } if bringing_up => {
                self.start_failed(task, exit_code, reason);
            }
            RuntimeError::Unavailable { .. }
                if bringing_up && self.failures >= ATTEMPTS_TO_START_MAX =>
            {
                self.report(TaskState::Failed, "could not be started", Some(reason));
            }
            RuntimeError::Rejected { .. }
            | RuntimeError::Start { .. }
            | RuntimeError::Unavailable { .. } => {
                self.status.err = reason;
                self.publish();
                let factor = 1u32.checked_shl(self.failures - 1).unwrap_or(u32::MAX);
                let delay = RETRY_DELAY_MIN.saturating_mul(factor).min(RETRY_DELAY_MAX);
                // A new assignment may make the step needless.
                self.wait(Some(Instant::now() + delay), false).await;
            }
        }
    }

    /// A program that can't be started: the first time managers decide, a repaired task goes by its restart settings.
    fn start_failed(&mut self, task: &Task, exit_code: i32, reason: String) {
        if self.status.state < TaskState::Running {
            self.report(TaskState::Failed, "could not be started", Some(reason));
            return;
        }
        let Some(id) = self.held.as_ref().map(|held| held.id) else {
            self.report(TaskState::Failed, "could not be restarted", Some(reason));
            return;
        };
        let running = Running {
            pid: 0,
            ports: Vec::new(),
            health: Health::Unchecked,
        };
        let since = Some(Instant::now());
        self.held = Some(Held {
            id,
            state: HeldState::Running { running, since },
        });
        let at = self.shared.clock.now();
        let exit = Exit {
            exit_code,
            oom_killed: false,
            at,
            reason,
        };
        self.ended(task, exit);
    }
}

const fn is_ready(health: Health) -> bool {
    matches!(health, Health::Unchecked | Health::Healthy)
}

fn describe(exit: &Exit, fenced: bool) -> String {
    if fenced {
        "stopped because this node lost contact with the managers".to_owned()
    } else if !exit.reason.is_empty() {
        exit.reason.clone()
    } else if exit.oom_killed {
        format!("out of memory: exit code {}", exit.exit_code)
    } else {
        format!("task: non-zero exit ({})", exit.exit_code)
    }
}

/// The status that a task starts with here.
pub(crate) fn first_status(task: &Task, now: Timestamp) -> TaskStatus {
    TaskStatus {
        at: now,
        refusals: Vec::new(),
        ..task.status.clone()
    }
}
