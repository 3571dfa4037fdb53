//! The simulated proxies: one or two that take every table, each in its own time, with requests in flight that last. What
//! drains is decided by the proxy's own [`Drains`].

use std::collections::BTreeMap;

use kiln_control::ProxyId;
use kiln_model::{
    Draining, FromProxy, Generation, InstanceId, ReleaseCounters, Route, RoutingTable, ServiceKey,
    Timestamp,
};
use kiln_pool::{DrainAction, Drains, Moment};

use crate::random::Random;

pub(crate) struct Proxy {
    pub(crate) id: ProxyId,
    pub(crate) table: RoutingTable,
    drains: Drains,
    /// When the last request of an instance that left the routes ends.
    idle_at: BTreeMap<InstanceId, u64>,
    /// It lives; one that does not serves nobody.
    pub(crate) alive: bool,
    /// What the controller sends arrives in order.
    pub(crate) last_delivery: u64,
    /// And what it answers, too.
    pub(crate) last_answer: u64,
    served: BTreeMap<ServiceKey, u64>,
}

pub(crate) struct Proxies {
    pub(crate) random: Random,
    pub(crate) all: Vec<Proxy>,
    next_id: ProxyId,
    /// Since when no proxy routes to an instance that was routed, by the controller's clock.
    pub(crate) left_at: BTreeMap<InstanceId, u64>,
}

/// What a proxy made of a table.
pub(crate) enum Taken {
    Confirmed,
    /// Everything but these services' routes.
    Partly(Vec<ServiceKey>),
    Refused {
        served: Option<Generation>,
    },
}

impl Proxies {
    pub(crate) fn new(seed: u64) -> Self {
        let mut random = Random::new(seed, 2);
        let count = u32::try_from(random.between(1, 2)).unwrap_or(1);
        Self {
            all: (0..count).map(|index| Proxy::new(1000 + index)).collect(),
            random,
            next_id: 2000,
            left_at: BTreeMap::new(),
        }
    }

    pub(crate) fn get(&mut self, id: ProxyId) -> Option<&mut Proxy> {
        self.all.iter_mut().find(|proxy| proxy.id == id)
    }

    pub(crate) fn routes_to(&self, id: &InstanceId) -> bool {
        self.living().any(|proxy| proxy.routes_to(id))
    }

    pub(crate) fn living(&self) -> impl Iterator<Item = &Proxy> {
        self.all.iter().filter(|proxy| proxy.alive)
    }

    /// Nothing of the instance is in flight anywhere.
    pub(crate) fn is_idle(&self, id: &InstanceId, now: u64) -> bool {
        self.living()
            .all(|proxy| !proxy.routes_to(id) && proxy.idle_at.get(id).is_none_or(|at| *at <= now))
    }

    /// A proxy dies, and what was in flight is gone. Another will take its place.
    pub(crate) fn replace(&mut self, index: usize) -> (ProxyId, ProxyId) {
        self.next_id += 1;
        let new = self.next_id;
        let proxy = &mut self.all[index];
        let old = std::mem::replace(&mut proxy.id, new);
        proxy.idle_at.clear();
        proxy.drains = Drains::default();
        proxy.alive = false;
        proxy.served.clear();
        (old, new)
    }

    /// A proxy starts, from the table that was saved last: they save it in one place.
    pub(crate) fn start(&mut self, id: ProxyId) {
        let newest = self.all.iter().max_by_key(|proxy| proxy.table.generation);
        let table = newest.map(|proxy| proxy.table.clone());
        if let (Some(proxy), Some(table)) = (self.get(id), table) {
            proxy.alive = true;
            proxy.table = table;
        }
    }

    /// Takes a table, or says why not.
    pub(crate) fn apply(
        &mut self,
        id: ProxyId,
        table: RoutingTable,
        faults: bool,
        now: u64,
        controller_now: u64,
    ) -> Option<Taken> {
        let whole = faults && self.random.percent(1);
        let partly = faults && self.random.percent(1);
        let chosen = self.random.between(0, 7);
        let proxy = self.all.iter_mut().find(|proxy| proxy.id == id)?;
        let served = proxy.table.generation;
        if table.generation < served || table.generation == served && table != proxy.table {
            return Some(Taken::Refused {
                served: Some(served),
            });
        }
        let again = table.generation == served;
        if whole && !again {
            return Some(Taken::Refused { served: None });
        }
        let mut next = table;
        let mut refused = Vec::new();
        if partly && !again && !next.routes.is_empty() {
            let index = usize::try_from(chosen).unwrap_or(0) % next.routes.len();
            let service = next.routes[index].service.clone();
            let before = proxy
                .table
                .routes
                .iter()
                .find(|route| route.service == service);
            match before {
                Some(before) => next.routes[index] = before.clone(),
                None => drop(next.routes.remove(index)),
            }
            refused.push(service);
        }
        let before = std::mem::replace(&mut proxy.table, next);
        for id in instances(&before.routes) {
            if proxy.routes_to(&id) {
                continue;
            }
            let deadline = proxy
                .drain_of(&id)
                .map_or(0, |d| crate::world::millis(d.deadline));
            let lasts = match self.random.between(0, 3) {
                0 | 1 => 0,
                2 => self.random.between(0, deadline),
                _ => self.random.between(0, deadline * 2),
            };
            proxy.idle_at.insert(id.clone(), now + lasts);
            self.left_at.insert(id, controller_now);
        }
        for id in instances(&proxy.table.routes) {
            proxy.idle_at.remove(&id);
        }
        let (drains, idle_at) = (&mut proxy.drains, &proxy.idle_at);
        let generation = proxy.table.generation;
        drains.handle_table(Moment(now), generation, &proxy.table.draining, |id| {
            u64::from(idle_at.get(id).is_some_and(|at| *at > now))
        });
        Some(if refused.is_empty() {
            Taken::Confirmed
        } else {
            Taken::Partly(refused)
        })
    }
}

fn instances(routes: &[Route]) -> Vec<InstanceId> {
    let sets = routes.iter().flat_map(|route| &route.sets);
    let backends = sets.flat_map(|set| &set.backends);
    backends.map(|backend| backend.instance.clone()).collect()
}

impl Proxy {
    fn new(id: ProxyId) -> Self {
        Self {
            id,
            table: RoutingTable::default(),
            drains: Drains::default(),
            idle_at: BTreeMap::new(),
            alive: true,
            last_delivery: 0,
            last_answer: 0,
            served: BTreeMap::new(),
        }
    }

    pub(crate) fn route(&self, service: &ServiceKey) -> Option<&Route> {
        self.table
            .routes
            .iter()
            .find(|route| route.service == *service)
    }

    fn routes_to(&self, id: &InstanceId) -> bool {
        let sets = self.table.routes.iter().flat_map(|route| &route.sets);
        sets.flat_map(|set| &set.backends)
            .any(|backend| backend.instance == *id)
    }

    fn drain_of(&self, id: &InstanceId) -> Option<&Draining> {
        self.table
            .draining
            .iter()
            .find(|draining| draining.instance == *id)
    }

    /// What it says of drains by now, and when it has to be asked again.
    pub(crate) fn drained(&mut self, now: u64) -> (Vec<FromProxy>, Option<u64>) {
        let mut said = Vec::new();
        let ended: Vec<_> = self.drains.waiting().cloned().collect();
        for id in ended {
            let in_flight = self.idle_at.get(&id).is_some_and(|at| *at > now);
            self.drains.handle_count(&id, u64::from(in_flight));
        }
        while let Some(action) = self.drains.poll_action(Moment(now)) {
            match action {
                DrainAction::Begin { .. } => {}
                DrainAction::Cut { instance } => {
                    self.idle_at.insert(instance.clone(), now);
                    self.drains.handle_count(&instance, 0);
                }
                DrainAction::Drained {
                    generation,
                    instance,
                } => said.push(FromProxy::Drained {
                    generation,
                    instance,
                    cut: 0,
                }),
            }
        }
        let ends = self.drains.waiting().filter_map(|id| self.idle_at.get(id));
        let next = ends
            .copied()
            .chain(self.drains.poll_timeout().map(|at| at.0));
        (said, next.filter(|at| *at > now).min())
    }

    /// Its counters: each route serves some requests between two questions.
    pub(crate) fn counters(&mut self, at: u64) -> FromProxy {
        let mut counters = Vec::new();
        for route in &self.table.routes {
            let served = self.served.entry(route.service.clone()).or_default();
            *served += 10;
            counters.push(ReleaseCounters {
                service: route.service.clone(),
                release: route
                    .sets
                    .first()
                    .map(|set| set.release)
                    .unwrap_or_default(),
                served: *served,
                failed: 0,
                cancelled: 0,
                status: [0; 5],
                in_flight: 0,
            });
        }
        FromProxy::Counters {
            at: Timestamp(at),
            counters,
        }
    }

    /// Its saved table is spoilt: it says that it is newer than any, and sends requests where nothing is.
    pub(crate) fn spoil(&mut self) {
        self.table.generation = Generation(self.table.generation.0 + 7);
        self.table.routes.clear();
    }
}
