//! Further processes in a container.

use super::actor::ContainerActor;
use super::record::{ContainerDir, ContainerRecord};
use crate::actors::message;
use crate::env::Env;
use crate::error::{EngineError, Result, chain};
use crate::info::{ContainerStatus, ExecId, ExecInfo};
use crate::requests::{AttachStreams, ExecConfig, InputSink, OutputChunk, StdStream, TerminalSize};
use crate::rootfs::Layers;
use crate::user::Identity;
use actix::{Addr, AsyncContext as _, Handler, ResponseFuture};
use bytes::BytesMut;
use futures_util::StreamExt as _;
use futures_util::stream::{self, BoxStream};
use shoal_runtime::{ExecHandle, ExecSpec, ExecStdio, PtyMaster, ShimError};
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncReadExt as _};

/// Exec instances of one container that are remembered; the oldest ended ones go first.
const EXECS_KEPT_MAX: usize = 256;
/// Bytes read at once from a process: 32 KiB.
const READ_BYTES: usize = 32 << 10;

/// One exec instance.
struct Exec {
    config: Arc<ExecConfig>,
    order: u64,
    phase: ExecPhase,
}

enum ExecPhase {
    Created,
    Starting,
    Running {
        pid: u32,
        terminal: Option<PtyMaster>,
    },
    Ended {
        pid: u32,
        code: i32,
    },
}

/// The exec instances of one container.
#[derive(Default)]
pub(crate) struct Execs {
    known: BTreeMap<ExecId, Exec>,
    made: u64,
}

impl Execs {
    /// Those that run.
    pub(crate) fn running(&self) -> Vec<ExecId> {
        let running =
            |exec: &Exec| matches!(exec.phase, ExecPhase::Running { .. } | ExecPhase::Starting);
        self.known
            .iter()
            .filter(|(_, exec)| running(exec))
            .map(|(id, _)| id.clone())
            .collect()
    }

    fn get(&mut self, id: &str) -> Result<&mut Exec> {
        self.known.get_mut(id).ok_or_else(|| EngineError::NoSuch {
            object: "exec instance",
            name: id.to_owned(),
        })
    }

    fn insert(&mut self, config: ExecConfig) -> Result<ExecId> {
        if self.known.len() >= EXECS_KEPT_MAX {
            let ended =
                |exec: &Exec| matches!(exec.phase, ExecPhase::Ended { .. } | ExecPhase::Created);
            let oldest = self
                .known
                .iter()
                .filter(|(_, exec)| ended(exec))
                .min_by_key(|(_, exec)| exec.order)
                .map(|(id, _)| id.clone())
                .ok_or_else(|| {
                    EngineError::conflict(format!(
                        "the container already runs {EXECS_KEPT_MAX} exec instances"
                    ))
                })?;
            self.known.remove(&oldest);
        }
        let id = crate::clock::hex_id();
        self.made += 1;
        let exec = Exec {
            config: Arc::new(config),
            order: self.made,
            phase: ExecPhase::Created,
        };
        self.known.insert(id.clone(), exec);
        Ok(id)
    }
}

/// Who an exec'ed process runs as; `user` empty: the container's user.
pub(crate) async fn identity(
    env: &Env,
    record: &ContainerRecord,
    dir: &ContainerDir,
    user: &str,
) -> Result<Identity> {
    let image = env.image(&record.image_id)?;
    let layers = Layers {
        lower: env.lower(&image).await?,
        upper: Some((dir.upper(), dir.work())),
    };
    let accounts = env.accounts(&record.image_id, layers).await?;
    let user = if user.is_empty() {
        &record.config.user
    } else {
        user
    };
    accounts.resolve(user, &record.config.host.group_add)
}

/// Prepares an exec.
pub(crate) struct CreateExec(pub(crate) ExecConfig);
message!(CreateExec => Result<ExecId>);

impl Handler<CreateExec> for ContainerActor {
    type Result = Result<ExecId>;

    fn handle(&mut self, message: CreateExec, ctx: &mut Self::Context) -> Self::Result {
        if message.0.cmd.is_empty() {
            return Err(EngineError::invalid("Cmd", "no exec command specified"));
        }
        if self.status() == ContainerStatus::Paused {
            return Err(EngineError::conflict(format!(
                "container {} is paused, unpause the container before exec",
                self.record.name
            )));
        }
        if self.run.is_none() {
            return Err(EngineError::conflict(format!(
                "container {} is not running",
                self.record.id
            )));
        }
        let line = message.0.cmd.join(" ");
        let id = self.execs.insert(message.0)?;
        self.tell(
            self.event(&format!("exec_create: {line}"))
                .with("execID", &id),
            ctx,
        );
        Ok(id)
    }
}

/// Starts an exec.
pub(crate) struct StartExec {
    pub(crate) id: ExecId,
    pub(crate) detach: bool,
}
message!(StartExec => Result<AttachStreams>);

impl Handler<StartExec> for ContainerActor {
    type Result = ResponseFuture<Result<AttachStreams>>;

    fn handle(&mut self, message: StartExec, ctx: &mut Self::Context) -> Self::Result {
        let StartExec { id, detach } = message;
        let shim = self.shim("cannot exec");
        let (config, shim) = match (self.execs.get(&id), shim) {
            (Err(err), _) | (Ok(_), Err(err)) => return Box::pin(std::future::ready(Err(err))),
            (Ok(exec), Ok(shim)) => match exec.phase {
                ExecPhase::Created => {
                    exec.phase = ExecPhase::Starting;
                    (Arc::clone(&exec.config), shim)
                }
                ExecPhase::Starting | ExecPhase::Running { .. } | ExecPhase::Ended { .. } => {
                    let err = EngineError::conflict(format!("exec command {id} has already run"));
                    return Box::pin(std::future::ready(Err(err)));
                }
            },
        };
        self.tell(
            self.event(&format!("exec_start: {}", config.cmd.join(" ")))
                .with("execID", &id),
            ctx,
        );
        self.publish();
        let (env, record, dir) = (
            Arc::clone(&self.env),
            Arc::clone(&self.record),
            self.dir.clone(),
        );
        let address = ctx.address();
        let work = self.env.runtime.spawn(async move {
            let started = begin(&env, &record, &dir, &config, shim, detach).await;
            match started {
                Ok(handle) => Ok(follow(&env, address, id, &config, handle, detach).await?),
                Err(err) => {
                    let code = match &err {
                        EngineError::Start { exit_code, .. } => *exit_code,
                        _ => 126,
                    };
                    address.send(ExecEnded { id, code }).await?;
                    Err(err)
                }
            }
        });
        Box::pin(async move {
            work.await
                .map_err(|_| EngineError::WorkLost { what: "exec" })?
        })
    }
}

async fn begin(
    env: &Env,
    record: &ContainerRecord,
    dir: &ContainerDir,
    config: &ExecConfig,
    shim: shoal_runtime::ShimHandle,
    detach: bool,
) -> Result<ExecHandle> {
    let identity = identity(env, record, dir, &config.user).await?;
    let mut container = (*record.config).clone();
    container.hostname = super::start::hostname(record);
    let process = crate::oci::exec_process(&container, config, &identity)?;
    let spec = ExecSpec {
        process,
        stdin: config.attach_stdin && !detach,
        stdout: config.attach_stdout && !detach,
        stderr: config.attach_stderr && !detach,
    };
    shim.exec(spec).await.map_err(|err| match err {
        ShimError::Setup(failure) => EngineError::Start {
            exit_code: failure.exit_code(),
            reason: failure.to_string(),
        },
        other => EngineError::conflict(format!("exec failed: {}", chain(&other))),
    })
}

/// Tells the actor that it runs, waits for its end beside, and hands the streams out.
async fn follow(
    env: &Env,
    address: Addr<ContainerActor>,
    id: ExecId,
    config: &ExecConfig,
    mut handle: ExecHandle,
    detach: bool,
) -> Result<AttachStreams> {
    let stdio = handle.stdio.take();
    let terminal = match &stdio {
        Some(ExecStdio::Terminal(master)) => {
            if let Some(size) = config.console_size {
                master.resize(size.width, size.height).map_err(pty_error)?;
            }
            Some(master.try_clone().map_err(pty_error)?)
        }
        Some(ExecStdio::Pipes { .. }) | None => None,
    };
    let started = ExecStarted {
        id: id.clone(),
        pid: handle.pid(),
        terminal,
    };
    address.send(started).await?;
    let (recorded, wait_recorded) = tokio::sync::oneshot::channel::<()>();
    env.runtime.spawn(async move {
        let code = match handle.wait().await {
            Ok(exit) => exit.code,
            // The shim ended with its container: every process in it was killed.
            Err(_) => 137,
        };
        if address.send(ExecEnded { id, code }).await.is_err() {
            tracing::debug!("an exec outlived its container's actor");
        }
        drop(recorded);
    });
    let mut streams = streams(stdio, config, detach)?;
    if !detach {
        // Clients ask for the exit code once the output has ended: it must be known by then.
        let end = stream::once(wait_recorded).filter_map(|_| std::future::ready(None));
        streams.output = streams.output.chain(end).boxed();
    }
    Ok(streams)
}

fn pty_error(err: std::io::Error) -> EngineError {
    EngineError::conflict(format!("the terminal can't be used: {err}"))
}

fn streams(stdio: Option<ExecStdio>, config: &ExecConfig, detach: bool) -> Result<AttachStreams> {
    let tty = config.tty;
    let empty = AttachStreams {
        stdin: None,
        output: stream::empty().boxed(),
        tty,
    };
    let (stdin, output): (Option<InputSink>, _) = match stdio {
        None => return Ok(empty),
        Some(ExecStdio::Terminal(master)) => {
            // Without a client the terminal is still read, or the program would block on it.
            let reader = chunks(master.try_clone().map_err(pty_error)?, StdStream::Stdout);
            if detach {
                tokio::spawn(reader.for_each(|_| std::future::ready(())));
                return Ok(empty);
            }
            (
                config.attach_stdin.then(|| Box::pin(master) as InputSink),
                reader,
            )
        }
        Some(ExecStdio::Pipes {
            stdin,
            stdout,
            stderr,
        }) => {
            let out = stdout.map(|pipe| chunks(pipe, StdStream::Stdout));
            let err = stderr.map(|pipe| chunks(pipe, StdStream::Stderr));
            let none = || stream::empty().boxed();
            let merged = stream::select(out.unwrap_or_else(none), err.unwrap_or_else(none)).boxed();
            (stdin.map(|pipe| Box::pin(pipe) as InputSink), merged)
        }
    };
    Ok(AttachStreams { stdin, output, tty })
}

fn chunks(
    reader: impl AsyncRead + Unpin + Send + 'static,
    kind: StdStream,
) -> BoxStream<'static, Result<OutputChunk>> {
    stream::unfold(
        (reader, BytesMut::new()),
        move |(mut reader, mut buffer)| async move {
            buffer.reserve(READ_BYTES);
            match reader.read_buf(&mut buffer).await {
                // A terminal whose other side is closed reads as an error: its end, too.
                Ok(0) | Err(_) => None,
                Ok(_) => {
                    let bytes = buffer.split().freeze();
                    Some((
                        Ok(OutputChunk {
                            stream: kind,
                            bytes,
                        }),
                        (reader, buffer),
                    ))
                }
            }
        },
    )
    .boxed()
}

struct ExecStarted {
    id: ExecId,
    pid: u32,
    terminal: Option<PtyMaster>,
}
message!(ExecStarted => ());

impl Handler<ExecStarted> for ContainerActor {
    type Result = ();

    fn handle(&mut self, message: ExecStarted, _: &mut Self::Context) {
        let ExecStarted { id, pid, terminal } = message;
        if let Ok(exec) = self.execs.get(&id) {
            exec.phase = ExecPhase::Running { pid, terminal };
        }
        self.publish();
    }
}

struct ExecEnded {
    id: ExecId,
    code: i32,
}
message!(ExecEnded => ());

impl Handler<ExecEnded> for ContainerActor {
    type Result = ();

    fn handle(&mut self, message: ExecEnded, ctx: &mut Self::Context) {
        let ExecEnded { id, code } = message;
        if let Ok(exec) = self.execs.get(&id) {
            let pid = match exec.phase {
                ExecPhase::Running { pid, .. } => pid,
                ExecPhase::Created | ExecPhase::Starting | ExecPhase::Ended { .. } => 0,
            };
            exec.phase = ExecPhase::Ended { pid, code };
        }
        self.publish();
        let event = self
            .event("exec_die")
            .with("execID", &id)
            .with("exitCode", code.to_string());
        self.tell(event, ctx);
    }
}

/// What is known of an exec.
pub(crate) struct InspectExec(pub(crate) ExecId);
message!(InspectExec => Result<ExecInfo>);

impl Handler<InspectExec> for ContainerActor {
    type Result = Result<ExecInfo>;

    fn handle(&mut self, message: InspectExec, _: &mut Self::Context) -> Self::Result {
        let container_id = self.record.id;
        let exec = self.execs.get(&message.0)?;
        let (running, exit_code, pid) = match &exec.phase {
            ExecPhase::Created => (false, None, 0),
            ExecPhase::Starting => (true, None, 0),
            ExecPhase::Running { pid, .. } => (true, None, *pid),
            ExecPhase::Ended { pid, code } => (false, Some(*code), *pid),
        };
        Ok(ExecInfo {
            id: message.0,
            container_id,
            running,
            exit_code,
            pid,
            config: Arc::clone(&exec.config),
        })
    }
}

/// The size of an exec's terminal.
pub(crate) struct ResizeExec {
    pub(crate) id: ExecId,
    pub(crate) size: TerminalSize,
}
message!(ResizeExec => Result<()>);

impl Handler<ResizeExec> for ContainerActor {
    type Result = Result<()>;

    fn handle(&mut self, message: ResizeExec, _: &mut Self::Context) -> Self::Result {
        let ResizeExec { id, size } = message;
        match &self.execs.get(&id)?.phase {
            ExecPhase::Running {
                terminal: Some(master),
                ..
            } => master.resize(size.width, size.height).map_err(pty_error),
            ExecPhase::Running { terminal: None, .. } => {
                Err(EngineError::conflict(format!("exec {id} has no terminal")))
            }
            ExecPhase::Created | ExecPhase::Starting | ExecPhase::Ended { .. } => {
                Err(EngineError::conflict(format!("exec {id} is not running")))
            }
        }
    }
}
