//! Requests served and failed, summed over the proxies that come and go: each proxy counts from its own start.

use std::collections::BTreeMap;

use kiln_model::api::RequestCount;
use kiln_model::{ReleaseCounters, ReleaseNumber, ServiceKey};

use crate::input::ProxyId;

#[derive(Clone, Debug, Default)]
pub(crate) struct Traffic {
    latest: BTreeMap<ProxyId, BTreeMap<(ServiceKey, ReleaseNumber), RequestCount>>,
    /// Of proxies that are gone.
    past: BTreeMap<(ServiceKey, ReleaseNumber), RequestCount>,
}

impl Traffic {
    pub(crate) fn counted(&mut self, proxy: ProxyId, counters: Vec<ReleaseCounters>) {
        let counts = counters
            .into_iter()
            .map(|counter| {
                let count = RequestCount {
                    served: counter.served,
                    failed: counter.failed,
                };
                ((counter.service, counter.release), count)
            })
            .collect();
        self.latest.insert(proxy, counts);
    }

    pub(crate) fn gone(&mut self, proxy: ProxyId) {
        for (key, count) in self.latest.remove(&proxy).into_iter().flatten() {
            add(self.past.entry(key).or_default(), count);
        }
    }

    /// Of all releases of the service, since this controller started.
    pub(crate) fn total(&self, service: &ServiceKey) -> RequestCount {
        let mut total = RequestCount::default();
        let all = self.latest.values().flatten().chain(&self.past);
        for (_, count) in all.filter(|((of, _), _)| of == service) {
            add(&mut total, *count);
        }
        total
    }
}

fn add(sum: &mut RequestCount, count: RequestCount) {
    sum.served += count.served;
    sum.failed += count.failed;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_that_is_replaced_keeps_its_share() {
        let service = ServiceKey::try_from("dev/api".to_owned()).unwrap();
        let counter = |served| ReleaseCounters {
            service: service.clone(),
            release: ReleaseNumber(1),
            served,
            failed: 1,
            cancelled: 0,
            status: [0; 5],
            in_flight: 0,
        };
        let mut traffic = Traffic::default();
        traffic.counted(1, vec![counter(10)]);
        traffic.counted(1, vec![counter(12)]);
        traffic.counted(2, vec![counter(1)]);
        traffic.gone(1);
        assert_eq!(
            traffic.total(&service),
            RequestCount {
                served: 13,
                failed: 2
            }
        );
    }
}
