//! Who waits for what: a call that started a rollout hears of its steps and of its end.

use std::collections::BTreeSet;
use std::time::Duration;

use kiln_model::api::{Outcome, PhaseTime, Progress, RequestCount, RolloutResult};
use kiln_model::{ReleaseNumber, ServiceKey, Timestamp, ToProxy};
use kiln_plan::{Notice, RolloutEnd, Service};
use rustix::time::{ClockId, clock_gettime};
use tokio::sync::mpsc;

use crate::owner::Input;
use crate::progress::Lines;
use crate::proxies::{Links, ProxyId};
use crate::traffic::Traffic;
use crate::{text, view};

/// How long an outcome waits for the proxies to count.
const SETTLE: Duration = Duration::from_millis(200);

/// One caller that waits for one service.
pub(crate) struct Watch {
    pub(crate) service: ServiceKey,
    pub(crate) lines: Lines,
    /// The service's requests when the call came.
    pub(crate) before: RequestCount,
    began: Duration,
    phase: Option<(String, Duration)>,
    phases: Vec<PhaseTime>,
}

impl Watch {
    pub(crate) fn new(service: ServiceKey, lines: Lines, before: RequestCount) -> Self {
        Self {
            service,
            lines,
            before,
            began: monotonic(),
            phase: None,
            phases: Vec::new(),
        }
    }

    /// The rollout entered `phase`, or waits on something else in it.
    pub(crate) fn step(&mut self, at: Timestamp, phase: &str, message: &str) {
        if self
            .phase
            .as_ref()
            .is_none_or(|(current, _)| current != phase)
        {
            self.close_phase();
            self.phase = Some((phase.to_owned(), monotonic()));
        }
        self.lines.send(&Progress::Step {
            service: self.service.service.clone(),
            at,
            phase: phase.to_owned(),
            message: message.to_owned(),
        });
    }

    /// Something worth telling within the phase.
    fn note(&self, at: Timestamp, message: &str) {
        self.lines.send(&Progress::Step {
            service: self.service.service.clone(),
            at,
            phase: self
                .phase
                .as_ref()
                .map_or_else(String::new, |(phase, _)| phase.clone()),
            message: message.to_owned(),
        });
    }

    /// Everything that ended by now: the phases, and how long the whole took.
    pub(crate) fn close(&mut self) -> (Vec<PhaseTime>, Duration) {
        self.close_phase();
        (
            std::mem::take(&mut self.phases),
            monotonic().saturating_sub(self.began),
        )
    }

    fn close_phase(&mut self) {
        if let Some((phase, since)) = self.phase.take() {
            let duration = monotonic().saturating_sub(since);
            let duration_us = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
            self.phases.push(PhaseTime { phase, duration_us });
        }
    }
}

/// An outcome that waits for the proxies' present counters before it is told.
pub(crate) struct Settling {
    pub(crate) watch: Watch,
    pub(crate) outcome: Outcome,
    /// Proxies that were asked and have not answered.
    pub(crate) asked: BTreeSet<ProxyId>,
}

fn monotonic() -> Duration {
    let time = clock_gettime(ClockId::Monotonic);
    Duration::new(
        u64::try_from(time.tv_sec).unwrap_or(0),
        u32::try_from(time.tv_nsec).unwrap_or(0),
    )
}

/// Everyone who waits.
#[derive(Default)]
pub(crate) struct Waiting {
    watches: Vec<Watch>,
    settling: Vec<Settling>,
}

impl Waiting {
    pub(crate) fn begin(&mut self, key: &ServiceKey, lines: Lines, before: RequestCount) {
        self.watches.push(Watch::new(key.clone(), lines, before));
    }

    /// What was begun could not be journalled.
    pub(crate) fn forget(&mut self, key: &ServiceKey) {
        if let Some(index) = self.watches.iter().rposition(|watch| watch.service == *key) {
            self.watches.remove(index);
        }
    }

    /// A service that a call names and that has nothing to change.
    pub(crate) fn unchanged(&self, key: &ServiceKey, service: Option<&Service>, lines: &Lines) {
        let Some(service) = service else { return };
        let number = service.current().unwrap_or_default();
        let end = RolloutEnd {
            from: service.current(),
            to: number,
            result: RolloutResult::Unchanged,
            why: None,
        };
        let outcome = view::outcome(key, service, &end, Vec::new(), 0);
        lines.send(&Progress::Outcome { outcome });
    }

    /// Hands on what a step of the service noticed, and ends the watches that it ends.
    pub(crate) fn notices(&mut self, step: &Step<'_>, inputs: &mpsc::UnboundedSender<Input>) {
        let Step {
            key,
            service,
            at,
            notices,
            links,
            traffic,
        } = step;
        let policy_alone = service.rollout().is_none() && !service.is_removing();
        for notice in *notices {
            let end = match notice {
                Notice::RolloutEnded { end } if end.result != RolloutResult::Removed => {
                    Some(end.clone())
                }
                Notice::Gone => Some(RolloutEnd {
                    from: None,
                    to: ReleaseNumber(0),
                    result: RolloutResult::Removed,
                    why: None,
                }),
                Notice::PolicyChanged if policy_alone => Some(RolloutEnd {
                    from: service.current(),
                    to: service.current().unwrap_or_default(),
                    result: RolloutResult::Done,
                    why: None,
                }),
                Notice::PolicyKept { why } => Some(RolloutEnd {
                    from: service.current(),
                    to: service.current().unwrap_or_default(),
                    result: RolloutResult::RolledBack,
                    why: Some(why.clone()),
                }),
                _ => None,
            };
            for watch in self
                .watches
                .iter_mut()
                .filter(|watch| watch.service == **key)
            {
                match notice {
                    Notice::PhaseEntered { wait } => {
                        watch.step(*at, wait.phase.name(), &text::waiting(wait));
                    }
                    other => watch.note(*at, &text::notice(other)),
                }
            }
            if let Some(end) = end {
                self.end(key, service, &end, links, traffic, inputs);
            }
        }
    }

    fn end(
        &mut self,
        key: &ServiceKey,
        service: &Service,
        end: &RolloutEnd,
        links: &Links,
        traffic: &Traffic,
        inputs: &mpsc::UnboundedSender<Input>,
    ) {
        let (ended, going): (Vec<_>, Vec<_>) = std::mem::take(&mut self.watches)
            .into_iter()
            .partition(|watch| watch.service == *key);
        self.watches = going;
        if ended.is_empty() {
            return;
        }
        for mut watch in ended {
            let (phases, took) = watch.close();
            let duration_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
            let outcome = view::outcome(key, service, end, phases, duration_ms);
            let asked = links.ids().collect();
            self.settling.push(Settling {
                watch,
                outcome,
                asked,
            });
        }
        links.send(&ToProxy::Count);
        self.tell_settled(traffic);
        let inputs = inputs.clone();
        tokio::spawn(async move {
            tokio::time::sleep(SETTLE).await;
            let _ = inputs.send(Input::Settle);
        });
    }

    /// A proxy has said its counters, or is gone.
    pub(crate) fn counted(&mut self, proxy: ProxyId, traffic: &Traffic) {
        for settling in &mut self.settling {
            settling.asked.remove(&proxy);
        }
        self.tell_settled(traffic);
    }

    /// Nobody is waited for any longer.
    pub(crate) fn settle_all(&mut self, traffic: &Traffic) {
        for settling in &mut self.settling {
            settling.asked.clear();
        }
        self.tell_settled(traffic);
    }

    fn tell_settled(&mut self, traffic: &Traffic) {
        let (settled, waiting): (Vec<_>, Vec<_>) = std::mem::take(&mut self.settling)
            .into_iter()
            .partition(|s| s.asked.is_empty());
        self.settling = waiting;
        for Settling {
            watch,
            mut outcome,
            asked: _,
        } in settled
        {
            let after = traffic.total(&watch.service);
            outcome.requests = RequestCount {
                served: after.served.saturating_sub(watch.before.served),
                failed: after.failed.saturating_sub(watch.before.failed),
            };
            watch.lines.send(&Progress::Outcome { outcome });
        }
    }
}

/// What one step of one service led to.
pub(crate) struct Step<'a> {
    pub(crate) key: &'a ServiceKey,
    pub(crate) service: &'a Service,
    pub(crate) at: Timestamp,
    pub(crate) notices: &'a [Notice],
    pub(crate) links: &'a Links,
    pub(crate) traffic: &'a Traffic,
}
