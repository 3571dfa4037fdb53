//! The controller's clock: never below what was journalled, and never standing still.

use kiln_model::Timestamp;

use crate::mutation::Mutation;

/// Turns the shell's time into the controller's.
///
/// The shell's time is the wall clock at its start and the time elapsed since: a person who sets the wall clock moves no
/// deadline of a running controller. Where the wall clock at the start is behind what was journalled last (a machine whose
/// clock was ahead, a virtual machine that was restored), the controller goes on from there at the usual pace.
#[derive(Clone, Debug)]
pub(crate) struct Clock {
    ahead: u64,
    now: Timestamp,
}

impl Clock {
    /// `floor`: the last timestamp journalled. `now`: the shell's time at the start.
    pub(crate) fn start(floor: Timestamp, now: Timestamp) -> Self {
        Self {
            ahead: floor.0.saturating_sub(now.0),
            now: floor.max(now),
        }
    }

    /// Never lower than an earlier answer.
    pub(crate) fn at(&mut self, now: Timestamp, mutation: Option<Mutation>) -> Timestamp {
        let ahead = match mutation {
            Some(Mutation::FrozenClock) => 0,
            Some(_) | None => self.ahead,
        };
        self.now = self.now.max(Timestamp(now.0.saturating_add(ahead)));
        self.now
    }

    /// The shell's time at which the controller's is `at`.
    pub(crate) fn shell_time(&self, at: Timestamp) -> Timestamp {
        Timestamp(at.0.saturating_sub(self.ahead))
    }

    pub(crate) fn now(&self) -> Timestamp {
        self.now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_was_ahead_goes_on_from_there() {
        let mut clock = Clock::start(Timestamp(600_000), Timestamp(1_000));
        assert_eq!(clock.at(Timestamp(1_000), None), Timestamp(600_000));
        assert_eq!(clock.at(Timestamp(1_250), None), Timestamp(600_250));
        assert_eq!(clock.shell_time(Timestamp(600_250)), Timestamp(1_250));
        // Behind, it is the shell's.
        let mut clock = Clock::start(Timestamp(5), Timestamp(1_000));
        assert_eq!(clock.at(Timestamp(1_250), None), Timestamp(1_250));
        assert_eq!(clock.at(Timestamp(1_200), None), Timestamp(1_250));
    }
}
