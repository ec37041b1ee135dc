//! cgroup v2: one hierarchy for all controllers.

use super::{CgroupError, Setting, read_number, read_text, value_of, write};
use crate::Stats;
use crate::stats::{BlockIoStats, CpuStats, MemoryStats, PidsStats};
use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxResources};
use std::path::Path;

/// The period of `cpu.max` when only a quota is given, microseconds.
const PERIOD_DEFAULT_US: u64 = 100_000;

/// Lets the groups along `path` give their children every controller that they have.
pub(super) fn enable_controllers(root: &Path, path: &Path) -> Result<(), CgroupError> {
    let mut dir = root.to_owned();
    for part in path.components() {
        super::make_dir(&dir)?;
        let available = read_text(&dir.join("cgroup.controllers"));
        let enabled = read_text(&dir.join("cgroup.subtree_control"));
        let missing: Vec<String> = available
            .split_whitespace()
            .filter(|name| !enabled.split_whitespace().any(|e| e == *name))
            .map(|name| format!("+{name}"))
            .collect();
        if !missing.is_empty() {
            write(&dir.join("cgroup.subtree_control"), &missing.join(" "))?;
        }
        dir.push(part);
    }
    Ok(())
}

fn add(settings: &mut Vec<Setting>, file: &str, value: Option<impl ToString>) {
    if let Some(value) = value {
        settings.push(Setting {
            controller: "",
            file: file.to_owned(),
            value: value.to_string(),
            optional: false,
        });
    }
}

/// A v1 number as v2 writes it: -1 is "max".
fn or_max(value: i64) -> String {
    if value < 0 {
        "max".to_owned()
    } else {
        value.to_string()
    }
}

/// What to write for `resources`.
pub(super) fn settings(resources: &LinuxResources) -> Result<Vec<Setting>, CgroupError> {
    let mut settings = Vec::new();
    if let Some(memory) = resources.memory() {
        memory_settings(&mut settings, memory)?;
    }
    if let Some(cpu) = resources.cpu() {
        cpu_settings(&mut settings, cpu)?;
    }
    if let Some(pids) = resources.pids() {
        let limit = pids.limit();
        add(
            &mut settings,
            "pids.max",
            Some(or_max(if limit > 0 { limit } else { -1 })),
        );
    }
    if let Some(block) = resources.block_io() {
        block_settings(&mut settings, block)?;
    }
    let mut unified: Vec<_> = resources.unified().iter().flatten().collect();
    unified.sort();
    for (file, value) in unified {
        if file.contains('/') {
            return Err(CgroupError::Unsupported("unified with a `/` in its key"));
        }
        add(&mut settings, file, Some(value));
    }
    Ok(settings)
}

fn memory_settings(settings: &mut Vec<Setting>, memory: &LinuxMemory) -> Result<(), CgroupError> {
    let limit = memory.limit().filter(|l| *l != 0);
    add(settings, "memory.max", limit.map(or_max));
    if let Some(swap) = memory.swap().filter(|s| *s != 0) {
        // OCI counts memory and swap together, v2 counts swap alone.
        let alone = match (swap, limit) {
            (swap, _) if swap < 0 => -1,
            (swap, Some(limit)) if limit > 0 => (swap - limit).max(0),
            (_, _) => return Err(CgroupError::Unsupported("memory.swap without memory.limit")),
        };
        settings.push(Setting {
            controller: "",
            file: "memory.swap.max".to_owned(),
            value: or_max(alone),
            optional: true,
        });
    }
    add(
        settings,
        "memory.low",
        memory.reservation().filter(|r| *r != 0).map(or_max),
    );
    if memory.swappiness().is_some() {
        return Err(CgroupError::Unsupported("memory.swappiness"));
    }
    if memory.disable_oom_killer() == Some(true) {
        return Err(CgroupError::Unsupported("memory.disableOOMKiller"));
    }
    if memory.kernel().is_some_and(|limit| limit > 0) {
        return Err(CgroupError::Unsupported("memory.kernel"));
    }
    if memory.kernel_tcp().is_some_and(|limit| limit > 0) {
        return Err(CgroupError::Unsupported("memory.kernelTCP"));
    }
    Ok(())
}

fn cpu_settings(settings: &mut Vec<Setting>, cpu: &LinuxCpu) -> Result<(), CgroupError> {
    add(
        settings,
        "cpu.weight",
        cpu.shares().filter(|s| *s != 0).map(weight_of_shares),
    );
    let period = cpu.period().filter(|p| *p != 0);
    match (cpu.quota().filter(|q| *q != 0), period) {
        (None, None) => {}
        (quota, period) => {
            let quota = or_max(quota.unwrap_or(-1));
            let period = period.unwrap_or(PERIOD_DEFAULT_US);
            add(settings, "cpu.max", Some(format!("{quota} {period}")));
        }
    }
    add(settings, "cpu.max.burst", cpu.burst());
    add(settings, "cpu.idle", cpu.idle());
    add(settings, "cpuset.cpus", cpu.cpus().as_ref());
    add(settings, "cpuset.mems", cpu.mems().as_ref());
    let realtime = cpu.realtime_period().is_some_and(|p| p != 0)
        || cpu.realtime_runtime().is_some_and(|r| r != 0);
    if realtime {
        return Err(CgroupError::Unsupported(
            "cpu.realtimePeriod or cpu.realtimeRuntime",
        ));
    }
    Ok(())
}

/// From 2..=262144 to 1..=10000, as every runtime converts it.
fn weight_of_shares(shares: u64) -> u64 {
    let shares = shares.clamp(2, 262_144);
    1 + (shares - 2) * 9_999 / 262_142
}

fn block_settings(settings: &mut Vec<Setting>, block: &LinuxBlockIo) -> Result<(), CgroupError> {
    if let Some(weight) = block.weight().filter(|weight| *weight != 0) {
        for (file, value) in [
            ("io.bfq.weight", u64::from(weight)),
            (
                "io.weight",
                1 + (u64::from(weight).max(10) - 10) * 9_999 / 990,
            ),
        ] {
            settings.push(Setting {
                controller: "",
                file: file.to_owned(),
                value: value.to_string(),
                optional: true,
            });
        }
    }
    if block.leaf_weight().is_some_and(|weight| weight != 0) {
        return Err(CgroupError::Unsupported("blockIO.leafWeight"));
    }
    for device in block.weight_device().iter().flatten() {
        let value = device
            .weight()
            .map(|w| format!("{}:{} {w}", device.major(), device.minor()));
        add(settings, "io.bfq.weight", value);
    }
    for (key, devices) in [
        ("rbps", block.throttle_read_bps_device()),
        ("wbps", block.throttle_write_bps_device()),
        ("riops", block.throttle_read_iops_device()),
        ("wiops", block.throttle_write_iops_device()),
    ] {
        for device in devices.iter().flatten() {
            let value = format!(
                "{}:{} {key}={}",
                device.major(),
                device.minor(),
                device.rate()
            );
            add(settings, "io.max", Some(value));
        }
    }
    Ok(())
}

/// Reads the counters.
pub(super) fn stats(dir: &Path) -> Stats {
    let cpu = read_text(&dir.join("cpu.stat"));
    let memory = read_text(&dir.join("memory.stat"));
    let limit = read_text(&dir.join("memory.max"));
    let events = read_text(&dir.join("memory.events"));
    Stats {
        cpu: CpuStats {
            usage_ns: value_of(&cpu, "usage_usec") * 1000,
            user_ns: value_of(&cpu, "user_usec") * 1000,
            system_ns: value_of(&cpu, "system_usec") * 1000,
            periods: value_of(&cpu, "nr_periods"),
            throttled_periods: value_of(&cpu, "nr_throttled"),
            throttled_ns: value_of(&cpu, "throttled_usec") * 1000,
        },
        memory: MemoryStats {
            usage_bytes: read_number(&dir.join("memory.current")),
            max_usage_bytes: read_number(&dir.join("memory.peak")),
            limit_bytes: limit.trim().parse().ok(),
            inactive_file_bytes: value_of(&memory, "inactive_file"),
            anon_bytes: value_of(&memory, "anon"),
            file_bytes: value_of(&memory, "file"),
            oom_kills: value_of(&events, "oom_kill"),
        },
        pids: PidsStats {
            current: read_number(&dir.join("pids.current")),
            limit: read_text(&dir.join("pids.max")).trim().parse().ok(),
        },
        block_io: read_text(&dir.join("io.stat"))
            .lines()
            .filter_map(block_io)
            .collect(),
    }
}

/// A line `major:minor rbytes=… wbytes=… rios=… wios=…`.
fn block_io(line: &str) -> Option<BlockIoStats> {
    let mut words = line.split_whitespace();
    let (major, minor) = words.next()?.split_once(':')?;
    let mut device = BlockIoStats {
        major: major.parse().ok()?,
        minor: minor.parse().ok()?,
        ..BlockIoStats::default()
    };
    for (key, value) in words.filter_map(|word| word.split_once('=')) {
        let value = value.parse().unwrap_or(0);
        match key {
            "rbytes" => device.read_bytes = value,
            "wbytes" => device.write_bytes = value,
            "rios" => device.read_ops = value,
            "wios" => device.write_ops = value,
            _ => {}
        }
    }
    Some(device)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

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
                ("memory.max", "64"),
                ("memory.swap.max", "64"),
                ("memory.low", "32"),
            ],
        );
        check(
            r#"{"memory":{"limit":64,"swap":-1}}"#,
            &[("memory.max", "64"), ("memory.swap.max", "max")],
        );
        check(
            r#"{"cpu":{"shares":1024,"quota":50000,"period":100000}}"#,
            &[("cpu.weight", "39"), ("cpu.max", "50000 100000")],
        );
        check(r#"{"pids":{"limit":0}}"#, &[("pids.max", "max")]);
        check(
            r#"{"unified":{"memory.high":"7"}}"#,
            &[("memory.high", "7")],
        );
    }

    #[test]
    fn weights_span_the_whole_range() {
        assert_eq!(weight_of_shares(2), 1);
        assert_eq!(weight_of_shares(262_144), 10_000);
    }

    #[test]
    fn counters_are_read_from_their_files() {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        put("cpu.stat", "usage_usec 5\nuser_usec 3\nnr_throttled 2\n");
        put("memory.events", "low 0\noom 1\noom_kill 4\n");
        put("memory.max", "max\n");
        put("memory.current", "77\n");
        put("pids.max", "32\n");
        put(
            "io.stat",
            "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\n",
        );
        let stats = stats(dir.path());
        assert_eq!((stats.cpu.usage_ns, stats.cpu.throttled_periods), (5000, 2));
        assert_eq!(
            (stats.memory.oom_kills, stats.memory.limit_bytes),
            (4, None)
        );
        assert_eq!((stats.memory.usage_bytes, stats.pids.limit), (77, Some(32)));
        assert_eq!(stats.block_io[0].write_ops, 4);
    }

    #[test]
    fn controllers_are_enabled_along_the_path() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("shoal")).unwrap();
        for part in ["", "shoal"] {
            fs::write(
                dir.path().join(part).join("cgroup.controllers"),
                "cpu memory pids",
            )
            .unwrap();
            fs::write(dir.path().join(part).join("cgroup.subtree_control"), "cpu").unwrap();
        }
        enable_controllers(dir.path(), Path::new("shoal/x")).unwrap();
        let written = fs::read_to_string(dir.path().join("shoal/cgroup.subtree_control")).unwrap();
        assert_eq!(written, "+memory +pids");
    }
}
