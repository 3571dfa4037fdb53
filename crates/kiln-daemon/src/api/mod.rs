//! The HTTP API on the unix socket `ROOT/run/kiln.sock`, mode 0600. What each path means is said in
//! [`kiln_model::api`]. This file only turns requests into calls to the owner and answers into bytes.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use http_body::{Body, Frame};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use kiln_model::api::{ApiError, ErrorCode};
use kiln_model::{Actor, EnvName, InstanceId, ServiceName};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};

use crate::owner::{Call, Input};
use hyper_util::rt::TokioIo;

/// A definition with hundreds of services is well below it.
const BODY_LIMIT: usize = 16 * 1024 * 1024;

/// A whole answer, or lines as they come.
enum Answer {
    Whole(Option<Bytes>),
    Lines(mpsc::UnboundedReceiver<Bytes>),
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.get_mut() {
            Self::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Lines(lines) => lines
                .poll_recv(cx)
                .map(|line| line.map(|line| Ok(Frame::data(line)))),
        }
    }
}

/// Where a call that takes time sends what happens, one JSON value a line.
#[derive(Clone)]
pub(crate) struct Lines(mpsc::UnboundedSender<Bytes>);

impl Lines {
    /// False when nobody listens any more.
    pub(crate) fn send<T: Serialize>(&self, value: &T) -> bool {
        let Ok(mut line) = serde_json::to_vec(value) else {
            return false;
        };
        line.push(b'\n');
        self.0.send(line.into()).is_ok()
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.0.is_closed()
    }
}

/// Accepts for as long as the owner listens.
pub(crate) async fn serve(listener: UnixListener, inputs: mpsc::UnboundedSender<Input>) {
    while let Ok((stream, _)) = listener.accept().await {
        let Ok(peer) = stream.peer_cred() else {
            continue;
        };
        tokio::spawn(connection(stream, Actor::Uid(peer.uid()), inputs.clone()));
    }
}

async fn connection(stream: UnixStream, actor: Actor, inputs: mpsc::UnboundedSender<Input>) {
    let service = service_fn(|request| {
        let (inputs, actor) = (inputs.clone(), actor.clone());
        async move { Ok::<_, Infallible>(answer(request, actor, &inputs).await) }
    });
    // A client that goes away in the middle is no concern of ours.
    let _ = hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

async fn answer(
    request: Request<Incoming>,
    actor: Actor,
    inputs: &mpsc::UnboundedSender<Input>,
) -> Response<Answer> {
    match route(request, actor, inputs).await {
        Ok(response) => response,
        Err(error) => {
            let status = match error.code {
                ErrorCode::BadRequest => StatusCode::BAD_REQUEST,
                ErrorCode::NotFound => StatusCode::NOT_FOUND,
                ErrorCode::StalePlan | ErrorCode::Busy => StatusCode::CONFLICT,
                ErrorCode::Precondition => StatusCode::UNPROCESSABLE_ENTITY,
                ErrorCode::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
                ErrorCode::Internal => StatusCode::INTERNAL_SERVER_ERROR,
            };
            json(status, &error)
        }
    }
}

async fn route(
    request: Request<Incoming>,
    actor: Actor,
    inputs: &mpsc::UnboundedSender<Input>,
) -> Result<Response<Answer>, ApiError> {
    let query = Query::of(&request);
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    match (&method, path.as_str()) {
        (&Method::GET, "/v1/status") => {
            let environment = query.name("environment")?;
            let status = ask(inputs, |reply| Call::Status { environment, reply }).await?;
            Ok(json(StatusCode::OK, &status))
        }
        (&Method::POST, "/v1/plan") => {
            let spec = read(request).await?;
            let plan = ask(inputs, |reply| Call::Plan { spec, reply }).await??;
            Ok(json(StatusCode::OK, &plan))
        }
        (&Method::POST, "/v1/apply") => {
            let plan = read(request).await?;
            follow(inputs, |lines, reply| Call::Apply {
                plan,
                actor,
                lines,
                reply,
            })
            .await
        }
        (&Method::POST, "/v1/rollback") => {
            let request = read(request).await?;
            follow(inputs, |lines, reply| Call::Rollback {
                request,
                actor,
                lines,
                reply,
            })
            .await
        }
        (&Method::POST, "/v1/down") => {
            let request = read(request).await?;
            follow(inputs, |lines, reply| Call::Down {
                request,
                actor,
                lines,
                reply,
            })
            .await
        }
        (&Method::GET, "/v1/history") => {
            let environment: Option<EnvName> = query.name("environment")?;
            let service: Option<ServiceName> = query.name("service")?;
            let history = ask(inputs, |reply| Call::History {
                environment,
                service,
                reply,
            })
            .await??;
            Ok(json(StatusCode::OK, &history))
        }
        (&Method::GET, "/v1/logs") => {
            let environment = query
                .name("environment")?
                .ok_or_else(|| missing("environment"))?;
            let service = query.name("service")?.ok_or_else(|| missing("service"))?;
            let instance: Option<InstanceId> = query.name("instance")?;
            let count = match query.text("lines") {
                None => 100,
                Some(text) => text
                    .parse()
                    .map_err(|_| bad(format!("lines={text} is no number")))?,
            };
            let keep = query.text("follow") == Some("true");
            follow(inputs, |lines, reply| Call::Logs {
                environment,
                service,
                instance,
                count,
                follow: keep,
                lines,
                reply,
            })
            .await
        }
        (&Method::GET, "/v1/verify") => {
            let state = ask(inputs, |reply| Call::Verify { reply }).await??;
            Ok(json(StatusCode::OK, &state))
        }
        (&Method::POST, "/v1/shutdown") => {
            ask(inputs, |reply| Call::Shutdown { reply }).await??;
            let mut response = Response::new(Answer::Whole(None));
            *response.status_mut() = StatusCode::NO_CONTENT;
            Ok(response)
        }
        _ => Err(ApiError {
            code: ErrorCode::NotFound,
            message: format!(
                "{method} {path} is nothing that this kiln knows: is the command line of another version?"
            ),
        }),
    }
}

fn missing(parameter: &str) -> ApiError {
    bad(format!("the query lacks {parameter}="))
}

fn bad(message: String) -> ApiError {
    ApiError {
        code: ErrorCode::BadRequest,
        message,
    }
}

fn stopping() -> ApiError {
    ApiError {
        code: ErrorCode::Unavailable,
        message: "the controller is stopping: try again when it is back".to_owned(),
    }
}

async fn ask<T>(
    inputs: &mpsc::UnboundedSender<Input>,
    call: impl FnOnce(oneshot::Sender<T>) -> Call,
) -> Result<T, ApiError> {
    let (reply, answer) = oneshot::channel();
    inputs
        .send(Input::Call(call(reply)))
        .map_err(|_| stopping())?;
    answer.await.map_err(|_| stopping())
}

/// A call that is refused at once, or answered by lines.
async fn follow(
    inputs: &mpsc::UnboundedSender<Input>,
    call: impl FnOnce(Lines, oneshot::Sender<Result<(), ApiError>>) -> Call,
) -> Result<Response<Answer>, ApiError> {
    let (sender, lines) = mpsc::unbounded_channel();
    ask(inputs, |reply| call(Lines(sender), reply)).await??;
    let mut response = Response::new(Answer::Lines(lines));
    let kind = HeaderValue::from_static("application/x-ndjson");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    Ok(response)
}

fn json<T: Serialize>(status: StatusCode, value: &T) -> Response<Answer> {
    let (status, body) = match serde_json::to_vec(value) {
        Ok(body) => (status, body),
        Err(error) => (
            StatusCode::INTERNAL_SERVER_ERROR,
            error.to_string().into_bytes(),
        ),
    };
    let mut response = Response::new(Answer::Whole(Some(body.into())));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

async fn read<T: DeserializeOwned>(request: Request<Incoming>) -> Result<T, ApiError> {
    let mut body = request.into_body();
    let mut bytes = Vec::new();
    loop {
        let frame = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await;
        let Some(frame) = frame else { break };
        let frame = frame.map_err(|error| bad(format!("the request broke off: {error}")))?;
        if let Ok(data) = frame.into_data() {
            bytes.extend_from_slice(&data);
        }
        if bytes.len() > BODY_LIMIT {
            return Err(bad(format!(
                "the request is longer than {BODY_LIMIT} bytes"
            )));
        }
    }
    serde_json::from_slice(&bytes).map_err(|error| {
        bad(format!(
            "the request can't be understood ({error}): are command line and controller of one version?"
        ))
    })
}

/// The query's parameters. Names and numbers only, so nothing in it is ever percent-encoded.
struct Query(BTreeMap<String, String>);

impl Query {
    fn of<B>(request: &Request<B>) -> Self {
        let query = request.uri().query().unwrap_or("");
        Self(
            query
                .split('&')
                .filter_map(|pair| pair.split_once('='))
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect(),
        )
    }

    fn text(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    fn name<T>(&self, name: &str) -> Result<Option<T>, ApiError>
    where
        T: std::str::FromStr<Err: std::fmt::Display>,
    {
        self.text(name)
            .map(|text| text.parse().map_err(|error: T::Err| bad(error.to_string())))
            .transpose()
    }
}
