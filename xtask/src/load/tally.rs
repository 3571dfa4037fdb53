//! What became of the requests.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// Details are kept of so many losses; all are counted.
const DETAILS: usize = 200;

/// Why a request counts as lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Loss {
    Refused,
    /// The connection was reset before an answer began.
    Reset,
    /// The connection was closed before an answer began.
    NoAnswer,
    /// It ended, cleanly or not, within an answer.
    CutBody,
    Timeout,
    Status(u16),
    WrongBody,
    /// Answered by a release that should not serve any more, or not yet, or by one without a name.
    WrongRelease,
    /// Not HTTP.
    Malformed,
}

impl Loss {
    /// The same loss when the connection did not end but was reset.
    pub(super) fn on_reset(self) -> Self {
        match self {
            Self::NoAnswer => Self::Reset,
            other => other,
        }
    }
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused => f.write_str("refused"),
            Self::Reset => f.write_str("reset"),
            Self::NoAnswer => f.write_str("closed without an answer"),
            Self::CutBody => f.write_str("answer cut off"),
            Self::Timeout => f.write_str("timeout"),
            Self::Status(status) => write!(f, "status {status}"),
            Self::WrongBody => f.write_str("wrong body"),
            Self::WrongRelease => f.write_str("release that should not serve"),
            Self::Malformed => f.write_str("not HTTP"),
        }
    }
}

/// One loss, with what is needed to find its cause.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LossRecord {
    /// When it was noticed, since the load began.
    pub(crate) at: Duration,
    pub(crate) loss: Loss,
    pub(crate) request: &'static str,
    pub(crate) new_connection: bool,
    /// Who answered, where it is known.
    pub(crate) release: String,
}

impl fmt::Display for LossRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            at,
            loss,
            request,
            new_connection,
            release,
        } = self;
        let connection = if *new_connection { "new" } else { "kept" };
        write!(
            f,
            "at {:.3} s: {loss} ({request}, {connection} connection",
            at.as_secs_f64()
        )?;
        if !release.is_empty() {
            write!(f, ", answered by {release}")?;
        }
        f.write_str(")")
    }
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Tally {
    /// Microseconds, of answers that are whole and right, slow ones by intent left out.
    latencies: Vec<u32>,
    /// Whole and right, the slow ones included.
    pub(crate) answered: u64,
    pub(crate) lost: BTreeMap<Loss, u64>,
    pub(crate) details: Vec<LossRecord>,
    pub(crate) elapsed: Duration,
}

impl Tally {
    pub(super) fn answer(&mut self, latency: Duration, slow_by_intent: bool) {
        self.answered += 1;
        if !slow_by_intent {
            self.latencies
                .push(u32::try_from(latency.as_micros()).unwrap_or(u32::MAX));
        }
    }

    pub(super) fn loss(&mut self, record: LossRecord) {
        *self.lost.entry(record.loss).or_default() += 1;
        if self.details.len() < DETAILS {
            self.details.push(record);
        }
    }

    pub(super) fn add(&mut self, other: Self) {
        let Self {
            latencies,
            answered,
            lost,
            details,
            elapsed,
        } = other;
        self.latencies.extend(latencies);
        self.answered += answered;
        for (loss, count) in lost {
            *self.lost.entry(loss).or_default() += count;
        }
        self.details.extend(details);
        self.details.sort_by_key(|record| record.at);
        self.details.truncate(DETAILS);
        self.elapsed = self.elapsed.max(elapsed);
    }

    pub(crate) fn lost_in_all(&self) -> u64 {
        self.lost.values().sum()
    }

    pub(crate) fn requests(&self) -> u64 {
        self.answered + self.lost_in_all()
    }

    /// Of so many in a thousand; `None` where nothing was answered.
    pub(crate) fn latency(&self, per_mille: u64) -> Option<Duration> {
        let mut sorted = self.latencies.clone();
        sorted.sort_unstable();
        let rank = (sorted.len() as u64 * per_mille).div_ceil(1000).max(1) - 1;
        let index = usize::try_from(rank).unwrap_or(usize::MAX);
        let micros = sorted.get(index)?;
        Some(Duration::from_micros(u64::from(*micros)))
    }

    /// The losses by kind, or `0`.
    pub(crate) fn lost_by_kind(&self) -> String {
        if self.lost.is_empty() {
            return "0".to_owned();
        }
        let kinds: Vec<String> = self
            .lost
            .iter()
            .map(|(loss, count)| format!("{count} {loss}"))
            .collect();
        format!("{} ({})", self.lost_in_all(), kinds.join(", "))
    }
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn a_percentile_is_a_latency_that_was_seen() {
        let mut tally = Tally::default();
        assert_eq!(tally.latency(500), None);
        for ms in (1..=100).rev() {
            tally.answer(Duration::from_millis(ms), false);
        }
        tally.answer(Duration::from_secs(9), true);
        assert_eq!(tally.latency(500), Some(Duration::from_millis(50)));
        assert_eq!(tally.latency(990), Some(Duration::from_millis(99)));
        assert_eq!(tally.latency(1000), Some(Duration::from_millis(100)));
        assert_eq!(tally.answered, 101);
    }
}
