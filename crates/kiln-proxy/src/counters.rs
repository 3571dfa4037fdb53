//! Requests by release. Atomics, because every worker adds to them; relaxed, because nothing is decided by them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use kiln_model::{ReleaseCounters, ReleaseNumber, ServiceKey};

#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) served: AtomicU64,
    pub(super) failed: AtomicU64,
    pub(super) cancelled: AtomicU64,
    pub(super) in_flight: AtomicU64,
    status: [AtomicU64; 5],
}

impl Counters {
    pub(super) fn answered(&self, status: u16) {
        if let Some(class) = self.status.get(usize::from(status / 100).wrapping_sub(1)) {
            class.fetch_add(1, Relaxed);
        }
    }
}

/// The counters of every release that was ever routed to.
#[derive(Debug, Default)]
pub(super) struct CountersByRelease {
    by_release: Mutex<BTreeMap<(ServiceKey, ReleaseNumber), Arc<Counters>>>,
}

impl CountersByRelease {
    pub(super) fn of(&self, service: &ServiceKey, release: ReleaseNumber) -> Arc<Counters> {
        let mut by_release = self
            .by_release
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        Arc::clone(by_release.entry((service.clone(), release)).or_default())
    }

    pub(super) fn read(&self) -> Vec<ReleaseCounters> {
        let by_release = self
            .by_release
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        by_release
            .iter()
            .map(|((service, release), counters)| ReleaseCounters {
                service: service.clone(),
                release: *release,
                served: counters.served.load(Relaxed),
                failed: counters.failed.load(Relaxed),
                cancelled: counters.cancelled.load(Relaxed),
                status: std::array::from_fn(|class| counters.status[class].load(Relaxed)),
                in_flight: counters.in_flight.load(Relaxed),
            })
            .collect()
    }
}
