//! From "everything is made" to the program: shared by the first process and by exec'ed ones.

use super::sync::{self, ChildSide, Message};
use super::sys::{self, Cloned, clone_process, setns};
use super::{Child, ChildStdio, credentials, reaper, terminal};
use crate::seccomp::{self, Program};
use crate::{Failure, Stage, spec};
use nix::errno::Errno;
use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
use nix::sys::stat::{Mode, umask};
use oci_spec::runtime::Process;
use std::ffi::CString;
use std::fs::File;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

/// What an exec'ed process needs of its container.
#[derive(Debug)]
pub(crate) struct ExecContext<'a> {
    pub(crate) process: &'a Process,
    /// The container's first process.
    pub(crate) init: BorrowedFd<'a>,
    /// The kinds of namespaces that differ from the shim's.
    pub(crate) namespaces: i32,
    /// The control group to be born in, where there is one for all controllers.
    pub(crate) birth_group: Option<BorrowedFd<'a>>,
    pub(crate) seccomp: Option<&'a Program>,
}

/// Clones a process into the container. It executes its program when the shim says [`Message::Placed`].
pub(crate) fn spawn_exec(context: &ExecContext<'_>, stdio: ChildStdio) -> Result<Child, Failure> {
    super::validate::validate_process(context.process)?;
    let failed = |what: &str, errno: Errno| Failure::os(Stage::Namespaces, what, errno as i32);
    let (shim_side, child_side) = sync::pair().map_err(|e| failed("make a socket pair", e))?;
    let pid_namespace = context.namespaces & libc::CLONE_NEWPID;
    let own = File::open("/proc/self/ns/pid").map_err(|error| {
        failed(
            "open our process namespace",
            Errno::from_raw(error.raw_os_error().unwrap_or(0)),
        )
    })?;
    if pid_namespace != 0 {
        // Takes effect for children only, so that one clone is enough.
        setns(context.init, pid_namespace).map_err(|e| failed("join the pid namespace", e))?;
    }
    // SAFETY: the shim has one thread.
    let cloned = unsafe { clone_process(0, context.birth_group) };
    if pid_namespace != 0 && !matches!(cloned, Ok(Cloned::Child)) {
        setns(own.as_fd(), pid_namespace)
            .map_err(|e| failed("return to the host's pid namespace", e))?;
    }
    match cloned.map_err(|e| failed("clone a process", e))? {
        Cloned::Child => {
            drop(shim_side);
            run_child(&child_side, || run_exec(context, stdio, &child_side))
        }
        Cloned::Parent { pid, pidfd } => Ok(Child {
            pid,
            pidfd,
            sync: shim_side,
        }),
    }
}

fn run_exec(context: &ExecContext<'_>, stdio: ChildStdio, sync: &ChildSide) -> Result<(), Failure> {
    let failed = |what: &str, errno: Errno| Failure::os(Stage::Namespaces, what, errno as i32);
    prepare_signals(sync)?;
    let process = context.process;
    let kinds = context.namespaces & !libc::CLONE_NEWPID;
    sync.enter_groups()
        .map_err(|e| failed("enter the control groups", e))?;
    setns(context.init, kinds).map_err(|e| failed("join the container's namespaces", e))?;
    if kinds & libc::CLONE_NEWUSER != 0 {
        credentials::become_root()?;
    }
    nix::unistd::setsid().map_err(|e| failed("start a session", e))?;
    match stdio {
        ChildStdio::Pipes(input, output, errors) => {
            terminal::set_streams([input.as_fd(), output.as_fd(), errors.as_fd()])
                .map_err(|e| Failure::os(Stage::Stdio, "set up the streams", e as i32))?;
            credentials::own_streams(process.user().uid())?;
        }
        ChildStdio::Terminal(size) => {
            terminal::open_terminal(sync, size, process.user().uid())?;
        }
    }
    credentials::enter_directory(process, false)?;
    Prepared::new(process, context.seccomp, sync)?.execute(false)
}

/// Runs `body` in a cloned process, reports its failure, and ends the process.
pub(super) fn run_child(sync: &ChildSide, body: impl FnOnce() -> Result<(), Failure>) -> ! {
    // A panic must not unwind into the shim's own loop, of which this process is a copy.
    let failure = match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => Failure::new(Stage::Exec, "the program was not executed"),
        Ok(Err(failure)) => failure,
        Err(_) => Failure::new(Stage::Exec, "internal error while making the process"),
    };
    let code = failure.exit_code();
    if sync.send(&Message::Failed(failure), &[]).is_err() {
        // The shim is gone: nobody is left to be told.
    }
    // SAFETY: ends the process at once; nothing of the shim's state may be dropped in its copy.
    unsafe { libc::_exit(code) }
}

pub(super) fn tell(sync: &ChildSide, message: &Message) -> Result<(), Failure> {
    sync.send(message, &[])
        .map_err(|e| Failure::os(Stage::Exec, "report to the shim", e as i32))
}

/// The shim's own signal settings must not reach the program; and a container never outlives its shim.
pub(super) fn prepare_signals(sync: &ChildSide) -> Result<(), Failure> {
    let failed = |errno: Errno| Failure::os(Stage::Exec, "reset signals", errno as i32);
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None).map_err(failed)?;
    // SAFETY: sets the default action; no handler is involved.
    unsafe {
        nix::sys::signal::signal(
            nix::sys::signal::SIGPIPE,
            nix::sys::signal::SigHandler::SigDfl,
        )
    }
    .map_err(failed)?;
    die_with_shim(sync).map_err(failed)
}

/// Binds this process to the life of the shim, which must not be over already: its process id can't tell that, since
/// in a new pid namespace it is always 0.
pub(super) fn die_with_shim(sync: &ChildSide) -> Result<(), Errno> {
    nix::sys::prctl::set_pdeathsig(Some(nix::sys::signal::SIGKILL))?;
    if sync.is_connected() {
        Ok(())
    } else {
        Err(Errno::EPIPE)
    }
}

/// A process that only has to give up its rights and execute.
pub(super) struct Prepared<'a> {
    process: &'a Process,
    seccomp: Option<&'a Program>,
    sync: &'a ChildSide,
    args: Vec<CString>,
    env: Vec<CString>,
    path: String,
}

impl<'a> Prepared<'a> {
    pub(super) fn new(
        process: &'a Process,
        seccomp: Option<&'a Program>,
        sync: &'a ChildSide,
    ) -> Result<Self, Failure> {
        let text = |text: &String| {
            CString::new(text.as_str())
                .map_err(|_| Failure::new(Stage::Exec, "process.args or env has a zero byte"))
        };
        let args = process
            .args()
            .iter()
            .flatten()
            .map(text)
            .collect::<Result<Vec<_>, _>>()?;
        let given = process.env().as_deref().unwrap_or_default();
        let mut env = given.iter().map(text).collect::<Result<Vec<_>, _>>()?;
        if !given.iter().any(|entry| entry.starts_with("HOME=")) {
            env.push(text(&format!(
                "HOME={}",
                credentials::home_of(process.user().uid())
            ))?);
        }
        // When there are several, getenv finds the first.
        let path = given.iter().find_map(|entry| entry.strip_prefix("PATH="));
        let default = spec::DEFAULT_PATH.strip_prefix("PATH=").unwrap_or_default();
        let path = path.unwrap_or(default).to_owned();
        credentials::set_limits(process)?;
        Ok(Self {
            process,
            seccomp,
            sync,
            args,
            env,
            path,
        })
    }

    /// Gives up every right that the program must not have, and executes it. Returns only when that fails.
    pub(super) fn execute(self, with_reaper: bool) -> Result<(), Failure> {
        let process = self.process;
        let no_new_privileges = process.no_new_privileges().unwrap_or(false);
        let load = || match self.seccomp {
            Some(program) => seccomp::load(program)
                .map_err(|e| Failure::os(Stage::Seccomp, "load the seccomp filter", e as i32)),
            None => Ok(()),
        };
        if !no_new_privileges {
            // Loading needs CAP_SYS_ADMIN, which is given up next.
            load()?;
        }
        credentials::drop_privileges(process)?;
        if no_new_privileges {
            nix::sys::prctl::set_no_new_privs()
                .map_err(|e| Failure::os(Stage::Credentials, "set no_new_privs", e as i32))?;
        }
        let failed =
            |errno: Errno| Failure::os(Stage::Exec, "bind to the shim's life", errno as i32);
        // Changing the user has reset it.
        die_with_shim(self.sync).map_err(failed)?;
        let mask = process.user().umask().unwrap_or(0o022);
        umask(Mode::from_bits_truncate(mask));
        if no_new_privileges {
            load()?;
        }
        let file = self.find()?;
        sys::close_on_exec_from(3).map_err(failed)?;
        if with_reaper {
            reaper::fork_program()?;
        }
        let name = self
            .process
            .args()
            .iter()
            .flatten()
            .next()
            .map_or("", String::as_str);
        match nix::unistd::execve(&file, &self.args, &self.env) {
            Ok(never) => match never {},
            Err(errno) => Err(exec_failure(name, errno)),
        }
    }

    /// The program's file, searched as docker does.
    fn find(&self) -> Result<CString, Failure> {
        let missing = || Failure::new(Stage::Exec, "process.args is empty");
        let name = self
            .process
            .args()
            .iter()
            .flatten()
            .next()
            .ok_or_else(missing)?;
        let c_string = |path: &str| CString::new(path).map_err(|_| missing());
        if name.contains('/') {
            check_executable(Path::new(name)).map_err(|errno| match errno {
                Errno::ENOENT | Errno::ENOTDIR => Failure {
                    stage: Stage::Exec,
                    message: format!(
                        "exec: \"{name}\": stat {name}: {}",
                        crate::failure::describe(errno as i32)
                    ),
                    errno: Some(errno as i32),
                },
                errno => exec_failure(name, errno),
            })?;
            return c_string(name);
        }
        let mut denied = false;
        for dir in self.path.split(':') {
            let dir = if dir.is_empty() { "." } else { dir };
            let path = format!("{dir}/{name}");
            match check_executable(Path::new(&path)) {
                Ok(()) => return c_string(&path),
                Err(Errno::EACCES) => denied = true,
                Err(_) => {}
            }
        }
        if denied {
            return Err(exec_failure(name, Errno::EACCES));
        }
        Err(Failure {
            stage: Stage::Exec,
            message: format!("exec: \"{name}\": executable file not found in $PATH"),
            errno: Some(libc::ENOENT),
        })
    }
}

fn exec_failure(name: &str, errno: Errno) -> Failure {
    Failure {
        stage: Stage::Exec,
        message: format!(
            "exec: \"{name}\": {}",
            crate::failure::describe(errno as i32)
        ),
        errno: Some(errno as i32),
    }
}

fn check_executable(path: &Path) -> Result<(), Errno> {
    let meta = std::fs::metadata(path)
        .map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)))?;
    if meta.is_dir() || meta.permissions().mode() & 0o111 == 0 {
        return Err(Errno::EACCES);
    }
    nix::unistd::access(path, nix::unistd::AccessFlags::X_OK)
}
