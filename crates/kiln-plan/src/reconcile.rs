//! From what is to what should be: the second half of each step. Everything here is derived from the state, so that the
//! same state always leads to the same actions, whatever event brought it about.

use std::collections::BTreeSet;

use kiln_model::{InstanceId, Policy, ReleaseNumber, Timestamp};

use crate::event::{Action, Notice};
use crate::instance::{Instance, Phase, Routed};
use crate::keeper;
use crate::mutation::Mutation;
use crate::service::Service;
use crate::stage::Share;

/// A step settles after a few rounds; more would be a loop in the rules.
const ROUNDS: usize = 8;

impl Service {
    pub(crate) fn reconcile(&mut self, now: Timestamp) {
        if self.gone {
            return;
        }
        for _ in 0..ROUNDS {
            let mut changed = self.advance_rollout(now);
            self.retire_warm(now);
            self.end_drains(now);
            self.scale_up(now);
            self.reroute(now);
            self.stop_unwanted();
            // After the routes: a change of the policy is done when they are confirmed.
            changed |= self.advance_change(now);
            if !changed {
                break;
            }
        }
        self.finish_removal();
    }

    /// The policy that a set is kept by: until a rollout ends, the set that it comes from keeps the policy that it had.
    pub(crate) fn policy_of(&self, release: ReleaseNumber) -> Option<&Policy> {
        let from = self.rollout.as_ref().and_then(|rollout| {
            let policy = rollout.from_policy.as_ref();
            policy.filter(|_| release != rollout.to)
        });
        from.or(self.policy.as_ref())
    }

    /// The policy of what has the traffic: the new one from the first stage on that gives the new set some.
    pub(crate) fn serving_policy(&self) -> Option<&Policy> {
        let before = self.rollout.as_ref().and_then(|rollout| {
            let policy = rollout.from_policy.as_ref();
            policy.filter(|_| rollout.traffic() == Share::NONE)
        });
        before.or(self.policy.as_ref())
    }

    /// How many instances a whole set of `release` has.
    pub fn replicas_of(&self, release: ReleaseNumber) -> u32 {
        self.policy_of(release).map_or(0, |policy| policy.replicas)
    }

    /// How many instances of `release` should run.
    pub(crate) fn wanted(&self, release: ReleaseNumber) -> u32 {
        let warm = self
            .warm
            .as_ref()
            .is_some_and(|warm| warm.release == release);
        let share = match &self.rollout {
            Some(rollout) if rollout.to == release => {
                rollout.present().map_or(Share::NONE, |stage| stage.to)
            }
            Some(rollout) if rollout.from == Some(release) => {
                let early = self.mutated(Mutation::StopOldAtSwitch);
                match rollout.present() {
                    Some(stage) if early && stage.traffic > Share::NONE => Share::NONE,
                    Some(stage) => stage.from,
                    None => Share::ALL,
                }
            }
            Some(_) => Share::NONE,
            None if self.current == Some(release) => Share::ALL,
            None => Share::NONE,
        };
        let kept = self.mutated(Mutation::KeepEverySet) && self.previous.contains(&release);
        match self.removing {
            true => 0,
            false if warm || kept => self.replicas_of(release),
            false => share.of(self.replicas_of(release)),
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

    fn set(&self, release: ReleaseNumber) -> impl Iterator<Item = &Instance> {
        self.instances
            .values()
            .filter(move |instance| instance.release == release)
    }

    fn scale_up(&mut self, now: Timestamp) {
        for release in self.releases_in_use() {
            let wanted = self.wanted(release);
            let missing = self.keeper.missing(now, release, self.set(release), wanted);
            let forgotten = self.mutated(Mutation::ForgetWarm)
                && self
                    .warm
                    .as_ref()
                    .is_some_and(|warm| warm.release == release);
            if forgotten {
                continue;
            }
            for _ in 0..missing {
                self.start_instance(now, release);
            }
        }
    }

    /// When the keeper of a set that lacks instances starts the next one.
    pub(crate) fn next_starts(&self) -> impl Iterator<Item = Timestamp> {
        self.releases_in_use().into_iter().filter_map(|release| {
            let lacks = keeper::counted(self.set(release)) < self.wanted(release);
            self.keeper.next_start(release).filter(|_| lacks)
        })
    }

    /// The instances of the set that stay.
    pub(crate) fn kept(&self, release: ReleaseNumber) -> BTreeSet<InstanceId> {
        keeper::kept(self.set(release), self.wanted(release))
    }

    fn stop_unwanted(&mut self) {
        let kept: BTreeSet<_> = self
            .releases_in_use()
            .into_iter()
            .flat_map(|release| self.kept(release))
            .collect();
        let unwanted: Vec<_> = self
            .running()
            .filter(|instance| {
                !kept.contains(&instance.id)
                    && (matches!(instance.routed, Routed::Never | Routed::Drained)
                        || self.mutated(Mutation::StopBeforeDrained)
                            && matches!(instance.routed, Routed::Draining { .. }))
            })
            .map(|instance| (instance.id.clone(), instance.release))
            .collect();
        for (id, release) in unwanted {
            let Some(grace) = self.policy_of(release).map(|policy| policy.stop_grace) else {
                continue;
            };
            if let Some(instance) = self.instances.get_mut(&id) {
                instance.phase = Phase::Stopping;
                instance.becomes_unready();
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
            .is_none_or(|route| route.sets.is_empty() && route.confirmed);
        if unrouted {
            self.removing = false;
            self.gone = true;
            self.current = None;
            self.notices.push_back(Notice::Gone);
        }
    }
}
