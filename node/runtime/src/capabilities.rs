//! Capability sets: docker's default, the names, and the raw system calls.

use nix::errno::Errno;
use oci_spec::runtime::{Capabilities, Capability, LinuxCapabilities};

/// The capabilities that a container has unless told otherwise.
pub const DEFAULT: [Capability; 14] = [
    Capability::AuditWrite,
    Capability::Chown,
    Capability::DacOverride,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Kill,
    Capability::Mknod,
    Capability::NetBindService,
    Capability::NetRaw,
    Capability::Setfcap,
    Capability::Setgid,
    Capability::Setpcap,
    Capability::Setuid,
    Capability::SysChroot,
];

/// Every capability in the order of its number.
pub const ALL: [Capability; 41] = [
    Capability::Chown,
    Capability::DacOverride,
    Capability::DacReadSearch,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Kill,
    Capability::Setgid,
    Capability::Setuid,
    Capability::Setpcap,
    Capability::LinuxImmutable,
    Capability::NetBindService,
    Capability::NetBroadcast,
    Capability::NetAdmin,
    Capability::NetRaw,
    Capability::IpcLock,
    Capability::IpcOwner,
    Capability::SysModule,
    Capability::SysRawio,
    Capability::SysChroot,
    Capability::SysPtrace,
    Capability::SysPacct,
    Capability::SysAdmin,
    Capability::SysBoot,
    Capability::SysNice,
    Capability::SysResource,
    Capability::SysTime,
    Capability::SysTtyConfig,
    Capability::Mknod,
    Capability::Lease,
    Capability::AuditWrite,
    Capability::AuditControl,
    Capability::Setfcap,
    Capability::MacOverride,
    Capability::MacAdmin,
    Capability::Syslog,
    Capability::WakeAlarm,
    Capability::BlockSuspend,
    Capability::AuditRead,
    Capability::Perfmon,
    Capability::Bpf,
    Capability::CheckpointRestore,
];

/// The capability called `name`, with or without `CAP_`, in any case.
pub fn parse(name: &str) -> Option<Capability> {
    let upper = name.to_ascii_uppercase();
    let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
    ALL.into_iter().find(|cap| cap.to_string() == bare)
}

/// Every capability that this process could give away: what `--privileged` means here.
///
/// The bounding set of the daemon may lack some, and asking for those would fail.
pub fn available() -> Vec<Capability> {
    ALL.into_iter()
        .zip(0u32..)
        .filter(|(_, number)| in_bounding_set(*number))
        .map(|(cap, _)| cap)
        .collect()
}

/// The sets of a process that may use exactly `caps`, as docker makes them: bounding, effective and permitted are
/// equal, nothing is inheritable or ambient. A process of another user than root loses the last two at execution.
pub fn sets(caps: impl IntoIterator<Item = Capability>) -> LinuxCapabilities {
    let set: Capabilities = caps.into_iter().collect();
    let mut sets = LinuxCapabilities::default();
    sets.set_bounding(Some(set.clone()))
        .set_effective(Some(set.clone()))
        .set_permitted(Some(set))
        .set_inheritable(None)
        .set_ambient(None);
    sets
}

/// Capability sets as the kernel takes them: one bit per capability.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct CapBits {
    pub(crate) bounding: u64,
    pub(crate) effective: u64,
    pub(crate) permitted: u64,
    pub(crate) inheritable: u64,
    pub(crate) ambient: u64,
}

impl CapBits {
    /// From the OCI words; an absent set is empty.
    pub(crate) fn from_oci(sets: Option<&LinuxCapabilities>) -> Self {
        let Some(sets) = sets else {
            return Self::default();
        };
        Self {
            bounding: bits(sets.bounding().as_ref()),
            effective: bits(sets.effective().as_ref()),
            permitted: bits(sets.permitted().as_ref()),
            inheritable: bits(sets.inheritable().as_ref()),
            ambient: bits(sets.ambient().as_ref()),
        }
    }
}

fn bits(set: Option<&Capabilities>) -> u64 {
    let Some(set) = set else { return 0 };
    ALL.iter()
        .zip(0u32..)
        .filter(|(cap, _)| set.contains(cap))
        .fold(0, |bits, (_, number)| bits | 1 << number)
}

fn in_bounding_set(number: u32) -> bool {
    // SAFETY: this prctl takes an integer and touches no memory.
    unsafe { libc::prctl(libc::PR_CAPBSET_READ, libc::c_ulong::from(number), 0, 0, 0) == 1 }
}

/// Drops from the bounding set whatever `keep` lacks. Needs CAP_SETPCAP.
pub(crate) fn limit_bounding(keep: u64) -> Result<(), Errno> {
    for number in 0..64u32 {
        if keep & (1 << number) != 0 {
            continue;
        }
        // SAFETY: this prctl takes an integer and touches no memory.
        let result =
            unsafe { libc::prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(number), 0, 0, 0) };
        match Errno::result(result) {
            Ok(_) => {}
            // The kernel knows no capability of this number, nor of any higher one.
            Err(Errno::EINVAL) => break,
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

#[repr(C)]
struct CapHeader {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct CapData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// `_LINUX_CAPABILITY_VERSION_3`: 64-bit sets.
const CAPABILITY_VERSION_3: u32 = 0x2008_0522;

/// Sets effective, permitted, inheritable and ambient sets of the calling process.
pub(crate) fn apply(caps: &CapBits) -> Result<(), Errno> {
    let header = CapHeader {
        version: CAPABILITY_VERSION_3,
        pid: 0,
    };
    let half = |shift: u32| CapData {
        effective: (caps.effective >> shift) as u32,
        permitted: (caps.permitted >> shift) as u32,
        inheritable: (caps.inheritable >> shift) as u32,
    };
    let data = [half(0), half(32)];
    // SAFETY: version 3 reads one header and two data structures; both outlive the call.
    Errno::result(unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) })?;
    if caps.ambient == 0 {
        return Ok(());
    }
    for number in (0..64u32).filter(|n| caps.ambient & (1 << n) != 0) {
        // SAFETY: this prctl takes integers and touches no memory.
        Errno::result(unsafe {
            libc::prctl(
                libc::PR_CAP_AMBIENT,
                libc::PR_CAP_AMBIENT_RAISE as libc::c_ulong,
                libc::c_ulong::from(number),
                0,
                0,
            )
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_with_and_without_prefix() {
        assert_eq!(parse("CAP_NET_ADMIN"), Some(Capability::NetAdmin));
        assert_eq!(parse("net_admin"), Some(Capability::NetAdmin));
        assert_eq!(parse("NET"), None);
        for cap in ALL {
            assert_eq!(parse(&cap.to_string()), Some(cap));
        }
    }

    #[test]
    fn default_set_is_dockers_mask() {
        // The CapEff that a container of dockerd shows.
        let caps = CapBits::from_oci(Some(&sets(DEFAULT)));
        assert_eq!(caps.effective, 0xa804_25fb);
        assert_eq!(caps.bounding, 0xa804_25fb);
        assert_eq!((caps.inheritable, caps.ambient), (0, 0));
    }
}
