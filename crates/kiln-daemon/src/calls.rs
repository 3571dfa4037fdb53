//! The calls of the HTTP API. Those that decide something are the core's; the others are answered here, from its state.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use kiln_control::Ask;
use kiln_fs::with_causes;
use kiln_model::api::{ApiError, ErrorCode};
use kiln_model::{Digest, ServiceKey, ServiceName};
use kiln_plan::Service;
use kiln_supervise::handoff;

use crate::listeners::ListenError;
use crate::owner::{Call, Owner};
use crate::{text, view};

impl Owner {
    pub(crate) fn call(&mut self, call: Call) {
        // A caller that went away is no reason to undo what it asked for.
        match call {
            Call::Status { environment, reply } => {
                drop(reply.send(view::status(&self.core, environment.as_ref())));
            }
            Call::Plan { spec, reply } => {
                let plan = self.core.plan(&spec);
                drop(reply.send(plan.map_err(|refused| text::refused(&refused))));
            }
            Call::Apply {
                plan,
                actor,
                lines,
                reply,
            } => self.begin(Ask::Apply(Box::new(plan)), actor, lines, reply),
            Call::Rollback {
                request,
                actor,
                lines,
                reply,
            } => self.begin(Ask::Rollback(request), actor, lines, reply),
            Call::Down {
                request,
                actor,
                lines,
                reply,
            } => self.begin(Ask::Down(request), actor, lines, reply),
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
                drop(reply.send(view::releases(&self.core, wanted)));
            }
            Call::Instances { service, reply } => {
                drop(reply.send(self.known(&service).map(view::logged)));
            }
            Call::Ping { reply } => drop(reply.send(())),
            Call::Shutdown { reply } => drop(reply.send(self.shut_down())),
        }
    }

    fn known(&self, key: &ServiceKey) -> Result<&Service, ApiError> {
        self.core.service(key).ok_or_else(|| {
            text::refused(&kiln_control::Refused::NotFound {
                service: key.clone(),
            })
        })
    }

    /// What an apply needs of this machine: whole images, and sockets at the supervisor.
    pub(crate) fn prepare(
        &mut self,
        images: &BTreeMap<ServiceName, Digest>,
        listen: &BTreeMap<ServiceName, SocketAddr>,
    ) -> Result<(), ApiError> {
        for (name, image) in images {
            if let Err(error) = self.engine.store().image(image) {
                return Err(ApiError {
                    code: ErrorCode::Precondition,
                    message: format!(
                        "service `{name}` wants the image {image}, which is not whole in the store ({}): bake it with `kiln bake`",
                        with_causes(&error)
                    ),
                });
            }
        }
        if let Err(message) = self.open_inside() {
            // Services are still reached from outside.
            eprintln!("kiln: instances reach no services: {message}");
        }
        for (name, address) in listen {
            self.listeners.ensure(*address).map_err(|error| ApiError {
                code: match error {
                    ListenError::Taken { .. } | ListenError::Bind { .. } => ErrorCode::Precondition,
                    ListenError::Supervisor(_) => ErrorCode::Unavailable,
                },
                message: format!("service `{name}`: {}", with_causes(&error)),
            })?;
        }
        Ok(())
    }

    /// Ends controller, proxy and supervisor. Instances have been stopped before, or stay.
    fn shut_down(&self) -> Result<(), ApiError> {
        let engine = self.engine.engine();
        if engine.list().is_ok_and(|left| left.is_empty()) {
            engine.close();
        }
        let root = self.root.clone();
        // The supervisor waits for us to end, so it is asked from beside.
        std::thread::spawn(move || handoff::Client::connect(&root).and_then(|mut s| s.shutdown()));
        Ok(())
    }
}
