//! Control groups: cgroup v1 and hybrid hosts (one hierarchy per controller) and v2 hosts (one for all).
//!
//! Both kinds turn OCI resources into a list of (file, value) first, by pure functions, and then write them. On a
//! hybrid host the v1 hierarchies are used: they have the controllers.

mod devices;
mod v1;
mod v2;

use crate::Stats;
use nix::errno::Errno;
use nix::sys::statfs::{CGROUP_SUPER_MAGIC, CGROUP2_SUPER_MAGIC, statfs};
use oci_spec::runtime::LinuxResources;
use std::fs;
use std::io::{self, Write as _};
use std::os::fd::RawFd;
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, Instant};

/// Where every distribution mounts control groups.
pub(crate) const CGROUP_ROOT: &str = "/sys/fs/cgroup";

/// How long the kernel may take to freeze, or to let go of an empty group.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(5);

/// The pause between two looks while waiting for that.
const SETTLE_PAUSE: Duration = Duration::from_millis(1);

/// Why a limit or a group can't be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CgroupError {
    #[error("failed to {attempt} `{path}`: {}", crate::failure::describe(*errno))]
    Kernel {
        attempt: &'static str,
        path: PathBuf,
        errno: i32,
    },
    #[error("linux.cgroupsPath: `{0}` must not contain `..`")]
    BadPath(PathBuf),
    #[error("linux.resources.{0} is not supported on this host")]
    Unsupported(&'static str),
    #[error("no control groups are mounted at `{CGROUP_ROOT}`")]
    NotMounted,
    #[error("the processes in `{0}` could not be frozen in time")]
    NotFrozen(PathBuf),
}

impl CgroupError {
    fn io(attempt: &'static str, path: &Path, error: &io::Error) -> Self {
        Self::Kernel {
            attempt,
            path: path.to_owned(),
            errno: error.raw_os_error().unwrap_or(libc::EIO),
        }
    }

    /// The kernel's error number, if it was the kernel.
    pub(crate) fn errno(&self) -> Option<i32> {
        match self {
            Self::Kernel { errno, .. } => Some(*errno),
            Self::BadPath(_) | Self::Unsupported(_) | Self::NotMounted | Self::NotFrozen(_) => None,
        }
    }
}

/// A file of a control group and what to write into it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Setting {
    /// The v1 controller; unused for v2.
    controller: &'static str,
    file: String,
    value: String,
    /// The file exists only on some kernels, and its absence does no harm.
    optional: bool,
}

/// How control groups are mounted on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Layout {
    /// Controller and mount point of each hierarchy.
    V1(Vec<(&'static str, PathBuf)>),
    V2(PathBuf),
}

impl Layout {
    /// Looks at what is mounted below `root`.
    pub(crate) fn detect(root: &Path) -> Result<Self, CgroupError> {
        let magic = |path: &Path| statfs(path).ok().map(|s| s.filesystem_type());
        match magic(root) {
            Some(CGROUP2_SUPER_MAGIC) => return Ok(Self::V2(root.to_owned())),
            Some(_) => {}
            None => return Err(CgroupError::NotMounted),
        }
        let found: Vec<_> = v1::CONTROLLERS
            .into_iter()
            .map(|name| (name, root.join(name)))
            .filter(|(_, path)| magic(path) == Some(CGROUP_SUPER_MAGIC))
            .collect();
        if found.is_empty() {
            return Err(CgroupError::NotMounted);
        }
        Ok(Self::V1(found))
    }
}

/// The control groups of one container.
#[derive(Debug)]
pub(crate) struct Cgroup {
    layout: Layout,
    /// Below the root of each hierarchy.
    path: PathBuf,
    /// v1: controllers in which a group is made.
    used: Vec<&'static str>,
}

impl Cgroup {
    /// Plans the groups at `path` below every hierarchy's root; nothing is made yet.
    pub(crate) fn plan(
        layout: Layout,
        path: &Path,
        resources: Option<&LinuxResources>,
    ) -> Result<Self, CgroupError> {
        if path.components().any(|c| matches!(c, Component::ParentDir)) {
            return Err(CgroupError::BadPath(path.to_owned()));
        }
        let path = path.strip_prefix("/").unwrap_or(path).to_owned();
        let used = match &layout {
            Layout::V1(mounts) => v1::used(mounts, resources),
            Layout::V2(_) => Vec::new(),
        };
        Ok(Self { layout, path, used })
    }

    /// Every directory that belongs to the container alone.
    pub(crate) fn dirs(&self) -> Vec<PathBuf> {
        match &self.layout {
            Layout::V1(_) => self.used.iter().filter_map(|name| self.dir(name)).collect(),
            Layout::V2(root) => vec![root.join(&self.path)],
        }
    }

    /// v1: the directory of a controller. v2: the directory.
    fn dir(&self, controller: &str) -> Option<PathBuf> {
        match &self.layout {
            Layout::V1(mounts) => mounts
                .iter()
                .find(|(name, _)| *name == controller)
                .map(|(_, mount)| mount.join(&self.path)),
            Layout::V2(root) => Some(root.join(&self.path)),
        }
    }

    /// Hierarchies and their mount points, for mounting inside the container.
    pub(crate) fn layout(&self) -> &Layout {
        &self.layout
    }

    /// v2: makes the group, in which processes can then be born: the kernel needs no lock over all processes of the
    /// machine for that. v1: nothing, and `None`.
    pub(crate) fn birth_group(&self) -> Result<Option<fs::File>, CgroupError> {
        let Layout::V2(root) = &self.layout else {
            return Ok(None);
        };
        let dir = root.join(&self.path);
        match fs::File::open(&dir) {
            Ok(file) => return Ok(Some(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(CgroupError::io("open", &dir, &error)),
        }
        v2::enable_controllers(root, &self.path)?;
        make_dir(&dir)?;
        open_dir(&dir).map(Some)
    }

    /// v1: makes the groups. Both: sets the limits.
    pub(crate) fn create(&self, resources: Option<&LinuxResources>) -> Result<(), CgroupError> {
        if let Layout::V1(mounts) = &self.layout {
            for dir in self.dirs() {
                make_dir(&dir)?;
            }
            if self.used.contains(&"cpuset") {
                v1::inherit_cpuset(mounts, &self.path)?;
            }
        }
        match resources {
            Some(resources) => self.apply(resources, true),
            None => Ok(()),
        }
    }

    /// Changes limits.
    pub(crate) fn update(&mut self, resources: &LinuxResources) -> Result<(), CgroupError> {
        if let Layout::V1(mounts) = &self.layout
            && v1::used(mounts, Some(resources)).contains(&"cpuset")
            && !self.used.contains(&"cpuset")
        {
            let pids = self.pids()?;
            self.used.push("cpuset");
            if let Some(dir) = self.dir("cpuset") {
                make_dir(&dir)?;
                v1::inherit_cpuset(mounts, &self.path)?;
                for pid in pids {
                    write(&dir.join("cgroup.procs"), &pid.to_string())?;
                }
            }
        }
        self.apply(resources, false)
    }

    fn apply(&self, resources: &LinuxResources, first: bool) -> Result<(), CgroupError> {
        let settings = match &self.layout {
            Layout::V1(_) => v1::settings(resources)?,
            Layout::V2(_) => v2::settings(resources)?,
        };
        let mut refused: Vec<(PathBuf, String, CgroupError)> = Vec::new();
        for setting in settings {
            let Some(dir) = self.dir(setting.controller) else {
                if setting.optional {
                    continue;
                }
                return Err(CgroupError::Unsupported(setting.controller));
            };
            let path = dir.join(&setting.file);
            match write(&path, &setting.value) {
                Ok(()) => {}
                Err(error) if setting.optional && error.errno() == Some(libc::ENOENT) => {}
                Err(error) => refused.push((path, setting.value, error)),
            }
        }
        // Memory and memory+swap bound each other: what was refused before the other was set may be taken now.
        for (path, value, first_error) in refused {
            write(&path, &value).map_err(|_| first_error)?;
        }
        if first && matches!(self.layout, Layout::V2(_)) {
            let rules = resources.devices().as_deref().unwrap_or_default();
            if let Some(dir) = self.dir("") {
                devices::attach(&dir, rules)?;
            }
        }
        Ok(())
    }

    /// v1: the files by which a process with one thread enters every group; it writes "0" into each. v2: none.
    pub(crate) fn entrances(&self) -> Result<Vec<fs::File>, CgroupError> {
        let Layout::V1(_) = &self.layout else {
            return Ok(Vec::new());
        };
        let open = |dir: PathBuf| {
            let path = dir.join("tasks");
            let opened = fs::OpenOptions::new().write(true).open(&path);
            opened.map_err(|error| CgroupError::io("open", &path, &error))
        };
        self.dirs().into_iter().map(open).collect()
    }

    /// The processes of the container.
    pub(crate) fn pids(&self) -> Result<Vec<i32>, CgroupError> {
        let Some(dir) = self.dirs().into_iter().next() else {
            return Ok(Vec::new());
        };
        read_pids(&dir).map_err(|error| CgroupError::io("read the processes of", &dir, &error))
    }

    /// Freezes or thaws, and waits until it is done.
    pub(crate) fn freeze(&self, frozen: bool) -> Result<(), CgroupError> {
        let (dir, file, value, event) = match &self.layout {
            Layout::V1(_) => {
                let dir = self
                    .dir("freezer")
                    .ok_or(CgroupError::Unsupported("freezer"))?;
                let value = if frozen { "FROZEN" } else { "THAWED" };
                (dir, "freezer.state", value, "freezer.state")
            }
            Layout::V2(root) => {
                let value = if frozen { "1" } else { "0" };
                (
                    root.join(&self.path),
                    "cgroup.freeze",
                    value,
                    "cgroup.events",
                )
            }
        };
        let expected = match (&self.layout, frozen) {
            (Layout::V1(_), _) => value.to_owned(),
            (Layout::V2(_), _) => format!("frozen {value}"),
        };
        let start = Instant::now();
        loop {
            // v1 wants to be asked again while a process forks.
            write(&dir.join(file), value)?;
            let path = dir.join(event);
            let state = fs::read_to_string(&path)
                .map_err(|error| CgroupError::io("read", &path, &error))?;
            if state.lines().any(|line| line == expected) {
                return Ok(());
            }
            if start.elapsed() > SETTLE_TIMEOUT {
                return Err(CgroupError::NotFrozen(dir));
            }
            std::thread::sleep(SETTLE_PAUSE);
        }
    }

    /// Whether the out-of-memory killer took a process of the container.
    pub(crate) fn oom_killed(&self) -> bool {
        self.stats().is_ok_and(|stats| stats.memory.oom_kills > 0)
    }

    /// Reads all counters; those of controllers that are not there stay zero.
    pub(crate) fn stats(&self) -> Result<Stats, CgroupError> {
        Ok(match &self.layout {
            Layout::V1(_) => v1::stats(|controller| self.dir(controller)),
            Layout::V2(root) => v2::stats(&root.join(&self.path)),
        })
    }
}

/// Kills what is in `dirs` and removes them. Directories that are gone already are fine.
pub(crate) fn remove_dirs(dirs: &[PathBuf]) -> io::Result<()> {
    let start = Instant::now();
    for dir in dirs {
        loop {
            match fs::remove_dir(dir) {
                Ok(()) => break,
                Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                    if start.elapsed() > SETTLE_TIMEOUT {
                        return Err(error);
                    }
                    kill_in(dir)?;
                    std::thread::sleep(SETTLE_PAUSE);
                }
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}

/// Sends SIGKILL to every process in `dir`, and thaws it: on v1 a frozen process does not die.
fn kill_in(dir: &Path) -> io::Result<()> {
    let state = dir.join("freezer.state");
    if state.exists() {
        fs::write(&state, "THAWED")?;
    }
    for pid in read_pids(dir)? {
        let pid = nix::unistd::Pid::from_raw(pid);
        match nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL) {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

fn read_pids(dir: &Path) -> io::Result<Vec<i32>> {
    match fs::read_to_string(dir.join("cgroup.procs")) {
        Ok(text) => Ok(text
            .lines()
            .filter_map(|line| line.parse().ok())
            .filter(|p| *p > 0)
            .collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        // The group is being removed.
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// Makes `dir`; parents only when they are missing, which is rare.
fn make_dir(dir: &Path) -> Result<(), CgroupError> {
    let result = match fs::create_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => fs::create_dir_all(dir),
        other => other,
    };
    match result {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(CgroupError::io("make the control group", dir, &error)),
    }
}

fn write(path: &Path, value: &str) -> Result<(), CgroupError> {
    fs::OpenOptions::new()
        .write(true)
        .open(path)
        .and_then(|mut file| file.write_all(value.as_bytes()))
        .map_err(|error| CgroupError::io("write", path, &error))
}

/// The lines of a `key value` file as pairs.
fn flat_keyed(text: &str) -> impl Iterator<Item = (&str, u64)> {
    text.lines().filter_map(|line| {
        let (key, value) = line.split_once(' ')?;
        Some((key, value.trim().parse().ok()?))
    })
}

fn value_of(text: &str, key: &str) -> u64 {
    flat_keyed(text)
        .find(|(k, _)| *k == key)
        .map_or(0, |(_, value)| value)
}

fn read_text(path: &Path) -> String {
    // A counter that is not there counts as zero.
    fs::read_to_string(path).unwrap_or_default()
}

fn read_number(path: &Path) -> u64 {
    read_text(path).trim().parse().unwrap_or(0)
}

/// Opens a directory for system calls that want a descriptor.
fn open_dir(dir: &Path) -> Result<fs::File, CgroupError> {
    fs::File::open(dir).map_err(|error| CgroupError::io("open", dir, &error))
}

fn raw(file: &fs::File) -> RawFd {
    std::os::fd::AsRawFd::as_raw_fd(file)
}
