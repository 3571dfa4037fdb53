//! Who waits for what: a call that began something hears of its steps and of its end.
//!
//! An end is told with the requests that were served and failed meanwhile. So every proxy is asked for its counters, and
//! waited for a moment.

use std::collections::BTreeMap;
use std::time::Duration;

use kiln_model::api::{RequestCount, RolloutResult};
use kiln_model::{ReleaseNumber, ServiceKey, Timestamp, Why};
use kiln_plan::{Notice, RolloutEnd, Service};

use crate::controller::Controller;
use crate::input::{CallEnd, CallId, Effect, ProxyId, Told};
use crate::mutation::Mutation;

/// How long an outcome waits for the proxies to count.
const SETTLE: Duration = Duration::from_millis(200);

/// One call that waits for one service.
#[derive(Clone, Debug)]
pub(crate) struct Waiter {
    call: CallId,
    service: ServiceKey,
    /// It asked for a rollback: that a rollout is turned back is what it wants.
    rolls_back: bool,
    /// The service's requests when the call came.
    before: RequestCount,
}

/// An end that waits for the proxies' present counters before it is told.
#[derive(Clone, Debug)]
pub(crate) struct Settling {
    waiter: Waiter,
    end: CallEnd,
    /// Which answer of each proxy is waited for. One that is gone has answered.
    asked: BTreeMap<ProxyId, u64>,
    until: Timestamp,
}

impl Controller {
    pub(crate) fn wait_for(&mut self, call: CallId, service: &ServiceKey, rolls_back: bool) {
        self.waiters.push(Waiter {
            call,
            service: service.clone(),
            rolls_back,
            before: self.traffic.total(service),
        });
    }

    /// What was begun could not be journalled.
    pub(crate) fn forget_waiter(&mut self, call: CallId, service: &ServiceKey) {
        self.waiters
            .retain(|waiter| waiter.call != call || waiter.service != *service);
    }

    /// A service that a call names and that has nothing to change.
    pub(crate) fn tell_unchanged(&mut self, call: CallId, service: &ServiceKey) {
        let current = self.services.get(service).and_then(Service::current);
        let end = CallEnd {
            from: current,
            to: current,
            result: RolloutResult::Unchanged,
            why: None,
            requests: RequestCount::default(),
        };
        self.tell(call, service, Told::Outcome(end));
    }

    fn tell(&mut self, call: CallId, service: &ServiceKey, told: Told) {
        self.effects.push_back(Effect::Tell {
            call,
            service: service.clone(),
            told,
        });
    }

    /// Hands on what a step of the service noticed, and ends the waits that it ends.
    pub(crate) fn hand_on(&mut self, key: &ServiceKey, notices: &[Notice]) {
        let at = self.clock.now();
        let calls: Vec<_> = self
            .waiters
            .iter()
            .filter(|waiter| waiter.service == *key)
            .map(|waiter| waiter.call)
            .collect();
        for notice in notices {
            for call in &calls {
                let notice = notice.clone();
                self.tell(*call, key, Told::Noticed { at, notice });
            }
            if let Some(end) = self.end_of(key, notice) {
                self.end_waits(key, &end);
            }
        }
    }

    /// How what is waited for ended, if the notice says so.
    fn end_of(&self, key: &ServiceKey, notice: &Notice) -> Option<RolloutEnd> {
        let service = self.services.get(key)?;
        let current = service.current();
        let policy_alone = service.rollout().is_none() && !service.is_removing();
        let of_policy = |result, why| RolloutEnd {
            from: current,
            to: current.unwrap_or_default(),
            result,
            why,
        };
        match notice {
            Notice::RolloutEnded { end } if end.result != RolloutResult::Removed => {
                Some(end.clone())
            }
            Notice::Gone => Some(RolloutEnd {
                from: None,
                to: ReleaseNumber(0),
                result: RolloutResult::Removed,
                why: None,
            }),
            Notice::PolicyChanged if policy_alone => Some(of_policy(RolloutResult::Done, None)),
            Notice::PolicyKept { why } if policy_alone => {
                Some(of_policy(RolloutResult::RolledBack, Some(why.clone())))
            }
            Notice::RolloutBegan { .. }
            | Notice::PhaseEntered { .. }
            | Notice::InstanceFailed { .. }
            | Notice::Switched { .. }
            | Notice::WarmUntil { .. }
            | Notice::WarmRetired { .. }
            | Notice::PolicyChanged
            | Notice::PolicyKept { .. }
            | Notice::RolloutEnded { .. }
            | Notice::RouteRefused { .. } => None,
        }
    }

    fn end_waits(&mut self, key: &ServiceKey, end: &RolloutEnd) {
        let (ended, going): (Vec<_>, Vec<_>) = std::mem::take(&mut self.waiters)
            .into_iter()
            .partition(|waiter| waiter.service == *key);
        self.waiters = going;
        if ended.is_empty() {
            return;
        }
        for waiter in &ended {
            self.tell(waiter.call, key, Told::Ended);
        }
        let until = self.clock.now().plus(SETTLE);
        let proxies: Vec<_> = self.links.keys().copied().collect();
        let asked: BTreeMap<_, _> = proxies
            .into_iter()
            .map(|proxy| (proxy, self.count(proxy)))
            .collect();
        for waiter in ended {
            self.settling.push(Settling {
                end: call_end(&waiter, end),
                waiter,
                asked: asked.clone(),
                until,
            });
        }
        self.tell_settled();
    }

    /// Nobody is waited for longer than that.
    pub(crate) fn settle(&mut self) {
        let now = self.clock.now();
        let any = self.settling.iter().any(|settling| settling.until <= now);
        for settling in &mut self.settling {
            if settling.until <= now || any && self.mutation == Some(Mutation::SettleAll) {
                settling.asked.clear();
            }
        }
        self.tell_settled();
    }

    pub(crate) fn settles_at(&self) -> Option<Timestamp> {
        self.settling.iter().map(|settling| settling.until).min()
    }

    pub(crate) fn tell_settled(&mut self) {
        let links = &self.links;
        let counts = |(proxy, answer): (&ProxyId, &u64)| {
            links.get(proxy).is_some_and(|link| link.answered < *answer)
        };
        let (settled, waiting): (Vec<_>, Vec<_>) = std::mem::take(&mut self.settling)
            .into_iter()
            .partition(|settling| !settling.asked.iter().any(counts));
        self.settling = waiting;
        for settling in settled {
            let Settling {
                waiter, mut end, ..
            } = settling;
            let after = self.traffic.total(&waiter.service);
            end.requests = RequestCount {
                served: after.served.saturating_sub(waiter.before.served),
                failed: after.failed.saturating_sub(waiter.before.failed),
            };
            self.tell(waiter.call, &waiter.service, Told::Outcome(end));
            self.finish(waiter.call);
        }
    }

    /// Says that nothing more is told to the call, where that is so.
    pub(crate) fn finish(&mut self, call: CallId) {
        let waits = self.waiters.iter().any(|waiter| waiter.call == call)
            || self.settling.iter().any(|s| s.waiter.call == call)
            || self.is_under_way(call);
        if !waits {
            self.effects.push_back(Effect::Finished(call));
        }
    }
}

/// What the end means to the call: where a person rolled back, that is what it asked for.
fn call_end(waiter: &Waiter, end: &RolloutEnd) -> CallEnd {
    let RolloutEnd {
        from,
        to,
        result,
        why,
    } = end.clone();
    let wanted = waiter.rolls_back && why == Some(Why::Asked);
    let (from, to, result, why) = match from {
        Some(back) if wanted => (Some(to), Some(back), RolloutResult::Done, None),
        Some(_) | None => (
            from,
            Some(to).filter(|to| *to != ReleaseNumber(0)),
            result,
            why,
        ),
    };
    CallEnd {
        from,
        to,
        result,
        why,
        requests: RequestCount::default(),
    }
}
