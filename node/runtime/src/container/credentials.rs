//! Who the process is: users, groups, limits, working directory.

use super::sync::{ChildSide, Message};
use crate::capabilities::{self, CapBits};
use crate::{Failure, Stage};
use nix::errno::Errno;
use nix::unistd::{Gid, Uid};
use oci_spec::runtime::{PosixRlimitType, Process};
use std::fs;
use std::os::fd::BorrowedFd;

fn failed(what: impl std::fmt::Display, errno: Errno) -> Failure {
    Failure::os(Stage::Credentials, what, errno as i32)
}

/// In a new user namespace: waits until users are mapped and becomes its root.
pub(super) fn become_mapped_root(sync: &ChildSide) -> Result<(), Failure> {
    sync.expect(&Message::Mapped)
        .map_err(|e| Failure::os(Stage::Namespaces, "wait for the user mapping", e as i32))?;
    become_root()
}

/// Becomes user and group 0 of the present user namespace.
pub(super) fn become_root() -> Result<(), Failure> {
    let root = Gid::from_raw(0);
    nix::unistd::setresgid(root, root, root).map_err(|e| failed("become group 0", e))?;
    let root = Uid::from_raw(0);
    nix::unistd::setresuid(root, root, root).map_err(|e| failed("become user 0", e))
}

/// Gives pipes and terminals to the user, so that it can open `/dev/stdout` anew. `/dev/null` stays root's.
pub(super) fn own_streams(user: u32) -> Result<(), Failure> {
    if user == 0 {
        return Ok(());
    }
    for place in 0..3 {
        // SAFETY: the standard streams are open while this runs.
        let stream = unsafe { BorrowedFd::borrow_raw(place) };
        let stat = nix::sys::stat::fstat(stream).map_err(|e| failed("look at a stream", e))?;
        if stat.st_uid == user || stat.st_rdev == nix::sys::stat::makedev(1, 3) {
            continue;
        }
        match nix::unistd::fchown(stream, Some(Uid::from_raw(user)), None) {
            // Not mapped, or a read-only file: what is handed in may belong to somebody else.
            Ok(()) | Err(Errno::EINVAL | Errno::EPERM | Errno::EROFS) => {}
            Err(errno) => return Err(failed("give a stream to the user", errno)),
        }
    }
    Ok(())
}

/// Enters the working directory, which is made if `make` says so and it is missing.
pub(super) fn enter_directory(process: &Process, make: bool) -> Result<(), Failure> {
    let cwd = process.cwd();
    if make && !cwd.exists() {
        fs::create_dir_all(cwd).map_err(|error| {
            let errno = Errno::from_raw(error.raw_os_error().unwrap_or(0));
            failed(
                format_args!("make the working directory `{}`", cwd.display()),
                errno,
            )
        })?;
    }
    nix::unistd::chdir(cwd)
        .map_err(|e| failed(format_args!("chdir to cwd (\"{}\")", cwd.display()), e))?;
    // A directory outside of the root (through a leaked descriptor) has no path.
    match nix::unistd::getcwd() {
        Ok(path) if path.is_absolute() => Ok(()),
        Ok(_) | Err(_) => Err(failed(
            "find the working directory inside the root",
            Errno::ENOENT,
        )),
    }
}

/// Sets resource limits; raising them may need rights that are dropped later.
pub(super) fn set_limits(process: &Process) -> Result<(), Failure> {
    for limit in process.rlimits().iter().flatten() {
        let value = libc::rlimit {
            rlim_cur: limit.soft(),
            rlim_max: limit.hard(),
        };
        // SAFETY: the structure outlives the call.
        Errno::result(unsafe { libc::setrlimit(resource(limit.typ()), &raw const value) })
            .map_err(|e| failed(format_args!("set the limit `{}`", limit.typ()), e))?;
    }
    Ok(())
}

fn resource(typ: PosixRlimitType) -> libc::__rlimit_resource_t {
    match typ {
        PosixRlimitType::RlimitCpu => libc::RLIMIT_CPU,
        PosixRlimitType::RlimitFsize => libc::RLIMIT_FSIZE,
        PosixRlimitType::RlimitData => libc::RLIMIT_DATA,
        PosixRlimitType::RlimitStack => libc::RLIMIT_STACK,
        PosixRlimitType::RlimitCore => libc::RLIMIT_CORE,
        PosixRlimitType::RlimitRss => libc::RLIMIT_RSS,
        PosixRlimitType::RlimitNproc => libc::RLIMIT_NPROC,
        PosixRlimitType::RlimitNofile => libc::RLIMIT_NOFILE,
        PosixRlimitType::RlimitMemlock => libc::RLIMIT_MEMLOCK,
        PosixRlimitType::RlimitAs => libc::RLIMIT_AS,
        PosixRlimitType::RlimitLocks => libc::RLIMIT_LOCKS,
        PosixRlimitType::RlimitSigpending => libc::RLIMIT_SIGPENDING,
        PosixRlimitType::RlimitMsgqueue => libc::RLIMIT_MSGQUEUE,
        PosixRlimitType::RlimitNice => libc::RLIMIT_NICE,
        PosixRlimitType::RlimitRtprio => libc::RLIMIT_RTPRIO,
        PosixRlimitType::RlimitRttime => libc::RLIMIT_RTTIME,
    }
}

/// Becomes the user of `process` with exactly its capabilities.
pub(super) fn drop_privileges(process: &Process) -> Result<(), Failure> {
    let caps = CapBits::from_oci(process.capabilities().as_ref());
    let user = process.user();
    capabilities::limit_bounding(caps.bounding)
        .map_err(|e| failed("limit the bounding capabilities", e))?;
    nix::sys::prctl::set_keepcaps(true).map_err(|e| failed("keep capabilities", e))?;
    let groups: Vec<Gid> = user
        .additional_gids()
        .iter()
        .flatten()
        .map(|g| Gid::from_raw(*g))
        .collect();
    nix::unistd::setgroups(&groups).map_err(|e| failed("set the further groups", e))?;
    let group = Gid::from_raw(user.gid());
    nix::unistd::setresgid(group, group, group)
        .map_err(|e| failed(format_args!("become group {}", user.gid()), e))?;
    let uid = Uid::from_raw(user.uid());
    nix::unistd::setresuid(uid, uid, uid)
        .map_err(|e| failed(format_args!("become user {}", user.uid()), e))?;
    nix::sys::prctl::set_keepcaps(false).map_err(|e| failed("keep capabilities", e))?;
    capabilities::apply(&caps).map_err(|e| failed("set the capabilities", e))
}

/// The home directory of the user, from the container's own list of users.
pub(super) fn home_of(user: u32) -> String {
    let list = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let home = list.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        if fields.get(2)?.parse() != Ok(user) {
            return None;
        }
        fields.get(5).map(|home| (*home).to_owned())
    });
    home.filter(|home| !home.is_empty())
        .unwrap_or_else(|| "/".to_owned())
}
