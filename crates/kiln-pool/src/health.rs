//! Passive ejection: an instance that fails requests in a row gets none for a while.
//!
//! The way back is to let it have requests again when the time is over: the first that succeeds clears it, the
//! first that fails ejects it again, for twice as long.

use std::time::Duration;

use crate::Moment;

/// So many failures in a row eject.
const FAILURES: u32 = 3;
const FIRST_EJECTION: Duration = Duration::from_secs(1);
const LONGEST_EJECTION: Duration = Duration::from_secs(30);

/// What one instance did of late.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    in_a_row: u32,
    ejections: u32,
    until: Option<Moment>,
}

/// What changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Unchanged,
    /// Gets no request before `until`. Also said when an ejection is prolonged.
    Ejected {
        until: Moment,
    },
    /// Was ejected, and serves again.
    Recovered,
}

impl Health {
    /// No connection, or no answer. An answer of status 500 is an answer.
    pub fn handle_failure(&mut self, now: Moment) -> Verdict {
        if self.until.is_some_and(|until| now < until) {
            // One that was under way already, or sent because nobody was eligible.
            return Verdict::Unchanged;
        }
        self.in_a_row = self.in_a_row.saturating_add(1);
        if self.in_a_row < FAILURES {
            return Verdict::Unchanged;
        }
        let length = FIRST_EJECTION
            .saturating_mul(1 << self.ejections.min(10))
            .min(LONGEST_EJECTION);
        self.ejections = self.ejections.saturating_add(1);
        let until = now.plus(length);
        self.until = Some(until);
        Verdict::Ejected { until }
    }

    pub fn handle_success(&mut self) -> Verdict {
        let was_ejected = self.until.is_some();
        *self = Self::default();
        if was_ejected {
            Verdict::Recovered
        } else {
            Verdict::Unchanged
        }
    }

    /// Nothing to forget: a success changes nothing.
    pub fn is_clean(&self) -> bool {
        *self == Self::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_failures_in_a_row_eject_for_a_growing_time() {
        let mut health = Health::default();
        let mut now = Moment(10_000);
        assert_eq!(health.handle_failure(now), Verdict::Unchanged);
        assert_eq!(health.handle_failure(now), Verdict::Unchanged);
        let mut lengths = Vec::new();
        for _ in 0..7 {
            let Verdict::Ejected { until } = health.handle_failure(now) else {
                panic!("not ejected")
            };
            assert_eq!(
                health.handle_failure(now),
                Verdict::Unchanged,
                "ejected once only"
            );
            lengths.push(until.since(now).as_secs());
            now = until;
        }
        assert_eq!(lengths, [1, 2, 4, 8, 16, 30, 30]);
        assert_eq!(health.handle_success(), Verdict::Recovered);
        assert!(health.is_clean());
    }

    #[test]
    fn a_success_between_failures_starts_the_count_again() {
        let mut health = Health::default();
        for _ in 0..10 {
            assert_eq!(health.handle_failure(Moment(0)), Verdict::Unchanged);
            assert_eq!(health.handle_failure(Moment(0)), Verdict::Unchanged);
            assert_eq!(health.handle_success(), Verdict::Unchanged);
        }
    }
}
