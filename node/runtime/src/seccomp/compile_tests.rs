//! The compiled filter is run in a small interpreter and compared with what the profile says.

use super::*;
use crate::capabilities;
use crate::seccomp::default_profile;
use oci_spec::runtime::LinuxSyscall;
use proptest::prelude::*;

/// What the kernel would do with the call.
fn run(program: &Program, arch: u32, number: u32, args: [u64; 6]) -> u32 {
    let load = |offset: u32| match offset {
        OFFSET_NR => number,
        OFFSET_ARCH => arch,
        other => {
            let index = ((other - OFFSET_ARGS) / 8) as usize;
            let shift = if (other - OFFSET_ARGS).is_multiple_of(8) {
                0
            } else {
                32
            };
            (args[index] >> shift) as u32
        }
    };
    let (mut at, mut value) = (0usize, 0u32);
    loop {
        let step = &program.code[at];
        at += 1;
        let mut branch = |holds: bool| at += usize::from(if holds { step.jt } else { step.jf });
        match step.code {
            LOAD => value = load(step.k),
            AND => value &= step.k,
            JUMP => at += step.k as usize,
            JUMP_EQ => branch(value == step.k),
            JUMP_GT => branch(value > step.k),
            JUMP_GE => branch(value >= step.k),
            RETURN => return step.k,
            other => panic!("instruction {other:#x}"),
        }
    }
}

const EPERM: u32 = libc::SECCOMP_RET_ERRNO | 1;
const ENOSYS: u32 = libc::SECCOMP_RET_ERRNO | 38;
const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;

fn verdict(caps: &[oci_spec::runtime::Capability], name: &str, arg0: u64) -> u32 {
    let program = compile(&default_profile(caps)).unwrap();
    let number = lookup_x86_64(name).unwrap();
    run(&program, AUDIT_ARCH_X86_64, number, [arg0, 0, 0, 0, 0, 0])
}

#[test]
fn default_profile_judges_as_docker() {
    let check = |name, arg0, expected| {
        assert_eq!(
            verdict(&capabilities::DEFAULT, name, arg0),
            expected,
            "{name}({arg0:#x})"
        );
    };
    check("read", 0, ALLOW);
    check("execve", 0, ALLOW);
    check("unshare", 0, EPERM);
    check("mount", 0, EPERM);
    check("keyctl", 0, EPERM);
    check("clone3", 0, ENOSYS);
    check("clone", 0x11, ALLOW);
    check("clone", 0x1000_0011, EPERM);
    check("socket", 2, ALLOW);
    check("socket", 38, EPERM);
    check("socket", 39, ALLOW);
    check("socket", 40, EPERM);
    check("socket", 41, ALLOW);
    check("socket", 1 << 33, ALLOW);
    check("personality", 0, ALLOW);
    check("personality", 0xffff_ffff, ALLOW);
    check("personality", 1, EPERM);
    check("chroot", 0, ALLOW);
}

#[test]
fn capabilities_open_system_calls() {
    use oci_spec::runtime::Capability::{SysAdmin, SysTime};
    assert_eq!(verdict(&[SysAdmin], "unshare", 0), ALLOW);
    assert_eq!(verdict(&[SysAdmin], "clone3", 0), ALLOW);
    assert_eq!(verdict(&[SysAdmin], "clone", 0x1000_0000), ALLOW);
    assert_eq!(verdict(&[SysTime], "clock_settime", 0), ALLOW);
    assert_eq!(verdict(&[SysTime], "chroot", 0), EPERM);
}

#[test]
fn foreign_numbers_and_architectures() {
    let program = compile(&default_profile(&capabilities::DEFAULT)).unwrap();
    let judge = |arch, number| run(&program, arch, number, [0; 6]);
    assert_eq!(judge(AUDIT_ARCH_X86_64, 5000), ENOSYS);
    assert_eq!(judge(AUDIT_ARCH_X86_64, X32_BIT), ALLOW);
    assert_eq!(judge(AUDIT_ARCH_X86_64, X32_BIT | 520), ALLOW);
    assert_eq!(judge(AUDIT_ARCH_I386, 3), ALLOW);
    assert_eq!(judge(AUDIT_ARCH_I386, 21), EPERM);
    assert_eq!(judge(AUDIT_ARCH_AARCH64, 0), libc::SECCOMP_RET_KILL_PROCESS);
}

#[test]
fn tables_are_sorted() {
    for table in [
        x86_64::SYSCALLS,
        x86::SYSCALLS,
        aarch64::SYSCALLS,
        x32::SYSCALLS,
    ] {
        assert!(table.is_sorted_by(|a, b| a.0 < b.0));
    }
    // The C library's own constants are the witness for a few of ours.
    assert_eq!(
        lookup_x86_64("openat2").map(i64::from),
        Some(libc::SYS_openat2)
    );
    assert_eq!(
        lookup_x86_64("pidfd_open").map(i64::from),
        Some(libc::SYS_pidfd_open)
    );
}

#[test]
fn what_is_not_supported_is_refused() {
    let mut profile = default_profile(&capabilities::DEFAULT);
    profile.set_default_action(LinuxSeccompAction::ScmpActNotify);
    assert_eq!(
        compile(&profile),
        Err(SeccompError::Action(LinuxSeccompAction::ScmpActNotify))
    );
}

fn holds(op: LinuxSeccompOperator, arg: u64, value: u64, two: u64) -> bool {
    match op {
        LinuxSeccompOperator::ScmpCmpNe => arg != value,
        LinuxSeccompOperator::ScmpCmpLt => arg < value,
        LinuxSeccompOperator::ScmpCmpLe => arg <= value,
        LinuxSeccompOperator::ScmpCmpEq => arg == value,
        LinuxSeccompOperator::ScmpCmpGe => arg >= value,
        LinuxSeccompOperator::ScmpCmpGt => arg > value,
        LinuxSeccompOperator::ScmpCmpMaskedEq => arg & value == two,
    }
}

fn operator() -> impl Strategy<Value = LinuxSeccompOperator> {
    prop_oneof![
        Just(LinuxSeccompOperator::ScmpCmpNe),
        Just(LinuxSeccompOperator::ScmpCmpLt),
        Just(LinuxSeccompOperator::ScmpCmpLe),
        Just(LinuxSeccompOperator::ScmpCmpEq),
        Just(LinuxSeccompOperator::ScmpCmpGe),
        Just(LinuxSeccompOperator::ScmpCmpGt),
        Just(LinuxSeccompOperator::ScmpCmpMaskedEq),
    ]
}

/// Values around the seams between the halves of a word.
fn word() -> impl Strategy<Value = u64> {
    prop_oneof![
        0u64..4,
        Just(u64::from(u32::MAX)),
        (1u64 << 32)..(1 << 32) + 3,
        any::<u64>()
    ]
}

proptest! {
    #[test]
    fn comparisons_are_those_of_64_bit_numbers(
        ops in proptest::collection::vec((0usize..6, operator(), word(), word()), 1..4),
        args in [word(), word(), word(), word(), word(), word()],
    ) {
        let mut rule = LinuxSyscall::default();
        rule.set_names(vec!["read".into()])
            .set_action(LinuxSeccompAction::ScmpActAllow)
            .set_errno_ret(None)
            .set_args(Some(ops.iter().map(|(index, op, value, two)| {
                oci_spec::runtime::LinuxSeccompArgBuilder::default()
                    .index(*index).op(*op).value(*value).value_two(*two).build().unwrap()
            }).collect()));
        let mut profile = LinuxSeccomp::default();
        profile.set_default_action(LinuxSeccompAction::ScmpActErrno)
            .set_default_errno_ret(Some(1))
            .set_architectures(None)
            .set_syscalls(Some(vec![rule]));
        let program = compile(&profile).unwrap();
        let expected = ops.iter().all(|(index, op, value, two)| holds(*op, args[*index], *value, *two));
        let number = lookup_x86_64("read").unwrap();
        let judged = run(&program, AUDIT_ARCH_X86_64, number, args);
        prop_assert_eq!(judged, if expected { ALLOW } else { EPERM });
    }
}
