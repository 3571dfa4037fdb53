//! What always holds, as far as the state itself can show it, by the numbers of the design. The simulator checks it after
//! every event, besides what only the world knows; the daemon does in debug builds.

use kiln_model::api::RolloutResult;
use kiln_model::{ReleaseNumber, Timestamp};

use crate::event::{Action, Event, Notice};
use crate::instance::{Phase, Routed};
use crate::service::Service;
use crate::stage::Gate;
use crate::traffic::RoutedSet;

/// Which invariant does not hold, and what is wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invariant {invariant} does not hold: {what}")]
pub struct Violation {
    pub invariant: u8,
    pub what: String,
}

/// One step of a service: the state before it, what happened, and what was decided.
#[derive(Clone, Copy, Debug)]
pub struct Step<'a> {
    pub before: &'a Service,
    pub after: &'a Service,
    pub now: Timestamp,
    pub event: &'a Event,
    pub actions: &'a [Action],
    pub notices: &'a [Notice],
}

fn holds(invariant: u8, holds: bool, what: impl FnOnce() -> String) -> Result<(), Violation> {
    if holds {
        Ok(())
    } else {
        let what = what();
        Err(Violation { invariant, what })
    }
}

impl Step<'_> {
    /// The first violation.
    pub fn check(&self) -> Result<(), Violation> {
        for action in self.actions {
            match action {
                Action::Route {
                    sets, generation, ..
                } => {
                    let newer = self
                        .before
                        .route()
                        .is_none_or(|route| *generation > route.generation);
                    holds(7, newer, || format!("generation {generation} is not new"))?;
                    for set in sets {
                        self.check_route(set)?;
                    }
                }
                Action::Start {
                    instance, release, ..
                } => {
                    holds(7, self.before.instance(instance).is_none(), || {
                        format!("{instance} is started, and was before")
                    })?;
                    self.check_size(*release)?;
                }
                Action::Stop { instance, .. } => {
                    let routed = self.after.instance(instance).map(|found| found.routed);
                    let left = matches!(routed, Some(Routed::Never | Routed::Drained));
                    let route = self.after.route();
                    let active = route.is_some_and(|route| route.routes_to(instance));
                    holds(3, left && !active, || {
                        format!("{instance} is stopped while it is {routed:?}")
                    })?;
                }
                Action::Remove { .. } => {}
            }
        }
        self.check_end()?;
        self.check_warm_rollback()?;
        self.check_progress()
    }

    fn replicas(&self, release: ReleaseNumber) -> usize {
        self.after.replicas_of(release) as usize
    }

    fn check_route(&self, set: &RoutedSet) -> Result<(), Violation> {
        let RoutedSet {
            release, instances, ..
        } = set;
        let release = *release;
        let service = self.after;
        let rollout = service.rollout();
        let allowed = service.current() == Some(release)
            || rollout
                .is_some_and(|rollout| rollout.to == release || rollout.from == Some(release));
        holds(1, allowed, || {
            format!("traffic goes to release {release}, which no plan allows")
        })?;
        let any_ready = service
            .instances()
            .any(|instance| instance.release == release && instance.is_ready());
        for id in instances {
            let sound = service.instance(id).is_some_and(|instance| {
                instance.release == release
                    && instance.phase == Phase::Running
                    && (instance.is_ready() || !any_ready)
            });
            holds(1, sound, || {
                format!("{id} is routed to and not ready, though others are")
            })?;
        }
        let switching = rollout.is_some_and(|rollout| {
            rollout.to == release && rollout.present_gate() == Some(&Gate::Routed)
        });
        let was_on_it = self
            .before
            .route()
            .is_some_and(|route| route.sets.iter().any(|set| set.release == release));
        let complete = service.ready(release) >= service.wanted(release) as usize;
        holds(1, !switching || was_on_it || complete, || {
            format!("switched to release {release} before its set was ready")
        })
    }

    /// A set is never larger than the policy has it.
    fn check_size(&self, release: ReleaseNumber) -> Result<(), Violation> {
        let counted = self
            .after
            .instances()
            .filter(|instance| instance.release == release && instance.counts())
            .count();
        let most = self.replicas(release);
        holds(2, counted <= most, || {
            format!("{counted} instances of release {release} for {most} replicas")
        })
    }

    /// What is said to be rolled back has its traffic where it came from.
    fn check_end(&self) -> Result<(), Violation> {
        for notice in self.notices {
            let Notice::RolloutEnded { end } = notice else {
                continue;
            };
            if end.result != RolloutResult::RolledBack {
                continue;
            }
            let route = self.after.route();
            let at: Vec<_> = route
                .filter(|route| route.confirmed)
                .iter()
                .flat_map(|route| route.sets.iter().map(|set| set.release))
                .collect();
            let back = route.is_none() || end.from.as_slice() == at;
            holds(4, back, || {
                format!("rolled back to {:?}, and traffic is with {at:?}", end.from)
            })?;
            let policy = self
                .before
                .rollout()
                .and_then(|rollout| rollout.from_policy.as_ref());
            holds(4, policy.is_none() || policy == self.after.policy(), || {
                format!("rolled back to {:?}, and its policy is another", end.from)
            })?;
        }
        Ok(())
    }

    fn check_warm_rollback(&self) -> Result<(), Violation> {
        let before = self.before;
        let (Event::Rollback { .. }, Some(warm), None) =
            (self.event, before.warm(), before.rollout())
        else {
            return Ok(());
        };
        let release = warm.release;
        let target = self.after.rollout().map(|rollout| rollout.to);
        let complete = before.sound(release) >= self.replicas(release);
        if target != Some(release) || !complete || self.now >= warm.until {
            return Ok(());
        }
        let one_switch = self.actions.iter().any(
            |action| matches!(action, Action::Route { sets, .. } if sets.iter().all(|set| set.release == release)),
        );
        let starts = self
            .actions
            .iter()
            .any(|action| matches!(action, Action::Start { release: n, .. } if *n == release));
        holds(5, one_switch && !starts, || {
            format!("release {release} was warm and did not take the traffic in one switch")
        })
    }

    /// A new set that is as it should be is switched to, whatever the old one is like.
    fn check_progress(&self) -> Result<(), Violation> {
        let service = self.after;
        let Some(rollout) = service.rollout() else {
            return Ok(());
        };
        let Some(Gate::Soaked { soak, .. }) = rollout.present_gate() else {
            return Ok(());
        };
        let wanted = service.wanted(rollout.to) as usize;
        let soaked = service.soaked_instances(self.now, rollout.to, *soak);
        holds(9, soaked < wanted, || {
            format!("release {} is ready and not switched to", rollout.to)
        })
    }
}
