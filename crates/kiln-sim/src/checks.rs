//! What always holds, by the numbers of the design: what the state itself shows ([`kiln_plan::Step`]), and what only the world's
//! truth does, whatever the planner believes.

use kiln_model::api::RolloutResult;
use kiln_model::{ReleaseNumber, Timestamp};
use kiln_plan::{Action, Event, Instance, Notice, Phase, Routed, Service, Step};

use crate::engine::Quality;
use crate::world::World;

/// The invariant and what is wrong.
pub(crate) type Broken = (u8, String);

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

impl World {
    /// After each step, before its actions are carried out.
    pub(crate) fn check_step(
        &self,
        before: &Service,
        event: &Event,
        actions: &[Action],
        notices: &[Notice],
    ) -> Result<(), Broken> {
        let service = &self.service;
        let step = Step {
            before,
            after: service,
            now: self.clock(),
            event,
            actions,
            notices,
        };
        step.check()
            .map_err(|violation| (violation.invariant, violation.what))?;
        for action in actions {
            self.check_action(before, action)?;
        }
        for notice in notices {
            if let Notice::RolloutEnded { end } = notice
                && end.result == RolloutResult::RolledBack
            {
                for proxy in &self.proxies.all {
                    let at = proxy.active.as_ref().map(|(release, _)| *release);
                    holds(4, at == end.from, || {
                        format!("rolled back to {:?}, and a proxy serves {at:?}", end.from)
                    })?;
                }
            }
        }
        Ok(())
    }

    /// After every event: where requests go at this very moment, however late a proxy is with its tables.
    pub(crate) fn check_traffic(&self) -> Result<(), Broken> {
        let service = &self.service;
        let rollout = service
            .rollout()
            .map(|rollout| [rollout.from, Some(rollout.to)]);
        let last = service.last_rollout().map(|end| [end.from, Some(end.to)]);
        let allowed: Vec<_> = [rollout, last, Some([service.current(), None])]
            .into_iter()
            .flatten()
            .flatten()
            .flatten()
            .collect();
        for proxy in &self.proxies.all {
            let Some((release, ids)) = &proxy.active else {
                continue;
            };
            holds(1, allowed.contains(release), || {
                format!("a proxy sends requests to release {release}, which no plan allows")
            })?;
            for id in ids {
                let stopping = service
                    .instance(id)
                    .is_some_and(|instance| instance.phase == Phase::Stopping);
                holds(3, !stopping, || {
                    format!("a proxy sends requests to {id}, which was told to stop")
                })?;
            }
        }
        Ok(())
    }

    fn check_action(&self, before: &Service, action: &Action) -> Result<(), Broken> {
        let service = &self.service;
        match action {
            Action::Route { .. } | Action::Remove { .. } => Ok(()),
            Action::Start { release, .. } => {
                // The old set, the new one and the warm one. What leaves the routes ends by its own deadline; a slow start of
                // before the rollout can't be stopped until it is over, and may not be needed any more.
                let passing = |i: &Instance| {
                    leaves(i.routed)
                        || i.phase == Phase::Starting
                            && i.asked_at <= self.rollout_began
                            && i.release != *release
                };
                let most = 3 * self.rollout_replicas as usize;
                let all = service
                    .instances()
                    .filter(|i| i.is_alive() && !i.doomed && !passing(i))
                    .count();
                holds(2, all <= most, || {
                    format!("{all} instances run, {most} are allowed: old, new and warm")
                })
            }
            Action::Stop { instance, .. } => {
                let idle = self.proxies.is_idle(instance, self.now);
                let deadline = before.policy().map_or(0, |policy| {
                    u64::try_from(policy.drain_deadline.as_millis()).unwrap_or(u64::MAX)
                });
                let routed = self.proxies.routes_to(instance);
                let cut = self
                    .proxies
                    .left_at
                    .get(instance)
                    .is_some_and(|at| self.clock().0 >= at + deadline.min(self.least_drain));
                holds(3, !routed && (idle || cut), || {
                    format!(
                        "{instance} is stopped: routed to: {routed}, idle: {idle}, deadline passed: {cut}"
                    )
                })?;
                let Some(stopped) = before.instance(instance) else {
                    return Ok(());
                };
                let needed = service.rollout().and_then(|rollout| rollout.from)
                    == Some(stopped.release)
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
        }
    }

    /// When faults have ceased and the bound has passed.
    pub(crate) fn check_end(&self) -> Result<(), Broken> {
        let service = &self.service;
        let returning = service
            .rollout()
            .is_some_and(kiln_plan::Rollout::is_going_back);
        holds(4, !returning, || {
            format!(
                "a failed rollout did not give the traffic back: {:?}",
                service.waits_on()
            )
        })?;
        holds(6, service.rollout().is_none(), || {
            format!("the rollout did not end: {:?}", service.waits_on())
        })?;
        holds(6, !service.is_removing(), || {
            "the service was not removed in time".to_owned()
        })?;
        let replicas = service.policy().map_or(0, |policy| policy.replicas) as usize;
        let current = service.current();
        // A release that never was ready can be current: it was deployed with no replicas, or as the one to go back to.
        let able = |release: ReleaseNumber| {
            let word = service
                .release(release)
                .and_then(|record| record.release.command.first());
            word.is_some_and(|word| matches!(Quality::of(word), Quality::Good | Quality::DiesSoon))
        };
        if let Some(current) = current.filter(|release| able(*release)) {
            let ready = ready(service, current);
            holds(6, ready == replicas, || {
                format!(
                    "{ready} of {replicas} instances of the current release {current} are ready"
                )
            })?;
        }
        let warm = service.warm().map(|warm| warm.release);
        if let Some(warm) = warm.filter(|release| able(*release)) {
            let ready = ready(service, warm);
            holds(5, ready == replicas, || {
                format!("{ready} of {replicas} instances of the warm release {warm} are ready")
            })?;
        }
        for (id, made) in &self.engine.made {
            let known = service.instance(id);
            let wanted =
                known.is_some_and(|i| Some(i.release) == current || Some(i.release) == warm);
            let alive = self.engine.is_alive(id);
            holds(7, !alive || wanted, || {
                format!("{id} leaked: {:?}", made.truth)
            })?;
        }
        // What can't run is tried again for ever, with back-off.
        let trying = current
            .into_iter()
            .chain(warm)
            .any(|release| !able(release));
        if trying {
            return Ok(());
        }
        for instance in service.instances() {
            holds(7, self.engine.is_alive(&instance.id), || {
                format!("{} is in the state and not in the world", instance.id)
            })?;
        }
        let outstanding = service.outstanding();
        holds(7, outstanding.is_empty(), || {
            format!("never carried out: {outstanding:?}")
        })?;
        for proxy in &self.proxies.all {
            let at = proxy
                .active
                .as_ref()
                .map(|(release, ids)| (*release, ids.len()));
            holds(4, at == current.map(|current| (current, replicas)), || {
                format!("a proxy serves {at:?}, the current release is {current:?}")
            })?;
        }
        Ok(())
    }

    /// The controller's clock: it may have jumped ahead of the world's.
    pub(crate) fn clock(&self) -> Timestamp {
        Timestamp(self.now + self.jumped)
    }
}
