//! Those who wait for a call to end: each hears of the steps of its services as lines, and of their outcomes.

use std::collections::BTreeMap;
use std::time::Duration;

use kiln_control::{CallEnd, CallId, Refused, Told};
use kiln_fs::clock::monotonic;
use kiln_model::api::{ApiError, Outcome, PhaseTime, Progress};
use kiln_model::{RolloutPhase, ServiceKey, Timestamp};
use kiln_plan::{Notice, Service};
use tokio::sync::oneshot;

use crate::progress::Lines;
use crate::{text, view};

#[derive(Default)]
pub(crate) struct Callers {
    callers: BTreeMap<CallId, Caller>,
    next: u64,
}

struct Caller {
    lines: Lines,
    reply: Option<oneshot::Sender<Result<(), ApiError>>>,
    began: Duration,
    services: BTreeMap<ServiceKey, Times>,
}

/// How long what a caller waits for takes, by the phase.
#[derive(Default)]
struct Times {
    phase: Option<(RolloutPhase, Duration)>,
    phases: Vec<PhaseTime>,
    /// Since the call came, when it had ended.
    took: Option<Duration>,
}

impl Callers {
    pub(crate) fn begin(
        &mut self,
        lines: Lines,
        reply: oneshot::Sender<Result<(), ApiError>>,
    ) -> CallId {
        self.next += 1;
        let call = CallId(self.next);
        self.callers.insert(
            call,
            Caller {
                lines,
                reply: Some(reply),
                began: monotonic(),
                services: BTreeMap::new(),
            },
        );
        call
    }

    pub(crate) fn reply(&mut self, call: CallId, answer: Result<(), Refused>) {
        let refused = answer.is_err();
        let reply = self
            .callers
            .get_mut(&call)
            .and_then(|caller| caller.reply.take());
        if let Some(reply) = reply {
            // A caller that went away is no reason to undo what it asked for.
            drop(reply.send(answer.map_err(|refused| text::refused(&refused))));
        }
        if refused {
            self.finish(call);
        }
    }

    /// Nothing more is told: the lines end.
    pub(crate) fn finish(&mut self, call: CallId) {
        self.callers.remove(&call);
    }

    pub(crate) fn tell(&mut self, call: CallId, key: &ServiceKey, service: &Service, told: Told) {
        let Some(caller) = self.callers.get_mut(&call) else {
            return;
        };
        let times = caller.services.entry(key.clone()).or_default();
        match told {
            Told::Noticed { at, notice } => {
                let step = times.step(key, at, &notice);
                caller.lines.send(&step);
            }
            Told::Ended => {
                times.close_phase();
                times.took = Some(monotonic().saturating_sub(caller.began));
            }
            Told::Outcome(end) => {
                times.close_phase();
                let outcome = times.outcome(key, service, end);
                caller.lines.send(&Progress::Outcome { outcome });
            }
        }
    }
}

impl Times {
    fn step(&mut self, key: &ServiceKey, at: Timestamp, notice: &Notice) -> Progress {
        let message = match notice {
            Notice::PhaseEntered { wait } => {
                if self.phase.is_none_or(|(phase, _)| phase != wait.phase) {
                    self.close_phase();
                    self.phase = Some((wait.phase, monotonic()));
                }
                text::waiting(wait)
            }
            Notice::RolloutBegan { .. }
            | Notice::InstanceFailed { .. }
            | Notice::Switched { .. }
            | Notice::WarmUntil { .. }
            | Notice::WarmRetired { .. }
            | Notice::PolicyChanged
            | Notice::PolicyKept { .. }
            | Notice::RolloutEnded { .. }
            | Notice::RouteRefused { .. }
            | Notice::Gone => text::notice(notice),
        };
        let phase = self.phase.map_or("", |(phase, _)| phase.name());
        Progress::Step {
            service: key.service.clone(),
            at,
            phase: phase.to_owned(),
            message,
        }
    }

    fn close_phase(&mut self) {
        if let Some((phase, since)) = self.phase.take() {
            let duration = monotonic().saturating_sub(since);
            self.phases.push(PhaseTime {
                phase: phase.name().to_owned(),
                duration_us: u64::try_from(duration.as_micros()).unwrap_or(u64::MAX),
            });
        }
    }

    fn outcome(&mut self, key: &ServiceKey, service: &Service, end: CallEnd) -> Outcome {
        let CallEnd {
            from,
            to,
            result,
            why,
            requests,
        } = end;
        let took = self.took.unwrap_or_default();
        Outcome {
            service: key.service.clone(),
            environment: key.environment.clone(),
            from,
            to,
            result,
            reason: why.as_ref().map(text::why),
            duration_ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
            requests,
            phases: std::mem::take(&mut self.phases),
            warm: service.warm().map(view::warm),
            url: view::url(service),
        }
    }
}
