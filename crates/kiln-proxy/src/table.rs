//! The routing table as the workers use it, and the instances behind it.
//!
//! Why "confirmed" holds: a worker loads the table, adds itself to the chosen instance's count, and then looks
//! whether another table was published meanwhile; if so it takes itself back and routes anew. The control
//! thread publishes first and reads counts after. All of it is sequentially consistent, so either the worker
//! sees the newer publication, or the control thread sees the worker's count. A count of 0 after a publication
//! thus means that no request of an older table can reach the instance.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use arc_swap::ArcSwap;
use kiln_model::{Backend, Generation, InstanceId, ReleaseNumber, Route, RoutingTable, ServiceKey};
use tokio::sync::{Notify, mpsc};

use super::counters::{Counters, CountersByRelease};
use kiln_pool::{Health, LimitClock, Moment, Place, SetShare, Verdict};

/// One instance. Lives as long as a table or a request names it.
#[derive(Debug)]
pub(super) struct Instance {
    pub(super) id: InstanceId,
    pub(super) address: SocketAddr,
    /// Unique in this process: the pools' key, so that an address that is used again gets no old connection.
    pub(super) epoch: u64,
    pub(super) in_flight: AtomicU64,
    /// Requests that a deadline ended.
    pub(super) cut: AtomicU64,
    /// The control thread wants to hear when the count comes to 0.
    pub(super) draining: AtomicBool,
    /// Milliseconds; 0: not ejected.
    ejected_until: AtomicU64,
    /// False negatives only until the next failure: spares the mutex on every success.
    unclean: AtomicBool,
    health: Mutex<Health>,
}

impl Instance {
    pub(super) fn is_eligible(&self, now: Moment) -> bool {
        self.ejected_until.load(SeqCst) <= now.0
    }

    pub(super) fn failed(&self, now: Moment) -> Verdict {
        let mut health = self.health.lock().unwrap_or_else(PoisonError::into_inner);
        let verdict = health.handle_failure(now);
        self.unclean.store(true, SeqCst);
        if let Verdict::Ejected { until } = verdict {
            self.ejected_until.store(until.0, SeqCst);
        }
        verdict
    }

    pub(super) fn succeeded(&self) -> Verdict {
        if !self.unclean.load(SeqCst) {
            return Verdict::Unchanged;
        }
        let mut health = self.health.lock().unwrap_or_else(PoisonError::into_inner);
        self.unclean.store(false, SeqCst);
        self.ejected_until.store(0, SeqCst);
        health.handle_success()
    }
}

/// Where the requests to one address go.
#[derive(Debug)]
pub(super) struct LiveRoute {
    pub(super) service: ServiceKey,
    pub(super) sets: Vec<LiveSet>,
    /// What the choice needs to know of `sets`, one each.
    pub(super) shares: Vec<SetShare>,
    /// Of requests that no instance could be chosen for: those of the set with the greatest weight, or of release 0.
    pub(super) unserved: Arc<Counters>,
}

impl LiveRoute {
    pub(super) fn instance(&self, place: Place) -> &Arc<Instance> {
        &self.sets[place.set].instances[place.instance]
    }

    pub(super) fn places(&self) -> impl Iterator<Item = (Place, &Arc<Instance>)> {
        self.sets.iter().enumerate().flat_map(|(set, live)| {
            live.instances
                .iter()
                .enumerate()
                .map(move |(instance, at)| (Place { set, instance }, at))
        })
    }
}

/// The instances of one release.
#[derive(Debug)]
pub(super) struct LiveSet {
    pub(super) counters: Arc<Counters>,
    pub(super) instances: Vec<Arc<Instance>>,
}

/// Where a request came to.
#[derive(Debug)]
pub(super) enum Entered {
    /// No service has this address any more.
    NoRoute,
    /// None that may be chosen.
    Nobody(Arc<LiveRoute>),
    /// Counted at the instance, not yet in the counters of its release.
    At(Arc<Instance>, Arc<Counters>),
}

/// A table, resolved.
#[derive(Debug)]
pub(super) struct Live {
    /// Which publication this is. Not the table's generation: parts of a generation may be served before the rest.
    serial: u64,
    pub(super) table: RoutingTable,
    /// By `listen` and by virtual address.
    pub(super) routes: HashMap<SocketAddr, Arc<LiveRoute>>,
    /// Virtual addresses by `ENVIRONMENT/SERVICE`.
    pub(super) names: HashMap<String, Ipv4Addr>,
}

/// What every thread of the process shares.
#[derive(Debug)]
pub(super) struct Shared {
    live: ArcSwap<Live>,
    published: AtomicU64,
    pub(super) counters: CountersByRelease,
    /// A draining instance's count came to 0.
    pub(super) idle: Notify,
    /// Who was ejected (true) or serves again.
    pub(super) ejections: mpsc::UnboundedSender<(InstanceId, bool)>,
    /// When it was last said that a service has nobody eligible; 0: never.
    pub(super) fail_open_said: AtomicU64,
    /// Read a few times a second: enough for every limit, and free for every request.
    clock: LimitClock,
}

impl Shared {
    pub(super) fn new(ejections: mpsc::UnboundedSender<(InstanceId, bool)>) -> Self {
        let nothing = Live {
            serial: 0,
            table: RoutingTable::default(),
            routes: HashMap::new(),
            names: HashMap::new(),
        };
        Self {
            live: ArcSwap::from_pointee(nothing),
            published: AtomicU64::new(0),
            counters: CountersByRelease::default(),
            idle: Notify::new(),
            ejections,
            fail_open_said: AtomicU64::new(0),
            clock: LimitClock::new(kiln_fs::clock::boottime()),
        }
    }

    pub(super) fn coarse_now(&self) -> Moment {
        self.clock.now()
    }

    pub(super) fn tick(&self) {
        self.clock.tick(kiln_fs::clock::boottime());
    }

    /// For what is decided by it, rather than limited.
    pub(super) fn precise_now(&self) -> Moment {
        self.tick();
        self.coarse_now()
    }

    /// False: nothing was ever given to it.
    pub(super) fn has_table(&self) -> bool {
        self.live().table.generation > Generation(0)
    }

    pub(super) fn live(&self) -> arc_swap::Guard<Arc<Live>> {
        self.live.load()
    }

    /// Counts at the instance that `choose` picks of the route, by the table that is current when it returns.
    /// The instance is to be left again, by [`Shared::leave`].
    pub(super) fn enter(
        &self,
        listen: SocketAddr,
        mut choose: impl FnMut(&LiveRoute) -> Option<Place>,
    ) -> Entered {
        loop {
            let live = self.live.load();
            let Some(route) = live.routes.get(&listen) else {
                return Entered::NoRoute;
            };
            let Some(place) = choose(route) else {
                return Entered::Nobody(Arc::clone(route));
            };
            let LiveSet {
                counters,
                instances,
            } = &route.sets[place.set];
            let instance = &instances[place.instance];
            instance.in_flight.fetch_add(1, SeqCst);
            if self.published.load(SeqCst) <= live.serial {
                return Entered::At(Arc::clone(instance), Arc::clone(counters));
            }
            self.leave(instance);
        }
    }

    /// Takes one from the instance's count, and says so to who waits for 0.
    pub(super) fn leave(&self, instance: &Instance) {
        if instance.in_flight.fetch_sub(1, SeqCst) == 1 && instance.draining.load(SeqCst) {
            self.idle.notify_one();
        }
    }

    fn publish(&self, live: Live) {
        let serial = live.serial;
        self.live.store(Arc::new(live));
        self.published.store(serial, SeqCst);
    }
}

/// The control thread's side: turns tables into live ones, and remembers who was in which.
#[derive(Debug, Default)]
pub(super) struct Registry {
    next_epoch: u64,
    serial: u64,
    known: HashMap<InstanceId, Weak<Instance>>,
    /// Those of the present table, draining ones included.
    present: HashMap<InstanceId, Arc<Instance>>,
}

/// What a publication changed, by epoch.
#[derive(Debug)]
pub(super) struct Published {
    /// Gets no more requests.
    pub(super) gone: Vec<u64>,
    /// Was draining, and serves again.
    pub(super) returned: Vec<u64>,
}

impl Registry {
    /// Makes every worker route by it from now on.
    pub(super) fn publish(&mut self, shared: &Shared, table: RoutingTable) -> Published {
        let before = std::mem::take(&mut self.present);
        let mut routes = HashMap::new();
        let mut names = HashMap::new();
        let mut routed = Vec::new();
        let mut returned = Vec::new();
        for route in &table.routes {
            let live = Arc::new(self.live(shared, route));
            for (_, instance) in live.places() {
                if instance.draining.swap(false, SeqCst) {
                    returned.push(instance.epoch);
                }
                routed.push(instance.epoch);
                self.present
                    .insert(instance.id.clone(), Arc::clone(instance));
            }
            for address in [route.listen, route.inside].into_iter().flatten() {
                routes.insert(address, Arc::clone(&live));
            }
            if let Some(SocketAddr::V4(inside)) = route.inside {
                names.insert(route.service.to_string(), *inside.ip());
            }
        }
        for draining in &table.draining {
            if self.present.contains_key(&draining.instance) {
                continue;
            }
            // One that this process never sent a request to has nothing in flight here.
            if let Some(instance) = self.known.get(&draining.instance).and_then(Weak::upgrade) {
                instance.draining.store(true, SeqCst);
                self.present.insert(draining.instance.clone(), instance);
            }
        }
        self.serial += 1;
        shared.publish(Live {
            serial: self.serial,
            table,
            routes,
            names,
        });
        let gone = before
            .values()
            .map(|instance| instance.epoch)
            .filter(|epoch| !routed.contains(epoch))
            .collect();
        self.known.retain(|_, instance| instance.strong_count() > 0);
        Published { gone, returned }
    }

    fn live(&mut self, shared: &Shared, route: &Route) -> LiveRoute {
        let counters = |release| shared.counters.of(&route.service, release);
        let heaviest = route.sets.iter().max_by_key(|set| set.weight);
        let sets: Vec<_> = route
            .sets
            .iter()
            .map(|set| LiveSet {
                counters: counters(set.release),
                instances: set
                    .backends
                    .iter()
                    .map(|backend| self.instance(backend))
                    .collect(),
            })
            .collect();
        let shares = route.sets.iter().map(|set| SetShare {
            weight: set.weight,
            instances: set.backends.len(),
        });
        LiveRoute {
            service: route.service.clone(),
            sets,
            shares: shares.collect(),
            unserved: counters(heaviest.map_or(ReleaseNumber(0), |set| set.release)),
        }
    }

    fn instance(&mut self, backend: &Backend) -> Arc<Instance> {
        let known = self.known.get(&backend.instance).and_then(Weak::upgrade);
        if let Some(instance) = known.filter(|instance| instance.address == backend.address) {
            return instance;
        }
        self.next_epoch += 1;
        let instance = Arc::new(Instance {
            id: backend.instance.clone(),
            address: backend.address,
            epoch: self.next_epoch,
            in_flight: AtomicU64::new(0),
            cut: AtomicU64::new(0),
            draining: AtomicBool::new(false),
            ejected_until: AtomicU64::new(0),
            unclean: AtomicBool::new(false),
            health: Mutex::new(Health::default()),
        });
        self.known
            .insert(backend.instance.clone(), Arc::downgrade(&instance));
        instance
    }

    pub(super) fn get(&self, id: &InstanceId) -> Option<&Arc<Instance>> {
        self.present.get(id)
    }

    pub(super) fn in_flight(&self, id: &InstanceId) -> u64 {
        self.get(id)
            .map_or(0, |instance| instance.in_flight.load(SeqCst))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use kiln_model::{Draining, WeightedSet};

    use super::*;

    fn listen() -> SocketAddr {
        ([127, 0, 0, 1], 8080).into()
    }

    fn table(generation: u64, id: &str, draining: &[&str]) -> RoutingTable {
        let service = ServiceKey::try_from("dev/api".to_owned()).unwrap();
        let backend = Backend {
            instance: InstanceId::new(id),
            address: ([10, 0, 0, 2], 80).into(),
        };
        RoutingTable {
            generation: Generation(generation),
            routes: vec![Route {
                service: service.clone(),
                generation: Generation(generation),
                listen: Some(listen()),
                inside: None,
                sets: vec![WeightedSet::whole(ReleaseNumber(generation), vec![backend])],
            }],
            draining: draining
                .iter()
                .map(|id| Draining {
                    service: service.clone(),
                    release: ReleaseNumber(1),
                    instance: InstanceId::new(*id),
                    deadline: Duration::from_secs(1),
                })
                .collect(),
        }
    }

    #[test]
    fn a_request_that_a_switch_overtakes_goes_by_the_new_table() {
        let shared = Shared::new(mpsc::unbounded_channel().0);
        let mut registry = Registry::default();
        registry.publish(&shared, table(1, "old", &[]));
        let mut looks = 0;
        // The switch comes between the choice and the count.
        let entered = shared.enter(listen(), |_| {
            looks += 1;
            if looks == 1 {
                registry.publish(&shared, table(2, "new", &["old"]));
                assert_eq!(registry.in_flight(&InstanceId::new("old")), 0);
            }
            Some(Place {
                set: 0,
                instance: 0,
            })
        });
        let Entered::At(instance, _) = entered else {
            panic!("{entered:?}")
        };
        assert_eq!((instance.id.as_str(), looks), ("new", 2));
        assert_eq!(registry.in_flight(&InstanceId::new("old")), 0);
        assert_eq!(registry.in_flight(&InstanceId::new("new")), 1);
    }

    #[test]
    fn a_request_that_the_rest_of_its_generation_overtakes_goes_by_it() {
        let shared = Shared::new(mpsc::unbounded_channel().0);
        let mut registry = Registry::default();
        registry.publish(&shared, table(1, "old", &[]));
        let mut looks = 0;
        let entered = shared.enter(listen(), |_| {
            looks += 1;
            if looks == 1 {
                registry.publish(&shared, table(1, "new", &["old"]));
            }
            Some(Place {
                set: 0,
                instance: 0,
            })
        });
        let Entered::At(instance, _) = entered else {
            panic!("{entered:?}")
        };
        assert_eq!(instance.id.as_str(), "new");
        assert_eq!(registry.in_flight(&InstanceId::new("old")), 0);
    }

    #[test]
    fn an_address_that_is_used_again_is_another_instance() {
        let shared = Shared::new(mpsc::unbounded_channel().0);
        let mut registry = Registry::default();
        registry.publish(&shared, table(1, "old", &[]));
        let old = registry.get(&InstanceId::new("old")).unwrap().epoch;
        let gone = registry.publish(&shared, table(2, "new", &[]));
        assert_eq!(gone.gone, [old]);
        assert_ne!(registry.get(&InstanceId::new("new")).unwrap().epoch, old);
    }
}
