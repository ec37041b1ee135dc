//! The root file system: mounted in the container's own mount namespace, then made the root.

use super::sys::{FsContext, mount_setattr, move_mount};
use crate::{Failure, Rootfs, Stage};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::Mode;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};

/// Bytes of options that mount(2) takes: one page, with its closing zero.
const MOUNT_OPTION_BYTES_MAX: usize = 4095;

fn failed(what: impl std::fmt::Display, errno: Errno) -> Failure {
    Failure::os(Stage::Rootfs, what, errno as i32)
}

/// Cuts this namespace off from the host's mounts, as `propagation` (`linux.rootfsPropagation`) says.
pub(super) fn isolate(propagation: Option<&str>, root: &Path) -> Result<(), Failure> {
    let flags = match propagation {
        None | Some("" | "private" | "rprivate") => MsFlags::MS_PRIVATE | MsFlags::MS_REC,
        Some("slave" | "rslave") => MsFlags::MS_SLAVE | MsFlags::MS_REC,
        // Mounts may go out to the host, so only what the root file system lies on is cut off:
        // pivot_root(2) fails with EINVAL while the parent mount is shared, and the root mount would show up there.
        Some("shared" | "rshared") => {
            let parent = mount_point_of(root)?;
            return change(&parent, MsFlags::MS_PRIVATE);
        }
        Some(other) => {
            return Err(Failure::new(
                Stage::Rootfs,
                format!("linux.rootfsPropagation: `{other}` is not supported"),
            ));
        }
    };
    change(Path::new("/"), flags)
}

fn change(path: &Path, flags: MsFlags) -> Result<(), Failure> {
    mount(None::<&str>, path, None::<&str>, flags, None::<&str>).map_err(|errno| {
        failed(
            format!("change the propagation of `{}`", path.display()),
            errno,
        )
    })
}

/// The mount point that `path` lies below.
fn mount_point_of(path: &Path) -> Result<PathBuf, Failure> {
    let table = fs::read_to_string("/proc/self/mountinfo").map_err(|error| {
        failed(
            "read `/proc/self/mountinfo`",
            Errno::from_raw(error.raw_os_error().unwrap_or(0)),
        )
    })?;
    let points = table.lines().filter_map(|line| line.split(' ').nth(4));
    let longest = points
        .map(|point| point.replace("\\040", " "))
        .filter(|point| path.starts_with(point))
        .max_by_key(String::len);
    Ok(longest.map_or_else(|| PathBuf::from("/"), PathBuf::from))
}

/// Mounts the root file system at `target`, which is made if it is missing.
pub(super) fn mount_root(rootfs: &Rootfs, target: &Path) -> Result<(), Failure> {
    match rootfs {
        Rootfs::Directory => {
            // pivot_root(2) wants a mount point.
            let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
            mount(Some(target), target, None::<&str>, flags, None::<&str>)
                .map_err(|errno| failed(format!("bind `{}`", target.display()), errno))
        }
        Rootfs::Overlay { lower, upper, work } => {
            match fs::create_dir(target) {
                Ok(()) => {}
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => {
                    let errno = Errno::from_raw(error.raw_os_error().unwrap_or(0));
                    return Err(failed(format!("make `{}`", target.display()), errno));
                }
            }
            mount_overlay(lower, upper, work, target).map_err(|errno| {
                failed(
                    format!("mount the overlay of {} layers", lower.len()),
                    errno,
                )
            })
        }
    }
}

fn mount_overlay(lower: &[PathBuf], upper: &Path, work: &Path, target: &Path) -> Result<(), Errno> {
    let mut options = OsString::from("lowerdir=");
    for (index, layer) in lower.iter().enumerate() {
        if index > 0 {
            options.push(":");
        }
        options.push(layer);
    }
    options.push(",upperdir=");
    options.push(upper);
    options.push(",workdir=");
    options.push(work);
    let special = |path: &Path| {
        let bytes = path.as_os_str().as_encoded_bytes();
        bytes.iter().any(|byte| matches!(byte, b',' | b':' | b'\\'))
    };
    let plain = !lower
        .iter()
        .map(PathBuf::as_path)
        .chain([upper, work])
        .any(special);
    if plain && options.len() <= MOUNT_OPTION_BYTES_MAX {
        let kind = Some(OsStr::new("overlay"));
        return mount(
            kind,
            target,
            kind,
            MsFlags::empty(),
            Some(options.as_os_str()),
        );
    }
    // One call per layer: neither the number nor the names of layers are limited by a page or by separators.
    let context = FsContext::open(c"overlay")?;
    for layer in lower {
        context.set(c"lowerdir+", layer)?;
    }
    context.set(c"upperdir", upper)?;
    context.set(c"workdir", work)?;
    move_mount(context.mount()?.as_fd(), target)
}

/// The old root, still reachable below the new one until [`OldRoot::detach`].
pub(super) struct OldRoot(OwnedFd);

/// Makes `target` the root. The old root stays mounted on top of it, out of reach of path names: sources of
/// mounts were opened before, and mounts of /proc in a user namespace want to see another one.
pub(super) fn pivot(target: &Path) -> Result<OldRoot, Failure> {
    let flags = OFlag::O_DIRECTORY | OFlag::O_PATH | OFlag::O_CLOEXEC;
    let old = open("/", flags, Mode::empty()).map_err(|errno| failed("open `/`", errno))?;
    nix::unistd::chdir(target)
        .map_err(|errno| failed(format!("enter `{}`", target.display()), errno))?;
    nix::unistd::pivot_root(".", ".")
        .map_err(|errno| failed(format!("make `{}` the root", target.display()), errno))?;
    nix::unistd::chdir("/").map_err(|errno| failed("enter the new root", errno))?;
    Ok(OldRoot(old))
}

impl OldRoot {
    /// Unmounts the old root.
    pub(super) fn detach(self) -> Result<(), Failure> {
        let unmount = || {
            nix::unistd::fchdir(&self.0)?;
            // Slave first, so that unmounting stays in this namespace.
            let flags = MsFlags::MS_SLAVE | MsFlags::MS_REC;
            mount(None::<&str>, ".", None::<&str>, flags, None::<&str>)?;
            umount2(".", MntFlags::MNT_DETACH)?;
            nix::unistd::chdir("/")
        };
        unmount().map_err(|errno| failed("detach the old root", errno))
    }
}

/// Makes the root read-only; mounts on it stay as they are.
pub(super) fn make_readonly() -> Result<(), Failure> {
    let flags = OFlag::O_DIRECTORY | OFlag::O_PATH | OFlag::O_CLOEXEC;
    open("/", flags, Mode::empty())
        .and_then(|root| mount_setattr(root.as_fd(), false, libc::MOUNT_ATTR_RDONLY, 0))
        .map_err(|errno| failed("make the root read-only", errno))
}
