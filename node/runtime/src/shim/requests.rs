//! What clients ask for. Every request is answered at once, or by an event of the loop; none waits here.

use super::connection::Role;
use super::state::Shim;
use crate::cgroup::{self, CgroupError};
use crate::container::{self, Message};
use crate::proto::{Phase, Refusal, RefusalKind, Request, Response};
use nix::errno::Errno;
use nix::unistd::Pid;
use oci_spec::runtime::LinuxResources;
use std::os::fd::AsFd as _;

/// Signals are numbered from 1 to this.
const SIGNAL_MAX: i32 = 64;

fn refusal(kind: RefusalKind, message: impl Into<String>) -> Refusal {
    Refusal {
        kind,
        message: message.into(),
    }
}

fn kernel(what: &str, errno: Errno) -> Refusal {
    let reason = crate::failure::describe(errno as i32);
    refusal(RefusalKind::Kernel, format!("failed to {what}: {reason}"))
}

impl From<CgroupError> for Refusal {
    fn from(error: CgroupError) -> Self {
        let kind = match error {
            CgroupError::Unsupported(_) | CgroupError::NotMounted => RefusalKind::Unsupported,
            CgroupError::BadPath(_) => RefusalKind::Invalid,
            CgroupError::Kernel { .. } | CgroupError::NotFrozen(_) => RefusalKind::Kernel,
        };
        refusal(kind, error.to_string())
    }
}

impl Shim {
    /// Reads from a connection and does what it asks.
    pub(super) fn serve(&mut self, id: u64) {
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        let alive = connection.fill();
        loop {
            let Some(connection) = self.connections.get_mut(&id) else {
                return;
            };
            if matches!(connection.role, Role::Attached { .. }) {
                break;
            }
            match connection.take_request() {
                Ok(Some(request)) => self.answer_request(id, request),
                Ok(None) => break,
                // Not our language: nothing behind it can be understood either.
                Err(_) => {
                    self.drop_connection(id);
                    return;
                }
            }
        }
        // Input that arrived before the client left is still passed on.
        let keep = self.connections.get(&id).is_some_and(|connection| {
            matches!(connection.role, Role::Attached { stdin: true, .. })
                && connection.holds_input()
        });
        if !alive && !keep {
            self.drop_connection(id);
        }
    }

    pub(super) fn refuse(&mut self, id: u64, kind: RefusalKind, message: &str) {
        self.answer(id, &Response::Refused(refusal(kind, message)));
    }

    fn answer_request(&mut self, id: u64, request: Request) {
        let result = match request {
            Request::Status => Ok(Response::Status(self.status())),
            Request::Start => return self.start(id),
            Request::Kill { signal, all } => self.kill(signal, all),
            Request::Pause => self.pause(),
            Request::Resume => self.resume(),
            Request::Resize { columns, rows } => self.resize(columns, rows),
            Request::Wait => return self.wait_for_end(id),
            Request::Exec(request) => return self.start_exec(id, &request),
            Request::KillExec { signal } => {
                if let Some(Role::Exec(pid)) = self.connections.get(&id).map(|c| c.role) {
                    self.kill_exec(pid, signal);
                }
                return;
            }
            Request::Attach {
                stdin,
                stdout,
                stderr,
            } => {
                return self.attach(
                    id,
                    Role::Attached {
                        stdin,
                        stdout,
                        stderr,
                    },
                );
            }
            Request::RenewDeadline { boottime_ns } => self.renew(boottime_ns),
            Request::Stats => self
                .alive()
                .and_then(|()| Ok(Response::Stats(self.cgroup.stats()?))),
            Request::Update { resources } => self.update(&resources),
            Request::Delete { force } => return self.ask_delete(id, force),
        };
        self.answer(id, &result.unwrap_or_else(Response::Refused));
    }

    fn alive(&self) -> Result<(), Refusal> {
        if self.exit.is_some() {
            return Err(refusal(RefusalKind::WrongState, "the container is over"));
        }
        Ok(())
    }

    fn start(&mut self, id: u64) {
        if self.phase != Phase::Ready {
            self.refuse(
                id,
                RefusalKind::WrongState,
                "the container was already started",
            );
            return;
        }
        let sent = self
            .init_sync
            .as_ref()
            .map_or(Err(Errno::EPIPE), |s| s.send(&Message::Start));
        match sent {
            Ok(()) => {
                self.phase = Phase::Starting;
                self.starter = Some(id);
                if let Some(connection) = self.connections.get_mut(&id) {
                    // Not `Pending`: that one is for the making of the container.
                    connection.role = Role::Control;
                }
            }
            Err(errno) => {
                self.answer(id, &Response::Refused(kernel("start the program", errno)));
            }
        }
    }

    fn kill(&mut self, signal: i32, all: bool) -> Result<Response, Refusal> {
        self.alive()?;
        if !(1..=SIGNAL_MAX).contains(&signal) {
            return Err(refusal(
                RefusalKind::Invalid,
                format!("signal {signal} does not exist"),
            ));
        }
        if all {
            for pid in self.cgroup.pids()? {
                // SAFETY: the call takes integers and touches no memory.
                match Errno::result(unsafe { libc::kill(Pid::from_raw(pid).as_raw(), signal) }) {
                    Ok(_) | Err(Errno::ESRCH) => {}
                    Err(errno) => return Err(kernel("signal a process", errno)),
                }
            }
        } else {
            match container::pidfd_send_signal(self.init_pidfd.as_fd(), signal) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(errno) => return Err(kernel("signal the container", errno)),
            }
        }
        if signal == libc::SIGKILL && self.phase == Phase::Paused {
            // On v1 a frozen process dies only when it is thawed.
            self.cgroup.freeze(false)?;
            self.phase = Phase::Running;
        }
        Ok(Response::Done)
    }

    fn pause(&mut self) -> Result<Response, Refusal> {
        match self.phase {
            Phase::Running => {}
            Phase::Paused => {
                return Err(refusal(
                    RefusalKind::WrongState,
                    "the container is already paused",
                ));
            }
            Phase::SettingUp | Phase::Ready | Phase::Starting | Phase::Exited => {
                return Err(refusal(
                    RefusalKind::WrongState,
                    "the container is not running",
                ));
            }
        }
        if let Err(error) = self.cgroup.freeze(true) {
            // Half-frozen is worse than running.
            drop(self.cgroup.freeze(false));
            return Err(error.into());
        }
        self.phase = Phase::Paused;
        Ok(Response::Done)
    }

    fn resume(&mut self) -> Result<Response, Refusal> {
        if self.phase != Phase::Paused {
            return Err(refusal(
                RefusalKind::WrongState,
                "the container is not paused",
            ));
        }
        self.cgroup.freeze(false)?;
        self.phase = Phase::Running;
        Ok(Response::Done)
    }

    fn resize(&self, columns: u16, rows: u16) -> Result<Response, Refusal> {
        self.alive()?;
        match self.streams.resize(columns, rows) {
            Some(Ok(())) => Ok(Response::Done),
            Some(Err(errno)) => Err(kernel("resize the terminal", errno)),
            None => Err(refusal(
                RefusalKind::Invalid,
                "the container has no terminal",
            )),
        }
    }

    fn wait_for_end(&mut self, id: u64) {
        match self.exit {
            Some(exit) => self.answer(id, &Response::Exited(exit)),
            None => {
                if let Some(connection) = self.connections.get_mut(&id) {
                    connection.role = Role::Waiter;
                }
            }
        }
    }

    fn attach(&mut self, id: u64, role: Role) {
        if self.exit.is_some() {
            self.refuse(id, RefusalKind::WrongState, "the container is over");
            return;
        }
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.respond(&Response::Attached);
            connection.role = role;
        }
    }

    fn renew(&mut self, boottime_ns: Option<u64>) -> Result<Response, Refusal> {
        self.alive()?;
        if self.fenced {
            return Err(refusal(
                RefusalKind::WrongState,
                "the fencing deadline has passed",
            ));
        }
        let set = self.deadline.set(boottime_ns);
        set.map_err(|errno| kernel("set the fencing deadline", errno))?;
        Ok(Response::Done)
    }

    fn update(&mut self, resources: &str) -> Result<Response, Refusal> {
        self.alive()?;
        let resources: LinuxResources = serde_json::from_str(resources)
            .map_err(|error| refusal(RefusalKind::Invalid, format!("resources: {error}")))?;
        container::validate_resources(&resources)
            .map_err(|failure| refusal(RefusalKind::Unsupported, failure.message))?;
        self.cgroup.update(&resources)?;
        Ok(Response::Done)
    }

    fn ask_delete(&mut self, id: u64, force: bool) {
        if self.exit.is_some() {
            return self.delete(id);
        }
        if !force {
            self.refuse(id, RefusalKind::WrongState, "the container is not over");
            return;
        }
        self.deleter = Some(id);
        self.kill_everything();
    }

    /// Removes what is left, and lets the loop end.
    pub(super) fn delete(&mut self, id: u64) {
        let removed = cgroup::remove_dirs(&self.cgroup.dirs());
        let files = self.bundle.remove_run_files();
        let problem = match (removed, files) {
            (Err(error), _) => Some(format!("failed to remove the control groups: {error}")),
            (Ok(()), Err(error)) => Some(error.to_string()),
            (Ok(()), Ok(())) => None,
        };
        match problem {
            Some(message) => self.refuse(id, RefusalKind::Kernel, &message),
            None => {
                self.answer(id, &Response::Done);
                self.done = true;
            }
        }
    }
}
