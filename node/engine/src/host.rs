//! Facts about the machine.

use crate::error::{EngineError, Result};
use crate::info::InterfaceStats;
use crate::options::EngineOptions;
use std::fs;
use std::path::Path;

/// What does not change while the engine runs.
#[derive(Debug, Clone)]
pub(crate) struct HostFacts {
    pub(crate) kernel_version: String,
    pub(crate) operating_system: String,
    pub(crate) os_version: String,
    pub(crate) architecture: String,
    pub(crate) hostname: String,
    pub(crate) cpus: usize,
    pub(crate) memory_bytes: u64,
    pub(crate) cgroup_version: u8,
}

/// Reads them.
pub(crate) fn facts() -> Result<HostFacts> {
    let names = nix::sys::utsname::uname()
        .map_err(|errno| EngineError::disk("read", "/proc/sys/kernel")(errno.into()))?;
    let text = |part: &std::ffi::OsStr| part.to_string_lossy().into_owned();
    let release = read("/etc/os-release");
    let field = |key: &str| {
        release
            .lines()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
            .map(|value| value.trim_matches('"').to_owned())
            .unwrap_or_default()
    };
    Ok(HostFacts {
        kernel_version: text(names.release()),
        operating_system: field("PRETTY_NAME"),
        os_version: field("VERSION_ID"),
        architecture: text(names.machine()),
        hostname: text(names.nodename()),
        cpus: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        memory_bytes: memory_bytes(),
        cgroup_version: if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
            2
        } else {
            1
        },
    })
}

fn read(path: &str) -> String {
    // A fact that the machine does not tell is empty.
    fs::read_to_string(path).unwrap_or_default()
}

/// Bytes of memory of the machine.
pub(crate) fn memory_bytes() -> u64 {
    read("/proc/meminfo")
        .lines()
        .find_map(|line| {
            line.strip_prefix("MemTotal:")?
                .trim()
                .strip_suffix("kB")?
                .trim()
                .parse::<u64>()
                .ok()
        })
        .map_or(0, |kib| kib * 1024)
}

/// Controllers that can limit memory, swap, CPU time and processes.
pub(crate) fn controllers(version: u8) -> [bool; 4] {
    if version == 2 {
        let list = read("/sys/fs/cgroup/cgroup.controllers");
        let has = |name: &str| list.split_whitespace().any(|word| word == name);
        [has("memory"), has("memory"), has("cpu"), has("pids")]
    } else {
        let exists = |path: &str| Path::new("/sys/fs/cgroup").join(path).exists();
        [
            exists("memory/memory.limit_in_bytes"),
            exists("memory/memory.memsw.limit_in_bytes"),
            exists("cpu/cpu.cfs_quota_us"),
            exists("pids"),
        ]
    }
}

/// Whether packets are forwarded.
pub(crate) fn forwards_ipv4() -> bool {
    read("/proc/sys/net/ipv4/ip_forward").trim() == "1"
}

/// Nanoseconds of CPU time of all CPUs since boot.
pub(crate) fn cpu_total_ns() -> u64 {
    const NANOS_PER_TICK: u64 = 10_000_000;
    let stat = read("/proc/stat");
    // user nice system idle iowait irq softirq steal; what guests use is in user already.
    let ticks: u64 = stat
        .lines()
        .next()
        .into_iter()
        .flat_map(|line| line.split_whitespace().skip(1).take(8))
        .filter_map(|word| word.parse::<u64>().ok())
        .sum();
    ticks.saturating_mul(NANOS_PER_TICK)
}

/// Counters of the interfaces that a process sees, without the loopback.
pub(crate) fn interfaces(pid: u32) -> Vec<(String, InterfaceStats)> {
    read(&format!("/proc/{pid}/net/dev"))
        .lines()
        .filter_map(|line| {
            let (name, rest) = line.split_once(':')?;
            let numbers: Vec<u64> = rest
                .split_whitespace()
                .filter_map(|word| word.parse().ok())
                .collect();
            let at = |place: usize| numbers.get(place).copied().unwrap_or(0);
            (numbers.len() >= 12 && name.trim() != "lo").then(|| {
                let stats = InterfaceStats {
                    rx_bytes: at(0),
                    rx_packets: at(1),
                    rx_errors: at(2),
                    rx_dropped: at(3),
                    tx_bytes: at(8),
                    tx_packets: at(9),
                    tx_errors: at(10),
                    tx_dropped: at(11),
                };
                (name.trim().to_owned(), stats)
            })
        })
        .collect()
}

/// The processes of a container: those whose cgroup is the container's.
pub(crate) fn processes(
    options: &EngineOptions,
    id: &shoal_model::ContainerId,
) -> Vec<Vec<String>> {
    let mark = format!("{}/{id}", options.cgroup_parent.trim_end_matches('/'));
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let mut pids: Vec<u32> = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| {
            read(&format!("/proc/{pid}/cgroup")).lines().any(|line| {
                line.splitn(3, ':')
                    .nth(2)
                    .is_some_and(|path| in_group(path, &mark))
            })
        })
        .collect();
    pids.sort_unstable();
    pids.into_iter().filter_map(process_row).collect()
}

/// The path may have a prefix: the daemon's own place in the hierarchy.
fn in_group(path: &str, mark: &str) -> bool {
    path.split_once(mark)
        .is_some_and(|(_, rest)| rest.is_empty() || rest.starts_with('/'))
}

/// `UID PID PPID C STIME TTY TIME CMD`, as `ps -ef` has them.
fn process_row(pid: u32) -> Option<Vec<String>> {
    const TICKS_PER_SECOND: u64 = 100;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (head, tail) = stat.rsplit_once(')')?;
    let comm = head.split_once('(')?.1;
    let fields: Vec<&str> = tail.split_whitespace().collect();
    let number = |place: usize| {
        fields
            .get(place)
            .and_then(|word| word.parse::<u64>().ok())
            .unwrap_or(0)
    };
    let uid = read(&format!("/proc/{pid}/status"))
        .lines()
        .find_map(|line| {
            line.strip_prefix("Uid:")?
                .split_whitespace()
                .next()
                .map(str::to_owned)
        })?;
    let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let words: Vec<_> = line
        .split(|byte| *byte == 0)
        .filter(|word| !word.is_empty())
        .map(|word| String::from_utf8_lossy(word).into_owned())
        .collect();
    let command = if words.is_empty() {
        format!("[{comm}]")
    } else {
        words.join(" ")
    };
    let seconds = (number(11) + number(12)) / TICKS_PER_SECOND;
    let tty = if number(4) == 0 {
        "?".to_owned()
    } else {
        format!("pts/{}", number(4) & 0xff)
    };
    let started = start_time(number(19) / TICKS_PER_SECOND);
    Some(vec![
        uid,
        pid.to_string(),
        number(1).to_string(),
        "0".to_owned(),
        started,
        tty,
        format!(
            "{:02}:{:02}:{:02}",
            seconds / 3600,
            seconds / 60 % 60,
            seconds % 60
        ),
        command,
    ])
}

fn start_time(after_boot_s: u64) -> String {
    let boot = read("/proc/stat")
        .lines()
        .find_map(|line| line.strip_prefix("btime ")?.parse::<u64>().ok())
        .unwrap_or(0);
    let time = i64::try_from(boot + after_boot_s)
        .ok()
        .and_then(|seconds| jiff::Timestamp::from_second(seconds).ok());
    time.map_or_else(String::new, |time| time.strftime("%H:%M").to_string())
}
