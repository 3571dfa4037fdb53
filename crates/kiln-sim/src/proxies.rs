//! The model proxies: one or two that take every generation, each in its own time, with requests in flight that last.

use std::collections::BTreeMap;

use kiln_model::{Generation, InstanceId, ReleaseNumber};

use crate::random::Random;

#[derive(Default)]
pub(crate) struct Proxy {
    pub(crate) generation: Generation,
    pub(crate) active: Option<(ReleaseNumber, Vec<InstanceId>)>,
    /// When the last request of an instance that left the routes ends.
    pub(crate) idle_at: BTreeMap<InstanceId, u64>,
    pub(crate) unreachable_until: u64,
}

pub(crate) struct Proxies {
    pub(crate) random: Random,
    pub(crate) all: Vec<Proxy>,
    /// Since when no proxy routes to an instance that was routed, by the controller's clock.
    pub(crate) left_at: BTreeMap<InstanceId, u64>,
}

impl Proxies {
    pub(crate) fn new(seed: u64) -> Self {
        let mut random = Random::new(seed, 2);
        let count = random.between(1, 2);
        Self {
            all: (0..count).map(|_| Proxy::default()).collect(),
            random,
            left_at: BTreeMap::new(),
        }
    }

    pub(crate) fn routes_to(&self, id: &InstanceId) -> bool {
        self.all.iter().any(|proxy| proxy.routes_to(id))
    }

    /// Nothing of the instance is in flight anywhere.
    pub(crate) fn is_idle(&self, id: &InstanceId, now: u64) -> bool {
        self.all
            .iter()
            .all(|proxy| !proxy.routes_to(id) && proxy.idle_at.get(id).is_none_or(|at| *at <= now))
    }

    /// Takes a table; one older than the one served changes nothing.
    pub(crate) fn apply(
        &mut self,
        index: usize,
        generation: Generation,
        active: Option<(ReleaseNumber, Vec<InstanceId>)>,
        now: u64,
        controller_now: u64,
        deadline: u64,
    ) {
        let proxy = &mut self.all[index];
        if generation <= proxy.generation {
            return;
        }
        let before: Vec<_> = proxy.active.take().map_or(Vec::new(), |(_, ids)| ids);
        proxy.generation = generation;
        proxy.active = active;
        for id in before {
            if !proxy.routes_to(&id) {
                let lasts = if self.random.percent(50) {
                    0
                } else {
                    self.random.between(0, deadline)
                };
                proxy.idle_at.insert(id.clone(), now + lasts);
                self.left_at.insert(id, controller_now);
            }
        }
        if let Some((_, ids)) = &proxy.active {
            for id in ids {
                proxy.idle_at.remove(id);
            }
        }
    }

    pub(crate) fn confirmed(&self, generation: Generation) -> bool {
        self.all.iter().all(|proxy| proxy.generation >= generation)
    }
}

impl Proxy {
    fn routes_to(&self, id: &InstanceId) -> bool {
        self.active
            .as_ref()
            .is_some_and(|(_, ids)| ids.contains(id))
    }
}
