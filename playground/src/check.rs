//! What the machine must have, checked before anything is made.

use nix::sched::{CloneFlags, unshare};

/// Something that is missing, and what to do about it.
#[derive(Debug, thiserror::Error)]
#[error("{what}; {way_out}")]
pub struct MissingFeature {
    what: String,
    way_out: &'static str,
}

/// Checks for root and for the kernel features that hosts and containers need.
///
/// # Errors
/// The first that is missing.
pub fn check_machine() -> Result<(), MissingFeature> {
    let missing = |what: &str, way_out| MissingFeature {
        what: what.to_owned(),
        way_out,
    };
    if !nix::unistd::geteuid().is_root() {
        return Err(missing(
            "the playground makes namespaces, mounts and network links, which only root may do",
            "run the command as root, for example with `sudo`",
        ));
    }
    let filesystems = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    if !filesystems.lines().any(|line| line.ends_with("overlay")) {
        return Err(missing(
            "this kernel does not offer overlayfs (or its module is not loaded)",
            "load it with `modprobe overlay`",
        ));
    }
    let flags = CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWIPC;
    // unshare(2) acts on the calling thread, so it is tried on one that ends.
    let tried = std::thread::spawn(move || unshare(flags)).join();
    if !matches!(tried, Ok(Ok(()))) {
        return Err(missing(
            "this machine does not let root make namespaces",
            "run on a real or virtual machine, or in a container with `--privileged`",
        ));
    }
    if !std::path::Path::new("/sys/fs/cgroup")
        .join("cgroup.controllers")
        .exists()
        && !std::path::Path::new("/sys/fs/cgroup/memory").exists()
    {
        return Err(missing(
            "no cgroup hierarchy is mounted on /sys/fs/cgroup",
            "mount it, for example with `mount -t cgroup2 none /sys/fs/cgroup`",
        ));
    }
    Ok(())
}
