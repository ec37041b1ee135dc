//! Files in and out of a container (`docker cp`). Every path is resolved by the kernel inside the container's root.

use crate::disk::blocking;
use crate::env::Env;
use crate::error::{EngineError, Result};
use crate::info::{ContainerInfo, MountPointKind};
use crate::requests::{ArchivePutOptions, PathStat};
use crate::rootfs::{Layers, Root};
use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::{self, BoxStream};
use nix::fcntl::{OFlag, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat};
use nix::unistd::{Gid, Uid, fchownat, symlinkat};
use shoal_model::Timestamp;
use std::fs::File;
use std::io::{self, Read as _, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::sync::mpsc;

/// Pieces of an archive on their way: 16 of at most 64 KiB.
const PIECES_MAX: usize = 16;
const PIECE_BYTES: usize = 64 << 10;
/// Directories below each other in an archive that is made.
const DEPTH_MAX: usize = 256;

/// Where a path of a container is: a root and the path below it.
struct Place {
    root: Root,
    path: PathBuf,
}

/// What is needed to open a container's root on a blocking thread.
struct View {
    pid: u32,
    layers: Layers,
    /// Volumes and binds, which a container that does not run has not mounted: (target, source).
    mounts: Vec<(PathBuf, PathBuf)>,
}

async fn view(env: &Env, info: &ContainerInfo, write: bool) -> Result<View> {
    let image = env.image(&info.image_id)?;
    let mut lower = env.lower(&image).await?;
    let work = info.upper_dir.with_file_name("work");
    let upper = if write {
        Some((info.upper_dir.clone(), work))
    } else {
        lower.insert(0, info.upper_dir.clone());
        None
    };
    let mounted = info
        .mounts
        .iter()
        .filter(|point| point.kind != MountPointKind::Tmpfs);
    Ok(View {
        pid: info.state.pid,
        layers: Layers { lower, upper },
        mounts: mounted
            .map(|point| (PathBuf::from(&point.target), PathBuf::from(&point.source)))
            .collect(),
    })
}

impl View {
    fn open(&self, path: &Path) -> Result<Place> {
        let path = normal(path);
        if self.pid != 0 {
            let root = Root::of_process(self.pid)?;
            return Ok(Place { root, path });
        }
        let inside = self
            .mounts
            .iter()
            .filter(|(target, _)| path.starts_with(target))
            .max_by_key(|(target, _)| target.components().count());
        match inside {
            Some((target, source)) => Ok(Place {
                root: Root::open(source)?,
                path: normal(path.strip_prefix(target).unwrap_or(&path)),
            }),
            None => Ok(Place {
                root: Root::mount(&self.layers)?,
                path,
            }),
        }
    }
}

/// Absolute, without `.` and `..`.
fn normal(path: &Path) -> PathBuf {
    let mut clean = PathBuf::from("/");
    for part in path.components() {
        match part {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => drop(clean.pop()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    clean
}

fn not_found(info: &ContainerInfo, path: &str) -> EngineError {
    EngineError::NoSuch {
        object: "path in container",
        name: format!("{path} ({})", info.name),
    }
}

fn path_error<'a>(
    info: &'a ContainerInfo,
    path: &'a str,
) -> impl Fn(io::Error) -> EngineError + 'a {
    move |err| match err.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => not_found(info, path),
        _ => EngineError::disk("open", path)(err),
    }
}

fn path_stat(place: &Place, stat: &FileStat) -> Result<PathStat> {
    let name = place.path.file_name().map_or_else(
        || "/".to_owned(),
        |name| name.to_string_lossy().into_owned(),
    );
    let is_link = stat.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFLNK.bits();
    let link_target = if is_link {
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW;
        let link = place
            .root
            .open_inside(&place.path, flags, Mode::empty())
            .map_err(EngineError::disk("open", &place.path))?;
        let target = readlinkat(&link, "")
            .map_err(|errno| EngineError::disk("read", &place.path)(errno.into()))?;
        target.to_string_lossy().into_owned()
    } else {
        String::new()
    };
    Ok(PathStat {
        name,
        size: u64::try_from(stat.st_size).unwrap_or(0),
        mode: stat.st_mode,
        modified: Timestamp(
            stat.st_mtime
                .saturating_mul(1_000_000_000)
                .saturating_add(stat.st_mtime_nsec),
        ),
        link_target,
    })
}

fn stat_in(place: &Place, info: &ContainerInfo, path: &str) -> Result<PathStat> {
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW;
    let fd = place
        .root
        .open_inside(&place.path, flags, Mode::empty())
        .map_err(path_error(info, path))?;
    let stat = fstat(&fd).map_err(|errno| EngineError::disk("read", path)(errno.into()))?;
    path_stat(place, &stat)
}

/// Facts about a file.
pub(crate) async fn stat(
    env: &Arc<Env>,
    info: &Arc<ContainerInfo>,
    path: &str,
) -> Result<PathStat> {
    let view = view(env, info, false).await?;
    let (info, path) = (Arc::clone(info), path.to_owned());
    blocking("container file", move || {
        let place = view.open(Path::new(&path))?;
        stat_in(&place, &info, &path)
    })
    .await
}

/// A file or directory as a tar stream.
pub(crate) async fn get(
    env: &Arc<Env>,
    info: &Arc<ContainerInfo>,
    path: &str,
) -> Result<(PathStat, BoxStream<'static, Result<Bytes>>)> {
    let view = view(env, info, false).await?;
    let (info, path) = (Arc::clone(info), path.to_owned());
    let (place, found) = blocking("container file", move || {
        let place = view.open(Path::new(&path))?;
        let found = stat_in(&place, &info, &path)?;
        Ok((place, found))
    })
    .await?;
    let (sender, receiver) = mpsc::channel(PIECES_MAX);
    let name = if found.name == "/" {
        PathBuf::from(".")
    } else {
        PathBuf::from(&found.name)
    };
    tokio::task::spawn_blocking(move || {
        let mut builder = tar::Builder::new(io::BufWriter::with_capacity(
            PIECE_BYTES,
            Pieces(sender.clone()),
        ));
        let packed = pack(&mut builder, &place, &name).and_then(|()| builder.into_inner()?.flush());
        if let Err(err) = packed {
            // A client that has left wants no error either.
            drop(sender.blocking_send(Err(EngineError::disk("pack", &place.path)(err))));
        }
    });
    let stream = stream::unfold(receiver, |mut receiver| async move {
        receiver.recv().await.map(|piece| (piece, receiver))
    });
    Ok((found, stream.boxed()))
}

/// Hands what is written to a bounded channel.
struct Pieces(mpsc::Sender<Result<Bytes>>);

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0
            .blocking_send(Ok(Bytes::copy_from_slice(bytes)))
            .map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

type Packer = tar::Builder<io::BufWriter<Pieces>>;

fn pack(builder: &mut Packer, place: &Place, name: &Path) -> io::Result<()> {
    let peek = place.root.open_inside(
        &place.path,
        OFlag::O_PATH | OFlag::O_NOFOLLOW,
        Mode::empty(),
    )?;
    let open = || {
        place.root.open_inside(
            &place.path,
            OFlag::O_RDONLY | OFlag::O_NOFOLLOW,
            Mode::empty(),
        )
    };
    pack_entry(builder, &peek, open, name, 0)
}

fn pack_entry(
    builder: &mut Packer,
    peek: &OwnedFd,
    open: impl FnOnce() -> io::Result<OwnedFd>,
    name: &Path,
    depth: usize,
) -> io::Result<()> {
    if depth > DEPTH_MAX {
        return Err(io::Error::other("directories are nested too deeply"));
    }
    let stat = fstat(peek)?;
    let mut header = tar::Header::new_gnu();
    header.set_mode(stat.st_mode & 0o7777);
    header.set_uid(u64::from(stat.st_uid));
    header.set_gid(u64::from(stat.st_gid));
    header.set_mtime(u64::try_from(stat.st_mtime).unwrap_or(0));
    header.set_size(0);
    let kind = SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits());
    if kind == SFlag::S_IFREG {
        header.set_entry_type(tar::EntryType::Regular);
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        header.set_size(size);
        // A file that grows or shrinks meanwhile must not shift what follows.
        let content = io::Read::chain(File::from(open()?), io::repeat(0));
        return builder.append_data(&mut header, name, io::Read::take(content, size));
    }
    if kind == SFlag::S_IFDIR {
        header.set_entry_type(tar::EntryType::Directory);
        builder.append_data(&mut header, name.join(""), io::empty())?;
        return pack_dir(builder, open()?, name, depth);
    }
    if kind == SFlag::S_IFLNK {
        header.set_entry_type(tar::EntryType::Symlink);
        return builder.append_link(&mut header, name, readlinkat(peek, "")?);
    }
    header.set_entry_type(match kind {
        SFlag::S_IFIFO => tar::EntryType::Fifo,
        SFlag::S_IFCHR => tar::EntryType::Char,
        SFlag::S_IFBLK => tar::EntryType::Block,
        // Sockets can't be archived.
        _ => return Ok(()),
    });
    let number = |value: u64| u32::try_from(value).map_err(io::Error::other);
    header.set_device_major(number(nix::sys::stat::major(stat.st_rdev))?)?;
    header.set_device_minor(number(nix::sys::stat::minor(stat.st_rdev))?)?;
    builder.append_data(&mut header, name, io::empty())
}

fn pack_dir(builder: &mut Packer, fd: OwnedFd, name: &Path, depth: usize) -> io::Result<()> {
    let reader = fd.try_clone()?;
    let mut dir = nix::dir::Dir::from_fd(reader)?;
    for entry in dir.iter() {
        let entry = entry?;
        let file = entry.file_name();
        if matches!(file.to_bytes(), b"." | b"..") {
            continue;
        }
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let peek = openat(fd.as_fd(), file, flags, Mode::empty())?;
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let open = || Ok(openat(fd.as_fd(), file, flags, Mode::empty())?);
        let inner = name.join(std::ffi::OsStr::new(&*file.to_string_lossy()));
        pack_entry(builder, &peek, open, &inner, depth + 1)?;
    }
    Ok(())
}

/// Unpacks a tar stream into a directory.
pub(crate) async fn put(
    env: &Arc<Env>,
    info: &Arc<ContainerInfo>,
    path: &str,
    mut tar: impl AsyncRead + Send + Unpin + 'static,
    options: ArchivePutOptions,
) -> Result<()> {
    if info.config.host.read_only_rootfs {
        return Err(EngineError::conflict(
            "container rootfs is marked read-only",
        ));
    }
    let view = view(env, info, true).await?;
    let (sender, receiver) = mpsc::channel::<io::Result<Bytes>>(PIECES_MAX);
    let feeder = tokio::spawn(async move {
        loop {
            let mut piece = vec![0; PIECE_BYTES];
            let piece = match tar.read(&mut piece).await {
                Ok(0) => return,
                Ok(count) => {
                    piece.truncate(count);
                    Ok(Bytes::from(piece))
                }
                Err(err) => Err(err),
            };
            if sender.send(piece).await.is_err() {
                return;
            }
        }
    });
    let (info, path) = (Arc::clone(info), path.to_owned());
    let done = blocking("container files", move || {
        let place = view.open(Path::new(&path))?;
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
        let fd = place
            .root
            .open_inside(&place.path, flags, Mode::empty())
            .map_err(path_error(&info, &path))?;
        let base = Root::from_fd(fd);
        let reader = Feed {
            receiver,
            piece: Bytes::new(),
        };
        unpack(&base, reader, options).map_err(|err| match err.kind() {
            io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput | io::ErrorKind::Other => {
                EngineError::invalid("archive", err.to_string())
            }
            _ => EngineError::disk("unpack into", &path)(err),
        })
    })
    .await;
    feeder.abort();
    done
}

/// The receiving end as a blocking reader.
struct Feed {
    receiver: mpsc::Receiver<io::Result<Bytes>>,
    piece: Bytes,
}

impl io::Read for Feed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            match self.receiver.blocking_recv() {
                None => return Ok(0),
                Some(piece) => self.piece = piece?,
            }
        }
        let count = buffer.len().min(self.piece.len());
        buffer[..count].copy_from_slice(&self.piece.split_to(count));
        Ok(count)
    }
}

/// The largest zstd window that is accepted, as a power of two: 128 MiB, the format's own recommendation.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;
/// Bytes that tell how an archive is compressed.
const MAGIC_BYTES: u64 = 6;

/// The tar inside: plain, gzip or zstd. Docker also knows bzip2 and xz, which are refused by name.
fn decompressed(mut source: impl io::Read + 'static) -> io::Result<Box<dyn io::Read>> {
    let mut magic = Vec::new();
    io::Read::take(&mut source, MAGIC_BYTES).read_to_end(&mut magic)?;
    let whole = io::BufReader::with_capacity(
        PIECE_BYTES,
        io::Read::chain(io::Cursor::new(magic.clone()), source),
    );
    let refuse = |name: &str| {
        let text =
            format!("it is compressed with {name}, which is not supported (gzip and zstd are)");
        Err(io::Error::new(io::ErrorKind::InvalidData, text))
    };
    match *magic {
        [0x1f, 0x8b, ..] => Ok(Box::new(flate2::bufread::MultiGzDecoder::new(whole))),
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(whole)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
            Ok(Box::new(decoder))
        }
        [b'B', b'Z', b'h', b'1'..=b'9', ..] => refuse("bzip2"),
        [0xfd, b'7', b'z', b'X', b'Z', 0] => refuse("xz"),
        _ => Ok(Box::new(whole)),
    }
}

fn unpack(base: &Root, reader: Feed, options: ArchivePutOptions) -> io::Result<()> {
    let mut archive = tar::Archive::new(decompressed(reader)?);
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = normal(&entry.path()?);
        let Some(name) = path.file_name() else {
            continue;
        };
        let parent = open_parents(base, path.parent().unwrap_or(Path::new("/")))?;
        unpack_entry(base, &parent, Path::new(name), &mut entry, options)?;
    }
    Ok(())
}

fn open_parents(base: &Root, path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
    match base.open_inside(path, flags, Mode::empty()) {
        Err(err) if err.kind() == io::ErrorKind::NotFound => {
            let above = open_parents(base, path.parent().unwrap_or(Path::new("/")))?;
            let name = path.file_name().ok_or(err)?;
            nix::sys::stat::mkdirat(&above, name, Mode::from_bits_truncate(0o755))?;
            base.open_inside(path, flags, Mode::empty())
        }
        other => other,
    }
}

fn unpack_entry(
    base: &Root,
    parent: &OwnedFd,
    name: &Path,
    entry: &mut tar::Entry<'_, Box<dyn io::Read>>,
    options: ArchivePutOptions,
) -> io::Result<()> {
    let header = entry.header().clone();
    let mode = Mode::from_bits_truncate(header.mode()? & 0o7777);
    let kind = header.entry_type();
    clear_way(parent, name, kind.is_dir(), options)?;
    match kind {
        tar::EntryType::Directory => match nix::sys::stat::mkdirat(parent, name, mode) {
            Ok(()) | Err(nix::errno::Errno::EEXIST) => {}
            Err(errno) => return Err(errno.into()),
        },
        tar::EntryType::Regular | tar::EntryType::Continuous | tar::EntryType::GNUSparse => {
            let flags = OFlag::O_WRONLY
                | OFlag::O_CREAT
                | OFlag::O_EXCL
                | OFlag::O_NOFOLLOW
                | OFlag::O_CLOEXEC;
            let mut file = File::from(openat(parent, name, flags, mode)?);
            io::copy(entry, &mut file)?;
        }
        tar::EntryType::Symlink => {
            let target = entry
                .link_name()?
                .ok_or_else(|| io::Error::other("a symbolic link has no target"))?;
            symlinkat(target.as_os_str(), parent, name)?;
        }
        tar::EntryType::Link => {
            let target = entry
                .link_name()?
                .ok_or_else(|| io::Error::other("a hard link has no target"))?;
            let target = normal(&target);
            let above = base.open_inside(
                target.parent().unwrap_or(Path::new("/")),
                OFlag::O_RDONLY | OFlag::O_DIRECTORY,
                Mode::empty(),
            )?;
            let file = target
                .file_name()
                .ok_or_else(|| io::Error::other("a hard link has no target"))?;
            nix::unistd::linkat(&above, file, parent, name, nix::fcntl::AtFlags::empty())?;
            return Ok(());
        }
        tar::EntryType::Fifo | tar::EntryType::Char | tar::EntryType::Block => {
            let kind = match kind {
                tar::EntryType::Fifo => SFlag::S_IFIFO,
                tar::EntryType::Char => SFlag::S_IFCHR,
                _ => SFlag::S_IFBLK,
            };
            let number =
                |part: io::Result<Option<u32>>| Ok::<_, io::Error>(u64::from(part?.unwrap_or(0)));
            let device = nix::sys::stat::makedev(
                number(header.device_major())?,
                number(header.device_minor())?,
            );
            nix::sys::stat::mknodat(parent, name, kind, mode, device)?;
        }
        // Long names and attributes are taken in by the reader itself.
        _ => return Ok(()),
    }
    set_metadata(parent, name, &header, mode, options)
}

/// Removes what is in the way of an entry.
fn clear_way(
    parent: &OwnedFd,
    name: &Path,
    is_dir: bool,
    options: ArchivePutOptions,
) -> io::Result<()> {
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let there = match openat(parent, name, flags, Mode::empty()) {
        Ok(fd) => fstat(&fd)?,
        Err(nix::errno::Errno::ENOENT) => return Ok(()),
        Err(errno) => return Err(errno.into()),
    };
    let was_dir = there.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFDIR.bits();
    if was_dir != is_dir && options.no_overwrite_dir_non_dir {
        let (new, old) = if is_dir {
            ("directory", "non-directory")
        } else {
            ("non-directory", "directory")
        };
        return Err(io::Error::other(format!(
            "cannot overwrite {old} `{}` with {new}",
            name.display()
        )));
    }
    if was_dir && is_dir {
        return Ok(());
    }
    let flag = if was_dir {
        nix::unistd::UnlinkatFlags::RemoveDir
    } else {
        nix::unistd::UnlinkatFlags::NoRemoveDir
    };
    Ok(nix::unistd::unlinkat(parent, name, flag)?)
}

fn set_metadata(
    parent: &OwnedFd,
    name: &Path,
    header: &tar::Header,
    mode: Mode,
    options: ArchivePutOptions,
) -> io::Result<()> {
    let id = |value: u64| u32::try_from(value).map_err(io::Error::other);
    let (uid, gid) = if options.copy_uid_gid {
        (id(header.uid()?)?, id(header.gid()?)?)
    } else {
        (0, 0)
    };
    let no_follow = nix::fcntl::AtFlags::AT_SYMLINK_NOFOLLOW;
    fchownat(
        parent,
        name,
        Some(Uid::from_raw(uid)),
        Some(Gid::from_raw(gid)),
        no_follow,
    )?;
    if !header.entry_type().is_symlink() {
        // Changing the owner clears the set-user-ID bit, and creation obeys the umask.
        nix::sys::stat::fchmodat(
            parent,
            name,
            mode,
            nix::sys::stat::FchmodatFlags::FollowSymlink,
        )?;
    }
    let seconds = i64::try_from(header.mtime()?).unwrap_or(i64::MAX);
    let time = nix::sys::time::TimeSpec::new(seconds, 0);
    nix::sys::stat::utimensat(
        parent,
        name,
        &time,
        &time,
        nix::sys::stat::UtimensatFlags::NoFollowSymlink,
    )?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_never_climb_out() {
        for (path, expected) in [
            ("../../x", "/x"),
            ("/a/./b/../c", "/a/c"),
            ("", "/"),
            ("/..", "/"),
        ] {
            assert_eq!(normal(Path::new(path)), Path::new(expected), "{path}");
        }
    }
}
