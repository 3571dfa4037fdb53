//! From what is to what should be: the second half of each step. Everything here is derived from the state, so that the
//! same state always leads to the same actions, whatever event brought it about.

use std::collections::BTreeSet;
use std::time::Duration;

use kiln_model::api::RolloutResult;
use kiln_model::{Generation, InstanceId, ReleaseNumber, Timestamp};

use crate::event::{Action, Notice};
use crate::instance::{Phase, Routed};
use crate::mutation::Mutation;
use crate::rollout::RolloutPhase;
use crate::service::{RouteWanted, Service, Warm};

/// How long after the drain deadline a proxy may take to say that it has cut what was left.
pub(crate) const DRAIN_MARGIN: Duration = Duration::from_secs(2);

/// A step settles after a few rounds; more would be a loop in the rules.
const ROUNDS: usize = 8;

impl Service {
    pub(crate) fn reconcile(&mut self, now: Timestamp) {
        if self.gone {
            return;
        }
        for _ in 0..ROUNDS {
            let changed = self.advance_rollout(now);
            self.retire_warm(now);
            self.end_drains(now);
            self.scale_up(now);
            self.reroute(now);
            self.stop_unwanted();
            if !changed {
                break;
            }
        }
        self.finish_removal();
    }

    /// The release that should have the traffic.
    pub(crate) fn serving(&self) -> Option<ReleaseNumber> {
        if self.removing {
            return None;
        }
        match &self.rollout {
            None => self.current,
            Some(rollout) => match rollout.phase {
                RolloutPhase::Returning { .. } if self.mutated(Mutation::NeverReturn) => {
                    Some(rollout.to)
                }
                RolloutPhase::Starting { .. } | RolloutPhase::Returning { .. } => rollout.from,
                RolloutPhase::Switching | RolloutPhase::Watching { .. } => Some(rollout.to),
            },
        }
    }

    /// How many instances of `release` should run.
    pub(crate) fn wanted(&self, release: ReleaseNumber) -> u32 {
        let Some(policy) = &self.policy else { return 0 };
        let warm = self
            .warm
            .as_ref()
            .is_some_and(|warm| warm.release == release);
        let rolling = match &self.rollout {
            Some(rollout) if rollout.to == release => {
                !matches!(rollout.phase, RolloutPhase::Returning { .. })
            }
            Some(rollout) => {
                rollout.from == Some(release)
                    && !(matches!(
                        rollout.phase,
                        RolloutPhase::Switching | RolloutPhase::Watching { .. }
                    ) && self.mutated(Mutation::StopOldAtSwitch))
            }
            None => self.current == Some(release),
        };
        let kept = self.mutated(Mutation::KeepEverySet) && self.previous.contains(&release);
        if !self.removing && (warm || rolling || kept) {
            policy.replicas
        } else {
            0
        }
    }

    /// True when the rollout entered another phase or ended.
    fn advance_rollout(&mut self, now: Timestamp) -> bool {
        let Some(rollout) = self.rollout.clone() else {
            return false;
        };
        let Some(policy) = self.policy.clone() else {
            return false;
        };
        match rollout.phase.clone() {
            RolloutPhase::Starting { deadline } => {
                if self.mutated(Mutation::WaitForOldSet)
                    && rollout
                        .from
                        .is_some_and(|from| self.ready(from) < policy.replicas as usize)
                {
                    return false;
                }
                if self.mutated(Mutation::SwitchBeforeReady)
                    && self.probed().any(|instance| instance.release == rollout.to)
                {
                    self.set_phase(now, RolloutPhase::Switching);
                    return true;
                }
                let soak = if rollout.warm {
                    Duration::ZERO
                } else {
                    policy.soak
                };
                if self.is_soaked(rollout.to, now, soak) {
                    self.set_phase(now, RolloutPhase::Switching);
                    return true;
                }
                if now >= deadline && !self.mutated(Mutation::NoDeadline) {
                    let reason = format!(
                        "release {} was not ready within {} s: {}",
                        rollout.to,
                        policy.progress_deadline.as_secs_f32(),
                        self.unready_story(rollout.to)
                    );
                    self.turn_back(now, reason, true);
                    return true;
                }
                false
            }
            RolloutPhase::Switching => {
                let switched = self.route.as_ref().is_some_and(|route| {
                    route.confirmed
                        && route
                            .active
                            .as_ref()
                            .is_some_and(|(number, _)| *number == rollout.to)
                });
                if !switched {
                    return false;
                }
                let instances = self
                    .route
                    .as_ref()
                    .and_then(|route| u32::try_from(route.active.as_ref()?.1.len()).ok());
                self.notices.push_back(Notice::Switched {
                    to: rollout.to,
                    instances: instances.unwrap_or(u32::MAX),
                });
                let watch = if rollout.warm {
                    Duration::ZERO
                } else {
                    policy.soak
                };
                self.set_phase(
                    now,
                    RolloutPhase::Watching {
                        until: now.plus(watch),
                    },
                );
                true
            }
            RolloutPhase::Watching { until } => {
                // Those that were never routed were asked for after the switch (the service is being scaled up) and say
                // nothing about the release.
                let failing = self.instances.values().any(|instance| {
                    instance.release == rollout.to
                        && instance.phase == Phase::Running
                        && instance.routed != Routed::Never
                        && (!instance.ready || instance.doomed)
                });
                if rollout.from.is_some() && failing {
                    let reason = format!(
                        "release {} stopped being ready after the switch: {}",
                        rollout.to,
                        self.unready_story(rollout.to)
                    );
                    self.turn_back(now, reason, true);
                    return true;
                }
                let watched = rollout.since.plus(policy.soak);
                if now < until.min(watched) {
                    return false;
                }
                if self.ready(rollout.to) < policy.replicas as usize {
                    // After a reboot or while it is scaled up: it has as long as any new set to be complete.
                    let last = rollout
                        .since
                        .plus(policy.soak)
                        .plus(policy.progress_deadline);
                    if now < last {
                        if until < last {
                            self.extend_watch(last);
                        }
                        return false;
                    }
                    if rollout.from.is_some() {
                        let reason = format!(
                            "release {} was not complete again in time: {}",
                            rollout.to,
                            self.unready_story(rollout.to)
                        );
                        self.turn_back(now, reason, true);
                        return true;
                    }
                }
                self.done(now);
                true
            }
            RolloutPhase::Returning { reason, failed } => {
                let back = match &self.route {
                    None => true,
                    Some(route) => {
                        route.confirmed
                            && route.active.as_ref().map(|(number, _)| *number) == rollout.from
                    }
                };
                let left = self.instances.values().any(|instance| {
                    instance.release == rollout.to && instance.phase != Phase::Ended
                });
                if !back || left {
                    return false;
                }
                self.rollout = None;
                let result = match (rollout.from, failed) {
                    (Some(_), _) => RolloutResult::RolledBack,
                    (None, _) => RolloutResult::Failed,
                };
                if rollout.from.is_none() {
                    self.current = None;
                }
                self.end_rollout(rollout, result, Some(reason));
                true
            }
        }
    }

    fn extend_watch(&mut self, last: Timestamp) {
        if let Some(rollout) = &mut self.rollout {
            rollout.phase = RolloutPhase::Watching { until: last };
        }
    }

    fn set_phase(&mut self, now: Timestamp, phase: RolloutPhase) {
        if let Some(rollout) = &mut self.rollout {
            rollout.phase = phase;
            rollout.since = now;
        }
        self.enter_phase();
    }

    /// All traffic is with the new set, and it held.
    fn done(&mut self, now: Timestamp) {
        let Some(rollout) = self.rollout.take() else {
            return;
        };
        if let Some(from) = rollout.from {
            self.previous
                .retain(|number| *number != from && *number != rollout.to);
            self.previous.push(from);
            if let Some(warm) = self.warm.take() {
                self.notices.push_back(Notice::WarmRetired {
                    release: warm.release,
                });
            }
            let keep = self.keep_warm();
            if !keep.is_zero() {
                let until = now.plus(keep);
                self.warm = Some(Warm {
                    release: from,
                    until,
                });
                self.notices.push_back(Notice::WarmUntil {
                    release: from,
                    until,
                });
            }
        }
        self.current = Some(rollout.to);
        self.forget_old_releases();
        self.end_rollout(rollout, RolloutResult::Done, None);
    }

    fn ready(&self, release: ReleaseNumber) -> usize {
        self.instances
            .values()
            .filter(|instance| {
                instance.release == release && instance.is_ready() && !instance.doomed
            })
            .count()
    }

    /// As many as wanted have been ready for `soak` without a break.
    fn is_soaked(&self, release: ReleaseNumber, now: Timestamp, soak: Duration) -> bool {
        let Some(policy) = &self.policy else {
            return false;
        };
        let soaked = self.instances.values().filter(|instance| {
            instance.release == release
                && instance.is_ready()
                && !instance.doomed
                && instance
                    .ready_since
                    .is_some_and(|since| now.since(since) >= soak)
        });
        soaked.count() >= policy.replicas as usize
    }

    fn unready_story(&self, release: ReleaseNumber) -> String {
        let of_set = || {
            self.instances
                .values()
                .filter(|instance| instance.release == release)
        };
        let starting = of_set()
            .filter(|instance| instance.phase == Phase::Starting)
            .count();
        let unready = of_set()
            .filter(|instance| instance.phase == Phase::Running && !instance.ready)
            .count();
        let probe = self
            .policy
            .as_ref()
            .and_then(|policy| policy.ready.as_ref());
        let asked = probe.map_or_else(
            || "the port did not accept a connection".to_owned(),
            |probe| {
                format!(
                    "`GET {}` did not answer 2xx within {} ms",
                    probe.path,
                    probe.timeout.as_millis()
                )
            },
        );
        match (starting, unready) {
            (0, 0) if self.ready(release) > 0 => {
                "its instances were ready, but not yet for as long as `soak` asks".to_owned()
            }
            (0, 0) => "its instances had ended".to_owned(),
            (starting, 0) => format!("{starting} of its instances were still being started"),
            (_, unready) => format!("{unready} of its instances ran, but {asked}"),
        }
    }

    fn retire_warm(&mut self, now: Timestamp) {
        if let Some(warm) = &self.warm
            && now >= warm.until
        {
            self.notices.push_back(Notice::WarmRetired {
                release: warm.release,
            });
            self.warm = None;
        }
    }

    fn end_drains(&mut self, now: Timestamp) {
        for instance in self.instances.values_mut() {
            match instance.routed {
                Routed::Draining { deadline, .. } if now >= deadline => {
                    instance.routed = Routed::Drained;
                }
                Routed::Leaving { .. } | Routed::Draining { .. }
                    if instance.phase == Phase::Ended =>
                {
                    instance.routed = Routed::Drained;
                }
                Routed::Never
                | Routed::Active
                | Routed::Leaving { .. }
                | Routed::Draining { .. }
                | Routed::Drained => {}
            }
        }
    }

    fn releases_in_use(&self) -> BTreeSet<ReleaseNumber> {
        let mut numbers: BTreeSet<_> = self
            .instances
            .values()
            .map(|instance| instance.release)
            .collect();
        numbers.extend(self.current);
        numbers.extend(self.warm.as_ref().map(|warm| warm.release));
        if let Some(rollout) = &self.rollout {
            numbers.insert(rollout.to);
            numbers.extend(rollout.from);
        }
        numbers
    }

    fn scale_up(&mut self, now: Timestamp) {
        for release in self.releases_in_use() {
            let counted = self
                .instances
                .values()
                .filter(|instance| instance.release == release && instance.counts())
                .count();
            let wanted = self.wanted(release) as usize;
            let held = self
                .back_off
                .get(&release)
                .is_some_and(|back_off| now < back_off.next);
            let forgotten = self.mutated(Mutation::ForgetWarm)
                && self
                    .warm
                    .as_ref()
                    .is_some_and(|warm| warm.release == release);
            if held || forgotten {
                continue;
            }
            for _ in counted..wanted {
                self.start_instance(now, release);
            }
        }
    }

    /// The instances of a set that stay: as many as wanted, the readiest and oldest first, and one that has to be replaced
    /// for as long as it is needed.
    fn kept(&self, release: ReleaseNumber) -> BTreeSet<InstanceId> {
        let wanted = self.wanted(release) as usize;
        let mut candidates: Vec<_> = self
            .instances
            .values()
            .filter(|instance| instance.release == release && instance.is_alive())
            .collect();
        // A ready one that is doomed is better than one that is not ready, until that is.
        candidates.sort_by_key(|instance| {
            let rank = match (instance.is_ready(), instance.doomed) {
                (true, false) => 0,
                (true, true) => 1,
                (false, false) => 2,
                (false, true) => 3,
            };
            (rank, instance.asked_at, instance.id.clone())
        });
        let mut kept = BTreeSet::new();
        let mut sound = 0;
        for instance in &candidates {
            if instance.doomed {
                continue;
            }
            if sound < wanted {
                sound += 1;
                kept.insert(instance.id.clone());
            }
        }
        let ready = candidates
            .iter()
            .filter(|i| i.is_ready() && !i.doomed)
            .count()
            .min(wanted);
        let doomed = candidates.iter().filter(|i| i.is_ready() && i.doomed);
        for instance in doomed.take(wanted - ready) {
            kept.insert(instance.id.clone());
        }
        kept
    }

    fn reroute(&mut self, now: Timestamp) {
        let active = self
            .serving()
            .map(|release| (release, self.backends(release)));
        let same = match &self.route {
            None => active.is_none(),
            Some(route) => route.active == active,
        };
        let again = self
            .route_refused
            .as_ref()
            .and_then(|refused| refused.again)
            .is_some_and(|again| now >= again);
        if same && !again {
            return;
        }
        if let Some(refused) = &mut self.route_refused {
            refused.again = None;
        }
        let generation = self
            .route
            .as_ref()
            .map_or(Generation(1), |route| route.generation.next());
        let chosen: BTreeSet<_> = active
            .iter()
            .flat_map(|(_, instances)| instances.iter().cloned())
            .collect();
        for instance in self.instances.values_mut() {
            if chosen.contains(&instance.id) {
                instance.routed = Routed::Active;
            } else if instance.routed == Routed::Active {
                instance.routed = if instance.phase == Phase::Ended {
                    Routed::Drained
                } else {
                    Routed::Leaving { generation }
                };
            }
        }
        let draining: Vec<_> = self
            .instances
            .values()
            .filter(|instance| instance.is_draining())
            .map(|instance| instance.id.clone())
            .collect();
        self.outstanding
            .retain(|_, action| !matches!(action, Action::Route { .. }));
        self.route = Some(RouteWanted {
            generation,
            active: active.clone(),
            draining: draining.clone(),
            confirmed: false,
        });
        let id = self.next_action();
        self.issue(Action::Route {
            id,
            generation,
            active,
            draining,
        });
    }

    /// The instances of `release` that get traffic: the ready ones that stay. When none is ready, those that had it go
    /// on (fail open): the proxy picks the least bad.
    fn backends(&self, release: ReleaseNumber) -> Vec<InstanceId> {
        let kept = self.kept(release);
        let ready: Vec<_> = self
            .instances
            .values()
            .filter(|instance| instance.is_ready() && kept.contains(&instance.id))
            .map(|instance| instance.id.clone())
            .collect();
        if !ready.is_empty() {
            return ready;
        }
        self.instances
            .values()
            .filter(|instance| {
                instance.release == release
                    && instance.phase == Phase::Running
                    && instance.routed == Routed::Active
                    && (kept.contains(&instance.id) || instance.doomed && self.wanted(release) > 0)
            })
            .map(|instance| instance.id.clone())
            .collect()
    }

    fn stop_unwanted(&mut self) {
        let Some(policy) = &self.policy else { return };
        let grace = policy.stop_grace;
        let kept: BTreeSet<_> = self
            .releases_in_use()
            .into_iter()
            .flat_map(|release| self.kept(release))
            .collect();
        let unwanted: Vec<_> = self
            .instances
            .values()
            .filter(|instance| {
                instance.phase == Phase::Running
                    && !kept.contains(&instance.id)
                    && (matches!(instance.routed, Routed::Never | Routed::Drained)
                        || self.mutated(Mutation::StopBeforeDrained)
                            && matches!(instance.routed, Routed::Draining { .. }))
            })
            .map(|instance| instance.id.clone())
            .collect();
        for id in unwanted {
            if let Some(instance) = self.instances.get_mut(&id) {
                instance.phase = Phase::Stopping;
                instance.ready = false;
                instance.ready_since = None;
            }
            let action = self.next_action();
            self.issue(Action::Stop {
                id: action,
                instance: id,
                grace,
            });
        }
    }

    fn finish_removal(&mut self) {
        if !self.removing || !self.instances.is_empty() {
            return;
        }
        let unrouted = self
            .route
            .as_ref()
            .is_none_or(|route| route.active.is_none() && route.confirmed);
        if unrouted {
            self.removing = false;
            self.gone = true;
            self.current = None;
            self.notices.push_back(Notice::Gone);
        }
    }

    /// When to come back with [`crate::Event::Timer`]; `None`: only when something happens.
    pub fn poll_timeout(&self) -> Option<Timestamp> {
        if self.gone {
            return None;
        }
        let mut next: Option<Timestamp> = None;
        let mut at = |time: Timestamp| next = Some(next.map_or(time, |next| next.min(time)));
        if let (Some(rollout), Some(policy)) = (&self.rollout, &self.policy) {
            match rollout.phase {
                RolloutPhase::Starting { deadline } => {
                    at(deadline);
                    // The set is soaked when the last of it is.
                    let soaked = self
                        .instances
                        .values()
                        .filter(|instance| instance.release == rollout.to && instance.is_ready())
                        .filter_map(|instance| instance.ready_since)
                        .max();
                    if let Some(since) = soaked
                        && self.ready(rollout.to) >= policy.replicas as usize
                    {
                        at(since.plus(policy.soak));
                    }
                }
                RolloutPhase::Watching { until } => at(until),
                RolloutPhase::Switching | RolloutPhase::Returning { .. } => {}
            }
        }
        if let Some(again) = self
            .route_refused
            .as_ref()
            .and_then(|refused| refused.again)
        {
            at(again);
        }
        if let Some(warm) = &self.warm {
            at(warm.until);
        }
        for instance in self.instances.values() {
            if let Routed::Draining { deadline, .. } = instance.routed {
                at(deadline);
            }
        }
        for (release, back_off) in &self.back_off {
            let counted = self
                .instances
                .values()
                .filter(|instance| instance.release == *release && instance.counts())
                .count();
            if counted < self.wanted(*release) as usize {
                at(back_off.next);
            }
        }
        next
    }

    /// The phase of the rollout or removal, and what it waits on; `None` when there is none.
    pub fn waits_on(&self) -> Option<(&'static str, String)> {
        let (phase, waits_on) = self.phase()?;
        Some(match &self.route_refused {
            Some(refused) => {
                let reason = &refused.reason;
                (
                    phase,
                    format!(
                        "{waits_on}; a proxy refused the last route and is asked again: {reason}"
                    ),
                )
            }
            None => (phase, waits_on),
        })
    }

    fn phase(&self) -> Option<(&'static str, String)> {
        if self.removing {
            return Some((
                "remove",
                format!("{} instances to end", self.instances.len()),
            ));
        }
        let rollout = self.rollout.as_ref()?;
        let replicas = self.policy.as_ref().map_or(0, |policy| policy.replicas);
        let waits_on = match &rollout.phase {
            RolloutPhase::Starting { .. } => format!(
                "{} of {replicas} instances of release {} are ready",
                self.ready(rollout.to),
                rollout.to
            ),
            RolloutPhase::Switching => {
                format!(
                    "every proxy to confirm the switch to release {}",
                    rollout.to
                )
            }
            RolloutPhase::Watching { .. } => {
                format!("release {} to hold under traffic", rollout.to)
            }
            RolloutPhase::Returning { reason, .. } => match rollout.from {
                Some(from) => format!("all traffic to be with release {from} again: {reason}"),
                None => format!("release {} to end: {reason}", rollout.to),
            },
        };
        Some((rollout.phase.name(), waits_on))
    }
}
