//! System calls that the libraries have no words for.

use nix::errno::Errno;
use std::ffi::CStr;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::path::Path;

/// The library's constant is too narrow for it.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

pub(crate) type SysResult<T> = Result<T, Errno>;

fn owned(raw: libc::c_long) -> SysResult<OwnedFd> {
    let raw = Errno::result(raw)?;
    // SAFETY: the callers pass what a system call that makes a descriptor returned; nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(raw as RawFd) })
}

/// Calls `call` with `path` as a C string.
pub(super) fn with_path<T>(path: &Path, call: impl FnOnce(&CStr) -> SysResult<T>) -> SysResult<T> {
    nix::NixPath::with_nix_path(path, call)?
}

/// What `clone3` returned.
pub(super) enum Cloned {
    Child,
    Parent { pid: i32, pidfd: OwnedFd },
}

/// Clones this process, like fork, with `namespaces` new, into the control group `birth_group` (v2 only).
///
/// # Safety
/// The process must have one thread only: the child may then run any code.
pub(super) unsafe fn clone_process(
    namespaces: u64,
    birth_group: Option<BorrowedFd<'_>>,
) -> SysResult<Cloned> {
    let mut pidfd: RawFd = -1;
    // SAFETY: all fields of the structure are integers, for which zero is valid.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = namespaces | libc::CLONE_PIDFD as u64;
    args.pidfd = (&raw mut pidfd) as u64;
    args.exit_signal = libc::SIGCHLD as u64;
    if let Some(group) = birth_group {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = u64::from(group.as_raw_fd().unsigned_abs());
    }
    // SAFETY: without a stack the child goes on with a copy of ours, as after fork; the caller promises that no
    // other thread holds a lock. The kernel writes the descriptor before it returns to the parent.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of_val(&args)) };
    match Errno::result(pid)? {
        0 => Ok(Cloned::Child),
        pid => Ok(Cloned::Parent {
            pid: pid as i32,
            // SAFETY: the kernel has just made this descriptor for us.
            pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) },
        }),
    }
}

/// Sends a signal to exactly this process, whatever its number is used for by now.
pub(crate) fn pidfd_send_signal(pidfd: BorrowedFd<'_>, signal: i32) -> SysResult<()> {
    // SAFETY: a null pointer means "no further information"; nothing else is memory.
    Errno::result(unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    })
    .map(drop)
}

/// Joins namespaces: of a process (by pidfd, several kinds at once) or of a namespace file.
pub(super) fn setns(fd: BorrowedFd<'_>, kinds: i32) -> SysResult<()> {
    // SAFETY: the call takes integers and touches no memory.
    Errno::result(unsafe { libc::setns(fd.as_raw_fd(), kinds) }).map(drop)
}

/// A copy of the mount tree at `path`, attached nowhere.
pub(super) fn open_tree(path: &Path, recursive: bool) -> SysResult<OwnedFd> {
    let mut flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= libc::AT_RECURSIVE as libc::c_uint;
    }
    with_path(path, |path| {
        // SAFETY: the path ends with a zero byte and outlives the call.
        owned(unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) })
    })
}

/// Attaches what `tree` holds at `path`.
pub(super) fn move_mount(tree: BorrowedFd<'_>, path: &Path) -> SysResult<()> {
    with_path(path, |path| {
        // SAFETY: both paths end with a zero byte and outlive the call.
        Errno::result(unsafe {
            libc::syscall(
                libc::SYS_move_mount,
                tree.as_raw_fd(),
                c"".as_ptr(),
                libc::AT_FDCWD,
                path.as_ptr(),
                libc::MOVE_MOUNT_F_EMPTY_PATH,
            )
        })
        .map(drop)
    })
}

/// Sets and clears attributes of the mount that `tree` holds.
pub(super) fn mount_setattr(
    tree: BorrowedFd<'_>,
    recursive: bool,
    set: u64,
    clear: u64,
) -> SysResult<()> {
    let attributes = libc::mount_attr {
        attr_set: set,
        attr_clr: clear,
        propagation: 0,
        userns_fd: 0,
    };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path and the structure outlive the call; the size is the structure's.
    Errno::result(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attributes,
            size_of_val(&attributes),
        )
    })
    .map(drop)
}

/// A file system that is configured step by step: its options may be longer than the one page of mount(2).
pub(super) struct FsContext(OwnedFd);

impl FsContext {
    pub(super) fn open(kind: &CStr) -> SysResult<Self> {
        // SAFETY: the name ends with a zero byte and outlives the call.
        owned(unsafe { libc::syscall(libc::SYS_fsopen, kind.as_ptr(), libc::FSOPEN_CLOEXEC) })
            .map(Self)
    }

    pub(super) fn set(&self, key: &CStr, value: &Path) -> SysResult<()> {
        with_path(value, |value| {
            self.config(libc::FSCONFIG_SET_STRING, key.as_ptr(), value.as_ptr())
        })
    }

    /// Creates the file system; the mount is attached nowhere yet.
    pub(super) fn mount(&self) -> SysResult<OwnedFd> {
        self.config(
            libc::FSCONFIG_CMD_CREATE,
            std::ptr::null(),
            std::ptr::null(),
        )?;
        // SAFETY: the call takes integers and touches no memory.
        owned(unsafe {
            libc::syscall(
                libc::SYS_fsmount,
                self.0.as_raw_fd(),
                libc::FSMOUNT_CLOEXEC,
                0,
            )
        })
    }

    fn config(
        &self,
        command: libc::c_uint,
        key: *const libc::c_char,
        value: *const libc::c_char,
    ) -> SysResult<()> {
        // SAFETY: the callers pass C strings that outlive the call, or null where the command wants none.
        Errno::result(unsafe {
            libc::syscall(
                libc::SYS_fsconfig,
                self.0.as_raw_fd(),
                command,
                key,
                value,
                0,
            )
        })
        .map(drop)
    }
}

/// Marks every descriptor from `first` on to be closed at execution.
pub(super) fn close_on_exec_from(first: RawFd) -> SysResult<()> {
    // SAFETY: the call takes integers; it closes nothing now.
    Errno::result(unsafe {
        libc::syscall(
            libc::SYS_close_range,
            first,
            libc::c_uint::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        )
    })
    .map(drop)
}
