//! The routing table as JSON, in every format that kiln has written.
//!
//! | Format | Since | What it adds |
//! |---|---|---|
//! | 1 | the first kiln | a route has one set, `active`, or `null` |
//! | 2 | weighted sets | a route has `sets`, each with its weight |
//!
//! A table is written in the lowest format that can express it. So a proxy of the version before still takes the tables
//! of a newer controller, unless they ask for something that it can't do.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::{Backend, Draining, Route, RoutingTable, Weight, WeightedSet};
use crate::{Generation, ReleaseNumber, ServiceKey};

/// The highest format that this version writes and reads.
pub const TABLE_FORMAT: u32 = 2;

/// A table that this version must not serve: ignoring what it does not know would serve something else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the routing table is of format {0}, and this version of kiln knows formats up to {TABLE_FORMAT}: \
     restart this process with the version that wrote the table"
)]
pub struct TableError(pub u32);

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct StoredTable {
    #[serde(default = "first", skip_serializing_if = "is_first")]
    format: u32,
    generation: Generation,
    routes: Vec<StoredRoute>,
    #[serde(default)]
    draining: Vec<Draining>,
}

fn first() -> u32 {
    1
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde's signature
fn is_first(format: &u32) -> bool {
    *format == 1
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct StoredRoute {
    service: ServiceKey,
    generation: Generation,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    listen: Option<SocketAddr>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    inside: Option<SocketAddr>,
    /// Format 1: the set that gets all traffic.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    active: Option<StoredSet>,
    /// Format 2.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    sets: Vec<WeightedSet>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct StoredSet {
    release: ReleaseNumber,
    backends: Vec<Backend>,
}

impl TryFrom<StoredTable> for RoutingTable {
    type Error = TableError;

    fn try_from(stored: StoredTable) -> Result<Self, TableError> {
        let StoredTable {
            format,
            generation,
            routes,
            draining,
        } = stored;
        if format > TABLE_FORMAT {
            return Err(TableError(format));
        }
        Ok(Self {
            generation,
            routes: routes.into_iter().map(Route::from).collect(),
            draining,
        })
    }
}

impl From<StoredRoute> for Route {
    fn from(stored: StoredRoute) -> Self {
        let StoredRoute {
            service,
            generation,
            listen,
            inside,
            active,
            mut sets,
        } = stored;
        if sets.is_empty() {
            sets.extend(
                active.map(|StoredSet { release, backends }| WeightedSet::whole(release, backends)),
            );
        }
        Self {
            service,
            generation,
            listen,
            inside,
            sets,
        }
    }
}

impl From<RoutingTable> for StoredTable {
    fn from(table: RoutingTable) -> Self {
        let RoutingTable {
            generation,
            routes,
            draining,
        } = table;
        let routes: Vec<_> = routes.into_iter().map(StoredRoute::from).collect();
        let weighted = routes.iter().any(|route| !route.sets.is_empty());
        Self {
            format: if weighted { 2 } else { 1 },
            generation,
            routes,
            draining,
        }
    }
}

impl From<Route> for StoredRoute {
    fn from(route: Route) -> Self {
        let Route {
            service,
            generation,
            listen,
            inside,
            mut sets,
        } = route;
        let one = matches!(&sets[..], [only] if only.weight == Weight::WHOLE);
        let active = sets.pop_if(|_| one).map(
            |WeightedSet {
                 release,
                 weight: _,
                 backends,
             }| StoredSet { release, backends },
        );
        Self {
            service,
            generation,
            listen,
            inside,
            active,
            sets,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{InstanceId, ToProxy};

    /// As the first kiln saved it. Never changed: data roots have it.
    const FIRST: &str = concat!(
        r#"{"generation":41,"routes":["#,
        r#"{"service":"dev/api","generation":7,"listen":"127.0.0.1:8080","inside":"10.64.2.2:3000","#,
        r#""active":{"release":2,"backends":[{"instance":"api-dev-2-3","address":"10.64.0.5:3000"},"#,
        r#"{"instance":"api-dev-2-4","address":"10.64.0.6:3000"}]}},"#,
        r#"{"service":"dev/shop","generation":1,"listen":"127.0.0.1:8081","active":null}],"#,
        r#""draining":[{"service":"dev/api","release":1,"instance":"api-dev-1-1","deadline":30000}]}"#,
    );

    fn backend(id: &str, last: u8) -> Backend {
        Backend {
            instance: InstanceId::new(id),
            address: ([10, 64, 0, last], 3000).into(),
        }
    }

    fn first() -> RoutingTable {
        let service = |name: &str| ServiceKey::try_from(name.to_owned()).unwrap();
        RoutingTable {
            generation: Generation(41),
            routes: vec![
                Route {
                    service: service("dev/api"),
                    generation: Generation(7),
                    listen: Some(([127, 0, 0, 1], 8080).into()),
                    inside: Some(([10, 64, 2, 2], 3000).into()),
                    sets: vec![WeightedSet::whole(
                        ReleaseNumber(2),
                        vec![backend("api-dev-2-3", 5), backend("api-dev-2-4", 6)],
                    )],
                },
                Route {
                    service: service("dev/shop"),
                    generation: Generation(1),
                    listen: Some(([127, 0, 0, 1], 8081).into()),
                    inside: None,
                    sets: Vec::new(),
                },
            ],
            draining: vec![Draining {
                service: service("dev/api"),
                release: ReleaseNumber(1),
                instance: InstanceId::new("api-dev-1-1"),
                deadline: Duration::from_secs(30),
            }],
        }
    }

    fn weighted() -> RoutingTable {
        let mut table = first();
        table.routes[0].sets = vec![
            WeightedSet {
                weight: Weight(900),
                ..table.routes[0].sets[0].clone()
            },
            WeightedSet {
                release: ReleaseNumber(3),
                weight: Weight(100),
                backends: vec![backend("api-dev-3-9", 9)],
            },
        ];
        table
    }

    #[test]
    fn the_table_of_the_first_kiln_is_read_and_written_as_it_was() {
        assert_eq!(
            serde_json::from_str::<RoutingTable>(FIRST).unwrap(),
            first()
        );
        // Only that `null` is no longer said, which the first kiln takes for the same.
        let written = serde_json::to_string(&first()).unwrap();
        assert_eq!(written, FIRST.replace(r#","active":null"#, ""));
    }

    #[test]
    fn weighted_sets_come_back_as_they_were_and_say_their_format() {
        for table in [first(), weighted(), RoutingTable::default()] {
            let text = serde_json::to_string(&table).unwrap();
            assert_eq!(serde_json::from_str::<RoutingTable>(&text).unwrap(), table);
        }
        let text = serde_json::to_string(&weighted()).unwrap();
        assert!(
            text.starts_with(r#"{"format":2,"generation":41,"#),
            "{text}"
        );
        assert!(
            text.contains(r#""sets":[{"release":2,"weight":900,"backends":["#),
            "{text}"
        );
    }

    #[test]
    fn what_a_newer_kiln_adds_is_ignored_and_what_it_must_not_be_is_refused() {
        let newer = FIRST
            .replace(r#""generation":41"#, r#""generation":41,"origin":"x""#)
            .replace(
                r#""listen":"127.0.0.1:8080""#,
                r#""listen":"127.0.0.1:8080","tls":{}"#,
            )
            .replace(
                r#""instance":"api-dev-2-3""#,
                r#""instance":"api-dev-2-3","zone":1"#,
            )
            .replace(r#""deadline":30000"#, r#""deadline":30000,"why":"switch""#);
        assert_eq!(
            serde_json::from_str::<RoutingTable>(&newer).unwrap(),
            first()
        );
        let message = format!(r#"{{"kind":"table","table":{newer},"urgent":true}}"#);
        assert_eq!(
            serde_json::from_str::<ToProxy>(&message).unwrap(),
            ToProxy::Table { table: first() }
        );
        let next = FIRST.replace(r#""generation":41"#, r#""generation":41,"format":3"#);
        let error = serde_json::from_str::<RoutingTable>(&next).unwrap_err();
        assert!(error.to_string().contains("format 3"), "{error}");
    }

    #[test]
    fn a_weight_above_the_whole_is_none() {
        assert!(serde_json::from_str::<Weight>("1001").is_err());
        assert_eq!(
            serde_json::from_str::<Weight>("1000").unwrap(),
            Weight::WHOLE
        );
    }
}
