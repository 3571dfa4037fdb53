//! The calls that decide something. What a call asks is checked as a whole before any of it is journalled: a refused call has
//! changed nothing.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use kiln_model::api::{ApiError, DownRequest, RollbackRequest};
use kiln_model::{
    Actor, ChangeKind, EnvName, EnvironmentSpec, Plan, ProjectName, ServiceKey, ServiceName,
};
use kiln_plan::{Event, Service};

use crate::controller::{Controller, Pending, Step, Work};
use crate::input::{Ask, CallId, Effect};
use crate::refused::Refused;

/// An apply whose images and sockets are being seen to.
#[derive(Clone, Debug)]
pub(crate) struct Preparing {
    call: CallId,
    actor: Option<Actor>,
    project: ProjectName,
    events: Vec<(ServiceKey, Event)>,
    unchanged: Vec<ServiceKey>,
    listen: Vec<SocketAddr>,
}

impl Controller {
    /// What would change if `spec` were applied.
    pub fn plan(&self, spec: &EnvironmentSpec) -> Result<Plan, Box<Refused>> {
        for (name, wanted) in &spec.services {
            let service = key(&spec.environment, name);
            let known = wanted.release.is_known() && wanted.policy.unknown.is_empty();
            if !known {
                let release = wanted.release.unknown.names();
                let members = release.chain(wanted.policy.unknown.names());
                return Err(Box::new(Refused::Unknown {
                    service,
                    members: members.map(str::to_owned).collect(),
                }));
            }
            if let Some(found) = self.services.get(&service)
                && !found.is_gone()
                && *found.project() != spec.project
            {
                return Err(Box::new(Refused::OtherProject {
                    service,
                    theirs: found.project().clone(),
                    ours: spec.project.clone(),
                }));
            }
        }
        let parent = self.parent(&spec.environment);
        Ok(kiln_plan::plan(&self.services, parent, spec))
    }

    pub(crate) fn reply(&mut self, call: CallId, answer: Result<(), Refused>) {
        self.effects.push_back(Effect::Reply { call, answer });
    }

    pub(crate) fn take_call(&mut self, call: CallId, actor: Option<Actor>, ask: Ask) {
        let taken = match ask {
            Ask::Apply(plan) => self.apply(call, actor, &plan),
            Ask::Rollback(request) => self.roll_back(call, actor, &request),
            Ask::Down(request) => {
                self.take_down(call, actor, &request);
                Ok(())
            }
        };
        if let Err(refused) = taken {
            self.reply(call, Err(*refused));
        }
    }

    fn apply(
        &mut self,
        call: CallId,
        actor: Option<Actor>,
        plan: &Plan,
    ) -> Result<(), Box<Refused>> {
        let spec = &plan.spec;
        let current = self.parent(&spec.environment);
        if plan.parent != current || self.plan(spec)?.changes != plan.changes {
            return Err(Box::new(Refused::Stale {
                environment: spec.environment.clone(),
                parent: plan.parent,
                current,
            }));
        }
        let events = events(plan)?;
        for (service, event) in &events {
            let found = self.services.get(service);
            if let Some(refusal) = found.and_then(|found| found.accepts(event).err()) {
                return Err(Box::new(Refused::Refusal {
                    service: service.clone(),
                    refusal,
                }));
            }
        }
        let listen = self.claims(spec)?;
        let unchanged = spec
            .services
            .keys()
            .map(|name| key(&spec.environment, name))
            .filter(|key| !events.iter().any(|(changed, _)| changed == key))
            .collect();
        let images = spec.services.iter();
        self.effects.push_back(Effect::Prepare {
            images: images
                .map(|(name, service)| (name.clone(), service.release.image))
                .collect(),
            listen: listen.clone(),
        });
        self.pending = Some(Pending::Prepare(Box::new(Preparing {
            call,
            actor,
            project: spec.project.clone(),
            events,
            unchanged,
            listen: listen.into_values().collect(),
        })));
        Ok(())
    }

    /// Every `listen` of the spec is this service's alone.
    fn claims(
        &self,
        spec: &EnvironmentSpec,
    ) -> Result<BTreeMap<ServiceName, SocketAddr>, Box<Refused>> {
        let mut claimed: BTreeMap<SocketAddr, ServiceKey> = self
            .services
            .iter()
            .filter(|(key, service)| {
                let ours =
                    key.environment == spec.environment && *service.project() == spec.project;
                !service.is_gone() && !ours
            })
            .filter_map(|(key, service)| Some((service.policy()?.listen?, key.clone())))
            .collect();
        let mut listen = BTreeMap::new();
        for (name, wanted) in &spec.services {
            let Some(address) = wanted.policy.listen else {
                continue;
            };
            let service = key(&spec.environment, name);
            if let Some(by) = claimed.insert(address, service.clone()) {
                return Err(Box::new(Refused::ListenTaken {
                    address,
                    service,
                    by,
                }));
            }
            listen.insert(name.clone(), address);
        }
        Ok(listen)
    }

    pub(crate) fn prepared(&mut self, result: Result<(), ApiError>) {
        let Some(Pending::Prepare(preparing)) = self.pending.take() else {
            return;
        };
        let Preparing {
            call,
            actor,
            project,
            events,
            unchanged,
            listen,
        } = *preparing;
        // The shell listens there by now, whatever becomes of the call.
        self.listening.extend(listen);
        if let Err(error) = result {
            self.listen();
            self.reply(call, Err(Refused::Prepare(error)));
            return;
        }
        for service in &unchanged {
            self.tell_unchanged(call, service);
        }
        self.begin(call, actor, &project, events, false);
    }

    /// The steps of a call, before anything that has happened since.
    fn begin(
        &mut self,
        call: CallId,
        actor: Option<Actor>,
        project: &ProjectName,
        events: Vec<(ServiceKey, Event)>,
        rolls_back: bool,
    ) {
        if events.is_empty() {
            self.listen();
            self.reply(call, Ok(()));
            self.finish(call);
            return;
        }
        let last = events.len() - 1;
        let steps: Vec<_> = events.into_iter().enumerate().collect();
        for (index, (service, event)) in steps.into_iter().rev() {
            if !self.services.contains_key(&service) {
                let new = Service::new(service.clone(), project.clone());
                #[cfg(feature = "mutations")]
                let new = {
                    let mut new = new;
                    crate::controller::mutate(&mut new, self.mutation);
                    new
                };
                self.services.insert(service.clone(), new);
            }
            self.wait_for(call, &service, rolls_back);
            self.queue.push_front(Work::Step(Box::new(Step {
                service,
                event,
                actor: actor.clone(),
                call: Some(call),
                last: index == last,
            })));
        }
    }

    /// A step of the call could not be written: none of those that follow is tried.
    pub(crate) fn fail_call(&mut self, call: CallId, service: &ServiceKey, problem: String) {
        let mut dropped = vec![service.clone()];
        self.queue.retain(|work| match work {
            Work::Step(step) if step.call == Some(call) => {
                dropped.push(step.service.clone());
                false
            }
            Work::Step(_) | Work::Call { .. } | Work::Raise(_) => true,
        });
        for service in dropped {
            self.forget_waiter(call, &service);
        }
        self.listen();
        self.reply(call, Err(Refused::Journal { problem }));
        self.finish(call);
    }

    /// A step of the call is still to be written.
    pub(crate) fn is_under_way(&self, call: CallId) -> bool {
        let of_call = |work: &Work| matches!(work, Work::Step(step) if step.call == Some(call));
        let pending = match &self.pending {
            Some(Pending::Journal { work, .. }) => of_call(work),
            Some(Pending::Prepare(preparing)) => preparing.call == call,
            None => false,
        };
        pending || self.queue.iter().any(of_call)
    }

    fn roll_back(
        &mut self,
        call: CallId,
        actor: Option<Actor>,
        request: &RollbackRequest,
    ) -> Result<(), Box<Refused>> {
        let service = key(&request.environment, &request.service);
        let Some(found) = self.services.get(&service) else {
            return Err(Box::new(Refused::NotFound { service }));
        };
        let event = Event::Rollback { to: request.to };
        if let Err(refusal) = found.accepts(&event) {
            return Err(Box::new(Refused::Refusal { service, refusal }));
        }
        let project = found.project().clone();
        self.begin(call, actor, &project, vec![(service, event)], true);
        Ok(())
    }

    fn take_down(&mut self, call: CallId, actor: Option<Actor>, request: &DownRequest) {
        let DownRequest {
            environment,
            project,
        } = request;
        let wanted: Vec<_> = self
            .services
            .iter()
            .filter(|(key, service)| {
                let here = environment
                    .as_ref()
                    .is_none_or(|name| *name == key.environment);
                let ours = project
                    .as_ref()
                    .is_none_or(|name| name == service.project());
                !service.is_gone() && here && ours
            })
            .map(|(key, service)| (key.clone(), service.project().clone()))
            .collect();
        let Some(project) = wanted.first().map(|(_, project)| project.clone()) else {
            self.reply(call, Ok(()));
            self.finish(call);
            return;
        };
        let events = wanted.into_iter().map(|(key, _)| (key, Event::Remove));
        self.begin(call, actor, &project, events.collect(), false);
    }
}

/// What a plan's changes are to their services.
fn events(plan: &Plan) -> Result<Vec<(ServiceKey, Event)>, Box<Refused>> {
    let mut events = Vec::new();
    for change in &plan.changes {
        let service = key(&plan.spec.environment, &change.service);
        let event = match (&change.kind, plan.spec.services.get(&change.service)) {
            (ChangeKind::Create { .. } | ChangeKind::Replace { .. }, Some(spec)) => Event::Deploy {
                release: Box::new(spec.release.clone()),
                origin: spec.origin.clone(),
                policy: spec.policy.clone(),
            },
            (ChangeKind::Policy, Some(spec)) => Event::SetPolicy {
                policy: spec.policy.clone(),
            },
            (ChangeKind::Remove { .. }, None) => Event::Remove,
            (ChangeKind::Create { .. } | ChangeKind::Replace { .. } | ChangeKind::Policy, None)
            | (ChangeKind::Remove { .. }, Some(_)) => {
                return Err(Box::new(Refused::Contradiction { service }));
            }
        };
        events.push((service, event));
    }
    Ok(events)
}

fn key(environment: &EnvName, service: &ServiceName) -> ServiceKey {
    ServiceKey {
        environment: environment.clone(),
        service: service.clone(),
    }
}
