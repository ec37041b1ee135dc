//! A container's root as the engine sees it without entering a namespace: a detached overlay mount, or a running
//! container's own root. Paths are resolved by the kernel inside that root, so that no link leads out of it.

use crate::error::{EngineError, Result};
use crate::user::Accounts;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::Mode;
use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

/// Most bytes of /etc/passwd or /etc/group that are read: 4 MiB.
const ACCOUNTS_BYTES_MAX: u64 = 4 << 20;

const FSCONFIG_SET_STRING: libc::c_uint = 1;
const FSCONFIG_CMD_CREATE: libc::c_uint = 6;
const FSOPEN_CLOEXEC: libc::c_uint = 1;
const FSMOUNT_CLOEXEC: libc::c_uint = 1;

/// An open root directory.
#[derive(Debug)]
pub(crate) struct Root {
    fd: OwnedFd,
}

/// The layers of a container's root.
#[derive(Debug, Clone)]
pub(crate) struct Layers {
    /// Read-only layers, top first.
    pub(crate) lower: Vec<PathBuf>,
    /// The container's own writes and overlayfs' work directory, to write through.
    pub(crate) upper: Option<(PathBuf, PathBuf)>,
}

impl Root {
    /// The root of a running process.
    pub(crate) fn of_process(pid: u32) -> Result<Self> {
        Self::open(Path::new(&format!("/proc/{pid}/root")))
    }

    /// An open directory as root.
    pub(crate) fn from_fd(fd: OwnedFd) -> Self {
        Self { fd }
    }

    /// A directory of the host as root.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        nix::fcntl::openat(AT_FDCWD, path, flags, Mode::empty())
            .map(|fd| Self { fd })
            .map_err(|errno| EngineError::disk("open", path)(errno.into()))
    }

    /// Mounts layers without a place in any mount namespace; the mount ends with the value. Blocks.
    pub(crate) fn mount(layers: &Layers) -> Result<Self> {
        // overlayfs wants two layers or a writable one: a single layer is its own root.
        if let ([only], None) = (layers.lower.as_slice(), &layers.upper) {
            return Self::open(only);
        }
        mount_overlay(layers)
            .map(|fd| Self { fd })
            .map_err(EngineError::disk(
                "mount",
                layers.lower.first().cloned().unwrap_or_default(),
            ))
    }

    /// Opens a path inside; links stay inside.
    pub(crate) fn open_inside(&self, path: &Path, flags: OFlag, mode: Mode) -> io::Result<OwnedFd> {
        let how = OpenHow::new()
            .flags(flags | OFlag::O_CLOEXEC)
            .mode(mode)
            .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        loop {
            // EAGAIN: something was renamed meanwhile, and the kernel could not tell whether the path stayed inside.
            match openat2(self.fd.as_fd(), path, how) {
                Err(Errno::EAGAIN) => {}
                other => return other.map_err(io::Error::from),
            }
        }
    }

    /// A whole small text file; empty when missing.
    fn read_text(&self, path: &str) -> Result<String> {
        let fd = match self.open_inside(
            Path::new(path),
            OFlag::O_RDONLY | OFlag::O_NONBLOCK,
            Mode::empty(),
        ) {
            Ok(fd) => fd,
            Err(err)
                if matches!(
                    err.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) =>
            {
                return Ok(String::new());
            }
            Err(err) => return Err(EngineError::disk("read", path)(err)),
        };
        let file = File::from(fd);
        let failed = |err| EngineError::disk("read", path)(err);
        if !file.metadata().map_err(failed)?.is_file() {
            return Ok(String::new());
        }
        let mut bytes = Vec::new();
        file.take(ACCOUNTS_BYTES_MAX)
            .read_to_end(&mut bytes)
            .map_err(EngineError::disk("read", path))?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The account files.
    pub(crate) fn accounts(&self) -> Result<Accounts> {
        Ok(Accounts {
            passwd: self.read_text("etc/passwd")?,
            group: self.read_text("etc/group")?,
        })
    }
}

fn mount_overlay(layers: &Layers) -> io::Result<OwnedFd> {
    // SAFETY: the name is a C string that lives through the call.
    let raw = unsafe { libc::syscall(libc::SYS_fsopen, c"overlay".as_ptr(), FSOPEN_CLOEXEC) };
    let context = owned(raw)?;
    if let Err(err) = append_lower(&context, &layers.lower) {
        // Kernels before 6.8 take all layers in one string, of at most 255 bytes.
        if err.raw_os_error() != Some(libc::EINVAL) {
            return Err(err);
        }
        let joined: Vec<_> = layers
            .lower
            .iter()
            .map(|path| path.to_string_lossy().into_owned())
            .collect();
        set(&context, c"lowerdir", joined.join(":").as_bytes())?;
    }
    if let Some((upper, work)) = &layers.upper {
        set(&context, c"upperdir", upper.as_os_str().as_bytes())?;
        set(&context, c"workdir", work.as_os_str().as_bytes())?;
    }
    // SAFETY: the create command takes no key and no value.
    let raw = unsafe {
        libc::syscall(
            libc::SYS_fsconfig,
            context.as_raw_fd(),
            FSCONFIG_CMD_CREATE,
            std::ptr::null::<libc::c_char>(),
            std::ptr::null::<libc::c_char>(),
            0,
        )
    };
    Errno::result(raw)?;
    // SAFETY: plain integers.
    let raw = unsafe { libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), FSMOUNT_CLOEXEC, 0) };
    owned(raw)
}

fn append_lower(context: &OwnedFd, lower: &[PathBuf]) -> io::Result<()> {
    lower
        .iter()
        .try_for_each(|path| set(context, c"lowerdir+", path.as_os_str().as_bytes()))
}

fn set(context: &OwnedFd, key: &std::ffi::CStr, value: &[u8]) -> io::Result<()> {
    let value = CString::new(value)?;
    // SAFETY: both are C strings that live through the call; the kernel copies them.
    let raw = unsafe {
        libc::syscall(
            libc::SYS_fsconfig,
            context.as_raw_fd(),
            FSCONFIG_SET_STRING,
            key.as_ptr(),
            value.as_ptr(),
            0,
        )
    };
    Errno::result(raw).map(drop).map_err(io::Error::from)
}

fn owned(raw: libc::c_long) -> io::Result<OwnedFd> {
    let raw = Errno::result(raw)?;
    let raw = i32::try_from(raw).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}
