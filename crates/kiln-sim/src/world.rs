//! The world: what happens next, to whom, and the controller in the middle of it.
//!
//! The controller is the real core ([`Controller`]). Around it are a simulated engine, proxies, prober, journal, supervisor and
//! operator, each with chance of its own. The controller may be killed between any two of its effects; the next one starts from
//! the journal's bytes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use kiln_control::{
    Concern, Controller, Draft, Effect, Input, Mutation, ProxyId, Record, Recovered, Written,
};
use kiln_model::{
    Command, FromProxy, Generation, InstanceId, RoutingTable, ServiceKey, StateId, Timestamp,
};
use kiln_plan::{Event, Notice, ProbeKind, STATE_FORMAT, Service, bound};

use crate::callers::Callers;
use crate::checks::Broken;
use crate::engine::{Engine, Happening, Truth};
use crate::operator::Operator;
use crate::prober::Prober;
use crate::proxies::{Proxies, Taken};
use crate::random::Random;
use crate::run::{Failure, Stats};

/// More inputs than that in one run is a loop.
const MOST_STEPS: u64 = 30_000;
/// After the last fault: a replacement may be held back for a minute, and then starts and becomes ready.
const SETTLE: Duration = Duration::from_secs(180);
const START: u64 = 1_000_000;

enum Next {
    Engine(Happening),
    /// A proxy reads a table.
    Apply {
        proxy: ProxyId,
        table: RoutingTable,
    },
    /// The controller reads what a proxy said, if it is still the one that it was said to.
    Hear {
        life: u64,
        proxy: ProxyId,
        said: FromProxy,
    },
    Drain(ProxyId),
    Look {
        service: ServiceKey,
        instance: InstanceId,
        probe: ProbeKind,
    },
    Connect {
        /// The controller that connects; `None`: the present one.
        life: Option<u64>,
        proxy: ProxyId,
    },
    Restart,
    Operator,
    Fault(Fault),
    FaultsEnd,
}

#[derive(Clone, Copy, Debug)]
enum Fault {
    ProxyLost,
    ProxySpoilt,
    Reboot,
    /// The journal can't be written for a while.
    DiskFull,
    /// Stops and removals fail for a while.
    EngineBroken,
    /// Many inputs a second, for a while.
    Noise,
}

/// What the journal holds: all that a new controller starts from.
#[derive(Default)]
struct Journal {
    recovered: Recovered,
    /// No entry can be written until then.
    full_until: u64,
}

pub(crate) struct World {
    seed: u64,
    pub(crate) mutation: Option<Mutation>,
    keep_trace: bool,
    pub(crate) now: u64,
    next: BTreeMap<(u64, u64), Next>,
    serial: u64,
    pub(crate) core: Controller,
    /// `None`: it runs. Else it is back then.
    down_until: Option<u64>,
    life: u64,
    life_began: u64,
    /// The shell's time when this life began.
    shell_began: u64,
    /// The wall clock's error against the world's time.
    wall: i64,
    chance: Random,
    pub(crate) operator: Operator,
    journal: Journal,
    pub(crate) engine: Engine,
    pub(crate) proxies: Proxies,
    prober: Prober,
    /// What the supervisor holds.
    pub(crate) sockets: BTreeSet<SocketAddr>,
    pub(crate) callers: Callers,
    faults: bool,
    noise_until: u64,
    /// Services whose routes a proxy has refused.
    refused: BTreeSet<ServiceKey>,
    /// Most replicas of each service since its last rollout began, and when that was.
    pub(crate) sizes: BTreeMap<ServiceKey, (u32, Timestamp)>,
    /// The shortest drain deadline of each service, over the whole run: a drain keeps the deadline that it began with.
    pub(crate) least_drain: BTreeMap<ServiceKey, u64>,
    pub(crate) stats: Stats,
}

pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl World {
    pub(crate) fn new(seed: u64, mutation: Option<Mutation>, keep_trace: bool) -> Self {
        let mut core = Controller::new(Recovered::default(), Timestamp(START));
        core.set_mutation(mutation);
        Self {
            seed,
            mutation,
            keep_trace,
            now: START,
            next: BTreeMap::new(),
            serial: 0,
            core,
            down_until: None,
            life: 0,
            life_began: START,
            shell_began: START,
            wall: 0,
            chance: Random::new(seed, 4),
            operator: Operator::new(seed),
            journal: Journal::default(),
            engine: Engine::new(seed),
            proxies: Proxies::new(seed),
            prober: Prober::default(),
            sockets: BTreeSet::new(),
            callers: Callers::default(),
            faults: true,
            noise_until: 0,
            refused: BTreeSet::new(),
            sizes: BTreeMap::new(),
            least_drain: BTreeMap::new(),
            stats: Stats::default(),
        }
    }

    pub(crate) fn run(mut self) -> Result<Stats, Failure> {
        match self.live() {
            Ok(()) => Ok(self.stats),
            Err((invariant, what)) => Err(Failure {
                seed: self.seed,
                invariant,
                what,
                trace: self.stats.trace,
            }),
        }
    }

    fn live(&mut self) -> Result<(), Broken> {
        self.script();
        self.begin_life()?;
        let mut end = u64::MAX;
        loop {
            let event = self.next.first_key_value().map(|((at, _), _)| *at);
            let timer = match self.down_until {
                None => self.core.poll_timeout().map(|at| self.world_time(at)),
                Some(_) => None,
            };
            let Some(at) = event.into_iter().chain(timer).min() else {
                break;
            };
            if at > end {
                break;
            }
            self.now = self.now.max(at);
            if self.stats.steps > MOST_STEPS {
                return Err((0, "the world does not come to rest".to_owned()));
            }
            if event != Some(at) {
                self.tell(Input::Timer)?;
                // A wrong controller may leave a timer of the past unheeded; its own invariant has to tell, so time goes
                // on. The right one has to heed it: for that one, the bound on steps tells.
                if self.mutation.is_some() {
                    self.now += 2_000;
                }
            } else if let Some((_, next)) = self.next.pop_first() {
                if matches!(next, Next::FaultsEnd) {
                    self.faults = false;
                    let policies = self.core.services().filter_map(|(_, s)| s.policy());
                    let longest = policies.map(bound).max().unwrap_or_default();
                    end = self.now + millis(longest + SETTLE);
                }
                self.happen(next)?;
            }
            self.check_traffic()?;
        }
        self.check_end()
    }

    /// What people and bad luck will do.
    fn script(&mut self) {
        if self.chance.percent(10) {
            self.engine.leave_behind(InstanceId::new("ghost-dev-1-99"));
        }
        let mut at = self.now;
        for _ in 0..self.chance.between(3, 10) {
            at += if self.chance.percent(15) {
                1
            } else {
                self.chance.between(500, 40_000)
            };
            self.at(at, Next::Operator);
            for (fault, percent, within) in [
                (Fault::ProxyLost, 10, 5_000),
                (Fault::ProxySpoilt, 2, 5_000),
                (Fault::Reboot, 4, 9_000),
                (Fault::DiskFull, 5, 9_000),
                (Fault::EngineBroken, 6, 9_000),
                (Fault::Noise, 4, 9_000),
            ] {
                if self.chance.percent(percent) {
                    let when = at + self.chance.between(0, within);
                    self.at(when, Next::Fault(fault));
                }
            }
        }
        self.at(at + 20_000, Next::FaultsEnd);
    }

    pub(crate) fn clock(&self) -> Timestamp {
        self.core.now()
    }

    fn shell_time(&self) -> Timestamp {
        Timestamp(self.shell_began + (self.now - self.life_began))
    }

    fn world_time(&self, shell: Timestamp) -> u64 {
        let at = shell.0.saturating_sub(self.shell_began) + self.life_began;
        at.max(self.now)
    }

    fn at(&mut self, at: u64, next: Next) {
        self.serial += 1;
        self.next.insert((at, self.serial), next);
    }

    pub(crate) fn note(&mut self, line: impl FnOnce() -> String) {
        if self.keep_trace {
            let line = format!("{:>9} ms  {}", self.now - START, line());
            self.stats.trace.push(line);
        }
    }

    fn happen(&mut self, next: Next) -> Result<(), Broken> {
        match next {
            Next::Engine(Happening::Becomes(id, truth, reason)) => {
                self.engine.become_true(&id, truth, reason);
                Ok(())
            }
            Next::Engine(Happening::Says(observation)) => {
                if self.is_stale(&observation) {
                    return Ok(());
                }
                self.tell(Input::Observed(*observation))
            }
            Next::Apply { proxy, table } => self.apply(proxy, table),
            Next::Hear { life, proxy, said } => {
                if life != self.life {
                    return Ok(());
                }
                if let FromProxy::Refused { services, .. } = &said {
                    self.note_refused(services);
                }
                self.tell(Input::ProxySaid(proxy, said))
            }
            Next::Drain(proxy) => {
                self.drain(proxy);
                Ok(())
            }
            Next::Look {
                service,
                instance,
                probe,
            } => {
                let (engine, faults, now) = (&self.engine, self.faults, self.now);
                let passes = self
                    .prober
                    .look(&service, &instance, probe, engine, faults, now);
                match passes {
                    Some(passes) => self.tell(Input::Probed {
                        service,
                        instance,
                        probe,
                        passes,
                    }),
                    None => Ok(()),
                }
            }
            Next::Connect { life, proxy } => {
                if !self.proxies.get(proxy).is_some_and(|proxy| proxy.alive) {
                    self.proxies.start(proxy);
                }
                // One that comes back is found by whichever controller there is by then.
                let found = life.is_none_or(|life| life == self.life);
                if found && self.proxies.get(proxy).is_some() {
                    return self.tell(Input::ProxyConnected(proxy));
                }
                Ok(())
            }
            Next::Restart => self.begin_life(),
            Next::Operator => self.operate(),
            Next::Fault(fault) => self.fault(fault),
            Next::FaultsEnd => {
                self.note(|| "faults cease".to_owned());
                self.journal.full_until = 0;
                Ok(())
            }
        }
    }

    /// What it says is not so any more: it would not be said.
    fn is_stale(&self, observation: &kiln_model::Observation) -> bool {
        match observation {
            kiln_model::Observation::Started { instance, .. } => !self.engine.is_alive(instance),
            _ => false,
        }
    }

    fn apply(&mut self, id: ProxyId, table: RoutingTable) -> Result<(), Broken> {
        if !self.proxies.get(id).is_some_and(|proxy| proxy.alive) {
            return Ok(());
        }
        let generation = table.generation;
        let clock = self.clock().0;
        let (faults, now) = (self.faults, self.now);
        let Some(taken) = self.proxies.apply(id, table, faults, now, clock) else {
            return Ok(());
        };
        let said = match taken {
            Taken::Confirmed => FromProxy::Confirmed { generation },
            Taken::Partly(services) => refused(generation, None, services),
            Taken::Refused { served } => refused(generation, served, Vec::new()),
        };
        if matches!(said, FromProxy::Refused { .. }) {
            self.stats.routes_refused += 1;
        }
        self.say(id, 1, said);
        self.drain(id);
        Ok(())
    }

    fn say(&mut self, proxy: ProxyId, after: u64, said: FromProxy) {
        let (life, at) = (self.life, self.now + after);
        self.at(at, Next::Hear { life, proxy, said });
    }

    fn drain(&mut self, id: ProxyId) {
        let now = self.now;
        let Some(proxy) = self.proxies.get(id) else {
            return;
        };
        let (said, next) = proxy.drained(now);
        for said in said {
            self.say(id, 2, said);
        }
        if let Some(next) = next {
            self.at(next, Next::Drain(id));
        }
    }

    fn note_refused(&mut self, services: &[ServiceKey]) {
        if services.is_empty() {
            let all = self.core.services().map(|(key, _)| key.clone());
            self.refused.extend(all);
        }
        self.refused.extend(services.iter().cloned());
    }

    fn operate(&mut self) -> Result<(), Broken> {
        if let Some(back) = self.down_until {
            self.at(back + 1, Next::Operator);
            return Ok(());
        }
        let Some(ask) = self.operator.ask(&self.core) else {
            self.stats.refused += 1;
            return Ok(());
        };
        self.note(|| format!("operator: {ask:?}"));
        let call = self.callers.begin();
        self.tell(Input::Call {
            call,
            actor: None,
            ask,
        })
    }

    fn fault(&mut self, fault: Fault) -> Result<(), Broken> {
        self.note(|| format!("fault: {fault:?}"));
        match fault {
            Fault::ProxyLost | Fault::ProxySpoilt => {
                let index = self.proxies.all.len() - 1;
                let lasts = self.chance.between(100, 30_000);
                if matches!(fault, Fault::ProxySpoilt) {
                    self.proxies.all[index].spoil();
                }
                let back = self.now + lasts;
                let (old, new) = self.proxies.replace(index);
                self.at(
                    back,
                    Next::Connect {
                        life: None,
                        proxy: new,
                    },
                );
                self.tell(Input::ProxyGone(old))
            }
            Fault::Reboot => {
                self.stats.reboots += 1;
                for made in self.engine.made.values_mut() {
                    if matches!(made.truth, Truth::Starting | Truth::Alive) {
                        made.set(Truth::Dead, kiln_model::ExitReason::Lost);
                    }
                }
                // The hardware clock is what it is.
                self.step_wall(7_200_000);
                let away = self.chance.between(50, 3_000);
                self.kill(away);
                Ok(())
            }
            Fault::DiskFull => {
                self.journal.full_until = self.now + self.chance.between(500, 20_000);
                Ok(())
            }
            Fault::EngineBroken => {
                self.engine.broken_until = self.now + self.chance.between(500, 20_000);
                Ok(())
            }
            Fault::Noise => {
                if self.now >= self.noise_until {
                    // That much happens is no fault: it may go on.
                    let most = if self.chance.percent(50) {
                        15_000
                    } else {
                        600_000
                    };
                    self.noise_until = self.now + self.chance.between(3_000, most);
                }
                self.noise()
            }
        }
    }

    /// Something that changes nothing, several times a second.
    fn noise(&mut self) -> Result<(), Broken> {
        if self.now + 400 < self.noise_until {
            self.at(self.now + 400, Next::Fault(Fault::Noise));
        }
        self.tell(Input::Noted {
            concern: Concern::Network,
            problem: None,
        })
    }

    fn step_wall(&mut self, most: i64) {
        let most_u = u64::try_from(most).unwrap_or(0);
        let step = i64::try_from(self.chance.between(0, 2 * most_u)).unwrap_or(0) - most;
        // Never before the beginning of the world.
        self.wall = (self.wall + step).max(-i64::try_from(self.now / 2).unwrap_or(0));
    }

    /// The controller dies: what it knew is what it wrote.
    fn kill(&mut self, away: u64) {
        if self.down_until.is_some() {
            return;
        }
        self.stats.restarts += 1;
        self.life += 1;
        self.callers.forget_all();
        let back = self.now + away;
        self.down_until = Some(back);
        self.note(|| format!("the controller is killed, and back at {} ms", back - START));
        self.at(back, Next::Restart);
    }

    fn begin_life(&mut self) -> Result<(), Broken> {
        self.down_until = None;
        self.life_began = self.now;
        if self.chance.percent(30) {
            self.step_wall(600_000);
        }
        self.shell_began = self.now.saturating_add_signed(self.wall);
        let recovered = self.journal.read()?;
        self.core = Controller::new(recovered, self.shell_time());
        self.core.set_mutation(self.mutation);
        self.prober = Prober::default();
        let life = Some(self.life);
        let ids: Vec<_> = self.proxies.living().map(|proxy| proxy.id).collect();
        for proxy in ids {
            let at = self.now + 10;
            self.at(at, Next::Connect { life, proxy });
        }
        self.tell(Input::Timer)
    }

    /// One input of the controller and everything that it leads to; it may be killed in the middle of it.
    fn tell(&mut self, input: Input) -> Result<(), Broken> {
        if self.down_until.is_some() {
            return Ok(());
        }
        self.stats.steps += 1;
        self.callers.next_input();
        self.core.handle_input(self.shell_time(), input);
        let dies = self.faults && self.chance.percent(1);
        let mut left = if dies {
            self.chance.between(0, 8)
        } else {
            u64::MAX
        };
        while let Some(effect) = self.core.poll_effect() {
            if left == 0 {
                let most = if self.chance.percent(80) { 20 } else { 5_000 };
                let away = self.chance.between(1, most);
                self.kill(away);
                return Ok(());
            }
            left -= 1;
            self.carry_out(effect)?;
        }
        Ok(())
    }

    fn answer(&mut self, input: Input) {
        let now = self.shell_time();
        self.core.handle_input(now, input);
    }

    fn carry_out(&mut self, effect: Effect) -> Result<(), Broken> {
        match effect {
            Effect::Journal => self.write(),
            Effect::Prepare { images: _, listen } => {
                self.sockets.extend(listen.values());
                self.answer(Input::Prepared(Ok(())));
                Ok(())
            }
            Effect::Engine(command) => self.command(&command),
            Effect::Table { proxy, table } => {
                let slow = if self.faults && self.proxies.random.percent(5) {
                    3_000
                } else {
                    5
                };
                let takes = self.proxies.random.between(1, slow);
                let now = self.now;
                let Some(found) = self.proxies.get(proxy) else {
                    return Ok(());
                };
                let at = (now + takes).max(found.last_delivery);
                found.last_delivery = at;
                self.at(at, Next::Apply { proxy, table });
                Ok(())
            }
            Effect::Count { proxy } => {
                let slow = if self.faults && self.proxies.random.percent(10) {
                    600
                } else {
                    5
                };
                let takes = self.proxies.random.between(1, slow);
                let now = self.now;
                if let Some(found) = self.proxies.get(proxy) {
                    let at = (now + takes).max(found.last_answer);
                    found.last_answer = at;
                    let said = found.counters(at);
                    self.callers.asked(proxy, at);
                    self.say(proxy, at - now, said);
                }
                Ok(())
            }
            Effect::Listen(wanted) => {
                self.sockets = wanted;
                Ok(())
            }
            Effect::Probe(key) => {
                let Some(service) = self.core.service(&key) else {
                    return Ok(());
                };
                let looks = self.prober.reconcile(&key, service, &self.engine, self.now);
                for (at, instance, probe) in looks {
                    let service = key.clone();
                    self.at(
                        at,
                        Next::Look {
                            service,
                            instance,
                            probe,
                        },
                    );
                }
                Ok(())
            }
            Effect::Reply { call, answer } => {
                if let Err(refused) = &answer {
                    self.stats.refused += 1;
                    self.note(|| format!("refused: {refused:?}"));
                }
                self.callers.reply(call, answer.is_ok());
                Ok(())
            }
            Effect::Tell {
                call,
                service,
                told,
            } => self.check_told(call, &service, &told),
            Effect::Finished(call) => {
                self.callers.finish(call);
                Ok(())
            }
            Effect::Forget(_) => Ok(()),
        }
    }

    fn command(&mut self, command: &Command) -> Result<(), Broken> {
        self.note(|| format!("engine: {command:?}"));
        self.check_command(command)?;
        let later = self
            .engine
            .take(command, self.faults, self.now)
            .map_err(|what| (7, what))?;
        for (after, happening) in later {
            let at = self.now + after;
            self.at(at, Next::Engine(happening));
        }
        Ok(())
    }

    fn write(&mut self) -> Result<(), Broken> {
        let Some(draft) = self.core.draft().cloned() else {
            return Ok(());
        };
        if self.now < self.journal.full_until {
            self.answer(Input::Journalled(Err("the disk is full".to_owned())));
            return Ok(());
        }
        self.check_draft(&draft)?;
        self.count(&draft);
        let written = self.journal.write(draft);
        self.answer(Input::Journalled(Ok(written)));
        Ok(())
    }

    fn count(&mut self, draft: &Draft) {
        let Record::Step {
            service,
            event,
            actions,
            notices,
            state,
        } = &draft.record
        else {
            return;
        };
        self.note(|| format!("{service}: {event:?} -> {actions:?} {notices:?}"));
        let replicas = state.policy().map_or(0, |policy| policy.replicas);
        if let Some(policy) = state.policy() {
            let least = self.least_drain.entry(service.clone()).or_insert(u64::MAX);
            *least = (*least).min(millis(policy.drain_deadline));
        }
        let before = self.core.service(service).and_then(Service::policy);
        let before = before.map_or(0, |policy| policy.replicas);
        let size = self.sizes.entry(service.clone()).or_default();
        for notice in notices {
            match notice {
                Notice::RolloutBegan { .. } => {
                    self.stats.rollouts += 1;
                    *size = (before, draft.at);
                }
                Notice::RolloutEnded { end } => match end.result {
                    kiln_model::api::RolloutResult::Done => self.stats.done += 1,
                    _ => self.stats.turned_back += 1,
                },
                Notice::PolicyKept { .. } => self.stats.policies_kept += 1,
                _ => {}
            }
        }
        size.0 = size.0.max(replicas);
        let warm = state.rollout().is_some_and(|rollout| rollout.warm);
        if warm && matches!(**event, Event::Rollback { .. }) {
            self.stats.warm_rollbacks += 1;
        }
    }

    /// Whether a proxy ever refused a route of this service.
    pub(crate) fn was_refused(&self, service: &ServiceKey) -> bool {
        self.refused.contains(service)
    }
}

fn refused(
    generation: Generation,
    served: Option<Generation>,
    services: Vec<ServiceKey>,
) -> FromProxy {
    FromProxy::Refused {
        generation,
        served,
        services,
        digest: None,
        reason: "the disk is full".to_owned(),
    }
}

impl Journal {
    fn write(&mut self, draft: Draft) -> Written {
        let recovered = &mut self.recovered;
        recovered.at = draft.at;
        match draft.record {
            Record::Step { service, state, .. } => {
                recovered.last = recovered.last.next();
                recovered.services.insert(service, *state);
                if draft.routes {
                    recovered.table = recovered.table.next();
                }
            }
            Record::TableRaised { at_least } => {
                recovered.table = recovered.table.max(at_least);
            }
        }
        let StateId(last) = recovered.last;
        Written {
            state: StateId(last),
            table: recovered.table,
        }
    }

    /// What a new controller reads: states from their bytes.
    fn read(&self) -> Result<Recovered, Broken> {
        let mut recovered = self.recovered.clone();
        for service in recovered.services.values_mut() {
            let bytes = service
                .write_state()
                .map_err(|error| (7, format!("not written: {error}")))?;
            let read = Service::read_state(STATE_FORMAT, &bytes)
                .map_err(|error| (7, format!("not read: {error}")))?;
            let mut unmarked = service.clone();
            unmarked.set_mutation(None);
            if read != unmarked {
                return Err((7, "the journal's bytes give another state".to_owned()));
            }
            *service = read;
        }
        Ok(recovered)
    }
}
