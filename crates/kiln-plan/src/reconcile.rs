//! From what is to what should be: the second half of each step. Everything here is derived from the state, so that the
//! same state always leads to the same actions, whatever event brought it about.

use std::collections::BTreeSet;
use std::time::Duration;

use kiln_model::{Generation, InstanceId, ReleaseNumber, Timestamp};

use crate::event::{Action, Notice};
use crate::instance::{Phase, Routed};
use crate::mutation::Mutation;
use crate::rollout::RolloutPhase;
use crate::service::{RouteWanted, Service};

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
}
