//! The calls of the HTTP API, each answered from the owner's state.
//!
//! What a call asks is checked as a whole before any of it is journalled: a refused call has changed nothing.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use kiln_model::api::{ApiError, DownRequest, ErrorCode, RollbackRequest};
use kiln_model::{
    Actor, ChangeKind, EnvName, EnvironmentSpec, Plan, ProjectName, ServiceKey, ServiceName,
    StateId,
};
use kiln_plan::{Event, Service};

use crate::listeners::ListenError;
use crate::owner::{Call, Owner, chain_of};
use crate::progress::Lines;
use crate::view;

impl Owner {
    pub(crate) fn call(&mut self, call: Call) {
        // A caller that went away is no reason to undo what it asked for.
        match call {
            Call::Status { environment, reply } => {
                let status = view::status(
                    &self.services,
                    environment.as_ref(),
                    &self.problems,
                    &self.ejected,
                );
                let _ = reply.send(status);
            }
            Call::Plan { spec, reply } => {
                let _ = reply.send(self.plan(&spec));
            }
            Call::Apply {
                plan,
                actor,
                lines,
                reply,
            } => {
                let _ = reply.send(self.apply(&plan, actor, &lines));
            }
            Call::Rollback {
                request,
                actor,
                lines,
                reply,
            } => {
                let _ = reply.send(self.roll_back(&request, actor, &lines));
            }
            Call::Down {
                request,
                actor,
                lines,
                reply,
            } => {
                let _ = reply.send(self.take_down(&request, actor, &lines));
            }
            Call::Releases {
                environment,
                service,
                reply,
            } => {
                let wanted = |key: &ServiceKey| {
                    environment
                        .as_ref()
                        .is_none_or(|name| *name == key.environment)
                        && service.as_ref().is_none_or(|name| *name == key.service)
                };
                let _ = reply.send(view::releases(&self.services, wanted));
            }
            Call::Instances { service, reply } => {
                let present = self.known(&service).map(view::logged);
                let _ = reply.send(present);
            }
            Call::Ping { reply } => {
                let _ = reply.send(());
            }
            Call::Shutdown { reply } => {
                let _ = reply.send(self.shut_down());
            }
        }
    }

    fn known(&self, key: &ServiceKey) -> Result<&Service, ApiError> {
        self.services.get(key).ok_or_else(|| ApiError {
            code: ErrorCode::NotFound,
            message: format!(
                "there is no service `{}` in environment `{}`: `kiln status` lists what there is",
                key.service, key.environment
            ),
        })
    }

    /// The state that plans of this environment name as parent.
    fn parent(&self, environment: &EnvName) -> StateId {
        self.decided
            .get(environment)
            .copied()
            .unwrap_or(self.decided_before)
    }

    fn plan(&self, spec: &EnvironmentSpec) -> Result<Plan, ApiError> {
        for name in spec.services.keys() {
            let key = key(&spec.environment, name);
            if let Some(service) = self.services.get(&key)
                && !service.is_gone()
                && *service.project() != spec.project
            {
                return Err(ApiError {
                    code: ErrorCode::Precondition,
                    message: format!(
                        "the service `{key}` belongs to project `{}`, and this definition is of project `{}`: \
                         give the service another name, or use another environment",
                        service.project(),
                        spec.project
                    ),
                });
            }
        }
        Ok(kiln_plan::plan(
            &self.services,
            self.parent(&spec.environment),
            spec,
        ))
    }

    fn apply(&mut self, plan: &Plan, actor: Actor, lines: &Lines) -> Result<(), ApiError> {
        let spec = &plan.spec;
        let current = self.parent(&spec.environment);
        if plan.parent != current || self.plan(spec)?.changes != plan.changes {
            return Err(ApiError {
                code: ErrorCode::StalePlan,
                message: format!(
                    "the plan was made from state {}, and `{}` is at state {current} by now: plan again",
                    plan.parent, spec.environment
                ),
            });
        }
        let events = self.events(plan)?;
        for (key, event) in &events {
            let refused = match self.services.get(key) {
                Some(service) => service.accepts(event).err(),
                None => None,
            };
            if let Some(refusal) = refused {
                return Err(ApiError {
                    code: ErrorCode::Busy,
                    message: format!("{key}: {refusal}"),
                });
            }
        }
        self.check_images(spec)?;
        self.claim_listeners(spec)?;
        for name in spec.services.keys() {
            let key = key(&spec.environment, name);
            if !events.iter().any(|(changed, _)| *changed == key) {
                self.waiting.unchanged(&key, self.services.get(&key), lines);
            }
        }
        for (key, event) in events {
            self.begin(&key, &spec.project, event, actor.clone(), lines)?;
        }
        Ok(())
    }

    /// What a plan's changes are to their services.
    fn events(&self, plan: &Plan) -> Result<Vec<(ServiceKey, Event)>, ApiError> {
        let mut events = Vec::new();
        for change in &plan.changes {
            let key = key(&plan.spec.environment, &change.service);
            let event = match (&change.kind, plan.spec.services.get(&change.service)) {
                (ChangeKind::Create { .. } | ChangeKind::Replace { .. }, Some(spec)) => {
                    Event::Deploy {
                        release: Box::new(spec.release.clone()),
                        origin: spec.origin.clone(),
                        policy: spec.policy.clone(),
                    }
                }
                (ChangeKind::Policy, Some(spec)) => Event::SetPolicy {
                    policy: spec.policy.clone(),
                },
                (ChangeKind::Remove { .. }, None) => Event::Remove,
                _ => {
                    return Err(ApiError {
                        code: ErrorCode::BadRequest,
                        message: format!("the plan contradicts itself about `{key}`: plan again"),
                    });
                }
            };
            events.push((key, event));
        }
        Ok(events)
    }

    fn check_images(&self, spec: &EnvironmentSpec) -> Result<(), ApiError> {
        for (name, service) in &spec.services {
            if let Err(error) = self.effects.store.image(&service.release.image) {
                return Err(ApiError {
                    code: ErrorCode::Precondition,
                    message: format!(
                        "service `{name}` wants the image {}, which is not whole in the store ({}): bake it with `kiln bake`",
                        service.release.image,
                        chain_of(&error)
                    ),
                });
            }
        }
        Ok(())
    }

    /// Every `listen` of the spec is this service's alone, and its socket is in the supervisor.
    fn claim_listeners(&mut self, spec: &EnvironmentSpec) -> Result<(), ApiError> {
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
        for (name, service) in &spec.services {
            let Some(address) = service.policy.listen else {
                continue;
            };
            let key = key(&spec.environment, name);
            if let Some(other) = claimed.insert(address, key.clone()) {
                return Err(ApiError {
                    code: ErrorCode::Precondition,
                    message: format!(
                        "`{key}` wants to listen on {address}, where `{other}` listens: give one of them another `listen`"
                    ),
                });
            }
        }
        self.open_inside();
        for (name, service) in &spec.services {
            let Some(address) = service.policy.listen else {
                continue;
            };
            if let Err(error) = self.listeners.ensure(address) {
                self.release_listeners();
                let code = match error {
                    ListenError::Taken { .. } | ListenError::Bind { .. } => ErrorCode::Precondition,
                    ListenError::Supervisor(_) => ErrorCode::Unavailable,
                };
                let message = format!("service `{name}`: {}", chain_of(&error));
                return Err(ApiError { code, message });
            }
        }
        Ok(())
    }

    /// Journals the first event of something that a caller waits for.
    fn begin(
        &mut self,
        key: &ServiceKey,
        project: &ProjectName,
        event: Event,
        actor: Actor,
        lines: &Lines,
    ) -> Result<(), ApiError> {
        self.services
            .entry(key.clone())
            .or_insert_with(|| Service::new(key.clone(), project.clone()));
        self.waiting
            .begin(key, lines.clone(), self.traffic.total(key));
        match self.step(key, event, Some(actor)) {
            Ok(()) => Ok(()),
            Err(error) => {
                self.waiting.forget(key);
                Err(ApiError {
                    code: ErrorCode::Unavailable,
                    message: chain_of(&error),
                })
            }
        }
    }

    fn roll_back(
        &mut self,
        request: &RollbackRequest,
        actor: Actor,
        lines: &Lines,
    ) -> Result<(), ApiError> {
        let key = key(&request.environment, &request.service);
        let service = self.known(&key)?;
        let event = Event::Rollback { to: request.to };
        if let Err(refusal) = service.accepts(&event) {
            let code = refusal.code();
            return Err(ApiError {
                code,
                message: format!("{key}: {refusal}"),
            });
        }
        let project = service.project().clone();
        self.begin(&key, &project, event, actor.clone(), lines)
    }

    fn take_down(
        &mut self,
        request: &DownRequest,
        actor: Actor,
        lines: &Lines,
    ) -> Result<(), ApiError> {
        let wanted: Vec<_> = self
            .services
            .values()
            .filter(|service| !service.is_gone())
            .filter(|service| {
                request
                    .environment
                    .as_ref()
                    .is_none_or(|name| *name == service.key().environment)
                    && request
                        .project
                        .as_ref()
                        .is_none_or(|name| name == service.project())
            })
            .map(|service| (service.key().clone(), service.project().clone()))
            .collect();
        for (key, project) in wanted {
            self.begin(&key, &project, Event::Remove, actor.clone(), lines)?;
        }
        Ok(())
    }

    fn shut_down(&mut self) -> Result<(), ApiError> {
        self.effects.shut_down().map_err(|error| ApiError {
            code: ErrorCode::Unavailable,
            message: chain_of(&error),
        })
    }
}

fn key(environment: &EnvName, service: &ServiceName) -> ServiceKey {
    ServiceKey {
        environment: environment.clone(),
        service: service.clone(),
    }
}
