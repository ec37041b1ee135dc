//! The process: one lock, one socket, one thread for control and one for packets.

use super::server::Server;
use super::{LOCK, READY_LINE, SOCKET};
use nix::fcntl::{Flock, FlockArg};
use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};

/// How often netd looks whether its run root is still there.
const WATCH_PERIOD: Duration = Duration::from_secs(1);

/// What the process is started with.
#[derive(Debug, Clone)]
pub struct NetdArgs {
    /// Where its socket is.
    pub run_root: PathBuf,
}

/// Why the process ended at once.
#[derive(Debug, thiserror::Error)]
pub enum NetdMainError {
    /// Another one runs.
    #[error("a netd runs already below `{}`", run_root.display())]
    Running {
        /// Where.
        run_root: PathBuf,
    },
    /// A file or a socket could not be had.
    #[error("failed to {action} `{}`", path.display())]
    File {
        /// `open`, `lock`, `listen at`.
        action: &'static str,
        /// Which.
        path: PathBuf,
        /// The system's answer.
        #[source]
        err: io::Error,
    },
    /// No event loop.
    #[error("failed to start the event loop")]
    Runtime(#[source] io::Error),
}

/// Runs netd until it is told to end, or its run root is gone. What it made in the kernel goes with it.
///
/// # Errors
/// When it can't begin.
pub fn main(args: &NetdArgs) -> Result<(), NetdMainError> {
    // A session of its own: no terminal and no process group of the daemon can end it. It fails for a process that
    // leads a group already, as when a person starts it from a shell; then nothing is to be done.
    if let Err(errno) = nix::unistd::setsid() {
        tracing::trace!(%errno, "no session of its own");
    }
    allow_many_files();
    let _lock = lock(&args.run_root)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(NetdMainError::Runtime)?;
    runtime.block_on(serve(&args.run_root))
}

/// Two sockets per container and one per question that is asked outside: more than a process usually may have.
fn allow_many_files() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(errno) = raised {
        tracing::warn!(%errno, "netd may have few files open");
    }
}

fn lock(run_root: &Path) -> Result<Flock<File>, NetdMainError> {
    let path = run_root.join(LOCK);
    let file = File::create(&path).map_err(|err| NetdMainError::File {
        action: "open",
        path: path.clone(),
        err,
    })?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        nix::errno::Errno::EWOULDBLOCK => NetdMainError::Running {
            run_root: run_root.to_owned(),
        },
        errno => NetdMainError::File {
            action: "lock",
            path,
            err: errno.into(),
        },
    })
}

async fn serve(run_root: &Path) -> Result<(), NetdMainError> {
    let path = run_root.join(SOCKET);
    let failed = |err| NetdMainError::File {
        action: "listen at",
        path: path.clone(),
        err,
    };
    // The lock is ours: whoever made that socket is gone.
    match fs::remove_file(&path) {
        Err(err) if err.kind() != io::ErrorKind::NotFound => return Err(failed(err)),
        _ => {}
    }
    let listener = UnixListener::bind(&path).map_err(failed)?;
    fs::set_permissions(&path, Permissions::from_mode(0o600)).map_err(failed)?;
    let inode = fs::metadata(&path).map_err(failed)?.ino();
    let mut terminate = signal(SignalKind::terminate()).map_err(NetdMainError::Runtime)?;
    let mut server = Server::new();
    say_ready().map_err(NetdMainError::Runtime)?;
    tracing::info!(socket = %path.display(), "netd listens");
    tokio::select! {
        () = server.accept(listener) => tracing::info!("netd was told to end"),
        _ = terminate.recv() => tracing::info!("netd was terminated"),
        () = gone(&path, inode) => tracing::info!("netd ends: its run root is gone"),
    }
    server.end().await;
    match fs::remove_file(&path) {
        Err(err) if err.kind() != io::ErrorKind::NotFound => Err(failed(err)),
        _ => Ok(()),
    }
}

/// Tells the daemon that waits, then lets go of its pipe: nobody may read from it later.
fn say_ready() -> io::Result<()> {
    let mut stdout = io::stdout();
    stdout.write_all(READY_LINE)?;
    stdout.flush()?;
    let null = File::options().write(true).open("/dev/null")?;
    nix::unistd::dup2_stdout(null)?;
    Ok(())
}

/// Ends when the socket at `path` is not the one that was made, so that nobody can ever reach this process again.
async fn gone(path: &Path, inode: u64) {
    let mut beat = tokio::time::interval(WATCH_PERIOD);
    loop {
        beat.tick().await;
        if !fs::metadata(path).is_ok_and(|found| found.ino() == inode) {
            return;
        }
    }
}
