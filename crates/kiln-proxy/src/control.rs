//! The thread that decides for the process: takes tables from controllers, gets the listening descriptors, saves,
//! publishes, and says when drains are over. One owner of all of it, and one loop.
//!
//! A table is saved before it is served: where that fails it is refused, and the one before goes on. A proxy that
//! starts beside a living one waits for a controller to give it a table before it accepts: the other might have
//! confirmed a newer one than it loaded. With no controller there is no newer one, so it waits a second only.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use kiln_model::{FromProxy, Generation, InstanceId, RoutingTable, ToProxy};
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::ProxyError;
use super::controllers::{ConnectionId, Event, talk};
use super::process::Sockets;
use super::saved::Saved;
use super::table::{Published, Registry, Shared};
use super::worker::{ToWorker, say, wall_clock};
use super::workers::Workers;
use kiln_pool::{DrainAction, Drains};
use kiln_supervise::handoff::{Client, HandoffError, SocketName};

/// How long a listening descriptor that a table names may take to be deposited.
const DEPOSIT: Duration = Duration::from_secs(2);
const DEPOSIT_LOOK: Duration = Duration::from_millis(10);
/// How long a successor waits for a controller.
const FIRST_TABLE: Duration = Duration::from_secs(1);
const TICK: Duration = Duration::from_millis(100);

/// What is accepted on when this table is served.
fn sockets_of(table: &RoutingTable) -> BTreeSet<SocketName> {
    let outside = table.routes.iter().filter_map(|route| route.listen);
    let mut names: BTreeSet<_> = outside.map(SocketName::Address).collect();
    if table.routes.iter().any(|route| route.inside.is_some()) {
        names.extend(SocketName::INSIDE);
    }
    names
}

fn is_for_names(name: SocketName) -> bool {
    match name {
        SocketName::Address(_) | SocketName::Services => false,
        SocketName::NamesUdp | SocketName::NamesTcp | SocketName::ClosedNamesUdp => true,
    }
}

/// Why a table is not served.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("generation {0} is served already, and is newer")]
    Older(Generation),
    #[error(
        "this generation is served already with other routes: give the change a new generation"
    )]
    Differs,
    #[error("this version of the proxy can't read it: {0}")]
    Unreadable(serde_json::Error),
    #[error("the supervisor has no listening socket for {0}: the controller must deposit it first")]
    NoListener(SocketName),
    #[error("the supervisor can't be asked for the listening socket of {0}: {1}")]
    NoSupervisor(SocketName, HandoffError),
    #[error("a worker can't accept on a listening socket: {0}")]
    Listen(io::Error),
    #[error(
        "the table can't be saved: {0}; check that the disk of the data root is writable and not full"
    )]
    Save(io::Error),
}

pub(super) struct Control {
    shared: Arc<Shared>,
    workers: Workers,
    saved: Saved,
    supervisor: Option<Client>,
    ejected: mpsc::UnboundedReceiver<(InstanceId, bool)>,
    registry: Registry,
    drains: Drains,
    table: RoutingTable,
    descriptors: BTreeMap<SocketName, Arc<OwnedFd>>,
    /// What is accepted on.
    listening: BTreeSet<SocketName>,
    controllers: HashMap<ConnectionId, mpsc::UnboundedSender<FromProxy>>,
    events: mpsc::UnboundedSender<Event>,
    inbox: Option<mpsc::UnboundedReceiver<Event>>,
    next_connection: ConnectionId,
    /// Until when a successor waits before it accepts.
    holds_until: Option<Instant>,
    retiring: bool,
}

impl Control {
    pub(super) fn new(
        shared: Arc<Shared>,
        workers: Workers,
        saved: Saved,
        supervisor: Client,
        ejected: mpsc::UnboundedReceiver<(InstanceId, bool)>,
    ) -> Self {
        let (events, inbox) = mpsc::unbounded_channel();
        Self {
            shared,
            workers,
            saved,
            supervisor: Some(supervisor),
            ejected,
            registry: Registry::default(),
            drains: Drains::default(),
            table: RoutingTable::default(),
            descriptors: BTreeMap::new(),
            listening: BTreeSet::new(),
            controllers: HashMap::new(),
            events,
            inbox: Some(inbox),
            next_connection: 0,
            holds_until: None,
            retiring: false,
        }
    }

    /// Until every worker has ended.
    pub(super) async fn run(
        mut self,
        saved: Option<RoutingTable>,
        sockets: Sockets,
        predecessor: bool,
    ) -> Result<(), ProxyError> {
        let start = |what| move |source| ProxyError::Start { what, source };
        let control =
            UnixListener::from_std(sockets.control).map_err(start("the control socket"))?;
        let adopt = UnixListener::from_std(sockets.adopt).map_err(start("the adoption socket"))?;
        let mut term = signal(SignalKind::terminate()).map_err(start("catching SIGTERM"))?;
        let mut int = signal(SignalKind::interrupt()).map_err(start("catching SIGINT"))?;
        let Some(mut inbox) = self.inbox.take() else {
            return Ok(());
        };
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);

        self.publish(saved.unwrap_or_default());
        self.holds_until = predecessor.then(|| Instant::now() + FIRST_TABLE);
        if self.holds_until.is_none() {
            self.begin().await?;
        }
        loop {
            let drained = async {
                match self.drains.poll_timeout() {
                    Some(at) => tokio::time::sleep(at.since(wall_clock())).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                accepted = control.accept() => match accepted {
                    Ok((stream, _)) => self.connected(stream),
                    Err(error) => say(&format!("can't accept a controller: {error}")),
                },
                accepted = adopt.accept() => match accepted {
                    Ok((stream, _)) => self.adopted(stream),
                    Err(error) => say(&format!("can't accept a supervisor: {error}")),
                },
                Some(event) = inbox.recv() => self.handle(event).await?,
                () = self.shared.idle.notified() => {}
                () = drained => {}
                Some((instance, ejected)) = self.ejected.recv() => self.say_ejected(instance, ejected),
                _ = tick.tick() => self.tick().await?,
                _ = term.recv() => self.retire(false),
                _ = int.recv() => self.retire(true),
            }
            self.pump_drains();
            if self.has_ended()? {
                return Ok(());
            }
        }
    }

    async fn handle(&mut self, event: Event) -> Result<(), ProxyError> {
        match event {
            Event::Gone(id) => {
                self.controllers.remove(&id);
            }
            Event::Said(id, ToProxy::Table { table }) => {
                let generation = table.generation;
                match self.take(table).await {
                    Ok(()) => {
                        self.say(&FromProxy::Confirmed { generation });
                        if self.holds_until.take().is_some() {
                            self.begin().await?;
                        }
                    }
                    Err(refused) => self.refuse(id, generation, &refused),
                }
            }
            Event::Unreadable(id, generation, error) => {
                self.refuse(id, generation, &Refused::Unreadable(error));
            }
            Event::Said(id, ToProxy::Count) => {
                let counters = self.shared.book.read();
                self.say_to(
                    id,
                    FromProxy::Counters {
                        at: wall_clock(),
                        counters,
                    },
                );
            }
            Event::Said(_, ToProxy::Retire) => self.retire(false),
        }
        Ok(())
    }

    fn refuse(&self, id: ConnectionId, generation: Generation, refused: &Refused) {
        let reason = refused.to_string();
        say(&format!("refused generation {generation}: {reason}"));
        let served = match refused {
            Refused::Older(served) => Some(*served),
            Refused::Differs => Some(generation),
            Refused::Unreadable(_)
            | Refused::NoListener(_)
            | Refused::NoSupervisor(..)
            | Refused::Listen(_)
            | Refused::Save(_) => None,
        };
        let services = Vec::new();
        self.say_to(
            id,
            FromProxy::Refused {
                generation,
                served,
                services,
                reason,
            },
        );
    }

    async fn take(&mut self, table: RoutingTable) -> Result<(), Refused> {
        if table.generation < self.table.generation {
            return Err(Refused::Older(self.table.generation));
        }
        if table.generation == self.table.generation && table != self.table {
            return Err(Refused::Differs);
        }
        let wanted = sockets_of(&table);
        if !self.retiring {
            for name in &wanted {
                match name {
                    SocketName::Address(_) => self.fetch(*name).await?,
                    // Instances wait a tick longer for theirs; what is outside doesn't wait for that.
                    _ => {
                        let _ = self.fetch_now(*name);
                    }
                }
            }
        }
        self.saved.save(&table).map_err(Refused::Save)?;
        // New listeners are accepted on only once the table that they belong to is published; those that
        // leave, until then.
        self.publish(table);
        self.descriptors.retain(|name, _| wanted.contains(name));
        if self.holds_until.is_none() {
            self.listen().await.map_err(Refused::Listen)?;
        }
        Ok(())
    }

    /// Every request that is routed from now on is routed by it.
    fn publish(&mut self, table: RoutingTable) {
        let now = wall_clock();
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
        self.table = table;
    }

    /// Has the descriptor, or gets it from the supervisor, who may get it a little later from the controller.
    async fn fetch(&mut self, name: SocketName) -> Result<(), Refused> {
        let until = Instant::now() + DEPOSIT;
        while !self.descriptors.contains_key(&name) {
            if self.fetch_now(name)? {
                return Ok(());
            }
            if Instant::now() >= until {
                return Err(Refused::NoListener(name));
            }
            tokio::time::sleep(DEPOSIT_LOOK).await;
        }
        Ok(())
    }

    fn fetch_now(&mut self, name: SocketName) -> Result<bool, Refused> {
        if self.descriptors.contains_key(&name) {
            return Ok(true);
        }
        let fetched = match &mut self.supervisor {
            Some(supervisor) => supervisor.fetch(&name.to_string()),
            None => Err(HandoffError::Closed),
        };
        match fetched {
            Ok(Some(descriptor)) => {
                self.descriptors.insert(name, Arc::new(descriptor));
                Ok(true)
            }
            Ok(None) => Ok(false),
            Err(error) => {
                // The next supervisor connects by itself.
                self.supervisor = None;
                Err(Refused::NoSupervisor(name, error))
            }
        }
    }

    /// Tells the workers what to accept on, if that changed, and waits until they do.
    async fn listen(&mut self) -> io::Result<()> {
        let wanted: BTreeSet<SocketName> = self.descriptors.keys().copied().collect();
        if wanted == self.listening || self.retiring {
            return Ok(());
        }
        let listeners: Vec<_> = self
            .descriptors
            .iter()
            .map(|(name, descriptor)| (*name, Arc::clone(descriptor)))
            .collect();
        let (inside, outside): (Vec<_>, Vec<_>) = listeners
            .into_iter()
            .partition(|(name, _)| is_for_names(*name));
        self.workers.tell_names(inside);
        let mut answers = Vec::new();
        for inbox in &self.workers.inboxes {
            let (done, answer) = oneshot::channel();
            // One that has ended doesn't answer.
            let _ = inbox.send(ToWorker::Listen {
                listeners: outside.clone(),
                done,
            });
            answers.push(answer);
        }
        for answer in answers {
            answer
                .await
                .unwrap_or_else(|_| Err(io::Error::other("the worker has ended")))?;
        }
        self.listening = wanted;
        Ok(())
    }

    /// Accepts connections from now on, and lets the predecessor go.
    async fn begin(&mut self) -> Result<(), ProxyError> {
        if let Some(saved) = self.saved.load()?
            && saved.generation > self.table.generation
        {
            self.publish(saved);
        }
        self.fetch_missing();
        self.listen().await.map_err(|source| ProxyError::Start {
            what: "accepting connections",
            source,
        })?;
        say(&format!(
            "serving generation {} on {} addresses",
            self.table.generation,
            self.listening.len()
        ));
        if let Some(supervisor) = &mut self.supervisor {
            supervisor.ready(std::process::id())?;
        }
        Ok(())
    }

    fn fetch_missing(&mut self) {
        for name in sockets_of(&self.table) {
            // Asked for again at the next tick.
            if self.supervisor.is_none() || self.fetch_now(name).is_err() {
                return;
            }
        }
    }

    async fn tick(&mut self) -> Result<(), ProxyError> {
        self.shared.tick(wall_clock());
        if self.retiring {
            return Ok(());
        }
        if self
            .holds_until
            .is_some_and(|until| Instant::now() >= until)
        {
            self.holds_until = None;
            self.begin().await?;
        }
        if self.holds_until.is_none() && self.listening != sockets_of(&self.table) {
            self.fetch_missing();
            if let Err(error) = self.listen().await {
                say(&format!("can't accept connections: {error}"));
            }
        }
        Ok(())
    }

    fn pump_drains(&mut self) {
        let waiting: Vec<InstanceId> = self.drains.waiting().cloned().collect();
        for id in waiting {
            self.drains.handle_count(&id, self.registry.in_flight(&id));
        }
        let now = wall_clock();
        while let Some(action) = self.drains.poll_action(now) {
            match action {
                DrainAction::Begin { instance, deadline } => {
                    self.tell_of(&instance, |epoch| ToWorker::EndTunnels {
                        epoch,
                        until: deadline,
                    })
                }
                DrainAction::Cut { instance } => {
                    say(&format!(
                        "the drain of {instance} had its time: what is left is cut"
                    ));
                    self.tell_of(&instance, |epoch| ToWorker::Cut { epoch });
                }
                DrainAction::Drained {
                    generation,
                    instance,
                } => {
                    let cut = self
                        .registry
                        .get(&instance)
                        .map_or(0, |instance| instance.cut.load(SeqCst));
                    self.say(&FromProxy::Drained {
                        generation,
                        instance,
                        cut,
                    });
                }
            }
        }
    }

    fn tell_of(&self, instance: &InstanceId, message: impl Fn(u64) -> ToWorker) {
        if let Some(instance) = self.registry.get(instance) {
            self.workers.tell(|| message(instance.epoch));
        }
    }

    fn say_ejected(&self, instance: InstanceId, ejected: bool) {
        say(&match ejected {
            true => format!("{instance} failed requests in a row: it gets none for now"),
            false => format!("{instance} serves again"),
        });
        self.say(&FromProxy::Ejected { instance, ejected });
    }

    fn say(&self, message: &FromProxy) {
        for controller in self.controllers.values() {
            // One that is gone is removed by its own event.
            let _ = controller.send(message.clone());
        }
    }

    fn say_to(&self, id: ConnectionId, message: FromProxy) {
        if let Some(controller) = self.controllers.get(&id) {
            let _ = controller.send(message);
        }
    }

    fn connected(&mut self, stream: UnixStream) {
        self.next_connection += 1;
        let id = self.next_connection;
        let (sender, outgoing) = mpsc::unbounded_channel();
        let hello = FromProxy::Hello {
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            generation: self.table.generation,
        };
        let _ = sender.send(hello);
        self.controllers.insert(id, sender);
        // Ends with the connection, or with the runtime.
        tokio::spawn(talk(id, stream, outgoing, self.events.clone()));
    }

    /// A supervisor that started after this proxy: gets every descriptor, and is asked from now on.
    fn adopted(&mut self, stream: UnixStream) {
        let given = stream
            .into_std()
            .map_err(HandoffError::Socket)
            .and_then(Client::over)
            .and_then(|mut client| {
                for (name, descriptor) in &self.descriptors {
                    client.deposit(&name.to_string(), descriptor)?;
                }
                client.ready(std::process::id())?;
                Ok(client)
            });
        match given {
            Ok(client) => self.supervisor = Some(client),
            Err(error) => say(&format!(
                "can't give the descriptors to the new supervisor: {error}"
            )),
        }
    }

    fn retire(&mut self, quickly: bool) {
        if self.retiring && !quickly {
            return;
        }
        self.retiring = true;
        self.descriptors.clear();
        self.listening.clear();
        say(match quickly {
            true => "ending: what is in flight has a few seconds",
            false => "retiring: what is in flight is finished",
        });
        self.workers.tell_names(Vec::new());
        self.workers.tell(|| ToWorker::Retire { quickly });
    }

    /// Whether every worker has ended in order.
    fn has_ended(&mut self) -> Result<bool, ProxyError> {
        let mut index = 0;
        while index < self.workers.threads.len() {
            if !self.workers.threads[index].is_finished() {
                index += 1;
                continue;
            }
            match self.workers.threads.swap_remove(index).join() {
                Ok(Ok(())) if self.retiring => {}
                Ok(Ok(())) => return Err(ProxyError::Worker("it ended unasked".to_owned())),
                Ok(Err(error)) => return Err(ProxyError::Worker(error.to_string())),
                Err(_) => return Err(ProxyError::Worker("it panicked, see above".to_owned())),
            }
        }
        Ok(self.workers.threads.is_empty())
    }
}
