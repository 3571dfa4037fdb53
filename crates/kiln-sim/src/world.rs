//! The world: what happens next, to whom, and the controller in the middle of it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use kiln_model::api::RolloutResult;
use kiln_model::{
    BlueGreen, Digest, EnvName, ExitReason, Generation, ImageOrigin, InstanceId, Policy,
    ProjectName, Release, ReleaseNumber, Resources, ServiceKey, ServiceName, Strategy, Timestamp,
    UnknownFields,
};
use kiln_plan::{Action, Event, Mutation, Notice, Phase, Service, bound};
use serde::{Deserialize, Serialize};

use crate::checks::Broken;
use crate::engine::{Engine, Happening, Quality, Truth, exit};
use crate::proxies::Proxies;
use crate::random::Random;
use crate::run::{Failure, Stats};

/// More events than that in one run is a loop.
const MOST_STEPS: u64 = 20_000;
/// After the last fault: a replacement may be held back for a minute, and then starts and becomes ready.
const SETTLE: Duration = Duration::from_secs(180);

enum Next {
    Engine(Happening),
    /// A proxy reads a table.
    Apply {
        proxy: usize,
        generation: Generation,
        active: Option<(ReleaseNumber, Vec<InstanceId>)>,
    },
    Confirm(Generation),
    Idle(InstanceId),
    Operator,
    ProxyLost(usize),
    Jump,
    Reboot,
    FaultsEnd,
}

/// One entry of the journal, as bytes.
#[derive(Serialize, Deserialize)]
struct Entry {
    now: Timestamp,
    event: Event,
    actions: Vec<Action>,
    service: Service,
}

pub(crate) struct World {
    seed: u64,
    mutation: Option<Mutation>,
    keep_trace: bool,
    pub(crate) now: u64,
    pub(crate) jumped: u64,
    next: BTreeMap<(u64, u64), Next>,
    serial: u64,
    operator: Random,
    controller: Random,
    pub(crate) engine: Engine,
    pub(crate) proxies: Proxies,
    pub(crate) service: Service,
    /// The controller is dead until then: what it would hear waits.
    down_until: u64,
    faults: bool,
    versions: u64,
    qualities: Vec<Quality>,
    /// Over the whole run: a set being scaled down may still be larger.
    /// Since the last rollout began.
    pub(crate) rollout_replicas: u32,
    pub(crate) rollout_began: Timestamp,
    /// Milliseconds, over the whole run: a drain keeps the deadline that it began with.
    pub(crate) least_drain: u64,
    stats: Stats,
}

fn name<T: std::str::FromStr>(text: &str) -> T {
    text.parse()
        .unwrap_or_else(|_| panic!("`{text}` is a valid name"))
}

impl World {
    pub(crate) fn new(seed: u64, mutation: Option<Mutation>, keep_trace: bool) -> Self {
        let key = ServiceKey {
            environment: name::<EnvName>("dev"),
            service: name::<ServiceName>("api"),
        };
        let mut service = Service::new(key, name::<ProjectName>("shop"));
        service.set_mutation(mutation);
        Self {
            seed,
            mutation,
            keep_trace,
            now: 1_000_000,
            jumped: 0,
            next: BTreeMap::new(),
            serial: 0,
            operator: Random::new(seed, 3),
            controller: Random::new(seed, 4),
            engine: Engine::new(seed),
            proxies: Proxies::new(seed),
            service,
            down_until: 0,
            faults: true,
            versions: 0,
            qualities: Vec::new(),
            rollout_replicas: 0,
            rollout_began: Timestamp(0),
            least_drain: u64::MAX,
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
        let mut at = self.now;
        for _ in 0..self.operator.between(3, 10) {
            at += if self.operator.percent(15) {
                1
            } else {
                self.operator.between(500, 40_000)
            };
            self.at(at, Next::Operator);
            if self.operator.percent(10) {
                let proxy = self.proxies.all.len() - 1;
                let lost = at + self.operator.between(0, 5_000);
                self.at(lost, Next::ProxyLost(proxy));
            }
            if self.operator.percent(4) {
                let when = at + self.operator.between(0, 9_000);
                self.at(when, Next::Reboot);
            }
            if self.operator.percent(4) {
                let when = at + self.operator.between(0, 9_000);
                self.at(when, Next::Jump);
            }
        }
        self.at(at + 20_000, Next::FaultsEnd);
        let mut end = u64::MAX;
        loop {
            let event = self.next.first_key_value().map(|((at, _), _)| *at);
            let timer = self.service.poll_timeout().map(|at| {
                at.0.saturating_sub(self.jumped)
                    .max(self.now)
                    .max(self.down_until)
            });
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
                self.step(Event::Timer)?;
                self.check_traffic()?;
                // A wrong planner may leave a timer of the past unheeded; its own invariant has to tell, so time goes on.
                // The right one has to heed it: for that one, the bound on steps tells.
                if self.mutation.is_some() {
                    self.now += 100;
                }
                continue;
            }
            let Some((_, next)) = self.next.pop_first() else {
                break;
            };
            if matches!(next, Next::FaultsEnd) {
                self.faults = false;
                let bound = self.service.policy().map_or(Duration::ZERO, bound);
                end = self.now + millis(bound + SETTLE);
            }
            self.happen(next)?;
            self.check_traffic()?;
        }
        self.check_end()
    }

    fn at(&mut self, at: u64, next: Next) {
        self.serial += 1;
        self.next.insert((at, self.serial), next);
    }

    fn note(&mut self, line: impl FnOnce() -> String) {
        if self.keep_trace {
            let line = format!("{:>9} ms  {}", self.now - 1_000_000, line());
            self.stats.trace.push(line);
        }
    }

    fn happen(&mut self, next: Next) -> Result<(), Broken> {
        match next {
            Next::Engine(Happening::Becomes(id, truth)) => {
                if let Some(made) = self.engine.made.get_mut(&id) {
                    let forward = match made.truth {
                        Truth::Starting => true,
                        Truth::Alive => truth != Truth::Starting,
                        Truth::Dead => truth == Truth::Removed,
                        Truth::Removed => false,
                    };
                    if forward {
                        made.truth = truth;
                    }
                }
                Ok(())
            }
            Next::Engine(Happening::Seen(event)) => {
                let event = *event;
                if self.now < self.down_until {
                    let later = self.down_until;
                    self.at(later, Next::Engine(Happening::Seen(Box::new(event))));
                    return Ok(());
                }
                // Only what is known to run is probed.
                if let Event::Probed {
                    instance,
                    passes: true,
                    ..
                } = &event
                    && self
                        .service
                        .instance(instance)
                        .is_some_and(|i| i.phase == Phase::Starting)
                    && self.engine.is_alive(instance)
                {
                    let later = self.now + 100;
                    self.at(later, Next::Engine(Happening::Seen(Box::new(event))));
                    return Ok(());
                }
                let alive = |id| self.engine.is_alive(id);
                let stale = match &event {
                    Event::Started { instance, .. } | Event::Probed { instance, .. } => {
                        !alive(instance)
                    }
                    _ => false,
                };
                if stale || (!self.faults && matches!(event, Event::Probed { passes: false, .. })) {
                    return Ok(());
                }
                self.step(event)
            }
            Next::Apply {
                proxy,
                generation,
                active,
            } => {
                let away = self.proxies.all[proxy].unreachable_until;
                if self.now < away {
                    self.at(
                        away,
                        Next::Apply {
                            proxy,
                            generation,
                            active,
                        },
                    );
                    return Ok(());
                }
                let newest = self.service.route().map(|route| route.generation);
                if self.faults && Some(generation) == newest && self.proxies.random.percent(2) {
                    if self.now < self.down_until {
                        // Nobody hears it; the controller asks again when it is back.
                        return Ok(());
                    }
                    self.stats.routes_refused += 1;
                    return self.step(Event::RouteRefused {
                        generation,
                        reason: "the disk is full".to_owned(),
                    });
                }
                let deadline = self
                    .service
                    .policy()
                    .map_or(0, |policy| millis(policy.drain_deadline));
                let clock = self.clock().0;
                self.proxies
                    .apply(proxy, generation, active, self.now, clock, deadline);
                if self.proxies.confirmed(generation) {
                    let at = self.now + 1;
                    self.at(at, Next::Confirm(generation));
                }
                Ok(())
            }
            Next::Confirm(generation) => {
                if self.now < self.down_until {
                    // Said again when the controller asks again.
                    return Ok(());
                }
                self.step(Event::Confirmed { generation })?;
                self.watch_drains();
                Ok(())
            }
            Next::Idle(instance) => {
                if self.now >= self.down_until && self.proxies.is_idle(&instance, self.now) {
                    return self.step(Event::Drained { instance, cut: 0 });
                }
                Ok(())
            }
            Next::Operator => self.operate(),
            Next::ProxyLost(proxy) => {
                let lasts = self.operator.between(100, 30_000);
                self.proxies.all[proxy].unreachable_until = self.now + lasts;
                // It restarts from its saved table: what was in flight is gone.
                self.proxies.all[proxy].idle_at.clear();
                self.note(|| format!("proxy {proxy} is away for {lasts} ms"));
                Ok(())
            }
            Next::Jump => {
                self.jumped += self.operator.between(1_000, 7_200_000);
                self.note(|| "the clock jumps".to_owned());
                if self.now < self.down_until {
                    return Ok(());
                }
                self.step(Event::Timer)
            }
            Next::Reboot => {
                self.stats.reboots += 1;
                self.note(|| "reboot".to_owned());
                let clock = self.clock();
                let mut lost = Vec::new();
                for (id, made) in &mut self.engine.made {
                    if matches!(made.truth, Truth::Starting | Truth::Alive) {
                        made.truth = Truth::Dead;
                        lost.push(id.clone());
                    }
                }
                self.down_until = self.now + self.controller.between(50, 3_000);
                let at = self.down_until;
                for id in lost {
                    self.at(at, Next::Engine(exit(&id, ExitReason::Lost, clock)));
                }
                self.ask_again(at)
            }
            Next::FaultsEnd => {
                self.note(|| "faults cease".to_owned());
                Ok(())
            }
        }
    }

    /// The proxies say of every draining instance when it is idle.
    fn watch_drains(&mut self) {
        let draining: Vec<_> = self
            .service
            .instances()
            .filter(|i| matches!(i.routed, kiln_plan::Routed::Draining { .. }))
            .map(|i| i.id.clone())
            .collect();
        for id in draining {
            let idle = self
                .proxies
                .all
                .iter()
                .filter_map(|proxy| proxy.idle_at.get(&id));
            let at = idle.copied().max().unwrap_or(0).max(self.now) + 1;
            self.at(at, Next::Idle(id));
        }
    }

    fn policy(&mut self) -> Policy {
        let keep_warm = [0, 30, 900][self.operator.between(0, 2) as usize];
        let replicas = [1, 1, 2, 3, 0][self.operator.between(0, 4) as usize];
        let policy = Policy {
            replicas,
            strategy: Strategy::BlueGreen(BlueGreen {
                keep_warm: Duration::from_secs(keep_warm),
            }),
            ready: None,
            live: None,
            progress_deadline: Duration::from_secs(self.operator.between(10, 60)),
            soak: Duration::from_millis(self.operator.between(0, 3_000)),
            drain_deadline: Duration::from_secs(self.operator.between(0, 15)),
            stop_grace: Duration::from_secs(self.operator.between(1, 5)),
            listen: None,
            unknown: UnknownFields::default(),
        };
        self.least_drain = self.least_drain.min(millis(policy.drain_deadline));
        policy
    }

    fn deploy(&mut self) -> Event {
        let again = self.versions > 0 && self.operator.percent(15);
        let version = if again {
            self.operator.between(1, self.versions)
        } else {
            self.versions += 1;
            let quality = match self.operator.between(0, 9) {
                0..=5 => Quality::Good,
                6 => Quality::NeverReady,
                7 => Quality::ExitsAtOnce,
                8 => Quality::CannotStart,
                _ => Quality::DiesSoon,
            };
            self.qualities.push(quality);
            self.versions
        };
        let quality = self.qualities[usize::try_from(version - 1).unwrap_or(0)];
        let image = Digest::from_sha256([u8::try_from(version).unwrap_or(0); 32]);
        let release = Release {
            image,
            command: vec![quality.word().to_owned(), version.to_string()],
            env: BTreeMap::new(),
            user: String::new(),
            workdir: String::new(),
            stop_signal: String::new(),
            port: Some(3000),
            tmpfs: BTreeMap::new(),
            resources: Resources::default(),
            egress: true,
            unknown: UnknownFields::default(),
        };
        let policy = match self.service.policy() {
            Some(policy) if self.operator.percent(60) => policy.clone(),
            _ => self.policy(),
        };
        Event::Deploy {
            release: Box::new(release),
            origin: ImageOrigin {
                tag: format!("api:{version}"),
                digest: image,
                commit: None,
                dirty: false,
                baked_at: Timestamp(0),
            },
            policy,
        }
    }

    fn operate(&mut self) -> Result<(), Broken> {
        if self.now < self.down_until {
            let later = self.down_until;
            self.at(later, Next::Operator);
            return Ok(());
        }
        let event = match self.operator.between(0, 99) {
            0..=64 => self.deploy(),
            65..=84 => Event::Rollback { to: None },
            85..=96 if self.service.policy().is_some() => Event::SetPolicy {
                policy: self.policy(),
            },
            97..=99 => Event::Remove,
            _ => self.deploy(),
        };
        if self.service.accepts(&event).is_err() {
            self.stats.refused += 1;
            self.note(|| "the operator is refused".to_owned());
            return Ok(());
        }
        self.step(event)
    }

    /// One step of the controller: decide, journal, check, carry out, and perhaps be killed in the middle of it.
    fn step(&mut self, event: Event) -> Result<(), Broken> {
        self.stats.steps += 1;
        let clock = self.clock();
        let before = self.service.clone();
        self.service.handle_event(clock, event.clone());
        let actions: Vec<_> = std::iter::from_fn(|| self.service.poll_action()).collect();
        let notices: Vec<_> = std::iter::from_fn(|| self.service.poll_notice()).collect();
        self.note(|| format!("{event:?} -> {actions:?} {notices:?}"));
        let replicas = |service: &Service| service.policy().map_or(0, |policy| policy.replicas);
        for notice in &notices {
            match notice {
                Notice::RolloutBegan { .. } => {
                    self.stats.rollouts += 1;
                    self.rollout_replicas = replicas(&before);
                    self.rollout_began = clock;
                }
                Notice::RolloutEnded { end } if end.result == RolloutResult::Done => {
                    self.stats.done += 1
                }
                Notice::RolloutEnded { .. } => self.stats.turned_back += 1,
                _ => {}
            }
        }
        self.rollout_replicas = self.rollout_replicas.max(replicas(&self.service));
        if matches!(event, Event::Rollback { .. })
            && self.service.rollout().is_some_and(|rollout| rollout.warm)
        {
            self.stats.warm_rollbacks += 1;
        }
        self.check_step(&before, &event, &actions, &notices)?;
        let killed = self.faults && self.controller.percent(3);
        if !killed {
            for action in actions {
                self.carry_out(action)?;
            }
            return Ok(());
        }
        self.stats.restarts += 1;
        let effects = u64::try_from(actions.len()).unwrap_or(0);
        // Effect 0 is the journal itself: killed before it, nothing of the step was.
        let carried = self.controller.between(0, effects + 1);
        let entry = Entry {
            now: clock,
            event: event.clone(),
            actions: actions.clone(),
            service: if carried == 0 {
                before
            } else {
                self.service.clone()
            },
        };
        let bytes = serde_json::to_vec(&entry).map_err(|e| (7, format!("not written: {e}")))?;
        for action in actions
            .into_iter()
            .take(usize::try_from(carried.saturating_sub(1)).unwrap_or(0))
        {
            self.carry_out(action)?;
        }
        let mut read: Entry =
            serde_json::from_slice(&bytes).map_err(|e| (7, format!("not read: {e}")))?;
        read.service.set_mutation(self.mutation);
        if read.service != entry.service {
            return Err((7, "the journal's bytes give another state".to_owned()));
        }
        self.service = read.service;
        let away = if self.controller.percent(80) {
            20
        } else {
            5_000
        };
        self.down_until = self.now + self.controller.between(1, away);
        let at = self.down_until;
        self.note(|| {
            format!(
                "the controller is killed after effect {carried} and is back at {} ms",
                at - 1_000_000
            )
        });
        if carried == 0 && !event.is_decision() {
            // What was seen is still there to be seen.
            self.at(at, Next::Engine(Happening::Seen(Box::new(event))));
        }
        self.ask_again(at)
    }

    /// A restarted controller carries out again what has no outcome, and hears again of what drains.
    fn ask_again(&mut self, at: u64) -> Result<(), Broken> {
        let now = std::mem::replace(&mut self.now, at);
        for action in self.service.outstanding() {
            self.carry_out(action)?;
        }
        self.watch_drains();
        self.now = now;
        Ok(())
    }

    fn carry_out(&mut self, action: Action) -> Result<(), Broken> {
        let clock = self.clock();
        let later = match action {
            Action::Start {
                id,
                instance,
                release,
            } => {
                let quality = self
                    .service
                    .release(release)
                    .and_then(|record| record.release.command.first())
                    .map_or(Quality::Good, |word| Quality::of(word));
                self.engine
                    .start(&instance, id, quality, self.faults, clock)
                    .map_err(|first| {
                        (
                            7,
                            format!("{instance} is started twice, by {first} and by {id}"),
                        )
                    })?
            }
            Action::Stop {
                id,
                instance,
                grace,
            } => self.engine.stop(&instance, id, millis(grace), clock),
            Action::Remove { id: _, instance } => self.engine.remove(&instance),
            Action::Route {
                id: _,
                generation,
                sets,
                draining: _,
            } => {
                let active = sets
                    .into_iter()
                    .next()
                    .map(|set| (set.release, set.instances));
                let known: BTreeSet<_> = active.iter().flat_map(|(_, ids)| ids).collect();
                if known.iter().any(|id| !self.engine.made.contains_key(*id)) {
                    return Err((1, format!("{known:?} is routed to and was never started")));
                }
                for proxy in 0..self.proxies.all.len() {
                    let slow = if self.faults && self.proxies.random.percent(5) {
                        3_000
                    } else {
                        5
                    };
                    let at = self.now + self.proxies.random.between(1, slow);
                    self.at(
                        at,
                        Next::Apply {
                            proxy,
                            generation,
                            active: active.clone(),
                        },
                    );
                }
                Vec::new()
            }
        };
        for (after, happening) in later {
            let at = self.now + after;
            self.at(at, Next::Engine(happening));
        }
        Ok(())
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
