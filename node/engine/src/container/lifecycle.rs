//! What users do with a container: start, signal, freeze, rename, update, remove.

use super::actor::ContainerActor;
use super::record::{Phase, StateRecord};
use super::start::{self, runtime_error};
use super::streams;
use crate::actors::message;
use crate::config::{ContainerConfig, Fencing, RestartPolicy};
use crate::disk::{self, Durability, blocking};
use crate::error::{EngineError, Result, chain};
use crate::info::ContainerStatus;
use crate::requests::{AttachOptions, AttachStreams, ContainerUpdate};
use crate::supervisor::Forget;
use crate::volume::{RemoveVolume, UnuseVolumes};
use actix::{
    ActorFutureExt as _, AsyncContext as _, AtomicResponse, Context, Handler, ResponseFuture,
    WrapFuture as _,
};
use futures_util::FutureExt as _;
use shoal_runtime::{ShimError, ShimHandle};
use std::sync::Arc;
use tokio::sync::oneshot;

type Atomic<T> = AtomicResponse<ContainerActor, T>;

fn now<T: 'static>(actor: &ContainerActor, value: T) -> Atomic<T> {
    AtomicResponse::new(Box::pin(std::future::ready(value).into_actor(actor)))
}

impl ContainerActor {
    /// The shim, or an error that says what can't be done without it.
    pub(crate) fn shim(&self, what: &str) -> Result<ShimHandle> {
        self.run
            .as_ref()
            .map(|run| run.shim.clone())
            .ok_or_else(|| {
                EngineError::conflict(format!(
                    "{what}: container {} is not running",
                    self.record.id
                ))
            })
    }

    fn cancel_restart(&mut self, ctx: &mut Context<Self>) -> bool {
        match self.restart_timer.take() {
            Some(timer) => {
                ctx.cancel_future(timer);
                self.publish();
                true
            }
            None => false,
        }
    }

    /// Writes the state in the background of the current message.
    fn save(&self, durability: Durability) -> impl Future<Output = Result<()>> + use<> {
        let (dir, state): (_, StateRecord) = (self.dir.clone(), self.state.clone());
        blocking("state record", move || dir.write_state(&state, durability))
    }

    /// Writes the state before this actor does anything else: a later state must not be overwritten by this one.
    fn save_first(&self, ctx: &mut Context<Self>) -> oneshot::Receiver<Result<()>> {
        let (done, written) = oneshot::channel();
        let saving = self.save(Durability::Cached).into_actor(self);
        // Whoever asked may have gone.
        ctx.wait(saving.map(|saved, _, _| drop(done.send(saved))));
        written
    }
}

/// Starts the container.
pub(crate) struct Start;
message!(Start => Result<()>);

impl Handler<Start> for ContainerActor {
    type Result = Atomic<Result<()>>;

    fn handle(&mut self, _: Start, ctx: &mut Self::Context) -> Self::Result {
        let name = self.record.name.clone();
        let refused = match self.status() {
            ContainerStatus::Running | ContainerStatus::Restarting => {
                Some(EngineError::NotModified {
                    name,
                    state: "running",
                })
            }
            ContainerStatus::Paused => Some(EngineError::conflict(
                "cannot start a paused container, try unpause instead",
            )),
            ContainerStatus::Removing | ContainerStatus::Dead => Some(EngineError::conflict(
                "container is marked for removal and cannot be started",
            )),
            ContainerStatus::Created | ContainerStatus::Exited => None,
        };
        if let Some(err) = refused {
            return now(self, Err(err));
        }
        self.cancel_restart(ctx);
        self.stopping = false;
        self.state.stopped_by_user = false;
        self.state.restart_count = 0;
        let work = self.begin_start();
        AtomicResponse::new(Box::pin(work.into_actor(self).then(
            |started, actor, ctx| {
                let (answer, saving) = match started {
                    Ok(started) => {
                        actor.started_run(started, ctx);
                        actor.tell(actor.event("start"), ctx);
                        (Ok(()), None)
                    }
                    Err(err) => {
                        actor.failed_start(&err);
                        actor.publish();
                        if actor.record.config.host.auto_remove {
                            // Its client waits for the removal, as after any other end.
                            actor.remove_self(ctx);
                            (Err(err), None)
                        } else {
                            (Err(err), Some(actor.save(Durability::Cached)))
                        }
                    }
                };
                async move {
                    if let Some(saving) = saving
                        && let Err(err) = saving.await
                    {
                        tracing::error!(err = chain(&err), "a failed start was not recorded");
                    }
                    answer
                }
                .into_actor(actor)
            },
        )))
    }
}

/// Why a signal is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// `kill`: a restart follows unless the signal is one that stops.
    Kill,
    /// `stop`, `restart`, forced removal: no restart by policy.
    Stop,
}

/// Sends a signal.
pub(crate) struct Signal {
    pub(crate) number: i32,
    pub(crate) purpose: Purpose,
}
message!(Signal => Result<()>);

impl Handler<Signal> for ContainerActor {
    type Result = ResponseFuture<Result<()>>;

    fn handle(&mut self, message: Signal, ctx: &mut Self::Context) -> Self::Result {
        let Signal { number, purpose } = message;
        let stops = number == libc::SIGKILL || number == stop_signal(&self.record.config);
        if purpose == Purpose::Stop || stops {
            self.stopping = true;
            self.state.stopped_by_user = true;
        }
        let waited_for_restart = purpose == Purpose::Stop && self.cancel_restart(ctx);
        let shim = match self.shim("cannot kill container") {
            Ok(shim) => shim,
            Err(_) if waited_for_restart => {
                let saving = self.save(Durability::Synced);
                return Box::pin(saving);
            }
            Err(err) => return Box::pin(std::future::ready(Err(err))),
        };
        let was_paused = self.state.phase == Phase::Paused;
        let id = self.record.id;
        // Before the signal: an engine that finds the container ended must know that the user wanted that.
        let noted = (self.stopping && self.record.restart_policy() != RestartPolicy::No)
            .then(|| self.save_first(ctx));
        if purpose == Purpose::Kill {
            self.tell(self.event("kill").with("signal", number.to_string()), ctx);
        }
        let work = self.env.runtime.spawn(async move {
            // Only told: a full disk must not keep a container from being stopped.
            if let Some(noted) = noted
                && let Ok(Err(err)) = noted.await
            {
                tracing::warn!(container_id = %id, err = chain(&err), "the user's stop was not recorded");
            }
            match shim.kill(number, false).await {
                // It has ended in this very moment: that is what the signal was for.
                Ok(()) | Err(ShimError::WrongState { .. } | ShimError::Lost { .. }) => {}
                Err(err) => return Err(runtime_error("kill", id)(&err)),
            }
            if was_paused
                && stops
                && let Err(err) = shim.resume().await
                && !matches!(err, ShimError::WrongState { .. } | ShimError::Lost { .. })
            {
                return Err(runtime_error("thaw", id)(&err));
            }
            Ok(())
        });
        Box::pin(work.map(|done| done.map_err(|_| EngineError::WorkLost { what: "signal" })?))
    }
}

/// The signal that asks a container to stop.
pub(crate) fn stop_signal(config: &ContainerConfig) -> i32 {
    crate::signal::parse(&config.stop_signal).unwrap_or(libc::SIGTERM)
}

/// Freezes (`true`) or thaws.
pub(crate) struct Freeze(pub(crate) bool);
message!(Freeze => Result<()>);

impl Handler<Freeze> for ContainerActor {
    type Result = Atomic<Result<()>>;

    fn handle(&mut self, message: Freeze, _: &mut Self::Context) -> Self::Result {
        let freeze = message.0;
        let name = &self.record.name;
        let shim = match (self.shim("cannot pause"), self.state.phase, freeze) {
            (Err(err), _, _) => Err(err),
            (Ok(_), Phase::Paused, true) => Err(EngineError::conflict(format!(
                "container {name} is already paused"
            ))),
            (Ok(shim), Phase::Paused, false) => Ok(shim),
            (Ok(_), _, false) => Err(EngineError::conflict(format!(
                "container {name} is not paused"
            ))),
            (Ok(shim), _, true) => Ok(shim),
        };
        let shim = match shim {
            Ok(shim) => shim,
            Err(err) => return now(self, Err(err)),
        };
        let id = self.record.id;
        let work = self.env.runtime.spawn(async move {
            if freeze {
                shim.pause()
                    .await
                    .map_err(|err| runtime_error("pause", id)(&err))
            } else {
                shim.resume()
                    .await
                    .map_err(|err| runtime_error("unpause", id)(&err))
            }
        });
        AtomicResponse::new(Box::pin(work.into_actor(self).then(
            move |done, actor, ctx| {
                let done = done.unwrap_or(Err(EngineError::WorkLost { what: "pause" }));
                let saving = done.is_ok().then(|| {
                    actor.state.phase = if freeze {
                        Phase::Paused
                    } else {
                        Phase::Running
                    };
                    actor.publish();
                    actor.tell(actor.event(if freeze { "pause" } else { "unpause" }), ctx);
                    actor.save(Durability::Cached)
                });
                async move {
                    done?;
                    match saving {
                        Some(saving) => saving.await,
                        None => Ok(()),
                    }
                }
                .into_actor(actor)
            },
        )))
    }
}

/// Another name; the supervisor has reserved it.
pub(crate) struct Rename(pub(crate) String);
message!(Rename => Result<()>);

impl Handler<Rename> for ContainerActor {
    type Result = Atomic<Result<()>>;

    fn handle(&mut self, message: Rename, _: &mut Self::Context) -> Self::Result {
        let old = self.record.name.clone();
        let mut record = (*self.record).clone();
        record.name = message.0;
        change_record(self, record, move |actor, ctx| {
            actor.tell(
                actor.event("rename").with("oldName", format!("/{old}")),
                ctx,
            );
        })
    }
}

fn change_record(
    actor: &ContainerActor,
    record: super::record::ContainerRecord,
    then: impl FnOnce(&mut ContainerActor, &mut Context<ContainerActor>) + 'static,
) -> Atomic<Result<()>> {
    let path = actor.dir.record_path();
    let work = async move {
        blocking("container record", move || {
            disk::write_record(&path, &record, record.durability())?;
            Ok(record)
        })
        .await
    };
    AtomicResponse::new(Box::pin(work.into_actor(actor).map(
        |written, actor, ctx| {
            actor.record = Arc::new(written?);
            actor.publish();
            then(actor, ctx);
            Ok(())
        },
    )))
}

/// Other limits or another restart policy.
pub(crate) struct Update(pub(crate) ContainerUpdate);
message!(Update => Result<()>);

impl Handler<Update> for ContainerActor {
    type Result = Atomic<Result<()>>;

    fn handle(&mut self, message: Update, _: &mut Self::Context) -> Self::Result {
        let ContainerUpdate {
            resources,
            restart_policy,
        } = message.0;
        let mut config = (*self.record.config).clone();
        if restart_policy.is_some() && config.host.auto_remove {
            let err = EngineError::conflict(
                "restart policy cannot be updated because AutoRemove is enabled for the container",
            );
            return now(self, Err(err));
        }
        config.host.restart_policy = restart_policy.unwrap_or(config.host.restart_policy);
        let changed = resources.is_some();
        if let Some(new) = resources {
            merge_limits(&mut config.host.resources, new);
        }
        let checked = crate::oci::check_limits(&config.host.resources);
        let limits = crate::oci::resources(&config.host.resources);
        let mut record = (*self.record).clone();
        record.config = Arc::new(config);
        let (path, id) = (self.dir.record_path(), self.record.id);
        let shim = self.run.as_ref().map(|run| run.shim.clone());
        let work = self.env.runtime.spawn(async move {
            checked?;
            if let (Some(shim), true) = (shim, changed) {
                shim.update_resources(&limits)
                    .await
                    .map_err(|err| runtime_error("update", id)(&err))?;
            }
            blocking("container record", move || {
                disk::write_record(&path, &record, record.durability())?;
                Ok(record)
            })
            .await
        });
        AtomicResponse::new(Box::pin(work.into_actor(self).map(
            |written, actor, ctx| {
                actor.record =
                    Arc::new(written.map_err(|_| EngineError::WorkLost { what: "update" })??);
                actor.publish();
                actor.tell(actor.event("update"), ctx);
                Ok(())
            },
        )))
    }
}

/// Fields that are zero or empty leave what was there.
fn merge_limits(old: &mut crate::config::ResourceLimits, new: crate::config::ResourceLimits) {
    for (old, new) in [
        (&mut old.memory_bytes, new.memory_bytes),
        (&mut old.memory_swap_bytes, new.memory_swap_bytes),
        (
            &mut old.memory_reservation_bytes,
            new.memory_reservation_bytes,
        ),
        (&mut old.nano_cpus, new.nano_cpus),
        (&mut old.cpu_shares, new.cpu_shares),
        (&mut old.cpu_quota, new.cpu_quota),
        (&mut old.cpu_period, new.cpu_period),
        (&mut old.pids_limit, new.pids_limit),
    ] {
        if new != 0 {
            *old = new;
        }
    }
    for (old, new) in [
        (&mut old.cpuset_cpus, new.cpuset_cpus),
        (&mut old.cpuset_mems, new.cpuset_mems),
    ] {
        if !new.is_empty() {
            *old = new;
        }
    }
}

/// Until when a fenced container may run.
pub(crate) struct Renew(pub(crate) Option<Fencing>);
message!(Renew => Result<()>);

impl Handler<Renew> for ContainerActor {
    type Result = ResponseFuture<Result<()>>;

    fn handle(&mut self, message: Renew, _: &mut Self::Context) -> Self::Result {
        let mut config = (*self.record.config).clone();
        config.fencing = message.0;
        // For a start that comes later; a running shim keeps its own.
        let mut record = (*self.record).clone();
        record.config = Arc::new(config);
        self.record = Arc::new(record);
        let Some(run) = &self.run else {
            return Box::pin(std::future::ready(Ok(())));
        };
        let (shim, id) = (run.shim.clone(), self.record.id);
        Box::pin(async move {
            shim.renew_deadline(message.0.map(|fencing| fencing.deadline_boottime_ns))
                .await
                .map_err(|err| runtime_error("renew the lease of", id)(&err))
        })
    }
}

/// A client's streams.
pub(crate) struct Attach(pub(crate) AttachOptions);
message!(Attach => Result<AttachStreams>);

/// Clients that may wait for one start.
const ATTACHERS_MAX: usize = 64;

impl Handler<Attach> for ContainerActor {
    type Result = ResponseFuture<Result<AttachStreams>>;

    fn handle(&mut self, message: Attach, ctx: &mut Self::Context) -> Self::Result {
        let options = message.0;
        let tty = self.record.config.tty;
        self.tell(self.event("attach"), ctx);
        if self.state.phase == Phase::Paused {
            let err = EngineError::conflict(format!(
                "container {} is paused, unpause the container before attach",
                self.record.id
            ));
            return Box::pin(std::future::ready(Err(err)));
        }
        match &self.run {
            Some(run) => {
                let shim = run.shim.clone();
                let work = self
                    .env
                    .runtime
                    .spawn(async move { streams::attach(&shim, options, tty).await });
                Box::pin(
                    work.map(|done| done.map_err(|_| EngineError::WorkLost { what: "attach" })?),
                )
            }
            None if self.attachers.len() >= ATTACHERS_MAX => {
                Box::pin(std::future::ready(Err(EngineError::conflict(format!(
                    "{ATTACHERS_MAX} clients already wait for the start of this container"
                )))))
            }
            None => {
                let _inside = self.env.runtime.enter();
                let (pending, streams) = streams::attach_later(options, tty);
                self.attachers.push(pending);
                Box::pin(std::future::ready(Ok(streams)))
            }
        }
    }
}

/// The shim of a running container.
pub(crate) struct GetShim(pub(crate) &'static str);
message!(GetShim => Result<ShimHandle>);

impl Handler<GetShim> for ContainerActor {
    type Result = Result<ShimHandle>;

    fn handle(&mut self, message: GetShim, _: &mut Self::Context) -> Self::Result {
        self.shim(message.0)
    }
}

/// Removes a container that does not run.
pub(crate) struct Remove {
    pub(crate) volumes: bool,
}
message!(Remove => Result<()>);

impl Handler<Remove> for ContainerActor {
    type Result = Atomic<Result<()>>;

    fn handle(&mut self, message: Remove, ctx: &mut Self::Context) -> Self::Result {
        if self.removing {
            return now(
                self,
                Err(EngineError::conflict(format!(
                    "removal of container {} is already in progress",
                    self.record.name
                ))),
            );
        }
        if self.run.is_some() {
            let status = self.status();
            let advice = if status == ContainerStatus::Paused {
                "unpause and then stop"
            } else {
                "stop"
            };
            return now(
                self,
                Err(EngineError::conflict(format!(
                    "cannot remove container \"/{}\": container is {status}: {advice} the container before removing or force remove",
                    self.record.name
                ))),
            );
        }
        self.cancel_restart(ctx);
        self.removing = true;
        self.publish();
        let work = removal(self, message.volumes);
        AtomicResponse::new(Box::pin(work.into_actor(self).map(
            |removed, actor, ctx| {
                let answer = match &removed {
                    Ok(()) => Ok(()),
                    Err(err) => Err(EngineError::conflict(format!(
                        "driver failed to remove the container: {}",
                        chain(err)
                    ))),
                };
                actor.removed(removed, ctx);
                answer
            },
        )))
    }
}

/// Begins the name of the directory of a container that is removed with its anonymous volumes.
pub(crate) const REMOVING_WITH_VOLUMES: &str = ".removing-v-";

/// Makes the container invisible by one rename, frees its name, and deletes its data behind that.
pub(crate) fn removal(
    actor: &mut ContainerActor,
    volumes: bool,
) -> impl Future<Output = Result<()>> + use<> {
    let env = Arc::clone(&actor.env);
    let record = Arc::clone(&actor.record);
    let dir = actor.dir.clone();
    let event = actor.event("destroy");
    let lease = actor.lease.take();
    let cleanup = actor.cleanup.take();
    actor.attachers.clear();
    let work = env.runtime.clone().spawn(async move {
                // The name tells an engine that finds it whether the anonymous volumes go too.
        let prefix = if volumes { REMOVING_WITH_VOLUMES } else { ".removing-" };
        let hidden = env.containers_dir.join(format!("{prefix}{}", record.id));
        let (from, to) = (dir.path().to_owned(), hidden.clone());
        blocking("container removal", move || {
            std::fs::rename(&from, &to).map_err(EngineError::disk("remove", from))
        })
        .await?;
        drop(lease);
        env.volumes.send(UnuseVolumes(record.id)).await?;
        if volumes {
            for name in record.anonymous_volumes() {
                match env.volumes.send(RemoveVolume(name)).await? {
                    // Another container may have it by --volumes-from.
                    Ok(()) | Err(EngineError::Conflict { .. } | EngineError::NoSuch { .. }) => {}
                    Err(err) => tracing::warn!(container_id = %record.id, err = chain(&err), "an anonymous volume was not removed"),
                }
            }
        }
        env.supervisor()?.send(Forget(record.id)).await?;
        env.publish(event).await;
        env.runtime.clone().spawn(async move {
            if let Some(cleanup) = cleanup
                && cleanup.await.is_err()
            {
                tracing::warn!(container_id = %record.id, "the teardown of the last run did not end in order");
            }
            if let Err(err) = blocking("container removal", move || disk::remove_dir_all(&hidden)).await {
                // The next start of the engine tries again.
                tracing::warn!(container_id = %record.id, err = chain(&err), "a removed container's files are still there");
            }
        });
        Ok(())
    });
    async move {
        work.await.map_err(|_| EngineError::WorkLost {
            what: "container removal",
        })?
    }
}

/// Waits for the teardown of a run that was cut short by the engine's death.
pub(crate) async fn finish_teardown(
    env: &Arc<crate::env::Env>,
    id: shoal_model::ContainerId,
    shim: Option<ShimHandle>,
    lease: crate::network::Lease,
) {
    let cleanup = start::teardown(env, id, shim, lease).await;
    if cleanup.await.is_err() {
        tracing::warn!(container_id = %id, "a teardown did not end in order");
    }
}
