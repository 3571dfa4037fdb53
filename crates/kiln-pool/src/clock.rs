//! The time that limits are kept by.

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;

/// The most that one step between two readings counts.
const LONGEST_STEP_MS: u64 = 1_000;

/// A point in the proxy's own time: milliseconds of a clock that nobody sets. It is no date, and means nothing to another
/// process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Moment(pub u64);

impl Moment {
    #[must_use]
    pub fn plus(self, duration: Duration) -> Self {
        let millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        Self(self.0.saturating_add(millis))
    }

    /// How long after `earlier` this is; zero when it is not after it.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

/// A clock that stands still while its process does.
///
/// It is fed with readings of boot time by every thread, a few times a second. What passes between two readings counts for a
/// second at most: where a machine slept or a process was stopped, no request had its time, so none has used it up.
#[derive(Debug)]
pub struct LimitClock {
    read: AtomicU64,
    now: AtomicU64,
}

impl LimitClock {
    /// `boottime`: a first reading.
    pub fn new(boottime: Duration) -> Self {
        Self {
            read: AtomicU64::new(millis(boottime)),
            now: AtomicU64::new(0),
        }
    }

    pub fn tick(&self, boottime: Duration) {
        let read = millis(boottime);
        // Each stretch of time is added by one thread only: the one that moved the reading over it.
        let before = self.read.fetch_max(read, SeqCst);
        let passed = read.saturating_sub(before).min(LONGEST_STEP_MS);
        if passed > 0 {
            self.now.fetch_add(passed, SeqCst);
        }
    }

    pub fn now(&self) -> Moment {
        Moment(self.now.load(SeqCst))
    }
}

fn millis(boottime: Duration) -> u64 {
    u64::try_from(boottime.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_of_the_clock_or_a_sleep_of_the_machine_uses_up_no_limit() {
        let ms = Duration::from_millis;
        let clock = LimitClock::new(ms(5_000));
        clock.tick(ms(5_250));
        assert_eq!(clock.now(), Moment(250));
        // The machine slept for an hour.
        clock.tick(ms(3_605_250));
        assert_eq!(clock.now(), Moment(1_250));
        // A thread that read the clock before another and comes after it.
        clock.tick(ms(3_605_000));
        clock.tick(ms(3_605_350));
        assert_eq!(clock.now(), Moment(1_350));
    }
}
