//! The shell's clock: the wall clock at its start plus the boot time elapsed since. A person who sets the wall clock, or a
//! leap, moves no deadline of a running controller.

use kiln_fs::clock::{boottime, wall};
use kiln_model::Timestamp;
use std::time::Duration;

#[derive(Clone, Copy)]
pub(crate) struct Clock {
    wall_at_start: Timestamp,
    boot_at_start: Duration,
}

impl Clock {
    pub(crate) fn start() -> Self {
        Self {
            wall_at_start: Timestamp(0).plus(wall()),
            boot_at_start: boottime(),
        }
    }

    /// Never lower than an earlier answer.
    pub(crate) fn now(&self) -> Timestamp {
        let elapsed = boottime().saturating_sub(self.boot_at_start);
        self.wall_at_start.plus(elapsed)
    }
}
