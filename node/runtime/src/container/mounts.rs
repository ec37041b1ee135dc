//! What `mounts` lists: binds are copied as trees before the root changes, so that no path of the container can
//! lead a source or a target astray; everything else is mounted in place.

use super::sys::{SysResult, mount_setattr, move_mount, open_tree};
use crate::cgroup::Layout;
use crate::{Failure, Stage};
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use oci_spec::runtime::Mount;
use std::fs;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};

/// The options of one mount, sorted out.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Options {
    bind: bool,
    recursive: bool,
    /// MOUNT_ATTR_* bits.
    set: u64,
    clear: u64,
    propagation: Option<MsFlags>,
    /// What is left for the file system itself.
    data: String,
}

const RDONLY: u64 = libc::MOUNT_ATTR_RDONLY;
const NOSUID: u64 = libc::MOUNT_ATTR_NOSUID;
const NODEV: u64 = libc::MOUNT_ATTR_NODEV;
const NOEXEC: u64 = libc::MOUNT_ATTR_NOEXEC;
const NOATIME: u64 = libc::MOUNT_ATTR_NOATIME;
const STRICTATIME: u64 = libc::MOUNT_ATTR_STRICTATIME;
const NODIRATIME: u64 = libc::MOUNT_ATTR_NODIRATIME;
const ATIME_MASK: u64 = libc::MOUNT_ATTR__ATIME;

fn parse(mount: &Mount) -> Options {
    let mut options = Options::default();
    let mut data: Vec<&str> = Vec::new();
    options.bind = mount.typ().as_deref() == Some("bind");
    for word in mount.options().iter().flatten() {
        let (set, clear) = match word.as_str() {
            "defaults" | "rw" => (0, RDONLY),
            "ro" | "rro" => (RDONLY, 0),
            "nosuid" => (NOSUID, 0),
            "suid" => (0, NOSUID),
            "nodev" => (NODEV, 0),
            "dev" => (0, NODEV),
            "noexec" => (NOEXEC, 0),
            "exec" => (0, NOEXEC),
            "nodiratime" => (NODIRATIME, 0),
            "diratime" => (0, NODIRATIME),
            "noatime" => (NOATIME, ATIME_MASK),
            "strictatime" => (STRICTATIME, ATIME_MASK),
            "relatime" | "atime" => (0, ATIME_MASK),
            "bind" => {
                options.bind = true;
                continue;
            }
            "rbind" => {
                options.bind = true;
                options.recursive = true;
                continue;
            }
            other => {
                match propagation(other) {
                    Some(flags) => options.propagation = Some(flags),
                    None => data.push(other),
                }
                continue;
            }
        };
        options.set = options.set & !clear | set;
        options.clear = options.clear & !set | clear;
    }
    options.data = data.join(",");
    options
}

fn propagation(word: &str) -> Option<MsFlags> {
    Some(match word {
        "private" => MsFlags::MS_PRIVATE,
        "rprivate" => MsFlags::MS_PRIVATE | MsFlags::MS_REC,
        "slave" => MsFlags::MS_SLAVE,
        "rslave" => MsFlags::MS_SLAVE | MsFlags::MS_REC,
        "shared" => MsFlags::MS_SHARED,
        "rshared" => MsFlags::MS_SHARED | MsFlags::MS_REC,
        "unbindable" => MsFlags::MS_UNBINDABLE,
        "runbindable" => MsFlags::MS_UNBINDABLE | MsFlags::MS_REC,
        _ => return None,
    })
}

fn flags_of(set: u64) -> MsFlags {
    [
        (RDONLY, MsFlags::MS_RDONLY),
        (NOSUID, MsFlags::MS_NOSUID),
        (NODEV, MsFlags::MS_NODEV),
        (NOEXEC, MsFlags::MS_NOEXEC),
        (NOATIME, MsFlags::MS_NOATIME),
        (STRICTATIME, MsFlags::MS_STRICTATIME),
        (NODIRATIME, MsFlags::MS_NODIRATIME),
    ]
    .into_iter()
    .filter(|(bit, _)| set & bit != 0)
    .fold(MsFlags::empty(), |flags, (_, flag)| flags | flag)
}

/// A mount whose source has been opened.
pub(super) struct Prepared {
    destination: PathBuf,
    options: Options,
    source: Source,
}

enum Source {
    Tree { tree: OwnedFd, is_dir: bool },
    FileSystem { kind: String, source: PathBuf },
    Cgroup(Vec<CgroupTree>),
}

/// One hierarchy for `/sys/fs/cgroup`: its name there and, without a cgroup namespace, the container's own part.
struct CgroupTree {
    name: &'static str,
    tree: Option<OwnedFd>,
}

fn failed(what: impl std::fmt::Display, errno: Errno) -> Failure {
    Failure::os(Stage::Mounts, what, errno as i32)
}

/// Opens the sources, while the host's paths are still there.
pub(super) fn prepare(
    mounts: &[Mount],
    layout: &Layout,
    own_cgroups: &[PathBuf],
    cgroup_namespace: bool,
) -> Result<Vec<Prepared>, Failure> {
    let prepare_one = |mount: &Mount| {
        let options = parse(mount);
        let source = mount.source().clone().unwrap_or_default();
        let kind = mount.typ().clone().unwrap_or_default();
        let source = if options.bind {
            if !options.data.is_empty() {
                return Err(Failure::new(
                    Stage::Mounts,
                    format!(
                        "mount of `{}`: option `{}` is not supported for a bind",
                        mount.destination().display(),
                        options.data
                    ),
                ));
            }
            open_source(&source, &options)?
        } else if kind == "cgroup" || kind == "cgroup2" {
            Source::Cgroup(cgroup_trees(layout, own_cgroups, cgroup_namespace)?)
        } else {
            Source::FileSystem { kind, source }
        };
        Ok(Prepared {
            destination: mount.destination().clone(),
            options,
            source,
        })
    };
    mounts.iter().map(prepare_one).collect()
}

fn open_source(source: &Path, options: &Options) -> Result<Source, Failure> {
    let meta = fs::metadata(source).map_err(|error| {
        let errno = Errno::from_raw(error.raw_os_error().unwrap_or(0));
        failed(
            format_args!("bind source path `{}`", source.display()),
            errno,
        )
    })?;
    let tree = open_tree(source, options.recursive).map_err(|errno| {
        failed(
            format_args!("copy the mounts at `{}`", source.display()),
            errno,
        )
    })?;
    if options.set | options.clear != 0 {
        mount_setattr(tree.as_fd(), options.recursive, options.set, options.clear).map_err(
            |errno| {
                failed(
                    format_args!("set the options of `{}`", source.display()),
                    errno,
                )
            },
        )?;
    }
    Ok(Source::Tree {
        tree,
        is_dir: meta.is_dir(),
    })
}

fn cgroup_trees(
    layout: &Layout,
    own: &[PathBuf],
    namespace: bool,
) -> Result<Vec<CgroupTree>, Failure> {
    let open = |name: &'static str, mount: &Path| {
        let own = own.iter().find(|dir| dir.starts_with(mount));
        let tree = match own {
            Some(dir) if !namespace => Some(open_tree(dir, false).map_err(|errno| {
                failed(
                    format_args!("open the control group `{}`", dir.display()),
                    errno,
                )
            })?),
            _ => None,
        };
        Ok(CgroupTree { name, tree })
    };
    match layout {
        Layout::V2(root) => Ok(vec![open("", root)?]),
        Layout::V1(mounts) => mounts
            .iter()
            .filter(|(_, mount)| namespace || own.iter().any(|dir| dir.starts_with(mount)))
            .map(|(name, mount)| open(name, mount))
            .collect(),
    }
}

/// Mounts everything in order. `before_cgroups` runs before the first control group is mounted.
pub(super) fn mount_all(
    prepared: Vec<Prepared>,
    mut before_cgroups: impl FnMut() -> Result<(), Failure>,
) -> Result<(), Failure> {
    for entry in prepared {
        if matches!(entry.source, Source::Cgroup(_)) {
            before_cgroups()?;
        }
        let destination = entry.destination.clone();
        mount_one(entry)
            .map_err(|errno| failed(format_args!("mount `{}`", destination.display()), errno))?;
    }
    Ok(())
}

fn mount_one(entry: Prepared) -> SysResult<()> {
    let Prepared {
        destination,
        options,
        source,
    } = entry;
    match source {
        Source::Tree { tree, is_dir } => {
            make_mount_point(&destination, is_dir)?;
            move_mount(tree.as_fd(), &destination)?;
        }
        Source::FileSystem { kind, source } => {
            make_mount_point(&destination, true)?;
            let flags = flags_of(options.set);
            let data = Some(options.data.as_str());
            mount(
                Some(&source),
                &destination,
                Some(kind.as_str()),
                flags,
                data,
            )?;
        }
        Source::Cgroup(trees) => {
            make_mount_point(&destination, true)?;
            mount_cgroups(&destination, &trees, flags_of(options.set))?;
        }
    }
    if let Some(propagation) = options.propagation {
        mount(
            None::<&str>,
            &destination,
            None::<&str>,
            propagation,
            None::<&str>,
        )?;
    }
    Ok(())
}

fn mount_cgroups(destination: &Path, trees: &[CgroupTree], flags: MsFlags) -> SysResult<()> {
    if let [CgroupTree { name: "", tree }] = trees {
        return mount_hierarchy(destination, "cgroup2", None, tree.as_ref(), flags);
    }
    let base = flags & !MsFlags::MS_RDONLY;
    mount(
        Some("tmpfs"),
        destination,
        Some("tmpfs"),
        base,
        Some("mode=755"),
    )?;
    for tree in trees {
        let path = destination.join(tree.name);
        nix::unistd::mkdir(&path, nix::sys::stat::Mode::from_bits_truncate(0o755))?;
        mount_hierarchy(&path, "cgroup", Some(tree.name), tree.tree.as_ref(), flags)?;
    }
    if flags.contains(MsFlags::MS_RDONLY) {
        let flags = flags | MsFlags::MS_REMOUNT | MsFlags::MS_BIND;
        mount(None::<&str>, destination, None::<&str>, flags, None::<&str>)?;
    }
    Ok(())
}

fn mount_hierarchy(
    path: &Path,
    kind: &str,
    controller: Option<&str>,
    tree: Option<&OwnedFd>,
    flags: MsFlags,
) -> SysResult<()> {
    match tree {
        Some(tree) => {
            let readonly = if flags.contains(MsFlags::MS_RDONLY) {
                RDONLY
            } else {
                0
            };
            mount_setattr(tree.as_fd(), false, readonly | NOSUID | NODEV | NOEXEC, 0)?;
            move_mount(tree.as_fd(), path)
        }
        None => mount(Some(kind), path, Some(kind), flags, controller),
    }
}

/// Makes what a mount lies on: a directory or an empty file. We are inside the root: no link leads out of it.
pub(super) fn make_mount_point(path: &Path, is_dir: bool) -> SysResult<()> {
    if fs::metadata(path).is_ok() {
        return Ok(());
    }
    let made = if is_dir {
        fs::create_dir_all(path)
    } else {
        let parent = path.parent().unwrap_or(Path::new("/"));
        fs::create_dir_all(parent)
            .and_then(|()| fs::OpenOptions::new().create(true).append(true).open(path))
            .map(drop)
    };
    made.map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec;

    #[test]
    fn options_are_sorted_out() {
        let check = |words: &[&str], set, clear, data: &str| {
            let options = parse(&spec::mount("/x", "tmpfs", "tmpfs", words));
            assert_eq!(
                (options.set, options.clear, options.data.as_str()),
                (set, clear, data)
            );
        };
        check(
            &["nosuid", "nodev", "size=1k", "mode=700"],
            NOSUID | NODEV,
            0,
            "size=1k,mode=700",
        );
        check(&["ro", "rw"], 0, RDONLY, "");
        // The kernel wants the whole field cleared when a part is set.
        check(&["strictatime"], STRICTATIME, ATIME_MASK, "");
        let bind = parse(&spec::mount("/x", "bind", "/y", &["rbind", "ro", "rslave"]));
        assert!(bind.bind && bind.recursive);
        assert_eq!(bind.propagation, Some(MsFlags::MS_SLAVE | MsFlags::MS_REC));
    }
}
