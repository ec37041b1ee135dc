//! A directory tree that nothing written through this module can leave.
//!
//! Every path is resolved by the kernel with `openat2(RESOLVE_IN_ROOT)`: `..`, absolute names and symbolic links all end
//! inside the tree, as if it were the root directory. The last component is never followed.

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::{FileStat, Mode, SFlag, fstatat, mkdirat};
use nix::unistd::{UnlinkatFlags, unlinkat};
use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::rc::Rc;

/// The mark that hides a directory's lower layers.
pub(crate) const OPAQUE_XATTR: &[u8] = b"trusted.overlay.opaque";

/// The tree.
pub(crate) struct Confined {
    root: OwnedFd,
    /// The directory of the last entry: archives list a directory's files in a row.
    last: Option<(Vec<u8>, Rc<OwnedFd>)>,
    /// Directories that the archive used without listing them before.
    implicit: Vec<Vec<u8>>,
}

impl Confined {
    pub(crate) fn open(root: &Path) -> io::Result<Self> {
        Ok(Self {
            root: std::fs::File::open(root)?.into(),
            last: None,
            implicit: Vec::new(),
        })
    }

    /// Opens a directory; a symbolic link on the way stays inside, one at the end is refused.
    pub(crate) fn open_dir(&self, path: &[u8]) -> io::Result<OwnedFd> {
        self.open_at(path, OFlag::O_RDONLY | OFlag::O_NOFOLLOW)
    }

    fn open_at(&self, path: &[u8], flags: OFlag) -> io::Result<OwnedFd> {
        let path = if path.is_empty() { b"." } else { path };
        let how = OpenHow::new()
            .flags(flags | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        loop {
            match openat2(&self.root, path, how) {
                // The kernel gives up when a rename elsewhere races with the lookup.
                Err(Errno::EAGAIN | Errno::EINTR) => {}
                other => return Ok(other?),
            }
        }
    }

    /// The directory `path`, made with its parents if it is not there.
    pub(crate) fn parent(&mut self, path: &[u8]) -> io::Result<Rc<OwnedFd>> {
        if let Some((last, fd)) = &self.last
            && last == path
        {
            return Ok(Rc::clone(fd));
        }
        let fd = match self.open_at(path, OFlag::O_PATH) {
            Err(err) if matches!(err.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => {
                self.make_parents(path)?
            }
            other => other?,
        };
        let fd = Rc::new(fd);
        self.last = Some((path.to_vec(), Rc::clone(&fd)));
        Ok(fd)
    }

    fn make_parents(&mut self, path: &[u8]) -> io::Result<OwnedFd> {
        let mut dir = self.open_at(b"", OFlag::O_PATH)?;
        let mut end = 0;
        while end < path.len() {
            let start = if end == 0 { 0 } else { end + 1 };
            end = path[start..]
                .iter()
                .position(|b| *b == b'/')
                .map_or(path.len(), |at| start + at);
            let (prefix, name) = (&path[..end], &path[start..end]);
            dir = match self.open_at(prefix, OFlag::O_PATH) {
                Ok(dir) => dir,
                Err(err) => {
                    self.make_implicit(&dir, prefix, name, err)?;
                    self.open_at(prefix, OFlag::O_PATH)?
                }
            };
        }
        Ok(dir)
    }

    fn make_implicit(
        &mut self,
        dir: &OwnedFd,
        prefix: &[u8],
        name: &[u8],
        err: io::Error,
    ) -> io::Result<()> {
        match stat(dir, name)? {
            None if err.raw_os_error() == Some(libc::ENOENT) => {
                mkdirat(dir, name, Mode::from_bits_truncate(0o755))?;
                self.implicit.push(prefix.to_vec());
                Ok(())
            }
            // The layer removed the lower directory and then put a file below the same name.
            Some(meta) if is_whiteout(&meta) => {
                unlinkat(dir, name, UnlinkatFlags::NoRemoveDir)?;
                mkdirat(dir, name, Mode::from_bits_truncate(0o755))?;
                set_xattr(&self.open_dir(prefix)?, OPAQUE_XATTR, b"y")
            }
            _ => Err(err),
        }
    }

    /// Forgets the cached directory: something on its path may have been replaced.
    pub(crate) fn forget(&mut self) {
        self.last = None;
    }

    /// A directory that the archive lists after all is not implicit.
    pub(crate) fn listed(&mut self, path: &[u8]) {
        self.implicit.retain(|implicit| implicit != path);
    }

    pub(crate) fn into_implicit(self) -> Vec<Vec<u8>> {
        self.implicit
    }
}

/// The metadata of `name` in `dir`, not following a link; `None` if there is nothing.
pub(crate) fn stat(dir: &OwnedFd, name: &[u8]) -> io::Result<Option<FileStat>> {
    match fstatat(dir, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(meta) => Ok(Some(meta)),
        Err(Errno::ENOENT) => Ok(None),
        Err(err) => Err(err.into()),
    }
}

/// Whether the file is of this type.
pub(crate) fn is_type(meta: &FileStat, kind: SFlag) -> bool {
    meta.st_mode & SFlag::S_IFMT.bits() == kind.bits()
}

/// Overlayfs' mark of a removed name: a character device with number 0/0.
pub(crate) fn is_whiteout(meta: &FileStat) -> bool {
    is_type(meta, SFlag::S_IFCHR) && meta.st_rdev == 0
}

/// Sets one extended attribute of an open file or directory.
pub(crate) fn set_xattr(file: &impl AsFd, name: &[u8], value: &[u8]) -> io::Result<()> {
    let name = CString::new(name)?;
    // SAFETY: `name` is NUL-terminated, `value` is readable for its length, and the descriptor is open.
    let result = unsafe {
        libc::fsetxattr(
            file.as_fd().as_raw_fd(),
            name.as_ptr(),
            value.as_ptr().cast(),
            value.len(),
            0,
        )
    };
    Errno::result(result)?;
    Ok(())
}

/// Removes whatever `name` is, a whole tree included.
pub(crate) fn remove(dir: &OwnedFd, name: &[u8]) -> io::Result<()> {
    match unlinkat(dir, name, UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => Ok(()),
        Err(Errno::EISDIR) => {
            // The standard library's removal holds each directory open and follows no link.
            use std::os::unix::ffi::OsStrExt;
            let by_fd = Path::new("/proc/self/fd").join(dir.as_raw_fd().to_string());
            std::fs::remove_dir_all(by_fd.join(std::ffi::OsStr::from_bytes(name)))
        }
        Err(err) => Err(err.into()),
    }
}
