//! One request: routed, sent to an instance, answered.
//!
//! What may be sent again, and where to, is decided by [`kiln_pool::Attempt`].

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use http_body_util::Full;
use hyper::body::{Body, Incoming};
use hyper::header::{CONNECTION, CONTENT_TYPE, HeaderValue, UPGRADE};
use hyper::{Request, Response, StatusCode, Version};
use hyper_util::rt::TokioIo;
use kiln_model::Weight;
use kiln_pool::{Attempt, Fault, Place, Progress, Retry, Verdict, choose};
use tokio::net::TcpStream;

use super::answer_body::{AnswerBody, InstanceBody};
use super::connection::ClientSide;
use super::flight::{BadBody, EndReason, Flight, Outcome, Ticket, WaitsFor};
use super::headers::{remove_hop_by_hop, request_id, upgrade};
use super::outgoing::{Outgoing, is_idempotent, outgoing};
use super::pool::Lease;
use super::refusal::{Failure, Refusal, refused};
use super::request_body::RequestBody;
use super::table::{Entered, Instance, LiveRoute};
use super::tunnel;
use super::worker::Worker;

/// hyper is told to drop the connection without a word.
#[derive(Debug, thiserror::Error)]
#[error("the client is gone")]
pub(super) struct ClientGone;

type Answer = Result<Response<AnswerBody>, ClientGone>;

pub(super) async fn serve(
    worker: Rc<Worker>,
    client_side: Arc<ClientSide>,
    request: Request<Incoming>,
) -> Answer {
    let framing = client_side.request_begins(!request.body().is_end_stream());
    let id = request_id(request.headers()).unwrap_or_else(|| worker.new_request_id());
    let flight = Flight::new(&worker.shared, &client_side);
    let ticket = Ticket::new(Rc::clone(&flight), &worker.flights);
    let answer = match refused(&request, framing) {
        Some((status, why)) => Err(Refusal {
            status,
            why: why.into(),
            outcome: Outcome::Refused,
        }),
        None => exchange(&worker, ticket, request, &id).await,
    };
    let mut response = match answer {
        Ok(response) => response,
        Err(Refusal {
            outcome: Outcome::Cancelled,
            status,
            ..
        }) if status != StatusCode::REQUEST_TIMEOUT => {
            return Err(ClientGone);
        }
        Err(refusal) => refusal.into_response(&flight, &id),
    };
    if worker.is_retiring() && response.status() != StatusCode::SWITCHING_PROTOCOLS {
        response
            .headers_mut()
            .insert(CONNECTION, HeaderValue::from_static("close"));
    }
    Ok(response)
}

/// An attempt that gave no answer.
enum Failed {
    /// Nothing was sent.
    Unsent(Box<Outgoing>, Failure),
    /// Something may have been sent, and nothing was answered.
    Sent(Failure),
    Ended(EndReason),
}

struct Exchange<'a> {
    worker: &'a Rc<Worker>,
    flight: Rc<Flight>,
    /// Where the request asks to leave HTTP.
    on_upgrade: Option<hyper::upgrade::OnUpgrade>,
    /// Sent twice, it does no harm, and it has no body that is gone once read.
    repeatable: bool,
}

async fn exchange(
    worker: &Rc<Worker>,
    ticket: Ticket,
    request: Request<Incoming>,
    id: &HeaderValue,
) -> Result<Response<AnswerBody>, Refusal> {
    let flight = Rc::clone(&ticket.flight);
    let (mut parts, body) = request.into_parts();
    // h2c would let a client speak past the proxy.
    let upgrade = upgrade(&parts.headers).filter(|to| !to.as_bytes().eq_ignore_ascii_case(b"h2c"));
    let on_upgrade = upgrade.as_ref().and_then(|_| parts.extensions.remove());
    let has_body = !body.is_end_stream();
    let mut exchange = Exchange {
        worker,
        repeatable: is_idempotent(&parts.method) && !has_body && upgrade.is_none(),
        on_upgrade,
        flight,
    };
    let mut outgoing = outgoing(
        parts,
        has_body.then_some(body),
        &exchange.flight,
        upgrade,
        id,
    );
    let mut tried: Vec<Arc<Instance>> = Vec::new();
    let mut fresh = false;
    let mut retries = 0;
    loop {
        let instance = exchange
            .route(&tried)
            .map_err(|refusal| exchange.count(refusal))?;
        let spare = exchange.repeatable.then(|| outgoing.again());
        let (failure, again, progress) = match exchange.attempt(&instance, outgoing, fresh).await {
            Ok((response, lease)) => return Ok(exchange.answer(response, lease, ticket)),
            Err(Failed::Ended(end_reason)) => {
                return Err(exchange.count(Refusal::ended(end_reason, &instance)));
            }
            Err(Failed::Unsent(unsent, failure)) => (failure, Some(*unsent), Progress::Unsent),
            Err(Failed::Sent(failure)) => (failure, spare, Progress::Sent),
        };
        match exchange.flight.bad_body.get() {
            Some(BadBody::Malformed) => return Err(exchange.count(Refusal::malformed())),
            Some(BadBody::Gone) => return Err(exchange.count(Refusal::client_gone())),
            None => {}
        }
        if failure.fault() == Fault::Instance {
            tried.push(Arc::clone(&instance));
        }
        let attempt = Attempt {
            progress,
            fault: failure.fault(),
            repeatable: exchange.repeatable,
            has_other: exchange.has_other(&tried),
            retries,
        };
        fresh = match attempt.retry() {
            Retry::GiveUp => return Err(exchange.count(failure.refusal(&instance))),
            Retry::Anew => true,
            Retry::Elsewhere => false,
        };
        // There is one wherever a retry is allowed: what was not sent came back, and what may be sent twice was kept.
        let Some(next) = again else {
            return Err(exchange.count(failure.refusal(&instance)));
        };
        retries += 1;
        outgoing = next;
    }
}

fn is_among(instance: &Instance, tried: &[Arc<Instance>]) -> bool {
    tried.iter().any(|tried| tried.epoch == instance.epoch)
}

impl Exchange<'_> {
    /// Chooses by the table that is current, and is counted at the instance when it returns.
    fn route(&self, tried: &[Arc<Instance>]) -> Result<Arc<Instance>, Refusal> {
        let listen = self.flight.client_side.listen;
        match self
            .worker
            .shared
            .enter(listen, |route| self.choose(route, tried))
        {
            Entered::NoRoute if self.worker.shared.has_table() => Err(Refusal::failed(
                StatusCode::SERVICE_UNAVAILABLE,
                format!("no service listens on {listen} any more"),
            )),
            Entered::NoRoute => Err(Refusal::failed(
                StatusCode::SERVICE_UNAVAILABLE,
                "the proxy has no routing table: the saved one is spoilt, and no controller has given it another",
            )),
            Entered::Nobody(route) => {
                self.flight.count_in(&route.unserved);
                Err(Refusal::failed(
                    StatusCode::SERVICE_UNAVAILABLE,
                    format!("no instance of {} is ready", route.service),
                ))
            }
            Entered::At(instance, counters) => {
                self.flight.count_in(&counters);
                self.flight.holds(Arc::clone(&instance));
                Ok(instance)
            }
        }
    }

    fn choose(&self, route: &LiveRoute, tried: &[Arc<Instance>]) -> Option<Place> {
        let now = self.worker.shared.coarse_now();
        let tried: Vec<Place> = match tried {
            [] => Vec::new(),
            tried => route
                .places()
                .filter(|(_, instance)| is_among(instance, tried))
                .map(|(place, _)| place)
                .collect(),
        };
        let choice = choose(
            &route.shares,
            &tried,
            |place| route.instance(place).is_eligible(now),
            |place| route.instance(place).in_flight.load(SeqCst),
            |below| self.worker.random(below),
        )?;
        if choice.fail_open && tried.is_empty() {
            self.worker.say_fail_open(route);
        }
        Some(choice.place)
    }

    fn has_other(&self, tried: &[Arc<Instance>]) -> bool {
        let live = self.worker.shared.live();
        live.routes
            .get(&self.flight.client_side.listen)
            .is_some_and(|route| {
                route.places().any(|(place, instance)| {
                    route.shares[place.set].weight > Weight::NONE && !is_among(instance, tried)
                })
            })
    }

    /// `fresh`: not by an idle connection.
    async fn attempt(
        &self,
        instance: &Arc<Instance>,
        outgoing: Outgoing,
        fresh: bool,
    ) -> Result<(Response<Incoming>, Lease), Failed> {
        let Self { worker, flight, .. } = self;
        let now = worker.shared.coarse_now();
        flight.touch(WaitsFor::Instance);
        let idle = match fresh || self.on_upgrade.is_some() {
            true => None,
            false => worker.pool.take(instance, now.0, !self.repeatable),
        };
        let reused = idle.is_some();
        let mut sender = match idle {
            Some(sender) => sender,
            None => match flight.unless_ended(self.connect(instance)).await {
                Ok(Ok(sender)) => sender,
                Ok(Err(failure)) => {
                    self.tell(instance, instance.failed(worker.shared.precise_now()));
                    return Err(Failed::Unsent(Box::new(outgoing), failure));
                }
                Err(end_reason) => return Err(Failed::Ended(end_reason)),
            },
        };
        let request = outgoing.into_request(flight);
        match flight.unless_ended(sender.try_send_request(request)).await {
            Ok(Ok(response)) => {
                self.tell(instance, instance.succeeded());
                let lease = Lease {
                    pool: Rc::clone(&worker.pool),
                    instance: Arc::clone(instance),
                    sender,
                    shared: Arc::clone(&worker.shared),
                };
                Ok((response, lease))
            }
            Ok(Err(mut error)) => {
                let unsent = error
                    .take_message()
                    .map(Outgoing::from_request)
                    .map(Box::new);
                let error = error.into_error();
                let failure = if reused && flight.bad_body.get().is_none() {
                    Failure::Stale
                } else {
                    if flight.bad_body.get().is_none() {
                        self.tell(instance, instance.failed(worker.shared.precise_now()));
                    }
                    Failure::Broken(error)
                };
                Err(match unsent {
                    Some(unsent) => Failed::Unsent(unsent, failure),
                    None => Failed::Sent(failure),
                })
            }
            Err(end_reason) => {
                if end_reason == EndReason::NoAnswer {
                    self.tell(instance, instance.failed(worker.shared.precise_now()));
                }
                Err(Failed::Ended(end_reason))
            }
        }
    }

    async fn connect(
        &self,
        instance: &Instance,
    ) -> Result<hyper::client::conn::http1::SendRequest<RequestBody>, Failure> {
        let connecting = TcpStream::connect(instance.address);
        let stream = match tokio::time::timeout(self.worker.limits.connect, connecting).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return Err(Failure::Connect(error)),
            Err(_) => return Err(Failure::ConnectTimeout),
        };
        // Without it, small writes wait for acknowledgements; a stream that can't be told so still works.
        drop(stream.set_nodelay(true));
        let (sender, connection) = hyper::client::conn::http1::Builder::new()
            .max_buf_size(self.worker.limits.head_bytes.max(8192))
            .handshake(TokioIo::new(stream))
            .await
            .map_err(Failure::Handshake)?;
        // Ends with its connection, which ends when its sender and its body are dropped. Its error is the
        // sender's and the body's as well.
        if self.on_upgrade.is_some() {
            tokio::task::spawn_local(async move { drop(connection.with_upgrades().await) });
        } else {
            tokio::task::spawn_local(async move { drop(connection.await) });
        }
        Ok(sender)
    }

    fn tell(&self, instance: &Instance, verdict: Verdict) {
        let ejected = match verdict {
            Verdict::Unchanged => return,
            Verdict::Ejected { .. } => true,
            Verdict::Recovered => false,
        };
        // Nobody listens any more when the process ends.
        let said = (instance.id.clone(), ejected);
        drop(self.worker.shared.ejections.send(said));
    }

    /// The instance's answer, as the client gets it.
    fn answer(
        &mut self,
        response: Response<Incoming>,
        lease: Lease,
        ticket: Ticket,
    ) -> Response<AnswerBody> {
        let (mut parts, body) = response.into_parts();
        let upgraded = match (parts.status, self.on_upgrade.take()) {
            (StatusCode::SWITCHING_PROTOCOLS, Some(client)) => Some((
                client,
                parts.extensions.remove::<hyper::upgrade::OnUpgrade>(),
            )),
            _ => None,
        };
        let to = parts.headers.get(UPGRADE).cloned();
        remove_hop_by_hop(&mut parts.headers);
        parts.version = Version::HTTP_11;
        let quiet = parts
            .headers
            .get(CONTENT_TYPE)
            .is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream"));
        self.flight.answered(parts.status.as_u16(), quiet);
        let body = match upgraded {
            Some((client, Some(instance_side))) => {
                parts
                    .headers
                    .insert(CONNECTION, HeaderValue::from_static("upgrade"));
                if let Some(to) = to {
                    parts.headers.insert(UPGRADE, to);
                }
                self.flight.outcome(Outcome::Served);
                drop(ticket);
                self.flight.client_side.tunnel_begins();
                tunnel::open(
                    &self.worker.tunnels,
                    lease.instance.epoch,
                    client,
                    instance_side,
                );
                AnswerBody::Own(Full::default())
            }
            _ => AnswerBody::Instance(InstanceBody::new(body, ticket, lease)),
        };
        Response::from_parts(parts, body)
    }

    fn count(&self, refusal: Refusal) -> Refusal {
        self.flight.outcome(refusal.outcome);
        if refusal.outcome != Outcome::Cancelled || refusal.status == StatusCode::REQUEST_TIMEOUT {
            self.flight.answered(refusal.status.as_u16(), false);
        }
        refusal
    }
}
