//! The one owner of the controller's core. Everything that can happen arrives here as one [`Input`], in one order, is handed to
//! the core, and what the core decided is carried out. Nothing is decided here.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kiln_control::{Ask, Concern, Controller, Effect, ProxyId};
use kiln_engine::NetError;
use kiln_fs::with_causes;
use kiln_model::api::{ApiError, DownRequest, HistoryRelease, RollbackRequest, Status};
use kiln_model::{
    Actor, EnvName, EnvironmentSpec, FromProxy, InstanceId, Observation, Plan, RoutingTable,
    ServiceKey, ServiceName, ToProxy,
};
use kiln_plan::ProbeKind;
use tokio::sync::{mpsc, oneshot};

use crate::callers::Callers;
use crate::clock::Clock;
use crate::crash;
use crate::engines::local::LocalEngine;
use crate::journal::{Journal, JournalError, Recovered, Upkeep};
use crate::listeners::Listeners;
use crate::probes::Probes;
use crate::progress::Lines;
use crate::proxies::{Links, ProxyInput};

/// Everything that can happen.
pub(crate) enum Input {
    Call(Call),
    /// The engine has seen something.
    Observed(Observation),
    /// A probe passes now, or no longer.
    Probed {
        service: ServiceKey,
        instance: InstanceId,
        probe: ProbeKind,
        passing: bool,
    },
    Proxy(ProxyId, ProxyInput),
    /// The network was looked at, and mended where something had taken of it.
    Mended(Result<(), NetError>),
    /// Somebody has read the journal.
    Journal(Upkeep),
    /// SIGTERM.
    Terminate,
}

/// What the HTTP API asks. Answered through `reply`; what takes time goes on in `lines`.
pub(crate) enum Call {
    Status {
        environment: Option<EnvName>,
        reply: oneshot::Sender<Status>,
    },
    Plan {
        spec: EnvironmentSpec,
        reply: oneshot::Sender<Result<Plan, ApiError>>,
    },
    Apply {
        plan: Plan,
        actor: Actor,
        lines: Lines,
        reply: oneshot::Sender<Result<(), ApiError>>,
    },
    Rollback {
        request: RollbackRequest,
        actor: Actor,
        lines: Lines,
        reply: oneshot::Sender<Result<(), ApiError>>,
    },
    Down {
        request: DownRequest,
        actor: Actor,
        lines: Lines,
        reply: oneshot::Sender<Result<(), ApiError>>,
    },
    /// The releases of all services that are meant.
    Releases {
        environment: Option<EnvName>,
        service: Option<ServiceName>,
        reply: oneshot::Sender<Vec<HistoryRelease>>,
    },
    /// The service's instances at present.
    Instances {
        service: ServiceKey,
        reply: oneshot::Sender<Result<Vec<InstanceId>, ApiError>>,
    },
    /// Whether the owner goes on.
    Ping { reply: oneshot::Sender<()> },
    Shutdown {
        reply: oneshot::Sender<Result<(), ApiError>>,
    },
}

pub(crate) struct Owner {
    pub(crate) root: PathBuf,
    pub(crate) core: Controller,
    clock: Clock,
    pub(crate) journal: Journal,
    pub(crate) engine: LocalEngine,
    pub(crate) listeners: Listeners,
    probes: Probes,
    links: Links,
    callers: Callers,
    inputs: mpsc::UnboundedSender<Input>,
    /// Where sockets should listen; kept for as long as that could not be done.
    listen_again: Option<BTreeSet<SocketAddr>>,
}

impl Owner {
    pub(crate) fn new(
        root: &Path,
        journal: Journal,
        recovered: Recovered,
        engine: LocalEngine,
        listeners: Listeners,
        inputs: mpsc::UnboundedSender<Input>,
    ) -> Self {
        let Recovered {
            services,
            at,
            table,
            changed,
        } = recovered;
        let clock = Clock::start();
        let recovered = kiln_control::Recovered {
            services,
            at,
            last: journal.last(),
            table,
        };
        let mut owner = Self {
            root: root.to_owned(),
            core: Controller::new(recovered, clock.now()),
            clock,
            journal,
            engine,
            listeners,
            probes: Probes::default(),
            links: Links::default(),
            callers: Callers::default(),
            inputs,
            listen_again: None,
        };
        for service in changed {
            let error = JournalError::StateChanged { service };
            owner.note(Concern::Chain, Some(error.to_string()));
        }
        owner
    }

    /// Takes up where the journal ends.
    pub(crate) fn resume(&mut self) {
        let opened = self.open_inside();
        self.note(Concern::Network, opened.err());
        self.note_proxies();
    }

    /// Runs until the last sender is gone or kiln is told to end.
    pub(crate) async fn run(mut self, mut incoming: mpsc::UnboundedReceiver<Input>) {
        loop {
            let now = self.clock.now();
            let wait = self.core.poll_timeout().map(|at| at.since(now));
            let input = tokio::select! {
                biased;
                () = sleep_or_never(wait) => {
                    self.tell(kiln_control::Input::Timer);
                    continue;
                }
                input = incoming.recv() => input,
            };
            match input {
                None | Some(Input::Terminate) => return,
                Some(input) => self.handle(input),
            }
        }
    }

    fn handle(&mut self, input: Input) {
        match input {
            Input::Call(call) => self.call(call),
            Input::Observed(observation) => {
                crash_point_of(&observation);
                self.tell(kiln_control::Input::Observed(observation));
            }
            Input::Probed {
                service,
                instance,
                probe,
                passing,
            } => self.tell(kiln_control::Input::Probed {
                service,
                instance,
                probe,
                passes: passing,
            }),
            Input::Proxy(id, input) => self.proxy(id, input),
            Input::Mended(mended) => {
                self.note(Concern::Network, mended.err().map(|e| with_causes(&e)));
                if let Some(wanted) = self.listen_again.take() {
                    self.listen(wanted);
                }
            }
            Input::Journal(Upkeep::Spoilt(error)) => {
                self.note(Concern::Chain, Some(with_causes(&error)));
            }
            Input::Journal(Upkeep::Foldable(foldable)) => {
                let folded = self.journal.fold(foldable, self.clock.now());
                self.note(Concern::Journal, folded.err().map(|e| with_causes(&e)));
            }
            // The loop ends before it hands this on.
            Input::Terminate => {}
        }
    }

    fn proxy(&mut self, id: ProxyId, input: ProxyInput) {
        match input {
            ProxyInput::Connected { sender } => {
                self.links.connected(id, sender);
                self.tell(kiln_control::Input::ProxyConnected(id));
                self.note_proxies();
            }
            ProxyInput::Said(said) => {
                match &said {
                    FromProxy::Confirmed { .. } => crash::point("confirm"),
                    FromProxy::Drained { .. } => crash::point("drain"),
                    FromProxy::Hello { .. }
                    | FromProxy::Refused { .. }
                    | FromProxy::Counters { .. }
                    | FromProxy::Ejected { .. } => {}
                }
                self.tell(kiln_control::Input::ProxySaid(id, said));
            }
            ProxyInput::Gone => {
                self.links.gone(id);
                self.tell(kiln_control::Input::ProxyGone(id));
                self.note_proxies();
            }
        }
    }

    fn note_proxies(&mut self) {
        let missing = (!self.core.has_proxy()).then(|| {
            "no proxy is connected: traffic goes on by the table it last confirmed, and no switch can happen; \
             the supervisor starts it again, see log/proxy.log"
                .to_owned()
        });
        self.note(Concern::Proxy, missing);
    }

    pub(crate) fn note(&mut self, concern: Concern, problem: Option<String>) {
        self.tell(kiln_control::Input::Noted { concern, problem });
    }

    /// Hands a call on that takes time.
    pub(crate) fn begin(
        &mut self,
        ask: Ask,
        actor: Actor,
        lines: Lines,
        reply: oneshot::Sender<Result<(), ApiError>>,
    ) {
        let call = self.callers.begin(lines, reply);
        self.tell(kiln_control::Input::Call {
            call,
            actor: Some(actor),
            ask,
        });
    }

    /// One input of the core, and everything that it leads to.
    fn tell(&mut self, input: kiln_control::Input) {
        self.core.handle_input(self.clock.now(), input);
        while let Some(effect) = self.core.poll_effect() {
            self.carry_out(effect);
        }
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Journal => {
                let written = match self.core.draft() {
                    Some(draft) => self.journal.write(draft).map_err(|e| with_causes(&e)),
                    None => return,
                };
                crash::point("commit");
                let input = kiln_control::Input::Journalled(written);
                self.core.handle_input(self.clock.now(), input);
            }
            Effect::Prepare { images, listen } => {
                let prepared = self.prepare(&images, &listen);
                let input = kiln_control::Input::Prepared(prepared);
                self.core.handle_input(self.clock.now(), input);
            }
            Effect::Engine(command) => self.engine.send(command),
            Effect::Table { proxy, mut table } => {
                self.fill_addresses(&mut table);
                self.links.send_to(proxy, ToProxy::Table { table });
                crash::point("route");
            }
            Effect::Count { proxy } => self.links.send_to(proxy, ToProxy::Count),
            Effect::Listen(wanted) => self.listen(wanted),
            Effect::Probe(key) => {
                if let Some(service) = self.core.service(&key) {
                    self.probes.reconcile(&key, service, &self.inputs);
                }
            }
            Effect::Reply { call, answer } => self.callers.reply(call, answer),
            Effect::Tell {
                call,
                service,
                told,
            } => {
                if let Some(found) = self.core.service(&service) {
                    self.callers.tell(call, &service, found, told);
                }
            }
            Effect::Finished(call) => self.callers.finish(call),
            Effect::Forget(key) => {
                let forgotten = self.engine.engine().forget_service(&key);
                if let Err(error) = forgotten {
                    let problem = Some(with_causes(&error));
                    let concern = Concern::Network;
                    let input = kiln_control::Input::Noted { concern, problem };
                    self.core.handle_input(self.clock.now(), input);
                }
            }
        }
    }

    /// The engine gives services their virtual addresses.
    fn fill_addresses(&mut self, table: &mut RoutingTable) {
        let engine = self.engine.engine();
        let mut problem = None;
        for route in &mut table.routes {
            let Some(inside) = route.inside else { continue };
            route.inside = match engine.service_address(&route.service) {
                Ok(address) => Some((address, inside.port()).into()),
                Err(error) => {
                    problem = Some(with_causes(&error));
                    None
                }
            };
        }
        if problem.is_some() {
            let concern = Concern::Network;
            let input = kiln_control::Input::Noted { concern, problem };
            self.core.handle_input(self.clock.now(), input);
        }
    }

    fn listen(&mut self, wanted: BTreeSet<SocketAddr>) {
        let problem = self.listeners.listen_only(&wanted).err();
        self.listen_again = problem.is_some().then_some(wanted);
        let input = kiln_control::Input::Noted {
            concern: Concern::Listen,
            problem: problem.map(|error| with_causes(&error)),
        };
        self.core.handle_input(self.clock.now(), input);
    }

    /// Instances reach services and names from now on.
    pub(crate) fn open_inside(&mut self) -> Result<(), String> {
        let engine = self.engine.engine();
        let ports = self
            .listeners
            .ensure_inside(engine.gateway())
            .map_err(|error| with_causes(&error))?;
        engine
            .open_inside(ports)
            .map_err(|error| with_causes(&error))
    }
}

fn crash_point_of(observation: &Observation) {
    match observation {
        Observation::Started { .. } => crash::point("start"),
        Observation::Exited { .. } => crash::point("stop"),
        Observation::Removed { .. } => crash::point("remove"),
        Observation::StartFailed { .. }
        | Observation::Synced { .. }
        | Observation::SyncFailed { .. }
        | Observation::Failed { .. }
        | Observation::Probed { .. } => {}
    }
}

async fn sleep_or_never(wait: Option<Duration>) {
    match wait {
        Some(wait) => tokio::time::sleep(wait).await,
        None => std::future::pending().await,
    }
}
