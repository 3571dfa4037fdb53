//! The calls that are answered at once, or by the progress of a rollout.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use kiln_model::api::{ApiError, DownRequest, History, RollbackRequest, Status};
use kiln_model::{EnvName, EnvironmentSpec, Plan, ServiceName, StateId};
use kiln_plan::StepRecord;
use serde::Deserialize;
use tokio::sync::oneshot;

use super::error::{Json, Refused};
use super::extract::{Body, Caller, Query};
use super::{Api, stream};
use crate::journal::{Filter, JournalError, Reader};
use crate::owner::{Call, Input};
use crate::progress::{self, Lines};
use crate::view;

impl Api {
    /// Asks the owner.
    pub(super) async fn ask<T>(
        &self,
        call: impl FnOnce(oneshot::Sender<T>) -> Call,
    ) -> Result<T, Refused> {
        let (reply, answer) = oneshot::channel();
        self.inputs
            .send(Input::Call(call(reply)))
            .map_err(|_| Refused::stopping())?;
        answer.await.map_err(|_| Refused::stopping())
    }

    /// A call that is refused at once, or answered by lines.
    async fn follow(
        &self,
        call: impl FnOnce(Lines, oneshot::Sender<Result<(), ApiError>>) -> Call,
    ) -> Result<Response, Refused> {
        let (lines, answer) = progress::lines();
        self.ask(|reply| call(lines, reply)).await??;
        Ok(stream::respond(answer))
    }

    /// Reads the journal, on a thread where that holds nobody up.
    pub(super) async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Reader) -> Result<T, JournalError> + Send + 'static,
    ) -> Result<T, Refused> {
        let reader = self.reader.clone();
        let read = tokio::task::spawn_blocking(move || read(&reader));
        Ok(read.await.map_err(|_| Refused::stopping())??)
    }
}

#[derive(Deserialize)]
pub(super) struct Of {
    environment: Option<EnvName>,
    service: Option<ServiceName>,
}

/// Answered by the owner, so that whoever asks learns that the owner goes on.
pub(super) async fn ping(State(api): State<Api>) -> Result<StatusCode, Refused> {
    api.ask(|reply| Call::Ping { reply }).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn status(
    State(api): State<Api>,
    Query(Of { environment, .. }): Query<Of>,
) -> Result<Json<Status>, Refused> {
    let status = api.ask(|reply| Call::Status { environment, reply });
    Ok(Json(status.await?))
}

pub(super) async fn plan(
    State(api): State<Api>,
    Body(spec): Body<EnvironmentSpec>,
) -> Result<Json<Plan>, Refused> {
    Ok(Json(api.ask(|reply| Call::Plan { spec, reply }).await??))
}

pub(super) async fn apply(
    State(api): State<Api>,
    Caller(actor): Caller,
    Body(plan): Body<Plan>,
) -> Result<Response, Refused> {
    api.follow(|lines, reply| Call::Apply {
        plan,
        actor,
        lines,
        reply,
    })
    .await
}

pub(super) async fn roll_back(
    State(api): State<Api>,
    Caller(actor): Caller,
    Body(request): Body<RollbackRequest>,
) -> Result<Response, Refused> {
    api.follow(|lines, reply| Call::Rollback {
        request,
        actor,
        lines,
        reply,
    })
    .await
}

pub(super) async fn take_down(
    State(api): State<Api>,
    Caller(actor): Caller,
    Body(request): Body<DownRequest>,
) -> Result<Response, Refused> {
    api.follow(|lines, reply| Call::Down {
        request,
        actor,
        lines,
        reply,
    })
    .await
}

pub(super) async fn history(
    State(api): State<Api>,
    Query(Of {
        environment,
        service,
    }): Query<Of>,
) -> Result<Json<History>, Refused> {
    let filter = Filter {
        environment: environment.clone(),
        service: service.clone(),
        kind: None,
    };
    let releases = api
        .ask(|reply| Call::Releases {
            environment,
            service,
            reply,
        })
        .await?;
    let entries = api
        .read(move |journal| journal.newest::<StepRecord>(&filter, view::HISTORY_ENTRIES))
        .await?;
    Ok(Json(History {
        releases,
        events: entries.into_iter().flat_map(view::events).collect(),
    }))
}

pub(super) async fn verify(State(api): State<Api>) -> Result<Json<StateId>, Refused> {
    Ok(Json(api.read(Reader::verify).await?))
}

pub(super) async fn shut_down(State(api): State<Api>) -> Result<StatusCode, Refused> {
    api.ask(|reply| Call::Shutdown { reply }).await??;
    Ok(StatusCode::NO_CONTENT)
}
