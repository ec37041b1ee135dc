//! The shim's state and its loop.

use super::connection::{Connection, Role, STALL_MAX, Stdin, is_own_user};
use super::execs::ExecProcess;
use super::poll::{Deadline, Source, Watch};
use super::streams::{READ_BYTES, Streams, Taken};
use crate::cgroup::{self, Cgroup};
use crate::container::{self, Message, ShimSide};
use crate::logs::{LogWriter, StreamKind};
use crate::proto::{Phase, Response, ShimStatus};
use crate::seccomp::Program;
use crate::{Bundle, Exit, Failure, Stage};
use nix::errno::Errno;
use nix::poll::PollFlags;
use nix::sys::signalfd::SignalFd;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use shoal_model::Timestamp;
use std::collections::BTreeMap;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixListener;
use std::time::{Instant, SystemTime};

/// How often stalled clients are looked at, milliseconds.
const STALL_CHECK_MS: u16 = 100;

/// Clients at the same time; a further one is turned away.
const CONNECTIONS_MAX: usize = 256;

/// What exec'ed processes get of the container's configuration.
#[derive(Debug)]
pub(super) struct ExecBasis {
    pub(super) seccomp: Option<Program>,
    pub(super) namespaces: i32,
    pub(super) oom_score: i32,
}

#[derive(Debug)]
pub(super) struct Shim {
    pub(super) bundle: Bundle,
    pub(super) basis: ExecBasis,
    pub(super) stdin_once: bool,
    pub(super) cgroup: Cgroup,
    pub(super) init_pid: i32,
    pub(super) init_pidfd: OwnedFd,
    /// Open until the program is executed.
    pub(super) init_sync: Option<ShimSide>,
    pub(super) phase: Phase,
    pub(super) streams: Streams,
    pub(super) log: LogWriter,
    pub(super) listener: UnixListener,
    pub(super) signals: SignalFd,
    pub(super) deadline: Deadline,
    pub(super) fenced: bool,
    pub(super) connections: BTreeMap<u64, Connection>,
    pub(super) next_connection: u64,
    pub(super) execs: Vec<ExecProcess>,
    pub(super) exit: Option<Exit>,
    /// Why the container was not made or not started.
    pub(super) failure: Option<Failure>,
    /// The connection that waits for the result of `Start`.
    pub(super) starter: Option<u64>,
    /// The connection that waits for the container's removal.
    pub(super) deleter: Option<u64>,
    /// Everything is removed; only answers are still to be sent.
    pub(super) done: bool,
}

impl Shim {
    pub(super) fn add_connection(&mut self, connection: Connection) {
        self.connections.insert(self.next_connection, connection);
        self.next_connection += 1;
    }

    /// The loop. Ends when the container was deleted and everyone was told.
    pub(super) fn run(&mut self) -> Result<(), Errno> {
        let mut buffer = vec![0; READ_BYTES];
        loop {
            if self.done && !self.connections.values().any(Connection::wants_write) {
                return Ok(());
            }
            for (source, events) in self.wait()? {
                self.handle(source, events, &mut buffer);
            }
            self.feed_stdin();
            self.flush();
        }
    }

    fn wait(&self) -> Result<Vec<(Source, PollFlags)>, Errno> {
        let mut watch = Watch::default();
        let now = Instant::now();
        watch.add(Source::Signals, self.signals.as_fd(), PollFlags::POLLIN);
        watch.add(Source::Deadline, self.deadline.fd(), PollFlags::POLLIN);
        watch.add(Source::Listener, self.listener.as_fd(), PollFlags::POLLIN);
        if let Some(sync) = &self.init_sync {
            watch.add(Source::Init, sync.as_fd(), PollFlags::POLLIN);
        }
        for exec in &self.execs {
            if let Some(sync) = &exec.sync {
                watch.add(Source::Exec(exec.pid), sync.as_fd(), PollFlags::POLLIN);
            }
        }
        let full = self.connections.values().any(Connection::is_full);
        for (source, kind) in [
            (Source::Stdout, StreamKind::Stdout),
            (Source::Stderr, StreamKind::Stderr),
        ] {
            if let Some(fd) = self.streams.output(kind).filter(|_| !full) {
                watch.add(source, fd, PollFlags::POLLIN);
            }
        }
        let mut stdin_waits = false;
        for (id, connection) in &self.connections {
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::POLLIN, connection.wants_read());
            flags.set(PollFlags::POLLOUT, connection.wants_write());
            if !flags.is_empty() {
                watch.add(Source::Connection(*id), connection.fd(), flags);
            }
            stdin_waits |= matches!(connection.role, Role::Attached { stdin: true, .. })
                && connection.holds_input();
        }
        if let Some(fd) = self.streams.input().filter(|_| stdin_waits) {
            watch.add(Source::Stdin, fd, PollFlags::POLLOUT);
        }
        let stalled = self
            .connections
            .values()
            .any(|c| c.stalled_for(now).is_some());
        watch.wait((stalled || self.done).then_some(STALL_CHECK_MS))
    }

    fn handle(&mut self, source: Source, events: PollFlags, buffer: &mut [u8]) {
        match source {
            Source::Signals => self.reap(),
            Source::Deadline => self.fence(),
            Source::Listener => self.accept(),
            Source::Init => self.hear_init(),
            Source::Exec(pid) => self.hear_exec(pid),
            Source::Stdout => self.take_output(StreamKind::Stdout, buffer),
            Source::Stderr => self.take_output(StreamKind::Stderr, buffer),
            // Writing happens after every round.
            Source::Stdin => {}
            Source::Connection(id) => {
                if events.intersects(PollFlags::POLLIN | PollFlags::POLLHUP | PollFlags::POLLERR) {
                    self.serve(id);
                }
            }
        }
    }

    fn accept(&mut self) {
        // A connection that breaks at once is the client's business.
        let Ok((stream, _)) = self.listener.accept() else {
            return;
        };
        if self.connections.len() >= CONNECTIONS_MAX || !is_own_user(&stream).unwrap_or(false) {
            return;
        }
        if let Ok(connection) = Connection::new(stream) {
            self.add_connection(connection);
        }
    }

    fn flush(&mut self) {
        let now = Instant::now();
        let mut gone = Vec::new();
        for (id, connection) in &mut self.connections {
            let alive = connection.flush(now)
                && connection
                    .stalled_for(now)
                    .is_none_or(|stalled| stalled < STALL_MAX);
            if !alive || connection.closing && !connection.wants_write() {
                gone.push(*id);
            }
        }
        for id in gone {
            self.drop_connection(id);
        }
    }

    pub(super) fn drop_connection(&mut self, id: u64) {
        let Some(connection) = self.connections.remove(&id) else {
            return;
        };
        if matches!(connection.role, Role::Attached { stdin: true, .. }) && self.stdin_once {
            self.streams.end_input();
        }
    }

    fn take_output(&mut self, kind: StreamKind, buffer: &mut [u8]) {
        match self.streams.read(kind, buffer) {
            Taken::Data(count) => {
                self.log.write(kind, &buffer[..count], wall_clock());
                for connection in self.connections.values_mut() {
                    connection.push_data(kind, &buffer[..count]);
                }
            }
            Taken::Nothing => {}
            Taken::End => {
                self.log.end(kind, wall_clock());
                self.streams.close(kind);
            }
        }
    }

    /// Passes input of attached clients on, as far as the container takes it.
    fn feed_stdin(&mut self) {
        let mut ended = false;
        let mut broken = Vec::new();
        for (id, connection) in &mut self.connections {
            if !matches!(connection.role, Role::Attached { stdin: true, .. }) {
                continue;
            }
            loop {
                let (consumed, written) = match connection.stdin() {
                    Ok(Stdin::Nothing) => break,
                    Ok(Stdin::Empty) => (true, 0),
                    Ok(Stdin::End) => {
                        ended |= self.stdin_once;
                        (true, 0)
                    }
                    Ok(Stdin::Data(data)) => match self.streams.input() {
                        // Nobody reads any more: input goes nowhere, as with a closed pipe.
                        None => (true, data.len()),
                        Some(fd) => match nix::unistd::write(fd, data) {
                            Ok(count) => (true, count),
                            Err(Errno::EAGAIN | Errno::EINTR) => (false, 0),
                            Err(_) => (true, data.len()),
                        },
                    },
                    Err(_) => {
                        broken.push(*id);
                        break;
                    }
                };
                if !consumed {
                    break;
                }
                connection.consume_stdin(written);
            }
            if connection.input_ended && !connection.holds_input() {
                broken.push(*id);
            }
        }
        if ended {
            self.streams.end_input();
        }
        for id in broken {
            self.drop_connection(id);
        }
    }

    /// Messages of the first process while it is made and started.
    pub(super) fn hear_init(&mut self) {
        loop {
            let Some(sync) = &self.init_sync else { return };
            match sync.recv() {
                Err(Errno::EAGAIN) => return,
                Ok(Some((Message::Terminal, mut fds))) => {
                    self.streams.terminal = fds
                        .pop()
                        .filter(|fd| super::streams::set_nonblocking(fd.as_fd()).is_ok());
                }
                Ok(Some((Message::Ready, _))) if self.phase == Phase::SettingUp => {
                    self.phase = Phase::Ready;
                    let status = Response::Status(self.status());
                    self.answer_pending(&status);
                }
                Ok(Some((Message::Failed(failure), _))) => self.failure = Some(failure),
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => {
                    self.init_sync = None;
                    // After a failure, or a death, the end of the process says the rest.
                    if self.phase == Phase::Starting && self.failure.is_none() {
                        self.phase = Phase::Running;
                        self.answer_starter(&Response::Done);
                        self.shrink();
                    }
                }
            }
        }
    }

    /// Gives the memory of parsing back: from here on the shim mostly sleeps.
    fn shrink(&mut self) {
        // SAFETY: the call takes an integer and releases only memory that nobody uses.
        unsafe { libc::malloc_trim(0) };
    }

    pub(super) fn status(&self) -> ShimStatus {
        ShimStatus {
            shim_pid: std::process::id(),
            init_pid: self.init_pid.unsigned_abs(),
            phase: self.phase,
        }
    }

    fn answer_pending(&mut self, response: &Response) {
        for connection in self
            .connections
            .values_mut()
            .filter(|c| c.role == Role::Pending)
        {
            connection.role = Role::Control;
            connection.respond(response);
        }
    }

    pub(super) fn answer_starter(&mut self, response: &Response) {
        if let Some(id) = self.starter.take() {
            self.answer(id, response);
        }
    }

    pub(super) fn answer(&mut self, id: u64, response: &Response) {
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.role = Role::Control;
            connection.respond(response);
        }
    }

    fn reap(&mut self) {
        while let Ok(Some(_)) = self.signals.read_signal() {}
        let mut init = None;
        loop {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(status @ (WaitStatus::Exited(pid, _) | WaitStatus::Signaled(pid, ..))) => {
                    let (code, signal) = code_of(status);
                    if pid.as_raw() == self.init_pid {
                        init = Some((code, signal));
                    } else {
                        self.end_exec(pid.as_raw(), code, signal);
                    }
                }
                Ok(WaitStatus::StillAlive) | Err(_) => break,
                Ok(_) => {}
            }
        }
        if let Some((code, signal)) = init {
            self.finish(code, signal);
        }
    }

    /// The container's first process is over: everything of it is written down before anybody is told.
    fn finish(&mut self, code: i32, signal: Option<i32>) {
        self.hear_init();
        self.init_sync = None;
        let oom_killed = self.cgroup.oom_killed();
        let remains = cgroup::remove_dirs(&self.cgroup.dirs());
        self.drain();
        if matches!(self.phase, Phase::SettingUp) {
            self.give_up(signal);
            return;
        }
        let failed = self.failure.as_ref().map(Failure::exit_code);
        let exit = Exit {
            code: failed.unwrap_or(code),
            signal: if failed.is_some() { None } else { signal },
            oom_killed,
            fenced: self.fenced,
            at: wall_clock(),
        };
        // A full disk must not keep the news from who waits; a later daemon then finds the container lost.
        drop(self.bundle.write_exit(exit));
        // Groups that resist are tried again at deletion, which tells.
        drop(remains);
        self.exit = Some(exit);
        self.phase = Phase::Exited;
        let started = match self.failure.clone() {
            Some(failure) => Response::Failed(failure),
            None => Response::Done,
        };
        self.answer_starter(&started);
        for connection in self.connections.values_mut() {
            match connection.role {
                Role::Waiter => {
                    connection.respond(&Response::Exited(exit));
                    connection.closing = true;
                }
                Role::Attached { .. } => connection.push_end(),
                Role::Control | Role::Pending | Role::Exec(_) => {}
            }
        }
        if let Some(id) = self.deleter.take() {
            self.delete(id);
        }
        self.shrink();
    }

    /// The container could not be made: tells why and ends, leaving nothing.
    fn give_up(&mut self, signal: Option<i32>) {
        let failure = self.failure.take().unwrap_or_else(|| {
            let signal = signal.map_or_else(String::new, |signal| format!(" by signal {signal}"));
            Failure::new(
                Stage::Namespaces,
                format!("the container's first process was ended{signal} while it was made"),
            )
        });
        drop(self.bundle.remove_run_files());
        self.answer_pending(&Response::Failed(failure));
        self.done = true;
    }

    /// Reads what the dead container left in its pipes. A process that left the container may hold a pipe open for
    /// ever: only what is there now counts.
    fn drain(&mut self) {
        let mut buffer = vec![0; READ_BYTES];
        for kind in [StreamKind::Stdout, StreamKind::Stderr] {
            while let Taken::Data(count) = self.streams.read(kind, &mut buffer) {
                self.log.write(kind, &buffer[..count], wall_clock());
                for connection in self.connections.values_mut() {
                    connection.push_data(kind, &buffer[..count]);
                }
            }
            self.log.end(kind, wall_clock());
            self.streams.close(kind);
        }
        self.streams.end_input();
    }

    /// The deadline has passed: the container must not run on, whatever the daemon does.
    fn fence(&mut self) {
        if self.exit.is_none() {
            self.fenced = true;
            self.kill_everything();
        }
        // Disarmed, or the timer stays readable. It can't fail: the descriptor is ours.
        self.deadline.set(None).ok();
    }

    /// SIGKILL for the first process (its pid namespace dies with it), and thawed, or v1 would keep it.
    pub(super) fn kill_everything(&mut self) {
        // A process that is gone is what we want.
        container::pidfd_send_signal(self.init_pidfd.as_fd(), libc::SIGKILL).ok();
        if self.phase == Phase::Paused {
            drop(self.cgroup.freeze(false));
            self.phase = Phase::Running;
        }
    }
}

fn code_of(status: WaitStatus) -> (i32, Option<i32>) {
    match status {
        WaitStatus::Exited(_, code) => (code, None),
        WaitStatus::Signaled(_, signal, _) => (128 + signal as i32, Some(signal as i32)),
        _ => (0, None),
    }
}

pub(super) fn wall_clock() -> Timestamp {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    Timestamp::from_unix(since.unwrap_or_default())
}
