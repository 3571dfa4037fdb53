//! What the control thread has, and how it speaks to controllers and workers.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use kiln_model::{FromProxy, InstanceId, RoutingTable};
use kiln_pool::Drains;
use kiln_supervise::handoff::Client;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::controllers::{ConnectionId, EVENTS, Event};
use crate::listening::Listening;
use crate::saved::Saved;
use crate::table::{Registry, Shared};
use crate::workers::Workers;

/// A table that is not confirmed yet.
pub(super) struct Unconfirmed {
    /// Until when sockets may be deposited that it needs.
    pub(super) until: Instant,
    /// It was said that services of it are not served. They are looked after nevertheless.
    pub(super) was_refused: bool,
}

pub(crate) struct Control {
    pub(super) shared: Arc<Shared>,
    pub(super) workers: Workers,
    pub(super) saved: Saved,
    pub(super) listening: Listening,
    pub(super) ejected: mpsc::UnboundedReceiver<(InstanceId, bool)>,
    pub(super) registry: Registry,
    pub(super) drains: Drains,
    /// What a controller asked for last.
    pub(super) offered: RoutingTable,
    /// What is served of it.
    pub(super) table: RoutingTable,
    pub(super) unconfirmed: Option<Unconfirmed>,
    /// False: it was loaded from the disk. What a controller says of the same generation is right then.
    pub(super) is_of_controller: bool,
    /// Said once the generation is confirmed: controllers hear of a drain after that.
    pub(super) drained: Vec<FromProxy>,
    pub(super) controllers: HashMap<ConnectionId, mpsc::Sender<FromProxy>>,
    pub(super) events: mpsc::Sender<Event>,
    pub(super) inbox: Option<mpsc::Receiver<Event>>,
    pub(super) next_connection: ConnectionId,
    /// Until when it waits for a controller's table before it accepts connections.
    pub(super) holds_until: Option<Instant>,
    pub(super) retiring: bool,
}

impl Control {
    pub(crate) fn new(
        shared: Arc<Shared>,
        workers: Workers,
        saved: Saved,
        supervisor: Client,
        ejected: mpsc::UnboundedReceiver<(InstanceId, bool)>,
    ) -> Self {
        let (events, inbox) = mpsc::channel(EVENTS);
        Self {
            shared,
            workers,
            saved,
            listening: Listening::new(supervisor),
            ejected,
            registry: Registry::default(),
            drains: Drains::default(),
            offered: RoutingTable::default(),
            table: RoutingTable::default(),
            unconfirmed: None,
            is_of_controller: false,
            drained: Vec::new(),
            controllers: HashMap::new(),
            events,
            inbox: Some(inbox),
            next_connection: 0,
            holds_until: None,
            retiring: false,
        }
    }

    pub(super) async fn accept(&mut self) -> io::Result<()> {
        if self.retiring {
            return Ok(());
        }
        self.listening.accept(&self.workers).await
    }

    pub(super) fn say(&mut self, message: &FromProxy) {
        let ids: Vec<ConnectionId> = self.controllers.keys().copied().collect();
        for id in ids {
            self.say_to(id, message.clone());
        }
    }

    /// A controller that does not read loses its connection. It connects again, and everything is said again.
    pub(super) fn say_to(&mut self, id: ConnectionId, message: FromProxy) {
        let Some(controller) = self.controllers.get(&id) else {
            return;
        };
        if controller.try_send(message).is_err() {
            self.controllers.remove(&id);
        }
    }
}
