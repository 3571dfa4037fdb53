//! When a child that ended is started again.

use std::time::{Duration, Instant};

/// A child that lived as long is started again at once; one that didn't waits, longer each time.
const STEADY: Duration = Duration::from_secs(10);
const FIRST_DELAY: Duration = Duration::from_millis(100);
const LONGEST_DELAY: Duration = Duration::from_secs(5);
/// Of one that was killed, however often: it is back within a second.
const LONGEST_DELAY_KILLED: Duration = Duration::from_millis(500);

pub(super) struct Restart {
    /// `None`: it runs.
    pub(super) at: Option<Instant>,
    delay: Duration,
    pub(super) count: u64,
}

impl Restart {
    /// Of a child that was never started.
    pub(super) fn new(at: Instant) -> Self {
        Self {
            at: Some(at),
            delay: Duration::ZERO,
            count: 0,
        }
    }

    /// `gave_up`: it ended by its own decision.
    pub(super) fn plan(&mut self, now: Instant, lived: Duration, gave_up: bool) {
        if lived >= STEADY {
            self.delay = Duration::ZERO;
        }
        let longest = if gave_up {
            LONGEST_DELAY
        } else {
            LONGEST_DELAY_KILLED
        };
        self.at = Some(now + self.delay.min(longest));
        self.delay = (self.delay * 2).clamp(FIRST_DELAY, LONGEST_DELAY);
        self.count += 1;
    }

    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.at.is_some_and(|at| at <= now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_killed_again_and_again_is_back_within_a_second_and_who_gives_up_waits_longer() {
        let now = Instant::now();
        let waits = |gave_up| {
            let mut restart = Restart::new(now);
            (0..20)
                .map(|_| {
                    restart.plan(now, Duration::from_millis(1), gave_up);
                    restart.at.unwrap() - now
                })
                .collect::<Vec<_>>()
        };
        assert_eq!(waits(false)[0], Duration::ZERO);
        assert!(
            waits(false)
                .iter()
                .all(|wait| *wait < Duration::from_secs(1))
        );
        assert_eq!(waits(true)[0], Duration::ZERO);
        assert_eq!(*waits(true).last().unwrap(), LONGEST_DELAY);
        let mut restart = Restart::new(now);
        for _ in 0..20 {
            restart.plan(now, Duration::ZERO, true);
        }
        restart.plan(now, STEADY, true);
        assert_eq!(restart.at, Some(now));
    }
}
