//! What the control thread does with a table: it takes it or refuses it, publishes what can be served of it, and confirms it.

use std::collections::BTreeSet;
use std::time::Duration;

use kiln_model::{FromProxy, Generation, RoutingTable, ServiceKey};
use kiln_supervise::handoff::SocketName;
use tokio::time::Instant;

use super::state::{Control, Unconfirmed};
use crate::admission::{Refused, without};
use crate::controllers::ConnectionId;
use crate::listening::sockets_of;
use crate::log::say;
use crate::table::Published;
use crate::workers::ToWorker;

/// How long a listening descriptor that a table names may take to be deposited.
const DEPOSIT: Duration = Duration::from_secs(2);

impl Control {
    pub(super) fn refuse(&mut self, id: ConnectionId, generation: Generation, refused: &Refused) {
        let reason = refused.to_string();
        say(&format!("refused generation {generation}: {reason}"));
        self.say_to(
            id,
            FromProxy::Refused {
                generation,
                served: refused.served(),
                services: Vec::new(),
                digest: self.table.digest().ok(),
                reason,
            },
        );
    }

    pub(super) async fn take(&mut self, table: RoutingTable) -> Result<(), Refused> {
        let present = self.offered.generation;
        if table.generation < present {
            return Err(Refused::Older(present));
        }
        if table.generation == present && table != self.offered && self.is_of_controller {
            return Err(Refused::Differs(present));
        }
        let until = match &self.unconfirmed {
            Some(waits) if table.generation == present => waits.until,
            _ => Instant::now() + DEPOSIT,
        };
        let before = self.table.clone();
        self.serve(&table, &before).await?;
        self.is_of_controller = true;
        self.offered = table;
        self.unconfirmed = Some(Unconfirmed {
            until,
            was_refused: false,
        });
        Ok(())
    }

    /// Serves what can be served of it; the rest stays as it is in `before`.
    async fn serve(
        &mut self,
        offered: &RoutingTable,
        before: &RoutingTable,
    ) -> Result<(), Refused> {
        if !self.retiring {
            self.listening.fetch(&sockets_of(offered));
        }
        let table = without(offered, before, &self.lacking(offered));
        self.saved.save(&table).map_err(Refused::Save)?;
        // New listeners are accepted on only once the table that they belong to is published; those that
        // leave, until then.
        let mut wanted = sockets_of(offered);
        wanted.extend(sockets_of(&table));
        self.publish(table);
        self.listening.retain(&wanted);
        if self.holds_until.is_none() {
            self.accept().await.map_err(Refused::Listen)?;
        }
        Ok(())
    }

    /// The services that have no listening socket here.
    fn lacking(&self, table: &RoutingTable) -> BTreeSet<ServiceKey> {
        if self.retiring {
            return BTreeSet::new();
        }
        let lacks = |listen| !self.listening.has(SocketName::Address(listen));
        table
            .routes
            .iter()
            .filter(|route| route.listen.is_some_and(lacks))
            .map(|route| route.service.clone())
            .collect()
    }

    /// Every request that is routed from now on is routed by it.
    pub(super) fn publish(&mut self, table: RoutingTable) {
        let now = self.shared.precise_now();
        let Published { gone, returned } = self.registry.publish(&self.shared, table.clone());
        if !gone.is_empty() {
            self.workers.tell(|| ToWorker::Forget {
                epochs: gone.clone(),
            });
        }
        for epoch in returned {
            self.workers.tell(|| ToWorker::KeepTunnels { epoch });
        }
        let Self {
            drains, registry, ..
        } = self;
        drains.handle_table(now, table.generation, &table.draining, |id| {
            registry.in_flight(id)
        });
        self.drained.clear();
        self.table = table;
    }

    /// Confirms what is served whole. Once sockets had their time to be deposited, says which services are not served, and
    /// confirms the rest.
    pub(super) async fn settle(&mut self) {
        let Some(Unconfirmed { until, was_refused }) = self.unconfirmed else {
            return;
        };
        let generation = self.offered.generation;
        if !self.lacking(&self.table).is_empty() || self.table != self.offered {
            self.listening.fetch(&sockets_of(&self.offered));
        }
        let lacking = self.lacking(&self.offered);
        if lacking.is_empty() {
            if self.table != self.offered {
                let offered = self.offered.clone();
                let before = self.table.clone();
                if let Err(error) = self.serve(&offered, &before).await {
                    say(&format!("generation {generation} is not whole: {error}"));
                    return;
                }
            }
            self.unconfirmed = None;
        } else {
            if was_refused || Instant::now() < until {
                return;
            }
            let services: Vec<ServiceKey> = lacking.into_iter().collect();
            let reason = self.why_lacking(&services);
            say(&format!("refused of generation {generation}: {reason}"));
            self.say(&FromProxy::Refused {
                generation,
                served: None,
                services,
                digest: self.table.digest().ok(),
                reason,
            });
            self.unconfirmed = Some(Unconfirmed {
                until,
                was_refused: true,
            });
        }
        self.say(&FromProxy::Confirmed { generation });
        for message in std::mem::take(&mut self.drained) {
            self.say(&message);
        }
    }

    fn why_lacking(&self, services: &[ServiceKey]) -> String {
        let missing = self.offered.routes.iter().filter_map(|route| {
            let listen = route.listen.filter(|_| services.contains(&route.service))?;
            Some(listen.to_string())
        });
        let missing = missing.collect::<Vec<_>>().join(", ");
        match self.listening.has_supervisor() {
            true => format!(
                "the supervisor has no listening socket for {missing}: the controller must deposit it first"
            ),
            false => format!("the supervisor can't be asked for the listening socket of {missing}"),
        }
    }
}
