//! What a request brings along, checked before a call sees it.

use std::time::Duration;

use axum::body::to_bytes;
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::request::Parts;
use kiln_model::Actor;
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use super::error::Refused;

/// A definition with hundreds of services is well below it.
const BODY_LIMIT: usize = 16 * 1024 * 1024;
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// The query's parameters.
pub(super) struct Query<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Refused> {
        match axum::extract::Query::try_from_uri(&parts.uri) {
            Ok(axum::extract::Query(query)) => Ok(Self(query)),
            Err(error) => Err(Refused::bad(error.body_text())),
        }
    }
}

/// The body, as JSON.
pub(super) struct Body<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = Refused;

    async fn from_request(request: Request, _: &S) -> Result<Self, Refused> {
        let bytes = timeout(BODY_TIMEOUT, to_bytes(request.into_body(), BODY_LIMIT))
            .await
            .map_err(|_| {
                let seconds = BODY_TIMEOUT.as_secs();
                Refused::bad(format!("the request was not there after {seconds} s"))
            })?
            .map_err(|error| {
                Refused::bad(format!(
                    "the request broke off, or is longer than {BODY_LIMIT} bytes: {error}"
                ))
            })?;
        let value = serde_json::from_slice(&bytes).map_err(|error| {
            Refused::bad(format!(
                "the request can't be understood ({error}): are command line and controller of one version?"
            ))
        })?;
        Ok(Self(value))
    }
}

/// Who asks.
pub(super) struct Caller(pub(super) Actor);

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Refused> {
        match parts.extensions.get() {
            Some(actor) => Ok(Self(Actor::clone(actor))),
            None => Err(Refused::bad("it is not known who asks")),
        }
    }
}
