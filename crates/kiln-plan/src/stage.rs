//! A rollout is a row of stages. A stage says how many instances each set should have, which share of the traffic the new set
//! gets, and the gates that have to open before the next stage begins.
//!
//! [`compile`] is the only place that names a strategy: what walks the stages ([`crate::Rollout`]) knows none.

use std::time::Duration;

use kiln_model::{Policy, Strategy, duration_ms};
use serde::{Deserialize, Serialize};

/// A share of a whole, in thousandths.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Share(u16);

impl Share {
    pub const NONE: Self = Self(0);
    pub const ALL: Self = Self(1000);

    /// More than the whole is the whole.
    pub fn permille(thousandths: u16) -> Self {
        Self(thousandths.min(1000))
    }

    pub fn as_permille(self) -> u16 {
        self.0
    }

    /// What is left of the whole.
    #[must_use]
    pub fn rest(self) -> Self {
        Self(1000 - self.0.min(1000))
    }

    /// So many of `replicas` instances, rounded up: a share that is not nothing is at least one of them.
    pub fn of(self, replicas: u32) -> u32 {
        let whole = u64::from(replicas) * u64::from(self.0);
        u32::try_from(whole.div_ceil(1000)).unwrap_or(u32::MAX)
    }
}

/// One step of a rollout.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stage {
    /// Of the replicas, how many the set that the rollout comes from should have.
    pub from: Share,
    /// Of the replicas, how many the new set should have.
    pub to: Share,
    /// Of the traffic, what the new set gets. The other set gets the rest.
    pub traffic: Share,
    /// They open one after the other.
    pub gates: Vec<Gate>,
}

/// What has to be so before a rollout goes on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Gate {
    /// The stage's instances of the new set have been ready for `soak` without a break. The rollout fails where that is not
    /// so after `within`.
    Soaked {
        #[serde(with = "duration_ms")]
        soak: Duration,
        #[serde(with = "duration_ms")]
        within: Duration,
    },
    /// Every proxy has confirmed the stage's traffic.
    Routed,
    /// The new set has held under its traffic for `span`. Instances that end with their machine may be replaced `within`.
    Watched {
        #[serde(with = "duration_ms")]
        span: Duration,
        #[serde(with = "duration_ms")]
        within: Duration,
    },
}

/// The stages by which `policy` replaces one set by another. `warm`: the new set is complete and was ready all the time, so
/// that nothing has to be waited for.
pub fn compile(policy: &Policy, warm: bool) -> Vec<Stage> {
    let soak = if warm { Duration::ZERO } else { policy.soak };
    let within = policy.progress_deadline;
    match &policy.strategy {
        Strategy::BlueGreen(_) => vec![
            Stage {
                from: Share::ALL,
                to: Share::ALL,
                traffic: Share::NONE,
                gates: vec![Gate::Soaked { soak, within }],
            },
            Stage {
                from: Share::ALL,
                to: Share::ALL,
                traffic: Share::ALL,
                gates: vec![Gate::Routed, Gate::Watched { span: soak, within }],
            },
        ],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scenario 20: a non-zero share never becomes nobody.
    #[test]
    fn a_share_is_rounded_up() {
        for (share, replicas, of) in [
            (0, 10, 0),
            (1, 10, 1),
            (100, 10, 1),
            (101, 10, 2),
            (500, 1, 1),
            (500, 3, 2),
            (1000, 7, 7),
            (1000, 0, 0),
            (1, 0, 0),
            (999, u32::MAX, 4_290_672_328),
        ] {
            assert_eq!(
                Share::permille(share).of(replicas),
                of,
                "{share} of {replicas}"
            );
        }
    }
}
