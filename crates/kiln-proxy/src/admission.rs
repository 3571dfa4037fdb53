//! What of a controller's table is served, and why the rest is not.

use std::collections::BTreeSet;
use std::io;

use kiln_model::{Generation, Route, RoutingTable, ServiceKey};

/// Why a whole table is not served.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refused {
    #[error("generation {0} is served already, and is newer")]
    Older(Generation),
    #[error("generation {0} is served already with other routes: give the change a new generation")]
    Differs(Generation),
    #[error("this version of the proxy can't read it: {0}")]
    Unreadable(serde_json::Error),
    #[error("a worker can't accept on a listening socket: {0}")]
    Listen(io::Error),
    #[error(
        "the table can't be saved: {0}; check that the disk of the data root is writable and not full"
    )]
    Save(io::Error),
}

impl Refused {
    /// The generation that is served already, where that is why.
    pub(super) fn served(&self) -> Option<Generation> {
        match self {
            Self::Older(served) | Self::Differs(served) => Some(*served),
            Self::Unreadable(_) | Self::Listen(_) | Self::Save(_) => None,
        }
    }
}

/// What is served of `offered` where the services of `lacking` have no listening socket: their routes stay as they are in
/// `before`, with their instances, and all others are as offered.
pub(super) fn without(
    offered: &RoutingTable,
    before: &RoutingTable,
    lacking: &BTreeSet<ServiceKey>,
) -> RoutingTable {
    let is_lacking = |route: &&Route| lacking.contains(&route.service);
    let mut routes: Vec<Route> = offered
        .routes
        .iter()
        .filter(|route| !is_lacking(route))
        .cloned()
        .collect();
    let taken: BTreeSet<_> = routes.iter().filter_map(|route| route.listen).collect();
    let kept = before.routes.iter().filter(is_lacking).map(|route| Route {
        // Another service may have the address by now.
        listen: route.listen.filter(|listen| !taken.contains(listen)),
        ..route.clone()
    });
    let kept: Vec<Route> = kept.collect();
    let serving: BTreeSet<_> = kept
        .iter()
        .flat_map(|route| &route.sets)
        .flat_map(|set| &set.backends)
        .map(|backend| backend.instance.clone())
        .collect();
    routes.extend(kept);
    routes.sort_by(|a, b| a.service.cmp(&b.service));
    let draining = offered
        .draining
        .iter()
        .filter(|draining| !serving.contains(&draining.instance))
        .cloned()
        .collect();
    RoutingTable {
        generation: offered.generation,
        routes,
        draining,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use kiln_model::{Backend, Draining, InstanceId, ReleaseNumber, WeightedSet};

    use super::*;

    fn service(name: &str) -> ServiceKey {
        ServiceKey::try_from(format!("dev/{name}")).unwrap()
    }

    fn route(name: &str, port: u16, instance: &str) -> Route {
        let backend = Backend {
            instance: InstanceId::new(instance),
            address: ([10, 0, 0, 2], 80).into(),
        };
        Route {
            service: service(name),
            generation: Generation(1),
            listen: Some(([127, 0, 0, 1], port).into()),
            inside: None,
            sets: vec![WeightedSet::whole(ReleaseNumber(1), vec![backend])],
        }
    }

    fn table(generation: u64, routes: Vec<Route>, draining: &[(&str, &str)]) -> RoutingTable {
        let draining = draining.iter().map(|(name, instance)| Draining {
            service: service(name),
            release: ReleaseNumber(1),
            instance: InstanceId::new(*instance),
            deadline: Duration::from_secs(1),
        });
        RoutingTable {
            generation: Generation(generation),
            routes,
            draining: draining.collect(),
        }
    }

    #[test]
    fn who_lacks_a_socket_stays_as_it_is_and_all_others_switch() {
        let before = table(1, vec![route("api", 1, "a1"), route("web", 2, "w1")], &[]);
        let offered = table(
            2,
            vec![
                route("api", 9, "a2"),
                route("new", 8, "n1"),
                route("web", 2, "w2"),
            ],
            &[("api", "a1"), ("web", "w1")],
        );
        let lacking = BTreeSet::from([service("api"), service("new")]);
        let served = without(&offered, &before, &lacking);
        assert_eq!(
            served,
            table(
                2,
                vec![route("api", 1, "a1"), route("web", 2, "w2")],
                &[("web", "w1")]
            )
        );
        assert_eq!(without(&offered, &before, &BTreeSet::new()), offered);
    }

    #[test]
    fn an_address_that_another_service_has_by_now_is_not_kept() {
        let before = table(1, vec![route("api", 1, "a1")], &[]);
        let offered = table(2, vec![route("api", 9, "a2"), route("web", 1, "w1")], &[]);
        let served = without(&offered, &before, &BTreeSet::from([service("api")]));
        assert_eq!(served.routes[0].listen, None);
        assert_eq!(served.routes[1], route("web", 1, "w1"));
    }
}
