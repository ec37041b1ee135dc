//! The node has enough CPU and memory that nobody has reserved.

use super::{Filter, count};
use crate::node::{NodeEntry, Seat};
use shoal_model::Resources;

pub(super) struct ResourceFilter {
    wanted: Resources,
}

impl ResourceFilter {
    pub(super) fn new(wanted: Resources) -> Self {
        Self { wanted }
    }
}

impl Filter for ResourceFilter {
    fn name(&self) -> &'static str {
        "resources"
    }

    fn admits(&self, seat: Seat<'_>) -> bool {
        let node = seat.node;
        // Only what is asked for is compared: a task without reservations runs on an overbooked node too.
        if self.wanted == Resources::default() {
            return true;
        }
        let free = node.free();
        (self.wanted.nano_cpus <= 0 || self.wanted.nano_cpus <= free.nano_cpus)
            && (self.wanted.memory_bytes <= 0 || self.wanted.memory_bytes <= free.memory_bytes)
    }

    fn explain(&self, refused: &[&NodeEntry]) -> (String, String) {
        let mut reasons = Vec::new();
        let mut fixes = Vec::new();
        let wanted = self.wanted;
        let short = |of: fn(&Resources) -> i64| {
            let mut short: Vec<(i64, &NodeEntry)> = refused
                .iter()
                .map(|node| (of(&wanted).saturating_sub(of(&node.free())), *node))
                .filter(|&(short, _)| of(&wanted) > 0 && short > 0)
                .collect();
            short.sort_by_key(|&(short, node)| (short, node.id));
            short
        };
        let cpus = short(|r| r.nano_cpus);
        if let Some((least, node)) = cpus.first() {
            reasons.push(format!(
                "not enough free CPU on {}: {} needed",
                count(cpus.len()),
                cores(wanted.nano_cpus)
            ));
            fixes.push(format!(
                "free {} CPU on `{}`, or lower --reserve-cpu",
                cores(*least),
                node.name()
            ));
        }
        let memory = short(|r| r.memory_bytes);
        if let Some((least, node)) = memory.first() {
            reasons.push(format!(
                "not enough free memory on {}: {} needed",
                count(memory.len()),
                bytes(wanted.memory_bytes)
            ));
            fixes.push(format!(
                "free {} on `{}`, or lower --reserve-memory",
                bytes(*least),
                node.name()
            ));
        }
        (reasons.join("; "), fixes.join("; "))
    }
}

/// `0.5`, `2`: billionths of a CPU for people, rounded up to thousandths.
fn cores(nano_cpus: i64) -> String {
    let milli = nano_cpus.saturating_add(999_999) / 1_000_000;
    let text = format!("{}.{:03}", milli / 1_000, milli % 1_000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// `200 MiB`: rounded up.
fn bytes(count: i64) -> String {
    const UNITS: [(&str, i64); 3] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    for (unit, size) in UNITS {
        if count >= size
            && (count % size == 0 || count >= size.saturating_mul(10) || size == 1 << 10)
        {
            return format!("{} {unit}", count.saturating_add(size - 1) / size);
        }
    }
    format!("{count} B")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_read_well() {
        assert_eq!(cores(500_000_000), "0.5");
        assert_eq!(cores(2_000_000_000), "2");
        assert_eq!(bytes(200 << 20), "200 MiB");
        assert_eq!(bytes(1 << 30), "1 GiB");
        assert_eq!(bytes((1 << 30) + (512 << 20)), "1536 MiB");
        assert_eq!(bytes(100), "100 B");
        assert_eq!(bytes(1_500), "2 KiB");
    }
}
