//! The controller and the engine: actions become commands, and what the engine has seen becomes events.
//!
//! What an engine could not do is tried again from here, for every kind of command alike: engines try once and say how it went.
//! A start that failed is the keeper's: another instance takes its place.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use kiln_model::{
    Command, ExitReason, ExitRecord, Generation, InstanceId, Observation, SeenInstance, SeenState,
    ServiceKey, Timestamp,
};
use kiln_plan::{Action, Event, ProbeKind};

use crate::controller::Controller;
use crate::input::Effect;
use crate::mutation::Mutation;

/// The wait before a command is tried again; doubled each time.
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_MOST: Duration = Duration::from_secs(30);

/// What the engine is known to have, and what it could not do.
#[derive(Clone, Debug, Default)]
pub(crate) struct Adoption {
    /// What ran when the engine was asked what there is. Of what was started since, the answer may not know.
    asked: BTreeSet<InstanceId>,
    /// Instances of no service: they are being removed.
    foreign: BTreeSet<InstanceId>,
    failed: BTreeMap<InstanceId, Failed>,
    /// The engine could not tell what there is.
    sync: Option<Failed>,
}

#[derive(Clone, Debug)]
struct Failed {
    problem: String,
    times: u32,
    /// `None`: it was tried again and is not answered.
    again: Option<Timestamp>,
}

impl Failed {
    fn after(before: Option<&Self>, now: Timestamp, problem: String) -> Self {
        let times = before.map_or(0, |failed| failed.times).saturating_add(1);
        let wait = RETRY_FIRST.saturating_mul(1 << (times - 1).min(5));
        Self {
            problem,
            times,
            again: Some(now.plus(wait.min(RETRY_MOST))),
        }
    }
}

impl Adoption {
    pub(crate) fn problems(&self) -> impl Iterator<Item = &str> {
        let failed = self.failed.values().chain(&self.sync);
        failed.map(|failed| failed.problem.as_str())
    }

    pub(crate) fn retries_at(&self) -> Option<Timestamp> {
        let failed = self.failed.values().chain(&self.sync);
        failed.filter_map(|failed| failed.again).min()
    }
}

impl Controller {
    /// What the planner decided, as a command. Routes are in the table, which was pushed with the step.
    pub(crate) fn carry_out(&mut self, key: &ServiceKey, action: Action) {
        let command = match action {
            Action::Start {
                id,
                instance,
                release: number,
            } => {
                let record = self.services.get(key).and_then(|s| s.release(number));
                let Some(record) = record else { return };
                self.owners.insert(instance.clone(), key.clone());
                Command::Start {
                    instance,
                    generation: Generation(id.0),
                    service: key.clone(),
                    number,
                    release: Box::new(record.release.clone()),
                }
            }
            Action::Stop {
                id,
                instance,
                grace,
            } => Command::Stop {
                instance,
                generation: Generation(id.0),
                grace,
            },
            Action::Remove { id, instance } => Command::Remove {
                instance,
                generation: Generation(id.0),
            },
            Action::Route { .. } => return,
        };
        self.effects.push_back(Effect::Engine(command));
    }

    pub(crate) fn observed(&mut self, observation: Observation) {
        match observation {
            Observation::Synced { instances } => self.synced(instances),
            Observation::SyncFailed { problem } => {
                let now = self.clock.now();
                let failed = Failed::after(self.adoption.sync.as_ref(), now, problem);
                self.adoption.sync = Some(failed);
            }
            Observation::Started {
                instance,
                pid,
                endpoint,
                at,
            } => self.of_instance(instance, |instance| Event::Started {
                instance,
                pid,
                endpoint,
                at,
            }),
            Observation::StartFailed { instance, failure } => {
                self.of_instance(instance, |instance| Event::StartFailed {
                    instance,
                    failure,
                });
            }
            Observation::Exited { instance, record } => {
                // Where its removal failed, the end was told before, and the removal is still to be done.
                if self.is_stopping(&instance) {
                    self.adoption.failed.remove(&instance);
                }
                self.of_instance(instance, |instance| Event::Exited { instance, record });
            }
            Observation::Removed { instance } => {
                self.adoption.failed.remove(&instance);
                self.adoption.foreign.remove(&instance);
                self.drained.remove(&instance);
                self.ejected.remove(&instance);
                let removed = instance.clone();
                self.of_instance(instance, |instance| Event::Removed { instance });
                self.owners.remove(&removed);
            }
            Observation::Probed { instance, ready } => {
                self.of_instance(instance, |instance| Event::Probed {
                    instance,
                    probe: ProbeKind::Ready,
                    passes: ready,
                });
            }
            Observation::Failed { instance, problem } => {
                if self.mutation == Some(Mutation::StopOnce) {
                    return;
                }
                let now = self.clock.now();
                let failed = Failed::after(self.adoption.failed.get(&instance), now, problem);
                self.adoption.failed.insert(instance, failed);
            }
        }
    }

    fn of_instance(&mut self, instance: InstanceId, event: impl FnOnce(InstanceId) -> Event) {
        if let Some(key) = self.owners.get(&instance).cloned() {
            self.happened(key, event(instance));
        }
    }

    /// The engine has told everything that there is. What ended while no controller looked is told to its service, what is no
    /// service's is removed, and every action without an outcome is issued again.
    fn synced(&mut self, seen: Vec<SeenInstance>) {
        let problem = seen.iter().find_map(|seen| seen.problem.clone());
        if problem.is_some() && self.mutation == Some(Mutation::LoseSeen) {
            self.adoption.sync = None;
            return;
        }
        // Asking again is how it is tried again.
        self.adoption.sync = problem.map(|problem| {
            let now = self.clock.now();
            Failed::after(self.adoption.sync.as_ref(), now, problem)
        });
        let mut there = BTreeSet::new();
        for SeenInstance {
            instance,
            state,
            problem: _,
        } in seen
        {
            there.insert(instance.clone());
            if !self.owners.contains_key(&instance) {
                self.adoption.foreign.insert(instance.clone());
                self.remove_foreign(instance.clone());
            }
            if let SeenState::Ended(record) = state {
                self.of_instance(instance, |instance| Event::Exited { instance, record });
            }
        }
        let lost: Vec<_> = self
            .services
            .values()
            .flat_map(|service| service.instances())
            .filter(|instance| instance.has_started() && self.adoption.asked.contains(&instance.id))
            .filter(|instance| !there.contains(&instance.id))
            .map(|instance| instance.id.clone())
            .collect();
        for instance in lost {
            let record = ExitRecord {
                reason: ExitReason::Lost,
                at: self.clock.now(),
                last_lines: Vec::new(),
            };
            self.of_instance(instance, |instance| Event::Exited { instance, record });
        }
        let outstanding: Vec<_> = self
            .services
            .iter()
            .map(|(key, service)| (key.clone(), service.outstanding()))
            .collect();
        for (key, actions) in outstanding {
            for action in actions {
                self.carry_out(&key, action);
            }
            self.effects.push_back(Effect::Probe(key));
        }
    }

    /// Asks the engine what there is.
    pub(crate) fn sync(&mut self) {
        let instances = self
            .services
            .values()
            .flat_map(|service| service.instances());
        self.adoption.asked = instances
            .filter(|instance| instance.has_started())
            .map(|instance| instance.id.clone())
            .collect();
        self.effects.push_back(Effect::Engine(Command::Sync));
    }

    /// It was told to stop, and has not said that it ended.
    fn is_stopping(&self, instance: &InstanceId) -> bool {
        let service = self
            .owners
            .get(instance)
            .and_then(|key| self.services.get(key));
        let outstanding = service
            .map(|service| service.outstanding())
            .unwrap_or_default();
        outstanding
            .iter()
            .any(|action| matches!(action, Action::Stop { instance: id, .. } if id == instance))
    }

    fn remove_foreign(&mut self, instance: InstanceId) {
        self.effects.push_back(Effect::Engine(Command::Remove {
            instance,
            generation: Generation(u64::MAX),
        }));
    }

    /// Gives the engine again what it could not do, where the time has come.
    pub(crate) fn retry_engine(&mut self) {
        let now = self.clock.now();
        let due = |failed: &Failed| failed.again.is_some_and(|again| now >= again);
        if let Some(sync) = self.adoption.sync.as_mut().filter(|sync| due(sync)) {
            sync.again = None;
            self.sync();
        }
        let again: Vec<_> = self
            .adoption
            .failed
            .iter_mut()
            .filter(|(_, failed)| due(failed))
            .map(|(instance, failed)| {
                failed.again = None;
                instance.clone()
            })
            .collect();
        for instance in again {
            if self.adoption.foreign.contains(&instance) {
                self.remove_foreign(instance);
                continue;
            }
            let Some(key) = self.owners.get(&instance).cloned() else {
                self.adoption.failed.remove(&instance);
                continue;
            };
            let of_it = |action: &Action| match action {
                Action::Stop { instance: id, .. } | Action::Remove { instance: id, .. } => {
                    *id == instance
                }
                Action::Start { .. } | Action::Route { .. } => false,
            };
            let actions = self.services.get(&key).map(|s| s.outstanding());
            let mut actions = actions.unwrap_or_default();
            actions.retain(of_it);
            if actions.is_empty() {
                self.adoption.failed.remove(&instance);
            }
            for action in actions {
                self.carry_out(&key, action);
            }
        }
    }
}
