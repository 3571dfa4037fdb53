//! What the proxy answers itself, and why.

use std::borrow::Cow;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{CONNECTION, CONTENT_TYPE, HOST, HeaderValue};
use hyper::{Method, Request, Response, StatusCode, Version};
use kiln_pool::Fault;

use super::answer_body::AnswerBody;
use super::flight::{EndReason, Flight, Outcome};
use super::headers::REQUEST_ID;
use super::table::Instance;

/// Why the proxy itself answers.
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    pub(super) why: Cow<'static, str>,
    pub(super) outcome: Outcome,
}

impl Refusal {
    pub(super) fn failed(status: StatusCode, why: impl Into<Cow<'static, str>>) -> Self {
        Self {
            status,
            why: why.into(),
            outcome: Outcome::Failed,
        }
    }

    /// The body of the request is not what it says it is.
    pub(super) fn malformed() -> Self {
        Self {
            status: StatusCode::BAD_REQUEST,
            why: "the request's body is malformed".into(),
            outcome: Outcome::Refused,
        }
    }

    /// The client went away in the middle of its request: nobody reads the answer.
    pub(super) fn client_gone() -> Self {
        Self {
            outcome: Outcome::Cancelled,
            ..Self::malformed()
        }
    }

    /// The request was ended from outside.
    pub(super) fn ended(end_reason: EndReason, instance: &Instance) -> Self {
        let id = &instance.id;
        match end_reason {
            EndReason::Drain => Self::failed(
                StatusCode::GATEWAY_TIMEOUT,
                format!("{id} was replaced and did not answer before its drain deadline"),
            ),
            EndReason::Retire => Self::failed(
                StatusCode::GATEWAY_TIMEOUT,
                "the proxy ends and the answer did not come in time",
            ),
            EndReason::NoAnswer | EndReason::SlowAnswer => Self::failed(
                StatusCode::GATEWAY_TIMEOUT,
                format!("{id} did not answer in time"),
            ),
            EndReason::SlowRequest => Self {
                status: StatusCode::REQUEST_TIMEOUT,
                why: "the request's body did not come in time".into(),
                outcome: Outcome::Cancelled,
            },
        }
    }

    pub(super) fn into_response(self, flight: &Flight, id: &HeaderValue) -> Response<AnswerBody> {
        let Self {
            status,
            why,
            outcome: _,
        } = self;
        let text = format!("kiln: {why} (request {})\n", id.to_str().unwrap_or("?"));
        let mut response = Response::new(AnswerBody::Own(Full::new(Bytes::from(text))));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(
            CONTENT_TYPE,
            HeaderValue::from_static("text/plain; charset=utf-8"),
        );
        headers.insert(REQUEST_ID, id.clone());
        if status.is_client_error() || flight.body_taken.get() {
            // The rest of the body may not be a request: close the connection.
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

/// Faults of the request itself.
pub(super) fn refused(
    request: &Request<Incoming>,
    framing: Result<(), &'static str>,
) -> Option<(StatusCode, &'static str)> {
    let hosts = request.headers().get_all(HOST).iter().count();
    if let Err(why) = framing {
        return Some((StatusCode::BAD_REQUEST, why));
    }
    if request.method() == Method::CONNECT {
        return Some((StatusCode::NOT_IMPLEMENTED, "CONNECT is not served here"));
    }
    match (request.version(), hosts) {
        (_, 1) | (Version::HTTP_10, 0) => None,
        (_, 0) => Some((StatusCode::BAD_REQUEST, "the request has no Host")),
        _ => Some((
            StatusCode::BAD_REQUEST,
            "the request has more than one Host",
        )),
    }
}

/// Why an attempt gave no answer.
pub(super) enum Failure {
    Connect(std::io::Error),
    ConnectTimeout,
    Handshake(hyper::Error),
    /// A connection that had been idle was closed by the instance just then.
    Stale,
    Broken(hyper::Error),
}

impl Failure {
    pub(super) fn fault(&self) -> Fault {
        match self {
            Self::Stale => Fault::StaleConnection,
            Self::Connect(_) | Self::ConnectTimeout | Self::Handshake(_) | Self::Broken(_) => {
                Fault::Instance
            }
        }
    }

    pub(super) fn refusal(self, instance: &Instance) -> Refusal {
        let Instance { id, address, .. } = instance;
        let why = match self {
            Self::Connect(error) => format!("no connection to {id} at {address}: {error}"),
            Self::ConnectTimeout => format!("no connection to {id} at {address} in time"),
            Self::Handshake(error) => format!("no connection to {id} at {address}: {error}"),
            Self::Stale => format!("{id} closed the connection before it answered"),
            Self::Broken(error) => format!("{id} did not answer: {error}"),
        };
        Refusal::failed(StatusCode::BAD_GATEWAY, why)
    }
}
