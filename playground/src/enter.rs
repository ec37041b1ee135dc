//! The two entry points that run before any thread exists: a host's init, and entering a host.

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork, sethostname};
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// Arguments of a host's init.
#[derive(Debug, Clone)]
pub struct HostInitArgs {
    /// The pinned network namespace.
    pub netns: PathBuf,
    /// Host name.
    pub hostname: String,
    /// End when standard input ends: the host does not outlive whoever holds the other end.
    pub tethered: bool,
}

/// Arguments for a command in a host.
#[derive(Debug, Clone)]
pub struct EnterArgs {
    /// The host's init, as this machine numbers it.
    pub init_pid: i32,
    /// Do not wait for the command; print its process id instead.
    pub detach: bool,
    /// The command.
    pub command: Vec<OsString>,
}

/// Becomes a host: prints the process id of its init and returns; the init lives on.
///
/// Must be called while the process has one thread.
pub fn host_init_main(args: &HostInitArgs) -> ExitCode {
    match host_init(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            eprintln!(
                "shoal playground: failed to start host `{}`: {err}",
                args.hostname
            );
            ExitCode::FAILURE
        }
    }
}

fn host_init(args: &HostInitArgs) -> io::Result<()> {
    setns(File::open(&args.netns)?, CloneFlags::CLONE_NEWNET)?;
    unshare(
        CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_NEWUTS
            | CloneFlags::CLONE_NEWIPC
            | CloneFlags::CLONE_NEWPID,
    )?;
    let (mut ready, ready_writer) = io::pipe()?;
    // SAFETY: this process has a single thread, so the child may do anything.
    match unsafe { fork() }? {
        ForkResult::Parent { child } => {
            drop(ready_writer);
            let mut said = String::new();
            ready.read_to_string(&mut said)?;
            if said != "ready" {
                return Err(io::Error::other(said));
            }
            println!("{child}");
            Ok(())
        }
        ForkResult::Child => {
            drop(ready);
            run_init(args, ready_writer)
        }
    }
}

fn run_init(args: &HostInitArgs, mut ready: impl Write) -> ! {
    let prepared = prepare(args);
    let said = match &prepared {
        Ok(()) => "ready".to_owned(),
        Err(err) => err.to_string(),
    };
    let told = ready.write_all(said.as_bytes());
    drop(ready);
    // Whoever started the host waits for the end of its output.
    if prepared.is_err() || told.is_err() || silence().is_err() {
        std::process::exit(1);
    }
    // When process 1 ends, the kernel kills all others of its namespace.
    match reap_until_told_to_end(args.tethered) {
        Ok(()) => std::process::exit(0),
        Err(_) => std::process::exit(1),
    }
}

/// Lets go of the standard output and error that came from outside of the host.
fn silence() -> io::Result<()> {
    let null = File::options().write(true).open("/dev/null")?;
    nix::unistd::dup2_stdout(&null)?;
    nix::unistd::dup2_stderr(&null)?;
    Ok(())
}

/// Mounts what a host of its own has: /proc for its processes, /sys for its links with the cgroups put back, /run.
fn prepare(args: &HostInitArgs) -> io::Result<()> {
    nix::unistd::setsid()?;
    sethostname(&args.hostname)?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    let cgroups = Path::new("/sys/fs/cgroup");
    let kept = tempfile_dir()?;
    mount(
        Some(cgroups),
        &kept,
        none,
        MsFlags::MS_BIND | MsFlags::MS_REC,
        none,
    )?;
    mount(Some("sysfs"), "/sys", Some("sysfs"), MsFlags::empty(), none)?;
    mount(
        Some(&kept),
        cgroups,
        none,
        MsFlags::MS_BIND | MsFlags::MS_REC,
        none,
    )?;
    nix::mount::umount2(&kept, nix::mount::MntFlags::MNT_DETACH)?;
    std::fs::remove_dir(&kept)?;
    mount(Some("proc"), "/proc", Some("proc"), MsFlags::empty(), none)?;
    mount(
        Some("tmpfs"),
        "/run",
        Some("tmpfs"),
        MsFlags::empty(),
        Some("mode=755"),
    )?;
    Ok(())
}

/// A directory to park the cgroup mounts on while /sys is replaced.
fn tempfile_dir() -> io::Result<PathBuf> {
    let path = std::env::temp_dir().join(format!("shoal-host-{}", std::process::id()));
    // Process ids start again in each host, so another host may be at this very point.
    match std::fs::create_dir(&path) {
        Err(err) if err.kind() != io::ErrorKind::AlreadyExists => Err(err),
        _ => Ok(path),
    }
}

fn reap_until_told_to_end(tethered: bool) -> io::Result<()> {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let mut mask = SigSet::empty();
    for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT] {
        mask.add(signal);
    }
    mask.thread_block()?;
    let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
    let stdin = io::stdin();
    loop {
        let mut fds = vec![PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        if tethered {
            fds.push(PollFd::new(stdin.as_fd(), PollFlags::POLLIN));
        }
        poll(&mut fds, PollTimeout::NONE)?;
        let untethered = fds.get(1).is_some_and(|fd| fd.any().unwrap_or(true));
        if untethered {
            return Ok(());
        }
        while let Some(info) = signals.read_signal()? {
            if info.ssi_signo != Signal::SIGCHLD as u32 {
                return Ok(());
            }
        }
        reap()?;
    }
}

fn reap() -> io::Result<()> {
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) | Err(nix::errno::Errno::ECHILD) => return Ok(()),
            Ok(_) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Runs a command in a host and ends as it ended. Must be called while the process has one thread.
pub fn enter_main(args: &EnterArgs) -> ExitCode {
    match enter(args) {
        Ok(code) => ExitCode::from(code),
        Err(err) => {
            eprintln!("shoal playground: failed to enter the host: {err}");
            ExitCode::from(125)
        }
    }
}

fn enter(args: &EnterArgs) -> io::Result<u8> {
    let (program, rest) = args
        .command
        .split_first()
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "no command was given"))?;
    let open = |kind: &str| File::open(format!("/proc/{}/ns/{kind}", args.init_pid));
    let (pid, uts, ipc, net, mnt) = (
        open("pid")?,
        open("uts")?,
        open("ipc")?,
        open("net")?,
        open("mnt")?,
    );
    setns(pid, CloneFlags::CLONE_NEWPID)?;
    setns(uts, CloneFlags::CLONE_NEWUTS)?;
    setns(ipc, CloneFlags::CLONE_NEWIPC)?;
    setns(net, CloneFlags::CLONE_NEWNET)?;
    let here = std::env::current_dir()?;
    setns(mnt, CloneFlags::CLONE_NEWNS)?;
    std::env::set_current_dir(here)?;
    // SAFETY: this process has a single thread, so the child may do anything.
    match unsafe { fork() }? {
        ForkResult::Child => {
            if args.detach {
                nix::unistd::setsid()?;
            }
            let failed = Command::new(program).args(rest).exec();
            eprintln!(
                "shoal playground: failed to run `{}`: {failed}",
                program.display()
            );
            std::process::exit(127);
        }
        ForkResult::Parent { child } if args.detach => {
            println!("{child}");
            Ok(0)
        }
        ForkResult::Parent { child } => wait_for(child),
    }
}

fn wait_for(child: Pid) -> io::Result<u8> {
    loop {
        match waitpid(child, None) {
            Ok(WaitStatus::Exited(_, code)) => return Ok(u8::try_from(code).unwrap_or(255)),
            Ok(WaitStatus::Signaled(_, signal, _)) => {
                return Ok(u8::try_from(128 + signal as i32).unwrap_or(255));
            }
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}
