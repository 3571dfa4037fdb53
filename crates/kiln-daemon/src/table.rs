//! The routing table: every service's last route in one.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};

use kiln_model::{
    Backend, Draining, Generation, InstanceId, Route, RoutingTable, ServiceKey, StateId,
    WeightedSet,
};
use kiln_plan::Service;

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
        let Some(policy) = service.policy() else {
            continue;
        };
        for instance in &wanted.draining {
            if let Some(release) = service.release_of(instance) {
                draining.push(Draining {
                    service: key.clone(),
                    release,
                    instance: instance.clone(),
                    deadline: policy.drain_deadline,
                });
            }
        }
        if service.is_gone() {
            continue;
        }
        let port = wanted
            .active
            .as_ref()
            .and_then(|(release, _)| service.release(*release)?.release.port);
        let inside = port.and_then(|port| Some((inside(key)?, port).into()));
        if policy.listen.is_none() && inside.is_none() {
            continue;
        }
        routes.push(Route {
            service: key.clone(),
            generation: wanted.generation,
            listen: policy.listen,
            inside,
            sets: wanted
                .active
                .iter()
                .map(|(release, instances)| {
                    let backends = instances.iter().filter_map(|id| {
                        Some(Backend {
                            instance: id.clone(),
                            address: address(service, id)?,
                        })
                    });
                    WeightedSet::whole(*release, backends.collect())
                })
                .collect(),
        });
    }
    RoutingTable {
        generation: Generation(changed.0),
        routes,
        draining,
    }
}

/// Where the instance listens; `None` before it started, or when it has no port.
pub(crate) fn address(service: &Service, id: &InstanceId) -> Option<SocketAddr> {
    let instance = service.instance(id)?;
    let port = service.release(instance.release)?.release.port?;
    Some((instance.address?, port).into())
}
