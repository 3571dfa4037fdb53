//! The routing table: every service's last route in one.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use kiln_model::{
    Backend, Draining, Generation, Route, RoutingTable, ServiceKey, StateId, Weight, WeightedSet,
};
use kiln_plan::{RoutedSet, Service};

/// The table that the services ask for. Its generation is the journal entry that last changed a route, so that it
/// grows over restarts, and the same routes have the same generation. `inside` gives services their virtual addresses.
pub(crate) fn compose(
    services: &BTreeMap<ServiceKey, Service>,
    changed: StateId,
    mut inside: impl FnMut(&ServiceKey) -> Option<Ipv4Addr>,
) -> RoutingTable {
    let mut routes = Vec::new();
    let mut draining = Vec::new();
    for (key, service) in services {
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
        if service.is_gone() {
            continue;
        }
        let port = wanted
            .main_release()
            .and_then(|release| service.release(release)?.release.port);
        let inside = port.and_then(|port| Some((inside(key)?, port).into()));
        if wanted.listen.is_none() && inside.is_none() {
            continue;
        }
        routes.push(Route {
            service: key.clone(),
            generation: wanted.generation,
            listen: wanted.listen,
            inside,
            sets: wanted
                .sets
                .iter()
                .map(|set| weighted(service, set))
                .collect(),
        });
    }
    RoutingTable {
        generation: Generation(changed.0),
        routes,
        draining,
    }
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
