//! Exec'ed processes: made by the shim, their streams belong to the client.

use super::connection::Role;
use super::setup::{cgroup_failure, set_oom_score};
use super::state::Shim;
use super::streams;
use crate::container::{self, ChildStdio, ExecContext, Message, ShimSide};
use crate::proto::{ExecRequest, Phase, RefusalKind, Response};
use crate::{Failure, Stage};
use nix::errno::Errno;
use oci_spec::runtime::Process;
use std::os::fd::{AsFd as _, OwnedFd};

/// Exec'ed processes at the same time in one container.
const EXECS_MAX: usize = 256;

#[derive(Debug)]
pub(super) struct ExecProcess {
    pub(super) pid: i32,
    pidfd: OwnedFd,
    /// Open until the program is executed.
    pub(super) sync: Option<ShimSide>,
    connection: u64,
    /// The client's ends, until they are sent.
    fds: Vec<OwnedFd>,
    failure: Option<Failure>,
}

impl Shim {
    pub(super) fn start_exec(&mut self, id: u64, request: &ExecRequest) {
        if self.phase != Phase::Running {
            self.refuse(id, RefusalKind::WrongState, "the container is not running");
            return;
        }
        if self.execs.len() >= EXECS_MAX {
            let message = format!("there are already {EXECS_MAX} exec'ed processes");
            self.refuse(id, RefusalKind::Invalid, &message);
            return;
        }
        match self.make_exec(id, request) {
            Ok(exec) => {
                if let Some(connection) = self.connections.get_mut(&id) {
                    connection.role = Role::Exec(exec.pid);
                }
                self.execs.push(exec);
            }
            Err(failure) => self.answer(id, &Response::Failed(failure)),
        }
    }

    fn make_exec(&self, id: u64, request: &ExecRequest) -> Result<ExecProcess, Failure> {
        let process: Process = serde_json::from_str(&request.process)
            .map_err(|error| Failure::new(Stage::Validate, format!("process: {error}")))?;
        let mut fds = Vec::new();
        let stdio = if process.terminal() == Some(true) {
            let small = |n: u64| u16::try_from(n).unwrap_or(u16::MAX);
            let size = process
                .console_size()
                .map(|s| (small(s.width()), small(s.height())));
            ChildStdio::Terminal(size)
        } else {
            let (ours, stdio) = streams::pipes(request.stdin, request.stdout, request.stderr)
                .map_err(|error| {
                    let errno = error.raw_os_error().unwrap_or(libc::EIO);
                    Failure::os(Stage::Stdio, "make the streams", errno)
                })?;
            fds.extend([ours.stdin, ours.stdout, ours.stderr].into_iter().flatten());
            stdio
        };
        let group_failed = |error| cgroup_failure(&error);
        let birth_group = self.cgroup.birth_group().map_err(group_failed)?;
        let context = ExecContext {
            process: &process,
            init: self.init_pidfd.as_fd(),
            namespaces: self.basis.namespaces,
            birth_group: birth_group.as_ref().map(|group| group.as_fd()),
            seccomp: self.basis.seccomp.as_ref(),
        };
        let child = container::spawn_exec(&context, stdio)?;
        let exec = ExecProcess {
            pid: child.pid,
            pidfd: child.pidfd,
            sync: Some(child.sync),
            connection: id,
            fds,
            failure: None,
        };
        let entrances = set_oom_score(exec.pid, self.basis.oom_score)
            .and_then(|()| self.cgroup.entrances().map_err(group_failed));
        let told = entrances.and_then(|entrances| match &exec.sync {
            Some(sync) => sync
                .send_placed(&entrances)
                .map_err(|e| Failure::os(Stage::Exec, "talk to the process", e as i32)),
            None => Ok(()),
        });
        match told {
            Ok(()) => Ok(exec),
            Err(failure) => {
                // It waits for our word; the loop reaps it as an unknown child.
                container::pidfd_send_signal(exec.pidfd.as_fd(), libc::SIGKILL).ok();
                Err(failure)
            }
        }
    }

    /// Messages of an exec'ed process while it is made.
    pub(super) fn hear_exec(&mut self, pid: i32) {
        let Some(at) = self.execs.iter().position(|exec| exec.pid == pid) else {
            return;
        };
        loop {
            let exec = &mut self.execs[at];
            let Some(sync) = &exec.sync else { return };
            match sync.recv() {
                Err(Errno::EAGAIN) => return,
                Ok(Some((Message::Terminal, fds))) => exec.fds.extend(fds),
                Ok(Some((Message::Failed(failure), _))) => exec.failure = Some(failure),
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => {
                    exec.sync = None;
                    if exec.failure.is_none() {
                        let fds = std::mem::take(&mut exec.fds);
                        let id = exec.connection;
                        let response = Response::ExecStarted {
                            pid: pid.unsigned_abs(),
                        };
                        if let Some(connection) = self.connections.get_mut(&id)
                            && !connection.respond_with(&response, &fds)
                        {
                            connection.closing = true;
                        }
                    }
                }
            }
        }
    }

    /// An exec'ed process, or an orphan, has ended.
    pub(super) fn end_exec(&mut self, pid: i32, code: i32, signal: Option<i32>) {
        self.hear_exec(pid);
        let Some(at) = self.execs.iter().position(|exec| exec.pid == pid) else {
            return;
        };
        let exec = self.execs.swap_remove(at);
        let response = match exec.failure {
            Some(failure) => Response::Failed(failure),
            None => Response::ExecExited { code, signal },
        };
        self.answer(exec.connection, &response);
    }

    pub(super) fn kill_exec(&self, pid: i32, signal: i32) {
        if let Some(exec) = self.execs.iter().find(|exec| exec.pid == pid) {
            // It may have ended a moment ago: its end is on the way to the client.
            container::pidfd_send_signal(exec.pidfd.as_fd(), signal).ok();
        }
    }
}
