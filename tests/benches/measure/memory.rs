//! What processes use, as the kernel counts it.

use anyhow::{Context as _, Result};
use std::fmt;
use std::time::Duration;

/// Memory of one process or of several.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Memory {
    /// Resident, shared pages counted in full.
    pub(crate) rss_kib: u64,
    /// Resident, shared pages divided by their users.
    pub(crate) pss_kib: u64,
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |kib: u64| kib as f64 / 1024.0;
        write!(
            f,
            "RSS {:.2} MiB, PSS {:.2} MiB",
            mib(self.rss_kib),
            mib(self.pss_kib)
        )
    }
}

impl Memory {
    pub(crate) fn of(pid: i32) -> Result<Self> {
        let path = format!("/proc/{pid}/smaps_rollup");
        let text =
            std::fs::read_to_string(&path).with_context(|| format!("failed to read `{path}`"))?;
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name))?;
            line.split_whitespace().next()?.parse::<u64>().ok()
        };
        Ok(Self {
            rss_kib: field("Rss:").context("no Rss")?,
            pss_kib: field("Pss:").context("no Pss")?,
        })
    }
}

/// CPU time that a process has used so far.
pub(crate) fn cpu_time(pid: i32) -> Result<Duration> {
    /// Of `/proc/PID/stat`, on every architecture that Linux runs on today.
    const TICKS_PER_SECOND: u64 = 100;
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, fields) = text.rsplit_once(") ").context("no fields")?;
    let ticks = |number: usize| -> Result<u64> {
        let field = fields
            .split_whitespace()
            .nth(number)
            .context("too few fields")?;
        Ok(field.parse()?)
    };
    Ok(Duration::from_millis(
        (ticks(11)? + ticks(12)?) * 1_000 / TICKS_PER_SECOND,
    ))
}

/// The processes whose arguments are wanted.
pub(crate) fn with_arguments(wanted: impl Fn(&[&str]) -> bool) -> Vec<i32> {
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    let matching = entries.flatten().filter_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let line = std::fs::read_to_string(entry.path().join("cmdline")).ok()?;
        let words: Vec<_> = line.split('\0').collect();
        wanted(&words).then_some(pid)
    });
    matching.collect()
}
