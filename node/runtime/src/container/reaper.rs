//! `docker run --init`: process 1 reaps orphans, passes signals on, and ends as its child does.
//!
//! It is a copy of the process that made the container, not a program in it: nothing has to be mounted, and it has
//! the program's own rights only. It is not dumpable, so that nobody inside can reach the shim's memory or file.

use crate::{Failure, Stage};
use nix::errno::Errno;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, sigprocmask};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork, setpgid};

/// Forks: the child returns and executes the program; the parent stays as process 1 and never returns.
pub(super) fn fork_program() -> Result<(), Failure> {
    let failed = |what: &str, errno: Errno| Failure::os(Stage::Exec, what, errno as i32);
    nix::sys::prctl::set_dumpable(false).map_err(|e| failed("hide process 1", e))?;
    let mut all = SigSet::all();
    for fatal in [
        Signal::SIGSEGV,
        Signal::SIGBUS,
        Signal::SIGILL,
        Signal::SIGFPE,
        Signal::SIGABRT,
    ] {
        all.remove(fatal);
    }
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&all), None)
        .map_err(|e| failed("block signals", e))?;
    // SAFETY: this process has one thread; the child goes on to execute a program.
    match unsafe { fork() }.map_err(|e| failed("fork the program", e))? {
        ForkResult::Child => {
            setpgid(Pid::from_raw(0), Pid::from_raw(0)).map_err(|e| failed("start a group", e))?;
            // With a terminal the program must be in the foreground to read; without one this fails, harmlessly.
            // SAFETY: the call takes integers. SIGTTOU, which it may raise, is blocked.
            if unsafe { libc::tcsetpgrp(0, libc::getpgrp()) } < 0 && Errno::last() == Errno::EIO {
                return Err(failed("take the terminal", Errno::EIO));
            }
            sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)
                .map_err(|e| failed("unblock signals", e))?;
            Ok(())
        }
        ForkResult::Parent { child } => {
            // The shim sees the program executed when the last copy of the socket closes.
            // SAFETY: the call takes integers; no destructor of a closed descriptor will run, since this process
            // never returns from here.
            unsafe { libc::close_range(3, libc::c_uint::MAX, 0) };
            reap(child, &all)
        }
    }
}

fn reap(child: Pid, signals: &SigSet) -> ! {
    loop {
        while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            let code = match status {
                WaitStatus::Exited(pid, code) if pid == child => code,
                WaitStatus::Signaled(pid, signal, _) if pid == child => 128 + signal as i32,
                WaitStatus::StillAlive => break,
                _ => continue,
            };
            // SAFETY: ends the process at once, and with it the container.
            unsafe { libc::_exit(code) }
        }
        if let Ok(signal) = signals.wait()
            && signal != Signal::SIGCHLD
        {
            // The child may have ended meanwhile; the next round sees it.
            kill(child, signal).ok();
        }
    }
}
