//! Those who called, and what they may expect to hear.

use std::collections::BTreeMap;

use kiln_control::{CallId, ProxyId};
use kiln_model::ServiceKey;

#[derive(Default)]
pub(crate) struct Callers {
    next: u64,
    /// Those that were taken and are not finished: false while the answer is awaited.
    going: BTreeMap<CallId, bool>,
    /// The ends that were told without their outcome yet.
    ended: BTreeMap<(CallId, ServiceKey), End>,
}

/// When it was told, and when each proxy answers the question for its counters that belongs to it.
struct End {
    at: u64,
    answers: BTreeMap<ProxyId, u64>,
    /// The questions that belong to it are still being asked.
    asking: bool,
}

impl Callers {
    pub(crate) fn begin(&mut self) -> CallId {
        self.next += 1;
        let call = CallId(self.next);
        self.going.insert(call, false);
        call
    }

    pub(crate) fn reply(&mut self, call: CallId, taken: bool) {
        if taken {
            self.going.insert(call, true);
        } else {
            self.going.remove(&call);
        }
    }

    pub(crate) fn finish(&mut self, call: CallId) {
        self.going.remove(&call);
    }

    pub(crate) fn ended(&mut self, call: CallId, service: &ServiceKey, at: u64) {
        let answers = BTreeMap::new();
        let end = End {
            at,
            answers,
            asking: true,
        };
        self.ended.insert((call, service.clone()), end);
    }

    /// A proxy is asked for its counters: for the ends that were just told.
    pub(crate) fn asked(&mut self, proxy: ProxyId, answers_at: u64) {
        for end in self.ended.values_mut().filter(|end| end.asking) {
            end.answers.entry(proxy).or_insert(answers_at);
        }
    }

    /// What the controller asks from now on belongs to something else.
    pub(crate) fn next_input(&mut self) {
        for end in self.ended.values_mut() {
            end.asking = false;
        }
    }

    /// The outcome is told: since when it was awaited, and the last answer of the living proxies.
    pub(crate) fn outcome(
        &mut self,
        call: CallId,
        service: &ServiceKey,
        living: &[ProxyId],
    ) -> Option<(u64, u64)> {
        let End { at, answers, .. } = self.ended.remove(&(call, service.clone()))?;
        let of_living = living.iter().filter_map(|proxy| answers.get(proxy));
        Some((at, of_living.copied().max().unwrap_or(0)))
    }

    /// The connections of the dead controller are gone.
    pub(crate) fn forget_all(&mut self) {
        self.going.clear();
        self.ended.clear();
    }

    pub(crate) fn unfinished(&self) -> impl Iterator<Item = CallId> {
        self.going.keys().copied()
    }
}
