//! The daemon's one clock: the wall clock at start plus boot time elapsed, never below the last journalled
//! timestamp. A person who sets the wall clock back, or a leap, moves no deadline.

use std::time::Duration;

use kiln_model::Timestamp;
use rustix::time::{ClockId, clock_gettime};

pub(crate) struct Clock {
    wall_at_start: Timestamp,
    boot_at_start: Duration,
    floor: Timestamp,
}

impl Clock {
    /// `floor`: the last timestamp journalled.
    pub(crate) fn start(floor: Timestamp) -> Self {
        let wall = elapsed(ClockId::Realtime);
        Self {
            wall_at_start: Timestamp(0).plus(wall),
            boot_at_start: elapsed(ClockId::Boottime),
            floor,
        }
    }

    /// Never lower than an earlier answer.
    pub(crate) fn now(&mut self) -> Timestamp {
        let since_start = elapsed(ClockId::Boottime).saturating_sub(self.boot_at_start);
        self.floor = self.floor.max(self.wall_at_start.plus(since_start));
        self.floor
    }
}

fn elapsed(clock: ClockId) -> Duration {
    let time = clock_gettime(clock);
    Duration::new(
        u64::try_from(time.tv_sec).unwrap_or(0),
        u32::try_from(time.tv_nsec).unwrap_or(0),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_jumped_back_never_goes_below_what_was_journalled() {
        let far = Timestamp(u64::MAX / 2);
        let mut clock = Clock::start(far);
        assert_eq!(clock.now(), far);
        let mut clock = Clock::start(Timestamp(0));
        let first = clock.now();
        assert!(first > Timestamp(1_700_000_000_000));
        assert!(clock.now() >= first);
    }
}
