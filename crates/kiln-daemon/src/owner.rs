//! The one owner of all state. Everything that can happen arrives here as one [`Input`], in one order; what it
//! decides is journalled before it is carried out.
//!
//! The loop is: wait for an input or a deadline, turn it into events for services, and for each event take one
//! step: the planner decides, the journal commits, the effects start. A step whose entry can't be written
//! changes nothing: the old state stays, what was observed is kept and tried again, and callers are told.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use kiln_engine::{EngineError, NetError};
use kiln_model::api::{ApiError, DownRequest, HistoryRelease, RollbackRequest, Status};
use kiln_model::{
    Actor, Digest, EnvName, EnvironmentSpec, Fact, InstanceId, Observation, Plan, ServiceKey,
    ServiceName, StateId, Subject, Timestamp,
};
use kiln_plan::{Action, Event, ProbeKind, Service, StepRecord};
use tokio::sync::{mpsc, oneshot};

use crate::clock::Clock;
use crate::crash;
use crate::effects::Effects;
use crate::journal::{Entry, Journal, JournalError, Recovered, Upkeep};
use crate::listeners::Listeners;
use crate::probes::Probes;
use crate::progress::Lines;
use crate::proxies::{Links, ProxyId, ProxyInput};
use crate::traffic::Traffic;
use crate::watch::{Step, Waiting};

/// How long after a refused write the journal is tried again.
const RETRY_JOURNAL: Duration = Duration::from_secs(1);

/// Everything that can happen.
pub(crate) enum Input {
    Call(Call),
    /// The engine has seen something.
    Observed(ServiceKey, Observation),
    /// A probe passes now, or no longer.
    Probed {
        service: ServiceKey,
        instance: InstanceId,
        probe: ProbeKind,
        passing: bool,
    },
    Proxy(ProxyId, ProxyInput),
    /// The counters that an outcome waits for have had their time.
    Settle,
    /// The network was looked at, and mended where something had taken of it.
    Mended(Result<(), NetError>),
    /// Whether the engine could do what it was asked to, last time; it is tried again.
    Tried(&'static str, Result<(), EngineError>),
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
    pub(crate) journal: Journal,
    clock: Clock,
    pub(crate) services: BTreeMap<ServiceKey, Service>,
    pub(crate) effects: Effects,
    pub(crate) listeners: Listeners,
    probes: Probes,
    pub(crate) links: Links,
    pub(crate) traffic: Traffic,
    pub(crate) waiting: Waiting,
    inputs: mpsc::UnboundedSender<Input>,
    /// The entry that last changed a route: the generation of the present table.
    pub(crate) table: StateId,
    /// For each service with a route that is not confirmed: the table's generation that has it.
    pub(crate) unconfirmed: BTreeMap<ServiceKey, StateId>,
    /// Which proxies have nothing more in flight for an instance, and how many requests were cut.
    pub(crate) drained: BTreeMap<InstanceId, BTreeMap<ProxyId, u64>>,
    /// Which proxies send an instance nothing at the moment, because it failed requests.
    pub(crate) ejected: BTreeMap<InstanceId, BTreeSet<ProxyId>>,
    /// The last entry in which something was decided about an environment: what its plans name as parent.
    pub(crate) decided: BTreeMap<EnvName, StateId>,
    /// Decided about anything before this controller started.
    pub(crate) decided_before: StateId,
    /// What was observed while the journal could not be written.
    backlog: VecDeque<(ServiceKey, Event)>,
    /// What is wrong with kiln itself, by what is affected.
    pub(crate) problems: BTreeMap<&'static str, String>,
}

impl Owner {
    pub(crate) fn new(
        journal: Journal,
        recovered: Recovered,
        effects: Effects,
        listeners: Listeners,
        inputs: mpsc::UnboundedSender<Input>,
    ) -> Self {
        let Recovered {
            services,
            at,
            table,
            changed,
        } = recovered;
        let spoilt = changed
            .into_iter()
            .map(|service| JournalError::StateChanged { service }.to_string());
        let problems = spoilt.map(|text| ("history", text)).collect();
        let decided_before = journal.last();
        Self {
            journal,
            clock: Clock::start(at),
            services,
            effects,
            listeners,
            probes: Probes::default(),
            links: Links::default(),
            traffic: Traffic::default(),
            waiting: Waiting::default(),
            inputs,
            table,
            unconfirmed: BTreeMap::new(),
            drained: BTreeMap::new(),
            ejected: BTreeMap::new(),
            decided: BTreeMap::new(),
            decided_before,
            backlog: VecDeque::new(),
            problems,
        }
    }

    /// Takes up where the journal ends: tells the services which of their instances are gone, then issues again
    /// every action that has no outcome.
    pub(crate) fn resume(&mut self) {
        self.open_inside();
        let keys: Vec<_> = self.services.keys().cloned().collect();
        for key in &keys {
            for address in self.services[key].listens() {
                self.listen(address);
            }
            self.unconfirmed.insert(key.clone(), self.table);
        }
        self.adopt(&keys);
        for key in &keys {
            for action in self.services[key].outstanding() {
                self.carry_out(key, action);
            }
            let service = &self.services[key];
            self.probes.reconcile(key, service, &self.inputs);
        }
    }

    fn adopt(&mut self, keys: &[ServiceKey]) {
        let known: Vec<(ServiceKey, InstanceId)> = keys
            .iter()
            .flat_map(|key| {
                self.services[key]
                    .instances()
                    .map(|instance| (key.clone(), instance.id.clone()))
            })
            .collect();
        let (lost, errors) = self.effects.adopt(&known);
        if !errors.is_empty() {
            let errors: Vec<String> = errors.iter().map(|error| chain_of(error)).collect();
            self.problems.insert("engine", errors.join("; "));
        }
        for (key, observation) in lost {
            self.observed(key, observation);
        }
    }

    /// Runs until the last sender is gone or kiln is told to end.
    pub(crate) async fn run(mut self, mut incoming: mpsc::UnboundedReceiver<Input>) {
        loop {
            let wait = self.next_deadline();
            let input = tokio::select! {
                biased;
                input = incoming.recv() => input,
                () = sleep_or_never(wait) => {
                    self.fire();
                    continue;
                }
            };
            match input {
                None | Some(Input::Terminate) => return,
                Some(input) => self.handle(input),
            }
        }
    }

    fn next_deadline(&mut self) -> Option<Duration> {
        if !self.backlog.is_empty() {
            return Some(RETRY_JOURNAL);
        }
        let next = self
            .services
            .values()
            .filter_map(Service::poll_timeout)
            .min()?;
        Some(next.since(self.clock.now()))
    }

    /// A deadline has passed.
    fn fire(&mut self) {
        self.retry_backlog();
        let now = self.clock.now();
        let due: Vec<_> = self
            .services
            .iter()
            .filter(|(_, service)| service.poll_timeout().is_some_and(|at| at <= now))
            .map(|(key, _)| key.clone())
            .collect();
        for key in due {
            self.happened(key, Event::Timer);
        }
    }

    fn handle(&mut self, input: Input) {
        match input {
            Input::Call(call) => self.call(call),
            Input::Observed(key, observation) => self.observed(key, observation),
            Input::Probed {
                service,
                instance,
                probe,
                passing,
            } => {
                let event = Event::Probed {
                    instance,
                    probe,
                    passes: passing,
                };
                self.happened(service, event);
            }
            Input::Proxy(id, input) => self.proxy(id, input),
            Input::Mended(mended) => self.noted("network", mended),
            Input::Tried(what, result) => self.noted(what, result),
            Input::Journal(Upkeep::Spoilt(error)) => self.noted("history", Err(error)),
            Input::Journal(Upkeep::Foldable(foldable)) => {
                let folded = self.journal.fold(foldable, self.clock.now());
                self.noted("journal", folded);
            }
            Input::Settle => self.waiting.settle_all(&self.traffic),
            // The loop ends before it hands this on.
            Input::Terminate => {}
        }
    }

    fn observed(&mut self, key: ServiceKey, observation: Observation) {
        let event = match observation {
            Observation::Started {
                instance,
                pid,
                endpoint,
                at,
            } => {
                crash::point("start");
                self.effects.watch(&key, &instance);
                Event::Started {
                    instance,
                    pid,
                    endpoint,
                    at,
                }
            }
            Observation::StartFailed { instance, failure } => {
                Event::StartFailed { instance, failure }
            }
            Observation::Exited { instance, record } => {
                crash::point("stop");
                Event::Exited { instance, record }
            }
            Observation::Removed { instance } => {
                crash::point("remove");
                self.drained.remove(&instance);
                self.ejected.remove(&instance);
                Event::Removed { instance }
            }
        };
        self.happened(key, event);
    }

    /// Something that is so, whether or not it can be written down now.
    pub(crate) fn happened(&mut self, key: ServiceKey, event: Event) {
        if !self.backlog.is_empty() {
            // A timer fires again by itself; everything else keeps its order.
            if event != Event::Timer {
                self.backlog.push_back((key, event));
            }
            return;
        }
        if self.step(&key, event.clone(), None).is_err() && event != Event::Timer {
            self.backlog.push_back((key, event));
        }
    }

    fn retry_backlog(&mut self) {
        while let Some((key, event)) = self.backlog.front().cloned() {
            if self.step(&key, event, None).is_err() {
                return;
            }
            self.backlog.pop_front();
        }
    }

    /// One step of one service: decide, journal, act. Nothing has changed when it fails.
    pub(crate) fn step(
        &mut self,
        key: &ServiceKey,
        event: Event,
        actor: Option<Actor>,
    ) -> Result<(), JournalError> {
        let Some(mut service) = self.services.get(key).cloned() else {
            return Ok(());
        };
        let result = self.take(key, &mut service, event, actor);
        match &result {
            Ok(_) => {
                self.problems.remove("journal");
            }
            Err(error) => {
                self.problems.insert("journal", chain_of(error));
            }
        }
        let (at, actions, notices) = result?;
        let routes = actions
            .iter()
            .any(|action| matches!(action, Action::Route { .. }));
        self.services.insert(key.clone(), service);
        if routes {
            self.unconfirmed.insert(key.clone(), self.table);
            self.push_table();
        }
        for action in actions {
            self.carry_out(key, action);
        }
        let service = &self.services[key];
        self.probes.reconcile(key, service, &self.inputs);
        let step = Step {
            key,
            service,
            at,
            notices: &notices,
            links: &self.links,
            traffic: &self.traffic,
        };
        self.waiting.notices(&step, &self.inputs);
        let ended = notices.iter().any(kiln_plan::Notice::ends_rollout);
        let is_gone = service.is_gone();
        if ended || is_gone {
            self.release_listeners();
        }
        if is_gone && let Err(error) = self.effects.engine.forget_service(key) {
            self.problems.insert("network", chain_of(&error));
        }
        Ok(())
    }

    /// Decides and journals.
    fn take(
        &mut self,
        key: &ServiceKey,
        service: &mut Service,
        event: Event,
        actor: Option<Actor>,
    ) -> Result<(Timestamp, Vec<Action>, Vec<kiln_plan::Notice>), JournalError> {
        let at = self.clock.now();
        service.handle_event(at, event.clone());
        let actions: Vec<_> = std::iter::from_fn(|| service.poll_action()).collect();
        let notices: Vec<_> = std::iter::from_fn(|| service.poll_notice()).collect();
        if cfg!(debug_assertions)
            && let Some(before) = self.services.get(key)
        {
            let (actions, notices) = (&actions[..], &notices[..]);
            let step = kiln_plan::Step {
                before,
                after: service,
                now: at,
                event: &event,
                actions,
                notices,
            };
            if let Err(violation) = step.check() {
                panic!("{key}: {violation}; after {event:?}: {actions:?}");
            }
        }
        let routes = actions
            .iter()
            .any(|action| matches!(action, Action::Route { .. }));
        let decides = event.is_decision() || notices.iter().any(kiln_plan::Notice::ends_rollout);
        let state = service
            .write_state()
            .map_err(|source| JournalError::State {
                service: key.to_string(),
                source,
            })?;
        let entry = Entry {
            at,
            actor,
            subject: Subject::Service(key.clone()),
            fact: Fact::Service(StepRecord {
                event,
                actions: actions.clone(),
                notices: notices.clone(),
                state: Digest::of(&state),
            }),
        };
        let written = self.journal.append(&entry, &state, routes)?;
        crash::point("commit");
        if routes {
            self.table = written.table;
        }
        if decides {
            self.decided.insert(key.environment.clone(), written.state);
        }
        Ok((at, actions, notices))
    }

    fn carry_out(&mut self, key: &ServiceKey, action: Action) {
        match action {
            // The table holds every service's last route and was pushed with the step.
            Action::Route { .. } => {}
            Action::Start { .. } | Action::Stop { .. } | Action::Remove { .. } => {
                let Some(service) = self.services.get(key) else {
                    return;
                };
                self.effects.carry_out(key, service, action);
            }
        }
    }
}

/// An error with its causes, on one line.
pub(crate) fn chain_of(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

async fn sleep_or_never(wait: Option<Duration>) {
    match wait {
        Some(wait) => tokio::time::sleep(wait).await,
        None => std::future::pending().await,
    }
}
