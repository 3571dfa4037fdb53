//! Which releases may answer, and since when.

use std::collections::BTreeSet;
use std::sync::{PoisonError, RwLock};

/// The epochs of one run: in each a known set of releases may answer. A request may be answered by whatever
/// was allowed at any instant between its first byte and the last byte of its answer.
#[derive(Debug)]
pub(crate) struct Gate(RwLock<Vec<BTreeSet<u64>>>);

/// The epoch in which a request began.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Epoch(usize);

impl Gate {
    pub(crate) fn new(allowed: impl IntoIterator<Item = u64>) -> Self {
        Self(RwLock::new(vec![allowed.into_iter().collect()]))
    }

    /// From now on only these may answer requests that begin.
    pub(crate) fn allow(&self, releases: impl IntoIterator<Item = u64>) {
        // A worker that panicked while it held the lock has left a whole vector: pushes are all there is.
        let mut epochs = self.0.write().unwrap_or_else(PoisonError::into_inner);
        epochs.push(releases.into_iter().collect());
    }

    pub(super) fn begin(&self) -> Epoch {
        let epochs = self.0.read().unwrap_or_else(PoisonError::into_inner);
        Epoch(epochs.len() - 1)
    }

    pub(super) fn allows(&self, release: u64, since: Epoch) -> bool {
        let epochs = self.0.read().unwrap_or_else(PoisonError::into_inner);
        epochs[since.0..]
            .iter()
            .any(|epoch| epoch.contains(&release))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_requests_that_began_before_the_switch_ended_may_see_the_old_release() {
        let gate = Gate::new([1]);
        let before = gate.begin();
        gate.allow([1, 2]);
        let during = gate.begin();
        gate.allow([2]);
        let after = gate.begin();
        assert!(gate.allows(1, before) && gate.allows(2, before));
        assert!(gate.allows(1, during) && gate.allows(2, during));
        assert!(!gate.allows(1, after) && gate.allows(2, after));
        assert!(!gate.allows(3, before));
    }
}
