//! The one door into the engine: its start, and everything about containers.

use crate::config::{ContainerConfig, Fencing};
use crate::container::actor::Snapshot;
use crate::container::exec::{CreateExec, InspectExec, ResizeExec, StartExec};
use crate::container::lifecycle::{
    self, Attach, Freeze, GetShim, Purpose, Remove, Rename, Renew, Signal, Start, Update,
};
use crate::container::{archive, logs};
use crate::engine::Engine;
use crate::error::{EngineError, Result, chain};
use crate::host;
use crate::info::{ContainerInfo, ContainerStats, ContainerStatus, ExecInfo};
use crate::options::EngineOptions;
use crate::requests::{
    ArchivePutOptions, AttachOptions, AttachStreams, ContainerUpdate, Created, ExecConfig,
    ListFilter, LogEntry, LogOptions, PathStat, ProcessTable, Pruned, RemoveOptions,
    STOP_TIMEOUT_DEFAULT, TerminalSize, WaitCondition, WaitResult,
};
use crate::supervisor::{All, Create, Entry, FindExec, FreeName, NoteExec, ReserveName, Resolve};
use crate::{list, signal};
use bytes::Bytes;
use futures_util::stream::{BoxStream, StreamExt as _};
use shoal_model::ContainerId;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncRead;
use tokio::sync::watch;

/// How long a killed container may take to end before the caller is told that it does not.
const KILL_TIMEOUT: Duration = Duration::from_secs(20);

/// A running engine. Cheap to clone; the containers outlive it.
#[derive(Clone)]
pub struct EngineHandle {
    pub(crate) engine: Arc<Engine>,
}

impl std::fmt::Debug for EngineHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EngineHandle")
            .field("data_root", &self.engine.env.options.data_root)
            .finish_non_exhaustive()
    }
}

impl EngineHandle {
    /// Finds everything again that an earlier engine left, cleans up what it had half done, and starts.
    ///
    /// # Errors
    /// When a directory can't be used, or the local networks can't be brought in order.
    pub async fn start(options: EngineOptions) -> Result<Self> {
        let engine = Engine::start(options).await?;
        Ok(Self {
            engine: Arc::new(engine),
        })
    }

    pub(crate) async fn entry(&self, name: &str) -> Result<Entry> {
        self.engine
            .supervisor
            .send(Resolve(name.to_owned()))
            .await?
    }

    /// Makes a container. Without a name it gets a generated one.
    ///
    /// # Errors
    /// What is wrong with the request; nothing half-made stays.
    pub async fn create(&self, name: Option<String>, config: ContainerConfig) -> Result<Created> {
        self.engine.supervisor.send(Create { name, config }).await?
    }

    /// Starts a container.
    ///
    /// # Errors
    /// [`EngineError::Start`] carries the exit code that `docker run` ends with; nothing of the attempt is left.
    pub async fn start_container(&self, name: &str) -> Result<()> {
        self.entry(name).await?.address.send(Start).await?
    }

    /// Asks it to stop and kills it after the grace. `None`: the container's own grace and signal.
    ///
    /// # Errors
    /// `NotModified` when it does not run.
    pub async fn stop(
        &self,
        name: &str,
        grace: Option<Duration>,
        signal: Option<&str>,
    ) -> Result<()> {
        let entry = self.entry(name).await?;
        let status = entry.info().state.status;
        if !status.is_running() && status != ContainerStatus::Restarting {
            return Err(EngineError::NotModified {
                name: entry.info().name.clone(),
                state: "stopped",
            });
        }
        self.stop_entry(&entry, grace, signal).await
    }

    async fn stop_entry(
        &self,
        entry: &Entry,
        grace: Option<Duration>,
        by: Option<&str>,
    ) -> Result<()> {
        let info = entry.info();
        let number = match by {
            Some(text) if !text.is_empty() => signal::parse(text)?,
            _ => lifecycle::stop_signal(&info.config),
        };
        // A negative grace of the container's means for ever.
        let grace = match (grace, info.config.stop_timeout_s) {
            (Some(grace), _) => Some(grace),
            (None, None) => Some(STOP_TIMEOUT_DEFAULT),
            (None, Some(seconds)) => u64::try_from(seconds).ok().map(Duration::from_secs),
        };
        let mut ended = entry.ended.clone();
        signal_or_gone(entry, number).await?;
        let gone = match grace {
            Some(grace) => tokio::time::timeout(grace, finished(&mut ended))
                .await
                .is_ok(),
            None => {
                finished(&mut ended).await;
                true
            }
        };
        if !gone {
            kill_and_wait(entry).await?;
        }
        settled(entry).await;
        self.tell(&info, "stop").await;
        Ok(())
    }

    async fn tell(&self, info: &ContainerInfo, action: &str) {
        let event = crate::event::Event::new(
            crate::event::EventType::Container,
            action,
            info.id.to_string(),
            crate::clock::now(),
        );
        let mut event = event
            .with("image", &info.config.image)
            .with("name", &info.name);
        for (key, value) in &info.config.labels {
            event = event.with(key, value);
        }
        self.engine.env.publish(event).await;
    }

    /// Sends a signal (`KILL`, `SIGTERM`, `9`).
    ///
    /// # Errors
    /// When it does not run.
    pub async fn kill(&self, name: &str, signal: &str) -> Result<()> {
        let number = if signal.is_empty() {
            libc::SIGKILL
        } else {
            signal::parse(signal)?
        };
        let message = Signal {
            number,
            purpose: Purpose::Kill,
        };
        let entry = self.entry(name).await?;
        let mut ended = entry.ended.clone();
        entry.address.send(message).await??;
        if number == libc::SIGKILL {
            // As in Docker, the container has ended when the answer comes.
            if tokio::time::timeout(KILL_TIMEOUT, finished(&mut ended))
                .await
                .is_err()
            {
                return Err(did_not_end(&entry));
            }
            settled(&entry).await;
        }
        Ok(())
    }

    /// Stops if it runs, then starts.
    ///
    /// # Errors
    /// Those of a stop and of a start.
    pub async fn restart(
        &self,
        name: &str,
        grace: Option<Duration>,
        signal: Option<&str>,
    ) -> Result<()> {
        let entry = self.entry(name).await?;
        let status = entry.info().state.status;
        if status.is_running() || status == ContainerStatus::Restarting {
            self.stop_entry(&entry, grace, signal).await?;
        }
        entry.address.send(Start).await??;
        self.tell(&entry.info(), "restart").await;
        Ok(())
    }

    /// Freezes it.
    ///
    /// # Errors
    /// When it does not run or is frozen.
    pub async fn pause(&self, name: &str) -> Result<()> {
        self.entry(name).await?.address.send(Freeze(true)).await?
    }

    /// Thaws it.
    ///
    /// # Errors
    /// When it is not frozen.
    pub async fn unpause(&self, name: &str) -> Result<()> {
        self.entry(name).await?.address.send(Freeze(false)).await?
    }

    /// Gives it another name.
    ///
    /// # Errors
    /// When the name is bad or taken.
    pub async fn rename(&self, name: &str, new_name: &str) -> Result<()> {
        let entry = self.entry(name).await?;
        let old = entry.info().name.clone();
        let reserve = ReserveName {
            id: entry.id,
            name: new_name.to_owned(),
        };
        let reserved = self.engine.supervisor.send(reserve).await??;
        let renamed = entry.address.send(Rename(reserved.clone())).await?;
        let free = if renamed.is_ok() { old } else { reserved };
        self.engine.supervisor.send(FreeName(free)).await?;
        renamed
    }

    /// Waits until the condition holds.
    ///
    /// # Errors
    /// An unknown container.
    pub async fn wait(&self, name: &str, condition: WaitCondition) -> Result<WaitResult> {
        Ok(self.wait_begin(name, condition).await?.await)
    }

    /// As [`EngineHandle::wait`], in two parts: once this returns, the wait is registered, and no end is missed.
    ///
    /// # Errors
    /// An unknown container.
    pub async fn wait_begin(
        &self,
        name: &str,
        condition: WaitCondition,
    ) -> Result<impl Future<Output = WaitResult> + Send + 'static> {
        let mut snapshots = self.entry(name).await?.snapshots;
        let before = snapshots.borrow_and_update().exits;
        Ok(async move {
            let holds = |snapshot: &Snapshot| match condition {
                WaitCondition::NotRunning => {
                    let status = snapshot.info.state.status;
                    snapshot.gone || !(status.is_running() || status == ContainerStatus::Restarting)
                }
                WaitCondition::NextExit => snapshot.gone || snapshot.exits > before,
                WaitCondition::Removed => snapshot.gone,
            };
            let last = match snapshots.wait_for(holds).await {
                Ok(snapshot) => Some(Arc::clone(&snapshot.info)),
                Err(_) => None,
            };
            // Without a sender the actor has ended: the last snapshot is the last word.
            let info = last.unwrap_or_else(|| Arc::clone(&snapshots.borrow().info));
            WaitResult {
                exit_code: info.state.exit_code,
                error: info.state.error.clone(),
            }
        })
    }

    /// Removes it.
    ///
    /// # Errors
    /// When it runs and `force` is not given.
    pub async fn remove(&self, name: &str, options: RemoveOptions) -> Result<()> {
        let entry = self.entry(name).await?;
        let status = entry.info().state.status;
        if options.force && (status.is_running() || status == ContainerStatus::Restarting) {
            kill_and_wait(&entry).await?;
            settled(&entry).await;
        }
        let volumes = options.volumes;
        match entry.address.send(Remove { volumes }).await {
            Ok(removed) => removed,
            // With --rm its end has removed it already.
            Err(_) if entry.snapshots.borrow().gone => Ok(()),
            Err(err) => Err(err.into()),
        }
    }

    /// Everything about one container; by id, name, or unique prefix of an id.
    ///
    /// # Errors
    /// An unknown container.
    pub async fn inspect(&self, name: &str) -> Result<ContainerInfo> {
        Ok((*self.entry(name).await?.info()).clone())
    }

    /// The id of the container with that name or unique prefix.
    ///
    /// # Errors
    /// An unknown container.
    pub async fn resolve(&self, name: &str) -> Result<ContainerId> {
        Ok(self.entry(name).await?.id)
    }

    /// Containers, newest first.
    ///
    /// # Errors
    /// A bad filter.
    pub async fn list(&self, filter: ListFilter) -> Result<Vec<ContainerInfo>> {
        let entries = self.engine.supervisor.send(All).await?;
        let infos = entries.iter().map(Entry::info).collect();
        list::select(infos, &filter, &self.engine.env.images)
    }

    /// Its log.
    ///
    /// # Errors
    /// When the driver keeps none.
    pub async fn logs(
        &self,
        name: &str,
        options: LogOptions,
    ) -> Result<BoxStream<'static, Result<LogEntry>>> {
        let entry = self.entry(name).await?;
        logs::read(&entry.info(), &options, entry.ended.clone())
    }

    /// Its standard streams. Before the start the streams wait for it, so that nothing is missed.
    ///
    /// # Errors
    /// When it is paused.
    pub async fn attach(&self, name: &str, options: AttachOptions) -> Result<AttachStreams> {
        let entry = self.entry(name).await?;
        let past = if options.logs {
            let wanted = LogOptions {
                stdout: options.stdout,
                stderr: options.stderr,
                ..LogOptions::default()
            };
            Some(logs::read(&entry.info(), &wanted, entry.ended.clone())?)
        } else {
            None
        };
        let tty = entry.info().config.tty;
        let live = if options.stream {
            entry.address.send(Attach(options)).await??
        } else {
            AttachStreams {
                stdin: None,
                output: futures_util::stream::empty().boxed(),
                tty,
            }
        };
        let Some(past) = past else {
            return Ok(live);
        };
        let past = past.map(|entry| {
            entry.map(|entry| crate::requests::OutputChunk {
                stream: entry.stream,
                bytes: entry.line,
            })
        });
        Ok(AttachStreams {
            output: past.chain(live.output).boxed(),
            ..live
        })
    }

    /// Sets the size of its terminal.
    ///
    /// # Errors
    /// When it does not run or has none.
    pub async fn resize(&self, name: &str, size: TerminalSize) -> Result<()> {
        let entry = self.entry(name).await?;
        let shim = entry.address.send(GetShim("cannot resize")).await??;
        shim.resize(size.width, size.height)
            .await
            .map_err(|err| EngineError::conflict(format!("cannot resize: {}", chain(&err))))
    }

    /// Prepares a further process.
    ///
    /// # Errors
    /// When the container does not run.
    pub async fn exec_create(&self, name: &str, config: ExecConfig) -> Result<String> {
        let entry = self.entry(name).await?;
        let id = entry.address.send(CreateExec(config)).await??;
        let note = NoteExec {
            exec: id.clone(),
            container: entry.id,
        };
        self.engine.supervisor.send(note).await?;
        Ok(id)
    }

    async fn exec_entry(&self, exec_id: &str) -> Result<Entry> {
        self.engine
            .supervisor
            .send(FindExec(exec_id.to_owned()))
            .await?
    }

    /// Starts it; with `detach` nothing is attached and the streams are empty.
    ///
    /// # Errors
    /// [`EngineError::Start`] when the program can't be run.
    pub async fn exec_start(&self, exec_id: &str, detach: bool) -> Result<AttachStreams> {
        let id = exec_id.to_owned();
        self.exec_entry(exec_id)
            .await?
            .address
            .send(StartExec { id, detach })
            .await?
    }

    /// What is known of it.
    ///
    /// # Errors
    /// An unknown exec instance.
    pub async fn exec_inspect(&self, exec_id: &str) -> Result<ExecInfo> {
        let id = exec_id.to_owned();
        self.exec_entry(exec_id)
            .await?
            .address
            .send(InspectExec(id))
            .await?
    }

    /// Sets the size of its terminal.
    ///
    /// # Errors
    /// When it does not run or has none.
    pub async fn exec_resize(&self, exec_id: &str, size: TerminalSize) -> Result<()> {
        let id = exec_id.to_owned();
        self.exec_entry(exec_id)
            .await?
            .address
            .send(ResizeExec { id, size })
            .await?
    }

    /// Its processes.
    ///
    /// # Errors
    /// When it does not run.
    pub async fn top(&self, name: &str) -> Result<ProcessTable> {
        let entry = self.entry(name).await?;
        if !entry.info().state.status.is_running() {
            return Err(EngineError::conflict(format!(
                "container {} is not running",
                entry.id
            )));
        }
        let (options, id) = (self.engine.env.options.clone(), entry.id);
        let rows =
            crate::disk::blocking("process list", move || Ok(host::processes(&options, &id)))
                .await?;
        let titles = ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"];
        Ok(ProcessTable {
            titles: titles.map(str::to_owned).to_vec(),
            rows,
        })
    }

    /// One sample of its use of resources.
    ///
    /// # Errors
    /// When it does not run.
    pub async fn stats(&self, name: &str) -> Result<ContainerStats> {
        let entry = self.entry(name).await?;
        let shim = entry
            .address
            .send(GetShim("cannot read statistics"))
            .await??;
        let stats = shim.stats().await.map_err(|err| {
            EngineError::conflict(format!("cannot read statistics: {}", chain(&err)))
        })?;
        Ok(ContainerStats {
            read: crate::clock::now(),
            cpu_total_ns: stats.cpu.usage_ns,
            cpu_user_ns: stats.cpu.user_ns,
            cpu_system_ns: stats.cpu.system_ns,
            host_cpu_total_ns: host::cpu_total_ns(),
            online_cpus: u32::try_from(self.engine.facts.cpus).unwrap_or(u32::MAX),
            throttled_periods: stats.cpu.throttled_periods,
            throttled_ns: stats.cpu.throttled_ns,
            memory_usage_bytes: stats.memory.usage_bytes,
            memory_inactive_file_bytes: stats.memory.inactive_file_bytes,
            memory_limit_bytes: stats
                .memory
                .limit_bytes
                .unwrap_or(self.engine.facts.memory_bytes),
            pids: stats.pids.current,
            pids_limit: stats.pids.limit.unwrap_or(0),
            block_read_bytes: stats.block_io.iter().map(|device| device.read_bytes).sum(),
            block_write_bytes: stats.block_io.iter().map(|device| device.write_bytes).sum(),
            networks: host::interfaces(shim.pid()),
        })
    }

    /// Changes limits or restart policy; warnings come back.
    ///
    /// # Errors
    /// A limit that is out of bounds, or that the kernel refuses.
    pub async fn update(&self, name: &str, update: ContainerUpdate) -> Result<Vec<String>> {
        self.entry(name)
            .await?
            .address
            .send(Update(update))
            .await??;
        Ok(Vec::new())
    }

    /// Sets until when a fenced container may run; `None`: for ever.
    ///
    /// # Errors
    /// When the deadline has passed already.
    pub async fn renew_fencing(&self, name: &str, fencing: Option<Fencing>) -> Result<()> {
        self.entry(name).await?.address.send(Renew(fencing)).await?
    }

    /// Facts about a file in the container.
    ///
    /// # Errors
    /// When there is no such file.
    pub async fn archive_stat(&self, name: &str, path: &str) -> Result<PathStat> {
        let info = self.entry(name).await?.info();
        archive::stat(&self.engine.env, &info, path).await
    }

    /// A file or directory of the container as a tar stream.
    ///
    /// # Errors
    /// When there is no such file.
    pub async fn archive_get(
        &self,
        name: &str,
        path: &str,
    ) -> Result<(PathStat, BoxStream<'static, Result<Bytes>>)> {
        let info = self.entry(name).await?.info();
        archive::get(&self.engine.env, &info, path).await
    }

    /// Unpacks a tar stream into a directory of the container.
    ///
    /// # Errors
    /// When the directory does not exist, the root is read-only, or the archive is malformed.
    pub async fn archive_put(
        &self,
        name: &str,
        path: &str,
        tar: impl AsyncRead + Send + Unpin + 'static,
        options: ArchivePutOptions,
    ) -> Result<()> {
        let info = self.entry(name).await?.info();
        archive::put(&self.engine.env, &info, path, tar, options).await
    }

    /// Removes the containers that have ended and match (`label`, `until`).
    ///
    /// # Errors
    /// A bad filter.
    pub async fn prune_containers(&self, filters: BTreeMap<String, Vec<String>>) -> Result<Pruned> {
        let until = crate::objects::prune_filters(&filters)?;
        let labels: BTreeMap<_, _> = filters
            .into_iter()
            .filter(|(key, _)| key.starts_with("label"))
            .collect();
        let all = ListFilter {
            all: true,
            limit: 0,
            filters: labels,
        };
        let mut pruned = Pruned::default();
        for info in self.list(all).await? {
            let ended = matches!(
                info.state.status,
                ContainerStatus::Created | ContainerStatus::Exited | ContainerStatus::Dead
            );
            if !ended || until.is_some_and(|until| info.created > until) {
                continue;
            }
            let size = crate::volume::disk_usage(&info.upper_dir);
            match self
                .remove(&info.id.to_string(), RemoveOptions::default())
                .await
            {
                Ok(()) => {
                    pruned.removed.push(info.id.to_string());
                    pruned.reclaimed_bytes += size;
                }
                // Started or removed by somebody else meanwhile.
                Err(EngineError::Conflict { .. } | EngineError::NoSuch { .. }) => {}
                Err(err) => return Err(err),
            }
        }
        Ok(pruned)
    }
}

/// Sends a stop signal; a container that has just ended is fine.
async fn signal_or_gone(entry: &Entry, number: i32) -> Result<()> {
    let message = Signal {
        number,
        purpose: Purpose::Stop,
    };
    match entry.address.send(message).await {
        Ok(Err(EngineError::Conflict { .. })) => Ok(()),
        Ok(answer) => answer,
        Err(_) if entry.snapshots.borrow().gone => Ok(()),
        Err(err) => Err(err.into()),
    }
}

async fn kill_and_wait(entry: &Entry) -> Result<()> {
    let mut ended = entry.ended.clone();
    signal_or_gone(entry, libc::SIGKILL).await?;
    match tokio::time::timeout(KILL_TIMEOUT, finished(&mut ended)).await {
        Ok(()) => Ok(()),
        Err(_) => Err(did_not_end(entry)),
    }
}

fn did_not_end(entry: &Entry) -> EngineError {
    EngineError::conflict(format!(
        "container {} was killed and did not end within {KILL_TIMEOUT:?}; a process of it may hang in the kernel",
        entry.id
    ))
}

/// Waits for the end of the present run.
async fn finished(ended: &mut watch::Receiver<bool>) {
    // An error means that the actor is gone, and the run with it.
    drop(ended.wait_for(|ended| *ended).await);
}

/// Waits until the end of a run is visible: everything that it held is given back.
async fn settled(entry: &Entry) {
    let mut snapshots = entry.snapshots.clone();
    drop(
        snapshots
            .wait_for(|snapshot| snapshot.gone || !snapshot.info.state.status.is_running())
            .await,
    );
}
