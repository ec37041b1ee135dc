//! Writes the entries of a layer's tar into a directory, in overlayfs' form.
//!
//! The archive is hostile until proved otherwise: every path is confined (see `confined`), every count has a bound. Whiteouts become
//! character devices 0/0, opaque directories get overlayfs' mark.

use crate::confined::{self, Confined, OPAQUE_XATTR, is_type, is_whiteout};
use crate::content::is_disk_full;
use crate::tarball::{Entry, Kind, TarError, TarReader};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{
    Mode, SFlag, UtimensatFlags, fchmod, fchmodat, futimens, makedev, mkdirat, mknodat, utimensat,
};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, fchown, fchownat, linkat, symlinkat};
use std::fs::File;
use std::io::{self, BufRead, Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// Most entries of one layer.
pub const LAYER_ENTRIES_MAX: u64 = 4_000_000;
/// Most bytes of one file in a layer, holes included: 128 GiB.
pub const LAYER_FILE_BYTES_MAX: u64 = 128 << 30;
/// Most bytes of one layer's tar: 512 GiB.
pub const LAYER_BYTES_MAX: u64 = 512 << 30;
/// Most bytes of directory paths that wait for their times: 24 MiB.
pub const DIRECTORY_PATHS_BYTES_MAX: usize = 24 << 20;

/// What one layer may hold. The defaults are the constants of this module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnpackLimits {
    /// Most entries.
    pub entries_max: u64,
    /// Most bytes of one file, holes included.
    pub file_bytes_max: u64,
    /// Most bytes of the tar.
    pub total_bytes_max: u64,
}

impl Default for UnpackLimits {
    fn default() -> Self {
        Self {
            entries_max: LAYER_ENTRIES_MAX,
            file_bytes_max: LAYER_FILE_BYTES_MAX,
            total_bytes_max: LAYER_BYTES_MAX,
        }
    }
}

/// Why a layer could not be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The stream is not a readable tar archive.
    #[error(transparent)]
    Tar(#[from] TarError),
    /// A path or a hard link leads out of the layer.
    #[error("entry `{path}` leads out of the layer")]
    Escape {
        /// The path as the archive has it.
        path: String,
    },
    /// A hard link to something that the layer does not have.
    #[error("entry `{path}` is a hard link to `{target}`, which the layer does not have")]
    LinkTarget {
        /// The entry.
        path: String,
        /// The target.
        target: String,
    },
    /// A bound was met.
    #[error("the layer has more {what} than the limit of {limit}")]
    Limit {
        /// Counted in what.
        what: &'static str,
        /// The bound.
        limit: u64,
    },
    /// A file is over its bound.
    #[error("entry `{path}` has {size} bytes, more than the limit of {limit}")]
    FileTooLarge {
        /// The entry.
        path: String,
        /// Its size.
        size: u64,
        /// The bound.
        limit: u64,
    },
    /// No room is left.
    #[error(
        "no space left on the disk of `{}` while writing entry `{path}`: remove images or enlarge the file system",
        root.display()
    )]
    DiskFull {
        /// The entry.
        path: String,
        /// Where it is unpacked.
        root: PathBuf,
    },
    /// The file system refused.
    #[error("failed to write entry `{path}`")]
    Write {
        /// The entry.
        path: String,
        /// The system's answer.
        #[source]
        err: io::Error,
    },
}

/// What an unpacked layer amounts to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Unpacked {
    /// Bytes of file content.
    pub(crate) bytes: u64,
    /// Entries of the archive.
    pub(crate) entries: u64,
    /// The layer hides everything below it.
    pub(crate) opaque_root: bool,
    /// Directories that the archive used without listing them: their owner and mode come from the layer below.
    pub(crate) implicit: Vec<Vec<u8>>,
}

/// Unpacks `tar` into the directory `root`, which must be empty and nobody else's. The rest of the stream behind the
/// end marker is left unread.
pub(crate) fn unpack(
    tar: &mut TarReader<impl BufRead>,
    root: &Path,
    limits: &UnpackLimits,
) -> Result<Unpacked, UnpackError> {
    let tree = Confined::open(root).map_err(|err| UnpackError::Write {
        path: root.display().to_string(),
        err,
    })?;
    let mut unpacker = Unpacker {
        tree,
        directories: Vec::new(),
        directory_bytes: 0,
        done: Unpacked::default(),
    };
    while let Some(entry) = tar.next_entry()? {
        unpacker.done.entries += 1;
        if unpacker.done.entries > limits.entries_max {
            return Err(UnpackError::Limit {
                what: "entries",
                limit: limits.entries_max,
            });
        }
        let unpacked = unpacker.entry(tar, &entry, limits);
        unpacked.map_err(|err| match err {
            UnpackError::DiskFull { path, .. } => UnpackError::DiskFull {
                path,
                root: root.to_owned(),
            },
            other => other,
        })?;
    }
    unpacker.set_directory_times()?;
    unpacker.done.implicit = unpacker.tree.into_implicit();
    Ok(unpacker.done)
}

/// A directory, and the time that it gets at the end.
type DirectoryTime = (Box<[u8]>, (i64, u32));

struct Unpacker {
    tree: Confined,
    /// Filling a directory changes its time, so that directories get theirs at the end.
    directories: Vec<DirectoryTime>,
    directory_bytes: usize,
    done: Unpacked,
}

impl Unpacker {
    fn entry(
        &mut self,
        tar: &mut TarReader<impl BufRead>,
        entry: &Entry,
        limits: &UnpackLimits,
    ) -> Result<(), UnpackError> {
        let fail = |err: io::Error| write_error(&entry.path, err);
        let path = clean(&entry.path).ok_or_else(|| escape(&entry.path))?;
        if path.is_empty() {
            return self.root_entry(entry).map_err(fail);
        }
        if entry.size > limits.file_bytes_max {
            return Err(UnpackError::FileTooLarge {
                path: lossy(&entry.path),
                size: entry.size,
                limit: limits.file_bytes_max,
            });
        }
        let (parent, name) = split_last(&path);
        if let Some(hidden) = name.strip_prefix(b".wh.") {
            return self.whiteout(parent, hidden, entry);
        }
        let dir = self.tree.parent(parent).map_err(fail)?;
        match entry.kind {
            Kind::Directory => {
                self.directory(&dir, &path, name, entry).map_err(fail)?;
                return self.remember_directory(path, entry.mtime);
            }
            Kind::File => {
                let file = self
                    .replace(&dir, name, |dir| create(dir, name))
                    .map_err(fail)?;
                self.done.bytes += write_file(tar, file, entry)?;
                return Ok(());
            }
            Kind::HardLink => return self.hard_link(&dir, name, entry),
            Kind::Symlink => self.replace(&dir, name, |dir| {
                symlinkat(entry.link.as_slice(), dir, name)
            }),
            Kind::Fifo => self.node(&dir, name, entry, SFlag::S_IFIFO),
            Kind::CharDevice => self.node(&dir, name, entry, SFlag::S_IFCHR),
            Kind::BlockDevice => self.node(&dir, name, entry, SFlag::S_IFBLK),
        }
        .and_then(|()| set_metadata_at(&dir, name, entry))
        .map_err(fail)
    }

    /// The entry `./`: the root directory itself.
    fn root_entry(&mut self, entry: &Entry) -> io::Result<()> {
        if entry.kind != Kind::Directory {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        let dir = self.tree.open_dir(b"")?;
        set_directory_metadata(&dir, entry)?;
        self.directories.push((Box::from(&b""[..]), entry.mtime));
        Ok(())
    }

    /// Runs `make`; if the name is taken, whatever has it goes first: the later entry wins.
    fn replace<T>(
        &mut self,
        dir: &OwnedFd,
        name: &[u8],
        make: impl Fn(&OwnedFd) -> nix::Result<T>,
    ) -> io::Result<T> {
        match make(dir) {
            Err(Errno::EEXIST) => {
                confined::remove(dir, name)?;
                self.tree.forget();
                Ok(make(dir)?)
            }
            other => Ok(other?),
        }
    }

    fn node(&mut self, dir: &OwnedFd, name: &[u8], entry: &Entry, kind: SFlag) -> io::Result<()> {
        let (major, minor) = entry.device;
        let device = match kind {
            SFlag::S_IFIFO => 0,
            _ => makedev(u64::from(major), u64::from(minor)),
        };
        let mode = Mode::from_bits_truncate(0o600);
        self.replace(dir, name, |dir| mknodat(dir, name, kind, mode, device))
    }

    fn directory(
        &mut self,
        dir: &OwnedFd,
        path: &[u8],
        name: &[u8],
        entry: &Entry,
    ) -> io::Result<()> {
        let mode = Mode::from_bits_truncate(0o700);
        let mut opaque = false;
        match confined::stat(dir, name)? {
            None => mkdirat(dir, name, mode)?,
            Some(meta) if is_type(&meta, SFlag::S_IFDIR) => self.tree.listed(path),
            Some(meta) => {
                // A directory in the place of a removed lower one must not show the lower one's content.
                opaque = is_whiteout(&meta);
                self.replace(dir, name, |dir| mkdirat(dir, name, mode))?;
            }
        }
        let made = open_dir_at(dir, name)?;
        if opaque {
            confined::set_xattr(&made, OPAQUE_XATTR, b"y")?;
        }
        set_directory_metadata(&made, entry)
    }

    fn remember_directory(&mut self, path: Vec<u8>, mtime: (i64, u32)) -> Result<(), UnpackError> {
        self.directory_bytes += path.len() + size_of::<DirectoryTime>();
        if self.directory_bytes > DIRECTORY_PATHS_BYTES_MAX {
            return Err(UnpackError::Limit {
                what: "bytes of directory names",
                limit: DIRECTORY_PATHS_BYTES_MAX as u64,
            });
        }
        self.directories.push((path.into_boxed_slice(), mtime));
        Ok(())
    }

    fn hard_link(&mut self, dir: &OwnedFd, name: &[u8], entry: &Entry) -> Result<(), UnpackError> {
        let fail = |err: io::Error| write_error(&entry.path, err);
        let target = clean(&entry.link).ok_or_else(|| escape(&entry.link))?;
        let (target_parent, target_name) = split_last(&target);
        let missing = || UnpackError::LinkTarget {
            path: lossy(&entry.path),
            target: lossy(&entry.link),
        };
        if target_name.is_empty() {
            return Err(missing());
        }
        let target_dir = self.tree.parent(target_parent).map_err(fail)?;
        match confined::stat(&target_dir, target_name).map_err(fail)? {
            None => return Err(missing()),
            Some(meta) => {
                let here = confined::stat(dir, name).map_err(fail)?;
                if here.is_some_and(|h| h.st_ino == meta.st_ino && h.st_dev == meta.st_dev) {
                    return Ok(());
                }
            }
        }
        self.replace(dir, name, |dir| {
            linkat(&*target_dir, target_name, dir, name, AtFlags::empty())
        })
        .map_err(|err| match err.kind() {
            io::ErrorKind::NotFound => missing(),
            _ => fail(err),
        })
    }

    fn whiteout(&mut self, parent: &[u8], hidden: &[u8], entry: &Entry) -> Result<(), UnpackError> {
        let fail = |err: io::Error| write_error(&entry.path, err);
        if hidden == b".wh..opq" {
            self.tree.parent(parent).map_err(fail)?;
            let dir = self.tree.open_dir(parent).map_err(fail)?;
            self.done.opaque_root |= parent.is_empty();
            return confined::set_xattr(&dir, OPAQUE_XATTR, b"y").map_err(fail);
        }
        // Bookkeeping of aufs, which Docker leaves out as well.
        if hidden.starts_with(b".wh.") {
            return Ok(());
        }
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(escape(&entry.path));
        }
        let dir = self.tree.parent(parent).map_err(fail)?;
        let mode = Mode::from_bits_truncate(0o600);
        match mknodat(&*dir, hidden, SFlag::S_IFCHR, mode, 0) {
            Ok(()) => Ok(()),
            // A whiteout hides what is below this layer, never what the layer itself brings.
            Err(Errno::EEXIST) => match open_dir_at(&dir, hidden) {
                Ok(own) => confined::set_xattr(&own, OPAQUE_XATTR, b"y").map_err(fail),
                Err(err) if matches!(err.raw_os_error(), Some(libc::ENOTDIR | libc::ELOOP)) => {
                    Ok(())
                }
                Err(err) => Err(fail(err)),
            },
            Err(err) => Err(fail(err.into())),
        }
    }

    fn set_directory_times(&mut self) -> Result<(), UnpackError> {
        for (path, mtime) in std::mem::take(&mut self.directories).iter().rev() {
            let time = timespec(*mtime);
            let set = self
                .tree
                .open_dir(path)
                .and_then(|dir| Ok(futimens(dir, &time, &time)?));
            match set {
                // A later entry took the directory away.
                Err(err)
                    if matches!(
                        err.raw_os_error(),
                        Some(libc::ENOENT | libc::ENOTDIR | libc::ELOOP)
                    ) => {}
                other => other.map_err(|err| write_error(path, err))?,
            }
        }
        Ok(())
    }
}

fn create(dir: &OwnedFd, name: &[u8]) -> nix::Result<OwnedFd> {
    let flags =
        OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    openat(dir, name, flags, Mode::from_bits_truncate(0o600))
}

fn open_dir_at(dir: &OwnedFd, name: &[u8]) -> io::Result<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    Ok(openat(dir, name, flags, Mode::empty())?)
}

/// Copies the data of the current entry and sets everything else; returns the bytes of content.
fn write_file(
    tar: &mut TarReader<impl BufRead>,
    file: OwnedFd,
    entry: &Entry,
) -> Result<u64, UnpackError> {
    let mut file = File::from(file);
    let whole = [(0, entry.size)];
    let pieces = entry.sparse.as_deref().unwrap_or(&whole);
    let fail = |err| write_error(&entry.path, err);
    let mut written = 0;
    for (offset, length) in pieces {
        if entry.sparse.is_some() {
            file.seek(SeekFrom::Start(*offset)).map_err(fail)?;
        }
        let mut left = *length;
        while left > 0 {
            let data = tar.data().map_err(TarError::Read)?;
            if data.is_empty() {
                return Err(TarError::Read(io::ErrorKind::UnexpectedEof.into()).into());
            }
            let count = usize::try_from(left).unwrap_or(usize::MAX).min(data.len());
            file.write_all(&data[..count]).map_err(fail)?;
            tar.consume(count);
            left -= count as u64;
        }
        written += length;
    }
    if entry.sparse.is_some() {
        file.set_len(entry.size).map_err(fail)?;
    }
    set_file_metadata(&file, entry).map_err(fail)?;
    Ok(written)
}

/// Owner before mode and capabilities: changing the owner clears both.
fn set_file_metadata(file: &File, entry: &Entry) -> io::Result<()> {
    set_owner(file, entry)?;
    fchmod(file, Mode::from_bits_truncate(entry.mode))?;
    set_xattrs(file, entry)?;
    let time = timespec(entry.mtime);
    Ok(futimens(file, &time, &time)?)
}

fn set_directory_metadata(dir: &OwnedFd, entry: &Entry) -> io::Result<()> {
    set_owner(dir, entry)?;
    fchmod(dir, Mode::from_bits_truncate(entry.mode))?;
    set_xattrs(dir, entry)
}

fn set_owner(file: &impl std::os::fd::AsFd, entry: &Entry) -> io::Result<()> {
    if (entry.uid, entry.gid) == (0, 0) && nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    let (uid, gid) = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
    Ok(fchown(file, Some(uid), Some(gid))?)
}

/// Sets the attributes that a layer may bring: file capabilities and `user.`. Everything else, overlayfs' own marks above
/// all, would let a layer act on the host.
fn set_xattrs(file: &impl std::os::fd::AsFd, entry: &Entry) -> io::Result<()> {
    for (name, value) in &entry.xattrs {
        let is_user = name.starts_with(b"user.") && !name.starts_with(b"user.overlay.");
        if name != b"security.capability" && !is_user {
            continue;
        }
        match confined::set_xattr(file, name, value) {
            // Not every file system has `user.` attributes.
            Err(err) if is_user && err.raw_os_error() == Some(libc::EOPNOTSUPP) => {}
            other => other?,
        }
    }
    Ok(())
}

/// Metadata of what can't be opened: links, devices, pipes.
fn set_metadata_at(dir: &OwnedFd, name: &[u8], entry: &Entry) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
    fchownat(
        dir,
        name,
        Some(uid),
        Some(gid),
        AtFlags::AT_SYMLINK_NOFOLLOW,
    )?;
    if entry.kind != Kind::Symlink {
        // The name was just made in a directory of ours and is no link, so that following is harmless.
        let mode = Mode::from_bits_truncate(entry.mode);
        fchmodat(
            dir,
            name,
            mode,
            nix::sys::stat::FchmodatFlags::FollowSymlink,
        )?;
    }
    let time = timespec(entry.mtime);
    Ok(utimensat(
        dir,
        name,
        &time,
        &time,
        UtimensatFlags::NoFollowSymlink,
    )?)
}

fn timespec((seconds, nanos): (i64, u32)) -> TimeSpec {
    TimeSpec::new(seconds, i64::from(nanos))
}

/// The path without `.`, doubled and leading slashes; `None` if it climbs above its start.
pub(crate) fn clean(path: &[u8]) -> Option<Vec<u8>> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in path.split(|b| *b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => drop(parts.pop()?),
            part => parts.push(part),
        }
    }
    Some(parts.join(&b'/'))
}

fn split_last(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|b| *b == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (b"", path),
    }
}

fn escape(path: &[u8]) -> UnpackError {
    UnpackError::Escape { path: lossy(path) }
}

fn write_error(path: &[u8], err: io::Error) -> UnpackError {
    let path = lossy(path);
    if is_disk_full(&err) {
        let root = PathBuf::new();
        UnpackError::DiskFull { path, root }
    } else {
        UnpackError::Write { path, err }
    }
}

fn lossy(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}
