//! The actor of one container: its state, and what happens when its process ends.

use super::exec::Execs;
use super::record::{ContainerDir, ContainerRecord, Phase, StateRecord};
use super::restart::{self, Backoff};
use super::start::{self, Ended, Started};
use super::streams::PendingAttach;
use super::{health, logs};
use crate::actors::{AbortOnPanic, MAILBOX_CAPACITY, message};
use crate::disk::{Durability, blocking};
use crate::env::Env;
use crate::error::{EngineError, Result, chain};
use crate::event::{Event, EventType};
use crate::info::{
    ContainerInfo, ContainerState, ContainerStatus, Health, HealthProbe, HealthStatus,
    NetworkSettings,
};
use actix::{
    Actor, ActorContext as _, ActorFutureExt as _, AsyncContext as _, Context, Handler,
    SpawnHandle, WrapFuture as _,
};
use shoal_image::ImageLease;
use shoal_runtime::{ShimError, ShimHandle};
use std::sync::Arc;
use tokio::sync::watch;

/// Exit code of a container whose shim has vanished.
const EXIT_LOST: i32 = 255;

/// What everybody may see of a container at any time, without asking its actor.
#[derive(Debug, Clone)]
pub(crate) struct Snapshot {
    pub(crate) info: Arc<ContainerInfo>,
    /// Runs that have ended since the engine started.
    pub(crate) exits: u64,
    /// It was removed.
    pub(crate) gone: bool,
}

/// A run of the container.
pub(crate) struct Run {
    pub(crate) shim: ShimHandle,
    pub(crate) number: u64,
    /// An earlier engine began it.
    adopted: bool,
    prober: Option<tokio::task::AbortHandle>,
}

/// One container.
pub(crate) struct ContainerActor {
    pub(crate) env: Arc<Env>,
    pub(crate) dir: ContainerDir,
    pub(crate) record: Arc<ContainerRecord>,
    pub(crate) state: StateRecord,
    pub(crate) run: Option<Run>,
    pub(crate) health: Option<Health>,
    pub(crate) execs: Execs,
    pub(crate) attachers: Vec<PendingAttach>,
    pub(crate) removing: bool,
    pub(crate) dead: bool,
    /// Waits for its restart.
    pub(crate) restart_timer: Option<SpawnHandle>,
    pub(crate) backoff: Backoff,
    /// The user wants it stopped: no restart.
    pub(crate) stopping: bool,
    /// The rest of the last run's teardown.
    pub(crate) cleanup: Option<tokio::task::JoinHandle<()>>,
    pub(crate) lease: Option<ImageLease>,
    exits: u64,
    runs: u64,
    publisher: watch::Sender<Snapshot>,
    ended: watch::Sender<bool>,
    _guard: AbortOnPanic,
}

/// What is needed to bring an actor up.
pub(crate) struct ContainerParts {
    pub(crate) env: Arc<Env>,
    pub(crate) dir: ContainerDir,
    pub(crate) record: Arc<ContainerRecord>,
    pub(crate) state: StateRecord,
    /// Its shim, when it runs already.
    pub(crate) shim: Option<ShimHandle>,
    pub(crate) lease: Option<ImageLease>,
}

impl ContainerActor {
    pub(crate) fn new(
        parts: ContainerParts,
    ) -> (Self, watch::Receiver<Snapshot>, watch::Receiver<bool>) {
        let ContainerParts {
            env,
            dir,
            record,
            state,
            shim,
            lease,
        } = parts;
        let health = health::command(&record.config).map(|_| health::fresh());
        let run = shim.map(|shim| Run {
            shim,
            number: 1,
            adopted: true,
            prober: None,
        });
        let mut actor = Self {
            env,
            dir,
            record,
            state,
            health: run.as_ref().and(health),
            runs: u64::from(run.is_some()),
            ended: watch::Sender::new(run.is_none()),
            run,
            execs: Execs::default(),
            attachers: Vec::new(),
            removing: false,
            dead: false,
            restart_timer: None,
            backoff: Backoff::default(),
            stopping: false,
            cleanup: None,
            lease,
            exits: 0,
            publisher: watch::Sender::new(Snapshot {
                info: Arc::new(placeholder()),
                exits: 0,
                gone: false,
            }),
            _guard: AbortOnPanic::default(),
        };
        actor.publish();
        let snapshots = actor.publisher.subscribe();
        let ended = actor.ended.subscribe();
        (actor, snapshots, ended)
    }

    /// Makes the present state visible.
    pub(crate) fn publish(&mut self) {
        let snapshot = Snapshot {
            info: Arc::new(self.info()),
            exits: self.exits,
            gone: false,
        };
        self.publisher.send_replace(snapshot);
    }

    /// The container is no more.
    pub(crate) fn publish_gone(&mut self) {
        self.publisher.send_modify(|snapshot| snapshot.gone = true);
    }

    pub(crate) fn status(&self) -> ContainerStatus {
        if self.removing {
            ContainerStatus::Removing
        } else if self.dead {
            ContainerStatus::Dead
        } else if self.restart_timer.is_some() {
            ContainerStatus::Restarting
        } else {
            self.state.status()
        }
    }

    fn info(&self) -> ContainerInfo {
        let record = &self.record;
        let state = &self.state;
        let is_running = self.run.is_some();
        let lease = if is_running {
            state.lease.clone()
        } else {
            Default::default()
        };
        ContainerInfo {
            id: record.id,
            name: record.name.clone(),
            created: record.created,
            image_id: record.image_id.clone(),
            config: Arc::clone(&record.config),
            path: record.path.clone(),
            args: record.args.clone(),
            state: ContainerState {
                status: self.status(),
                pid: self.run.as_ref().map_or(0, |run| run.shim.pid()),
                exit_code: state.exit_code,
                error: state.error.clone(),
                oom_killed: state.oom_killed,
                started_at: state.started_at,
                finished_at: state.finished_at,
                health: self.health.clone(),
            },
            restart_count: state.restart_count,
            mounts: Arc::clone(&record.mounts),
            network: NetworkSettings {
                endpoints: lease.endpoints(),
                overlay: lease.overlay.map(|l| l.endpoints).unwrap_or_default(),
                ports: lease.ports,
                sandbox: lease.netns,
            },
            network_mode: record.network_mode.clone(),
            log_path: logs::is_kept(&self.env.options, &record.config.host.log)
                .then(|| self.dir.log(&record.id)),
            hostname_path: self.dir.hostname(),
            hosts_path: self.dir.hosts(),
            resolv_conf_path: self.dir.resolv_conf(),
            exec_ids: self.execs.running(),
            upper_dir: self.dir.upper(),
        }
    }

    /// An event about this container, with Docker's attributes.
    pub(crate) fn event(&self, action: &str) -> Event {
        container_event(&self.record, action)
    }

    /// Publishes an event without waiting for it.
    pub(crate) fn tell(&self, event: Event, ctx: &mut Context<Self>) {
        let env = Arc::clone(&self.env);
        ctx.spawn(async move { env.publish(event).await }.into_actor(self));
    }

    /// A run has begun: watch for its end, probe its health.
    pub(crate) fn started_run(&mut self, started: Started, ctx: &mut Context<Self>) {
        self.runs += 1;
        self.state = started.state;
        self.run = Some(Run {
            shim: started.shim,
            number: self.runs,
            adopted: false,
            prober: None,
        });
        self.health = health::command(&self.record.config).map(|_| health::fresh());
        self.ended.send_replace(false);
        self.follow_run(ctx);
        self.publish();
    }

    fn follow_run(&mut self, ctx: &mut Context<Self>) {
        let Some(run) = &self.run else {
            return;
        };
        let shim = run.shim.clone();
        let waiting = self.env.runtime.spawn(async move { shim.wait().await });
        ctx.spawn(waiting.into_actor(self).map(|exit, actor, ctx| {
            let ended = match exit {
                Ok(Ok(exit)) => Ended {
                    code: exit.code,
                    oom_killed: exit.oom_killed,
                    fenced: exit.fenced,
                    at: exit.at,
                },
                Ok(Err(err)) => actor.lost(&err),
                Err(_) => return,
            };
            actor.end_run(ended, ctx);
        }));
        if self.health.is_some() {
            self.start_prober(ctx);
        }
    }

    fn lost(&self, err: &ShimError) -> Ended {
        tracing::error!(container_id = %self.record.id, err = chain(err), "a container's shim is gone");
        Ended {
            code: EXIT_LOST,
            oom_killed: false,
            fenced: false,
            at: crate::clock::now(),
        }
    }

    fn start_prober(&mut self, ctx: &mut Context<Self>) {
        let (env, record, dir) = (
            Arc::clone(&self.env),
            Arc::clone(&self.record),
            self.dir.clone(),
        );
        let identity = async move { super::exec::identity(&env, &record, &dir, "").await };
        ctx.spawn(identity.into_actor(self).map(|identity, actor, ctx| {
            let started = actor.state.started_at.unwrap_or_default();
            let (Some(run), Ok(identity)) = (&mut actor.run, identity) else {
                return;
            };
            let prober = health::Prober {
                shim: run.shim.clone(),
                actor: ctx.address(),
                config: Arc::clone(&actor.record.config),
                identity,
                run: run.number,
                started,
                at_once: run.adopted,
            };
            let task = actor.env.runtime.spawn(health::probe_loop(prober));
            run.prober = Some(task.abort_handle());
        }));
    }

    /// The process has ended: give back what it held, then decide what comes next.
    #[expect(
        clippy::async_yields_async,
        reason = "the rest of the teardown is joined by the next start"
    )]
    fn end_run(&mut self, ended: Ended, ctx: &mut Context<Self>) {
        let Some(run) = self.run.take() else {
            return;
        };
        if let Some(prober) = run.prober {
            prober.abort();
        }
        self.ended.send_replace(true);
        let lease = std::mem::take(&mut self.state.lease);
        let ran = self
            .state
            .started_at
            .map_or_else(Default::default, |at| ended.at.since(at));
        self.state.phase = Phase::Exited;
        self.state.exit_code = ended.code;
        self.state.oom_killed = ended.oom_killed;
        self.state.finished_at = Some(ended.at);
        if ended.fenced {
            "killed because its lease was not renewed".clone_into(&mut self.state.error);
        }
        let again = !self.stopping
            && !self.removing
            && restart::wanted(
                self.record.restart_policy(),
                ended.code,
                self.state.restart_count,
            );
        let (env, id) = (Arc::clone(&self.env), self.record.id);
        let (dir, state) = (self.dir.clone(), self.state.clone());
        let auto_remove = self.record.config.host.auto_remove && !again;
        let events = self.end_events(&ended);
        let work = self.env.runtime.spawn(async move {
            let cleanup = start::teardown(&env, id, Some(run.shim), lease).await;
            if !auto_remove {
                let durability = if again { Durability::Cached } else { Durability::Synced };
                let written = blocking("state record", move || dir.write_state(&state, durability)).await;
                if let Err(err) = written {
                    tracing::error!(container_id = %id, err = chain(&err), "the end of a container was not recorded");
                }
            }
            for event in events {
                env.publish(event).await;
            }
            cleanup
        });
        ctx.wait(work.into_actor(self).map(move |cleanup, actor, ctx| {
            actor.cleanup = cleanup.ok();
            actor.exits += 1;
            if again {
                let pause = actor.backoff.after(ran);
                actor.restart_timer =
                    Some(ctx.run_later(pause, |actor, ctx| actor.restart_by_policy(ctx)));
            }
            actor.publish();
            if auto_remove {
                actor.remove_self(ctx);
            }
        }));
    }

    fn end_events(&self, ended: &Ended) -> Vec<Event> {
        let mut events = Vec::new();
        if ended.oom_killed {
            events.push(self.event("oom"));
        }
        let ran = self
            .state
            .started_at
            .map_or_else(Default::default, |at| ended.at.since(at));
        events.push(
            self.event("die")
                .with("exitCode", ended.code.to_string())
                .with("execDuration", ran.as_secs().to_string()),
        );
        events
    }

    pub(crate) fn remove_self(&mut self, ctx: &mut Context<Self>) {
        self.removing = true;
        self.publish();
        let removal = super::lifecycle::removal(self, true);
        ctx.wait(
            removal
                .into_actor(self)
                .map(|removed, actor, ctx| actor.removed(removed, ctx)),
        );
    }

    /// The directory is gone, or could not be removed.
    pub(crate) fn removed(&mut self, removed: Result<()>, ctx: &mut Context<Self>) {
        match removed {
            Ok(()) => {
                self.publish_gone();
                ctx.stop();
            }
            Err(err) => {
                tracing::error!(container_id = %self.record.id, err = chain(&err), "a container could not be removed");
                self.removing = false;
                self.dead = true;
                self.state.error = chain(&err);
                self.publish();
            }
        }
    }

    fn restart_by_policy(&mut self, ctx: &mut Context<Self>) {
        self.restart_timer = None;
        self.state.restart_count += 1;
        let work = self.begin_start();
        ctx.wait(work.into_actor(self).map(|started, actor, ctx| {
            let code = match started {
                Ok(started) => {
                    actor.started_run(started, ctx);
                    return actor.tell(actor.event("start"), ctx);
                }
                Err(err) => actor.failed_start(&err),
            };
            actor.exits += 1;
            if restart::wanted(
                actor.record.restart_policy(),
                code,
                actor.state.restart_count,
            ) && !actor.stopping
            {
                let pause = actor.backoff.after(std::time::Duration::ZERO);
                actor.restart_timer =
                    Some(ctx.run_later(pause, |actor, ctx| actor.restart_by_policy(ctx)));
            }
            actor.publish();
        }));
    }

    /// Takes a failed start's error into the state; gives the exit code.
    pub(crate) fn failed_start(&mut self, err: &EngineError) -> i32 {
        let code = match err {
            EngineError::Start { exit_code, .. } => *exit_code,
            _ => start::EXIT_NOT_MADE,
        };
        self.state.phase = if self.state.started_at.is_some() {
            Phase::Exited
        } else {
            Phase::Created
        };
        self.state.exit_code = code;
        self.state.error = chain(err);
        self.state.lease = Default::default();
        code
    }

    /// Runs the steps of a start on the daemon's runtime: a client that goes away does not stop them half-way.
    pub(crate) fn begin_start(&mut self) -> impl Future<Output = Result<Started>> + use<> {
        let input = start::StartInput {
            env: Arc::clone(&self.env),
            record: Arc::clone(&self.record),
            dir: self.dir.clone(),
            state: self.state.clone(),
            attachers: std::mem::take(&mut self.attachers),
        };
        let cleanup = self.cleanup.take();
        let work = self.env.runtime.spawn(async move {
            if let Some(cleanup) = cleanup
                && cleanup.await.is_err()
            {
                tracing::warn!(container_id = %input.record.id, "the teardown of the last run did not end in order");
            }
            start::start(input).await
        });
        async move {
            work.await.map_err(|_| EngineError::WorkLost {
                what: "container start",
            })?
        }
    }
}

impl Actor for ContainerActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(MAILBOX_CAPACITY);
        self.follow_run(ctx);
    }
}

/// An event about a container.
pub(crate) fn container_event(record: &ContainerRecord, action: &str) -> Event {
    let id = record.id.to_string();
    let mut event = Event::new(EventType::Container, action, id, crate::clock::now());
    for (key, value) in &record.config.labels {
        event = event.with(key, value);
    }
    event
        .with("image", &record.config.image)
        .with("name", &record.name)
}

/// A probe has ended. The answer is the status now; nothing when the run is over.
pub(crate) struct ProbeDone {
    pub(crate) run: u64,
    pub(crate) probe: HealthProbe,
}
message!(ProbeDone => Option<HealthStatus>);

impl Handler<ProbeDone> for ContainerActor {
    type Result = Option<HealthStatus>;

    fn handle(&mut self, message: ProbeDone, ctx: &mut Self::Context) -> Self::Result {
        self.run.as_ref().filter(|run| run.number == message.run)?;
        let check = self.record.config.healthcheck.clone()?;
        let since_start = crate::clock::now().since(self.state.started_at.unwrap_or_default());
        let health = self.health.as_mut()?;
        let changed = health::record(health, &check, message.probe, since_start);
        let status = health.status;
        if let Some(status) = changed {
            self.tell(
                self.event(&format!("health_status: {}", status.as_str())),
                ctx,
            );
        }
        self.publish();
        Some(status)
    }
}

/// Stands in until the actor has published for the first time.
fn placeholder() -> ContainerInfo {
    ContainerInfo {
        id: shoal_model::ContainerId::from_bytes([0; 32]),
        name: String::new(),
        created: shoal_model::Timestamp::default(),
        image_id: String::new(),
        config: Arc::default(),
        path: String::new(),
        args: Vec::new(),
        state: ContainerState {
            status: ContainerStatus::Created,
            pid: 0,
            exit_code: 0,
            error: String::new(),
            oom_killed: false,
            started_at: None,
            finished_at: None,
            health: None,
        },
        restart_count: 0,
        mounts: Arc::default(),
        network: NetworkSettings::default(),
        network_mode: crate::config::NetworkMode::default(),
        log_path: None,
        hostname_path: Default::default(),
        hosts_path: Default::default(),
        resolv_conf_path: Default::default(),
        exec_ids: Vec::new(),
        upper_dir: Default::default(),
    }
}
