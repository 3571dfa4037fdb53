//! The kernel's clocks, as durations since each one's own zero.
//!
//! Which one to ask: [`wall`] for what a person reads, and for nothing that is compared with a later reading; [`boottime`] for
//! deadlines and timers, because it goes on while the machine sleeps and nobody can set it; [`monotonic`] for how long
//! something took while the machine was awake.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Since 1970, UTC. A person or NTP may set it, forward and back.
pub fn wall() -> Duration {
    read(ClockId::Realtime)
}

/// Since the machine booted, its sleep included. Never goes back; the same for all processes of one boot.
pub fn boottime() -> Duration {
    read(ClockId::Boottime)
}

/// Since the machine booted, without its sleep. Never goes back.
pub fn monotonic() -> Duration {
    read(ClockId::Monotonic)
}

fn read(clock: ClockId) -> Duration {
    let time = clock_gettime(clock);
    // A wall clock set to before 1970 is the only negative reading.
    Duration::new(
        u64::try_from(time.tv_sec).unwrap_or(0),
        u32::try_from(time.tv_nsec).unwrap_or(0),
    )
}

#[cfg(test)]
#[allow(clippy::disallowed_methods)] // compared with the standard library's clock
mod tests {
    use super::*;
    use std::time::SystemTime;

    #[test]
    fn each_clock_counts_from_its_own_zero() {
        let before = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap();
        let wall = wall();
        let after = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap();
        assert!(before <= wall && wall <= after);
        let uptime = std::fs::read_to_string("/proc/uptime").unwrap();
        let uptime: f64 = uptime.split(' ').next().unwrap().parse().unwrap();
        assert!((boottime().as_secs_f64() - uptime).abs() < 5.0);
        assert!(monotonic() <= boottime());
    }

    #[test]
    fn the_clocks_that_nobody_sets_never_go_back() {
        let (boot, mono) = (boottime(), monotonic());
        assert!(boottime() >= boot && monotonic() >= mono);
    }
}
