//! The owner and the proxies: tables go out, and what is confirmed, refused, drained or ejected comes back as events.

use kiln_model::{FromProxy, RoutingTable, ToProxy};
use kiln_plan::{Event, Service};

use crate::owner::{Owner, chain_of};
use crate::proxies::{ProxyId, ProxyInput};
use crate::{crash, table};

impl Owner {
    fn compose(&mut self) -> RoutingTable {
        let Self {
            services,
            effects,
            problems,
            ..
        } = self;
        table::compose(services, self.table, |key| {
            let address = effects.engine.service_address(key);
            address
                .inspect_err(|error| {
                    problems.insert("network", chain_of(error));
                })
                .ok()
        })
    }

    pub(crate) fn push_table(&mut self) {
        self.drained.clear();
        let table = self.compose();
        self.links.send(&ToProxy::Table { table });
        crash::point("route");
    }

    pub(crate) fn proxy(&mut self, id: ProxyId, input: ProxyInput) {
        match input {
            ProxyInput::Connected { sender } => {
                self.links.connected(id, sender);
                self.problems.remove("proxy");
                let table = self.compose();
                self.links.send_to(id, ToProxy::Table { table });
                self.links.send_to(id, ToProxy::Count);
            }
            ProxyInput::Said(said) => self.proxy_said(id, said),
            ProxyInput::Gone => {
                self.links.gone(id);
                self.traffic.gone(id);
                self.waiting.counted(id, &self.traffic);
                for proxies in self.drained.values_mut() {
                    proxies.remove(&id);
                }
                self.ejected.retain(|_, proxies| {
                    proxies.remove(&id);
                    !proxies.is_empty()
                });
                if self.links.is_empty() {
                    self.problems.insert(
                        "proxy",
                        "no proxy is connected: traffic goes on by the table it last confirmed, and no switch can happen; \
                         the supervisor starts it again, see log/proxy.log"
                            .to_owned(),
                    );
                }
                self.confirm();
                self.confirm_drained();
            }
        }
    }

    fn proxy_said(&mut self, id: ProxyId, said: FromProxy) {
        match said {
            FromProxy::Hello { .. } => {}
            FromProxy::Confirmed { generation } => {
                self.links.confirmed(id, generation);
                self.confirm();
            }
            FromProxy::Refused {
                generation,
                services,
                reason,
                ..
            } => {
                if generation.0 == self.table.0 {
                    let keys: Vec<_> = match services.is_empty() {
                        true => self.unconfirmed.keys().cloned().collect(),
                        false => services,
                    };
                    // The proxy confirms the rest of the table next.
                    self.unconfirmed.retain(|key, _| !keys.contains(key));
                    for key in keys {
                        let Some(route) = self.services.get(&key).and_then(Service::route) else {
                            continue;
                        };
                        let event = Event::RouteRefused {
                            generation: route.generation,
                            reason: reason.clone(),
                        };
                        self.happened(key, event);
                    }
                }
            }
            FromProxy::Drained {
                generation,
                instance,
                cut,
            } => {
                // Said about an older table: the instance may have been routed to again since.
                if generation.0 == self.table.0 {
                    self.drained.entry(instance).or_default().insert(id, cut);
                    self.confirm_drained();
                }
            }
            FromProxy::Counters { at: _, counters } => {
                self.traffic.counted(id, counters);
                self.waiting.counted(id, &self.traffic);
            }
            FromProxy::Ejected { instance, ejected } => {
                let proxies = self.ejected.entry(instance).or_default();
                if ejected {
                    proxies.insert(id);
                } else {
                    proxies.remove(&id);
                }
                self.ejected.retain(|_, proxies| !proxies.is_empty());
            }
        }
    }

    /// Tells the services whose routes every proxy serves by now.
    fn confirm(&mut self) {
        let Some(confirmed) = self.links.confirmed_by_all() else {
            return;
        };
        let ready: Vec<_> = self
            .unconfirmed
            .iter()
            .filter(|(_, table)| table.0 <= confirmed.0)
            .map(|(key, _)| key.clone())
            .collect();
        for key in ready {
            self.unconfirmed.remove(&key);
            let Some(route) = self.services.get(&key).and_then(Service::route) else {
                continue;
            };
            let generation = route.generation;
            crash::point("confirm");
            self.happened(key, Event::Confirmed { generation });
        }
    }

    fn confirm_drained(&mut self) {
        let everywhere: Vec<_> = self
            .drained
            .iter()
            .filter(|(_, proxies)| {
                !self.links.is_empty() && self.links.ids().all(|id| proxies.contains_key(&id))
            })
            .map(|(instance, proxies)| (instance.clone(), proxies.values().sum::<u64>()))
            .collect();
        for (instance, cut) in everywhere {
            self.drained.remove(&instance);
            let key = self
                .services
                .iter()
                .find(|(_, service)| service.instance(&instance).is_some())
                .map(|(key, _)| key.clone());
            if let Some(key) = key {
                crash::point("drain");
                self.happened(key, Event::Drained { instance, cut });
            }
        }
    }
}
