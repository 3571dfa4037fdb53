//! The simulated prober: runs the probes that the controller asks for. Samples are not events, transitions are.

use std::collections::BTreeMap;

use kiln_model::{InstanceId, ServiceKey};
use kiln_plan::{ProbeKind, ProbeWanted, Service};

use crate::engine::{Engine, Made, Truth};

/// The path that no release answers.
pub(crate) const WRONG: &str = "/wrong";

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Running {
    path: Option<String>,
    passing: bool,
}

#[derive(Default)]
pub(crate) struct Prober {
    running: BTreeMap<ServiceKey, BTreeMap<(InstanceId, ProbeKind), Running>>,
}

impl Prober {
    /// Starts and ends probes, and says when to look at those that were started.
    pub(crate) fn reconcile(
        &mut self,
        key: &ServiceKey,
        service: &Service,
        engine: &Engine,
        now: u64,
    ) -> Vec<(u64, InstanceId, ProbeKind)> {
        let running = self.running.entry(key.clone()).or_default();
        let mut wanted = BTreeMap::new();
        for probe in service.probes() {
            let ProbeWanted {
                instance,
                kind,
                endpoint: _,
                http,
                passing,
            } = probe;
            let path = http.map(|http| http.path);
            wanted.insert((instance, kind), Running { path, passing });
        }
        running.retain(|probe, running| {
            wanted
                .get(probe)
                .is_some_and(|wanted| wanted.path == running.path)
        });
        let mut looks = Vec::new();
        for (probe, start) in wanted {
            if running.contains_key(&probe) {
                continue;
            }
            let (instance, kind) = probe.clone();
            looks.push((now + 20, instance.clone(), kind));
            let made = engine.made.get(&instance);
            let changes = made.into_iter().flat_map(|made| {
                let ready = made.ready.iter().map(|(at, _)| *at);
                ready.chain(made.lifeless_at)
            });
            for at in changes.filter(|at| *at > now) {
                looks.push((at + 20, instance.clone(), kind));
            }
            running.insert(probe, start);
        }
        looks
    }

    /// Looks at an instance: the transition, if it is one.
    pub(crate) fn look(
        &mut self,
        key: &ServiceKey,
        instance: &InstanceId,
        kind: ProbeKind,
        engine: &Engine,
        faults: bool,
        now: u64,
    ) -> Option<bool> {
        let probe = (instance.clone(), kind);
        let running = self.running.get_mut(key)?.get_mut(&probe)?;
        let made = engine.made.get(instance)?;
        let passes = passes(made, kind, running.path.as_deref(), faults, now);
        if passes == running.passing {
            return None;
        }
        running.passing = passes;
        Some(passes)
    }
}

fn passes(made: &Made, kind: ProbeKind, path: Option<&str>, faults: bool, now: u64) -> bool {
    if made.truth != Truth::Alive || path == Some(WRONG) {
        return false;
    }
    let changes = made.ready.iter();
    let mut was = changes.filter(|(at, ready)| *at <= now && (faults || *ready));
    let ready = was.next_back().is_some_and(|(_, ready)| *ready);
    match kind {
        ProbeKind::Ready | ProbeKind::NextReady => ready,
        ProbeKind::Live | ProbeKind::NextLive => {
            let lifeless = made.lifeless_at.is_some_and(|at| at <= now);
            ready && !(faults && lifeless)
        }
    }
}
