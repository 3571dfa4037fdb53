//! What the service waits for: the next deadline, and the words for a person.

use kiln_model::Timestamp;

use crate::instance::Routed;
use crate::rollout::RolloutPhase;
use crate::service::Service;

impl Service {
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
