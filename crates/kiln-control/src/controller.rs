//! The state, and the one queue in which everything is decided.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use kiln_model::{Actor, EnvName, Generation, InstanceId, ServiceKey, StateId, Timestamp};
use kiln_plan::{Action, Event, Service};

use crate::calls::Preparing;
use crate::clock::Clock;
use crate::engine::Adoption;
use crate::input::{Ask, CallId, Concern, Draft, Effect, Input, ProxyId, Record, Written};
use crate::mutation::Mutation;
use crate::proxies::Link;
use crate::traffic::Traffic;
use crate::waiters::{Settling, Waiter};

/// How long after a refused write the journal is tried again.
const RETRY_JOURNAL: Duration = Duration::from_secs(1);

/// What a controller starts from: what the journal holds.
#[derive(Clone, Debug, Default)]
pub struct Recovered {
    pub services: BTreeMap<ServiceKey, Service>,
    /// The last timestamp journalled.
    pub at: Timestamp,
    /// The last entry.
    pub last: StateId,
    /// The generation of the routing table.
    pub table: Generation,
}

/// Something that is decided in its turn.
#[derive(Clone, Debug)]
pub(crate) enum Work {
    Call {
        call: CallId,
        actor: Option<Actor>,
        ask: Ask,
    },
    Step(Box<Step>),
    /// The table's next generation is at least this one.
    Raise(Generation),
}

#[derive(Clone, Debug)]
pub(crate) struct Step {
    pub(crate) service: ServiceKey,
    pub(crate) event: Event,
    pub(crate) actor: Option<Actor>,
    /// Who asked for it. Without one it is something that is so, whether or not it can be written down now.
    pub(crate) call: Option<CallId>,
    /// It is the last of its call.
    pub(crate) last: bool,
}

/// What is waited for before anything else is decided.
#[derive(Clone, Debug)]
pub(crate) enum Pending {
    Journal { work: Work, draft: Box<Draft> },
    Prepare(Box<Preparing>),
}

/// The controller's core. See the crate's documentation for the contract.
#[derive(Clone, Debug)]
pub struct Controller {
    pub(crate) clock: Clock,
    pub(crate) services: BTreeMap<ServiceKey, Service>,
    /// Which service an instance is of.
    pub(crate) owners: BTreeMap<InstanceId, ServiceKey>,
    pub(crate) queue: VecDeque<Work>,
    pub(crate) pending: Option<Pending>,
    /// The journal refused the first of the queue, which is tried again then.
    retry_at: Option<Timestamp>,
    /// Deadlines are looked at once for each thing that happens: one that is not heeded must not keep the rest from happening.
    looks: bool,
    pub(crate) effects: VecDeque<Effect>,
    pub(crate) adoption: Adoption,
    /// The generation of the present table.
    pub(crate) table: Generation,
    /// A proxy refused some of the present table, which is given again as a newer one then.
    pub(crate) push_again: Option<Timestamp>,
    pub(crate) links: BTreeMap<ProxyId, Link>,
    /// For each service with a route that is not confirmed: the generation of the table that has it.
    pub(crate) unconfirmed: BTreeMap<ServiceKey, Generation>,
    /// Which proxies have nothing more in flight for an instance, and how many requests were cut.
    pub(crate) drained: BTreeMap<InstanceId, BTreeMap<ProxyId, u64>>,
    /// Which proxies send an instance nothing at the moment, because it failed requests.
    pub(crate) ejected: BTreeMap<InstanceId, BTreeSet<ProxyId>>,
    /// What the shell was last told to listen on.
    pub(crate) listening: BTreeSet<SocketAddr>,
    /// The last entry in which something was decided about an environment: what its plans name as parent.
    decided: BTreeMap<EnvName, StateId>,
    /// Decided about anything before this controller started.
    decided_before: StateId,
    pub(crate) traffic: Traffic,
    pub(crate) waiters: Vec<Waiter>,
    pub(crate) settling: Vec<Settling>,
    problems: BTreeMap<Concern, String>,
    pub(crate) mutation: Option<Mutation>,
}

impl Controller {
    /// Takes up where the journal ends. `now`: the shell's time.
    pub fn new(recovered: Recovered, now: Timestamp) -> Self {
        let Recovered {
            services,
            at,
            last,
            table,
        } = recovered;
        let owners = services
            .iter()
            .flat_map(|(key, service)| service.instances().map(|i| (i.id.clone(), key.clone())))
            .collect();
        let unconfirmed = services.keys().map(|key| (key.clone(), table)).collect();
        let mut controller = Self {
            clock: Clock::start(at, now),
            services,
            owners,
            queue: VecDeque::new(),
            pending: None,
            retry_at: None,
            looks: false,
            effects: VecDeque::new(),
            adoption: Adoption::default(),
            table,
            push_again: None,
            links: BTreeMap::new(),
            unconfirmed,
            drained: BTreeMap::new(),
            ejected: BTreeMap::new(),
            listening: BTreeSet::new(),
            decided: BTreeMap::new(),
            decided_before: last,
            traffic: Traffic::default(),
            waiters: Vec::new(),
            settling: Vec::new(),
            problems: BTreeMap::new(),
            mutation: None,
        };
        controller.listen_first();
        controller.sync();
        controller
    }

    /// This controller, made wrong on purpose. The mark is not journalled: set it again after a restart.
    #[cfg(feature = "mutations")]
    pub fn set_mutation(&mut self, mutation: Option<Mutation>) {
        self.mutation = mutation;
        for service in self.services.values_mut() {
            mutate(service, mutation);
        }
    }

    /// The controller's time at the last input.
    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Ordered by environment and name; those that are gone too.
    pub fn services(&self) -> impl Iterator<Item = (&ServiceKey, &Service)> {
        self.services.iter()
    }

    pub fn service(&self, key: &ServiceKey) -> Option<&Service> {
        self.services.get(key)
    }

    /// A proxy sends it nothing at the moment, because it failed requests.
    pub fn is_ejected(&self, instance: &InstanceId) -> bool {
        self.ejected.contains_key(instance)
    }

    /// What is wrong with kiln itself.
    pub fn problems(&self) -> impl Iterator<Item = (Concern, &str)> {
        let noted = self
            .problems
            .iter()
            .map(|(concern, text)| (*concern, text.as_str()));
        noted.chain(self.adoption.problems().map(|text| (Concern::Engine, text)))
    }

    /// No proxy is connected: traffic goes on by the table that each saved.
    pub fn has_proxy(&self) -> bool {
        !self.links.is_empty()
    }

    /// What [`Effect::Journal`] asks to be written.
    pub fn draft(&self) -> Option<&Draft> {
        match &self.pending {
            Some(Pending::Journal { draft, .. }) => Some(draft),
            Some(Pending::Prepare(_)) | None => None,
        }
    }

    /// How much waits for the journal.
    pub fn backlog(&self) -> usize {
        self.queue.len()
    }

    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// When to come back with [`Input::Timer`], by the shell's time; `None`: only when something happens.
    pub fn poll_timeout(&self) -> Option<Timestamp> {
        let next = match self.retry_at {
            Some(at) => Some(at),
            None if self.pending.is_some() => None,
            None => self
                .services
                .values()
                .filter_map(Service::poll_timeout)
                .min(),
        };
        let times = [
            next,
            self.push_again,
            self.settles_at(),
            self.adoption.retries_at(),
        ];
        let next = times.into_iter().flatten().min()?;
        Some(self.clock.shell_time(next))
    }

    /// Something has happened. `now`: the shell's time, which never decreases within a life.
    pub fn handle_input(&mut self, now: Timestamp, input: Input) {
        let now = self.clock.at(now, self.mutation);
        self.looks |= !matches!(input, Input::Journalled(_) | Input::Prepared(_));
        match input {
            Input::Call { call, actor, ask } => {
                // A person may have made room: what waits is tried at once.
                self.retry_at = None;
                self.queue.push_back(Work::Call { call, actor, ask });
            }
            Input::Prepared(result) => self.prepared(result),
            Input::Journalled(result) => self.journalled(now, result),
            Input::Observed(observation) => self.observed(observation),
            Input::Probed {
                service,
                instance,
                probe,
                passes,
            } => {
                let event = Event::Probed {
                    instance,
                    probe,
                    passes,
                };
                self.happened(service, event);
            }
            Input::ProxyConnected(id) => self.proxy_connected(id),
            Input::ProxySaid(id, said) => self.proxy_said(id, said),
            Input::ProxyGone(id) => self.proxy_gone(id),
            Input::Noted { concern, problem } => self.note(concern, problem),
            Input::Timer => {}
        }
        self.settle();
        self.retry_engine();
        self.retry_table();
        if self.mutation == Some(Mutation::StarveBacklog) && self.retry_at.is_some() {
            let due = self.retry_at.is_some_and(|at| now >= at);
            if !due {
                self.retry_at = Some(now.plus(RETRY_JOURNAL));
            }
        }
        self.pump(now);
    }

    /// What is wrong is told in the status until it is right.
    pub(crate) fn note(&mut self, concern: Concern, problem: Option<String>) {
        match problem {
            Some(problem) => self.problems.insert(concern, problem),
            None => self.problems.remove(&concern),
        };
    }

    /// Something that is so, whether or not it can be written down now.
    pub(crate) fn happened(&mut self, service: ServiceKey, event: Event) {
        if let Event::Probed {
            instance: id,
            probe: kind,
            ..
        } = &event
        {
            // Of a probe that changes while the journal can't be written, the last says all.
            self.queue.retain(|work| match work {
                Work::Step(step) => !matches!(
                    &step.event,
                    Event::Probed { instance, probe, .. } if instance == id && probe == kind
                ),
                Work::Call { .. } | Work::Raise(_) => true,
            });
        }
        self.queue.push_back(Work::Step(Box::new(Step {
            service,
            event,
            actor: None,
            call: None,
            last: false,
        })));
    }

    /// The state that plans of this environment name as parent.
    pub(crate) fn parent(&self, environment: &EnvName) -> StateId {
        self.decided
            .get(environment)
            .copied()
            .unwrap_or(self.decided_before)
    }

    /// Decides what is next in the queue, until something has to be waited for.
    fn pump(&mut self, now: Timestamp) {
        if self.retry_at.is_some_and(|at| now >= at) {
            self.retry_at = None;
        }
        if self.retry_at.is_some() {
            self.refuse_calls();
            return;
        }
        while self.pending.is_none() {
            let Some(work) = self.queue.pop_front() else {
                if std::mem::take(&mut self.looks) {
                    self.fire(now);
                }
                if self.queue.is_empty() {
                    // Nothing is left that could not be written.
                    self.note(Concern::Journal, None);
                    return;
                }
                continue;
            };
            match work {
                Work::Call { call, actor, ask } => self.take_call(call, actor, ask),
                Work::Step(step) => self.decide(now, step),
                Work::Raise(generation) if generation > self.table => {
                    let draft = Draft {
                        at: now,
                        actor: None,
                        record: Record::TableRaised {
                            at_least: generation,
                        },
                        routes: true,
                    };
                    self.write(Work::Raise(generation), draft);
                }
                Work::Raise(_) => {}
            }
        }
    }

    /// Deadlines of services that have passed.
    fn fire(&mut self, now: Timestamp) {
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

    /// While the journal can't be written, nothing new is begun: a person is told at once, instead of waiting behind what
    /// has to be written first.
    fn refuse_calls(&mut self) {
        let problem = self
            .problems
            .get(&Concern::Journal)
            .cloned()
            .unwrap_or_default();
        let (calls, rest): (VecDeque<_>, VecDeque<_>) = std::mem::take(&mut self.queue)
            .into_iter()
            .partition(|work| matches!(work, Work::Call { .. }));
        self.queue = rest;
        for work in calls {
            if let Work::Call { call, .. } = work {
                let problem = problem.clone();
                self.reply(call, Err(crate::Refused::Journal { problem }));
            }
        }
    }

    /// One step of one service, on a copy of it.
    fn decide(&mut self, now: Timestamp, step: Box<Step>) {
        let Some(before) = self.services.get(&step.service) else {
            return;
        };
        let mut service = before.clone();
        service.handle_event(now, step.event.clone());
        let actions: Vec<_> = std::iter::from_fn(|| service.poll_action()).collect();
        let notices: Vec<_> = std::iter::from_fn(|| service.poll_notice()).collect();
        if cfg!(debug_assertions) && self.mutation.is_none() {
            let check = kiln_plan::Step {
                before,
                after: &service,
                now,
                event: &step.event,
                actions: &actions,
                notices: &notices,
            };
            if let Err(violation) = check.check() {
                panic!(
                    "{}: {violation}; after {:?}: {actions:?}",
                    step.service, step.event
                );
            }
        }
        let routes = actions
            .iter()
            .any(|action| matches!(action, Action::Route { .. }));
        let draft = Draft {
            at: now,
            actor: step.actor.clone(),
            routes,
            record: Record::Step {
                service: step.service.clone(),
                event: Box::new(step.event.clone()),
                actions,
                notices,
                state: Box::new(service),
            },
        };
        self.write(Work::Step(step), draft);
    }

    fn write(&mut self, work: Work, draft: Draft) {
        self.pending = Some(Pending::Journal {
            work,
            draft: Box::new(draft),
        });
        self.effects.push_back(Effect::Journal);
    }

    fn journalled(&mut self, now: Timestamp, result: Result<Written, String>) {
        let Some(Pending::Journal { work, draft }) = self.pending.take() else {
            return;
        };
        match result {
            Ok(written) => {
                self.note(Concern::Journal, None);
                self.act(work, *draft, written);
            }
            Err(problem) => {
                self.note(Concern::Journal, Some(problem.clone()));
                match work {
                    Work::Step(step) => match (step.call, &step.event) {
                        (Some(call), _) => self.fail_call(call, &step.service, problem),
                        // A timer fires again by itself; everything else keeps its place.
                        (None, Event::Timer) => {}
                        (None, _) => self.queue.push_front(Work::Step(step)),
                    },
                    work @ (Work::Call { .. } | Work::Raise(_)) => self.queue.push_front(work),
                }
                self.retry_at = Some(now.plus(RETRY_JOURNAL));
            }
        }
    }

    /// What is written becomes true, and its actions are carried out.
    fn act(&mut self, work: Work, draft: Draft, written: Written) {
        self.table = written.table;
        let (actions, notices) = match draft.record {
            Record::TableRaised { .. } => {
                let keys: Vec<_> = self.services.keys().cloned().collect();
                let table = self.table;
                self.unconfirmed
                    .extend(keys.into_iter().map(|key| (key, table)));
                self.push_tables();
                return;
            }
            Record::Step {
                service: key,
                event,
                actions,
                notices,
                state: service,
            } => {
                let ends = notices.iter().any(kiln_plan::Notice::ends_rollout);
                if event.is_decision() || ends {
                    self.decided.insert(key.environment.clone(), written.state);
                }
                self.services.insert(key, *service);
                (actions, notices)
            }
        };
        let Work::Step(step) = work else { return };
        let key = step.service;
        if draft.routes {
            self.unconfirmed.insert(key.clone(), self.table);
            self.push_tables();
        }
        for action in actions {
            self.carry_out(&key, action);
        }
        self.effects.push_back(Effect::Probe(key.clone()));
        self.hand_on(&key, &notices);
        self.listen();
        if self.services.get(&key).is_some_and(Service::is_gone) {
            self.effects.push_back(Effect::Forget(key));
        }
        if let Some(call) = step.call
            && step.last
        {
            self.reply(call, Ok(()));
            self.finish(call);
        }
    }
}

/// A planner's mark is that of each of its services.
#[cfg(feature = "mutations")]
pub(crate) fn mutate(service: &mut Service, mutation: Option<Mutation>) {
    service.set_mutation(match mutation {
        Some(Mutation::Plan(mutation)) => Some(mutation),
        Some(_) | None => None,
    });
}
