//! The thread that decides for the process: takes tables from controllers, gets the listening descriptors, saves,
//! publishes, and says when drains are over. One owner of all of it, and one loop. The only process that it
//! waits for is the supervisor, which answers at once.
//!
//! A table is saved before it is served: where that fails it is refused, and the one before goes on. A service whose
//! listening socket is not there stays as it was, and the rest of the table is served.
//!
//! A proxy that starts beside a living one waits for a controller to give it a table before it accepts: the other might have
//! confirmed a newer one than it loaded. With no controller there is no newer one, so it waits a second only. So does a
//! proxy that found its saved table spoilt; then it answers 503 rather than let clients wait.

mod state;
mod tables;

use std::os::unix::net::UnixListener as StdListener;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use kiln_model::{FromProxy, InstanceId, ToProxy};
use kiln_pool::DrainAction;
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::ProxyError;
use crate::admission::Refused;
use crate::controllers::{Event, UNREAD, talk};
use crate::listening::sockets_of;
use crate::log::{say, wall_clock};
use crate::saved::Loaded;
use crate::workers::ToWorker;

pub(crate) use state::Control;

/// How long a successor waits for a controller.
const FIRST_TABLE: Duration = Duration::from_secs(1);
/// How long a successor without a table leaves it to its predecessor to serve. The supervisor ends a successor that takes as
/// long while the predecessor lives.
const PREDECESSOR: Duration = Duration::from_secs(20);
const TICK: Duration = Duration::from_millis(100);

/// Both listening, not yet the runtime's.
pub(crate) struct Sockets {
    pub(crate) control: StdListener,
    pub(crate) adopt: StdListener,
}

impl Control {
    /// Until every worker has ended.
    pub(crate) async fn run(
        mut self,
        loaded: Loaded,
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

        let holds = self.start_from(loaded, predecessor);
        self.holds_until = holds.map(|holds| Instant::now() + holds);
        if self.holds_until.is_none() {
            self.begin().await?;
        }
        loop {
            let timeout = self.drains.poll_timeout();
            let timeout = timeout.map(|at| at.since(self.shared.precise_now()));
            let drained = async {
                match timeout {
                    Some(wait) => tokio::time::sleep(wait).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                accepted = control.accept() => match accepted {
                    Ok((stream, _)) => self.connected(stream),
                    Err(error) => say(&format!("can't accept a controller: {error}")),
                },
                accepted = adopt.accept() => match accepted {
                    Ok((stream, _)) => if let Err(error) = self.listening.adopted(stream) {
                        say(&format!("can't give the descriptors to the new supervisor: {error}"));
                    },
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

    /// Publishes what was saved. How long a controller's table is to be waited for.
    fn start_from(&mut self, loaded: Loaded, predecessor: bool) -> Option<Duration> {
        match loaded {
            Loaded::Nothing => {}
            Loaded::Table(table) => {
                self.offered = table.clone();
                self.publish(table);
            }
            Loaded::Spoilt(spoilt) => {
                say(&format!(
                    "THE SAVED ROUTING TABLE IS SPOILT and is not served: {}. It is moved aside, to {}; a controller gives \
                     another within a second, if one runs",
                    kiln_fs::with_causes(&spoilt),
                    self.saved
                        .path()
                        .with_file_name("table.spoilt.json")
                        .display()
                ));
                return Some(if predecessor {
                    PREDECESSOR
                } else {
                    FIRST_TABLE
                });
            }
        }
        predecessor.then_some(FIRST_TABLE)
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
                        self.settle().await;
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
                let counters = self.shared.counters.read();
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

    /// Accepts connections from now on, and lets the predecessor go.
    async fn begin(&mut self) -> Result<(), ProxyError> {
        // The predecessor may have saved a newer one meanwhile.
        if let Loaded::Table(table) = self.saved.load()
            && table.generation > self.table.generation
        {
            self.is_of_controller = false;
            self.offered = table.clone();
            self.publish(table);
        }
        let mut wanted = sockets_of(&self.table);
        if !self.shared.has_table() {
            // An answer that says so is better than none.
            wanted = self.listening.addresses();
        }
        self.listening.fetch(&wanted);
        self.accept().await.map_err(|source| ProxyError::Start {
            what: "accepting connections",
            source,
        })?;
        say(&format!(
            "serving generation {} on {} addresses",
            self.table.generation,
            self.listening.accepts_on().len()
        ));
        Ok(self.listening.ready()?)
    }

    async fn tick(&mut self) -> Result<(), ProxyError> {
        self.shared.tick();
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
        self.settle().await;
        let wanted = sockets_of(&self.table);
        if self.holds_until.is_none() && !self.listening.accepts_on().is_superset(&wanted) {
            self.listening.fetch(&wanted);
            if let Err(error) = self.accept().await {
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
        let now = self.shared.precise_now();
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
                    let message = FromProxy::Drained {
                        generation,
                        instance,
                        cut,
                    };
                    let is_confirmed = self
                        .unconfirmed
                        .as_ref()
                        .is_none_or(|waits| waits.was_refused);
                    if is_confirmed {
                        self.say(&message);
                    } else {
                        self.drained.push(message);
                    }
                }
            }
        }
    }

    fn tell_of(&self, instance: &InstanceId, message: impl Fn(u64) -> ToWorker) {
        if let Some(instance) = self.registry.get(instance) {
            self.workers.tell(|| message(instance.epoch));
        }
    }

    fn say_ejected(&mut self, instance: InstanceId, ejected: bool) {
        say(&match ejected {
            true => format!("{instance} failed requests in a row: it gets none for now"),
            false => format!("{instance} serves again"),
        });
        self.say(&FromProxy::Ejected { instance, ejected });
    }

    fn connected(&mut self, stream: UnixStream) {
        self.next_connection += 1;
        let id = self.next_connection;
        let (sender, outgoing) = mpsc::channel(UNREAD);
        self.controllers.insert(id, sender);
        self.say_to(
            id,
            FromProxy::Hello {
                pid: std::process::id(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                generation: self.table.generation,
            },
        );
        // Ends with the connection, or with the runtime.
        tokio::spawn(talk(id, stream, outgoing, self.events.clone()));
    }

    fn retire(&mut self, quickly: bool) {
        if self.retiring && !quickly {
            return;
        }
        self.retiring = true;
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
