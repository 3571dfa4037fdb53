//! What always holds, by the numbers of the design: what the state itself shows ([`kiln_plan::Step`]), and what only the world's
//! truth does, whatever the controller believes.

use std::collections::BTreeSet;

use kiln_control::{CallId, Draft, Record, Told};
use kiln_model::api::RolloutResult;
use kiln_model::{Command, InstanceId, ReleaseNumber, ServiceKey};
use kiln_plan::{Event, Instance, Notice, Phase, Rollout, Routed, Service, Step};

use crate::engine::Quality;
use crate::proxies::Proxy;
use crate::world::World;

/// The invariant and what is wrong.
pub(crate) type Broken = (u8, String);

/// How long an outcome waits for proxies to count, at most.
const SETTLE: u64 = 200;

fn holds(invariant: u8, holds: bool, what: impl FnOnce() -> String) -> Result<(), Broken> {
    if holds {
        Ok(())
    } else {
        Err((invariant, what()))
    }
}

fn ready(service: &Service, release: ReleaseNumber) -> usize {
    service
        .instances()
        .filter(|instance| instance.release == release && instance.is_ready() && !instance.doomed)
        .count()
}

fn leaves(routed: Routed) -> bool {
    matches!(routed, Routed::Leaving { .. } | Routed::Draining { .. })
}

fn released(proxy: &Proxy, key: &ServiceKey) -> Vec<ReleaseNumber> {
    let sets = proxy.route(key).into_iter().flat_map(|route| &route.sets);
    sets.map(|set| set.release).collect()
}

impl World {
    /// Before a step is journalled.
    pub(crate) fn check_draft(&self, draft: &Draft) -> Result<(), Broken> {
        let Record::Step {
            service: key,
            event,
            actions,
            notices,
            state,
        } = &draft.record
        else {
            return Ok(());
        };
        let Some(before) = self.core.service(key) else {
            return Err((7, format!("{key} has a step and is not there")));
        };
        let step = Step {
            before,
            after: state,
            now: draft.at,
            event,
            actions,
            notices,
        };
        step.check()
            .map_err(|violation| (violation.invariant, format!("{key}: {}", violation.what)))?;
        if let Event::RouteRefused { .. } = **event {
            holds(4, self.was_refused(key), || {
                format!("{key} is told that its route is refused, and it never was")
            })?;
        }
        for notice in notices {
            if let Notice::RolloutEnded { end } = notice
                && end.result == RolloutResult::RolledBack
            {
                for proxy in self.proxies.living() {
                    let at = released(proxy, key);
                    let back = at == end.from.as_slice() || proxy.route(key).is_none();
                    holds(4, back, || {
                        format!(
                            "{key}: rolled back to {:?}, and a proxy serves {at:?}",
                            end.from
                        )
                    })?;
                }
            }
        }
        Ok(())
    }

    /// After every event: where requests go at this very moment, however late a proxy is with its tables.
    pub(crate) fn check_traffic(&self) -> Result<(), Broken> {
        for proxy in self.proxies.living() {
            for route in &proxy.table.routes {
                let Some(service) = self.core.service(&route.service) else {
                    continue;
                };
                for set in &route.sets {
                    let allowed = allowed(service, set.release);
                    holds(1, allowed, || {
                        let (key, release) = (&route.service, set.release);
                        format!(
                            "a proxy sends requests to release {release} of {key}, which no plan allows"
                        )
                    })?;
                    for backend in &set.backends {
                        let id = &backend.instance;
                        let stopping = service
                            .instance(id)
                            .is_some_and(|instance| instance.phase == Phase::Stopping);
                        holds(3, !stopping, || {
                            format!("a proxy sends requests to {id}, which was told to stop")
                        })?;
                    }
                }
            }
        }
        Ok(())
    }

    pub(crate) fn check_command(&self, command: &Command) -> Result<(), Broken> {
        match command {
            Command::Start {
                service, number, ..
            } => self.check_start(service, *number),
            Command::Stop { instance, .. } => self.check_stop(instance),
            Command::Remove { .. } | Command::Scale { .. } | Command::Sync => Ok(()),
        }
    }

    fn check_start(&self, key: &ServiceKey, release: ReleaseNumber) -> Result<(), Broken> {
        let Some(service) = self.core.service(key) else {
            return Err((
                7,
                format!("an instance of {key} is started, which is not there"),
            ));
        };
        let (replicas, began) = self.sizes.get(key).copied().unwrap_or_default();
        // The old set, the new one and the warm one. What leaves the routes ends by its own deadline; a slow start of before
        // the rollout can't be stopped until it is over, and may not be needed any more.
        let passing = |i: &Instance| {
            leaves(i.routed)
                || i.phase == Phase::Starting && i.asked_at <= began && i.release != release
        };
        let most = 3 * replicas as usize;
        let all = service
            .instances()
            .filter(|i| i.is_alive() && !i.doomed && !passing(i))
            .count();
        holds(2, all <= most, || {
            format!("{all} instances of {key} run, {most} are allowed: old, new and warm")
        })
    }

    fn check_stop(&self, instance: &InstanceId) -> Result<(), Broken> {
        let found = self.core.services().find_map(|(key, service)| {
            let stopped = service.instance(instance)?;
            Some((key, service, stopped))
        });
        let Some((key, service, stopped)) = found else {
            return Err((7, format!("{instance} is stopped and of no service")));
        };
        let least = self.least_drain.get(key).copied().unwrap_or(0);
        let idle = self.proxies.is_idle(instance, self.now);
        let routed = self.proxies.routes_to(instance);
        let cut = self
            .proxies
            .left_at
            .get(instance)
            .is_some_and(|at| self.clock().0 >= at + least);
        holds(3, !routed && (idle || cut), || {
            format!(
                "{instance} is stopped: routed to: {routed}, idle: {idle}, deadline passed: {cut}"
            )
        })?;
        let needed = service.rollout().and_then(|rollout| rollout.from) == Some(stopped.release)
            && !service.is_removing()
            && !stopped.doomed;
        let replicas = service.replicas_of(stopped.release) as usize;
        let left = service
            .instances()
            .filter(|i| i.release == stopped.release && i.is_alive() && !i.doomed)
            .count();
        holds(2, !needed || left >= replicas, || {
            format!("{instance} is stopped while traffic may have to go back to its set")
        })
    }

    pub(crate) fn check_told(
        &mut self,
        call: CallId,
        key: &ServiceKey,
        told: &Told,
    ) -> Result<(), Broken> {
        let now = self.now;
        match told {
            Told::Noticed { .. } => Ok(()),
            Told::Ended => {
                self.callers.ended(call, key, now);
                Ok(())
            }
            Told::Outcome(end) => {
                let living: Vec<_> = self.proxies.living().map(|proxy| proxy.id).collect();
                if let Some((ended, answered)) = self.callers.outcome(call, key, &living) {
                    holds(10, answered <= now || now >= ended + SETTLE, || {
                        format!("the outcome of {key} is told before the proxies have counted")
                    })?;
                }
                if end.result != RolloutResult::Done {
                    return Ok(());
                }
                self.check_listens(key)
            }
        }
    }

    /// What is said to be done is so: every proxy lets clients in where the policy says.
    fn check_listens(&self, key: &ServiceKey) -> Result<(), Broken> {
        let Some(service) = self.core.service(key).filter(|s| !s.is_gone()) else {
            return Ok(());
        };
        let Some(listen) = service.policy().and_then(|policy| policy.listen) else {
            return Ok(());
        };
        if service.rollout().is_some() || service.change().is_some() || service.current().is_none()
        {
            return Ok(());
        }
        let table = self.core.compose().generation;
        let proxies = self.proxies.living();
        for proxy in proxies.filter(|proxy| proxy.table.generation == table) {
            let at = proxy.route(key).and_then(|route| route.listen);
            holds(
                1,
                at == Some(listen) && self.sockets.contains(&listen),
                || format!("{key} is done and listens at {at:?} instead of {listen}"),
            )?;
        }
        Ok(())
    }

    /// When faults have ceased and the bound has passed.
    pub(crate) fn check_end(&self) -> Result<(), Broken> {
        holds(6, self.core.backlog() == 0, || {
            format!("{} inputs still wait for the journal", self.core.backlog())
        })?;
        for (key, service) in self.core.services() {
            self.check_service(key, service)?;
        }
        for (id, made) in &self.engine.made {
            let service = self
                .core
                .services()
                .find(|(_, service)| service.instance(id).is_some());
            let wanted = service.is_some_and(|(_, service)| {
                let release = service.instance(id).map(|instance| instance.release);
                let warm = service.warm().map(|warm| warm.release);
                release == service.current() || release == warm
            });
            holds(7, !self.engine.is_alive(id) || wanted, || {
                format!("{id} leaked: {:?}", made.truth)
            })?;
        }
        let mut listens: BTreeSet<_> = BTreeSet::new();
        for (_, service) in self.core.services() {
            listens.extend(service.listens());
        }
        holds(7, self.sockets == listens, || {
            format!(
                "sockets listen on {:?}, services on {listens:?}",
                self.sockets
            )
        })?;
        let unfinished: Vec<_> = self.callers.unfinished().collect();
        holds(6, unfinished.is_empty(), || {
            format!("{unfinished:?} still wait for an end")
        })?;
        let problems: Vec<_> = self.core.problems().map(|(_, text)| text).collect();
        holds(6, problems.is_empty(), || {
            format!("problems that are over are told: {problems:?}")
        })
    }

    fn check_service(&self, key: &ServiceKey, service: &Service) -> Result<(), Broken> {
        let waits = || format!("{key}: {:?}", service.waits_on());
        let returning = service.rollout().is_some_and(Rollout::is_going_back);
        holds(4, !returning, || {
            format!(
                "a failed rollout did not give the traffic back: {}",
                waits()
            )
        })?;
        holds(6, service.rollout().is_none(), || {
            format!("the rollout did not end: {}", waits())
        })?;
        holds(6, service.change().is_none(), || {
            format!("the change of the policy did not end: {}", waits())
        })?;
        holds(6, !service.is_removing(), || {
            format!("not removed in time: {}", waits())
        })?;
        if service.is_gone() {
            return Ok(());
        }
        let replicas = service.policy().map_or(0, |policy| policy.replicas) as usize;
        let current = service.current();
        // A release that never was ready can be current: it was deployed with no replicas, or as the one to go back to.
        let able = |release: ReleaseNumber| {
            let record = service.release(release);
            let word = record.and_then(|record| record.release.command.first());
            let wrong = record
                .and_then(|record| record.probes.clone())
                .and_then(|probes| probes.ready)
                .is_some_and(|probe| probe.path == crate::prober::WRONG)
                && record.is_some_and(|record| record.release.port.is_some());
            let worker = record.is_some_and(|record| record.release.port.is_none());
            let quality = word.map(|word| Quality::of(word));
            quality.is_some_and(|quality| {
                quality.is_able() || worker && quality == Quality::NeverReady
            }) && !wrong
        };
        if let Some(current) = current.filter(|release| able(*release)) {
            let ready = ready(service, current);
            holds(6, ready == replicas, || {
                format!(
                    "{key}: {ready} of {replicas} instances of the current release {current} are ready"
                )
            })?;
        }
        let warm = service.warm().map(|warm| warm.release);
        if let Some(warm) = warm.filter(|release| able(*release)) {
            let ready = ready(service, warm);
            holds(5, ready == replicas, || {
                format!(
                    "{key}: {ready} of {replicas} instances of the warm release {warm} are ready"
                )
            })?;
        }
        // What can't run is tried again for ever, with back-off.
        if current
            .into_iter()
            .chain(warm)
            .any(|release| !able(release))
        {
            return Ok(());
        }
        for instance in service.instances() {
            holds(7, self.engine.is_alive(&instance.id), || {
                format!("{} is in the state and not in the world", instance.id)
            })?;
        }
        let outstanding = service.outstanding();
        holds(7, outstanding.is_empty(), || {
            format!("{key}: never carried out: {outstanding:?}")
        })?;
        let port = current.and_then(|current| service.release(current)?.release.port);
        for proxy in self.proxies.living().filter(|_| port.is_some()) {
            let sets = proxy.route(key).map(|route| route.sets.as_slice());
            let at = sets.and_then(|sets| match sets {
                [set] => Some((set.release, set.backends.len())),
                _ => None,
            });
            holds(4, at == current.map(|current| (current, replicas)), || {
                format!("{key}: a proxy serves {at:?}, the current release is {current:?}")
            })?;
        }
        Ok(())
    }
}

/// A plan allows the release traffic now, or did so last.
fn allowed(service: &Service, release: ReleaseNumber) -> bool {
    let rollout = service
        .rollout()
        .map(|rollout| [rollout.from, Some(rollout.to)]);
    let last = service.last_rollout().map(|end| [end.from, Some(end.to)]);
    let all = [rollout, last, Some([service.current(), None])];
    let mut all = all.into_iter().flatten().flatten().flatten();
    // What was removed may be served by a proxy that is late.
    service.is_gone() || service.is_removing() || all.any(|allowed| allowed == release)
}
