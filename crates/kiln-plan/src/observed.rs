//! What engine, probes and proxies have seen: what each means for the state, before anything is decided from it.

use std::net::Ipv4Addr;
use std::time::Duration;

use kiln_model::{ExitReason, ExitRecord, Generation, InstanceId, StartFailure, Timestamp};

use crate::event::{Action, Notice};
use crate::instance::{Phase, Routed};
use crate::mutation::Mutation;
use crate::rollout::RolloutPhase;
use crate::service::{RouteRefused, Service, wait_after};

/// Ready for that long, and what it dies of later is a new story.
const HEALTHY: Duration = Duration::from_secs(10);
/// Instances of a new set that may end before the switch: with the second one the release is broken.
const EXITS_BEFORE_FAILURE: u32 = 2;

impl Service {
    pub(crate) fn started(
        &mut self,
        now: Timestamp,
        id: &InstanceId,
        pid: u32,
        address: Ipv4Addr,
        at: Timestamp,
    ) {
        self.outcome_of(id, |action| matches!(action, Action::Start { .. }));
        let port = self
            .instances
            .get(id)
            .and_then(|instance| self.releases.get(&instance.release)?.release.port);
        let Some(instance) = self.instances.get_mut(id) else {
            return;
        };
        if instance.phase != Phase::Starting {
            return;
        }
        instance.phase = Phase::Running;
        instance.pid = Some(pid);
        instance.address = Some(address);
        instance.started_at = Some(at);
        // A worker listens nowhere: it is ready when it runs.
        if port.is_none() {
            instance.ready = true;
            instance.ready_since = Some(now);
        }
    }

    pub(crate) fn start_failed(&mut self, now: Timestamp, id: &InstanceId, failure: StartFailure) {
        self.outcome_of(id, |action| matches!(action, Action::Start { .. }));
        let permanent = failure.is_permanent();
        self.ended(now, id, &failure.detail, Vec::new(), permanent, false);
    }

    pub(crate) fn exited(&mut self, now: Timestamp, id: &InstanceId, record: ExitRecord) {
        let ExitRecord {
            reason,
            at: _,
            last_lines,
        } = record;
        self.outcome_of(id, |action| {
            matches!(action, Action::Start { .. } | Action::Stop { .. })
        });
        let text = match &reason {
            ExitReason::Exited { code } => format!("it exited with code {code}"),
            ExitReason::Signalled { signal } => format!("it was ended by signal {signal}"),
            ExitReason::OutOfMemory { limit: Some(limit) } => format!(
                "it needed more memory than its limit of {limit} bytes: raise `resources {{ memory }}`, or make it need less"
            ),
            ExitReason::OutOfMemory { limit: None } => "the machine ran out of memory".to_owned(),
            ExitReason::Lost => "its processes are gone".to_owned(),
        };
        let lost = reason == ExitReason::Lost;
        self.ended(now, id, &text, last_lines, false, lost);
    }

    fn ended(
        &mut self,
        now: Timestamp,
        id: &InstanceId,
        reason: &str,
        last_lines: Vec<String>,
        permanent: bool,
        lost: bool,
    ) {
        let Some(instance) = self.instances.get_mut(id) else {
            return;
        };
        if instance.phase == Phase::Ended {
            return;
        }
        let asked = instance.phase == Phase::Stopping;
        let release = instance.release;
        let healthy = instance
            .ready_since
            .is_some_and(|since| now.since(since) >= HEALTHY);
        instance.phase = Phase::Ended;
        instance.ready = false;
        instance.ready_since = None;
        let action = self.next_action();
        self.issue(Action::Remove {
            id: action,
            instance: id.clone(),
        });
        if asked {
            return;
        }
        let back_off = self.back_off.entry(release).or_default();
        if healthy {
            back_off.failures = 0;
        }
        back_off.failures = back_off.failures.saturating_add(1);
        let wait = if lost || (healthy && back_off.failures == 1) {
            Duration::ZERO
        } else {
            wait_after(back_off.failures)
        };
        back_off.next = now.plus(wait);
        let mut story = format!("instance {id}: {reason}");
        if !last_lines.is_empty() {
            story.push_str("; its last lines:\n");
            story.push_str(&last_lines.join("\n"));
        }
        self.notices.push_back(Notice::InstanceFailed {
            instance: id.clone(),
            reason: reason.to_owned(),
            last_lines,
        });
        let Some(rollout) = &mut self.rollout else {
            return;
        };
        if rollout.to != release || lost {
            return;
        }
        match rollout.phase {
            RolloutPhase::Starting { .. } => {
                rollout.exits += 1;
                if permanent || rollout.exits >= EXITS_BEFORE_FAILURE {
                    self.turn_back(now, story, true);
                }
            }
            RolloutPhase::Switching | RolloutPhase::Watching { .. } => {
                if rollout.from.is_some() {
                    self.turn_back(now, story, true);
                }
            }
            RolloutPhase::Returning { .. } => {}
        }
    }

    pub(crate) fn removed(&mut self, id: &InstanceId) {
        self.outcome_of(id, |_| true);
        self.instances.remove(id);
    }

    pub(crate) fn probed_ready(&mut self, now: Timestamp, id: &InstanceId) {
        if let Some(instance) = self.instances.get_mut(id)
            && instance.phase == Phase::Running
            && !instance.ready
        {
            instance.ready = true;
            instance.ready_since = Some(now);
        }
    }

    pub(crate) fn confirmed(&mut self, now: Timestamp, generation: Generation) {
        let Some(route) = &mut self.route else { return };
        if route.generation != generation {
            return;
        }
        route.confirmed = true;
        self.route_refused = None;
        self.outstanding
            .retain(|_, action| !matches!(action, Action::Route { .. }));
        let deadline = self
            .policy
            .as_ref()
            .map_or(Duration::ZERO, |policy| policy.drain_deadline);
        for instance in self.instances.values_mut() {
            if let Routed::Leaving { generation } = instance.routed {
                // The proxy cuts what is left at the deadline and says so; this is for a proxy that can't.
                let deadline = now.plus(deadline).plus(crate::reconcile::DRAIN_MARGIN);
                instance.routed = Routed::Draining {
                    generation,
                    deadline,
                };
            }
        }
    }

    /// The switch is given up. Any other route is needed whatever a proxy says of it: for the way back, to get a dead
    /// instance out, to remove the service. It is given again until it is taken.
    pub(crate) fn route_refused(&mut self, now: Timestamp, generation: Generation, reason: String) {
        let Some(route) = &self.route else { return };
        if route.generation != generation || route.confirmed {
            return;
        }
        self.outstanding
            .retain(|_, action| !matches!(action, Action::Route { .. }));
        let before = self.route_refused.as_ref();
        let refusals = before
            .map_or(0, |refused| refused.refusals)
            .saturating_add(1);
        self.route_refused = Some(RouteRefused {
            refusals,
            reason: reason.clone(),
            again: (!self.mutated(Mutation::ForgetRefusal)).then(|| now.plus(wait_after(refusals))),
        });
        self.notices.push_back(Notice::RouteRefused {
            reason: reason.clone(),
        });
        let phase = self.rollout.as_ref().map(|rollout| &rollout.phase);
        if phase == Some(&RolloutPhase::Switching) {
            self.turn_back(now, format!("the proxy refused the route: {reason}"), true);
        }
    }

    /// The outcome of what was asked of an instance is known.
    fn outcome_of(&mut self, id: &InstanceId, which: impl Fn(&Action) -> bool) {
        self.outstanding.retain(|_, action| {
            let about = match action {
                Action::Start { instance, .. }
                | Action::Stop { instance, .. }
                | Action::Remove { instance, .. } => instance == id,
                Action::Route { .. } => false,
            };
            !(about && which(action))
        });
    }
}
