//! poll(2), and the two kinds of descriptors that turn time and signals into readable files.

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

/// Whose descriptor is ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    Signals,
    Deadline,
    Listener,
    /// The socket of the container's first process while it is made.
    Init,
    /// The socket of an exec'ed process while it is made.
    Exec(i32),
    Stdout,
    Stderr,
    Stdin,
    Connection(u64),
}

/// What is watched in one round.
#[derive(Default)]
pub(super) struct Watch<'a> {
    fds: Vec<PollFd<'a>>,
    sources: Vec<Source>,
}

impl<'a> Watch<'a> {
    pub(super) fn add(&mut self, source: Source, fd: BorrowedFd<'a>, flags: PollFlags) {
        self.fds.push(PollFd::new(fd, flags));
        self.sources.push(source);
    }

    /// Waits; returns who is ready and for what.
    pub(super) fn wait(
        mut self,
        timeout_ms: Option<u16>,
    ) -> Result<Vec<(Source, PollFlags)>, Errno> {
        let timeout = timeout_ms.map_or(PollTimeout::NONE, PollTimeout::from);
        match poll(&mut self.fds, timeout) {
            Ok(_) => {}
            Err(Errno::EINTR) => return Ok(Vec::new()),
            Err(errno) => return Err(errno),
        }
        let ready = self
            .fds
            .iter()
            .zip(&self.sources)
            .filter_map(|(fd, source)| {
                let events = fd.revents()?;
                (!events.is_empty()).then_some((*source, events))
            });
        Ok(ready.collect())
    }
}

/// Blocks the signals that the loop handles, and makes them readable.
pub(super) fn signals() -> Result<SignalFd, Errno> {
    let mut mask = SigSet::empty();
    // A shim ends when it is told to over its socket. Signals of a service manager or terminal do not concern it.
    for signal in [
        Signal::SIGCHLD,
        Signal::SIGTERM,
        Signal::SIGINT,
        Signal::SIGHUP,
    ] {
        mask.add(signal);
    }
    mask.thread_block()?;
    SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
}

/// The fencing deadline, by the clock that goes on while the machine sleeps.
#[derive(Debug)]
pub(super) struct Deadline {
    timer: OwnedFd,
}

impl Deadline {
    pub(super) fn new() -> Result<Self, Errno> {
        let flags = libc::TFD_CLOEXEC | libc::TFD_NONBLOCK;
        // SAFETY: the call takes integers and touches no memory.
        let raw = Errno::result(unsafe { libc::timerfd_create(libc::CLOCK_BOOTTIME, flags) })?;
        // SAFETY: the kernel has just made this descriptor for us.
        let timer = unsafe { OwnedFd::from_raw_fd(raw) };
        Ok(Self { timer })
    }

    /// Sets the deadline, or takes it away. One that has passed fires at once.
    pub(super) fn set(&self, boottime_ns: Option<u64>) -> Result<(), Errno> {
        // Zero would disarm the timer; one nanosecond after boot has passed just as well.
        let ns = boottime_ns.map_or(0, |ns| ns.max(1));
        let value = libc::itimerspec {
            it_interval: libc::timespec {
                tv_sec: 0,
                tv_nsec: 0,
            },
            it_value: libc::timespec {
                tv_sec: (ns / 1_000_000_000).cast_signed(),
                tv_nsec: (ns % 1_000_000_000).cast_signed(),
            },
        };
        // SAFETY: the structure outlives the call; the null pointer says that the old value is not wanted.
        Errno::result(unsafe {
            libc::timerfd_settime(
                self.timer.as_raw_fd(),
                libc::TFD_TIMER_ABSTIME,
                &raw const value,
                std::ptr::null_mut(),
            )
        })
        .map(drop)
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        std::os::fd::AsFd::as_fd(&self.timer)
    }
}
