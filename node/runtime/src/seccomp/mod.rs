//! Seccomp: docker's default profile as a table of ours, and a compiler from OCI profiles to BPF.
//!
//! The compiler makes a binary search over ranges of numbers, not a list of comparisons: the kernel runs a filter
//! once per system call number when it is loaded, so that a short path makes both loading and calling cheap.

mod aarch64;
mod always;
mod compile;
mod x32;
mod x86;
mod x86_64;

pub(crate) use compile::{Program, compile, load};

use oci_spec::runtime::{
    Arch, Capability, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompArgBuilder,
    LinuxSeccompOperator, LinuxSyscall,
};

/// System calls that a capability opens.
const BY_CAPABILITY: &[(Capability, &[&str])] = &[
    (Capability::DacReadSearch, &["open_by_handle_at"]),
    (
        Capability::SysAdmin,
        &[
            "bpf",
            "clone",
            "clone3",
            "fanotify_init",
            "fsconfig",
            "fsmount",
            "fsopen",
            "fspick",
            "lookup_dcookie",
            "lsm_get_self_attr",
            "lsm_list_modules",
            "lsm_set_self_attr",
            "mount",
            "mount_setattr",
            "move_mount",
            "open_tree",
            "perf_event_open",
            "quotactl",
            "quotactl_fd",
            "setdomainname",
            "sethostname",
            "setns",
            "syslog",
            "umount",
            "umount2",
            "unshare",
        ],
    ),
    (Capability::SysBoot, &["reboot"]),
    (Capability::SysChroot, &["chroot"]),
    (
        Capability::SysModule,
        &["delete_module", "init_module", "finit_module"],
    ),
    (Capability::SysPacct, &["acct"]),
    (
        Capability::SysPtrace,
        &[
            "kcmp",
            "pidfd_getfd",
            "process_madvise",
            "process_vm_readv",
            "process_vm_writev",
            "ptrace",
        ],
    ),
    (Capability::SysRawio, &["iopl", "ioperm"]),
    (
        Capability::SysTime,
        &["settimeofday", "stime", "clock_settime", "clock_settime64"],
    ),
    (Capability::SysTtyConfig, &["vhangup"]),
    (
        Capability::SysNice,
        &[
            "get_mempolicy",
            "mbind",
            "set_mempolicy",
            "set_mempolicy_home_node",
        ],
    ),
    (Capability::Syslog, &["syslog"]),
    (Capability::Bpf, &["bpf"]),
    (Capability::Perfmon, &["perf_event_open"]),
];

/// Execution domains that `personality` may set: Linux, its 16-bit-uid form, either without address randomisation
/// of 32-bit programs, and the question for the present one.
const PERSONALITIES: [u64; 5] = [0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// Flags of `clone` that make namespaces: refused without CAP_SYS_ADMIN.
const CLONE_NAMESPACE_FLAGS: u64 = 0x7e02_0000;

/// Docker's default profile for a container that has `caps`, for this machine's architecture.
pub fn default_profile(caps: &[Capability]) -> LinuxSeccomp {
    let mut syscalls = vec![allow(
        always::ALWAYS
            .iter()
            .copied()
            .chain(native_only().iter().copied()),
        None,
    )];
    // AF_VSOCK (40) reaches the hypervisor and AF_ALG (38) the kernel's ciphers: every other family is allowed.
    for (op, value) in [
        (LinuxSeccompOperator::ScmpCmpLt, 38),
        (LinuxSeccompOperator::ScmpCmpEq, 39),
        (LinuxSeccompOperator::ScmpCmpGt, 40),
    ] {
        syscalls.push(allow(["socket"], Some(arg(op, value))));
    }
    for value in PERSONALITIES {
        syscalls.push(allow(
            ["personality"],
            Some(arg(LinuxSeccompOperator::ScmpCmpEq, value)),
        ));
    }
    for (_, names) in BY_CAPABILITY.iter().filter(|(cap, _)| caps.contains(cap)) {
        syscalls.push(allow(names.iter().copied(), None));
    }
    if !caps.contains(&Capability::SysAdmin) {
        let flags = arg(LinuxSeccompOperator::ScmpCmpMaskedEq, CLONE_NAMESPACE_FLAGS);
        syscalls.push(allow(["clone"], Some(flags)));
        // A filter can't look into the structure that clone3 points to. ENOSYS makes the C library fall back.
        let mut clone3 = LinuxSyscall::default();
        clone3
            .set_names(vec!["clone3".to_owned()])
            .set_action(LinuxSeccompAction::ScmpActErrno)
            .set_errno_ret(Some(libc::ENOSYS.unsigned_abs()));
        syscalls.push(clone3);
    }
    let mut profile = LinuxSeccomp::default();
    profile
        .set_default_action(LinuxSeccompAction::ScmpActErrno)
        .set_default_errno_ret(Some(libc::EPERM.unsigned_abs()))
        .set_architectures(Some(architectures()))
        .set_syscalls(Some(syscalls));
    profile
}

/// This machine's architecture and those whose programs it also runs.
fn architectures() -> Vec<Arch> {
    if cfg!(target_arch = "x86_64") {
        vec![Arch::ScmpArchX86_64, Arch::ScmpArchX86, Arch::ScmpArchX32]
    } else {
        vec![Arch::ScmpArchAarch64]
    }
}

fn native_only() -> &'static [&'static str] {
    if cfg!(target_arch = "x86_64") {
        &["arch_prctl", "modify_ldt"]
    } else {
        &[]
    }
}

fn allow<'a>(
    names: impl IntoIterator<Item = &'a str>,
    arg: Option<LinuxSeccompArg>,
) -> LinuxSyscall {
    let mut rule = LinuxSyscall::default();
    rule.set_names(names.into_iter().map(str::to_owned).collect())
        .set_action(LinuxSeccompAction::ScmpActAllow)
        .set_errno_ret(None)
        .set_args(arg.map(|arg| vec![arg]));
    rule
}

fn arg(op: LinuxSeccompOperator, value: u64) -> LinuxSeccompArg {
    LinuxSeccompArgBuilder::default()
        .index(0usize)
        .value(value)
        .op(op)
        .build()
        .expect("every required field is set")
}
