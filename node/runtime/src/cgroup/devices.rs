//! Device rules: text for v1, a BPF program for v2.

use super::{CgroupError, open_dir, raw};
use nix::errno::Errno;
use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};
use std::os::fd::{FromRawFd as _, OwnedFd};
use std::path::Path;

/// A rule as `devices.allow` and `devices.deny` take it.
pub(super) fn v1_rule(rule: &LinuxDeviceCgroup) -> String {
    let number = |n: Option<i64>| {
        n.filter(|n| *n >= 0)
            .map_or("*".to_owned(), |n| n.to_string())
    };
    let typ = match rule.typ().unwrap_or(LinuxDeviceType::A) {
        LinuxDeviceType::B => 'b',
        LinuxDeviceType::C | LinuxDeviceType::U => 'c',
        LinuxDeviceType::P | LinuxDeviceType::A => 'a',
    };
    let access = rule.access().as_deref().unwrap_or("rwm");
    format!(
        "{typ} {}:{} {access}",
        number(rule.major()),
        number(rule.minor())
    )
}

/// One eBPF instruction.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Instruction {
    code: u8,
    /// Destination in the low half, source in the high half.
    registers: u8,
    offset: i16,
    immediate: i32,
}

const fn instruction(code: u8, registers: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction {
        code,
        registers,
        offset,
        immediate,
    }
}

const LOAD_WORD: u8 = 0x61;
const MOVE_REGISTER: u8 = 0xbf;
const MOVE: u8 = 0xb7;
const AND: u8 = 0x57;
const SHIFT_RIGHT: u8 = 0x77;
const JUMP_EQUAL: u8 = 0x15;
const JUMP_NOT_EQUAL: u8 = 0x55;
const JUMP_NOT_EQUAL_REGISTER: u8 = 0x5d;
const EXIT: u8 = 0x95;

const DEVICE_BLOCK: i32 = 1;
const DEVICE_CHAR: i32 = 2;
const ACCESS_MKNOD: i32 = 1;
const ACCESS_READ: i32 = 2;
const ACCESS_WRITE: i32 = 4;

/// The rules as a program over (access and type, major, minor): the last rule that matches decides, so they are
/// tested from the last to the first. Without a match nothing is allowed.
fn program(rules: &[LinuxDeviceCgroup]) -> Vec<Instruction> {
    // r2 = type, r3 = access, r4 = major, r5 = minor
    let mut code = vec![
        instruction(LOAD_WORD, 0x12, 0, 0),
        instruction(AND, 0x02, 0, 0xffff),
        instruction(LOAD_WORD, 0x13, 0, 0),
        instruction(SHIFT_RIGHT, 0x03, 0, 16),
        instruction(LOAD_WORD, 0x14, 4, 0),
        instruction(LOAD_WORD, 0x15, 8, 0),
    ];
    for rule in rules.iter().rev() {
        let mut tests = Vec::new();
        match rule.typ().unwrap_or(LinuxDeviceType::A) {
            LinuxDeviceType::B => tests.push(vec![(JUMP_NOT_EQUAL, 0x02, DEVICE_BLOCK)]),
            LinuxDeviceType::C | LinuxDeviceType::U => {
                tests.push(vec![(JUMP_NOT_EQUAL, 0x02, DEVICE_CHAR)]);
            }
            LinuxDeviceType::P | LinuxDeviceType::A => {}
        }
        let access = access_bits(rule.access().as_deref().unwrap_or("rwm"));
        if access != ACCESS_MKNOD | ACCESS_READ | ACCESS_WRITE {
            tests.push(if rule.allow() {
                // It covers a request that asks for nothing which the rule lacks.
                vec![
                    (MOVE_REGISTER, 0x31, 0),
                    (AND, 0x01, access),
                    (JUMP_NOT_EQUAL_REGISTER, 0x31, 0),
                ]
            } else {
                // It covers a request that asks for any of it.
                vec![
                    (MOVE_REGISTER, 0x31, 0),
                    (AND, 0x01, access),
                    (JUMP_EQUAL, 0x01, 0),
                ]
            });
        }
        for (register, number) in [(0x04, rule.major()), (0x05, rule.minor())] {
            if let Some(number) = number.filter(|n| *n >= 0) {
                tests.push(vec![(JUMP_NOT_EQUAL, register, number as i32)]);
            }
        }
        let always = tests.is_empty();
        let total: usize = tests.iter().map(Vec::len).sum::<usize>() + 2;
        let start = code.len();
        for (operation, registers, immediate) in tests.into_iter().flatten() {
            let jumps = [JUMP_EQUAL, JUMP_NOT_EQUAL, JUMP_NOT_EQUAL_REGISTER].contains(&operation);
            let rest = start + total - code.len() - 1;
            let offset = if jumps { rest as i16 } else { 0 };
            code.push(instruction(operation, registers, offset, immediate));
        }
        code.push(instruction(MOVE, 0x00, 0, i32::from(rule.allow())));
        code.push(instruction(EXIT, 0, 0, 0));
        if always {
            // The kernel refuses a program with instructions that can't be reached.
            return code;
        }
    }
    code.push(instruction(MOVE, 0x00, 0, 0));
    code.push(instruction(EXIT, 0, 0, 0));
    code
}

fn access_bits(access: &str) -> i32 {
    access.chars().fold(0, |bits, c| {
        bits | match c {
            'm' => ACCESS_MKNOD,
            'r' => ACCESS_READ,
            'w' => ACCESS_WRITE,
            _ => 0,
        }
    })
}

const BPF_PROG_LOAD: i32 = 5;
const BPF_PROG_ATTACH: i32 = 8;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
const BPF_F_ALLOW_MULTI: u32 = 2;

#[repr(C)]
#[derive(Default)]
struct LoadAttributes {
    program_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
}

#[repr(C)]
#[derive(Default)]
struct AttachAttributes {
    target_fd: u32,
    program_fd: u32,
    attach_type: u32,
    flags: u32,
    replace_fd: u32,
}

fn bpf<T>(command: i32, attributes: &T) -> Result<i64, Errno> {
    // SAFETY: the kernel reads as many bytes as the structure has; what it points to outlives the call.
    Errno::result(unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_ref(attributes),
            size_of::<T>(),
        )
    })
}

/// Lets the group `dir` use only the devices that `rules` allow. Without rules everything stays allowed.
pub(super) fn attach(dir: &Path, rules: &[LinuxDeviceCgroup]) -> Result<(), CgroupError> {
    if rules.is_empty() {
        return Ok(());
    }
    let failed = |errno: Errno| CgroupError::Kernel {
        attempt: "attach the device filter to",
        path: dir.to_owned(),
        errno: errno as i32,
    };
    let code = program(rules);
    let license = c"Apache-2.0";
    let load = LoadAttributes {
        program_type: BPF_PROG_TYPE_CGROUP_DEVICE,
        instruction_count: code.len() as u32,
        instructions: code.as_ptr() as u64,
        license: license.as_ptr() as u64,
        ..LoadAttributes::default()
    };
    let raw_fd = bpf(BPF_PROG_LOAD, &load).map_err(failed)?;
    // SAFETY: the kernel has just made this descriptor for us.
    let program = unsafe { OwnedFd::from_raw_fd(raw_fd as i32) };
    let group = open_dir(dir)?;
    let attach = AttachAttributes {
        target_fd: raw(&group) as u32,
        program_fd: std::os::fd::AsRawFd::as_raw_fd(&program) as u32,
        attach_type: BPF_CGROUP_DEVICE,
        flags: BPF_F_ALLOW_MULTI,
        replace_fd: 0,
    };
    bpf(BPF_PROG_ATTACH, &attach).map_err(failed)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{device_rule, device_rules};

    /// Runs the program in a small interpreter.
    fn run(code: &[Instruction], typ: i32, access: i32, major: i32, minor: i32) -> bool {
        let mut registers = [0i64; 6];
        let context = [
            i64::from(access << 16 | typ),
            i64::from(major),
            i64::from(minor),
        ];
        let mut at = 0usize;
        loop {
            let step = code[at];
            at += 1;
            let (to, from) = (
                usize::from(step.registers & 15),
                usize::from(step.registers >> 4),
            );
            let immediate = i64::from(step.immediate);
            match step.code {
                LOAD_WORD => registers[to] = context[step.offset as usize / 4],
                MOVE_REGISTER => registers[to] = registers[from],
                MOVE => registers[to] = immediate,
                AND => registers[to] &= immediate,
                SHIFT_RIGHT => registers[to] >>= immediate,
                JUMP_NOT_EQUAL if registers[to] != immediate => at += step.offset as usize,
                JUMP_NOT_EQUAL_REGISTER if registers[to] != registers[from] => {
                    at += step.offset as usize;
                }
                JUMP_EQUAL if registers[to] == immediate => at += step.offset as usize,
                JUMP_EQUAL | JUMP_NOT_EQUAL | JUMP_NOT_EQUAL_REGISTER => {}
                EXIT => return registers[0] == 1,
                other => panic!("instruction {other:#x}"),
            }
        }
    }

    #[test]
    fn default_rules_allow_the_harmless_devices() {
        let code = program(&device_rules());
        let rw = ACCESS_READ | ACCESS_WRITE;
        assert!(run(&code, DEVICE_CHAR, rw, 1, 3), "null");
        assert!(run(&code, DEVICE_CHAR, rw, 136, 7), "pts");
        assert!(!run(&code, DEVICE_CHAR, rw, 1, 1), "mem");
        assert!(run(&code, DEVICE_CHAR, ACCESS_MKNOD, 1, 1), "mknod mem");
        assert!(!run(&code, DEVICE_BLOCK, ACCESS_READ, 8, 0), "sda");
        assert!(run(&code, DEVICE_BLOCK, ACCESS_MKNOD, 8, 0), "mknod sda");
    }

    #[test]
    fn the_last_matching_rule_decides() {
        let rules = [
            device_rule(true, LinuxDeviceType::A, None, None, "rwm"),
            device_rule(false, LinuxDeviceType::C, Some(1), Some(3), "rwm"),
        ];
        let code = program(&rules);
        assert!(run(&code, DEVICE_CHAR, ACCESS_READ, 1, 5));
        assert!(!run(&code, DEVICE_CHAR, ACCESS_READ, 1, 3));
    }

    #[test]
    fn a_part_of_the_access_is_refused() {
        let rules = [
            device_rule(true, LinuxDeviceType::A, None, None, "rwm"),
            device_rule(false, LinuxDeviceType::C, Some(1), Some(3), "w"),
        ];
        let code = program(&rules);
        assert!(run(&code, DEVICE_CHAR, ACCESS_READ, 1, 3));
        assert!(!run(&code, DEVICE_CHAR, ACCESS_WRITE, 1, 3));
        assert!(!run(&code, DEVICE_CHAR, ACCESS_READ | ACCESS_WRITE, 1, 3));
    }

    #[test]
    fn nothing_stands_behind_a_rule_for_everything() {
        let all = device_rule(true, LinuxDeviceType::A, None, None, "rwm");
        let code = program(&[device_rule(false, LinuxDeviceType::C, None, None, "w"), all]);
        let exits = code.iter().filter(|step| step.code == EXIT).count();
        assert_eq!((exits, code.last().map(|step| step.code)), (1, Some(EXIT)));
    }
}
