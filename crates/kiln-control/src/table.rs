//! The routing table: every service's last route in one.

use kiln_model::{Backend, Draining, Route, RoutingTable, ServiceKey, Weight, WeightedSet};
use kiln_plan::{RouteWanted, RoutedSet, Service};

use crate::controller::Controller;

impl Controller {
    /// The table that the services ask for. Equal generations have equal routes, but for virtual addresses: the inside
    /// address of each route is unspecified and carries the port alone.
    pub fn compose(&self) -> RoutingTable {
        let mut routes = Vec::new();
        let mut draining = Vec::new();
        for (key, service) in &self.services {
            let Some(wanted) = service.route() else {
                continue;
            };
            for instance in &wanted.draining {
                if let Some(release) = service.release_of(instance) {
                    draining.push(Draining {
                        service: key.clone(),
                        release,
                        instance: instance.clone(),
                        deadline: wanted.drain_deadline,
                    });
                }
            }
            if !service.is_gone() {
                routes.extend(route(key, service, wanted));
            }
        }
        RoutingTable {
            generation: self.table,
            routes,
            draining,
        }
    }
}

/// `None`: it is reached neither from outside nor from inside.
fn route(key: &ServiceKey, service: &Service, wanted: &RouteWanted) -> Option<Route> {
    let port = wanted
        .main_release()
        .and_then(|release| service.release(release)?.release.port);
    let inside = port.map(|port| ([0, 0, 0, 0], port).into());
    if wanted.listen.is_none() && inside.is_none() {
        return None;
    }
    Some(Route {
        service: key.clone(),
        generation: wanted.generation,
        listen: wanted.listen,
        inside,
        sets: wanted
            .sets
            .iter()
            .map(|set| weighted(service, set))
            .collect(),
    })
}

fn weighted(service: &Service, set: &RoutedSet) -> WeightedSet {
    let backends = set.instances.iter().filter_map(|id| {
        Some(Backend {
            instance: id.clone(),
            address: service.instance(id)?.endpoint?,
        })
    });
    WeightedSet {
        release: set.release,
        weight: Weight::try_from(set.share.as_permille()).unwrap_or(Weight::WHOLE),
        backends: backends.collect(),
    }
}
