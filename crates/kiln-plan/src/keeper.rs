//! The keeper of a set: how many instances are missing, which ones stay, and how long a replacement is held back.
//!
//! It knows a wanted count and the instances, and nothing of rollouts, strategies or traffic. Engines that keep sets
//! themselves (a ReplicaSet, an auto-scaling group) take its place.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use kiln_model::{InstanceId, ReleaseNumber, Timestamp};
use serde::{Deserialize, Serialize};

use crate::instance::Instance;

/// The first wait before a replacement that is not the first; doubled each time.
const BACK_OFF_FIRST: Duration = Duration::from_secs(1);
const BACK_OFF_MOST: Duration = Duration::from_secs(60);

/// What the keeper remembers of each release that failed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Keeper {
    back_off: BTreeMap<ReleaseNumber, BackOff>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct BackOff {
    /// In a row.
    failures: u32,
    /// No replacement before.
    next: Timestamp,
}

/// How an instance ended that was not asked to.
pub(crate) struct Failure {
    /// It had been ready for long enough that this is a new story.
    pub(crate) healthy: bool,
    /// It ended with its machine, or with what kiln runs it by: not by its own fault.
    pub(crate) lost: bool,
}

/// The wait after so many failures in a row.
pub(crate) fn wait_after(failures: u32) -> Duration {
    BACK_OFF_FIRST
        .saturating_mul(1 << failures.saturating_sub(1).min(10))
        .min(BACK_OFF_MOST)
}

impl Keeper {
    /// How many instances have to be started now for `wanted` of them to be there.
    pub(crate) fn missing<'a>(
        &self,
        now: Timestamp,
        release: ReleaseNumber,
        set: impl Iterator<Item = &'a Instance>,
        wanted: u32,
    ) -> u32 {
        if self.next_start(release).is_some_and(|next| now < next) {
            return 0;
        }
        wanted.saturating_sub(counted(set))
    }

    /// Before when no replacement is started; `None`: nothing of the release has failed.
    pub(crate) fn next_start(&self, release: ReleaseNumber) -> Option<Timestamp> {
        self.back_off.get(&release).map(|back_off| back_off.next)
    }

    /// An instance failed. Several that fail in one wait are one failure: they have one cause.
    pub(crate) fn failed(&mut self, now: Timestamp, release: ReleaseNumber, failure: &Failure) {
        let back_off = self.back_off.entry(release).or_default();
        if failure.lost {
            back_off.next = back_off.next.max(now);
            return;
        }
        if now < back_off.next {
            return;
        }
        if failure.healthy {
            back_off.failures = 0;
        }
        back_off.failures = back_off.failures.saturating_add(1);
        let wait = if failure.healthy {
            Duration::ZERO
        } else {
            wait_after(back_off.failures)
        };
        back_off.next = now.plus(wait);
    }

    pub(crate) fn forget_failures(&mut self, release: ReleaseNumber) {
        self.back_off.remove(&release);
    }
}

/// Those that count towards what their set needs.
pub(crate) fn counted<'a>(set: impl Iterator<Item = &'a Instance>) -> u32 {
    u32::try_from(set.filter(|instance| instance.counts()).count()).unwrap_or(u32::MAX)
}

/// The instances of a set that stay: as many as wanted, the readiest and oldest first, and one that has to be replaced for
/// as long as it is needed.
pub(crate) fn kept<'a>(
    set: impl Iterator<Item = &'a Instance>,
    wanted: u32,
) -> BTreeSet<InstanceId> {
    let wanted = wanted as usize;
    let mut candidates: Vec<_> = set.filter(|instance| instance.is_alive()).collect();
    // A ready one that is doomed is better than one that is not ready, until that is.
    candidates.sort_by_key(|instance| {
        let rank = match (instance.is_ready(), instance.doomed) {
            (true, false) => 0,
            (true, true) => 1,
            (false, false) => 2,
            (false, true) => 3,
        };
        (rank, instance.asked_at, instance.id.clone())
    });
    let healthy = candidates.iter().filter(|instance| !instance.doomed);
    let mut kept: BTreeSet<_> = healthy
        .take(wanted)
        .map(|instance| instance.id.clone())
        .collect();
    let ready = candidates
        .iter()
        .filter(|instance| instance.is_ready() && !instance.doomed)
        .count()
        .min(wanted);
    let doomed = candidates.iter().filter(|i| i.is_ready() && i.doomed);
    kept.extend(
        doomed
            .take(wanted - ready)
            .map(|instance| instance.id.clone()),
    );
    kept
}
