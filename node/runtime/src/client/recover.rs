//! Finding out what became of a container whose daemon, or shim, is gone.

use super::conn::{Conn, watched};
use super::{ShimError, ShimHandle, unexpected};
use crate::bundle::StateRecord;
use crate::proto::{Request, Response};
use crate::{Bundle, Exit, cgroup};
use nix::errno::Errno;
use std::fs;
use std::io;
use std::os::fd::{FromRawFd as _, OwnedFd};
use std::time::Duration;
use tokio::io::Interest;
use tokio::time::timeout;

/// How long a shim may take to end after it was told to.
const END_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a shim that accepts a connection may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// What became of a bundle's container.
#[derive(Debug)]
pub enum Existing {
    /// Its shim is there; the container may run, wait for its start, or be over and not yet collected.
    Alive(ShimHandle),
    /// Its shim is gone, and left how the container ended.
    Exited(Exit),
    /// Its shim died without a record: killed, or the machine was rebooted. Nothing of it runs any more.
    Lost,
    /// No shim ever ran here.
    Absent,
}

pub(super) async fn attach_existing(bundle: Bundle) -> Result<Existing, ShimError> {
    match Conn::connect(&bundle).await {
        Ok(conn) => match timeout(ANSWER_TIMEOUT, ask_status(&bundle, conn)).await {
            Ok(Ok(Some(handle))) => return Ok(Existing::Alive(handle)),
            Ok(Ok(None)) => {}
            Ok(Err(error)) => return Err(error),
            Err(_) => {
                return Err(ShimError::TimedOut {
                    bundle: bundle.dir().to_owned(),
                    what: "answer",
                    after: ANSWER_TIMEOUT,
                });
            }
        },
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
            ) => {}
        Err(source) => return Err(bundle.io("connect to", source)),
    }
    let exit = bundle.read_exit()?;
    if bundle.read_state()?.is_none() {
        return Ok(exit.map_or(Existing::Absent, Existing::Exited));
    }
    clean_up(&bundle).await?;
    Ok(exit.map_or(Existing::Lost, Existing::Exited))
}

async fn ask_status(bundle: &Bundle, mut conn: Conn) -> Result<Option<ShimHandle>, ShimError> {
    if conn.send(&Request::Status).await.is_err() {
        return Ok(None);
    }
    match conn.recv::<Response>().await {
        Ok(Some((Response::Status(status), _))) => Ok(Some(ShimHandle::with_control(
            bundle.clone(),
            &status,
            Some(conn),
        ))),
        Ok(Some((other, _))) => Err(unexpected(bundle, other)),
        Ok(None) | Err(_) => Ok(None),
    }
}

/// Kills and removes what a dead shim left. The exit record stays for who asks later.
pub(super) async fn clean_up(bundle: &Bundle) -> Result<(), ShimError> {
    let Some(state) = bundle.read_state()? else {
        return Ok(());
    };
    let task = tokio::task::spawn_blocking(move || remove_remains(&state));
    match task.await {
        Ok(result) => result.map_err(|source| bundle.io("clean up after", source))?,
        Err(error) => return Err(bundle.io("clean up after", io::Error::other(error))),
    }
    for path in [bundle.state_path(), bundle.socket_path()] {
        match fs::remove_file(&path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(bundle.io("clean up after", source)),
        }
    }
    Ok(())
}

fn remove_remains(state: &StateRecord) -> io::Result<()> {
    if state.boot_id != crate::shim::boot_id()? {
        return Ok(());
    }
    for (pid, ticks) in [
        (state.shim_pid, state.shim_start_ticks),
        (state.init_pid, state.init_start_ticks),
    ] {
        // The start time tells the process from a later one that got the same number.
        if pid != 0 && crate::shim::start_ticks(pid).is_some_and(|found| found == ticks) {
            let pid = nix::unistd::Pid::from_raw(pid.cast_signed());
            match nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
    cgroup::remove_dirs(&state.cgroups)
}

/// Waits until the process `pid` is gone.
pub(super) async fn wait_for_end(bundle: &Bundle, pid: u32) -> Result<(), ShimError> {
    let failed = |source| bundle.io("wait for", source);
    // SAFETY: the system call takes two integers and touches no memory.
    let raw = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, libc::PIDFD_NONBLOCK) };
    let fd = match Errno::result(raw) {
        // SAFETY: the kernel has just made this descriptor for us.
        Ok(raw) => unsafe { OwnedFd::from_raw_fd(raw as i32) },
        Err(Errno::ESRCH) => return Ok(()),
        Err(errno) => return Err(failed(errno.into())),
    };
    let fd = watched(fd, Interest::READABLE).map_err(failed)?;
    match timeout(END_TIMEOUT, fd.readable()).await {
        Ok(Ok(_ready)) => Ok(()),
        Ok(Err(source)) => Err(failed(source)),
        Err(_) => Err(ShimError::TimedOut {
            bundle: bundle.dir().to_owned(),
            what: "end",
            after: END_TIMEOUT,
        }),
    }
}
