//! The daemon's side of a shim: spawn one, find one again, and ask it.
//!
//! A handle holds no state that matters: everything it knows can be asked again from the shim, so that a daemon may
//! die and the next one goes on.

mod attach;
pub(crate) mod conn;
mod exec;
mod recover;

pub use attach::{AttachInput, AttachOptions, AttachOutput, AttachStreams};
pub use exec::{ExecExit, ExecHandle, ExecSpec, ExecStdio, PtyMaster};
pub use recover::Existing;

use crate::proto::{Phase, RefusalKind, Request, Response, ShimStatus};
use crate::{Bundle, BundleError, Exit, Failure, Stats};
use conn::Conn;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use oci_spec::runtime::LinuxResources;
use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;
use tokio::process::Command;
use tokio::sync::Mutex;
use tokio::time::timeout;

/// How a shim is started.
#[derive(Debug, Clone)]
pub struct SpawnOptions {
    /// The program that calls [`crate::shim_main`] when its first argument is `shim`.
    pub exe: PathBuf,
    /// The directory with `config.json` and `shoal.json`.
    pub bundle: PathBuf,
    /// How long the container may take to be made, until the shim is killed and everything undone.
    pub setup_timeout: Duration,
}

impl SpawnOptions {
    /// Default of `setup_timeout`.
    pub const SETUP_TIMEOUT: Duration = Duration::from_secs(30);

    /// The usual way: `exe` makes the container of `bundle`.
    pub fn new(exe: impl Into<PathBuf>, bundle: impl Into<PathBuf>) -> Self {
        Self {
            exe: exe.into(),
            bundle: bundle.into(),
            setup_timeout: Self::SETUP_TIMEOUT,
        }
    }
}

/// Why a shim did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum ShimError {
    /// The shim's program can't be started.
    #[error("failed to start the shim `{exe}`")]
    Spawn {
        /// The program.
        exe: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A shim already runs this bundle.
    #[error("bundle `{bundle}` already has a running shim")]
    AlreadyRunning {
        /// The bundle.
        bundle: PathBuf,
    },
    /// The container, or an exec'ed process, could not be made. Everything that was made for it is gone again.
    #[error(transparent)]
    Setup(#[from] Failure),
    /// The bundle can't be read or written.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// The shim is gone, and left no exit record.
    #[error("the shim of bundle `{bundle}` is gone")]
    Lost {
        /// The bundle.
        bundle: PathBuf,
    },
    /// The shim did not answer in time.
    #[error("the shim of bundle `{bundle}` did not {what} within {after:?}")]
    TimedOut {
        /// The bundle.
        bundle: PathBuf,
        /// What it was to do.
        what: &'static str,
        /// The patience.
        after: Duration,
    },
    /// Reading or writing the connection failed.
    #[error("failed to {what} the shim of bundle `{bundle}`")]
    Io {
        /// The bundle.
        bundle: PathBuf,
        /// What was attempted.
        what: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The shim says something that it should not.
    #[error("the shim of bundle `{bundle}` answered out of turn")]
    Protocol {
        /// The bundle.
        bundle: PathBuf,
    },
    /// The container is in the wrong phase for this (not running, already paused…).
    #[error("{message}")]
    WrongState {
        /// The shim's words.
        message: String,
    },
    /// The request makes no sense.
    #[error("{message}")]
    Invalid {
        /// The shim's words.
        message: String,
    },
    /// This host lacks what the request needs.
    #[error("{message}")]
    Unsupported {
        /// The shim's words.
        message: String,
    },
    /// The kernel refused.
    #[error("{message}")]
    Kernel {
        /// The shim's words.
        message: String,
    },
    /// A log or value can't be turned into a request.
    #[error("failed to encode {what}")]
    Encode {
        /// What.
        what: &'static str,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
}

/// Why a container did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The program was not executed; the container is gone.
    #[error(transparent)]
    Failed(#[from] Failure),
    /// The shim could not be asked.
    #[error(transparent)]
    Shim(ShimError),
}

impl StartError {
    /// The code that `docker run` ends with: 127 not found, 126 not executable, 128 otherwise.
    pub fn exit_code(&self) -> i32 {
        match self {
            Self::Failed(failure) => failure.exit_code(),
            Self::Shim(_) => crate::failure::EXIT_NOT_CREATED,
        }
    }
}

impl From<ShimError> for StartError {
    fn from(error: ShimError) -> Self {
        match error {
            ShimError::Setup(failure) => Self::Failed(failure),
            other => Self::Shim(other),
        }
    }
}

/// A running shim. Cheap to clone; dropping it changes nothing for the container.
#[derive(Debug, Clone)]
pub struct ShimHandle {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    bundle: Bundle,
    shim_pid: u32,
    init_pid: u32,
    /// The connection for short requests. Taken out while a request is on its way, so that a cancelled request
    /// drops it instead of leaving half an answer for the next one.
    control: Mutex<Option<Conn>>,
}

impl ShimHandle {
    /// Starts a shim, which makes the container up to, but not including, its first instruction: the namespaces
    /// exist and [`ShimHandle::pid`] is known.
    ///
    /// # Errors
    /// [`ShimError::Setup`] names the stage that failed; nothing remains of a container that failed.
    pub async fn spawn(options: SpawnOptions) -> Result<Self, ShimError> {
        let bundle = Bundle::new(&options.bundle);
        if let Existing::Alive(_) = Self::attach_existing(&options.bundle).await? {
            return Err(ShimError::AlreadyRunning {
                bundle: options.bundle,
            });
        }
        let (mut conn, mut child) = start_process(&options, &bundle)?;
        let answer = timeout(options.setup_timeout, conn.recv::<Response>()).await;
        match answer {
            Ok(Ok(Some((Response::Status(status), _)))) => {
                Ok(Self::with_control(bundle, &status, Some(conn)))
            }
            Ok(Ok(Some((Response::Failed(failure), _)))) => {
                // The shim undoes and ends by itself; waiting for that means that nothing is left afterwards.
                reap(&mut child, &bundle).await?;
                Err(ShimError::Setup(failure))
            }
            Ok(Ok(Some(_))) => Err(bundle.protocol()),
            Ok(Ok(None)) => Err(bundle.lost()),
            Ok(Err(source)) => Err(bundle.io("hear from", source)),
            Err(_) => {
                child.start_kill().map_err(|e| bundle.io("kill", e))?;
                reap(&mut child, &bundle).await?;
                recover::clean_up(&bundle).await?;
                Err(ShimError::TimedOut {
                    bundle: options.bundle,
                    what: "make the container",
                    after: options.setup_timeout,
                })
            }
        }
    }

    /// Finds what a bundle's shim has become, after the daemon that spawned it is gone.
    ///
    /// A container whose shim died without a record is [`Existing::Lost`]; its remains (processes, cgroups) are
    /// removed before this returns. Records of an earlier boot never match a living process.
    ///
    /// # Errors
    /// When records can't be read, or remains can't be removed.
    pub async fn attach_existing(bundle: &Path) -> Result<Existing, ShimError> {
        recover::attach_existing(Bundle::new(bundle)).await
    }

    fn with_control(bundle: Bundle, status: &ShimStatus, conn: Option<Conn>) -> Self {
        Self {
            inner: Arc::new(Inner {
                bundle,
                shim_pid: status.shim_pid,
                init_pid: status.init_pid,
                control: Mutex::new(conn),
            }),
        }
    }

    /// The host's process id of the container's first process.
    pub fn pid(&self) -> u32 {
        self.inner.init_pid
    }

    /// The shim's own process id.
    pub fn shim_pid(&self) -> u32 {
        self.inner.shim_pid
    }

    /// The container's directory.
    pub fn bundle(&self) -> &Bundle {
        &self.inner.bundle
    }

    /// Lets the program run. Returns when it was executed, or with the reason why not.
    ///
    /// # Errors
    /// [`StartError::Failed`] when the program can't be executed; the container is then over (its exit record has
    /// the same code) and wants [`ShimHandle::delete`].
    pub async fn start(&self) -> Result<(), StartError> {
        Ok(self.done(&Request::Start).await?)
    }

    /// Sends `signal` to the first process, or to every process of the container.
    ///
    /// # Errors
    /// [`ShimError::WrongState`] when the container is over.
    pub async fn kill(&self, signal: i32, all: bool) -> Result<(), ShimError> {
        self.done(&Request::Kill { signal, all }).await
    }

    /// Freezes every process of the container.
    ///
    /// # Errors
    /// [`ShimError::WrongState`] unless it is running.
    pub async fn pause(&self) -> Result<(), ShimError> {
        self.done(&Request::Pause).await
    }

    /// Thaws a paused container.
    ///
    /// # Errors
    /// [`ShimError::WrongState`] unless it is paused.
    pub async fn resume(&self) -> Result<(), ShimError> {
        self.done(&Request::Resume).await
    }

    /// Sets the size of the container's terminal.
    ///
    /// # Errors
    /// [`ShimError::Invalid`] when it has none.
    pub async fn resize(&self, columns: u16, rows: u16) -> Result<(), ShimError> {
        self.done(&Request::Resize { columns, rows }).await
    }

    /// Whether the container is frozen by [`ShimHandle::pause`].
    ///
    /// # Errors
    /// When the shim can't be asked.
    pub async fn is_paused(&self) -> Result<bool, ShimError> {
        Ok(self.status().await?.phase == Phase::Paused)
    }

    /// Whether the container's program was started and has not ended.
    ///
    /// # Errors
    /// When the shim can't be asked.
    pub async fn is_running(&self) -> Result<bool, ShimError> {
        let phase = self.status().await?.phase;
        Ok(matches!(
            phase,
            Phase::Running | Phase::Paused | Phase::Starting
        ))
    }

    /// Waits until the container is over. Its exit record is on disk by then.
    ///
    /// # Errors
    /// [`ShimError::Lost`] when the shim dies without leaving a record.
    pub async fn wait(&self) -> Result<Exit, ShimError> {
        let answer = match Conn::connect(&self.inner.bundle).await {
            Ok(mut conn) => match conn.send(&Request::Wait).await {
                Ok(()) => conn.recv::<Response>().await,
                Err(error) => Err(error),
            },
            Err(error) => Err(error),
        };
        match answer {
            Ok(Some((Response::Exited(exit), _))) => Ok(exit),
            Ok(Some((other, _))) => Err(self.unexpected(other)),
            // The shim is gone: deleted by another handle, killed, or the socket was removed.
            Ok(None) | Err(_) => self
                .inner
                .bundle
                .read_exit()?
                .ok_or_else(|| self.inner.bundle.lost()),
        }
    }

    /// Runs another process in the container: same namespaces, cgroup, seccomp filter; capabilities, user and
    /// environment as `spec` says.
    ///
    /// # Errors
    /// [`ShimError::Setup`] when it can't be executed.
    pub async fn exec(&self, spec: ExecSpec) -> Result<ExecHandle, ShimError> {
        exec::start(self.inner.bundle.clone(), spec).await
    }

    /// Follows the live output, and may write input. Output from before is in the log only.
    ///
    /// # Errors
    /// [`ShimError::WrongState`] when the container is over.
    pub async fn attach(&self, options: AttachOptions) -> Result<AttachStreams, ShimError> {
        attach::start(self.inner.bundle.clone(), options).await
    }

    /// Moves the fencing deadline (`CLOCK_BOOTTIME` nanoseconds); `None` takes it away.
    ///
    /// # Errors
    /// [`ShimError::WrongState`] when the deadline has already passed.
    pub async fn renew_deadline(&self, boottime_deadline_ns: Option<u64>) -> Result<(), ShimError> {
        let boottime_ns = boottime_deadline_ns;
        self.done(&Request::RenewDeadline { boottime_ns }).await
    }

    /// Reads the counters.
    ///
    /// # Errors
    /// [`ShimError::WrongState`] when the container is over.
    pub async fn stats(&self) -> Result<Stats, ShimError> {
        match self.call(&Request::Stats).await? {
            Response::Stats(stats) => Ok(stats),
            other => Err(self.unexpected(other)),
        }
    }

    /// Changes limits of the running container; what `resources` leaves out stays as it is.
    ///
    /// # Errors
    /// [`ShimError::Kernel`] when a limit can't be set, for example below what is in use.
    pub async fn update_resources(&self, resources: &LinuxResources) -> Result<(), ShimError> {
        let resources = serde_json::to_string(resources).map_err(|source| ShimError::Encode {
            what: "resources",
            source,
        })?;
        self.done(&Request::Update { resources }).await
    }

    /// Removes everything that the shim made (cgroups, socket, run files), and ends it. The container must be over,
    /// unless `force` kills it first. Returns when the shim process is gone; its exit record is gone too.
    ///
    /// # Errors
    /// [`ShimError::WrongState`] when the container still runs.
    pub async fn delete(&self, force: bool) -> Result<(), ShimError> {
        self.done(&Request::Delete { force }).await?;
        recover::wait_for_end(&self.inner.bundle, self.inner.shim_pid).await
    }

    async fn status(&self) -> Result<ShimStatus, ShimError> {
        match self.call(&Request::Status).await? {
            Response::Status(status) => Ok(status),
            other => Err(self.unexpected(other)),
        }
    }

    async fn done(&self, request: &Request) -> Result<(), ShimError> {
        match self.call(request).await? {
            Response::Done => Ok(()),
            other => Err(self.unexpected(other)),
        }
    }

    async fn call(&self, request: &Request) -> Result<Response, ShimError> {
        let bundle = &self.inner.bundle;
        let mut slot = self.inner.control.lock().await;
        let mut conn = match slot.take() {
            Some(conn) => conn,
            None => Conn::connect(bundle)
                .await
                .map_err(|source| bundle.gone_or("connect to", source))?,
        };
        conn.send(request)
            .await
            .map_err(|source| bundle.gone_or("ask", source))?;
        let answer = conn
            .recv()
            .await
            .map_err(|source| bundle.gone_or("hear from", source))?;
        let (response, _) = answer.ok_or_else(|| bundle.lost())?;
        *slot = Some(conn);
        Ok(response)
    }

    fn unexpected(&self, response: Response) -> ShimError {
        unexpected(&self.inner.bundle, response)
    }
}

/// The error in an answer that is not the one asked for.
fn unexpected(bundle: &Bundle, response: Response) -> ShimError {
    match response {
        Response::Failed(failure) => ShimError::Setup(failure),
        Response::Refused(refusal) => {
            let message = refusal.message;
            match refusal.kind {
                RefusalKind::WrongState => ShimError::WrongState { message },
                RefusalKind::Invalid => ShimError::Invalid { message },
                RefusalKind::Unsupported => ShimError::Unsupported { message },
                RefusalKind::Kernel => ShimError::Kernel { message },
            }
        }
        Response::Done
        | Response::Status(_)
        | Response::Exited(_)
        | Response::ExecStarted { .. }
        | Response::ExecExited { .. }
        | Response::Attached
        | Response::Stats(_) => bundle.protocol(),
    }
}

fn start_process(
    options: &SpawnOptions,
    bundle: &Bundle,
) -> Result<(Conn, tokio::process::Child), ShimError> {
    let spawn_failed = |source| ShimError::Spawn {
        exe: options.exe.clone(),
        source,
    };
    let (ours, theirs): (OwnedFd, OwnedFd) = socketpair(
        AddressFamily::Unix,
        SockType::Stream,
        None,
        SockFlag::SOCK_CLOEXEC,
    )
    .map_err(|errno| spawn_failed(errno.into()))?;
    let conn = Conn::from_fd(ours).map_err(spawn_failed)?;
    let arguments: [OsString; 3] = ["shim".into(), "--bundle".into(), bundle.dir().into()];
    // Dropping the child leaves the shim alone; tokio reaps it when it ends.
    let child = Command::new(&options.exe)
        .args(arguments)
        .stdin(Stdio::from(theirs))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .env_clear()
        .kill_on_drop(false)
        .spawn()
        .map_err(spawn_failed)?;
    Ok((conn, child))
}

async fn reap(child: &mut tokio::process::Child, bundle: &Bundle) -> Result<(), ShimError> {
    match child.wait().await {
        Ok(_) => Ok(()),
        Err(source) => Err(bundle.io("wait for", source)),
    }
}

impl Bundle {
    fn io(&self, what: &'static str, source: io::Error) -> ShimError {
        ShimError::Io {
            bundle: self.dir().to_owned(),
            what,
            source,
        }
    }

    /// A connection that can't be made or breaks means that the shim is gone; anything else is an error by itself.
    fn gone_or(&self, what: &'static str, source: io::Error) -> ShimError {
        match source.kind() {
            io::ErrorKind::NotFound
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::UnexpectedEof
            | io::ErrorKind::BrokenPipe => self.lost(),
            _ => self.io(what, source),
        }
    }

    fn lost(&self) -> ShimError {
        ShimError::Lost {
            bundle: self.dir().to_owned(),
        }
    }

    fn protocol(&self) -> ShimError {
        ShimError::Protocol {
            bundle: self.dir().to_owned(),
        }
    }
}
