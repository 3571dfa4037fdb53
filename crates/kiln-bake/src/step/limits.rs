//! What one step may use of the machine, so that one that forks, hoards or hangs ends, and not what else runs there.

use std::cell::Cell;
use std::path::Path;

use rustix::fs::{StatVfs, statvfs};

/// A bomb is ended; no package needs that many.
pub(crate) const PROCESSES: u64 = 4096;
/// Of one step. A bake that hangs is worse than one that fails.
pub(crate) const TIME_MS: u64 = 60 * 60 * 1000;
/// A step that says this much without an end of line is shown it as a line.
pub(crate) const LINE: usize = 64 << 10;

/// Bytes: three quarters of the machine's memory. None where it does not say how much it has.
pub(crate) fn memory() -> Option<u64> {
    kiln_engine::memory::total().map(|total| total / 4 * 3)
}

/// What is left free of the disk that a step writes to: a fiftieth, but no more than this.
const SPARE: u64 = 256 << 20;

/// The disk that a step writes to. A step that fills it would end everything else that writes there.
pub(crate) struct Disk<'a> {
    path: &'a Path,
    spare: u64,
    is_full: Cell<bool>,
}

impl<'a> Disk<'a> {
    pub(crate) fn of(path: &'a Path) -> Self {
        let spare = statvfs(path).map_or(0, |found| {
            let part = found.f_blocks.saturating_mul(found.f_frsize) / 50;
            // One that has hardly any room from the start is used all the same.
            part.min(SPARE).min(free(&found) / 2)
        });
        Self {
            path,
            spare,
            is_full: Cell::new(false),
        }
    }

    /// Once it is, it stays so.
    pub(crate) fn is_full(&self) -> bool {
        if !self.is_full.get() && statvfs(self.path).is_ok_and(|found| free(&found) < self.spare) {
            self.is_full.set(true);
        }
        self.is_full.get()
    }

    /// Why a step was ended.
    pub(crate) fn told(&self) -> String {
        format!(
            "filled the disk of {}, of which {} are left to others",
            self.path.display(),
            shown(self.spare)
        )
    }
}

fn free(found: &StatVfs) -> u64 {
    found.f_bavail.saturating_mul(found.f_frsize)
}

/// How a person reads it.
pub(crate) fn shown(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}
