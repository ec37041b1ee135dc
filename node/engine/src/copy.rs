//! Copies a directory of an image into a fresh volume: owners, modes, times, links, devices, extended attributes.

use crate::error::{EngineError, Result};
use crate::rootfs::Root;
use nix::fcntl::{OFlag, openat, readlinkat};
use nix::sys::stat::{Mode, SFlag, fstat, mknodat};
use nix::unistd::{Gid, Uid, fchown, fchownat, symlinkat};
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// Directories below each other that are copied; deeper ones are refused.
const DEPTH_MAX: usize = 256;

/// Copies what the image has at `from` into the empty directory `to`. An image without a directory there is fine.
pub(crate) fn copy_up(root: &Root, from: &Path, to: &Path) -> Result<()> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
    let source = match root.open_inside(from, flags, Mode::empty()) {
        Ok(fd) => fd,
        Err(err)
            if matches!(
                err.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            return Ok(());
        }
        Err(err) => return Err(EngineError::disk("read", from)(err)),
    };
    let target = File::open(to).map_err(EngineError::disk("open", to))?;
    copy_dir(source.as_fd(), target.as_fd(), 0)
        .map_err(EngineError::disk("copy the image's content to", to))
}

fn copy_dir(from: BorrowedFd<'_>, to: BorrowedFd<'_>, depth: usize) -> io::Result<()> {
    if depth > DEPTH_MAX {
        return Err(io::Error::other(
            "the image's directories are nested too deeply",
        ));
    }
    let reader = openat(
        from,
        ".",
        OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
        Mode::empty(),
    )?;
    let mut dir = nix::dir::Dir::from_fd(reader)?;
    for entry in dir.iter() {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        copy_entry(from, to, name, depth)?;
    }
    copy_attributes(from, to)
}

fn copy_entry(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    name: &CStr,
    depth: usize,
) -> io::Result<()> {
    // O_PATH first: opening a pipe or a device for reading could block or do something.
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let peek = openat(from, name, flags, Mode::empty())?;
    let stat = fstat(&peek)?;
    let kind = SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits());
    if kind == SFlag::S_IFDIR {
        nix::sys::stat::mkdirat(to, name, Mode::S_IRWXU)?;
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let source = openat(from, name, flags, Mode::empty())?;
        let target = openat(to, name, flags, Mode::empty())?;
        return copy_dir(source.as_fd(), target.as_fd(), depth + 1);
    }
    if kind == SFlag::S_IFREG {
        let source = openat(
            from,
            name,
            OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC,
            Mode::empty(),
        )?;
        let flags =
            OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let target = openat(to, name, flags, Mode::S_IRWXU)?;
        return copy_file(source, target);
    }
    if kind == SFlag::S_IFLNK {
        let link = readlinkat(from, name)?;
        symlinkat(link.as_os_str(), to, name)?;
    } else {
        let mode = Mode::from_bits_truncate(stat.st_mode & 0o7777);
        mknodat(to, name, kind, mode, stat.st_rdev)?;
    }
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    fchownat(
        to,
        name,
        Some(uid),
        Some(gid),
        nix::fcntl::AtFlags::AT_SYMLINK_NOFOLLOW,
    )?;
    Ok(())
}

fn copy_file(source: OwnedFd, target: OwnedFd) -> io::Result<()> {
    let (mut source, mut target) = (File::from(source), File::from(target));
    io::copy(&mut source, &mut target)?;
    copy_attributes(source.as_fd(), target.as_fd())
}

/// Owner first: changing it clears the set-user-ID bit.
fn copy_attributes(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> io::Result<()> {
    let stat = fstat(from)?;
    fchown(
        to,
        Some(Uid::from_raw(stat.st_uid)),
        Some(Gid::from_raw(stat.st_gid)),
    )?;
    nix::sys::stat::fchmod(to, Mode::from_bits_truncate(stat.st_mode & 0o7777))?;
    copy_xattrs(from, to)?;
    let time = |seconds, nanos| nix::sys::time::TimeSpec::new(seconds, nanos);
    nix::sys::stat::futimens(
        to,
        &time(stat.st_atime, stat.st_atime_nsec),
        &time(stat.st_mtime, stat.st_mtime_nsec),
    )?;
    Ok(())
}

/// Most bytes of one extended attribute and of the list of names, by the kernel's own bounds: 64 KiB.
const XATTR_BYTES_MAX: usize = 64 << 10;

fn copy_xattrs(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> io::Result<()> {
    let mut names = vec![0u8; XATTR_BYTES_MAX];
    // SAFETY: the buffer is as long as the kernel is told.
    let length =
        unsafe { libc::flistxattr(from.as_raw_fd(), names.as_mut_ptr().cast(), names.len()) };
    let Ok(length) = usize::try_from(length) else {
        let err = io::Error::last_os_error();
        // A file system without extended attributes has none to copy.
        return if err.raw_os_error() == Some(libc::EOPNOTSUPP) {
            Ok(())
        } else {
            Err(err)
        };
    };
    let mut value = vec![0u8; XATTR_BYTES_MAX];
    for name in names[..length]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
    {
        if name.starts_with(b"trusted.overlay.") {
            continue;
        }
        let name = CString::new(name)?;
        // SAFETY: the name is a C string, and the buffer is as long as the kernel is told.
        let size = unsafe {
            libc::fgetxattr(
                from.as_raw_fd(),
                name.as_ptr(),
                value.as_mut_ptr().cast(),
                value.len(),
            )
        };
        let Ok(size) = usize::try_from(size) else {
            return Err(io::Error::last_os_error());
        };
        // SAFETY: the name is a C string, and `size` bytes of the buffer were just filled.
        let set = unsafe {
            libc::fsetxattr(
                to.as_raw_fd(),
                name.as_ptr(),
                value.as_ptr().cast(),
                size,
                0,
            )
        };
        if set != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}
