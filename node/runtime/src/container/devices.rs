//! Device nodes, links in `/dev`, and paths that are hidden or made read-only.

use super::sys::{SysResult, mount_setattr, move_mount, open_tree};
use crate::{Failure, Stage};
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nix::unistd::{Gid, Uid, chown, symlinkat};
use oci_spec::runtime::{LinuxDevice, LinuxDeviceType};
use std::fs;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};

/// Nodes that every container has: name, major, minor.
const DEFAULT_NODES: [(&str, u64, u64); 6] = [
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];

/// Links that every container has: name, target.
const DEFAULT_LINKS: [(&str, &str); 5] = [
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
    ("/dev/ptmx", "pts/ptmx"),
];

fn failed(what: &str, path: &Path, errno: Errno) -> Failure {
    Failure::os(
        Stage::Devices,
        format_args!("{what} `{}`", path.display()),
        errno as i32,
    )
}

/// Copies of the host's nodes, taken before its root is gone: in a user namespace nodes can't be made.
pub(super) struct HostNodes(Vec<(PathBuf, OwnedFd)>);

impl HostNodes {
    pub(super) fn open(extra: &[LinuxDevice]) -> Result<Self, Failure> {
        let names = DEFAULT_NODES.iter().map(|(name, ..)| PathBuf::from(name));
        let names = names.chain(extra.iter().map(|device| device.path().clone()));
        let open = |path: PathBuf| match open_tree(&path, false) {
            Ok(tree) => Ok((path, tree)),
            Err(errno) => Err(failed("open the host's device", &path, errno)),
        };
        names.map(open).collect::<Result<_, _>>().map(Self)
    }
}

/// Makes nodes and links below `/dev`.
pub(super) fn make_all(extra: &[LinuxDevice], host: Option<&HostNodes>) -> Result<(), Failure> {
    match host {
        None => {
            for (name, major, minor) in DEFAULT_NODES {
                let node = Node {
                    kind: SFlag::S_IFCHR,
                    mode: 0o666,
                    device: makedev(major, minor),
                    owner: (0, 0),
                };
                make_node(Path::new(name), &node)?;
            }
            for device in extra {
                make_node(device.path(), &node_of(device)?)?;
            }
        }
        Some(HostNodes(nodes)) => {
            for (path, tree) in nodes {
                super::mounts::make_mount_point(path, false)
                    .and_then(|()| move_mount(tree.as_fd(), path))
                    .map_err(|errno| failed("bind the host's device", path, errno))?;
            }
        }
    }
    for (name, target) in DEFAULT_LINKS {
        match symlinkat(target, nix::fcntl::AT_FDCWD, name) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(errno) => return Err(failed("make the link", Path::new(name), errno)),
        }
    }
    Ok(())
}

struct Node {
    kind: SFlag,
    mode: u32,
    device: u64,
    owner: (u32, u32),
}

fn node_of(device: &LinuxDevice) -> Result<Node, Failure> {
    let kind = match device.typ() {
        LinuxDeviceType::B => SFlag::S_IFBLK,
        LinuxDeviceType::C | LinuxDeviceType::U => SFlag::S_IFCHR,
        LinuxDeviceType::P => SFlag::S_IFIFO,
        LinuxDeviceType::A => {
            return Err(failed(
                "make the device of type `a`",
                device.path(),
                Errno::EINVAL,
            ));
        }
    };
    Ok(Node {
        kind,
        mode: device.file_mode().unwrap_or(0o666) & 0o7777,
        device: makedev(device.major().unsigned_abs(), device.minor().unsigned_abs()),
        owner: (device.uid().unwrap_or(0), device.gid().unwrap_or(0)),
    })
}

fn make_node(path: &Path, node: &Node) -> Result<(), Failure> {
    let make = || {
        mknod(
            path,
            node.kind,
            Mode::from_bits_truncate(node.mode),
            node.device,
        )
    };
    let result = match make() {
        Err(Errno::ENOENT) => {
            if let Some(parent) = path.parent() {
                make_dirs(parent).map_err(|errno| failed("make", parent, errno))?;
            }
            make()
        }
        // An image may bring a node of that name; the configuration decides what it is.
        Err(Errno::EEXIST) => {
            fs::remove_file(path).map_err(|error| {
                failed(
                    "replace",
                    path,
                    Errno::from_raw(error.raw_os_error().unwrap_or(0)),
                )
            })?;
            make()
        }
        other => other,
    };
    result.map_err(|errno| failed("make the device", path, errno))?;
    if node.owner != (0, 0) {
        chown(
            path,
            Some(Uid::from_raw(node.owner.0)),
            Some(Gid::from_raw(node.owner.1)),
        )
        .map_err(|errno| failed("change the owner of", path, errno))?;
    }
    Ok(())
}

fn make_dirs(path: &Path) -> SysResult<()> {
    fs::create_dir_all(path)
        .map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)))
}

/// Puts the container's terminal at `/dev/console`.
pub(super) fn bind_console(number: u32) -> Result<(), Failure> {
    let console = Path::new("/dev/console");
    let terminal = format!("/dev/pts/{number}");
    super::mounts::make_mount_point(console, false)
        .and_then(|()| {
            mount(
                Some(terminal.as_str()),
                console,
                None::<&str>,
                MsFlags::MS_BIND,
                None::<&str>,
            )
        })
        .map_err(|errno| failed("bind the terminal to", console, errno))
}

/// Hides paths: an empty read-only directory, or the null device, lies over each. Paths that do not exist are fine.
pub(super) fn mask(paths: &[String]) -> Result<(), Failure> {
    let failed = |path: &str, errno: Errno| {
        Failure::os(Stage::Kernel, format_args!("hide `{path}`"), errno as i32)
    };
    // One empty directory for all: a file system costs more than a further mount of it.
    let mut empty: Option<&str> = None;
    for path in paths {
        let meta = match fs::metadata(path) {
            Ok(meta) => meta,
            Err(_) => continue,
        };
        let result = if !meta.is_dir() {
            let null = Some("/dev/null");
            mount(
                null,
                path.as_str(),
                None::<&str>,
                MsFlags::MS_BIND,
                None::<&str>,
            )
        } else if let Some(first) = empty {
            // A bind has the flags of what it copies.
            mount(
                Some(first),
                path.as_str(),
                None::<&str>,
                MsFlags::MS_BIND,
                None::<&str>,
            )
        } else {
            empty = Some(path);
            let kind = Some("tmpfs");
            let options = Some("nr_blocks=1,nr_inodes=1");
            mount(kind, path.as_str(), kind, MsFlags::MS_RDONLY, options)
        };
        match result {
            Ok(()) | Err(Errno::ENOENT | Errno::ENOTDIR) => {}
            Err(errno) => return Err(failed(path, errno)),
        }
    }
    Ok(())
}

/// Makes paths read-only. Paths that do not exist are fine.
pub(super) fn make_readonly(paths: &[String]) -> Result<(), Failure> {
    for path in paths {
        let path = Path::new(path);
        let result = open_tree(path, true).and_then(|tree| {
            mount_setattr(tree.as_fd(), true, libc::MOUNT_ATTR_RDONLY, 0)?;
            move_mount(tree.as_fd(), path)
        });
        match result {
            Ok(()) | Err(Errno::ENOENT | Errno::ENOTDIR) => {}
            Err(errno) => {
                return Err(Failure::os(
                    Stage::Kernel,
                    format_args!("make `{}` read-only", path.display()),
                    errno as i32,
                ));
            }
        }
    }
    Ok(())
}
