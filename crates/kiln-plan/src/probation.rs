//! Probes: what each instance is asked, and how a change of the policy alone is taken.
//!
//! A probe that has never passed says more about the probe than about the instance. So a live probe counts from its first
//! success on; and where the policy alone changes its probes, the new ones have to pass on what serves before they count.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use kiln_model::{HttpProbe, InstanceId, Policy, Probed, ReleaseNumber, Timestamp, Unready, Why};
use serde::{Deserialize, Serialize};

use crate::event::Notice;
use crate::instance::Instance;
use crate::service::Service;

/// What the instances of a release are asked.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probes {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready: Option<HttpProbe>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub live: Option<HttpProbe>,
}

impl Probes {
    pub(crate) fn of(policy: &Policy) -> Self {
        Self {
            ready: policy.ready.clone(),
            live: policy.live.clone(),
        }
    }

    pub(crate) fn ready_question(&self) -> Probed {
        self.ready.as_ref().map_or(Probed::Connect, question)
    }

    pub(crate) fn live_question(&self) -> Option<Probed> {
        self.live.as_ref().map(question)
    }
}

fn question(probe: &HttpProbe) -> Probed {
    Probed::Http {
        path: probe.path.clone(),
        timeout: probe.timeout,
    }
}

/// Which of an instance's probes is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProbeKind {
    Ready,
    Live,
    /// Of a policy that is not taken yet.
    NextReady,
    /// Of a policy that is not taken yet.
    NextLive,
}

/// A probe that has to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeWanted {
    pub instance: InstanceId,
    pub kind: ProbeKind,
    pub endpoint: SocketAddr,
    /// `None`: the endpoint has to accept a connection.
    pub http: Option<HttpProbe>,
    /// What is known of it: a probe that starts goes on from there.
    pub passing: bool,
}

/// A change of the policy alone that is under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyChange {
    pub policy: Policy,
    pub progress: ChangeProgress,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum ChangeProgress {
    /// The old policy holds. The new one is taken when its probes pass on what serves, and given up at the deadline.
    Proving {
        deadline: Timestamp,
        passed: BTreeSet<(InstanceId, ProbeKind)>,
    },
    /// The new policy holds. Told when every proxy serves its routes.
    Confirming,
}

impl Service {
    /// What the instances of `release` are asked: the probes it was deployed with.
    pub(crate) fn probes_of(&self, release: ReleaseNumber) -> Probes {
        let own = self
            .releases
            .get(&release)
            .and_then(|record| record.probes.clone());
        own.or_else(|| self.policy.as_ref().map(Probes::of))
            .unwrap_or_default()
    }

    /// Every probe that has to run now.
    pub fn probes(&self) -> Vec<ProbeWanted> {
        let mut wanted = Vec::new();
        for instance in self.running() {
            let Some(endpoint) = instance.endpoint else {
                continue;
            };
            let mut ask = |kind, http, passing| {
                wanted.push(ProbeWanted {
                    instance: instance.id.clone(),
                    kind,
                    endpoint,
                    http,
                    passing,
                });
            };
            let Probes { ready, live } = self.probes_of(instance.release);
            ask(ProbeKind::Ready, ready, instance.ready);
            if live.is_some() {
                ask(ProbeKind::Live, live, instance.lived);
            }
            let Some(change) = &self.change else { continue };
            let ChangeProgress::Proving { passed, .. } = &change.progress else {
                continue;
            };
            if Some(instance.release) == self.current {
                let passes = |kind| passed.contains(&(instance.id.clone(), kind));
                let Probes { ready, live } = Probes::of(&change.policy);
                ask(ProbeKind::NextReady, ready, passes(ProbeKind::NextReady));
                if live.is_some() {
                    ask(ProbeKind::NextLive, live, passes(ProbeKind::NextLive));
                }
            }
        }
        wanted
    }

    /// A probe passes from now on, or no longer.
    pub(crate) fn probed(
        &mut self,
        now: Timestamp,
        id: &InstanceId,
        kind: ProbeKind,
        passes: bool,
    ) {
        if let ProbeKind::NextReady | ProbeKind::NextLive = kind {
            if let Some(change) = &mut self.change
                && let ChangeProgress::Proving { passed, .. } = &mut change.progress
            {
                if passes {
                    passed.insert((id.clone(), kind));
                } else {
                    passed.remove(&(id.clone(), kind));
                }
            }
            return;
        }
        let Some(instance) = self.instances.get_mut(id) else {
            return;
        };
        match (kind, passes) {
            (ProbeKind::Ready, true) => instance.becomes_ready(now),
            (ProbeKind::Ready, false) => instance.becomes_unready(),
            (ProbeKind::Live, true) => instance.lived = true,
            // One that comes back is not asked to stay: it was replaced when it stopped living.
            (ProbeKind::Live, false) => instance.doomed |= instance.lived,
            (ProbeKind::NextReady | ProbeKind::NextLive, _) => {}
        }
    }

    /// The policy alone changes.
    pub(crate) fn set_policy(&mut self, now: Timestamp, policy: Policy) {
        self.give_up_change(Why::Superseded);
        if let Some(rollout) = &mut self.rollout {
            // Both sets are scaled. Everything else is the new set's: what is turned back has the policy it came from.
            if let Some(from) = &mut rollout.from_policy {
                from.replicas = policy.replicas;
            }
            rollout.recompile(&policy);
            let to = rollout.to;
            self.remember_probes(to, &policy);
            self.policy = Some(policy);
            self.notices.push_back(Notice::PolicyChanged);
            return;
        }
        let proven = self
            .current
            .is_none_or(|current| self.probes_of(current) == Probes::of(&policy));
        if proven || self.judges().is_empty() {
            self.take_policy(now, policy);
            return;
        }
        let deadline = now.plus(policy.progress_deadline);
        self.change = Some(PolicyChange {
            policy,
            progress: ChangeProgress::Proving {
                deadline,
                passed: BTreeSet::new(),
            },
        });
        self.tell_wait();
    }

    fn take_policy(&mut self, now: Timestamp, policy: Policy) {
        let passed = match self.change.take().map(|change| change.progress) {
            Some(ChangeProgress::Proving { passed, .. }) => passed,
            Some(ChangeProgress::Confirming) | None => BTreeSet::new(),
        };
        for (id, kind) in passed {
            if let Some(instance) = self.instances.get_mut(&id) {
                match kind {
                    ProbeKind::NextReady => instance.becomes_ready(now),
                    ProbeKind::NextLive => instance.lived = true,
                    ProbeKind::Ready | ProbeKind::Live => {}
                }
            }
        }
        if let Some(current) = self.current {
            self.remember_probes(current, &policy);
        }
        self.policy = Some(policy.clone());
        self.change = Some(PolicyChange {
            policy,
            progress: ChangeProgress::Confirming,
        });
    }

    pub(crate) fn remember_probes(&mut self, release: ReleaseNumber, policy: &Policy) {
        if let Some(record) = self.releases.get_mut(&release) {
            record.probes = Some(Probes::of(policy));
        }
    }

    /// The instances on which new probes have to pass: those that are ready, or all that run where none is.
    fn judges(&self) -> Vec<&Instance> {
        let of_current = || {
            self.running().filter(|instance| {
                Some(instance.release) == self.current
                    && !instance.doomed
                    && instance.endpoint.is_some()
            })
        };
        let ready: Vec<_> = of_current().filter(|instance| instance.ready).collect();
        if ready.is_empty() {
            of_current().collect()
        } else {
            ready
        }
    }

    /// How many of the instances that judge a new policy have passed all its probes, and how many there are.
    pub(crate) fn proof(&self) -> (usize, usize) {
        let Some(change) = &self.change else {
            return (0, 0);
        };
        let ChangeProgress::Proving { passed, .. } = &change.progress else {
            return (0, 0);
        };
        let judges = self.judges();
        let lives = change.policy.live.is_some();
        let good = judges.iter().filter(|instance| {
            let passes = |kind| passed.contains(&(instance.id.clone(), kind));
            passes(ProbeKind::NextReady) && (!lives || passes(ProbeKind::NextLive))
        });
        (good.count(), judges.len())
    }

    /// True when a change of the policy went on or ended.
    pub(crate) fn advance_change(&mut self, now: Timestamp) -> bool {
        let Some(change) = self.change.clone() else {
            return false;
        };
        match change.progress {
            ChangeProgress::Proving { deadline, .. } => {
                let (passed, judges) = self.proof();
                if passed >= judges {
                    self.take_policy(now, change.policy);
                    return true;
                }
                if now < deadline {
                    return false;
                }
                let probes = Probes::of(&change.policy);
                let count = u32::try_from(judges - passed).unwrap_or(u32::MAX);
                self.give_up_change(Why::ProbesNotPassing {
                    within: change.policy.progress_deadline,
                    unready: Unready::NotPassing {
                        count,
                        probe: self.failing_question(&probes),
                    },
                });
                true
            }
            ChangeProgress::Confirming => {
                if self.route.as_ref().is_some_and(|route| !route.confirmed) {
                    return false;
                }
                self.change = None;
                self.notices.push_back(Notice::PolicyChanged);
                true
            }
        }
    }

    /// The ready probe where it is the one that does not pass, else the live probe.
    fn failing_question(&self, probes: &Probes) -> Probed {
        let passed = |instance: &Instance| match self.change.as_ref().map(|c| &c.progress) {
            Some(ChangeProgress::Proving { passed, .. }) => {
                passed.contains(&(instance.id.clone(), ProbeKind::NextReady))
            }
            Some(ChangeProgress::Confirming) | None => true,
        };
        let ready = self.judges().into_iter().all(passed);
        match probes.live_question() {
            Some(live) if ready => live,
            Some(_) | None => probes.ready_question(),
        }
    }

    /// The old policy stays, where the new one is not taken yet.
    pub(crate) fn give_up_change(&mut self, why: Why) {
        let Some(change) = self.change.take() else {
            return;
        };
        self.notices.push_back(match change.progress {
            ChangeProgress::Proving { .. } => Notice::PolicyKept { why },
            ChangeProgress::Confirming => Notice::PolicyChanged,
        });
    }
}
