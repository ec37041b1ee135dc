//! The container's first process: new namespaces, root, mounts, kernel settings, then the program.

use super::sync::{self, ChildSide, Message};
use super::sys::{Cloned, clone_process, setns};
use super::{Child, ChildStdio, credentials, devices, mounts, program, rootfs, terminal};
use crate::cgroup::Cgroup;
use crate::seccomp::Program;
use crate::{Failure, ShimSpec, Stage};
use nix::errno::Errno;
use nix::sys::stat::{Mode, umask};
use oci_spec::runtime::{Linux, LinuxNamespaceType, Process, Spec};
use std::fs::{self, File};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// Everything that the first process needs.
#[derive(Debug)]
pub(crate) struct InitContext<'a> {
    pub(crate) spec: &'a Spec,
    pub(crate) shim: &'a ShimSpec,
    pub(crate) bundle: &'a Path,
    pub(crate) cgroup: &'a Cgroup,
    /// The control group to be born in, where there is one for all controllers.
    pub(crate) birth_group: Option<BorrowedFd<'a>>,
    pub(crate) seccomp: Option<&'a Program>,
}

impl InitContext<'_> {
    fn process(&self) -> Result<&Process, Failure> {
        let missing = || Failure::new(Stage::Validate, "process is missing");
        self.spec.process().as_ref().ok_or_else(missing)
    }

    fn linux(&self) -> Result<&Linux, Failure> {
        let missing = || Failure::new(Stage::Validate, "linux is missing");
        self.spec.linux().as_ref().ok_or_else(missing)
    }

    fn root(&self) -> Result<PathBuf, Failure> {
        let missing = || Failure::new(Stage::Validate, "root is missing");
        let root = self.spec.root().as_ref().ok_or_else(missing)?;
        // A relative path counts from the bundle; join keeps an absolute one.
        Ok(self.bundle.join(root.path()))
    }
}

/// The flag of a namespace kind.
fn flag(kind: LinuxNamespaceType) -> i32 {
    match kind {
        LinuxNamespaceType::Mount => libc::CLONE_NEWNS,
        LinuxNamespaceType::Cgroup => libc::CLONE_NEWCGROUP,
        LinuxNamespaceType::Uts => libc::CLONE_NEWUTS,
        LinuxNamespaceType::Ipc => libc::CLONE_NEWIPC,
        LinuxNamespaceType::User => libc::CLONE_NEWUSER,
        LinuxNamespaceType::Pid => libc::CLONE_NEWPID,
        LinuxNamespaceType::Network => libc::CLONE_NEWNET,
        LinuxNamespaceType::Time => libc::CLONE_NEWTIME,
    }
}

/// The kinds of namespaces that the container has of its own (new or joined), as flags.
pub(crate) fn own_namespaces(linux: &Linux) -> i32 {
    let kinds = linux.namespaces().iter().flatten();
    kinds.fold(0, |flags, namespace| flags | flag(namespace.typ()))
}

/// Clones the first process. It reports over its socket when it is ready.
pub(crate) fn spawn_init(context: &InitContext<'_>, stdio: ChildStdio) -> Result<Child, Failure> {
    let failed = |what: &str, errno: Errno| Failure::os(Stage::Namespaces, what, errno as i32);
    let linux = context.linux()?;
    let namespaces = linux.namespaces().as_deref().unwrap_or_default();
    let mut fresh = 0;
    let mut back = Vec::new();
    for namespace in namespaces {
        match namespace.path() {
            // Entered by the process itself, once it is in its control groups: they become its root.
            None if namespace.typ() == LinuxNamespaceType::Cgroup => {}
            None => fresh |= flag(namespace.typ()) as u64,
            // The clone is born in it, and we go back: joining later would need rights over the namespace that a
            // process in a new user namespace lacks.
            Some(path) => {
                back.push(join(namespace.typ(), path)?);
            }
        }
    }
    let (shim_side, child_side) = sync::pair().map_err(|e| failed("make a socket pair", e))?;
    // SAFETY: the shim has one thread.
    let cloned = unsafe { clone_process(fresh, context.birth_group) };
    // Only the shim goes back: the clone stays where it was born.
    if !matches!(cloned, Ok(Cloned::Child)) {
        for (own, kind) in &back {
            setns(own.as_fd(), *kind).map_err(|e| failed("return to the host's namespace", e))?;
        }
    }
    match cloned.map_err(|e| failed("clone the container's first process", e))? {
        Cloned::Child => {
            drop(shim_side);
            program::run_child(&child_side, || run(context, stdio, &child_side))
        }
        Cloned::Parent { pid, pidfd } => Ok(Child {
            pid,
            pidfd,
            sync: shim_side,
        }),
    }
}

/// Enters the namespace at `path`; returns the way back.
fn join(kind: LinuxNamespaceType, path: &Path) -> Result<(OwnedFd, i32), Failure> {
    let failed = |error: &std::io::Error| {
        let what = format!("join the {kind} namespace `{}`", path.display());
        Failure::os(
            Stage::Namespaces,
            what,
            error.raw_os_error().unwrap_or(libc::EIO),
        )
    };
    let name = match kind {
        LinuxNamespaceType::Network => "net",
        LinuxNamespaceType::Pid => "pid",
        LinuxNamespaceType::Uts => "uts",
        LinuxNamespaceType::Ipc => "ipc",
        LinuxNamespaceType::Cgroup => "cgroup",
        LinuxNamespaceType::Mount | LinuxNamespaceType::User | LinuxNamespaceType::Time => {
            return Err(failed(&std::io::ErrorKind::Unsupported.into()));
        }
    };
    let own = File::open(format!("/proc/self/ns/{name}")).map_err(|e| failed(&e))?;
    let target = File::open(path).map_err(|e| failed(&e))?;
    setns(target.as_fd(), flag(kind)).map_err(|errno| failed(&errno.into()))?;
    Ok((own.into(), flag(kind)))
}

/// All that happens in the new process.
fn run(context: &InitContext<'_>, stdio: ChildStdio, sync: &ChildSide) -> Result<(), Failure> {
    let linux = context.linux()?;
    let process = context.process()?;
    program::prepare_signals(sync)?;
    let own = own_namespaces(linux);
    if own & libc::CLONE_NEWUSER != 0 {
        credentials::become_mapped_root(sync)?;
    }
    umask(Mode::from_bits_truncate(0o022));
    set_names(context.spec)?;
    let console = build_root(context, &stdio, sync)?;
    match stdio {
        ChildStdio::Pipes(input, output, errors) => {
            terminal::set_streams([input.as_fd(), output.as_fd(), errors.as_fd()])
                .map_err(|e| Failure::os(Stage::Stdio, "set up the streams", e as i32))?;
            credentials::own_streams(process.user().uid())?;
        }
        ChildStdio::Terminal(_) => devices::bind_console(console.unwrap_or(0))?,
    }
    set_kernel(context)?;
    let ready = program::Prepared::new(process, context.seccomp, sync)?;
    program::tell(sync, &Message::Ready)?;
    sync.expect(&Message::Start)
        .map_err(|e| Failure::os(Stage::Exec, "wait for the start", e as i32))?;
    ready.execute(context.shim.init)
}

fn set_names(spec: &Spec) -> Result<(), Failure> {
    let failed = |what: &str, errno: Errno| Failure::os(Stage::Kernel, what, errno as i32);
    if let Some(name) = spec.hostname() {
        nix::unistd::sethostname(name).map_err(|e| failed("set the host name", e))?;
    }
    if let Some(name) = spec.domainname() {
        // SAFETY: the pointer and the length are those of one string.
        Errno::result(unsafe { libc::setdomainname(name.as_ptr().cast(), name.len()) })
            .map_err(|e| failed("set the domain name", e))?;
    }
    Ok(())
}

/// Root, mounts and devices. Returns the number of the terminal, if there is one.
fn build_root(
    context: &InitContext<'_>,
    stdio: &ChildStdio,
    sync: &ChildSide,
) -> Result<Option<u32>, Failure> {
    let linux = context.linux()?;
    let own = own_namespaces(linux);
    let cgroup_namespace = own & libc::CLONE_NEWCGROUP != 0;
    let fresh_cgroup_namespace = linux.namespaces().iter().flatten().any(|namespace| {
        namespace.typ() == LinuxNamespaceType::Cgroup && namespace.path().is_none()
    });
    let root = context.root()?;
    let extra = linux.devices().as_deref().unwrap_or_default();
    let list = context.spec.mounts().as_deref().unwrap_or_default();
    rootfs::isolate(linux.rootfs_propagation().as_deref(), &root)?;
    let mut placed = false;
    let mut wait_placed = || {
        if std::mem::replace(&mut placed, true) {
            return Ok(());
        }
        enter_cgroup_namespace(sync, fresh_cgroup_namespace)
    };
    let own_groups = context.cgroup.dirs();
    if !cgroup_namespace {
        // Without a namespace, the groups themselves are bound: they must be there.
        wait_placed()?;
    }
    let prepared = mounts::prepare(list, context.cgroup.layout(), &own_groups, cgroup_namespace)?;
    let in_user_namespace = own & libc::CLONE_NEWUSER != 0;
    let nodes = in_user_namespace
        .then(|| devices::HostNodes::open(extra))
        .transpose()?;
    rootfs::mount_root(&context.shim.rootfs, &root)?;
    let old_root = rootfs::pivot(&root)?;
    mounts::mount_all(prepared, &mut wait_placed)?;
    wait_placed()?;
    let binds_dev = list.iter().any(|mount| {
        mount.destination() == Path::new("/dev") && mount.typ().as_deref() != Some("tmpfs")
    });
    if !binds_dev {
        umask(Mode::empty());
        devices::make_all(extra, nodes.as_ref())?;
        umask(Mode::from_bits_truncate(0o022));
    }
    nix::unistd::setsid()
        .map_err(|e| Failure::os(Stage::Namespaces, "start a session", e as i32))?;
    let number = match stdio {
        ChildStdio::Pipes(..) => None,
        ChildStdio::Terminal(size) => {
            let user = context.process()?.user().uid();
            Some(terminal::open_terminal(sync, *size, user)?)
        }
    };
    old_root.detach()?;
    Ok(number)
}

/// Waits until the shim has made our control groups, enters them, and makes them the root of a new namespace.
fn enter_cgroup_namespace(sync: &ChildSide, fresh: bool) -> Result<(), Failure> {
    sync.enter_groups()
        .map_err(|e| Failure::os(Stage::Cgroup, "enter the control groups", e as i32))?;
    if fresh {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWCGROUP)
            .map_err(|e| Failure::os(Stage::Namespaces, "make the cgroup namespace", e as i32))?;
    }
    Ok(())
}

/// Sysctls, hidden and read-only paths, a read-only root.
fn set_kernel(context: &InitContext<'_>) -> Result<(), Failure> {
    let linux = context.linux()?;
    let mut sysctls: Vec<_> = linux.sysctl().iter().flatten().collect();
    sysctls.sort();
    for (key, value) in sysctls {
        // As sysctl(8): when a slash comes first, dots are part of names (of interfaces).
        let path = match (key.find('/'), key.find('.')) {
            (Some(slash), Some(dot)) if slash < dot => key.clone(),
            (Some(_), None) => key.clone(),
            (_, _) => key.replace('.', "/"),
        };
        if path.split('/').any(|part| part == "..") {
            return Err(Failure::new(
                Stage::Kernel,
                format!("linux.sysctl: `{key}` is not a key"),
            ));
        }
        fs::write(Path::new("/proc/sys").join(path), value).map_err(|error| {
            let errno = error.raw_os_error().unwrap_or(libc::EIO);
            Failure::os(Stage::Kernel, format_args!("set the sysctl `{key}`"), errno)
        })?;
    }
    credentials::enter_directory(context.process()?, true)?;
    devices::make_readonly(linux.readonly_paths().as_deref().unwrap_or_default())?;
    devices::mask(linux.masked_paths().as_deref().unwrap_or_default())?;
    if context
        .spec
        .root()
        .as_ref()
        .and_then(|root| root.readonly())
        == Some(true)
    {
        rootfs::make_readonly()?;
    }
    Ok(())
}
