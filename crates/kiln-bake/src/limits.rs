//! What one step may use of the machine, so that one that forks, hoards or hangs ends, and not what else runs there.

/// A bomb is ended; no package needs that many.
pub(crate) const PROCESSES: u64 = 4096;
/// Of one step. A bake that hangs is worse than one that fails.
pub(crate) const TIME_MS: u64 = 60 * 60 * 1000;
/// A step that says this much without an end of line is shown it as a line.
pub(crate) const LINE: usize = 64 << 10;

/// Bytes: three quarters of the machine's memory. None where it does not say how much it has.
pub(crate) fn memory() -> Option<u64> {
    let meminfo = std::fs::read_to_string("/proc/meminfo").ok()?;
    total(&meminfo).map(|total| total / 4 * 3)
}

fn total(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// How a person reads it.
pub(crate) fn shown(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machines_memory_is_read() {
        let meminfo = "MemTotal:       24577040 kB\nMemFree:        100 kB\n";
        assert_eq!(total(meminfo), Some(24_577_040 * 1024));
        assert_eq!(total("MemFree: 1 kB\n"), None);
        assert!(memory().is_some_and(|limit| limit > 64 << 20));
    }
}
