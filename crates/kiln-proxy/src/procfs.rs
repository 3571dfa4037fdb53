//! Which process a pid means. A pid alone is reused; with its start time and the boot it is unique.

use std::path::Path;

use serde::{Deserialize, Serialize};

/// A process that some earlier process noted down.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProcessId {
    pub(crate) pid: i32,
    /// Clock ticks since boot, field 22 of `/proc/PID/stat`.
    pub(crate) start_time: u64,
    pub(crate) boot: String,
}

impl ProcessId {
    /// `None` when no such process lives (a zombie doesn't).
    pub(crate) fn of(pid: i32) -> Option<Self> {
        let stat =
            std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat")).ok()?;
        // The name may hold spaces and parentheses: the last `)` ends it.
        let mut fields = stat.get(stat.rfind(')')? + 2..)?.split(' ');
        if matches!(fields.next()?, "Z" | "X") {
            return None;
        }
        let start_time = fields.nth(18)?.parse().ok()?;
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
        Some(Self {
            pid,
            start_time,
            boot: boot.trim().to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_its_start_time_as_well() {
        let own = i32::try_from(std::process::id()).unwrap();
        let id = ProcessId::of(own).unwrap();
        assert_eq!(ProcessId::of(own), Some(id.clone()));
        assert_ne!(ProcessId::of(1).unwrap().start_time, id.start_time);
        assert_eq!(ProcessId::of(i32::MAX), None);
    }
}
