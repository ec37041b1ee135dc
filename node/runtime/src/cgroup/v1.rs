//! cgroup v1: one hierarchy per controller.

use super::{CgroupError, Setting, flat_keyed, read_number, read_text, value_of, write};
use crate::Stats;
use crate::stats::{BlockIoStats, CpuStats, MemoryStats, PidsStats};
use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxResources};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// The controllers that this runtime knows, in the order in which a process enters their groups.
pub(super) const CONTROLLERS: [&str; 8] = [
    "freezer", "memory", "cpu", "cpuacct", "cpuset", "devices", "pids", "blkio",
];

/// The kernel's "no limit" of memory, rounded down to whole pages.
const MEMORY_UNLIMITED_MIN: u64 = 1 << 62;

/// Nanoseconds per tick of `cpuacct.stat`: USER_HZ is 100 on every architecture we run on.
const TICK_NS: u64 = 10_000_000;

/// The controllers in which a container gets a group: `cpuset` only when asked for, all others always.
pub(super) fn used(
    mounts: &[(&'static str, PathBuf)],
    resources: Option<&LinuxResources>,
) -> Vec<&'static str> {
    let wants_cpuset = resources
        .and_then(|r| r.cpu().as_ref())
        .is_some_and(|cpu| cpu.cpus().is_some() || cpu.mems().is_some());
    let mut seen = Vec::new();
    let mut used = Vec::new();
    for (name, mount) in mounts {
        // Hierarchies with several controllers show up once per name (`cpu`, `cpuacct`), as links to one mount.
        let device = std::fs::metadata(mount).map(|meta| meta.dev()).ok();
        if (*name != "cpuset" || wants_cpuset) && (device.is_none() || !seen.contains(&device)) {
            seen.push(device);
            used.push(*name);
        }
    }
    used
}

/// A new cpuset group is empty, and a process can't enter it before it has processors and memory nodes.
pub(super) fn inherit_cpuset(
    mounts: &[(&'static str, PathBuf)],
    path: &Path,
) -> Result<(), CgroupError> {
    let Some((_, root)) = mounts.iter().find(|(name, _)| *name == "cpuset") else {
        return Ok(());
    };
    let mut dir = root.clone();
    for part in path.components() {
        let parent = dir.clone();
        dir.push(part);
        for file in ["cpuset.cpus", "cpuset.mems"] {
            if read_text(&dir.join(file)).trim().is_empty() {
                write(&dir.join(file), read_text(&parent.join(file)).trim())?;
            }
        }
    }
    Ok(())
}

struct Settings(Vec<Setting>);

impl Settings {
    fn add(&mut self, controller: &'static str, file: &str, value: Option<impl ToString>) {
        self.push(controller, file, value, false);
    }

    fn add_optional(&mut self, controller: &'static str, file: &str, value: Option<impl ToString>) {
        self.push(controller, file, value, true);
    }

    fn push(
        &mut self,
        controller: &'static str,
        file: &str,
        value: Option<impl ToString>,
        optional: bool,
    ) {
        if let Some(value) = value {
            self.0.push(Setting {
                controller,
                file: file.to_owned(),
                value: value.to_string(),
                optional,
            });
        }
    }
}

/// What to write for `resources`.
pub(super) fn settings(resources: &LinuxResources) -> Result<Vec<Setting>, CgroupError> {
    let mut settings = Settings(Vec::new());
    if resources
        .unified()
        .as_ref()
        .is_some_and(|map| !map.is_empty())
    {
        return Err(CgroupError::Unsupported("unified"));
    }
    for rule in resources.devices().iter().flatten() {
        let file = if rule.allow() {
            "devices.allow"
        } else {
            "devices.deny"
        };
        settings.add("devices", file, Some(super::devices::v1_rule(rule)));
    }
    if let Some(memory) = resources.memory() {
        memory_settings(&mut settings, memory)?;
    }
    if let Some(cpu) = resources.cpu() {
        cpu_settings(&mut settings, cpu)?;
    }
    if let Some(pids) = resources.pids() {
        let limit = pids.limit();
        let value = if limit > 0 {
            limit.to_string()
        } else {
            "max".to_owned()
        };
        settings.add("pids", "pids.max", Some(value));
    }
    if let Some(block) = resources.block_io() {
        block_settings(&mut settings, block)?;
    }
    Ok(settings.0)
}

fn memory_settings(settings: &mut Settings, memory: &LinuxMemory) -> Result<(), CgroupError> {
    settings.add(
        "memory",
        "memory.limit_in_bytes",
        memory.limit().filter(|l| *l != 0),
    );
    // Kernels without swap accounting lack the file.
    let swap = memory.swap().filter(|s| *s != 0);
    settings.add_optional("memory", "memory.memsw.limit_in_bytes", swap);
    let reservation = memory.reservation().filter(|r| *r != 0);
    settings.add("memory", "memory.soft_limit_in_bytes", reservation);
    settings.add("memory", "memory.swappiness", memory.swappiness());
    let disable = memory
        .disable_oom_killer()
        .filter(|disable| *disable)
        .map(|_| 1);
    settings.add("memory", "memory.oom_control", disable);
    if memory.kernel().is_some_and(|limit| limit > 0) {
        return Err(CgroupError::Unsupported("memory.kernel"));
    }
    if memory.kernel_tcp().is_some_and(|limit| limit > 0) {
        return Err(CgroupError::Unsupported("memory.kernelTCP"));
    }
    Ok(())
}

fn cpu_settings(settings: &mut Settings, cpu: &LinuxCpu) -> Result<(), CgroupError> {
    settings.add("cpu", "cpu.shares", cpu.shares().filter(|s| *s != 0));
    // The period first: a quota is refused when it is too small for the period that is still set.
    settings.add("cpu", "cpu.cfs_period_us", cpu.period().filter(|p| *p != 0));
    settings.add("cpu", "cpu.cfs_quota_us", cpu.quota().filter(|q| *q != 0));
    settings.add_optional("cpu", "cpu.cfs_burst_us", cpu.burst());
    settings.add(
        "cpu",
        "cpu.rt_period_us",
        cpu.realtime_period().filter(|p| *p != 0),
    );
    settings.add(
        "cpu",
        "cpu.rt_runtime_us",
        cpu.realtime_runtime().filter(|r| *r != 0),
    );
    settings.add("cpu", "cpu.idle", cpu.idle());
    settings.add("cpuset", "cpuset.cpus", cpu.cpus().as_ref());
    settings.add("cpuset", "cpuset.mems", cpu.mems().as_ref());
    Ok(())
}

fn block_settings(settings: &mut Settings, block: &LinuxBlockIo) -> Result<(), CgroupError> {
    if block.leaf_weight().is_some_and(|weight| weight != 0) {
        return Err(CgroupError::Unsupported("blockIO.leafWeight"));
    }
    let weight = block.weight().filter(|weight| *weight != 0);
    // Which of the two exists depends on the disk's scheduler; without either, weights mean nothing.
    settings.add_optional("blkio", "blkio.weight", weight);
    settings.add_optional("blkio", "blkio.bfq.weight", weight);
    for device in block.weight_device().iter().flatten() {
        let value = device
            .weight()
            .map(|w| format!("{}:{} {w}", device.major(), device.minor()));
        settings.add_optional("blkio", "blkio.weight_device", value.clone());
        settings.add_optional("blkio", "blkio.bfq.weight_device", value);
    }
    for (file, devices) in [
        (
            "blkio.throttle.read_bps_device",
            block.throttle_read_bps_device(),
        ),
        (
            "blkio.throttle.write_bps_device",
            block.throttle_write_bps_device(),
        ),
        (
            "blkio.throttle.read_iops_device",
            block.throttle_read_iops_device(),
        ),
        (
            "blkio.throttle.write_iops_device",
            block.throttle_write_iops_device(),
        ),
    ] {
        for device in devices.iter().flatten() {
            let value = format!("{}:{} {}", device.major(), device.minor(), device.rate());
            settings.add("blkio", file, Some(value));
        }
    }
    Ok(())
}

/// Reads the counters from the directories that `dir` names.
pub(super) fn stats(dir: impl Fn(&str) -> Option<PathBuf>) -> Stats {
    let file = |controller: &str, name: &str| {
        dir(controller).map_or_else(PathBuf::new, |dir| dir.join(name))
    };
    let cpu_stat = read_text(&file("cpu", "cpu.stat"));
    let ticks = read_text(&file("cpuacct", "cpuacct.stat"));
    let memory_stat = read_text(&file("memory", "memory.stat"));
    let limit = read_number(&file("memory", "memory.limit_in_bytes"));
    let oom = read_text(&file("memory", "memory.oom_control"));
    let total = |key| value_of(&memory_stat, key);
    Stats {
        cpu: CpuStats {
            usage_ns: read_number(&file("cpuacct", "cpuacct.usage")),
            user_ns: value_of(&ticks, "user") * TICK_NS,
            system_ns: value_of(&ticks, "system") * TICK_NS,
            periods: value_of(&cpu_stat, "nr_periods"),
            throttled_periods: value_of(&cpu_stat, "nr_throttled"),
            throttled_ns: value_of(&cpu_stat, "throttled_time"),
        },
        memory: MemoryStats {
            usage_bytes: read_number(&file("memory", "memory.usage_in_bytes")),
            max_usage_bytes: read_number(&file("memory", "memory.max_usage_in_bytes")),
            limit_bytes: (limit > 0 && limit < MEMORY_UNLIMITED_MIN).then_some(limit),
            inactive_file_bytes: total("total_inactive_file"),
            anon_bytes: total("total_rss"),
            file_bytes: total("total_cache"),
            oom_kills: value_of(&oom, "oom_kill"),
        },
        pids: PidsStats {
            current: read_number(&file("pids", "pids.current")),
            limit: read_text(&file("pids", "pids.max")).trim().parse().ok(),
        },
        block_io: block_io(
            &read_text(&file("blkio", "blkio.throttle.io_service_bytes_recursive")),
            &read_text(&file("blkio", "blkio.throttle.io_serviced_recursive")),
        ),
    }
}

/// Lines `major:minor Operation count`.
fn block_io(bytes: &str, operations: &str) -> Vec<BlockIoStats> {
    let mut devices: Vec<BlockIoStats> = Vec::new();
    for (text, is_bytes) in [(bytes, true), (operations, false)] {
        for line in text.lines() {
            let Some((device, rest)) = line.split_once(' ') else {
                continue;
            };
            let Some((major, minor)) = device.split_once(':') else {
                continue;
            };
            let (Ok(major), Ok(minor)) = (major.parse(), minor.parse()) else {
                continue;
            };
            let Some((operation, count)) = flat_keyed(rest).next() else {
                continue;
            };
            let at = devices
                .iter()
                .position(|d| d.major == major && d.minor == minor);
            let at = at.unwrap_or_else(|| {
                devices.push(BlockIoStats {
                    major,
                    minor,
                    ..BlockIoStats::default()
                });
                devices.len() - 1
            });
            match (operation, is_bytes) {
                ("Read", true) => devices[at].read_bytes = count,
                ("Write", true) => devices[at].write_bytes = count,
                ("Read", false) => devices[at].read_ops = count,
                ("Write", false) => devices[at].write_ops = count,
                _ => {}
            }
        }
    }
    devices
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(json: &str, expected: &[(&str, &str)]) {
        let resources: LinuxResources = serde_json::from_str(json).unwrap();
        let settings = settings(&resources).unwrap();
        let found: Vec<_> = settings
            .iter()
            .map(|s| (s.file.as_str(), s.value.as_str()))
            .collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn resources_become_files() {
        check(
            r#"{"memory":{"limit":64,"swap":128,"reservation":32}}"#,
            &[
                ("memory.limit_in_bytes", "64"),
                ("memory.memsw.limit_in_bytes", "128"),
                ("memory.soft_limit_in_bytes", "32"),
            ],
        );
        check(
            r#"{"cpu":{"shares":512,"quota":50000,"period":100000,"cpus":"0-1"},"pids":{"limit":32}}"#,
            &[
                ("cpu.shares", "512"),
                ("cpu.cfs_period_us", "100000"),
                ("cpu.cfs_quota_us", "50000"),
                ("cpuset.cpus", "0-1"),
                ("pids.max", "32"),
            ],
        );
        check(r#"{"pids":{"limit":-1}}"#, &[("pids.max", "max")]);
        check(
            r#"{"devices":[{"allow":false,"access":"rwm"},{"allow":true,"type":"c","major":1,"minor":3,"access":"rw"}]}"#,
            &[("devices.deny", "a *:* rwm"), ("devices.allow", "c 1:3 rw")],
        );
    }

    #[test]
    fn what_v1_lacks_is_refused() {
        let resources: LinuxResources =
            serde_json::from_str(r#"{"unified":{"memory.high":"1"}}"#).unwrap();
        assert_eq!(
            settings(&resources).unwrap_err().to_string(),
            "linux.resources.unified is not supported on this host"
        );
    }

    #[test]
    fn block_devices_are_summed_by_device() {
        let stats = block_io(
            "8:0 Read 5\n8:0 Write 6\nTotal 11\n",
            "8:0 Read 1\n7:1 Write 2\n",
        );
        assert_eq!(stats.len(), 2);
        assert_eq!(
            (stats[0].read_bytes, stats[0].write_bytes, stats[0].read_ops),
            (5, 6, 1)
        );
        assert_eq!((stats[1].major, stats[1].write_ops), (7, 2));
    }
}
