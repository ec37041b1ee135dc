//! From an exec'ed program to a shim whose container is being made.

use super::connection::{Connection, Role};
use super::poll::{Deadline, signals};
use super::state::{ExecBasis, Shim};
use super::streams::{self, Streams};
use super::{boot_id, start_ticks};
use crate::bundle::{RECORD_VERSION, SOCKET_NAME, StateRecord};
use crate::cgroup::{self, CGROUP_ROOT, Cgroup, CgroupError, Layout};
use crate::container::{self, Child, ChildStdio, InitContext, Message};
use crate::logs::LogWriter;
use crate::proto::{Phase, Response};
use crate::{Bundle, BundleError, Failure, ShimSpec, Stage, seccomp};
use nix::errno::Errno;
use nix::sys::stat::{Mode, umask};
use oci_spec::runtime::{Linux, LinuxIdMapping, LinuxNamespaceType, Process, Spec};
use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::{AsFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// The shim should be the last to go when memory runs out: it is small, and tells what happened.
const SHIM_OOM_SCORE: &str = "-999";

/// Makes this process what a shim is: a session of its own, parent of orphans, invisible to its container.
pub(super) fn become_shim() -> Result<(), Errno> {
    // SAFETY: the call takes integers. Descriptors above the standard streams are the daemon's by accident.
    Errno::result(unsafe { libc::close_range(3, libc::c_uint::MAX, 0) })?;
    match nix::unistd::setsid() {
        // A process that leads a group already, as when started from a shell, stays in it.
        Ok(_) | Err(Errno::EPERM) => {}
        Err(errno) => return Err(errno),
    }
    nix::sys::prctl::set_child_subreaper(true)?;
    // Processes that enter the container before they execute must not show our memory and file in its /proc.
    nix::sys::prctl::set_dumpable(false)?;
    umask(Mode::from_bits_truncate(0o077));
    // Only a privileged daemon may lower it; without, the shim is as likely to be killed as others.
    drop(fs::write("/proc/self/oom_score_adj", SHIM_OOM_SCORE));
    Ok(())
}

/// Takes the control connection from standard input, which becomes `/dev/null`.
fn control() -> io::Result<Connection> {
    // SAFETY: whoever started us left the connection there; nobody else uses it.
    let socket = unsafe { OwnedFd::from_raw_fd(0) };
    let moved = socket.try_clone()?;
    let null = OpenOptions::new().read(true).open("/dev/null")?;
    // SAFETY: the call takes integers; the descriptor that is replaced was cloned above.
    let replaced = Errno::result(unsafe { libc::dup2(std::os::fd::AsRawFd::as_raw_fd(&null), 0) });
    // Standard input stays open: it belongs to the process, not to this value.
    std::mem::forget(socket);
    replaced?;
    let mut connection = Connection::new(UnixStream::from(moved))?;
    connection.role = Role::Pending;
    Ok(connection)
}

/// Begins to make the container; `None` when that failed and the daemon was told.
pub(super) fn start(bundle: Bundle) -> io::Result<Option<Shim>> {
    let mut control = control()?;
    let dir = bundle.dir().canonicalize()?;
    match build(Bundle::new(dir)) {
        Ok(mut shim) => {
            shim.add_connection(control);
            Ok(Some(shim))
        }
        Err(failure) => {
            control.respond(&Response::Failed(failure));
            if control.flush(Instant::now()) {
                Ok(None)
            } else {
                Err(io::ErrorKind::BrokenPipe.into())
            }
        }
    }
}

fn io_failure(stage: Stage, what: impl std::fmt::Display, error: &io::Error) -> Failure {
    Failure::os(stage, what, error.raw_os_error().unwrap_or(libc::EIO))
}

pub(super) fn cgroup_failure(error: &CgroupError) -> Failure {
    Failure {
        stage: Stage::Cgroup,
        message: error.to_string(),
        errno: error.errno(),
    }
}

fn bundle_failure(error: &BundleError) -> Failure {
    let source = std::error::Error::source(error);
    let reason = source.map_or_else(String::new, |source| format!(": {source}"));
    Failure::new(Stage::Bundle, format!("{error}{reason}"))
}

/// What is read and decided before anything is made.
struct Plan {
    spec: Spec,
    shim: ShimSpec,
    cgroup: Cgroup,
    seccomp: Option<seccomp::Program>,
}

fn plan(bundle: &Bundle) -> Result<Plan, Failure> {
    let spec = bundle.read_config().map_err(|e| bundle_failure(&e))?;
    let shim = bundle.read_shim_spec().map_err(|e| bundle_failure(&e))?;
    container::validate(&spec)?;
    let linux = spec.linux().as_ref();
    let layout = Layout::detect(Path::new(CGROUP_ROOT)).map_err(|e| cgroup_failure(&e))?;
    let default = || PathBuf::from(format!("/shoal/{}", shim.container_id));
    let path = linux
        .and_then(|linux| linux.cgroups_path().clone())
        .unwrap_or_else(default);
    let resources = linux.and_then(|linux| linux.resources().as_ref());
    let cgroup = Cgroup::plan(layout, &path, resources).map_err(|e| cgroup_failure(&e))?;
    let profile = linux.and_then(|linux| linux.seccomp().as_ref());
    let seccomp = profile
        .map(seccomp::compile)
        .transpose()
        .map_err(|error| Failure::new(Stage::Seccomp, error.to_string()))?;
    Ok(Plan {
        spec,
        shim,
        cgroup,
        seccomp,
    })
}

fn build(bundle: Bundle) -> Result<Shim, Failure> {
    let plan = plan(&bundle)?;
    bundle.remove_run_files().map_err(|e| bundle_failure(&e))?;
    let mut state = StateRecord {
        version: RECORD_VERSION,
        boot_id: boot_id().map_err(|e| io_failure(Stage::Bundle, "read the boot id", &e))?,
        shim_pid: std::process::id(),
        shim_start_ticks: start_ticks(std::process::id()).unwrap_or(0),
        init_pid: 0,
        init_start_ticks: 0,
        cgroups: plan.cgroup.dirs(),
    };
    // Before anything of the kernel's is made, so that it can be found whenever we are killed.
    bundle.write_state(&state).map_err(|e| bundle_failure(&e))?;
    let dirs = plan.cgroup.dirs();
    let made = make(&bundle, plan, &mut state);
    if made.is_err() {
        let undone = cgroup::remove_dirs(&dirs);
        let removed = bundle.remove_run_files();
        if let (Err(failure), Err(error)) = (&made, &undone) {
            let message = format!("{failure}; and failed to remove its control groups: {error}");
            return Err(Failure {
                message,
                ..failure.clone()
            });
        }
        removed.map_err(|e| bundle_failure(&e))?;
    }
    made
}

fn make(bundle: &Bundle, plan: Plan, state: &mut StateRecord) -> Result<Shim, Failure> {
    let stdio_failed = |what: &str, error: &io::Error| io_failure(Stage::Stdio, what, error);
    let Plan {
        spec,
        shim,
        cgroup,
        seccomp,
    } = plan;
    let process = spec.process().as_ref();
    let process = process.ok_or_else(|| Failure::new(Stage::Validate, "process is missing"))?;
    let linux = spec.linux().as_ref();
    let linux = linux.ok_or_else(|| Failure::new(Stage::Validate, "linux is missing"))?;
    let signals = signals().map_err(|e| stdio_failed("watch signals", &e.into()))?;
    let deadline = Deadline::new().map_err(|e| stdio_failed("make the timer", &e.into()))?;
    let log = LogWriter::open(&shim.log).map_err(|e| stdio_failed("open the log", &e))?;
    let listener = listen(bundle).map_err(|e| stdio_failed("open the control socket", &e))?;
    let (mut streams, stdio) =
        stdio(process, &shim).map_err(|e| stdio_failed("make the streams", &e))?;
    streams.input_allowed = shim.stdio.open_stdin;
    let birth_group = cgroup.birth_group().map_err(|e| cgroup_failure(&e))?;
    let context = InitContext {
        spec: &spec,
        shim: &shim,
        bundle: bundle.dir(),
        cgroup: &cgroup,
        birth_group: birth_group.as_ref().map(|group| group.as_fd()),
        seccomp: seccomp.as_ref(),
    };
    let child = container::spawn_init(&context, stdio)?;
    let oom_score = process.oom_score_adj().unwrap_or(0);
    if let Err(failure) = place(&child, linux, &cgroup, oom_score) {
        return Err(abandon(&child, failure));
    }
    state.init_pid = child.pid.unsigned_abs();
    state.init_start_ticks = start_ticks(state.init_pid).unwrap_or(0);
    let armed = deadline
        .set(shim.fencing_deadline_ns)
        .map_err(|e| stdio_failed("set the fencing deadline", &e.into()));
    let written = bundle.write_state(state).map_err(|e| bundle_failure(&e));
    if let Err(failure) = armed.and(written) {
        return Err(abandon(&child, failure));
    }
    Ok(Shim {
        bundle: bundle.clone(),
        basis: ExecBasis {
            seccomp,
            namespaces: container::own_namespaces(linux),
            oom_score,
        },
        stdin_once: shim.stdio.stdin_once,
        cgroup,
        init_pid: child.pid,
        init_pidfd: child.pidfd,
        init_sync: Some(child.sync),
        phase: Phase::SettingUp,
        streams,
        log,
        listener,
        signals,
        deadline,
        fenced: false,
        connections: BTreeMap::new(),
        next_connection: 0,
        execs: Vec::new(),
        exit: None,
        failure: None,
        starter: None,
        deleter: None,
        done: false,
    })
}

/// Kills and reaps a process that can't become the container. What it said itself comes first: its end is then why
/// we failed.
fn abandon(child: &Child, failure: Failure) -> Failure {
    let mut reason = failure;
    while let Ok(Some((message, _))) = child.sync.recv() {
        if let Message::Failed(own) = message {
            reason = own;
        }
    }
    // A process that is gone already is just what we want.
    container::pidfd_send_signal(child.pidfd.as_fd(), libc::SIGKILL).ok();
    nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(child.pid), None).ok();
    reason
}

fn stdio(process: &Process, shim: &ShimSpec) -> io::Result<(Streams, ChildStdio)> {
    if process.terminal() == Some(true) {
        let small = |n: u64| u16::try_from(n).unwrap_or(u16::MAX);
        let size = process
            .console_size()
            .map(|size| (small(size.width()), small(size.height())));
        return Ok((Streams::default(), ChildStdio::Terminal(size)));
    }
    streams::pipes(shim.stdio.open_stdin, true, true)
}

/// Binds the control socket by a short relative name: a socket's path has at most 107 bytes.
fn listen(bundle: &Bundle) -> io::Result<UnixListener> {
    nix::unistd::chdir(bundle.dir())?;
    let listener = UnixListener::bind(SOCKET_NAME);
    nix::unistd::chdir("/")?;
    let listener = listener?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Maps users and makes the control groups, while the process already mounts; then lets it enter them.
fn place(child: &Child, linux: &Linux, cgroup: &Cgroup, oom_score: i32) -> Result<(), Failure> {
    let not_told = |errno: Errno| {
        let what = "talk to the container's first process";
        Failure::os(Stage::Namespaces, what, errno as i32)
    };
    set_oom_score(child.pid, oom_score)?;
    let own_users = linux
        .namespaces()
        .iter()
        .flatten()
        .any(|namespace| namespace.typ() == LinuxNamespaceType::User);
    if own_users {
        map_users(child.pid, "uid_map", linux.uid_mappings().as_deref())?;
        map_users(child.pid, "gid_map", linux.gid_mappings().as_deref())?;
        child.sync.send(&Message::Mapped).map_err(not_told)?;
    }
    let entrances = cgroup
        .create(linux.resources().as_ref())
        .and_then(|()| cgroup.entrances())
        .map_err(|e| cgroup_failure(&e))?;
    child.sync.send_placed(&entrances).map_err(not_told)
}

fn map_users(pid: i32, file: &str, mappings: Option<&[LinuxIdMapping]>) -> Result<(), Failure> {
    let lines: String = mappings
        .unwrap_or_default()
        .iter()
        .map(|m| format!("{} {} {}\n", m.container_id(), m.host_id(), m.size()))
        .collect();
    fs::write(format!("/proc/{pid}/{file}"), lines)
        .map_err(|error| io_failure(Stage::Namespaces, format_args!("write {file}"), &error))
}

/// Processes inherit the shim's score, so that theirs is always written.
pub(super) fn set_oom_score(pid: i32, score: i32) -> Result<(), Failure> {
    fs::write(format!("/proc/{pid}/oom_score_adj"), score.to_string()).map_err(|error| {
        io_failure(
            Stage::Credentials,
            format_args!("set oom_score_adj to {score}"),
            &error,
        )
    })
}
