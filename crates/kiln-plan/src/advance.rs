//! A rollout from phase to phase.

use std::time::Duration;

use kiln_model::api::RolloutResult;
use kiln_model::{ReleaseNumber, Timestamp};

use crate::event::Notice;
use crate::instance::{Phase, Routed};
use crate::mutation::Mutation;
use crate::rollout::RolloutPhase;
use crate::service::{Service, Warm};

impl Service {
    /// True when the rollout entered another phase or ended.
    pub(crate) fn advance_rollout(&mut self, now: Timestamp) -> bool {
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

    pub(crate) fn ready(&self, release: ReleaseNumber) -> usize {
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
}
