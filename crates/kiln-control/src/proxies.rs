//! The controller and the proxies: tables go out, and what is confirmed, refused, drained or ejected comes back as events.
//!
//! There is one proxy most of the time, two while one replaces the other, and none while the supervisor starts the next. A
//! generation is confirmed when every connected proxy has confirmed it.

use std::collections::BTreeSet;
use std::time::Duration;

use kiln_model::{FromProxy, Generation, InstanceId, ServiceKey};
use kiln_plan::{Event, Service};

use crate::controller::{Controller, Work};
use crate::input::{Effect, ProxyId};
use crate::mutation::Mutation;

/// How long after a refusal the table is given again, unless a newer one comes first.
const PUSH_AGAIN: Duration = Duration::from_secs(5);

/// What is known of one connected proxy.
#[derive(Clone, Debug, Default)]
pub(crate) struct Link {
    confirmed: Generation,
    /// A table that it serves but for the routes of some services.
    partly: Option<(Generation, BTreeSet<ServiceKey>)>,
    /// How often it was asked for its counters, and how often it has answered.
    asked: u64,
    pub(crate) answered: u64,
}

impl Link {
    /// It serves the service's route of this table, or of a newer one.
    fn serves(&self, service: &ServiceKey, table: Generation) -> bool {
        match &self.partly {
            // What it confirms of the same table is the rest of it.
            Some((generation, refused)) if refused.contains(service) => {
                self.confirmed > *generation && self.confirmed >= table
            }
            Some((generation, _)) => self.confirmed.max(*generation) >= table,
            None => self.confirmed >= table,
        }
    }
}

impl Controller {
    pub(crate) fn push_tables(&mut self) {
        self.drained.clear();
        self.push_again = None;
        let table = self.compose();
        for proxy in self.links.keys() {
            self.effects.push_back(Effect::Table {
                proxy: *proxy,
                table: table.clone(),
            });
        }
    }

    pub(crate) fn proxy_connected(&mut self, proxy: ProxyId) {
        self.links.insert(proxy, Link::default());
        let table = self.compose();
        self.effects.push_back(Effect::Table { proxy, table });
        self.count(proxy);
    }

    /// Asks a proxy for its counters: which of its answers will be the one.
    pub(crate) fn count(&mut self, proxy: ProxyId) -> u64 {
        self.effects.push_back(Effect::Count { proxy });
        let link = self.links.entry(proxy).or_default();
        link.asked += 1;
        link.asked
    }

    pub(crate) fn proxy_gone(&mut self, proxy: ProxyId) {
        self.links.remove(&proxy);
        self.traffic.gone(proxy);
        self.tell_settled();
        for proxies in self.drained.values_mut() {
            proxies.remove(&proxy);
        }
        self.ejected.retain(|_, proxies| {
            proxies.remove(&proxy);
            !proxies.is_empty()
        });
        self.confirm();
        self.confirm_drained();
    }

    pub(crate) fn proxy_said(&mut self, proxy: ProxyId, said: FromProxy) {
        match said {
            FromProxy::Hello { .. } => {}
            FromProxy::Confirmed { generation } => {
                if let Some(link) = self.links.get_mut(&proxy) {
                    link.confirmed = link.confirmed.max(generation);
                }
                self.confirm();
            }
            FromProxy::Refused {
                generation,
                reason,
                served,
                services,
                digest: _,
            } => self.refused(proxy, generation, reason, served, services),
            FromProxy::Drained {
                generation,
                instance,
                cut,
            } => {
                // Said about an older table: the instance may have been routed to again since.
                if generation == self.table {
                    self.drained.entry(instance).or_default().insert(proxy, cut);
                    self.confirm_drained();
                }
            }
            FromProxy::Counters { at: _, counters } => {
                self.traffic.counted(proxy, counters);
                if let Some(link) = self.links.get_mut(&proxy) {
                    link.answered += 1;
                }
                self.tell_settled();
            }
            FromProxy::Ejected { instance, ejected } => {
                let proxies = self.ejected.entry(instance).or_default();
                if ejected {
                    proxies.insert(proxy);
                } else {
                    proxies.remove(&proxy);
                }
                self.ejected.retain(|_, proxies| !proxies.is_empty());
            }
        }
    }

    /// A proxy does not take a table. One that serves a newer one, or another of the same generation (of a journal that was
    /// restored since, or because its own was spoilt), is given the table as a newer generation.
    fn refused(
        &mut self,
        proxy: ProxyId,
        generation: Generation,
        reason: String,
        served: Option<Generation>,
        services: Vec<ServiceKey>,
    ) {
        if let Some(served) = served.filter(|served| *served >= self.table) {
            if self.mutation != Some(Mutation::NeverRaise) {
                self.queue.push_back(Work::Raise(served.next()));
            }
            return;
        }
        if generation != self.table {
            return;
        }
        // Its planner gives a route again that it waits for. One that was confirmed before has nobody who does.
        self.push_again = Some(self.clock.now().plus(PUSH_AGAIN));
        let blames_all = services.is_empty() || self.mutation == Some(Mutation::BlameAll);
        let blamed: Vec<_> = self
            .unconfirmed
            .keys()
            .filter(|key| blames_all || services.contains(key))
            .cloned()
            .collect();
        for key in blamed {
            let Some(route) = self.services.get(&key).and_then(Service::route) else {
                continue;
            };
            let event = Event::RouteRefused {
                generation: route.generation,
                reason: reason.clone(),
            };
            self.happened(key, event);
        }
        if !services.is_empty()
            && let Some(link) = self.links.get_mut(&proxy)
        {
            link.partly = Some((generation, services.into_iter().collect()));
            self.confirm();
        }
    }

    /// Gives the table again that was refused, where the time has come and no newer one has taken its place.
    pub(crate) fn retry_table(&mut self) {
        if self.push_again.is_some_and(|at| self.clock.now() >= at) {
            self.push_again = None;
            self.queue.push_back(Work::Raise(self.table.next()));
        }
    }

    /// Tells the services whose routes every proxy serves by now.
    pub(crate) fn confirm(&mut self) {
        if self.links.is_empty() {
            return;
        }
        let ready: Vec<_> = self
            .unconfirmed
            .iter()
            .filter(|(key, table)| self.links.values().all(|link| link.serves(key, **table)))
            .map(|(key, _)| key.clone())
            .collect();
        for key in ready {
            self.unconfirmed.remove(&key);
            let Some(route) = self.services.get(&key).and_then(Service::route) else {
                continue;
            };
            let generation = route.generation;
            self.happened(key, Event::Confirmed { generation });
        }
        self.listen();
    }

    fn confirm_drained(&mut self) {
        let everywhere: Vec<(InstanceId, u64)> = self
            .drained
            .iter()
            .filter(|(_, proxies)| {
                !self.links.is_empty() && self.links.keys().all(|id| proxies.contains_key(id))
            })
            .map(|(instance, proxies)| (instance.clone(), proxies.values().sum()))
            .collect();
        for (instance, cut) in everywhere {
            self.drained.remove(&instance);
            if let Some(key) = self.owners.get(&instance).cloned() {
                self.happened(key, Event::Drained { instance, cut });
            }
        }
    }
}
