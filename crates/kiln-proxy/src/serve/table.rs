//! The routing table as the workers use it, and the instances behind it.
//!
//! Why "confirmed" holds: a worker loads the table, adds itself to the chosen instance's count, and then looks
//! whether a newer generation was published meanwhile; if so it takes itself back and routes anew. The control
//! thread publishes first and reads counts after. All of it is sequentially consistent, so either the worker
//! sees the new generation, or the control thread sees the worker's count. A count of 0 after a publication
//! thus means that no request of an older table can reach the instance.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use arc_swap::ArcSwap;
use kiln_model::{
    Backend, Generation, InstanceId, ReleaseNumber, RoutingTable, ServiceKey, Timestamp,
};
use tokio::sync::{Notify, mpsc};

use super::counters::{Book, Counters};
use crate::core::{Health, Verdict};

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
    pub(super) fn is_eligible(&self, now: Timestamp) -> bool {
        self.ejected_until.load(SeqCst) <= now.0
    }

    pub(super) fn failed(&self, now: Timestamp) -> Verdict {
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

/// Where the requests of one listener go.
#[derive(Debug)]
pub(super) struct LiveRoute {
    pub(super) service: ServiceKey,
    pub(super) counters: Arc<Counters>,
    pub(super) instances: Vec<Arc<Instance>>,
}

/// A table, resolved.
#[derive(Debug)]
pub(super) struct Live {
    pub(super) table: RoutingTable,
    pub(super) routes: HashMap<SocketAddr, Arc<LiveRoute>>,
}

/// What every thread of the process shares.
#[derive(Debug)]
pub(super) struct Shared {
    live: ArcSwap<Live>,
    published: AtomicU64,
    pub(super) book: Book,
    /// A draining instance's count came to 0.
    pub(super) idle: Notify,
    /// Who was ejected (true) or serves again.
    pub(super) ejections: mpsc::UnboundedSender<(InstanceId, bool)>,
    /// When it was last said that a service has nobody eligible.
    pub(super) fail_open_said: AtomicU64,
    /// The wall clock, read a few times a second: enough for every limit, and free for every request.
    clock: AtomicU64,
}

impl Shared {
    pub(super) fn new(
        now: Timestamp,
        ejections: mpsc::UnboundedSender<(InstanceId, bool)>,
    ) -> Self {
        let nothing = Live {
            table: RoutingTable::default(),
            routes: HashMap::new(),
        };
        Self {
            live: ArcSwap::from_pointee(nothing),
            published: AtomicU64::new(0),
            book: Book::default(),
            idle: Notify::new(),
            ejections,
            fail_open_said: AtomicU64::new(0),
            clock: AtomicU64::new(now.0),
        }
    }

    pub(super) fn coarse_now(&self) -> Timestamp {
        Timestamp(self.clock.load(SeqCst))
    }

    pub(super) fn tick(&self, now: Timestamp) {
        self.clock.fetch_max(now.0, SeqCst);
    }

    pub(super) fn live(&self) -> arc_swap::Guard<Arc<Live>> {
        self.live.load()
    }

    /// Whether nothing newer than this was published.
    pub(super) fn is_current(&self, generation: Generation) -> bool {
        self.published.load(SeqCst) <= generation.0
    }

    fn publish(&self, live: Live) {
        let generation = live.table.generation;
        self.live.store(Arc::new(live));
        self.published.store(generation.0, SeqCst);
    }
}

/// The control thread's side: turns tables into live ones, and remembers who was in which.
#[derive(Debug, Default)]
pub(super) struct Registry {
    next_epoch: u64,
    known: HashMap<InstanceId, Weak<Instance>>,
    /// Those of the present table, draining ones included.
    present: HashMap<InstanceId, Arc<Instance>>,
}

impl Registry {
    /// Makes every worker route by it from now on. Returns the epochs of instances that get no more requests.
    pub(super) fn publish(&mut self, shared: &Shared, table: RoutingTable) -> Vec<u64> {
        let before = std::mem::take(&mut self.present);
        let mut routes = HashMap::new();
        let mut routed = Vec::new();
        for route in &table.routes {
            let release = route
                .active
                .as_ref()
                .map_or(ReleaseNumber(0), |set| set.release);
            let backends = route.active.as_ref().map_or(&[][..], |set| &set.backends);
            let instances: Vec<_> = backends
                .iter()
                .map(|backend| self.instance(backend))
                .collect();
            for instance in &instances {
                instance.draining.store(false, SeqCst);
                routed.push(instance.epoch);
                self.present
                    .insert(instance.id.clone(), Arc::clone(instance));
            }
            let live = LiveRoute {
                service: route.service.clone(),
                counters: shared.book.of(&route.service, release),
                instances,
            };
            routes.insert(route.listen, Arc::new(live));
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
        shared.publish(Live { table, routes });
        let gone = before
            .values()
            .map(|instance| instance.epoch)
            .filter(|epoch| !routed.contains(epoch))
            .collect();
        self.known.retain(|_, instance| instance.strong_count() > 0);
        gone
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
