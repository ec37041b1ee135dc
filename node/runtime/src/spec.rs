//! The OCI configuration of an ordinary container, with docker's defaults.

use crate::{capabilities, seccomp};
use oci_spec::runtime::{
    Linux, LinuxDeviceCgroup, LinuxDeviceType, LinuxNamespace, LinuxNamespaceType, Mount, Process,
    Root, Spec,
};
use std::path::{Path, PathBuf};

/// Paths that show or change things of the host: hidden.
pub const MASKED_PATHS: [&str; 11] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
];

/// One more hidden path, of newer kernels: power readings leak what others compute.
pub const MASKED_POWERCAP: &str = "/sys/devices/virtual/powercap";

/// Paths that may be read and not written.
pub const READONLY_PATHS: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// Bytes of `/dev/shm` unless told otherwise: 64 MiB.
pub const SHM_SIZE_BYTES: u64 = 64 << 20;

/// `PATH` of an image that sets none.
pub const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A container with docker's defaults that runs `args` on `rootfs` in `cgroup` (a path below every hierarchy's
/// root): own namespaces of all kinds but user, default capabilities, devices, seccomp profile, hidden paths.
///
/// The caller changes what the user asked for. `network` of [`namespaces`] has no path yet: without one the
/// container gets an empty network namespace.
pub fn default_spec(rootfs: impl Into<PathBuf>, args: Vec<String>, cgroup: &Path) -> Spec {
    let mut root = Root::default();
    root.set_path(rootfs.into()).set_readonly(Some(false));
    let mut spec = Spec::default();
    spec.set_version("1.0.2".to_owned())
        .set_root(Some(root))
        .set_mounts(Some(mounts(SHM_SIZE_BYTES)))
        .set_process(Some(process(args)))
        .set_hostname(None)
        .set_linux(Some(linux(cgroup)));
    spec
}

/// The process of [`default_spec`]: root, in `/`, default capabilities, no terminal.
pub fn process(args: Vec<String>) -> Process {
    let mut process = Process::default();
    process
        .set_terminal(Some(false))
        .set_args(Some(args))
        .set_env(Some(vec![DEFAULT_PATH.to_owned()]))
        .set_cwd("/".into())
        .set_capabilities(Some(capabilities::sets(capabilities::DEFAULT)))
        .set_rlimits(None)
        // Absent, not false: some runtimes load the filter too late when they see an explicit false.
        .set_no_new_privileges(None)
        .set_oom_score_adj(Some(0));
    process
}

fn linux(cgroup: &Path) -> Linux {
    let mut resources = oci_spec::runtime::LinuxResources::default();
    resources.set_devices(Some(device_rules()));
    let masked = MASKED_PATHS.into_iter().chain([MASKED_POWERCAP]);
    let mut linux = Linux::default();
    linux
        .set_namespaces(Some(namespaces()))
        .set_cgroups_path(Some(cgroup.to_owned()))
        .set_resources(Some(resources))
        .set_devices(None)
        .set_masked_paths(Some(masked.map(str::to_owned).collect()))
        .set_readonly_paths(Some(READONLY_PATHS.map(str::to_owned).to_vec()))
        .set_seccomp(Some(seccomp::default_profile(&capabilities::DEFAULT)));
    linux
}

/// New namespaces of every kind but user and time.
pub fn namespaces() -> Vec<LinuxNamespace> {
    [
        LinuxNamespaceType::Mount,
        LinuxNamespaceType::Network,
        LinuxNamespaceType::Uts,
        LinuxNamespaceType::Pid,
        LinuxNamespaceType::Ipc,
        LinuxNamespaceType::Cgroup,
    ]
    .into_iter()
    .map(|typ| {
        let mut namespace = LinuxNamespace::default();
        namespace.set_typ(typ).set_path(None);
        namespace
    })
    .collect()
}

/// What docker mounts into every container, `/dev/shm` with `shm_bytes`.
pub fn mounts(shm_bytes: u64) -> Vec<Mount> {
    let shm = format!("size={shm_bytes}");
    vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount(
            "/dev",
            "tmpfs",
            "tmpfs",
            &["nosuid", "strictatime", "mode=755", "size=65536k"],
        ),
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &[
                "nosuid",
                "noexec",
                "newinstance",
                "ptmxmode=0666",
                "mode=0620",
                "gid=5",
            ],
        ),
        mount(
            "/sys",
            "sysfs",
            "sysfs",
            &["nosuid", "noexec", "nodev", "ro"],
        ),
        mount(
            "/sys/fs/cgroup",
            "cgroup",
            "cgroup",
            &["ro", "nosuid", "noexec", "nodev"],
        ),
        mount(
            "/dev/mqueue",
            "mqueue",
            "mqueue",
            &["nosuid", "noexec", "nodev"],
        ),
        mount(
            "/dev/shm",
            "tmpfs",
            "shm",
            &["nosuid", "noexec", "nodev", "mode=1777", &shm],
        ),
    ]
}

/// One entry of `mounts`.
pub fn mount(destination: &str, typ: &str, source: &str, options: &[&str]) -> Mount {
    let mut mount = Mount::default();
    mount
        .set_destination(destination.into())
        .set_typ(Some(typ.to_owned()))
        .set_source(Some(source.into()))
        .set_options(Some(options.iter().map(|o| (*o).to_owned()).collect()));
    mount
}

/// Docker's device rules: everything is refused, any node may be made, and the harmless ones used.
pub fn device_rules() -> Vec<LinuxDeviceCgroup> {
    use LinuxDeviceType::{A, B, C};
    vec![
        device_rule(false, A, None, None, "rwm"),
        device_rule(true, C, None, None, "m"),
        device_rule(true, B, None, None, "m"),
        device_rule(true, C, Some(1), Some(3), "rwm"),
        device_rule(true, C, Some(1), Some(5), "rwm"),
        device_rule(true, C, Some(1), Some(7), "rwm"),
        device_rule(true, C, Some(1), Some(8), "rwm"),
        device_rule(true, C, Some(1), Some(9), "rwm"),
        device_rule(true, C, Some(5), Some(0), "rwm"),
        device_rule(true, C, Some(5), Some(1), "rwm"),
        device_rule(true, C, Some(5), Some(2), "rwm"),
        device_rule(true, C, Some(136), None, "rwm"),
        device_rule(true, C, Some(10), Some(229), "rwm"),
    ]
}

/// One device rule; `None` stands for any number.
pub fn device_rule(
    allow: bool,
    typ: LinuxDeviceType,
    major: Option<i64>,
    minor: Option<i64>,
    access: &str,
) -> LinuxDeviceCgroup {
    let mut rule = LinuxDeviceCgroup::default();
    rule.set_allow(allow)
        .set_typ(Some(typ))
        .set_major(major)
        .set_minor(minor)
        .set_access(Some(access.to_owned()));
    rule
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_spec_survives_json() {
        let spec = default_spec("/r", vec!["true".into()], Path::new("/shoal/x"));
        let text = serde_json::to_string(&spec).unwrap();
        assert_eq!(serde_json::from_str::<Spec>(&text).unwrap(), spec);
        assert!(!text.contains("noNewPrivileges"));
    }
}
