//! What the service waits for, and when it has to be called next.

use kiln_model::{RolloutPhase, Timestamp, Waiting, WaitsOn};

use crate::event::Notice;
use crate::instance::Routed;
use crate::probation::ChangeProgress;
use crate::rollout::{Direction, Rollout};
use crate::service::Service;
use crate::stage::Gate;

impl Service {
    /// When to come back with [`crate::Event::Timer`]; `None`: only when something happens.
    pub fn poll_timeout(&self) -> Option<Timestamp> {
        if self.gone {
            return None;
        }
        let refused = self
            .route_refused
            .as_ref()
            .and_then(|refused| refused.again);
        let rollout = self.rollout.as_ref();
        let change = self
            .change
            .as_ref()
            .and_then(|change| match change.progress {
                ChangeProgress::Proving { deadline, .. } => Some(deadline),
                ChangeProgress::Confirming => None,
            });
        let drains = self
            .instances
            .values()
            .filter_map(|instance| match instance.routed {
                Routed::Draining { deadline, .. } => Some(deadline),
                Routed::Never | Routed::Active | Routed::Leaving { .. } | Routed::Drained => None,
            });
        let times = [
            refused,
            rollout.and_then(|rollout| rollout.deadline),
            rollout.and_then(|rollout| self.soaks_at(rollout)),
            change,
            self.warm.as_ref().map(|warm| warm.until),
        ];
        let times = times.into_iter().flatten();
        times.chain(drains).chain(self.next_starts()).min()
    }

    /// When the set is soaked, if nothing of it changes: with the last instance that it needs.
    fn soaks_at(&self, rollout: &Rollout) -> Option<Timestamp> {
        let Some(Gate::Soaked { soak, .. }) = rollout.present_gate() else {
            return None;
        };
        let mut since: Vec<_> = self
            .instances
            .values()
            .filter(|instance| instance.release == rollout.to && self.is_sound(instance))
            .filter_map(|instance| instance.ready_since)
            .collect();
        since.sort_unstable();
        let wanted = self.wanted(rollout.to) as usize;
        let last = since.get(wanted.checked_sub(1)?)?;
        Some(last.plus(*soak))
    }

    /// The phase of what is under way, and what it waits on; `None` where nothing is.
    pub fn waits_on(&self) -> Option<Waiting> {
        let (phase, on) = self.phase()?;
        Some(Waiting {
            phase,
            on,
            refused: self
                .route_refused
                .as_ref()
                .map(|refused| refused.reason.clone()),
        })
    }

    fn phase(&self) -> Option<(RolloutPhase, WaitsOn)> {
        let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        if self.removing {
            let instances = count(self.instances.len());
            return Some((RolloutPhase::Remove, WaitsOn::Removal { instances }));
        }
        if let Some(change) = &self.change {
            return Some(match change.progress {
                ChangeProgress::Proving { .. } => {
                    let (passed, wanted) = self.proof();
                    let (passed, wanted) = (count(passed), count(wanted));
                    (RolloutPhase::Prove, WaitsOn::Probes { passed, wanted })
                }
                ChangeProgress::Confirming => (RolloutPhase::Switch, WaitsOn::PolicyRoutes),
            });
        }
        let rollout = self.rollout.as_ref()?;
        let release = rollout.to;
        let on = match (&rollout.direction, rollout.present_gate()) {
            (Direction::Back { why }, _) => WaitsOn::Return {
                from: release,
                to: rollout.from,
                why: why.clone(),
            },
            (Direction::Forward, Some(Gate::Soaked { .. })) => WaitsOn::Ready {
                release,
                ready: count(self.sound(release)),
                wanted: self.wanted(release),
            },
            (Direction::Forward, Some(Gate::Routed)) => WaitsOn::Confirmation { release },
            (Direction::Forward, Some(Gate::Watched { .. }) | None) => WaitsOn::Watch { release },
        };
        Some((rollout.phase(), on))
    }

    /// Tells what is waited for from now on.
    pub(crate) fn tell_wait(&mut self) {
        if let Some(wait) = self.waits_on() {
            self.notices.push_back(Notice::PhaseEntered { wait });
        }
    }
}
