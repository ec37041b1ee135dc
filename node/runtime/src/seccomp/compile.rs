//! From an OCI profile to the BPF program that the kernel runs before every system call.

use super::{aarch64, x32, x86, x86_64};
use libc::sock_filter;
use nix::errno::Errno;
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag,
    LinuxSeccompOperator,
};
use std::collections::BTreeMap;

/// Instructions that the kernel accepts in one filter.
const INSTRUCTIONS_MAX: usize = 4096;

/// Arguments of a system call.
const ARGUMENTS_MAX: usize = 6;

const OFFSET_NR: u32 = 0;
const OFFSET_ARCH: u32 = 4;
const OFFSET_ARGS: u32 = 16;

const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;
const AUDIT_ARCH_I386: u32 = 0x4000_0003;
const AUDIT_ARCH_AARCH64: u32 = 0xc000_00b7;
const X32_BIT: u32 = 0x4000_0000;

const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const JUMP: u16 = (libc::BPF_JMP | libc::BPF_JA) as u16;
const JUMP_EQ: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const JUMP_GT: u16 = (libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K) as u16;
const JUMP_GE: u16 = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16;
const AND: u16 = (libc::BPF_ALU | libc::BPF_AND | libc::BPF_K) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;

/// Why a profile can't be turned into a filter.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SeccompError {
    #[error("linux.seccomp: action `{0:?}` is not supported")]
    Action(LinuxSeccompAction),
    #[error("linux.seccomp: architecture `{0:?}` is not supported")]
    Architecture(Arch),
    #[error("linux.seccomp: argument index {0} is above 5")]
    ArgumentIndex(usize),
    #[error("linux.seccomp: flag `{0:?}` is not supported")]
    Flag(LinuxSeccompFilterFlag),
    #[error("linux.seccomp: listenerPath is not supported")]
    Listener,
    #[error("linux.seccomp: the filter has {0} instructions, more than {INSTRUCTIONS_MAX}")]
    TooLong(usize),
}

/// A filter that can be loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Program {
    code: Vec<sock_filter>,
    flags: libc::c_ulong,
}

/// One rule of a system call: `action` when every comparison holds.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Rule {
    action: u32,
    args: Vec<Comparison>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Comparison {
    index: u32,
    op: LinuxSeccompOperator,
    value: u64,
    mask: u64,
}

/// What happens to the numbers from one bound to the next.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Verdict {
    Always(u32),
    ByArguments(Vec<Rule>),
}

/// Compiles `profile` for this machine.
pub(crate) fn compile(profile: &LinuxSeccomp) -> Result<Program, SeccompError> {
    if profile.listener_path().is_some() {
        return Err(SeccompError::Listener);
    }
    let native = native_arch();
    let mut arches = profile.architectures().clone().unwrap_or_default();
    arches.retain(|arch| *arch != Arch::ScmpArchNative && *arch != native);
    let foreign = |arch: &&Arch| {
        !matches!(
            arch,
            Arch::ScmpArchX86 | Arch::ScmpArchX32 | Arch::ScmpArchArm
        )
    };
    if let Some(arch) = arches.iter().find(foreign) {
        return Err(SeccompError::Architecture(*arch));
    }
    let default = action(profile.default_action(), profile.default_errno_ret())?;
    let mut code = vec![statement(LOAD, OFFSET_ARCH)];
    if native == Arch::ScmpArchX86_64 {
        // x32 shares the architecture word with x86_64: one tree holds both ranges of numbers.
        let mut bounds = intervals(0, rules(profile, lookup_x86_64)?, default);
        let x32 = if arches.contains(&Arch::ScmpArchX32) {
            rules(profile, lookup_x32)?
        } else {
            BTreeMap::new()
        };
        bounds.extend(intervals(X32_BIT, x32, default));
        section(&mut code, AUDIT_ARCH_X86_64, &bounds);
        if arches.contains(&Arch::ScmpArchX86) {
            let rules = rules(profile, |name| lookup(x86::SYSCALLS, name))?;
            section(&mut code, AUDIT_ARCH_I386, &intervals(0, rules, default));
        }
    } else {
        let rules = rules(profile, |name| lookup(aarch64::SYSCALLS, name))?;
        section(&mut code, AUDIT_ARCH_AARCH64, &intervals(0, rules, default));
    }
    code.push(statement(RETURN, libc::SECCOMP_RET_KILL_PROCESS));
    if code.len() > INSTRUCTIONS_MAX {
        return Err(SeccompError::TooLong(code.len()));
    }
    Ok(Program {
        code,
        flags: flags(profile)?,
    })
}

/// Loads `program` for the calling process. Needs CAP_SYS_ADMIN or no_new_privs.
pub(crate) fn load(program: &Program) -> Result<(), Errno> {
    let header = libc::sock_fprog {
        len: u16::try_from(program.code.len()).map_err(|_| Errno::E2BIG)?,
        filter: program.code.as_ptr().cast_mut(),
    };
    // SAFETY: the header points to `len` instructions that outlive the call; the kernel copies them.
    let result = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            program.flags,
            &raw const header,
        )
    };
    Errno::result(result).map(drop)
}

fn native_arch() -> Arch {
    if cfg!(target_arch = "x86_64") {
        Arch::ScmpArchX86_64
    } else {
        Arch::ScmpArchAarch64
    }
}

fn lookup(table: &[(&str, u32)], name: &str) -> Option<u32> {
    let index = table
        .binary_search_by(|(known, _)| (*known).cmp(name))
        .ok()?;
    Some(table[index].1)
}

fn lookup_x86_64(name: &str) -> Option<u32> {
    lookup(x86_64::SYSCALLS, name)
}

fn lookup_x32(name: &str) -> Option<u32> {
    let number = lookup(x32::SYSCALLS, name).or_else(|| lookup_x86_64(name))?;
    Some(number | X32_BIT)
}

/// The rules by number. Names that the architecture lacks are skipped, as libseccomp does.
fn rules(
    profile: &LinuxSeccomp,
    number: impl Fn(&str) -> Option<u32>,
) -> Result<BTreeMap<u32, Vec<Rule>>, SeccompError> {
    let mut rules: BTreeMap<u32, Vec<Rule>> = BTreeMap::new();
    for syscall in profile.syscalls().iter().flatten() {
        let action = action(syscall.action(), syscall.errno_ret())?;
        let args = syscall.args().iter().flatten();
        let args = args.map(comparison).collect::<Result<Vec<_>, _>>()?;
        for number in syscall.names().iter().filter_map(|name| number(name)) {
            let args = args.clone();
            rules.entry(number).or_default().push(Rule { action, args });
        }
    }
    Ok(rules)
}

fn comparison(arg: &LinuxSeccompArg) -> Result<Comparison, SeccompError> {
    if arg.index() >= ARGUMENTS_MAX {
        return Err(SeccompError::ArgumentIndex(arg.index()));
    }
    let masked = arg.op() == LinuxSeccompOperator::ScmpCmpMaskedEq;
    Ok(Comparison {
        index: arg.index() as u32,
        op: arg.op(),
        value: if masked {
            arg.value_two().unwrap_or(0)
        } else {
            arg.value()
        },
        mask: if masked { arg.value() } else { u64::MAX },
    })
}

/// First number of each range with its verdict, in order, beginning at `first`; neighbours differ.
fn intervals(first: u32, rules: BTreeMap<u32, Vec<Rule>>, default: u32) -> Vec<(u32, Verdict)> {
    let gap = Verdict::Always(default);
    let mut bounds = vec![(first, gap.clone())];
    if rules.is_empty() {
        return bounds;
    }
    for (number, mut rules) in rules {
        let unconditional = rules
            .iter()
            .find(|rule| rule.args.is_empty())
            .map(|r| r.action);
        let verdict = match unconditional {
            Some(action) => Verdict::Always(action),
            None => {
                rules.push(Rule {
                    action: default,
                    args: Vec::new(),
                });
                Verdict::ByArguments(rules)
            }
        };
        match bounds.last_mut() {
            Some(last) if last.0 == number => last.1 = verdict,
            _ => bounds.push((number, verdict)),
        }
        bounds.push((number + 1, gap.clone()));
    }
    if let Some(last) = bounds.last_mut() {
        last.1 = Verdict::Always(unknown_action(default));
    }
    bounds.dedup_by(|next, previous| next.1 == previous.1);
    bounds
}

/// Numbers above every one that the profile knows are newer than the profile: programs expect ENOSYS for a system
/// call that is not there, and fall back to an older one.
fn unknown_action(default: u32) -> u32 {
    if default & libc::SECCOMP_RET_ACTION_FULL == libc::SECCOMP_RET_ERRNO {
        libc::SECCOMP_RET_ERRNO | libc::ENOSYS.unsigned_abs()
    } else {
        default
    }
}

fn section(code: &mut Vec<sock_filter>, arch: u32, bounds: &[(u32, Verdict)]) {
    let body = search(bounds);
    code.push(jump(JUMP_EQ, arch, 1, 0));
    code.push(statement(JUMP, body.len() as u32 + 1));
    code.push(statement(LOAD, OFFSET_NR));
    code.extend(body);
}

/// Code that returns the verdict of the number in the accumulator; it never falls off its end.
fn search(bounds: &[(u32, Verdict)]) -> Vec<sock_filter> {
    if let [(_, verdict)] = bounds {
        return verdict_code(verdict);
    }
    let (lower, upper) = bounds.split_at(bounds.len() / 2);
    let below = search(lower);
    let pivot = upper[0].0;
    let mut code = Vec::with_capacity(bounds.len() * 2);
    match u8::try_from(below.len()) {
        Ok(distance) => code.push(jump(JUMP_GE, pivot, distance, 0)),
        Err(_) => {
            code.push(jump(JUMP_GE, pivot, 0, 1));
            code.push(statement(JUMP, below.len() as u32));
        }
    }
    code.extend(below);
    code.extend(search(upper));
    code
}

fn verdict_code(verdict: &Verdict) -> Vec<sock_filter> {
    let rules = match verdict {
        Verdict::Always(action) => return vec![statement(RETURN, *action)],
        Verdict::ByArguments(rules) => rules,
    };
    let mut code = Vec::new();
    for rule in rules {
        let checks: Vec<Vec<Step>> = rule.args.iter().map(steps).collect();
        // Every check ends with the return of the rule behind the last one.
        let total: usize = checks.iter().map(Vec::len).sum::<usize>() + 1;
        let mut done = 0;
        for check in checks {
            let next_check = done + check.len();
            for step in check {
                done += 1;
                code.push(step.place(next_check - done, total - done));
            }
        }
        code.push(statement(RETURN, rule.action));
    }
    code
}

/// An instruction of a comparison whose targets are not numbers yet.
enum Step {
    Plain(sock_filter),
    Jump {
        code: u16,
        value: u32,
        yes: Target,
        no: Target,
    },
}

#[derive(Clone, Copy)]
enum Target {
    Next,
    /// The comparison holds.
    Pass,
    /// The rule does not apply.
    Fail,
}

impl Step {
    fn place(self, to_pass: usize, to_fail: usize) -> sock_filter {
        // A rule has at most 6 comparisons of 6 steps: every distance fits into a byte.
        let distance = |target| match target {
            Target::Next => 0,
            Target::Pass => to_pass as u8,
            Target::Fail => to_fail as u8,
        };
        match self {
            Self::Plain(instruction) => instruction,
            Self::Jump {
                code,
                value,
                yes,
                no,
            } => jump(code, value, distance(yes), distance(no)),
        }
    }
}

/// The 64-bit comparison as comparisons of 32-bit halves.
fn steps(comparison: &Comparison) -> Vec<Step> {
    use Target::{Fail, Next, Pass};
    let low_offset = OFFSET_ARGS + 8 * comparison.index;
    let (low, high) = (comparison.value as u32, (comparison.value >> 32) as u32);
    let load = |offset| Step::Plain(statement(LOAD, offset));
    let mask = |bits: u64| Step::Plain(statement(AND, bits as u32));
    let test = |code, value, yes, no| Step::Jump {
        code,
        value,
        yes,
        no,
    };
    let (load_high, load_low) = (load(low_offset + 4), load(low_offset));
    match comparison.op {
        LinuxSeccompOperator::ScmpCmpEq => vec![
            load_high,
            test(JUMP_EQ, high, Next, Fail),
            load_low,
            test(JUMP_EQ, low, Next, Fail),
        ],
        LinuxSeccompOperator::ScmpCmpNe => vec![
            load_high,
            test(JUMP_EQ, high, Next, Pass),
            load_low,
            test(JUMP_EQ, low, Fail, Next),
        ],
        LinuxSeccompOperator::ScmpCmpMaskedEq => vec![
            load_high,
            mask(comparison.mask >> 32),
            test(JUMP_EQ, high, Next, Fail),
            load_low,
            mask(comparison.mask),
            test(JUMP_EQ, low, Next, Fail),
        ],
        LinuxSeccompOperator::ScmpCmpGt | LinuxSeccompOperator::ScmpCmpGe => vec![
            load_high,
            test(JUMP_GT, high, Pass, Next),
            test(JUMP_EQ, high, Next, Fail),
            load_low,
            match comparison.op {
                LinuxSeccompOperator::ScmpCmpGt => test(JUMP_GT, low, Next, Fail),
                _ => test(JUMP_GE, low, Next, Fail),
            },
        ],
        LinuxSeccompOperator::ScmpCmpLt | LinuxSeccompOperator::ScmpCmpLe => vec![
            load_high,
            test(JUMP_GT, high, Fail, Next),
            test(JUMP_EQ, high, Next, Pass),
            load_low,
            match comparison.op {
                LinuxSeccompOperator::ScmpCmpLt => test(JUMP_GE, low, Fail, Next),
                _ => test(JUMP_GT, low, Fail, Next),
            },
        ],
    }
}

fn action(action: LinuxSeccompAction, errno: Option<u32>) -> Result<u32, SeccompError> {
    let data = errno.unwrap_or(libc::EPERM.unsigned_abs()) & libc::SECCOMP_RET_DATA;
    Ok(match action {
        LinuxSeccompAction::ScmpActAllow => libc::SECCOMP_RET_ALLOW,
        LinuxSeccompAction::ScmpActErrno => libc::SECCOMP_RET_ERRNO | data,
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => {
            libc::SECCOMP_RET_KILL_THREAD
        }
        LinuxSeccompAction::ScmpActKillProcess => libc::SECCOMP_RET_KILL_PROCESS,
        LinuxSeccompAction::ScmpActTrap => libc::SECCOMP_RET_TRAP,
        LinuxSeccompAction::ScmpActLog => libc::SECCOMP_RET_LOG,
        LinuxSeccompAction::ScmpActTrace | LinuxSeccompAction::ScmpActNotify => {
            return Err(SeccompError::Action(action));
        }
    })
}

fn flags(profile: &LinuxSeccomp) -> Result<libc::c_ulong, SeccompError> {
    profile.flags().iter().flatten().try_fold(0, |bits, flag| {
        Ok(bits
            | match flag {
                LinuxSeccompFilterFlag::SeccompFilterFlagLog => libc::SECCOMP_FILTER_FLAG_LOG,
                // One thread: synchronising them all changes nothing.
                LinuxSeccompFilterFlag::SeccompFilterFlagTsync => 0,
                LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => {
                    libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW
                }
                other => return Err(SeccompError::Flag(*other)),
            })
    })
}

const fn statement(code: u16, k: u32) -> sock_filter {
    sock_filter {
        code,
        jt: 0,
        jf: 0,
        k,
    }
}

const fn jump(code: u16, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter { code, jt, jf, k }
}

#[cfg(test)]
#[path = "compile_tests.rs"]
mod tests;
